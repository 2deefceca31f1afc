"""The unified view of Hu, Yang, Salakhutdinov & Xing (2018): GANs and VAEs as one bound, read in opposite directions (row G).

y = 1 marks data and y = 0 what was generated, p(y) = 1/2; p_theta(x|y) is p_data or p_g; q_phi(y|x) is the discriminator and
q^r(y|x) = q(1 - y|x) its reversal. theta_0, phi_0 are the present parameters, held where they carry a subscript.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from identities.exact import expected, gradient, on_samples
from identities.identity import Sides, identity, stack
from identities.smooth import generate, log_odds, smooth_pair
from identities.tables import LatentTables, gan_pair, latent_pair, normals, rows_of, simplex
from unigen import routines
from unigen.divergences import jensen_shannon_divergence, kullback_leibler_divergence
from unigen.objectives import log_q_reversed
from unigen.phases import PHI, THETA, Phase, Sleep

__all__ = [
    "dropping_a_mode",
    "eq_4_joint",
    "eq_5_reversed_label",
    "eq_8_optimal_discriminator",
    "eq_10_infogan",
    "eq_16_importance_weighted_gan",
    "eq_17_activated_vae",
    "gan_extends_sleep",
    "lemma_1",
    "lemma_2",
    "vae_with_a_perfect_discriminator",
]

HU = "Hu, Yang, Salakhutdinov & Xing 2018"


def _normalized(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)


def _two(pair: Any, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p_theta(x|y), q(y|x) as tables (2, S) with y in rows, and p_theta0(x) held, (S,)."""
    given = torch.stack([torch.softmax(pair.model.table[0], -1), p])
    q = torch.sigmoid(torch.stack([-pair.guide.odds, pair.guide.odds])).detach()
    return given, q, given.mean(0).detach()


@identity(
    "E_p(x|y)p(y)[h(x, y)] = (1/2) E_p_g h(x, 0) + (1/2) E_p_data h(x, 1): the sleep phase draws the joint of generator and data",
    HU + ", Eq. 4",
    ("unigen.pairs.adversarial", "unigen.phases.Sleep"),
    ("G1",),
    "more data than samples",
)
def eq_4_joint(generator: Generator, wrong: bool) -> Sides:
    pair, p = gan_pair(generator), simplex(generator, 3)
    h = normals(generator, 2, 3)

    def score(draw: Any) -> Tensor:
        return h[draw["y"].long(), draw["x"]] + 0 * draw.log_q

    mean = expected(Phase(score, Sleep(), THETA), pair, rows_of(p))
    given, _, _ = _two(pair, p)
    share = torch.tensor([0.25, 0.75] if wrong else [0.5, 0.5], dtype=torch.float64)
    exact = (share[:, None] * given * h).sum()
    return stack(mean.value, mean.gradient), stack(exact, gradient(exact, pair, "theta"))


@identity(
    "max_theta E_p(x|y)p(y)[log q^r(y|x)] = (1/2) E_p_g log D + constant: the reversed label is the non-saturating GAN",
    HU + ", Eq. 3 and 5",
    ("unigen.routines.gan", "unigen.objectives.log_q_reversed"),
    ("G1", "F3"),
    "the label not reversed, the minimax game's descent taken for ascent",
)
def eq_5_reversed_label(generator: Generator, wrong: bool) -> Sides:
    pair, p = gan_pair(generator), simplex(generator, 3)
    d_step, g_step = (expected(phase, pair, rows_of(p)) for phase in routines.gan)
    g, odds = torch.softmax(pair.model.table[0], -1), pair.guide.odds
    discriminated = ((p * logsigmoid(odds)).sum() + (g.detach() * logsigmoid(-odds)).sum()) / 2
    held = odds.detach()
    fooled = (g * logsigmoid(-held if wrong else held)).sum() / 2
    constant = (p * logsigmoid(-held)).sum() / 2
    left = stack(d_step.value, d_step.gradient, g_step.value, g_step.gradient)
    slopes = gradient(discriminated, pair, "phi"), gradient(fooled, pair, "theta")
    return left, stack(discriminated, slopes[0], fooled + constant, slopes[1])


