"""Two rules teach a classifier that has few labels: what encloses a hole is one of 0, 6, 8, 9, what does not is none of them.

The pair: the model knows the labels (y is the label of x), the guide is the classifier q(y|x). That x encloses a hole has a soft
truth h(x), the share of grey levels at which some background cannot be reached from the border. In Lukasiewicz logic, where
a & a is less than a, so that only what is all but certain implies something, the rules are h & h & h -> y in {0, 6, 8, 9} and
!h & !h & !h -> y in {1, 2, 3, 4, 5, 7}. Labelled rows have the target (1 - pi_t) label + pi_t teacher, rows
without labels the teacher alone. The other arm has the labels alone, from the same weights, with as many steps on them.

Reported on the test digits, mean over paired seeds with the standard error: accuracy of the student without and with the rule,
and of the teacher, which is the student projected on the rule. (Hu, Ma, Liu, Hovy and Xing 2016.)

Run: python experiments/rule_distillation.py
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from published import check_numbers, command_line, made_folder
from torch import Tensor, nn
from torch.nn.functional import conv2d, one_hot, pad
from tqdm.auto import tqdm

from unigen import Pair, fit, routines
from unigen.data import Dataset, load
from unigen.durable import write_json
from unigen.logic import Rule, conjunction, imitation_share, implication, negation
from unigen.optimizers import optimizers_for
from unigen.phases import Optimizer
from unigen.settings import BOUNDS
from unigen.streams import isolated

CLASSES = 10
LEVELS = (2, 4, 6, 8, 10)
WITH_HOLE, WITHOUT = (0, 6, 8, 9), (1, 2, 3, 4, 5, 7)


@dataclass(frozen=True)
class Settings:
    labels: int = 2
    """Labelled digits of each class."""
    epochs: int = 15
    """Values t of the imitation's share."""
    steps: int = 20
    """Steps on labelled rows in an epoch, and as many on rows without labels."""
    batch_size: int = 200
    """Rows without labels in a batch."""
    strength: float = 6.0
    """C, what it costs to break the rule."""
    bound: float = 0.5
    """The largest share of imitation."""
    decay: float = 0.81
    """How the labels' share falls from epoch to epoch."""
    seeds: tuple[int, ...] = tuple(range(5, 25))
    """Seeds, each a pair of runs from the same weights and labels; 0 to 4 served to choose the settings."""
    out: str | None = None
    """Write the numbers to this JSON file too."""


class Labels(nn.Module):
    """p(y | label): certain."""

    def forward(self, x: Tensor, label: Tensor, hole: Tensor) -> None:
        """Sample the site y; the rules read ``hole``."""
        known = one_hot(label, CLASSES).to(x)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=1e4 * known))  # e^-10000 is 0, and finite as a logarithm


class Student(nn.Module):
    """q(y|x), a softmax of a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> None:
        """Sample the site y."""
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=self.network(x)))


def hole(x: Tensor) -> Tensor:
    """Return the truth of "x encloses a hole" of images (N, 64) of grey values in [0, 1]; (N,)."""
    cross = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]], dtype=x.dtype)
    truths = []
    for level in LEVELS:
        empty = pad((x.reshape(-1, 8, 8) < level / 16).to(x), (1, 1, 1, 1), value=1.0)
        reached = torch.zeros_like(empty)
        reached[:, 0] = 1.0
        for _ in range(50):  # no way through 10 x 10 pixels is longer
            reached = empty * (conv2d(reached[:, None], cross[None, None], padding=1)[:, 0] > 0).to(x)
        truths.append((empty - reached).flatten(1).amax(1))
    return torch.stack(truths).mean(0)


def surely(truth: Tensor) -> Tensor:
    """a & a & a = max(3 a - 2, 0)."""
    return conjunction(truth, truth, truth)


def among(y: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Return the truth of "y is one of these classes", 0 or 1."""
    return torch.isin(y, torch.tensor(classes)).float()


def encloses(draw: Any) -> Tensor:
    """h & h & h -> y in {0, 6, 8, 9}."""
    return implication(surely(draw["hole"]), among(draw["y"], WITH_HOLE))


def encloses_nothing(draw: Any) -> Tensor:
    """!h & !h & !h -> y in {1, 2, 3, 4, 5, 7}."""
    return implication(surely(negation(draw["hole"])), among(draw["y"], WITHOUT))


