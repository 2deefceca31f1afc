"""Optimal transport: W_r(P, Q)^r = min over couplings of E|x - y|^r, on the line, exactly, in its dual, and for normals.

    W_1(P, Q) = max over 1-Lipschitz f of E_P f - E_Q f     (Kantorovich and Rubinstein; Villani 2009)

Distances are in the units of the rows. Values are differentiable in the samples, the coupling held fixed, which is the gradient
wherever the best coupling is unique. Couplings in more than one dimension are found by POT's network simplex, an
optional dependency.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unigen.divergences.discrete import check_probabilities

__all__ = [
    "Transport",
    "optimal_transport",
    "wasserstein",
    "wasserstein_1",
    "wasserstein_1_critic",
    "wasserstein_2_normals",
]


def _check_line(x: Tensor, y: Tensor, name: str) -> None:
    if x.ndim != 1 or y.ndim != 1 or len(x) == 0 or len(y) == 0:
        raise ValueError(
            f"{name} compares two nonempty samples of shape (n,), but got {tuple(x.shape)} and {tuple(y.shape)}."
        )


def _signed_gap(x: Tensor, y: Tensor, knots: Tensor) -> Tensor:
    """F_x - F_y on the intervals between the sorted knots."""
    left = knots[:-1].detach()
    # Counts over a common denominator keep the gap exactly zero where the two distributions agree.
    below_x = torch.searchsorted(x.detach().sort().values, left, right=True)
    below_y = torch.searchsorted(y.detach().sort().values, left, right=True)
    return (below_x * len(y) - below_y * len(x)).to(knots.dtype) / (len(x) * len(y))


def wasserstein_1(x: Tensor, y: Tensor) -> Tensor:
    """Compute W1 = integral |F_x - F_y| between two samples on the line; with equal sizes, mean |sort x - sort y|.

    x: shape (n,). y: shape (m,), sizes may differ. Returns a scalar, differentiable in both samples. ValueError for other
    shapes. Source: Vallender (1974), Theory of Probability and its Applications 18(4).

    Theory: wasserstein-on-the-line, parallel-lines [villani2009, vallender1974].
    """
    _check_line(x, y, "wasserstein_1")
    knots = torch.cat([x, y]).sort().values
    return (_signed_gap(x, y, knots).abs() * knots.diff()).sum()


def wasserstein_1_critic(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the best 1-Lipschitz critic f at two samples on the line: mean f(x) - mean f(y) = W1.

    x: shape (n,). y: shape (m,). Returns f(x) (n,) and f(y) (m,), with f = 0 at the least point; its slope is the sign of
    F_y - F_x. Source: Villani (2009), Optimal transport.

    >>> wasserstein_1_critic(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0]))
    (tensor([3., 4.]), tensor([0., 1.]))

    Theory: wasserstein-on-the-line, wgan-value [villani2009].
    """
    _check_line(x, y, "wasserstein_1_critic")
    pooled = torch.cat([x, y]).detach()
    knots, order = pooled.sort()
    # Where the distribution functions agree every slope is optimal: take 1, so that the critic keeps climbing.
    gap = _signed_gap(x, y, knots)
    slope = torch.where(gap <= 0, 1.0, -1.0).to(knots)
    critic = torch.empty_like(knots)
    critic[order] = torch.cat([knots.new_zeros(1), (slope * knots.diff()).cumsum(0)])
    return critic[: len(x)], critic[len(x) :]


@dataclass(frozen=True, eq=False)
class Transport:
    """Hold a transport problem's solution.

    value: the least mean cost, a scalar, differentiable in the cost. plan: (n, m), the mass moved from each row to each
    column. potentials: (n,) and (m,), u_i + v_j <= cost_ij with p.u + q.v = value: the proof that no plan costs less.

    Theory: wasserstein [peyre2019].
    """

    value: Tensor
    plan: Tensor
    potentials: tuple[Tensor, Tensor]


