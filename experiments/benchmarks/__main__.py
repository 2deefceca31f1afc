"""Time whole training steps of unigen's engines against their peers: ``python experiments/benchmarks``.

Both sides of each ratio run in this process, alternating, and a figure is the median over the rounds; it prints one table,
and saves it with the hardware and the versions as JSON and Markdown.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import peers  # noqa: E402
from benchmarks.peers import SIDES  # noqa: E402
from benchmarks.works import BATCH, WORKS, Work  # noqa: E402

from unigen.engines import ENGINES  # noqa: E402

REPLAYED = ("compiled", "xla", "hand graphed", "numpyro")  # sides that a GPU runs without Python between its kernels
STEPS_ON_CUDA = {True: 1000, False: 50}  # of a timed stretch, of these sides and of the others


@dataclasses.dataclass
class Settings:
    """What to time."""

    rounds: int = 7
    """Rounds, of which the median is taken."""
    works: tuple[int, ...] = tuple(range(1, len(WORKS) + 1))
    """Rows of the table, counted from 1."""
    threads: int = 0
    """Threads of torch; 0 takes all cores. JAX always takes all."""
    device: str = "cpu"
    """cpu or cuda, for every side; on cuda also the step by hand as one CUDA graph, and all products in full precision."""
    out: Path = Path(__file__).parent / "results"
    """Where the table is saved."""


def sides_of(work: Work) -> list[str]:
    hand = ["hand", "hand compiled", *(["hand graphed"] if peers.DEVICE.type == "cuda" else [])]
    return ["xla", *work.peers] if work.seeds > 1 else [*ENGINES, *hand, *work.peers]


def times(work: Work, names: list[str], rounds: int, rows: int = BATCH) -> dict[str, list[float]]:
    """Return microseconds a step, by side, one a round; the sides alternate within a round."""
    return measured(prepared(work, names, rows), rounds)


def prepared(work: Work, names: list[str], rows: int = BATCH) -> dict[str, Callable[[], float]]:
    """Return for each side a function that times one stretch of it in microseconds a step, compiled and warm."""

    def timed(name: str) -> Callable[[], float]:
        run, steps = SIDES[name](work, rows), work.steps
        if peers.DEVICE.type == "cuda":  # where a step is a fraction of a millisecond, or of Python
            steps = STEPS_ON_CUDA[name in REPLAYED]

        def stretch() -> float:
            began = time.perf_counter()
            run(steps)
            if peers.DEVICE.type == "cuda":
                torch.cuda.synchronize()
            return (time.perf_counter() - began) / steps * 1e6

        for _ in range(2):
            stretch()
        return stretch

    return {name: timed(name) for name in names}


def measured(stretches: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in stretches}
    for _ in range(rounds):
        for name, stretch in stretches.items():
            found[name].append(stretch())
    return found


def ratio(found: dict[str, list[float]], one: str, other: str) -> float | None:
    """Return the median over the rounds of one side's time divided by the other's."""
    if one not in found or other not in found:
        return None
    return statistics.median(a / b for a, b in zip(found[one], found[other], strict=True))


def row(work: Work, found: dict[str, list[float]]) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in found.items()}
    best = min((name for name in ENGINES if name in found), key=medians.__getitem__)
    return {
        "work": work.name,
        "microseconds": medians,
        "eager / hand": ratio(found, "eager", "hand"),
        "compiled / hand compiled": ratio(found, "compiled", "hand compiled"),
        "compiled / hand graphed": ratio(found, "compiled", "hand graphed"),
        "compiled against Pyro SVI": ratio(found, "svi", "compiled"),
        "best engine": best,
        "best against Pyro SVI": ratio(found, "svi", best),
        "best against eager": ratio(found, "eager", best),
        "xla / NumPyro": ratio(found, "xla", "numpyro"),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    ratios = ["eager / hand", "compiled / hand compiled", "xla / NumPyro"]
    if any(each["compiled / hand graphed"] for each in rows):
        ratios[2:2] = ["compiled / hand graphed", "compiled against Pyro SVI"]
    names = [name for name in SIDES if any(name in each["microseconds"] for each in rows)]
    head = ["work", *(f"{name}, µs" for name in names), *ratios, "best against Pyro SVI", "best against eager"]
    lines = [head, ["---"] * len(head)]
    for each in rows:
        cells = [each["work"]]
        cells += [f"{each['microseconds'][name]:,.0f}" if name in each["microseconds"] else "" for name in names]
        cells += ["" if each[name] is None else f"{each[name]:.2f}" for name in ratios]
        cells += [
            "" if each[name] is None else f"{each[name]:.1f}x ({each['best engine']})"
            for name in ("best against Pyro SVI", "best against eager")
        ]
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def hardware() -> str:
    import jax
    import numpyro
    import pyro

    versions = (
        f"torch {torch.__version__}, pyro-ppl {pyro.__version__}, jax {jax.__version__}, numpyro {numpyro.__version__}"
    )
    card = f"{torch.cuda.get_device_name()}, " if peers.DEVICE.type == "cuda" else ""
    return (
        f"{card}{os.cpu_count()} CPU cores ({platform.machine()}), {torch.get_num_threads()} torch threads, {versions}"
    )


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    warnings.filterwarnings("ignore")
    wrong = [number for number in settings.works if not 1 <= number <= len(WORKS)]
    if settings.device not in ("cpu", "cuda") or wrong:
        said = (
            f"--works are of 1 to {len(WORKS)}; got {wrong[0]}"
            if wrong
            else f"--device is cpu or cuda; got {settings.device!r}"
        )
        print(f"benchmarks: {said}", file=sys.stderr)
        sys.exit(2)
    peers.DEVICE = torch.device(settings.device)
    if settings.device == "cuda":
        import jax

        jax.config.update("jax_default_matmul_precision", "highest")  # as torch has it
    name = "steps" if settings.device == "cpu" else "steps-cuda"
    rows = []
    for number in settings.works:
        work = WORKS[number - 1]
        rows.append(row(work, times(work, sides_of(work), settings.rounds)))
        print(table(rows[-1:]), flush=True)
        text = f"{hardware()}; medians of {settings.rounds} rounds.\n\n{table(rows)}\n"
        settings.out.mkdir(parents=True, exist_ok=True)
        (settings.out / f"{name}.md").write_text(text)
        (settings.out / f"{name}.json").write_text(json.dumps({"hardware": hardware(), "rows": rows}, indent=1) + "\n")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
