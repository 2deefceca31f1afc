"""The report of `unigen compare`: one HTML page that opens offline, from whatever a run directory holds.

The page loads nothing: styles are inline, pictures are data URIs, charts are SVG drawn from the geometry of
`unigen.figures`. Every string goes through the template's escaping, and a link is kept only if it is http or https.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from unigen.curves import COLORS, quality_panels, seeds_and_mean
from unigen.durable import write_whole
from unigen.figures import number, panel, worth_showing
from unigen.results import Run, announced, as_mapping, as_number, as_sequence, as_text, read_config, read_runs
from unigen.tables import differences, table, table_markdown, tabulate
from unigen.tabulation import refusals

__all__ = ["read_runs", "render", "table", "table_markdown"]

OPERATORS = ("max", "min", "sup", "inf", "argmax", "argmin", "KL", "MMD")
DASH = "\N{EN DASH}"


def render(directory: str | Path) -> Path:
    """Write DIR/report.html, one file that opens offline, from whatever is in DIR, and return its path.

    Raises FileNotFoundError where DIR holds no comparison at all, OSError where the page cannot be written.
    """
    import jinja2

    directory = Path(directory)
    runs = read_runs(directory)
    # each run's own configuration says what all have in common, too
    config = read_config(directory) or next((run.config for run in runs if run.config), {})
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = environment.get_template("report.html.j2").render(_page(config, runs))
    path = directory / "report.html"
    write_whole(path, html.encode("utf-8", errors="replace"))
    return path


def _page(config: dict[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    """Everything the template shows, as plain strings, numbers, lists and panels."""
    described = announced(config)
    slugs = list(dict.fromkeys(run.slug for run in runs))
    data = as_mapping(config.get("data"))
    unfinished = [run for run in runs if run.status != "complete"]
    results, counts = tabulate(runs), {"Table": count(1), "Figure": count(1)}
    routines = [_routine(index, slug, name, described.get(slug, {}), [run for run in runs if run.slug == slug])
                for index, (slug, name) in enumerate(zip(slugs, results.names, strict=True))]  # fmt: skip
    keys = {routine["slug"]: routine["key"] for routine in routines}
    return {
        "title": f"{_count(len(slugs), 'learning algorithm').capitalize()} on {as_text(data.get('name')) or 'unnamed data'}",
        "summary": _summary(config, data, runs),
        "unfinished": [
            {"run": f"{keys[run.slug]}, seed {run.seed}", "status": run.status, "why": _why(run)} for run in unfinished
        ],  # fmt: skip
        "noted": [
            {"run": f"{keys[run.slug]}, seed {run.seed}", "notes": run.notes, "serious": _serious(run)}
            for run in runs
            if run.notes
        ],
        "total": len(runs),
        "results": results,
        "differences": differences(runs),
        "distances": tabulate(runs, "distances"),
        "shares": tabulate(runs, "shares"),
        "posterior": tabulate(runs, "posterior"),
        "refusals": refusals(runs),
        "keys": list(keys.values()),
        "seeds": len({run.seed for run in runs}),
        "curves": quality_panels(keys, runs),
        "drawn": [
            key for slug, key in keys.items() if any(r.slug == slug and (r.evaluations or r.distances) for r in runs)
        ],
        "hollow": [key for slug, key in keys.items() if any(run.slug == slug and run.kind == "exact" for run in runs)],
        "routines": routines,
        "per_seed": [_seed_row(keys[run.slug], run) for run in runs],
        "command": as_text(config.get("command")),
        "created": _date(as_text(config.get("created"))),
        "unigen": as_text(config.get("unigen")),
        "environment": _environment(config),
        "numbered": lambda kind: f"{kind} {next(counts[kind])}",
        "hashes": [("data", "fingerprint", as_text(data.get("fingerprint")))] * bool(data.get("fingerprint"))
        + [(kind, label, value) for kind in ("weights", "order") for label, value in _hashes(config, kind)],
    }


def _routine(index: int, slug: str, name: str, entry: dict[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    """One routine: what it is, its first pictures, and one panel for each value that its phases climb."""
    entry = entry or next((found for run in runs if (found := as_mapping(run.config.get("routine")))), {})
    url = as_text(entry.get("url"))
    try:
        parts = urlsplit(url)
        safe = parts.scheme in ("http", "https") and bool(parts.netloc)
    except ValueError:
        safe = False
    panels = []
    for value in dict.fromkeys(value for run in runs for value in run.values):
        lines = {run: [(s, s, v) for s, _, v in run.values[value]] for run in runs if value in run.values}
        series = seeds_and_mean(value, lines, index % COLORS)
        y_range = worth_showing(series)
        panels.append(
            panel(
                series,
                title=re.sub(r"^(\d+) ", r"phase \1: ", value),
                width=270,
                height=165,
                y_range=y_range,
                tick_count=4,
                x_label="step",
            )
        )
    phases = [as_mapping(phase) for phase in as_sequence(entry.get("phases"))]
    return {
        "slug": slug,
        "anchor": f"routine-{index + 1}",
        "color": index % COLORS,
        "key": name,
        "title": as_text(entry.get("title")) or name,
        "citation": as_text(entry.get("citation")),
        "url": url if safe else "",
        "formula": _typeset(as_text(entry.get("formula"))),
        "summary": as_text(entry.get("summary")),
        "phases": [(as_text(phase.get("words")), _typeset(as_text(phase.get("formula")))) for phase in phases],
        "facts": [(k, as_text(entry[k])) for k in ("pair", "optimizer") if entry.get(k)],
        "panels": [found for found in panels if found],
        "status": "" if any(run.status == "complete" for run in runs) else " and ".join({r.status: 0 for r in runs}),
        "samples": _first(runs, "samples"),
        "reconstructions": _first(runs, "reconstructions"),
    }


def _first(runs: Sequence[Run], attribute: str) -> tuple[str, str]:
    """The picture of the first seed that has a whole one, and that seed."""
    return next(((getattr(run, attribute), run.seed) for run in runs if getattr(run, attribute)), ("", ""))


def _summary(config: dict[str, Any], data: dict[str, Any], runs: Sequence[Run]) -> list[tuple[str, list[str], Any]]:
    """Five lines: (term, phrases, hashes)."""
    networks, budget = as_mapping(config.get("networks")), as_mapping(config.get("budget"))
    shape, hidden = as_sequence(data.get("shape")), as_sequence(networks.get("hidden"))
    counts = ((data.get("n_train"), "training data"), (data.get("n_test"), "test data"))
    parameters = as_mapping(networks.get("parameters"))
    complete = sum(run.status == "complete" for run in runs)
    seeds = list(dict.fromkeys(run.seed for run in runs))
    lines = [
        ("Data", [as_text(data.get("name")), as_text(data.get("citation")), " × ".join(map(as_text, shape)),
                  *(f"{_whole(n)} {what}" for n, what in counts if n is not None),
                  _say("binarization: {}", data.get("binarization"))]),
        ("Networks", [as_text(networks.get("kind")),
                      _say("hidden {}", "-".join(map(as_text, hidden)) or networks.get("hidden")),
                      _say("latent dimension {}", networks.get("latent")), as_text(networks.get("activation")),
                      _say("{} likelihood", config.get("likelihood")),
                      _say("parameters: {}", ", ".join(f"{_greek(g)} {_whole(n)}" for g, n in parameters.items()))]),
        ("Budget", [*(f"{_whole(n)} {unit}" for unit, n in budget.items() if n is not None),
                    _say("batches of {}", config.get("batch_size")), "the same for every routine" if budget else ""]),
        ("Seeds", [", ".join(seeds), f"{complete} of {len(runs)} runs complete"]),
    ]  # fmt: skip
    start = [(what, found) for kind, what in (("weights", "initial weights"), ("order", "order of data"))
             if (found := _hashes(config, kind))]  # fmt: skip
    said = "every routine starts from the same initial weights and reads the data in the same order"
    lines.append(("Same start", [said if start else "no hashes recorded"]))
    return [(term, [p for p in phrases if p], start if term == "Same start" else []) for term, phrases in lines]


def _hashes(config: dict[str, Any], kind: str) -> list[tuple[str, str]]:
    """(label, hash) of config["hashes"][kind], however deep it is nested."""
    pending: list[tuple[str, object]] = [("", as_mapping(config.get("hashes")).get(kind))]
    found = []
    while pending:
        label, value = pending.pop(0)
        if isinstance(value, dict):
            pending = [(f"{label} {k}".strip() if label else f"seed {k}", v) for k, v in value.items()] + pending
        elif value is not None:
            found.append((label, as_text(value)))
    return found


def _environment(config: dict[str, Any]) -> list[tuple[str, str]]:
    versions = as_mapping(config.get("versions")) or {"versions": config.get("versions")}
    names = ("device", "device_name", "threads", "vector instructions", "platform", "code")
    rest = {name.replace("_", " "): config.get(name) for name in names}
    known = {"unigen": config.get("unigen"), **versions, **rest}
    return [(name, as_text(value)) for name, value in known.items() if value is not None]


def _seed_row(key: str, run: Run) -> dict[str, Any]:
    likelihood = as_mapping(run.result.get("log_likelihood"))
    value, error, kind = (likelihood.get(name) for name in ("value", "standard_error", "kind"))
    value, error, seconds = as_number(value), as_number(error), as_number(run.result.get("seconds"))
    ends = [as_number(end) for end in as_sequence(likelihood.get("interval"))]
    text = DASH if value is None else number(value, 2)
    if value is not None and len(ends) == 2 and None not in ends:
        text += " [" + ", ".join(number(end, 2) for end in ends if end is not None) + "]"
    elif value is not None and error is not None:
        text += f" ({number(error, 2)})"
    return {
        "routine": key,
        "seed": run.seed,
        "status": run.status,
        "steps": DASH if run.step is None else _whole(run.step),
        "seconds": DASH if seconds is None else number(seconds, 1),
        "log_likelihood": text if kind != "none" else as_text(likelihood.get("how")) or "implicit: none",
        "kind": as_text(kind) + ", density" * run.density if value is not None and kind != "none" else "",
        "why": _why(run),
        "resumed": bool(run.notes),
    }


def _serious(run: Run) -> list[str]:
    """What a reader of the numbers should know: a checkpoint that was rejected, or a resume in another environment."""
    return [note for note in run.notes if not re.fullmatch(r"resumed at step \d+", note)]


def _why(run: Run) -> str:
    if run.status in ("complete", "not started"):
        return run.error
    if run.status == "failed":
        return f"{run.error or 'no reason recorded'}; not tried again unless {run.slug}/seed-{run.seed} is deleted"
    last = f"; last record at step {_whole(run.step)}" if run.step is not None else ""
    goes_on = f"; the same command goes on from step {_whole(run.checkpoint)}" if run.checkpoint is not None else ""
    return (run.error or f"no result.json that can be read{last}") + goes_on


def _say(template: str, value: object) -> str:
    return template.format(as_text(value)) if value not in (None, "", [], {}) else ""


def _whole(value: object) -> str:
    found = as_number(value)
    return as_text(value) if found is None else f"{found:,.0f}" if found.is_integer() else f"{found:g}"


def _count(count: int, noun: str) -> str:
    words = "no one two three four five six seven eight nine ten eleven twelve".split()
    return f"{words[count] if count < len(words) else count} {noun}" + ("" if count == 1 else "s")


def _date(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment.day} {moment:%B %Y, %H:%M}" + (f" {moment.tzname()}" if moment.tzinfo else "")


def _typeset(formula: str) -> list[tuple[str, str]]:
    """Split a plain formula into (tag, text): indices such as z_k and max_{θ,φ} become "sub", powers after ^ "sup".

    An underscore inside a name (log_q_reversed) is part of the name: an index follows one letter, a bracket or an operator.
    """
    parts, end = [], 0
    for match in re.finditer(r"([_^])(?:\{([^{}]*)\}|((?<=E_)[pq]\([^()]*\)|[^\W_]+|[−-]\d+))", formula):
        name = re.search(r"\w*$", formula[: match.start()])
        if match[1] == "_" and name and len(name[0]) > 1 and name[0] not in OPERATORS:
            continue
        parts += [("", formula[end : match.start()]), ("sub" if match[1] == "_" else "sup", match[2] or match[3] or "")]
        end = match.end()
    return [(tag, text) for tag, text in [*parts, ("", formula[end:])] if text]


def _greek(name: str) -> str:
    return {"theta": "θ", "phi": "φ", "psi": "ψ"}.get(name, name)
