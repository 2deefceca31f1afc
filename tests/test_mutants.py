"""The exact cases catch every planted bug of mutants.py, and pass once it is gone: a test that cannot fail is no test."""

from __future__ import annotations

import pytest
from cases import CASES, errors
from mutants import MUTANTS, Mutant, plant

BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_planted_bug_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    case = BY_NAME[mutant.case]
    plant(mutant, monkeypatch)
    caught = max(errors(case).values())
    assert caught > 1e-6
    monkeypatch.undo()
    assert max(errors(case).values()) <= case.tolerance


def test_enough_different_bugs() -> None:
    assert len({(mutant.where, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS) >= 30
    assert len(BY_NAME) == len(CASES)


def test_a_bug_whose_place_is_gone_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Mutant("lost", "unigen.objectives:log_p", "no such text", "", "vae 1, one layer, N=2")
    with pytest.raises(ValueError, match="occurs 0 times"):
        plant(lost, monkeypatch)
