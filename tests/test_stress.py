"""``kill -9`` in CI: the short version of tests/stress.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def stress(*arguments: str, timeout: float) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "stress.py"), *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_runs_killed_ten_times_end_in_the_same_bits():
    arms = ("wake-sleep", "wgan_gp", "persistent contrastive divergence")
    table = stress("--kills", "10", "--routines", *arms, timeout=300)
    kills, runs, equal, lost = map(int, table.splitlines()[-1].split()[1:])
    assert kills >= 10 and runs == equal >= 3 and lost <= 3


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_runs_asked_to_end_lose_nothing_and_end_in_the_same_bits(name):
    table = stress("--kills", "5", "--signal", name, "--routines", "posterior regularization", timeout=300)
    kills, runs, equal, lost = map(int, table.splitlines()[-1].split()[1:])
    assert kills >= 5 and runs == equal >= 1 and lost == 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_runs_of_every_routine_killed_two_hundred_times_end_in_the_same_bits():
    table = stress("--kills", "200", timeout=3600)
    kills, runs, equal, lost = map(int, table.splitlines()[-1].split()[1:])
    assert kills >= 200 and runs == equal >= 10 and lost <= 3
