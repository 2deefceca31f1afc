"""Objectives: plain functions of a ``Draw`` that return one value a datum, (N,) or (K, N), in nats.

An objective with a setting is a frozen dataclass, so that routines stay comparable and printable. Notation: p is the
model's joint density, q the guide's; y = 1 marks data, y = 0 what the model made (Hu et al. 2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unigen.divergences import FDivergence, f_divergence, gaussian_kernel, mmd_squared
from unigen.phases import Objective, check_number, name_of

__all__ = [
    "Activated",
    "BetaElbo",
    "Discriminate",
    "FGan",
    "GradientPenalized",
    "Imitation",
    "Mmd",
    "Negative",
    "Network",
    "OnGenerated",
    "OnlyGenerated",
    "Scaled",
    "baseline_fit",
    "critic",
    "critic_gap",
    "elbo",
    "iwae",
    "iwae_reversed",
    "log_evidence",
    "log_mean_exp",
    "log_p",
    "log_pq",
    "log_q",
    "log_q_reversed",
    "log_weight",
]


# -- densities ---------------------------------------------------------------------------------------------------------


def log_p(draw: Any) -> Tensor:
    """log p(x, z), the complete-data log-likelihood.

    Theory: density, wake-gradient [hinton1995].
    """
    return draw.log_p


def log_q(draw: Any) -> Tensor:
    """log q(z|x); for the GAN's guide log q(y|x).

    Theory: density, sleep-gradient [hinton1995].
    """
    return draw.log_q


def log_pq(draw: Any) -> Tensor:
    """log p(x, z) + log q(z|x): under one posterior approximation both programs learn by maximum likelihood.

    Theory: density, reweighted-wake-sleep [bornschein2015].
    """
    return draw.log_p + draw.log_q


def log_weight(draw: Any) -> Tensor:
    """log w = log p(x, z) - log q(z|x), the log importance weight.

    Theory: density, reweighted-wake-sleep [burda2016].
    """
    return draw.log_p - draw.log_q


def elbo(draw: Any) -> Tensor:
    """log p(x, z) - log q(z|x), whose mean under q bounds log p(x) from below.

    Theory: evidence-decomposes, free-energy [jordan1999].
    """
    return log_weight(draw)


def iwae(draw: Any) -> Tensor:
    """log (1/K) sum_k w_k, the importance-weighted bound (Burda, Grosse & Salakhutdinov 2016); (N,).

    Theory: iwae, iwae-gap [burda2016].
    """
    return log_mean_exp(draw, log_weight(draw))


def log_evidence(draw: Any) -> Tensor:
    """log p(x): log p itself without latents, the sum over all values of the latents under ``Enumerate``; (N,).

    Theory: maximum-likelihood [fisher1922].
    """
    if draw.enumerated:
        return torch.logsumexp(draw.log_p, 0)
    if draw.latents:
        raise ValueError(
            f"maximum likelihood needs log p(x), but site '{draw.latents[0]}' is latent: enumerate it, or climb a bound "
            "(vae, iwae, reweighted_wake_sleep)"
        )
    return draw.log_p


@dataclass(frozen=True)
class BetaElbo:
    """log p(x|z) + beta (log p(z) - log q(z|x)) (Higgins et al. 2017); ``beta=1`` is the elbo.

    Theory: beta-vae [higgins2017].
    """

    beta: float

    def __post_init__(self) -> None:
        check_number("beta", self.beta)

    def __call__(self, draw: Any) -> Tensor:
        return draw.log_likelihood + self.beta * (draw.log_prior - draw.log_q)


def log_mean_exp(draw: Any, values: Tensor) -> Tensor:
    """log (1/K) sum_k exp(values_k) over the particles of each datum; (K, N) -> (N,).

    Theory: iwae [burda2016].
    """
    if draw.particles is None:
        raise ValueError("an objective over particles needs an expectation with particles, such as Wake(particles=5)")
    if draw.enumerated:
        raise ValueError("under Enumerate every value is there once, drawn or not: the sum over them is log_evidence")
    return torch.logsumexp(values, 0) - math.log(draw.particles)


# -- the inferred label y: GANs as variational EM ----------------------------------------------------------------------


def log_q_reversed(draw: Any) -> Tensor:
    """log q^r(y|x) = log q(1 - y|x), the reversed label (Hu et al. 2018, Eq. 3).

    Theory: eq-5-reversed-label, lemma-1 [hu2018unifying].
    """
    return draw.log_q_at("y", 1 - draw["y"])


def iwae_reversed(draw: Any) -> Tensor:
    """log (1/K) sum_k q^r(y|x_k) / q(y|x_k), q in the denominator held fixed (Hu et al. 2018, Eq. 15); (N,).

    Theory: eq-16-importance-weighted-gan [hu2018unifying].
    """
    return log_mean_exp(draw, log_q_reversed(draw) - draw.log_q.detach())


def critic(draw: Any, **given: Tensor) -> Tensor:
    """f(x) = log q(y=1|x) - log q(y=0|x), the log odds of the guide, in the role of a critic.

    Theory: two-losses-make-a-critic, critic-keeps-its-slope [goodfellow2014, arjovsky2017wasserstein].
    """
    return draw.log_odds("y", **given)


def critic_gap(draw: Any) -> Tensor:
    """2 (2y - 1) f(x), whose mean is E_data f - E_model f (Arjovsky, Chintala & Bottou 2017).

    Theory: wgan, wgan-value [arjovsky2017wasserstein].
    """
    return 2 * (2 * draw["y"] - 1) * critic(draw)


@dataclass(frozen=True)
class GradientPenalized:
    """critic_gap - weight (|df/dx| - 1)^2 on lines between data and samples (Gulrajani et al. 2017).

    Theory: wgan-gp [gulrajani2017].
    """

    weight: float = 10.0
    data_first: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        check_number("the penalty's weight", self.weight)

    def __call__(self, draw: Any) -> Tensor:
        rows = draw.depth  # an event has any shape; the plate holds the data first (pairs/adversarial.py)
        real, generated = draw.x.detach().chunk(2, rows - 1)
        part = torch.rand_like(real.flatten(rows)[..., :1])
        between = torch.lerp(real, generated, part.reshape(*part.shape[:rows], *[1] * (real.dim() - rows)))
        between.requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(critic(draw, x=between).sum(), between, create_graph=True)
        penalty = (slope.flatten(rows).square().sum(-1).add(1e-12).sqrt() - 1).square()
        return critic_gap(draw) - self.weight * torch.cat([penalty, penalty], -1)


@dataclass(frozen=True)
class FGan:
    """2 y T(x) - 2 (1 - y) f*(T(x)), T = g_f(critic): the variational bound on D_f (Nowozin et al. 2016).

    Theory: f-gan, f-gan-is-tight [nowozin2016].
    """

    divergence: str

    def __post_init__(self) -> None:
        f_divergence(self.divergence)  # an unknown name is refused here

    def __call__(self, draw: Any) -> Tensor:
        divergence: FDivergence = f_divergence(self.divergence)
        log_odds, real = critic(draw), draw["y"] > 0
        on_data = divergence.activation(torch.where(real, log_odds, 0.0))  # at 0: what is not taken must not overflow,
        on_generated = divergence.conjugate_of_activation(torch.where(real, 0.0, log_odds))  # else the gradient is nan
        return 2 * torch.where(real, on_data, -on_generated)


@dataclass(frozen=True)
class Mmd:
    """-MMD^2 between data and samples over a mixture of Gaussian kernels (Li, Swersky & Zemel 2015); ().

    The widths are the given fractions of the root mean squared distance of the batch's data. For widths of one value it is
    unbiased; that the batch sets them is a bias that vanishes as it grows. It couples the rows of a batch.

    Theory: mmd, mmd-is-unbiased [li2015].
    """

    widths: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0)
    couples_data: bool = field(default=True, repr=False)
    data_first: bool = field(default=True, init=False, repr=False)

    def __call__(self, draw: Any) -> Tensor:
        real, generated = draw.x.flatten(draw.depth).chunk(2, -2)
        scale = (2 * real.detach().var(-2).sum()).sqrt()
        if draw.dry and scale == 0:
            raise ValueError(
                "the widths of Mmd are fractions of the distance between data; give a batch whose rows differ"
            )
        return -mmd_squared(real.detach() / scale, generated / scale, gaussian_kernel(self.widths))


# -- networks named psi: constraints, baselines, adversaries -----------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """f(x), the psi network of this name.

    Theory: constraint-learns-as-a-reward [hu2018constraints].
    """

    network: str

    def __call__(self, draw: Any) -> Tensor:
        return draw.network(self.network)(draw.x)

    def __str__(self) -> str:
        return self.network


def baseline_fit(draw: Any) -> Tensor:
    """-(elbo - b(x))^2, the fit of NVIL's baseline; the running mean follows the signal (Mnih & Gregor 2014).

    Of a baseline for each latent site: -sum_i (l_i - b_i(x))^2, l_i the local signal of site i.

    Theory: nvil, local-signals-have-no-bias [mnih2014].
    """
    baseline, signal = draw.network("baseline"), elbo(draw).detach()
    predicted = baseline(draw.x)
    local = draw.local_signals(signal, predicted)
    if local is not None:
        signal = torch.stack(list(local.values()), -1)
    error = (signal - predicted).square()
    if hasattr(baseline, "track"):
        baseline.track(signal)
    return -(error if local is None else error.sum(-1))


@dataclass(frozen=True)
class Discriminate:
    """log sigma((2y - 1) f(x)): tell the data (y = 1) from dreams (y = 0) with the psi network of this name.

    Theory: optimal-discriminator, eq-17-activated-vae [goodfellow2014, hu2018unifying].
    """

    network: str = "critic"

    def __call__(self, draw: Any) -> Tensor:
        return torch.nn.functional.logsigmoid((2 * draw["y"] - 1) * draw.network(self.network)(draw.x))


@dataclass(frozen=True)
class Activated:
    """2 q^r(y=0|x) elbo: the elbo, activated by how real x looks (Hu et al. 2018, Eq. 17, without its factor 1/2).

    Theory: eq-17-activated-vae [hu2018unifying].
    """

    network: str = "critic"

    def __call__(self, draw: Any) -> Tensor:
        return 2 * torch.sigmoid(draw.network(self.network)(draw.x)).detach() * elbo(draw)


# -- rules: a teacher for the guide ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Imitation:
    """log t(z|x) - log q(z|x), t = (1 - π) p(z|x) + π q*, q* ~ q exp(C Σ rules): a target for the student q, over q itself.

    Under ``Enumerate`` alone; (M, N). rules: functions of a draw, such as ``unigen.logic.Rule``, that are 0 where a rule holds
    and below it where it is broken. strength: C >= 0. share: π in [0, 1]. p(z|x) is the model's posterior; where the model
    holds labels it is the label itself (Hu, Ma, Liu, Hovy & Xing 2016).

    Theory: rule-distillation, rule-teacher, distillation-mixes-targets [hu2016].
    """

    rules: tuple[Objective, ...]
    strength: float
    share: float

    def __post_init__(self) -> None:
        if not self.rules or not all(callable(rule) for rule in self.rules):
            raise ValueError(f"rules are functions of a draw, such as Rule(truth); got {str(self.rules):.80}")
        check_number("the strength", self.strength)
        check_number("the share", self.share, 1)

    def __call__(self, draw: Any) -> Tensor:
        if not draw.enumerated:
            raise ValueError("a teacher is normalized over every value of the latents: use it under Enumerate()")
        broken = sum(rule(draw) for rule in self.rules)
        teacher = torch.softmax(draw.log_q + self.strength * broken, 0)
        target = (1 - self.share) * torch.softmax(draw.log_p, 0) + self.share * teacher
        return target.log() - draw.log_q

    def __str__(self) -> str:
        return f"Imitation({', '.join(map(name_of, self.rules))}; C={self.strength:g}, π={self.share:g})"


# -- combinations ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Negative:
    """-objective: descend what another phase climbs.

    Theory: combination, gan-minimax [goodfellow2014].
    """

    objective: Objective

    def __call__(self, draw: Any) -> Tensor:
        return -self.objective(draw)

    def __str__(self) -> str:
        return f"-{name_of(self.objective)}"


@dataclass(frozen=True)
class Scaled:
    """alpha * objective.

    Theory: combination, posterior-regularization [ganchev2010].
    """

    objective: Objective
    alpha: float

    def __call__(self, draw: Any) -> Tensor:
        return self.alpha * self.objective(draw)

    def __str__(self) -> str:
        return f"{self.alpha:g} {name_of(self.objective)}"


@dataclass(frozen=True)
class OnGenerated:
    """2 (1 - y) objective: its mean is the expectation over generated rows alone.

    Theory: combination, implicit-m-step [hu2018constraints].
    """

    objective: Objective

    def __call__(self, draw: Any) -> Tensor:
        return 2 * (1 - draw["y"]) * self.objective(draw)

    def __str__(self) -> str:
        return f"generated {name_of(self.objective)}"


@dataclass(frozen=True)
class OnlyGenerated:
    """The objective where y = 0, -inf where y = 1: a log-weight that leaves the data out.

    Theory: implicit-e-step [hu2018constraints].
    """

    objective: Objective

    def __call__(self, draw: Any) -> Tensor:
        return torch.where(draw["y"] > 0, -math.inf, self.objective(draw))

    def __str__(self) -> str:
        return f"generated {name_of(self.objective)}"
