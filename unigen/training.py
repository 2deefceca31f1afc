"""The training loop: ``fit`` takes a routine over a pair for a number of steps or seconds.

``State`` is what the next step needs, ``History`` what a reader wants to know. One step of a routine runs its phases once.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from tqdm.auto import tqdm

from unigen.averages import Averages
from unigen.checkpoints import Checkpoints
from unigen.datachecks import integer
from unigen.engines import engine_named
from unigen.engines.checks import check_optimizers, check_routine
from unigen.optimizers import optimizers_for
from unigen.pair import Pair
from unigen.phases import Phase, Routine
from unigen.resume import Keeper
from unigen.watch import TrainingError, Watch

__all__ = [
    "History",
    "Interrupted",
    "State",
    "TrainingError",
    "Wanted",
    "course",
    "fit",
    "programs",
]


class Interrupted(KeyboardInterrupt):
    """A run that was asked to end, and whose checkpoint, where it has some, is written; ``code`` is its exit code."""

    code: int = 130


@dataclass
class State:
    """What the next step needs: the pair, its optimizers, and the number of steps taken."""

    pair: Pair
    optimizers: dict[str, torch.optim.Optimizer]
    step: int = 0


@dataclass
class History:
    """One row a record: the step, the seconds spent in training so far, and the mean value of each phase since the last.

    ``notes`` say where the run was resumed, which checkpoints were rejected and why, and whether the environment differed.
    ``compiling``: the seconds in which an engine captured and compiled, in all processes that the run has had: what a call
    with a batch of a new shape took beyond the pace of those before. They are no part of ``seconds``; ``untimed``: nor are this
    many steps, the first of each process.
    """

    phases: list[str]
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    compiling: float = 0.0
    untimed: int = 0


Callback = Callable[[State, History], None]


def _in_order(x: Tensor) -> Tensor:
    """Return a tensor in row-major order: how products round depends on the order of memory."""
    return x.contiguous() if x.layout is torch.strided else x  # else it is refused, by the check of the pair


MOST_COMPILED = 16  # calls of a process that compile and are not charged; a program that is captured anew for ever is


def _batches(loader: Any, ahead: bool) -> Callable[[int], Any]:
    """Return the batch of a global index: from a loader's ``at``, one tensor again and again, or an iterable, restarted.

    ``ahead``: several are taken before the first is used, so that they are copied: an iterable may fill one tensor anew.
    """
    if hasattr(loader, "at"):
        return loader.at
    if isinstance(loader, Tensor | Mapping | tuple):
        batch = tree_map_only(Tensor, _in_order, loader)
        return lambda index: batch
    if not isinstance(loader, Iterable) or isinstance(loader, Iterator):
        raise TypeError(
            f"fit wants a Loader, a batch, or an iterable that can be restarted; got {type(loader).__name__}"
        )

    copied = ahead and not isinstance(loader, Sequence)

    def endless() -> Iterator[Any]:
        while True:
            empty = True
            for batch in loader:
                empty = False
                yield tree_map_only(Tensor, Tensor.clone, batch) if copied else batch
            if empty:
                raise ValueError("the loader has no batch")

    stream = endless()
    return lambda index: next(stream)


def _length(loader: Any) -> int:
    try:
        return len(loader)
    except TypeError:  # of an iterable that does not say
        return 1


def fit(
    loader: Any,
    routine: Routine | Iterable[Phase],
    pair: Pair,
    optimizers: dict[str, torch.optim.Optimizer] | None = None,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    engine: str = "eager",
    schedule: Callable[[float, float], float] | None = None,
    average: float | None = None,
    callbacks: Iterable[Callback] = (),
    record_every: int | None = None,
    callback_every: int | None = None,
    checkpoints: Checkpoints | str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = True,
    interrupted: Callable[[], bool] = lambda: False,
    progress: bool | str = True,
) -> tuple[State, History]:
    """Run a routine over a pair and return ``(state, history)``.

    ``loader``: a ``unigen.data.Loader``, one batch (used every step), or an iterable of batches, such as a ``DataLoader`` of
    torch's. ``optimizers``: by group, default ``optimizers_for``. ``steps``, ``seconds``: the budget, whichever ends first; at
    least one is needed; seconds count training alone, neither callbacks nor compilation (``history.compiling``).
    ``schedule(lr, progress)``: the learning rate at a fraction of the budget; afterwards optimizers have their own again, so
    that a run that goes on with the same ones falls from there.
    ``average``: d in [0, 1), keeps running averages w̄ <- d w̄ + (1 - d) w of the weights (``unigen.averages``).
    The history gets a record every ``record_every`` steps (default 1/200 of the budget) and one at the end. ``callbacks``:
    called with ``(state, history)`` after each record, or, where ``callback_every`` is a multiple of ``record_every``, after
    each record that far apart: an engine of many steps a call is then interrupted less often. ``progress``: show a bar,
    with a label if a string.

    ``checkpoints``: a directory, or a ``Checkpoints``, that gets one every ``checkpoint_every`` steps (default 1/20 of the
    budget) and one at the end. Where it has some, the run goes on from the newest good one, and on the same machine, build
    and number of threads ends bit for bit as if it had never stopped; with ``resume=False`` they are refused. The loader is
    then one that finds a batch by its index, or one batch. ``interrupted``: asked after each call of the engine,
    a second at most for steps shorter than that; where it says true, a checkpoint is saved and ``Interrupted`` raised.

    Raises ``PairError`` before the first step for a wrong pairing, ``ValueError`` for a missing budget or a number that is
    none, ``TrainingError`` within a step where a value, gradient or parameter is not finite, ``CheckpointError`` where a
    checkpoint cannot be written or none is good. A ``StopIteration`` from a callback ends the run early.
    """
    routine = check_routine(routine)
    running = course(
        loader,
        routine,
        pair,
        optimizers,
        steps=steps,
        seconds=seconds,
        engine=engine,
        schedule=schedule,
        average=average,
        callbacks=callbacks,
        record_every=record_every,
        callback_every=callback_every,
        checkpoints=checkpoints,
        checkpoint_every=checkpoint_every,
        resume=resume,
        interrupted=interrupted,
        progress=progress,
    )
    advance, phases = engine_named(engine).advance, tuple(routine)
    with closing(running), torch.inference_mode(False):  # whatever the caller has switched off
        try:
            wanted = next(running)
            while True:
                began, made = time.perf_counter(), programs(pair)
                try:
                    values = advance(phases, wanted.state.pair, wanted.state.optimizers, wanted.batches, wanted.rates)
                except (ValueError, RuntimeError, ArithmeticError) as error:
                    wanted = running.throw(error)
                else:
                    wanted = running.send((values, time.perf_counter() - began, programs(pair) > made))
        except StopIteration as ended:
            result: tuple[State, History] = ended.value
            return result


@dataclass(frozen=True)
class Wanted:
    """What a course wants an engine to do: a step of its routine on each of ``batches``, with the learning rates ``rates``."""

    state: State
    batches: list[list[Any]]
    rates: list[list[float]] | None


def course(
    loader: Any,
    routine: Routine | Iterable[Phase],
    pair: Pair,
    optimizers: dict[str, torch.optim.Optimizer] | None = None,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    engine: str = "eager",
    schedule: Callable[[float, float], float] | None = None,
    average: float | None = None,
    callbacks: Iterable[Callback] = (),
    record_every: int | None = None,
    callback_every: int | None = None,
    checkpoints: Checkpoints | str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = True,
    interrupted: Callable[[], bool] = lambda: False,
    progress: bool | str = True,
) -> Generator[Wanted, tuple[Tensor, float, bool], tuple[State, History]]:
    """Run ``fit`` without its engine: yield what is wanted, be sent the values (steps, phases), the seconds that they took, and
    whether the engine compiled something in them."""
    if steps is None and seconds is None:
        raise ValueError("fit needs a budget: steps=... or seconds=...")
    steps = None if steps is None else integer("steps", steps, 0)
    if seconds is not None and not (isinstance(seconds, Real) and math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"seconds is {seconds!r}, expected a finite number of at least 0.")
    seconds = None if seconds is None else float(seconds)
    record_every, callback_every, checkpoint_every = (
        None if value is None else integer(name, value, 1)
        for name, value in (
            ("record_every", record_every),
            ("callback_every", callback_every),
            ("checkpoint_every", checkpoint_every),
        )
    )
    if not isinstance(pair, Pair):
        raise TypeError(f"fit(loader, routine, pair) trains a Pair; got {type(pair).__name__}")
    pair.refresh()
    routine = check_routine(routine)
    module, phases = engine_named(engine), tuple(routine)
    state = State(pair, optimizers if optimizers is not None else optimizers_for(routine, pair))
    check_optimizers(phases, pair, state.optimizers)
    if average is not None:
        pair.averages = Averages.begin(pair, average)
    if (
        any(phase.solve for phase in phases)
        and not isinstance(loader, Tensor | Mapping | tuple)
        and _length(loader) > 1
    ):
        warnings.warn(
            "a phase in closed form maximizes each batch alone and forgets the others; give all the data as one batch, or climb, "
            "as em(closed_form=False) does",
            stacklevel=2,
        )
    history = History([f"{number} {phase}" for number, phase in enumerate(phases, 1)])
    rates = [part["lr"] for optimizer in state.optimizers.values() for part in optimizer.param_groups]
    batch_at, each = _batches(loader, module.CHUNK > 1), max(phase.steps for phase in phases)
    every, callbacks = record_every or max(1, (steps or 2000) // 200), tuple(callbacks)
    called = callback_every or every
    if called % every:
        raise ValueError(
            f"callback_every={called} is no multiple of record_every={every}, and callbacks follow a record"
        )
    label = progress if isinstance(progress, str) else "fit"
    spent, total, count, stopped, keeper = 0.0, None, 0, False, None
    if checkpoints is not None:
        same = {"phases": history.phases, "steps": steps, "seconds": seconds, "record_every": every, "engine": engine}
        keeper = Keeper(checkpoints, same, phases, state.optimizers, schedule, loader)
        spent, total, count, stopped = keeper.resume(state, history, resume)
        pair.refresh()
    exempt = MOST_COMPILED
    between = checkpoint_every or max(1, (steps or 20000) // 20)
    watch, pace, told = Watch(history.phases, phases), 0.0, state.step  # seconds a step; the last step callbacks saw
    with ExitStack() as stack:
        if schedule is not None:
            stack.callback(_set_rates, state, rates)
        bar = stack.enter_context(
            tqdm(total=steps, initial=state.step, desc=label, disable=not progress, leave=False, mininterval=0.5)
        )
        while not stopped and (steps is None or state.step < steps) and (seconds is None or spent < seconds):
            began = time.perf_counter()
            most = min(module.CHUNK, int(1 / pace) if pace else 1)  # a call of a second, so that a signal is heard
            if seconds is not None and pace:
                most = min(most, int((seconds - spent) / pace))
            ahead = _until_next(
                state.step, max(most, 1), steps, called if callbacks else None, between if keeper else None
            )
            batches = [
                [batch_at(number * each + repetition) for repetition in range(each)]
                for number in range(state.step, state.step + ahead)
            ]
            falling = None
            if schedule is not None:
                fractions = [
                    (state.step + number) / steps if steps else spent / (seconds or 1.0) for number in range(ahead)
                ]
                falling = [[schedule(lr, fraction) for lr in rates] for fraction in fractions]
            prepared = time.perf_counter() - began
            try:
                values, taken, compiled = yield Wanted(state, batches, falling)
            except (ValueError, RuntimeError, ArithmeticError) as error:
                watch.failed(state, error, batches)
                raise
            watch(state, values, batches)
            first, state.step, cost = state.step, state.step + ahead, prepared + taken
            if compiled and exempt:
                exempt -= 1
                history.compiling += cost - min(cost, pace * ahead)
                history.untimed += 0 if pace else ahead
                cost = min(cost, pace * ahead)
            else:
                pace = taken / ahead
            while len(values):  # up to the next record
                rows = _until_next(state.step - len(values), len(values), steps, every)
                total, count, values = _plus(total, values[:rows]), count + rows, values[rows:]
                step = state.step - len(values)
                if step % every == 0 or step == steps:
                    watch.settle()
                    _record(history, step, spent + cost * (step - first) / ahead, total / count)
                    total, count = None, 0
            spent += cost
            bar.update(ahead)
            if history.values:
                bar.set_postfix_str(" ".join(f"{value:.4g}" for value in history.values[-1]), refresh=False)
            if state.step % called == 0 or state.step == steps:
                stopped, told = _call(callbacks, state, history), state.step
                if callbacks and pair.refresh():
                    check_optimizers(phases, pair, state.optimizers)
            asked = interrupted()
            if keeper is not None and (asked or state.step % between == 0):
                watch.settle()
                keeper.save(state, history, spent, total, count, stopped)
            if asked:
                raise Interrupted(f"interrupted at step {state.step}")
        watch.settle()
        if total is not None:
            _record(history, state.step, spent, total / count)
        if state.step > told:
            _call(callbacks, state, history)
        if keeper is not None:
            keeper.save(state, history, spent, None, 0, stopped)
    return state, history


def programs(pair: Pair) -> int:
    """Return how much the engines have made of a pair: one compiles in a call in which this grows."""
    made = {key: part for key, part in pair.compiled.items() if key != "xla parameters"}  # which are looked up anew
    return sum(len(part) if isinstance(part, dict) else 1 for part in made.values())


def _set_rates(state: State, rates: Sequence[float]) -> None:
    parts = (part for optimizer in state.optimizers.values() for part in optimizer.param_groups)
    for part, lr in zip(parts, rates, strict=False):
        part["lr"] = lr


def _until_next(step: int, most: int, *marks: int | None) -> int:
    """Return how many steps, at most ``most``, reach the first of: step ``marks[0]``, the next multiple of another mark."""
    last, *every = marks
    ahead = [each - step % each for each in every if each]
    return min([most, *ahead] if last is None else [most, last - step, *ahead])


def _plus(total: Tensor | None, values: Tensor) -> Tensor:
    """Add values row by row, in float64: the sum does not depend on how many rows come at a time."""
    if values.is_cuda:  # without waiting for it
        for row in values.double():
            total = row if total is None else total + row
        return total if total is not None else values.new_zeros(values.shape[1])
    sums = [0.0] * values.shape[1] if total is None else total.tolist()
    for numbers in values.tolist():
        sums = [one + other for one, other in zip(sums, numbers, strict=True)]
    return torch.tensor(sums, dtype=torch.float64)


def _call(callbacks: Iterable[Callback], state: State, history: History) -> bool:
    """Call all, and return whether one ended the run by a ``StopIteration``."""
    try:
        for callback in callbacks:
            callback(state, history)
    except StopIteration:
        return True
    return False


def _record(history: History, step: int, spent: float, values: Tensor) -> None:
    history.steps.append(step)
    history.seconds.append(spent)
    history.values.append(values.tolist())
