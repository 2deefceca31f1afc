"""The evaluator of log-likelihoods, against closed forms; what a pair makes; and random streams left alone."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from gaussians import ExactGuide, Line

import unigen.evaluate.likelihood as likelihood_module
from unigen import Pair
from unigen.evaluate import log_likelihood, reconstruct, sample
from unigen.networks import networks
from unigen.pairs import adversarial, flow, latent, mixture, rbm, sigmoid_belief


@pytest.fixture
def x():
    return torch.randn(7, 3, dtype=torch.float64)


def test_with_the_exact_posterior_every_weight_is_the_evidence(x):
    line = Line()
    found = log_likelihood(Pair(line, ExactGuide(line)), x, particles=3)
    assert (found.per_datum - line.exact(x)).abs().max() < 1e-10
    assert (found.kind, found.particles, found.n) == ("bound", 3, 7)
    assert found.value == pytest.approx(float(line.exact(x).mean()))
    assert found.standard_error == pytest.approx(float(line.exact(x).std() / math.sqrt(7)))


def test_the_bound_tightens_to_the_evidence(x):
    line = Line()
    pair = Pair(line, ExactGuide(line, 1.5))
    exact = line.exact(x).mean()
    # var(w)/p^2 is below 1 for this guide, so at K = 20,000 the bound is within 6/sqrt(20,000) of the truth (6 sigma)
    assert abs(log_likelihood(pair, x, particles=20_000).value - exact) < 0.05
    assert log_likelihood(pair, x.repeat(200, 1), particles=1).value < exact


def test_pieces_do_not_change_the_number_of_particles(x, monkeypatch):
    line = Line()
    monkeypatch.setattr(likelihood_module, "MOST_VALUES_AT_ONCE", 50 * 3 * 2)
    found = log_likelihood(Pair(line, ExactGuide(line)), x, particles=123)
    assert (found.per_datum - line.exact(x)).abs().max() < 1e-10


def test_a_mixture_a_flow_and_a_small_rbm_are_exact():
    rows = torch.randn(50, 2)
    pair = mixture(3, rows)
    components = dist.Normal(pair.model.loc, pair.model.log_scale.exp()).to_event(1)
    by_hand = dist.MixtureSameFamily(dist.Categorical(logits=pair.model.logits), components).log_prob(rows)
    found = log_likelihood(pair, rows)
    assert found.kind == "exact" and torch.allclose(found.per_datum, by_hand, atol=1e-5)
    pair = flow(2, start=rows)
    assert torch.allclose(log_likelihood(pair, rows).per_datum, pair.model.distribution().log_prob(rows), atol=1e-5)
    machine = rbm(4, 3)
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    found = log_likelihood(machine, every)
    assert found.kind == "exact" and found.per_datum.exp().sum() == pytest.approx(1, abs=1e-5)


def test_what_has_no_likelihood_says_why():
    assert (
        log_likelihood(adversarial(networks("mlp", (1, 8, 8), 2, hidden=(4,))), torch.zeros(2, 64)).how
        == "implicit: none"
    )
    assert log_likelihood(rbm(30, 30), torch.zeros(2, 30)).how == "unnormalized: none"


def pairs():
    shared = networks("mlp", (1, 8, 8), 2, hidden=(4,))
    return {
        "latent": latent(shared),
        "normal": latent(shared.copy(), "normal"),
        "discretized": latent(shared.copy(), "discretized_logistic"),
        "adversarial": adversarial(shared.copy()),
        "belief": sigmoid_belief(64, (3, 2)),
        "mixture": mixture(2, torch.rand(10, 64)),
        "rbm": rbm(64, 5),
        "flow": flow(64),
    }


@pytest.mark.parametrize("name", pairs())
def test_samples_have_the_rows_asked_for_and_repeat(name):
    pair, like = pairs()[name], torch.zeros(3, 64)
    one, two, other = (sample(pair, 5, like, seed=seed) for seed in (1, 1, 2))
    rebuilt = reconstruct(pair, like)
    log_likelihood(pair, torch.rand(3, 64).round() if name != "flow" else torch.rand(3, 64), particles=2)
    assert one.x.shape == one.mean.shape == (5, 64)
    assert torch.equal(one.x, two.x) and not torch.equal(one.x, other.x)
    assert torch.isfinite(one.x).all()
    assert (rebuilt is None) == (name in ("adversarial", "rbm", "flow"))


def test_evaluation_leaves_the_random_stream_alone():
    pair, rows = latent(networks("mlp", (1, 8, 8), 2, hidden=(4,))), torch.rand(3, 64).round()
    before = torch.get_rng_state()
    log_likelihood(pair, rows, particles=4)
    sample(pair, 5, rows)
    reconstruct(pair, rows)
    assert torch.equal(before, torch.get_rng_state())