RULES = (Rule(encloses), Rule(encloses_nothing))


def fewest(data: Dataset) -> int:
    """Return how many training digits the smallest class has."""
    return int(torch.bincount(labels_of(data)).min())


def labels_of(data: Dataset) -> Tensor:
    """Return the training labels."""
    if data.train_labels is None:
        raise ValueError(f"{data.name} has no labels; take digits")
    return data.train_labels


def labelled_rows(data: Dataset, count: int, seed: int) -> Tensor:
    """Return the places of ``count`` training digits of each class, drawn by seed."""
    labels = labels_of(data)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    return torch.cat([order[labels[order] == c][:count] for c in range(CLASSES)])


def run(
    settings: Settings, seed: int, with_rule: bool, data: Dataset, holes: Tensor, tick: Callable[[], Any] = lambda: None
) -> tuple[float, float]:
    """Train once and return the test accuracy of the student and of its teacher; ``holes`` is ``hole(data.train)``."""
    chosen = labelled_rows(data, settings.labels, seed)
    with isolated(seed):
        student = nn.Linear(64, CLASSES)
    pair = Pair(Labels(), Student(student))
    x, labels = data.train, data.train_labels
    distill = partial(routines.rule_distillation, RULES, settings.strength)
    optimizers = optimizers_for(distill(1.0), pair, Optimizer("Adam", 2e-3))
    few = (x[chosen], labels[chosen], holes[chosen])
    with isolated(seed):
        for t in range(settings.epochs):
            share = imitation_share(t, settings.bound, settings.decay) if with_rule else 0.0
            fit(few, distill(share), pair, optimizers, steps=settings.steps, progress=False)
            if with_rule and t:
                rows = torch.randint(len(x), (settings.steps, settings.batch_size))
                # with share 1 the labels have no part in the target
                batches = [(x[row], labels[row], holes[row]) for row in rows]
                fit(batches, distill(1.0), pair, optimizers, steps=settings.steps, progress=False)
            tick()
    with torch.no_grad():
        log_q = torch.log_softmax(student(data.test), -1)
        y = torch.arange(CLASSES)[:, None]
        broken = sum(rule({"hole": hole(data.test), "y": y.expand(-1, len(data.test))}) for rule in RULES)
        projected = log_q + settings.strength * broken.T
    return tuple(float((said.argmax(-1) == data.test_labels).double().mean()) for said in (log_q, projected))


def main(settings: Settings) -> dict[str, float]:
    """Run both arms on every seed; print and return means and standard errors."""
    data = load("digits", binarization="none")
    check_numbers(
        settings, labels=(1, fewest(data)), strength=(0, math.inf), bound=(0, 1), decay=(0, 1),
        **{name: BOUNDS[name] for name in ("epochs", "steps", "batch_size", "seeds")},
    )  # fmt: skip
    if settings.out:
        made_folder(Path(settings.out), file=True)
    rows, holes = [], hole(data.train)
    hidden = not sys.stderr.isatty()
    with tqdm(total=2 * len(settings.seeds) * settings.epochs, disable=hidden, unit="epoch") as bar:
        for seed in settings.seeds:
            arms = [run(settings, seed, with_rule, data, holes, lambda: bar.update()) for with_rule in (False, True)]
            rows.append([*arms[0], *arms[1], arms[1][0] - arms[0][0]])
    table = torch.tensor(rows, dtype=torch.float64)
    names = ("student, labels", "teacher, labels", "student, rule", "teacher, rule", "gain of the student")
    found = {}
    for name, column in zip(names, table.T, strict=True):
        found[name] = float(column.mean())
        error = ""  # one seed says nothing about others
        if len(rows) > 1:
            found[f"{name}, s.e."] = float(column.std()) / math.sqrt(len(rows))
            error = f" +- {found[f'{name}, s.e.']:.4f}"
        print(f"{name:<22} {found[name]:.4f}{error}")
    if settings.out:
        write_json(Path(settings.out), found)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)  # the networks are tiny
    sys.exit(
        command_line("rule_distillation", Settings, __doc__, lambda settings, _: main(settings) and 0, sys.argv[1:])
    )
