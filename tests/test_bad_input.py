"""Bad input: mutated command lines and configurations, and a table of bad data. Never a traceback, nothing written.

A wrong setting ends with exit code 2, data that cannot be had with 3, in one line with the key, what was got and what was
expected; bad data are refused by a typed error before the first step, or handled as the table says.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from torch import Tensor

from unigen import cli, routines
from unigen.arguments import _options
from unigen.data import DataError, Dataset, Loader, load
from unigen.names import nearest
from unigen.networks import Baseline, fingerprint, networks
from unigen.pair import Pair, PairError
from unigen.pairs import adversarial, flow, latent, mixture, rbm, sigmoid_belief
from unigen.phases import Routine
from unigen.settings import BOUNDS, UsageError, settings_of
from unigen.training import TrainingError, fit

TINY = ("--data", "ring", "--routines", "vae", "--seeds", "0", "--hidden", "8", "--steps", "1", "--batch-size", "32",
        "--particles", "2", "--test-size", "20", "--evaluations", "0")  # fmt: skip
EXPECTED = re.compile(
    r"wants|must|valid:|did you mean|takes|give|name |at least|not there|expected|use |drop|write it as|different|are a mapping"
)


class Reached(BaseException):
    """A command line that was meant to be wrong was taken for right."""


def run(*arguments: str) -> tuple[int, str, str]:
    """Run ``unigen`` in this process; return its exit code and what it printed to the two streams."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main(list(arguments))
    except Reached:
        raise AssertionError(f"taken for right: {arguments}") from None
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


def refused(arguments: list[str], words: tuple[str, ...], codes: tuple[int, ...] = (2,)) -> str:
    """Require that a command line is refused in one sentence with these words (of ``a|b``, one of them)."""
    code, out, err = run(*arguments)
    assert code in codes and out == "", (code, out, err)
    assert (
        (err.startswith("unigen: ") or arguments[0] == "theory")
        and err.count("\n") == 1
        and err.endswith("\n")
        and len(err) < 900
    ), err
    assert err[:-1].isprintable() and "Traceback" not in err and EXPECTED.search(err), err
    for word in words:
        assert any(choice in err for choice in word.split("|")), (word, err)
    return err


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small comparison that is finished."""
    out = tmp_path_factory.mktemp("bad-input") / "ring"
    assert run("compare", *TINY, "--out", str(out))[0] == 0
    return out


@pytest.fixture(scope="module")
def empty(comparison: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory in which nothing may be written, and where nothing may begin to train."""

    def reached(*_: Any, **__: Any) -> None:
        raise Reached

    folder = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(cli, "compare", reached)
        patch.setattr(cli, "describe", reached)
        yield folder
    assert list(folder.iterdir()) == []


# -- command lines -----------------------------------------------------------------------------------------------------

BASE = {
    "compare": ["--routines", "vae", "--steps", "2"],
    "train": ["--routine", "vae", "--steps", "2"],
    "list": ["routines"],
    "theory": [],
}
NAMES = ("data", "pair", "networks", "activation", "likelihood", "binarization", "engine", "device")
TEXTS = st.text(max_size=12) | st.sampled_from(
    [
        "",
        " ",
        "\0",
        "\n",
        "\x1b[31m",
        "\u202e",
        "\ud800",
        "\udcff",
        "é",
        "None",
        "True",
        "x" * 5000,
        "../../x",
        "/",
        "{}",
        "-1e3",
    ]
)
TYPO = st.sampled_from(["drop", "double", "swap", "capital", "tail"])


def misspelt(name: str, how: str, at: int) -> str:
    """Return a name with one letter dropped, doubled, swapped with the next, in capitals, or a letter more."""
    at %= max(1, len(name) - 1)
    return {
        "drop": name[:at] + name[at + 1 :],
        "double": name[:at] + name[at] + name[at:],
        "swap": name[:at] + name[at + 1 : at + 2] + name[at] + name[at + 2 :],
        "capital": name[:at] + name[at].upper() + name[at + 1 :],
        "tail": name + "s",
    }[how]


