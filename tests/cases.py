"""The table of exactness: for each phase of each routine its exact objective, a plain function of enumerated densities.

A case names a phase, a tiny pair and the objective E(live, held) whose gradient along the phase's parameters the estimator
must have as its mean. ``live`` tables depend on the parameters; in ``held`` the samples are drawn by parameters that are
held fixed, so that only densities carry gradient: the rule "samples carry gradient exactly when the phase moves the program
that drew them". The estimator's value must have the same objective as its mean, unless ``value`` says what it reports.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from oracles import Tables, log_bit, parameters, tuples
from replay import expected, legendre
from scipy.optimize import brentq
from torch import Tensor
from torch.nn.functional import logsigmoid
from worlds import WORLDS, baseline_by_hand

from unigen import routines
from unigen.objectives import elbo as elbo_objective
from unigen.objectives import iwae as iwae_objective
from unigen.phases import (
    PHI,
    THETA,
    DoublyReparameterized,
    Enumerate,
    LeaveOneOut,
    Pathwise,
    Phase,
    Routine,
    ScoreFunction,
    StickingTheLanding,
    Wake,
)

__all__ = ["CASES", "Case", "Context", "complete", "errors", "evidence", "exact", "importance_bound"]


class Context(NamedTuple):
    """What an exact objective reads: tables that move, and tables whose samples are held fixed."""

    live: Any
    held: Any


Exact = Callable[[Context], Tensor]


@dataclass(frozen=True)
class Case:
    """One row: ``phase`` on ``rows`` data of the pair ``world``; ``tolerance`` on every entry of every gradient."""

    name: str
    phase: Phase
    world: str
    exact: Exact
    rows: int = 2
    tolerance: float = 1e-10
    nodes: int | None = None
    value: Exact | None = None
    chain: int | None = None  # which of the data a persistent chain stands at

    def build(self) -> Any:
        """Return the tiny pair, fresh."""
        tiny = WORLDS[self.world]()
        if self.nodes is not None:
            tiny.nodes = self.nodes
        if self.chain is not None:
            tiny.pair.chains[str(self.phase.against)] = tiny.xs[[self.chain] * self.rows].clone()
        return tiny


def exact(case: Case, tiny: Any) -> tuple[float, dict[str, Tensor]]:
    """Return the exact value and gradient of a case, by autograd of the enumerated objective."""
    t = parameters(tiny.pair)
    fixed = {name: value.detach() for name, value in t.items()}
    context = Context(tiny.tables(t, t, case.rows), tiny.tables(t, fixed, case.rows))
    moved = {name: p for name, p in t.items() if name.split(".")[0] in case.phase.move}
    objective = case.exact(context)
    gradients = torch.autograd.grad(objective, list(moved.values()), allow_unused=True)
    value = objective if case.value is None else case.value(context)
    return float(value.detach()), {
        name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(moved.items(), gradients, strict=True)
    }


def errors(case: Case) -> dict[str, float]:
    """Return the largest error of the estimator's mean in each parameter's gradient, and in ``"value"``."""
    tiny = case.build()
    value, gradient = exact(case, tiny)
    estimate = expected(case.phase, tiny.pair, tiny.batch(case.rows), tiny.nodes, tiny.live)
    found = {name: float((estimate.gradient[name] - g).abs().max()) for name, g in gradient.items()}
    return found | {"value": abs(estimate.value - value)}


# -- bounds and likelihood: tables have weight, p, q of shape (N, M) ---------------------------------------------------------


def bound(c: Context) -> Tensor:
    """E_q[log p(x, z) - log q(z|x)]."""
    return (c.live.weight * (c.live.p - c.live.q)).sum(1).mean()


def beta_bound(beta: float, c: Context) -> Tensor:
    """E_q[log p(x|z)] - beta KL(q || p(z))."""
    t = c.live
    return (t.weight * t.likelihood).sum(1).mean() - beta * (t.weight * (t.q - t.prior)).sum(1).mean()


def _particles(t: Tables, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the probability (N, M^k) of every k-tuple of particles, its log w, log p and log q (N, M^k, k)."""
    index = tuples(t.weight.shape[1], k)
    p, q = t.p[:, index], t.q[:, index]
    return t.weight[:, index].prod(-1), p - q, p, q


