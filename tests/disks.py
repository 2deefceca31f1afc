"""Checkpoints under faults: saves that are killed (B2), files that are corrupted (B5), disks that refuse (B6)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import itertools
import os
import random
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from children import Tally, fork, wait
from kills import INTERVAL, command, train, written

from unigen.checkpoints import CRASH_POINTS, Checkpoints

__all__ = [
    "content",
    "corrupted",
    "fill",
    "flip",
    "killed_saves",
    "listing",
    "missing_and_swapped",
    "refused",
    "same",
    "truncate",
    "zero_page",
]


def content(seed: int) -> dict[str, Any]:
    """Return a state of about 8 kB, a pure function of the seed, with tensors and plain values of every kind."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "pair": {"model.weight": draw(30, 20), "model.bias": draw(20).double(), "count": torch.tensor(seed)},
        "optimizers": {"theta": {"lr": 0.1, "betas": (0.9, 0.999), "moments": {"model.weight": draw(30, 20)}}},
        "random": {"torch": torch.randint(0, 256, (2000,), generator=generator).to(torch.uint8)},
        "step": seed,
        "history": [[1 / 3, -1e-300], [], None, True, "π"],
    }


def same(left: Any, right: Any) -> bool:
    """Return whether two trees are equal, types and bits included."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return left == right and type(left) is type(right)


def fill(directory: Path, *steps: int, **settings: Any) -> Checkpoints:
    """Return checkpoints with some steps saved."""
    kept = Checkpoints(directory, **settings)
    for step in steps:
        kept.save(step, content(step))
    return kept


def listing(directory: Path) -> dict[str, str]:
    """Return the hash of every file below a directory."""
    files = (file for file in sorted(directory.rglob("*")) if file.is_file())
    return {str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# -- kills at every point of a save (B2) -------------------------------------------------------------------------------


def killed_saves(each: int, root: Path) -> Tally:
    """Kill a save at every named point; good is when the newest complete checkpoint loads, and the next save is whole."""
    tally, whole = Tally(), fill(root / "whole", 1, 2)
    for point in CRASH_POINTS:
        for trial in range(each):
            where = root / f"{point}-{trial}"
            shutil.copytree(whole.directory, where)

            def save(kept: Checkpoints, point: str = point) -> None:
                os.environ["UNIGEN_CRASH_AT"] = point
                kept.save(3, content(3))

            code = wait(fork(lambda where=where, save=save: save(Checkpoints(where))))
            tally(code == 137 and _went_well(where, point), f"killed {point}, trial {trial}: exit code {code}")
    return tally


def _went_well(where: Path, point: str) -> bool:
    stale = [entry.name for entry in where.iterdir() if entry.name.startswith(".")]
    complete = point in ("after-rename", "during-prune")
    if bool(stale) == (point in ("before-temporary", "after-rename")):
        return False  # the kill came at another point
    kept = Checkpoints(where)
    found = kept.load()
    if found is None or found.rejected or not same(found.content, content(3 if complete else 2)):
        return False
    if len(kept.steps()) < 2 or any(entry.name.startswith(".") for entry in where.iterdir()):
        return False
    kept.save(4, content(4))
    again = kept.load()
    return again is not None and again.step == 4 and len(kept.steps()) == 2


# -- corruption (B5) ---------------------------------------------------------------------------------------------------


def flip(data: bytearray, chance: random.Random) -> bytearray:
    """Flip one bit."""
    at = chance.randrange(8 * len(data))
    data[at // 8] ^= 1 << at % 8
    return data


def truncate(data: bytearray, chance: random.Random) -> bytearray:
    """Cut the end off."""
    return data[: chance.randrange(len(data))]


def zero_page(data: bytearray, chance: random.Random) -> bytearray:
    """Zero a page of 4 KiB."""
    start = 4096 * chance.randrange(-(-len(data) // 4096))
    length = min(4096, len(data) - start)
    data[start : start + length] = bytes(length)
    return data


def corrupted(
    spoil: Callable[[bytearray, random.Random], bytearray], count: int, chance: random.Random, root: Path
) -> Tally:
    """Spoil files of the newest checkpoint; good is when it is rejected, and the one before comes back bit for bit."""
    tally, kept = Tally(), fill(root, 1, 2)
    files = sorted(kept.path(2).iterdir())
    sizes, wanted = [file.stat().st_size for file in files], content(1)
    for trial in range(count):
        file = files[trial % len(files)] if trial < 50 else chance.choices(files, sizes)[0]
        good = file.read_bytes()
        spoilt = bytes(spoil(bytearray(good), chance))
        file.write_bytes(spoilt)
        found = kept.load()
        rejected = found is not None and found.step == 1 and list(found.rejected) == [kept.path(2).name]
        tally(spoilt != good and rejected and same(found.content, wanted), f"{spoil.__name__} in {file.name}")
        file.write_bytes(good)
    tally.wrong += [] if kept.load().step == 2 else ["whole again, the checkpoint was still rejected"]
    return tally


def missing_and_swapped(root: Path) -> Tally:
    """Take away, and swap with those of another step or another run, each file of the newest checkpoint."""
    tally, kept = Tally(), fill(root / "mine", 1, 2, 3, keep=3, run={"seed": 0})
    theirs = Checkpoints(root / "theirs", run={"seed": 1})
    theirs.save(3, content(30))
    for file in sorted(kept.path(3).iterdir()):
        good = file.read_bytes()
        for kind, other in (("missing", None), ("that of step 2", kept.path(2)), ("another run's", theirs.path(3))):
            file.unlink() if other is None else file.write_bytes((other / file.name).read_bytes())
            found = kept.load()
            tally(found is not None and found.step == 2 and same(found.content, content(2)), f"{file.name}: {kind}")
            file.write_bytes(good)
    shutil.rmtree(kept.path(3))
    shutil.copytree(theirs.path(3), kept.path(3))
    found = kept.load()
    tally(found is not None and found.step == 2 and "seed" in str(found.rejected), "another run's checkpoint")
    return tally


# -- disks that refuse (B6) --------------------------------------------------------------------------------------------


def refused(root: Path, quick: bool = False) -> Tally:
    """Let a run, or a command, meet a disk that refuses.

    Good is when it ends with exit code 1, and a sentence with path and bytes; when the earlier checkpoint is intact; and
    when the same call, after the cure, ends in the same bits as without the fault.
    """
    tally = Tally()
    root.mkdir(parents=True)
    former = Path.cwd()
    os.chdir(root)  # a process without privileges may not pass through the directories above
    try:
        _refused_runs(tally, quick)
        _refused_commands(tally, quick)
    finally:
        os.chdir(former)
    return tally


def _refused_runs(tally: Tally, quick: bool) -> None:
    start, wanted = Path("start"), _prepared()
    size = max(file.stat().st_size for file in start.rglob("*.safetensors"))
    faults: list[tuple[str, Callable[[Path], object]]] = [
        *(
            (f"a limit of {limit} bytes", lambda run, limit=limit: _limit(limit))
            for limit in (size // 4, size // 2, size - 1)
        ),
        *(
            (f"/dev/full as {name}", lambda run, name=name: _full(name))
            for name in ("pair", "optimizers", "random", "content", "manifest")
        ),
        *((f"EIO at write {call}", lambda run, call=call: _error("write", call)) for call in (1, 4, 9)),
        *((f"EIO at sync {call}", lambda run, call=call: _error("fsync", call)) for call in (1, 5, 6, 7)),
        ("no permission", _no_permission),
        ("a directory that vanished before a save", lambda run: _vanish(run, 0)),
        ("a directory that vanished during a save", lambda run: _vanish(run, 3)),
    ]
    if os.geteuid() == 0 and not all(part.stat().st_mode & 1 for part in (Path(sys.prefix), *Path(sys.prefix).parents)):
        faults = [fault for fault in faults if fault[0] != "no permission"]  # another user could not read the packages
    for number, (what, fault) in enumerate(faults[::5] if quick else faults):
        run, said, result = Path(f"run-{number}"), Path(f"said-{number}"), Path(f"result-{number}")
        shutil.copytree(start, run)

        def work(run: Path = run, result: Path = result, fault: Callable[[Path], object] = fault) -> None:
            fault(run)
            train("vae", run, result)

        code = wait(fork(work, said))
        words = said.read_text().strip().split("\n")[-1]
        if Path("elsewhere").exists():
            Path("elsewhere").rename(run)
        for path in [run, *run.rglob("*")]:
            path.chmod(0o755)
        clear = _names(words, rf"{run}/step-\d+")
        intact = (found := Checkpoints(run).load()) is not None and not found.rejected and found.step >= 2 * INTERVAL
        again = wait(fork(lambda run=run, result=result: train("vae", run, result), said))
        cured = again == 0 and result.read_text() == wanted
        tally(code == 1 and clear and intact and cured, f"{what}: {code} {intact} {cured}: {words[-300:]}")
    _small_disks(tally, quick, wanted)


def _prepared() -> str:
    """Make ``start``, a run with two checkpoints that has not finished, and return the digest that it ends with."""

    def stop() -> None:
        original = Checkpoints.save

        def save(self: Checkpoints, step: int, content: Any) -> Path:
            path = original(self, step, content)
            if step >= 2 * INTERVAL:
                os._exit(9)
            return path

        Checkpoints.save = save  # type: ignore[method-assign]
        train("vae", Path("start"), Path("never"))

    code = wait(fork(stop))
    if code != 9 or wait(fork(lambda: train("vae", None, Path("alone")))):
        raise RuntimeError(f"the run to be disturbed ended with {code}")
    return Path("alone").read_text()


def _refused_commands(tally: Tally, quick: bool) -> None:
    if wait(fork(command("ring", Path("alone-out")), Path("said"))):
        raise RuntimeError(Path("said").read_text())
    wanted = written(Path("alone-out"))
    faults: list[tuple[str, str, Callable[[Path], object]]] = [
        ("/dev/full as metrics.jsonl", "metrics.jsonl", lambda out: _full("metrics")),
        ("/dev/full as a weights file", "weights.safetensors", lambda out: _full("weights")),
        ("EIO as the configuration is written", "config.json", lambda out: _error("write", 1)),
        ("/dev/full as the report", "report.html", lambda out: _full("report")),
    ]
    for number, (what, name, fault) in enumerate(faults[:1] if quick else faults):
        out, said = Path(f"out-{number}"), Path(f"said-out-{number}")

        def work(out: Path = out, fault: Callable[[Path], object] = fault) -> None:
            fault(out)
            command("ring", out)()

        code = wait(fork(work, said))
        words = said.read_text()
        clear = _names(words, rf"{out}\S*/{name}") and "Traceback" not in words
        again = wait(fork(command("ring", out), said))
        cured = again == 0 and written(out) == wanted
        tally(code == 1 and clear and cured, f"{what}: {code} {cured}: {words[-300:]}")


def _names(words: str, path: str) -> bool:
    """Return whether a sentence names the path, the bytes and the reason."""
    reasons = "|".join(
        map(re.escape, (os.strerror(n) for n in (errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EACCES, errno.ENOENT)))
    )
    return bool(
        re.search(rf"\(\d+ bytes\) could not be written to {path}: ({reasons})", words)
        or re.search(rf"\d+ bytes could not be written to {path}: ({reasons})", words)
    )


def _limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _full(name: str) -> None:
    """Open /dev/full in place of a file with this in its name, so that the kernel refuses its first byte."""
    original = os.open

    def opened(path: Any, flags: int, *mode: Any, **keywords: Any) -> int:
        full = flags & os.O_WRONLY and name in Path(path).name
        return original("/dev/full", os.O_WRONLY) if full else original(path, flags, *mode, **keywords)

    os.open = opened  # type: ignore[assignment]


def _error(function: str, call: int) -> None:
    """Let a function of the system fail with EIO, once, at a call."""
    original, calls = getattr(os, function), itertools.count(1)

    def failing(handle: int, *rest: Any) -> Any:
        if re.search("/(run|out)-", os.readlink(f"/proc/self/fd/{handle}")) and next(calls) == call:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(handle, *rest)

    setattr(os, function, failing)


def _no_permission(run: Path) -> None:
    for path in [run, *run.rglob("*")]:
        path.chmod(0o555)
    Path().chmod(0o777)  # for the log of the run
    if os.geteuid() == 0:
        os.setuid(65534)


def _vanish(run: Path, syncs: int) -> None:
    """Rename the directory of a run at its first save, or at a later file of the save."""
    original, calls = os.mkdir, 0
    if syncs == 0:

        def made(path: Any, *mode: Any, **keywords: Any) -> None:
            if ".saving-" in str(path):
                run.rename("elsewhere")
            original(path, *mode, **keywords)

        os.mkdir = made  # type: ignore[assignment]
        return
    fsync = os.fsync

    def synced(handle: int) -> None:
        nonlocal calls
        calls += 1
        fsync(handle)
        if calls == syncs:
            run.rename("elsewhere")

    os.fsync = synced  # type: ignore[assignment]


def _small_disks(tally: Tally, quick: bool, wanted: str) -> None:
    """Run on a disk of its own that is too small for one more checkpoint, and again when it has grown."""
    size = sum(-(-file.stat().st_size // 4096) * 4096 for file in Path("start").rglob("*") if file.is_file())
    for number, room in enumerate((4096, size // 3)[: 1 if quick else 2]):
        run, said, result = Path(f"disk-{number}"), Path(f"said-disk-{number}"), Path(f"result-disk-{number}")
        run.mkdir()

        def work(run: Path = run, result: Path = result, room: int = room) -> None:
            with _mounted(run, size + room):
                shutil.copytree("start", run / "run")
                try:
                    train("vae", run / "run", result)
                except Exception as error:
                    print(f"FIRST {error}")
                found = Checkpoints(run / "run").load()
                print("INTACT" if found is not None and not found.rejected else "SPOILT")
                _mount(run, 64 * 2**20, again=True)
                train("vae", run / "run", result)

        code = wait(fork(work, said))
        words = said.read_text()
        if code == 77:
            tally.skipped.append(f"a full tmpfs: {words.strip()[-100:]}")
            continue
        clear = _names(words.split("\n")[0], rf"{run}/run/step-\d+") and "INTACT" in words
        tally(
            clear and code == 0 and result.read_text() == wanted,
            f"a disk with {room} bytes left: {code}: {words[-300:]}",
        )


@contextlib.contextmanager
def _mounted(where: Path, size: int) -> Iterator[None]:
    """Mount a tmpfs where only this process sees it; exits with 77 where that is not permitted."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000) or libc.mount(None, b"/", None, 0x4000 | 0x40000, None):  # a name space of its own
        print(f"mounting is not permitted here ({os.strerror(ctypes.get_errno())})")
        raise SystemExit(77)
    _mount(where, size)
    yield


def _mount(where: Path, size: int, again: bool = False) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(where).encode(), b"tmpfs", 32 if again else 0, f"size={size}".encode()):
        print(f"mounting is not permitted here ({os.strerror(ctypes.get_errno())})")
        raise SystemExit(77)
