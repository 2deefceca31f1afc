"""The examination's protocol: which data each figure is of, and that no part of it that cannot be had ends the rest."""

from __future__ import annotations

import dataclasses
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from gaussians import shifted, shifted_posterior

import unigen.evaluate.examination as examination
from unigen import Pair
from unigen.cli import main
from unigen.data import load
from unigen.evaluate import active_units, annealed_log_likelihood, log_likelihood, reconstruct, sample
from unigen.evaluate.annealing import Annealing
from unigen.evaluate.boltzmann import log_partition
from unigen.evaluate.calibration import simulation_based_calibration
from unigen.evaluate.examination import Protocol, evaluate
from unigen.evaluate.figure import Refused
from unigen.evaluate.observation import gaussian_observation_log_likelihood
from unigen.networks import networks
from unigen.pairs import adversarial, flow, latent, rbm, sigmoid_belief
from unigen.settings import UsageError

SHORT = Protocol(40, 30, 4, Annealing(3, 2, 2), simulated=4, calibration=16, validation=5, samples=0)


def test_the_data_of_a_sorted_file_are_taken_at_equal_distances(monkeypatch):
    y = torch.arange(80.0)[:, None]
    x = y + torch.linspace(-3, 3, 80)[:, None]
    exact = dist.Normal(y, 2**0.5).log_prob(x).squeeze(-1)[::2]  # 40 of 80
    given = {}
    for name in ("bidirectional_monte_carlo", "simulation_based_calibration"):
        own = getattr(examination, name)

        def seen(*arguments, name=name, own=own, **more):
            given[name] = arguments[1]["y"].squeeze(-1).tolist()
            return own(*arguments, **more)

        monkeypatch.setattr(examination, name, seen)
    found = evaluate(Pair(shifted, shifted_posterior), (x, y), SHORT)
    # with the exact posterior as guide every weight is p(x|y), whatever is drawn
    assert torch.allclose(found["ELBO"].per_datum.float(), exact, atol=1e-4)
    assert torch.allclose(found["log p(x)"].per_datum.float(), exact[::10], atol=1e-4)
    assert found["KL(q || posterior)"].per_datum.abs().max() < 1e-4 and found["KL(q || posterior)"].n == 4
    assert given["bidirectional_monte_carlo"] == [0.0, 20.0, 40.0, 60.0]
    assert given["simulation_based_calibration"] == [5 * k // 2 * 2.0 for k in range(16)]


def test_observation_noise_is_of_rows_at_equal_distances(monkeypatch):
    given = []

    def seen(pair, x, validation, *_, **__):
        given.extend((x[:, 0].tolist(), validation[:, 0].tolist()))
        raise Refused("seen")

    monkeypatch.setattr(examination, "gaussian_observation_log_likelihood", seen)
    x = torch.arange(40.0)[:, None].expand(40, 64)
    evaluate(adversarial(networks("mlp", (1, 8, 8), 3, hidden=(8,))), x, SHORT, validation=x[:30])
    assert given == [[0, 10, 20, 30], [0, 6, 12, 18, 24]]


# -- one thing that cannot be had does not end the rest -----------------------------------------------------------------


def networks_of_digits():
    return networks("mlp", (1, 8, 8), 3, hidden=(8,))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    (
        ("samples", 10, "give at least 20, or 0 for none"),
        ("validation", 1, "give at least 2, or 0 for none"),
        ("simulated", 1, "give at least 2, or 0"),
        ("calibration", 15, "give at least 16, or 0"),
        ("nuts", 1, "give at least 2, or 0"),
        ("annealed", 0, "give at least 1"),
    ),
)
def test_numbers_that_no_figure_could_be_made_of_are_refused_at_once(name, value, words, capsys):
    with pytest.raises(UsageError, match=f"{name}={value}; {words}"):
        Protocol(**{name: value})
    Protocol(**{name: 20})
    if name in ("samples", "simulated", "calibration", "nuts"):
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", "nowhere", f"--{name}", str(value)])
        assert ended.value.code == 2 and f"{name}={value}; {words}" in capsys.readouterr().err


