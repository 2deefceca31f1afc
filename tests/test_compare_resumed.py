"""A comparison that was stopped, for one reason or another, and is started again by the same command.

That it writes the same files after kills and signals at any instant is a figure of tests/stress.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from jax.errors import JaxRuntimeError
from kills import written

from unigen import routines
from unigen.checkpoints import CheckpointError, ContentError
from unigen.cli import main
from unigen.compare import compare
from unigen.describe import describe
from unigen.durable import write_json
from unigen.engines.checks import check
from unigen.failures import outside
from unigen.lock import locked
from unigen.networks import fingerprint
from unigen.pair import PairError
from unigen.planning import Arm, build_pair, plan
from unigen.results import read_runs
from unigen.runs import keep_metrics_before
from unigen.settings import Settings
from unigen.training import TrainingError, fit

TINY = "--hidden 16 --steps 30 --batch-size 32 --particles 3 --test-size 40 --seeds 0".split()


def start(out: Path, *arguments: str) -> int:
    """Run the command in this process and return its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--data", "ring", "--routines", "vae", *TINY, "--out", str(out), *arguments])
    return stopped.value.code or 0


def result_of(out: Path) -> dict:
    return json.loads((out / "vae" / "seed-0" / "result.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The files of a comparison that nothing happened to."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    assert start(out) == 0
    return out


def test_a_run_has_its_whole_configuration_and_one_checkpoint(undisturbed):
    folder = undisturbed / "vae" / "seed-0"
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["steps"] == 30 and config["settings"]["hidden"] == [16] and config["seed"] == 0
    assert config["routine"]["key"] == "vae" and "Adam" in config["routine"]["optimizer"]
    assert {"python", "torch", "jax", "pyro-ppl", "numpyro", "unigen"} <= set(config["versions"])
    assert config["threads"] == torch.get_num_threads() and config["device"] == "cpu"
    assert re.fullmatch("[0-9a-f]{64}", config["code"]) and re.fullmatch("[0-9a-f]{64}", config["data"]["fingerprint"])
    pair = build_pair(plan(Settings(**SETTINGS)), Arm("vae", "vae", routines.vae, "latent"), 0)
    assert config["weights"] == fingerprint(pair)
    (last,) = (folder / "checkpoints").glob("step-*")
    environment = json.loads((last / "content.json").read_text())["environment"]
    assert environment == {name: config[name] for name in environment}


SETTINGS = {
    "data": "ring",
    "routines": ("vae",),
    "seeds": (0,),
    "hidden": (16,),
    "steps": 30,
    "batch_size": 32,
    "out": "never-written",
}

NO_MEMORY = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


OUTSIDE = {
    "a full disk": OSError(28, "No space left on device", "metrics.jsonl"),
    "a checkpoint that cannot be written": CheckpointError("the checkpoint of step 9 (5 bytes) could not be written"),
    "memory of python": MemoryError(),
    "memory of torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "memory of the CPU": NO_MEMORY,
    "memory of the CPU, for a phase": caused(PairError("phase 1 cannot run on this data"), NO_MEMORY),
    "memory of torch, for a site": PairError("site 'z': CUDA out of memory. Tried to allocate 20.00 MiB."),
    "memory of XLA": JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."),
}
OWN = {
    "numbers that are not finite": TrainingError("phase '1 climb elbo' has value nan at step 3; try"),
    "a state that no checkpoint may hold": ContentError("no checkpoint of step 9 was written: pair: x is not finite"),
    "a wrong pairing": PairError("site 'z' is sampled twice"),
    "a division": FloatingPointError("a division by zero"),
}


def failing(error: Exception, steps: int):
    """Return ``fit`` with a callback that raises at a step."""

    def fitted(*arguments, callbacks, **keywords):
        def stop(state, history):
            if state.step == steps:
                raise error

        return fit(*arguments, callbacks=[*callbacks, stop], **keywords)

    return fitted


@pytest.mark.parametrize("reason", OUTSIDE)
def test_a_run_that_something_outside_stopped_goes_on_at_the_next_start(
    tmp_path, undisturbed, monkeypatch, capsys, reason
):
    error, out = OUTSIDE[reason], tmp_path / "out"
    assert outside(error)
    monkeypatch.setattr("unigen.arms.fit", failing(error, 11))
    assert start(out) == 1
    assert "vae, seed 0 failed: " in (said := capsys.readouterr().err) and "the same command tries it again" in said
    found = result_of(out)
    words = "out of memory" if "memory" in reason else str(getattr(error, "strerror", None) or error)
    assert found["status"] == "stopped" and words in found["error"] and words in said
    assert [run.status for run in read_runs(out)] == ["incomplete"]
    monkeypatch.undo()
    assert start(out) == 0
    assert result_of(out)["notes"] == ["resumed at step 10"]
    assert written(out) == written(undisturbed)


def test_memory_that_a_program_is_refused_is_no_fault_of_the_pair():
    pair = build_pair(plan(Settings(**SETTINGS)), Arm("vae", "vae", routines.vae, "latent"), 0)

    def refused(x):
        raise NO_MEMORY

    pair.guide.forward = refused
    with pytest.raises(RuntimeError, match="allocate memory") as raised:
        check(routines.vae, pair, torch.zeros(3, 2))
    assert raised.value is NO_MEMORY


@pytest.mark.parametrize("reason", OWN)
def test_a_run_that_failed_by_itself_is_recorded_and_not_tried_again(
    tmp_path, undisturbed, monkeypatch, capsys, reason
):
    error, out = OWN[reason], tmp_path / "out"
    assert not outside(error)
    monkeypatch.setattr("unigen.arms.fit", failing(error, 11))
    assert start(out) == 1
    monkeypatch.setattr("unigen.arms.fit", None)  # nobody may train it now
    capsys.readouterr()
    assert start(out) == 1
    said = capsys.readouterr().err
    assert str(error) in said and f"it is not tried again unless you delete {out}/vae/seed-0" in said
    assert result_of(out)["status"] == "failed" and [run.status for run in read_runs(out)] == ["failed"]
    monkeypatch.undo()
    shutil.rmtree(out / "vae" / "seed-0")
    assert start(out) == 0
    assert written(out) == written(undisturbed)


def test_a_fault_of_the_program_is_not_taken_for_one_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("unigen.arms.fit", failing(TypeError("a mistake"), 11))
    with pytest.raises(TypeError, match="a mistake"):
        main(["compare", "--data", "ring", "--routines", "vae", *TINY, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "vae" / "seed-0" / "result.json").exists()


def test_a_failure_that_may_be_one_of_the_program_leaves_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr("unigen.arms.fit", failing(RuntimeError("mat1 and mat2 cannot be multiplied"), 11))
    assert start(tmp_path / "out") == 1 and result_of(tmp_path / "out")["status"] == "failed"
    words = (tmp_path / "out" / "vae" / "seed-0" / "error.txt").read_text()
    assert words.startswith("Traceback") and words.endswith("RuntimeError: mat1 and mat2 cannot be multiplied\n")


@pytest.mark.parametrize("place", ["evaluate", "save_samples", "save_weights"])
def test_a_run_that_was_stopped_after_its_training_is_only_evaluated(tmp_path, undisturbed, monkeypatch, place):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"unigen.compare.{place}", full)
    out = tmp_path / "out"
    assert start(out) == 1 and result_of(out)["status"] == "stopped"
    monkeypatch.undo()
    assert start(out) == 0
    assert result_of(out)["notes"] == ["resumed at step 30"]
    assert written(out) == written(undisturbed)


def test_where_no_checkpoint_is_good_the_run_is_not_begun_anew_silently(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr("unigen.arms.fit", failing(OSError(5, "Input/output error"), 11))
    assert start(out) == 1
    monkeypatch.undo()
    for file in out.rglob("pair.safetensors"):
        file.write_bytes(b"")
    capsys.readouterr()
    assert start(out) == 1
    assert "no checkpoint in " in (said := capsys.readouterr().err) and "the same command tries it again" in said


def test_a_full_disk_that_takes_no_result_either_is_one_sentence(tmp_path, monkeypatch, capsys):
    def full(handle, data):
        raise OSError(28, "No space left on device")

    out = tmp_path / "out"
    planned = plan(Settings(**SETTINGS | {"out": str(out)}))
    described = describe(planned)
    out.mkdir()
    write_json(out / "config.json", described)
    monkeypatch.setattr(os, "write", full)
    (result,) = compare(planned, described, progress=False)
    monkeypatch.undo()
    assert result["status"] == "stopped"
    assert re.search(r"\d+ bytes could not be written to .*config.json: No space left on device", result["error"])
    assert not list(out.rglob("result.json")) and not list(out.rglob("*.tmp"))


def test_a_finished_comparison_trains_and_evaluates_nothing(undisturbed, tmp_path, monkeypatch):
    shutil.copytree(undisturbed, tmp_path / "out")
    monkeypatch.setattr("unigen.arms.fit", None)
    for name in ("evaluate", "reconstruct", "train_classifier", "build_pair"):
        monkeypatch.setattr(f"unigen.compare.{name}", None)
    assert start(tmp_path / "out") == 0


def test_a_finished_run_whose_result_is_deleted_is_evaluated_from_its_one_checkpoint(undisturbed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    for name in ("result.json", "weights.safetensors", "samples.png"):
        (out / "vae" / "seed-0" / name).unlink()
    assert start(out) == 0
    assert written(out) == written(undisturbed) and result_of(out)["notes"] == ["resumed at step 30"]


def test_what_a_killed_process_was_writing_is_removed(undisturbed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    left = out / "vae" / "seed-0" / ".weights.safetensors.123.tmp"
    left.write_bytes(b"half")
    assert start(out) == 0
    assert not left.exists()


def test_a_comparison_that_was_killed_while_it_wrote_its_configuration_begins_anew(undisturbed, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "lock").touch()
    (out / ".config.json.123.tmp").write_bytes(b"half")
    assert start(out) == 0 and written(out) == written(undisturbed)
    assert not list(out.rglob(".*.tmp"))
    other = tmp_path / "other"
    other.mkdir()
    (other / ".notes.tmp").write_text("precious")
    assert (
        start(other) == 2 and "not empty" in capsys.readouterr().err and list(other.iterdir()) == [other / ".notes.tmp"]
    )


def test_another_comparison_or_another_process_in_the_directory_is_refused(undisturbed, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert start(out) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before
    capsys.readouterr()
    assert start(out, "--batch-size", "31") == 2
    assert "holds another comparison, whose batch-size is 32 and not 31" in capsys.readouterr().err
    with locked(out):
        assert start(out) == 2
    assert f"is in use by process {os.getpid()}" in capsys.readouterr().err


def test_metrics_from_a_step_on_and_a_torn_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    keep_metrics_before(path, 3)
    path.write_text('{"step": 2}\n{"step": 3}\n{"step": 4}\n{"st')
    keep_metrics_before(path, 3)
    assert path.read_text() == '{"step": 2}\n'


def test_a_comparison_asked_to_end_whose_run_cannot_save_ends(tmp_path, monkeypatch):
    """The failure is written down, and no further run is started."""
    started = []

    def fails(planned, runs, progress):
        started.append(runs)
        os.kill(os.getpid(), signal.SIGTERM)
        raise OSError(28, "No space left on device", "step-10")

    monkeypatch.setattr("unigen.compare.train", fails)
    assert start(tmp_path / "two", "--seeds", "0", "1") == 143 and len(started) == 1
    assert "No space left" in result_of(tmp_path / "two")["error"]
    monkeypatch.undo()
    assert start(tmp_path / "two", "--seeds", "0", "1") == 0 and result_of(tmp_path / "two")["status"] == "complete"
