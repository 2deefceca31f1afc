"""Files from strangers: nothing in them runs, nothing is written outside, and the run goes on from what is good, or says why.

The attacks are those of ``tests.attacks``; the interpreter's own audit tells what happens while they are read.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import pickle
import re
import shutil
import tarfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from attacks import archives, contents, headers, members, pickles, signed, trees, watched
from hypothesis import example, given, settings
from hypothesis import strategies as st
from resuming import arm, digest

from unigen import datafiles
from unigen.checkpoints import CheckpointError, Checkpoints
from unigen.cli import main
from unigen.data import DataError, load
from unigen.resume import ResumeWarning
from unigen.runs import load_weights, save_weights, slug_of
from unigen.training import Interrupted, fit

STEPS, CUT = 12, 9


def train(directory: Path, stop: int | None = None) -> Any:
    """Train the small run, from its last good checkpoint where it has some; return (state, history)."""
    pair, routine, loader = arm("vae")
    taken = 0

    def asked() -> bool:
        nonlocal taken
        taken += 1
        return taken == stop

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return fit(
            loader, routine, pair, steps=STEPS, record_every=2, checkpoints=directory, checkpoint_every=3, progress=False,
            interrupted=asked,
        )  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with checkpoints of steps 6 and 9, and the hash of where it ends if nobody stops it."""
    root = tmp_path_factory.mktemp("stopped")
    streams = capture()
    state, _ = train(root / "whole")
    final = digest(state)
    restore(streams)
    with pytest.raises(Interrupted):
        train(root / "checkpoints", CUT)
    assert Checkpoints(root / "checkpoints").steps() == [6, CUT]
    return root / "checkpoints", final


def capture() -> Any:
    import random

    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def restore(streams: Any) -> None:
    import random

    random.setstate(streams[0])
    np.random.set_state(streams[1])
    torch.set_rng_state(streams[2])


@contextlib.contextmanager
def safe(root: Path, canary: Path) -> Iterator[None]:
    """Nothing forbidden happens, nothing is written outside ``root``, and the canary stays away."""
    with watched(root) as found:
        yield
    assert found == [] and not canary.exists()


@pytest.fixture
def attacked(stopped: tuple[Path, str], tmp_path: Path) -> Callable[[Callable[[Path], None]], str]:
    """Copy the run, let an attack change its newest checkpoint, resume, and return why that one was rejected.

    The run must end where it ends if nobody stops it: by the checkpoint before, bit for bit.
    """
    canary = tmp_path / "canary"

    def attack(change: Callable[[Path], None]) -> str:
        root = tmp_path / "run"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(stopped[0], root)
        change(Checkpoints(root).path(CUT))
        with safe(root, canary), warnings.catch_warnings():
            warnings.simplefilter("ignore", ResumeWarning)
            state, history = train(root)
        assert digest(state) == stopped[1]
        reason = next(note for note in history.notes if "rejected" in note)
        assert len(reason) < 700 and "\n" not in reason
        return reason

    return attack


def test_the_attacks_are_real(tmp_path):
    """Read as such files are read elsewhere, most of the pickles run, and the recorder hears it."""
    canary, ran = tmp_path / "canary", []
    readers: list[Callable[[Path], Any]] = [
        lambda path: pickle.loads(path.read_bytes()),
        lambda path: torch.load(path, weights_only=False),
        lambda path: np.load(path, allow_pickle=True)["x"],
        lambda path: np.load(path, allow_pickle=True),
    ]
    for name, data in pickles(canary).items():
        path = tmp_path / "file"
        path.write_bytes(data)
        with watched(tmp_path) as found, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for reader in readers:
                with contextlib.suppress(Exception):
                    reader(path)
        if canary.exists():
            assert any(event.startswith("os.system") for event in found)
            ran.append(name)
            canary.unlink()
    print(f"{len(ran)} of {len(pickles(canary))} run: {', '.join(ran)}")
    assert len(ran) >= 12 and {"reduce", "setstate", "torch, zip", "torch, legacy", "npz of objects"} <= set(ran)


