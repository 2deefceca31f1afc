"""Reading a comparison back from its directory, which may come from a stranger: files and folders only, and bounded sizes.

A link would let a later write leave the directory, and a pipe would let a read wait for ever, so both are refused first.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from unigen.durable import LEFT
from unigen.settings import Settings, UsageError, settings_of

__all__ = ["check_confined", "check_data", "check_path", "check_readable", "check_same", "read_comparison"]

_CONFIG_BYTES, _RUNS = 2**22, 10_000


def check_path(path: Path, option: str) -> None:
    """Refuse a name that the file system cannot hold, with room for the files below it, or a link that leads nowhere.

    Raises ``UsageError`` that begins with ``option``.
    """
    shown = f"{option} {str(path)!r:.80}"
    try:
        encoded = os.fsencode(path.absolute())
        str(path).encode()
    except (UnicodeError, ValueError):
        raise UsageError(f"{shown} is no text that a file can be named by; give another name") from None
    if b"\0" in encoded:
        raise UsageError(f"{shown} has a NUL character; give another name")
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > 255 or len(encoded) > 3500:
        raise UsageError(f"{shown} has a name of {longest} bytes; give one of at most 255, and 3500 with its folders")
    try:
        for parent in (path, *path.parents):
            if parent.is_symlink() and not parent.exists():
                raise UsageError(f"{shown} is or goes through the link {parent}, which leads nowhere; name a folder")
            if parent.exists():
                if parent != path and not parent.is_dir():
                    raise UsageError(f"{shown} is below {parent}, which is a file; name a folder")
                if not os.access(parent, os.W_OK | os.X_OK):
                    raise UsageError(f"{shown} cannot be written: {parent} allows it not; name another folder")
                return
    except OSError as error:
        raise UsageError(f"{shown} cannot be looked up: {error.strerror}; give another name") from None


def check_confined(directory: Path) -> None:
    """Refuse a directory that holds anything but files and folders, so that no read waits and no write leaves it.

    The directory may itself be a link. Raises ``UsageError`` with the path.
    """
    for entry in _walk(directory):
        mode = entry.stat(follow_symlinks=False).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            kind = "a link" if stat.S_ISLNK(mode) else "no file"
            raise UsageError(
                f"{_printable(entry.path)} is {kind}; a comparison holds files and folders only: remove it"
            )


def _walk(directory: Path | str) -> Iterator[os.DirEntry[str]]:
    pending = [os.fspath(directory)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    yield entry
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except OSError as error:
            raise UsageError(f"{_printable(str(error.filename))} cannot be read: {error.strerror}") from None


def read_comparison(directory: Path) -> tuple[Settings, dict[str, Any]]:
    """Return the checked settings of a comparison, and the whole of its ``config.json``, of which nothing is interpreted.

    Raises ``UsageError`` where ``directory`` is no directory of a comparison, holds links, or its settings are not right.
    """
    path = directory / "config.json"
    config = _read(directory)
    if config is None:
        raise UsageError(
            f"{directory} is no directory of a comparison: {path} is missing or not readable; name one that unigen compare wrote"
        )
    try:
        return settings_of(config.get("settings")), config
    except UsageError as error:
        raise UsageError(f"{path} is not right: {error}") from None


def check_same(directory: Path, settings: Settings, fingerprint: str) -> None:
    """Refuse a directory to write to that holds anything but the comparison of ``settings``, which then goes on.

    ``fingerprint``: that of the data. Raises ``UsageError`` with what differs.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UsageError(f"--out {directory} is a file; name a directory")
    check_confined(directory)
    if all(path.name == "lock" or fnmatch(path.name, LEFT) for path in directory.iterdir()):
        return
    if not (directory / "config.json").is_file():
        raise UsageError(f"--out {directory} exists and is not empty; name a new directory")
    before, config = read_comparison(directory)
    for name in sorted(vars(settings).keys() - {"out", "data_root"}):
        there, here = getattr(before, name), getattr(settings, name)
        if there != here:
            raise UsageError(
                f"--out {directory} holds another comparison, whose {name.replace('_', '-')} is {_plain(there)} and not "
                f"{_plain(here)}; name a new directory"
            )
    if _fingerprint(config) != fingerprint:
        raise UsageError(
            f"--out {directory} holds a comparison on other data under the same name; name a new directory"
        )


def check_data(directory: Path, config: dict[str, Any], name: str, fingerprint: str) -> None:
    """Refuse to examine what was trained on other data, as on another draw of a binarization.

    ``config``: the content of the directory's ``config.json``; ``name``, ``fingerprint``: of the data here. Raises ``UsageError``.
    """
    if _fingerprint(config) != fingerprint:
        raise UsageError(
            f"{directory} was trained on other data than the {name} that is found here; set UNIGEN_DATA to the folder, or unset "
            "it, as it was then"
        )


def _fingerprint(config: dict[str, Any]) -> Any:
    data = config.get("data")
    return data.get("fingerprint") if isinstance(data, dict) else None


def check_readable(directory: Path) -> None:
    """Refuse what no report can be made of: links, a ``config.json`` beyond all bounds, or more runs than there can be.

    Whatever else is missing, half written or damaged is left to the report, which shows what is there.
    """
    config = _read(directory)
    parts = [config.get(name) for name in ("routines", "seeds")] if config else []
    runs = [max(1, len(part)) for part in parts if isinstance(part, list)]
    if runs and (count := runs[0] * runs[-1]) > _RUNS:
        raise UsageError(f"{directory / 'config.json'} announces {count} runs; at most {_RUNS} can be shown")


def _read(directory: Path) -> dict[str, Any] | None:
    """Return the content of config.json, or None where there is none that is JSON."""
    path = directory / "config.json"
    if not directory.is_dir():
        return None
    check_confined(directory)
    try:
        size = path.stat().st_size
        config = json.loads(path.read_text(encoding="utf-8")) if size <= _CONFIG_BYTES else None
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply to be read; a comparison's is flat") from None
    except (OSError, ValueError):
        return None
    if size > _CONFIG_BYTES:
        raise UsageError(f"{path} has {size} bytes; a comparison's has at most {_CONFIG_BYTES}")
    return config if isinstance(config, dict) else None


def _plain(value: Any) -> str:
    return repr(list(value) if isinstance(value, tuple) else value)[:200]


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
