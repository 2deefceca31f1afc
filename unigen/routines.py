r"""Every routine of the field, one declaration each: formula, meaning and source in its docstring.

A routine is a tuple of phases. Call one to declare it with other settings, ``iwae(50)``; write your own the same way, or
pass a plain tuple of phases wherever a routine is wanted. Notation: p_θ(x, z) the model, q_φ(z|x) the guide, f_ψ a named
network; q^r(y|x) = q(1-y|x); w = p/q the importance weight; w̃ weights that sum to one.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from typing import Any, get_args, get_type_hints

from unigen.divergences import f_divergences
from unigen.kernels import Gibbs
from unigen.logic import Rule, plausibility
from unigen.names import nearest
from unigen.objectives import (
    Activated,
    BetaElbo,
    Discriminate,
    FGan,
    GradientPenalized,
    Imitation,
    Mmd,
    Negative,
    Network,
    OnGenerated,
    OnlyGenerated,
    Scaled,
    baseline_fit,
    critic_gap,
    elbo,
    iwae_reversed,
    log_evidence,
    log_p,
    log_pq,
    log_q,
    log_q_reversed,
    log_weight,
)
from unigen.objectives import iwae as iwae_bound
from unigen.phases import (
    PHI,
    PSI,
    THETA,
    Baseline,
    Chain,
    ClipWeights,
    DoublyReparameterized,
    Enumerate,
    Estimator,
    LeaveOneOut,
    Objective,
    Optimizer,
    Pathwise,
    Phase,
    Resampled,
    Routine,
    ScoreFunction,
    Sleep,
    StickingTheLanding,
    Tilted,
    Wake,
    declare,
)
from unigen.settings import Kind

__all__ = [
    "ESTIMATORS",
    "aavae",
    "beta_vae",
    "by_name",
    "catalogue",
    "contrastive_divergence",
    "em",
    "f_gan",
    "gan",
    "gan_minimax",
    "iwae",
    "iwgan",
    "maximum_likelihood",
    "mmd",
    "nvil",
    "persistent_contrastive_divergence",
    "posterior_regularization",
    "reinforce",
    "reweighted_wake_sleep",
    "rule_distillation",
    "standard_equation",
    "vae",
    "variational_em",
    "vimco",
    "wake_sleep",
    "wgan",
    "wgan_gp",
]

Phases = tuple[Phase, ...]
LATENT = ("latent", "deep_latent", "sigmoid_belief", "mixture")
DISCRETE, ADVERSARIAL = ("sigmoid_belief", "mixture"), ("adversarial",)
EXACT = ("flow", "mixture")
GAN_ADAM = Optimizer("Adam", 2e-4, (0.5, 0.999))
WGAN_ADAM = Optimizer("Adam", 1e-4, (0.0, 0.9))
RBM_ADAM = Optimizer("Adam", 3e-3)
SCORED = Optimizer("Adam", 1e-3, phi=0.3)  # the score function's gradient of phi is the noisier one

ESTIMATORS = {
    "pathwise": Pathwise(),
    "score_function": ScoreFunction(),
    "sticking_the_landing": StickingTheLanding(),
    "doubly_reparameterized": DoublyReparameterized(),
}


def _estimator(choice: Any) -> Any:
    if isinstance(choice, str) and choice in ESTIMATORS:
        return ESTIMATORS[choice]
    if choice is not None and not isinstance(choice, Estimator):
        raise ValueError(f"no estimator {choice!r}; {nearest(str(choice), ESTIMATORS)}")
    return choice


# -- likelihood and bounds ---------------------------------------------------------------------------------------------


@declare("Fisher 1922; flows: Dinh, Krueger & Bengio 2015", "https://arxiv.org/abs/1410.8516", EXACT)
def maximum_likelihood() -> Phases:
    """max_θ E_data[log p_θ(x)]

    Climb the exact log-likelihood: a flow's change of variables, or the sum over all values of discrete latents.

    Theory: maximum-likelihood, change-of-variables [fisher1922, dinh2015].
    """
    return (Phase(log_evidence, Enumerate(), THETA),)


@declare("Dempster, Laird & Rubin 1977", "https://doi.org/10.1111/j.2517-6161.1977.tb01600.x", ("mixture",))
def em(closed_form: bool = True) -> Phases:
    """E: q* = p_θ(z|x);  M: max_θ E_data E_{q*}[log p_θ(x, z)]

    The E-step is exact, by enumeration; the M-step is solved where the model can, else climbed.

    Theory: e-step-is-the-posterior, em-gain [dempster1977].
    """
    posterior = Tilted(Enumerate(), log_weight)
    return (Phase(log_p, posterior, THETA, solve=closed_form),)


@declare("Neal & Hinton 1998; Jordan et al. 1999", "https://doi.org/10.1023/A:1007665907178", LATENT)
def variational_em(steps: int = 1) -> Phases:
    """E: max_φ L(θ, φ);  M: max_θ L(θ, φ);  L = E_data E_q[log p_θ(x, z) - log q_φ(z|x)]

    Alternate the two programs on one bound, ``steps`` E-steps for an M-step.

    Theory: variational-em, evidence-decomposes [neal1998, jordan1999].
    """
    return (Phase(elbo, Wake(), PHI, steps=steps), Phase(elbo, Wake(), THETA))


@declare("Kingma & Welling 2014", "https://arxiv.org/abs/1312.6114", LATENT)
def vae(k: int | None = None, estimator: Any = None) -> Phases:
    """max_{θ,φ} E_data E_q[log p_θ(x, z) - log q_φ(z|x)]

    The wake phase, extended to the guide: both programs climb the evidence lower bound. ``k``: samples of z a datum, whose
    bounds are averaged. ``estimator``: of ``ESTIMATORS``; by default pathwise where a site has a reparameterization, the
    score function elsewhere.

    Theory: vae, evidence-decomposes [kingma2014].
    """
    return (Phase(elbo, Wake(k), THETA + PHI, estimator=_estimator(estimator)),)


@declare("Higgins et al. 2017", "https://openreview.net/forum?id=Sy2fzU9gl", LATENT)
def beta_vae(beta: float = 4.0) -> Phases:
    """max_{θ,φ} E_data[E_q log p_θ(x|z) - β KL(q_φ(z|x) || p(z))]

    The VAE with its divergence from the prior weighted; β = 1 is the VAE.

    Theory: beta-vae [higgins2017].
    """
    return (Phase(BetaElbo(beta), Wake(), THETA + PHI),)


@declare("Burda, Grosse & Salakhutdinov 2016", "https://arxiv.org/abs/1509.00519", LATENT)
def iwae(k: int = 5, estimator: Any = None, draws: int | None = None) -> Phases:
    """max_{θ,φ} E_data E_q log (1/K) Σ_k p_θ(x, z_k) / q_φ(z_k|x)

    A tighter bound from K samples. The estimator ``"doubly_reparameterized"`` keeps the guide's gradient from fading. With
    ``draws`` the gradient, of this estimator or without one, goes through so many of the samples, drawn by their weights, in
    less than half the time where K is large.

    Theory: iwae, iwae-resampled [burda2016].
    """
    chosen = _estimator(estimator)
    if draws is not None:
        if chosen is not None and not isinstance(chosen, Resampled | DoublyReparameterized):
            raise ValueError(f"draws is for no estimator or 'doubly_reparameterized'; got estimator={estimator!r}")
        chosen = Resampled(draws) if chosen is None else replace(chosen, draws=draws)
    return (Phase(iwae_bound, Wake(k), THETA + PHI, estimator=chosen),)


@declare("Mnih & Gregor 2014", "https://arxiv.org/abs/1402.0030", DISCRETE, SCORED)
def nvil() -> Phases:
    """max_{θ,φ} E_data E_q[log p_θ(x, z) - log q_φ(z|x)], ∇_φ by (L - b_ψ(x)) ∇ log q_φ

    The VAE's bound for discrete latents, with a learned and a running baseline that lower the score function's variance;
    where the baseline has an output for each latent site, by the local signal of each.

    Theory: nvil, local-signals-have-no-bias, baselines-have-no-bias [mnih2014].
    """
    return (
        Phase(elbo, Wake(), THETA + PHI, estimator=ScoreFunction(), control_variate=Baseline("baseline")),
        Phase(baseline_fit, Wake(), PSI),
    )


@declare("Williams 1992; Ranganath, Gerrish & Blei 2014", "https://doi.org/10.1007/BF00992696", DISCRETE, SCORED)
def reinforce() -> Phases:
    """max_{θ,φ} E_data E_q[log p_θ(x, z) - log q_φ(z|x)], ∇_φ by L ∇ log q_φ

    The score function without a control variate: unbiased, and of large variance.

    Theory: path-and-score-agree [williams1992, ranganath2014].
    """
    return (Phase(elbo, Wake(), THETA + PHI, estimator=ScoreFunction()),)


@declare("Mnih & Rezende 2016", "https://arxiv.org/abs/1602.06725", DISCRETE, SCORED)
def vimco(k: int = 5) -> Phases:
    """max_{θ,φ} E_data E_q log (1/K) Σ_k w_k, ∇_φ by Σ_k (L - L_{-k}) ∇ log q_φ(z_k|x) + ∇L

    The importance-weighted bound for discrete latents; each particle's baseline comes from the others.

    Theory: vimco, baselines-have-no-bias [mnih2016].
    """
    return (Phase(iwae_bound, Wake(k), THETA + PHI, estimator=ScoreFunction(), control_variate=LeaveOneOut()),)


# -- wake and sleep ----------------------------------------------------------------------------------------------------


@declare("Hinton, Dayan, Frey & Neal 1995", "https://doi.org/10.1126/science.7761831", LATENT)
def wake_sleep() -> Phases:
    """wake: max_θ E_data E_q[log p_θ(x, z)];  sleep: max_φ E_{p_θ(x,z)}[log q_φ(z|x)]

    Each program learns by maximum likelihood from the other's samples; no gradient passes through a sample.

    Theory: wake-sleep, wake-gradient, sleep-gradient [hinton1995].
    """
    return (Phase(log_p, Wake(), THETA), Phase(log_q, Sleep(), PHI))


@declare("Bornschein & Bengio 2015; Le et al. 2019", "https://arxiv.org/abs/1406.2751", LATENT)
def reweighted_wake_sleep(k: int = 5, sleep: bool = True, wake: bool = True) -> Phases:
    """max_{θ,φ} E_data E_{q*}[log p_θ(x, z) + log q_φ(z|x)], q* = Σ_k w̃_k δ(z_k);  sleep: max_φ E_{p_θ}[log q_φ(z|x)]

    K weighted samples of the guide stand for the posterior. ``wake``, ``sleep``: which of the guide's two updates to use.

    Theory: reweighted-wake-sleep [bornschein2015, le2019].
    """
    if not (wake or sleep):
        raise ValueError("reweighted_wake_sleep updates the guide in its wake phase, its sleep phase, or both")
    posterior = Tilted(Wake(k), log_weight)
    awake = Phase(log_pq, posterior, THETA + PHI) if wake else Phase(log_p, posterior, THETA)
    return (awake, Phase(log_q, Sleep(), PHI)) if sleep else (awake,)


# -- adversaries: y is inferred, the sleep phase is extended to theta --------------------------------------------------


@declare(
    "Goodfellow et al. 2014; as variational EM, Hu et al. 2018",
    "https://arxiv.org/abs/1406.2661",
    ADVERSARIAL,
    GAN_ADAM,
)
def gan() -> Phases:
    """max_φ E_{p_θ(x|y)p(y)}[log q_φ(y|x)];  max_θ E_{p_θ(x|y)p(y)}[log q^r_φ(y|x)]

    The sleep phase of the discriminator, and its extension to the generator with the label reversed (non-saturating).

    Theory: gan, lemma-1, eq-8-optimal-discriminator [goodfellow2014, hu2018unifying].
    """
    return (Phase(log_q, Sleep(), PHI), Phase(log_q_reversed, Sleep(), THETA))


@declare("Goodfellow et al. 2014", "https://arxiv.org/abs/1406.2661", ADVERSARIAL, GAN_ADAM)
def gan_minimax() -> Phases:
    """min_θ max_φ E_{p_θ(x|y)p(y)}[log q_φ(y|x)]

    The generator descends what the discriminator climbs; its gradient fades where the discriminator is sure.

    Theory: gan-minimax, minimax-descends-jensen-shannon [goodfellow2014].
    """
    return (Phase(log_q, Sleep(), PHI), Phase(Negative(log_q), Sleep(), THETA))


@declare("Nowozin, Cseke & Tomioka 2016", "https://arxiv.org/abs/1606.00709", ADVERSARIAL, GAN_ADAM)
def f_gan(f: str = "jensen_shannon") -> Phases:
    """min_θ max_φ E_data[T_φ(x)] - E_{p_θ}[f*(T_φ(x))]

    A variational bound on an f-divergence, by name; the critic T is the guide's log odds through g_f.

    Theory: f-gan, f-gan-is-tight [nowozin2016].
    """
    return (Phase(FGan(f), Sleep(), PHI), Phase(Negative(FGan(f)), Sleep(), THETA))


@declare(
    "Arjovsky, Chintala & Bottou 2017", "https://arxiv.org/abs/1701.07875", ADVERSARIAL, Optimizer("RMSprop", 5e-5)
)
def wgan(clip: float = 0.01, critic_steps: int = 5) -> Phases:
    """min_θ max_{|φ|≤c} E_data[f_φ(x)] - E_{p_θ}[f_φ(x)]

    The Wasserstein critic, its weights clipped to [-c, c] after each step.

    Theory: wgan, wgan-value, lipschitz-bound [arjovsky2017wasserstein].
    """
    return (
        Phase(critic_gap, Sleep(), PHI, steps=critic_steps, project=ClipWeights(clip)),
        Phase(Negative(critic_gap), Sleep(), THETA),
    )


@declare("Gulrajani et al. 2017", "https://arxiv.org/abs/1704.00028", ADVERSARIAL, WGAN_ADAM)
def wgan_gp(penalty: float = 10.0, critic_steps: int = 5) -> Phases:
    """max_φ E_data f - E_{p_θ} f - λ E(|∇f(x̂)| - 1)²;  max_θ E_{p_θ} f_φ(x)

    The Wasserstein critic with its slope held near one on lines between data and samples.

    Theory: wgan-gp [gulrajani2017].
    """
    return (
        Phase(GradientPenalized(penalty), Sleep(), PHI, steps=critic_steps),
        Phase(Negative(critic_gap), Sleep(), THETA),
    )


@declare("Li, Swersky & Zemel 2015; Dziugaite, Roy & Ghahramani 2015", "https://arxiv.org/abs/1502.02761", ADVERSARIAL)
def mmd() -> Phases:
    """min_θ MMD²(data, p_θ)

    A generative moment-matching network: no critic, a fixed mixture of Gaussian kernels compares data and samples.

    Theory: mmd, mmd-is-unbiased [li2015, dziugaite2015].
    """
    return (Phase(Mmd(), Sleep(), THETA),)


@declare("Hu, Yang, Salakhutdinov & Xing 2018", "https://arxiv.org/abs/1706.00550", ("latent",))
def aavae() -> Phases:
    """max_ψ E[log q_ψ(y|x)];  max_{θ,φ} E_x[q^r_ψ(y=0|x) (E_q log p_θ(x, z) - log q_φ(z|x))], x from data and dreams

    The adversary-activated VAE: data and dreams both teach it, each as far as the discriminator takes it for real.

    Theory: eq-17-activated-vae [hu2018unifying].
    """
    return (Phase(Discriminate(), Wake(dreams=True), PSI), Phase(Activated(), Wake(dreams=True), THETA + PHI))


@declare("Hu, Yang, Salakhutdinov & Xing 2018", "https://arxiv.org/abs/1706.00550", ADVERSARIAL, GAN_ADAM)
def iwgan(k: int = 5) -> Phases:
    """max_φ E[log q_φ(y|x)];  ∇_θ = E Σ_k w̃_k ∇_θ log q^r_φ(y|x_k), w_k = q^r/q

    The importance-weighted GAN, the IWAE's idea carried to the generator's step; k = 1 is the GAN.

    Theory: eq-16-importance-weighted-gan [hu2018unifying].
    """
    return (Phase(log_q, Sleep(), PHI), Phase(iwae_reversed, Sleep(k), THETA))


# -- constraints, energies, the standard equation ----------------------------------------------------------------------


@declare(
    "Ganchev et al. 2010; Hu et al. 2018b",
    "https://arxiv.org/abs/1806.09764",
    ("latent", "sigmoid_belief", "mixture", "flow", "adversarial"),
)
def posterior_regularization(
    f: Objective | str = "constraint",
    alpha: float = 1.0,
    learn: bool = True,
    implicit: bool = False,
    base: Routine | Phases = (),
) -> Phases:
    """E: q* ∝ p_θ exp(α f);  M: max_θ E_{q*}[log p_θ];  max_ψ E_data f_ψ - E_{q*} f_ψ

    After the phases of ``base``, the model learns from its own samples reweighted by the constraint f (an objective, or
    the name of a psi network). ``implicit``: the reverse-KL form max_θ E_{p_θ}[α f] for a pair without density. ``learn``:
    the constraint learns too, as a reward that the data earn and q* does not.

    Theory: posterior-regularization, e-step-of-posterior-regularization, m-step-of-posterior-regularization
    [ganchev2010, hu2018constraints].
    """
    constraint = Network(f) if isinstance(f, str) else f
    reward = Scaled(constraint, alpha)
    q_star = Tilted(Sleep(), OnlyGenerated(reward) if implicit else reward, dim=-1)
    model = Phase(OnGenerated(reward), Sleep(), THETA) if implicit else Phase(log_p, q_star, THETA)
    teacher = (Phase(constraint, Wake(), PSI, against=q_star),) if learn else ()
    return (*base, model, *teacher)


@declare("Hu, Ma, Liu, Hovy & Xing 2016", "https://arxiv.org/abs/1603.06318", DISCRETE)
def rule_distillation(
    rules: Objective | tuple[Objective, ...] = plausibility,
    strength: float = 6.0,
    share: float = 0.5,
    base: Routine | Phases = (),
) -> Phases:
    """q* ∝ q_φ exp(-C Σ_l λ_l (1 - r_l));  max_φ E_data E_t[log q_φ(z|x)], t = (1 - π) p_θ(z|x) + π q*

    After the phases of ``base``, the guide is a student: it learns from labels, which the model holds (else from the model's
    posterior), and as far as ``share`` π says imitates the teacher that ``strength`` C and the rules make of it. ``rules``:
    a ``unigen.logic.Rule``, the truth of one of confidence 1, or a tuple of them. With π = 0 the rules are left out.

    Theory: rule-distillation, rule-teacher, distillation-mixes-targets [hu2016, hinton2015].
    """
    listed = rules if isinstance(rules, tuple) else (rules,)
    made = tuple(rule if isinstance(rule, Rule) else Rule(rule) for rule in listed)
    return (*base, Phase(log_q, Tilted(Enumerate(), Imitation(made, strength, share)), PHI))


@declare("Hinton 2002", "https://doi.org/10.1162/089976602760128018", ("rbm",), RBM_ADAM)
def contrastive_divergence(k: int = 1, kernel: Any = None, persistent: bool = False) -> Phases:
    """max_θ E_data[log p̃_θ(x)] - E_chain[log p̃_θ(x)], the chain k steps from the data

    The positive phase against the negative phase; the partition function cancels.

    Theory: contrastive-divergence, positive-and-negative-phase [hinton2002].
    """
    return (Phase(log_p, Wake(), THETA, against=Chain(kernel or Gibbs(), k, persistent)),)


@declare("Younes 1989; Tieleman 2008", "https://doi.org/10.1145/1390156.1390290", ("rbm",), RBM_ADAM)
def persistent_contrastive_divergence(k: int = 1, kernel: Any = None) -> Phases:
    """max_θ E_data[log p̃_θ(x)] - E_chain[log p̃_θ(x)], the chain carried on from step to step

    Contrastive divergence whose chains never restart at the data.

    Theory: contrastive-divergence [younes1989, tieleman2008].
    """
    return contrastive_divergence(k, kernel, persistent=True).phases


@declare("Hu & Xing 2022", "https://arxiv.org/abs/2108.07783", EXACT)
def standard_equation(
    alpha: float = 1.0, beta: float = 0.0, divergence: str = "cross_entropy", experience: Objective | str = "data"
) -> Phases:
    """min_{q,θ} -α H(q) + β D(q, p_θ) - E_q[f]

    One objective for the field: ``experience`` f is ``"data"``, ``"critic"`` (learned, adversarial), or a constraint.
    Cross entropy with data, α = 1 and β → 0 is maximum likelihood; a critic with α = 0 is gan_minimax (``"jensen_shannon"``),
    f_gan (an f-divergence) or wgan (``"wasserstein"``); a constraint has the teacher q ∝ exp((β log p_θ + f) / α).

    Theory: standard-equation, standard-equation-teacher, standard-equation-adversaries [hu2022].
    """
    if experience == "critic":
        if alpha != 0 or beta != 1:
            raise ValueError(f"a learned critic is the case alpha=0, beta=1; got alpha={alpha:g}, beta={beta:g}")
        if divergence in ("jensen_shannon", "wasserstein"):
            return (gan_minimax if divergence == "jensen_shannon" else wgan).phases
        return f_gan(divergence).phases
    if divergence != "cross_entropy":
        raise ValueError(f"experience {experience!r} takes divergence 'cross_entropy'; got {divergence!r}")
    if alpha <= 0 or beta < 0:
        raise ValueError(f"the teacher needs alpha > 0 and beta >= 0; got alpha={alpha:g}, beta={beta:g}")
    if experience == "data":
        if alpha != 1 or beta != 0:
            raise ValueError(
                f"maximum likelihood is alpha=1 and the limit beta -> 0, written beta=0, as the teacher is p_data^(1/alpha); got "
                f"alpha={alpha:g}, beta={beta:g}"
            )
        return maximum_likelihood.phases
    if alpha != beta:
        raise ValueError(
            f"with samples of p_theta as proposals the teacher is p_theta exp(f / alpha), the case alpha = beta; got {alpha:g} and "
            f"{beta:g}"
        )
    return posterior_regularization(experience, 1 / alpha, learn=False).phases


# -- the catalogue -----------------------------------------------------------------------------------------------------


def catalogue() -> dict[str, Routine]:
    """Return every declared routine by name, in the order of this file."""
    return {name: value for name, value in globals().items() if isinstance(value, Routine)}


def by_name(text: str) -> Routine:
    """Return the routine written as ``"vae"`` or, with settings, ``"iwae(50)"`` or ``"wgan(clip=0.05)"``.

    Only numbers, strings and booleans are read as settings, the names of estimators and f-divergences without quotes too.
    Raises ``ValueError`` with the nearest name or the reason.
    """
    known = catalogue()
    name, bracket, _ = text.strip().partition("(")
    if name not in known:
        raise ValueError(f"no routine {name!r:.80}; {nearest(name[:80], known)}")
    if not bracket:
        return known[name]
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise SyntaxError
        arguments = [_setting(argument) for argument in call.args]
        named = {str(keyword.arg): _setting(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise ValueError(f"cannot read routine {text!r:.80}; write it as {name}(5) or {name}(name=value)") from None
    try:
        _check_kinds(known[name], known[name].bind(*arguments, **named).arguments)
        return known[name](*arguments, **named)
    except (TypeError, ValueError) as error:
        raise ValueError(f"routine {text!r:.80}: {error}; write it as {name} or {name}(name=value)") from None


def _check_kinds(routine: Routine, settings: Mapping[str, Any]) -> None:
    hints = get_type_hints(routine.declaration)
    for name, value in settings.items():
        allowed = (hints[name], *get_args(hints[name]))
        kinds = [Kind(base, optional=type(None) in allowed) for base in (bool, int, float, str) if base in allowed]
        if not kinds and Any not in allowed:
            raise ValueError(f"{name} is neither number nor text; set it in Python")
        if kinds and not (any(kind.holds(value) for kind in kinds) and (type(value) is not float or isfinite(value))):
            raise ValueError(f"{name} wants {kinds[0]}; got {value!r:.80}")


def _setting(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and (node.id in ESTIMATORS or node.id in f_divergences):
        return node.id
    return ast.literal_eval(node)