def importance_bound(k: int, c: Context) -> Tensor:
    """E log (1/k) sum_k w_k."""
    probability, log_w, _, _ = _particles(c.live, k)
    return (probability * (log_w.exp().sum(-1) / k).log()).sum(1).mean()


def evidence(c: Context) -> Tensor:
    """log p(x), the sum over every value of z."""
    return c.live.p.exp().sum(1).log().mean()


def complete(c: Context) -> Tensor:
    """E_p(z|x)[log p(x, z)], EM's Q at the present parameters."""
    posterior = c.held.p.exp() / c.held.p.exp().sum(1, keepdim=True)
    return (posterior.detach() * c.held.p).sum(1).mean()


def waking(c: Context) -> Tensor:
    """E_q[log p(x, z)], q held."""
    return (c.held.weight * c.held.p).sum(1).mean()


def sleeping(c: Context) -> Tensor:
    """E_p(x, z)[log q(z|x)], p held."""
    return (c.held.dream_weight * c.held.dream_q).sum()


def reweighted(k: int, guide: bool, c: Context) -> Tensor:
    """E sum_k w~_k (log p + log q)(z_k), the mean of the self-normalized estimate; w~ and the samples held."""
    probability, log_w, p, q = _particles(c.held, k)
    w = log_w.detach().exp()
    f = p + q if guide else p
    return (probability * (w / w.sum(-1, keepdim=True) * f).sum(-1)).sum(1).mean()


def baseline_error(c: Context) -> Tensor:
    """-E_q (elbo - b(x))^2, the signal held."""
    t = c.held
    error = (t.p - t.q).detach() - baseline_by_hand(t.t, t.x)[:, None]
    return -(t.weight * error**2).sum(1).mean()


def local_baseline_error(c: Context) -> Tensor:
    """-E_q sum_i (l_i - b_i(x))^2 of a belief network: l_i has the terms of h_{i-1} given h_i and of what is above."""
    t = c.held
    h = [t.x.unsqueeze(1), *_layers(t)]  # x = h_0, h_1, ..., h_L

    def log_bits(name: str, given: Tensor, value: Tensor) -> Tensor:
        logits = (2 * given - 1) @ t.t[f"{name}.weight"].T + t.t[f"{name}.bias"]
        return log_bit(logits, value).sum(-1)

    error = torch.zeros(())
    signal = log_bit(t.t["theta.top"], h[-1]).sum(-1)
    for i in range(len(h) - 1, 0, -1):
        signal = signal + log_bits(f"theta.down.{i - 1}", h[i], h[i - 1]) - log_bits(f"phi.up.{i - 1}", h[i - 1], h[i])
        error = error + (signal.detach() - baseline_by_hand(t.t, t.x)[:, None, i - 1]) ** 2
    return -(t.weight * error).sum(1).mean()


def _layers(t: Any) -> list[Tensor]:
    """h_1, ..., h_L of every latent value, from z = (h_L, ..., h_1)."""
    widths = [len(bias) for name, bias in t.t.items() if name.startswith("phi.up.") and name.endswith(".bias")]
    return list(t._z(t.x).split(widths[::-1], -1))[::-1]


# -- the adversary-activated VAE ---------------------------------------------------------------------------------------


def real_or_dream(c: Context) -> Tensor:
    """(1/2) E_data log sigma(f) + (1/2) E_p log(1 - sigma(f))."""
    t = c.held
    real, dream = t.f("critic", t.x), t.f("critic", t.dream_x)
    return (logsigmoid(real).mean() + (t.dream_weight * logsigmoid(-dream)).sum()) / 2


def activated(c: Context) -> Tensor:
    """E_data sigma(f) elbo + E_p sigma(f) elbo, the dreams and f held."""
    t = c.live
    every = t.at(t.tiny.xs)
    on = torch.cat([t.x, t.tiny.xs])
    per_row = torch.cat([(s.weight * (s.p - s.q)).sum(1) for s in (t, every)])
    share = c.held.dream_weight.reshape(len(t.tiny.xs), -1).sum(1)
    rows = torch.cat([torch.full((len(t.x),), 1 / len(t.x), dtype=torch.float64), share])
    return (rows * torch.sigmoid(t.f("critic", on)).detach() * per_row).sum()


