"""The command ``unigen``: compare, train, sample, evaluate, report, list, theory.

Exit codes: 0 done, 1 a run failed, 2 a wrong setting, 3 data that cannot be had, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import tyro

from unigen.arguments import parse
from unigen.compare import compare
from unigen.data import NAMES, DataError
from unigen.describe import announcements, describe
from unigen.durable import write_whole
from unigen.evaluate import sample
from unigen.evaluate.annealing import ENGINES as ANNEALERS
from unigen.evaluate.annealing import Annealing
from unigen.evaluate.directory import evaluate_directories, evaluation_table
from unigen.evaluate.examination import Protocol
from unigen.failures import failure
from unigen.lock import DirectoryInUse
from unigen.names import nearest
from unigen.planning import PAIRS, Arm, build_pair, plan, plan_of
from unigen.report import render, table
from unigen.routines import catalogue
from unigen.runs import load_weights, save_samples
from unigen.settings import Common, Settings, UsageError
from unigen.signals import asked_to_end
from unigen.stored import check_path, check_readable

__all__ = ["main", "routines_markdown"]


@dataclass
class Train(Common):
    """Train one routine; the directory is that of a comparison with one routine and one seed."""

    routine: str = "vae"
    """The routine, with settings where wanted: "iwae(50)"."""
    seed: int = 0
    """Decides initial weights, data order and noise."""


@dataclass
class Sample:
    """Draw samples from a trained run."""

    directory: tyro.conf.Positional[str]
    """Directory of a comparison."""
    routine: str | None = None
    """Which routine (default: the first)."""
    seed: int | None = None
    """Which seed's run (default: the first)."""
    n: int = 100
    """How many samples."""
    noise: int = 0
    """Seed of the samples."""
    out: str | None = None
    """Writes OUT.png and OUT.safetensors (default: samples-ROUTINE beside the directory's report)."""


@dataclass
class Evaluate:
    """Give every trained run the same examination, and print one table in which each figure carries its kind and error."""

    directories: tyro.conf.Positional[tuple[str, ...]]
    """Directories of comparisons, or folders that hold some."""
    routines: tuple[str, ...] = ()
    """Only these, by the names that the comparisons have (default: all)."""
    seeds: tuple[int, ...] = ()
    """Only these seeds' runs (default: all)."""
    test_size: int = 1000
    """How many test data likelihoods are of."""
    particles: int = 500
    """K of the importance-weighted bound."""
    annealed: int = 100
    """How many of the test data are annealed."""
    distributions: int = 200
    """Intermediate distributions of annealed importance sampling."""
    engine: str = "eager"
    """What runs the annealing: eager, torch; or xla, which compiles it first."""
    chains: int = 8
    """Chains of annealed importance sampling for each datum."""
    simulated: int = 50
    """Simulated data for bounds from both sides; 0 for none."""
    partition: int = 5000
    """Intermediate distributions for an RBM's partition function."""
    calibration: int = 500
    """Simulations for the calibration of a guide; 0 for none."""
    nuts: int = 0
    """Data whose posteriors NUTS draws, for the guide to be compared with; 0 for none."""
    samples: int = 1000
    """Samples for figures of samples; 0 for none."""


@dataclass
class Report:
    """Write report.html of a comparison again, from whatever is there, and print its table."""

    directory: tyro.conf.Positional[str]
    """Directory of a comparison."""


@dataclass
class Theory:
    """List the identities of the theory, or check them: both sides computed by independent routes."""

    what: tyro.conf.Positional[tuple[str, ...]] = ()
    """Nothing to list them, check for all residuals, check NAME ... for some."""


@dataclass
class List:
    """List routines, pairs and data, with a line and a citation each."""

    what: tyro.conf.Positional[str] = "all"
    """routines, pairs, data or all."""
    markdown: bool = False
    """Print the routines as the table of the README."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with asked_to_end(at_once=True):
            code = _run(arguments)
    except DataError as error:
        _say(str(error))
        code = 3
    except (UsageError, DirectoryInUse) as error:
        _say(str(error))
        code = 2
    except KeyboardInterrupt as error:
        print("unigen: interrupted; the same command, with its --out, goes on where it was", file=sys.stderr)
        code = getattr(error, "code", 130)
    except OSError as error:
        _say(failure(error)["error"])
        code = 1
    sys.exit(code)


def _say(error: str) -> None:
    """Print an error as one line; what could move a terminal's cursor is shown as a question mark."""
    words = " ".join(error.split())
    print("unigen:", "".join(letter if letter.isprintable() else "?" for letter in words), file=sys.stderr)


