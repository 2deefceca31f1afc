"""What it costs to watch every step for numbers that are not finite: ``python experiments/benchmarks/watching.py``.

The same eager steps with and without the sum over the parameters that a phase has moved, alternating; medians of the ratio.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.__main__ import hardware  # noqa: E402
from benchmarks.peers import SIDES  # noqa: E402
from benchmarks.works import BATCH, WORKS  # noqa: E402

from unigen.engines import eager  # noqa: E402

ROUNDS = 41


def main() -> None:
    warnings.filterwarnings("ignore")
    watched = eager.finite_parameters
    print(f"{hardware()}; medians of {ROUNDS} alternating rounds\n\n| work | cost of watching |\n|---|---|")
    for work in WORKS[:5]:
        run, ratios = SIDES["eager"](work, BATCH), []
        steps = max(2, work.steps // 5)
        run(work.steps)
        for round_ in range(ROUNDS):
            taken = {}
            for on in (True, False) if round_ % 2 else (False, True):
                eager.finite_parameters = watched if on else lambda value, parameters: value
                began = time.perf_counter()
                run(steps)
                taken[on] = time.perf_counter() - began
            ratios.append(taken[True] / taken[False])
        eager.finite_parameters = watched
        print(f"| {work.name} | {100 * (statistics.median(ratios) - 1):.1f}% |", flush=True)


if __name__ == "__main__":
    main()
