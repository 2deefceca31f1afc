"""The kept set of attacks: files from a stranger, each of which would run code, write elsewhere or exhaust a careless reader.

``pickles`` are byte strings that run a command when they are unpickled, in every disguise; ``headers`` are safetensors files
with a lie in them; ``trees`` are JSON texts; ``members`` are file system entries put in place of a file; ``archives`` are
archives that leave the folder they are unpacked into, or fill it; ``contents`` change the content of a checkpoint, whose
sums ``signed`` then makes right again. ``watched`` records what must not happen meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["archives", "contents", "headers", "members", "pickles", "signed", "trees", "watched"]


# -- what must not happen ----------------------------------------------------------------------------------------------

_FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "subprocess.Popen",
              "socket.connect",  "shutil.unpack_archive")  # fmt: skip
# Events that make, move or remove an entry: the places of its path and of the folder that it is relative to.
_ENTRIES = {
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.chmod": ((0, 2),),
}
_recorders: list[Callable[[str, tuple[Any, ...]], None]] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    for recorder in _recorders:
        recorder(event, arguments)


@contextlib.contextmanager
def watched(*allowed: Path) -> Iterator[list[str]]:
    """Record, as long as the block runs, every forbidden event, and every file written outside the ``allowed`` folders.

    The interpreter itself reports the events, before they happen (``sys.addaudithook``).
    """
    found: list[str] = []
    roots = [os.path.realpath(root) for root in allowed]

    def inside(real: str) -> bool:
        ours = any(real == root or real.startswith(root + os.sep) for root in roots)
        return ours or "__pycache__" in real  # the interpreter's own, of a module that is imported late

    def entry(path: Any, folder: Any) -> str:
        """Where the entry itself lies, whatever it is a link to; ``folder``: an open one that it is relative to, or -1."""
        name = os.fsdecode(path)
        if isinstance(folder, int) and folder >= 0:
            name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
        return os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))

    def recorder(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_FORBIDDEN):
            found.append(f"{event} {arguments!r:.200}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path, _, flags = arguments
            real = os.path.realpath(os.fsdecode(path))
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) and real != os.devnull and not inside(real):
                found.append(f"write {real!r}")
        elif event in _ENTRIES:
            for place, folder in _ENTRIES[event]:
                real = entry(arguments[place], arguments[folder])
                if not inside(real) and not (event == "os.mkdir" and os.path.lexists(real)):  # which makes nothing
                    found.append(f"{event} {real!r}")

    if _hear not in _hooks:
        sys.addaudithook(_hear)  # which stays for good, and then hears nothing
        _hooks.append(_hear)
    _recorders.append(recorder)
    try:
        yield found
    finally:
        _recorders.remove(recorder)


_hooks: list[Any] = []


# -- code in a pickle --------------------------------------------------------------------------------------------------


class _Reduce:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class _Through:
    """Runs a command by way of some other callable."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def _setstate(command: str) -> bytes:
    """A pickle whose object is built first, and whose state is then handed to a function: the opcode BUILD."""
    return b"".join([
        pickle.PROTO, b"\x02", b"cbuiltins\nexec\n", pickle.MARK,
        pickle.BINUNICODE, struct.pack("<I", len(text := f"__import__('os').system({command!r})".encode())), text,
        pickle.TUPLE, pickle.REDUCE, b"}", pickle.BUILD, pickle.STOP,
    ])  # fmt: skip


