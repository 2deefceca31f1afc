"""Wake and sleep: two phases, two divergences, and no objective in common (rows D4, D6, D7, G5; Hu et al. Eq. 14).

Wake climbs E_data E_q[log p(x, z)] along theta; sleep climbs E_p(x,z)[log q(z|x)] along phi, which descends
E_p(x) KL(p(z|x) || q(z|x)): the divergence of the bound, turned round, and under the model's x instead of the data's.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Generator, Tensor, nn

from identities.exact import Bits, expected, gradient, on_samples
from identities.identity import Sides, identity, stack
from identities.tables import latent_pair, rows_of, scatter, simplex
from unigen import routines
from unigen.divergences import kullback_leibler_divergence
from unigen.engines.programs import Programs
from unigen.kernels import Gibbs
from unigen.pair import Pair
from unigen.pairs import rbm

__all__ = [
    "gibbs_leaves_the_model",
    "positive_and_negative_phase",
    "sleep_and_the_bound_rest_apart",
    "sleep_gradient",
    "sleep_is_not_wake",
    "vae_extends_wake",
    "wake_gradient",
]

HINTON = "Hinton, Dayan, Frey & Neal 1995"
HU = "Hu, Yang, Salakhutdinov & Xing 2018"


@identity(
    "wake: grad_theta E_data E_q[log p(x|z)] + E_data E_q[grad log p(z)], q held fixed",
    HINTON + "; " + HU + ", Eq. 14",
    ("unigen.routines.wake_sleep", "unigen.objectives.log_p", "unigen.phases.Wake"),
    ("D6", "G5"),
    "z from the prior",
)
def wake_gradient(generator: Generator, wrong: bool) -> Sides:
    pair, tables = latent_pair(generator)
    p = simplex(generator, 3)
    mean = expected(routines.wake_sleep[0], pair, rows_of(p))
    q = tables.log_prior.exp().expand(3, 3) if wrong else tables.q
    objective = (p[:, None] * q.detach() * tables.log_joint).sum()
    return stack(mean.value, mean.gradient), stack(objective, gradient(objective, pair, "theta"))


@identity(
    "sleep: grad_phi E_p(x,z)[log q(z|x)] = -grad_phi E_p(x) KL(p(z|x) || q(z|x)), p held fixed",
    HINTON + "; " + HU + ", Eq. 14",
    ("unigen.routines.wake_sleep", "unigen.objectives.log_q", "unigen.phases.Sleep"),
    ("D6", "G5"),
    "the divergence KL(q || p(z|x)), as if sleep were variational",
)
def sleep_gradient(generator: Generator, wrong: bool) -> Sides:
    pair, tables = latent_pair(generator)
    mean = expected(routines.wake_sleep[1], pair, [(1.0, torch.zeros(1, dtype=torch.long))])
    posterior, q = tables.posterior.detach(), tables.q
    gap = kullback_leibler_divergence(q, posterior) if wrong else kullback_leibler_divergence(posterior, q)
    objective = -(tables.log_evidence.exp().detach() * gap).sum()
    conditional = -(tables.log_joint.exp() * tables.posterior.log()).sum()  # H(z|x), all that sleep cannot lower
    least = -(tables.log_evidence.exp() * kullback_leibler_divergence(posterior, tables.q)).sum() - conditional
    return stack(mean.value, mean.gradient), stack(least, gradient(objective, pair, "phi"))


@identity(
    "sleep as the lecture prints it (S2 repeats the wake phase) has no phi in it: its gradient along phi is zero",
    HU + ", Eq. 14; the lecture's misprint",
    ("unigen.routines.wake_sleep",),
    ("D6",),
    "the lecture's formula taken for the sleep phase",
)
def sleep_is_not_wake(generator: Generator, wrong: bool) -> Sides:
    pair, tables = latent_pair(generator)
    p = simplex(generator, 3)
    sleep = expected(routines.wake_sleep[1], pair, [(1.0, torch.zeros(1, dtype=torch.long))]).gradient
    printed = (p[:, None] * tables.q.detach() * tables.log_likelihood).sum() + 0 * tables.q.sum()
    right = (tables.log_joint.exp().detach() * tables.q.log()).sum()
    return sleep, gradient(printed if wrong else right, pair, "phi")


# -- no objective in common ----------------------------------------------------------------------------------------------


class _TwoBits(PyroModule):
    """z ~ two Bernoulli bits, x a bit whose odds are a table over both."""

    def __init__(self) -> None:
        super().__init__()
        self.prior, self.odds = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.odds[(2 * z[..., 0] + z[..., 1]).long()]), obs=x)


class _TwoBitsGuide(PyroModule):
    """q(z|x): two independent bits, their odds a table over x."""

    def __init__(self) -> None:
        super().__init__()
        self.odds = nn.Parameter(torch.zeros(2, 2))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.odds[x.long()]).to_event(1))


@identity(
    "where sleep rests, q(z|x) = p(z1|x) p(z2|x), the bound still climbs: d L / d l_i = q_i (1 - q_i)(E_q_j log odds_i - l_i)",
    HINTON + "; Bornschein & Bengio 2015",
    ("unigen.routines.wake_sleep", "unigen.routines.variational_em"),
    ("D7", "C8"),
    "one fixed point for both phases",
)
def sleep_and_the_bound_rest_apart(generator: Generator, wrong: bool) -> Sides:
    pair: Any = scatter(Pair(_TwoBits(), _TwoBitsGuide()), generator, 1.5)
    with torch.no_grad():
        prior = torch.nn.functional.logsigmoid(torch.stack([-pair.model.prior, pair.model.prior]))  # (value, bit)
        log_z = prior[:, None, 0] + prior[None, :, 1]
        odds = pair.model.odds.reshape(2, 2)
        log_joint = log_z + torch.nn.functional.logsigmoid(torch.stack([-odds, odds]))  # (x, z1, z2)
        posterior = log_joint.exp() / log_joint.exp().sum((1, 2), keepdim=True)
        marginal = torch.stack([posterior[:, 1].sum(-1), posterior[:, :, 1].sum(-1)], -1)  # (x, bit)
        pair.guide.odds.copy_(torch.logit(marginal))
        first = ((1 - marginal[:, 1]) * (log_joint[:, 1, 0] - log_joint[:, 0, 0])) + marginal[:, 1] * (
            log_joint[:, 1, 1] - log_joint[:, 0, 1]
        )
        second = ((1 - marginal[:, 0]) * (log_joint[:, 0, 1] - log_joint[:, 0, 0])) + marginal[:, 0] * (
            log_joint[:, 1, 1] - log_joint[:, 1, 0]
        )
        slope = marginal * (1 - marginal) * (torch.stack([first, second], -1) - torch.logit(marginal))
    p = simplex(generator, 2)
    data = [(p[0], torch.zeros(1, dtype=torch.float64)), (p[1], torch.ones(1, dtype=torch.float64))]
    asleep = expected(routines.wake_sleep[1], pair, data).gradient
    climbing = expected(routines.variational_em[0], pair, data).gradient
    exact = torch.zeros_like(slope) if wrong else p[:, None] * slope
    return stack(asleep, climbing), stack(torch.zeros(4), exact)


# -- the correspondence table --------------------------------------------------------------------------------------------


@identity(
    "VAE = wake, extended to phi: one theta-gradient, and a phi-gradient that wake does not have",
    HU + ", table 1",
    ("unigen.routines.vae", "unigen.routines.wake_sleep"),
    ("G5",),
    "the VAE's phi-gradient is sleep's",
)
def vae_extends_wake(generator: Generator, wrong: bool) -> Sides:
    pair, tables = latent_pair(generator)
    p = simplex(generator, 3)
    wake, sleep = (expected(phase, pair, rows_of(p)).gradient for phase in routines.wake_sleep)
    both = expected(routines.vae[0], pair, rows_of(p)).gradient
    bound = -(p * kullback_leibler_divergence(tables.q, tables.posterior.detach())).sum()
    return both, stack(wake, sleep if wrong else gradient(bound, pair, "phi"))


# -- Gibbs sampling, and the machine without a direction -----------------------------------------------------------------


def _bits(count: int) -> Tensor:
    return torch.tensor(list(product((0.0, 1.0), repeat=count)), dtype=torch.float64)


def _places(x: Tensor) -> Tensor:
    """Return the places in ``_bits`` of rows of bits."""
    return (x @ 2.0 ** torch.arange(x.shape[-1] - 1, -1, -1, dtype=x.dtype)).long()


@identity(
    "sum_x p(x) K(x -> x') = p(x'), K: h ~ p(h|x), x' ~ p(x'|h), and log Z = log sum_x exp(-F(x))",
    "Geman & Geman 1984; Hinton 2002",
    ("unigen.pairs.rbm", "unigen.kernels.Gibbs"),
    ("D4", "C5"),
    "h at its mean instead of sampled",
)
def gibbs_leaves_the_model(generator: Generator, wrong: bool) -> Sides:
    pair: Any = scatter(rbm(3, 2), generator)
    x, h = _bits(3), _bits(2)
    machine = pair.model.distribution
    log_p = machine.log_prob(x) - machine.log_partition()
    weight, visible, hidden = pair.model.weight, pair.model.visible, pair.model.hidden
    up = torch.sigmoid(x @ weight + hidden)  # p(h = 1|x)
    down = torch.sigmoid(up @ weight.T + visible)
    kernel = torch.where(x > 0, down[:, None], 1 - down[:, None]).prod(-1)  # (x, x'), h at its mean
    if not wrong:
        start, middle, end = (rows.flatten() for rows in torch.meshgrid(*map(torch.arange, (8, 4, 8)), indexing="ij"))
        with Bits(h[middle], x[end]) as bits:
            moved = Gibbs()(Programs(pair), {"x": x[start]})["x"]
        kernel = torch.zeros_like(kernel).index_put((start, _places(moved)), bits.probability, accumulate=True)
    energy = torch.einsum("xd,dh,jh->xj", x, weight, h) + (x @ visible)[:, None] + h @ hidden
    by_hand = torch.logsumexp(energy.reshape(-1), 0)
    return stack(log_p.exp() @ kernel, machine.log_partition()), stack(log_p.exp(), by_hand)


@identity(
    "grad log p(x) = E_data[grad -F(x)] - E_p[grad -F(x)]: the positive minus the negative phase",
    "Ackley, Hinton & Sejnowski 1985; Hinton 2002",
    ("unigen.routines.contrastive_divergence", "unigen.pairs.rbm"),
    ("C5",),
    "the chain started at the data",
)
def positive_and_negative_phase(generator: Generator, wrong: bool) -> Sides:
    pair: Any = scatter(rbm(2, 2), generator)
    x = h = _bits(2)
    data = x[torch.randint(4, (5,), generator=generator)]
    p = torch.bincount(_places(data), minlength=4).double() / 5
    machine = pair.model.distribution
    log_p = machine.log_prob(x) - machine.log_partition()
    likelihood = gradient((p * log_p).sum(), pair, "theta", keep=True)
    phase = routines.contrastive_divergence(1, persistent=True)[0]
    engine = torch.zeros_like(likelihood)  # its mean over chains that start in the model
    for place, middle, end in product(range(4), repeat=3):
        pair.chains[str(phase.against)] = x[place].expand_as(data)
        with Bits(h[middle].expand(5, 2), x[end].expand(5, 2)) as bits:
            slope = on_samples(phase, pair, data, {}).gradient
        engine += (p if wrong else log_p.detach().exp())[place] * bits.probability[0].detach() * slope
    weight, visible, hidden = pair.model.weight.detach(), pair.model.visible.detach(), pair.model.hidden.detach()
    energy = torch.einsum("xd,dh,jh->xj", x, weight, h) + (x @ visible)[:, None] + h @ hidden
    joint = torch.softmax(energy.reshape(-1), 0).reshape(4, 4)
    contrast = p[:, None] * torch.softmax(energy, -1) - joint
    names = [name for name, _ in pair.named_group("theta")]
    moments = {
        "weight": torch.einsum("xj,xd,jh->dh", contrast, x, h),
        "visible": contrast.sum(1) @ x,
        "hidden": contrast.sum(0) @ h,
    }
    by_hand = stack(*[moments[name] for name in names])
    return stack(engine, likelihood), stack(by_hand, by_hand)