def test_a_figure_that_fails_is_one_refusal(monkeypatch):
    def broken(*_, **__):
        raise ValueError("a sentence\nand what follows it")

    monkeypatch.setattr(examination, "active_units", broken)
    x = torch.randn(20, 1)
    found = evaluate(Pair(shifted, shifted_posterior), (x, x), SHORT)
    assert [(refusal.name, refusal.why) for refusal in found.refusals] == [("active units", "a sentence")]
    assert {"ELBO", "log p(x)", "calibration, p-value"} <= {figure.name for figure in found.figures}


def test_the_guide_is_compared_with_nuts_where_that_is_asked_for():
    """Its deviation is 0.8 of the posterior's, which both sides have in closed form; bits have no such draws."""
    x = torch.randn(20, 1)

    def narrow(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + y) / 2, 0.8 * 0.5**0.5).to_event(1))

    asked = dataclasses.replace(SHORT, nuts=3)
    found = evaluate(Pair(shifted, narrow), (x, x), asked)["guide against NUTS, ratio of deviations"]
    assert found.n == 3 and found.value == pytest.approx(0.8, abs=0.08)
    assert not any("NUTS" in figure.name for figure in evaluate(Pair(shifted, narrow), (x, x), SHORT).figures)
    bits = evaluate(sigmoid_belief(4, (3,)), torch.bernoulli(torch.full((20, 4), 0.5)), asked)
    assert any(refusal.name == "guide against NUTS" and "discrete" in refusal.why for refusal in bits.refusals)


def test_an_empty_validation_split_is_none():
    digits = load("digits")
    none = dataclasses.replace(digits, validation=digits.test[:0], validation_labels=digits.test_labels[:0])
    short = dataclasses.replace(SHORT, partition=5, partition_chains=3)
    noise = evaluate(adversarial(networks_of_digits()), none, short).refusals
    assert any("tuned on validation data, which were not given" in refusal.why for refusal in noise)
    assert math.isfinite(evaluate(rbm(64, 30), none, short)["log Z"].value)
    alike = torch.ones(3, 64)
    with pytest.raises(Refused, match="3 rows of which no two differ"):
        gaussian_observation_log_likelihood(adversarial(networks_of_digits()), alike, alike)


def test_data_without_rows_are_refused():
    pair, none = latent(networks_of_digits()), torch.zeros(0, 64)
    for call in (log_likelihood, annealed_log_likelihood, simulation_based_calibration, active_units, evaluate):
        with pytest.raises(Refused, match="the data have no rows .x.; give at least one"):
            call(pair, none)
    for exact in (flow(64), rbm(64, 4)):
        with pytest.raises(Refused, match="no rows"):
            log_likelihood(exact, none)
    with pytest.raises(Refused, match="no rows"):
        sample(pair, 5, none)


def test_an_rbms_data_are_bound_by_name_as_others_are():
    pair, x = rbm(6, 4), torch.bernoulli(torch.full((5, 6), 0.5))
    expected = log_likelihood(pair, x).per_datum
    for data in ({"x": x}, (x,)):
        assert torch.equal(log_likelihood(pair, data).per_datum, expected)
        assert torch.equal(evaluate(pair, data, SHORT)["log p(x)"].per_datum, expected)


def test_an_annealing_without_distributions_or_chains_is_no_bound():
    for settings in ({"distributions": 0}, {"chains": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(settings))}=0; give at least 1"):
            log_partition(rbm(6, 4), exact=False, **settings)


# -- data that are not one tensor of rows -------------------------------------------------------------------------------

ROWS = torch.linspace(-1, 2, 10)