def test_the_recorder_hears_writes_outside(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir(), outside.mkdir()
    with watched(inside) as found:
        (inside / "a").write_text("x")
        (inside / "a").rename(inside / "b")
        (inside / "b").unlink()
    assert found == []
    (inside / "link").symlink_to(outside)
    for change in (
        lambda: (outside / "a").write_text("x"),
        lambda: (inside / "link" / "b").write_text("x"),
        lambda: (outside / "a").rename(outside / "c"),
        lambda: (outside / "new").mkdir(),
        lambda: (outside / "c").unlink(),
    ):
        with watched(inside) as found:
            change()
        assert found


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["pair.safetensors", "optimizers.safetensors", "content.json", "manifest.json"])
def test_code_in_place_of_a_checkpoints_file_does_not_run(attacked, tmp_path, file):
    """As it is, and with every sum made right."""
    for number, data in enumerate(pickles(tmp_path / "canary").values()):
        for right in [file != "manifest.json"] + [False] * (number < 3):

            def change(path: Path, data: bytes = data, right: bool = right) -> None:
                (path / file).write_bytes(data)
                if right:
                    signed(path)

            reason = attacked(change)
            assert right or "sha256" in reason or "bytes" in reason or "damaged" in reason


def test_a_pickle_beside_the_files_is_not_read(attacked, tmp_path):
    for name in ("weights.pkl", "state.pt", "pytorch_model.bin", "__init__.py", "code.safetensors.py"):

        def change(path: Path, name: str = name) -> None:
            (path / name).write_bytes(pickles(tmp_path / "canary")["reduce"])
            signed(path)

        assert f"names the file {name!r}" in attacked(change)


@pytest.mark.parametrize("name", headers())
def test_a_lie_in_a_header_is_refused(attacked, name):
    def change(path: Path) -> None:
        (path / "pair.safetensors").write_bytes(headers()[name])
        signed(path)

    attacked(change)


@pytest.mark.parametrize("name", trees())
def test_a_text_that_is_no_content_is_refused(attacked, name):
    for file in ("content.json", "manifest.json"):

        def change(path: Path, file: str = file) -> None:
            (path / file).write_bytes(trees()[name].encode(errors="surrogateescape"))
            if file == "content.json":
                signed(path)

        attacked(change)


@pytest.mark.parametrize("name", contents())
def test_a_content_that_no_run_wrote_is_refused(attacked, name):
    def change(path: Path) -> None:
        tree = json.loads((path / "content.json").read_text())
        tensors = {file.stem: safetensors.torch.load(file.read_bytes()) for file in path.glob("*.safetensors")}
        contents()[name](tree, tensors)
        (path / "content.json").write_text(json.dumps(tree))
        for part, named in tensors.items():
            (path / f"{part}.safetensors").write_bytes(safetensors.torch.save(named))
        signed(path)

    attacked(change)


def test_a_checkpoint_written_again_with_its_sums_right_is_taken(stopped, tmp_path):
    """So the refusals above are of the attacks and not of the new sums."""
    shutil.copytree(stopped[0], tmp_path / "run")
    path = Checkpoints(tmp_path / "run").path(CUT)
    tree = json.loads((path / "content.json").read_text())
    (path / "content.json").write_text(json.dumps(tree))
    signed(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResumeWarning)
        state, history = train(tmp_path / "run")
    assert digest(state) == stopped[1] and not [note for note in history.notes if "rejected" in note]


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "..", ".", "a/b.json", "a\0.json", "weights.pkl", "", "x" * 300 + ".json"]
)
def test_a_path_in_a_manifest_is_refused(attacked, name):
    def change(path: Path) -> None:
        signed(path, files={name: {"bytes": 2**40, "sha256": ""}})

    attacked(change)