def _torch_zip(payload: bytes, name: str = "data.pkl") -> bytes:
    """What ``torch.save`` writes, with another pickle in it."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for member, content in ((name, payload), ("byteorder", b"little"), ("version", b"3\n"), ("data/0", b"\0" * 16)):
            archive.writestr(f"archive/{member}", content)
    return made.getvalue()


def pickles(canary: Path) -> dict[str, bytes]:
    """Return files that make ``canary`` when they are read by pickle, torch.load, numpy.load or joblib, by disguise."""
    command = f"echo run > {canary}"
    plain = pickle.dumps(_Reduce(command))
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    safe = struct.pack("<Q", len(header)) + header + b"\0\0\0\0"
    legacy = pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(1001) + pickle.dumps({"little_endian": True}) + plain
    array = io.BytesIO()
    np.save(array, np.array([_Reduce(command)], dtype=object), allow_pickle=True)
    arrays = io.BytesIO()
    np.savez(arrays, x=np.array([_Reduce(command)], dtype=object))
    return {
        "reduce": plain,
        "reduce, protocol 0": pickle.dumps(_Reduce(command), protocol=0),
        "exec": pickle.dumps(_Through(exec, f"import os; os.system({command!r})")),
        "eval": pickle.dumps(_Through(eval, f"__import__('os').system({command!r})")),
        "setstate": _setstate(command),
        "import and getattr": pickle.dumps(_Through(getattr, _Through(__import__, "os"), "system")),
        "map over commands": pickle.dumps(_Through(list, _Through(map, os.system, [command]))),
        "deep in a state": pickle.dumps({"pair": [{"model.weight": (torch.zeros(2), _Reduce(command))}]}),
        "torch, legacy": legacy,
        "torch, zip": _torch_zip(plain),
        "torch, zip in a zip": _torch_zip(pickle.dumps({"inner": _torch_zip(plain)})) + _torch_zip(plain),
        "torch, script": _torch_zip(plain, "constants.pkl"),
        "7z container": b"7z\xbc\xaf'\x1c\0\4" + bytes(24) + plain,
        "gzip": gzip.compress(plain, mtime=0),
        "safetensors before, zip behind": safe + _torch_zip(plain),
        "safetensors before, pickle behind": safe + plain,
        "pickle before, safetensors behind": plain + safe,
        "json before, pickle behind": b"{}\n" + plain,
        "png before, pickle behind": b"\x89PNG\r\n\x1a\n" + plain,
        "npy of objects": array.getvalue(),
        "npz of objects": arrays.getvalue(),
        "python": f"import os\nos.system({command!r})\n".encode(),
        "yaml": f"!!python/object/apply:os.system [{command!r}]\n".encode(),
        "shell": f"#!/bin/sh\n{command}\n".encode(),
    }


# -- lies in a header --------------------------------------------------------------------------------------------------


def _safetensors(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def headers() -> dict[str, bytes]:
    """Return safetensors files with a lie in them, by what it is."""

    def one(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), body: bytes = bytes(8), **more: Any) -> bytes:
        return _safetensors({"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}}, body)

    both = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return {
        "empty": b"",
        "length only": struct.pack("<Q", 0),
        "header of 2^63 bytes": _safetensors({}, length=2**63),
        "header of 2^64 - 1 bytes": _safetensors({}, length=2**64 - 1),
        "header of 100 MB": _safetensors({}, length=100_000_001),
        "header longer than the file": _safetensors({}, length=1000),
        "header that is no json": _safetensors(b"\xff\xfe{"),
        "header that is a list": _safetensors([1, 2]),
        "header nested too deeply": _safetensors(b'{"a":' * 20_000 + b"1" + b"}" * 20_000),
        "shape that overflows": one(shape=[2**62, 2**62]),
        "shape of 2^40": one(shape=[2**40]),
        "negative shape": one(shape=[-2]),
        "shape of floats": one(shape=[2.5]),
        "shape that is a text": one(shape="2"),
        "offsets beyond the end": one(offsets=[0, 2**40]),
        "negative offsets": one(offsets=[-8, 0]),
        "offsets the wrong way": one(offsets=[8, 0]),
        "offsets that overlap": _safetensors({"x": both, "y": both}, bytes(8)),
        "a hole": _safetensors({"x": {**both, "data_offsets": [8, 16]}}, bytes(16)),
        "unknown dtype": one(dtype="PICKLE"),
        "dtype of objects": one(dtype="O"),
        "dtype of half a byte": one(dtype="F4", shape=[16], offsets=[0, 8]),
        "dtype that is a path": one(dtype="../../x"),
        "a thousand dimensions": one(shape=[1] * 1000 + [2]),
        "metadata that is no text": _safetensors({"__metadata__": {"a": [1]}, "x": both}, bytes(8)),
        "name with a slash": _safetensors({"../../x": both}, bytes(8)),
        "name with a NUL": _safetensors({"a\0b": both}, bytes(8)),
        "a name twice": _safetensors(b'{"x":%s,"x":%s}' % ((json.dumps(both).encode(),) * 2), bytes(8)),
        "NaN in the header": _safetensors(b'{"x":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8)),
        "NaN": one(body=b"\0\0\xc0\x7f" * 2),
        "infinity": one(body=b"\0\0\x80\x7f" * 2),
        "bytes behind the end": one(body=bytes(9)),
    }  # fmt: skip


# -- texts -------------------------------------------------------------------------------------------------------------


def trees() -> dict[str, str]:
    """Return JSON texts that are too deep, too large, of wrong types, or look like instructions."""
    nested = "[" * 100_000
    bomb: Any = "lol"
    for _ in range(6):
        bomb = [bomb] * 8
    return {
        "empty": "",
        "torn": '{"settings": {"steps": ',
        "null": "null",
        "a number": "7",
        "a text": '"settings"',
        "a list": "[[1]]",
        "NaN": "NaN",
        "deep lists": nested + "]" * 100_000,
        "deep lists, torn": nested,
        "deep mappings": '{"a":' * 50_000 + "1" + "}" * 50_000,
        "huge integer": '{"step": ' + "9" * 100_000 + "}",
        "huge float": '{"step": 1e99999}',
        "a bomb of repetitions": json.dumps({"settings": bomb}),
        "ten megabytes": json.dumps({"settings": {"data": "x" * 10_000_000}}),
        "not utf-8": "\udcff\udcfe{}",
        "lone surrogates": '{"settings": {"data": "\\ud800"}}',
        "NUL": '{"settings": {"data": "\\u0000"}}',
        "target": '{"_target_": "os.system", "_args_": ["echo run"]}',
        "python object": '{"py/object": "os.system", "py/reduce": [{"py/function": "os.system"}, ["x"]]}',
        "class": '{"__class__": "subprocess.Popen", "__init__": {"args": "x"}}',
        "proto": '{"__proto__": {"polluted": true}, "constructor": {"prototype": 1}}',
        "interpolation": '{"settings": "${oc.env:HOME}", "data": "{{7*7}}"}',
        "a name twice": '{"settings": {}, "settings": 3}',
        "yaml": "!!python/object/apply:os.system ['echo run']",
    }


# -- entries of a directory --------------------------------------------------------------------------------------------


def members(outside: Path) -> dict[str, Callable[[Path], None]]:
    """Return functions that put something else in place of a file: links to ``outside``, pipes, folders."""
    precious = outside / "precious"

    def hard(path: Path) -> None:
        os.link(precious, path)

    return {
        "link to a file": lambda path: path.symlink_to(precious),
        "link to a folder": lambda path: path.symlink_to(outside),
        "relative link": lambda path: path.symlink_to(os.path.relpath(precious, path.parent)),
        "link that leads nowhere": lambda path: path.symlink_to(outside / "new"),
        "link to itself": lambda path: path.symlink_to(path.name),
        "chain of links": lambda path: _chain(path, precious),
        "link to a device": lambda path: path.symlink_to("/dev/zero"),
        "pipe": os.mkfifo,
        "folder": lambda path: path.mkdir(),
        "hard link": hard,
    }


def _chain(path: Path, end: Path) -> None:
    middle = path.with_name(path.name + "-middle")
    middle.symlink_to(end)
    path.symlink_to(middle.name)


# -- the content of a checkpoint ---------------------------------------------------------------------------------------


def signed(checkpoint: Path, **changes: Any) -> None:
    """Write a checkpoint's manifest anew, so that every sum is right; the sums are no secret."""

    def canonical(tree: Any) -> bytes:
        return json.dumps(tree, separators=(",", ":")).encode()

    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())["manifest"]
    files = [file for file in checkpoint.iterdir() if file != path and file.is_file() and not file.is_symlink()]
    manifest["files"] = {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in sorted(files)
    }
    manifest |= changes
    path.write_bytes(canonical({"manifest": manifest, "sha256": hashlib.sha256(canonical(manifest)).hexdigest()}))


