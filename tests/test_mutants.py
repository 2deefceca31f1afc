"""The exact cases and alarms catch every planted bug of mutants.py, and pass once it is gone: else they are no tests."""

from __future__ import annotations

from typing import Any

import pytest
from alarms import ALARMS
from cases import CASES, errors
from mutants import MUTANTS, Mutant, plant

BY_NAME = {case.name: case for case in CASES}


def off(name: str) -> float:
    """Return how far an exact case or an alarm is off."""
    return ALARMS[name]() if name in ALARMS else max(errors(BY_NAME[name]).values())


def _marked(mutant: Mutant) -> Any:
    """JAX compiles before and after a mutant: of those only one is quick."""
    long = mutant.case.startswith("xla") and mutant.name != "Adam by xla with the first beta upside down"
    return pytest.param(mutant, id=mutant.name, marks=pytest.mark.slow if long else ())


@pytest.mark.parametrize("mutant", [_marked(mutant) for mutant in MUTANTS])
def test_planted_bug_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(mutant, monkeypatch)
    assert off(mutant.case) > 1e-6
    monkeypatch.undo()
    assert off(mutant.case) <= (1e-9 if mutant.case in ALARMS else BY_NAME[mutant.case].tolerance)


def test_enough_different_bugs() -> None:
    assert len({(mutant.where, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS) >= 30
    assert len(BY_NAME) == len(CASES) and not BY_NAME.keys() & ALARMS.keys()
    assert {mutant.case for mutant in MUTANTS} >= ALARMS.keys()


def test_a_bug_whose_place_is_gone_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Mutant("lost", "unigen.objectives:log_p", "no such text", "", "vae 1, one layer, N=2")
    with pytest.raises(ValueError, match="occurs 0 times"):
        plant(lost, monkeypatch)
