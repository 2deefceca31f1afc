"""What ``fit`` does with checkpoints: whose they are, what they hold beside the state, and how a run goes on from one."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unigen.checkpoints import Checkpoint, Checkpoints
from unigen.environment import differences, environment
from unigen.phases import Phase
from unigen.snapshots import attributes, capture, capture_streams, restore, restore_streams

if TYPE_CHECKING:
    from unigen.training import History, State

__all__ = ["Keeper", "ResumeWarning"]


class ResumeWarning(UserWarning):
    """A run that goes on, but not from its newest checkpoint not in the same environment, or not with the same attributes of
    its modules; the sentence says which."""


class Keeper:
    """The checkpoints of one call of ``fit``.

    ``same``, ``phases``, ``optimizers`` (as they are before the first step), ``schedule``, ``loader``: what must be equal for
    a checkpoint to be of this run, beside ``checkpoints.run``.
    Raises ``TypeError`` for a loader whose batches cannot be found by their index.
    """

    def __init__(
        self,
        checkpoints: Checkpoints | str | Path,
        same: dict[str, Any],
        phases: Sequence[Phase],
        optimizers: Mapping[str, torch.optim.Optimizer],
        schedule: Any,
        loader: Any,
    ) -> None:
        named = repr(schedule) if dataclasses.is_dataclass(schedule) else getattr(schedule, "__qualname__", None)
        own = same | {"schedule": named, "data": _data(loader)}
        kept = checkpoints if isinstance(checkpoints, Checkpoints) else Checkpoints(Path(checkpoints))
        settings = _settings(phases, optimizers, schedule) | _first(loader)
        self.kept = dataclasses.replace(kept, run={**kept.run, **own}, settings={**kept.settings, **settings})
        self.latest: int | None = None
        self.environment: dict[str, Any] = {}
        self.began: dict[str, str] = {}  # the plain attributes that the pair had before the first step

    def resume(self, state: State, history: History, allowed: bool) -> tuple[float, Tensor | None, int, bool]:
        """Bring state and history to the newest good checkpoint, if there is one, and return what ``save`` was given.

        That is ``(spent, total, count, stopped)``: seconds, the sum of the values since the last record and of how many
        steps it is, and whether a callback ended the run. Warns of checkpoints passed over, and of another environment.
        """
        device = next((parameter.device for parameter in state.pair.parameters()), torch.device("cpu"))
        self.environment = environment(device)
        self.began = now = attributes(state.pair)
        if not allowed and self.kept.steps():
            raise ValueError(f"{self.kept.directory} has checkpoints already; resume the run, or name a new directory")
        found = self.kept.load(lambda found: _restore(found, state, history))
        if found is None:
            return 0.0, None, 0, False
        notes = [f"{name} was rejected: {reason}" for name, reason in found.rejected.items()]
        self.began, stored = found.content.get("began", now), attributes(state.pair)
        for path, value in now.items():
            if value not in (stored[path], self.began.get(path, value)):
                notes.append(f"{path} was {value} here, and is {stored[path]} as in the checkpoint")
        changed = differences(found.content["environment"], self.environment)
        if changed:
            notes.append(f"the environment differs, so the run is not bit-identical: {', '.join(changed)}")
        for note in notes:
            warnings.warn(f"resumed at step {state.step}: {note}", ResumeWarning, stacklevel=3)
        history.notes += [f"resumed at step {state.step}", *notes]
        loop, self.latest = found.content["loop"], state.step
        total = None if loop["total"] is None else loop["total"].to(device)
        return loop["spent"], total, loop["count"], loop["stopped"]

    def save(
        self, state: State, history: History, spent: float, total: Tensor | None, count: int, stopped: bool
    ) -> None:
        """Save a checkpoint of this step, unless it has one."""
        if self.latest == state.step:
            return
        rows = {name: getattr(history, name) for name in (*_RECORDS, *_TIMES)}
        loop = {"spent": spent, "total": total, "count": count, "stopped": stopped}
        own = {"history": rows, "loop": loop, "environment": self.environment, "began": self.began}
        self.kept.save(state.step, capture(state) | own)
        self.latest = state.step


_RECORDS, _TIMES = ("steps", "seconds", "values", "notes"), ("compiling", "untimed")


def _restore(found: Checkpoint, state: State, history: History) -> None:
    """Bring state and history to a checkpoint; any error where its content is not what ``save`` was given."""
    content = found.content
    records, loop = content["history"], content["loop"]
    steps, seconds, values, notes = (records[name] for name in _RECORDS)
    compiling, untimed = (records.get(name, 0) for name in _TIMES)  # earlier versions have none
    rows = [len(history.phases)] * len(steps)
    spent, count = loop["spent"], loop["count"]
    good = (
        all(isinstance(part, list) for part in (steps, seconds, values, notes))
        and all(type(step) is int for step in steps)
        and all(isinstance(note, str) for note in notes)
        and [len(row) for row in values] == rows
        and all(math.isfinite(number) for row in [seconds, [spent, compiling], *values] for number in row)
        and len(seconds) == len(steps)
        and type(count) is type(untimed) is int
        and type(loop["stopped"]) is bool
        and (loop["total"] is None or loop["total"].shape == (len(history.phases),))
        and isinstance(content["environment"], dict)
        and isinstance(content.get("began", {}), dict)
        and content["step"] == found.step
    )
    if not good:
        raise ValueError("its records are not those of a run")
    restore(content, state)
    for name in _RECORDS:
        setattr(history, name, records[name])
    history.compiling, history.untimed = compiling, untimed


def _settings(
    phases: Sequence[Phase], optimizers: Mapping[str, torch.optim.Optimizer], schedule: Any
) -> dict[str, str]:
    """Return what phases do not say in their own words, the settings of optimizers, and how their rates are to fall."""
    found = {}
    for number, phase in enumerate(phases, 1):
        for name in ("estimator", "control_variate"):
            found[f"{name} of phase {number}"] = repr(getattr(phase, name))
        if inspect.isfunction(phase.maximize):
            closed = inspect.getclosurevars(phase.maximize).nonlocals
            numbers = {name: value for name, value in closed.items() if isinstance(value, Real | str)}
            found |= {f"{name} of the objective of phase {number}": _text(value) for name, value in numbers.items()}
    for group, optimizer in optimizers.items():
        for number, part in enumerate(optimizer.param_groups, 1):
            where = group if len(optimizer.param_groups) == 1 else f"part {number} of {group}"
            found |= {f"{name} of {where}": _text(value) for name, value in part.items() if name != "params"}
            if schedule is not None:
                rates = [schedule(part["lr"], eighth / 8) for eighth in range(9)]
                found[f"scheduled lr of {where}"] = _text(rates)
    return found


def _text(value: Any) -> str:
    """Return a setting as text: all of numbers and words, of anything else its type, since it may print where it lies."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    if value is None or isinstance(value, bool | str):
        return repr(value)
    return repr(float(value)) if isinstance(value, Real) else type(value).__name__


