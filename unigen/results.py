"""Reading a run directory of `unigen compare`: every run, as far as its files go.

Files may be missing, half written or damaged. A run is then marked incomplete, and nothing is guessed: what does not
parse, or has the wrong type, or is not finite, is absent.
"""

import json
import re
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "STATUSES",
    "Run",
    "announced",
    "as_mapping",
    "as_number",
    "as_sequence",
    "as_text",
    "read_config",
    "read_runs",
]

LARGEST = 1e100  # what is beyond is no measurement, and sums and squares of the rest stay finite
STATUSES = ("complete", "failed", "incomplete", "not started")


@dataclass(frozen=True, eq=False)
class Run:
    """One routine and one seed, as far as the files go; `values` holds (step, seconds, value) by phase.

    `evaluations` are log-likelihoods of validation data, of one `kind`, `distances` those of samples from them, of what
    `distance` names; both hold (step, seconds, value). `per_datum`: the log-likelihood of each test datum. `notes` say where
    it was resumed and what was unusual then, `checkpoint` the step that it would go on from.
    """

    slug: str
    name: str
    seed: str
    status: str
    error: str = ""
    step: float | None = None
    config: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    values: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)
    evaluations: list[tuple[float, float, float]] = field(default_factory=list)
    kind: str = ""
    distances: list[tuple[float, float, float]] = field(default_factory=list)
    distance: str = ""
    per_datum: tuple[float, ...] = ()
    samples: str = ""
    reconstructions: str = ""
    notes: tuple[str, ...] = ()
    checkpoint: int | None = None

    @property
    def density(self) -> bool:
        """Whether its log p(x) is that of a density, which none of a mass is compared with."""
        return as_mapping(self.config.get("routine")).get("of") == "density"


def read_runs(directory: str | Path) -> list[Run]:
    """Read every run of a comparison: those that config.json announces, in its order, then any others found.

    A run without a readable result.json, or one that was stopped from outside, is "incomplete", one without any file
    "not started"; lines of metrics.jsonl that do not parse are skipped. Raises FileNotFoundError where DIR holds
    neither a config.json nor a run.
    """
    directory = Path(directory)
    config = read_config(directory)
    found = sorted(path.parent.name for path in directory.glob("*/seed-*") if path.is_dir())
    if not found and not (directory / "config.json").exists():
        raise FileNotFoundError(
            f"No comparison in {directory}: expected config.json or <routine>/seed-<n>/; write one with unigen compare."
        )
    seeds = {as_text(seed): None for seed in as_sequence(config.get("seeds"))}
    runs = []
    routines = announced(config)
    for slug in dict.fromkeys([*routines, *found]):
        name = as_text(routines.get(slug, {}).get("key")) or slug
        # a slug is joined to a path, so only names that glob found under this directory are followed
        paths = (directory / slug).glob("seed-*") if slug in found else ()
        present = {path.name.removeprefix("seed-"): path for path in paths if path.is_dir()}
        for seed in [*seeds, *sorted(set(present) - set(seeds), key=lambda name: (len(name), name))]:
            runs.append(
                _read_run(present[seed], slug, name, seed) if seed in present else Run(slug, name, seed, "not started")
            )
    return runs


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return as_mapping(json.loads(path.read_text(encoding="utf-8", errors="replace")))
    except (OSError, ValueError, RecursionError):
        return {}


def read_config(directory: Path) -> dict[str, Any]:
    return _read_json(directory / "config.json")


def announced(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The routines of config.json by slug; one without a slug goes by its key."""
    routines = [as_mapping(routine) for routine in as_sequence(config.get("routines"))]
    named = [(as_text(routine.get("slug") or routine.get("key")), routine) for routine in routines]
    return {slug: routine for slug, routine in named if slug}


def _read_run(path: Path, slug: str, name: str, seed: str) -> Run:
    result = _read_json(path / "result.json")
    status = result.get("status") if result.get("status") in ("complete", "failed") else "incomplete"
    values: dict[str, list[tuple[float, float, float]]] = {}
    evaluations, last, kind = [], as_number(result.get("steps")), ""
    distances, distance = [], ""
    for line in _lines(path / "metrics.jsonl"):
        step, seconds = as_number(line.get("step")), as_number(line.get("seconds"))
        if step is None:
            continue
        last = step if last is None else max(last, step)
        for phase, raw in as_mapping(line.get("values")).items():
            if (value := as_number(raw)) is not None:
                values.setdefault(phase, []).append((step, seconds or 0.0, value))
        evaluation = as_mapping(line.get("evaluation"))
        if (value := as_number(evaluation.get("log_likelihood"))) is not None and seconds is not None:
            evaluations.append((step, seconds, value))
            kind = as_text(evaluation.get("kind"))
        if (value := as_number(evaluation.get("distance"))) is not None and seconds is not None:
            distances.append((step, seconds, value))
            distance = as_text(evaluation.get("of"))
    samples, reconstructions = _image(path / "samples.png"), _image(path / "reconstructions.png")
    error, config = as_text(result.get("error")), _read_json(path / "config.json")
    notes = tuple(filter(None, map(as_text, as_sequence(result.get("notes")))))
    return Run(slug, name, seed, str(status), error, last, config, result, values, evaluations, kind, distances, distance,
               _per_datum(path), samples, reconstructions, notes, _checkpoint(path / "checkpoints"))  # fmt: skip


def _per_datum(path: Path) -> tuple[float, ...]:
    """The log-likelihood of each test datum, or () where one is no number: then there is nothing to pair."""
    values = [as_number(value) for value in as_sequence(_read_json(path / "per_datum.json").get("log_likelihood"))]
    return () if None in values else tuple(value for value in values if value is not None)


def _checkpoint(path: Path) -> int | None:
    """The newest step that has a checkpoint; whether it is good, only loading it would tell."""
    try:
        names = [entry.name for entry in path.iterdir()]
    except OSError:
        return None
    return max((int(found[1]) for name in names if (found := re.fullmatch(r"step-(\d{12})", name))), default=None)


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.split("\n"):
        try:
            yield as_mapping(json.loads(line))
        except (ValueError, RecursionError):  # the last line of a run that was stopped is often torn
            continue


def _image(path: Path) -> str:
    """A PNG as a data URI, or "" where the file is missing, is no PNG, or lacks its end."""
    try:
        content = path.read_bytes()
    except OSError:
        return ""
    whole = content.startswith(b"\x89PNG\r\n\x1a\n") and content[-8:-4] == b"IEND"
    return "data:image/png;base64," + b64encode(content).decode() if whole else ""


def as_mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_sequence(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def as_number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if abs(value) < LARGEST else None
    except OverflowError:
        return None


def as_text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
