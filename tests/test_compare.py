"""The command: a comparison end to end, what all runs share, and every wrong setting refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import scipy.stats
import torch
from safetensors.torch import load_file

from unigen.arms import _budget
from unigen.cli import main, routines_markdown
from unigen.data import spread
from unigen.evaluate import Protocol, evaluate, features_of, log_likelihood, sample
from unigen.evaluate.sample_metrics import leading_distance
from unigen.networks import fingerprint
from unigen.planning import ON_BITS, build_pair, plan, psi_networks
from unigen.routines import by_name, catalogue
from unigen.runs import load_weights
from unigen.settings import Settings
from unigen.stored import read_comparison

README = Path(__file__).parents[1] / "README.md"
TINY = ["--hidden", "16", "--steps", "4", "--batch-size", "32", "--particles", "3", "--test-size", "40"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return stopped.value.code or 0


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """A comparison of one routine of every pair family on the embedded digits, two seeds."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    names = ["vae", "nvil", "gan", "aavae", "em", "contrastive_divergence"]
    code = run("compare", "--routines", *names, "--seeds", "0", "3", "--layers", "8", "--out", str(out), *TINY)
    assert code == 0
    return out


def results(out: Path) -> dict[tuple[str, int], dict]:
    found = [json.loads(path.read_text()) for path in sorted(out.glob("*/seed-*/result.json"))]
    return {(result["routine"], result["seed"]): result for result in found}


def test_every_run_is_complete_and_says_what_its_likelihood_is(comparison):
    found = results(comparison)
    assert len(found) == 12
    assert {result["status"] for result in found.values()} == {"complete"}
    kinds = {name: found[name, 0]["log_likelihood"]["kind"] for name, _ in found}
    assert kinds == {
        "vae": "bound",
        "nvil": "bound",
        "aavae": "bound",
        "gan": "none",
        "em": "exact",
        "contrastive_divergence": "exact",
    }
    assert found["vae", 0]["log_likelihood"]["how"] == "importance-weighted bound, K = 3, 40 test data"
    assert found["gan", 0]["log_likelihood"]["value"] is None
    figures = {figure["name"]: figure for figure in found["gan", 0]["figures"]}
    assert figures["classes covered"]["units"] == "of 10" and figures["FID"]["kind"] == "distance"
    (refusal,) = found["gan", 0]["refusals"]
    assert refusal["name"] == "log p(x)" and "unigen evaluate DIR" in refusal["why"]


def test_the_figures_of_a_run_are_those_of_the_evaluator(comparison):
    planned = plan(read_comparison(comparison)[0])
    for arm in planned.arms:
        folder = comparison / arm.slug / "seed-3"

        def no(constant):
            raise ValueError(f"{constant} is no JSON")

        result = json.loads((folder / "result.json").read_text(), parse_constant=no)
        pair = build_pair(planned, arm, 3)
        load_weights(folder / "weights.safetensors", pair)
        protocol = Protocol(test=40, particles=3, samples=1000)
        found = evaluate(pair, planned.dataset, protocol, quick=True, seed=2).as_json()
        stored = [figure for figure in result["figures"] if figure.get("features") != "own classifier"]
        assert stored == found["figures"] and result["refusals"] == found["refusals"]
        likelihood = result["log_likelihood"]
        assert set(likelihood) >= {"value", "standard_error", "kind", "how", "units"}
        if likelihood["kind"] == "none":
            assert not (folder / "per_datum.json").exists() and likelihood["interval"] is None
            continue
        per_datum = numpy.array(json.loads((folder / "per_datum.json").read_text())["log_likelihood"])
        assert len(per_datum) == 40 and abs(per_datum.mean() - likelihood["value"]) < 1e-5
        low, high = scipy.stats.t.interval(0.95, 39, likelihood["value"], per_datum.std(ddof=1) / 40**0.5)
        assert numpy.allclose(likelihood["interval"], [low, high], atol=1e-4)


