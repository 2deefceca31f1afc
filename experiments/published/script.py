"""What a script of a published table does: read its options, carry out its studies, write tables, numbers and figure."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from published.grid import Examination, Record, Study, carry_out
from published.tables import Claim, above, claims_table, draw, results_table
from unigen.arguments import mistake
from unigen.data import DataError
from unigen.durable import write_json, write_whole
from unigen.environment import environment
from unigen.failures import failure
from unigen.figures import number
from unigen.lock import DirectoryInUse
from unigen.phases import check_number
from unigen.routines import by_name
from unigen.settings import UsageError
from unigen.signals import asked_to_end
from unigen.stored import check_path

__all__ = ["check_numbers", "command_line", "made_folder", "named", "publish"]


PLACES = ("directory", "out", "data_root")
SILENT = ("train", "progress", "recorded", "device", "together")  # options that no figure depends on, like the places
# options that choose runs, and change none
CELLS = ("seeds", "networks", "routines", "layers", "k")


def named(routines: Sequence[str]) -> tuple[str, ...]:
    """Return the names that routines have in records, each once; ``UsageError`` for a text that is no routine.

    >>> named(["vimco(k=5)", "vimco( 5 )", "nvil"])
    ('vimco(5)', 'nvil')
    """
    try:
        return tuple(dict.fromkeys(by_name(text).name for text in routines))
    except ValueError as error:
        raise UsageError(f"--routines: {error}") from None


def check_numbers(options: Any, **bounds: tuple[float, float]) -> None:
    """Refuse a number of the options, each of several, that is not from the least to the greatest; ``UsageError``."""
    for name, (least, most) in bounds.items():
        value, option = getattr(options, name), f"--{name.replace('_', '-')}"
        if value == ():
            raise UsageError(f"{option} wants at least one; got nothing")
        for entry in value if isinstance(value, tuple) else (value,):
            try:
                check_number(option, entry, most, least)
            except ValueError as error:
                raise UsageError(str(error)) from None


def made_folder(path: Path, file: bool = False) -> None:
    """Make the folder that ``--out`` names, or that of the ``file`` it names; ``UsageError`` where it cannot be."""
    folder = path.parent if file else path
    if os.path.isfile(folder):
        raise UsageError(f"--out {path} is or goes through a file; name a folder")
    if file and os.path.isdir(path):
        raise UsageError(f"--out {path} is a folder; name a file")
    check_path(folder if os.path.isfile(path) else path, "--out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {path} cannot be made: {error.strerror}; give another name") from None


def publish(
    name: str,
    command: str,
    options: Any,
    studies: Sequence[Study],
    examination: Examination,
    claims: Sequence[Claim],
    baseline: Callable[[str], str],
) -> int:
    """Carry out the studies, and after each seed of each write NAME.md, NAME.json and NAME.png to ``options.out``.

    Prints the tables and returns the exit code: 1 where a run failed.
    """
    if examination.particles < 1 or examination.test_size < 0:
        given = f"{examination.particles} and {examination.test_size}"
        raise UsageError(f"--particles is at least 1 and --test-size at least 0; got {given}")
    out = Path(options.out)
    if any(path.exists() and not path.is_dir() for path in (out, *out.parents)):
        raise UsageError(f"--out {options.out} is or goes through a file; name a folder")
    settings = {key: value for key, value in dataclasses.asdict(options).items() if key not in (*PLACES, *SILENT)}
    wanted = {
        (study.name, name, seed) for study in studies for name in study.settings.routines for seed in options.seeds
    }
    kept = _recorded(out / f"{name}.json", settings) if options.recorded else []
    others = [record for record in kept if record.run not in wanted]  # which stay in the file
    kept = [record for record in kept if record.run in wanted]
    records, text = list(kept), ""
    where = Path(options.directory)
    carried = carry_out(studies, where, command, examination, options.train, options.progress, kept, options.together)
    for found in carried:
        records += found
        if not records:
            continue
        errors = [run.standard_error for run in records]
        rows = (
            f"{examination.test_size} test rows spread evenly over the test set"
            if examination.test_size
            else "all test rows"
        )
        text = "\n".join([
            f"`{command}`",
            "",
            f"NLL: the importance-weighted bound with K = {examination.particles} on {rows}, mean ± standard error over seeds. "
            f"Its standard error over test rows, {number(min(errors), 2)} to {number(max(errors), 2)}, is common to all "
            "routines, and largely cancels from their differences"
            f"{'; print is of all test rows, so a difference from it has it in' * bool(examination.test_size)}. "
            "Unverified: not read in print."
            + _several(records),
            "",
            *results_table(studies, records, baseline, examination.units, bool(examination.test_size)),
            "",
            "Verdicts by the 95% t interval of the paired difference over seeds:",
            "",
            *claims_table(studies, records, claims),
            "",
            *above(studies, records),
        ]) + "\n"  # fmt: skip
        content = {"command": command, "settings": settings, "environment": environment("cpu")}
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / f"{name}.json", content | {"runs": [dataclasses.asdict(run) for run in [*records, *others]]})
        write_whole(out / f"{name}.md", text.encode())
        draw(out / f"{name}.png", studies, records)
    print(text)
    return 0 if len(records) == len(wanted) or not options.train else 1


def _recorded(path: Path, settings: Mapping[str, Any]) -> list[Record]:
    """Return the runs of a saved table; refused where it has other settings, but for which runs there are."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        saved, code = content["settings"], content["environment"]["code"][:12]
        runs = [Record(**{"code": code} | run) for run in content["runs"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--recorded: {path} holds no table ({type(error).__name__}); move it away") from None
    for key in settings.keys() - set(CELLS):
        if json.loads(json.dumps(settings[key])) != saved.get(key):
            flag = f"--{key.replace('_', '-')}"
            raise UsageError(f"--recorded: the runs in {path} have {flag} {saved.get(key)}, not {settings[key]}")
    return runs


def _several(records: Sequence[Record]) -> str:
    codes = dict.fromkeys(record.code for record in records)
    return "" if len(codes) == 1 else f" The runs are of {len(codes)} states of the code, named in the JSON."


def plain(name: str, arguments: Sequence[str]) -> str:
    """Return the command without the options that no figure depends on.

    >>> plain("it", ["--epochs", "3", "--out", "there", "--no-train", "--directory=here"])
    'python experiments/it.py --epochs 3'
    """
    kept, rest = [], list(arguments)
    while rest:
        entry = rest.pop(0)
        flag, equals, _ = entry.partition("=")
        key = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
        if not flag.startswith("--") or key not in (*PLACES, *SILENT):
            kept.append(entry)
        elif key in PLACES and not equals and rest:
            rest.pop(0)
    return shlex.join(["python", f"experiments/{name}.py", *kept])


def command_line(
    name: str, options: type, description: str, main: Callable[[Any, str], int], arguments: Sequence[str]
) -> int:
    """Read the arguments, run ``main(options, command)``, and return the exit code; a refusal is one sentence on stderr.

    Exit codes: 0 done, 1 a run failed, 2 a wrong option, 3 data that cannot be had, 130 or 143 interrupted.
    """
    try:
        wrong = "" if {"-h", "--help"} & set(arguments) else mistake([name, *arguments], {name: options})
        if wrong:
            raise UsageError(wrong)
        with asked_to_end(at_once=True):
            chosen = tyro.cli(options, prog=f"python experiments/{name}.py", description=description, args=arguments)
            return main(chosen, plain(name, arguments))
    except DataError as error:
        said, code = str(error), 3
    except (UsageError, DirectoryInUse) as error:
        said, code = str(error), 2
    except KeyboardInterrupt as error:
        said, code = "interrupted; the same command goes on where it was", getattr(error, "code", 130)
    except OSError as error:
        said, code = failure(error)["error"], 1
    print(f"{name}: {' '.join(said.split())}", file=sys.stderr)
    return code
