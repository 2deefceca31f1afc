"""The sides of a benchmark run the same algorithm: the losses by hand have the values and gradients of the phases."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import __main__ as benchmarks
from benchmarks.works import WORKS, Work

from unigen.engines.checks import check_once
from unigen.engines.eager import objective

every_work = pytest.mark.parametrize("work", WORKS, ids=[work.name for work in WORKS])


@every_work
def test_losses_by_hand_are_the_phases(work: Work) -> None:
    """With the same random stream, in double precision, their gradients are equal to 1e-9."""
    pair: Any = work.make(0).double()
    x = work.x(6).double()
    torch.set_default_dtype(torch.float64)
    try:
        check_once(work.routine, pair, x)
        for phase, (loss, moved) in zip(work.routine, work.by_hand(pair), strict=True):
            assert [id(p) for p in moved] == [id(p) for p in pair.group(*phase.move)]
            torch.manual_seed(7)
            value, surrogate = objective(phase, pair, x)
            expected = torch.autograd.grad(-surrogate, moved, allow_unused=True)
            torch.manual_seed(7)
            ours = loss(x)
            found = torch.autograd.grad(ours, moved, allow_unused=True)
            assert len(expected) == len(found)
            for a, b in zip(expected, found, strict=True):
                assert (a is None) == (b is None)
                assert a is None or float((a - b).abs().max()) < 1e-9
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_table_is_printed_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(benchmarks, "sides_of", lambda work: ["eager", "hand"])
    monkeypatch.setattr("sys.argv", ["benchmarks", "--rounds", "2", "--works", "1", "--out", str(tmp_path)])
    benchmarks.main()
    assert "| 2-D toy pair, 64 hidden, z = 2 |" in capsys.readouterr().out
    saved = json.loads((tmp_path / "steps.json").read_text())
    assert saved["rows"][0]["eager / hand"] > 0 and "torch" in saved["hardware"]
