"""The examination's protocol: which data each figure is of, and that no part of it that cannot be had ends the rest."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

import unigen.evaluate.examination as examination
from unigen import Pair
from unigen.evaluate.annealing import Annealing
from unigen.evaluate.examination import Protocol, evaluate
from unigen.evaluate.figure import Refused
from unigen.networks import networks
from unigen.pairs import adversarial

SHORT = Protocol(40, 30, 4, Annealing(3, 2, 2), simulated=4, calibration=16, validation=5, samples=0)


def shifted(x, y):
    """z ~ N(y, 1), x ~ N(z, 1)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(y, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def posterior(x, y):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x + y) / 2, 0.5**0.5).to_event(1))


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
    found = evaluate(Pair(shifted, posterior), (x, y), SHORT)
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
