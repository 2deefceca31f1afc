"""Training the runs of a comparison: one by one, or the seeds of a routine in one program of the xla engine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unigen.checkpoints import Checkpoints
from unigen.data import Loader, spread
from unigen.engines import engine_named
from unigen.evaluate import features_of, log_likelihood, sample
from unigen.evaluate.sample_metrics import leading_distance
from unigen.optimizers import Falling, optimizers_for
from unigen.pair import Pair
from unigen.pairs.rbm import BoltzmannMachine
from unigen.planning import Arm, Plan
from unigen.runs import append_metrics, finite, keep_metrics_before
from unigen.signals import Ended, asked_to_end
from unigen.streams import isolated
from unigen.together import Lane, fit_together
from unigen.training import History, Interrupted, State, fit

__all__ = ["Ready", "stream", "together", "train"]


@dataclass(frozen=True)
class Ready:
    """A run that can train."""

    arm: Arm
    seed: int
    folder: Path
    pair: Pair
    kept: Checkpoints


def together(planned: Plan) -> bool:
    """Say whether the seeds of a routine train in one program."""
    return planned.settings.engine == "xla" and len(planned.settings.seeds) > 1


def train(planned: Plan, runs: list[Ready], progress: bool) -> list[Any]:
    """Train a group, each run from its last checkpoint where it has one; return how long each took, or how it failed."""
    if not runs:
        return []
    settings, arm = planned.settings, runs[0].arm
    loaders, steps = zip(*[_budget(planned, arm, run.seed) for run in runs], strict=True)
    optimizers = [optimizers_for(arm.routine, run.pair, planned.optimizer(arm)) for run in runs]
    record_every = max(1, steps[0] // 200) if steps[0] else 20
    between = min(engine_named(settings.engine).CHUNK, (steps[0] or 10**6) // max(1, settings.evaluations))
    callback_every = record_every * max(1, between // record_every)
    logs = [[_Log(planned, run.folder / "metrics.jsonl", steps[0], callback_every)] for run in runs]
    labels = [f"{arm.name}, seed {run.seed}" if progress else False for run in runs]
    shared: dict[str, Any] = {
        "steps": steps[0],
        "seconds": settings.seconds,
        "schedule": Falling(last, planned.optimizer(arm).lr) if (last := settings.final_learning_rate) else None,
        "record_every": record_every,
        "callback_every": callback_every,
    }
    with asked_to_end() as asked:
        try:
            if together(planned):
                lanes = [
                    Lane(loader, run.pair, stream(run.seed, "training"), own, log, run.kept, label)
                    for run, loader, own, log, label in zip(runs, loaders, optimizers, logs, labels, strict=True)
                ]
                outcomes = fit_together(arm.routine, lanes, **shared, interrupted=asked, width=len(settings.seeds))
            else:
                run = runs[0]
                with isolated(stream(run.seed, "training"), planned.device):
                    outcomes = [
                        fit(
                            loaders[0],
                            arm.routine,
                            run.pair,
                            optimizers[0],
                            **shared,
                            engine=settings.engine,
                            callbacks=logs[0],
                            checkpoints=run.kept,
                            interrupted=asked,
                            progress=labels[0],
                        )
                    ]
        except Interrupted as error:
            error.code = asked.code
            raise
        if asked():  # after the last step
            raise Ended(asked.code)
    return [each if isinstance(each, Exception) else _trained(*each) for each in outcomes]


def _trained(state: State, history: History) -> dict[str, Any]:
    spent = history.seconds[-1] if history.seconds else 0.0
    timed = state.step - history.untimed
    return {
        "steps": state.step,
        "seconds": spent,
        "seconds_per_step": spent / timed if timed else None,
        "seconds_compiling": history.compiling,
        "notes": history.notes,
    }


def _budget(planned: Plan, arm: Arm, seed: int) -> tuple[Any, int | None]:
    """Return the loader of a run and its number of steps; a closed-form routine sees all the data in every step.

    A last batch of one row is left out, for every routine: it has no variance, which a batch norm and an MMD ask for.
    """
    settings, rows = planned.settings, len(planned.dataset.train)
    batch = min(settings.batch_size, rows)
    full = any(phase.solve for phase in arm.routine)
    alone = batch > 1 and rows % batch == 1
    loader = Loader(planned.dataset, rows if full else batch, seed, planned.device, drop_last=alone and not full)
    if settings.seconds is not None:
        return loader, None
    if settings.epochs is not None:
        return loader, max(1, settings.epochs * loader.steps_per_epoch // arm.routine.batches)
    steps = settings.steps or 1
    return loader, -(-steps * batch // rows) if full else steps


class _Log:
    """Write the phases' values, and from time to time an evaluation on validation data, while a run goes on."""

    def __init__(self, planned: Plan, path: Path, steps: int | None, every: int) -> None:
        self.planned, self.path, self.steps, self.every = planned, path, steps, every
        self.written = 0  # the step of the last record that the file has
        self.done: int | None = None  # how many evaluations there were
        self.validation = spread(planned.dataset.validation, 250).to(planned.device)
        self.features = features_of(planned.dataset)

    def __call__(self, state: State, history: History) -> None:
        if self.done is None:  # what the call before this one wrote, perhaps in a process that was killed, stays
            self.written = (state.step - 1) // self.every * self.every
            keep_metrics_before(self.path, self.written + 1)
            rows = [row for row in zip(history.steps, history.seconds, strict=True) if row[0] <= self.written]
            self.done = self._due(*rows[-1]) if rows else 0
        for step, seconds, row in zip(history.steps, history.seconds, history.values, strict=True):
            if step > self.written:
                values = {phase: finite(value) for phase, value in zip(history.phases, row, strict=True)}
                append_metrics(self.path, {"step": step, "seconds": seconds, "values": values})
        self.written = step
        due = self._due(step, seconds)
        if len(self.validation) and due > self.done:
            self.done = due
            if line := self._quality(state.pair):
                append_metrics(self.path, {"step": step, "seconds": seconds, "evaluation": line})

    def _quality(self, pair: Pair) -> dict[str, Any]:
        """Return the log-likelihood of validation data where the pair has one, and the distance of as many samples from them."""
        line: dict[str, Any] = {}
        if pair.likelihood != "none":
            found = log_likelihood(pair, self.validation, min(self.planned.settings.particles, 50), seed=1)
            line = {"log_likelihood": finite(found.value), "kind": pair.likelihood}
        if isinstance(pair.model, BoltzmannMachine):
            return line  # its samples are the end of a long chain
        data, made = self.validation.cpu(), sample(pair, len(self.validation), self.validation, seed=1).x.cpu()
        if len(made) == len(data) and bool(torch.isfinite(made).all()):
            distance = leading_distance(data, made, self.features)
            said = f"{distance.name} of {distance.n_fake} samples, {distance.features}"
            line |= {"distance": finite(distance.value), "of": said}
        return line

    def _due(self, step: int, seconds: float) -> int:
        """Return how many evaluations there should have been by a step."""
        settings = self.planned.settings
        return int((step / self.steps if self.steps else seconds / (settings.seconds or 1.0)) * settings.evaluations)


def stream(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "little")
