"""A pair without a batch plate is one datum: global latents, plates inside, densities () or (K,).

Exact first: for a conjugate model whose guide is set to the posterior, every sample's elbo is the log evidence, and the
gradient that sticks the landing is zero. Then eight schools (Rubin 1981) against the reference draws of posteriordb.
"""

import json
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import softplus

from unigen import routines
from unigen.engines import eager
from unigen.engines.programs import Programs
from unigen.objectives import elbo, iwae, log_weight
from unigen.pair import Pair
from unigen.phases import PHI, DoublyReparameterized, Phase, Sleep, StickingTheLanding, Tilted, Wake

DOUBLE = torch.float64


def drawn(pair: Pair, expectation: Any, x: Any) -> Any:
    return eager.draw(expectation, Programs(pair), pair.bind(x))


# -- a conjugate model -------------------------------------------------------------------------------------------------


class Weighing(PyroModule):
    """w ~ N(0, 1); x_i ~ N(w, 1/2), i in a plate of measurements."""

    def forward(self, x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("measurements", len(x)):
            pyro.sample("x", dist.Normal(w, 0.5), obs=x)


class Guess(PyroModule):
    """q(w) = N(loc, scale), the same for all data."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(loc.clone()), nn.Parameter(scale.log())

    def forward(self, x: Tensor) -> None:
        pyro.sample("w", dist.Normal(self.loc, self.log_scale.exp()))


def weighing() -> tuple[Pair, Tensor, float]:
    """Return the pair at its exact posterior, the data and log p(x)."""
    x = 1 + torch.randn(6, dtype=DOUBLE)
    precision = 1 + 4 * len(x)
    pair = Pair(Weighing(), Guess(4 * x.sum() / precision, torch.tensor(precision, dtype=DOUBLE).rsqrt()))
    covariance = torch.ones(6, 6, dtype=DOUBLE) + 0.25 * torch.eye(6, dtype=DOUBLE)
    joint = torch.distributions.MultivariateNormal(torch.zeros(6, dtype=DOUBLE), covariance)
    return pair, x, joint.log_prob(x).item()


def test_densities_of_one_datum_have_no_dimension():
    pair, x, _ = weighing()
    one, many, dreamt = drawn(pair, Wake(), x), drawn(pair, Wake(3), x), drawn(pair, Sleep(), x)
    assert one.log_p.shape == one.log_q.shape == one.log_likelihood.shape == one.log_prior.shape == ()
    assert many["w"].shape == (3, 1)  # particles lie left of the plates inside
    assert many.log_p.shape == many.log_q.shape == many.log_likelihood.shape == (3,)
    assert dreamt.log_p.shape == () and dreamt["x"].shape == (6,)


def test_at_the_posterior_every_sample_gives_the_evidence():
    pair, x, evidence = weighing()
    phases = [
        Phase(elbo, Wake(), PHI, estimator=StickingTheLanding()),
        Phase(elbo, Wake(4), PHI, estimator=StickingTheLanding()),
        Phase(iwae, Wake(4), PHI, estimator=DoublyReparameterized()),
        *(Phase(elbo, Wake(k), PHI) for k in (None, 4)),
    ]
    for phase in phases:
        value, surrogate = eager.objective(phase, pair, x)
        assert value.item() == pytest.approx(evidence, abs=1e-10)
        if phase.estimator is not None:
            gradients = torch.autograd.grad(surrogate, pair.group("phi"))
            assert all(gradient.abs().max() < 1e-10 for gradient in gradients)


def test_particles_of_one_datum_share_no_weight_with_others():
    pair, x, _ = weighing()
    with torch.no_grad():
        pair.group("phi")[0].add_(0.3)
    sample = drawn(pair, Tilted(Wake(5), log_weight), x)
    weights = torch.softmax(sample.log_p - sample.log_q, 0)
    assert sample.weights.shape == (5,) and torch.allclose(sample.weights, weights)


# -- eight schools -----------------------------------------------------------------------------------------------------

ROOT = Path(os.environ["UNIGEN_DATA"]) / "posteriordb" if os.environ.get("UNIGEN_DATA") else None
needs_posteriordb = pytest.mark.skipif(
    ROOT is None or not ROOT.is_dir(),
    reason="eight schools is read from posteriordb/ under UNIGEN_DATA, which is not there",
)


def read(name: str) -> Any:
    assert ROOT is not None
    with zipfile.ZipFile(ROOT / name) as archive:
        return json.loads(archive.read(archive.namelist()[0]))


def schools() -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """Return (y, sigma) and the reference draws by parameter, theta (10000, 8)."""
    data = read("data/eight_schools.json.zip")
    chains = read("draws/eight_schools-eight_schools_noncentered.json.zip")
    draws = {
        name: torch.tensor([value for chain in chains for value in chain[name]], dtype=DOUBLE) for name in chains[0]
    }
    theta = torch.stack([draws[f"theta[{j}]"] for j in range(1, 9)], -1)
    y, sigma = (torch.tensor(data[name], dtype=DOUBLE) for name in ("y", "sigma"))
    return (y, sigma), {"theta": theta, "mu": draws["mu"], "tau": draws["tau"]}


class Schools(PyroModule):
    """mu ~ N(0, 5), tau ~ HalfCauchy(5), theta_j ~ N(mu, tau), y_j ~ N(theta_j, sigma_j); by eta = (theta - mu) / tau."""

    def __init__(self, centred: bool) -> None:
        super().__init__()
        self.centred = centred

    def forward(self, y: Tensor, sigma: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(y.new_full((), 5.0)))
        with pyro.plate("schools", len(sigma)):
            if self.centred:
                theta = pyro.sample("theta", dist.Normal(mu, tau))
            else:
                theta = mu + tau * pyro.sample("eta", dist.Normal(y.new_zeros(()), 1.0))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)


class MeanField(PyroModule):
    """q = N(mu) LogNormal(tau) prod_j N(theta_j or eta_j), independent."""

    def __init__(self, centred: bool) -> None:
        super().__init__()
        self.centred = centred
        self.loc = nn.Parameter(torch.zeros(10, dtype=DOUBLE))
        self.raw = nn.Parameter(torch.zeros(10, dtype=DOUBLE))

    def forward(self, y: Tensor, sigma: Tensor) -> None:
        scale = softplus(self.raw)
        pyro.sample("mu", dist.Normal(self.loc[0], scale[0]))
        pyro.sample("tau", dist.LogNormal(self.loc[1], scale[1]))
        with pyro.plate("schools", len(sigma)):
            pyro.sample("theta" if self.centred else "eta", dist.Normal(self.loc[2:], scale[2:]))

    def means(self) -> dict[str, Tensor]:
        """The exact means of q: no Monte Carlo error."""
        scale = softplus(self.raw)
        mu, tau = self.loc[0], torch.exp(self.loc[1] + scale[1].square() / 2)
        theta = self.loc[2:] if self.centred else mu + tau * self.loc[2:]
        return {"theta": theta.detach(), "mu": mu.detach(), "tau": tau.detach()}


def fitted(routine: Any, data: tuple[Tensor, Tensor], steps: int = 2500) -> Any:
    """Climb with Adam, the rate falling from 0.05 to 0.0005, and return the pair."""
    pair = Pair(Schools(centred=False), MeanField(centred=False))
    optimizers = {"phi": torch.optim.Adam(pair.group("phi"), 0.05)}
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizers["phi"], 0.01 ** (1 / steps))
    for _ in range(steps):
        (value,) = eager.step(routine, pair, optimizers, data)
        schedule.step()
    assert math.isfinite(value)
    return pair


def report(name: str, found: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    for parameter, draws in reference.items():
        error = ((found[parameter] - draws.mean(0)) / draws.std(0)).numpy()
        print(f"{name}: {parameter} {found[parameter].numpy().round(2)}, error in reference sd {error.round(2)}")


@needs_posteriordb
@pytest.mark.parametrize("centred", [False, True], ids=["noncentred", "centred"])
def test_shapes_of_eight_schools(centred):
    data, _ = schools()
    pair = Pair(Schools(centred), MeanField(centred))
    assert drawn(pair, Wake(), data).log_p.shape == () and drawn(pair, Wake(7), data).log_q.shape == (7,)
    sample = drawn(pair, Wake(7), data)
    site = "theta" if centred else "eta"
    mu, tau, theta = sample["mu"].reshape(7, 1), sample["tau"].reshape(7, 1), sample[site]
    prior = dist.Normal(0.0, 5.0).log_prob(mu)[:, 0] + dist.HalfCauchy(torch.tensor(5.0)).log_prob(tau)[:, 0]
    if centred:
        prior = prior + dist.Normal(mu, tau).log_prob(theta).sum(-1)
    else:
        prior = prior + dist.Normal(0.0, 1.0).log_prob(theta).sum(-1)
        theta = mu + tau * theta
    likelihood = dist.Normal(theta, data[1]).log_prob(data[0]).sum(-1)
    assert (sample.log_prior - prior).abs().max() < 1e-6 and (sample.log_likelihood - likelihood).abs().max() < 1e-10


@needs_posteriordb
@pytest.mark.parametrize("routine", [routines.vae, routines.iwae(5)], ids=["vae", "iwae(5)"])
def test_eight_schools(routine):
    """The guide's theta within 0.25 reference sd, and its importance-weighted particles within Monte Carlo error.

    Mean field cannot hold the dependence of mu, tau and eta, so it shrinks the schools towards each other (vae: 0.1 to
    0.17 sd for the outer ones, from run to run); 0.25 sd leaves room for the noise of the last steps. Its tau is printed,
    not asserted: vae gives 0.2 to 0.3 sd too little, and iwae(5) between 0.1 and 0.9 sd too much, since it fits a
    proposal that covers the posterior, not the posterior. Weighting the guide's particles removes the bias, so there the
    probability of lying below the reference median is 1/2 within eight of its standard errors, at most
    sqrt(1/ESS + 1/10000) / 2 each: a bounded statistic, since tau itself has too heavy a tail for one. So have the
    weights: of 480 sets of vae's particles 13 had an ESS below 100, one particle holding most of the weight. Both numbers
    are therefore medians over nine sets, which fail where five of the nine do: about once in 5e5 runs.
    """
    data, reference = schools()
    pair = fitted(routine, data)
    means = pair.guide.means()
    report(f"{routine.name}, guide", means, reference)
    for parameter in ("theta", "mu"):
        draws = reference[parameter]
        assert bool(((means[parameter] - draws.mean(0)).abs() <= 0.25 * draws.std(0)).all())

    effective, below = [], []
    for _ in range(9):
        sample = drawn(pair, Tilted(Wake(20000), log_weight), data)
        mu, tau = sample["mu"].reshape(-1), sample["tau"].reshape(-1)
        values = {"theta": mu[:, None] + tau[:, None] * sample["eta"], "mu": mu, "tau": tau}
        beneath = [(values[name] <= draws.median(0).values).double() for name, draws in reference.items()]
        below.append(torch.cat([torch.tensordot(sample.weights, share, 1).reshape(-1) for share in beneath]))
        effective.append(1 / sample.weights.square().sum())
    size, half = torch.stack(effective).median().item(), torch.stack(below).median(0).values
    print(f"{routine.name}, weighted, ESS {size:.0f}: below the reference median {half.numpy().round(3)}")
    assert size > 100  # of 20000, else the bound would say nothing
    bound = 8 * 0.5 * math.sqrt(1 / size + 1 / 10000)
    assert bool(((half - 0.5).abs() <= bound).all())
