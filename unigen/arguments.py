"""Reading the command line: tyro reads it, and a refusal is one sentence with the key, what was got and what was expected."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import operator
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import tyro

from unigen.names import nearest
from unigen.settings import Kind, UsageError, kind_of

__all__ = ["mistake", "parse"]

_HELP = ("-h", "--help", "--tyro-")
_MAY_BE_EMPTY = ("--hidden",)  # without hidden layers a network is linear


def parse(arguments: Sequence[str], commands: Mapping[str, type], description: str) -> Any:
    """Return the dataclass of ``commands`` that the arguments fill in.

    Raises ``UsageError`` for arguments that cannot be read, ``SystemExit`` with code 0 where help was asked for.
    """
    choices: list[Any] = [Annotated[made, tyro.conf.subcommand(name)] for name, made in commands.items()]
    union: Any = functools.reduce(operator.or_, choices)
    if not any(argument.startswith(_HELP) for argument in arguments):
        wrong = mistake(arguments, commands)
        if wrong:
            raise UsageError(wrong)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # tyro's own words span many lines
            return tyro.cli(union, prog="unigen", description=description, args=list(arguments))
    except SystemExit as ended:
        if not ended.code:
            raise
    command = arguments[0] if arguments and arguments[0] in commands else ""
    raise UsageError(f"these arguments cannot be read; use what unigen {command} --help lists".replace("  ", " "))


def mistake(arguments: Sequence[str], commands: Mapping[str, type]) -> str:
    """Return in one sentence the first mistake in arguments, or nothing.

    >>> from unigen.settings import Settings
    >>> mistake(["compare", "--stepz", "3"], {"compare": Settings})
    "compare has no option --stepz; did you mean '--steps'?"
    """
    if not arguments:
        return f"a command is missing; valid: {', '.join(commands)}"
    command, *rest = arguments
    if command not in commands:
        return f"no command {command!r:.80}; {nearest(command[:80], commands)}"
    options, places, strays = _options(commands[command]), _places(commands[command]), []
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if not _is_flag(flag):
            strays.append(flag + equals + value)
            continue
        name = flag.replace("_", "-")
        if name not in options:
            shown = flag if flag.isprintable() and len(flag) <= 80 else f"{flag!r:.80}"
            return f"{command} has no option {shown}; {nearest(flag[:80], options)}"
        kind = options[name]
        values = [value] if equals else []
        while not equals and rest and not _is_flag(rest[0]) and kind.base is not bool and (kind.many or not values):
            values.append(rest.pop(0))
        if kind.base is bool and equals:
            return f"{name} takes no value; got {value!r:.80}"
        if kind.base is not bool and not values and name not in _MAY_BE_EMPTY:
            return f"{name} wants {kind}; got nothing"
        for given in values:
            if not kind.reads(given):
                return f"{name} wants {kind}; got {given!r:.80}"
    if len(strays) > len(places) and not any(kind.many for kind, _ in places.values()):
        spare = strays[len(places)][:80]
        return f"{command} takes no argument {spare!r}; an option starts with --, {nearest('--' + spare, options)}"
    missing = [name for name, (_, required) in places.items() if required][len(strays) :]
    return f"{command} wants a {missing[0]}; got nothing" if missing else ""


def _options(command: type) -> dict[str, Kind]:
    """Return the kind of each option of a command."""
    options = {}
    for name, hint in typing.get_type_hints(command, include_extras=True).items():
        if typing.get_origin(hint) is not Annotated:
            kind = options["--" + name.replace("_", "-")] = kind_of(hint)
            if kind.base is bool:
                options["--no-" + name.replace("_", "-")] = kind
    return options


def _places(command: type) -> dict[str, tuple[Kind, bool]]:
    """Return the kind of each positional argument of a command, and whether it must be given."""
    required = {entry.name: entry.default is dataclasses.MISSING for entry in dataclasses.fields(command)}
    hints = typing.get_type_hints(command, include_extras=True).items()
    return {
        name: (kind_of(typing.get_args(hint)[0]), required[name])
        for name, hint in hints
        if typing.get_origin(hint) is Annotated
    }


def _is_flag(token: str) -> bool:
    """Say whether a token is an option and no value: a negative number is a value."""
    return token.startswith("-") and len(token) > 1 and not Kind(float).reads(token)
