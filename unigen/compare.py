"""The comparison: every routine from the same weights, on the same data in the same order, under the same budget.

``Settings`` is the configuration, ``plan`` refuses what is wrong with it before anything is written, ``compare`` trains,
evaluates and writes the run directory (see ``unigen.runs``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from unigen import data as datasets
from unigen.data import Dataset, Loader
from unigen.engines.checks import check
from unigen.evaluate import (
    Classifier,
    class_coverage,
    isolated,
    log_likelihood,
    mixture_metrics,
    reconstruct,
    sample,
    sample_distance,
    train_classifier,
)
from unigen.networks import Baseline, Critic, Networks, fingerprint, networks
from unigen.pair import Pair, nearest
from unigen.pairs import Likelihood, adversarial, flow, latent, mixture, rbm, sigmoid_belief
from unigen.pairs.likelihoods import LIKELIHOODS
from unigen.phases import Optimizer, Phase, Routine, name_of
from unigen.routines import by_name
from unigen.runs import (
    append_metrics,
    environment,
    finite,
    save_grid,
    save_scatter,
    save_weights,
    slug_of,
    write_json,
)
from unigen.training import Falling, History, State, TrainingError, engine_named, fit, optimizers_for

__all__ = ["Common", "Plan", "Settings", "UsageError", "build_pair", "compare", "plan"]

ON_BITS = (
    "vae",
    "iwae(5)",
    "wake_sleep",
    "reweighted_wake_sleep(5)",
    "aavae",
    "gan",
    "wgan_gp",
    "mmd",
    "em",
    "persistent_contrastive_divergence",
)
ON_REALS = ("vae", "iwae(5)", "wake_sleep", "gan", "wgan_gp", "mmd", "em", "maximum_likelihood")
PAIRS = ("auto", "latent", "sigmoid_belief", "mixture", "adversarial", "rbm", "flow")


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
    """Directory to write (default: runs/DATA-TIME); it must not exist or be empty."""


@dataclass
class Settings(Common):
    """Train several routines from the same weights on the same data, and compare them."""

    routines: tuple[str, ...] = ()
    """Routines, with settings where wanted: vae "iwae(50)" gan. Default: ten that suit the data. See `unigen list`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run of every routine for each seed; a seed decides initial weights, data order and noise."""


@dataclass
class Arm:
    """One routine of a comparison with its pair family."""

    name: str
    slug: str
    routine: Routine
    pair: str


@dataclass
class Plan:
    """A comparison whose every setting has been checked."""

    settings: Settings
    command: str
    dataset: Dataset
    likelihood: str
    device: str
    arms: list[Arm]
    directory: Path
    classifier: Classifier | None = field(default=None, repr=False)

    @property
    def test(self) -> Tensor:
        rows = self.dataset.test[: self.settings.test_size or None]
        return rows.to(self.device)


# -- planning ----------------------------------------------------------------------------------------------------------


def plan(settings: Settings, command: str = "unigen compare") -> Plan:
    """Check every setting, load the data, and try every routine on its pair; nothing is written.

    Raises ``UsageError`` for a wrong setting or pairing, ``unigen.data.DataError`` for data that cannot be had.
    """
    try:
        return _plan(settings, command)
    except datasets.DataError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from None


def _plan(settings: Settings, command: str) -> Plan:
    given = [name for name in ("steps", "epochs", "seconds") if getattr(settings, name) is not None]
    if len(given) > 1:
        raise ValueError(f"a run has one budget, but --{given[0]} and --{given[1]} were given; drop one")
    if not given:
        settings = dataclasses.replace(settings, steps=1000)
    for name in ("steps", "epochs", "seconds", "batch_size", "particles", "latent", "components", "units"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} must be positive; got {value}")
    for name in ("test_size", "evaluations"):
        if getattr(settings, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')} must not be negative; got {getattr(settings, name)}")
    for name in ("learning_rate", "final_learning_rate"):
        rate = getattr(settings, name)
        if rate is not None and not 0 < rate < 10:
            raise ValueError(f"--{name.replace('_', '-')} must lie between 0 and 10; got {rate}")
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds) or min(settings.seeds) < 0:
        raise ValueError(f"--seeds wants different numbers from 0; got {' '.join(map(str, settings.seeds)) or 'none'}")
    for name, options in (("pair", PAIRS), ("likelihood", ("auto", *LIKELIHOODS)), ("networks", ("mlp", "conv"))):
        if getattr(settings, name) not in options:
            raise ValueError(f"--{name} {getattr(settings, name)!r}: {nearest(getattr(settings, name), options)}")
    engine_named(settings.engine)
    device = _device(settings.device)
    dataset = datasets.load(
        settings.data, settings.data_root, binarization=settings.binarization, dequantize=settings.dequantize
    )
    binary = dataset.binarization != "none" or dataset.levels == 2
    continuous = dataset.levels is None or dataset.dequantize
    natural = "bernoulli" if binary else "normal" if continuous else "discretized_logistic"
    likelihood = natural if settings.likelihood == "auto" else settings.likelihood
    if likelihood == "bernoulli" and not binary:
        raise ValueError(
            f"--likelihood bernoulli wants binary data, but {settings.data} is not; use {natural}, or --binarization"
        )
    if likelihood == "discretized_logistic" and (binary or continuous):
        raise ValueError(
            f"--likelihood discretized_logistic wants grey levels, but this {settings.data} has none; use {natural}"
        )
    names = settings.routines or (ON_REALS if continuous else ON_BITS)
    settings = dataclasses.replace(
        settings, routines=tuple(names), latent=settings.latent or (2 if dataset.shape == (2,) else 20)
    )
    arms = []
    for name in names:
        routine = by_name(name)
        family = routine.pairs[0] if settings.pair == "auto" else settings.pair
        if family not in routine.pairs:
            raise ValueError(f"routine {name} does not run on --pair {family}; it runs on {', '.join(routine.pairs)}")
        if family in ("sigmoid_belief", "rbm") and not binary:
            raise ValueError(
                f"routine {name} on the pair {family} wants binary data; use --binarization static or dynamic"
            )
        if family == "flow" and not continuous:
            raise ValueError(
                f"routine {name} on the pair flow wants continuous data; use --dequantize --binarization none"
            )
        arms.append(Arm(routine.name, slug_of(routine.name), routine, family))
    if len({arm.slug for arm in arms}) < len(arms):
        raise ValueError(f"--routines names a routine twice: {' '.join(names)}")
    directory = Path(settings.out) if settings.out else Path("runs", f"{settings.data}-{datetime.now():%Y%m%d-%H%M%S}")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"--out {directory} exists and is not empty; name a new directory")
    planned = Plan(settings, command, dataset, likelihood, device, arms, directory)
    probe = Loader(dataset, min(settings.batch_size, len(dataset.train)), seed=0, device=device).at(0)[:8]
    for arm in arms:
        pair = build_pair(planned, arm, settings.seeds[0])
        try:
            check(arm.routine, pair, probe)
        except ValueError as error:
            raise ValueError(f"routine {arm.name} on the pair {arm.pair}: {error}") from None
    return planned


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"--device {name!r}: {nearest(kind, ('auto', 'cpu', 'cuda'))}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name} is not there: torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    return name


# -- building ----------------------------------------------------------------------------------------------------------


def shared_networks(planned: Plan, seed: int) -> Networks:
    """Return the network set that latent and adversarial pairs share, a pure function of the seed."""
    settings, dataset = planned.settings, planned.dataset
    return networks(
        settings.networks,
        dataset.shape,
        settings.latent or 20,
        hidden=settings.hidden,
        activation=settings.activation,
        mean=dataset.mean if dataset.levels is not None or dataset.binarization != "none" else None,
        seed=seed,
    )


def build_pair(planned: Plan, arm: Arm, seed: int) -> Pair:
    """Return a new pair for one run, on the plan's device; equal seeds give equal weights."""
    settings, dataset, family = planned.settings, planned.dataset, arm.pair
    dimension = dataset.train.shape[1]
    if family in ("latent", "adversarial"):
        shared = shared_networks(planned, seed)
        likelihood = Likelihood(planned.likelihood, dataset.levels, bounded=dataset.shape != (2,))
        psi: dict[str, nn.Module] = {}
        for name in psi_networks(arm.routine.phases):
            psi[name] = Baseline(dimension) if name == "baseline" else Critic(shared)
        pair = (latent if family == "latent" else adversarial)(shared, likelihood, psi)
    elif family == "sigmoid_belief":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            psi = {name: Baseline(dimension) for name in psi_networks(arm.routine.phases)}
        pair = sigmoid_belief(dimension, settings.layers, mean=dataset.mean, seed=seed, psi=psi)
    elif family == "mixture":
        kind = "bernoulli" if planned.likelihood == "bernoulli" else "normal"
        pair = mixture(settings.components, dataset.train, likelihood=kind, seed=seed)
    elif family == "rbm":
        pair = rbm(dimension, settings.units, mean=dataset.mean, seed=seed)
    else:
        pair = flow(dimension, hidden=settings.hidden, start=dataset.train, seed=seed)
    return pair.to(planned.device)


