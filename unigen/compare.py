"""The comparison: every routine from the same weights, on the same data in the same order, under the same budget.

``compare`` trains, evaluates and writes every run of a plan (``unigen.planning``) into its directory (``unigen.runs``).
"""

from __future__ import annotations

import json
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from unigen.arms import Ready, together, train
from unigen.checkpoints import CheckpointError, Checkpoints
from unigen.data import Dataset, spread
from unigen.durable import LEFT, write_json, write_whole
from unigen.evaluate import Examination, Figure, Protocol, evaluate, features_of, reconstruct, train_classifier
from unigen.evaluate.classifier import Predictor
from unigen.failures import OWN, failure, hint
from unigen.intervals import quantile
from unigen.lock import locked
from unigen.networks import fingerprint
from unigen.pair import Pair
from unigen.pairs.rbm import BoltzmannMachine
from unigen.planning import Arm, Plan, build_pair
from unigen.runs import finite, save_grid, save_samples, save_weights
from unigen.signals import Ended, asked_to_end
from unigen.streams import isolated

__all__ = ["compare"]

Run = tuple[Arm, int, Path]  # routine, seed and directory


def compare(planned: Plan, described: dict[str, Any], progress: bool = True) -> list[dict[str, Any]]:
    """Train, evaluate and write every run of a plan; return the result of each, with what to do where it is not complete.

    ``described``: the plan's description (``unigen.describe``), which becomes the directory's ``config.json``. Called again
    on the same directory, it skips the runs that are complete or failed by themselves, and resumes the others. Raises
    ``DirectoryInUse`` where another process works there, ``KeyboardInterrupt`` when asked to end (a run that trains is
    saved), ``OSError`` where the directory itself cannot be written.
    """
    planned.directory.mkdir(parents=True, exist_ok=True)
    with locked(planned.directory):
        return _compare(planned, described, progress)


def _compare(planned: Plan, described: dict[str, Any], progress: bool) -> list[dict[str, Any]]:
    directory = planned.directory
    for left in [*directory.glob(LEFT), *directory.glob(f"*/seed-*/{LEFT}")]:  # by a process that was killed
        left.unlink(missing_ok=True)
    if not (directory / "config.json").exists():
        write_json(directory / "config.json", described)
    runs = [
        (arm, seed, directory / arm.slug / f"seed-{seed}") for seed in planned.settings.seeds for arm in planned.arms
    ]
    results = {folder: result for arm, seed, folder in runs if (result := _finished(folder / "result.json", arm, seed))}
    waiting = [run for run in runs if run[2] not in results]
    classifier = _classifier(planned.dataset) if waiting else None
    with tqdm(total=len(runs), initial=len(results), desc="runs", disable=not progress, position=0) as bar:
        for group in _groups(planned, waiting):
            bar.set_postfix_str(", ".join([group[0][0].name, *(f"seed {seed}" for _, seed, _ in group)]))
            results |= _run(planned, described, group, classifier, progress)
            bar.update(len(group))
    return [_with_hint(results[folder], folder) for _, _, folder in runs]


def _with_hint(result: dict[str, Any], folder: Path) -> dict[str, Any]:
    if result["status"] == "complete":
        return result
    return result | {"error": f"{result.get('error')}; {hint(result, folder)}"}


def _groups(planned: Plan, runs: list[Run]) -> list[list[Run]]:
    """Return the runs that train together: the seeds of a routine in one program of the xla engine, else each by itself."""
    if not together(planned):
        return [[run] for run in runs]
    arms = dict.fromkeys(arm.slug for arm, _, _ in runs)
    return [[run for run in runs if run[0].slug == slug] for slug in arms]


def _finished(path: Path, arm: Arm, seed: int) -> dict[str, Any] | None:
    """Return the result of this run, where it is complete, or failed by itself."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(result, dict) or (result.get("routine"), result.get("seed")) != (arm.name, seed):
        return None
    return result if result.get("status") in ("complete", "failed") else None


def _run(
    planned: Plan, described: dict[str, Any], group: list[Run], classifier: Predictor | None, progress: bool
) -> dict[Path, dict[str, Any]]:
    """Train and evaluate the runs of a group, write their files, and return their results by directory."""
    results: dict[Path, dict[str, Any]] = {}
    ready = []
    for arm, seed, folder in group:
        with _recorded(results, arm, seed, folder):
            ready.append(Ready(arm, seed, folder, *_prepared(planned, described, arm, seed, folder)))
    trained: list[Any] = []
    with asked_to_end() as asked:
        try:
            trained = train(planned, ready, progress)
        except (OSError, MemoryError, *OWN) as error:
            trained = [error] * len(ready)
    for run, outcome in zip(ready, trained, strict=True):
        with _recorded(results, run.arm, run.seed, run.folder):
            if isinstance(outcome, Exception):
                raise outcome
            results[run.folder] = _finish(planned, run, outcome, classifier)
    if asked():  # a run that was asked to end, and failed to save a checkpoint
        raise Ended(asked.code)
    return results


@contextmanager
def _recorded(results: dict[Path, dict[str, Any]], arm: Arm, seed: int, folder: Path) -> Iterator[None]:
    """Write down how a run failed, and go on."""
    try:
        yield
        return
    except (OSError, MemoryError, *OWN) as error:
        failed = failure(error)
        traced = traceback.format_exc() if type(error) is RuntimeError else None  # perhaps a fault of the program
    # outside the handler, so that the error does not keep the run's tensors while this goes on
    results[folder] = {"routine": arm.name, "seed": seed} | failed
    with suppress(OSError):  # a full disk: a run without a result is tried again as well
        write_json(folder / "result.json", results[folder])
        if traced is not None:
            write_whole(folder / "error.txt", traced.encode())


def _prepared(planned: Plan, described: dict[str, Any], arm: Arm, seed: int, folder: Path) -> tuple[Pair, Checkpoints]:
    """Return a run's pair and its checkpoints, and write what it is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").unlink(missing_ok=True)
    pair = build_pair(planned, arm, seed)
    identity = {"routine": arm.name, "pair": arm.pair, "seed": seed, "weights": fingerprint(pair)}
    kept = Checkpoints(folder / "checkpoints", run=identity | {"optimizer": str(planned.optimizer(arm))})
    if not kept.steps() or not (folder / "config.json").exists():
        write_json(folder / "config.json", _configuration(described, arm, identity))
    return pair, kept


