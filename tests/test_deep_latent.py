"""The pair of several stochastic layers against densities written by hand, and three implementations of one bound.

    L_k(x) = log (1/k) sum_j p(x, z_j) / q(z_j|x)

By hand, by Pyro's ``RenyiELBO(alpha=0)`` with every site inside one plate, and by unigen, on the same noise. All in float64; no
test here is statistical.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pyro.infer import RenyiELBO
from torch import Tensor
from torch.nn.functional import softplus

from unigen import routines
from unigen.engines import eager
from unigen.engines.programs import Programs
from unigen.networks import fingerprint, networks
from unigen.objectives import elbo, iwae
from unigen.pair import Pair
from unigen.pairs import deep_latent, latent
from unigen.pairs.latent import SMALLEST_SCALE, UNIT
from unigen.phases import Sleep, Wake
from unigen.planning import build_pair, plan
from unigen.settings import Settings

ROWS, DIMENSION, FIRST = 5, 6, 4
WIDTHS = [(), (3,), (3, 2)]


def pair_of(widths: tuple[int, ...]) -> Pair:
    shared = networks("mlp", (DIMENSION,), FIRST, hidden=(7,), seed=2)
    return (deep_latent(shared, widths, (5,)) if widths else latent(shared)).double()


def rows() -> Tensor:
    """The same bits in every run: noise and weights are fixed too, so that whether two bounds differ is no matter of chance."""
    return torch.bernoulli(
        torch.full((ROWS, DIMENSION), 0.5, dtype=torch.float64), generator=torch.Generator().manual_seed(1)
    )


def log_normal(value: Tensor, raw: Tensor | None) -> Tensor:
    """log N(value; m, s^2), summed over the last dimension; ``raw`` holds m and s before its softplus, None is N(0, 1)."""
    if raw is None:
        raw = torch.cat(
            [torch.zeros_like(value), torch.full_like(value, math.log(math.expm1(1 - SMALLEST_SCALE)) - UNIT)], -1
        )
    loc, scale = raw.chunk(2, -1)
    scale = softplus(scale + UNIT) + SMALLEST_SCALE
    return (-0.5 * ((value - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def log_weights(pair: Any, x: Tensor, z: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return log p(x, z) and log q(z|x) by hand, for z = [z1, z2, ...], each (k, N, width)."""
    model, guide = pair.model, pair.guide
    up = [
        guide.head(guide.trunk(x)).expand(*z[0].shape[:-1], -1),
        *(f(below) for f, below in zip(getattr(guide, "up", ()), z, strict=False)),
    ]
    down = [*(f(above) for f, above in zip(getattr(model, "down", ()), z[1:], strict=True)), None]
    logits = model.generator(z[0])
    log_x = (x * logits - softplus(logits)).sum(-1)
    log_p = log_x + sum(log_normal(value, raw) for value, raw in zip(z, down, strict=True))
    return log_p, sum(log_normal(value, raw) for value, raw in zip(z, up, strict=True))


def latents(sample: Any) -> list[Tensor]:
    return [sample[name] for name in sorted(name for name in sample.latents)]


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("expectation", [Wake(3), Sleep()], ids=str)
def test_the_densities_of_every_layer_are_those_written_by_hand(widths, expectation):
    pair, x = pair_of(widths), rows()
    sample = eager.draw(expectation, Programs(pair), pair.bind(x))
    z = latents(sample)
    assert [value.shape[-1] for value in z] == [FIRST, *widths]
    log_p, log_q = log_weights(pair, sample["x"], z)
    torch.testing.assert_close(sample.log_p, log_p, rtol=0, atol=1e-11)
    torch.testing.assert_close(sample.log_q, log_q, rtol=0, atol=1e-11)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("k", [1, 5])
