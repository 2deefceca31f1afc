"""The settings of a comparison: a dataclass, whose docstrings are the command line's help."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Common", "Settings", "UsageError"]


class UsageError(ValueError):
    """A setting that cannot be; the sentence says what was given, what is expected and the nearest valid name."""


@dataclass
class Common:
    """What ``compare`` and ``train`` have in common."""

    data: str = "digits"
    """digits, mnist, binarized_mnist, fashion_mnist, or a 2-D density: ring, grid, moons, checkerboard, pinwheel."""
    steps: int | None = None
    """Budget of each run in steps of the routine (default 1000)."""
    epochs: int | None = None
    """Budget of each run in passes over the training data, instead of steps."""
    seconds: float | None = None
    """Budget of each run in seconds of training, instead of steps."""
    pair: str = "auto"
    """The model family: latent, sigmoid_belief, mixture, adversarial, rbm, flow; auto takes each routine's own."""
    networks: str = "mlp"
    """Shared networks of latent and adversarial pairs: mlp or conv."""
    hidden: tuple[int, ...] = (200, 200)
    """Widths of the hidden layers of mlp (and of a flow's); the last is the width of conv's trunk."""
    activation: str = "tanh"
    """Activation of mlp: tanh, relu, leaky_relu, softplus, silu, elu."""
    latent: int | None = None
    """Dimension of z (default 20, on 2-D data 2)."""
    layers: tuple[int, ...] = (200,)
    """Widths of a sigmoid belief network's layers, from the data up."""
    components: int = 20
    """Components of a mixture."""
    units: int = 20
    """Hidden units of an RBM; up to 20, its log-likelihood is exact."""
    likelihood: str = "auto"
    """p(x|z): bernoulli, normal, discretized_logistic; auto decides by the data."""
    binarization: str | None = None
    """none, static (once) or dynamic (anew for each batch); default: dynamic for grey images."""
    dequantize: bool = False
    """Add uniform noise of one grey level to grey images, so that they have a density."""
    batch_size: int = 100
    """Data in a batch."""
    learning_rate: float | None = None
    """Learning rate of every routine (default: each routine's own, see the report)."""
    final_learning_rate: float | None = None
    """Where the learning rate falls to, linearly, over the budget (default: it stays)."""
    particles: int = 100
    """K of the importance-weighted bound on test data."""
    test_size: int = 1000
    """How many test data are evaluated; 0 for all."""
    evaluations: int = 10
    """Evaluations on validation data during a run, for the learning curves."""
    engine: str = "eager"
    """The engine that runs the phases."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    data_root: str | None = None
    """Folder with the data files (default: the variable UNIGEN_DATA, else they are downloaded and checked)."""
    out: str | None = None
    """Directory to write (default: runs/DATA-TIME). One that holds the same comparison is gone on with: finished runs are
    skipped, the others resumed."""


@dataclass
class Settings(Common):
    """Train several routines from the same weights on the same data, and compare them."""

    routines: tuple[str, ...] = ()
    """Routines, with settings where wanted: vae "iwae(50)" gan. Default: ten that suit the data. See `unigen list`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run of every routine for each seed; a seed decides initial weights, data order and noise."""