@pytest.mark.parametrize(("batch", "sizes"), [(16, {16}), (17, {17, 5}), (1, {1}), (1296, {1296})])
def test_a_last_batch_of_one_row_is_left_out(batch, sizes):
    planned = plan(Settings(data="digits", routines=("vae",), batch_size=batch, hidden=(4,), seeds=(0,)))
    loader, _ = _budget(planned, planned.arms[0], 0)
    assert {len(loader.batch(0, index)) for index in range(len(loader))} == sizes


READING = [
    (name, family)
    for name, routine in catalogue().items()
    for family in routine.pairs
    if psi_networks(routine.phases)
    and (name, family) != ("posterior_regularization", "adversarial")  # without implicit=True
]


@pytest.mark.parametrize(("routine", "family"), READING)
def test_every_pair_has_the_networks_that_a_routine_reads(routine, family):
    small = {"hidden": (8,), "layers": (6, 4), "components": 3, "latent": 3, "seeds": (0,)}
    plan(Settings(data="moons" if family == "flow" else "digits", routines=(routine,), pair=family, **small))


def test_the_files_of_a_run_are_there_and_readable(comparison):
    page = (comparison / "report.html").read_text()
    assert "contrastive_divergence" in page and "<script" not in page
    folder = comparison / "vae" / "seed-3"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (*_, evaluation) = (line["evaluation"] for line in lines if "evaluation" in line)
    assert evaluation["kind"] == "bound" and evaluation["of"] == "MMD² of 250 samples, pixels"
    planned = plan(read_comparison(comparison)[0])
    pair = build_pair(planned, planned.arms[0], 3)
    load_weights(folder / "weights.safetensors", pair)
    held_out = spread(planned.dataset.validation, 250)  # the last evaluation is of the final weights
    made = sample(pair, len(held_out), held_out, seed=1).x
    again = leading_distance(held_out, made, features_of(planned.dataset))
    assert evaluation["distance"] == pytest.approx(again.value, abs=1e-12)
    assert evaluation["log_likelihood"] == pytest.approx(log_likelihood(pair, held_out, 3, seed=1).value, abs=1e-9)
    machine = (comparison / "contrastive_divergence" / "seed-3" / "metrics.jsonl").read_text()
    assert '"log_likelihood"' in machine and '"distance"' not in machine  # its samples take a long chain
    implicit = [json.loads(line) for line in (comparison / "gan/seed-3/metrics.jsonl").read_text().splitlines()]
    assert any("distance" in line.get("evaluation", {}) for line in implicit)
    assert {line["step"] for line in lines if "values" in line} == {1, 2, 3, 4}
    weights = load_file(folder / "weights.safetensors")
    assert any(name.startswith("model.generator") for name in weights)
    assert (folder / "samples.png").stat().st_size > 500
    assert (folder / "reconstructions.png").is_file()
    assert not list(comparison.rglob("*.tmp"))


def test_all_runs_of_a_seed_start_from_the_same_weights():
    planned = plan(Settings(routines=("vae", "wake_sleep", "gan", "wgan_gp"), hidden=(16,), out="never-written"))
    starts = {}
    for arm in planned.arms:
        for seed in (0, 1):
            pair = build_pair(planned, arm, seed)
            starts.setdefault(seed, set()).add((fingerprint(pair.model.generator), fingerprint(pair.guide.trunk)))
    assert len(starts[0]) == len(starts[1]) == 1
    assert starts[0] != starts[1]


def test_the_printed_hashes_are_those_of_the_weights(comparison):
    config = json.loads((comparison / "config.json").read_text())
    weights = config["hashes"]["weights"]
    assert len({value for key, value in weights.items() if key.startswith("0")}) == 4
    assert config["hashes"]["order"]["0"] != config["hashes"]["order"]["3"]


def test_a_run_is_a_pure_function_of_its_seed(comparison, tmp_path):
    out = tmp_path / "again"
    assert run("train", "--routine", "nvil", "--seed", "3", "--layers", "8", "--out", str(out), *TINY) == 0
    one, two = (load_file(folder / "nvil" / "seed-3" / "weights.safetensors") for folder in (comparison, out))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_sample_and_report_work_on_a_finished_comparison(comparison, tmp_path, capsys):
    out = tmp_path / "made"
    assert run("sample", str(comparison), "--routine", "gan", "--n", "7", "--out", str(out)) == 0
    assert load_file(f"{out}.safetensors")["x"].shape == (7, 64)
    (comparison / "report.html").unlink()
    assert run("report", str(comparison)) == 0
    assert (comparison / "report.html").is_file()
    assert "implicit: none" in capsys.readouterr().out


