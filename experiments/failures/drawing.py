"""One look for every figure: colours, axes without clutter, and a PNG small enough to commit."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "PURPLE", "RED", "SKY", "Drawing", "panels", "png", "save", "seeds"]

# Colours that stay apart for colour-blind readers (Okabe and Ito 2008).
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#7F7F7F"


class Drawing(Figure):
    """A figure that a notebook shows as it is saved, without pyplot."""

    def _repr_png_(self) -> bytes:
        return png(self)


def panels(count: int = 1, *, width: float = 4.2, height: float = 3.3, **shared: Any) -> tuple[Figure, list[Any]]:
    """Return a figure with ``count`` panels side by side, each ``width`` by ``height`` inches."""
    figure = Drawing(figsize=(width * count, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, count, squeeze=False, **shared)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#E4E4E4", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8)
    return figure, axes


def seeds(count: int) -> str:
    """Return "1 seed", "5 seeds"."""
    return f"{count} seed{'s' * (count != 1)}"


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG of 120 dots an inch, on white, in at most 128 colours."""
    for axis in figure.axes:
        axis.title.set_fontsize(10)
        axis.xaxis.label.set_fontsize(9)
        axis.yaxis.label.set_fontsize(9)
    figure.set_dpi(120)
    canvas: Any = figure.canvas
    canvas.draw()
    picture = Image.frombuffer("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba()))
    written = BytesIO()
    picture.convert("RGB").quantize(128).save(written, "png", optimize=True)
    return written.getvalue()


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(figure))
    return path
