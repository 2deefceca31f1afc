"""Several runs of one routine in one program: the seeds of a comparison, side by side in the xla engine.

Each run has its own pair, optimizers, data order, random stream, history and checkpoints, and goes the way that ``fit``
would take it; only the arithmetic is shared. The program always has the same number of lanes, so that a run's numbers do not
depend on which of the others have ended, failed or lag behind after a kill: a lane without a run repeats another.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unigen.checkpoints import Checkpoints
from unigen.failures import OWN
from unigen.pair import Pair
from unigen.phases import Phase, Routine
from unigen.training import Callback, History, Interrupted, State, Wanted, course, programs

__all__ = ["Lane", "fit_together"]


@dataclass(frozen=True)
class Lane:
    """One run: ``seed`` starts its random stream; the others are as in ``fit``."""

    loader: Any
    pair: Pair
    seed: int
    optimizers: dict[str, torch.optim.Optimizer] | None = None
    callbacks: Iterable[Callback] = ()
    checkpoints: Checkpoints | str | Path | None = None
    progress: bool | str = False


class _Course:
    """A course under its own random stream."""

    def __init__(self, lane: Lane, routine: Routine | Iterable[Phase], settings: dict[str, Any]) -> None:
        self.running: Generator[Wanted, tuple[Tensor, float, bool], tuple[State, History]] = course(
            lane.loader,
            routine,
            lane.pair,
            lane.optimizers,
            callbacks=lane.callbacks,
            checkpoints=lane.checkpoints,
            progress=lane.progress,
            engine="xla",
            **settings,
        )
        self.wanted: Wanted | None = None
        self.ended: tuple[State, History] | Exception | None = None
        self.stopped: Interrupted | None = None
        torch.default_generator.manual_seed(lane.seed)
        self.stream = torch.get_rng_state()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw from the stream of this run."""
        torch.set_rng_state(self.stream)
        yield
        self.stream = torch.get_rng_state()

    def go_on(self, values: Tensor | None = None, taken: float = 0.0, compiled: bool = False) -> None:
        """Go on to what is wanted next, or to the end."""
        with self.drawing():
            try:
                if values is None:
                    self.wanted = next(self.running)
                else:
                    self.wanted = self.running.send((values, taken, compiled))
                return
            except StopIteration as end:
                self.ended = end.value
            except (OSError, MemoryError, *OWN) as error:
                if values is None and isinstance(error, ValueError):
                    raise  # what all runs are given is wrong
                self.ended = error
            except Interrupted as error:
                self.stopped = error
        self.wanted = None

    def keys(self, count: int) -> Tensor:
        with self.drawing():
            return torch.randint(0, 2**62, (count,))


def fit_together(
    routine: Routine | Iterable[Phase],
    lanes: Sequence[Lane],
    *,
    steps: int | None = None,
    seconds: float | None = None,
    schedule: Callable[[float, float], float] | None = None,
    average: float | None = None,
    record_every: int | None = None,
    callback_every: int | None = None,
    checkpoint_every: int | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    width: int | None = None,
) -> list[tuple[State, History] | Exception]:
    """Run a routine over several pairs of one structure and return for each its ``(state, history)``, or how it failed.

    An error of one run, as of its callback or its disk, ends that run alone; one of the program that they share ends all.
    Settings as in ``fit``. ``width``: the number of lanes, by default that of ``lanes``; a run's numbers are the same bits
    for the same width. Seconds are the time of a call divided by the number of runs in it.

    Raises ``Unsupported`` (a ``PairError``) before the first step where the xla engine cannot run them in one program, and
    ``Interrupted`` once every run that is not behind the others has saved its checkpoint.
    """
    from unigen.engines.xla import advance_many  # imports jax

    phases, asked = tuple(routine), [False]
    settings = {
        "steps": steps,
        "seconds": seconds,
        "schedule": schedule,
        "average": average,
        "record_every": record_every,
        "callback_every": callback_every,
        "checkpoint_every": checkpoint_every,
        "interrupted": lambda: asked[0],
    }
    lanes_wide = max(width or 0, len(lanes))
    fillers: list[tuple[Pair, dict[str, torch.optim.Optimizer]]] = []  # kept, since an engine captures each pair once
    with torch.random.fork_rng(devices=[]):
        courses = [_Course(lane, routine, settings) for lane in lanes]
        for each in courses:
            each.go_on()
        while wanting := [each for each in courses if each.wanted is not None]:
            behind = min((each.wanted.state.step, len(each.wanted.batches)) for each in wanting if each.wanted)
            group = [each for each in wanting if each.wanted and _place(each.wanted) == behind]
            wanted = [each.wanted for each in group if each.wanted is not None]
            began = time.perf_counter()
            keys = [each.keys(behind[1]) for each in group]
            pairs = [(one.state.pair, one.state.optimizers) for one in wanted]
            while len(fillers) < lanes_wide - len(pairs):
                fillers.append(copy.deepcopy(pairs[0]))
            pairs += fillers[: lanes_wide - len(pairs)]
            filled = [*range(len(group)), *[0] * (lanes_wide - len(group))]
            made = sum(programs(pair) for pair, _ in pairs)
            rates = None if wanted[0].rates is None else [wanted[i].rates or [] for i in filled]
            values = advance_many(
                phases,
                [pair for pair, _ in pairs],
                [optimizers for _, optimizers in pairs],
                [wanted[i].batches for i in filled],
                rates,
                keys=[keys[i] for i in filled],
            )
            taken, asked[0] = (time.perf_counter() - began) / len(group), interrupted()
            compiled = sum(programs(pair) for pair, _ in pairs) > made
            for each, mine in zip(group, values[: len(group)], strict=True):
                each.go_on(mine, taken, compiled)
            stopped = [each.stopped for each in courses if each.stopped is not None]
            if stopped:
                raise stopped[0]
    return [each.ended for each in courses if each.ended is not None]


def _place(wanted: Wanted) -> tuple[int, int]:
    return wanted.state.step, len(wanted.batches)