@st.composite
def command_lines(draw: st.DrawFn) -> tuple[list[str], tuple[str, ...]]:
    """Return a command line with one mistake in it, and the words that its refusal must hold."""
    command = draw(
        st.sampled_from(["compare", "compare", "compare", "train", "sample", "evaluate", "report", "list", "theory"])
    )
    options = _options(cli._COMMANDS[command])
    base = [command, *BASE.get(command, ["DIRECTORY"])]
    kinds = ["unknown", "stray", "command", "nothing"]
    if options:
        kinds += ["misspelt", "type", "type", "missing"]
    if command in ("compare", "train"):
        kinds += ["bounds"] * 3 + ["name"] * 3 + ["routine", "out", "budget", "data", "twice"]
    kind = draw(st.sampled_from(kinds))
    flag = draw(st.sampled_from(sorted(options))) if options else ""
    if kind == "command":
        name = misspelt(command, draw(TYPO), draw(st.integers(0, 9)))
        return (
            ([name, *base[1:]], ("no command", f"{name!r:.80}"))
            if name not in cli._COMMANDS
            else (["", *base], ("no command",))
        )
    if kind == "nothing":
        return [], ("command is missing", "compare")
    if kind == "unknown":
        name = "--" + draw(st.text(st.characters(codec="utf-8", exclude_characters="="), min_size=1, max_size=12))
        if name.replace("_", "-") in options or name.startswith(("--help", "--tyro")) or name[2:3].isdigit():
            name = "--no-such-option"
        return [*base, name, *draw(st.lists(st.just("3"), max_size=1))], ("no option", "valid:|did you mean")
    if kind == "stray":
        if command == "theory":  # it takes any number of names
            return ["theory", draw(st.sampled_from(["chek", "lst", "é"]))], (
                "theory|identit|nothing|did you mean|valid",
            )
        text = draw(st.text(st.characters(codec="utf-8", exclude_characters="-"), min_size=1, max_size=9))
        if command == "evaluate":  # it takes any number of directories
            return ["evaluate", "nowhere-" + draw(st.sampled_from("abc"))], ("nowhere-",)
        return [command, *([] if command in ("compare", "train") else base[1:]), text], (f"{text!r}",)
    if kind == "misspelt":
        name = "--" + misspelt(flag[2:], draw(TYPO), draw(st.integers(0, 9)))
        if name in options or not re.fullmatch(r"--[A-Za-z][A-Za-z-]*", name):
            name = flag + "x"
        near = nearest(name, options)
        return [*base, name, "3"], ("no option", name, near if flag in near else "valid:|did you mean")
    if kind in ("type", "missing"):
        wanted = [
            name
            for name, kind_ in options.items()
            if kind_.base is not bool and (kind == "missing" or kind_.base is not str)
        ]
        wanted = [name for name in wanted if kind == "type" or name != "--hidden"]  # which may be empty
        if not wanted:
            return [*base, "--no-such-option"], ("no option",)
        flag = draw(st.sampled_from(wanted))
        if kind == "missing":
            return [*base, flag], (flag, f"wants {options[flag]}", "got nothing")
        bad = ["x", "1.5e", "1,5", "0x10", "é", "", " ", "3 4", "[3]", "True", "1e", "\0", "9" * 5000 + "x"]
        bad += ["1.5", "nan", "1e3", "inf"] if options[flag].base is int else []
        bad += [] if options[flag].optional else ["None"]
        value = draw(st.sampled_from(bad))
        joined = draw(st.booleans()) and not options[flag].many
        return [*base, *([f"{flag}={value}"] if joined else [flag, value])], (flag, "wants", f"{value!r:.60}")
    if kind == "bounds":
        name = draw(st.sampled_from([name for name in BOUNDS if "--" + name.replace("_", "-") in options]))
        low, high = BOUNDS[name]
        over = (
            ["9" * 40, str(int(high) + 1)]
            + ([] if name in ("seeds", "test_size", "evaluations") else ["0"])
            + ["-1", "-7"]
        )
        over += ["nan", "inf", "-inf", "1e400", "1e30"] if options["--" + name.replace("_", "-")].base is float else []
        value = draw(st.sampled_from(over))
        flag = "--" + name.replace("_", "-")
        base = [command, *(["--routines", "vae"] if command == "compare" else [])]  # no other budget
        return [*base, flag, value], (
            flag,
            "must|wants different",
            str(float(value) if options[flag].base is float else value),
        )
    if kind == "name":
        name = draw(st.sampled_from([name for name in NAMES if name != "pair" or command == "compare"]))
        text = draw(TEXTS)
        if text in ("None", "mlp", "cpu", "auto", "") and name in ("binarization", "networks", "device", "likelihood"):
            text = "nmoe"
        return [*base, f"--{name}={text}"], (f"--{name}", "valid:|did you mean|there|characters")
    if kind == "routine":
        flag = "--routines" if command == "compare" else "--routine"
        text = draw(
            TEXTS
            | st.sampled_from(["vea", "iwae(five)", "iwae(", "iwae(5))", "iwae(k=0)", "iwae(0.5)", "vae()()", "gan(1)"])
        )
        text = "vea" if text.partition("(")[0].strip() in routines.catalogue() and "(" not in text else text
        return [command, f"{flag}={text}"], ("routine",)
    if kind == "out":
        value = draw(st.sampled_from(["a\0b", "x" * 300, "\ud800", "/dev/null", "/dev/null/x", "y/" * 3000]))
        return [*base, f"--out={value}"], ("--out",)
    if kind == "budget":
        other = draw(st.sampled_from(["--epochs", "--seconds"]))
        return [*base, other, "3"], ("--steps", other, "drop one")
    if kind == "data":
        name = draw(st.sampled_from(["mnist", "fashion_mnist", "binarized_mnist"]))
        return [*base, "--data", name, "--data-root", "nowhere"], ("nowhere", name)
    return ["compare", "--routines", "vae", "vae", "--steps", "2"], ("--routines", "twice")


