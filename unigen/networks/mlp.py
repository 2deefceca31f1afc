"""Multilayer perceptrons, h_l = activation(W_l h_{l-1} + b_l), with and without a linear output layer.

The file also holds the argument checks that the other networks share.
"""

import operator
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from unigen.names import nearest_name

__all__ = ["MLP", "MLPTrunk"]

LEAKY_SLOPE = 0.2
"""Slope of leaky_relu below zero, everywhere in this package (Radford et al. 2016)."""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(LEAKY_SLOPE),
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "elu": nn.ELU,
}


class MLPTrunk(nn.Module):
    """Compute features h = activation(W_L ... activation(W_1 x + b_1) ... + b_L), an activation after every layer.

    Weights start from the uniform heuristic of Glorot and Bengio (2010) for tanh, as in Burda et al. (2016), and from
    the uniform heuristic of He et al. (2015) for the other activations (with the slope of leaky_relu taken into
    account). Biases start at zero.

    Arguments:
        inputs: size of the last dimension of x.
        hidden: widths of the layers; with () the features are x itself.
        activation: tanh, relu, leaky_relu (slope 0.2), softplus, silu or elu.

    Errors:
        ValueError: an unknown activation, a size that is not a positive integer, or rows x of another size.

    Example:
        >>> trunk = MLPTrunk(784, (200, 100))
        >>> trunk(torch.zeros(5, 3, 784)).shape
        torch.Size([5, 3, 100])
    """

    def __init__(self, inputs: int, hidden: Sequence[int], activation: str = "tanh"):
        super().__init__()
        self.inputs = positive("inputs", inputs)
        choose("activation", activation, ACTIVATIONS)
        sizes = (self.inputs, *widths(hidden))
        self.width = sizes[-1]
        self.layers = nn.Sequential()
        for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
            linear = nn.Linear(fan_in, fan_out)
            if activation == "tanh":
                nn.init.xavier_uniform_(linear.weight)
            else:
                slope = LEAKY_SLOPE if activation == "leaky_relu" else 0.0
                nn.init.kaiming_uniform_(linear.weight, a=slope)
            nn.init.zeros_(linear.bias)
            self.layers.append(linear)
            self.layers.append(ACTIVATIONS[activation]())

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., inputs) to features (..., width)."""
        return self.layers(rows("MLP", x, self.inputs))


class MLP(nn.Module):
    """Compute y = W h(x) + b, a linear layer over the features h of an `MLPTrunk`.

    The linear layer starts from Glorot and Bengio (2010) whatever the activation, since none follows it.

    Arguments:
        inputs: size of the last dimension of x.
        hidden: widths of the hidden layers; with () the map is linear.
        outputs: size of the last dimension of y.
        activation: tanh, relu, leaky_relu (slope 0.2), softplus, silu or elu.
        output_bias: starting value of b, shape (outputs,); None stands for zeros.

    Errors:
        ValueError: an unknown activation, a size that is not a positive integer, an output bias of another shape, or
            rows x of another size.

    Example:
        >>> network = MLP(50, (200, 200), 784)
        >>> network(torch.zeros(50)).shape
        torch.Size([784])
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        activation: str = "tanh",
        output_bias: Tensor | None = None,
    ):
        super().__init__()
        self.hidden = MLPTrunk(inputs, hidden, activation)
        self.output = linear_output(self.hidden.width, outputs, output_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., inputs) to y (..., outputs)."""
        return self.output(self.hidden(x))


def linear_output(inputs: int, outputs: int, bias: Tensor | None = None) -> nn.Linear:
    """Build a linear layer that no activation follows: Glorot uniform weights, the given bias (outputs,) or zeros."""
    linear = nn.Linear(inputs, positive("outputs", outputs))
    nn.init.xavier_uniform_(linear.weight)
    start_bias(linear.bias, bias)
    return linear


def start_bias(parameter: nn.Parameter, value: Tensor | None) -> None:
    """Copy a starting value into a bias, zeros for None."""
    if value is None:
        nn.init.zeros_(parameter)
        return
    if tuple(value.shape) != tuple(parameter.shape):
        raise ValueError(f"output_bias has shape {tuple(value.shape)}, expected {tuple(parameter.shape)}")
    with torch.no_grad():
        parameter.copy_(value)


def rows(network: str, x: Tensor, size: int) -> Tensor:
    """Return x where its last dimension has the given size (shapes are static: no captured graph holds this test)."""
    if x.ndim == 0 or x.shape[-1] != size:
        raise ValueError(f"{network} got an input of shape {tuple(x.shape)}, expected flat rows of shape (..., {size})")
    return x


def positive(name: str, value: int) -> int:
    """Return value as an int where it is a positive integer (numpy integers too, bool not)."""
    try:
        integer = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        integer = 0
    if integer < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return integer


def widths(hidden: Sequence[int]) -> tuple[int, ...]:
    """Return the widths of hidden layers as a tuple of positive ints."""
    if not isinstance(hidden, (tuple, list)):
        raise ValueError(f"hidden must be a tuple of widths such as (200, 200), got {hidden!r}")
    return tuple(positive("a width in hidden", width) for width in hidden)


def choose(what: str, name: str, options: Iterable[str]) -> str:
    """Return name where it is one of the options."""
    names = list(options)
    if name not in names:
        nearest = nearest_name(name, names)
        raise ValueError(f"unknown {what} {name!r}: expected one of {', '.join(names)}, the nearest is {nearest!r}")
    return name