def test_a_density_reports_the_pacgan_protocol(tmp_path):
    out = tmp_path / "ring"
    assert (
        run(
            "compare",
            "--data",
            "ring",
            "--routines",
            "gan",
            "maximum_likelihood",
            "--seeds",
            "1",
            "--out",
            str(out),
            *TINY,
        )
        == 0
    )
    found = results(out)
    figures = {figure["name"]: figure for figure in found["gan", 1]["figures"]}
    assert figures["modes captured"]["units"] == "of 8"
    assert 0 <= figures["high-quality share"]["value"] <= 1 and figures["high-quality share"]["n"] == 2500
    assert figures["MMD²"]["n_fake"] == figures["MMD²"]["n_real"] == 1000
    assert found["maximum_likelihood", 1]["log_likelihood"]["kind"] == "exact"


# -- engines -----------------------------------------------------------------------------------------------------------

FEW = "--data ring --routines vae --hidden 8 --batch-size 64 --particles 5 --test-size 200 --evaluations 0".split()
FEW += "--steps 60 --learning-rate 0.02".split()


def likelihoods(out: Path, seeds: int, *more: str) -> numpy.ndarray:
    """Return each seed's log-likelihood of test data by a small comparison."""
    assert run("compare", *FEW, "--seeds", *map(str, range(seeds)), "--out", str(out), *more) == 0
    return numpy.array([results(out)["vae", seed]["log_likelihood"]["value"] for seed in range(seeds)])


def apart(found: numpy.ndarray, expected: numpy.ndarray) -> float:
    """Return the p-value of a paired t-test: runs of a seed share weights and order of data, and differ in their noise."""
    return float(scipy.stats.ttest_rel(found, expected).pvalue)


@pytest.mark.parametrize(("engine", "seeds"), [("xla", 4), pytest.param("compiled", 8, marks=pytest.mark.slow)])
def test_the_table_by_another_engine_is_that_of_eager_within_seed_noise(tmp_path, engine, seeds):
    """Equal at 1e-4, which is the rate of false alarms; that half a nat (a fifth for 8 seeds) is seen is asserted."""
    expected = likelihoods(tmp_path / "eager", seeds)
    found = likelihoods(tmp_path / engine, seeds, "--engine", engine)
    assert apart(found, expected) > 1e-4
    assert not numpy.array_equal(found, expected)  # another noise: the other engine has run
    seen = 0.5 if seeds == 4 else 0.2
    assert apart(found + seen, expected) < 1e-4 > apart(found - seen, expected)


