"""Features that samples are compared by: frozen LeNets of our own for MNIST and Fashion-MNIST, else coordinates or a PCA.

    image -> conv 16 -> pool -> conv 32 -> pool -> 120 -> 84 (the features) -> 10 logits        (LeCun et al. 1998, LeNet-5)

The weights lie beside this file, in half precision, with their sha256 sum and the accuracy of exactly these weights;
`experiments/train_features.py` trains them. A distance of features is comparable with one of the same features only, so every
set of features has a name, and every result carries it.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from unigen.data import Dataset
from unigen.names import nearest_name

__all__ = ["LENETS", "Features", "LeNet", "features_of", "lenet", "principal_components"]

LENETS = ("fashion_mnist", "mnist")
"""The datasets whose LeNet is stored."""

WEIGHTS = Path(__file__).parent / "weights"
_LENET_OF = {"binarized_mnist": "mnist"} | {name: name for name in LENETS}
MOST_COORDINATES = 128  # beyond, covariances of some thousand rows are too noisy to compare
AT_ONCE = 500  # images in one pass: bounds memory


class LeNet(nn.Module):
    """Classify images 28x28 with two convolutions and three dense layers; 120,298 parameters, relu, max pooling.

    Rows are flat and in [0, 1], background 0. The features are the 84 activations before the logits.
    Source: LeCun, Bottou, Bengio and Haffner (1998), Gradient-based learning applied to document recognition, section II.B;
    relu and max pooling instead of scaled tanh and trained averages.

    >>> LeNet().logits(torch.zeros(3, 784)).shape
    torch.Size([3, 10])
    """

    def __init__(self) -> None:
        super().__init__()
        # skip_init, because a layer's own initialization draws from the global random state; weights are loaded or drawn.
        self.convolution_1 = nn.utils.skip_init(nn.Conv2d, 1, 16, 5, padding=2)
        self.convolution_2 = nn.utils.skip_init(nn.Conv2d, 16, 32, 5)
        self.dense_1 = nn.utils.skip_init(nn.Linear, 32 * 5 * 5, 120)
        self.dense_2 = nn.utils.skip_init(nn.Linear, 120, 84)
        self.output = nn.utils.skip_init(nn.Linear, 84, 10)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map rows (N, 784) to the 84 features, (N, 84)."""
        if x.ndim != 2 or x.shape[1] != 784:
            raise ValueError(f"A LeNet reads flat images of shape (N, 784), but got {tuple(x.shape)}.")
        h = x.to(self.output.weight).reshape(-1, 1, 28, 28)
        h = max_pool2d(self.convolution_1(h).relu(), 2)
        h = max_pool2d(self.convolution_2(h).relu(), 2)
        return self.dense_2(self.dense_1(h.flatten(1)).relu()).relu()

    def logits(self, x: Tensor) -> Tensor:
        """Map rows (N, 784) to logits, (N, 10)."""
        return self.output(self(x))

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Map rows (N, 784) to the features, float64 (N, 84), some hundred rows at a time."""
        return torch.cat([self(rows) for rows in x.split(AT_ONCE)]).double()

    @torch.no_grad()
    def log_probabilities(self, x: Tensor) -> Tensor:
        """Map rows (N, 784) to log p(class | row), float64 (N, 10)."""
        return torch.cat([self.logits(rows) for rows in x.split(AT_ONCE)]).double().log_softmax(-1)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Map rows (N, 784) to the most probable labels, int64 (N,)."""
        return torch.cat([self.logits(rows) for rows in x.split(AT_ONCE)]).argmax(-1)

    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """Compute the share of rows (N, 784) whose predicted label equals the given one, (N,)."""
        return (self.predict(x) == labels).double().mean().item()


def lenet(name: str, folder: Path = WEIGHTS) -> LeNet:
    """Load the frozen LeNet of "mnist" or "fashion_mnist", after its file's sha256 sum has been checked.

    Raises ValueError for another name, or a file that is missing, damaged, or not the one that the JSON file beside it describes.
    """
    if name not in LENETS:
        raise ValueError(f"There is no LeNet of {name!r}; did you mean {nearest_name(name, LENETS)!r}?")
    path = folder / f"{name}.safetensors"
    remedy = "install the package anew, or train it by experiments/train_features.py"
    try:
        expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["sha256"]
        content = path.read_bytes()
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"The weights {path} or their JSON file cannot be read ({error}): {remedy}.") from None
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(f"{path} has sha256 {found}, expected {expected}: {remedy}.")
    network = LeNet()
    try:
        network.load_state_dict({key: tensor.float() for key, tensor in safetensors.torch.load(content).items()})
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold the weights of a LeNet ({error}): {remedy}.") from None
    return network.requires_grad_(False).eval()


@dataclass(frozen=True, eq=False)
class Features:
    """A map from rows (N, D) to features (N, F), with the ``name`` that each figure carries, and a classifier if there is one.

    >>> Features("coordinates", torch.Tensor.double)
    Features(name='coordinates')
    """

    name: str
    map: Callable[[Tensor], Tensor] = field(repr=False)
    classifier: LeNet | None = field(default=None, repr=False)

    def __call__(self, rows: Tensor) -> Tensor:
        """Map rows (N, D) to features, float64 (N, F)."""
        return self.map(rows)


def features_of(dataset: Dataset) -> Features:
    """Return the features that samples of a dataset are compared by, on the device of its rows.

    The LeNet of the same images for mnist, binarized_mnist and fashion_mnist; else the coordinates where there are at most
    128, and the first 64 principal components of the training rows where there are more.
    """
    if dataset.name in _LENET_OF and dataset.shape[-2:] == (28, 28):
        name = _LENET_OF[dataset.name]
        network = lenet(name).to(dataset.train.device)
        return Features(f"84 features of the LeNet of {name}", network.features, network)
    if math.prod(dataset.shape) <= MOST_COORDINATES:
        return Features("pixels" if len(dataset.shape) == 3 else "coordinates", torch.Tensor.double)
    return principal_components(dataset.train)


def principal_components(train: Tensor, components: int = 64, rows: int = 20_000) -> Features:
    """Return the projection onto the first principal components of training rows (N, D), in the units of the rows.

    components: from 1 to D. rows: at most so many, evenly spaced, enter. ValueError for another number or fewer than two rows.
    """
    if train.ndim != 2 or len(train) < 2 or not 1 <= components <= train.shape[1]:
        raise ValueError(
            f"Expected training rows (N, D) with N >= 2 and 1 to D components, but got {tuple(train.shape)} and {components}."
        )
    x = train[:: -(-len(train) // rows)].double()
    mean = x.mean(0)
    axes = torch.linalg.eigh((x - mean).T.cov()).eigenvectors[:, -components:].flip(1)
    return Features(f"{components} principal components", lambda rows: (rows.double() - mean) @ axes)
