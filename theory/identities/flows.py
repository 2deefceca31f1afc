"""Flows: the change of variables, its composition, and triangular Jacobians (rows H1, H2, H4).

log p(x) = log N(z; 0, I) + log |det dz/dx|, z the inverse image of x. Right sides take the Jacobian by autograd.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor
from torch.autograd.functional import jacobian

from identities.exact import expected, gradient
from identities.identity import Sides, identity, stack
from identities.tables import normals, scatter
from unigen import routines
from unigen.pairs import flow

__all__ = [
    "change_of_variables",
    "flows_compose",
    "triangular_jacobian",
]

DINH = "Dinh, Krueger & Bengio 2015; Dinh, Sohl-Dickstein & Bengio 2017"


def _flow(generator: Generator, kind: str, steps: int, dimension: int = 3) -> Any:
    """Return a small flow with random weights, shift and scale."""
    start = normals(generator, 6, dimension)
    return scatter(flow(dimension, kind=kind, steps=steps, hidden=(8,), start=start), generator, 0.25)


def _inverse(pair: Any, x: Tensor) -> Tensor:
    """Undo every transform, last first."""
    for transform in reversed(pair.model.distribution().transforms):
        x = transform.inv(x)
    return x


def _log_normal(z: Tensor) -> Tensor:
    return -z.square().sum() / 2 - len(z) / 2 * math.log(2 * math.pi)


@identity(
    "log p(x) = log p_z(f^-1(x)) + log |det d f^-1/dx|, and its gradient: both kinds of flow",
    DINH,
    ("unigen.pairs.flow", "unigen.routines.maximum_likelihood"),
    ("H1", "H3"),
    "the determinant of the forward map added",
)
def change_of_variables(generator: Generator, wrong: bool) -> Sides:
    left, right = [], []
    for kind in ("affine_coupling", "affine_autoregressive"):
        pair, x = _flow(generator, kind, 2), normals(generator, 3)
        mean = expected(routines.maximum_likelihood[0], pair, [(1.0, x[None])])
        slope = jacobian(lambda at, pair=pair: _inverse(pair, at), x, create_graph=True)
        volume = torch.linalg.slogdet(slope).logabsdet
        log_p = _log_normal(_inverse(pair, x)) + (-volume if wrong else volume)
        left += [mean.value, mean.gradient]
        right += [log_p, gradient(log_p, pair, "theta")]
    return stack(*left), stack(*right)


@identity(
    "log |det d(f_K ... f_1)/dz| = sum_k log |det df_k/dz_(k-1)|, and f^-1(f(z)) = z",
    DINH + "; Rezende & Mohamed 2015",
    ("unigen.pairs.flow",),
    ("H1", "H2"),
    "the last step left out",
)
def flows_compose(generator: Generator, wrong: bool) -> Sides:
    pair, z = _flow(generator, "affine_coupling", 3), normals(generator, 3)
    transforms = pair.model.distribution().transforms
    total, at = torch.zeros(()), z
    for transform in transforms[:-1] if wrong else transforms:
        after = transform(at)
        total = total + transform.log_abs_det_jacobian(at, after).sum()
        at = after

    def forward(z: Tensor) -> Tensor:
        for transform in pair.model.distribution().transforms:
            z = transform(z)
        return z

    whole = torch.linalg.slogdet(jacobian(forward, z)).logabsdet
    back = _inverse(pair, forward(z).detach().clone())
    return stack(total, back), stack(whole, z)


@identity(
    "autoregressive: dz_i/dx_j = 0 for j > i exactly, so log |det| = sum_i log |dz_i/dx_i|",
    "Kingma et al. 2016; Papamakarios, Pavlakou & Murray 2017",
    ("unigen.pairs.flow",),
    ("H4",),
    "the trace for the determinant",
)
def triangular_jacobian(generator: Generator, wrong: bool) -> Sides:
    pair, x = _flow(generator, "affine_autoregressive", 1, 4), normals(generator, 4)
    slope = jacobian(lambda at: _inverse(pair, at), x)
    log_p = expected(routines.maximum_likelihood[0], pair, [(1.0, x[None])]).value
    order = pair.model.steps[0].arn.get_permutation()  # Pyro's network conditions in an order of its own
    slope = slope[order][:, order]
    diagonal = slope.diagonal()
    volume = diagonal.sum() if wrong else diagonal.abs().log().sum()
    upper = torch.triu(slope, 1)
    return stack(upper, log_p - _log_normal(_inverse(pair, x))), stack(torch.zeros(4, 4), volume)
