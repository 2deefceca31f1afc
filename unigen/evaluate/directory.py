"""Evaluating directories of ``unigen compare``: every trained run is given the same examination, and one table says it all.

DIR/SLUG/seed-S/evaluation.json    what a run's examination found, its protocol, and the hashes of weights and data it is of
DIR/SLUG/seed-S/calibration.png    the ranks of a guide's calibration, where there is a guide
DIR/SLUG/seed-S/neighbours.png     samples of images over their nearest training rows: the first, and the nearest of all

A run whose file is of the same protocol, weights and data is not examined again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from unigen.durable import write_json
from unigen.evaluate.examination import Examination, Protocol, evaluate
from unigen.evaluate.figure import KINDS, Figure, Refusal
from unigen.evaluate.neighbours import save_neighbours
from unigen.evaluate.rank_plot import save_ranks
from unigen.evaluate.sample_figures import SampleFigure
from unigen.figures import number
from unigen.names import nearest
from unigen.networks import fingerprint
from unigen.planning import Arm, Plan, build_pair, plan_of
from unigen.results import as_mapping, as_number, as_sequence, as_text
from unigen.runs import load_weights
from unigen.settings import UsageError
from unigen.tables import aggregate

__all__ = ["Examined", "evaluate_directories", "evaluation_table"]

_BYTES = 2**24


@dataclass(frozen=True)
class Examined:
    """One run's figures and refusals; ``name`` is its routine, with the end of its directory's path where there are several."""

    name: str
    seed: int
    data: str
    figures: tuple[Figure, ...]
    refusals: tuple[Refusal, ...]
    of: str = ""
    """What log p(x) is of: "density", "mass", or "" where the model is implicit."""


def evaluate_directories(
    directories: Sequence[Path],
    protocol: Protocol | None = None,
    routines: Sequence[str] = (),
    seeds: Sequence[int] = (),
    progress: bool = True,
) -> list[Examined]:
    """Examine every trained run of comparisons, or of folders that hold comparisons, and write ``evaluation.json`` for each.

    routines, seeds: only these, by the names that the comparisons have; all where empty. Raises ``UsageError`` where a
    directory holds no comparison, or nothing that is asked for is trained.
    """
    protocol = protocol or Protocol()
    planned = {directory: plan_of(directory) for directory in _comparisons(directories)}
    known = {arm.name for found in planned.values() for arm in found.arms}
    for name in routines:
        if name not in known:
            raise UsageError(f"no routine {name!r:.80} in these directories; {nearest(name[:80], known)}")
    runs = [
        (directory, arm, seed, weights)
        for directory, found in planned.items()
        for arm in found.arms
        for seed in found.settings.seeds
        if (not routines or arm.name in routines) and (not seeds or seed in seeds)
        if (weights := directory / arm.slug / f"seed-{seed}" / "weights.safetensors").is_file()
    ]
    if not runs:
        where = ", ".join(map(str, directories))
        raise UsageError(f"no trained run that was asked for is in {where}; finish the comparison with unigen compare")
    labels, examined = _labels(list(planned)), []
    with tqdm(runs, desc="evaluation", disable=not progress, position=0) as bar:
        for directory, arm, seed, weights in bar:
            bar.set_postfix_str(f"{arm.name}, seed {seed}")
            found = _examine(planned[directory], arm, seed, weights, protocol, progress)
            name = f"{arm.name}, {labels[directory]}" if len(planned) > 1 else arm.name
            examined.append(dataclasses.replace(found, name=name))
    return examined


def _labels(directories: Sequence[Path]) -> dict[Path, Path]:
    """Return for each directory the shortest end of its path that no other one has.

    >>> [str(label) for label in _labels([Path("/a/x"), Path("/b/x"), Path("/b/y")]).values()]
    ['a/x', 'b/x', 'y']
    """
    parts = {directory: directory.resolve().parts for directory in directories}
    ends = {directory: [own[-count:] for count in range(1, len(own) + 1)] for directory, own in parts.items()}
    counts = Counter(end for own in ends.values() for end in own)
    return {directory: Path(*next(end for end in own if counts[end] == 1)) for directory, own in ends.items()}


def _comparisons(directories: Sequence[Path]) -> list[Path]:
    """Return the directories themselves, or the comparisons in a folder of comparisons, each once however it is spelt."""
    found: list[Path] = []
    for directory in directories:
        inside = sorted(path.parent for path in directory.glob("*/config.json")) if directory.is_dir() else []
        found += [directory] if (directory / "config.json").exists() or not inside else inside
    once: dict[Path, Path] = {}
    for directory in found:
        once.setdefault(directory.resolve(), directory)
    return list(once.values())


def _examine(planned: Plan, arm: Arm, seed: int, weights: Path, protocol: Protocol, progress: bool) -> Examined:
    pair = build_pair(planned, arm, seed)
    try:
        load_weights(weights, pair)
    except ValueError as error:
        raise UsageError(str(error)) from None
    identity = {
        "protocol": json.loads(json.dumps(dataclasses.asdict(protocol))),
        "weights": fingerprint(pair),
        "fingerprint": planned.dataset.fingerprint,
    }
    path, data = weights.with_name("evaluation.json"), _described(planned)
    known = _read(path, identity)
    if known is not None:
        return Examined(arm.name, seed, data, *known, planned.measure(arm))
    found = evaluate(pair, planned.dataset, protocol, device=planned.device, seed=2, progress=progress)
    _draw(weights.parent, planned, found)
    write_json(path, identity | {"data": data} | found.as_json())
    return Examined(arm.name, seed, data, found.figures, found.refusals, planned.measure(arm))


def _draw(folder: Path, planned: Plan, found: Examination) -> None:
    dataset = planned.dataset
    if found.calibration is not None:
        save_ranks(folder / "calibration.png", found.calibration)
    if found.samples is not None and len(dataset.shape) == 3 and bool(torch.isfinite(found.samples.x).all()):
        save_neighbours(folder / "neighbours.png", found.samples.x.cpu(), dataset.train, dataset.shape)


def _described(planned: Plan) -> str:
    dataset = planned.dataset
    how = "dequantized" if dataset.dequantize else f"{dataset.binarization} binarization"
    return f"{dataset.name}, {'binary' if dataset.levels == 2 and not dataset.dequantize else how}"


def _read(path: Path, identity: dict[str, Any]) -> tuple[tuple[Figure, ...], tuple[Refusal, ...]] | None:
    """Return what an earlier examination of the same weights on the same data by the same protocol found, or None."""
    try:
        if path.stat().st_size > _BYTES:
            return None
        stored = as_mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return None
    if any(stored.get(name) != value for name, value in identity.items()):
        return None
    figures = tuple(_figure(as_mapping(entry)) for entry in as_sequence(stored.get("figures")))
    refusals = tuple(
        Refusal(as_text(entry.get("name")), as_text(entry.get("why")))
        for entry in map(as_mapping, as_sequence(stored.get("refusals")))
    )
    return (figures, refusals) if all(figures) else None  # type: ignore[return-value]


def _figure(entry: dict[str, Any]) -> Figure | None:
    if entry.get("kind") not in KINDS:
        return None
    interval = [as_number(end) for end in as_sequence(entry.get("interval"))]
    ends = (interval[0], interval[1]) if len(interval) == 2 and None not in interval else None
    value = as_number(entry.get("value"))
    own: dict[str, Any] = {}
    if as_number(entry.get("n_fake")) is not None:
        counts = {name: int(as_number(entry.get(name)) or 0) for name in ("n_real", "n_fake")}
        own = counts | {"features": as_text(entry.get("features")), "p_value": as_number(entry.get("p_value"))}
    return (SampleFigure if own else Figure)(
        as_text(entry.get("name")), math.nan if value is None else value, entry["kind"], as_text(entry.get("units")),
        int(as_number(entry.get("n")) or 0), as_number(entry.get("standard_error")), ends,  # type: ignore[arg-type]
        as_text(entry.get("how")), as_number(entry.get("bits_per_dimension")), as_text(entry.get("warning")), **own,
    )  # fmt: skip


# -- the table ---------------------------------------------------------------------------------------------------------


def evaluation_table(examined: Sequence[Examined]) -> str:
    """Return one table of all figures: each with its value and error, its kind, units and n, and a note on how it was had.

    Over several seeds a value is their mean, and its error the standard error of that mean, s / sqrt(seeds).
    """
    by_name: dict[str, list[Examined]] = {}
    for run in examined:
        by_name.setdefault(run.name, []).append(run)
    keys = list(dict.fromkeys((f.name, f.kind) for run in examined for f in run.figures))
    keys.sort(key=_rank)  # likelihoods first, then in the order of the examination
    notes: dict[str, int] = {}
    rows: list[tuple[str, ...]] = [("figure", "model", "value", "bits/dim", "kind", "units", "n", "seeds", "note")]
    for name, kind in keys:
        for model, runs in by_name.items():
            figures = [f for run in runs for f in run.figures if (f.name, f.kind) == (name, kind)]
            if figures:
                rows.append(_row(name, model, kind, figures, notes))
    lines = _aligned(rows)
    errors = "± is a standard error: over the data or samples of a run, or over seeds where a figure has several"
    why = list(dict.fromkeys((r.name, run.name, r.why) for run in examined for r in run.refusals))
    refused = [f"{name}, {model}: refused: {text}" for name, model, text in why]
    footnotes = [f"[{index}] {text}" for text, index in notes.items()]
    data = list(dict.fromkeys(f"{run.name}: {run.data}" + f", a {run.of}" * bool(run.of) for run in examined))
    same = len({run.data for run in examined}) == 1 and len({run.of for run in examined if run.of}) < 2
    said = [f"data: {examined[0].data}"] if same else ["data (densities and masses are not to be ranked):", *data]
    return "\n".join([*said, "", *lines, *([""] if refused else []), *refused, "", errors, *footnotes]) + "\n"


def _rank(key: tuple[str, str]) -> tuple[int, int, int]:
    name, kind = key
    starts = ("log p(x), K", "ELBO", "log p(x) with", "log p(x), ")
    group = (
        0 if name == "log p(x)" else next((i for i, s in enumerate(starts, 1) if name.startswith(s)), len(starts) + 1)
    )
    particles = int(name.rpartition(" ")[2]) if group == 1 else 0
    return group, -particles, KINDS.index(kind) if group == 0 else 0


def _row(name: str, model: str, kind: str, figures: Sequence[Figure], notes: dict[str, int]) -> tuple[str, ...]:
    values = [figure.value for figure in figures if math.isfinite(figure.value)]
    first = figures[0]
    if not values:
        shown = "not finite"
    elif len(figures) > 1:
        mean, error = aggregate(values)
        shown = _shown(mean, error) + (f" ({len(values)} finite)" if len(values) < len(figures) else "")
    elif first.standard_error is None and first.interval is not None:
        decimals = _decimals(first.value, (first.interval[1] - first.interval[0]) / 4)
        shown = f"{number(first.value, decimals)} [{number(first.interval[0], decimals)}, {number(first.interval[1], decimals)}]"
    else:
        shown = _shown(first.value, first.standard_error)
    bits = [
        figure.bits_per_dimension
        for figure in figures
        if math.isfinite(figure.value) and figure.bits_per_dimension is not None
    ]
    marks = []
    for figure in figures:
        features = f"of {figure.features}" if isinstance(figure, SampleFigure) and figure.features else ""
        text = "; ".join(part for part in (figure.how, features, figure.warning) if part)
        if text:
            marks.append(notes.setdefault(text, len(notes) + 1))
    warned = "!" if any(figure.warning for figure in figures) else ""
    counted = str(first.n)
    if isinstance(first, SampleFigure):
        counted = f"{first.n_real} real, {first.n_fake} made"
        shown += f", p = {first.p_value:.2g}" if first.p_value is not None and len(figures) == 1 else ""
    shown_notes = ", ".join(map(str, dict.fromkeys(marks)))
    return (
        name, model, shown + warned, number(sum(bits) / len(bits), 3) if bits else "", kind, first.units, counted,
        str(len(figures)), f"[{shown_notes}]" if marks else "",
    )  # fmt: skip


def _shown(value: float, error: float | None) -> str:
    if error is None and 0 < abs(value) < 1e-4:
        return f"{value:.1e}".replace("-", "\N{MINUS SIGN}")
    decimals = _decimals(value, error)
    return number(value, decimals) + (f" ± {number(error, decimals)}" if error is not None else "")


def _decimals(value: float, error: float | None) -> int:
    """Decimals that show two digits of an error, or four of the value."""
    digits, scale = (1, error) if error else (3, abs(value))
    return min(max(digits - math.floor(math.log10(scale)), 0), 8) if scale else 0


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    clean = [["".join(c if c.isprintable() else "?" for c in cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    right = {2, 3, 6, 7}
    lines = [
        "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in clean
    ]
    return [lines[0].rstrip(), "-" * (sum(widths) + 2 * len(widths) - 2), *(line.rstrip() for line in lines[1:])]
