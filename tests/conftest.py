"""Shared settings of the tests: one thread, since the networks are tiny; random streams left as they were found.

``UNIGEN_TEST_DEVICE=cuda`` runs them there; ``--hypothesis-profile nightly`` draws many examples, other ones each time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("short", max_examples=3, derandomize=True, deadline=None, database=None)
settings.register_profile("nightly", max_examples=50, deadline=None)
settings.load_profile("short")
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
if "UNIGEN_TEST_DEVICE" in os.environ:
    from tests.devices import put_all_on

    put_all_on(os.environ["UNIGEN_TEST_DEVICE"])


def pytest_report_header() -> str:
    """Say what was tested on."""
    root = "set" if os.environ.get("UNIGEN_DATA") else "not set: tests on its files are skipped"
    device = torch.get_default_device()
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, tensors on {device}, UNIGEN_DATA {root}"


@pytest.fixture(autouse=True)
def _random_streams_restored():
    """Leave the global random stream of every test as it was found, so that no test depends on another's draws."""
    with torch.random.fork_rng(devices=[] if torch.get_default_device().type == "cpu" else None):
        yield


@pytest.fixture
def in_double() -> Iterator[None]:
    """Double precision by default, as Pyro's inverse autoregressive transforms want it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the graphs of ``compiled`` operation by operation, without a compiler."""
    monkeypatch.setattr("unigen.engines.compiled._compile", lambda graph, arguments: graph)