def test_three_implementations_of_the_bound_agree(widths, k):
    pair, x = pair_of(widths), rows()
    torch.manual_seed(3)
    sample = eager.draw(Wake(k), Programs(pair), pair.bind(x))
    z = latents(sample)  # the noise that the three share
    log_p, log_q = log_weights(pair, x, z)
    by_hand = torch.logsumexp(log_p - log_q, 0) - math.log(k)
    torch.testing.assert_close(iwae(sample), by_hand, rtol=0, atol=1e-11)  # per datum
    torch.manual_seed(3)
    renyi = RenyiELBO(alpha=0, num_particles=k, vectorize_particles=True, max_plate_nesting=1)
    theirs = -renyi.loss(pair.model, pair.guide, x)  # Pyro sums over the batch
    assert by_hand.sum().item() == pytest.approx(theirs, abs=1e-10)
    whole_batch = torch.logsumexp((log_p - log_q).sum(-1), 0) - math.log(k)  # one weight for all the data: a fault
    assert k == 1 or abs(whole_batch.item() - theirs) > 0.1


@pytest.mark.parametrize("widths", WIDTHS)
def test_their_gradients_agree(widths):
    pair, x = pair_of(widths), rows()
    parameters = pair.group("theta", "phi")
    torch.manual_seed(3)
    value, surrogate = eager.objective(routines.iwae(4)[0], pair, x)
    ours = torch.autograd.grad(surrogate, parameters)
    torch.manual_seed(3)
    RenyiELBO(alpha=0, num_particles=4, vectorize_particles=True, max_plate_nesting=1).loss_and_grads(
        pair.model, pair.guide, x
    )
    for mine, parameter in zip(ours, parameters, strict=True):
        torch.testing.assert_close(mine, -parameter.grad / ROWS, rtol=0, atol=1e-11)
    assert max(float(gradient.abs().max()) for gradient in ours) > 1e-3 and torch.isfinite(value)


def test_the_vae_of_k_samples_averages_their_bounds():
    pair, x = pair_of((3,)), rows()
    torch.manual_seed(3)
    sample = eager.draw(Wake(4), Programs(pair), pair.bind(x))
    averaged, weighted = elbo(sample).mean().item(), iwae(sample).mean().item()
    torch.manual_seed(3)
    value, _ = eager.objective(routines.vae(4)[0], pair, x)
    assert value.item() == pytest.approx(averaged, abs=1e-12)
    assert abs(value.item() - weighted) > 1e-3
    assert routines.vae(1) != routines.vae and routines.by_name("vae(4)").phases[0].under == Wake(4)
    with pytest.raises(ValueError, match="positive whole number of particles; got particles=0"):
        routines.by_name("vae(0)")


def test_without_further_widths_the_pair_is_the_shallow_one():
    shared = networks("mlp", (DIMENSION,), FIRST, hidden=(7,), seed=2)
    x = rows().float()
    flat, deep = latent(shared), deep_latent(shared.copy(), ())
    found = []
    for pair in (flat, deep):
        torch.manual_seed(0)
        found.append(eager.objective(routines.vae[0], pair, x)[0])
    assert torch.equal(*found)


def test_the_weights_depend_on_the_seed_alone():
    first, again, other = (deep_latent(networks("mlp", (DIMENSION,), FIRST, seed=seed), (3,)) for seed in (1, 1, 2))
    assert fingerprint(first) == fingerprint(again) != fingerprint(other)
    assert not torch.equal(first.model.down[0].output.weight, other.model.down[0].output.weight)


def test_a_comparison_builds_the_networks_of_burda():
    settings = Settings(data="digits", routines=("iwae(5)",), pair="deep_latent", layers=(100, 50), seeds=(0,))
    planned = plan(settings)
    pair: Any = build_pair(planned, planned.arms[0], 0)
    shapes = {name: tuple(parameter.shape) for name, parameter in pair.named_parameters() if name.endswith("weight")}
    assert [shapes[name] for name in shapes if "guide" in name] == [
        (200, 64), (200, 200), (200, 200), (100, 100), (100, 100), (100, 100),
    ]  # fmt: skip
    assert sorted(shapes[name] for name in shapes if "model" in name) == sorted(
        [(200, 100), (200, 200), (64, 200), (100, 50), (100, 100), (200, 100)]
    )


@pytest.mark.parametrize("given", [{"widths": (0,)}, {"hidden": (-1,)}])
def test_a_layer_without_units_is_refused(given):
    with pytest.raises(ValueError, match="at least one unit"):
        deep_latent(networks("mlp", (DIMENSION,), FIRST), **given)
