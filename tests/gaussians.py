"""Linear-Gaussian pairs, whose evidence and posterior are closed forms: the oracle of evaluators."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule

__all__ = ["ExactGuide", "Line", "shifted", "shifted_posterior"]


class Line(PyroModule):
    """z ~ N(0, I), x ~ N(A z, s^2 I): p(x) = N(0, A A' + s^2 I); A (D, d)."""

    def __init__(self, a: torch.Tensor | None = None, s: float = 0.7) -> None:
        super().__init__()
        if a is None:
            a = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.2, 0.1]], dtype=torch.float64)
        self.a = torch.nn.Parameter(a)
        self.s = s

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.a.shape[1]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.a.T, self.s).to_event(1), obs=x)

    def exact(self, x):
        """Return log p(x), (N,)."""
        rows = len(self.a)
        covariance = self.a @ self.a.T + self.s**2 * torch.eye(rows, dtype=self.a.dtype)
        return (
            torch.distributions.MultivariateNormal(torch.zeros(rows, dtype=self.a.dtype), covariance)
            .log_prob(x)
            .detach()
        )

    def posterior(self):
        """Return the gain G and the covariance of p(z|x) = N(G x, covariance)."""
        precision = torch.eye(self.a.shape[1], dtype=self.a.dtype) + self.a.T @ self.a / self.s**2
        covariance = torch.linalg.inv(precision)
        return covariance @ self.a.T / self.s**2, covariance


class ExactGuide(PyroModule):
    """The posterior of ``Line``, its scale stretched by a factor, its mean shifted by a number of posterior deviations."""

    def __init__(self, line: Line, stretch: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        gain, covariance = line.posterior()
        self.register_buffer("gain", gain.detach())
        self.register_buffer("factor", torch.linalg.cholesky(covariance).detach() * stretch)
        self.register_buffer("offset", shift * covariance.diagonal().sqrt().detach())

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(x @ self.gain.T + self.offset, scale_tril=self.factor))


def shifted(x, y):
    """z ~ N(y, 1), x ~ N(z, 1)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(y, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def shifted_posterior(x, y):
    """p(z | x, y) of ``shifted``."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x + y) / 2, 0.5**0.5).to_event(1))
