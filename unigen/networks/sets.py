"""The shared network set: one generator and one inference trunk with its heads, from which every routine starts.

Two routines are comparable where they start from the same weights, so a set is a pure function of its arguments and its
seed, `Networks.copy` hands each routine its own parameters, and `fingerprint` is the hash that proves them equal.
"""

import copy
import dataclasses
import hashlib
import math
import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unigen.networks.convolution import ConvolutionalGenerator, ConvolutionalTrunk
from unigen.networks.mlp import ACTIVATIONS, MLP, MLPTrunk, choose, linear_output, positive, widths
from unigen.streams import isolated

__all__ = ["Critic", "Networks", "fingerprint", "networks"]

KINDS = ("mlp", "conv")


@dataclasses.dataclass(frozen=True, eq=False)
class Networks:
    """Hold the networks that one pair is built from; `networks` builds them.

    Arguments:
        generator: z (..., latent) -> likelihood parameters (..., D): logits or means, before any output activation.
        trunk: x (..., D) -> features (..., width), after their activation.
        latent: size of z.
        shape: shape of one datum; D = prod(shape).
        width: number of features.
        seed: the seed that the weights, and those of every head, are a function of.
    """

    generator: nn.Module
    trunk: nn.Module
    latent: int
    shape: tuple[int, ...]
    width: int
    seed: int = 0

    @property
    def dimension(self) -> int:
        """D = prod(shape), the size of a flat row."""
        return math.prod(self.shape)

    def head(self, outputs: int, scale: float | None = None, seed: int | None = None) -> nn.Linear:
        """Build a linear head W h + b over the features h: outputs = 2 latent for z, 1 for y.

        Weights start from Glorot and Bengio (2010), biases at zero. Two heads of one size start equal unless their
        seeds differ. The head has the dtype and the device of the generator.

        Arguments:
            outputs: size of the head's output.
            scale: factor on the starting weights, such as 0 for an inference program that starts at its biases; None
                leaves them.
            seed: of the head's weights; None stands for the seed of the set.

        Errors:
            ValueError: outputs that are not a positive integer, a scale that is negative or not finite, or a seed that
                is not an integer from 0 to 2^63 - 1.

        Example:
            >>> networks("mlp", (784,), 50).head(2 * 50)
            Linear(in_features=200, out_features=100, bias=True)
        """
        outputs = positive("outputs", outputs)
        if scale is not None and not 0 <= scale < math.inf:
            raise ValueError(f"scale must be a finite number that is at least 0, got {scale!r}")
        with _weights_of(self.seed if seed is None else seed, f"head {outputs}"):
            head = linear_output(self.width, outputs)
        if scale is not None:
            with torch.no_grad():
                head.weight.copy_(scale * head.weight)
        return head.to(next(self.generator.parameters()))

    def copy(self) -> "Networks":
        """Return the same networks with parameters of their own, so that two routines start from equal weights.

        Example:
            >>> first = networks("mlp", (4,), 2)
            >>> second = first.copy()
            >>> fingerprint(first.trunk) == fingerprint(second.trunk), first.trunk is second.trunk
            (True, False)
        """
        return dataclasses.replace(self, generator=copy.deepcopy(self.generator), trunk=copy.deepcopy(self.trunk))


