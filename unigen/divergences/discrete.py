"""Information theory of probability tables: content, entropies, mutual information, KL and JS (Cover & Thomas 2006, ch. 2).

H(p) = -sum p log p;  H(p, q) = -sum p log q = H(p) + KL(p || q);  I(X; Y) = KL(p(x, y) || p(x) p(y)).

Tables are floating-point and sum to one over their last dimension (joint ones over their last two). Terms with p = 0 count as
zero, in values and in gradients; a p > 0 where q = 0 makes a divergence inf, never nan. Results are in nats, or in the unit
of `base`: 2 for bits, 10 for hartleys.
"""

import math

import torch
from torch import Tensor

__all__ = [
    "check_probabilities",
    "conditional_entropy",
    "cross_entropy",
    "entropy",
    "information_content",
    "jensen_shannon_divergence",
    "kullback_leibler_divergence",
    "mutual_information",
    "nats_per_unit",
]


def nats_per_unit(base: float) -> float:
    """Return log(base), the size of one unit in nats; ValueError for a base that is not a finite number above one."""
    if isinstance(base, bool) or not isinstance(base, int | float) or not 1 < base < math.inf:
        raise ValueError(f"The base of a logarithm must be a finite number above 1 (2 for bits), but got {base!r}.")
    return math.log(base)


def check_probabilities(*tables: Tensor, dims: int = 1) -> None:
    """Raise ValueError unless the tables have one shape, no negative entry, and sum to one over the last `dims` dims."""
    if any(table.shape != tables[0].shape for table in tables):
        shapes = " and ".join(str(tuple(table.shape)) for table in tables)
        raise ValueError(f"Probability vectors must have one shape, but got {shapes}.")
    for table in tables:
        if table.ndim < dims or not table.is_floating_point():
            expected = "(..., C)" if dims == 1 else "(..., A, B)"
            raise ValueError(
                f"Expected floating-point probabilities {expected}, but got {tuple(table.shape)} of {table.dtype}."
            )
        if 0 in table.shape[-dims:]:
            raise ValueError(f"Probabilities over no outcome, of shape {tuple(table.shape)}, cannot sum to one.")
        total = table.detach().sum(tuple(range(-dims, 0)))
        tolerance = torch.finfo(table.dtype).eps ** 0.5
        if not bool((table >= 0).all()) or not bool(((total - 1).abs() <= tolerance).all()):
            over = "dimension" if dims == 1 else f"{dims} dimensions"
            raise ValueError(
                f"Probabilities must be nonnegative and sum to one over the last {over}, but got a least entry of "
                f"{table.min().item():.6g} and sums from {total.min().item():.6g} to {total.max().item():.6g}."
            )


def _excess(p: Tensor, q: Tensor) -> Tensor:
    """p log(p/q), elementwise: 0 where p = 0, inf where q = 0 < p; its gradient at a zero of p is left out."""
    inside = (p > 0) & (q > 0)
    log_p, log_q = (torch.where(inside, table, 1.0).double().log() for table in (p, q))  # a ratio p/q would overflow
    finite = torch.where(inside, p, 0.0) * (log_p - log_q).to(p.dtype)
    return torch.where((p > 0) & (q == 0), math.inf, finite)


def information_content(p: Tensor, base: float = math.e) -> Tensor:
    """Compute I(x) = -log p(x), elementwise, of probabilities of any shape; inf where p = 0 (Shannon 1948).

    >>> information_content(torch.tensor(1 / 6), base=2)
    tensor(2.5850)

    Theory: information-adds-up [shannon1948].
    """
    if not p.is_floating_point() or not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError("Probabilities must be floating-point numbers in [0, 1]; got others.")
    return -torch.log(p) / nats_per_unit(base)


