"""Checkpoints: whole or not at all, every corruption detected, and the last good one intact whatever happens."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unigen.checkpoints import CRASH_POINTS, CheckpointError, Checkpoints

ROOT = Path(__file__).parents[1]


def content(seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    return {
        "pair": {"model.weight": draw(30, 20), "model.bias": draw(20).double(), "count": torch.tensor(seed)},
        "optimizers": {"theta": {"lr": 0.1, "betas": (0.9, 0.999), "moments": {"model.weight": draw(30, 20)}}},
        "random": {"torch": torch.randint(0, 256, (2000,), generator=generator).to(torch.uint8)},
        "step": seed,
        "history": [[1 / 3, -1e-300], [], None, True, "π"],
    }


def same(left, right) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return left == right and type(left) is type(right)


def fill(directory: Path, *steps: int, **settings) -> Checkpoints:
    kept = Checkpoints(directory, **settings)
    for step in steps:
        kept.save(step, content(step))
    return kept


def listing(directory: Path) -> dict[str, str]:
    """Return the hash of every file below a directory."""
    files = (file for file in sorted(directory.rglob("*")) if file.is_file())
    return {str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_what_is_loaded_is_what_was_saved_bit_for_bit(tmp_path):
    kept = fill(tmp_path / "new" / "one", 3)
    found = kept.load()
    assert (found.step, found.rejected) == (3, {})
    assert same(found.content, content(3))
    assert sorted(file.name for file in found.path.iterdir()) == [
        "content.json",
        "manifest.json",
        "optimizers.safetensors",
        "pair.safetensors",
        "random.safetensors",
    ]


def test_an_empty_directory_has_no_checkpoint(tmp_path):
    assert Checkpoints(tmp_path).load() is None


def test_special_numbers_and_strided_or_shared_tensors_come_back(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tree = {
        "pair": {
            "transposed": base.T,
            "row": base[1],
            "again": base[1],
            "scalar": torch.tensor(-0.0),
            "empty": torch.zeros(0, 3),
            "subnormal": torch.tensor([5e-324, 2**-1074], dtype=torch.float64),
            "half": torch.tensor([1.5], dtype=torch.bfloat16),
            "mask": torch.tensor([True, False]),
        }
    }
    kept = Checkpoints(tmp_path)
    kept.save(1, tree)
    back = kept.load().content["pair"]
    assert all(same(tree["pair"][name], back[name]) for name in back) and list(back) == list(tree["pair"])
    assert math.copysign(1, back["scalar"].item()) == -1


def test_a_checkpoint_is_a_copy_and_so_is_what_is_loaded(tmp_path):
    live = content(1)
    kept = Checkpoints(tmp_path)
    kept.save(1, live)
    live["pair"]["model.weight"].zero_()
    first, second = kept.load(), kept.load()
    assert same(first.content, content(1))
    first.content["pair"]["model.weight"].zero_()
    assert same(second.content, content(1)) and same(kept.load().content, content(1))


def test_two_or_more_are_kept_and_the_oldest_go(tmp_path):
    assert fill(tmp_path / "a", 1, 2, 3, 10).steps() == [3, 10]
    assert fill(tmp_path / "b", 1, 2, 3, 10, keep=3).steps() == [2, 3, 10]
    with pytest.raises(ValueError, match="at least two"):
        Checkpoints(tmp_path, keep=1)


def test_nothing_is_removed_before_the_next_one_reads_back(tmp_path, monkeypatch):
    kept = fill(tmp_path, 1, 2)
    read = Checkpoints._read

    def spoiled(self, step):
        (self.path(step) / "pair.safetensors").write_bytes(b"")
        return read(self, step)

    monkeypatch.setattr(Checkpoints, "_read", spoiled)
    with pytest.raises(CheckpointError, match="does not read back"):
        kept.save(3, content(3))
    monkeypatch.undo()
    found = kept.load()
    assert found.step == 2 and list(found.rejected) == ["step-000000000003"] and kept.steps() == [1, 2, 3]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_a_tensor_that_is_not_finite_is_refused_and_nothing_is_written(tmp_path, value, dtype):
    kept = fill(tmp_path, 1)
    before = listing(tmp_path)
    bad = content(2)
    bad["pair"]["model.weight"] = bad["pair"]["model.weight"].to(dtype)
    bad["pair"]["model.weight"][3, 4] = value
    with pytest.raises(CheckpointError, match=r"step 2.*pair: model.weight is not finite in 1 of its 600 entries"):
        kept.save(2, bad)
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"history": {"a": [1.0, math.nan]}}, "history: a/1 is nan"),
        ({"history": {"a": object()}}, "history: a is a object"),
        ({"history": {1: 2.0}}, "the key 1"),
        ({"history": {"$tensor": 2.0}}, "the key '\\$tensor'"),
        ({"../up": {"x": torch.zeros(1)}}, "no name of a part"),
        ({"pair": {"x": torch.eye(2).to_sparse()}}, "dense"),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_refused_by_name(tmp_path, part, words):
    kept = Checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        kept.save(1, part)
    assert listing(tmp_path) == {}


# -- corruption --------------------------------------------------------------------------------------------------------


def flip(data: bytearray, chance: random.Random) -> bytearray:
    at = chance.randrange(8 * len(data))
    data[at // 8] ^= 1 << at % 8
    return data


def truncate(data: bytearray, chance: random.Random) -> bytearray:
    return data[: chance.randrange(len(data))]


def zero_page(data: bytearray, chance: random.Random) -> bytearray:
    start = 4096 * chance.randrange(-(-len(data) // 4096))
    length = min(4096, len(data) - start)
    data[start : start + length] = bytes(length)
    return data


@pytest.mark.parametrize("spoil", [flip, truncate, zero_page])
def test_300_corruptions_of_a_file_are_all_detected_and_the_earlier_checkpoint_is_taken(tmp_path, spoil):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    kept = fill(tmp_path, 1, 2)
    files = sorted(kept.path(2).iterdir())
    sizes = [file.stat().st_size for file in files]
    wanted = content(1)
    detected = 0
    for trial in range(300):
        file = files[trial % len(files)] if trial < 50 else chance.choices(files, sizes)[0]
        good = file.read_bytes()
        spoilt = bytes(spoil(bytearray(good), chance))
        assert spoilt != good
        file.write_bytes(spoilt)
        found = kept.load()
        detected += found.step == 1 and list(found.rejected) == ["step-000000000002"] and same(found.content, wanted)
        file.write_bytes(good)
    assert detected == 300
    assert kept.load().step == 2


def test_every_missing_file_is_detected(tmp_path):
    kept = fill(tmp_path, 1, 2)
    for file in sorted(kept.path(2).iterdir()):
        good = file.read_bytes()
        file.unlink()
        found = kept.load()
        assert found.step == 1 and f"{file.name} is missing" in found.rejected["step-000000000002"]
        file.write_bytes(good)


def test_every_file_swapped_with_another_steps_is_detected(tmp_path):
    kept = fill(tmp_path, 1, 2, 3, keep=3)
    for file in sorted(kept.path(3).iterdir()):
        other = kept.path(2) / file.name
        mine, theirs = file.read_bytes(), other.read_bytes()
        file.write_bytes(theirs)
        other.write_bytes(mine)
        found = kept.load()
        assert found.step == 1 and list(found.rejected) == ["step-000000000003", "step-000000000002"]
        file.write_bytes(mine)
        other.write_bytes(theirs)
    kept.path(3).rename(tmp_path / "aside")
    kept.path(2).rename(kept.path(3))
    (tmp_path / "aside").rename(kept.path(2))
    assert "manifest is that of step 2" in kept.load().rejected["step-000000000003"]


def test_another_runs_checkpoint_is_rejected_by_the_name_of_what_differs(tmp_path):
    mine = fill(tmp_path / "mine", 1, run={"routine": "vae", "seed": 0})
    theirs = fill(tmp_path / "theirs", 2, run={"routine": "vae", "seed": 1})
    shutil.copytree(theirs.path(2), mine.path(2))
    found = mine.load()
    assert found.step == 1 and "whose seed is 1 and not 0" in found.rejected["step-000000000002"]
    with pytest.raises(CheckpointError, match="no checkpoint in .* is good .*whose seed is 1 and not 0"):
        Checkpoints(theirs.directory, run={"routine": "vae", "seed": 0}).load()


def test_where_no_checkpoint_is_good_nothing_starts_over_silently(tmp_path):
    kept = fill(tmp_path, 1, 2)
    for step in (1, 2):
        (kept.path(step) / "pair.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="step-000000000002: pair.safetensors has 0 bytes.*name a new directory"):
        kept.load()


def test_a_rejected_checkpoint_is_set_aside_when_training_passes_it_again(tmp_path):
    kept = fill(tmp_path, 1, 2)
    (kept.path(2) / "content.json").write_bytes(b"")
    kept.save(2, content(2))
    assert same(kept.load().content, content(2)) and not kept.load().rejected
    assert sorted(entry.name for entry in tmp_path.iterdir())[0] == "rejected-step-000000000002-1"


@pytest.mark.parametrize(
    "files",
    [
        {"../../x": {"bytes": 0, "sha256": ""}},
        {"/etc/passwd": {"bytes": 0, "sha256": ""}},
        {"weights.pkl": {"bytes": 0, "sha256": ""}},
        {},
        [],
        None,
    ],
)
def test_a_hostile_manifest_with_a_right_sum_is_rejected(tmp_path, files):
    def dump(tree):
        return json.dumps(tree, separators=(",", ":")).encode()

    kept = fill(tmp_path, 1, 2)
    manifest = {"format": 1, "step": 2, "run": {}, "files": files}
    signed = {"manifest": manifest, "sha256": hashlib.sha256(dump(manifest)).hexdigest()}
    (kept.path(2) / "manifest.json").write_bytes(dump(signed))
    found = kept.load()
    assert found.step == 1 and list(found.rejected) == ["step-000000000002"]
    assert "damaged" not in found.rejected["step-000000000002"]  # the sum was right: something else refused it


def test_a_link_in_place_of_a_file_is_rejected(tmp_path):
    kept = fill(tmp_path, 1, 2)
    file = kept.path(2) / "pair.safetensors"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert kept.load().step == 1


def test_no_code_of_the_package_reads_or_writes_a_pickle():
    files = sorted((ROOT / "unigen").rglob("*.py"))
    assert ROOT / "unigen" / "checkpoints.py" in files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"} & set(names), file
            if isinstance(node, ast.Attribute) and node.attr in ("load", "save") and isinstance(node.value, ast.Name):
                assert node.value.id != "torch", f"{file}:{node.lineno}"


# -- kills and disks ---------------------------------------------------------------------------------------------------

CHILD = """
import os, resource, shutil, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_checkpoints import content, fill, listing
from unigen.checkpoints import CRASH_POINTS, CheckpointError, Checkpoints

