"""The README's example runs as it stands, and says what it claims."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.capabilities import table

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_example_of_a_pair_and_a_routine_runs_and_learns():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    (example,) = [block for block in blocks if "fit(" in block]
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)  # noqa: S102 - our own file
    values = names["history"].values
    assert len(values[0]) == 2
    assert values[-1][0] > values[0][0]


def test_every_file_that_the_readme_links_is_there():
    root = Path(__file__).parents[1]
    links = [target for target in re.findall(r"\]\(([^)]+)\)", README) if not target.startswith("http")]
    assert links and all((root / link).exists() for link in links)


def test_the_readme_holds_the_table_of_engines():
    """That every cell is so is for the parity tests, and at night for ``tests.capabilities`` itself."""
    assert table(lambda engine, routine, family: True) in README


@pytest.mark.slow
def test_the_table_of_engines_is_what_runs():
    assert table() in README