def contents() -> dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]]:
    """Return functions of a content (a tree) and its tensors (by part and name) that change them in place, by what they do.

    The content is that of a run of ``vae`` with Adam; none of them is one that a run could have written.
    """

    def adam(tree: dict[str, Any], group: str = "theta") -> dict[str, Any]:
        return tree["optimizers"][group]["groups"][0]

    def first(part: dict[str, Any]) -> Any:
        return next(iter(part.values()))

    def resize(part: str, ending: str, shape: tuple[int, ...], dtype: Any = torch.float32) -> Any:
        def change(tree: Any, tensors: dict[str, Any]) -> None:
            name = next(name for name in tensors[part] if name.endswith(ending))
            tensors[part][name] = torch.zeros(shape, dtype=dtype)

        return change

    def put(value: Any, *keys: Any) -> Any:
        def change(tree: Any, tensors: Any) -> None:
            for key in keys[:-1]:
                tree = tree[key]
            tree[keys[-1]] = value

        return change

    def drop(*keys: Any) -> Any:
        def change(tree: Any, tensors: Any) -> None:
            for key in keys[:-1]:
                tree = tree[key]
            del tree[keys[-1]]

        return change

    def nested(value: Any, depth: int) -> Any:
        for _ in range(depth):
            value = {"$tuple": [value]}
        return value

    def name_of_moment(tree: Any) -> Any:
        return first(tree["optimizers"]["theta"]["state"])

    group = ("optimizers", "theta", "groups", 0)
    changes: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
        # moments of another size: a fused step writes beyond their end
        "moment of no entries": resize("optimizers", "exp_avg", (0,)),
        "moment of one entry": resize("optimizers", "exp_avg", (1,)),
        "second moment too long": resize("optimizers", "exp_avg_sq", (10**6,)),
        "moment of integers": resize("optimizers", "exp_avg", (1,), torch.int64),
        "step of two numbers": resize("optimizers", "/step", (2,)),
        "moment missing": lambda tree, tensors: name_of_moment(tree).pop("exp_avg"),
        "moment that is a text": lambda tree, tensors: name_of_moment(tree).update(exp_avg="x"),
        "moment of a stranger": lambda tree, tensors: name_of_moment(tree).update(__class__=1),
        "state of an unknown parameter": put({}, "optimizers", "theta", "state", "model.other"),
        "state that is a list": put([], "optimizers", "theta", "state"),
        "learning rate that is a text": put("0.1", *group, "lr"),
        "learning rate beyond all": put(1e999, *group, "lr"),
        "betas of texts": put({"$tuple": ["a", "b"]}, *group, "betas"),
        "amsgrad": put(True, *group, "amsgrad"),
        "not fused": put("__import__('os')", *group, "fused"),
        "a setting missing": drop(*group, "eps"),
        "a setting more": put("os.system", *group, "_target_"),
        "a setting of a class": put(1, *group, "__class__"),
        "parameters twice": lambda tree, tensors: adam(tree)["params"].extend(adam(tree)["params"]),
        "parameters of a stranger": put(["../../x"], *group, "params"),
        "groups missing": put([], "optimizers", "theta", "groups"),
        "another optimizer": put("os.system", "optimizers", "theta", "name"),
        "no optimizer": put({}, "optimizers"),
        # random streams
        "numpy's stream beyond its end": put(10**8, "random", "numpy", "state", "pos"),
        "numpy's stream before its start": put(-1, "random", "numpy", "state", "pos"),
        "numpy's stream too short": resize("random", "key", (3,), torch.int64),
        "numpy's stream of another kind": put("os.system", "random", "numpy", "bit_generator"),
        "python's stream of one number": put({"$tuple": [3, {"$tuple": [1]}, None]}, "random", "python"),
        "python's stream of texts": put({"$tuple": [3, {"$tuple": ["x"] * 625}, None]}, "random", "python"),
        "python's stream that is none": put("import os", "random", "python"),
        "torch's stream too short": resize("random", "torch", (5,), torch.uint8),
        "torch's stream of floats": resize("random", "torch", (5056,)),
        "torch's stream of zeros": resize("random", "torch", (5056,), torch.uint8),
        "streams missing": drop("random"),
        # parameters
        "a parameter of another shape": resize("pair", "weight", (1,)),
        "a parameter of another type": resize("pair", "weight", (1,), torch.float64),
        "a parameter that is a text": lambda tree, tensors: tree["pair"].update({next(iter(tree["pair"])): "x"}),
        "an attribute that is code's": put("str x", "attributes", "model.forward"),
        "an attribute of another kind": put("str x", "attributes", "model.training"),
        "an attribute of nothing": put("bool True", "attributes", "model.other.training"),
        "attributes at the start that are none": put("x", "began"),
        "a parameter missing": lambda tree, tensors: tree["pair"].pop(next(iter(tree["pair"]))),
        "a parameter more": put(3, "pair", "__class__"),
        "the pair is a list": put([], "pair"),
        "chains that are a list": put([1], "chains"),
        "a chain that is a text": put({"k": "x"}, "chains"),
        # where tensors stand
        "a tensor that is not there": put({"$tensor": "../../x"}, "pair", "model.other"),
        "a tensor named by a list": put({"$tensor": ["x"]}, "pair", "model.other"),
        "a tuple of a number": put({"$tuple": 7}, "history", "steps"),
        "tuples in tuples": put(nested(1, 300), "history", "steps"),
        # records
        "step of another": put(7, "step"),
        "step that is a text": put("9", "step"),
        "step beyond all": put(10**400, "step"),
        "history that is a text": put("import os", "history"),
        "history of a class": put({"__class__": "x", "phases": []}, "history"),
        "history of unequal lengths": put([1, 2, 3], "history", "steps"),
        "notes that are a text": put("a", "history", "notes"),
        "notes that are no texts": put([1], "history", "notes"),
        "values beyond all": put([[1e999]], "history", "values"),
        "loop missing": drop("loop"),
        "spent that is a text": put("1", "loop", "spent"),
        "spent that is not finite": put(1e999, "loop", "spent"),
        "count that is a truth": put(True, "loop", "count"),
        "total that is a text": put("x", "loop", "total"),
        "stopped that is a text": put("no", "loop", "stopped"),
        "environment that is a text": put("os.environ", "environment"),
    }  # fmt: skip
    return changes


