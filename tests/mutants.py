"""Planted bugs: each replaces one piece of text in one function of unigen, and names what must notice: an exact case or alarm.

``plant`` swaps the function's code object, so that every reference to it is mutated, and pytest's monkeypatch puts it back.
A mutant whose text is no longer there once fails loudly: move it along with the code.
"""

from __future__ import annotations
import __future__

import importlib
import inspect
import textwrap
from dataclasses import dataclass
from types import CodeType
from typing import Any

import pytest

__all__ = ["MUTANTS", "Mutant", "plant"]

EAGER, DRAW, OBJECTIVES = "unigen.engines.eager", "unigen.engines.draw", "unigen.objectives"
PROGRAMS, COMPILED = "unigen.engines.programs", "unigen.engines.compiled"


@dataclass(frozen=True)
class Mutant:
    """``old`` becomes ``new`` in the function ``where`` (module:name).

    ``case``: the exact case (cases.py) or the alarm (alarms.py) that must be off by over 1e-6.
    """

    name: str
    where: str
    old: str
    new: str
    case: str


def plant(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutate the running function until the test ends; ``ValueError`` if its text is not there exactly once."""
    module_name, _, path = mutant.where.partition(":")
    target: Any = importlib.import_module(module_name)
    for part in path.split("."):
        target = inspect.getattr_static(target, part)
    function: Any = target.fget if isinstance(target, property) else target
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: {mutant.old!r} occurs {source.count(mutant.old)} times in {mutant.where}")
    flags = __future__.annotations.compiler_flag
    compiled = compile(source.replace(mutant.old, mutant.new), mutant.where, "exec", flags, dont_inherit=True)
    (code,) = [c for c in compiled.co_consts if isinstance(c, CodeType) and c.co_name == function.__name__]
    monkeypatch.setattr(function, "__code__", code)


MUTANTS = (
    # -- the score function --
    Mutant(
        "score term with the wrong sign",
        f"{EAGER}:_estimate",
        "surrogate + term.mean()",
        "surrogate - term.mean()",
        "vae 1, one layer, N=2",
    ),
    Mutant(
        "score term dropped (the guide's iwae gradient of alpha = 0 Renyi bounds)",
        f"{EAGER}:_estimate",
        "{} if sample.enumerated else sample.scores",
        "{}",
        "iwae(2) 1, one layer, N=1",
    ),
    Mutant(
        "signal scaled by 1.02",
        f"{EAGER}:_estimate",
        "f.detach())",
        "1.02 * f.detach())",
        "reinforce 1, one layer, N=2",
    ),
    Mutant("signal not detached", f"{EAGER}:_estimate", "f.detach())", "f)", "vae 1, two layers, N=2"),
    Mutant(
        "score averaged over the particles instead of summed",
        f"{EAGER}:_estimate",
        "term.sum(0)",
        "term.mean(0)",
        "iwae(2) 1, one layer, N=1",
    ),
    Mutant(
        "score of the first site only",
        f"{DRAW}:Draw.scores",
        "for name in self.score_sites",
        "for name in self.score_sites[:1]",
        "vae 1, two layers, N=2",
    ),
    Mutant(
        "samples never carry gradient",
        f"{DRAW}:Draw.__init__",
        "drawer in programs.move",
        "False",
        "vae 1, normal, N=1",
    ),
    # -- control variates --
    Mutant(
        "baseline in the signal's place",
        f"{EAGER}:_signals",
        "return signal - predicted",
        "return predicted",
        "nvil 1, one layer, N=2",
    ),
    Mutant(
        "VIMCO's baseline holds the particle itself",
        f"{EAGER}:_control_variate",
        "swapped[index, index] = geometric",
        "swapped[index, index] = log_w",
        "vimco(2) 1, one layer, N=1",
    ),
    Mutant(
        "leave-one-out holds the particle itself",
        f"{EAGER}:_control_variate",
        "(signal.sum(0) - signal) / others",
        "signal.sum(0) / sample.particles",
        "elbo, mean of three particles, leave one out",
    ),
    Mutant(
        "a local signal lacks a density that its site decides",
        "unigen.engines.programs:_unreached",
        "reached = {name}",
        "reached = set()",
        "nvil 1, belief 2-1, local signals, N=1",
    ),
    Mutant(
        "NVIL's baseline fits the absolute error",
        f"{OBJECTIVES}:baseline_fit",
        "(signal - predicted).square()",
        "(signal - predicted).abs()",
        "nvil 2, one layer, N=2",
    ),
    # -- bounds and densities --
    Mutant(
        "entropy dropped", f"{OBJECTIVES}:log_weight", "draw.log_p - draw.log_q", "draw.log_p", "vae 1, symbols, N=2"
    ),
    Mutant(
        "K off by one in log-mean-exp",
        f"{OBJECTIVES}:log_mean_exp",
        "math.log(draw.particles)",
        "math.log(draw.particles - 1)",
        "iwae(2) 1, symbols, N=1",
    ),
    Mutant(
        "prior scaled by 1.01",
        f"{DRAW}:Draw.log_p",
        'self.sites("model").values())',
        'self.sites("model").values()) + 0.01 * self.log_prior',
        "variational_em 2, two layers, N=2",
    ),
    Mutant(
        "divergence from the prior with the wrong sign",
        f"{OBJECTIVES}:BetaElbo.__call__",
        "draw.log_prior - draw.log_q",
        "draw.log_q - draw.log_prior",
        "beta_vae(3.0) 1, one layer, N=2",
    ),
    Mutant(
        "doubly reparameterized weights not squared",
        f"{EAGER}:_doubly_reparameterized",
        "normalized.square() * log_w",
        "normalized * log_w",
        "iwae(2) by DoublyReparameterized, coarsely",
    ),
    Mutant(
        "doubly reparameterized theta through the guide's term",
        f"{EAGER}:_doubly_reparameterized",
        'if "theta" in phase.move',
        "if False",
        "iwae(1) by DoublyReparameterized, normal",
    ),
    # -- weights --
    Mutant(
        "weights not detached",
        f"{EAGER}:_tilted",
        "expectation.log_w(result).detach()",
        "expectation.log_w(result)",
        "reweighted_wake_sleep(2) 1, one layer, N=1",
    ),
    Mutant(
        "weights joint over the batch",
        f"{EAGER}:_tilted",
        "torch.softmax(log_w, expectation.dim)",
        "torch.softmax(log_w.flatten(), 0).reshape(log_w.shape) * log_w.shape[-1]",
        "reweighted_wake_sleep(2) 1, one bit, N=3",
    ),
    Mutant(
        "weights uniform",
        f"{EAGER}:_tilted",
        "torch.softmax(log_w,",
        "torch.softmax(0 * log_w,",
        "reweighted_wake_sleep(2) 1, one layer, N=1",
    ),
    Mutant(
        "weights q/p: the divergence's direction swapped",
        f"{EAGER}:_tilted",
        "expectation.log_w(result).detach()",
        "-expectation.log_w(result).detach()",
        "reweighted_wake_sleep(3) 1, one layer, N=1",
    ),
    Mutant(
        "weights over the wrong dimension",
        f"{EAGER}:_tilted",
        "torch.softmax(log_w, expectation.dim)",
        "torch.softmax(log_w, -1)",
        "reweighted_wake_sleep(2) 1, one bit, N=3",
    ),
    Mutant(
        "tilted samples carry gradient",
        f"{PROGRAMS}:Programs.without_gradient_through_samples",
        "carry=False",
        "carry=True",
        "reweighted_wake_sleep(1) 1, normal, N=1",
    ),
    # -- enumeration --
    Mutant(
        "posterior without the guide's probability",
        f"{EAGER}:_tilted",
        "log_w + result.log_base.detach()",
        "log_w",
        "em(False) 1, one layer, N=2",
    ),
    Mutant(
        "enumerated probabilities held fixed",
        f"{EAGER}:_estimate",
        "sample.log_q.exp() * f",
        "sample.log_q.exp().detach() * f",
        "enumerated elbo, one layer",
    ),
    Mutant(
        "a plate inside the datum enumerated as one",
        f"{PROGRAMS}:_support",
        "if dim - depth in inner else 1",
        "if False else 1",
        "maximum_likelihood 1, plated, N=2",
    ),
    # -- adversaries --
    Mutant(
        "reversed label not reversed",
        f"{OBJECTIVES}:log_q_reversed",
        '1 - draw["y"]',
        'draw["y"]',
        "gan 2, symbol gan, N=2",
    ),
    Mutant(
        "critic gap without its factor", f"{OBJECTIVES}:critic_gap", "2 * (2 *", "1 * (2 *", "wgan 1, symbol gan, N=2"
    ),
    Mutant(
        "critic scaled by 1.02", f"{OBJECTIVES}:critic", "return draw", "return 1.02 * draw", "wgan 2, symbol gan, N=2"
    ),
    Mutant(
        "conjugate with the wrong sign",
        f"{OBJECTIVES}:FGan.__call__",
        "-on_generated",
        "on_generated",
        "f_gan(pearson) 2, symbol gan, N=1",
    ),
    Mutant(
        "iwgan's denominator moves",
        f"{OBJECTIVES}:iwae_reversed",
        "draw.log_q.detach()",
        "draw.log_q",
        "iwgan(1) 2, smooth gan, N=1",
    ),
    Mutant(
        "slope held near zero",
        f"{OBJECTIVES}:GradientPenalized.__call__",
        ".sqrt() - 1)",
        ".sqrt())",
        "wgan_gp 1, smooth gan, N=1",
    ),
    Mutant(
        "MMD's scale from the biased variance",
        f"{OBJECTIVES}:Mmd.__call__",
        "var(-2)",
        "var(-2, correction=0)",
        "mmd 1, smooth gan, N=2",
    ),
    Mutant(
        "labels of data and dreams swapped",
        f"{EAGER}:_wake",
        "[like.new_ones(len(like)), like.new_zeros(len(like))]",
        "[like.new_zeros(len(like)), like.new_ones(len(like))]",
        "aavae 1, one layer, N=1",
    ),
    Mutant(
        "the adversary's activation inverted",
        f"{OBJECTIVES}:Activated.__call__",
        "torch.sigmoid(draw",
        "torch.sigmoid(-draw",
        "aavae 2, one layer, N=1",
    ),
    # -- rules --
    Mutant(
        "rules broken are rewarded",
        f"{OBJECTIVES}:Imitation.__call__",
        "+ self.strength * broken",
        "- self.strength * broken",
        "rule_distillation(strength=3.0, share=0.4) 1, symbols, N=2",
    ),
    Mutant(
        "the teacher takes the labels' share",
        f"{OBJECTIVES}:Imitation.__call__",
        "(1 - self.share) * torch.softmax(draw.log_p, 0) + self.share * teacher",
        "self.share * torch.softmax(draw.log_p, 0) + (1 - self.share) * teacher",
        "rule_distillation(strength=3.0, share=0.4) 1, symbols, N=2",
    ),
    Mutant(
        "plausibility is not relative to the best account",
        "unigen.logic:plausibility",
        "draw.log_p - draw.log_p.amax(0)",
        "draw.log_p",
        "rule_distillation(strength=3.0, share=0.4) 1, symbols, N=2",
    ),
    # -- constraints and chains --
    Mutant(
        "reward of generated rows halved",
        f"{OBJECTIVES}:OnGenerated.__call__",
        '2 * (1 - draw["y"])',
        '(1 - draw["y"])',
        "posterior_regularization(constraint, 0.8, implicit=True) 1, symbol gan, N=2",
    ),
    Mutant(
        "alpha forgotten",
        f"{OBJECTIVES}:Scaled.__call__",
        "self.alpha * self",
        "self",
        "posterior_regularization(constraint, 0.8) 1, one bit, N=2",
    ),
    Mutant(
        "negative phase with the wrong sign",
        f"{EAGER}:objective",
        "surrogate - other_surrogate",
        "surrogate + other_surrogate",
        "contrastive_divergence(1) 1, rbm, N=1",
    ),
    Mutant(
        "one transition too many",
        f"{EAGER}:_chain",
        "range(expectation.steps)",
        "range(expectation.steps + 1)",
        "contrastive_divergence(1) 1, rbm, N=1",
    ),
    Mutant(
        "persistent chain restarts at the data",
        f"{EAGER}:_chain",
        "key in pair.chains",
        "False",
        "persistent_contrastive_divergence(1) 1, rbm, N=1",
    ),
    Mutant(
        "Gibbs forgets the visible bias",
        "unigen.pairs.rbm:RestrictedBoltzmann.gibbs",
        " + self.visible",
        "",
        "contrastive_divergence(1) 1, rbm, N=1",
    ),
    Mutant(
        "Langevin's ratio with forth and back swapped",
        "unigen.kernels:Langevin.__call__",
        "+ backward - forward",
        "+ forward - backward",
        "Langevin",
    ),
    Mutant(
        "Langevin comes back by the slope that it left by",
        "unigen.kernels:Langevin.__call__",
        "self.size**2 * back)",
        "self.size**2 * slope)",
        "Langevin",
    ),
    Mutant(
        "Langevin drifts twice as far",
        "unigen.kernels:Langevin.__call__",
        "x + 0.5 * self.size**2 * slope +",
        "x + self.size**2 * slope +",
        "Langevin",
    ),
    # -- scales --
    Mutant(
        "objective scaled by the rows of the batch",
        f"{EAGER}:_estimate",
        "surrogate = f.mean()",
        "surrogate = f.sum()",
        "vae 1, one layer, N=2",
    ),
    Mutant(
        "score scaled by the rows of the batch",
        f"{EAGER}:_estimate",
        "surrogate + term.mean()",
        "surrogate + term.sum()",
        "reinforce 1, one layer, N=2",
    ),
    # -- flows --
    Mutant(
        "log-determinant with the wrong sign",
        "unigen.pairs.flow:FlowModel.distribution",
        "base = ",
        "chain[-1].log_abs_det_jacobian = lambda x, y: -self.scale.log().sum().expand(x.shape[:-1]); base = ",
        "density of a coupling flow",
    ),
    Mutant(
        "log-determinant dropped",
        "unigen.pairs.flow:FlowModel.distribution",
        "base = ",
        "chain[0].log_abs_det_jacobian = lambda x, y: x.new_zeros(x.shape[:-1]); base = ",
        "density of an autoregressive flow",
    ),
    Mutant(
        "log-determinant of the support with the wrong sign",
        "unigen.engines.unconstrained:_Lift._pyro_sample",
        "self.log_jacobian + transform",
        "self.log_jacobian - transform",
        "unconstrained density",
    ),
    Mutant(
        "stale cache: a flow's inverse by weights that have moved",
        "unigen.engines.sites:Record._pyro_sample",
        'forget(msg["fn"])  # weights have moved since its transforms were called',
        "pass",
        "density of a flow after a step",
    ),
    Mutant(
        "stale cache: a flow's inverse without its gradient",
        "unigen.engines.inverses:forget",
        "part._cached_x_y = None, None",
        "pass",
        "elbo by ScoreFunction, flow",
    ),
    Mutant(
        "stale cache: the guide's density in the place of the model's",
        f"{DRAW}:Draw.density",
        "key = (which, site.name)",
        'key = ("model", site.name)',
        "vae 1, one layer, N=2",
    ),
    # -- what a phase leaves alone --
    Mutant(
        "the generator's phase steps the discriminator",
        f"{EAGER}:_climb",
        "for group in phase.move:\n            if group in optimizers:",
        "for group in optimizers:\n            if group in optimizers:",
        "adversaries apart",
    ),
    Mutant(
        "the generator's phase moves the discriminator's buffers",
        f"{EAGER}:_climb",
        "buffer.copy_(old)",
        "pass",
        "adversaries apart",
    ),
    Mutant(
        "a graph keeps the buffers of what its phase does not move",
        f"{COMPILED}:_Phase._run",
        "for own in pair.group_buffers(*self.phase.move):",
        'for own in pair.group_buffers("theta", "phi", "psi"):',
        "compiled as eager",
    ),
    Mutant(
        "xla keeps the buffers of what its phase does not move",
        "unigen.engines.capture:_capture",
        "if name.startswith(tuple(mine))",
        'if name.startswith("buffer.")',
        "xla as eager",
    ),
    # -- engines --
    Mutant(
        "a graph descends the objective",
        "unigen.engines.pure:gradient",
        "torch.autograd.grad(-surrogate",
        "torch.autograd.grad(surrogate",
        "compiled as eager",
    ),
    Mutant(
        "Adam's second moment corrected by the first beta",
        "unigen.engines.rules:update",
        "torch.sqrt(1 - beta2**count)",
        "torch.sqrt(1 - beta1**count)",
        "compiled as eager",
    ),
    Mutant(
        "a repeated phase takes the wrong batch",
        f"{COMPILED}:_Step.__init__",
        "(repetition - 1) % (len(batch) - 1) + 1",
        "repetition % (len(batch) - 1) + 1",
        "compiled as eager",
    ),
    Mutant(
        "a graph whose constants have changed",
        f"{COMPILED}:_Step.__init__",
        " or pair.compiled[key].stale",
        "",
        "compiled as eager after a constant changed",
    ),
    Mutant(
        "Adam by xla with the first beta upside down",
        "unigen.engines.updates:_adam",
        "mean + (1 - one) * (g - mean)",
        "mean + one * (g - mean)",
        "xla as eager",
    ),
    Mutant(
        "a repeated phase takes the wrong batch by xla",
        "unigen.engines.xla:_step",
        "1 + (repetition - 1) % more",
        "1 + repetition % more",
        "xla as eager",
    ),
    Mutant(
        "a tape whose constants have changed",
        "unigen.engines.xla:_step",
        "if not any(climb.stale for climb in step.climbs):",
        "if True:",
        "xla as eager after a constant changed",
    ),
    # -- checkpoints --
    Mutant(
        "sums are not compared",
        "unigen.checkpoints:Checkpoints._read",
        'if _sha256(files[name]) != expected["sha256"]:',
        "if False:",
        "checkpoints",
    ),
    Mutant(
        "another run's checkpoint is taken",
        "unigen.checkpoints:Checkpoints._read",
        "if theirs != ours:",
        "if False:",
        "checkpoints",
    ),
    Mutant(
        "the oldest checkpoint is taken",
        "unigen.checkpoints:Checkpoints.load",
        "for step in reversed(steps):",
        "for step in steps:",
        "checkpoints",
    ),
    Mutant(
        "one checkpoint is kept",
        "unigen.checkpoints:Checkpoints.save",
        "[: 1 - self.keep]",
        "[:]",
        "checkpoints",
    ),
    Mutant(
        "random streams are not restored",
        "unigen.snapshots:restore",
        "if streams:",
        "if False:",
        "resumed vae",
    ),
    Mutant(
        "optimizers are not restored",
        "unigen.snapshots:restore",
        "state.optimizers[group].load_state_dict(load)",
        "pass",
        "resumed vae",
    ),
    Mutant(
        "chains are not restored",
        "unigen.snapshots:restore",
        'for key, chain in content["chains"].items()',
        "for key, chain in ()",
        "restored chain",
    ),
)