def optimal_transport(cost: Tensor, p: Tensor | None = None, q: Tensor | None = None) -> Transport:
    """Solve min over plans with margins p and q of sum plan * cost, exactly, with its dual, by the network simplex.

    cost: shape (n, m), finite. p: shape (n,). q: shape (m,); probabilities, equal ones by default.
    ValueError for shapes or probabilities that do not fit; ImportError where POT is missing.
    Source: Kantorovich (1942); Bonneel et al. (2011), the solver of POT (Flamary et al. 2021, JMLR 22).

    Theory: wasserstein [peyre2019].
    """
    try:
        import ot
    except ImportError:
        raise ImportError(
            "Exact transport in more than one dimension needs POT: pip install POT; on the line wasserstein_1 needs nothing."
        ) from None
    if cost.ndim != 2 or 0 in cost.shape or not bool(cost.isfinite().all()):
        raise ValueError(
            f"A cost is a finite table of shape (n, m); got shape {tuple(cost.shape)}, or infinite entries."
        )
    margins = []
    for name, margin, size in (("p", p, cost.shape[0]), ("q", q, cost.shape[1])):
        given = cost.new_full((size,), 1 / size) if margin is None else margin.detach()
        check_probabilities(given)
        if given.shape != (size,):
            raise ValueError(f"The margin {name} has shape {tuple(given.shape)}, expected ({size},) for this cost.")
        double = given.double().cpu()
        margins.append((double / double.sum()).numpy())
    plan, log = ot.emd(*margins, cost.detach().double().cpu().numpy(), numItermax=10_000_000, log=True)
    if log["warning"] is not None:
        raise RuntimeError(f"The transport problem of size {tuple(cost.shape)} was not solved: {log['warning']}.")
    plan, *potentials = (torch.as_tensor(part).to(cost) for part in (plan, log["u"], log["v"]))
    return Transport((plan * cost).sum(), plan, (potentials[0], potentials[1]))


def wasserstein(x: Tensor, y: Tensor, order: float = 1.0) -> Tensor:
    """Compute W_r(P, Q) = (min over couplings of mean |x - y|^r)^(1/r) between two samples, exactly.

    x: shape (n, D). y: shape (m, D). order: r >= 1. Returns a differentiable scalar in the units of the rows. On the line, with
    equal sizes or r = 1, by sorting; else by POT (about n^3 operations). ValueError for other shapes or orders;
    ImportError where POT is needed and missing. Source: Villani (2009).

    Theory: wasserstein [peyre2019].
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or 0 in (len(x), len(y)):
        raise ValueError(
            f"Expected samples of shapes (n, D) and (m, D) with one D and at least one row, but got {tuple(x.shape)} and "
            f"{tuple(y.shape)}."
        )
    if not 1 <= order < math.inf:
        raise ValueError(f"The order of a Wasserstein distance is a finite number from 1, but got {order!r}.")
    if x.shape[1] == 1 and order == 1:
        return wasserstein_1(x[:, 0], y[:, 0])
    if x.shape[1] == 1 and len(x) == len(y):
        mean = ((x[:, 0].sort().values - y[:, 0].sort().values).abs() ** order).mean()
    else:
        distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        mean = optimal_transport(distance**order).value
    return mean if order == 1 else mean ** (1 / order)


def wasserstein_2_normals(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> Tensor:
    """Compute W2 between normals: W2^2 = |m - m'|^2 + tr(S + S' - 2 (S^1/2 S' S^1/2)^1/2); its square is FID's distance.

    means: shape (D,). covariances: shape (D, D), symmetric and positive semidefinite. Returns a scalar in the units of the
    rows. ValueError for other shapes or a negative eigenvalue. Source: Dowson and Landau (1982); Olkin and Pukelsheim (1982).

    Theory: wasserstein-of-normals [dowson1982].
    """
    size = len(mean)
    for name, tensor, shape in (
        ("mean", mean, (size,)),
        ("covariance", covariance, (size, size)),
        ("other_mean", other_mean, (size,)),
        ("other_covariance", other_covariance, (size, size)),
    ):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape} beside a mean of size {size}.")
    root = _square_root(covariance, "covariance")
    # The nuclear norm of S^1/2 S'^1/2 is the trace of the root, and loses no digits to a second square root.
    crossed = torch.linalg.svdvals(root @ _square_root(other_covariance, "other_covariance")).sum()
    squared = (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * crossed
    return squared.clamp_min(0.0).sqrt()


def _square_root(covariance: Tensor, name: str) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    largest = values.abs().max()
    if not bool(torch.allclose(covariance, covariance.mT)) or bool(
        values.min() < -(torch.finfo(values.dtype).eps ** 0.5) * largest
    ):
        raise ValueError(
            f"{name} must be symmetric and positive semidefinite, but has an eigenvalue {values.min():.6g}."
        )
    return (vectors * values.clamp_min(0.0).sqrt()) @ vectors.mT
