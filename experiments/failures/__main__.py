"""Make the figures of all failures, or of some: python experiments/failures [--only NAME ...] [--out DIR] [--workers N].

Prints one line of figures each. Independent runs (seeds) share the workers; everything takes minutes on two cores.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
import tyro

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:
    sys.path.insert(0, str(HERE.parent))  # as a directory of modules, not a package that is installed

from published import made_folder  # noqa: E402

from failures import NAMES  # noqa: E402
from failures.drawing import save  # noqa: E402
from unigen.names import nearest  # noqa: E402
from unigen.settings import UsageError  # noqa: E402


@dataclass
class Options:
    only: tuple[str, ...] = NAMES
    """The failures to show."""
    out: Path = HERE.parent / "figures" / "failures"
    """Where the figures go."""
    workers: int = 2
    """Processes, one thread each."""


def main(options: Options) -> int:
    """Run the experiments, print their lines and write their figures; returns the exit code."""
    if not options.only:
        print(f"--only wants at least one failure; valid: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    for name in options.only:
        if name not in NAMES:
            print(f"no failure {name!r}; {nearest(name, NAMES)}", file=sys.stderr)
            return 2
    if options.workers < 1:
        print(f"--workers must be positive; got {options.workers}", file=sys.stderr)
        return 2
    try:
        made_folder(options.out)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    began = time.perf_counter()
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    with ProcessPoolExecutor(options.workers, context, torch.set_num_threads, (1,)) as pool:
        for name in options.only:
            module, start = import_module(f"failures.{name}"), time.perf_counter()
            found = module.measure(module.Settings(), pool.map)
            path = save(module.draw(found), options.out / f"{name}.png")
            seconds = time.perf_counter() - start
            print(f"{name} ({seconds:.0f} s, {path.name}): {module.line_of_figures(found)}", flush=True)
    print(f"{len(options.only)} figures in {options.out}, {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