def _finish(planned: Plan, run: Ready, trained: dict[str, Any], classifier: Predictor | None) -> dict[str, Any]:
    """Evaluate a trained run and write its weights and its result."""
    result: dict[str, Any] = {"status": "complete", "routine": run.arm.name, "seed": run.seed, "error": None}
    save_weights(run.folder / "weights.safetensors", run.pair)
    result |= trained | _evaluate(planned, run.pair, run.folder, classifier)
    write_json(run.folder / "result.json", result)
    _tidy(run.kept)
    return result


def _configuration(described: dict[str, Any], arm: Arm, identity: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a run's ``config.json``: the comparison's description, of this run alone."""
    routine = next((found for found in described.get("routines", []) if found.get("key") == arm.name), arm.name)
    shared = {name: value for name, value in described.items() if name not in ("routines", "seeds", "hashes")}
    return shared | identity | {"routine": routine}


def _tidy(kept: Checkpoints) -> None:
    """Leave one checkpoint of a complete run: weights and result are written, and none but a longer run would read it."""
    try:
        kept.keep_last()
    except CheckpointError as error:
        warnings.warn(str(error), stacklevel=2)


def _evaluate(planned: Plan, pair: Pair, folder: Path, classifier: Predictor | None) -> dict[str, Any]:
    """Give a trained pair the quick examination, and write its pictures and its log-likelihood of each test datum."""
    dataset, test = planned.dataset, planned.test
    # 2500 samples are the protocol of mixtures (Lin et al. 2018, PacGAN)
    protocol = Protocol(
        test=len(test), particles=planned.settings.particles, samples=2500 if dataset.density is not None else 1000
    )
    found = evaluate(pair, dataset, protocol, classifier=classifier, device=planned.device, quick=True, seed=2)
    figure = _likelihood_figure(found, pair)
    if figure is not None and figure.per_datum is not None and bool(torch.isfinite(figure.per_datum).all()):
        per_datum = [round(value, 5) for value in figure.per_datum.tolist()]
        write_json(folder / "per_datum.json", {"log_likelihood": per_datum, "how": figure.how})
    if found.samples is not None:
        save_samples(folder / "samples.png", found.samples.x, found.samples.mean[:100], dataset)
    if dataset.shape != (2,):
        shown = spread(test, 10)
        rebuilt = reconstruct(pair, shown, seed=4) if pair.likelihood != "none" else None
        if rebuilt is not None:
            save_grid(folder / "reconstructions.png", torch.cat([shown, rebuilt]), dataset.shape)
    return {"log_likelihood": _log_likelihood(pair, figure, protocol.particles)} | found.as_json()


def _likelihood_figure(found: Examination, pair: Pair) -> Figure | None:
    """Return the log-likelihood by which routines are ranked: exact, or the bound of the most particles."""
    if pair.likelihood == "none":
        return None
    exact = [figure for figure in found.figures if figure.name == "log p(x)" and figure.kind == "exact"]
    bounds = [figure for figure in found.figures if figure.name == "ELBO" or figure.name.startswith("log p(x), K = ")]
    return next(iter(exact or bounds[-1:]), None)  # none where it was refused


def _log_likelihood(pair: Pair, figure: Figure | None, particles: int) -> dict[str, Any]:
    """Return the entry of a result for its log-likelihood; the interval of 95 % is over the test data."""
    if figure is None:
        how = "implicit: none" if pair.likelihood == "none" else "refused: none"
        if isinstance(pair.model, BoltzmannMachine):
            how = "unnormalized: none"
        return {"value": None, "standard_error": None, "interval": None, "kind": "none", "how": how, "units": "nats"}
    kind = "exact" if figure.kind == "exact" else "bound"
    how = "exact" if kind == "exact" else f"importance-weighted bound, K = {particles}"
    value, error = finite(figure.value), finite(figure.standard_error)
    between = None
    if value is not None and error is not None:
        between = [value - quantile(figure.n) * error, value + quantile(figure.n) * error]
    return {
        "value": value,
        "standard_error": error,
        "interval": between,
        "kind": kind,
        "how": f"{how}, {figure.n} test data",
        "units": figure.units,
        "n": figure.n,
    }


def _classifier(dataset: Dataset) -> Predictor | None:
    """Return the classifier of the class coverage where the features have none: it is trained on the grey rows and, where
    the data are binarized, a binary draw of them."""
    rows, labels = dataset.train, dataset.train_labels
    if labels is None or features_of(dataset).classifier is not None:
        return None
    if dataset.binarization == "dynamic":
        with isolated(5):
            rows, labels = torch.cat([rows, torch.bernoulli(rows)]), torch.cat([labels, labels])
    return train_classifier(rows, labels, int(labels.max()) + 1, seed=0)
