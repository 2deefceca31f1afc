"""The sides of a comparison: each makes a function ``run(n)`` that takes n whole training steps, optimizer included.

All sides see the same 32 batches in turn, held in memory, and start from the same weights.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch
from benchmarks.twins import TWINS
from benchmarks.works import BATCH, Work
from torch import Tensor

from unigen.engines import engine_named
from unigen.optimizers import optimizers_for

__all__ = ["SIDES", "Run"]

Run = Callable[[int], Any]
LEARNING_RATE = 1e-3
COUNT = 32
DEVICE = torch.device("cpu")  # where the torch sides run; JAX takes its own default


def batches(work: Work, rows: int = BATCH) -> list[Tensor]:
    torch.manual_seed(1)
    with torch.device("cpu"):
        return [work.x(rows).to(DEVICE) for _ in range(COUNT)]


def pair_of(work: Work, seed: int = 0) -> Any:
    """Return the pair of a seed, made on the CPU, so that every device starts from the same weights."""
    with torch.device("cpu"):
        return work.make(seed).to(DEVICE)


def engine(name: str) -> Callable[[Work, int], Run]:
    def make(work: Work, rows: int) -> Run:
        if work.seeds > 1:
            return _in_one_program(work, rows)
        pair, data, module = pair_of(work), batches(work, rows), engine_named(name)
        optimizers, at = optimizers_for(work.routine, pair), [0]

        def run(n: int) -> None:
            while n > 0:  # as ``fit`` does
                count = min(n, module.CHUNK)
                module.advance(work.routine, pair, optimizers, [[data[(at[0] + i) % COUNT]] for i in range(count)])
                n, at[0] = n - count, at[0] + count

        return run

    return make


def _in_one_program(work: Work, rows: int) -> Run:
    """The seeds side by side in the xla engine, as ``fit_together`` has them."""
    from unigen.engines.xla import CHUNK, advance_many

    pairs, data, at = [pair_of(work, seed) for seed in range(work.seeds)], batches(work, rows), [0]
    optimizers = [optimizers_for(work.routine, pair) for pair in pairs]

    def run(n: int) -> None:
        while n > 0:
            count = min(n, CHUNK)
            turns = [[[data[(at[0] + i + seed) % COUNT]] for i in range(count)] for seed in range(work.seeds)]
            advance_many(work.routine, pairs, optimizers, turns)
            n, at[0] = n - count, at[0] + count

    return run


def by_hand(compile_it: bool, graph_it: bool = False) -> Callable[[Work, int], Run]:
    def make(work: Work, rows: int) -> Run:
        pair, data = pair_of(work), batches(work, rows)
        groups = {id(p): group for group in ("theta", "phi") for p in pair.group(group)}
        optimizers = {
            group: torch.optim.Adam(pair.group(group), LEARNING_RATE, fused=True, capturable=graph_it)
            for group in ("theta", "phi")
            if pair.group(group)
        }
        phases = []
        for loss, moved in work.by_hand(pair):
            of_it = [optimizers[group] for group in dict.fromkeys(groups[id(p)] for p in moved)]
            phases.append((torch.compile(loss, dynamic=False) if compile_it else loss, moved, of_it))
        at = [0]

        def step(x: Tensor) -> None:
            for loss, moved, of_it in phases:
                for parameter in moved:
                    parameter.grad = None
                loss(x).backward(inputs=moved)
                for optimizer in of_it:
                    optimizer.step()

        def run(n: int) -> None:
            for _ in range(n):
                take(data[at[0] % COUNT])
                at[0] += 1

        take = step
        if graph_it:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for x in data[:3]:
                    step(x)
            torch.cuda.current_stream().wait_stream(stream)
            graph, held = torch.cuda.CUDAGraph(), data[0].clone()
            with torch.cuda.graph(graph):
                step(held)

            def take(x: Tensor) -> None:
                held.copy_(x)
                graph.replay()

        return run

    return make


def svi(work: Work, rows: int) -> Run:
    """``pyro.infer.SVI`` on the pair's own programs, with Pyro's global parameter store as its users have it."""
    pair, data, at = copy.deepcopy(pair_of(work)), batches(work, rows), [0]
    pyro.clear_param_store()
    inference = pyro.infer.SVI(
        pair.model, pair.guide, pyro.optim.Adam({"lr": LEARNING_RATE}), loss=pyro.infer.Trace_ELBO()
    )

    def run(n: int) -> None:
        with pyro.settings.context(module_local_params=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(n * work.seeds):  # one after the other
                inference.step(data[at[0] % COUNT])
                at[0] += 1

    return run


def scanned(work: Work, rows: int) -> Run:
    """NumPyro's ``SVI`` in ``lax.scan`` on a hand-written twin; where NumPyro lacks the algorithm, plain JAX and optax."""
    data = np.stack([x.cpu().numpy() for x in batches(work, rows)])
    return TWINS[work.name](data)


SIDES: dict[str, Callable[[Work, int], Run]] = {
    "eager": engine("eager"),
    "compiled": engine("compiled"),
    "xla": engine("xla"),
    "hand": by_hand(False),
    "hand compiled": by_hand(True),
    "hand graphed": by_hand(True, graph_it=True),
    "svi": svi,
    "numpyro": scanned,
}
