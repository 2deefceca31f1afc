"""Write the comparison of this version that later versions must go on with (B15): ``python -m tests.write_fixture``.

tests/written/VERSION/comparison/    a run that is complete, and one that was killed after a checkpoint in its middle
tests/written/VERSION/recorded.json  the values that both record when nothing stops them, and the environment

Pictures, the report and the checkpoints that nothing reads again are left out. Never write a version's anew: its files are
what that version wrote, and a break with them is to be said in the README.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from children import fork, wait  # noqa: E402

from unigen.checkpoints import Checkpoints  # noqa: E402
from unigen.cli import main  # noqa: E402
from unigen.environment import environment  # noqa: E402

__all__ = ["COMMAND", "STEP", "WRITTEN", "values"]

WRITTEN, STEP = Path(__file__).parent / "written", 12
COMMAND = "compare --data ring --routines wake_sleep gan --steps 20 --seeds 0 --hidden 4 --batch-size 32 --particles 3".split()
COMMAND += "--test-size 40 --evaluations 2 --out comparison".split()


def values(comparison: Path) -> dict[str, Any]:
    """Return the phases' values of each run by step, and its evaluations."""
    return {
        file.parts[-3]: [
            {name: line[name] for name in ("step", "values", "evaluation") if name in line}
            for line in map(json.loads, file.read_text(encoding="utf-8").splitlines())
        ]
        for file in sorted(comparison.glob("*/seed-0/metrics.jsonl"))
    }


def _killed() -> None:
    """Run the command, and end it as ``kill -9`` does after the checkpoint of a step of the second routine."""
    save = Checkpoints.save

    def last(self: Checkpoints, step: int, content: Any) -> Path:
        path = save(self, step, content)
        if step == STEP and "gan" in self.directory.parts:
            os._exit(137)
        return path

    Checkpoints.save = last  # type: ignore[method-assign]
    main(COMMAND)


def _write(target: Path) -> None:
    os.environ["CI"] = "1"
    platform.release = lambda: ""  # of the kernel, which decides nothing
    with tempfile.TemporaryDirectory() as root:
        for name, work, expected in (("whole", lambda: main(COMMAND), 0), ("killed", _killed, 137)):
            Path(root, name).mkdir()
            os.chdir(Path(root, name))
            if (code := wait(fork(work, Path(root, f"{name}.txt")))) != expected:
                sys.exit(f"{name}: exit code {code}: {Path(root, f'{name}.txt').read_text()[-400:]}")
        os.chdir(root)
        made = Path("killed", "comparison")
        for path in [*made.rglob("*.png"), *made.rglob("report.html"), *made.rglob("lock")]:
            path.unlink()
        shutil.rmtree(made / "wake_sleep" / "seed-0" / "checkpoints")
        older, _ = sorted((made / "gan" / "seed-0" / "checkpoints").iterdir())
        shutil.rmtree(older)
        target.mkdir(parents=True)
        recorded = {"values": values(Path("whole", "comparison")), "environment": environment("cpu")}
        (target / "recorded.json").write_text(json.dumps(recorded) + "\n", encoding="utf-8")
        shutil.copytree(made, target / "comparison")


if __name__ == "__main__":
    _write(WRITTEN / version("unigen"))
