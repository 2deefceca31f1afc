"""Domain knowledge: posterior regularization, learnable constraints, rules and their distillation (rows I1 to I4, I6 to I8).

E-step: q* = argmin KL(q || p_theta) - alpha E_q f = p_theta exp(alpha f) / Z. The engine reweights dreams by exp(alpha f);
on a perfect sample, every value as often as the model says, its weights must be q* exactly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from identities.estimators import line_pair
from identities.exact import drawn, expected, gradient, on_samples, weights_of
from identities.identity import Sides, identity, stack
from identities.tables import LatentTables, gan_pair, latent_pair, normals, rows_of, simplex
from unigen import routines
from unigen.divergences import kullback_leibler_divergence
from unigen.logic import Rule, conjunction, disjunction, imitation_share, implication, negation, plausibility
from unigen.objectives import log_q
from unigen.phases import PHI, THETA, Enumerate, Pathwise, Phase, ScoreFunction, Sleep, Tilted

__all__ = [
    "constraint_learns_as_a_reward",
    "cube",
    "distillation_mixes_targets",
    "e_step_of_posterior_regularization",
    "gradient_of_a_constraint",
    "imitation_schedule",
    "implicit_e_step",
    "implicit_m_step",
    "m_step_of_posterior_regularization",
    "perfect_sample",
    "rule_distillation",
    "rule_teacher",
    "shares",
    "soft_logic",
]

GANCHEV = "Ganchev et al. 2010"
HU_PR = "Hu et al. 2018b, arXiv 1806.09764"
HU_RULES = "Hu et al. 2016, arXiv 1603.06318"


class Perfect(NamedTuple):
    """A pair, its tables, and dreams (z, x) in which every value comes exactly as often as the model says."""

    pair: Any
    tables: LatentTables
    dreams: dict[str, Tensor]
    data: Tensor


def perfect_sample(generator: Generator) -> Perfect:
    """Return tables with rational probabilities c(z, x) / N, and the N dreams; as many random data."""
    pair, tables = latent_pair(generator)
    counts = torch.randint(1, 4, (3, 3), generator=generator)
    with torch.no_grad():
        pair.get_parameter("model.prior").copy_(counts.sum(1).double().log())
        pair.get_parameter("model.table").copy_(counts.double().log())
    z = torch.arange(3).repeat_interleave(counts.sum(1))
    x = torch.arange(9).remainder(3).repeat_interleave(counts.reshape(-1))
    order = torch.randperm(len(x), generator=generator)
    data = torch.randint(0, 3, (len(x),), generator=generator)
    return Perfect(pair, tables, {"z": z[order], "x": x[order]}, data)


def shares(weights: Tensor, values: Tensor, symbols: int = 3) -> Tensor:
    """Return the total weight of each symbol."""
    return torch.zeros(symbols, dtype=torch.float64).scatter_add_(0, values, weights.double())


@identity(
    "q* = p exp(alpha f) / Z: KL(q || p) - alpha E_q f = KL(q || q*) - log Z for every q, so q* is the minimizer",
    GANCHEV + "; " + HU_PR,
    ("unigen.routines.posterior_regularization", "unigen.phases.Tilted"),
    ("I2",),
    "the constraint taken as a cost",
)
def e_step_of_posterior_regularization(generator: Generator, wrong: bool) -> Sides:
    pair, tables, dreams, data = perfect_sample(generator)
    alpha = 0.5 + torch.rand((), generator=generator, dtype=torch.float64)
    f = pair.get_parameter("psi.constraint.table").detach()
    q_star = routines.posterior_regularization("constraint", float(alpha))[0].under
    found = shares(weights_of(drawn(q_star, pair, data, dreams)), dreams["x"])
    p, q = tables.log_evidence.exp().detach(), simplex(generator, 3)
    tilt = p * (-alpha * f if wrong else alpha * f).exp()
    objective = kullback_leibler_divergence(q, p) - alpha * (q * f).sum()
    return stack(found, objective), stack(
        tilt / tilt.sum(), kullback_leibler_divergence(q, tilt / tilt.sum()) - tilt.sum().log()
    )


@identity(
    "M-step: sum_n w~_n grad log p(x_n, z_n) = E_q*[grad log p] = grad_theta log E_p_theta[exp(alpha f)] at the present theta",
    HU_PR + "; " + GANCHEV,
    ("unigen.routines.posterior_regularization",),
    ("I3",),
    "the gradient of E_p f, which is only its first order in alpha",
)
def m_step_of_posterior_regularization(generator: Generator, wrong: bool) -> Sides:
    pair, tables, dreams, data = perfect_sample(generator)
    alpha = 0.5 + torch.rand((), generator=generator, dtype=torch.float64)
    phase = routines.posterior_regularization("constraint", float(alpha))[0]
    left = on_samples(phase, pair, data, dreams).gradient
    f = pair.get_parameter("psi.constraint.table").detach()
    p = tables.log_evidence.exp()
    exact = (alpha * p * f).sum() if wrong else (p * (alpha * f).exp()).sum().log()
    return left, gradient(exact, pair, "theta")


@identity(
    "max_psi E_data log q_psi(x), q_psi ~ p exp(alpha f_psi), has gradient alpha (E_data grad f_psi - E_q* grad f_psi)",
    HU_PR + " (inverse reinforcement learning)",
    ("unigen.routines.posterior_regularization", "unigen.objectives.Network"),
    ("I4",),
    "the mean over the model instead of q*",
)
def constraint_learns_as_a_reward(generator: Generator, wrong: bool) -> Sides:
    pair, tables, dreams, data = perfect_sample(generator)
    alpha = 0.5 + torch.rand((), generator=generator, dtype=torch.float64)
    phase = routines.posterior_regularization("constraint", float(alpha))[1]
    mean = on_samples(phase, pair, data, dreams)
    f, p = pair.get_parameter("psi.constraint.table"), tables.log_evidence.exp().detach()
    log_q = torch.log_softmax(p.log() + alpha * f, 0)
    empirical = shares(torch.ones(len(data)), data) / len(data)
    likelihood = (empirical * log_q).sum()
    if wrong:
        likelihood = alpha * ((empirical - p) * f).sum()
    gap = (empirical * f).sum() - (log_q.exp() * f).sum()
    return stack(mean.value, alpha * mean.gradient), stack(gap, gradient(likelihood, pair, "psi"))


@identity(
    "implicit M-step: grad_theta alpha E_p_theta f = -grad_theta KL(p_theta || q*), for q* ~ p_theta0 exp(alpha f)",
    HU_PR,
    ("unigen.routines.posterior_regularization", "unigen.objectives.OnGenerated"),
    ("I3", "I1"),
    "the other direction, KL(q* || p_theta)",
)
def implicit_m_step(generator: Generator, wrong: bool) -> Sides:
    pair, p = gan_pair(generator), simplex(generator, 3)
    alpha = 0.5 + torch.rand((), generator=generator, dtype=torch.float64)
    phase = routines.posterior_regularization("constraint", float(alpha), implicit=True)[0]
    left = expected(phase, pair, rows_of(p)).gradient
    g = torch.softmax(pair.model.table[0], -1)
    q_star = torch.softmax(g.detach().log() + alpha * pair.get_parameter("psi.constraint.table").detach(), 0)
    divergence = kullback_leibler_divergence(q_star, g) if wrong else kullback_leibler_divergence(g, q_star)
    return left, gradient(-divergence, pair, "theta")


@identity(
    "implicit E-step: the weights leave the data out and are p_g exp(alpha f) / Z over generated rows",
    HU_PR,
    ("unigen.routines.posterior_regularization", "unigen.objectives.OnlyGenerated"),
    ("I2",),
    "the data weighted too",
)
def implicit_e_step(generator: Generator, wrong: bool) -> Sides:
    pair: Any = gan_pair(generator)
    counts = torch.randint(1, 4, (3,), generator=generator)
    with torch.no_grad():
        pair.model.table.copy_(counts.double().log())
    made = torch.arange(3).repeat_interleave(counts)
    data = torch.zeros_like(made)
    q_star = routines.posterior_regularization("constraint", 1.5, implicit=True)[1].against or Sleep()
    rows = torch.cat([data, made])
    weights = weights_of(drawn(q_star, pair, data, {"x": rows}))
    tilt = (1.5 * pair.get_parameter("psi.constraint.table").detach()).exp()
    among = shares(torch.ones(len(rows)), rows) if wrong else counts
    return stack(shares(weights, rows), weights[: len(data)]), stack(
        among * tilt / (among * tilt).sum(), torch.zeros(len(data))
    )


def cube(draw: Any) -> Tensor:
    """x^3."""
    return draw["x"] ** 3


@identity(
    "grad E_p[f]: by the path E_e[f'(x) grad x(e)], by the score E_p[f grad log p]; for x^3, 3 m^2 + 3 s^2 and 6 m s",
    "Williams 1992; " + HU_PR,
    ("unigen.phases.Pathwise", "unigen.phases.ScoreFunction", "unigen.phases.Sleep"),
    ("I1", "D8", "D9"),
    "the score without f",
)
def gradient_of_a_constraint(generator: Generator, wrong: bool) -> Sides:
    pair, zero = line_pair(generator), torch.zeros(1, dtype=torch.float64)
    m, s = pair.model.loc.detach(), pair.model.scale.detach()
    found = [
        expected(Phase(cube, Sleep(), THETA, estimator=estimator), pair, [(1.0, zero)], nodes=5)
        for estimator in (Pathwise(), ScoreFunction())
    ]
    slopes = (0 * m, 0 * s) if wrong else (3 * m**2 + 3 * s**2, 6 * m * s)
    value = m**3 + 3 * m * s**2
    return stack(*[part for mean in found for part in mean[:2]]), stack(value, *slopes, value, *slopes)


# -- rules ---------------------------------------------------------------------------------------------------------------


def _table_rule(rule: Tensor, confidence: float = 1.0) -> Rule:
    """Return the rule whose truth is looked up in a table (X, Z); the student is q(z|x), z its label."""
    return Rule(lambda draw: rule[draw["x"], draw["z"]], confidence)


@identity(
    "teacher: q*(y|x) ~ p(y|x) exp(-C lambda (1 - r)); KL(q || p) + C lambda (1 - E_q r) = KL(q || q*) - log Z for every q",
    HU_RULES,
    ("unigen.routines.rule_distillation", "unigen.logic.Rule", "unigen.objectives.Imitation"),
    ("I6", "I7"),
    "the rule's truth rewarded in linear, not in log, space",
)
def rule_teacher(generator: Generator, wrong: bool) -> Sides:
    pair, tables = latent_pair(generator)
    rule = torch.rand(3, 3, generator=generator, dtype=torch.float64)
    strength, confidence = 6.0, float(simplex(generator, 2)[0])
    routine = routines.rule_distillation(_table_rule(rule, confidence), strength, share=1.0)
    weights = weights_of(drawn(routine[0].under, pair, torch.arange(3))).T
    student, cost = tables.q.detach(), strength * confidence
    tilt = student * (1 - cost * (1 - rule)).abs() if wrong else student * (-cost * (1 - rule)).exp()
    z = tilt.sum(-1)
    q = simplex(generator, 3, 3)
    slack = cost * (1 - (q * rule).sum(-1))  # C times the slack: xi = lambda (1 - E_q r) is the least allowed
    objective = kullback_leibler_divergence(q, student) + slack
    teacher = tilt / z[:, None]
    return stack(weights, objective), stack(teacher, kullback_leibler_divergence(q, teacher) - z.log())


@identity(
    "student: grad E_t log q = (1 - pi) grad E_p(z|x) log q + pi grad E_q* log q, q* ~ q exp(-C sum_l lambda_l (1 - r_l)) held",
    HU_RULES,
    ("unigen.routines.rule_distillation", "unigen.objectives.Imitation", "unigen.logic.plausibility"),
    ("I6",),
    "the teacher's gradient taken too",
)
def rule_distillation(generator: Generator, wrong: bool) -> Sides:
    pair, tables = latent_pair(generator)
    rule, pi = torch.rand(3, 3, generator=generator, dtype=torch.float64), float(simplex(generator, 2)[0])
    phase = routines.rule_distillation((plausibility, _table_rule(rule, 0.5)), 3.0, pi)[0]
    p = simplex(generator, 3)
    left = expected(phase, pair, rows_of(p)).gradient
    joint, q = tables.log_joint.detach().exp(), tables.q
    likely = joint / joint.max(-1, keepdim=True).values
    tilt = (q if wrong else q.detach()) * (-3.0 * (1 - likely) - 1.5 * (1 - rule)).exp()
    losses = [
        (p[:, None] * target * q.log()).sum() for target in (tables.posterior.detach(), tilt / tilt.sum(-1, True))
    ]
    return left, (1 - pi) * gradient(losses[0], pair, "phi", keep=True) + pi * gradient(losses[1], pair, "phi")


@identity(
    "student: grad [(1 - pi) l(y, s) + pi l(t, s)] = grad l((1 - pi) y + pi t, s): imitation mixes targets, not models",
    HU_RULES,
    ("unigen.objectives.log_q", "unigen.phases.Tilted", "unigen.phases.Enumerate"),
    ("I6",),
    "the mixture of the two losses' targets in log space",
)
def distillation_mixes_targets(generator: Generator, wrong: bool) -> Sides:
    pair, tables = latent_pair(generator)
    rule, pi = normals(generator, 3, 3), torch.rand((), generator=generator, dtype=torch.float64)
    label = torch.nn.functional.one_hot(torch.randint(0, 3, (3,), generator=generator), 3).double()

    def tilt(draw: Any) -> Tensor:
        return rule[draw["x"], draw["z"]]

    def named(draw: Any) -> Tensor:
        return label[draw["x"], draw["z"]].log() - draw.log_q.detach()  # the teacher that only knows the label

    p = simplex(generator, 3)
    from_teacher = expected(Phase(log_q, Tilted(Enumerate(), tilt), PHI), pair, rows_of(p)).gradient
    from_label = expected(Phase(log_q, Tilted(Enumerate(), named), PHI), pair, rows_of(p)).gradient
    teacher = torch.softmax(tables.q.detach().log() + rule, -1)
    target = (1 - pi) * label + pi * teacher
    if wrong:
        target = torch.softmax(pi * teacher.log() + (1 - pi) * (label + 0.1).log(), -1)
    exact = gradient((p[:, None] * target * tables.q.log()).sum(), pair, "phi")
    return (1 - pi) * from_label + pi * from_teacher, exact


@identity(
    "a & b = max(a + b - 1, 0), a | b = min(a + b, 1), !a = 1 - a: Boolean on {0, 1}, De Morgan, a -> b = max{c: a & c <= b}",
    "Lukasiewicz logic; Bach et al. 2017 (PSL); " + HU_RULES,
    ("unigen.logic.conjunction", "unigen.logic.disjunction", "unigen.logic.negation", "unigen.logic.implication"),
    ("I7",),
    "the product for the conjunction",
)
def soft_logic(generator: Generator, wrong: bool) -> Sides:
    a, b, c = torch.rand(3, 50, generator=generator, dtype=torch.float64)
    bits = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    p, q = bits.T
    truth_tables = stack(conjunction(p, q), disjunction(p, q), implication(p, q), negation(p))
    by_hand = stack(p * q, p + q - p * q, 1 - p * (1 - q), 1 - p)
    low, high = torch.zeros(50).double(), torch.ones(50).double()
    for _ in range(60):  # the residuum by bisection
        middle = (low + high) / 2
        fits = torch.relu(a + middle - 1) <= b
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    both = a * b if wrong else conjunction(a, b)
    left = stack(both, implication(a, b), conjunction(a, b, c), disjunction(a, b, c), truth_tables)
    morgan = negation(disjunction(negation(a), negation(b)))
    return left, stack(morgan, high, conjunction(a, conjunction(b, c)), torch.minimum(a + b + c, a * 0 + 1), by_hand)


@identity(
    "pi_t = min(pi_0, 1 - alpha^t): s_t = 1 - alpha^t obeys s_(t+1) = 1 - alpha (1 - s_t) from 0, and pi_0 bounds it above",
    HU_RULES + "; the lecture calls pi_0 a lower bound",
    ("unigen.logic.imitation_share",),
    ("I8",),
    "max, pi_0 as a lower bound",
)
def imitation_schedule(generator: Generator, wrong: bool) -> Sides:
    bound, alpha = (float(part) for part in 0.5 + 0.45 * torch.rand(2, generator=generator, dtype=torch.float64))
    left, share = [], 0.0
    for _ in range(30):
        left.append(max(bound, share) if wrong else min(bound, share))
        share = 1 - alpha * (1 - share)
    right = [imitation_share(t, bound, alpha) for t in range(30)]
    over = [max(one - bound, 0.0) for one in right]
    return stack(*left, torch.zeros(30)), stack(*right, *over)
