"""Checks of what a user hands over as data: rows, counts and names. Every error is one sentence with a remedy."""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor

from unigen.names import nearest_name

__all__ = ["BINARIZATIONS", "DataError", "check", "check_labels", "check_options", "integer"]

BINARIZATIONS = ("none", "static", "dynamic")


class DataError(ValueError):
    """Data that is missing, damaged or unfit; the message names the remedy."""


def check(x: Tensor, name: str, *, low: float = -math.inf, high: float = math.inf) -> Tensor:
    """Return `x` if it is a float32 tensor (N, D) of finite values in [low, high], with N and D at least 1.

    Arguments:
        x: the rows.
        name: how an error calls them.
        low, high: the least and the greatest value allowed.

    Raises:
        DataError: saying what was found, what was expected and what would mend it.
    """
    if not isinstance(x, Tensor) or x.dtype != torch.float32:
        got = f"of dtype {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise DataError(
            f"{name} is {got}, expected a float32 tensor: convert it by torch.as_tensor(x, dtype=torch.float32)."
        )
    if x.dim() != 2 or x.numel() == 0:
        raise DataError(
            f"{name} has shape {tuple(x.shape)}, expected (N, D) with at least one row: flatten each datum."
        )
    least, greatest = (float(value) for value in x.aminmax())
    if not (math.isfinite(least) and math.isfinite(greatest)):
        bad = int((~x.isfinite()).any(1).sum())
        raise DataError(
            f"{name} has NaN or infinite values in {bad} of {len(x)} rows, expected finite ones: drop those rows."
        )
    if least < low or greatest > high:
        got = f"[{least:g}, {greatest:g}]"
        raise DataError(
            f"{name} has values in {got}, expected [{low:g}, {high:g}]: rescale them, as in x / 255 for 8-bit images."
        )
    return x


def check_labels(labels: Tensor | None, name: str) -> None:
    """Refuse labels that are no int64 tensor of numbers from 0; ``DataError`` with what was found."""
    if labels is None:
        return
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        got = f"of dtype {labels.dtype}" if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
        raise DataError(f"{name} is {got}, expected an int64 tensor (N,): convert it by torch.as_tensor(y).long().")
    if labels.numel() and int(labels.min()) < 0:
        raise DataError(f"{name} has the label {int(labels.min())}, expected numbers from 0: number the classes.")


def check_options(name: str, binarization: str, dequantize: bool, levels: int | None) -> None:
    """Refuse options that do not fit together or do not fit the data."""
    if binarization not in BINARIZATIONS:
        guess = nearest_name(binarization, BINARIZATIONS)
        raise ValueError(f"Unknown binarization {binarization!r}: did you mean {guess!r} ({', '.join(BINARIZATIONS)})?")
    if levels is not None and (type(levels) is not int or levels < 2):
        raise ValueError(
            f"{name} has levels={levels!r}, expected a whole number of at least 2, or None: set it to that."
        )
    if dequantize and binarization != "none":
        raise ValueError(f"{name} cannot be both dequantized and binarized ({binarization}): choose one.")
    if dequantize and (levels is None or levels < 3):
        raise ValueError(f"{name} has levels={levels}, expected grey levels to dequantize: set dequantize=False.")


def integer(name: str, value: int, low: int, high: int | None = None, why: str = "") -> int:
    """Return `value` as an int in [low, high], or say in a ValueError what it should have been."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        bounds = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}{why}"
        raise ValueError(f"{name} is {value!r}, expected {bounds}.")
    return number
