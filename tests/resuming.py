"""Tiny runs of the routines that must survive a kill, and the hash of everything that their next step needs."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random

import numpy as np
import torch
from families import RowNorm
from torch import nn

from unigen import routines
from unigen.checkpoints import Checkpoints
from unigen.data import Dataset, Loader, load
from unigen.networks import Baseline, Critic, Networks, networks
from unigen.pair import Pair
from unigen.pairs import adversarial, flow, latent, mixture, rbm, sigmoid_belief
from unigen.phases import Routine
from unigen.snapshots import capture
from unigen.training import State
from unigen.trees import pack

__all__ = ["ARMS", "arm", "data", "digest", "only", "scramble"]

LATENT = 3


@functools.cache
def data() -> Dataset:
    """Return 58 binarized digits: with batches of 20, three steps an epoch, the last one partial."""
    digits = load("digits")
    labels = None if digits.train_labels is None else digits.train_labels[:58]
    return dataclasses.replace(digits, train=digits.train[:58], train_labels=labels)


def _shared(seed: int) -> Networks:
    return networks("mlp", (1, 8, 8), LATENT, hidden=(12,), seed=seed)


def _latent(seed: int) -> Pair:
    shared = _shared(seed)
    return latent(shared, psi={"constraint": Critic(shared)})


def _noisy(seed: int) -> Pair:
    torch.manual_seed(seed)
    generator = nn.Sequential(nn.Linear(LATENT, 12), RowNorm(12), nn.Tanh(), nn.Dropout(0.3), nn.Linear(12, 64))
    trunk = nn.Sequential(nn.Linear(64, 12), RowNorm(12), nn.Tanh(), nn.Dropout(0.3))
    return latent(Networks(generator, trunk, LATENT, (8, 8), 12))


def _belief(seed: int) -> Pair:
    torch.manual_seed(seed)
    return sigmoid_belief(64, (6,), seed=seed, psi={"baseline": Baseline(64, (8,))})


ARMS = {
    "vae": (routines.vae, _latent),
    "vae with batch norm and dropout": (routines.vae, _noisy),
    "wake-sleep": (routines.wake_sleep, _latent),
    "reweighted wake-sleep": (routines.reweighted_wake_sleep(3), _latent),
    "nvil": (routines.nvil, _belief),
    "gan": (routines.gan, lambda seed: adversarial(_shared(seed))),
    "wgan_gp": (routines.wgan_gp(critic_steps=2), lambda seed: adversarial(_shared(seed))),
    "persistent contrastive divergence": (routines.persistent_contrastive_divergence, lambda s: rbm(64, 8, seed=s)),
    "posterior regularization": (routines.posterior_regularization("constraint", base=routines.vae), _latent),
    "flow": (routines.maximum_likelihood, lambda seed: flow(64, steps=2, hidden=(8,), seed=seed)),
    "em": (routines.em, lambda seed: mixture(3, data().train, likelihood="bernoulli", seed=seed)),
}


def arm(name: str, seed: int = 0) -> tuple[Pair, Routine, Loader]:
    """Return a fresh pair, whose weights depend on the seed, its routine, and a loader of its data, which do not."""
    routine, build = ARMS[name]
    with torch.random.fork_rng(devices=[]):
        return build(seed), routine, Loader(data(), 20, seed=5)


def digest(state: State) -> str:
    """Return the sha256 sum of a state: parameters, buffers, chains, optimizers, step and every random stream."""
    tensors: dict[str, torch.Tensor] = {}
    tree = pack(capture(state), tensors, "state")
    total = hashlib.sha256(json.dumps(tree).encode())
    for name, tensor in tensors.items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def scramble() -> None:
    """Move every global random stream to an unforeseeable place, as in a fresh process."""
    random.seed()
    np.random.seed()
    torch.manual_seed(random.randrange(2**63))


def only(source: Checkpoints, step: int, target: Checkpoints) -> Checkpoints:
    """Move one step's checkpoint from one directory into another."""
    source.path(step).rename(target.path(step))
    return target
