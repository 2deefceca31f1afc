"""Soft logic and rules: truth values in [0, 1], rules with a confidence, and how much a student imitates its teacher.

    a & b = max(a + b - 1, 0)     a | b = min(a + b, 1)     !a = 1 - a     a -> b = min(1 - a + b, 1)     (Lukasiewicz)

A rule of truth r and confidence λ may be broken at a cost: the least slack in λ (1 - E_q r) <= ξ. Its teacher is
q* ~ p exp(-C Σ λ (1 - r)): ``unigen.objectives.Imitation``, ``unigen.routines.rule_distillation``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unigen.phases import Objective, check_number, name_of

__all__ = ["Rule", "conjunction", "disjunction", "imitation_share", "implication", "negation", "plausibility"]


def conjunction(first: Tensor, *others: Tensor) -> Tensor:
    """a & b & ... = max(a + b + ... - (n - 1), 0), for n truth values in [0, 1] whose shapes broadcast.

    >>> from torch import tensor
    >>> conjunction(tensor(0.75), tensor(0.5))
    tensor(0.2500)

    Theory: soft-logic [bach2017, hu2016].
    """
    return (sum(others, first) - len(others)).clamp_min(0)


def disjunction(first: Tensor, *others: Tensor) -> Tensor:
    """a | b | ... = min(a + b + ..., 1), for truth values in [0, 1] whose shapes broadcast.

    Theory: soft-logic [bach2017, hu2016].
    """
    return sum(others, first).clamp_max(1)


def negation(truth: Tensor) -> Tensor:
    """!a = 1 - a.

    Theory: soft-logic [bach2017, hu2016].
    """
    return 1 - truth


def implication(premise: Tensor, conclusion: Tensor) -> Tensor:
    """a -> b = min(1 - a + b, 1), the largest c with a & c <= b; shapes broadcast.

    Theory: soft-logic [bach2017, hu2016].
    """
    return (1 - premise + conclusion).clamp_max(1)


def plausibility(draw: Any) -> Tensor:
    """r(x, z) = p(x, z) / max_z p(x, z), the truth of "z is the model's best account of x", in [0, 1]; (M, N).

    Read under ``Enumerate``: the maximum is over every value of z.

    Theory: rule-distillation [hu2016].
    """
    return (draw.log_p - draw.log_p.amax(0)).exp()


@dataclass(frozen=True)
class Rule:
    """-λ (1 - r(x, z)), what it costs to break a rule of truth r and confidence λ.

    truth: a function of a draw with values in [0, 1], one a datum. confidence: λ >= 0. A rule with several groundings in a
    datum is several rules.

    Theory: rule-teacher [hu2016].
    """

    truth: Objective
    confidence: float = 1.0

    def __post_init__(self) -> None:
        if not callable(self.truth):
            raise ValueError(f"a rule's truth is a function of a draw with values in [0, 1]; got {str(self.truth):.80}")
        check_number("a rule's confidence", self.confidence)

    def __call__(self, draw: Any) -> Tensor:
        return -self.confidence * (1 - self.truth(draw))

    def __str__(self) -> str:
        return f"{self.confidence:g} {name_of(self.truth)}"


def imitation_share(step: int, bound: float = 0.9, decay: float = 0.9) -> float:
    """π_t = min(π_0, 1 - α^t), the teacher's share of what a student learns in step (or epoch) t, from 0 up to π_0.

    step: t >= 0. bound: π_0 in [0, 1]. decay: α in [0, 1]. ``ValueError`` for others.

    >>> [imitation_share(t, 0.8, 0.5) for t in range(4)]
    [0.0, 0.5, 0.75, 0.8]

    Theory: imitation-schedule [hu2016].
    """
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"the imitation share is of a step from 0; got {step!r}")
    check_number("bound", bound, 1.0)
    check_number("decay", decay, 1.0)
    return min(bound, 1 - decay**step)