class Critic(nn.Module):
    """Score a datum, f_psi(x) = w . h(x) + b: a copy of a set's trunk h with a scalar head, parameters of its own.

    Arguments:
        networks: the set; it is only read.

    Example:
        >>> critic = Critic(networks("mlp", (1, 28, 28), 50))
        >>> critic(torch.zeros(5, 3, 784)).shape
        torch.Size([5, 3])
    """

    def __init__(self, networks: Networks):
        super().__init__()
        self.trunk = copy.deepcopy(networks.trunk)
        self.head = networks.head(1)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., D) to scores (...,)."""
        return self.head(self.trunk(x)).squeeze(-1)


def networks(
    kind: str,
    shape: Sequence[int],
    latent: int,
    *,
    hidden: Sequence[int] = (200, 200),
    activation: str = "tanh",
    channels: int = 32,
    mean: Tensor | Sequence[float] | None = None,
    seed: int = 0,
) -> Networks:
    """Build the network set of one kind, with weights that depend on the arguments and the seed alone.

    The generator's output bias starts at logit(clip(mean, 0.001, 0.999)) where the mean of the training data is given,
    as in Burda et al. (2016), and at zero otherwise. The global random state is neither read nor moved. Weights are
    drawn on the CPU, in torch's default dtype, and moved to torch's default device.

    Arguments:
        kind: "mlp" or "conv".
        shape: shape of one datum: any for mlp; (C, 8, 8), (C, 28, 28) or (C, 32, 32) for conv.
        latent: size of z.
        hidden: mlp: widths of the trunk, and reversed those of the generator. conv: the last one is the trunk's width,
            the others are not used.
        activation: mlp: tanh, relu, leaky_relu, softplus, silu or elu. conv: not used, it is always leaky_relu.
        channels: conv: feature maps of the stage next to the image. mlp: not used.
        mean: mean of the training data, D numbers in [0, 1], for a likelihood with logits; None where there is none.
        seed: an integer from 0 to 2^63 - 1.

    Errors:
        ValueError: an unknown kind or activation, an unsupported shape, a size that is not a positive integer, a mean
            of another size or outside [0, 1], or a seed out of range.

    Example:
        >>> shared = networks("mlp", (1, 28, 28), 50, seed=3)
        >>> shared.generator(torch.zeros(5, 50)).shape, shared.trunk(torch.zeros(5, 784)).shape
        (torch.Size([5, 784]), torch.Size([5, 200]))
    """
    choose("kind of networks", kind, KINDS)
    choose("activation", activation, ACTIVATIONS)
    if not isinstance(shape, (tuple, list)) or not shape:
        raise ValueError(f"shape must be a tuple of sizes such as (1, 28, 28), got {shape!r}")
    latent, hidden = positive("latent", latent), widths(hidden)
    if kind == "conv" and not hidden:
        raise ValueError("conv networks take the trunk's width from the last entry of hidden, got hidden=()")
    if kind == "mlp":
        shape = tuple(positive("a size in shape", size) for size in shape)
        bias = None if mean is None else _logit(mean, math.prod(shape))
        with _weights_of(seed, "generator"):
            generator: nn.Module = MLP(latent, hidden[::-1], math.prod(shape), activation, bias)
        with _weights_of(seed, "trunk"):
            trunk: nn.Module = MLPTrunk(math.prod(shape), hidden, activation)
        width = hidden[-1] if hidden else math.prod(shape)
    else:
        width = hidden[-1]
        with _weights_of(seed, "trunk"):
            trunk = ConvolutionalTrunk(shape, width, channels)
        bias = None if mean is None else _logit(mean, math.prod(shape))
        with _weights_of(seed, "generator"):
            generator = ConvolutionalGenerator(latent, shape, channels, output_bias=bias)
    device = torch.get_default_device()
    return Networks(generator.to(device), trunk.to(device), latent, tuple(shape), width, int(seed))


def fingerprint(module: nn.Module) -> str:
    """Hash a module's state: sha256, in hexadecimal, over the name, dtype, shape and bytes of each tensor, by name.

    Example:
        >>> shared = networks("mlp", (4,), 2)
        >>> len(fingerprint(nn.ModuleList([shared.generator, shared.trunk])))
        64
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        digest.update(repr((name, str(value.dtype), tuple(value.shape), len(data))).encode())
        digest.update(data)
    return digest.hexdigest()


@contextmanager
def _weights_of(seed: int, part: str) -> Iterator[None]:
    """Draw from a stream of this seed and this part of the set, on the CPU, and give the global stream back unmoved."""
    try:
        integer = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        integer = -1
    if not 0 <= integer < 2**63:
        raise ValueError(f"seed must be an integer from 0 to 2^63 - 1, got {seed!r}")
    # A stream for each part: else a head would repeat the numbers of the trunk, and a wider trunk move the generator.
    stream = int.from_bytes(hashlib.sha256(f"{integer} {part}".encode()).digest()[:8], "big") >> 1
    with isolated(stream), torch.device("cpu"):
        yield


def _logit(mean: Tensor | Sequence[float], dimension: int) -> Tensor:
    """Return logit(clip(mean, 0.001, 0.999)), shape (D,), in float64."""
    value = mean.detach().cpu().double() if isinstance(mean, Tensor) else torch.tensor(mean, dtype=torch.float64)
    if tuple(value.shape) != (dimension,):
        raise ValueError(f"mean has shape {tuple(value.shape)}, expected ({dimension},), one number for each dimension")
    if not bool(((value >= 0) & (value <= 1)).all()):
        raise ValueError(
            f"mean must lie in [0, 1], got values from {value.min():g} to {value.max():g}: pass None for such data"
        )
    return torch.logit(value.clamp(0.001, 0.999))
