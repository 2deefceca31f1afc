"""A comparison that is killed and started again by the same command writes what the one left alone writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from unigen.lock import locked
from unigen.runs import keep_metrics_before

ROOT = Path(__file__).parents[1]
TINY = [
    "--hidden",
    "16",
    "--steps",
    "30",
    "--batch-size",
    "32",
    "--particles",
    "3",
    "--test-size",
    "40",
    "--seeds",
    "0",
]
ROUTINES = ["--data", "ring", "--routines", "wake_sleep", "reweighted_wake_sleep", "gan"]

KILLER = """
import contextlib, io, os, random, signal, sys, time
import torch, torch._dynamo
from unigen.cli import main
torch.set_num_threads(1)
sent, root = signal.Signals[sys.argv[1]], sys.argv[2]

def start(out):
    child = os.fork()
    if child == 0:
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                main([*sys.argv[3:], "--out", out])
            except SystemExit as ended:
                os._exit(ended.code or 0)
            except BaseException:
                os._exit(99)
    return child

def end(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

began = time.monotonic()
assert end(start(root + "/alone")) == 0
duration, code, kills = time.monotonic() - began, None, 0
while code != 0:
    child = start(root + "/killed")
    until = time.monotonic() + (random.uniform(0.1, 0.5) * duration if kills < 5 else 100)
    status = (0, 0)
    while time.monotonic() < until and not status[0]:
        time.sleep(0.001)
        status = os.waitpid(child, os.WNOHANG)
    if not status[0]:
        os.kill(child, sent)
        code = end(child)
    else:
        code = os.waitstatus_to_exitcode(status[1])
    kills += code != 0
    print(code, flush=True)
"""


def killed(sent: str, root: Path, *arguments: str) -> list[int]:
    """Run a command once, then again while ending it by a signal until it is done; return the exit codes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CI": "1"}
    command = [sys.executable, "-c", KILLER, sent, str(root), *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return [int(line) for line in ended.stdout.split()]


def written(out: Path) -> dict[str, object]:
    """Return what a comparison wrote, without its times."""
    found: dict[str, object] = {}
    for folder in sorted(out.glob("*/seed-*")):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        result = json.loads((folder / "result.json").read_text())
        for entry in (*lines, result):
            for name in [name for name in entry if name.startswith("seconds") or name == "notes"]:
                del entry[name]
        pictures = {file.name: file.read_bytes() for file in sorted(folder.glob("*.png"))}
        weights = (folder / "weights.safetensors").read_bytes()
        found[folder.parent.name] = (lines, result, pictures, weights)
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("sent", [pytest.param("SIGKILL", marks=pytest.mark.slow), "SIGTERM"])
def test_a_comparison_ended_at_random_instants_ends_in_the_same_files(tmp_path, sent):
    codes = killed(sent, tmp_path, "compare", *ROUTINES, *TINY)
    assert codes[-1] == 0 and set(codes[:-1]) <= {-signal.Signals[sent], 143}
    print(codes, [json.loads(p.read_text())["notes"] for p in (tmp_path / "killed").glob("*/*/result.json")])
    wanted = written(tmp_path / "alone")
    assert len(wanted) == 3 and written(tmp_path / "killed") == wanted
    assert (tmp_path / "killed" / "report.html").is_file()


def test_another_comparison_or_another_process_in_the_directory_is_refused(tmp_path, capsys):
    from unigen.cli import main

    out = tmp_path / "out"

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["compare", "--routines", "vae", *TINY, "--out", str(out), *arguments])
        return stopped.value.code or 0, capsys.readouterr().err

    assert run()[0] == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert run()[0] == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before
    code, words = run("--steps", "31")
    assert code == 2 and "holds another comparison, whose steps is 30 and not 31" in words
    with locked(out):
        code, words = run()
    assert code == 2 and f"is in use by process {os.getpid()}" in words


def test_metrics_from_a_step_on_and_a_torn_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    keep_metrics_before(path, 3)
    path.write_text('{"step": 2}\n{"step": 3}\n{"step": 4}\n{"st')
    keep_metrics_before(path, 3)
    assert path.read_text() == '{"step": 2}\n'
