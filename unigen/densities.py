"""Densities on the plane that can be sampled, evaluated and integrated exactly, for mode coverage and for NLL - H(p).

With the entropy H(p) = -E_p[log p] at hand, the negative log-likelihood of any model has a known floor: NLL - H(p) =
KL(p || model) >= 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["DENSITIES", "Checkerboard", "Density", "GaussianMixture", "Moons", "Pinwheel", "grid", "ring"]


class Density(Protocol):
    """What every density of this file offers."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` independent points, float32 (n, 2), on the generator's device."""
        ...

    def log_prob(self, x: Tensor) -> Tensor:
        """Evaluate log p(x) in nats at points (..., 2), in their dtype, with result (...)."""
        ...

    @property
    def entropy(self) -> float:
        """The differential entropy -E[log p(x)] in nats."""
        ...


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """The mixture p(x) = 1/M sum_m N(x; means[m], std^2 I) of equally likely round Gaussians.

    Arguments:
        means: the centres, float64 (M, 2).
        std: the standard deviation of every component along both axes.
    """

    means: Tensor
    std: float

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` points, float32 (n, 2)."""
        component = torch.randint(len(self.means), (n,), generator=generator, device=generator.device)
        noise = torch.randn(n, 2, generator=generator, device=generator.device)
        return self.means.to(noise)[component] + self.std * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Evaluate log p(x) at points (..., 2)."""
        z = (x.unsqueeze(-2) - self.means.to(x)) / self.std  # (..., M, 2)
        constant = math.log(len(self.means)) + math.log(2 * math.pi * self.std**2)
        return (-0.5 * z.square().sum(-1)).logsumexp(-1) - constant

    @cached_property
    def entropy(self) -> float:
        """The entropy: log M + log(2 pi e std^2) at distances of 20 std or more (error < 1e-20), else by quadrature."""
        if len(self.means) == 1 or float(torch.pdist(self.means).min()) >= 20 * self.std:
            return math.log(len(self.means)) + math.log(2 * math.pi * math.e * self.std**2)
        low, high = self.means.amin(0) - 8 * self.std, self.means.amax(0) + 8 * self.std
        return _entropy(self.log_prob, low.tolist(), high.tolist(), self.std / 4)


def ring() -> GaussianMixture:
    """Return 8 Gaussians of standard deviation 0.01 on the unit circle (the ring of PacGAN, Lin et al. 2018)."""
    angle = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    return GaussianMixture(torch.stack((angle.cos(), angle.sin()), -1), 0.01)


def grid() -> GaussianMixture:
    """Return 25 Gaussians of standard deviation 0.05 on {-4, -2, 0, 2, 4}^2 (the grid of PacGAN, Lin et al. 2018)."""
    axis = torch.arange(-4, 5, 2, dtype=torch.float64)
    return GaussianMixture(torch.cartesian_prod(axis, axis), 0.05)


@dataclass(frozen=True, eq=False)
class Moons:
    """Two interleaved half circles, each a fine comb of Gaussians (the shape of scikit-learn's `make_moons`).

    The combs stand at the midpoints of equal arcs. At the default spacing, below `std`, no teeth are visible: the
    density along an arc ripples by less than 1e-7 of itself.

    Arguments:
        std: the standard deviation of every Gaussian.
        components: the number of Gaussians on each half circle.
    """

    std: float = 0.1
    components: int = 32

    @cached_property
    def _mixture(self) -> GaussianMixture:
        angle = (torch.arange(self.components, dtype=torch.float64) + 0.5) * (math.pi / self.components)
        upper = torch.stack((angle.cos(), angle.sin()), -1)
        lower = torch.stack((1 - angle.cos(), 0.5 - angle.sin()), -1)
        return GaussianMixture(torch.cat((upper, lower)), self.std)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` points, float32 (n, 2)."""
        return self._mixture.sample(n, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """Evaluate log p(x) at points (..., 2)."""
        return self._mixture.log_prob(x)

    @property
    def entropy(self) -> float:
        """The entropy, by quadrature to 1e-6."""
        return self._mixture.entropy


@dataclass(frozen=True)
class Checkerboard:
    """The uniform density on the unit squares of [-2, 2)^2 with floor(x1) + floor(x2) even, of total area 8."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` points, float32 (n, 2)."""
        device = generator.device
        row = torch.randint(-2, 2, (n,), generator=generator, device=device)
        pair = torch.randint(-1, 1, (n,), generator=generator, device=device)
        corner = torch.stack((2 * pair + row % 2, row), -1).to(torch.float32)  # coordinates of equal parity
        x = corner + torch.rand(n, 2, generator=generator, device=device)
        # A sum rounded up to the far edge would belong to the next square, where the density is zero.
        return torch.minimum(x, torch.nextafter(corner + 1, corner))

    def log_prob(self, x: Tensor) -> Tensor:
        """Evaluate log p(x) = -log 8 on dark squares and -inf elsewhere, at points (..., 2)."""
        square = x.floor()
        inside = ((square >= -2) & (square < 2)).all(-1) & (square.sum(-1).remainder(2) == 0)
        outside = torch.where(x.isnan().any(-1), math.nan, -math.inf).to(x)
        return outside.masked_fill(inside, -math.log(8))

    @property
    def entropy(self) -> float:
        """The entropy log 8, exactly."""
        return math.log(8)


