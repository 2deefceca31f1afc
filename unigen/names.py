"""Names that a user mistypes: the nearest valid one, for the end of an error message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["nearest", "nearest_name"]


def nearest_name(value: object, valid: Iterable[str]) -> str:
    """Return the valid name that is most like ``value``, whatever its case.

    >>> nearest_name("Relu", ["tanh", "relu"])
    'relu'
    """
    return difflib.get_close_matches(str(value).lower(), list(valid), n=1, cutoff=0.0)[0]


def nearest(value: object, valid: Iterable[str]) -> str:
    """Return "did you mean ...?", or the list of valid names where none is near.

    >>> nearest("vea", ["vae", "gan"])
    "did you mean 'vae'?"
    """
    names = sorted(valid)
    close = difflib.get_close_matches(str(value).lower(), names, 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(names) or 'none'}"