_COMMANDS = {
    "compare": Settings,
    "train": Train,
    "sample": Sample,
    "evaluate": Evaluate,
    "report": Report,
    "list": List,
    "theory": Theory,
}


def _run(arguments: list[str]) -> int:
    chosen: Any = parse(arguments, _COMMANDS, (__doc__ or "").split("\n")[0])
    command = shlex.join(["unigen", *arguments])
    if isinstance(chosen, Train):
        common = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(Common)}
        return _compare(Settings(**common, routines=(chosen.routine,), seeds=(chosen.seed,)), command)
    if isinstance(chosen, Settings):
        return _compare(chosen, command)
    if isinstance(chosen, Sample):
        return _sample(chosen)
    if isinstance(chosen, Evaluate):
        return _evaluate(chosen)
    if isinstance(chosen, Theory):
        return _theory(chosen)
    return _report(chosen) if isinstance(chosen, Report) else _list(chosen)


def _compare(settings: Settings, command: str) -> int:
    planned = plan(settings, command)
    shown = sys.stderr.isatty() or "CI" not in os.environ
    described = describe(planned)
    for line in announcements(described):
        print(line)
    print(f"directory: {planned.directory}", flush=True)
    results = compare(planned, described, progress=shown)
    page = render(planned.directory)
    print(table(planned.directory))
    print(f"report: {page}")
    failed = [result for result in results if result["status"] != "complete"]
    for result in failed:
        print(f"unigen: {result['routine']}, seed {result['seed']} failed: {result['error']}", file=sys.stderr)
    return 1 if failed else 0


def _sample(chosen: Sample) -> int:
    directory = _directory(chosen.directory)
    for name, most in (("n", 10**6), ("noise", 2**63 - 1)):
        value, least = getattr(chosen, name), int(name == "n")
        if not least <= value <= most:
            raise UsageError(f"--{name} must be at least {least}, and at most {most}; got {value}")
    out = Path(chosen.out) if chosen.out else None
    if out is not None:
        check_path(out, "--out")
        if not out.name or not out.parent.is_dir():
            raise UsageError(f"--out {out}: the folder {out.parent} is not there, or no name is given in it")
    planned = plan_of(directory)
    names = [arm.name for arm in planned.arms]
    if chosen.routine is not None and chosen.routine not in names:
        raise UsageError(f"--routine {chosen.routine!r} is not in {directory}; {nearest(chosen.routine, names)}")
    seeds = planned.settings.seeds
    if chosen.seed is not None and chosen.seed not in seeds:
        raise UsageError(f"--seed {chosen.seed} is not in {directory}; it has {' '.join(map(str, seeds))}")
    arm: Arm = next(arm for arm in planned.arms if chosen.routine in (None, arm.name))
    seed = seeds[0] if chosen.seed is None else chosen.seed
    weights = directory / arm.slug / f"seed-{seed}" / "weights.safetensors"
    if not weights.is_file():
        raise UsageError(f"{weights} is not there: that run is not complete; run the comparison again")
    pair = build_pair(planned, arm, seed)
    try:
        load_weights(weights, pair)
    except ValueError as error:
        raise UsageError(str(error)) from None
    made = sample(pair, chosen.n, planned.test, seed=chosen.noise)
    out = out or directory / f"samples-{arm.slug}"
    tensors = safetensors.torch.save({"x": made.x.contiguous(), "mean": made.mean.contiguous()})
    write_whole(out.with_name(out.name + ".safetensors"), tensors)
    picture = out.with_name(out.name + ".png")
    save_samples(picture, made.x, made.mean, planned.dataset)
    print(f"{picture}\n{out}.safetensors")
    return 0


def _evaluate(chosen: Evaluate) -> int:
    if not chosen.directories:
        raise UsageError("evaluate wants a directory; got nothing")
    least = {"test_size": 2, "particles": 1, "annealed": 1, "distributions": 1, "chains": 1, "partition": 1}
    for name in (*least, "simulated", "calibration", "nuts", "samples"):
        value, low = getattr(chosen, name), least.get(name, 0)
        if not low <= value <= 10**6:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {low}, and at most {10**6}; got {value}")
    if chosen.engine not in ANNEALERS:
        raise UsageError(f"--engine {chosen.engine!r}: {nearest(chosen.engine, ANNEALERS)}")
    protocol = Protocol(
        test=chosen.test_size,
        particles=chosen.particles,
        annealed=chosen.annealed,
        annealing=Annealing(chosen.distributions, chosen.chains, engine=chosen.engine),
        simulated=chosen.simulated,
        partition=chosen.partition,
        calibration=chosen.calibration,
        nuts=chosen.nuts,
        samples=chosen.samples,
    )
    shown = sys.stderr.isatty() or "CI" not in os.environ
    directories = [_directory(name) for name in chosen.directories]
    print(evaluation_table(evaluate_directories(directories, protocol, chosen.routines, chosen.seeds, shown)), end="")
    return 0


