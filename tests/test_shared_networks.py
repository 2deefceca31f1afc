"""One generator and one inference trunk, the same objects, serve the latent pair and the GAN through every kind of routine."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from unigen import routines
from unigen.engines import eager
from unigen.networks import Critic, Networks, fingerprint, networks
from unigen.pair import Pair
from unigen.pairs import adversarial, latent
from unigen.phases import Routine


def digits() -> Tensor:
    """Return 24 of scikit-learn's digits, grey values in [0, 1], (24, 64)."""
    return torch.tensor(load_digits().data[:24] / 16, dtype=torch.float32)


class Two:
    """A latent pair and a GAN over one network set, and the parts that a routine may change."""

    def __init__(self, shared: Networks) -> None:
        self.shared = shared
        self.latent = latent(shared, "bernoulli", {"critic": Critic(shared), "constraint": Critic(shared)})
        self.adversarial = adversarial(shared, "bernoulli", {"constraint": Critic(shared)})
        self.parts: dict[str, nn.Module] = {
            "generator": shared.generator,
            "trunk": shared.trunk,
            "head for z": self.latent.guide.head,
            "head for y": self.adversarial.guide.head,
            "critic": self.latent.psi["critic"],
            "constraint": self.latent.psi["constraint"],
            "constraint of the GAN": self.adversarial.psi["constraint"],
        }

    def prints(self) -> dict[str, str]:
        return {name: fingerprint(part) for name, part in self.parts.items()}


def right_half(draw) -> Tensor:
    """A fixed constraint: the mean brightness of the right half."""
    x = draw["x"]
    return x.reshape(*x.shape[:-1], 8, 8)[..., 4:].mean((-1, -2))


JOINT = {"generator", "trunk", "head for z"}
GAME = {"generator", "trunk", "head for y"}
WAY: list[tuple[Routine, str, set[str]]] = [
    (routines.vae, "latent", JOINT),
    (routines.wake_sleep, "latent", JOINT),
    (routines.gan, "adversarial", GAME),
    (routines.wgan_gp, "adversarial", GAME),
    (routines.mmd, "adversarial", {"generator"}),
    (routines.aavae, "latent", JOINT | {"critic"}),
    (routines.posterior_regularization(), "latent", {"generator", "constraint"}),
    (routines.posterior_regularization(right_half, 5.0, learn=False), "latent", {"generator"}),
    (routines.posterior_regularization(base=routines.vae), "latent", JOINT | {"constraint"}),
    (routines.posterior_regularization(implicit=True), "adversarial", {"generator", "constraint of the GAN"}),
    (routines.posterior_regularization(right_half, learn=False, implicit=True), "adversarial", {"generator"}),
    (routines.iwae, "latent", JOINT),
]


def adam(pair: Pair) -> dict[str, torch.optim.Optimizer]:
    groups = [group for group in ("theta", "phi", "psi") if pair.group(group)]
    return {group: torch.optim.Adam(pair.group(group), 1e-3) for group in groups}


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_one_network_set_goes_through_every_kind_of_routine(kind):
    x = digits()
    two = Two(networks(kind, (1, 8, 8), 3, hidden=(16, 12), channels=4, mean=x.mean(0), seed=1))
    assert two.latent.model.generator is two.adversarial.model.generator is two.shared.generator
    assert two.latent.guide.trunk is two.adversarial.guide.trunk is two.shared.trunk
    objects = {name: [id(parameter) for parameter in part.parameters()] for name, part in two.parts.items()}
    for routine, which, moves in WAY:
        pair = getattr(two, which)
        optimizers, before = adam(pair), two.prints()
        values = [value for _ in range(2) for value in eager.step(routine, pair, optimizers, x)]
        assert all(math.isfinite(value) for value in values), routine.name
        after = two.prints()
        assert {name for name in before if before[name] != after[name]} == moves, routine.name
        assert all(bool(torch.isfinite(p).all()) for part in two.parts.values() for p in part.parameters())
    assert {name: [id(parameter) for parameter in part.parameters()] for name, part in two.parts.items()} == objects


def test_every_routine_may_start_from_equal_weights():
    original = networks("mlp", (1, 8, 8), 3, hidden=(16, 12), seed=2)
    first, second = Two(original.copy()), Two(original.copy())
    assert first.prints() == second.prints() == Two(original).prints()
    eager.step(routines.gan, first.adversarial, adam(first.adversarial), digits())
    assert first.prints() != second.prints()
    assert second.prints() == Two(original).prints()


def test_the_two_pairs_see_each_others_steps():
    x = digits()
    two = Two(networks("mlp", (1, 8, 8), 3, hidden=(16, 12), seed=3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before, _ = eager.objective(routines.vae[0], two.latent, x)
    eager.step(routines.mmd, two.adversarial, adam(two.adversarial), x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        after, _ = eager.objective(routines.vae[0], two.latent, x)
    assert before != after