WRONG = [
    (["--data", "digit"], 2, "did you mean 'digits'|digits"),
    (["--routines", "vea"], 2, "did you mean 'vae'"),
    (["--routines", "iwae(five)"], 2, "cannot read routine"),
    (["--routines", "em(closed_form=false)"], 2, "cannot read routine"),
    (["--routines", "iwae(1, 2, 3, 4)"], 2, "too many positional"),
    (["--routines", "vae", "vae"], 2, "twice"),
    (["--routines", "f_gan('pearsn')"], 2, "pearson"),
    (["--networks", "conf"], 2, "did you mean 'conv'"),
    (["--pair", "sigmoid"], 2, "did you mean 'sigmoid_belief'"),
    (["--pair", "flow", "--routines", "vae"], 2, "it runs on latent"),
    (["--likelihood", "bernouli"], 2, "did you mean 'bernoulli'"),
    (["--likelihood", "discretized_logistic"], 2, "grey levels"),
    (
        ["--likelihood", "normal", "--routines", "vae", "nvil"],
        2,
        "nvil on .* has no --likelihood normal, only bernoulli",
    ),
    (
        ["--binarization", "none", "--likelihood", "discretized_logistic", "--routines", "em"],
        2,
        "only bernoulli and normal",
    ),
    (["--activation", "thanh", "--routines", "vae"], 2, "tanh"),
    (["--data", "moons", "--routines", "maximum_likelihood", "--hidden"], 2, "at least one hidden layer"),
    (["--steps", "0"], 2, "--steps must be positive"),
    (["--steps", "5", "--epochs", "2"], 2, "one budget"),
    (["--seconds", "-1"], 2, "positive"),
    (["--seeds", "1", "1"], 2, "different numbers"),
    (["--batch-size", "-3"], 2, "--batch-size must be positive"),
    (["--learning-rate", "50"], 2, "--learning-rate must be above 0, and at most 10; got 50"),
    (["--final-learning-rate", "0"], 2, "--final-learning-rate must be above 0, and at most 10; got 0"),
    (["--engine", "eagre"], 2, "did you mean 'eager'"),
    (["--device", "cdua"], 2, "did you mean 'cuda'"),
    (["--device", "cuda:99"], 2, "not there"),
    (["--binarization", "dynamc"], 2, "dynamic"),
    (["--routines", "maximum_likelihood"], 2, "continuous"),
    (["--data", "ring", "--routines", "contrastive_divergence"], 2, "binary"),
    (["--data", "mnist", "--data-root", "nowhere"], 3, "nowhere"),
    (["--layers", "0", "--routines", "nvil"], 2, "--layers must be positive"),
    (["--stepz", "3"], 2, "steps"),
    (["--seeds", "x"], 2, "seeds"),
]


@pytest.mark.parametrize(
    ("settings", "missing", "densities"),
    [
        ({}, set(), set()),
        ({"binarization": "none"}, {"persistent_contrastive_divergence"}, {"em"}),
        (
            {"likelihood": "normal"},
            {"persistent_contrastive_divergence"},
            {"vae", "iwae(5)", "wake_sleep", "reweighted_wake_sleep(5)", "aavae", "em"},
        ),
        (
            {"binarization": "none", "likelihood": "discretized_logistic"},
            {"persistent_contrastive_divergence", "em"},
            set(),
        ),
    ],
)
def test_the_routines_of_a_comparison_that_names_none_suit_its_data(settings, missing, densities):
    planned = plan(Settings(hidden=(16,), out="never-written", **settings))
    assert {arm.name for arm in planned.arms} == set(planned.settings.routines) == set(ON_BITS) - missing
    measures = {arm.name: planned.measure(arm) for arm in planned.arms}
    assert {name for name, measure in measures.items() if measure == "density"} == densities
    assert {name for name, measure in measures.items() if not measure} == {"gan", "wgan_gp", "mmd"}


@pytest.mark.parametrize(("arguments", "code", "words"), WRONG, ids=[" ".join(case[0]) for case in WRONG])
def test_a_wrong_setting_is_one_sentence_and_nothing_is_written(arguments, code, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("compare", *arguments) == code
    printed = capsys.readouterr()
    said = printed.err + printed.out
    assert pytest.importorskip("re").search(words, said), said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_wrong_directories_are_refused(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("precious")
    assert run("compare", "--out", str(tmp_path / "full")) == 2
    assert "not empty" in capsys.readouterr().err
    assert run("sample", str(tmp_path / "full")) == 2
    assert run("report", str(tmp_path / "full")) == 2
    assert run("list", "rutines") == 2
    assert "did you mean 'routines'" in capsys.readouterr().err
    assert (tmp_path / "full" / "something").read_text() == "precious"


def test_list_names_every_routine(capsys):
    assert run("list", "routines") == 0
    printed = capsys.readouterr().out
    assert all(name in printed and routine.citation in printed for name, routine in catalogue().items())


def test_psi_networks_are_read_off_the_phases():
    assert psi_networks(by_name("nvil").phases) == ["baseline"]
    assert psi_networks(by_name("aavae").phases) == ["critic"]
    assert psi_networks(by_name("posterior_regularization").phases) == ["constraint"]
    assert psi_networks(by_name("vae").phases) == []


def test_the_readme_holds_the_generated_table_of_routines():
    assert routines_markdown() in README.read_text(encoding="utf-8")
