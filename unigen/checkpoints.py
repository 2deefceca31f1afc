"""Checkpoints that survive: a directory each, written whole or not at all, and hashed before a tensor of it is used.

DIR/step-000000000012/NAME.safetensors   the tensors of one group: the pair's, the optimizers', the random streams'
DIR/step-000000000012/content.json       everything else, and where each tensor belongs
DIR/step-000000000012/manifest.json      the size and sha256 sum of each file, the step, the run, and its own sum; last

A save writes a temporary directory beside the others, syncs each file, renames, syncs the parent, reads back what it wrote,
and only then removes the oldest. Nothing is pickled. One process at a time writes to a directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from unigen.durable import put, sync
from unigen.trees import TreeError, pack, unfit, unpack

__all__ = ["CRASH_POINTS", "Checkpoint", "CheckpointError", "Checkpoints", "ContentError"]

CRASH_POINTS = ("before-temporary", "mid-write", "before-sync", "before-rename", "after-rename", "during-prune")
"""Where the variable ``UNIGEN_CRASH_AT`` ends the process, with exit code 137 as after ``kill -9``, for tests."""

_FORMAT = 1
_STEP = re.compile(r"step-(\d{12})")
_FILE = re.compile(r"[a-z_]+\.(safetensors|json)")
_TEMPORARY, _REMOVING = ".saving-", ".removing-"
_UNREADABLE = (
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,  # RecursionError too
    ArithmeticError,
    MemoryError,
    safetensors.SafetensorError,
)
_MANIFEST_BYTES = 2**20


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or none that can be read; the sentence names the path and the reason."""


class ContentError(CheckpointError):
    """A state that no checkpoint may hold, such as one that is not finite; the fault is the run's, not the disk's."""


