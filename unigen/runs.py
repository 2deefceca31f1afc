"""The files of a run: one directory a run, plain JSON, safetensors and PNG; nothing is pickled.

DIR/config.json, report.html             the comparison
DIR/SLUG/seed-S/config.json              the run's own configuration and versions
DIR/SLUG/seed-S/metrics.jsonl            appended while it runs: values of the phases, evaluations
DIR/SLUG/seed-S/weights.safetensors      the trained pair
DIR/SLUG/seed-S/samples.png, reconstructions.png, result.json
DIR/SLUG/seed-S/per_datum.json           the log-likelihood of each test datum, for paired differences
DIR/SLUG/seed-S/error.txt                the traceback of a failure that may be one of the program
DIR/SLUG/seed-S/checkpoints/              what a run that was stopped goes on from
"""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unigen.data import Dataset
from unigen.durable import append, write_whole
from unigen.pair import Pair
from unigen.trees import unfit

__all__ = [
    "append_metrics",
    "finite",
    "keep_metrics_before",
    "load_weights",
    "save_grid",
    "save_samples",
    "save_scatter",
    "save_weights",
    "slug_of",
]


def append_metrics(path: Path, line: dict[str, Any]) -> None:
    """Append one line of JSON."""
    append(path, json.dumps(line, ensure_ascii=False).encode() + b"\n")


def keep_metrics_before(path: Path, step: int) -> None:
    """Drop the lines from a step on, and a torn last one: what a killed run had written beyond its checkpoint."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] < step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    write_whole(path, "".join(kept).encode())


def slug_of(name: str) -> str:
    """Return a file name for a routine: ``iwae(5)`` -> ``iwae-5``."""
    return re.sub(r"[^a-z0-9_.]+", "-", name.lower()).strip("-.") or "routine"


def save_weights(path: Path, pair: Pair) -> None:
    """Save every parameter and buffer of a pair as safetensors, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in pair.state_dict().items()}
    write_whole(path, safetensors.torch.save(tensors))


def load_weights(path: Path, pair: Pair) -> None:
    """Load what ``save_weights`` saved; ``ValueError`` in one sentence where it does not fit the pair."""
    try:
        tensors = load_file(path)
    except (OSError, LookupError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None
    own, parameters = pair.state_dict(), dict(pair.named_parameters(remove_duplicate=False))
    for name in [*own, *tensors]:
        wanted, found = (
            f"{str(part[name].dtype).removeprefix('torch.')} {tuple(part[name].shape)}" if name in part else "nothing"
            for part in (own, tensors)
        )
        if wanted != found:
            raise ValueError(f"{path} does not fit the pair: {name:.80} is {wanted}, the file has {found}")
        if unfit(tensors[name], name not in parameters):
            raise ValueError(f"{path} does not fit the pair: {name:.80} is not finite")
    pair.load_state_dict(tensors)


def save_grid(path: Path, rows: Tensor, shape: tuple[int, ...], columns: int = 10) -> None:
    """Save rows (n, D) in [0, 1] as one PNG, ``columns`` images wide, small ones enlarged to about 28 pixels."""
    from torchvision.utils import make_grid, save_image

    images = rows.detach().cpu().reshape(-1, *shape).clamp(0, 1)
    factor = max(1, round(28 / shape[-1]))
    images = images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    picture = io.BytesIO()
    save_image(make_grid(images, nrow=columns, padding=2, pad_value=1.0), picture, format="png")
    write_whole(path, picture.getvalue())


def save_scatter(path: Path, rows: Tensor, data: Tensor) -> None:
    """Save samples (n, 2) as a scatter plot over the data's, with the data's limits."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2, 3.2), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    low, high = data.min(0).values, data.max(0).values
    margin = 0.15 * (high - low)
    axes.scatter(data[:2000, 0], data[:2000, 1], s=2, c="0.8", linewidths=0)
    rows = rows.cpu()
    finite = rows[torch.isfinite(rows).all(1)]
    axes.scatter(finite[:2000, 0], finite[:2000, 1], s=2, c="#1f5fa8", linewidths=0)
    axes.set_xlim(float(low[0] - margin[0]), float(high[0] + margin[0]))
    axes.set_ylim(float(low[1] - margin[1]), float(high[1] + margin[1]))
    axes.set_axis_off()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_whole(path, picture.getvalue())


def save_samples(path: Path, x: Tensor, mean: Tensor, dataset: Dataset) -> None:
    """Save a picture of samples: a scatter plot of ``x`` for 2-D data, else a grid of ``mean``."""
    if dataset.shape == (2,):
        save_scatter(path, x, dataset.test)
    else:
        save_grid(path, mean, dataset.shape)


def finite(value: float | None) -> float | None:
    """Return the value, or None where JSON has no word for it."""
    return value if value is not None and math.isfinite(value) else None
