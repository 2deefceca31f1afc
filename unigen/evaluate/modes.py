"""The mode in which a pair is evaluated: batch norm by its running statistics, no dropout, and nothing of it changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from unigen.engines.programs import in_evaluation_mode
from unigen.pair import Pair

__all__ = ["evaluating"]


@contextmanager
def evaluating(pair: Pair) -> Iterator[None]:
    """Put every module of a pair into evaluation mode, and back into the mode that it was in, each its own.

    In training mode an evaluation would move the statistics of batch norm, and so the run that it only looks at.
    """
    pair.refresh()
    with in_evaluation_mode(pair):
        yield