# -- posterior regularization ------------------------------------------------------------------------------------------


def _tilted(f: Tensor, probability: Tensor, alpha: float, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return every batch of dreams (S^rows, rows), its probability, and its weights ~ exp(alpha f)."""
    index = tuples(len(probability), rows)
    w = (alpha * f.detach())[index].exp()
    return index, probability.detach()[index].prod(-1), w / w.sum(-1, keepdim=True)


def regularized(alpha: float, rows: int, c: Context) -> Tensor:
    """E over batches of dreams of sum_n w~_n log p(x_n, z_n), w~ ~ exp(alpha f)."""
    t = c.held
    index, probability, w = _tilted(t.f("constraint", t.dream_x), t.dream_weight, alpha, rows)
    return (probability * (w * t.dream_p[index]).sum(-1)).sum()


def taught(alpha: float, rows: int, c: Context) -> Tensor:
    """E_data f - E_q* f, q* held."""
    t = c.held
    f = t.f("constraint", t.dream_x)
    index, probability, w = _tilted(f, t.dream_weight, alpha, rows)
    return t.f("constraint", t.x).mean() - (probability * (w * f[index]).sum(-1)).sum()


def rewarded(alpha: float, c: Context) -> Tensor:
    """E_p[alpha f], samples moving."""
    return (c.live.weight * alpha * c.live.f("constraint", c.live.generated)).sum()


def taught_implicitly(alpha: float, rows: int, c: Context) -> Tensor:
    """E_data f - E_q* f over generated rows alone."""
    t = c.held
    f = t.f("constraint", t.generated)
    index, probability, w = _tilted(f, t.weight, alpha, rows)
    return t.f("constraint", t.x).mean() - (probability * (w * f[index]).sum(-1)).sum()


# -- adversaries: (N,) log odds of the data, (S,) of what is generated -------------------------------------------------

Pointwise = Callable[[Tensor], Tensor]


def adversary(on_real: Pointwise, on_generated: Pointwise, c: Context) -> Tensor:
    """Half the mean over data plus half the mean over generated x, both of the log odds; samples moving."""
    return (on_real(c.live.real_odds).mean() + (c.live.weight * on_generated(c.live.odds)).sum()) / 2


def _log_sigma(v: Tensor) -> Tensor:
    return -torch.log1p(torch.exp(-v))


discriminate = partial(adversary, _log_sigma, lambda v: _log_sigma(-v))
fool = partial(adversary, lambda v: _log_sigma(-v), _log_sigma)
minimax = partial(adversary, lambda v: -_log_sigma(v), lambda v: -_log_sigma(-v))
gap = partial(adversary, lambda v: 2 * v, lambda v: -2 * v)
minus_gap = partial(adversary, lambda v: -2 * v, lambda v: 2 * v)


def _jeffreys_conjugate(t: Tensor) -> Tensor:
    """f*(t) = max_u (u t - (u - 1) log u), the maximizer found by bisection; its slope is u."""
    u = torch.tensor(
        [brentq(lambda u, s=s: 1 + math.log(u) - 1 / u - s, 1e-9, 1e9, xtol=1e-15) for s in t.reshape(-1).tolist()],
        dtype=torch.float64,
    ).reshape(t.shape)
    return u * t - (u - 1) * u.log()


# (g_f, f*) of Nowozin et al. 2016, composed without simplification
F_DIVERGENCES: dict[str, tuple[Pointwise, Pointwise]] = {
    "kullback_leibler": (lambda v: v, lambda t: (t - 1).exp()),
    "reverse_kullback_leibler": (lambda v: -(-v).exp(), lambda t: -1 - (-t).log()),
    "pearson": (lambda v: v, lambda t: t**2 / 4 + t),
    "neyman": (lambda v: 1 - (-v).exp(), lambda t: 2 - 2 * (1 - t).sqrt()),
    "squared_hellinger": (lambda v: 1 - (-v).exp(), lambda t: t / (1 - t)),
    "jensen_shannon": (lambda v: math.log(2) - (1 + (-v).exp()).log(), lambda t: -(2 - t.exp()).log()),
    "gan": (lambda v: -(1 + (-v).exp()).log(), lambda t: -(1 - t.exp()).log()),
    "jeffreys": (lambda v: v, _jeffreys_conjugate),
}


def variational_divergence(name: str, sign: float, c: Context) -> Tensor:
    """sign (E_data T - E_p f*(T)), T = g_f(log odds)."""
    activation, conjugate = F_DIVERGENCES[name]
    return adversary(lambda v: 2 * sign * activation(v), lambda v: -2 * sign * conjugate(activation(v)), c)


def importance_fool(k: int, c: Context) -> Tensor:
    """(1/2) E_data log q^r/q + (1/2) E log (1/k) sum_k q^r(0|x_k) / q(0|x_k); the denominator's parameters held.

    By the score function the ratio is one function of x, whose mean is differentiated whole; by the path, Eq. 15 holds the
    denominator at its value, so that grad = E sum_k w~_k grad log q^r.
    """
    t = c.live
    index = tuples(len(t.weight), k)
    log_q_reversed, log_q = _log_sigma(t.odds), _log_sigma(-t.odds)
    ratio = log_q_reversed - log_q.detach()
    generated = (t.weight[index].prod(-1) * (ratio.exp()[index].sum(-1) / k).log()).sum()
    return (-t.real_odds.mean() + generated) / 2


def _between(c: Context, nodes: int, rows: int) -> Tensor:
    """E(|df/dx| - 1)^2 on lines between data and generated x, by Gauss-Legendre."""
    share, weights = legendre(nodes)
    t = c.held
    real = t.x[:rows, None, None].expand(-1, len(t.weight), nodes, -1)
    generated = t.generated.detach()[None, :, None].expand_as(real)
    x = (real + share[:, None] * (generated - real)).requires_grad_()
    (slope,) = torch.autograd.grad(t.tiny.odds(t.t, x).sum(), x, create_graph=True)
    penalty = ((slope**2).sum(-1).sqrt() - 1) ** 2
    return (penalty * t.weight[:, None] * weights).sum((1, 2)).mean()


def penalized(weight: float, nodes: int, rows: int, c: Context) -> Tensor:
    """E_data f - E_p f - weight E(|df/dx| - 1)^2."""
    return gap(c) - weight * _between(c, nodes, rows)


def discrepancy(rows: int, c: Context) -> Tensor:
    """-E MMD^2, over every batch of ``rows`` generated x, with kernels as wide as the data."""
    t = c.live
    spread = ((t.x - t.x.mean(0)) ** 2).sum() / (rows - 1)
    widths = (0.125, 0.25, 0.5, 1.0, 2.0)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = ((a - b) ** 2).sum(-1) / (2 * spread)
        return torch.stack([(-squared / (2 * width**2)).exp() for width in widths]).mean(0)

    x, g, w = t.x, t.generated, t.weight
    off = torch.stack([kernel(x[i], x[j]) for i in range(rows) for j in range(rows) if i != j]).mean()
    within = (w[:, None] * w * kernel(g[:, None], g)).sum()  # two generated rows are independent
    across = (w * kernel(x[:, None], g)).sum(1).mean()
    return -(off + within - 2 * across)


# -- Boltzmann machines ------------------------------------------------------------------------------------------------


def distilled(strength: float, share: float, c: Context) -> Tensor:
    """E_t[log q], t = (1 - pi) p(z|x) + pi q*, q* ~ q exp(-C (1 - r)), r = p(x, z) / max_z p(x, z), all but log q held."""
    p, q = c.held.p.exp().detach(), c.held.q.exp().detach()
    teacher = q * (-strength * (1 - p / p.amax(1, keepdim=True))).exp()
    target = (1 - share) * p / p.sum(1, keepdim=True) + share * teacher / teacher.sum(1, keepdim=True)
    return (target * c.live.q).sum(1).mean()


def contrast(steps: int, start: int | None, c: Context) -> Tensor:
    """E_data log p~(x) - E_chain log p~(x), the chain's end held; p~ by the sum over h."""
    t = c.live
    joint = t.tiny.log_likelihood(t.t, t.tiny.xs[:, None], t.tiny.zs)  # (X, H)
    log_p = joint.exp().sum(1).log()
    joint = joint.detach().exp()
    transition = (joint / joint.sum(1, keepdim=True)) @ (joint / joint.sum(0)).T  # x -> h -> x
    at = torch.stack([(t.tiny.xs == row).all(1).double() for row in t.x])
    begin = at if start is None else torch.eye(len(t.tiny.xs), dtype=torch.float64)[[start] * len(t.x)]
    end = begin @ torch.linalg.matrix_power(transition, steps)
    return (at @ log_p - end @ log_p).mean()


# -- the table ---------------------------------------------------------------------------------------------------------

DISCRETE = ("one layer", "plated", "two layers", "unplated", "unplated locals", "symbols", "belief 2", "belief 2-1")
DISCRETE_ALSO = ("mixture of normals", "mixture of bits")
ROWS = {"unplated": 1, "unplated locals": 1, "belief 2-1": 1}
NORMAL = ("normal", "latent", "flow", "autoguide")
FLOWS = ("flow", "flow prior", "autoguide")


def named(routine: Routine, index: int, world: str, exact: Exact, **more: Any) -> Case:
    """Return the case of one phase of a routine."""
    more.setdefault("rows", ROWS.get(world, 2))
    return Case(f"{routine.name} {index + 1}, {world}, N={more['rows']}", routine[index], world, exact, **more)


def _discrete() -> list[Case]:
    cases = []
    for world in DISCRETE + DISCRETE_ALSO:
        cases += [
            named(routines.vae, 0, world, bound),
            named(routines.reinforce, 0, world, bound),
            named(routines.beta_vae(3.0), 0, world, partial(beta_bound, 3.0)),
            named(routines.variational_em, 0, world, bound),
            named(routines.variational_em, 1, world, waking, value=bound),
            named(routines.wake_sleep, 0, world, waking),
            named(routines.maximum_likelihood, 0, world, evidence),
            named(routines.em(closed_form=False), 0, world, evidence, value=complete),
            named(routines.rule_distillation(strength=3.0, share=0.4), 0, world, partial(distilled, 3.0, 0.4)),
            Case(
                f"enumerated elbo, {world}",
                Phase(elbo_objective, Enumerate(), THETA + PHI),
                world,
                bound,
                ROWS.get(world, 2),
            ),
        ]
        if world != "mixture of normals":  # whose dreams are not discrete
            cases.append(named(routines.wake_sleep, 1, world, sleeping, rows=1))
        for k in (1, 2, 3):
            rows = 2 if k == 1 and ROWS.get(world, 2) > 1 else 1
            cases.append(named(routines.iwae(k), 0, world, partial(importance_bound, k), rows=rows))
            cases.append(named(routines.reweighted_wake_sleep(k), 0, world, partial(reweighted, k, True), rows=rows))
            if k > 1:
                cases.append(named(routines.vimco(k), 0, world, partial(importance_bound, k), rows=rows))
    leave_one_out = Phase(
        elbo_objective, Wake(3), THETA + PHI, estimator=ScoreFunction(), control_variate=LeaveOneOut()
    )
    cases += [
        Case("elbo, mean of three particles, leave one out", leave_one_out, "one layer", bound, rows=1),
        Case("elbo, two particles", Phase(elbo_objective, Wake(2), THETA + PHI), "one layer", bound, rows=1),
        named(routines.wake_sleep, 1, "one layer", sleeping),
        named(routines.reweighted_wake_sleep(2), 0, "one bit", partial(reweighted, 2, True), rows=3),
        named(routines.reweighted_wake_sleep(2), 1, "one layer", sleeping),
        named(routines.reweighted_wake_sleep(2, wake=False), 0, "one layer", partial(reweighted, 2, False), rows=1),
        named(routines.iwae(2), 0, "one bit", partial(importance_bound, 2), rows=3),
        named(routines.vimco(2), 0, "one bit", partial(importance_bound, 2), rows=3),
        named(routines.maximum_likelihood, 0, "no latents", evidence),
        named(routines.standard_equation(), 0, "mixture of normals", evidence, rows=4),
    ]
    for world in ("one layer", "two layers", "belief 2", "plated"):
        cases += [
            named(routines.nvil, 0, world, bound),
            named(routines.nvil, 1, world, baseline_error),
            named(routines.aavae, 0, world, real_or_dream, rows=1),
        ]
    for world in ("belief 2-1, local signals", "belief 1-1-1, local signals"):
        cases += [
            named(routines.nvil, 0, world, bound, rows=1),
            named(routines.nvil, 1, world, local_baseline_error, rows=1),
        ]
    for world in ("one layer", "symbols", "one bit"):
        cases.append(named(routines.aavae, 1, world, activated, rows=1))
    cases.append(named(routines.aavae, 1, "one bit", activated))
    return cases


def _regularized() -> list[Case]:
    alpha, cases = 0.8, []
    explicit = routines.posterior_regularization("constraint", alpha)
    implicit = routines.posterior_regularization("constraint", alpha, implicit=True)
    for world, rows in (("one bit", 2), ("one bit", 3), ("symbols", 2), ("belief 2", 2)):
        cases += [
            named(explicit, 0, world, partial(regularized, alpha, rows), rows=rows),
            named(explicit, 1, world, partial(taught, alpha, rows), rows=rows),
        ]
    for world, rows in (("symbol gan", 2), ("symbol gan", 3), ("mixed symbol gan", 2), ("smooth gan", 2)):
        cases += [
            named(implicit, 0, world, partial(rewarded, alpha), rows=rows),
            named(implicit, 1, world, partial(taught_implicitly, alpha, rows), rows=rows),
        ]
    teacher = routines.standard_equation(2.0, 2.0, experience="constraint")
    cases.append(named(teacher, 0, "one bit", partial(regularized, 0.5, 2)))
    return cases


def _adversarial() -> list[Case]:
    cases = []
    for world, rows in (("symbol gan", 2), ("symbol gan", 3), ("mixed symbol gan", 2), ("smooth gan", 2)):
        cases += [
            named(routines.gan, 0, world, discriminate, rows=rows),
            named(routines.gan, 1, world, fool, rows=rows),
            named(routines.gan_minimax, 0, world, discriminate, rows=rows),
            named(routines.gan_minimax, 1, world, minimax, rows=rows),
            named(routines.wgan, 0, world, gap, rows=rows),
            named(routines.wgan, 1, world, minus_gap, rows=rows),
            named(routines.iwgan(2), 0, world, discriminate, rows=rows),
        ]
        for name in F_DIVERGENCES if rows == 2 else ():
            cases += [
                named(routines.f_gan(name), 0, world, partial(variational_divergence, name, 1.0), rows=1),
                named(routines.f_gan(name), 1, world, partial(variational_divergence, name, -1.0), rows=1),
            ]
    for k in (1, 2, 3):
        cases.append(named(routines.iwgan(k), 1, "symbol gan", partial(importance_fool, k), rows=1))
    cases += [
        named(routines.iwgan(2), 1, "symbol gan", partial(importance_fool, 2)),
        named(routines.iwgan(1), 1, "mixed symbol gan", partial(importance_fool, 1)),
        named(routines.iwgan(2), 1, "mixed symbol gan", partial(importance_fool, 2), rows=1),
        named(routines.iwgan(1), 1, "smooth gan", partial(importance_fool, 1), rows=1),
        named(routines.iwgan(2), 1, "smooth gan", partial(importance_fool, 2), rows=1),
        named(routines.wgan_gp, 0, "smooth gan", partial(penalized, 10.0, 12, 1), rows=1, tolerance=1e-9),
        named(routines.wgan_gp, 1, "smooth gan", minus_gap, rows=1),
        named(routines.mmd, 0, "smooth gan", partial(discrepancy, 2)),
    ]
    return cases


def _boltzmann() -> list[Case]:
    cases = [
        named(routines.contrastive_divergence(1), 0, "rbm", partial(contrast, 1, None), rows=1),
        named(routines.contrastive_divergence(1), 0, "rbm", partial(contrast, 1, None), rows=2),
        named(routines.contrastive_divergence(2), 0, "rbm", partial(contrast, 2, None), rows=1),
    ]
    for k in (1, 2):
        persistent = routines.persistent_contrastive_divergence(k)
        cases.append(named(persistent, 0, "rbm", partial(contrast, k, 2), rows=1, chain=2))
    return cases


def _normal() -> list[Case]:
    """Normal latents: 40 nodes a number; where score and path differ, quadrature is exact to 1e-8 only."""
    cases = []
    by_score, by_path = ScoreFunction(), Pathwise()
    landing, double = StickingTheLanding(), DoublyReparameterized()
    for world in NORMAL:
        cases += [
            named(routines.vae, 0, world, bound, rows=1),
            named(routines.beta_vae(0.5), 0, world, partial(beta_bound, 0.5), rows=1),
            named(routines.variational_em, 0, world, bound, rows=1),
            named(routines.wake_sleep, 0, world, waking, rows=1),
            *([] if world == "autoguide" else [named(routines.wake_sleep, 1, world, sleeping, rows=1)]),
            named(routines.nvil, 0, world, bound, rows=1, tolerance=1e-8),
            named(routines.nvil, 1, world, baseline_error, rows=1),
            named(routines.aavae, 0, world, real_or_dream, rows=1),
            named(routines.iwae(1), 0, world, partial(importance_bound, 1), rows=1),
            named(routines.reweighted_wake_sleep(1), 0, world, partial(reweighted, 1, True), rows=1),
        ]
        for estimator in (by_score, by_path, landing):
            phase = Phase(elbo_objective, Wake(), THETA + PHI, estimator=estimator)
            name = f"elbo by {type(estimator).__name__}, {world}"
            cases.append(Case(name, phase, world, bound, rows=1, tolerance=1e-8))
    for world, estimator in product(("normal", *FLOWS), (by_score, double)):
        phase = Phase(iwae_objective, Wake(1), THETA + PHI, estimator=estimator)
        name = f"iwae(1) by {type(estimator).__name__}, {world}"
        cases.append(Case(name, phase, world, partial(importance_bound, 1), rows=1, tolerance=1e-8))
    for estimator in (by_score, double):
        phase = Phase(iwae_objective, Wake(2), THETA + PHI, estimator=estimator)
        name = f"iwae(2) by {type(estimator).__name__}, normal"
        cases.append(Case(name, phase, "normal", partial(importance_bound, 2), rows=1, tolerance=1e-8, nodes=30))
    cases += [
        named(routines.vae, 0, "flow prior", bound, rows=1),
        named(routines.wake_sleep, 0, "flow prior", waking, rows=1),
        named(routines.reweighted_wake_sleep(1), 0, "flow prior", partial(reweighted, 1, True), rows=1),
    ]
    # Few nodes are far from 1e-8, but enough to catch a bug of order one quickly (tests/mutants.py).
    coarse = Phase(iwae_objective, Wake(2), THETA + PHI, estimator=double)
    name = "iwae(2) by DoublyReparameterized, coarsely"
    bound_of_two = partial(importance_bound, 2)
    cases.append(Case(name, coarse, "normal", bound_of_two, rows=1, tolerance=1e-5, nodes=16))
    # By the path both sides are the same sum over nodes: any number of them will do.
    cases += [
        named(routines.iwae(2), 0, "normal", partial(importance_bound, 2), rows=1, nodes=12),
        named(routines.iwae(3), 0, "normal", partial(importance_bound, 3), rows=1, nodes=6),
        named(routines.reweighted_wake_sleep(2), 0, "normal", partial(reweighted, 2, True), rows=1, nodes=12),
        named(routines.aavae, 1, "normal", activated, rows=1, nodes=5),
        named(routines.vae, 0, "normal 2", bound, rows=1, nodes=16),
        named(routines.vae, 0, "normal", bound, rows=2, nodes=12),
        Case(
            "elbo by ScoreFunction, normal 2",
            Phase(elbo_objective, Wake(), THETA + PHI, estimator=by_score),
            "normal 2",
            bound,
            rows=1,
            tolerance=1e-8,
            nodes=24,
        ),
    ]
    return cases


CASES: list[Case] = [*_discrete(), *_regularized(), *_adversarial(), *_boltzmann(), *_normal()]
