"""The short version of tests/stress.py: every figure is whole, and each notices the fault that is planted in it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B11", "B12", "B13", "B14"]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def figures(*arguments: str, timeout: float = 3600) -> dict[str, tuple[int, int]]:
    """Run the script, and return how many trials of how many were good by the name of the figure."""
    command = [sys.executable, "-m", "tests.stress", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    print(ended.stdout, ended.stderr)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = re.findall(r"^\| (B\d+\+?) \|.*\| (\d+)/(\d+) \|$", ended.stdout, re.M)
    return {name: (int(good), int(of)) for name, good, of in rows}


def test_every_figure_is_whole():
    found = figures("--quick", timeout=900)
    assert list(found) == NAMES
    assert all(good == of > 0 for good, of in found.values())
    assert found["B1"][1] >= 10 and found["B14"][1] == 20


def test_a_child_that_is_killed_while_it_holds_the_lock_of_progress_bars_does_not_stop_the_next_one():
    program = """
import os, signal
from children import fork, wait
from tqdm.auto import tqdm

tqdm(disable=True)
print(wait(fork(lambda: (tqdm.get_lock().acquire(), os.kill(os.getpid(), signal.SIGKILL)))))
print(wait(fork(lambda: tqdm(disable=True)), 20))

def stuck():
    signal.pause()

print(wait(fork(stuck), 5))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "tests", capture_output=True, text=True, timeout=120
    )
    assert ended.stdout.split() == ["-9", "0", str(-signal.SIGABRT)]
    assert "in stuck" in ended.stderr


@pytest.mark.slow
def test_every_figure_notices_the_fault_that_is_planted_in_it():
    found = figures("--quick", "--plant")
    assert list(found) == NAMES
    assert all(good < of for good, of in found.values())


@pytest.mark.slow
def test_every_figure_is_whole_at_full_length():
    found = figures()
    assert all(good == of for good, of in found.values())
    least = {
        "B1": 200,
        "B1+": 6,
        "B2": 60,
        "B3": 80,
        "B3+": 170,
        "B4": 80,
        "B5": 900,
        "B6": 20,
        "B7": 50,
        "B11": 20,
        "B12": 80,
        "B13": 1000,
    }
    assert all(found[name][1] >= number for name, number in least.items())