def check_line(line: tuple[list[str], tuple[str, ...]], comparison: Path) -> None:
    arguments, words = line
    arguments = [str(comparison) if argument == "DIRECTORY" else argument for argument in arguments]
    refused(arguments, words, (3,) if "nowhere" in arguments else (2,))


LINES = dict(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], database=None
)


@settings(max_examples=300, derandomize=True, **LINES)  # type: ignore[arg-type]
@given(line=command_lines())
def test_a_command_line_with_a_mistake_is_refused(comparison, empty, line):
    check_line(line, comparison)


@pytest.mark.slow
@settings(max_examples=4000, derandomize=False, **LINES)  # type: ignore[arg-type]
@given(line=command_lines())
def test_4000_command_lines_with_a_mistake_are_refused(comparison, empty, line):
    check_line(line, comparison)


@pytest.mark.parametrize("command", sorted(cli._COMMANDS))
def test_every_option_misspelt_mistyped_or_without_a_value_is_refused(comparison, empty, command):
    base = [command, *BASE.get(command, [str(comparison)])]
    for flag, kind in _options(cli._COMMANDS[command]).items():
        refused([*base, flag + "x", "1"], ("no option", flag + "x"))
        if kind.base is bool:
            refused([*base, flag + "=3"], (flag, "no value", "'3'"))
            continue
        if flag != "--hidden":
            refused([*base, flag], (flag, f"wants {kind}", "got nothing"))
        if kind.base is not str:
            refused([*base, flag, "x"], (flag, f"wants {kind}", "got 'x'"))


def test_a_right_command_line_is_not_refused(comparison, empty):
    """So that the refusals above are of the mistakes."""
    for arguments in (
        ["compare", *BASE["compare"]],
        ["train", *BASE["train"]],
        ["compare", "--seconds", "1", "--no-dequantize"],
    ):
        with pytest.raises(Reached):
            cli.main(arguments)
    assert run("list", "routines")[0] == 0 and run("compare", "--help")[0] == 0


# -- configurations ----------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


OPTIONAL = (
    "steps",
    "epochs",
    "seconds",
    "latent",
    "binarization",
    "learning_rate",
    "final_learning_rate",
    "data_root",
    "out",
)


