"""Files that are written whole or not at all and outlast a loss of power, and files that grow by whole lines.

Every error of the disk says the path, how many bytes were to be written, and why they were not.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["LEFT", "append", "put", "sync", "write_json", "write_whole"]

LEFT = ".*.[0-9]*.tmp"
"""What the files are called, as a pattern of names, that ``write_whole`` leaves where the process is killed."""


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name beside it, sync it, rename it, and sync the directory.

    The temporary name holds the process id, so that two processes never write into one file. Raises ``OSError``.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            put(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass  # the first error is the one to report
        raise _explained(error, data, path) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all; its numbers are finite."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(path, text.encode() + b"\n")


def append(path: Path, data: bytes) -> None:
    """Add bytes to the end of a file, which is made where it is missing; ``OSError`` where the disk refuses."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            put(handle, data)
        finally:
            os.close(handle)
    except OSError as error:
        raise _explained(error, data, path) from error


def put(handle: int, data: bytes | memoryview) -> None:
    """Write every byte to an open file: the system may take fewer than it is given."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def sync(directory: Path) -> None:
    """Make the names in a directory outlast a loss of power."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explained(error: OSError, data: bytes, path: Path) -> OSError:
    why = error.strerror or type(error).__name__
    return OSError(error.errno, f"{len(data)} bytes could not be written to {path}: {why}")
