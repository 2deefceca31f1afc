"""What a comparison is, in words, numbers and hashes: the content of its ``config.json``, which the report reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from torch import nn

from unigen.data import Loader
from unigen.environment import environment
from unigen.networks import fingerprint
from unigen.phases import Phase, name_of
from unigen.planning import Arm, Plan, build_pair, shared_networks

__all__ = ["announcements", "describe", "phase_formula"]


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


CLOSED = "closed form, all the data in each step"

_FAMILY = {
    "shared": "generator and trunk of latent and adversarial",
    "deep_latent": "deep latent model",
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
    falls = f", falling to {settings.final_learning_rate:g}" if settings.final_learning_rate else ""
    return {
        "key": arm.name,
        "slug": arm.slug,
        "pair": arm.pair,
        "of": planned.measure(arm),
        "title": arm.name,
        "citation": arm.routine.citation,
        "url": arm.routine.url,
        "formula": arm.routine.formula,
        "summary": arm.routine.summary,
        "phases": [{"words": str(phase), "formula": phase_formula(phase)} for phase in arm.routine],
        "optimizer": CLOSED if all(phase.solve for phase in arm.routine) else f"{planned.optimizer(arm)}{falls}",
    }


def phase_formula(phase: Phase) -> str:
    """Write a phase as max E_under[objective] - E_against[objective]."""
    moved = ",".join({"theta": "θ", "phi": "φ", "psi": "ψ"}[group] for group in phase.move)
    formula = f"max_{{{moved}}} E_{{{phase.under}}}[{name_of(phase.maximize)}]"
    return formula + (f" − E_{{{phase.against}}}[{name_of(phase.maximize)}]" if phase.against else "")


def announcements(described: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a description that say what all runs have in common."""
    for key in ("weights", "order"):
        what = "initial weights" if key == "weights" else "data order"
        for name, value in described["hashes"][key].items():
            yield f"{what}, seed {name}: {value[:16]}"
