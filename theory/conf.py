"""The site: chapters with labelled equations, executed by the current code, linked to it and to its tests.

Build: ``sphinx-build -W -n -b html theory theory/_build/html``; it needs no network, and neither do its pages.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parent / "experiments"

sys.path[:0] = [str(HERE), str(EXPERIMENTS)]

# the kernels of the cells run in this directory; the experiments that they show lie in another
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks are tiny, and threads would wait for each other
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(EXPERIMENTS), os.environ.get("PYTHONPATH"))))
os.environ["PYTHONWARNINGS"] = (
    "ignore:IProgress not found"  # tqdm's wish for widgets; any other warning fails the build
)

project = "unigen"
author = "the unigen authors"
copyright = "the unigen authors"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinxcontrib.bibtex",
    "extension.mathml",
    "extension.docstrings",
    "extension.checks",
    "extension.failures",
]
exclude_patterns = ["_build", "identities", "extension"]

html_theme = "furo"
html_title = "unigen"
font = find_spec(
    "ziamath"
)  # brings STIX Two Math, whose table of sizes lets brackets grow where a system has no such font
fonts = [str(Path(font.origin).parent / "fonts" / "STIXTwoMath-Regular.ttf")] if font and font.origin else []
html_static_path = ["_static", *fonts]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
numfig = True
math_numfig = True

myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_output_stderr = "remove-warn"

bibtex_bibfiles = ["refs.bib"]
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": False, "no-value": True}
nitpick_ignore_regex = [  # the types in signatures are no links that these pages promise, and no inventory is fetched
    ("py:class", ".*"),
    ("py:.*", r"(?!unigen\.).*"),
]
