"""The scripts of published tables in a reduced size: end to end, stopped and resumed, refused; and what their tables say."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import discrete_latents
import importance_weighting
import pytest
import torch
from published import Claim, Published, Record, Study, command_line, grid
from published.tables import above, claims_table, difference, results_table

from unigen.data import spread
from unigen.settings import Settings

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
TINY = [
    "--data",
    "digits",
    "--seeds",
    "0",
    "1",
    "--epochs",
    "1",
    "--engine",
    "eager",
    "--particles",
    "3",
    "--test-size",
    "20",
]


def discrete(folder: Path, *extra: str) -> int:
    own = ["--seeds", "0", "1", "--networks", "6", "5-4", "--routines", "wake_sleep", "vimco(2)", "--batch-size", "400"]
    places = ["--directory", str(folder / "runs"), "--out", str(folder / "out"), "--no-progress"]
    arguments = [*TINY, *own, *places, *extra]
    return command_line("discrete_latents", discrete_latents.Options, "", discrete_latents.main, arguments)


def weighting(folder: Path, *extra: str) -> int:
    own = ["--seeds", "0", "--k", "1", "2", "--batch-size", "400"]
    places = ["--directory", str(folder / "runs"), "--out", str(folder / "out"), "--no-progress"]
    arguments = [*TINY, *own, *places, *extra]
    return command_line("importance_weighting", importance_weighting.Options, "", importance_weighting.main, arguments)


def runs_of(folder: Path, name: str) -> list[dict]:
    stored = json.loads((folder / "out" / f"{name}.json").read_text())
    return [{key: value for key, value in run.items() if key != "seconds"} for run in stored["runs"]]


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uncut")
    assert discrete(folder) == 0
    return folder


def test_the_table_of_discrete_latents(uncut, capsys):
    runs = runs_of(uncut, "discrete_latents")
    cells = {(run["study"], run["routine"], run["seed"]) for run in runs}
    assert cells == {(s, r, seed) for s in ("6", "5-4") for r in ("wake_sleep", "vimco(2)") for seed in (0, 1)}
    assert all(20 < run["nll"] < 64 and run["steps"] == 4 for run in runs)  # 64 fair bits are 44.4 nats
    assert (uncut / "out" / "discrete_latents.png").read_bytes()[:4] == b"\x89PNG"
    text = (uncut / "out" / "discrete_latents.md").read_text()
    mean = sum(run["nll"] for run in runs if run["study"] == "6" and run["routine"] == "wake_sleep") / 2
    assert f"| 6, 1 epoch | `wake_sleep` | 2 | {mean:.2f} ±" in text and "from `wake_sleep`" in text
    before = (uncut / "runs" / "6" / "vimco-2" / "seed-0" / "weights.safetensors").stat().st_mtime_ns
    assert discrete(uncut) == 0 and runs_of(uncut, "discrete_latents") == runs  # nothing is done again
    assert (uncut / "runs" / "6" / "vimco-2" / "seed-0" / "weights.safetensors").stat().st_mtime_ns == before
    assert text.split("\n\n", 1)[1] in capsys.readouterr().out


def test_recorded_runs_are_kept(uncut, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    table = tmp_path / "out" / "discrete_latents.json"
    whole = json.loads((uncut / "out" / "discrete_latents.json").read_text())
    kept = [run for run in whole["runs"] if (run["study"], run["routine"], run["seed"]) != ("5-4", "vimco(2)", 1)]
    for run in kept:
        run["nll"], run["code"] = 1.5, "earlier"
    table.write_text(json.dumps(whole | {"runs": kept}))
    assert discrete(tmp_path, "--recorded") == 0
    (trained,) = (tmp_path / "runs").glob("*/*/seed-*")
    assert trained.relative_to(tmp_path / "runs").parts == ("5-4", "vimco-2", "seed-1")
    by_run = {(run["study"], run["routine"], run["seed"]): run["nll"] for run in runs_of(tmp_path, "discrete_latents")}
    new = by_run.pop(("5-4", "vimco(2)", 1))
    assert by_run == {(run["study"], run["routine"], run["seed"]): 1.5 for run in kept}
    assert new == next(
        run["nll"] for run in whole["runs"] if (run["study"], run["seed"]) == ("5-4", 1) and "v" in run["routine"]
    )
    assert "of 2 states of the code" in (tmp_path / "out" / "discrete_latents.md").read_text()
    elsewhere = ("--directory", str(tmp_path / "elsewhere"))
    assert (
        discrete(tmp_path, "--recorded", "--no-train", "--seeds", "0", *elsewhere) == 0
    )  # a narrower table loses no run
    assert len(runs_of(tmp_path, "discrete_latents")) == len(whole["runs"])
    before = table.read_text()
    assert (
        discrete(tmp_path, "--recorded", "--epochs", "2") == 2 and "have --epochs 1, not 2" in capsys.readouterr().err
    )
    assert table.read_text() == before
    table.write_text("[]")
    assert discrete(tmp_path, "--recorded") == 2 and "holds no table" in capsys.readouterr().err


def test_seeds_that_train_together_are_the_runs_alone(tmp_path):
    own = ("--engine", "xla", "--networks", "6")
    assert discrete(tmp_path / "alone", *own) == 0 and discrete(tmp_path / "together", *own, "--together") == 0

    def by_run(folder):
        return {(run["routine"], run["seed"]): run["nll"] for run in runs_of(tmp_path / folder, "discrete_latents")}

    assert len(by_run("alone")) == 4 and by_run("together") == pytest.approx(by_run("alone"), rel=1e-4)


def test_a_script_that_was_stopped_goes_on(uncut, tmp_path, monkeypatch, capsys):
    compare, calls = grid.compare, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 3:  # of four: two seeds of two networks
            raise KeyboardInterrupt
        return compare(*arguments)

    monkeypatch.setattr(grid, "compare", stopped)
    assert discrete(tmp_path) == 130
    assert "goes on where it was" in capsys.readouterr().err
    half = runs_of(tmp_path, "discrete_latents")
    assert {run["seed"] for run in half} == {0} and len(half) == 4  # complete for the first seed
    assert discrete(tmp_path, "--no-train") == 0 and len(calls) == 3
    assert (
        runs_of(tmp_path, "discrete_latents") == half and "| 6, 1 epoch | `wake_sleep` | 1 |" in capsys.readouterr().out
    )
    assert discrete(tmp_path) == 0
    assert runs_of(tmp_path, "discrete_latents") == runs_of(uncut, "discrete_latents")


def test_another_examination_is_made_anew(uncut, tmp_path):
    first = runs_of(uncut, "discrete_latents")
    assert discrete(uncut, "--out", str(tmp_path / "out"), "--particles", "50") == 0
    again = runs_of(tmp_path, "discrete_latents")
    assert all(other["nll"] != run["nll"] for other, run in zip(again, first, strict=True))
    assert sum(run["nll"] for run in again) < sum(run["nll"] for run in first)  # 50 particles against 3


def test_the_table_of_importance_weighting(tmp_path):
    assert weighting(tmp_path) == 0
    runs = runs_of(tmp_path, "importance_weighting")
    cells = {(s, r) for s in ("layers-1", "layers-2") for r in ("vae", "vae(2)", "iwae(2)")}
    assert {(run["study"], run["routine"]) for run in runs} == cells and len(runs) == 6
    assert {tuple(run["active"]) for run in runs} == {("z",), ("z1", "z2")}
    text = (tmp_path / "out" / "importance_weighting.md").read_text()
    assert "active units" in text and "from `vae(2)`" in text and "| 2 layers, 1 epoch |" in text
    assert "| `iwae(2)` | `vae(2)` | 1 layer, 1 epoch |" in text


@pytest.mark.parametrize(
    ("script", "extra", "said"),
    [
        (discrete, ["--epohcs", "3"], "did you mean '--epochs'"),
        (discrete, ["--epochs", "many"], "--epochs wants an integer; got 'many'"),
        (discrete, ["--epochs", "0"], "--epochs must be positive"),
        (discrete, ["--networks", "200x200"], "joined by dashes, as 200-200; got '200x200'"),
        (discrete, ["--networks", "5-0"], "got '5-0'"),
        (discrete, ["--routines", "vimko(5)"], "did you mean 'vimco'"),
        (discrete, ["--seeds", "1", "1"], "--seeds wants different numbers"),
        (discrete, ["--particles", "0"], "--particles is at least 1"),
        (discrete, ["--engine", "xlaa"], "did you mean 'xla'"),
        (weighting, ["--layers", "3"], "--layers wants 1 or 2 stochastic layers; got 3"),
        (weighting, ["--k", "0", "5"], "--k is at least 1; got 0"),
        (weighting, ["--routines", "iwea(5)"], "did you mean 'iwae'"),
        (weighting, ["--routines", "wake_sleep"], "--routines wants vae and iwae, with settings; got 'wake_sleep'"),
        (weighting, ["--learning-rate", "nan"], "learning-rate must be above 0, and at most 10; got nan"),
        (weighting, ["--device", "cude"], "did you mean 'cuda'"),
    ],
)
def test_a_wrong_option_is_refused_in_one_sentence(script, extra, said, tmp_path, capsys):
    assert script(tmp_path, *extra) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_directory_of_other_settings_is_refused_by_the_name_of_its_option(uncut, capsys):
    assert discrete(uncut, "--epochs", "2") == 2
    assert f"--directory: {uncut / 'runs' / '6'} holds another comparison, whose epochs is 1" in capsys.readouterr().err


def test_the_commands_of_the_readme_do_not_share_a_directory():
    lines = [line for line in README.splitlines() if re.match(r"python experiments/\w+\.py .*", line)]
    places: dict[str, set[str]] = {}
    for script in ("discrete_latents", "importance_weighting"):
        own = [line for line in lines if f"/{script}.py" in line]
        places[script] = {(re.findall("--directory (\\S+)", line) or [f"runs/{script}"])[0] for line in own}
        assert len(places[script]) == len(own) > 1
    assert not places["discrete_latents"] & places["importance_weighting"]


def test_a_routine_is_known_by_its_name_however_it_is_written_and_is_trained_once(uncut, capsys):
    written = ["--routines", "wake_sleep", "vimco(k=2)", "vimco( 2 )", "--no-train"]
    capsys.readouterr()
    assert discrete(uncut, *written) == 0
    said = capsys.readouterr().out
    assert "| 6, 1 epoch | `vimco(2)` | 2 |" in said and "k=2" not in said.split("\n\n", 1)[1]
    options = importance_weighting.Options(layers=(2, 2, 1), k=(1, 5, 5, 1))
    studies = importance_weighting.studies_of(options)
    assert [study.name for study in studies] == ["layers-2", "layers-1"]
    assert studies[0].settings.routines == ("vae", "vae(5)", "iwae(5)")
    options = importance_weighting.Options(routines=("iwae(5)", "iwae(k=5)"))
    assert importance_weighting.routines_of(options) == ("iwae(5)",)


def test_results_that_cannot_be_written_are_refused_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert discrete(tmp_path, "--out", str(tmp_path / "file" / "results")) == 2
    assert "goes through a file" in capsys.readouterr().err and not (tmp_path / "runs").exists()


# -- what the tables say -----------------------------------------------------------------------------------------------


def study(**published: Published) -> Study:
    return Study("s", "title", Settings(routines=("a", "b")), published)


def runs(**values: list[float]) -> list[Record]:
    return [
        Record("s", name, seed, nll, 0.5, 10, 1.0) for name, given in values.items() for seed, nll in enumerate(given)
    ]


def test_differences_are_paired_by_seed():
    records = runs(a=[100.0, 110.0, 120.0], b=[99.0, 108.0, 119.0])
    mean, error, half = difference(records, ("s", "a"), ("s", "b"))
    assert mean == pytest.approx(4 / 3) and error == pytest.approx(1 / 3)  # unpaired it would be 8
    assert half == pytest.approx(4.302653 * error, rel=1e-6)
    assert difference(records[:5], ("s", "a"), ("s", "b"))[0] == 1.5  # of the seeds that both have
    assert difference(records, ("s", "a"), ("s", "none")) is None


@pytest.mark.parametrize(
    ("better", "verdict"),
    [
        ([9.0, 9.1, 8.9], "holds"),
        ([11.0, 11.1, 10.9], "reversed"),
        ([9.0, 10.5, 9.9], "not told apart"),
        ([9.0], "not told apart"),
    ],
)
def test_a_verdict_is_the_interval_of_the_paired_difference(better, verdict):
    records = runs(a=better, b=[10.0] * len(better))
    (row,) = claims_table([study()], records, [Claim(("s", "a"), ("s", "b"))])[2:]
    assert row.endswith(f"| {verdict} |")


def test_what_was_not_read_in_print_is_unverified():
    published = {"a": Published(9.0, "somewhere"), "b": Published(7.5, "elsewhere", verified=False)}
    lines = results_table([study(**published)], runs(a=[10.0, 12.0], b=[9.0, 10.0]), lambda name: "a")
    assert "| 9 | +2.00 ± 1.00 |" in lines[2] and "| 7.5 (unverified) | +2.00 ± 0.50 |" in lines[3]
    assert "−1.50 ± 0.50 from `a`" in lines[3]
    (row,) = claims_table([study(**published)], runs(a=[10.0], b=[9.0]), [Claim(("s", "b"), ("s", "a"))])[2:]
    assert "| −1.50 (unverified) |" in row


def test_a_difference_from_print_has_the_error_over_test_rows_where_only_some_were_examined():
    records = [dataclasses.replace(run, standard_error=2.4) for run in runs(a=[10.0, 12.0])]
    (line,) = results_table([study(a=Published(9.0, "somewhere"))], records, lambda name: "a", some_rows=True)[2:3]
    assert "| 11.00 ± 1.00 | 9 | +2.00 ± 2.60 |" in line


def test_cells_far_above_print_are_named():
    published = {"a": Published(9.0, "somewhere"), "b": Published(7.0, "elsewhere")}
    (line,) = above([study(**published)], runs(a=[12.0], b=[11.0]))
    assert line == "At most 3 nats above print: 1 of 2 cells. Not: `b` on title (+4.00)."
    asked = study(**published)
    (line,) = above([asked], runs(a=[11.0]))
    assert line == "At most 3 nats above print: 1 of 1 cells. Without runs: `b` on title."
    (row,) = claims_table([asked], runs(a=[11.0]), [Claim(("s", "b"), ("s", "a"))])[2:]
    assert row.endswith("|  | no runs in common |")
    asked.settings.routines = ("a",)
    assert not claims_table([asked], runs(a=[11.0]), [Claim(("s", "b"), ("s", "a"))])[2:]


def test_claims_follow_print():
    options = discrete_latents.Options()
    claims = discrete_latents.claims_of(discrete_latents.studies_of(options))
    assert (
        Claim(("200", "nvil"), ("200", "wake_sleep")) in claims
        and Claim(("200-200", "nvil"), ("200", "nvil")) in claims
    )
    assert Claim(("200", "wake_sleep"), ("200", "nvil")) not in claims
    claims = importance_weighting.claims_of(importance_weighting.studies_of(importance_weighting.Options()))
    assert Claim(("layers-1", "iwae(50)"), ("layers-1", "vae(50)")) in claims
    assert Claim(("layers-2", "vae(5)"), ("layers-1", "vae(5)")) in claims
    routines = ("vae", "iwae(5)", "vae(50)", "iwae(50)", "iwae(50, 'doubly_reparameterized', draws=5)")
    studies = importance_weighting.studies_of(importance_weighting.Options(layers=(2,), routines=routines))
    doubly = ("layers-2", "iwae(50, doubly_reparameterized, 5)")
    assert studies[0].published[doubly[1]].value == 82.9
    claims = importance_weighting.claims_of(studies)
    assert [claim.worse[1] for claim in claims if claim.better == doubly] == ["vae(50)", "iwae(5)"]
    for table in (discrete_latents.PUBLISHED, importance_weighting.PUBLISHED):
        assert all(value.source and 80 < value.value < 170 for cells in table.values() for value in cells.values())


def test_rows_are_spread_over_a_sorted_set():
    x = torch.arange(100.0)[:, None]
    assert spread(x, 10)[:, 0].tolist() == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert len(spread(x, 0)) == len(spread(x, 1000)) == 100 and len(spread(x, 33).unique()) == 33
