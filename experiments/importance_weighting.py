"""VAE against IWAE on dynamically binarized MNIST: k = 1, 5 and 50 samples, one and two stochastic layers.

The comparison of Burda, Grosse and Salakhutdinov (2016), with their networks: one layer 784-200-200-50; two
layers 784-200-200-100-100-100-50, tanh. ``vae(k)`` averages k bounds of one sample each, ``iwae(k)`` is one bound of k samples;
at k = 1 they are the same, and are run once. Published runs last 3,280 epochs; these are sized for a processor, where one of k = 50
takes an hour; a GPU trains the seeds of a routine side by side in a minute, with ``--together``.

Run: python experiments/importance_weighting.py   (killed, it goes on by the same command)
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from published import Claim, Examination, Published, Study, command_line, named, publish

from unigen.routines import by_name
from unigen.settings import Settings, UsageError

NAME = "importance_weighting"
HERE = Path(__file__).resolve().parent
LAYERS = {1: "latent", 2: "deep_latent"}
BURDA = "Burda, Grosse & Salakhutdinov 2016"
PUBLISHED = {
    1: {
        "vae": Published(86.76, BURDA),
        "vae(5)": Published(86.47, BURDA, verified=False),
        "iwae(5)": Published(85.54, BURDA),
        "vae(50)": Published(86.35, BURDA, verified=False),
        "iwae(50)": Published(84.78, BURDA),
    },
    2: {
        "vae": Published(85.33, BURDA),
        "vae(5)": Published(85.01, BURDA, verified=False),
        "iwae(5)": Published(83.89, BURDA),
        "vae(50)": Published(84.78, BURDA),
        "iwae(50)": Published(82.90, BURDA),
    },
}
"""NLL in nats, by stochastic layers and routine."""


@dataclass
class Options:
    layers: tuple[int, ...] = (1, 2)
    """Stochastic layers: 1, 2 or both."""
    k: tuple[int, ...] = (1, 5, 50)
    """Samples of z a datum, of VAE and IWAE each ..."""
    routines: tuple[str, ...] = ()
    """... or these routines, such as "iwae(50, doubly_reparameterized, draws=5)"."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each is one run of every routine from the same weights."""
    epochs: int = 80
    """Passes over the training data, of every routine."""
    learning_rate: float = 2e-3
    """Adam's learning rate ..."""
    final_learning_rate: float = 1e-4
    """... and where it falls to, linearly."""
    batch_size: int = 100
    """Data in a batch."""
    particles: int = 5000
    """K of the importance-weighted bound that is reported."""
    test_size: int = 1000
    """How many of the test data it is of; 0 for all."""
    engine: str = "xla"
    """eager, compiled or xla."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    together: bool = False
    """Train the seeds of a routine in one program of the xla engine, which is faster on a GPU."""
    data: str = "mnist"
    """mnist; on digits no figure is in print."""
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


def routines_of(options: Options) -> tuple[str, ...]:
    """Return VAE and IWAE for each number of samples, once where they are the same, or the routines that are wanted.

    >>> routines_of(Options(k=(1, 5)))
    ('vae', 'vae(5)', 'iwae(5)')
    """
    if not options.routines:
        return named([name for k in options.k for name in (("vae",) if k == 1 else (f"vae({k})", f"iwae({k})"))])
    found = named(options.routines)
    for name in found:
        if name.partition("(")[0] not in ("vae", "iwae"):
            raise UsageError(f"--routines wants vae and iwae, with settings; got {name!r:.80}")
    return found


def samples_of(routine: str) -> int:
    """Return how many samples of z a datum a routine takes.

    >>> samples_of("vae"), samples_of("iwae(50, doubly_reparameterized, draws=5)")
    (1, 50)
    """
    return by_name(routine)[0].under.particles or 1


def in_print(routine: str) -> str:
    """Return a routine's name in print, where it has no setting but the number of samples.

    >>> in_print("iwae(50, doubly_reparameterized, draws=5)")
    'iwae(50)'
    """
    name, samples = routine.partition("(")[0], samples_of(routine)
    return name if samples == 1 else f"{name}({samples})"


def studies_of(options: Options) -> list[Study]:
    """Return one comparison for each number of layers."""
    if min(options.k, default=0) < 1:
        raise UsageError(f"--k is at least 1; got {min(options.k, default='nothing')}")
    studies = []
    for layers in dict.fromkeys(options.layers):
        if layers not in LAYERS:
            raise UsageError(f"--layers wants 1 or 2 stochastic layers; got {layers}")
        settings = Settings(
            data=options.data, data_root=options.data_root, binarization="dynamic",
            pair=LAYERS[layers], hidden=(200, 200), latent=50, layers=(100, 50),
            routines=routines_of(options), seeds=options.seeds, epochs=options.epochs, batch_size=options.batch_size,
            learning_rate=options.learning_rate, final_learning_rate=options.final_learning_rate,
            particles=50, test_size=250, evaluations=5, engine=options.engine, device=options.device,
        )  # fmt: skip
        title = f"{layers} layer{'s' * (layers > 1)}, {options.epochs} epoch{'s' * (options.epochs > 1)}"
        known = PUBLISHED[layers] if options.data == "mnist" else {}
        published = {name: known[in_print(name)] for name in settings.routines if in_print(name) in known}
        studies.append(Study(f"layers-{layers}", title, settings, published))
    return studies


def claims_of(studies: list[Study]) -> list[Claim]:
    """Return what is in print: IWAE(k) under VAE(k), more samples under fewer for the IWAE, two layers under one."""
    claims = []
    for study in studies:
        weighted = [name for name in study.settings.routines if name.startswith("iwae")]
        claims += [
            Claim((study.name, name), (study.name, baseline(name)))
            for name in weighted
            if baseline(name) in study.settings.routines
        ]
        ranked = [name for name in study.settings.routines if name == "vae" or name in weighted]
        for more in weighted:
            fewer = [less for less in ranked if samples_of(less) < samples_of(more)]
            if fewer:
                claims.append(Claim((study.name, more), (study.name, max(fewer, key=samples_of))))
    if len({study.name for study in studies}) > 1:
        claims += [Claim(("layers-2", name), ("layers-1", name)) for name in studies[0].settings.routines]
    return claims


def baseline(routine: str) -> str:
    """Return the routine that a routine is paired with: VAE(k) for IWAE(k), the VAE for VAE(k)."""
    return in_print(routine).replace("iwae", "vae") if routine.startswith("iwae") else "vae"


def main(options: Options, command: str) -> int:
    """Train, examine, print and write the table; return the exit code."""
    studies = studies_of(options)
    examination = Examination(options.particles, options.test_size, units=True)
    return publish(NAME, command, options, studies, examination, claims_of(studies), baseline)


if __name__ == "__main__":
    sys.exit(command_line(NAME, Options, __doc__ or "", main, sys.argv[1:]))
