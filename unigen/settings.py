"""The settings of a comparison: a dataclass, whose docstrings are the command line's help, and the bounds of each."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from unigen.names import nearest

__all__ = ["BOUNDS", "Common", "Kind", "Settings", "UsageError", "check_bounds", "kind_of", "settings_of"]


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
    """Budget of each run in seconds of training, instead of steps. Compilation is not counted."""
    pair: str = "auto"
    """The model family: latent, deep_latent, sigmoid_belief, mixture, adversarial, rbm, flow; auto takes each routine's own."""
    networks: str = "mlp"
    """Shared networks of latent and adversarial pairs: mlp or conv."""
    hidden: tuple[int, ...] = (200, 200)
    """Widths of the hidden layers of mlp (and of a flow's); the last is the width of conv's trunk. A deep latent pair has half as
    many between its latent layers."""
    activation: str = "tanh"
    """Activation of mlp: tanh, relu, leaky_relu, softplus, silu, elu."""
    latent: int | None = None
    """Dimension of z (default 20, on 2-D data 2)."""
    layers: tuple[int, ...] = (200,)
    """Widths of the latent layers of a sigmoid belief network or a deep latent pair, from the data up."""
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
    """What runs the phases: eager (the reference), compiled (by TorchInductor), xla (many steps a call, by JAX; the seeds of a
    routine in one program). All three take the same steps, to rounding."""
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
    """Routines, with settings where wanted: vae "iwae(50)" gan. Default: up to ten that suit the data. See `unigen list`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run of every routine for each seed; a seed decides initial weights, data order and noise."""


BOUNDS: dict[str, tuple[float, float]] = {
    "steps": (1, 10**12),
    "epochs": (1, 10**9),
    "seconds": (0, 10**9),
    "hidden": (1, 2**16),
    "latent": (1, 2**16),
    "layers": (1, 2**16),
    "components": (1, 2**16),
    "units": (1, 2**16),
    "batch_size": (1, 10**9),
    "learning_rate": (0, 10),
    "final_learning_rate": (0, 10),
    "particles": (1, 10**6),
    "test_size": (0, 10**9),
    "evaluations": (0, 10**6),
    "seeds": (0, 2**63 - 1),
}
"""The least and the greatest value of each number. Zero is excluded as seconds and as learning rate."""

_LONGEST = {"hidden": 32, "layers": 32, "seeds": 1000, "routines": 100}
_TEXT = 4096


class Kind(NamedTuple):
    """What values a setting takes: ``base`` is bool, int, float or str; ``many`` of them; ``optional``: or None."""

    base: type
    many: bool = False
    optional: bool = False

    def __str__(self) -> str:
        words = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}[self.base]
        return {int: "integers", str: "texts"}.get(self.base, words) if self.many else words

    def reads(self, token: str) -> bool:
        """Say whether a token of the command line is such a value, or one of many."""
        try:
            self.base(token)
        except ValueError:
            return self.optional and token == "None"
        return True

    def holds(self, value: Any) -> bool:
        """Say whether a value is of this kind: a bool is no number, and an int is a float too."""
        if value is None:
            return self.optional
        if self.many:
            return isinstance(value, tuple) and all(Kind(self.base).holds(entry) for entry in value)
        return type(value) is self.base or (self.base is float and type(value) is int)


def kind_of(hint: Any) -> Kind:
    """Return the kind of values that a type hint of this file describes.

    >>> kind_of(tuple[int, ...]), kind_of(float | None).optional
    (Kind(base=<class 'int'>, many=True, optional=False), True)
    """
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return Kind(parts[0], many=True)
    return Kind(parts[0], optional=True) if isinstance(hint, types.UnionType) else Kind(hint)


def check_bounds(settings: Settings) -> None:
    """Refuse a value of a wrong type or beyond its bounds; ``UsageError`` with the option, what was got and expected."""
    for name, hint in typing.get_type_hints(Settings).items():
        kind, value, option = kind_of(hint), getattr(settings, name), "--" + name.replace("_", "-")
        if not kind.holds(value):
            raise UsageError(f"{option} wants {kind}; got {value!r:.80}")
        for entry in value if kind.many else () if value is None else (value,):
            if isinstance(entry, str) and len(entry) > _TEXT:
                raise UsageError(f"{option} has {len(entry)} characters; give at most {_TEXT}")
            low, high = BOUNDS.get(name, (-math.inf, math.inf))
            if kind.base not in (int, float) or (low <= entry <= high and (low or kind.base is int or entry)):
                continue
            if "rate" in name:
                raise UsageError(f"{option} must be above 0, and at most 10; got {entry}")
            must = "must be positive" if low or kind.base is float else "must not be negative"
            raise UsageError(f"{option} {must}, and at most {high:.0f}; got {entry!r:.80}")
        if kind.many and len(value) > _LONGEST[name]:
            raise UsageError(f"{option} has {len(value)} values; give at most {_LONGEST[name]}")


def settings_of(stored: Any) -> Settings:
    """Return the settings that a file held: names and values are checked, and nothing in them is interpreted.

    Raises ``UsageError`` for what is no mapping, for an unknown name, and for a value of a wrong type or out of bounds.
    """
    if not isinstance(stored, Mapping):
        raise UsageError(f"settings are a mapping of names to values; got {stored!r:.80}")
    hints = typing.get_type_hints(Settings)
    for name in stored:
        if name not in hints:
            raise UsageError(f"no setting {name!r:.80}; {nearest(str(name)[:80], hints)}")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
    }
    settings = Settings(**values)
    check_bounds(settings)
    return settings
