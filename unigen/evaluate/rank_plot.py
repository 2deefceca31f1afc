"""A picture of simulation-based calibration: how far the distribution of each quantity's ranks is from the uniform one.

    x = i / (L + 1),   y = #{ranks below i} / N - x,   i = 1, ..., L, under the band that holds at all i at once

A guide that is too narrow gives a curve that rises above zero and then falls below it, one that is too wide the reverse, one
that is shifted a curve on one side. Source: Säilynoja, Bürkner and Vehtari (2022), arXiv:2103.10522.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from unigen.durable import write_whole
from unigen.evaluate.calibration import Calibration, ecdf_band

__all__ = ["ecdf_differences", "save_ranks"]

NAMED = 6  # curves outside the band that are named in the legend


def ecdf_differences(ranks: Tensor, draws: int) -> Tensor:
    """Return the share of ranks (N, Q) below each of 1, ..., L minus that of uniform ranks, i / (L + 1), (L, Q)."""
    thresholds = torch.arange(1, draws + 1)
    below = (ranks[None] < thresholds[:, None, None]).double().mean(1)
    return below - thresholds[:, None].double() / (draws + 1)


def save_ranks(path: Path, found: Calibration, confidence: float = 0.95) -> tuple[str, ...]:
    """Save a PNG of every quantity's curve over the band of one; return the quantities that leave it.

    Of calibrated quantities one in twenty leaves its own 95 % band, so a curve outside is a hint, and `Calibration.rejected`
    the test.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, draws = len(found.ranks), found.draws
    x = torch.arange(1, draws + 1).double() / (draws + 1)
    low, high = (edge - x for edge in ecdf_band(rows, draws, confidence))
    curves = ecdf_differences(found.ranks, draws)
    outside = ((curves < low[:, None] - 1e-12) | (curves > high[:, None] + 1e-12)).any(0)
    left = sorted(outside.nonzero()[:, 0].tolist(), key=lambda index: -float(curves[:, index].abs().max()))
    figure = Figure(figsize=(6.6, 3.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.fill_between(x, low, high, color="0.88", linewidth=0, label=f"{confidence:.0%} band of one quantity")
    axes.axhline(0.0, color="0.6", linewidth=0.6)
    inside = [index for index in range(len(found.labels)) if index not in left]
    for number, index in enumerate(inside):
        axes.plot(x, curves[:, index], color="#1f5fa8", linewidth=0.8, alpha=0.6,
                  label=f"{len(inside)} inside" if number == 0 else None)  # fmt: skip
    for number, index in enumerate(left):
        label = found.labels[index] if number < NAMED else f"and {len(left) - NAMED} more" if number == NAMED else None
        axes.plot(x, curves[:, index], color=("#d1495b", "#b8860b", "#2e8b57", "#7b4ab5", "#0097a7", "#8a4b2a",
                                              "0.4")[min(number, NAMED)], linewidth=1.1, label=label)  # fmt: skip
    axes.set(
        xlim=(0, 1), xlabel=f"rank of the truth among {draws} draws, as a share", ylabel="ECDF of ranks minus uniform"
    )
    figure.legend(fontsize=7, frameon=False, loc="outside right upper")
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_whole(path, picture.getvalue())
    return tuple(found.labels[index] for index in left)
