"""How the cost of a step grows, by engine: particles, batch, layers; and what a first step costs (capture and compilation).

``python experiments/benchmarks/growth.py`` prints tables in microseconds a step (medians) and saves them as Markdown; peak
memory is that of a process of its own for each engine.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.__main__ import hardware  # noqa: E402

from unigen import routines  # noqa: E402
from unigen.engines import ENGINES, engine_named
from unigen.networks import networks  # noqa: E402
from unigen.optimizers import optimizers_for  # noqa: E402
from unigen.pairs import latent, sigmoid_belief  # noqa: E402
from unigen.phases import Routine  # noqa: E402


@dataclasses.dataclass
class Settings:
    """What to time."""

    rounds: int = 5
    """Rounds, of which the median is taken."""
    threads: int = 0
    """Threads of torch; 0 takes all cores."""
    small: bool = False
    """Two points of each curve alone."""
    out: Path = Path(__file__).parent / "results"
    """Where the tables are saved."""


def _vae_pair() -> Any:
    return latent(networks("mlp", (1, 28, 28), 20, hidden=(256,), activation="relu"))


def _bits(rows: int) -> Tensor:
    return (torch.rand(rows, 784) < 0.2).float()


Case = tuple[Routine, Callable[[], Any], Tensor]


def curves() -> dict[str, dict[int, Callable[[], Case]]]:
    """Return what is timed: by the name of the curve and the size along it."""
    return {
        "particles (IWAE 784-256-20, batch 128)": {
            k: lambda k=k: (routines.iwae(k), _vae_pair, _bits(128)) for k in (1, 4, 16, 64)
        },
        "particles, back through one of them (draws=1)": {
            k: lambda k=k: (routines.iwae(k, draws=1), _vae_pair, _bits(128)) for k in (1, 4, 16, 64)
        },
        "batch (VAE 784-256-20)": {n: lambda n=n: (routines.vae, _vae_pair, _bits(n)) for n in (32, 256, 1024, 4096)},
        "layers of 200 (wake-sleep, batch 128)": {
            depth: lambda depth=depth: (routines.wake_sleep, lambda: sigmoid_belief(784, (200,) * depth), _bits(128))
            for depth in (1, 2, 3, 5)
        },
    }


def timed(engine: str, case: Case, rounds: int) -> tuple[float, float]:
    """Return microseconds a step, and the seconds of the first call."""
    routine, make, x = case
    pair, module = make(), engine_named(engine)
    optimizers, batches = optimizers_for(routine, pair), [[x]]
    began = time.perf_counter()
    module.advance(routine, pair, optimizers, batches)
    first = time.perf_counter() - began
    once = time.perf_counter()
    module.advance(routine, pair, optimizers, batches * 2)
    steps = max(2, min(module.CHUNK, int(0.3 / max(1e-6, (time.perf_counter() - once) / 2))))
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        for start in range(0, steps, module.CHUNK):
            module.advance(routine, pair, optimizers, batches * min(module.CHUNK, steps - start))
        found.append((time.perf_counter() - began) / steps * 1e6)
    return statistics.median(found), first


def _peak(engine: str, queue: Any) -> None:
    timed(engine, (routines.vae, _vae_pair, _bits(1024)), 2)
    # of this program alone: the figure of getrusage begins with that of the process that started it
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    queue.put(int(status["VmHWM"].split()[0]) / 1024)


def peak_memory(engine: str) -> float:
    """Return the largest resident size, in MiB, of a process that trains the VAE at batch 1024."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak, args=(engine, queue))
    process.start()
    size: float = queue.get()
    process.join()
    return size


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    warnings.filterwarnings("ignore")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    text = [f"{hardware()}; medians of {settings.rounds} rounds; in brackets the seconds of the first call."]
    for name, cases in curves().items():
        sizes = list(cases)[:2] if settings.small else list(cases)
        lines = [f"| {name} | " + " | ".join(map(str, sizes)) + " |", "|---" * (len(sizes) + 1) + "|"]
        for engine in ENGINES:
            cells = []
            for size in sizes:
                micro, first = timed(engine, cases[size](), settings.rounds)
                cells.append(f"{micro:,.0f} ({first:.1f} s)")
            lines.append(f"| {engine}, µs | " + " | ".join(cells) + " |")
        text.append("\n".join(lines))
        print(text[-1], flush=True)
    memory = [f"| {engine} | {peak_memory(engine):,.0f} |" for engine in ENGINES]
    text.append("\n".join(["| engine | peak memory, MiB |", "|---|---|", *memory]))
    print(text[-1])
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "growth.md").write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
