"""What earlier versions wrote is gone on with (B15): the files of tests/written, made by tests/write_fixture.py."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from write_fixture import COMMAND, STEP, WRITTEN, values

from unigen import __version__
from unigen.checkpoints import Checkpoints
from unigen.cli import main
from unigen.environment import environment
from unigen.resume import ResumeWarning

VERSIONS = sorted(path.name for path in WRITTEN.iterdir())


def test_the_present_version_has_its_files():
    assert __version__ in VERSIONS


@pytest.fixture(params=VERSIONS)
def written(request, tmp_path, monkeypatch) -> Path:
    """A copy of what a version wrote, in the directory that the command names."""
    shutil.copytree(WRITTEN / request.param, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResumeWarning)  # the code has changed since
        main(list(arguments))
    return stopped.value.code or 0


def close(found: Any, wanted: Any, relative: float) -> bool:
    """Compare two trees, the numbers to a relative tolerance."""
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(close(found[name], wanted[name], relative) for name in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(lambda a, b: close(a, b, relative), found, wanted))
    if isinstance(wanted, float):
        return found == wanted or abs(found - wanted) <= relative * max(1.0, abs(wanted))
    return found == wanted


def test_a_killed_run_goes_on_to_the_values_that_were_recorded(written):
    """Bit for bit in the environment that wrote them but for the code; else, over 8 steps in float32, to 1 in 1000."""
    kept = written / "comparison" / "gan" / "seed-0" / "checkpoints"
    found = Checkpoints(kept).load()
    assert found is not None and (found.step, found.rejected) == (STEP, {})
    recorded = json.loads((written / "recorded.json").read_text())
    before = values(written / "comparison")
    assert (
        max(line["step"] for line in before["gan"]) <= STEP and before["wake_sleep"] == recorded["values"]["wake_sleep"]
    )
    assert run(*COMMAND) == 0
    result = json.loads((written / "comparison" / "gan" / "seed-0" / "result.json").read_text())
    assert result["status"] == "complete" and result["notes"][0] == f"resumed at step {STEP}"
    names = ("versions", "device_name", "threads", "deterministic")
    here = json.loads(json.dumps(environment("cpu")))
    same = all(here.get(name) == recorded["environment"].get(name) for name in names)
    after = values(written / "comparison")
    assert max(line["step"] for line in after["gan"]) == 20
    assert after == recorded["values"] if same else close(after, recorded["values"], 1e-3)
    assert not close(after, values_of_another(recorded["values"]), 1e-3)


def values_of_another(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return what was recorded with the last value off by 1 in 100."""
    other: dict[str, Any] = json.loads(json.dumps(recorded))
    line = [line for line in other["gan"] if "values" in line][-1]
    line["values"] = {name: value * 1.01 for name, value in line["values"].items()}
    return other


def test_a_complete_run_is_reported_evaluated_and_sampled(written, capsys):
    assert run("report", "comparison") == 0
    page = Path("comparison/report.html").read_text(encoding="utf-8")
    assert "wake_sleep" in page and "gan" in page
    small = "--test-size 20 --particles 3 --annealed 2 --distributions 3 --chains 2 --simulated 2 --calibration 0 --samples 50"
    capsys.readouterr()
    assert run("evaluate", "comparison", "--routines", "wake_sleep", *small.split()) == 0
    assert re.search(r"wake_sleep.*-?\d+\.\d", capsys.readouterr().out)
    assert run("sample", "comparison", "--routine", "wake_sleep", "--n", "5", "--out", "made") == 0
    assert os.path.getsize("made.safetensors") > 5 * 2 * 4