def _data(loader: Any) -> Any:
    """Return what tells the data of a run, and their order, from others."""
    if hasattr(loader, "at"):
        names = ("seed", "batch_size", "drop_last", "steps_per_epoch")
        own = {name: value for name in names if isinstance(value := getattr(loader, name, None), int)}
        return own | {"fingerprint": getattr(getattr(loader, "dataset", None), "fingerprint", None)}
    if not isinstance(loader, Tensor | Mapping | tuple):
        kind = type(loader).__name__
        raise TypeError(
            f"a run with checkpoints finds its batches by their index; give a Loader or one batch, not a {kind}"
        )
    return _digest(loader)


def _first(loader: Any) -> dict[str, str]:
    """Return what tells the data of a loader that does not say which they are: its first batch."""
    if not hasattr(loader, "at") or getattr(getattr(loader, "dataset", None), "fingerprint", None) is not None:
        return {}
    streams = capture_streams()
    torch.manual_seed(0)  # of noise that a batch may have
    try:
        return {"first batch": _digest(loader.at(0))}
    finally:
        restore_streams(streams)


def _digest(batch: Any) -> str:
    digest = hashlib.sha256()
    for name, value in dict(batch if isinstance(batch, Mapping) else enumerate(_tuple(batch))).items():
        digest.update(f"{name} ".encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def _tuple(batch: Any) -> tuple[Any, ...]:
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)