def child(work):
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def refused(kept, step):
    try:
        kept.save(step, content(step))
    except CheckpointError as error:
        os.write(1, f"{{error}}\\n".encode())
        return 1
    return 0
"""


def run(script: str, tmp_path: Path) -> str:
    """Run a script that forks its victims in one fresh process, and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    code = CHILD.format(tests=str(ROOT / "tests")) + script
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


KILLS = """
good, whole = 0, fill(Path("whole"), 1, 2)
for point in CRASH_POINTS:
    for trial in range(10):
        where = Path(f"{point}-{trial}")
        shutil.copytree(whole.directory, where)
        kept = Checkpoints(where)
        def save():
            os.environ["UNIGEN_CRASH_AT"] = point
            kept.save(3, content(3))
            return 0
        assert child(save) == 137, point
        stale = sorted(entry.name for entry in where.iterdir() if entry.name.startswith("."))
        complete = point in ("after-rename", "during-prune")
        assert bool(stale) == (point not in ("before-temporary", "after-rename")), (point, stale)
        found = kept.load()
        assert found.step == (3 if complete else 2) and not found.rejected, (point, found)
        assert len(kept.steps()) >= 2
        assert not [entry for entry in where.iterdir() if entry.name.startswith(".")], point
        kept.save(4, content(4))
        assert kept.load().step == 4 and len(kept.steps()) == 2
        good += 1
print(good)
"""


