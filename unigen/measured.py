"""What runs measured: each number of their result.json with its kind, units, error, and the column that it may stand in.

Results hold ``figures`` (value, kind, units, standard_error, interval, n, how); those of earlier versions hold ``metrics``.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from unigen.results import Run, as_mapping, as_number, as_sequence, as_text

__all__ = ["LEGACY", "Measured", "headed", "leading", "likelihood_of", "measure", "order"]

# name in the metrics of earlier versions: (heading, +1 where higher is better and -1 where lower is)
LEGACY = {
    "mmd": ("MMD", -1),
    "kid": ("KID", -1),
    "fid": ("FID", -1),
    "coverage": ("class coverage", 1),
    "modes": ("modes", 1),
    "high_quality": ("high-quality fraction", 1),
    "reverse_kl": ("reverse KL over modes", -1),
}
SAMPLES = {
    "FID": -1,
    "KID": -1,
    "MMD²": -1,
    "sliced Wasserstein distance": -1,
    "precision": 1,
    "recall": 1,
    "density": 0,
    "coverage": 1,
    "inception score": 1,
    "classes covered": 1,
    "KL to uniform": -1,
    "modes captured": 1,
    "high-quality share": 1,
    "reverse KL to the modes": -1,
}
POSTERIOR = {
    "ELBO": 1,
    "KL(q || posterior)": 0,
    "active units": 0,
    "Pareto k-hat, median": 0,
    "Pareto k-hat, share over 0.7": 0,
}
TIMES = {"seconds_per_step": "time per step", "seconds": "time in total", "seconds_compiling": "time to compile"}
OF_DATA = "inception score of data"
PLAIN = ("pixels", "coordinates")
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Measured:
    """One number of one run; `key` is (name, kind, how where that makes a column of its own)."""

    key: Key
    slug: str
    seed: str
    value: float
    unit: str = ""
    how: str = ""
    error: float | None = None
    interval: tuple[float, float] | None = None
    warning: str = ""

    @property
    def spread(self) -> float | None:
        """The standard error, or what would be one for the interval."""
        return self.error if self.interval is None or self.error else (self.interval[1] - self.interval[0]) / 4


def likelihood_of(run: Run) -> dict[str, Any]:
    return as_mapping(run.result.get("log_likelihood"))


def measure(runs: Sequence[Run], part: str) -> list[Measured]:
    """Return the numbers of runs that a part of the report shows: "results", "distances", "shares" or "posterior"."""
    figures = [(run, as_mapping(entry)) for run in runs for entry in as_sequence(run.result.get("figures"))]
    found: list[Measured] = []
    if part == "results":
        for run in runs:
            found += [*_likelihood(run), *_legacy(run), *_times(run)]
    shown = leading(entry for _, entry in figures)
    of_data = {id(run): entry for run, entry in figures if entry.get("name") == OF_DATA}
    for run, entry in figures:
        name, value = as_text(entry.get("name")), as_number(entry.get("value"))
        if value is not None and (name in shown if part == "results" else _part(name, entry) == part):
            found.append(_figure(run, name, value, entry, of_data.get(id(run), {})))
    return list({(m.key, m.slug, m.seed): m for m in reversed(found)}.values())[::-1]  # a run counts once in a column


def _part(name: str, entry: dict[str, Any]) -> str:
    if name == OF_DATA:
        return ""  # the same for every routine: said with the score of samples
    if "n_fake" in entry:
        return "distances" if entry.get("kind") == "distance" else "shares"
    # what the log-likelihood among the results was made from, or a bound of fewer particles
    return "" if name in ("log p(x)", "log Z") or re.fullmatch(r"log p\(x\), K = \d+", name) else "posterior"


def leading(entries: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """Return the figures of samples that stand beside the log-likelihood: what the features and the data make telling."""
    features = {as_text(entry.get("name")): as_text(entry.get("features")) for entry in entries}
    if "modes captured" in features:
        return ("MMD²", "modes captured", "high-quality share", "reverse KL to the modes")
    plain = any(
        features.get(name) in PLAIN for name in ("FID", "KID", "MMD²")
    )  # KID's kernel hardly sees pixels differ
    return ("FID", "MMD²" if plain else "KID", "classes covered")


def _figure(run: Run, name: str, value: float, entry: dict[str, Any], of_data: dict[str, Any]) -> Measured:
    kind, how = as_text(entry.get("kind")), as_text(entry.get("how"))
    if name == "inception score" and (score := as_number(of_data.get("value"))) is not None:
        how += f"; {score:.3g} for the data"
    counted = [as_number(entry.get(key)) for key in ("n_real", "n_fake")]
    said = [f"{count:g} {what}" for count, what in zip(counted, ("data", "samples"), strict=True) if count]
    protocol = "; ".join(part for part in (kind, how, as_text(entry.get("features")), ", ".join(said)) if part)
    ends = [as_number(end) for end in as_sequence(entry.get("interval"))]
    between = (ends[0], ends[1]) if len(ends) == 2 and ends[0] is not None and ends[1] is not None else None
    error = as_number(entry.get("standard_error"))
    unit, warning = as_text(entry.get("units")), as_text(entry.get("warning"))
    if kind.endswith("bound"):
        unit = ", ".join(filter(None, (unit, kind)))
    return Measured((name, kind, ""), run.slug, run.seed, value, unit, protocol, error, between, warning)


def _likelihood(run: Run) -> Iterable[Measured]:
    entry = likelihood_of(run)
    kind, how = as_text(entry.get("kind")), as_text(entry.get("how"))
    if kind != "none" and (value := as_number(entry.get("value"))) is not None:
        error, unit = as_number(entry.get("standard_error")), as_text(entry.get("units")) or "nats"
        of = ", density" if run.density else ""
        yield Measured(("log_likelihood", kind, how + of), run.slug, run.seed, value, unit + of, how, error)


def _legacy(run: Run) -> Iterable[Measured]:
    for name, raw in as_mapping(run.result.get("metrics")).items():
        metric = as_mapping(raw)
        if (value := as_number(metric.get("value"))) is not None:
            of, error = as_number(metric.get("of")), as_number(metric.get("standard_error"))
            unit, how = f"of {of:g}" if of is not None else "", as_text(metric.get("how"))
            yield Measured((name, "", ""), run.slug, run.seed, value, unit, how, error)


def _times(run: Run) -> Iterable[Measured]:
    for name in TIMES:
        value = as_number(run.result.get(name))
        if value is not None and (value or name != "seconds_compiling"):
            yield Measured((name, "time", ""), run.slug, run.seed, value)


def order(key: Key) -> tuple[int, str, str, str]:
    """Return where a column stands: exact values, bounds, figures, times."""
    name, kind, how = key
    if name == "log_likelihood":
        return {"exact": -3, "bound": -2}.get(kind, -1), kind, how, ""
    if kind == "time":
        return 900 + list(TIMES).index(name), "", "", ""
    names = [*POSTERIOR, *SAMPLES, *LEGACY]
    return names.index(name) if name in names else len(names), name, kind, how


def headed(key: Key) -> tuple[str, int]:
    """Return the heading of a column and its direction: 1 where higher is better, -1 where lower, 0 where neither."""
    name, kind, how = key
    if name == "log_likelihood":
        particles = re.search(r"\bK\s*=\s*([\d,]*\d)", how)
        bound = f"lower bound (K = {particles[1]})" if particles else "lower bound"
        words = f"log-likelihood ({kind or 'kind not said'})"
        return {"exact": "exact log-likelihood", "bound": bound}.get(kind, words), 1
    if kind == "time":
        return TIMES[name], 0
    if not kind:
        return LEGACY.get(name, (name.replace("_", " "), 0))
    return name, (POSTERIOR | SAMPLES).get(name, 0)
