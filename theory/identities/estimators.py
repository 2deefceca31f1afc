"""Estimators of a gradient of an expectation: by the path, by the score, and their variance (rows D8, D9).

grad E_q f(z) = E_e[f'(z) grad z(e)] = E_q[f(z) grad log q(z)]. The mean over every outcome is the engine's, exactly.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Generator, Tensor, nn

from identities.autoencoding import guide_by_hand, linear_bound, linear_pair
from identities.exact import expected, gradient
from identities.identity import Sides, identity, stack
from identities.tables import latent_pair, normals, rows_of, scatter, simplex
from unigen import routines
from unigen.engines.programs import Programs, unreached
from unigen.networks import Baseline
from unigen.objectives import elbo, log_p, log_q, log_weight
from unigen.pair import Pair
from unigen.pairs import sigmoid_belief
from unigen.phases import (
    PHI,
    THETA,
    Enumerate,
    LeaveOneOut,
    Pathwise,
    Phase,
    ScoreFunction,
    Sleep,
    Tilted,
    Wake,
)
from unigen.streams import isolated

__all__ = [
    "baselines_have_no_bias",
    "line_pair",
    "local_signals_have_no_bias",
    "path_and_score_agree",
    "path_has_less_variance",
    "score_has_mean_zero",
    "square",
]


@identity(
    "grad_phi E_q f(z) = E_e[f'(z) grad z(e)] = E_q[f(z) grad log q(z)], by the path and by the score",
    "Kingma & Welling 2014; Williams 1992; Paisley, Blei & Jordan 2012",
    ("unigen.phases.Pathwise", "unigen.phases.ScoreFunction", "unigen.routines.reinforce"),
    ("D8", "D9"),
    "the prior's pull on the guide counted twice",
    tolerance=1e-8,
)
def path_and_score_agree(generator: Generator, wrong: bool) -> Sides:
    pair, x = linear_pair(generator, 2, 1), normals(generator, 1, 2)
    exact = gradient(linear_bound(pair, x), pair, "phi")
    step = 1e-4
    finite = []  # central differences of the closed form along each guide parameter
    with torch.no_grad():
        for parameter in pair.group("phi"):
            flat = parameter.view(-1)
            for place in range(flat.numel()):
                ends = []
                for sign in (1, -1):
                    flat[place] += sign * step
                    ends.append(linear_bound(pair, x))
                    flat[place] -= sign * step
                finite.append((ends[0] - ends[1]) / (2 * step))
    by = [
        expected(routines.vae(estimator=name)[0], pair, [(1.0, x)], nodes=4).gradient
        for name in ("pathwise", "score_function")
    ]
    size = len(exact)
    if wrong:
        loc, scale = guide_by_hand(pair, x)
        exact = exact - gradient((0.5 * (loc**2 + scale**2)).sum(), pair, "phi")
    coarse = torch.stack(finite) - exact  # right to the square of the step
    return stack(*(b[-size:] for b in by), torch.relu(coarse.abs() - 1e-5)), stack(exact, exact, torch.zeros(size))


class _Line(PyroModule):
    """x ~ N(loc, scale^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.zeros(())), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.loc, self.scale), obs=x)


def line_pair(generator: Generator) -> Any:
    """Return x ~ N(loc, scale^2) with random parameters."""
    pair = scatter(Pair(_Line(), likelihood="exact"), generator)
    with torch.no_grad():
        pair.get_parameter("model.scale").copy_(normals(generator).mul(0.5).exp())
    return pair


def square(draw: Any) -> Tensor:
    """x^2."""
    return draw["x"].square()


@identity(
    "var by the score = m^4/s^2 + 14 m^2 + 15 s^2 >= (15/4) 4 s^2 = (15/4) var by the path, of d/dm E x^2, x ~ N(m, s^2)",
    "Rezende, Mohamed & Wierstra 2014; Mohamed et al. 2020",
    ("unigen.phases.Pathwise", "unigen.phases.ScoreFunction"),
    ("D8", "I1"),
    "both estimators of one variance",
)
def path_has_less_variance(generator: Generator, wrong: bool) -> Sides:
    pair, zero = line_pair(generator), torch.zeros(1, dtype=torch.float64)
    m, s = pair.model.loc.detach(), pair.model.scale.detach()
    variances = []
    for estimator in (Pathwise(), ScoreFunction()):
        mean = expected(Phase(square, Sleep(), THETA, estimator=estimator), pair, [(1.0, zero)], nodes=6)
        variances.append(mean.second[0] - mean.gradient[0] ** 2)
    path = 4 * s**2
    score = path if wrong else m**4 / s**2 + 14 * m**2 + 15 * s**2
    return stack(*variances, torch.relu(15 / 4 * variances[0] - variances[1])), stack(path, score, 0.0)