def test_a_kill_at_every_point_of_a_save_leaves_the_newest_complete_checkpoint(tmp_path):
    assert int(run(KILLS, tmp_path)) == 10 * len(CRASH_POINTS)


FULL = """
kept = fill(Path("run"), 1, 2)
before = listing(Path("run"))
count = 0
largest = max(file.stat().st_size for file in kept.path(2).iterdir())
for limit in [1, largest - 1] + [largest * k // 10 for k in range(1, 9)]:
    def save():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return refused(kept, 3)
    assert child(save) == 1, limit
    assert listing(Path("run")) == before
    found = kept.load()
    assert found.step == 2 and not found.rejected
    count += 1
print(count)
"""


def test_a_full_disk_is_a_clear_error_and_the_earlier_checkpoints_stay(tmp_path):
    *words, count = run(FULL, tmp_path).splitlines()
    assert int(count) == 10 == len(words)
    assert all("bytes) could not be written to run/step-000000000003: File too large" in line for line in words)


def test_a_directory_without_permission_is_a_clear_error(tmp_path):
    script = """
kept = fill(Path("run"), 1, 2)
before = listing(Path("run"))
for file in [Path("run"), *Path("run").rglob("*")]:
    file.chmod(0o555)
def save():
    if os.geteuid() == 0:
        os.setuid(65534)
    return refused(kept, 3)
assert child(save) == 1
assert listing(Path("run")) == before and kept.load().step == 2
for file in [Path("run"), *Path("run").iterdir()]:
    file.chmod(0o755)
"""
    assert "bytes) could not be written to run/step-000000000003: Permission denied" in run(script, tmp_path)


def test_a_directory_that_vanished_is_a_clear_error_and_is_not_made_anew(tmp_path):
    kept = fill(tmp_path / "run", 1)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"\d+ bytes\) could not be written to .*run.*No such file"):
        kept.save(2, content(2))
    with pytest.raises(CheckpointError, match="cannot be read"):
        kept.load()
    assert not (tmp_path / "run").exists()
    assert same(Checkpoints(tmp_path / "elsewhere").load().content, content(1))
