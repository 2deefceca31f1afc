"""The comparison: every routine from the same weights, on the same data in the same order, under the same budget.

``compare`` trains, evaluates and writes every run of a plan (``unigen.planning``) into its directory (``unigen.runs``).
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from unigen.checkpoints import CheckpointError, Checkpoints
from unigen.data import Dataset, Loader
from unigen.durable import write_json
from unigen.evaluate import (
    Classifier,
    class_coverage,
    log_likelihood,
    mixture_metrics,
    reconstruct,
    sample,
    sample_distance,
    train_classifier,
)
from unigen.failures import OWN, failure, hint
from unigen.lock import locked
from unigen.networks import fingerprint
from unigen.pair import Pair
from unigen.planning import Arm, Plan, build_pair
from unigen.runs import append_metrics, finite, keep_metrics_before, save_grid, save_samples, save_weights
from unigen.signals import Ended, asked_to_end
from unigen.streams import isolated
from unigen.training import Falling, History, Interrupted, State, fit, optimizers_for

__all__ = ["compare"]


def compare(planned: Plan, described: dict[str, Any], progress: bool = True) -> list[dict[str, Any]]:
    """Train, evaluate and write every run of a plan; return the result of each, with what to do where it is not complete.

    ``described``: the plan's description (``unigen.describe``), which becomes the directory's ``config.json``. Called again
    on the same directory, it skips the runs that are complete or failed by themselves, and resumes the others. Raises
    ``DirectoryInUse`` where another process works there, ``KeyboardInterrupt`` when asked to end (a run that trains is
    saved), ``OSError`` where the directory itself cannot be written.
    """
    planned.directory.mkdir(parents=True, exist_ok=True)
    with locked(planned.directory):
        return _compare(planned, described, progress)


def _compare(planned: Plan, described: dict[str, Any], progress: bool) -> list[dict[str, Any]]:
    directory = planned.directory
    if not (directory / "config.json").exists():
        write_json(directory / "config.json", described)
    for left in directory.glob("*/seed-*/.*.tmp"):  # by a process that was killed
        left.unlink(missing_ok=True)
    runs = [
        (arm, seed, directory / arm.slug / f"seed-{seed}") for seed in planned.settings.seeds for arm in planned.arms
    ]
    finished = {folder: found for arm, seed, folder in runs if (found := _finished(folder / "result.json", arm, seed))}
    classifier = _classifier(planned.dataset) if len(finished) < len(runs) else None
    results = []
    with tqdm(runs, desc="runs", disable=not progress, position=0) as bar:
        for arm, seed, folder in bar:
            bar.set_postfix_str(f"{arm.name}, seed {seed}")
            result = finished.get(folder) or _run(planned, described, arm, seed, folder, classifier, progress)
            if result["status"] != "complete":
                result = result | {"error": f"{result.get('error')}; {hint(result, folder)}"}
            results.append(result)
    return results


def _finished(path: Path, arm: Arm, seed: int) -> dict[str, Any] | None:
    """Return the result of this run, where it is complete, or failed by itself."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(result, dict) or (result.get("routine"), result.get("seed")) != (arm.name, seed):
        return None
    return result if result.get("status") in ("complete", "failed") else None


def _run(
    planned: Plan,
    described: dict[str, Any],
    arm: Arm,
    seed: int,
    folder: Path,
    classifier: Classifier | None,
    progress: bool,
) -> dict[str, Any]:
    """Train and evaluate one run, write its files, and return its result."""
    result: dict[str, Any] = {"status": "complete", "routine": arm.name, "seed": seed, "error": None}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").unlink(missing_ok=True)
        pair = build_pair(planned, arm, seed)
        identity = {"routine": arm.name, "pair": arm.pair, "seed": seed, "weights": fingerprint(pair)}
        kept = Checkpoints(folder / "checkpoints", run=identity | {"optimizer": str(planned.optimizer(arm))})
        if not kept.steps() or not (folder / "config.json").exists():
            write_json(folder / "config.json", _configuration(described, arm, identity))
        result |= _train(planned, arm, seed, folder, pair, kept, progress)
        save_weights(folder / "weights.safetensors", pair)
        result |= _evaluate(planned, pair, folder, classifier)
        write_json(folder / "result.json", result)
        _tidy(kept)
        return result
    except (OSError, MemoryError, *OWN) as error:
        failed = failure(error)
    # outside the handler, so that the error does not keep the run's tensors while this goes on
    result = {"routine": arm.name, "seed": seed} | failed
    try:
        write_json(folder / "result.json", result)
    except OSError:
        pass  # a full disk: a run without a result is tried again as well
    return result


