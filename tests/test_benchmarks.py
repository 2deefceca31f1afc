"""The sides of a benchmark run the same algorithm: the losses by hand have the values and gradients of the phases."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import __main__ as benchmarks
from benchmarks import peers, shares
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


@pytest.mark.slow
def test_kernels_are_sorted_by_kind() -> None:
    assert shares.kind_of("aten::addmm") == shares.kind_of("aten::mkldnn_convolution")
    assert len({shares.kind_of(f"aten::{name}") for name in ("mm", "_fused_adam_", "normal_", "softplus")}) == 4
    found = shares.shares(WORKS[0], rounds=1)
    assert found["matrix products and convolutions"] > 0 and found["Adam"] > 0
    assert found["step"] > 0


def test_ten_seeds_take_the_steps_of_ten_runs() -> None:
    """One step of the row advances each of its pairs once, each on its own batch."""
    work = next(work for work in WORKS if work.seeds > 1)
    begun: list[Any] = []
    make = work.make

    def kept(seed: int) -> Any:
        begun.append(make(seed))
        return begun[-1]

    run = peers.SIDES["xla"](dataclasses.replace(work, make=kept), 8)
    before = [[parameter.clone() for parameter in pair.parameters()] for pair in begun]
    run(2)
    assert len(begun) == work.seeds == 10
    for pair, old in zip(begun, before, strict=True):
        assert any(not torch.equal(a, b) for a, b in zip(pair.parameters(), old, strict=True))