@identity(
    "grad_theta -E log q^r(y|x) = grad_theta [E_y KL(p(x|y) || q^r(x|y)) - JS(p(x|0), p(x|1))], q^r(x|y) ~ q^r(y|x) p_theta0(x)",
    HU + ", Lemma 1 (Eq. 6)",
    ("unigen.routines.gan", "unigen.objectives.log_q_reversed", "unigen.divergences.jensen_shannon_divergence"),
    ("G2",),
    "without the Jensen-Shannon divergence",
)
def lemma_1(generator: Generator, wrong: bool) -> Sides:
    pair, p = gan_pair(generator), simplex(generator, 3)
    left = -expected(routines.gan[1], pair, rows_of(p)).gradient
    given, q, marginal = _two(pair, p)
    reversed_posterior = _normalized(q.flip(0) * marginal)
    divergence = kullback_leibler_divergence(given, reversed_posterior).mean()
    js = jensen_shannon_divergence(given[0], given[1])
    return left, gradient(divergence - (0 if wrong else js), pair, "theta")


@identity(
    "at the optimal D, grad_theta -E log q^r = grad_theta [(1/2) KL(p_g || p_data) - JS(p_g, p_data)]",
    HU + ", Eq. 8; Arjovsky & Bottou 2017",
    ("unigen.routines.gan",),
    ("G2", "G3"),
    "the divergence from the data to the generator, which would cover modes",
)
def eq_8_optimal_discriminator(generator: Generator, wrong: bool) -> Sides:
    pair, p = gan_pair(generator), simplex(generator, 3)
    g = torch.softmax(pair.model.table[0], -1)
    with torch.no_grad():
        pair.guide.odds.copy_(torch.log(p / g))
    left = -expected(routines.gan[1], pair, rows_of(p)).gradient
    divergence = kullback_leibler_divergence(p, g) if wrong else kullback_leibler_divergence(g, p)
    return left, gradient(divergence / 2 - jensen_shannon_divergence(g, p), pair, "theta")


@identity(
    "InfoGAN: grad_theta -E log q(z|x,y) q^r(y|x) = grad_theta [E_zy KL(p(x|z,y) || q^r(x|z,y)) - I(x; z, y)], "
    "q^r(x|z,y) ~ q(z|x,y) q^r(y|x) p_theta0(x); I(x; z, y) is JS between the p(x|z, y)",
    HU + ", Eq. 9 and 10",
    ("unigen.objectives.log_q_reversed", "unigen.phases.Sleep"),
    ("G2",),
    "the Jensen-Shannon divergence of p(x|0) and p(x|1) alone, which lacks I(x; z|y)",
)
def eq_10_infogan(generator: Generator, wrong: bool) -> Sides:
    pair, p = gan_pair(generator, symbols=2, latents=2), simplex(generator, 2)

    def both(draw: Any) -> Tensor:
        return draw.log_q_at("z", draw["z"]) + log_q_reversed(draw)

    left = -expected(Phase(both, Sleep(), THETA), pair, rows_of(p)).gradient
    made = torch.softmax(pair.model.table, -1)  # p(x|z, y=0), (z, x)
    given = torch.stack([made, p.expand(2, 2)])  # (y, z, x)
    code = torch.log_softmax(pair.guide.code, -1).exp().permute(0, 2, 1).detach()  # q(z|x, y), (y, z, x)
    label = torch.sigmoid(torch.stack([-pair.guide.odds, pair.guide.odds])).flip(0).detach()[:, None]  # q^r(y|x)
    posterior = _normalized(code * label * given.mean((0, 1)).detach())
    divergence = kullback_leibler_divergence(given, posterior).mean()
    about = kullback_leibler_divergence(given, given.mean((0, 1)).expand_as(given)).mean()
    if wrong:
        about = jensen_shannon_divergence(given[0].mean(0), given[1].mean(0))
    return left, gradient(divergence - about, pair, "theta")


