"""Discrete latents on static binarized MNIST: REINFORCE, wake-sleep, NVIL, RWS and VIMCO on shared sigmoid belief networks.

The table of Yin and Zhou (2019, ARM) for one and two layers of 200 bits, with the figures of Mnih and Gregor (2014),
Bornschein and Bengio (2015) and Mnih and Rezende (2016); those that were not read in print are marked unverified. Published
runs last 1,200 epochs and more, on batches of 20 to 50 at a rate of 1e-4; this one is sized for a processor.

Run: python experiments/discrete_latents.py   (killed, it goes on by the same command)
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from published import Claim, Examination, Published, Study, command_line, named, publish

from unigen.settings import Settings, UsageError

NAME = "discrete_latents"
HERE = Path(__file__).resolve().parent
ROUTINES = ("reinforce", "wake_sleep", "nvil", "reweighted_wake_sleep(5)", "vimco(5)")
ARM, MNIH, RWS, VIMCO = "Yin & Zhou 2019", "Mnih & Gregor 2014", "Bornschein & Bengio 2015", "Mnih & Rezende 2016"
PUBLISHED = {
    "200": {
        "reinforce": Published(164.0, ARM),
        "wake_sleep": Published(120.8, MNIH),
        "nvil": Published(113.1, MNIH),
        "reweighted_wake_sleep(5)": Published(103.1, RWS, verified=False),
    },
    "200-200": {
        "reinforce": Published(159.2, ARM),
        "wake_sleep": Published(107.7, MNIH),
        "nvil": Published(99.8, MNIH),
        "reweighted_wake_sleep(5)": Published(93.4, RWS, verified=False),
    },
    "200-200-200": {
        "wake_sleep": Published(101.9, RWS, verified=False),
        "nvil": Published(96.7, RWS, verified=False),
        "reweighted_wake_sleep(5)": Published(90.1, RWS, verified=False),
        "vimco(5)": Published(92.8, VIMCO, verified=False),
    },
}
"""NLL in nats, by networks and routine."""


@dataclass
class Options:
    networks: tuple[str, ...] = ("200", "200-200", "200-200-200")
    """Widths of the layers from the data up, joined by dashes."""
    routines: tuple[str, ...] = ROUTINES
    """The routines to compare."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each is one run of every routine from the same weights."""
    epochs: int = 80
    """Passes over the training data."""
    learning_rate: float = 3e-3
    """Adam's learning rate ..."""
    final_learning_rate: float = 1e-4
    """... and where it falls to, linearly."""
    batch_size: int = 100
    """Data in a batch."""
    particles: int = 500
    """K of the importance-weighted bound that is reported."""
    test_size: int = 2000
    """How many of the test data it is of; 0 for all."""
    engine: str = "xla"
    """eager, compiled or xla."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    together: bool = False
    """Train the seeds of a routine in one program of the xla engine, which is faster on a GPU."""
    data: str = "binarized_mnist"
    """binarized_mnist; on digits or mnist (binarized once) no figure is in print."""
    data_root: str | None = None
    """Folder with the data files (default: the variable UNIGEN_DATA)."""
    directory: str = f"runs/{NAME}"
    """Where the runs go."""
    out: str = str(HERE / "results")
    """Where the tables, numbers and figure go."""
    train: bool = True
    """Train what is missing; --no-train shows what is there."""
    recorded: bool = False
    """Keep the runs of the saved table in --out, of the same settings, instead of training them again."""
    progress: bool = True
    """Show bars."""


def studies_of(options: Options) -> list[Study]:
    """Return one comparison for each network."""
    if not options.routines or not options.networks:
        raise UsageError("--routines and --networks want at least one; got nothing")
    routines, studies = named(options.routines), []
    for name in dict.fromkeys(options.networks):
        widths = name.split("-")
        if not all(width.isascii() and width.isdigit() and int(width) for width in widths):
            raise UsageError(f"--networks wants widths joined by dashes, as 200-200; got {name!r:.80}")
        settings = Settings(
            data=options.data, data_root=options.data_root, pair="sigmoid_belief", layers=tuple(map(int, widths)),
            binarization=None if options.data == "binarized_mnist" else "static",
            routines=routines, seeds=options.seeds, epochs=options.epochs, batch_size=options.batch_size,
            learning_rate=options.learning_rate, final_learning_rate=options.final_learning_rate,
            particles=50, test_size=250, evaluations=5, engine=options.engine, device=options.device,
        )  # fmt: skip
        published = PUBLISHED.get(name, {}) if options.data == "binarized_mnist" else {}
        title = f"{name}, {options.epochs} epoch{'s' * (options.epochs > 1)}"
        studies.append(Study(name, title, settings, published))
    return studies


def claims_of(studies: list[Study]) -> list[Claim]:
    """Return the orderings in print: of routines on a network, each after the next better, and of networks."""
    claims = []
    for study in studies:
        ranked = sorted(
            (name for name in study.published if name in study.settings.routines),
            key=lambda name: study.published[name].value,
        )
        claims += [
            Claim((study.name, better), (study.name, worse)) for better, worse in zip(ranked, ranked[1:], strict=False)
        ]
    for routine in studies[0].settings.routines if studies else ():
        known = [study for study in studies if routine in study.published]
        claims += [
            Claim((deep.name, routine), (flat.name, routine)) for flat, deep in zip(known, known[1:], strict=False)
        ]
    return claims


def main(options: Options, command: str) -> int:
    """Train, examine, print and write the table; return the exit code."""
    studies = studies_of(options)
    routines = studies[0].settings.routines
    base = "wake_sleep" if "wake_sleep" in routines else routines[0]
    examination = Examination(options.particles, options.test_size)
    return publish(NAME, command, options, studies, examination, claims_of(studies), lambda _: base)


if __name__ == "__main__":
    sys.exit(command_line(NAME, Options, __doc__ or "", main, sys.argv[1:]))
