"""A grid of comparisons: trained seed by seed, and every run examined alike.

A study is one ``unigen compare`` directory, a column of a table. All routines of a seed start from the same weights and meet
the same data in the same order. Seeds are outermost: whenever the grid is stopped, it is complete for the seeds before.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from unigen.compare import compare
from unigen.data import spread
from unigen.describe import describe
from unigen.durable import write_json
from unigen.environment import environment
from unigen.evaluate import active_units, log_likelihood
from unigen.networks import fingerprint
from unigen.planning import Plan, build_pair, plan
from unigen.runs import load_weights
from unigen.settings import Settings, UsageError

__all__ = ["Examination", "Published", "Record", "Study", "carry_out"]

PIECE = 100  # test rows between two moves of the bar
ACTIVE = 1e-2  # Burda et al. (2016): a unit is active where Var_x E[u] is above


@dataclass(frozen=True)
class Published:
    """A negative log-likelihood in print, in nats. ``verified``: read in the paper or in one that quotes it."""

    value: float
    source: str
    verified: bool = True

    def __str__(self) -> str:
        return f"{self.value:g}" + ("" if self.verified else " (unverified)")


@dataclass(frozen=True)
class Study:
    """One comparison: a column of the table. ``published``: by routine; empty on other data than the paper's."""

    name: str
    title: str
    settings: Settings
    published: Mapping[str, Published]


@dataclass(frozen=True)
class Examination:
    """How a trained pair is examined: K of the bound, how many test rows (0 for all), and whether units are counted.

    The rows are spread evenly over the test set: its first rows are no fair sample, since some files are sorted.
    """

    particles: int
    test_size: int
    units: bool = False
    rows: str = "spread evenly"


@dataclass(frozen=True)
class Record:
    """One run: its negative log-likelihood in nats, the standard error over test data, and active units by site.

    ``code``: the fingerprint of the code that it was examined by, shortened; ``device``: the GPU that trained it, if one did.
    """

    study: str
    routine: str
    seed: int
    nll: float
    standard_error: float
    steps: int
    seconds: float
    active: Mapping[str, int] = dataclasses.field(default_factory=dict)
    code: str = ""
    device: str = ""

    @property
    def run(self) -> tuple[str, str, int]:
        """Its study, routine and seed."""
        return self.study, self.routine, self.seed


def carry_out(
    studies: Sequence[Study],
    directory: Path,
    command: str,
    examination: Examination,
    train: bool = True,
    progress: bool = True,
    recorded: Collection[Record] = (),
    together: bool = False,
) -> Iterator[list[Record]]:
    """Train and examine every run of the studies below ``directory``; yield the records of each seed of each study.

    What is done is not done again, without ``train`` only what is there is examined, and runs that are ``recorded`` already
    are left out. Every setting of every study is checked before the first run. A run that fails is named on stderr, and
    has no record. ``together``: all seeds of a study are trained before the next study, by xla in one program for each
    routine; only routines of which every seed is recorded are then left out.
    """
    known = {record.run for record in recorded}
    planned: list[Plan] = []
    for study in studies:
        try:
            found = plan(dataclasses.replace(study.settings, out=str(directory / study.name)), command)
        except UsageError as error:  # the script has an --out of its own
            raise UsageError(re.sub("^--out ", "--directory: ", str(error))) from None
        same = [other.dataset for other in planned if other.dataset.fingerprint == found.dataset.fingerprint]
        planned.append(dataclasses.replace(found, dataset=same[0]) if same else found)
    seeds = studies[0].settings.seeds
    for group in [seeds] if together else [(seed,) for seed in seeds]:
        for study, whole in zip(studies, planned, strict=True):
            settings = dataclasses.replace(whole.settings, seeds=group)
            missing = [arm for arm in whole.arms if not {(study.name, arm.name, seed) for seed in group} <= known]
            part = dataclasses.replace(whole, settings=settings, arms=missing)
            for result in compare(part, describe(whole), progress) if train and missing else ():
                if result["status"] != "complete":
                    print(
                        f"{study.name}, {result['routine']}, seed {result['seed']}: {result['error']}", file=sys.stderr
                    )
            yield [record for record in _records(study, part, examination, progress) if record.run not in known]


def _records(study: Study, planned: Plan, examination: Examination, progress: bool) -> Iterator[Record]:
    for seed in planned.settings.seeds:
        for arm in planned.arms:
            folder = planned.directory / arm.slug / f"seed-{seed}"
            if not (folder / "result.json").is_file():
                continue
            result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            if result["status"] != "complete":
                continue
            pair = build_pair(planned, arm, seed)
            load_weights(folder / "weights.safetensors", pair)
            found = _examined(pair, planned, examination, folder / "examination.json", progress)
            yield Record(
                study.name, arm.name, seed, found["nll"], found["standard_error"], result["steps"], result["seconds"],
                found["active"], found.get("code", environment("cpu")["code"])[:12], _gpu(folder / "config.json"),
            )  # fmt: skip


def _gpu(config: Path) -> str:
    found = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {"device": "cpu"}
    return "" if found["device"] == "cpu" else str(found["device_name"])


def _examined(pair: Any, planned: Plan, examination: Examination, path: Path, progress: bool) -> dict[str, Any]:
    """Return what is stored of the same weights and the same examination, or examine the pair and store it."""
    identity = dataclasses.asdict(examination) | {"weights": fingerprint(pair)}
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if all(stored.get(name) == value for name, value in identity.items()):
            return stored
    x = spread(planned.dataset.test, examination.test_size).to(planned.device)
    values = []
    pieces = tqdm(x.split(PIECE), desc="examination", disable=not progress, leave=False)
    for index, piece in enumerate(pieces):
        values.append(log_likelihood(pair, piece, examination.particles, seed=1000 + index).per_datum.double())
    nll = -torch.cat(values)
    active = active_units(pair, spread(planned.dataset.test, 1000).to(x), seed=2).variances if examination.units else {}
    found = identity | {
        "nll": float(nll.mean()),
        "standard_error": float(nll.std() / math.sqrt(len(nll))),
        "code": environment("cpu")["code"],
        "active": {site: int((variance > ACTIVE).sum()) for site, variance in active.items()},
    }
    write_json(path, found)
    return found