@pytest.mark.parametrize(
    "changes",
    [{"files": 3}, {"files": []}, {"files": {}}, {"files": {"pair.safetensors": None}}, {"run": "x"}, {"run": []}, {"step": "9"},
     {"step": 9.5}, {"format": [1]}, {"format": True, "step": {}}, {"files": {"content.json": {"bytes": -1, "sha256": 0}}}],
    ids=str,
)  # fmt: skip
def test_a_manifest_of_wrong_types_is_refused(attacked, changes):
    attacked(lambda path: signed(path, **changes))


@pytest.mark.parametrize("name", members(Path("x")))
def test_links_pipes_and_folders_in_place_of_files_are_refused(attacked, tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    for file in ("pair.safetensors", "content.json", "manifest.json", ""):

        def change(path: Path, file: str = file) -> None:
            put = members(outside)[name]
            target = path / file if file else path
            shutil.rmtree(path) if not file else target.unlink()
            put(target)

        attacked(change)
        assert (outside / "precious").read_text() == "precious"


def test_links_among_checkpoints_are_removed_and_not_followed(stopped, tmp_path):
    """An old checkpoint, and what a kill would have left behind, as links to a folder outside."""
    outside = tmp_path / "outside"
    root = tmp_path / "run"
    shutil.copytree(stopped[0], root)
    shutil.copytree(Checkpoints(root).path(6), outside)
    shutil.rmtree(Checkpoints(root).path(6))
    for name in ("step-000000000006", ".saving-step-000000000012", ".removing-step-000000000003"):
        (root / name).symlink_to(outside)
    before = {file.name: file.read_bytes() for file in outside.iterdir()}
    with safe(root, tmp_path / "canary"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResumeWarning)
        state, _ = train(root)
    assert digest(state) == stopped[1]
    assert {file.name: file.read_bytes() for file in outside.iterdir()} == before
    assert Checkpoints(root).steps() == [CUT, STEPS] and not [path for path in root.iterdir() if path.is_symlink()]


def test_where_every_checkpoint_is_an_attack_the_run_says_so_and_ends(stopped, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(stopped[0], root)
    for step in Checkpoints(root).steps():
        (Checkpoints(root).path(step) / "pair.safetensors").write_bytes(pickles(tmp_path / "canary")["torch, zip"])
        signed(Checkpoints(root).path(step))
    with safe(root, tmp_path / "canary"), pytest.raises(CheckpointError, match="no checkpoint in .* is good"):
        train(root)


@pytest.mark.parametrize("name", [*headers(), *pickles(Path("x"))])
def test_weights_that_are_an_attack_are_refused(tmp_path, name):
    pair, *_ = arm("vae")
    path = tmp_path / "weights.safetensors"
    path.write_bytes((headers() | pickles(tmp_path / "canary"))[name])
    before = {key: value.clone() for key, value in pair.state_dict().items()}
    with safe(tmp_path, tmp_path / "canary"), pytest.raises(ValueError) as caught:
        load_weights(path, pair)
    assert str(path) in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in pair.state_dict().items())


def test_weights_of_another_pair_are_refused_and_their_own_taken(tmp_path):
    pair, *_ = arm("vae")
    path = tmp_path / "weights.safetensors"
    save_weights(path, pair)
    load_weights(path, pair)
    own = safetensors.torch.load(path.read_bytes())
    first = "guide.head.bias"  # the file has no order
    wrong = {
        "more": own | {"other": torch.zeros(1)},
        "fewer": {name: tensor for name, tensor in own.items() if name != first},
        "another type": own | {first: own[first].double()},
        "another shape": own | {first: own[first][:1]},
        "not finite": own | {first: own[first] * float("nan")},
    }
    for tensors in wrong.values():
        path.write_bytes(safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        with pytest.raises(ValueError, match="does not fit the pair"):
            load_weights(path, pair)


# -- the code itself ---------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]
_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "tarfile", "jsonpickle"}
_NAMES = {"eval", "exec", "compile", "__import__", "execfile", "input"}
_CALLS = {
    ("torch", "load"), ("torch", "save"), ("torch.jit", "load"), ("torch.hub", "load"), ("torch.serialization", "load"),
    ("os", "system"), ("os", "popen"), ("shutil", "unpack_archive"), ("np", "load"), ("numpy", "load"),
    ("importlib", "import_module"), ("zipfile", "extractall"), ("jinja2", "Template"),
}  # fmt: skip
_METHODS = {"extractall", "extract", "read_pickle", "to_pickle"}
_SHELL = {"run", "Popen", "call", "check_call", "check_output"}


def dangers(source: str) -> list[str]:
    """Return what in a source could run a stranger's text: pickles, ``eval`` and its kin, shells, unpacking onto the disk."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += (
                [node.module or "", *(f"{node.module}.{name}" for name in names)]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            found += [name for name in names if name.split(".")[0] in _MODULES]
            found += [name for name in names if tuple(name.rsplit(".", 1)) in _CALLS]
        if isinstance(node, ast.Name) and node.id in _NAMES:
            found.append(node.id)
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        function = node.func
        constants = all(isinstance(value, ast.Constant) for value in node.args) and bool(node.args)
        if isinstance(function, ast.Attribute):
            call = (ast.unparse(function.value), function.attr)
            ours = bool(node.args) and ast.unparse(node.args[0]).startswith("f'unigen.")
            if call == ("importlib", "import_module") and (constants or ours):
                continue  # of a name in the source, or of a module of this package
            if call[1] == "load" and call[0] in ("np", "numpy"):
                allowed = given.get("allow_pickle")
                if isinstance(allowed, ast.Constant) and allowed.value is False:
                    continue
            if (
                call in _CALLS
                or call[1] in _METHODS
                or (call[0] == "subprocess" and call[1] in _SHELL and "shell" in given)
            ):
                found.append(".".join(call))
        if "weights_only" in given or getattr(given.get("autoescape"), "value", True) is False or "shell" in given:
            found.append(ast.unparse(node))
    return found


_REVIEWED = ("unigen/reference.py",)
"""Where the package imports by a name that is no constant: a library that a function of the same file names."""


def test_no_source_could_run_a_strangers_text():
    files = [file for folder in ("unigen", "experiments", "theory") for file in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 60
    for file in files:
        name = str(file.relative_to(ROOT))
        found = dangers(file.read_text("utf-8"))
        if name in _REVIEWED or not name.startswith("unigen"):  # theory and experiments read no file of a stranger
            found = [what for what in found if "import_module" not in what]
        assert found == [], name
    for file in (ROOT / "unigen" / "templates").iterdir():
        text = file.read_text("utf-8")
        assert "|safe" not in text.replace(" ", "") and "autoescapefalse" not in text.replace(" ", "")


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import joblib as j", "import yaml", "from torch import load",
        "torch.load(p)", "torch.load(p, weights_only=True)", "x.load(p, weights_only=False)", "np.load(p)",
        "np.load(p, allow_pickle=True)", "numpy.load(p, allow_pickle=flag)", "eval(text)", "exec(text)", "f = eval",
        "__import__(name)", "importlib.import_module(name)", "os.system(c)", "os.popen(c)", "tar.extractall(p)",
        "shutil.unpack_archive(a, b)", "subprocess.run(c, shell=True)", "run(c, shell=flag)", "pd.read_pickle(p)",
        "jinja2.Environment(autoescape=False)", "jinja2.Template(text)", "torch.hub.load(a, b)", "import tarfile",
    ],
)  # fmt: skip
def test_the_search_of_the_source_finds_what_it_looks_for(source):
    assert dangers(source)


def test_the_search_of_the_source_lets_pass_what_is_harmless():
    assert (
        dangers("model.eval()\nnp.load(p, allow_pickle=False)\nimportlib.import_module('a.b')\njson.loads(text)") == []
    )


# -- archives ----------------------------------------------------------------------------------------------------------


def listing(root: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))}


@pytest.mark.parametrize("name", archives(Path("/x")))
@pytest.mark.parametrize("file", ["mnist/train-images-idx3-ubyte.gz", "binarized_mnist/binarized_mnist_packed.npz"])
def test_a_hostile_archive_is_refused_before_anything_is_written(tmp_path, monkeypatch, name, file):
    """With another sum, it is not looked into; with the sum that is pinned, it is still not unpacked onto the disk."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    data = archives(outside)[name]
    path = tmp_path / "root" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    before = listing(tmp_path)
    nothing = tmp_path / "nothing"
    with safe(nothing, tmp_path / "canary"), pytest.raises(DataError, match="sha256"):
        load(file.split("/")[0], tmp_path / "root")
    monkeypatch.setitem(datafiles._SHA256, file, hashlib.sha256(data).hexdigest())
    with safe(nothing, tmp_path / "canary"), pytest.raises(DataError) as caught:
        load(file.split("/")[0], tmp_path / "root")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", members(Path("x")))
def test_links_pipes_and_folders_in_place_of_data_are_refused(tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    folder = tmp_path / "root" / "mnist"
    folder.mkdir(parents=True)
    members(outside)[name](folder / "train-images-idx3-ubyte.gz")
    with safe(tmp_path / "nothing", tmp_path / "canary"), pytest.raises(DataError, match="train-images"):
        load("mnist", tmp_path / "root")


def test_the_archives_are_real(tmp_path):
    """Unpacked without care, most of them write outside, make a device or a pipe, or fill the memory."""
    harmful = []
    for name, data in archives(tmp_path / "outside").items():
        folder, outside = tmp_path / name / "in", tmp_path / "outside"
        shutil.rmtree(outside, ignore_errors=True)
        folder.mkdir(parents=True), outside.mkdir()
        (outside / "precious").write_text("precious")
        before = listing(outside)
        if name.startswith("bomb"):
            assert len(data) < 250_000
            continue
        if name.startswith("zip"):
            continue  # python's own zipfile drops the dots; others do not
        with contextlib.suppress(OSError), tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(folder, filter="fully_trusted")
        special = [path for path in folder.rglob("*") if path.is_symlink() or not (path.is_file() or path.is_dir())]
        if listing(outside) != before or special:
            harmful.append(name)
    print(f"{len(harmful)}: {', '.join(harmful)}")
    assert {"parent", "absolute", "link out", "hard link out", "pipe"} <= set(harmful)


# -- the command line on a stranger's directory ------------------------------------------------------------------------

COMPARE = ("compare", "--data", "ring", "--routines", "vae", "--seeds", "0", "--hidden", "8", "--steps", "4",
           "--batch-size", "32", "--particles", "2", "--test-size", "20")  # fmt: skip


def command(*arguments: str) -> int:
    """Run ``unigen`` in this process and return its exit code; anything but ``SystemExit`` is a traceback, and fails."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("comparison") / "ring"
    assert command(*COMPARE, "--out", str(out)) == 0
    return out


@pytest.fixture
def theirs(comparison: Path, tmp_path: Path) -> Path:
    """A copy of a real comparison, of which the last run has no result yet, so that it would be resumed."""
    shutil.copytree(comparison, tmp_path / "theirs")
    (tmp_path / "theirs" / "vae" / "seed-0" / "result.json").unlink()
    return tmp_path / "theirs"


def commands(directory: Path) -> dict[str, tuple[str, ...]]:
    return {
        "compare": (*COMPARE, "--out", str(directory)),
        "sample": ("sample", str(directory), "--n", "3"),
        "report": ("report", str(directory)),
        "evaluate": ("evaluate", str(directory), "--test-size", "2"),
    }


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line of an error."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("unigen: ") and len(lines[0]) < 700 and lines[0].isprintable(), lines
    return lines[0]


def injections(canary: Path) -> dict[str, Any]:
    """Return settings that would run, write or exhaust, where a reader interpreted them."""
    shell = f"__import__('os').system('echo run > {canary}')"
    routines = [
        shell, f"iwae({shell})", f"iwae(open('{canary}','w'))", "os.system", "vae.__class__", "vae.phases", "vae()()",
        "iwae(5) or exec('x')", "iwae(lambda: 1)", "iwae([x for x in ()])", "iwae(f'{1}')", "f_gan('${oc.env:HOME}')",
        "f_gan('../../x')", "catalogue()", "Phase", "by_name('vae')", "__builtins__", "iwae(5)\nimport os", "vae;import os",
        "iwae(" + "(" * 2000, "iwae(" + "-" * 2000 + "1)", "iwae(9**9**9)", "iwae(10**10)", "iwae(100000000000)",
        "iwae(1e999)", "contrastive_divergence(1000000000)", "posterior_regularization('../../x')",
        "posterior_regularization('training')", "posterior_regularization('a.b')", "vae\0", "\ud800", "",
    ]  # fmt: skip
    return {
        **{f"routine {n}, {name.split('(')[0]!r:.30}": {"routines": [name]} for n, name in enumerate(routines)},
        "target": {"_target_": "os.system", "_args_": [f"echo run > {canary}"]},
        "class": {"__class__": "os.system"},
        "dict": {"__dict__": {"steps": 1}},
        "init": {"__init__": "x"},
        "dotted name": {"data.__class__": "x"},
        "a misspelt name": {"stepz": 4},
        "data that is a module": {"data": "os"},
        "data that is a path": {"data": "../../etc/passwd"},
        "networks that are a class": {"networks": "torch.nn.Linear"},
        "engine that is a module": {"engine": "os"},
        "engine that is a path": {"engine": "../x"},
        "pair that is a class": {"pair": "unigen.pair.Pair"},
        "activation that is code": {"activation": shell},
        "likelihood that is code": {"likelihood": shell},
        "steps that are a text": {"steps": "4"},
        "steps that are a truth": {"steps": True},
        "steps that are no number": {"steps": float("nan")},
        "steps beyond all": {"steps": 10**30},
        "steps and epochs": {"epochs": 3},
        "widths that are a text": {"hidden": "8"},
        "widths of widths": {"hidden": [[8]]},
        "widths beyond all": {"hidden": [10**9, 10**9]},
        "widths too large together": {"hidden": [60_000, 60_000]},
        "a thousand widths": {"hidden": [8] * 1000},
        "a million seeds": {"seeds": list(range(10**6))},
        "negative seeds": {"seeds": [-1]},
        "routines that are no list": {"routines": {"vae": 1}},
        "a thousand routines": {"routines": ["vae"] * 1000},
        "a long text": {"data": "x" * 10**5},
        "components beyond all": {"components": 2**60},
        "particles beyond all": {"particles": 2**60},
        "null": {"batch_size": None},
    }


@pytest.mark.parametrize("name", injections(Path("x")))
def test_an_injected_setting_is_refused(theirs, tmp_path, name, capsys):
    config = json.loads((theirs / "config.json").read_text())
    config["settings"] |= injections(tmp_path / "canary")[name]
    (theirs / "config.json").write_text(json.dumps(config))
    before = listing(tmp_path)
    for which in ("sample", "compare", "evaluate"):
        with safe(tmp_path / "nothing", tmp_path / "canary"):
            assert command(*commands(theirs)[which]) == 2
        said(capsys)
        assert listing(tmp_path) == before


def test_a_configuration_that_announces_a_million_runs_is_refused(theirs, tmp_path, capsys):
    """Two lists of a thousand entries, in a few kilobytes."""
    config = json.loads((theirs / "config.json").read_text())
    config["seeds"] = list(range(1000))
    config["routines"] = [{"slug": f"r{n}", "key": f"r{n}"} for n in range(1000)]
    (theirs / "config.json").write_text(json.dumps(config))
    with safe(tmp_path / "nothing", tmp_path / "canary"):
        assert command(*commands(theirs)["report"]) == 2
    assert "announces 1000000 runs" in said(capsys)


@pytest.mark.parametrize("name", trees())
def test_a_configuration_that_is_none_is_refused(theirs, tmp_path, name, capsys):
    (theirs / "config.json").write_bytes(trees()[name].encode(errors="surrogateescape"))
    before = listing(tmp_path)
    for which in ("sample", "compare"):
        with safe(tmp_path / "nothing", tmp_path / "canary"):
            assert command(*commands(theirs)[which]) == 2
        said(capsys)
        assert listing(tmp_path) == before
    with safe(theirs, tmp_path / "canary"):  # a report shows what is there, or says why it cannot
        code = command(*commands(theirs)["report"])
    assert code in (0, 2)
    if code:
        said(capsys)
    after = listing(tmp_path)
    changed = {path for path in after if after[path] != before.get(path)}
    assert changed <= {str(theirs / "report.html")} and after.keys() == before.keys()
    assert (
        b"polluted" not in (theirs / "report.html").read_bytes()
        and b"oc.env" not in (theirs / "report.html").read_bytes()
    )


@pytest.mark.parametrize(
    "file", ["vae/seed-0/config.json", "vae/seed-0/result.json", "vae/seed-0/metrics.jsonl", "lock"]
)
def test_other_texts_that_are_not_what_they_should_be_stop_nothing(theirs, tmp_path, file, capsys):
    """The run is resumed to its end, or the report shows it as what it is."""
    for name, text in trees().items():
        if name == "ten megabytes":
            continue
        more = {"deep mappings": ["compare"], "class": ["compare"], "huge integer": ["compare", "sample"]}
        for which in ["report", *more.get(name, [])]:
            (theirs / file).write_bytes(text.encode(errors="surrogateescape"))
            with safe(theirs, tmp_path / "canary"):
                assert command(*commands(theirs)[which]) == 0, (name, which)
    capsys.readouterr()


@pytest.mark.parametrize("file", ["weights.safetensors", "checkpoints/step-000000000004/pair.safetensors"])
def test_code_in_place_of_weights_does_not_run_on_the_command_line(theirs, tmp_path, file, capsys):
    path, canary = theirs / "vae" / "seed-0" / file, tmp_path / "canary"
    for name, data in pickles(canary).items():
        path.write_bytes(data)
        if "checkpoints" in file:
            if name not in ("reduce", "torch, zip", "safetensors before, pickle behind"):
                continue
            signed(path.parent)
        with safe(theirs, canary):
            code = command(*commands(theirs)["compare" if "checkpoints" in file else "sample"])
        if "checkpoints" in file:
            assert code == 1 and "no checkpoint in" in capsys.readouterr().err
        else:
            assert code == 2 and "is not a readable safetensors file" in said(capsys)
    capsys.readouterr()


@pytest.mark.parametrize("name", members(Path("x")))
@pytest.mark.parametrize(
    "file",
    ["lock", "config.json", "report.html", "samples-vae.png", "samples-vae.safetensors", "new", "vae", "vae/seed-0",
     "vae/seed-0/metrics.jsonl", "vae/seed-0/weights.safetensors", "vae/seed-0/checkpoints", "vae/seed-0/.x.tmp"],
)  # fmt: skip
def test_links_and_pipes_in_a_comparison_are_refused_and_hard_links_left_alone(theirs, tmp_path, file, name, capsys):
    outside, path = tmp_path / "outside", theirs / file
    outside.mkdir()
    (outside / "precious").write_text("precious")
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    members(outside)[name](path)
    before = listing(outside)
    for which in ("sample", "report", "compare"):
        if which == "compare" and name in ("hard link", "folder"):
            continue  # it goes on, or fails on a folder: next test
        with safe(theirs, tmp_path / "canary"):
            code = command(*commands(theirs)[which])
        if name not in ("hard link", "folder"):
            assert code == 2 and "files and folders only" in said(capsys)
        assert code in (0, 1, 2) and listing(outside) == before
        capsys.readouterr()


@pytest.mark.parametrize("file", ["lock", "vae/seed-0/metrics.jsonl", "vae/seed-0/weights.safetensors"])
def test_a_hard_link_is_not_written_through(theirs, tmp_path, file, capsys):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    (theirs / file).unlink()
    members(outside)["hard link"](theirs / file)
    with safe(theirs, tmp_path / "canary"):
        assert command(*commands(theirs)["compare"]) == 0
    assert (outside / "precious").read_text() == "precious"


# -- names of runs and directories -------------------------------------------------------------------------------------


@given(st.text(max_size=80) | st.from_regex(r"[./\\~\0a-z]{1,30}", fullmatch=True))
@settings(max_examples=200, deadline=None, derandomize=True)
@example("..")
@example("../../x")
@example("\0")
@example("CON.")
@example("")
def test_every_routine_has_a_directory_below_its_comparisons(name):
    slug = slug_of(name)
    assert re.fullmatch(r"[a-z0-9_][a-z0-9_.-]*", slug) and ".." not in (slug, slug[:2])
    assert (Path("/root") / slug).resolve().parent == Path("/root")


OUT = {
    "a NUL": "a\0b", "300 characters": "x" * 300, "5000 characters": "x/" * 2500, "no text": "\udcff", "half a character": "\ud800",
    "below a file": "file/x", "a file": "file", "a link that leads nowhere": "dangling", "below one": "dangling/x",
    "a link to itself": "loop", "below that": "loop/x", "a device": "/dev/null", "below a device": "/dev/null/x",
    "a process": "/proc/self/x", "full": "full", "a link to a full folder": "tofull",
}  # fmt: skip


@pytest.mark.parametrize("name", OUT)
@pytest.mark.parametrize("which", ["compare", "train", "sample", "report"])
def test_a_directory_that_cannot_be_is_refused(comparison, tmp_path, monkeypatch, name, which, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("precious")
    (tmp_path / "tofull").symlink_to("full")
    before = listing(tmp_path)
    arguments = {
        "compare": (*COMPARE, "--out", OUT[name]),
        "train": ("train", "--data", "ring", "--routine", "vae", "--steps", "2", "--out", OUT[name]),
        "sample": ("sample", str(comparison), "--out", OUT[name]) if "full" not in name else ("sample", OUT[name]),
        "report": ("report", OUT[name]),
    }[which]
    if which == "sample" and name in ("a file", "a link that leads nowhere", "a link to itself", "a device"):
        arguments = ("sample", OUT[name])
    with safe(tmp_path / "nothing", tmp_path / "canary"):
        assert command(*arguments) == 2
    said(capsys)
    assert listing(tmp_path) == before


def test_whatever_the_directory_is_called_nothing_is_written_beside_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "work" / "here").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    monkeypatch.chdir(tmp_path / "work" / "here")
    short = [*COMPARE[:-6], "--steps", "1", "--evaluations", "0", "--test-size", "20"]
    for out, root in (
        ("../../up", "up"), ("a b; echo", "work/here/a b; echo"), ("-", "work/here/-"), (str(tmp_path / "link"), "elsewhere"),
        ("~x", "work/here/~x"), ("$HOME", "work/here/$HOME"), ("\u202ex", "work/here/\u202ex"),
    ):  # fmt: skip
        with safe(tmp_path / root, tmp_path / "canary"):
            assert command(*short, f"--out={out}") == 0
        assert (tmp_path / root / "report.html").is_file()
    capsys.readouterr()
