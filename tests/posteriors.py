"""The eight posteriors of posteriordb as Pyro models, with their data and reference draws (Magnusson et al. 2024).

A parameter without a prior in the original has a flat one here, ``ImproperUniform`` on its support. Data are read from
posteriordb/ under UNIGEN_DATA.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import pyro
import pyro.distributions as dist
import pyro.distributions.constraints as constraints
import torch
from torch import Tensor

__all__ = ["POSTERIORS", "ROOT", "Problem"]

ROOT = Path(os.environ["UNIGEN_DATA"]) / "posteriordb" if os.environ.get("UNIGEN_DATA") else None


def flat(name: str, support: Any, shape: tuple[int, ...] = ()) -> Tensor:
    """Sample a parameter of constant density on its support."""
    return pyro.sample(name, dist.ImproperUniform(support, (), shape))


def recursion(first: Tensor, rest: Tensor, factor: Tensor) -> Tensor:
    """Return a_1 = first, a_t = rest_t + factor a_{t-1}, by doubling: a_t = sum_j factor^j rest_{t-j}, for j < 1, 2, 4, ...

    Eight steps for 200 terms, where a loop would be compiled term by term.
    """
    total, back = torch.cat([first.reshape(1), rest]), 1
    while back < len(total):
        total = torch.cat([total[:back], total[back:] + factor**back * total[:-back]])
        back *= 2
    return total


def autoregression(y, K):
    """y_t ~ N(alpha + sum_k beta_k y_{t-k}, sigma), t > K."""
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([K]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    lags = torch.stack([y[K - k : len(y) - k] for k in range(1, K + 1)], -1)
    with pyro.plate("times", len(y) - K):
        pyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y[K:])


def moving_average(y):
    """e_t = y_t - (mu + phi y_{t-1} + theta e_{t-1}) ~ N(0, sigma), with y_0 = mu and e_0 = 0."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    without = y - mu - phi * torch.cat([mu.reshape(1), y[:-1]])
    with pyro.plate("times", len(y)):
        pyro.sample("errors", dist.Normal(0.0, sigma), obs=recursion(without[0], without[1:], -theta))


def volatility(y, sigma1):
    """y_t ~ N(mu, s_t), s_t^2 = alpha0 + alpha1 (y_{t-1} - mu)^2 + beta1 s_{t-1}^2: the support of beta1 depends on alpha1."""
    mu = flat("mu", constraints.real)
    alpha0 = flat("alpha0", constraints.positive)
    alpha1 = flat("alpha1", constraints.unit_interval)
    beta1 = flat("beta1", constraints.interval(0.0, 1.0 - alpha1))
    shocks = alpha0 + alpha1 * (y[:-1] - mu).square()
    variances = recursion(torch.full_like(y[0], sigma1**2), shocks, beta1)
    with pyro.plate("times", len(y)):
        pyro.sample("y", dist.Normal(mu, variances.sqrt()), obs=y)


def earnings(earn, height):
    """earn ~ N(beta_1 + beta_2 height, sigma)."""
    beta = flat("beta", constraints.real_vector, (2,))
    sigma = flat("sigma", constraints.positive)
    with pyro.plate("people", len(earn)):
        pyro.sample("earn", dist.Normal(beta[0] + beta[1] * height, sigma), obs=earn)


def children(kid_score, mom_iq):
    """kid_score ~ N(beta_1 + beta_2 mom_iq, sigma), sigma ~ HalfCauchy(2.5)."""
    beta = flat("beta", constraints.real_vector, (2,))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("children", len(kid_score)):
        pyro.sample("kid_score", dist.Normal(beta[0] + beta[1] * mom_iq, sigma), obs=kid_score)


def temperatures(x, y, pmualpha, psalpha, pmubeta, psbeta):
    """y ~ N(alpha + beta x, sigma)."""
    alpha = pyro.sample("alpha", dist.Normal(pmualpha, psalpha))
    beta = pyro.sample("beta", dist.Normal(pmubeta, psbeta))
    sigma = flat("sigma", constraints.positive)
    with pyro.plate("years", len(x)):
        pyro.sample("y", dist.Normal(alpha + beta * x, sigma), obs=y)


def mixture(y):
    """y ~ theta N(mu_1, sigma_1) + (1 - theta) N(mu_2, sigma_2), mu_1 < mu_2."""
    mu = flat("mu", constraints.ordered_vector, (2,))
    pyro.sample("prior of mu", dist.Normal(0.0, 2.0).expand([2]).to_event(1), obs=mu)
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(torch.stack([theta, 1 - theta]))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def schools(y, sigma):
    """y_j ~ N(theta_j, sigma_j), theta_j = mu + tau eta_j (Rubin 1981)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta, event_dim=0)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


@dataclass(frozen=True)
class Problem:
    """A posterior: its name, the file of its data, the model, and what the sampler is told."""

    name: str
    file: str
    model: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """Return the model's arguments by name: lists as float64 tensors."""
        found = _read(f"data/{self.file}.json.zip")
        named = {name: found[name] for name in inspect.signature(self.model).parameters}
        return {
            name: torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value
            for name, value in named.items()
        }

    def reference(self) -> dict[str, numpy.ndarray]:
        """Return the reference draws by site, (10, 1000, *shape)."""
        chains = _read(f"draws/{self.name}.json.zip")
        sites: dict[str, list[numpy.ndarray]] = {}
        for name in chains[0]:  # "beta[1]", "beta[2]", ... stand in order
            site = re.sub(r"\[.*", "", name)
            sites.setdefault(site, []).append(numpy.array([chain[name] for chain in chains]))
        return {site: columns[0] if site in chains[0] else numpy.stack(columns, -1) for site, columns in sites.items()}


def _read(path: str) -> Any:
    assert ROOT is not None
    with zipfile.ZipFile(ROOT / path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))


DENSE = {"dense_mass": True}  # an intercept and a slope on an uncentred covariate go together

POSTERIORS = {
    problem.name: problem
    for problem in (
        Problem("eight_schools-eight_schools_noncentered", "eight_schools", schools, {"target_accept_prob": 0.95}),
        Problem("kidiq-kidscore_momiq", "kidiq", children, DENSE),
        Problem("kilpisjarvi_mod-kilpisjarvi", "kilpisjarvi_mod", temperatures, DENSE),
        Problem("earnings-earn_height", "earnings", earnings, DENSE),
        Problem("arK-arK", "arK", autoregression),
        Problem("low_dim_gauss_mix-low_dim_gauss_mix", "low_dim_gauss_mix", mixture),
        Problem("arma-arma11", "arma", moving_average),
        Problem("garch-garch11", "garch", volatility, {"target_accept_prob": 0.95}),
    )
}
