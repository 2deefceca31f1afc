"""The site's links hold in both directions, read from the sources; the site itself is built by .ci/run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import links
import pytest
from extension.docstrings import restructured
from failures import NAMES
from links import HERE, Sources, equations, problems, reference

from unigen.networks import networks
from unigen.pair import Pair
from unigen.pairs import latent

GIVEN = links.sources()
CHAPTERS = [
    "pair",
    "information",
    "variational",
    "wake_sleep",
    "vae",
    "gans",
    "unified",
    "standard_equation",
    "regularization",
    "flows",
    "autoregressive",
]


def test_every_link_holds_in_both_directions() -> None:
    assert problems(GIVEN) == []


def test_the_links_are_those_of_every_public_object_and_identity() -> None:
    modules = {name.split(".")[1] for name in GIVEN.docstrings}
    assert modules == {"routines", "objectives", "divergences", "logic"}
    assert {"unigen.routines.gan", "unigen.objectives.elbo", "unigen.divergences.gan"} <= set(GIVEN.docstrings)
    labels = {label for text in GIVEN.chapters.values() for label in equations(text)}
    assert set(GIVEN.identities) < labels


# -- planted faults ------------------------------------------------------------------------------------------------------


def edited(where: str, page: str, change: Callable[[str], str]) -> Sources:
    """The sources with one text changed; the change must change something."""
    texts = getattr(GIVEN, where)
    assert change(texts[page]) != texts[page]
    return replace(GIVEN, **{where: {**texts, page: change(texts[page])}})


def chapter(page: str, old: str, new: str) -> Sources:
    return edited("chapters", f"{page}.md", lambda text: text.replace(old, new))


def docstring(name: str, old: str, new: str) -> Sources:
    return edited("docstrings", name, lambda text: text.replace(old, new))


def everywhere(old: str, new: str) -> Sources:
    return replace(GIVEN, chapters={page: text.replace(old, new) for page, text in GIVEN.chapters.items()})


EQUATION = "\n```{math}\n:label: of-nothing\nx = x\n```\n"
MOVED = replace(GIVEN.identities["lemma-1"], objects=("unigen.routines.gun",))
BOX = "```{identity} lemma-1\n```\n"

FAULTS = {
    "a routine without an equation": (
        docstring("unigen.routines.gan", "Theory: ", "See "),
        "unigen.routines.gan names no equation",
    ),
    "an objective without a source": (
        docstring("unigen.objectives.elbo", " [jordan1999]", ""),
        "unigen.objectives.elbo names no equation",
    ),
    "a docstring's equation that is none": (
        docstring("unigen.routines.gan", "lemma-1", "lema-1"),
        "unigen.routines.gan names the equation lema-1, which no chapter has",
    ),
    "a docstring's citation without an entry": (
        docstring("unigen.divergences.entropy", "shannon1948", "shanon1948"),
        "unigen.divergences.entropy cites shanon1948, which refs.bib lacks",
    ),
    "an equation without code": (
        edited("chapters", "unified.md", lambda text: text + EQUATION),
        "the equation of-nothing has no code",
    ),
    "an identity without an equation": (
        chapter("unified", ":label: lemma-1\n", ":label: lemma-one\n"),
        "the identity lemma-1 has no equation",
    ),
    "two equations of one label": (
        chapter("unified", ":label: lemma-2\n", ":label: lemma-1\n"),
        "two equations are labelled lemma-1",
    ),
    "a reference to no equation": (
        chapter("wake_sleep", "{eq}`evidence-decomposes`", "{eq}`evidence`"),
        "wake_sleep.md refers to the equation evidence",
    ),
    "a citation without an entry": (
        chapter("gans", "{cite:p}`goodfellow2014`", "{cite:p}`goodfellow2013`"),
        "gans.md cites goodfellow2013, which refs.bib lacks",
    ),
    "an entry that nothing cites": (
        replace(GIVEN, bibliography=GIVEN.bibliography + "@book{unread2000,\n}\n"),
        "nothing cites the entry unread2000",
    ),
    "an entry twice": (
        replace(GIVEN, bibliography=GIVEN.bibliography + "@book{villani2009,\n}\n"),
        "two entries of refs.bib are called villani2009",
    ),
    "a declaration that no chapter includes": (
        everywhere(":pyobject: wgan_gp\n", ":pyobject: wgan\n"),
        "no chapter includes the declaration of unigen.routines.wgan_gp",
    ),
    "an identity whose check no chapter shows": (
        chapter("unified", BOX, ""),
        "no chapter shows the check of the identity lemma-1",
    ),
    "a check away from its equation": (
        edited("chapters", "gans.md", lambda text: text + BOX),
        "gans.md shows the check of lemma-1, whose equation is elsewhere",
    ),
    "a failure that no chapter draws": (
        chapter("gans", "```{failure} xy_game\n```\n", ""),
        "the failure xy_game is drawn by 0 cells of chapters, not by one",
    ),
    "a failure whose figure the cell does not draw": (
        chapter("gans", "xy_game.draw(found)\n", ""),
        "the failure xy_game is drawn by 0 cells of chapters, not by one",
    ),
    "a failure below another's figure": (
        chapter("gans", "```{failure} xy_game\n", "```{failure} mode_collapse\n"),
        "the failure xy_game is drawn by 0 cells of chapters, not by one",
    ),
    "a failure that is none": (
        chapter("gans", "```{failure} xy_game\n", "```{failure} xz_game\n"),
        "gans.md shows the failure xz_game, which is none",
    ),
    "a failure without a test": (
        replace(GIVEN, failures={**GIVEN.failures, "xy_game": ()}),
        "the failure xy_game has no test",
    ),
    "a link to an object that does not exist": (
        everywhere("{py:data}`unigen.routines.gan`", "{py:data}`unigen.routines.gun`"),
        "links unigen.routines.gun, which does not exist",
    ),
    "an identity about an object that does not exist": (
        replace(GIVEN, identities={**GIVEN.identities, "lemma-1": MOVED}),
        "the identity lemma-1 is about unigen.routines.gun, which does not exist",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(fault: str) -> None:
    given, sentence = FAULTS[fault]
    assert any(sentence in problem for problem in problems(given))


# -- the chapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_derives_runs_and_cites(name: str) -> None:
    text = GIVEN.chapters[f"{name}.md"]
    assert equations(text) and links.cited(text) and "```{code-cell} python\n" in text
    assert "{literalinclude} ../unigen/" in text


MISTAKES = {  # what the lectures get wrong, and what the note in the chapter says of it
    "the sleep phase a copy of the wake phase": ("wake_sleep", "sleep phase as a copy of the wake phase"),
    "min before both log-likelihoods": ("wake_sleep", "puts *min* before both"),
    "a joint density beside a divergence to the prior": ("variational", "together with a divergence to the prior"),
    "Jensen-Shannon through itself": ("information", "defines the divergence through itself"),
    "information gain without logarithms": ("information", "without its logarithms"),
    "the value of the game without a logarithm": ("gans", "drops the logarithm on the term of the generated"),
    "the mean added twice": ("vae", "adds the mean to the code twice"),
    "a log-variance without its half": ("vae", "If $\\sigma$ is a log-variance, the noise is"),
    "gradient clipping": ("gans", "call this gradient clipping"),
    "indices of a flow": ("flows", "the indices are swapped"),
    "an undirected Helmholtz machine": ("pair", "undirected Markov random field"),
    "a lower bound of imitation": ("regularization", "calls $\\pi_0$ a lower bound"),
    "the lost formulas of Lemma 1": ("unified", "has lost these formulas"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_the_lectures_is_corrected_in_a_note(mistake: str) -> None:
    name, words = MISTAKES[mistake]
    notes = re.findall(r"^```\{note\}\n(.*?)^```$", GIVEN.chapters[f"{name}.md"], re.S | re.M)
    assert any(words in " ".join(note.split()) for note in notes)


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = set()
    for index in ("index.md", "api/index.md"):
        for block in re.findall(r"```\{toctree\}\n(.*?)```", GIVEN.chapters[index], re.S):
            folder = index.removesuffix("index.md")
            listed |= {f"{folder}{line}.md" for line in block.split("\n") if re.fullmatch(r"[\w/]+", line)}
    assert listed | {"index.md"} == set(GIVEN.chapters)


def synonyms() -> dict[str, list[str]]:
    """The glossary's names of each thing, by the first, which is the package's."""
    (glossary,) = re.findall(r"```\{glossary\}\n(.*?)```", GIVEN.chapters["pair.md"], re.S)
    entries = [re.match(r"(?:\S.*\n)+", entry) for entry in glossary.split("\n\n")]
    named = [entry[0].strip("\n").split("\n") for entry in entries if entry]
    return {names[0]: names[1:] for names in named}


def check_names(pair: Pair) -> None:
    """Every other name of the model and of the guide is an attribute that is the same object."""
    for name in ("model", "guide"):
        for other in (*synonyms()[name], {"model": "decoder", "guide": "encoder"}[name]):
            assert getattr(pair, other.replace(" ", "_")) is getattr(pair, name), other


def test_glossary_has_the_synonyms_of_the_field_and_the_package_knows_them() -> None:
    guide = {"variational approximation", "recognition model", "inference network", "recognition network"}
    model = {"data likelihood model", "generative network", "generator", "probabilistic decoder"}
    assert guide | {"inference model", "probabilistic encoder"} == set(synonyms()["guide"])
    assert model | {"generative model"} == set(synonyms()["model"])
    pair = latent(networks("mlp", (4,), 2, hidden=(3,)))
    check_names(pair)
    assert len(list(pair.parameters())) == len({id(p) for group in ("theta", "phi") for p in pair.group(group)})

    class Mistaken(Pair):
        encoder = Pair.generative_model  # type: ignore[assignment]

    with pytest.raises(AssertionError, match="encoder"):
        check_names(Mistaken(pair.model, pair.guide))


def test_code_that_a_page_includes_is_there() -> None:
    for page, text in GIVEN.chapters.items():
        for file, name in re.findall(r"\{literalinclude\} (\S+)\n:pyobject: (\w+)", text):
            lines = ((HERE / page).parent / file).read_text(encoding="utf-8")
            assert re.search(rf"^(def|class) {name}\b", lines, re.M), f"{page} includes {name} of {file}"


def test_every_formula_is_drawn_without_a_script() -> None:
    pytest.importorskip("sphinx")
    pytest.importorskip("latex2mathml")
    from extension.mathml import mathml

    count = 0
    for text in GIVEN.chapters.values():
        prose = re.sub(r"^```\{(?!math)(?!note).*?^```$", "", text, flags=re.S | re.M)
        blocks = re.findall(r"^```\{math\}\n:label: \S+\n(.*?)^```$", prose, re.S | re.M)
        blocks += re.findall(r"\$\$(.+?)\$\$", prose, re.S)
        inline = re.findall(r"(?<!\$)\$([^$\n]+)\$(?!\$)", re.sub(r"\$\$.+?\$\$", "", prose, flags=re.S))
        for formula, display in [(one, True) for one in blocks] + [(one, False) for one in inline]:
            assert mathml(formula.strip(), display).startswith("<math"), formula
            count += 1
    assert count > 200
    with pytest.raises(ValueError, match="no MathML"):
        mathml(r"\nosuchcommand x", True)


# -- docstrings ----------------------------------------------------------------------------------------------------------


NUMBERED = re.compile(
    r"\b(?:eqs?\.|equations?|tables?|sections?|figures?|theorem|proposition|lemma|appendix|algorithm|example|definition) "
    r"(?:[A-Z]\.)?\d",
    re.I,
)


def numbers_of_others(text: str) -> list[str]:
    """The lines of a source that cite a numbered statement, but for the two papers that were compared."""
    return [line for line in text.split("\n") if NUMBERED.search(line) and not re.search(r"\bHu\b|\bWu\b|HU\b", line)]


def test_only_numbers_that_were_compared_with_their_paper_are_cited() -> None:
    root = HERE.parent
    assert numbers_of_others("\n".join(identity.source for identity in GIVEN.identities.values())) == []
    for folder in ("unigen", "experiments/failures"):
        for path in sorted((root / folder).rglob("*.py")):
            assert numbers_of_others(path.read_text(encoding="utf-8")) == [], path.name
    assert numbers_of_others("(Burda et al. 2016, Eq. 8)\nHu et al. 2018, Eq. 8") == ["(Burda et al. 2016, Eq. 8)"]


def test_failures_have_the_tests_that_read_them() -> None:
    assert set(GIVEN.failures) == set(NAMES) and all(GIVEN.failures.values())
    directly, by_another = GIVEN.failures["sleep_raises_free_energy"], GIVEN.failures["vanishing_gradient"]
    assert directly == ("test_sleep_raises_the_free_energy_while_its_own_loss_falls",)
    assert "test_the_minimax_gradient_is_that_of_twice_jensen_shannon_and_vanishes" in by_another


def test_reference_reads_the_last_line() -> None:
    found = reference("Do.\n\nTheory: lemma-1,\ngan [hu2018unifying, goodfellow2014].")
    assert found == links.Reference(("lemma-1", "gan"), ("hu2018unifying", "goodfellow2014"))
    assert reference("Do.\n\nTheory: lemma-1.") is None


def test_docstring_is_shown_as_it_reads() -> None:
    lines = restructured("E[log q*|x_] of ``code*``\n\na: one\n    two.\nb: three\n\n>>> f(1)\n2")
    assert lines == [
        r"E[log q\*\|x\_] of ``code*``",
        "",
        "- a: one two.",
        "- b: three",
        "",
        ">>> f(1)",
        "2",
        "",
    ]
