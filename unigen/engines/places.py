"""Where a run is: which line of which program, and for which site, an operation belongs to."""

from __future__ import annotations

import sys
from types import FrameType

import torch

__all__ = ["Places", "place_of"]

_ENGINE = tuple(
    f"engines/{name}.py"
    for name in (
        "places",
        "memory",
        "recorder",
        "indices",
        "selections",
        "assertions",
        "surroundings",
        "capture",
        "pure",
        "eager",
        "draw",
        "programs",
        "xla",
    )
)


class Places:
    """The places of the operations of a run, kept for their derivatives, which run when the program is over."""

    def __init__(self) -> None:
        self._by_sequence: dict[int, str] = {}  # by autograd's sequence number

    def keep(self) -> None:
        """Note where the operation was that autograd counted last."""
        self._by_sequence[torch._C._autograd._get_sequence_nr() - 1] = self.here()

    def here(self) -> str:
        """Say which line of which program is running, and for which site."""
        node = torch._C._current_autograd_node()
        if node is not None:
            forward = self._by_sequence.get(node._sequence_nr(), "")
            return f"the derivative ({node.name()}) of {forward}" if forward else f"a derivative ({node.name()})"
        return place_of(sys._getframe(1))


def place_of(frame: FrameType | None) -> str:
    """Say which line of which program, and which site, a frame was reached from."""
    line, site, within = "", "", 0
    while frame is not None and within < 100:
        code, within = frame.f_code, within + 1
        path = code.co_filename.replace("\\", "/")
        if not site and path.endswith("engines/programs.py") and code.co_name == "_pyro_sample":
            site = str(frame.f_locals["msg"]["name"])
        if not site and path.endswith("engines/draw.py") and code.co_name == "per_datum":
            site = str(frame.f_locals["site"].name)
        inside = any(part in path for part in ("/torch/", "/pyro/", "<", "/contextlib.py")) or path.endswith(_ENGINE)
        if not line and not inside:
            line = f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return (f"site '{site}', " if site else "") + (line or "the run")
