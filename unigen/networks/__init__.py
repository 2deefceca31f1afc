"""Torch networks over flat rows, x of shape (..., D) with D = prod(shape): the parts that every pair is built from."""

from unigen.networks.baseline import Baseline
from unigen.networks.convolution import ConvolutionalGenerator, ConvolutionalTrunk
from unigen.networks.mlp import MLP, MLPTrunk
from unigen.networks.sets import Critic, Networks, fingerprint, networks

__all__ = [
    "MLP",
    "Baseline",
    "ConvolutionalGenerator",
    "ConvolutionalTrunk",
    "Critic",
    "MLPTrunk",
    "Networks",
    "fingerprint",
    "networks",
]
