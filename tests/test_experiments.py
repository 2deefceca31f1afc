"""Every experiment script, run in a reduced size."""

from __future__ import annotations

import math
from pathlib import Path

import posterior_regularization
import pytest
import rule_distillation
from failures import __main__ as failures
from published import command_line

SCRIPTS = {"rule_distillation": rule_distillation, "posterior_regularization": posterior_regularization}


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        *(("rule_distillation", arguments, sentence) for arguments, sentence in (
            ("--strength -1", "--strength is a number from 0; got -1.0"),
            ("--strength inf", "--strength is a number from 0; got inf"),
            ("--bound 2", "--bound is a number from 0 to 1; got 2.0"),
            ("--decay 2", "--decay is a number from 0 to 1; got 2.0"),
            ("--epochs 0", "--epochs is a number from 1 to 1e+09; got 0"),
            ("--labels 0", "--labels is a number from 1 to 121; got 0"),
            ("--labels 5000", "--labels is a number from 1 to 121; got 5000"),
        )),
        ("posterior_regularization", "--target 0.8", "a target lies between 0.25 and 0.75"),
        ("posterior_regularization", "--batch-size 100000000", "--batch-size is a number from 1 to "),
        *((name, arguments, sentence) for name in SCRIPTS for arguments, sentence in (
            ("--steps 0", "--steps is a number from 1 to 1e+12; got 0"),
            ("--steps -3", "got -3"),
            ("--batch-size 0", "--batch-size is a number from 1 to "),
            ("--seeds 3 -1", "--seeds is a number from 0 to "),
            ("--out file/there/x.json", "is below "),
            ("--out folder", "is a folder; name a file"),
            ("--out file/x.json", "goes through a file"),
            ("--out " + 300 * "x", "of 300 bytes"),
        )),
    ],
)  # fmt: skip
def test_a_wrong_option_is_refused_before_any_training(name, arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SCRIPTS[name], "run", None)
    Path("file").touch()
    Path("folder").mkdir()
    module = SCRIPTS[name]
    code = command_line(name, module.Settings, "", lambda settings, _: module.main(settings) and 0, arguments.split())
    printed = capsys.readouterr()
    assert code == 2 and sentence in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_folder_of_the_numbers_is_made(name, tmp_path, monkeypatch):
    monkeypatch.setattr(SCRIPTS[name], "run", lambda *arguments: (0.5, 0.25))
    out = tmp_path / "new" / "x.json"
    for _ in range(2):  # a file that is there is written anew
        SCRIPTS[name].main(SCRIPTS[name].Settings(seeds=(0,), out=str(out)))
        assert out.read_text().startswith("{")
        out.write_text("old")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"out": Path("file")}, "--out file is or goes through a file"),
        ({"out": Path("file/below")}, "below file, which is a file"),
        ({"out": Path("/proc/x")}, "--out /proc/x cannot be made"),
        ({"only": ()}, "--only wants at least one failure; valid: parallel_lines"),
    ],
)
def test_figures_without_a_place_are_refused_before_any_run(options, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(failures, "ProcessPoolExecutor", None)
    Path("file").touch()
    assert failures.main(failures.Options(**options)) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_a_fixed_constraint_moves_its_statistic_to_the_target():
    found = posterior_regularization.main(posterior_regularization.Settings(steps=400, seeds=(0,)))
    assert abs(found["share without"] - 0.5) < 0.05
    assert (
        abs(found["share with"] - 0.7) < 0.05
    )  # 50,000 samples: three standard errors are 0.006, the rest is training
    # at the fixed point the cost is 0.087 nats; after 400 steps neither flow has converged
    assert math.isfinite(found["cost in nats"])


def test_the_strength_solves_the_fixed_point_equation():
    strength = posterior_regularization.strength
    for share in (0.2, 0.5, 0.6):
        for target in (share, share + 0.1):
            alpha = strength(target, share)
            tilted = target * math.exp(alpha) / (target * math.exp(alpha) + 1 - target)
            assert (share + tilted) / 2 == pytest.approx(target, abs=1e-12)
    with pytest.raises(ValueError, match="between 0.25 and 0.75"):
        strength(0.8, 0.5)
