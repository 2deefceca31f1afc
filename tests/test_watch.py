"""A number that is not finite, wherever it appears, ends a run within one step and with its name.

Planted: in the data, in an objective (in one particle alone), in each gradient and in each parameter of each routine of the
catalogue; the last good checkpoint stands.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.test_isolation import CATALOGUE, FAMILIES
from unigen import routines
from unigen.checkpoints import Checkpoints
from unigen.networks import Baseline
from unigen.phases import LeaveOneOut, Phase, Routine
from unigen.training import TrainingError, fit

every_routine = pytest.mark.parametrize(
    ("routine", "family"), [c[1:] for c in CATALOGUE], ids=[c[0] for c in CATALOGUE]
)
every_fault = pytest.mark.parametrize("fault", [math.nan, math.inf], ids=["nan", "inf"])


class Batches:
    """The same batch at every step, but for what is planted at one of them."""

    def __init__(self, x: Tensor, each: int, at: int, plant: Callable[[Tensor], Any]) -> None:
        self.x, self.each, self.when, self.plant = x, each, at, plant

    def at(self, index: int) -> Tensor:
        x = self.x.clone()
        if index == self.when * self.each:
            self.plant(x)
        return x


def trained(loader: Any, routine: Any, pair: Any, **more: Any) -> Any:
    return fit(loader, routine, pair, steps=6, progress=False, record_every=1, **more)


@every_fault
@every_routine
def test_data(routine: Routine, family: str, fault: float) -> None:
    pair, x = FAMILIES[family]()

    def plant(batch: Tensor) -> None:
        batch[1, 2] = fault

    routine = replace(routine, phases=tuple(routine))
    with pytest.raises((TrainingError, ValueError)) as caught:
        trained(Batches(x, routine.batches, 3, plant), routine, pair)
    message = str(caught.value)
    if isinstance(caught.value, TrainingError):
        assert "step 4" in message and "data 'x' has 1 entries" in message and "look for bad data" in message


@dataclass(frozen=True)
class Planted:
    """An objective that is not finite in one place of one call."""

    objective: Callable[[Any], Tensor]
    fault: float
    calls: list[int]
    when: int

    def __hash__(self) -> int:
        return id(self.calls)

    def __call__(self, draw: Any) -> Tensor:
        value = self.objective(draw)
        self.calls.append(1)
        if len(self.calls) == self.when:
            value = value.clone()
            value.view(-1)[-1] = value.view(-1)[-1] * 0 + self.fault
        return value


@every_fault
@every_routine
def test_objective_of_each_phase(routine: Routine, family: str, fault: float) -> None:
    for number, phase in enumerate(routine):
        if phase.solve:
            continue
        pair, x = FAMILIES[family]()
        calls: list[int] = []
        per_step = phase.steps * (2 if phase.against is not None else 1)
        planted = Planted(
            phase.maximize, fault, calls, per_step // phase.steps + 2 * per_step + 1
        )  # step 3, after a check
        if getattr(phase.maximize, "couples_data", False) or isinstance(phase.control_variate, LeaveOneOut):
            continue  # of one value for the batch; tied to one objective
        if phase.control_variate is not None:
            pair.psi["baseline"] = Baseline(x.shape[1], (5,))  # of the one signal that any objective has
        phases = list(routine)
        phases[number] = replace(phase, maximize=planted)
        with pytest.raises(TrainingError, match=rf"phase '{number + 1} .* at step 3"):
            trained(x, Routine(tuple(phases)), pair)


@every_routine
def test_each_gradient(routine: Routine, family: str) -> None:
    moved = {group for phase in routine if not phase.solve for group in phase.move}
    spoiled = 0
    for group in sorted(moved):
        learning = those_that_learn(routine, family, group)
        for index in range(len(FAMILIES[family]()[0].group(group))):
            pair, x = FAMILIES[family]()
            name, parameter = pair.named_group(group)[index]
            if name not in learning:
                continue  # a network of psi that this routine does not read
            armed: list[int] = []

            def spoil(slope: Tensor, armed: list[int] = armed) -> Tensor | None:
                if not armed:
                    return None
                slope = slope.clone()
                slope.view(-1)[-1] = math.nan
                return slope

            def arm(state: Any, _: Any, armed: list[int] = armed) -> None:
                if state.step == 2:
                    armed.append(1)

            parameter.register_hook(spoil)
            first = next(number for number, phase in enumerate(routine, 1) if group in phase.move)
            where = rf"phase '{first} .* at step 3: .*{group} (gradient of|parameter) '({name}'|.*' and \d+ more)"
            with pytest.raises(TrainingError, match=where):
                trained(x, routine, pair, callbacks=[arm])
            spoiled += 1
    assert spoiled or not moved


def those_that_learn(routine: Routine, family: str, group: str) -> list[str]:
    """Return the names of the parameters of a group to which one step gives a gradient."""
    pair, x = FAMILIES[family]()
    fit(x, routine, pair, steps=1, progress=False)
    return [name for name, parameter in pair.named_group(group) if parameter.grad is not None]


@every_fault
@every_routine
def test_each_parameter(routine: Routine, family: str, fault: float) -> None:
    moved = {group for phase in routine for group in phase.move}
    for group in sorted(moved):
        for index in range(len(FAMILIES[family]()[0].group(group))):
            pair, x = FAMILIES[family]()
            name, parameter = pair.named_group(group)[index]

            def spoil(state: Any, _: Any, parameter: Tensor = parameter) -> None:
                if state.step == 2:
                    with torch.no_grad():
                        parameter.view(-1)[-1] = fault

            with pytest.raises(TrainingError, match="at step 3") as caught:
                trained(x, routine, pair, callbacks=[spoil])
            assert "try a smaller learning rate" in str(caught.value)
            if not any(phase.solve or phase.project for phase in routine):  # which may overwrite the culprit
                assert f"{group} parameter '" in str(caught.value)


def test_divergence_names_the_parameter_and_the_last_checkpoint_stands(tmp_path: Any) -> None:
    pair, x = FAMILIES["latent"]()
    optimizers = {group: torch.optim.SGD(pair.group(group), 1e-3) for group in ("theta", "phi")}

    def explode(lr: float, progress: float) -> float:
        return 1e30 if progress >= 0.5 else lr

    with pytest.raises(TrainingError, match=r"phase '1 climb elbo .*' is not finite at step [45]: (theta|phi) "):
        trained(
            x, routines.vae, pair, optimizers=optimizers, schedule=explode, checkpoints=tmp_path, checkpoint_every=1
        )
    found = Checkpoints(tmp_path).load()
    assert found is not None and found.content["step"] >= 3
    assert all(tensor.isfinite().all() for tensor in found.content["pair"].values() if isinstance(tensor, Tensor))


def test_a_value_of_a_single_batch_between_records_is_caught_at_its_step() -> None:
    pair, x = FAMILIES["flow"]()

    def plant(batch: Tensor) -> None:
        batch[0, 0] = math.inf

    with pytest.raises(TrainingError, match="at step 4"):
        fit(Batches(x, 1, 3, plant), routines.maximum_likelihood, pair, steps=50, record_every=50, progress=False)


def test_phases_are_named_as_in_the_history() -> None:
    looks: list[int] = []

    def late(draw: Any) -> Any:  # the first look is the check before the first step
        looks.append(1)
        return draw.log_p * (math.nan if len(looks) > 2 else 1.0)

    phase = Phase(late, routines.vae[0].under, ("theta",))
    pair, x = FAMILIES["latent"]()
    with pytest.raises(TrainingError, match="phase '1 climb .*late.* under Wake"):
        trained(x, (phase,), pair)