# -- archives ----------------------------------------------------------------------------------------------------------


def _tar(*entries: tuple[str, bytes, str]) -> bytes:
    """A tar of (name, type, link name), files with a line in them."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, kind, link in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, link
            content = b"written\n" if kind == tarfile.REGTYPE else b""
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def _zip(*entries: tuple[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return made.getvalue()


@functools.cache
def _bombs() -> tuple[bytes, bytes]:
    """A zip and a gzip of a hundred kilobytes that grow to a hundred megabytes."""
    return _zip(("train.npy", bytes(100_000_000))), gzip.compress(bytes(100_000_000), mtime=0)


def archives(outside: Path) -> dict[str, bytes]:
    """Return the archives that leave their folder or fill it, by what is wrong with them; ``outside`` is absolute."""
    file, link, hard = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
    return {
        "parent": _tar(("../" * 12 + str(outside / "a").lstrip("/"), file, "")),
        "absolute": _tar((str(outside / "b"), file, "")),
        "link out": _tar(("up", link, str(outside)), ("up/c", file, "")),
        "hard link out": _tar(("d", hard, str(outside / "precious")), ("d", file, "")),
        "chain of links": _tar(("one", link, "two"), ("two", link, str(outside)), ("one/e", file, "")),
        "device": _tar(("f", tarfile.CHRTYPE, "")),
        "pipe": _tar(("g", tarfile.FIFOTYPE, "")),
        "twice": _tar(("h", file, ""), ("h", link, str(outside)), ("h", file, "")),
        "cases": _tar(("Folder", link, str(outside)), ("folder/i", file, "")),
        "zip, parent": _zip(("../" * 12 + str(outside / "j").lstrip("/"), b"written\n")),
        "bomb": _bombs()[0],
        "bomb, gzip": _bombs()[1],
    }
