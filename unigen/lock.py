"""One process at a time in a run directory: an advisory lock that ends with its process, whatever ends it."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["DirectoryInUse", "locked"]


class DirectoryInUse(RuntimeError):
    """Another process works in the directory; the sentence says which."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold ``directory/lock``, made where it is missing; it stays there, and says who held it last.

    Raises ``DirectoryInUse`` at once where another process (or another call in this one) holds it, with its id, computer and
    start; ``OSError`` where the file system has no locks or refuses the file.
    """
    path = Path(directory) / "lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DirectoryInUse(
                f"{directory} is in use by {_holder(handle)}; wait for it, or name a new directory"
            ) from None
        own = {
            "process": os.getpid(),
            "computer": platform.node(),
            "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        }
        if os.fstat(handle).st_nlink == 1:  # another name of the file may lie anywhere
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(own).encode() + b"\n", 0)
        yield
    finally:
        os.close(handle)


def _holder(handle: int) -> str:
    try:
        found = json.loads(os.pread(handle, 4096, 0))
        return f"process {int(found['process'])} on {found['computer']!r:.80}, since {found['since']!r:.40}"
    except (ValueError, KeyError, TypeError):
        return "another process"
