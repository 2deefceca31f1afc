"""Checkpoints: whole or not at all, every corruption detected, and the last good one intact whatever happens."""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import math
import os
import random
from pathlib import Path

import pytest
import torch
from disks import content, corrupted, fill, flip, listing, missing_and_swapped, same, truncate, zero_page

from unigen.checkpoints import CheckpointError, Checkpoints, ContentError
from unigen.durable import append, write_whole

ROOT = Path(__file__).parents[1]


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
    with pytest.raises(ContentError, match=r"step 2.*pair: model.weight is not finite in 1 of its 600 entries"):
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


@pytest.mark.parametrize("spoil", [flip, truncate, zero_page])
def test_300_corruptions_of_a_file_are_all_detected_and_the_earlier_checkpoint_is_taken(tmp_path, spoil):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    tally = corrupted(spoil, 300, random.Random(seed), tmp_path)
    assert (tally.good, tally.of, tally.wrong) == (300, 300, [])


def test_every_missing_swapped_or_foreign_file_is_detected(tmp_path):
    tally = missing_and_swapped(tmp_path)
    assert tally.good == tally.of == 16 and not tally.wrong


@pytest.mark.parametrize("spoil", ["missing", "swapped"])
def test_the_reason_of_a_rejection_is_told(tmp_path, spoil):
    kept = fill(tmp_path, 1, 2)
    if spoil == "missing":
        (kept.path(2) / "pair.safetensors").unlink()
        assert "pair.safetensors is missing" in kept.load().rejected["step-000000000002"]
    else:
        kept.path(2).rename(tmp_path / "aside")
        kept.path(1).rename(kept.path(2))
        (tmp_path / "aside").rename(kept.path(1))
        with pytest.raises(CheckpointError, match="manifest is that of step 1"):
            kept.load()


def test_another_runs_checkpoint_is_rejected_by_the_name_of_what_differs(tmp_path):
    theirs = fill(tmp_path, 2, run={"routine": "vae", "seed": 1})
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


# -- disks: their refusals and the kills during a save are figures of tests/stress.py -----------------------------------


def test_a_directory_that_vanished_is_a_clear_error_and_is_not_made_anew(tmp_path):
    kept = fill(tmp_path / "run", 1)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"\d+ bytes\) could not be written to .*run.*No such file"):
        kept.save(2, content(2))
    with pytest.raises(CheckpointError, match="cannot be read"):
        kept.load()
    assert not (tmp_path / "run").exists()
    assert same(Checkpoints(tmp_path / "elsewhere").load().content, content(1))


@pytest.mark.parametrize("function", ["write", "fsync", "mkdir", "rename"])
def test_an_error_of_the_disk_names_path_bytes_and_reason_and_leaves_nothing(tmp_path, monkeypatch, function):
    kept = fill(tmp_path, 1, 2)
    before = listing(tmp_path)

    def failing(*arguments, **keywords):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, function, failing)
    with pytest.raises(
        CheckpointError, match=r"step 3 \(\d{4,} bytes\) could not be written to .*: Input/output error"
    ):
        kept.save(3, content(3))
    monkeypatch.undo()
    assert listing(tmp_path) == before
    kept.save(3, content(3))
    assert kept.load().step == 3


def test_a_system_that_takes_few_bytes_at_a_time_still_gets_all(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:777]))
    kept = fill(tmp_path, 1)
    write_whole(tmp_path / "file", b"x" * 5000)
    append(tmp_path / "file", b"y" * 3000)
    monkeypatch.undo()
    assert same(kept.load().content, content(1))
    assert (tmp_path / "file").read_bytes() == b"x" * 5000 + b"y" * 3000


# -- a finished run keeps the last -------------------------------------------------------------------------------------


def test_a_finished_run_keeps_its_last_checkpoint_alone(tmp_path):
    kept = fill(tmp_path, 1, 2, 3, keep=3)
    kept.keep_last()
    assert kept.steps() == [3] and same(kept.load().content, content(3))
    kept.keep_last()
    kept.save(4, content(4))
    assert kept.steps() == [3, 4]
    Checkpoints(tmp_path / "none").keep_last()


def test_where_the_last_checkpoint_is_damaged_the_older_ones_stay(tmp_path):
    kept = fill(tmp_path, 1, 2)
    file = kept.path(2) / "pair.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="the older checkpoints of .*step-000000000002 stay: pair.safetensors"):
        kept.keep_last()
    assert kept.steps() == [1, 2] and kept.load().step == 1