@st.composite
def configurations(draw: st.DrawFn) -> Callable[[dict[str, Any]], tuple[str, ...]]:
    """Return a function that puts one mistake into settings in place, and returns the words that the refusal must hold."""
    kind = draw(st.sampled_from(["add", "rename", "type", "type", "bounds", "bounds", "name", "all"]))
    number, value, how = draw(st.integers(0, 10**6)), draw(VALUES), draw(TYPO)
    extra = draw(st.text(min_size=1, max_size=10))

    def change(stored: dict[str, Any]) -> tuple[str, ...]:
        names = sorted(stored)
        name = names[number % len(names)]
        option = "--" + name.replace("_", "-")
        if kind == "add":
            stored[extra if extra not in stored else "_target_"] = value
            return ("no setting", "valid:|did you mean")
        if kind == "rename":
            stored[misspelt(name, how, number) if misspelt(name, how, number) not in stored else name + "x"] = (
                stored.pop(name)
            )
            return ("no setting", "valid:|did you mean")
        if kind == "type":
            wrong = [{"a": 1}, [[1]], [None], {}, "x", True, 3.5, [1.5], ["x"], None]
            right: tuple[type, ...] = {bool: (bool,), int: (int,), float: (float, int), str: (str,)}.get(
                type(stored[name]), ()
            )
            optional = stored[name] is None
            fits = [bad for bad in wrong if not isinstance(bad, right) or (isinstance(bad, bool) and bool not in right)]
            if isinstance(stored[name], list):
                fits = [bad for bad in wrong if bad not in (["x"],) or name != "routines"]
            if optional:
                fits = [{"a": 1}, [[1]], {}, [3], True]
            fits = [bad for bad in fits if bad is not None or name not in OPTIONAL]
            stored[name] = fits[number % len(fits)]
            return (option,)
        if kind == "bounds":
            name = sorted(BOUNDS)[number % len(BOUNDS)]
            bad = [-1, int(BOUNDS[name][1]) + 1, 10**30][number % 3]
            stored[name] = [bad] if isinstance(stored[name], list) else bad
            return ("--" + name.replace("_", "-"), "must|wants different", str(bad))
        if kind == "name":
            name = NAMES[number % 7]
            stored[name] = f"{extra} no name"
            return (f"--{name}", "valid:|did you mean")
        replaced = [None, [], "vae", 3, [["steps", 1]], True]
        stored.clear()
        stored["\0replace"] = replaced[number % len(replaced)]
        return ("settings are a mapping",)

    return change


def check_configuration(change: Callable[[dict[str, Any]], tuple[str, ...]], comparison: Path) -> None:
    path = comparison / "config.json"
    good = path.read_bytes()
    before = {file: file.stat().st_mtime_ns for file in comparison.rglob("*") if file != path}
    config = json.loads(good)
    words = change(config["settings"])
    if "\0replace" in config["settings"]:
        config["settings"] = config["settings"]["\0replace"]
    note(json.dumps(config["settings"]))
    try:
        path.write_bytes(json.dumps(config).encode(errors="surrogatepass"))
        refused(["sample", str(comparison)], (*words, "config.json"))
    finally:
        path.write_bytes(good)
    assert {file: file.stat().st_mtime_ns for file in comparison.rglob("*") if file != path} == before


@settings(max_examples=150, derandomize=True, **LINES)  # type: ignore[arg-type]
@given(change=configurations())
def test_a_configuration_with_a_mistake_is_refused(comparison, empty, change):
    check_configuration(change, comparison)


@pytest.mark.slow
@settings(max_examples=1000, derandomize=False, **LINES)  # type: ignore[arg-type]
@given(change=configurations())
def test_1000_configurations_with_a_mistake_are_refused(comparison, empty, change):
    check_configuration(change, comparison)


@settings(max_examples=200, derandomize=True, **LINES)  # type: ignore[arg-type]
@given(
    stored=st.dictionaries(
        st.sampled_from([*BOUNDS, *NAMES, "out", "routines"]) | st.text(max_size=5), VALUES, max_size=4
    )
    | VALUES
)
def test_whatever_the_settings_are_they_are_read_or_refused(stored):
    try:
        read = settings_of(stored)
    except UsageError as error:
        assert EXPECTED.search(str(error)) or "mapping" in str(error) or "characters" in str(error), str(error)
    else:
        assert set(stored) <= vars(read).keys()


