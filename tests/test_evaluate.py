"""The examination of a pair: which figures of which kind it gives, that it changes nothing, and the command over directories."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch
from gaussians import shifted, shifted_posterior
from pyro.nn import PyroModule

import unigen.evaluate.directory as directory
import unigen.evaluate.examination as examination
from unigen import Pair
from unigen.cli import main
from unigen.data import load, spread
from unigen.evaluate.annealing import Annealing
from unigen.evaluate.examination import Protocol, evaluate
from unigen.evaluate.figure import bits_per_dimension
from unigen.evaluate.likelihood import bound_of, importance_weighted_curve, log_importance_weights
from unigen.evaluate.pareto import k_hat_figures
from unigen.evaluate.sample_metrics import sample_metrics
from unigen.networks import fingerprint, networks
from unigen.pair import PairError
from unigen.pairs import Likelihood, adversarial, flow, latent, mixture, rbm, sigmoid_belief

SHORT = Protocol(
    test=60,
    particles=40,
    annealed=6,
    annealing=Annealing(5, 2, 2),
    simulated=4,
    partition=20,
    partition_chains=5,
    calibration=32,
    validation=5,
    samples=50,
)
ON_BITS = {
    "latent": lambda data: latent(networks("mlp", (1, 8, 8), 3, hidden=(8,), mean=data.mean)),
    "belief": lambda data: sigmoid_belief(64, (12,), mean=data.mean),
    "small_belief": lambda data: sigmoid_belief(64, (3,), mean=data.mean),
    "adversarial": lambda data: adversarial(networks("mlp", (1, 8, 8), 3, hidden=(8,), mean=data.mean)),
    "machine": lambda data: rbm(64, 30, mean=data.mean),
    "small_machine": lambda data: rbm(64, 4, mean=data.mean),
    "mixture": lambda data: mixture(3, data.train, likelihood="bernoulli"),
}
KINDS = {
    "latent": {"ELBO": "lower bound", "log p(x), K = 40": "lower bound", "log p(x)": "lower bound"},
    "belief": {"ELBO": "lower bound", "log p(x), K = 40": "lower bound", "log p(x)": None},
    "small_belief": {"log p(x)": "exact"},
    "adversarial": {"log p(x)": None, "log p(x) with Gaussian observation noise": "lower bound"},
    "machine": {"log Z": "lower bound", "log p(x)": "upper bound"},
    "small_machine": {"log Z": "exact", "log p(x)": "exact"},
    "mixture": {"log p(x)": "exact"},
}


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def state_of(pair):
    """Hash all that training goes on from: weights, buffers, gradients, modes, chains, and the random stream."""
    digest = hashlib.sha256(fingerprint(pair).encode())
    digest.update(repr([module.training for module in pair.modules()]).encode())
    digest.update(repr([(name, p.requires_grad, p.grad) for name, p in pair.named_parameters()]).encode())
    digest.update(repr([(name, chain.tolist()) for name, chain in pair.chains.items()]).encode())
    digest.update(torch.get_rng_state().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("family", ON_BITS)
def test_every_family_is_given_its_figures_and_left_as_it_was(family, digits):
    pair = ON_BITS[family](digits)
    pair.chains["a chain"] = torch.ones(2, 3)
    before = state_of(pair)
    found = evaluate(pair, digits, SHORT)
    assert state_of(pair) == before
    refused = {refusal.name for refusal in found.refusals}
    for name, kind in KINDS[family].items():
        if kind is None:
            assert any(name in other for other in refused)
            with pytest.raises(KeyError):
                found[name]
        else:
            assert found[name].kind == kind and math.isfinite(found[name].value)
    for figure in found.figures:
        assert figure.n > 0 and figure.kind
        assert figure.standard_error is not None or figure.interval is not None or figure.name in UNERRING, figure
    fid = found["FID"]
    assert (fid.n_real, fid.n_fake) == (50, 50)
    assert json.loads(json.dumps(found.as_json()))["figures"][0]["kind"] in ("exact", "lower bound", "upper bound")


UNERRING = ("active units", "calibration, p-value")  # a count, and a probability: they have no error of their own


QUICK_KINDS = {
    "latent": {"ELBO": "lower bound", "log p(x), K = 40": "lower bound"},
    "small_belief": {"log p(x), K = 40": "lower bound", "log p(x)": None},  # the kind that the pair offers
    "adversarial": {"log p(x)": None},
    "machine": {"log p(x)": None},
    "small_machine": {"log p(x)": "exact"},
    "mixture": {"log p(x)": "exact"},
}


@pytest.mark.parametrize("family", QUICK_KINDS)
def test_the_quick_examination_anneals_and_simulates_nothing(family, digits, monkeypatch):
    for slow in ("annealed_log_likelihood", "bidirectional_monte_carlo", "simulation_based_calibration",
                 "gaussian_observation_log_likelihood", "importance_weighted_sandwich"):  # fmt: skip
        monkeypatch.setattr(examination, slow, None)
    pair = ON_BITS[family](digits)
    before = state_of(pair)
    found = evaluate(pair, digits, SHORT, quick=True, seed=3)
    assert state_of(pair) == before
    for name, kind in QUICK_KINDS[family].items():
        if kind is None:
            with pytest.raises(KeyError):
                found[name]
        else:
            assert found[name].kind == kind and len(found[name].per_datum) == 60
    refused = {refusal.name: refusal.why for refusal in found.refusals}
    assert ("unigen evaluate DIR" in refused.get("log p(x)", "")) == (family in ("adversarial", "machine"))
    names = {figure.name for figure in found.figures}
    assert {"FID", "KID", "precision", "recall"} <= names and not names & {"memorization", "Wasserstein distance"}


def test_bounds_of_many_weights_are_those_of_all_at_once(digits, monkeypatch):
    pair = ON_BITS["latent"](digits)
    weights = log_importance_weights(pair, spread(digits.test, 60), 40, 5)
    curve = importance_weighted_curve(weights, (1, 10, 40))
    found = evaluate(pair, digits, SHORT, quick=True, seed=5)
    for figure in (*curve, *k_hat_figures(weights)):
        assert dataclasses.replace(found[figure.name], bits_per_dimension=None) == figure
    assert torch.equal(found["ELBO"].per_datum, curve[0].per_datum)
    many = digits.train[:1010]  # two pieces
    whole = log_importance_weights(pair, many, 7, 5)
    assert torch.allclose(
        log_importance_weights(pair, many, 7, 5, lambda w: bound_of(w, 7)), bound_of(whole, 7), 0, 1e-11
    )


def test_quick_distances_are_of_the_first_thousand_and_modes_of_all():
    ring = load("ring")
    fake = ring.train[:1500].clone()
    found = sample_metrics(ring, fake, quick=True, permutations=None)
    alone = sample_metrics(ring, fake[:1000], permutations=None, groups=None)
    assert (found["fid"].n_fake, found["fid"].n_real, found["modes"].n_fake) == (1000, 1000, 1500)
    assert found["fid"].value == alone["fid"].value and found["mmd"].value == alone["mmd"].value
    assert "memorization" in alone and "memorization" not in found


def test_an_evaluation_that_changes_something_is_noticed(digits, monkeypatch):
    pair = ON_BITS["latent"](digits)
    before = state_of(pair)
    for fault in (
        lambda *_, **__: torch.rand(1) * 0,
        lambda *_, **__: pair.guide.train(False),
        lambda *_, **__: next(pair.parameters()).data.mul_(1.0001),
        lambda *_, **__: pair.chains.update(new=torch.ones(1)),
    ):
        fault()
        assert state_of(pair) != before
        before = state_of(pair)


def test_the_same_seed_gives_the_same_figures(digits):
    one, two, other = (
        evaluate(ON_BITS["latent"](digits), digits.test, SHORT, validation=digits.validation, seed=seed)
        for seed in (1, 1, 2)
    )
    assert one == two and one["ELBO"].value != other["ELBO"].value
    assert not any(figure.name == "FID" for figure in one.figures)  # of a dataset only


def test_bits_count_grey_levels_that_were_spread():
    dataset = load("digits", dequantize=True)
    with torch.no_grad():
        pair = flow(64, start=dataset.test)
    found = evaluate(pair, dataset, SHORT)["log p(x)"]
    assert found.kind == "exact"
    assert found.bits_per_dimension == pytest.approx(-found.value / (64 * math.log(2)) + math.log2(17))
    # a uniform density over [0, 1)^D is a uniform mass over the levels
    assert bits_per_dimension(0.0, 64, 17) == pytest.approx(math.log2(17))


def test_noise_at_the_corners_of_a_cube_has_no_bits(digits):
    found = evaluate(ON_BITS["adversarial"](digits), digits, SHORT)
    assert found["log p(x) with Gaussian observation noise"].bits_per_dimension is None
    assert evaluate(ON_BITS["mixture"](digits), digits, SHORT)["log p(x)"].bits_per_dimension > 0


def test_a_density_of_ones_own_at_the_corners_of_a_cube_has_no_bits():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(64), 1.0).to_event(1), obs=x)

    grey = load("digits")
    assert evaluate(Pair(model, likelihood="exact"), grey, SHORT)["log p(x)"].bits_per_dimension is None
    mass = latent(networks("mlp", (64,), 2, hidden=(4,)), Likelihood("discretized_logistic", levels=17))
    assert evaluate(mass, grey, SHORT)["ELBO"].bits_per_dimension is not None


def test_without_validation_data_noise_is_not_tuned(digits):
    found = evaluate(ON_BITS["adversarial"](digits), digits.test, SHORT)
    assert any("validation" in refusal.why for refusal in found.refusals)


def test_a_protocol_is_checked():
    for wrong in ({"test": 0}, {"particles": 0}, {"partition": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Protocol(**wrong)


def test_data_of_several_arguments_are_one_tuple_cut_to_the_rows_asked_for(digits):
    pair, x, y = Pair(shifted, shifted_posterior), torch.randn(40, 1), torch.randn(40, 1)
    exact = dist.Normal(y, 2**0.5).log_prob(x).squeeze(-1)
    for data in ((x, y), {"y": y, "x": x}):
        found = evaluate(pair, data, dataclasses.replace(SHORT, test=10), quick=True)["ELBO"]
        assert torch.allclose(found.per_datum.float(), exact[::4], atol=1e-5)
    with pytest.raises(PairError, match=r"the protocol is a Tensor; .* evaluate\(pair, \(x, y\)\)"):
        evaluate(pair, x, y)


def test_rows_outside_of_a_plate_are_refused(digits):
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))

    found = evaluate(Pair(model, guide), torch.randn(40, 1), SHORT, quick=True)
    assert not found.figures
    assert all("put its rows in pyro.plate('data', len(x))" in refusal.why for refusal in found.refusals)


def test_a_series_that_is_one_datum_is_not_cut():
    def model(x):
        level = pyro.sample("level", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(level.expand(*level.shape[:-1], len(x)), 1.0).to_event(1), obs=x)

    def guide(x):
        variance = 1 / (len(x) + 1)
        pyro.sample("level", dist.Normal(variance * x.sum(0, keepdim=True), variance**0.5).to_event(1))

    series = torch.randn(30)
    exact = dist.MultivariateNormal(torch.zeros(30), torch.eye(30) + 1).log_prob(series)
    found = evaluate(Pair(model, guide, batch_plate=None), series, dataclasses.replace(SHORT, test=10), quick=True)
    assert found["ELBO"].value == pytest.approx(float(exact), abs=1e-4)


# -- directories -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    quick = [
        "--steps",
        "3",
        "--hidden",
        "8",
        "--latent",
        "2",
        "--units",
        "30",
        "--evaluations",
        "0",
        "--particles",
        "2",
    ]
    bits = ["vae", "nvil", "gan", "persistent_contrastive_divergence"]
    for arguments in (
        ["--routines", *bits, "--seeds", "0", "1", "--layers", "12", "--out", str(folder / "bits")],
        ["--routines", "maximum_likelihood", "--pair", "flow", "--dequantize", "--binarization", "none",
         "--seeds", "0", "--out", str(folder / "levels")],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main(["compare", *quick, *arguments])
        assert ended.value.code == 0
    return folder


QUICK = ["--test-size", "40", "--particles", "30", "--annealed", "4", "--distributions", "3", "--chains", "2",
         "--simulated", "3", "--partition", "10", "--calibration", "16", "--samples", "40"]  # fmt: skip


def run(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_one_command_evaluates_five_families_and_prints_one_table(compared, capsys, monkeypatch):
    code, table, _ = run(["evaluate", str(compared), *QUICK], capsys)  # a folder of comparisons
    assert code == 0
    rows = [line for line in table.splitlines() if line.startswith(("log p(x)", "FID", "ELBO"))]
    for model, kind in (
        ("vae, bits", "lower bound"),
        ("nvil, bits", "lower bound"),
        ("persistent_contrastive_divergence, bits", "upper bound"),
        ("maximum_likelihood, levels", "exact"),
    ):
        assert any(model in row and kind in row and "±" in row for row in rows), (model, table)
    assert any("Gaussian observation noise" in row and "gan" in row for row in rows)
    assert "log p(x), gan, bits: refused: an implicit model" in table
    assert "40 real, 40 made" in table and "densities and masses are not to be ranked" in table
    stored = json.loads((compared / "bits" / "vae" / "seed-0" / "evaluation.json").read_text())
    assert stored["protocol"]["particles"] == 30 and len(stored["weights"]) == 64

    for run_of, pictures in (("bits/vae/seed-0", 2), ("bits/gan/seed-1", 1), ("levels/maximum_likelihood/seed-0", 1)):
        drawn = [compared / run_of / name for name in ("calibration.png", "neighbours.png")]
        assert sum(path.exists() and path.read_bytes()[-8:-4] == b"IEND" for path in drawn) == pictures, run_of

    monkeypatch.setattr(directory, "evaluate", None)  # the second time everything is read
    again = run(["evaluate", str(compared / "bits"), str(compared / "levels"), *QUICK], capsys)
    assert again[:2] == (0, table)
    one = run(["evaluate", str(compared / "bits"), "--routines", "vae", "--seeds", "1", *QUICK], capsys)[1]
    assert "gan" not in one and " 1 " in one


def test_a_file_of_other_weights_or_damaged_is_not_read(compared, capsys, monkeypatch):
    path = compared / "bits" / "vae" / "seed-0" / "evaluation.json"
    only = ["evaluate", str(compared / "bits"), "--routines", "vae", "--seeds", "0", *QUICK]
    assert run(only, capsys)[0] == 0
    good = path.read_text()
    for bad in (
        good.replace('"weights": "', '"weights": "0'),
        good.replace('"fingerprint": "', '"fingerprint": "0'),
        good[: len(good) // 2],
        good.replace('"kind": "estimate"', '"kind": "guess"'),
    ):
        called = []
        original = examination.evaluate
        monkeypatch.setattr(directory, "evaluate", lambda *a, o=original, c=called, **k: c.append(1) or o(*a, **k))
        path.write_text(bad)
        assert run(only, capsys)[0] == 0 and bad != good and len(called) == 1
        assert json.loads(path.read_text()) == json.loads(good)


def test_comparisons_of_one_name_are_two_and_one_of_two_spellings_is_one(compared, tmp_path, capsys, monkeypatch):
    only = ["--routines", "vae", "--seeds", "0", *QUICK]
    one = run(["evaluate", str(compared / "bits"), *only], capsys)[1]
    monkeypatch.setattr(directory, "evaluate", None)  # what follows is read
    shutil.copytree(compared / "bits", tmp_path / "other" / "bits")
    (tmp_path / "link").symlink_to(compared / "bits")
    spelt = [compared / "bits", compared / "levels" / ".." / "bits", tmp_path / "link"]
    assert run(["evaluate", *map(str, spelt), *only], capsys)[1] == one
    code, table, _ = run(["evaluate", str(compared / "bits"), str(tmp_path / "other" / "bits"), *only], capsys)
    assert code == 0
    rows = [line.split("  ") for line in table.splitlines() if line.startswith("ELBO ")]
    names = [next(cell.strip() for cell in row[1:] if cell) for row in rows]
    assert names == [f"vae, {compared.name}/bits", "vae, other/bits"]


def test_weights_are_neither_examined_nor_sampled_on_other_data_than_they_were_trained_on(compared, tmp_path, capsys):
    out = tmp_path / "bits"
    shutil.copytree(compared / "bits", out)
    config = json.loads((out / "config.json").read_text())
    config["data"]["fingerprint"] = "0" * 64  # as of a download of binarized_mnist, where UNIGEN_DATA was not set
    (out / "config.json").write_text(json.dumps(config))
    for command in (["evaluate", str(out), *QUICK], ["sample", str(out)]):
        code, said, error = run(command, capsys)
        assert code == 2 and not said and f"{out} was trained on other data than the digits" in error
        assert "UNIGEN_DATA" in error and error.count("\n") == 1
    assert not list(out.rglob("samples-*"))


def test_wrong_directories_and_settings_are_one_sentence(compared, tmp_path, capsys):
    bits = str(compared / "bits")
    for arguments, words in (
        (["evaluate"], "wants a director"),
        (["evaluate", str(tmp_path)], "config.json"),
        (["evaluate", bits, "--routines", "vea"], "did you mean 'vae'"),
        (["evaluate", bits, "--seeds", "7"], "no trained run"),
        (["evaluate", bits, "--chains", "0"], "--chains must be at least 1"),
        (["evaluate", bits, "--chainz", "3"], "did you mean '--chains'"),
    ):
        code, _, error = run(arguments, capsys)
        assert code == 2 and words in error and len(error.splitlines()) == 1, (arguments, error)


class Regression(PyroModule):
    """w ~ N(0, 1), y_i ~ N(w x_i, 1): one datum."""

    def forward(self, x, y):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)


def posterior(x, y):
    precision = 1 + x.square().sum()
    pyro.sample("w", dist.Normal(x @ y / precision, precision.rsqrt()))


def test_a_pair_of_one_datum_is_examined():
    x, y = torch.tensor([1.0, -1.0, 0.5]), torch.tensor([0.3, 0.1, 1.0])
    found = evaluate(Pair(Regression(), posterior), (x, y), SHORT)
    exact = torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3) + torch.outer(x, x)).log_prob(y)
    # with the exact posterior as guide every weight is p(y), whatever is drawn
    assert found["ELBO"].value == pytest.approx(float(exact), abs=1e-4) == found["log p(x)"].value
    assert abs(found["KL(q || posterior)"].value) < 1e-4 and found["ELBO"].n == 1
    assert found["ELBO"].standard_error is None and found["calibration, p-value"].n == 32
    assert any("fewer than two" in refusal.why for refusal in found.refusals)
