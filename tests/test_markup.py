"""The report stays a page of its template, whatever the strings in a run directory are: 300 fuzzed ones, 1000 in the slow test.

Every string that reaches the page (names, labels, errors, notes, metrics, settings, names of folders) is replaced by another
of its own; the parsed page then has no tag, attribute, class, style, link or address that the template does not write.
"""

from __future__ import annotations

import json
import random
import re
import secrets
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_report import Page, figure, of_samples, realistic, write_config, write_run

from unigen.report import render, table, table_markdown

PIECES = [
    "<script>alert(1)</script>", "</script>", "</title>", "</style>", "</svg>", "</table>", "<!--", "-->",
    "<![CDATA[", "]]>", "<?php", "<img src=x onerror=alert(1)>", "<svg/onload=alert(1)>",
    "<base href=//evil.example>", "<meta http-equiv=refresh content=0>",
    "<link rel=stylesheet href=//evil.example>", "<iframe srcdoc=x>", "<a href=javascript:alert(1)>",
    "<form action=//evil.example>", "<style>*{background:url(//evil.example)}</style>",
    "<math><mi//xlink:href='data:x'>", "<b onclick=x", "<x/", "<", ">", "\"", "'", "`", "\" onmouseover=\"alert(1)",
    "' style='position:fixed", "\" autofocus onfocus=alert(1) x=\"", "=", "/>", "&lt;", "&#60;", "&#x3c;", "&",
    "&amp;lt;", "{{ 7 * 7 }}", "{% raw %}", "{% endraw %}", "{#", "${7*7}", "javascript:alert(1)",
    "JaVaScRiPt:alert(1)", "data:text/html,<script>alert(1)</script>", "http://evil.example/", "//evil.example/",
    "url(//evil.example)", "expression(alert(1))", "@import '//evil.example'", "\0", "\x1b[31m", "\r\n", "\n", "\t",
    "\u2028", "\u202e", "\ufeff", "\ufffe", "\ud800", "\U0001f600", "é", "z_k^{2}", "max_{<b>}", "^{\"x\"}",
    "E_p(<i>)", "a" * 200, "%3Cscript%3E", "\\u003cscript\\u003e", "|", "](javascript:x)", "**",
]  # fmt: skip


class Strings:
    """Hostile strings, each with a number of its own by which it is found again."""

    def __init__(self, seed: int) -> None:
        self.draw, self.count = random.Random(seed), 0

    def __call__(self, _: object = None) -> str:
        self.count += 1
        pieces = [self.draw.choice(PIECES) for _ in range(self.draw.randint(1, 5))]
        pieces.insert(self.draw.randint(0, len(pieces)), f"q{self.count}q")
        return "".join(pieces)

    def everywhere(self, value: Any, keys: bool = False) -> Any:
        """Replace every string of a tree, and the keys of its mappings too, where ``keys``."""
        if isinstance(value, dict):
            return {self() if keys else key: self.everywhere(part, keys) for key, part in value.items()}
        if isinstance(value, list):
            return [self.everywhere(part, keys) for part in value]
        return self() if isinstance(value, str) else value

    def folder(self, path: Path) -> Path:
        """Make a folder of a hostile name."""
        name = re.sub(r"[/\0\ud800]", "", self())[:60] + f"q{self.count}q"
        (path / name).mkdir(parents=True)
        return path / name


def attacked(path: Path, strings: Strings) -> Path:
    """Write a comparison of two routines, all of whose strings are hostile."""
    write_config(path, ["vae", "gan"], [0, 1])
    config = json.loads((path / "config.json").read_text())
    slugs = [routine["slug"] for routine in config["routines"]]
    open_ended = {name: config[name] for name in ("versions", "hashes")}
    config = strings.everywhere(config) | {name: strings.everywhere(part, True) for name, part in open_ended.items()}
    config["hashes"] = {"weights": {strings(): strings()}, "order": {strings(): {strings(): strings()}}}
    config["networks"]["parameters"] = {strings(): 3, strings(): strings()}
    config["budget"] = {strings(): 4}
    for routine, slug in zip(config["routines"], slugs, strict=True):
        routine["slug"] = slug
    (path / "config.json").write_text(json.dumps(config))
    for slug, seed, status in (
        ("vae", 0, "complete"),
        ("vae", 1, "failed"),
        ("gan", 0, "stopped"),
        ("gan", 1, "complete"),
    ):
        metrics = {
            strings(): {"value": 1.0, "how": strings(), "of": 3, "units": strings()},
            "mmd": {"value": 2.0, "how": strings()},
        }
        # the names of figures that a table leads with stay, so that their columns are there
        figures = [strings.everywhere(of_samples("x", 1.0, units="x", how="x", warning="x")) | {"name": "FID"},
                   strings.everywhere(of_samples("x", 2.0, units="x")) | {"kind": "distance"},
                   strings.everywhere(of_samples("x", 3.0, interval=[1.0, 2.0], how="x", features="x")),
                   strings.everywhere(figure("x", 4.0, units="x", how="x", warning="x"))]  # fmt: skip
        refusals = [{"name": strings(), "why": strings()}, {"name": strings(), "why": strings()}]
        found = {"metrics": metrics, "figures": figures, "refusals": refusals}
        folder = write_run(path, slug, seed, **found, routine=strings(), error=strings(), notes=[strings(), strings()])
        result = json.loads((folder / "result.json").read_text()) | {"status": status}
        result["log_likelihood"] |= {"how": strings(), "kind": strings(), "units": strings()}
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "config.json").write_text(
            json.dumps(strings.everywhere(json.loads((path / "config.json").read_text())))
        )
        phase, kind, of = strings(), strings(), strings()
        lines: list[dict[str, Any]] = [{"step": s, "seconds": s, "values": {phase: 1.0 / s}} for s in (1, 2, 3)]
        evaluation = {"log_likelihood": -1, "kind": kind, "distance": 1, "of": of}
        lines += [{"step": s, "seconds": s, "evaluation": evaluation} for s in (1, 2, 3)]
        (folder / "per_datum.json").write_text(json.dumps({"log_likelihood": [1, 2, strings()], "how": strings()}))
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    odd = strings.folder(path)
    (odd / f"seed-<i onclick=x>q{strings.count}q").mkdir()
    return path