@identity(
    "KL(p_g || p) = -log(1 - m) when p_g drops a mode of mass m and is right elsewhere, KL(p || p_g) = inf; the slope is zero",
    HU,
    ("unigen.divergences.kullback_leibler_divergence",),
    ("G3", "E6"),
    "m, the mass itself",
)
def dropping_a_mode(generator: Generator, wrong: bool) -> Sides:
    p = simplex(generator, 5)
    kept = p[:4] / p[:4].sum()
    dropped = torch.cat([kept, p.new_zeros(1)])
    cost = p[4] if wrong else -torch.log(1 - p[4])
    logits = torch.log(kept).requires_grad_()
    made = torch.cat([torch.softmax(logits, 0), p.new_zeros(1)])
    (slope,) = torch.autograd.grad(kullback_leibler_divergence(made, p), logits)
    left = stack(kullback_leibler_divergence(dropped, p), kullback_leibler_divergence(p, dropped), slope)
    return left, stack(cost, math.inf, torch.zeros(4))


def _perfect_bound(tables: LatentTables, p: Tensor, posterior: bool, reversed_label: bool) -> Tensor:
    """Eq. 12 on tables: E over (x, label)[E_q q^r_* log p(x|z,y) - KL(q q^r_* || p(z|y) p(y))].

    A generated x may look like a datum: its label tells them apart, which is what 'perfect' says of q_*(y|x). With y = 1 the
    guide and the prior are others than with y = 0, without parameters in common: they are held. ``posterior``: the second
    form, E[-KL(q q^r_* || p(z, y|x))]. ``reversed_label``: q^r_*, as the lemma has it, or q_*.
    """
    explicit = tables.log_joint - math.log(2)  # log p(x, z, y = 0)
    implicit = (tables.log_prior.detach() - math.log(2)) + torch.log(p)[:, None]  # log p(x, z, y = 1), x ~ p_data
    evidence = torch.logsumexp(torch.stack([explicit, implicit]), (0, 2)) if posterior else torch.zeros(())
    learnt = (tables.q * (explicit - tables.q.log())).sum(-1) - evidence  # where the label is taken for y = 0
    held = tables.q.detach()
    idle = (held * (implicit - held.log())).sum(-1) - evidence
    made = tables.log_evidence.exp().detach()
    on_data, on_made = (learnt, idle) if reversed_label else (idle, learnt)
    return ((p * on_data).sum() + (made * on_made).sum()) / 2


@identity(
    "grad L_vae = 2 grad E_p_theta0(x)[E_q q^r_*(log p(x|z,y)) - KL(q q^r_* || p(z|y)p(y))] = 2 grad E[-KL(q q^r_* || p(z,y|x))]",
    HU + ", Lemma 2 (Eq. 12 and 13)",
    ("unigen.routines.vae", "unigen.objectives.elbo"),
    ("G4",),
    "the perfect discriminator not reversed, so that the model learns from what it made",
)
def lemma_2(generator: Generator, wrong: bool) -> Sides:
    pair, tables = latent_pair(generator)
    p = simplex(generator, 3)
    whole = expected(routines.vae[0], pair, rows_of(p)).gradient
    forms = [
        2 * gradient(_perfect_bound(tables, p, second, not wrong), pair, "theta", "phi") for second in (False, True)
    ]
    return stack(whole, whole), stack(*forms)


@identity(
    "L_vae = 2 E_p_theta0(x)[...] in value too, up to log p(y) and log p_data, where q(z|x, y = 1) is the prior",
    HU + ", Lemma 2; Kingma & Welling 2014",
    ("unigen.routines.vae",),
    ("G4", "G5"),
    "the factor two, p(y = 0) = 1/2, forgotten",
)
def vae_with_a_perfect_discriminator(generator: Generator, wrong: bool) -> Sides:
    pair, tables = latent_pair(generator)
    p = simplex(generator, 3)
    whole = expected(routines.vae[0], pair, rows_of(p))
    real = (
        p * (tables.q * (tables.log_joint - tables.q.log())).sum(-1)
    ).sum() / 2  # the rows with y = 0 after reversal
    prior = tables.log_prior.exp()
    made = (tables.log_evidence.exp().detach() * (prior * (tables.log_prior - prior.log())).sum()).sum() / 2
    factor = 1 if wrong else 2
    total = factor * (real + made)
    return stack(whole.value, whole.gradient), stack(total, gradient(total, pair, "theta", "phi"))


