"""Mathematics as MathML, which browsers draw by themselves: the site needs neither a script nor a network.

latex2mathml translates; what browsers set differently from TeX is mended here: limits below an operator, the space after
log, the alignment of columns.
"""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

__all__ = ["mathml", "setup"]

SPACE = "http://www.w3.org/1998/Math/MathML"
LIMITS = {"max", "min", "sup", "inf", "argmin", "argmax"}
FUNCTIONS = {"log", "exp", "det", "tanh", "cov", "var", "tr", "KL", "JS", "sign", *LIMITS}
UNDER = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}

ElementTree.register_namespace("", SPACE)
logger = logging.getLogger(__name__)


def mathml(latex: str, display: bool) -> str:
    """Return the MathML of a formula; ``ValueError`` for a command that is not known."""
    latex = latex.replace("{aligned}", "{split}").replace(r"\!", "")
    markup = re.sub(r"&(?!#?\w+;)", "&amp;", convert(latex, display="block" if display else "inline"))
    root = ElementTree.fromstring(markup)
    for parent in root.iter():
        _mend(parent, display)
    for element in root.iter():
        text = (element.text or "").strip()
        if text.startswith("\\") or text == "&":
            raise ValueError(f"no MathML for {text!r} in {latex!r}")
    return ElementTree.tostring(root, encoding="unicode")


def _name(element: Any) -> str:
    return str(element.tag).removeprefix(f"{{{SPACE}}}")


def _mend(parent: Any, display: bool) -> None:
    if _name(parent) == "mtr":
        sides = [cell.attrib.pop("columnalign", "center") for cell in parent]
        edge = "; padding-left: 0; padding-right: 0" if "right" in sides else ""  # columns that meet at a relation sign
        for cell, side in zip(parent, sides, strict=True):
            cell.set("style", f"text-align: {side}{edge}")
    base = parent[0] if len(parent) else None
    if display and base is not None and _name(parent) in UNDER and base.text in LIMITS:
        parent.tag = f"{{{SPACE}}}{UNDER[_name(parent)]}"
    for child in list(parent):
        if child.text == "~" and _name(child) == "mi":  # a relation, not a letter
            child.tag, child.text = f"{{{SPACE}}}mo", "\u223c"
            child.attrib.update({"lspace": "0.278em", "rspace": "0.278em"})
        if child.text in FUNCTIONS and _name(child) in ("mi", "mo"):  # one upright word, spaced as TeX does
            child.tag = f"{{{SPACE}}}mo"
            child.attrib.update({"form": "prefix", "lspace": "0.167em", "rspace": _after(parent, child)})


def _after(parent: Any, child: Any) -> str:
    place = list(parent).index(child)
    following = next(iter(list(parent)[place + 1 : place + 2]), None)
    first = following
    while first is not None and len(first):
        first = first[0]
    opened = first is not None and first.text in ("(", "[", "{")
    return "0em" if opened or _name(parent) in (*UNDER, *UNDER.values()) else "0.167em"


def _markup(node: Any, display: bool) -> str:
    try:
        return mathml(node.astext(), display)
    except (ValueError, ElementTree.ParseError) as error:
        logger.warning("%s", error, location=node)
        return f"<code>{node.astext()}</code>"


def _inline(self: Any, node: Any) -> None:
    self.body.append(_markup(node, False))
    raise nodes.SkipNode


def _block(self: Any, node: Any) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    if node["number"]:
        number = get_node_equation_number(self, node)
        self.body.append(f'<span class="eqno">({number})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(f"{_markup(node, True)}</div>\n")
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer under the name ``mathml``."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