def _directory(name: str) -> Path:
    """Return the directory of a comparison that a command reads."""
    directory = Path(name)
    check_path(directory, "directory")
    check_readable(directory)
    return directory


def _report(chosen: Report) -> int:
    directory = _directory(chosen.directory)
    try:
        page = render(directory)
    except FileNotFoundError as error:
        raise UsageError(str(error)) from None
    print(table(directory))
    print(f"report: {page}")
    return 0


_PAIR_LINES = {
    "latent": "z ~ N(0, I), x ~ p(x|z); Gaussian guide (Kingma & Welling 2014)",
    "deep_latent": "z_L, ..., z_1, x, each a normal given the one above; the guide upwards (Burda et al. 2016)",
    "sigmoid_belief": "binary layers and a recognition network (Neal 1992; Hinton et al. 1995)",
    "mixture": "Gaussian or Bernoulli mixture; softmax guide (Dempster, Laird & Rubin 1977)",
    "adversarial": "label y, implicit generator; the guide is the discriminator (Goodfellow et al. 2014; Hu et al. 2018)",
    "rbm": "restricted Boltzmann machine, empty guide (Smolensky 1986; Hinton 2002)",
    "flow": "invertible network, empty guide (Dinh, Krueger & Bengio 2015; Dinh et al. 2017)",
}
_DATA_LINES = {
    "digits": "1797 handwritten digits of 8x8, embedded in scikit-learn (Alpaydin & Kaynak 1998)",
    "mnist": "70,000 handwritten digits of 28x28 (LeCun et al. 1998)",
    "binarized_mnist": "MNIST, binarized once (Salakhutdinov & Murray 2008; Larochelle & Murray 2011)",
    "fashion_mnist": "70,000 pieces of clothing of 28x28 (Xiao, Rasul & Vollgraf 2017)",
    "ring": "8 Gaussians on a circle (Metz et al. 2017; Lin et al. 2018)",
    "grid": "25 Gaussians on a grid (Lin et al. 2018)",
    "moons": "two interleaved arcs",
    "checkerboard": "uniform on the dark squares",
    "pinwheel": "five twisted arms (Johnson et al. 2016)",
}


def _list(chosen: List) -> int:
    sections = ("routines", "pairs", "data")
    if chosen.what not in (*sections, "all"):
        raise UsageError(f"nothing to list under {chosen.what!r}; {nearest(chosen.what, (*sections, 'all'))}")
    if chosen.markdown:
        print(routines_markdown())
        return 0
    lines = {
        "routines": {n: f"{r.summary} [{r.citation}; runs on {', '.join(r.pairs)}]" for n, r in catalogue().items()},
        "pairs": {name: _PAIR_LINES[name] for name in PAIRS if name != "auto"},
        "data": {name: _DATA_LINES[name] for name in NAMES},
    }
    for section in sections if chosen.what == "all" else (chosen.what,):
        print(f"{section}:")
        for name, line in lines[section].items():
            print(f"  {name:<34} {line}")
    return 0


def _theory(chosen: Theory) -> int:
    folder = Path(__file__).parents[1] / "theory"
    if not (folder / "identities").is_dir():
        raise UsageError(
            f"the theory belongs to a checkout of the project: {folder} is not there; pip install -e a clone"
        )
    sys.path.insert(0, str(folder))
    check = importlib.import_module("identities.__main__")
    code: int = check.main(list(chosen.what))
    return code


def routines_markdown() -> str:
    """Return the table of routines that the README holds, generated from the declarations."""
    rows = ["| routine | what it climbs | phases | pairs | source |", "|---|---|---|---|---|"]
    for name, routine in catalogue().items():
        phases = "<br>".join(f"{n}. {phase}" for n, phase in enumerate(routine, 1)).replace("|", "\\|")
        formula = routine.formula.replace("|", "\\|")
        source = f"[{routine.citation}]({routine.url})"
        rows.append(f"| `{name}` | {formula} | {phases} | {', '.join(routine.pairs)} | {source} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
