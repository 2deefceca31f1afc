"""Train the LeNet whose features the evaluator compares samples by, and store it in half precision with its sha256 sum.

All 60,000 training images, shifted by up to two pixels (clothes also mirrored), a quarter of them as a Bernoulli(grey) draw, so
that samples of binary models are no strangers. Adam, its rate falling to zero along a cosine; batch normalization while it
trains, folded into the weights at the end. The test images are read once, by the rounded weights that are stored: nothing is
chosen on them.

Run: python experiments/train_features.py --data mnist --epochs 8 --out unigen/evaluate/weights
     python experiments/train_features.py --data fashion_mnist --epochs 10 --out unigen/evaluate/weights
"""

from __future__ import annotations

import copy
import hashlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from published import command_line
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy, linear, max_pool2d, pad
from tqdm.auto import tqdm

from unigen.data import load
from unigen.durable import write_json, write_whole
from unigen.evaluate.features import LeNet
from unigen.settings import UsageError
from unigen.streams import isolated


@dataclass
class Settings:
    data: str = "mnist"
    """mnist or fashion_mnist."""
    data_root: str | None = None
    """The folder that holds the data; by default UNIGEN_DATA, else they are downloaded."""
    epochs: int = 8
    """Passes over the training images."""
    batch_size: int = 200
    """Images in a batch."""
    learning_rate: float = 4e-3
    """Adam's first rate; it falls to zero along a cosine."""
    binarized: float = 0.25
    """Share of the training images that are seen as a Bernoulli(grey) draw."""
    seed: int = 0
    """Seed of weights, order, shifts and draws."""
    rows: int | None = None
    """Train on the first rows only."""
    out: str = "."
    """The folder to write DATA.safetensors and DATA.json into."""


class Trained(nn.Module):
    """A LeNet whose layers are normalized over the batch before their bias, while it trains; `folded` gives the LeNet itself.

    The norms have no scale of their own, which the next layer would undo: so they keep the order of numbers, and come after the
    max pooling, on a quarter of the numbers, yet fold into the weights before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net = LeNet()
        self.layers = (self.net.convolution_1, self.net.convolution_2, self.net.dense_1, self.net.dense_2)
        dimensions = (nn.BatchNorm2d, nn.BatchNorm2d, nn.BatchNorm1d, nn.BatchNorm1d)
        self.norms = nn.ModuleList(
            norm(len(layer.bias), affine=False) for norm, layer in zip(dimensions, self.layers, strict=True)
        )
        for layer in (*self.layers, self.net.output):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map rows (N, 784) to logits, (N, 10)."""
        h = x.reshape(-1, 1, 28, 28)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            if isinstance(layer, nn.Conv2d):
                h = max_pool2d(conv2d(h, layer.weight, padding=layer.padding), 2)
            else:
                h = linear(h.flatten(1), layer.weight)
            h = (norm(h) + layer.bias.reshape(-1, *[1] * (h.ndim - 2))).relu()
        return self.net.output(h)

    @torch.no_grad()
    def folded(self) -> LeNet:
        """Return the LeNet of the same function: weight / sigma and bias - mean / sigma, with sigma^2 = var + eps."""
        net = copy.deepcopy(self.net)
        layers = (net.convolution_1, net.convolution_2, net.dense_1, net.dense_2)
        for layer, norm in zip(layers, self.norms, strict=True):
            sigma = (norm.running_var + norm.eps).sqrt()
            layer.weight.div_(sigma.reshape(-1, *[1] * (layer.weight.ndim - 1)))
            layer.bias.sub_(norm.running_mean / sigma)
        return net.requires_grad_(False).eval()


def shifted(x: Tensor, most: int = 2) -> Tensor:
    """Shift each image of x (N, 784) by up to `most` pixels along both axes; black comes in."""
    n, side = len(x), torch.arange(28)
    padded = pad(x.reshape(n, 28, 28), [most] * 4)
    down, right = torch.randint(0, 2 * most + 1, (2, n, 1))
    rows, columns = (down + side)[:, :, None], (right + side)[:, None, :]
    return padded[torch.arange(n)[:, None, None], rows, columns].reshape(n, 784)


def train(x: Tensor, labels: Tensor, settings: Settings) -> LeNet:
    """Train on rows x (N, 784) in [0, 1] with labels (N,), as a pure function of its arguments."""
    with isolated(settings.seed):
        network = Trained()
        optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        steps = settings.epochs * -(-len(x) // settings.batch_size)
        orders = (torch.randperm(len(x)).split(settings.batch_size) for _ in range(settings.epochs))
        batches = (rows for order in orders for rows in order)
        for step, rows in enumerate(tqdm(batches, total=steps, disable=not sys.stderr.isatty())):
            batch = shifted(x[rows])
            if settings.data == "fashion_mnist":
                mirrored = torch.rand(len(rows), 1) < 0.5
                batch = torch.where(mirrored, batch.reshape(-1, 28, 28).flip(-1).reshape(-1, 784), batch)
            batch = torch.where(torch.rand(len(rows), 1) < settings.binarized, torch.bernoulli(batch), batch)
            optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            cross_entropy(network(batch), labels[rows]).backward()
            optimizer.step()
    return network.eval().folded()


def main(settings: Settings) -> dict[str, object]:
    """Train, round, measure on the test images and write both files; return the content of the JSON file."""
    if settings.data not in ("mnist", "fashion_mnist"):
        raise UsageError(f"--data is mnist or fashion_mnist, of which there is a LeNet; got {settings.data!r:.80}")
    data = load(settings.data, settings.data_root, binarization="none", validation=0)
    assert data.train_labels is not None and data.test_labels is not None
    x, labels = data.train[: settings.rows], data.train_labels[: settings.rows]
    network = train(x, labels, settings)
    tensors = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    stored = safetensors.torch.save(tensors)
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    with isolated(settings.seed + 1):
        binary = torch.bernoulli(data.test)
    found: dict[str, object] = {
        "data": settings.data,
        "sha256": hashlib.sha256(stored).hexdigest(),
        "bytes": len(stored),
        "test accuracy": network.accuracy(data.test, data.test_labels),
        "test accuracy on a Bernoulli draw": network.accuracy(binary, data.test_labels),
        "test images": len(data.test),
        "training images": len(x),
        "epochs": settings.epochs,
        "batch size": settings.batch_size,
        "learning rate": settings.learning_rate,
        "binarized": settings.binarized,
        "seed": settings.seed,
        "torch": torch.__version__.split("+")[0],
    }
    folder = Path(settings.out)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{settings.data}.safetensors", stored)
    write_json(folder / f"{settings.data}.json", found)
    for name, value in found.items():
        print(f"{name:<36} {value}")
    return found


if __name__ == "__main__":
    sys.exit(command_line("train_features", Settings, __doc__, lambda settings, _: main(settings) and 0, sys.argv[1:]))
