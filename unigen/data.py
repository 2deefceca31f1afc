"""Datasets in memory, and a loader whose every batch is a pure function of (seed, epoch, index).

`load` reads digits, MNIST, Fashion-MNIST, binarized MNIST and the densities of `unigen.densities` into flat float32
rows; files are checked against pinned sha256 sums before they are used. A `Loader` cuts training rows into batches
without touching the global random state: a run that is resumed, or another routine with the same seed, meets the same
rows in the same order, with the same draws of the binarization Bernoulli(x) or of the dequantization noise (k + u) /
levels.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from unigen.datachecks import DataError, check, check_labels, check_options, integer
from unigen.datafiles import read
from unigen.densities import DENSITIES, Density
from unigen.names import nearest_name

__all__ = ["NAMES", "DataError", "Dataset", "Loader", "check", "load", "spread"]

NAMES = ("digits", "mnist", "binarized_mnist", "fashion_mnist", *DENSITIES)
"""The names that `load` knows."""

_SPLITS = ("train", "validation", "test")
_BELOW_ONE = 1 - 2**-24  # the greatest float32 below 1
_CITATIONS = {
    "ring": "8 Gaussians on a circle, as in Lin, Khetan, Fanti and Oh 2018, PacGAN",
    "grid": "25 Gaussians on a grid, as in Lin, Khetan, Fanti and Oh 2018, PacGAN",
    "moons": "two moons, after scikit-learn (Pedregosa et al. 2011), as a Gaussian mixture",
    "checkerboard": "a checkerboard of area 8, after Grathwohl et al. 2019, FFJORD",
    "pinwheel": "a pinwheel, after Johnson et al. 2016, Composing graphical models with neural networks",
}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of flat rows, and what must be known to train on them and to evaluate.

    Arguments:
        name: the name, as given to `load`.
        train: float32 (N, D), before anything that a `Loader` redraws: grey values k / (levels - 1) for dynamic
            binarization, bin edges k / levels for dequantization.
        validation, test: float32 (N, D), as evaluated: binarized or dequantized once.
        train_labels, validation_labels, test_labels: int64 (N,) or None.
        shape: the shape of one datum, with D entries.
        levels: the number of grey levels of the stored values, 2 for binary ones, None for continuous ones.
        binarization: "none", "static" (drawn once) or "dynamic" (training rows are redrawn in every batch).
        dequantize: whether values are (k + u) / levels with u uniform on [0, 1), redrawn in every training batch.
        citation: where the data come from.
        density: the density that the rows were drawn from, if known.

    Raises:
        DataError: if shapes, labels and options do not fit together.
    """

    name: str
    train: Tensor = field(repr=False)
    validation: Tensor = field(repr=False)
    test: Tensor = field(repr=False)
    train_labels: Tensor | None = field(repr=False)
    validation_labels: Tensor | None = field(repr=False)
    test_labels: Tensor | None = field(repr=False)
    shape: tuple[int, ...]
    levels: int | None
    binarization: str
    dequantize: bool
    citation: str
    density: Density | None = None

    def __post_init__(self) -> None:
        check_options(self.name, self.binarization, self.dequantize, self.levels)
        for split in _SPLITS:
            rows, labels = getattr(self, split), getattr(self, split + "_labels")
            check_labels(labels, f"{self.name}.{split}_labels")
            if not isinstance(rows, Tensor):
                raise DataError(f"{self.name}.{split} is a {type(rows).__name__}, expected a float32 tensor (N, D).")
            if rows.dim() != 2 or rows.shape[1] != math.prod(self.shape):
                expected = f"(N, {math.prod(self.shape)}) for data of shape {self.shape}; flatten each datum"
                raise DataError(f"{self.name}.{split} has shape {tuple(rows.shape)}, expected {expected}.")
            if labels is not None and labels.shape != rows.shape[:1]:
                got = f"has shape {tuple(labels.shape)}, expected ({len(rows)},)"
                raise DataError(f"{self.name}.{split}_labels {got}: one label for each row, or None.")

    @cached_property
    def mean(self) -> Tensor:
        """The mean training row, float32 (D,), noise included: what the bias of an output layer starts from."""
        mean = self.train.mean(0, dtype=torch.float64)
        return (mean + 0.5 / self.levels if self.dequantize and self.levels else mean).to(torch.float32)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 sum, in hexadecimal, of every tensor and option."""
        options = (self.name, tuple(self.shape), self.levels, self.binarization, self.dequantize)
        digest = hashlib.sha256(repr(options).encode())
        for split in _SPLITS:
            for part in (split, split + "_labels"):
                tensor = getattr(self, part)
                digest.update(f"{part} {None if tensor is None else (tensor.dtype, *tensor.shape)}".encode())
                if tensor is not None:
                    digest.update(tensor.detach().cpu().contiguous().numpy().reshape(-1).data)
        return digest.hexdigest()


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    binarization: str | None = None,
    dequantize: bool = False,
    validation: int | None = None,
    size: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load a dataset by name: one of `NAMES`.

    * digits: 1797 images 8x8 in 17 levels, one fixed permutation cut into 1297 / 250 / 250.
    * mnist, fashion_mnist: 60,000 / 10,000 images 28x28 in 256 levels, the last 10,000 training images held out for
      validation.
    * binarized_mnist: 50,000 / 10,000 / 10,000 binary images, fixed and without labels, from a packed file under
      `root`. With neither `root` nor UNIGEN_DATA they are a Bernoulli(grey) draw of our own of MNIST with a fixed
      seed, so figures are comparable with those on any other static binarization only up to that draw;
      `citation` tells which.
    * ring, grid, moons, checkerboard, pinwheel: `size` / 10,000 / 10,000 draws of a density of `unigen.densities`.

    Arguments:
        name: the name.
        root: the folder that holds mnist/, fashion_mnist/ and binarized_mnist/; by default the environment variable
            UNIGEN_DATA, and where that is not set, files are downloaded into XDG_CACHE_HOME/unigen (~/.cache/unigen).
        binarization: "none", "static" or "dynamic"; by default dynamic for grey images that are not dequantized, else
            none.
        dequantize: whether to spread each grey level over its bin, (k + u) / levels.
        validation: the number of rows held out for validation, taken from the end of the training rows (for densities,
            drawn).
        size: the number of training rows of a density, by default 100,000, the size of the PacGAN protocol.
        seed: the seed of all that is drawn once: static binarizations, evaluated splits, rows of a density.

    Raises:
        ValueError: for an unknown name or an option that the dataset does not have.
        DataError: if files are missing, damaged or cannot be downloaded.

    >>> digits = load("digits")
    >>> digits.train.shape, digits.levels, digits.binarization
    (torch.Size([1297, 64]), 17, 'dynamic')
    """
    if name not in NAMES:
        raise ValueError(
            f"Unknown dataset {name!r}: did you mean {nearest_name(name, NAMES)!r} (of {', '.join(NAMES)})?"
        )
    seed = integer("seed", seed, 0)
    if name in DENSITIES:
        if dequantize or binarization not in (None, "none"):
            raise ValueError(
                f"{name} is a density on the plane, not grey images: leave binarization and dequantize unset."
            )
        return _draw_density(name, size, validation, seed)
    if size is not None:
        raise ValueError(f"{name} has fixed rows, got size={size}: leave it unset, it is for {', '.join(DENSITIES)}.")
    levels = {"digits": 17, "binarized_mnist": 2}.get(name, 256)
    if binarization is None:
        binarization = "none" if dequantize or levels == 2 else "dynamic"
    check_options(name, binarization, dequantize, levels)
    if levels == 2 and binarization != "none":
        raise ValueError(f"{name} is already binary, got binarization={binarization!r}: leave it unset.")
    source = read(name, root, validation)
    rows = []
    for split, grey in zip(_SPLITS, source.rows, strict=True):
        x = torch.from_numpy(grey).to(torch.float32) / (levels if dequantize else levels - 1)
        redrawn = dequantize or binarization == "dynamic"  # training rows stay as they are, for a Loader to redraw
        if binarization == "static" or (redrawn and split != "train"):
            x = _redraw(x, levels if dequantize else None, _generator(seed, name, split))
        rows.append(x)
    labels = [None if y is None else torch.from_numpy(y).to(torch.int64) for y in source.labels]
    shape = (1, 8, 8) if name == "digits" else (1, 28, 28)
    stored = 2 if binarization == "static" else levels
    train, held_out, test = rows
    train_labels, held_out_labels, test_labels = labels
    splits = (train, held_out, test, train_labels, held_out_labels, test_labels)
    return Dataset(name, *splits, shape, stored, binarization, dequantize, source.citation)