@identity(
    "E_q[(f - b) grad log q] = E_q[f grad log q] for every baseline b(x), and for the mean of the other particles",
    "Williams 1992; Mnih & Gregor 2014; Mnih & Rezende 2016",
    ("unigen.phases.LeaveOneOut", "unigen.routines.reinforce", "unigen.phases.ScoreFunction"),
    ("D9", "D10"),
    "a baseline that looks at the sample",
)
def baselines_have_no_bias(generator: Generator, wrong: bool) -> Sides:
    pair, tables = latent_pair(generator)
    p = simplex(generator, 3)
    free = Phase(elbo, Wake(2), PHI, estimator=ScoreFunction(), control_variate=LeaveOneOut())
    left = expected(free, pair, rows_of(p)).gradient
    plain = expected(Phase(elbo, Wake(), PHI, estimator=ScoreFunction()), pair, rows_of(p)).gradient
    bound = (tables.q * (tables.log_joint - tables.q.log())).sum(-1)
    if wrong:
        bound = bound - (tables.q * tables.log_joint.detach()).sum(-1) / 2  # b = log p(x, z) / 2
    exact = gradient((p * bound).sum(), pair, "phi")
    return stack(left, plain), stack(exact, exact)


@identity(
    "sum_i E_q[(l_i - b_i(x)) grad log q(h_i|h_(i-1))] = grad E_q[log p(x, h) - log q(h|x)], l_i = sum_(j>=i) of layer j",
    "Mnih & Gregor 2014",
    ("unigen.routines.nvil", "unigen.networks.Baseline", "unigen.objectives.baseline_fit"),
    ("D9", "D10"),
    "a local signal without the density of the layer below",
)
def local_signals_have_no_bias(generator: Generator, wrong: bool) -> Sides:
    with isolated(0):
        baseline = Baseline(2, (2,), outputs=2)
    pair: Any = scatter(sigmoid_belief(2, (1, 1), psi={"baseline": baseline}), generator)
    x = (torch.rand(1, 2, generator=generator, dtype=torch.float64) < 0.5).double()
    unreached(Programs(pair), pair.bind(x))  # found now: its own draws are no outcomes
    mean = expected(routines.nvil[0], pair, [(1.0, x)]).gradient

    def log_bit(logits: Tensor, h: Tensor) -> Tensor:
        return (h * logits - torch.nn.functional.softplus(logits)).sum(-1)

    bits = torch.tensor([0.0, 1.0], dtype=torch.float64)
    one, two = (h.unsqueeze(-1) for h in torch.cartesian_prod(bits, bits).T)
    q_one, q_two = log_bit(pair.guide.up[0](2 * x - 1), one), log_bit(pair.guide.up[1](2 * one - 1), two)
    below = log_bit(pair.model.down[1](2 * two - 1), one)  # log p(h_1|h_2)
    p = log_bit(pair.model.top, two) + below + log_bit(pair.model.down[0](2 * one - 1), x)
    bound = ((q_one + q_two).exp() * (p - q_one - q_two)).sum()
    if wrong:
        bound = bound - (q_one.exp().detach() * q_two.exp() * below.detach()).sum()
    return mean, gradient(bound, pair, "theta", "phi")


@identity(
    "E_p[grad_theta log p(x, z)] = 0 and E_q[grad_phi log q(z|x)] = 0: a score has mean zero under its own program",
    "Fisher 1925; Williams 1992",
    ("unigen.phases.ScoreFunction", "unigen.objectives.log_p", "unigen.objectives.log_q"),
    ("D9",),
    "the score under the other program's samples",
)
def score_has_mean_zero(generator: Generator, wrong: bool) -> Sides:
    def flat(draw: Any) -> Tensor:
        return 0 * draw.log_q

    def one(draw: Any) -> Tensor:
        return 1 + 0 * (draw.log_p + draw.log_q)

    pair, tables = latent_pair(generator)
    p, empty = rows_of(simplex(generator, 3)), [(1.0, torch.zeros(1, dtype=torch.long))]
    evidence = rows_of(tables.log_evidence.exp().detach())
    # weights are held fixed: those of log w make the draws the model's posterior, flat ones leave them the guide's
    scores = [
        expected(Phase(log_p, Tilted(Enumerate(), log_weight), THETA), pair, evidence).gradient,
        expected(Phase(log_q, Tilted(Enumerate(), log_weight if wrong else flat), PHI), pair, p).gradient,
        expected(Phase(one, Sleep(), THETA, estimator=ScoreFunction()), pair, empty).gradient,
        expected(Phase(one, Wake(), PHI, estimator=ScoreFunction()), pair, p).gradient,
    ]
    entropies = [  # the engine leaves the mean of a score out of both
        expected(Phase(log_p, Sleep(), THETA, estimator=ScoreFunction()), pair, empty).gradient,
        expected(Phase(log_q, Wake(), PHI, estimator=ScoreFunction()), pair, p).gradient,
    ]
    share = torch.stack([row for row, _ in p])
    exact = [
        gradient((tables.log_joint.exp() * tables.log_joint.detach()).sum(), pair, "theta"),
        gradient((share[:, None] * tables.q * tables.q.log().detach()).sum(), pair, "phi"),
    ]
    return stack(*scores, *entropies), stack(*map(torch.zeros_like, scores), *exact)
