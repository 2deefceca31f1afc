"""Curves of a comparison: one line for each seed of a routine and one for their mean, and quality against wall-clock."""

from collections.abc import Sequence

from unigen.figures import Panel, Series, averaged, panel, thinned, worth_showing
from unigen.results import Run

__all__ = ["COLORS", "quality_panels", "seeds_and_mean"]

COLORS = 10  # the palette of the report's template


def seeds_and_mean(
    name: str, lines: dict[Run, list[tuple[float, float, float]]], color: int, hollow: bool = False
) -> list[Series]:
    """A thin line for each seed and a thick one for the mean of the complete ones; one seed alone is its own mean."""

    def draw(points: list[tuple[float, float, float]]) -> tuple[tuple[float, float], ...]:
        return tuple(thinned([(x, y) for _, x, y in points]))

    whole = [points for run, points in lines.items() if run.status == "complete"] or list(lines.values())
    seeds = [Series(f"{name}, seed {run.seed}", draw(points), color, True) for run, points in lines.items()]
    mean = draw(averaged(whole))
    return [*(seeds if len(seeds) > 1 else []), Series(name, mean, color, hollow=hollow, marked=len(mean) <= 40)]


def quality_panels(keys: dict[str, str], runs: Sequence[Run]) -> list[Panel]:
    """Quality against seconds of training: the log-likelihood of validation data, and the distance of samples from them.

    Seeds are thin lines, their mean a thick one. Distances of another kind than the first are left out, and so are densities
    where the first log-likelihood is of a mass, or masses where it is of a density.
    """
    distance = next((run.distance for run in runs if run.distances), "")
    density = next((run.density for run in runs if run.evaluations), False)
    several = any(run.density != density for run in runs if run.evaluations)
    of = f", {'densities' if density else 'masses'} alone" if several else ""
    panels = []
    for label, low_is_good in ((f"validation log-likelihood (nats{of})", False), (distance, True)):
        series = []
        for index, (slug, key) in enumerate(keys.items()):
            mine = [run for run in runs if run.slug == slug]
            if low_is_good:
                lines = {run: run.distances for run in mine if run.distances and run.distance == distance}
            else:
                lines = {run: run.evaluations for run in mine if run.evaluations and run.density == density}
            hollow = not low_is_good and any(run.kind == "exact" for run in lines)
            series += seeds_and_mean(key, lines, index % COLORS, hollow)
        thick = [line for line in series if not line.faint]
        y_range = _from_below(thick) if low_is_good else worth_showing(thick)
        x_label = "seconds of training (logarithmic)"
        drawn = panel(series, x_label=x_label, y_label=label, y_range=y_range, title=f"{label} against seconds of training",
                      logarithmic=True)  # fmt: skip
        panels += [drawn] if drawn else []
    return panels


def _from_below(series: Sequence[Series]) -> tuple[float, float] | None:
    """Choose the y range of curves that fall: up to the highest second half, diverged curves left out.

    Implicit models may end a hundred times as far from the data as others, and are to be seen; a curve that ends a thousand times
    as high as the middle one is not.
    """
    ends = sorted(max(y for _, y in line.points[len(line.points) // 2 :]) for line in series if line.points)
    if not ends:
        return None
    middle = ends[len(ends) // 2]
    top = max(end for end in ends if end <= 1000 * abs(middle) or end == ends[0])
    low = min(y for line in series for _, y in line.points)
    return min(low, top), top