@pytest.mark.parametrize("local", (False, True))
def test_data_that_a_program_holds_itself(local):
    """One w ~ N(0, 1) or one a datum, x_i ~ N(w, 1), x closed over; the guide is the posterior."""
    plate, places = ("data", (10,)) if local else ("rows", ())
    mean, variance = (ROWS / 2, 0.5) if local else (ROWS.sum() / 11, 1 / 11)

    def of_w(mean, scale):
        if not local:
            return pyro.sample("w", dist.Normal(mean, scale))
        with pyro.plate("data", 10):
            return pyro.sample("w", dist.Normal(mean, scale))

    def model():
        w = of_w(torch.zeros(places), 1.0)
        with pyro.plate(plate, 10):
            pyro.sample("x", dist.Normal(w, 1.0), obs=ROWS)

    pair = Pair(model, lambda: of_w(mean, variance**0.5))
    joint = dist.MultivariateNormal(torch.zeros(10), torch.eye(10) + 1).log_prob(ROWS)
    exact = dist.Normal(0.0, 2**0.5).log_prob(ROWS) if local else joint.reshape(1)
    assert torch.allclose(log_likelihood(pair, (), 20).per_datum.float(), exact, atol=1e-4)
    found = evaluate(pair, (), dataclasses.replace(SHORT, test=5))
    assert torch.allclose(found["ELBO"].per_datum.float(), exact, atol=1e-4) and found["log p(x)"].n == len(exact)


@pytest.mark.parametrize("scale", (torch.tensor(1.5), torch.tensor([1.5]), torch.tensor([1.0, 0.5])))
def test_rows_are_those_of_the_plate_where_the_first_argument_has_others(scale):
    def model(scale, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(scale.sum() * z, 1.0).to_event(1), obs=x)

    def guide(scale, x):
        precision = 1 + scale.sum() ** 2
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(scale.sum() * x / precision, precision.rsqrt()).to_event(1))

    x = torch.randn(40, 1)
    exact = dist.Normal(0.0, (1 + 1.5**2) ** 0.5).log_prob(x).squeeze(-1)
    data = (scale, x)
    assert torch.allclose(log_likelihood(Pair(model, guide), data, 20).per_datum.float(), exact, atol=1e-4)
    found = evaluate(Pair(model, guide), data, SHORT)
    assert torch.allclose(found["log p(x)"].per_datum.float(), exact[::10], atol=1e-4)
    assert found["calibration, p-value"].n == 16 and found["ELBO"].n == 40


def test_what_a_conditional_pair_makes_is_the_argument_that_it_has_a_site_for():
    def model(c, y):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 0.1).to_event(1))
            pyro.sample("y", dist.Normal(torch.cat([c, c], -1) + z, 0.1).to_event(1), obs=y)

    def guide(c, y):
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y[:, :1] - c, 0.1).to_event(1))

    c = torch.tensor([[0.0], [10.0], [20.0]])
    y = torch.cat([c, c], -1)
    made = sample(Pair(model, guide), 5, (c, y)).x
    assert made.shape == (5, 2) and torch.equal(
        (made / 10).round(), torch.tensor([0.0, 1, 2, 0, 1])[:, None].expand(5, 2)
    )
    assert torch.equal((reconstruct(Pair(model, guide), (c, y)) / 10).round(), y / 10)


def test_bits_of_a_pair_that_is_one_datum_count_all_its_numbers():
    def model(x):
        level = pyro.sample("level", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(level, 1.0).to_event(1), obs=x)

    def guide(x):
        variance = 1 / (len(x) + 1)
        pyro.sample("level", dist.Normal(variance * x.sum(0), variance**0.5).to_event(1))

    x = torch.randn(50, 2)
    exact = dist.MultivariateNormal(torch.zeros(50), torch.eye(50) + 1).log_prob(x.T).sum()
    found = evaluate(Pair(model, guide), x, SHORT, quick=True)["ELBO"]
    assert found.bits_per_dimension == pytest.approx(-float(exact) / 100 / math.log(2), abs=1e-4)
