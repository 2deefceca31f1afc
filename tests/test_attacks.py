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
from resuming import arm, digest

from unigen import datafiles
from unigen.checkpoints import CheckpointError, Checkpoints
from unigen.data import DataError, load
from unigen.resume import ResumeWarning
from unigen.runs import load_weights, save_weights
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
    for data in pickles(tmp_path / "canary").values():
        for right in (False, True) if file != "manifest.json" else (False,):

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
    first = next(iter(own))
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
            if call == ("importlib", "import_module") and constants:
                continue  # of a name in the source
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


_REVIEWED = ("unigen/training.py",)
"""Where the package imports by a name that is no constant: an engine, by a name of the registry."""


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
