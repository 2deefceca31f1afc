"""What must notice a planted bug that no exact case can see: flows, kernels, engines, checkpoints, and what they leave alone.

Each alarm returns how far something is from what it must be, 0 to rounding; for what is right or wrong, 0 or 1. Densities are
written a second time by hand, engines are held to ``eager`` with the same noise.
"""

from __future__ import annotations

import contextlib
import copy
import math
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyro
import pyro.distributions as dist
import torch
from disks import fill, flip
from resuming import digest, only, scramble
from sameness import run
from torch import Tensor, nn
from worlds import InverseFlow

from tests.test_engines import both, given, steady, world
from unigen import routines
from unigen.checkpoints import CheckpointError, Checkpoints
from unigen.engines import compiled, eager, engine_named, loop
from unigen.engines.programs import Programs
from unigen.engines.unconstrained import Unconstrained, in_double
from unigen.kernels import Langevin
from unigen.optimizers import optimizers_for
from unigen.pair import Pair
from unigen.pairs import flow
from unigen.phases import Routine
from unigen.snapshots import capture, capture_streams, restore, restore_streams

__all__ = ["ALARMS"]


# -- densities ---------------------------------------------------------------------------------------------------------


def _flow(kind: str) -> Any:
    start = torch.randn(50, 3) * torch.tensor([0.5, 2.0, 3.0])
    return flow(3, kind=kind, steps=2, hidden=(5,), start=start).double()


def flow_density(kind: str) -> float:
    """log p(x) of a flow against log N(z; 0, I) + log |det dz/dx|, the Jacobian by autograd."""
    pair = _flow(kind)
    x = torch.randn(4, 3, dtype=torch.float64)
    found = pair.model.distribution().log_prob(x)
    flowing = pair.model.distribution()

    def inverse(row: Tensor) -> Tensor:
        for transform in reversed(flowing.transforms):
            row = transform.inv(row)
        return row

    worst = 0.0
    for row, log_p in zip(x, found, strict=True):
        z, jacobian = inverse(row), torch.autograd.functional.jacobian(inverse, row)
        expected = -0.5 * z.square().sum() - 1.5 * math.log(2 * math.pi) + torch.linalg.slogdet(jacobian)[1]
        worst = max(worst, float((log_p - expected).detach().abs()))
    return worst


@contextlib.contextmanager
def _remembering() -> Iterator[tuple[Any, Tensor]]:
    """Yield a flow of Pyro, whose transform remembers its last inverse, and rows; in double precision by default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        pair: Any = Pair(InverseFlow(), likelihood="exact")
        pair.model.norm = nn.Identity()  # in the place of a batch norm, whose buffers each step writes to
        yield pair, torch.randn(5, 3)
    finally:
        torch.set_default_dtype(before)


def flow_after_a_step() -> float:
    """log p of the same rows after the weights moved, against those rows in a new tensor, which no cache knows."""
    with _remembering() as (pair, x):
        (phase,) = routines.maximum_likelihood
        before, _ = eager.objective(phase, pair, x)
        with torch.no_grad():
            for parameter in pair.parameters():
                parameter.mul_(1.5)
        after, _ = eager.objective(phase, pair, x)
        anew, _ = eager.objective(phase, pair, x.clone())
    assert abs(float(before - anew)) > 1e-3
    return abs(float(after - anew))


def unconstrained_density() -> float:
    """log p(z(u), x) + log |dz/du| of z ~ Exponential(2), x ~ N(z, 1): z = exp(u)."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Exponential(torch.tensor(2.0, dtype=torch.float64)))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x, u = torch.randn(3, dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    pair = Pair(model, batch_plate=None)
    with in_double(pair):
        found = Unconstrained(pair, x).log_density(u)
    z = u.exp()
    normal = -0.5 * (x - z).square() - 0.5 * math.log(2 * math.pi)
    return float((found - (math.log(2) - 2 * z + normal.sum() + u)).abs().max())


def langevin() -> float:
    """A transition on a normal density, drift and Metropolis ratio by hand; accepted just below the ratio, not just above."""
    size, loc, scale = 0.8, torch.tensor([0.3, -0.5]).double(), torch.tensor([0.7, 1.4]).double()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def log_p(x: Tensor) -> Tensor:
        return -0.5 * (((x - loc) / scale) ** 2).sum(-1)

    def mean(x: Tensor) -> Tensor:
        return x - 0.5 * size**2 * (x - loc) / scale**2

    pair, x, noise = Pair(model), torch.randn(20, 2).double(), torch.randn(20, 2).double()
    proposal = mean(x) + size * noise
    back = -((x - mean(proposal)) ** 2).sum(-1) / (2 * size**2)
    ratio = log_p(proposal) - log_p(x) + back + 0.5 * (noise**2).sum(-1)
    worst = 0.0
    for factor, expected in ((-1e-6, proposal), (1e-6, x)):
        uniform = (ratio + factor).exp()
        with patch("torch.randn_like", lambda *_: noise), patch("torch.rand_like", lambda *_, u=uniform: u):
            moved = Langevin(size)(Programs(pair), {"x": x})["x"]
        worst = max(worst, float((moved - expected).abs().max()))
    return worst