def _configuration(described: dict[str, Any], arm: Arm, identity: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a run's ``config.json``: the comparison's description, of this run alone."""
    routine = next((found for found in described.get("routines", []) if found.get("key") == arm.name), arm.name)
    shared = {name: value for name, value in described.items() if name not in ("routines", "seeds", "hashes")}
    return shared | identity | {"routine": routine}


def _tidy(kept: Checkpoints) -> None:
    """Leave one checkpoint of a complete run: weights and result are written, and none but a longer run would read it."""
    try:
        kept.keep_last()
    except CheckpointError as error:
        warnings.warn(str(error), stacklevel=2)


def _train(
    planned: Plan, arm: Arm, seed: int, folder: Path, pair: Pair, kept: Checkpoints, progress: bool
) -> dict[str, Any]:
    """Train a pair, from its last checkpoint where it has one, and return how long it took and what happened."""
    settings = planned.settings
    loader, steps = _budget(planned, arm, seed)
    with isolated(_stream(seed, "training"), planned.device), asked_to_end() as asked:
        try:
            state, history = fit(
                loader,
                arm.routine,
                pair,
                optimizers_for(arm.routine, pair, planned.optimizer(arm)),
                steps=steps,
                seconds=settings.seconds,
                engine=settings.engine,
                schedule=Falling(settings.final_learning_rate) if settings.final_learning_rate else None,
                callbacks=[_Log(planned, folder / "metrics.jsonl", steps)],
                record_every=max(1, steps // 200) if steps else 20,
                checkpoints=kept,
                interrupted=asked,
                progress=f"{arm.name}, seed {seed}" if progress else False,
            )
        except Interrupted as error:
            error.code = asked.code
            raise
        if asked():  # after the last step
            raise Ended(asked.code)
    spent = history.seconds[-1] if history.seconds else 0.0
    return {
        "steps": state.step,
        "seconds": spent,
        "seconds_per_step": spent / max(1, state.step),
        "notes": history.notes,
    }


def _budget(planned: Plan, arm: Arm, seed: int) -> tuple[Any, int | None]:
    """Return the loader of a run and its number of steps; a closed-form routine sees all the data in every step."""
    settings, rows = planned.settings, len(planned.dataset.train)
    batch = min(settings.batch_size, rows)
    full = any(phase.solve for phase in arm.routine)
    loader = Loader(planned.dataset, rows if full else batch, seed=seed, device=planned.device)
    if settings.seconds is not None:
        return loader, None
    if settings.epochs is not None:
        return loader, max(1, settings.epochs * loader.steps_per_epoch // arm.routine.batches)
    steps = settings.steps or 1
    return loader, -(-steps * batch // rows) if full else steps


class _Log:
    """Write the phases' values, and from time to time an evaluation on validation data, while a run goes on."""

    def __init__(self, planned: Plan, path: Path, steps: int | None) -> None:
        self.planned, self.path, self.steps = planned, path, steps
        self.done: int | None = None  # how many evaluations there were
        self.validation = planned.dataset.validation[:250].to(planned.device)

    def __call__(self, state: State, history: History) -> None:
        step, seconds = history.steps[-1], history.seconds[-1]
        if self.done is None:
            self.done = self._due(history.steps[-2], history.seconds[-2]) if len(history.steps) > 1 else 0
            keep_metrics_before(self.path, step)
        values = {phase: finite(value) for phase, value in zip(history.phases, history.values[-1], strict=True)}
        append_metrics(self.path, {"step": step, "seconds": seconds, "values": values})
        due = self._due(step, seconds)
        if len(self.validation) and due > self.done:
            self.done = due
            particles = min(self.planned.settings.particles, 50)
            found = log_likelihood(state.pair, self.validation, particles, seed=1)
            if found.value is not None:
                line = {"log_likelihood": finite(found.value), "kind": found.kind}
                append_metrics(self.path, {"step": step, "seconds": seconds, "evaluation": line})

    def _due(self, step: int, seconds: float) -> int:
        """Return how many evaluations there should have been by a step."""
        settings = self.planned.settings
        return int((step / self.steps if self.steps else seconds / (settings.seconds or 1.0)) * settings.evaluations)


def _evaluate(planned: Plan, pair: Pair, folder: Path, classifier: Classifier | None) -> dict[str, Any]:
    """Measure a trained pair on test data, and write its pictures."""
    dataset, test = planned.dataset, planned.test
    found = log_likelihood(pair, test, planned.settings.particles, seed=2)
    likelihood = {"value": finite(found.value), "standard_error": finite(found.standard_error), "kind": found.kind}
    metrics: dict[str, Any] = {}
    n = min(2500 if dataset.density is not None else 1000, len(dataset.test))
    made, data = sample(pair, n, test, seed=3), dataset.test[:n].to(planned.device)
    if bool(torch.isfinite(made.x).all()):
        for name, kernel in (("mmd", "gaussian"), ("kid", "cubic")):
            if name == "kid" and dataset.density is not None:
                continue
            distance = sample_distance(made.x, data, kernel)
            how = (
                "unbiased MMD², Gaussian kernels of 0.5, 1 and 2 median distances" if name == "mmd" else "cubic kernel"
            )
            how += f", {n} samples, {n} test data" + ("" if dataset.density is not None else ", raw pixels")
            metrics[name] = {
                "value": finite(distance.value),
                "standard_error": finite(distance.standard_error),
                "how": how,
            }
    means = getattr(dataset.density, "means", None)
    if means is not None:
        modes = mixture_metrics(made.x.cpu(), means, dataset.density.std)  # type: ignore[union-attr]
        how = f"PacGAN protocol, {n} samples, 3 standard deviations"
        metrics["modes"] = {"value": modes.modes_captured, "of": modes.modes, "how": how}
        metrics["high_quality"] = {"value": modes.high_quality, "how": how}
        metrics["reverse_kl"] = {"value": finite(modes.reverse_kullback_leibler), "how": how, "units": "nats"}
    if classifier is not None and dataset.test_labels is not None:
        classes = int(dataset.test_labels.max()) + 1
        coverage = class_coverage(made.x.cpu(), classifier, classes, dataset.test_labels)
        how = f"classes with at least a tenth of their share of the data, {n} samples, own classifier"
        metrics["coverage"] = {"value": coverage.covered, "of": classes, "how": how}
    save_samples(folder / "samples.png", made.x, made.mean[:100], dataset)
    if dataset.shape != (2,):
        rebuilt = reconstruct(pair, test[:10], seed=4) if pair.likelihood != "none" else None
        if rebuilt is not None:
            save_grid(folder / "reconstructions.png", torch.cat([test[:10], rebuilt]), dataset.shape)
    return {"log_likelihood": likelihood | {"how": found.how, "units": "nats"}, "metrics": metrics}


def _classifier(dataset: Dataset) -> Classifier | None:
    """Train the classifier of the class coverage: on grey rows and, where the data are binarized, a binary draw of them."""
    rows, labels = dataset.train, dataset.train_labels
    if labels is None:
        return None
    if dataset.binarization == "dynamic":
        with isolated(5):
            rows, labels = torch.cat([rows, torch.bernoulli(rows)]), torch.cat([labels, labels])
    return train_classifier(rows, labels, int(labels.max()) + 1, seed=0)


def _stream(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "little")