def psi_networks(phases: tuple[Phase, ...]) -> list[str]:
    """Return the names of the psi networks that phases read, in order."""
    found: dict[str, None] = {}

    def walk(part: Any) -> None:
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            name = getattr(part, "network", None)
            if isinstance(name, str):
                found[name] = None
            for entry in dataclasses.fields(part):
                walk(getattr(part, entry.name))
        elif isinstance(part, tuple):
            for item in part:
                walk(item)

    walk(phases)
    return list(found)


# -- running -----------------------------------------------------------------------------------------------------------


def compare(planned: Plan, progress: bool = True) -> list[dict[str, Any]]:
    """Train, evaluate and write every run of a plan; return the result of each. A run that fails is recorded as failed."""
    settings, directory = planned.settings, planned.directory
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", describe(planned))
    if planned.dataset.train_labels is not None:
        planned.classifier = _classifier(planned)
    results = []
    runs = [(arm, seed) for seed in settings.seeds for arm in planned.arms]
    with tqdm(runs, desc="runs", disable=not progress, position=0) as bar:
        for arm, seed in bar:
            bar.set_postfix_str(f"{arm.name}, seed {seed}")
            folder = directory / arm.slug / f"seed-{seed}"
            folder.mkdir(parents=True)
            result = _run(planned, arm, seed, folder, progress)
            write_json(folder / "result.json", result)
            results.append(result)
    return results