def test_a_configuration_without_a_setting_reads_as_its_default(comparison, empty, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(comparison, copied)
    config = json.loads((copied / "config.json").read_text())
    for name in sorted(config["settings"]):
        less = config | {"settings": {key: value for key, value in config["settings"].items() if key != name}}
        (copied / "config.json").write_text(json.dumps(less))
        assert run("sample", str(copied), "--n", "2")[0] in (0, 2), name


# -- data --------------------------------------------------------------------------------------------------------------

ROWS, WIDTH = 8, 6


def bits(rows: int = ROWS) -> Tensor:
    return (torch.rand(rows, WIDTH) < 0.5).float()


def reals(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, WIDTH)


def shared() -> Any:
    return networks("mlp", (WIDTH,), 2, hidden=(4,))


WORLDS: dict[str, tuple[Routine, Callable[[], Pair], Callable[[], Tensor]]] = {
    "latent": (routines.vae, lambda: latent(shared()), bits),
    "latent of reals": (routines.vae, lambda: latent(shared(), "normal"), reals),
    "latent of grey levels": (
        routines.vae,
        lambda: latent(shared(), "discretized_logistic"),
        lambda: (reals() > 0).float(),
    ),
    "belief network": (
        routines.nvil,
        lambda: sigmoid_belief(WIDTH, (3,), psi={"baseline": Baseline(WIDTH)}),
        bits,
    ),
    "machine": (routines.contrastive_divergence, lambda: rbm(WIDTH, 3), bits),
    "mixture of reals": (routines.em(False), lambda: mixture(2, reals()), reals),
    "mixture of bits": (routines.em, lambda: mixture(2, bits(), likelihood="bernoulli"), bits),
    "game": (routines.gan, lambda: adversarial(shared()), bits),
    "flow": (routines.maximum_likelihood, lambda: flow(WIDTH, steps=1), reals),
}
BINARY = {"latent", "belief network", "machine", "mixture of bits"}
UNIT = BINARY | {"latent of grey levels", "game"}
ALL = set(WORLDS)


def with_value(value: float) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x[2, 3] = value
        return x

    return change


REFUSED: dict[str, tuple[Callable[[Tensor], Any], set[str], str]] = {
    "NaN": (with_value(math.nan), ALL, "NaN|not finite"),
    "infinity": (with_value(math.inf), ALL, "infinity|not finite"),
    "minus infinity": (with_value(-math.inf), ALL, "infinity|not finite"),
    "all NaN": (lambda x: x * math.nan, ALL, "NaN|not finite"),
    "one value of 2": (with_value(2.0), UNIT, r"\[0, 2\]|\[0, 2\]"),
    "one value of -1": (with_value(-1.0), UNIT, r"\[-1, 1\]"),
    "grey values": (lambda x: x * 0.3 + 0.3, {"machine", "latent of grey levels"}, "cannot take"),
    "bytes": (lambda x: (x > 0) * 255.0, UNIT, r"\[0, 255\]"),
    "centred": (lambda x: x * 2 - 1 + 3 * (x < -9), UNIT, "cannot take"),
    "far off": (lambda x: x.abs() * 0 + 1e30, ALL, "cannot take|cannot run|is -inf|not finite"),
    "almost binary": (lambda x: x.clamp(1e-3, 1 - 1e-3), {"machine"}, "binarize"),
    "integers": (lambda x: x.long(), ALL - {"flow"}, "int64 and the parameters are float32"),
    "bytes of torch": (lambda x: x.abs().to(torch.uint8), ALL - {"flow"}, "uint8 and the parameters are float32"),
    "truths": (lambda x: x > 0, ALL, "bool"),
    "double": (lambda x: x.double(), ALL, "float64 and the parameters are float32"),
    "half": (lambda x: x.half(), ALL - {"flow"}, "float16 and the parameters are float32"),
    "complex": (lambda x: x.to(torch.complex64), ALL, "complex"),
    "sparse": (lambda x: x.to_sparse(), ALL, "sparse_coo"),
    "without numbers": (lambda x: x.to("meta"), ALL, "meta"),
    "no row": (lambda x: x[:0], ALL, "empty batch"),
    "no column": (lambda x: x[:, :0], ALL, "empty batch"),
    "one number": (lambda x: x[0, 0], ALL, "cannot run|shape"),
    "one row without its dimension": (lambda x: x[0], ALL, "shape|cannot run"),
    "a dimension more": (lambda x: x[:, None], ALL, "shape|cannot run|neither per datum"),
    "images": (lambda x: x.reshape(ROWS, 2, 3), ALL, "cannot run|shape"),
    "a column more": (lambda x: torch.cat([x, x[:, :1]], 1), ALL, "cannot run|shape"),
    "a column less": (lambda x: x[:, 1:], ALL, "cannot run|shape"),
    "a column alone": (lambda x: x[:, :1], ALL, "cannot run|shape"),
    "transposed": (lambda x: x.t(), ALL, "cannot run|shape"),
    "numpy": (lambda x: {"x": x.numpy()}, ALL, "ndarray.*torch tensor"),
    "lists": (lambda x: {"x": x.tolist()}, ALL, "list.*torch tensor"),
    "by another name": (lambda x: {"y": x}, ALL, "'y' is no argument of the model"),
    "two of them": (lambda x: (x, x), ALL, "takes x; got 2 values"),
    "nothing": (lambda x: {}, ALL, "x"),
}
"""What is wrong with the data, the worlds that it is wrong in, and what the error says."""


@pytest.mark.parametrize("name", REFUSED)
def test_bad_data_are_refused_before_the_first_step(name):
    spoil, worlds, words = REFUSED[name]
    for world in sorted(worlds):
        routine, build, data = WORLDS[world]
        torch.manual_seed(7)
        pair, x = build(), data()
        x[0, 0], x[1, 1] = 0.0, 1.0
        before = fingerprint(pair)
        with pytest.raises((DataError, PairError, TrainingError)) as caught:
            fit(spoil(x), routine, pair, steps=2, progress=False)
        message = str(caught.value)
        assert re.search(words, message) and "\n" not in message and len(message) < 700, (world, message)
        assert fingerprint(pair) == before, world


HANDLED: dict[str, tuple[Callable[[Tensor], Any], set[str]]] = {
    "one row": (lambda x: x[:1], ALL),
    "a constant": (lambda x: torch.ones_like(x), ALL),
    "a constant column": (lambda x: torch.cat([x[:, :1] * 0, x[:, 1:]], 1), ALL),
    "rows all alike": (lambda x: x[:1].expand(ROWS, WIDTH), ALL),
    "not contiguous": (lambda x: x.t().contiguous().t(), ALL),
    "every second row": (lambda x: torch.cat([x, x])[::2], ALL),
    "with a gradient": (lambda x: x.clone().requires_grad_(), ALL),
    "a parameter": (lambda x: torch.nn.Parameter(x), ALL),
    "by its name": (lambda x: {"x": x}, ALL),
    "minus zero": (lambda x: torch.where(x == 0, -0.0, x), ALL),
    "grey values": (lambda x: x * 0.3 + 0.3, BINARY - {"machine"}),  # the probability of a bit
    "large": (lambda x: x * 100, {"latent of reals", "mixture of reals", "flow"}),
}


@pytest.mark.parametrize("name", HANDLED)
def test_odd_but_sound_data_are_trained_on(name):
    change, worlds = HANDLED[name]
    for world in sorted(worlds):
        routine, build, data = WORLDS[world]
        torch.manual_seed(7)
        pair, x = build(), data()
        before = fingerprint(pair)
        _, history = fit(change(x), routine, pair, steps=2, progress=False)
        assert all(map(math.isfinite, history.values[-1])) and fingerprint(pair) != before, world
        if name == "not contiguous":
            torch.manual_seed(7)
            twin, x = build(), data()
            fit(x, routine, twin, steps=2, progress=False)
            assert fingerprint(twin) == fingerprint(pair), world
        assert x.grad is None


def dataset(rows: Tensor, **changes: Any) -> Dataset:
    options: dict[str, Any] = dict(
        train_labels=None, validation_labels=None, test_labels=None, shape=(rows.shape[-1],), levels=None, binarization="none",
        dequantize=False, citation="",
    )  # fmt: skip
    return Dataset("made", rows, rows[:1], rows[:1], **(options | changes))


CONSTRUCTED: dict[str, tuple[Callable[[], Any], str]] = {
    "labels beyond the classes": (lambda: dataset(bits(), train_labels=torch.full((ROWS,), -1)), "train_labels.*-1"),
    "labels of floats": (lambda: dataset(bits(), train_labels=torch.zeros(ROWS)), "train_labels.*float32"),
    "labels of another length": (lambda: dataset(bits(), train_labels=torch.zeros(3, dtype=torch.int64)), r"\(3,\)"),
    "labels in a list": (lambda: dataset(bits(), train_labels=[0] * ROWS), "train_labels.*list"),
    "rows in a list": (lambda: Dataset(
        "made", bits().tolist(), bits(), bits(), None, None, None, (WIDTH,), None, "none", False, ""), "train.*list"),  # type: ignore[arg-type]
    "rows of numpy": (lambda: Dataset(
        "made", np.zeros((3, WIDTH), np.float32), bits(), bits(), None, None, None, (WIDTH,), None, "none", False, ""),  # type: ignore[arg-type]
        "train.*ndarray"),
    "a split of another width": (lambda: Dataset(
        "made", bits(), bits()[:, 1:], bits(), None, None, None, (WIDTH,), None, "none", False, ""), r"validation.*\(8, 5\)"),
    "a negative shape": (lambda: dataset(bits(), shape=(-WIDTH,)), "shape"),
    "one grey level": (lambda: dataset(bits(), levels=1), "levels"),
    "half a grey level": (lambda: dataset(bits(), levels=2.5), "levels"),
    "grey values to be binarized": (lambda: Loader(dataset(reals(), levels=256, binarization="dynamic"), 2), r"\[0, 1\]"),
    "bytes to be dequantized": (lambda: Loader(dataset(reals() * 255, levels=256, dequantize=True), 2), r"\[0, 1\]"),
    "NaN in the test rows": (lambda: Loader(Dataset(
        "made", bits(), bits(), bits() * math.nan, None, None, None, (WIDTH,), None, "none", False, ""), 2), "made.test.*NaN"),
    "no training row": (lambda: Loader(dataset(bits()[:0]), 1), r"\(0, 6\)"),
    "a batch larger than the data": (lambda: Loader(dataset(bits()), ROWS + 1), f"{ROWS + 1}.*from 1 to {ROWS}"),
    "a batch of nothing": (lambda: Loader(dataset(bits()), 0), "batch_size is 0"),
    "an unknown name": (lambda: load("minst"), "did you mean 'mnist'"),
    "a name that is no text": (lambda: load(3), "3"),  # type: ignore[arg-type]
    "no folder": (lambda: load("mnist", "/nowhere"), "/nowhere/mnist"),
    "a folder with a NUL": (lambda: load("mnist", "a\0b"), "not there|NUL|null"),
    "a file for a folder": (lambda: load("mnist", __file__), "not there"),
    "too many held out": (lambda: load("digits", validation=1547), "1546"),
    "an iterator": (lambda: fit(iter([bits()]), routines.vae, latent(shared()), steps=1, progress=False), "restarted"),
    "an empty loader": (lambda: fit([], routines.vae, latent(shared()), steps=1, progress=False), "no batch"),
    "no loader": (lambda: fit(3, routines.vae, latent(shared()), steps=1, progress=False), "restarted; got int"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTRUCTED)
def test_bad_data_are_refused_where_they_are_made(name):
    make, words = CONSTRUCTED[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        make()
    assert re.search(words, str(caught.value)) and "\n" not in str(caught.value), str(caught.value)


def test_the_tables_are_long_enough():
    assert len(REFUSED) + len(CONSTRUCTED) >= 40 and len(REFUSED) + len(CONSTRUCTED) + len(HANDLED) >= 60


def test_the_last_batch_of_an_epoch_is_smaller_and_no_row_is_lost():
    loader = Loader(dataset(bits(7)), 3)
    assert [len(batch) for batch in loader] == [3, 3, 1]
    _, history = fit(loader, routines.vae, latent(shared()), steps=6, progress=False)
    assert all(math.isfinite(value) for row in history.values for value in row)