@dataclass(frozen=True)
class Pinwheel:
    """Gaussian arms around the origin, twisted by an angle that grows with the radius (after Johnson et al. 2016).

    A point of arm k is x = R(2 pi k / arms + twist |u|) u with u ~ N((radius, 0), diag(radial_std^2, tangential_std^2))
    and R a rotation. The twist keeps the radius and turns each circle rigidly, so its Jacobian determinant is 1 and it
    is undone by the opposite twist: p(x) = 1/arms sum_k N(R(-2 pi k / arms - twist |x|) x), exactly.

    Arguments:
        arms: the number of arms.
        radius: the mean distance along an arm.
        radial_std, tangential_std: the standard deviations along and across an arm.
        twist: the angle in radians by which a unit of radius turns.
    """

    arms: int = 5
    radius: float = 1.0
    radial_std: float = 0.3
    tangential_std: float = 0.1
    twist: float = 1.2

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` points, float32 (n, 2)."""
        arm = torch.randint(self.arms, (n,), generator=generator, device=generator.device)
        u = torch.randn(n, 2, generator=generator, device=generator.device)
        u = u * u.new_tensor((self.radial_std, self.tangential_std)) + u.new_tensor((self.radius, 0.0))
        return _rotate(u, arm * (2 * math.pi / self.arms) + self.twist * torch.linalg.vector_norm(u, dim=-1))

    def log_prob(self, x: Tensor) -> Tensor:
        """Evaluate log p(x) at points (..., 2)."""
        return self._log_prob_straight(_rotate(x, -self.twist * torch.linalg.vector_norm(x, dim=-1)))

    def _log_prob_straight(self, x: Tensor) -> Tensor:
        arm = torch.arange(self.arms, dtype=x.dtype, device=x.device) * (2 * math.pi / self.arms)
        u = _rotate(x.unsqueeze(-2), -arm)  # (..., arms, 2)
        z = (u - u.new_tensor((self.radius, 0.0))) / u.new_tensor((self.radial_std, self.tangential_std))
        constant = math.log(self.arms) + math.log(2 * math.pi * self.radial_std * self.tangential_std)
        return (-0.5 * z.square().sum(-1)).logsumexp(-1) - constant

    @cached_property
    def entropy(self) -> float:
        """The entropy, by quadrature to 1e-6 over the straight arms: a volume-preserving twist leaves it unchanged."""
        reach = self.radius + 8 * max(self.radial_std, self.tangential_std)
        step = min(self.radial_std, self.tangential_std) / 4
        return _entropy(self._log_prob_straight, [-reach, -reach], [reach, reach], step)


DENSITIES: dict[str, Callable[[], Density]] = {
    "ring": ring,
    "grid": grid,
    "moons": Moons,
    "checkerboard": Checkerboard,
    "pinwheel": Pinwheel,
}
"""The densities by name, each in its standard form."""


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Turn points (..., 2) counterclockwise by angles (...)."""
    cosine, sine = angle.cos(), angle.sin()
    return torch.stack((cosine * x[..., 0] - sine * x[..., 1], sine * x[..., 0] + cosine * x[..., 1]), -1)


def _entropy(log_prob: Callable[[Tensor], Tensor], low: list[float], high: list[float], step: float) -> float:
    """Integrate -p log p by the trapezoid rule, which converges exponentially for these analytic functions."""
    first, second = (torch.arange(a, b, step, dtype=torch.float64) for a, b in zip(low, high, strict=True))
    total = 0.0
    for rows in first.split(32):  # a few rows at a time bound the memory
        log_p = log_prob(torch.cartesian_prod(rows, second))
        total -= float((log_p.exp() * log_p).sum())
    return total * step**2