@dataclass(frozen=True)
class Checkpoint:
    """What was loaded: fresh tensors in ``content``, and the newer checkpoints that were passed over, with the reason."""

    step: int
    path: Path
    content: dict[str, Any]
    rejected: dict[str, str]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run in ``directory``, which is made where it is missing.

    ``keep``: how many complete ones stay, at least two. ``run``: what tells this run from others (plain JSON, such as the
    routine and the seed); a checkpoint that differs in any of it is rejected. ``settings``: likewise, where a checkpoint has
    them; those of earlier versions lack some.
    """

    directory: Path
    keep: int = 2
    run: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory))
        for name in ("run", "settings"):
            object.__setattr__(self, name, json.loads(_canonical(dict(getattr(self, name)))))
        if self.keep < 2:
            raise ValueError(f"at least two checkpoints are kept, so that one can be broken; got keep={self.keep}")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = error.strerror or str(error)
            raise CheckpointError(f"the directory of checkpoints {self.directory} cannot be made: {why}") from error

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, good or not, in order."""
        return sorted(int(found[1]) for entry in self.directory.iterdir() if (found := _STEP.fullmatch(entry.name)))

    def path(self, step: int) -> Path:
        """Return the directory of a step's checkpoint."""
        return self.directory / f"step-{step:012d}"

    def save(self, step: int, content: Mapping[str, Any]) -> Path:
        """Write a checkpoint, read it back, and remove the oldest beyond ``keep``; return its directory.

        ``content``: by name (a-z and _), trees of dicts, lists, tuples, tensors and what JSON holds; they are copied.
        Checkpoints of this step or later ones, which only a rejected one can be, are set aside as ``rejected-...``.

        Raises ``ContentError`` where a tensor or number is not finite (nothing is written), ``CheckpointError`` where the
        disk refuses, or where what was read back is not what was written; the earlier checkpoints then stay as they were.
        """
        try:
            files = _files(content)
        except TreeError as error:
            raise ContentError(f"no checkpoint of step {step} was written: {error}") from None
        sums = {name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in files.items()}
        files["manifest.json"] = _signed(
            {"format": _FORMAT, "step": step, "run": {**self.run, **self.settings}, "files": sums}
        )
        path, temporary = self.path(step), None
        try:
            self._clear()
            _crash_at("before-temporary")
            temporary = self.directory / f"{_TEMPORARY}{path.name}"
            temporary.mkdir()
            for name, data in files.items():
                _write(temporary / name, data)
            sync(temporary)
            _crash_at("before-rename")
            for later in self.steps():
                if later >= step:
                    self._set_aside(later)
            temporary.rename(path)
            sync(self.directory)
        except OSError as error:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            size = sum(map(len, files.values()))
            why = error.strerror or str(error)
            raise CheckpointError(
                f"the checkpoint of step {step} ({size} bytes) could not be written to {path}: {why}; free space or "
                f"choose another directory, the earlier checkpoints are intact"
            ) from error
        _crash_at("after-rename")
        try:
            self._read(step)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} was written, but does not read back: {error}; check the disk") from error
        try:
            for old in [kept for kept in self.steps() if kept < step][: 1 - self.keep]:
                self._remove(old)
        except OSError as error:
            raise CheckpointError(f"an old checkpoint in {self.directory} could not be removed: {error}") from error
        return path

    def keep_last(self) -> None:
        """Remove all checkpoints but the newest, for a run that is finished.

        Raises ``CheckpointError``, and removes nothing, where the newest does not read back.
        """
        *older, last = self.steps() or [0]
        if not older:
            return
        try:
            self._read(last)
            for old in older:
                self._remove(old)
        except _UNREADABLE as error:
            raise CheckpointError(f"the older checkpoints of {self.path(last)} stay: {error}") from error

    def load(self, use: Callable[[Checkpoint], None] | None = None) -> Checkpoint | None:
        """Return the newest good checkpoint, with the reasons why newer ones were rejected; None where there is none at all.

        Every hash is verified before a tensor is made. The hashes are no secret, so a checkpoint from a stranger may have
        right ones: ``use`` is called with what was loaded, and a checkpoint at which it raises is rejected as well.
        Raises ``CheckpointError`` where there are some and none is good.
        """
        rejected: dict[str, str] = {}
        try:
            self._clear()
            steps = self.steps()
        except OSError as error:
            raise CheckpointError(f"the directory of checkpoints {self.directory} cannot be read: {error}") from error
        for step in reversed(steps):
            path = self.path(step)
            try:
                found = Checkpoint(step, path, self._content(self._read(step)), rejected)
                if use is not None:
                    use(found)
                return found
            except _UNREADABLE as error:
                rejected[path.name] = _reason(error)
        if rejected:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected.items())
            raise CheckpointError(f"no checkpoint in {self.directory} is good ({reasons}); name a new directory")
        return None

    def _read(self, step: int) -> dict[str, bytes]:
        """Return the verified files of a checkpoint; ``ValueError`` with the reason where anything is wrong with it."""
        path = self.path(step)
        if path.is_symlink():
            raise ValueError("it is a link")
        manifest = _verified(_bytes(path / "manifest.json", _MANIFEST_BYTES))
        if manifest.get("format") != _FORMAT:
            raise ValueError(f"its format is {manifest.get('format')!r:.80}, this version reads {_FORMAT}")
        if manifest["step"] != step:
            raise ValueError(f"its manifest is that of step {manifest['step']!r:.80}")
        there = manifest["run"]
        given = {name: ours for name, ours in self.settings.items() if name in there}
        for name, ours in {**self.run, **given}.items():
            theirs = there.get(name)
            if theirs != ours:
                raise ValueError(f"it belongs to another run, whose {name} is {theirs!r:.200} and not {ours!r:.200}")
        files = {}
        for name, expected in manifest["files"].items():
            if not _FILE.fullmatch(name):
                raise ValueError(f"its manifest names the file {name!r:.80}")
            files[name] = _bytes(path / name, expected["bytes"])
            if len(files[name]) != expected["bytes"]:
                raise ValueError(f"{name} has {len(files[name])} bytes, not {expected['bytes']}")
            if _sha256(files[name]) != expected["sha256"]:
                raise ValueError(f"the sha256 sum of {name} is not that of the manifest")
        return files

    def _content(self, files: dict[str, bytes]) -> dict[str, Any]:
        content = json.loads(files.pop("content.json"), parse_constant=_no_number)
        tensors = {name.removesuffix(".safetensors"): safetensors.torch.load(data) for name, data in files.items()}
        for part, named in tensors.items():
            for name, tensor in named.items():
                if unfit(tensor, part == "buffers"):
                    raise ValueError(f"{part}: {name:.80} is {'NaN' if part == 'buffers' else 'not finite'}")
        return {name: unpack(part, tensors.get(name, {})) for name, part in content.items()}

    def _clear(self) -> None:
        """Remove what a killed process left behind: half-written and half-removed directories."""
        for entry in self.directory.iterdir():
            if entry.name.startswith((_TEMPORARY, _REMOVING)):
                if entry.is_symlink() or not entry.is_dir():
                    entry.unlink()
                shutil.rmtree(entry, ignore_errors=True)

    def _set_aside(self, step: int) -> None:
        number, path = 1, self.path(step)
        while (aside := self.directory / f"rejected-{path.name}-{number}").exists():
            number += 1
        path.rename(aside)

    def _remove(self, step: int) -> None:
        """Remove a checkpoint: under another name first, so that a kill never leaves half of one under its own."""
        path = self.path(step)
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        removing = self.directory / (_REMOVING + path.name)
        path.rename(removing)
        (removing / "manifest.json").unlink(missing_ok=True)
        _crash_at("during-prune")
        shutil.rmtree(removing)