def spread(x: Tensor, count: int) -> Tensor:
    """Return ``count`` rows of x (N, D) at equal distances, all of them where count is 0 or more than N.

    The first rows are no fair sample: the test images of binarized MNIST are sorted by class, those of MNIST by writer.

    >>> spread(torch.arange(10)[:, None], 4)[:, 0]
    tensor([0, 2, 5, 7])
    """
    count = min(count or len(x), len(x))
    return x[torch.arange(count, device=x.device) * len(x) // max(1, count)]


class Loader:
    """Cut the training rows into batches; each is a pure function of (seed, epoch, index).

    No global random state is used. The order of rows is the same on every device; the noise of binarization and
    dequantization is drawn on `device`, and repeats on devices of the same kind.

    Arguments:
        dataset: the data; its rows are checked, and the training rows moved to `device`.
        batch_size: the number B of rows in a batch, at most the number N of training rows.
        seed: the seed of order and noise.
        device: where batches lie.
        drop_last: whether to leave out the last batch of an epoch if it has fewer than B rows.

    Raises:
        ValueError: for a batch size outside 1 .. N, or a device that is not there.
        DataError: if there are no training rows, or rows of any split are not finite or out of range.

    >>> loader = Loader(load("digits"), batch_size=100)
    >>> len(loader), loader.batch(epoch=0, index=0).shape, loader.at(12).shape
    (13, torch.Size([100, 64]), torch.Size([97, 64]))
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int = 0,
        device: str | torch.device = "cpu",
        drop_last: bool = False,
    ) -> None:
        grey = dataset.levels is not None or dataset.binarization != "none"
        low, high = (0.0, 1.0) if grey else (-math.inf, math.inf)
        for split in _SPLITS:
            if split == "train" or len(getattr(dataset, split)):  # the others may be empty
                check(getattr(dataset, split), f"{dataset.name}.{split}", low=low, high=high)
        train = dataset.train
        self.dataset = dataset
        self.batch_size = integer("batch_size", batch_size, 1, len(train), " (the number of training rows)")
        self.seed = integer("seed", seed, 0)
        self.drop_last = bool(drop_last)
        self.steps_per_epoch = len(train) // self.batch_size if drop_last else -(-len(train) // self.batch_size)
        try:
            self.device = torch.device(device)
            self._rows = train.to(self.device).contiguous()
        except (RuntimeError, AssertionError) as error:  # a torch without CUDA raises AssertionError
            raise ValueError(f"The device {str(device)!r} is not available to torch: use 'cpu'.") from error
        self._levels = dataset.levels if dataset.dequantize else None
        self._redraws = dataset.dequantize or dataset.binarization == "dynamic"
        self._current = (0, self.order(0).to(self.device))  # the latest epoch and its order

    def order(self, epoch: int) -> Tensor:
        """Return the permutation of the rows in an epoch, int64 (N,) on the CPU: a pure function of (seed, epoch)."""
        return torch.randperm(len(self._rows), generator=_generator(self.seed, "order", integer("epoch", epoch, 0)))

    def indices(self, epoch: int, index: int) -> Tensor:
        """Return the rows of a batch, int64 (B,) on the device of the loader, for its labels and the like."""
        epoch = integer("epoch", epoch, 0)
        index = integer("index", index, 0, self.steps_per_epoch - 1, " (the last batch of an epoch)")
        if self._current[0] != epoch:
            self._current = (epoch, self.order(epoch).to(self.device))
        return self._current[1][index * self.batch_size : (index + 1) * self.batch_size]

    def batch(self, epoch: int, index: int) -> Tensor:
        """Return a batch, float32 (B, D), binarized or dequantized: a pure function of (seed, epoch, index)."""
        x = self._rows.index_select(0, self.indices(epoch, index))
        if not self._redraws:
            return x
        return _redraw(x, self._levels, _generator(self.seed, "noise", epoch, index, device=self.device))

    def at(self, step: int) -> Tensor:
        """Return the batch of a global step: epoch step // steps_per_epoch, index step % steps_per_epoch."""
        return self.batch(*divmod(integer("step", step, 0), self.steps_per_epoch))

    def epoch(self, epoch: int) -> Iterator[Tensor]:
        """Iterate over the batches of an epoch."""
        return (self.batch(epoch, index) for index in range(self.steps_per_epoch))

    def order_fingerprint(self, steps: int) -> str:
        """Return the sha256 sum, in hexadecimal, of the row numbers of the first `steps` batches."""
        digest = hashlib.sha256(str(self.batch_size).encode())
        epochs, rest = divmod(integer("steps", steps, 0), self.steps_per_epoch)
        for epoch in range(epochs + (rest > 0)):
            count = self.steps_per_epoch if epoch < epochs else rest
            digest.update(self.order(epoch)[: count * self.batch_size].numpy().tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Tensor]:
        return self.epoch(0)


def _draw_density(name: str, size: int | None, validation: int | None, seed: int) -> Dataset:
    density = DENSITIES[name]()
    train = density.sample(integer("size", 100_000 if size is None else size, 1), _generator(seed, name, "train"))
    count = integer("validation", 10_000 if validation is None else validation, 0)
    held_out = density.sample(count, _generator(seed, name, "validation"))
    test = density.sample(10_000, _generator(seed, name, "test"))
    return Dataset(name, train, held_out, test, None, None, None, (2,), None, "none", False, _CITATIONS[name], density)


def _redraw(x: Tensor, levels: int | None, generator: torch.Generator) -> Tensor:
    """Draw Bernoulli(x), or where `levels` is given, spread bin edges x = k / levels to (k + u) / levels < 1."""
    uniform = torch.rand(x.shape, generator=generator, device=x.device)
    if levels is None:
        return uniform.lt_(x)  # in place: several times as fast as a comparison and a cast
    return torch.add(x, uniform, alpha=1 / levels).clamp_(max=_BELOW_ONE)


def _generator(seed: int, *key: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator of its own for each seed and key.

    Hashing keeps neighbouring seeds and epochs apart: the generator of the CPU uses the low 32 bits of its seed only.
    """
    digest = hashlib.sha256(" ".join(str(part) for part in (seed, *key)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