# -- steps -------------------------------------------------------------------------------------------------------------


def adversaries_apart() -> float:
    """What the generator's phase of a GAN by ``eager`` moves of the discriminator, its parameters and buffers."""
    pair, x = world("adversarial")
    optimizers = optimizers_for(routines.gan, pair)
    first, second = routines.gan
    eager.step((first,), pair, optimizers, x)
    before = [tensor.detach().clone() for tensor in (*pair.group("phi"), *pair.group_buffers("phi"))]
    eager.step((second,), pair, optimizers, x)
    after = (*pair.group("phi"), *pair.group_buffers("phi"))
    return max(float((new.detach() - old).abs().max()) for new, old in zip(after, before, strict=True))


def as_eager(engine: str) -> float:
    """Three steps of two phases, the first of them twice and on another batch, against those of ``eager``."""
    first, second = routines.variational_em
    routine = Routine((replace(first, steps=2), second))
    pair, x = world("latent")
    more = [torch.rand_like(x).round() for _ in range(2)]
    return _parity(engine)(routine, pair, x, steady(routine), 3, more=more)


def as_eager_anew(engine: str) -> float:
    """Two calls, between which a constant of the captured program, the permutation of a flow, changes in place."""
    routine, way = routines.maximum_likelihood, engine_named(engine)
    with _remembering() as (pair, x), patch.object(compiled, "_compile", lambda graph, arguments: graph):
        way.advance(routine, pair, optimizers_for(routine, pair), [[x]])
        permutation = pair.model.step.arn.permutation
        permutation.copy_(permutation.roll(1))
        other = copy.deepcopy(pair)
        expected = eager.advance(routine, other, optimizers_for(routine, other), [[x]])
        found = way.advance(routine, pair, optimizers_for(routine, pair), [[x]])
    return float((found - expected).abs().max())


def _parity(engine: str) -> Callable[..., float]:
    def way(*arguments: Any, **more: Any) -> float:
        loop.compiled.cache_clear()  # programs of a rule that was another
        try:
            with patch.object(compiled, "_compile", lambda graph, arguments: graph):
                apart = given if engine == "xla" else partial(both, compiled)
                return max(apart(*arguments, **more))
        finally:
            loop.compiled.cache_clear()

    return way


# -- checkpoints -------------------------------------------------------------------------------------------------------


def checkpoints_tell() -> float:
    """The newest good checkpoint is taken: not an older one, not a damaged one, not another run's; and two are kept."""
    with tempfile.TemporaryDirectory() as root:
        kept = fill(Path(root, "one"), 1, 2, 3, run={"seed": 1})
        if kept.steps() != [2, 3] or kept.load().step != 3:  # type: ignore[union-attr]
            return 1.0
        try:
            Checkpoints(kept.directory, run={"seed": 2}).load()
            return 1.0
        except CheckpointError:
            pass
        file = kept.path(3) / "pair.safetensors"
        file.write_bytes(file.read_bytes()[:-100] + flip(bytearray(file.read_bytes()[-100:]), random.Random()))
        found = kept.load()
        return float(found is None or found.step != 2)


def resumed(name: str) -> float:
    """A run cut at its fourth step of nine and resumed by other objects ends in other bits than the run left alone."""
    before = capture_streams()
    with tempfile.TemporaryDirectory() as root:
        every = Checkpoints(Path(root, "every"), keep=10)
        state, _ = run(name, checkpoints=every, checkpoint_every=1)
        scramble()
        again, _ = run(name, 1, checkpoints=only(every, 4, Checkpoints(Path(root, "cut"))), checkpoint_every=100)
    restore_streams(before)
    return float(digest(again) != digest(state))


def restored(name: str) -> float:
    """What is captured of one run and restored into another that had other weights: the bits of the first."""
    before = capture_streams()
    state, _ = run(name)
    content, wanted = capture(state), digest(state)
    other, _ = run(name, 1)
    assert digest(other) != wanted
    restore(content, other)
    found = digest(other)
    restore_streams(before)
    return float(found != wanted)


ALARMS: dict[str, Callable[[], float]] = {
    "density of a coupling flow": partial(flow_density, "affine_coupling"),
    "density of an autoregressive flow": partial(flow_density, "affine_autoregressive"),
    "density of a flow after a step": flow_after_a_step,
    "unconstrained density": unconstrained_density,
    "Langevin": langevin,
    "adversaries apart": adversaries_apart,
    "compiled as eager": partial(as_eager, "compiled"),
    "xla as eager": partial(as_eager, "xla"),
    "compiled as eager after a constant changed": partial(as_eager_anew, "compiled"),
    "xla as eager after a constant changed": partial(as_eager_anew, "xla"),
    "checkpoints": checkpoints_tell,
    "resumed vae": partial(resumed, "vae"),
    "restored chain": partial(restored, "persistent contrastive divergence"),
}
"""By the name that a mutant gives as its case."""