def _files(content: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files of a content: one of tensors for each part that has some, and ``content.json``."""
    files, trees = {}, {}
    for name, part in content.items():
        tensors: dict[str, Tensor] = {}
        trees[name] = pack(part, tensors, name)
        if not re.fullmatch("[a-z_]+", name) or name in ("content", "manifest"):
            raise TreeError(f"{name!r} is no name of a part; use a-z and _")
        if tensors:
            files[f"{name}.safetensors"] = safetensors.torch.save(tensors)
    files["content.json"] = _canonical(trees)
    return files


def _canonical(tree: Any) -> bytes:
    return json.dumps(tree, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _signed(manifest: dict[str, Any]) -> bytes:
    return _canonical({"manifest": manifest, "sha256": _sha256(_canonical(manifest))})


def _verified(data: bytes) -> dict[str, Any]:
    """Return a manifest whose own sum is right, to the byte; ``ValueError`` otherwise."""
    try:
        manifest = json.loads(data)["manifest"]
        good = isinstance(manifest, dict) and _signed(manifest) == data
    except (ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        raise ValueError("its manifest.json is damaged")
    return manifest


def _bytes(path: Path, most: int) -> bytes:
    """Return the content of a file of at most ``most`` bytes."""
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"{path.name} is missing")
    if path.stat().st_size > most:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {most}")
    return path.read_bytes()


def _no_number(text: str) -> None:
    raise ValueError(f"content.json has the number {text}")


def _reason(error: BaseException) -> str:
    """Return the first line of an error, which may quote what a stranger wrote."""
    line = next(iter(str(error).splitlines()), "")[:400] or "its content is not that of a checkpoint"
    plain = isinstance(error, OSError | ValueError | MemoryError | safetensors.SafetensorError)
    return line if plain else f"its content is not that of a checkpoint ({type(error).__name__}: {line})"


def _write(path: Path, data: bytes) -> None:
    half, view = len(data) // 2, memoryview(data)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        put(handle, view[:half])
        _crash_at("mid-write")
        put(handle, view[half:])
        _crash_at("before-sync")
        os.fsync(handle)
    finally:
        os.close(handle)


def _crash_at(point: str) -> None:
    if os.environ.get("UNIGEN_CRASH_AT") == point:
        os._exit(137)
