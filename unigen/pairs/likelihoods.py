"""Likelihoods p(x|z): how a generator's raw output becomes a distribution over data rows, and special site distributions.

A generator gives one raw number a dimension; ``mean`` maps it to data space, ``distribution`` to a Pyro distribution whose
event is the whole row.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from unigen.names import nearest

__all__ = ["LIKELIHOODS", "DiscretizedLogistic", "Implicit", "Likelihood", "Stratified"]

LIKELIHOODS = ("bernoulli", "normal", "discretized_logistic")


class Grid(constraints.Constraint):
    """The grid {0, 1, ..., levels - 1} / (levels - 1), to rounding."""

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def check(self, value: Tensor) -> Tensor:
        index = value * (self.levels - 1)
        return (value >= 0) & (value <= 1) & ((index - index.round()).abs() < 0.02)


class DiscretizedLogistic(dist.TorchDistribution):
    """A logistic rounded to the grid {0, 1, ..., levels - 1} / (levels - 1); the edge cells take the tails.

    P(x) = sigma((x + h - loc) / s) - sigma((x - h - loc) / s), h half a cell (Kingma et al. 2016, Salimans et al. 2017).
    ``loc``, ``scale`` (s > 0): tensors that broadcast. ``levels``: number of grey levels.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    has_rsample = False

    def __init__(self, loc: Tensor, scale: Tensor, levels: int = 256, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogistic:
        shape = torch.Size(batch_shape)
        return DiscretizedLogistic(self.loc.expand(shape), self.scale.expand(shape), self.levels, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        half = 0.5 / (self.levels - 1)
        upper, lower = (value + half - self.loc) / self.scale, (value - half - self.loc) / self.scale
        # log(sigma(u) - sigma(l)) = log sigma(u) + log sigma(-l) + log(1 - exp(l - u)), exact far in both tails
        inside = logsigmoid(upper) - softplus(lower) + torch.log(-torch.expm1(lower - upper))
        first, last = logsigmoid(upper), -softplus(lower)
        return torch.where(value < half, first, torch.where(value > 1 - half, last, inside))

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        return Grid(self.levels)

    @property
    def mean(self) -> Tensor:
        return self.loc  # of the logistic before rounding

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape
            u = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device).clamp(1e-6, 1 - 1e-6)
            x = self.loc + self.scale * (torch.log(u) - torch.log1p(-u))
            return (x.clamp(0, 1) * (self.levels - 1)).round() / (self.levels - 1)


class Implicit(dist.TorchDistribution):
    """A sampler without a density: its sample is ``value``, with gradient; ``log_prob`` raises.

    ``value``: (..., D), the last dimension is the event. ``bounded``: it lies in [0, 1], and so must the data.
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = True

    def __init__(self, value: Tensor, bounded: bool = False, validate_args: bool | None = None) -> None:
        self.value, self.bounded = value, bounded
        super().__init__(value.shape[:-1], value.shape[-1:], validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Any:
        return constraints.independent(constraints.unit_interval if self.bounded else constraints.real, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Implicit:
        return Implicit(self.value.expand(torch.Size(batch_shape) + self.event_shape), self.bounded)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.value.expand(torch.Size(sample_shape) + self.value.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError(
            "an implicit generator has no density; use gan, wgan_gp, f_gan or mmd, or give the generator a likelihood "
            "(the pair latent) for vae, iwae, wake_sleep"
        )


class Stratified(dist.TorchDistribution):
    """The label of a batch: y = 1 (data) in the first half of the rows, y = 0 (generated) in the second; p(y) = 1/2.

    Stratifying the two values instead of tossing a coin leaves every expectation unchanged and lowers its variance.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.boolean
    has_rsample = True  # the value depends on nothing that is learned

    def __init__(self, label: Tensor) -> None:
        self.label = label
        super().__init__(label.shape, validate_args=False)

    @classmethod
    def of(cls, x: Tensor) -> Stratified:
        """Return the labels for a batch of len(x) data and as many generated rows."""
        return cls(torch.cat([x.new_ones(len(x)), x.new_zeros(len(x))]))

    def expand(self, batch_shape: Any, _instance: Any = None) -> Stratified:
        return Stratified(self.label.expand(torch.Size(batch_shape)))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.label.expand(torch.Size(sample_shape) + self.label.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.full_like(value, -0.6931471805599453)


class Likelihood(nn.Module):
    """p(x|z) by name: ``bernoulli`` (raw = logits), ``normal`` (raw = mean, one learned scale), ``discretized_logistic``.

    Under ``bernoulli``, a grey value in [0, 1] is the probability of a bit: log p(x|z) is then its mean over that bit, and a
    bound stays a bound, on the mean of log p(bits).

    ``name``: one of ``LIKELIHOODS``, else a ``ValueError`` with the nearest. ``levels``: grey levels of the discretized
    logistic. ``bounded``: data lie in [0, 1], so the mean of ``normal`` is squashed by a sigmoid.
    """

    def __init__(self, name: str, levels: int | None = None, bounded: bool = True) -> None:
        super().__init__()
        if name not in LIKELIHOODS:
            raise ValueError(f"no likelihood {name!r}; {nearest(name, LIKELIHOODS)}")
        if levels is not None and levels < 2:
            raise ValueError(f"the discretized logistic has at least two grey levels; got levels={levels}")
        self.name, self.levels = name, levels or 256
        self.bounded = bounded or name != "normal"
        if name != "bernoulli":
            self.log_scale = nn.Parameter(torch.tensor(-1.0 if name == "normal" else -2.0))

    def mean(self, raw: Tensor) -> Tensor:
        """Map raw output to data space, (..., D)."""
        return torch.sigmoid(raw) if self.bounded else raw

    def distribution(self, raw: Tensor) -> Any:
        """Return the distribution of a row x given the raw output (..., D)."""
        if self.name == "bernoulli":
            return dist.Bernoulli(logits=raw, validate_args=False).to_event(1)
        scale = self.log_scale.exp()
        if self.name == "normal":
            return dist.Normal(self.mean(raw), scale).to_event(1)
        return DiscretizedLogistic(self.mean(raw), scale, self.levels).to_event(1)
