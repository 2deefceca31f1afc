"""List the identities, or check them: python -m identities [check [NAME ...]]."""

from __future__ import annotations

import sys
import time

from identities import Identity, chapter_of, identities, residual
from unigen.pair import nearest

__all__ = ["main"]

DRAWS = 20


def main(names: list[str]) -> int:
    """List every identity for [], check the named ones for ["check", NAME, ...], all of them for ["check"].

    Returns 0, 1 where a residual is above its tolerance, 2 for a name that is none (said on stderr, with the nearest).
    """
    known = identities()
    if not names:
        _list(known)
        return 0
    command, *chosen = names
    if command != "check":
        print(f"nothing to do under {command!r}; valid: check, or nothing, which lists", file=sys.stderr)
        return 2
    for name in chosen:
        if name not in known:
            print(f"no identity {name!r}; {nearest(name, known)}", file=sys.stderr)
            return 2
    return _check([known[name] for name in chosen or known])


def _list(known: dict[str, Identity]) -> None:
    chapter = ""
    for one in known.values():
        if chapter_of(one) != chapter:
            chapter = chapter_of(one)
            print(chapter.replace("_", " "))
        print(f"  {one.name}: {one.statement}\n      {one.source}; {', '.join(one.objects)}")
    print(f"{len(known)} identities")


def _check(chosen: list[Identity]) -> int:
    width, failed, began = max(len(one.name) for one in chosen), 0, time.perf_counter()
    for one in chosen:
        error = residual(one, DRAWS)
        holds = error <= one.tolerance
        failed += not holds
        print(f"{one.name:{width}}  {error:8.1e}  {'holds' if holds else f'FAILS at {one.tolerance:.0e}'}", flush=True)
    took = time.perf_counter() - began
    print(f"{len(chosen)} identities, {DRAWS} draws each, {failed} failed, {took:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