@identity(
    "the discriminator's step is the sleep phase with h = y; the generator's is the same draw with y reversed and theta moved",
    HU + ", Eq. 14 and table 1",
    ("unigen.routines.gan", "unigen.routines.wake_sleep"),
    ("G5", "G1"),
    "the generator's step with the label as drawn",
)
def gan_extends_sleep(generator: Generator, wrong: bool) -> Sides:
    pair, p = gan_pair(generator), simplex(generator, 3)
    d_step = expected(routines.gan[0], pair, rows_of(p)).gradient
    sleep = expected(routines.wake_sleep[1], pair, rows_of(p)).gradient
    g_step = expected(routines.gan[1], pair, rows_of(p)).gradient
    given, q, _ = _two(pair, p)
    label = q if wrong else q.flip(0)
    extended = gradient((given * label.log()).sum() / 2, pair, "theta")
    same = Phase(routines.wake_sleep[1].maximize, Sleep(), PHI) == routines.gan[0]
    return stack(d_step, g_step, float(same)), stack(sleep, extended, 1.0)


@identity(
    "L_k = E log (1/k) sum_i q^r(y|x_i)/q(y|x_i); grad_theta L_k = E sum_i w~_i grad log q^r(y|x_i), w = D / (1 - D)",
    HU + ", Eq. 15 and 16",
    ("unigen.routines.iwgan", "unigen.objectives.iwae_reversed"),
    ("G6",),
    "equal weights",
)
def eq_16_importance_weighted_gan(generator: Generator, wrong: bool) -> Sides:
    pair, x, noise = smooth_pair(generator), normals(generator, 2, 2), normals(generator, 3, 4, 1)
    with torch.no_grad():
        pair.guide.head.weight.mul_(5)  # a discriminator with an opinion: weights far from equal
    step = on_samples(routines.iwgan(3)[1], pair, x, {"z": noise})
    odds = log_odds(pair, generate(pair, noise[:, 2:]))  # (K, N)
    weights = torch.softmax(torch.zeros_like(odds) if wrong else odds.detach(), 0)
    surrogate = (weights * logsigmoid(odds)).sum(0).mean() / 2
    real = log_odds(pair, x)
    value = (torch.logsumexp(odds, 0).mean() - math.log(3) - real.mean()) / 2
    one = on_samples(routines.iwgan(1)[1], pair, x, {"z": noise[:1]}).gradient
    plain = on_samples(routines.gan[1], pair, x, {"z": noise[0]}).gradient
    exact = gradient(surrogate, pair, "theta")
    return stack(step.value, step.gradient, one), stack(value, exact, plain)


@identity(
    "AAVAE: max E_x[q^r(y=0|x) (E_q log p(x|z) - KL(q || p(z)))], x from data and dreams; the perfect D makes it the VAE",
    HU + ", Eq. 17",
    ("unigen.routines.aavae", "unigen.objectives.Activated", "unigen.routines.vae"),
    ("G6",),
    "the discriminator not reversed: q(y = 0|x) as the weight",
)
def eq_17_activated_vae(generator: Generator, wrong: bool) -> Sides:
    pair, tables = latent_pair(generator, latents=2, symbols=2)
    p = simplex(generator, 2)
    mean = expected(routines.aavae[1], pair, rows_of(p))
    odds = pair.get_parameter("psi.critic.table").detach()
    real = torch.sigmoid(-odds if wrong else odds)  # q^r(y = 0|x) = q(y = 1|x)
    bound = (tables.q * (tables.log_joint - tables.q.log())).sum(-1)
    rows = p + tables.log_evidence.exp().detach()
    activated = (rows * real * bound).sum()
    slope = gradient(activated, pair, "theta", "phi", keep=True)
    with torch.no_grad():  # data at the first symbol, dreams at the second: a discriminator can be perfect
        pair.get_parameter("model.table").copy_(torch.tensor([[-60.0, 0.0], [-60.0, 0.0]]))
        pair.get_parameter("psi.critic.table").copy_(torch.tensor([800.0, -800.0]))
    first = [(1.0, torch.zeros(1, dtype=torch.long))]
    perfect, vae = (expected(phase, pair, first).gradient for phase in (routines.aavae[1], routines.vae[0]))
    return stack(mean.value, mean.gradient, perfect), stack(activated, slope, vae)