def _run(planned: Plan, arm: Arm, seed: int, folder: Path, progress: bool) -> dict[str, Any]:
    settings = planned.settings
    pair = build_pair(planned, arm, seed)
    loader, steps = _budget(planned, arm, seed)
    run_config = {"routine": arm.name, "pair": arm.pair, "seed": seed, "weights": fingerprint(pair)}
    write_json(folder / "config.json", run_config | {"settings": dataclasses.asdict(settings)})
    result: dict[str, Any] = {"status": "complete", "routine": arm.name, "seed": seed, "error": None}
    settled = dataclasses.replace(arm.routine.optimizer, lr=settings.learning_rate or arm.routine.optimizer.lr)
    schedule = Falling(settings.final_learning_rate) if settings.final_learning_rate else None
    log = _Log(planned, folder / "metrics.jsonl", steps)
    began = time.perf_counter()
    try:
        with isolated(_stream(seed, "training"), planned.device):
            state, history = fit(
                loader,
                arm.routine,
                pair,
                optimizers_for(arm.routine, pair, settled),
                steps=steps,
                seconds=settings.seconds,
                engine=settings.engine,
                schedule=schedule,
                callbacks=[log],
                record_every=max(1, steps // 200) if steps else 20,
                progress=f"{arm.name}, seed {seed}" if progress else False,
            )
    except (TrainingError, FloatingPointError, ValueError, RuntimeError) as error:
        return result | {"status": "failed", "error": str(error).strip().split("\n")[0]}
    spent = history.seconds[-1] if history.seconds else 0.0
    result |= {"steps": state.step, "seconds": spent, "seconds_per_step": spent / max(1, state.step)}
    result |= {"seconds_with_evaluation": time.perf_counter() - began}
    save_weights(folder / "weights.safetensors", pair)
    return result | _evaluate(planned, pair, folder)


def _budget(planned: Plan, arm: Arm, seed: int) -> tuple[Any, int | None]:
    """Return the loader of a run and its number of steps; a closed-form routine sees all the data in every step."""
    settings, rows = planned.settings, len(planned.dataset.train)
    batch = min(settings.batch_size, rows)
    full = any(phase.solve for phase in arm.routine)
    loader = Loader(planned.dataset, rows if full else batch, seed=seed, device=planned.device)
    if settings.seconds is not None:
        return loader, None
    if settings.epochs is not None:
        return loader, max(1, settings.epochs * loader.steps_per_epoch // arm.routine.batches)
    steps = settings.steps or 1
    return loader, -(-steps * batch // rows) if full else steps


class _Log:
    """Write the phases' values, and from time to time an evaluation on validation data, while a run goes on."""

    def __init__(self, planned: Plan, path: Path, steps: int | None) -> None:
        self.planned, self.path, self.steps = planned, path, steps
        self.done = 0
        self.validation = planned.dataset.validation[:250].to(planned.device)

    def __call__(self, state: State, history: History) -> None:
        step, seconds = history.steps[-1], history.seconds[-1]
        values = {phase: finite(value) for phase, value in zip(history.phases, history.values[-1], strict=True)}
        append_metrics(self.path, {"step": step, "seconds": seconds, "values": values})
        budget = self.planned.settings
        progress = step / self.steps if self.steps else seconds / (budget.seconds or 1.0)
        if len(self.validation) and int(progress * budget.evaluations) > self.done:
            self.done = int(progress * budget.evaluations)
            found = log_likelihood(state.pair, self.validation, min(budget.particles, 50), seed=1)
            if found.value is not None:
                line = {"log_likelihood": finite(found.value), "kind": found.kind}
                append_metrics(self.path, {"step": step, "seconds": seconds, "evaluation": line})


def _evaluate(planned: Plan, pair: Pair, folder: Path) -> dict[str, Any]:
    """Measure a trained pair on test data, and write its pictures."""
    dataset, test = planned.dataset, planned.test
    found = log_likelihood(pair, test, planned.settings.particles, seed=2)
    likelihood = {"value": finite(found.value), "standard_error": finite(found.standard_error), "kind": found.kind}
    metrics: dict[str, Any] = {}
    n = min(2500 if dataset.density is not None else 1000, len(dataset.test))
    made, data = sample(pair, n, test, seed=3), dataset.test[:n].to(planned.device)
    if bool(torch.isfinite(made.x).all()):
        for name, kernel in (("mmd", "gaussian"), ("kid", "cubic")):
            if name == "kid" and dataset.density is not None:
                continue
            distance = sample_distance(made.x, data, kernel)
            how = (
                "unbiased MMD², Gaussian kernels of 0.5, 1 and 2 median distances" if name == "mmd" else "cubic kernel"
            )
            how += f", {n} samples, {n} test data" + ("" if dataset.density is not None else ", raw pixels")
            metrics[name] = {"value": distance.value, "standard_error": distance.standard_error, "how": how}
    means = getattr(dataset.density, "means", None)
    if means is not None:
        modes = mixture_metrics(made.x.cpu(), means, dataset.density.std)  # type: ignore[union-attr]
        how = f"PacGAN protocol, {n} samples, 3 standard deviations"
        metrics["modes"] = {"value": modes.modes_captured, "of": modes.modes, "how": how}
        metrics["high_quality"] = {"value": modes.high_quality, "how": how}
        metrics["reverse_kl"] = {"value": finite(modes.reverse_kullback_leibler), "how": how, "units": "nats"}
    if planned.classifier is not None and dataset.test_labels is not None:
        classes = int(dataset.test_labels.max()) + 1
        coverage = class_coverage(made.x.cpu(), planned.classifier, classes, dataset.test_labels)
        how = f"classes with at least a tenth of their share of the data, {n} samples, own classifier"
        metrics["coverage"] = {"value": coverage.covered, "of": classes, "how": how}
    if dataset.shape == (2,):
        save_scatter(folder / "samples.png", made.x, dataset.test)
    else:
        save_grid(folder / "samples.png", made.mean[:100], dataset.shape)
        rebuilt = reconstruct(pair, test[:10], seed=4) if pair.likelihood != "none" else None
        if rebuilt is not None:
            save_grid(folder / "reconstructions.png", torch.cat([test[:10], rebuilt]), dataset.shape)
    return {"log_likelihood": likelihood | {"how": found.how, "units": "nats"}, "metrics": metrics}


def _classifier(planned: Plan) -> Classifier:
    """Train the classifier of the class coverage on grey rows and, where the data are binarized, a binary draw of them."""
    dataset = planned.dataset
    rows, labels = dataset.train, dataset.train_labels
    assert labels is not None
    if dataset.binarization == "dynamic":
        with isolated(5):
            rows, labels = torch.cat([rows, torch.bernoulli(rows)]), torch.cat([labels, labels])
    return train_classifier(rows, labels, int(labels.max()) + 1, seed=0)


def _stream(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "little")


# -- describing --------------------------------------------------------------------------------------------------------


def describe(planned: Plan) -> dict[str, Any]:
    """Return the comparison's configuration, as ``config.json`` holds it and the report reads it."""
    settings, dataset = planned.settings, planned.dataset
    weights: dict[str, str] = {}
    for seed in settings.seeds:
        for family in dict.fromkeys("shared" if a.pair in ("latent", "adversarial") else a.pair for a in planned.arms):
            weights[f"{seed}, {_FAMILY[family]}"] = _start(planned, family, seed)
    order = {}
    for seed in settings.seeds:
        loader = Loader(dataset, min(settings.batch_size, len(dataset.train)), seed=seed)
        order[str(seed)] = loader.order_fingerprint(loader.steps_per_epoch)
    pairs = {arm.pair: build_pair(planned, arm, settings.seeds[0]) for arm in planned.arms}
    sizes = {
        f"{family}: {group}": sum(p.numel() for p in pair.group(group))
        for family, pair in pairs.items()
        for group in ("theta", "phi", "psi")
        if pair.group(group)
    }
    return {
        "command": planned.command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": {
            "name": dataset.name,
            "citation": dataset.citation,
            "fingerprint": dataset.fingerprint,
            "shape": list(dataset.shape),
            "n_train": len(dataset.train),
            "n_test": len(planned.test),
            "binarization": dataset.binarization,
        },
        "networks": {
            "kind": settings.networks,
            "hidden": list(settings.hidden),
            "latent": settings.latent,
            "activation": settings.activation,
            "parameters": sizes,
        },
        "likelihood": planned.likelihood,
        "budget": {"steps": settings.steps, "epochs": settings.epochs, "seconds": settings.seconds},
        "batch_size": settings.batch_size,
        "seeds": list(settings.seeds),
        "routines": [_describe_arm(planned, arm) for arm in planned.arms],
        "hashes": {"weights": weights, "order": order},
        "settings": dataclasses.asdict(settings),
        **environment(planned.device),
    }


_FAMILY = {
    "shared": "generator and trunk of latent and adversarial",
    "sigmoid_belief": "sigmoid belief network",
    "mixture": "mixture",
    "rbm": "RBM",
    "flow": "flow",
}


def _start(planned: Plan, family: str, seed: int) -> str:
    if family == "shared":
        shared = shared_networks(planned, seed)
        return fingerprint(nn.ModuleList([shared.generator, shared.trunk]))
    arm = next(arm for arm in planned.arms if arm.pair == family)
    model: Any = build_pair(planned, arm, seed).model
    return fingerprint(model)


def _describe_arm(planned: Plan, arm: Arm) -> dict[str, Any]:
    settings = planned.settings
    optimizer: Optimizer = dataclasses.replace(
        arm.routine.optimizer, lr=settings.learning_rate or arm.routine.optimizer.lr
    )
    falls = f", falling to {settings.final_learning_rate:g}" if settings.final_learning_rate else ""
    return {
        "key": arm.name,
        "slug": arm.slug,
        "pair": arm.pair,
        "title": arm.name,
        "citation": arm.routine.citation,
        "url": arm.routine.url,
        "formula": arm.routine.formula,
        "summary": arm.routine.summary,
        "phases": [{"words": str(phase), "formula": phase_formula(phase)} for phase in arm.routine],
        "optimizer": "closed form" if all(phase.solve for phase in arm.routine) else f"{optimizer}{falls}",
    }


def phase_formula(phase: Phase) -> str:
    """Write a phase as max E_under[objective] - E_against[objective]."""
    moved = ",".join({"theta": "θ", "phi": "φ", "psi": "ψ"}[group] for group in phase.move)
    formula = f"max_{{{moved}}} E_{{{phase.under}}}[{name_of(phase.maximize)}]"
    return formula + (f" − E_{{{phase.against}}}[{name_of(phase.maximize)}]" if phase.against else "")


def announcements(planned: Plan) -> Iterator[str]:
    """Yield the lines that say what all runs have in common."""
    described = describe(planned)
    for key in ("weights", "order"):
        what = "initial weights" if key == "weights" else "data order"
        for name, value in described["hashes"][key].items():
            yield f"{what}, seed {name}: {value[:16]}"
