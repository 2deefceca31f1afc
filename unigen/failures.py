"""Why a run did not finish: by itself, and so again at every start, or for a reason outside it, which may have gone.

A run is a pure function of its settings, so one that failed by itself is recorded and skipped. One that a full disk or
memory ended is tried again at the next start of the same command, and goes on from its last checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from unigen.checkpoints import CheckpointError, ContentError

__all__ = ["OWN", "failure", "hint", "out_of_memory", "outside"]

OWN = (ValueError, ArithmeticError, RuntimeError)
"""Errors of a run that fails by itself, where they are not ``outside``; others are faults of the program."""

_OUTSIDE = (OSError, MemoryError, CheckpointError, torch.OutOfMemoryError, getattr(torch, "AcceleratorError", OSError))

_NO_MEMORY = ("resource_exhausted", "out of memory", "allocate memory")


def outside(error: Exception) -> bool:
    """Return whether the reason lies outside the run: disk, memory or device, and not what the run computes."""
    return (isinstance(error, _OUTSIDE) and not isinstance(error, ContentError)) or out_of_memory(error)


def failure(error: Exception) -> dict[str, Any]:
    """Return the status and the sentence of a failed run: "failed" by itself, or "stopped" from outside."""
    first = (str(getattr(error, "strerror", None) or error).strip() or type(error).__name__).split("\n")[0]
    path = getattr(error, "filename", None)
    first = f"{first}: {path}" if path else first
    if out_of_memory(error):
        first = f"out of memory ({first}); give it more, or ask for less, as by a smaller batch_size"
    return {"status": "stopped" if outside(error) else "failed", "error": first}


def hint(result: dict[str, Any], folder: Path) -> str:
    """Return what to do about a result that is not complete."""
    if result.get("status") == "failed":
        return f"it is not tried again unless you delete {folder}"
    return "the same command tries it again, from its last checkpoint"


def out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one that it came from, is a refusal of memory, by Python, torch or XLA."""
    while error is not None:
        said = str(error).lower()
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in said for words in _NO_MEMORY):
            return True
        error = error.__cause__
    return False
