"""Convolutional networks over flat rows, after DCGAN (Radford et al. 2016) but without batch normalization.

Every stage has a 4 x 4 kernel, stride 2 and padding 1, so it halves (or, transposed, doubles) height and width exactly:

    28 -> 14 -> 7        32 -> 16 -> 8 -> 4        8 -> 4 -> 2

with `channels` feature maps at the first stage and twice as many at each further one. The activation is leaky_relu of
slope 0.2 on both sides: without normalization a relu unit of the generator may die. Weights start uniform with variance
2 / ((1 + slope^2) fan_in) (He et al. 2015), biases at zero, and the linear output from Glorot and Bengio (2010).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unigen.networks.mlp import LEAKY_SLOPE, positive, rows, start_bias

__all__ = ["ConvolutionalGenerator", "ConvolutionalTrunk"]

KERNEL, STRIDE, PADDING = 4, 2, 1

STAGES = {8: 2, 28: 2, 32: 3}
"""Number of stages by height (and width) of the image."""


class ConvolutionalTrunk(nn.Module):
    """Compute features of an image with strided convolutions and one dense layer, leaky_relu after each.

    Arguments:
        shape: (C, 8, 8), (C, 28, 28) or (C, 32, 32), with any number C of channels.
        width: number of features.
        channels: feature maps of the first stage.

    Errors:
        ValueError: an unsupported shape, a size that is not a positive integer, or rows x of another size.

    Example:
        >>> trunk = ConvolutionalTrunk((1, 28, 28), width=128, channels=8)
        >>> trunk(torch.zeros(5, 3, 784)).shape
        torch.Size([5, 3, 128])
    """

    def __init__(self, shape: Sequence[int], width: int, channels: int = 32):
        super().__init__()
        self.shape, maps, side = _geometry(shape, channels)
        self.inputs = math.prod(self.shape)
        self.width = positive("width", width)
        self.stages = nn.Sequential()
        for before, after in zip((self.shape[0], *maps), maps, strict=False):
            convolution = nn.Conv2d(before, after, KERNEL, STRIDE, PADDING)
            _start(convolution.weight, convolution.bias, fan_in=before * KERNEL**2)
            self.stages.append(convolution)
            self.stages.append(nn.LeakyReLU(LEAKY_SLOPE))
        self.dense = nn.Linear(maps[-1] * side**2, self.width)
        _start(self.dense.weight, self.dense.bias, fan_in=self.dense.in_features)
        self.activation = nn.LeakyReLU(LEAKY_SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., D) to features (..., width)."""
        leading = rows("ConvolutionalTrunk", x, self.inputs).shape[:-1]
        images = x.reshape(-1, *self.shape)
        features = self.stages(images).reshape(-1, self.dense.in_features)
        return self.activation(self.dense(features)).reshape(*leading, self.width)


class ConvolutionalGenerator(nn.Module):
    """Map a latent to likelihood parameters of an image with one dense layer and transposed convolutions.

    Nothing follows the last convolution but a bias for each output (not one for each channel), so that it can hold the
    logits of the mean image. With k = outputs_per_dimension, `y.chunk(k, -1)` gives k rows (..., D), each in the layout
    of the data.

    Arguments:
        latent: size of the last dimension of z.
        shape: (C, 8, 8), (C, 28, 28) or (C, 32, 32), with any number C of channels; D = prod(shape).
        channels: feature maps of the stage next to the image.
        outputs_per_dimension: k, the number of likelihood parameters for each dimension of the data.
        output_bias: starting value of the bias, shape (D k,); None stands for zeros.

    Errors:
        ValueError: an unsupported shape, a size that is not a positive integer, an output bias of another shape, or
            rows z of another size.

    Example:
        >>> generator = ConvolutionalGenerator(20, (3, 32, 32), channels=8, outputs_per_dimension=2)
        >>> mean, log_scale = generator(torch.zeros(5, 20)).chunk(2, -1)
        >>> mean.shape
        torch.Size([5, 3072])
    """

    def __init__(
        self,
        latent: int,
        shape: Sequence[int],
        channels: int = 32,
        outputs_per_dimension: int = 1,
        output_bias: Tensor | None = None,
    ):
        super().__init__()
        self.shape, maps, side = _geometry(shape, channels)
        self.latent = positive("latent", latent)
        outputs = positive("outputs_per_dimension", outputs_per_dimension)
        self.seed_shape = (maps[-1], side, side)
        self.dense = nn.Linear(self.latent, math.prod(self.seed_shape))
        _start(self.dense.weight, self.dense.bias, fan_in=self.latent)
        self.stages = nn.Sequential(nn.LeakyReLU(LEAKY_SLOPE))
        # Along each axis KERNEL / STRIDE taps of an input map reach a pixel, hence the fan-in of a transposed stage.
        taps = (KERNEL // STRIDE) ** 2
        for before, after in zip(maps[:0:-1], maps[-2::-1], strict=True):
            convolution = nn.ConvTranspose2d(before, after, KERNEL, STRIDE, PADDING)
            _start(convolution.weight, convolution.bias, fan_in=before * taps)
            self.stages.append(convolution)
            self.stages.append(nn.LeakyReLU(LEAKY_SLOPE))
        self.output = nn.ConvTranspose2d(maps[0], outputs * self.shape[0], KERNEL, STRIDE, PADDING, bias=False)
        bound = math.sqrt(6 / (taps * (maps[0] + outputs * self.shape[0])))
        nn.init.uniform_(self.output.weight, -bound, bound)
        self.output_bias = nn.Parameter(torch.empty(outputs * math.prod(self.shape)))
        start_bias(self.output_bias, output_bias)

    def forward(self, z: Tensor) -> Tensor:
        """Map z (..., latent) to likelihood parameters (..., D k)."""
        leading = rows("ConvolutionalGenerator", z, self.latent).shape[:-1]
        maps = self.dense(z).reshape(-1, *self.seed_shape)
        return self.output(self.stages(maps)).reshape(*leading, self.output_bias.shape[0]) + self.output_bias


def _geometry(shape: Sequence[int], channels: int) -> tuple[tuple[int, ...], list[int], int]:
    """Return the shape as ints, the feature maps of each stage from the image inwards, and the innermost side."""
    image = tuple(shape) if isinstance(shape, (tuple, list)) else ()
    if len(image) != 3 or image[1] != image[2] or image[1] not in STAGES:
        supported = ", ".join(f"(C, {side}, {side})" for side in STAGES)
        raise ValueError(
            f"convolutional networks support the shapes {supported}, got {shape!r}: use mlp networks for other shapes"
        )
    stages = STAGES[image[1]]
    first = positive("channels", channels)
    maps = [first * 2**stage for stage in range(stages)]
    return (positive("the first entry of shape", image[0]), *image[1:]), maps, image[1] // STRIDE**stages


def _start(weight: Tensor, bias: Tensor | None, fan_in: int) -> None:
    """Draw weights that keep the variance through a leaky_relu, and zero the bias."""
    bound = math.sqrt(6 / ((1 + LEAKY_SLOPE**2) * fan_in))
    nn.init.uniform_(weight, -bound, bound)
    if bias is not None:
        nn.init.zeros_(bias)
