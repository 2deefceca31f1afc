"""Where the time of an eager step goes, which bounds what any engine can save: ``python experiments/benchmarks/shares.py``.

Kernels are timed by torch's profiler on one thread, in microseconds a step of the engine ``eager``; "the rest" is what is left
of the step as measured without the profiler: Python, Pyro's handlers and the calls themselves. An engine that keeps the
kernels and drops all the rest would be as much faster as the last column says.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.__main__ import hardware  # noqa: E402
from benchmarks.peers import SIDES  # noqa: E402
from benchmarks.works import BATCH, WORKS, Work  # noqa: E402

KINDS = {
    "matrix products and convolutions": ("addmm", "mm", "matmul", "bmm", "baddbmm", "linear", "conv", "mkldnn"),
    "Adam": ("_fused_adam", "_foreach"),
    "random numbers": ("normal_", "bernoulli", "uniform_", "rand", "exponential_"),
}


def kind_of(operation: str) -> str:
    name = operation.removeprefix("aten::")
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "elementwise and sums")


def shares(work: Work, rounds: int = 7) -> dict[str, float]:
    """Return microseconds a step by kind of kernel, and of the whole step ("step")."""
    run, steps = SIDES["eager"](work, BATCH), max(4, work.steps // 4)
    run(steps)
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        run(steps)
        taken.append((time.perf_counter() - began) / steps * 1e6)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
        run(steps)
    found = dict.fromkeys([*KINDS, "elementwise and sums"], 0.0)
    events: Any = profiled.key_averages()
    for event in events:
        if event.key.startswith("aten::"):
            found[kind_of(event.key)] += event.self_cpu_time_total / steps
    return found | {"step": statistics.median(taken)}


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    kinds = [*KINDS, "elementwise and sums"]
    head = ["work", *(f"{kind}, µs" for kind in kinds), "the rest, µs", "step, µs", "step / (products + Adam)"]
    print(f"{hardware()}\n\n" + "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head))))
    for work in WORKS:
        if work.seeds > 1:
            continue
        found = shares(work)
        step, floor = found["step"], found["matrix products and convolutions"] + found["Adam"]
        rest = step - sum(found[kind] for kind in kinds)
        cells = [work.name, *(f"{found[kind]:,.0f}" for kind in kinds), f"{rest:,.0f}", f"{step:,.0f}"]
        print("| " + " | ".join([*cells, f"{step / floor:.1f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