Anatomy = tuple[set[tuple[str, frozenset[str]]], set[str], str, Counter[str]]


def anatomy(path: Path) -> Anatomy:
    """Return a page's (tag, names of attributes), classes, the text of styles and policy, and how many it has of each tag."""
    page = Page(path)
    shapes = {(tag, frozenset(attributes)) for tag, attributes in page.tags}
    classes = {name for _, attributes in page.tags for name in str(attributes.get("class", "")).split()}
    styles = "".join(re.findall(r"<style>.*?</style>|<meta [^>]*>", path.read_text("utf-8"), re.DOTALL))
    # How many indices a formula has, and whether a source is an address, depend on the strings.
    return shapes, classes, styles, Counter(tag for tag, _ in page.tags if tag not in ("sub", "sup", "a"))


def check_page(path: Path, template: Anatomy, strings: Strings) -> int:
    """Refuse a page that has more than its template; return how many of the strings are on it."""
    page, source = Page(path), path.read_text("utf-8")
    shapes, classes, styles, tags = anatomy(path)
    assert shapes <= template[0] and classes <= template[1] and styles == template[2] and tags == template[3]
    assert source.index("Content-Security-Policy") < source.index("<title>")
    assert "49" not in {word for word in page.words if "7 * 7" in word}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("href", "src", "style", "action", "id") or name.startswith("xlink"):
                ours = re.fullmatch(r"#?routine-\d+|data:image/png;base64,[A-Za-z0-9+/=]*", str(value))
                citation = name == "href" and "rel" in attributes and re.match("https?://", str(value))
                assert ours or citation, (name, value)
    shown = page.text + " ".join(str(value) for _, attributes in page.tags for value in attributes.values())
    assert "\x1b" not in table(path.parent) and "\x1b" not in table_markdown(path.parent)
    return sum(f"q{number}q" in shown for number in range(1, strings.count + 1))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Anatomy:
    """What the pages of two harmless directories are made of: a realistic one, and one with everything that may go wrong."""
    root = tmp_path_factory.mktemp("template")
    realistic(root / "one")

    class Harmless(Strings):
        def __call__(self, _: object = None) -> str:
            self.count += 1
            return f"word {self.count}, z_k^2"

        def folder(self, path: Path) -> Path:
            (path / "word").mkdir(parents=True)
            return path / "word"

    attacked(root / "two", Harmless(0))
    one, two = (anatomy(render(root / name)) for name in ("one", "two"))
    assert one[2] == two[2]
    return one[0] | two[0], one[1] | two[1], one[2], two[3]


def fuzz(seed: int, least: int, tmp_path: Path, template: Any) -> int:
    reached, page = 0, 0
    while reached < least:
        strings = Strings(seed * 1000 + page)
        directory = attacked(tmp_path / f"page {page}", strings)
        found = check_page(render(directory), template, strings)
        assert found > 60, "too few strings reach the page for this test to mean anything"
        reached, page = reached + found, page + 1
    print(f"{reached} strings on {page} pages")
    return reached


def test_300_hostile_strings_make_no_markup(tmp_path, template):
    assert fuzz(1, 300, tmp_path, template) >= 300


@pytest.mark.slow
def test_1000_hostile_strings_make_no_markup(tmp_path, template):
    seed = secrets.randbits(31)
    print(f"seed {seed}")
    assert fuzz(seed, 1000, tmp_path, template) >= 1000


PLANTED = [
    "<b>x</b>", "<p onclick=x>", "<p class=evil>", "<a href=http://evil.example>x</a>", "<style>x</style>",
    "<img src=http://evil.example/x.png>", "<script>x</script>", "<p id=x>", "<a href=javascript:x rel=noreferrer>x</a>",
]  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED)
def test_a_page_with_something_planted_in_it_is_found(tmp_path, template, planted):
    strings = Strings(0)
    path = render(attacked(tmp_path / "page", strings))
    path.write_text(path.read_text("utf-8").replace("</body>", planted + "</body>"), "utf-8")
    with pytest.raises(AssertionError):
        check_page(path, template, strings)