def entropy(p: Tensor, base: float = math.e) -> Tensor:
    """Compute the Shannon entropy H(p) = -sum p log p of probabilities (..., C); returns shape (...).

    base: of the logarithm, above 1; nats by default. ValueError for entries or sums that are no probabilities.
    Source: Shannon (1948), A mathematical theory of communication.

    >>> entropy(torch.tensor([0.5, 0.25, 0.25]), base=2)
    tensor(1.5000)

    Theory: entropies-in-closed-form [shannon1948, cover2006].
    """
    check_probabilities(p)
    return -_excess(p, torch.ones_like(p)).sum(-1) / nats_per_unit(base)


def cross_entropy(p: Tensor, q: Tensor, base: float = math.e) -> Tensor:
    """Compute H(p, q) = -sum p log q, the mean length of a code made for q; inf where p is positive and q is zero.

    p, q: probabilities, shape (..., C). Returns shape (...), in nats or the unit of `base`. ValueError for shapes or sums
    that do not fit. Source: Cover and Thomas (2006).

    Theory: cross-entropy-excess [cover2006].
    """
    check_probabilities(p, q)
    used = p > 0
    code_length = -torch.log(torch.where(used, q, 1.0))
    return (torch.where(used, p, 0.0) * code_length).sum(-1) / nats_per_unit(base)


def kullback_leibler_divergence(p: Tensor, q: Tensor, base: float = math.e) -> Tensor:
    """Compute KL(p || q) = sum p (log p - log q); inf where p is positive and q is zero.

    p, q: probabilities, shape (..., C). Returns shape (...), in nats or the unit of `base`. ValueError for shapes or sums
    that do not fit. Source: Kullback and Leibler (1951); Cover and Thomas (2006).

    Theory: cross-entropy-excess, kl-support-mismatch [kullback1951].
    """
    check_probabilities(p, q)
    return _excess(p, q).sum(-1) / nats_per_unit(base)


def jensen_shannon_divergence(p: Tensor, q: Tensor, base: float = math.e) -> Tensor:
    """Compute JS(p, q) = KL(p || m)/2 + KL(q || m)/2 with m = (p + q)/2, in [0, log 2], or [0, 1] in bits.

    p, q: probabilities, shape (..., C). Returns shape (...). Half of the f-divergence named `jensen_shannon`.
    Source: Lin (1991), Divergence measures based on the Shannon entropy.

    Theory: jensen-shannon, jensen-shannon-of-label [lin1991].
    """
    check_probabilities(p, q)
    mixture = (p + q) / 2
    return (_excess(p, mixture) + _excess(q, mixture)).sum(-1) / 2 / nats_per_unit(base)


def conditional_entropy(joint: Tensor, base: float = math.e) -> Tensor:
    """Compute H(X|Y) = H(X, Y) - H(Y) = -sum p(x, y) log p(x|y) of joint tables (..., X, Y); returns shape (...).

    Source: Cover and Thomas (2006); at most H(X), with equality for independent X and Y.

    Theory: conditional-entropy [cover2006].
    """
    check_probabilities(joint, dims=2)
    return -_excess(joint, joint.sum(-2, keepdim=True).expand_as(joint)).sum((-2, -1)) / nats_per_unit(base)


def mutual_information(joint: Tensor, base: float = math.e) -> Tensor:
    """Compute I(X; Y) = sum p(x, y) log[p(x, y) / (p(x) p(y))] of joint tables (..., X, Y); returns shape (...).

    Source: Cover and Thomas (2006); zero for independent X and Y, at most the smaller of H(X) and H(Y).

    >>> mutual_information(torch.tensor([[0.5, 0.0], [0.0, 0.5]]), base=2)
    tensor(1.)

    Theory: mutual-information, information-gain [cover2006].
    """
    check_probabilities(joint, dims=2)
    wide = joint.double()  # in which a product of small probabilities is above zero
    independent = wide.sum(-1, keepdim=True) * wide.sum(-2, keepdim=True)
    return _excess(wide, independent).sum((-2, -1)).to(joint.dtype) / nats_per_unit(base)
