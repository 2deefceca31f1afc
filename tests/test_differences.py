"""Intervals over seeds and paired differences, held to scipy on synthetic result files; each with a fault that it notices."""

from __future__ import annotations

import json
import math
import re
import secrets
import shutil

import numpy
import pytest
import scipy.stats
from test_report import Page, check_closed, figure, likelihood, of_samples, realistic, write_config, write_run

from unigen import intervals
from unigen.curves import quality_panels
from unigen.differences import differences
from unigen.figures import Series, log_ticks, panel
from unigen.intervals import mean_interval, quantile
from unigen.report import read_runs, render, table
from unigen.tabulation import tabulate


@pytest.fixture
def values() -> numpy.ndarray:
    """Five routines' values at four seeds that share much: (5, 4)."""
    seed = secrets.randbits(31)
    print(f"seed {seed}")
    draw = numpy.random.default_rng(seed)
    return -90 + numpy.array([-8.0, 3.0, -2.0, 6.0]) + numpy.arange(5)[:, None] + 0.3 * draw.normal(size=(5, 4))


def shown(text: str) -> tuple[float, float]:
    """Read a cell: value and reach."""
    found = re.match(r"\+?([−\d.,]+) ± ([\d.]+)", text)
    assert found, text
    value, reach = (float(part.replace("−", "-").replace(",", "")) for part in found.groups())
    return value, reach


def rounding(text: str) -> float:
    """Return the most that rounding to the decimals of a cell changes."""
    return 0.501 * 10.0 ** -len(text.partition(" ±")[0].partition(".")[2])


# -- the interval ------------------------------------------------------------------------------------------------------


def test_an_interval_is_that_of_scipy(values):
    for row in values:
        low, high = scipy.stats.ttest_1samp(row, 0).confidence_interval(0.95)
        found = mean_interval(list(row))
        assert found.n == 4 and abs(found.value - row.mean()) < 1e-12
        assert abs(found.value - found.reach - low) < 1e-10 and abs(found.value + found.reach - high) < 1e-10


def test_an_interval_by_hand():
    # of 1, 2 and 6: mean 3, s^2 = 7, and 4.302653 is the quantile of two degrees of freedom
    assert mean_interval([1.0, 2.0, 6.0]).reach == pytest.approx(4.302653 * math.sqrt(7 / 3), abs=1e-5)
    assert [round(quantile(n), 4) for n in (2, 5, 11)] == [12.7062, 2.7764, 2.2281]
    assert mean_interval([4.5]) == (4.5, None, 1)
    for wrong in (lambda: mean_interval([]), lambda: quantile(1)):
        with pytest.raises(ValueError, match="at least"):
            wrong()


@pytest.mark.parametrize("fault", ["normal quantile", "one more degree of freedom"])
def test_another_quantile_is_noticed(values, monkeypatch, fault):
    right = quantile
    wrong = {"normal quantile": lambda n: 1.96, "one more degree of freedom": lambda n: right(n + 1)}[fault]
    monkeypatch.setattr(intervals, "quantile", wrong)
    with pytest.raises(AssertionError):
        test_an_interval_is_that_of_scipy(values)


def test_the_interval_of_three_seeds_holds_the_mean_in_95_of_100():
    draw = numpy.random.default_rng(secrets.randbits(32)).normal(size=(4000, 3))
    held = sum(abs((m := mean_interval(list(row))).value) <= m.reach for row in draw)
    # binomial of deviation 13.8 about 3800: six of them, 2e-9; 1.96 in the place of 4.30 would hold 3240
    assert abs(held - 3800) < 6 * 13.8


# -- over seeds --------------------------------------------------------------------------------------------------------


def test_a_cell_is_the_mean_over_seeds_with_its_interval(tmp_path, values):
    for routine, row in enumerate(values):
        for seed, value in enumerate(row):
            write_run(tmp_path, f"r{routine}", seed, value, figures=[of_samples("FID", abs(value), standard_error=9.0)])
    bound, fid, *_ = tabulate(read_runs(tmp_path)).columns
    for column, sign in ((bound, 1), (fid, -1)):
        for cell, row in zip(column.cells, values, strict=True):
            value, reach = shown(cell.text)
            exact = mean_interval(list(sign * row))
            most = rounding(cell.text)
            assert most <= 0.501 and abs(value - exact.value) <= most and abs(reach - exact.reach) <= most


def test_one_seed_shows_its_own_error_and_brackets_where_that_is_none(tmp_path):
    figures = [
        of_samples("FID", 1.25, standard_error=0.5),
        of_samples("MMD²", 0.125, standard_error=0.0, interval=[0.0, 0.5]),
        of_samples("classes covered", 10.0, "estimate", units="of 10"),
    ]
    write_run(tmp_path, "a", 0, figures=figures)
    text = [column.cells[0].text for column in tabulate(read_runs(tmp_path)).columns[1:4]]
    assert text == ["1.25 (0.50)", "0.12 [0.00, 0.50]", "10"]


def test_bold_follows_the_paired_difference_and_not_the_two_intervals(tmp_path):
    # b is above a by 0.2 at every seed, while the seeds differ by ten; c differs from b by -3, 3, -3
    rows = {"a": (-90.2, -100.2, -95.25), "b": (-90.0, -100.0, -95.0), "c": (-93.0, -97.0, -98.0)}
    for key, row in rows.items():
        for seed, value in enumerate(row):
            write_run(tmp_path, key, seed, value)
    column = tabulate(read_runs(tmp_path)).columns[0]
    (_, reach_a), (_, reach_b), _ = (shown(cell.text) for cell in column.cells)
    assert reach_a > 1 and reach_b > 1 and [cell.best for cell in column.cells] == [False, True, True]


def test_kinds_are_never_in_one_column(tmp_path):
    write_run(tmp_path, "a", 0, figures=[figure("ELBO", -1.5, "lower bound", units="nats")])
    write_run(tmp_path, "b", 0, figures=[figure("ELBO", -2.5, "exact", units="nats")])
    columns = tabulate(read_runs(tmp_path), "posterior").columns
    assert [(c.heading, c.unit, [cell.text for cell in c.cells]) for c in columns] == [
        ("ELBO ↑", "nats", ["–", "−2.500"]), ("ELBO ↑", "nats, lower bound", ["−1.500", "–"])]  # fmt: skip
    assert not any(cell.best for column in columns for cell in column.cells)


def test_distances_of_unequal_numbers_are_not_ranked(tmp_path):
    write_run(tmp_path, "a", 0, figures=[of_samples("FID", 1.0)])
    write_run(tmp_path, "b", 0, figures=[of_samples("FID", 2.0, n_real=100, n_fake=100)])
    (column,) = tabulate(read_runs(tmp_path), "distances").columns
    assert not any(cell.best for cell in column.cells) and "360 data" in column.note and "100 data" in column.note
    write_run(tmp_path, "c", 0, figures=[of_samples("FID", 3.0)])
    shutil.rmtree(tmp_path / "b")
    assert [cell.best for cell in tabulate(read_runs(tmp_path), "distances").columns[0].cells][0]


def test_what_many_ways_have_in_common_is_the_note(tmp_path):
    for seed in range(3):
        how = f"variance over data of the guide's mean above 0.01: {seed} of 9 in z"
        write_run(tmp_path, "a", seed, figures=[figure("active units", float(seed), units="of 9", how=how)])
    (column,) = tabulate(read_runs(tmp_path), "posterior").columns
    assert column.note == "estimate; variance over data of the guide's mean above 0.01"


def test_the_score_of_the_data_stands_beside_that_of_samples(tmp_path):
    scores = [of_samples("inception score", 4.5, "estimate"), of_samples("inception score of data", 9.7, "estimate")]
    write_run(tmp_path, "a", 0, figures=scores)
    (column,) = tabulate(read_runs(tmp_path), "shares").columns
    assert column.heading == "inception score ↑" and "9.7 for the data" in column.note


def test_a_warning_is_marked_and_said_once(tmp_path):
    for seed in (0, 1):
        names = ("Pareto k-hat, median", "Pareto k-hat, share over 0.7")
        write_run(tmp_path, "a", seed, figures=[figure(name, 0.8, warning="unreliable") for name in names])
    found = tabulate(read_runs(tmp_path), "posterior")
    assert all(column.cells[0].text.endswith(" !") for column in found.columns) and found.notes == ("! a: unreliable",)


# -- paired differences ------------------------------------------------------------------------------------------------


def paired_columns(tmp_path, values, order=None) -> None:
    for routine, row in enumerate(values):
        for seed in range(len(row)):
            value = row[seed if order is None or not routine else order[seed]]
            distance = [of_samples("KID", float(-value / 1e2), features="84 features")]
            write_run(tmp_path, f"r{routine}", seed, float(value), figures=distance)


def check_paired(tmp_path, values) -> None:
    found = differences(read_runs(tmp_path))
    assert [column.heading for column in found.columns] == ["lower bound (K = 500)", "KID"]
    for column, sign in ((found.columns[0], 1.0), (found.columns[1], -1e-2)):
        assert column.cells[0].text == "reference" and "n = 4 seeds" in column.unit and "minus r0" in column.note
        for cell, row in zip(column.cells[1:], values[1:], strict=True):
            value, reach = shown(cell.text)
            low, high = scipy.stats.ttest_rel(sign * row, sign * values[0]).confidence_interval(0.95)
            most = rounding(cell.text)
            assert abs(value - (low + high) / 2) <= most and abs(reach - (high - low) / 2) <= most <= 0.051 * abs(sign)


def test_differences_over_seeds_are_those_of_scipy(tmp_path, values):
    paired_columns(tmp_path, values)
    check_paired(tmp_path, values)


def test_seeds_that_are_not_paired_are_noticed(tmp_path, values):
    paired_columns(tmp_path, values, order=[1, 2, 3, 0])
    with pytest.raises(AssertionError):
        check_paired(tmp_path, values)


def one_seed(tmp_path, reorder=False) -> tuple[numpy.ndarray, numpy.ndarray]:
    draw = numpy.random.default_rng(7)
    a = -90 + 10 * draw.normal(size=50)
    b = a + 0.5 + 0.2 * draw.normal(size=50)
    for key, rows in (("a", a), ("b", b[::-1] if reorder else b)):
        run = write_run(tmp_path, key, 0, float(rows.mean()), figures=[of_samples("MMD²", 0.1)])
        (run / "per_datum.json").write_text(json.dumps({"log_likelihood": list(rows)}))
    return a, b


def test_of_one_seed_the_difference_is_over_the_test_data(tmp_path):
    a, b = one_seed(tmp_path)
    found = differences(read_runs(tmp_path))
    (column,) = found.columns
    assert column.unit == "nats, n = 50 test data"
    low, high = scipy.stats.ttest_rel(b, a).confidence_interval(0.95)
    value, reach = shown(column.cells[1].text)
    assert abs(value - (low + high) / 2) < 0.0006 and abs(reach - (high - low) / 2) < 0.0006
    assert found.notes == ("MMD²: one common seed, and a difference of one seed has no interval of a distance",)
    assert "n = 50 test data" in table(tmp_path)


def test_data_in_another_order_are_noticed(tmp_path):
    a, b = one_seed(tmp_path, reorder=True)
    (column,) = differences(read_runs(tmp_path)).columns
    low, high = scipy.stats.ttest_rel(b, a).confidence_interval(0.95)
    assert shown(column.cells[1].text)[1] > 10 * (high - low) / 2


@pytest.mark.parametrize("damage", ["missing", "torn", "short", "text", "infinite", "no list"])
def test_of_one_seed_without_values_of_each_datum_nothing_is_shown_and_why(tmp_path, damage):
    one_seed(tmp_path)
    path = tmp_path / "b" / "seed-0" / "per_datum.json"
    content = {
        "torn": path.read_text()[:300],
        "short": '{"log_likelihood": [-1.0, -2.0]}',
        "text": path.read_text().replace("[", '["x", '),
        "infinite": path.read_text().replace("[", "[Infinity, "),
        "no list": '{"log_likelihood": 3}',
    }
    path.write_text(content[damage]) if damage in content else path.unlink()
    found = differences(read_runs(tmp_path))
    assert not found.columns
    assert any("where no values of each datum were kept" in note for note in found.notes)
    page = Page(render(tmp_path))
    check_closed(page)
    assert "where no values of each datum were kept" in page.text


def test_only_seeds_that_both_completed_are_paired(tmp_path):
    for seed, value in enumerate((-90.0, -92.0, -95.0)):
        write_run(tmp_path, "a", seed, value)
        write_run(tmp_path, "c", seed, value - 1 - seed)
    write_run(tmp_path, "b", 1, -91.0)
    write_run(tmp_path, "b", 2, -93.0)
    write_run(tmp_path, "b", 0, -1.0, status="failed", error="x")
    (column,) = differences(read_runs(tmp_path)).columns
    # b minus a: 1 and 2; c minus a: -1, -2, -3
    assert column.cells[1].text == "+1.5 ± 6.4 (n = 2 seeds)" or column.cells[2].text.endswith("(n = 3 seeds)")
    assert {shown(cell.text) for cell in column.cells[1:]} == {(1.5, 6.4), (-2.0, 2.5)}


def test_only_like_is_subtracted_from_like(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "exact", seed, -90.0 - seed, "exact")
        write_run(tmp_path, "bound", seed, -80.0 - seed, "bound")
        other = likelihood(-70.0 - seed, "bound") | {"how": "importance-weighted bound, K = 5, 1000 test data"}
        write_run(tmp_path, "coarse", seed, log_likelihood=other)
        write_run(tmp_path, "implicit", seed, None, "none", figures=[of_samples("MMD²", 0.1 + seed)])
    assert differences(read_runs(tmp_path)).columns == ()
    for seed in (0, 1):
        write_run(tmp_path, "other", seed, None, "none", figures=[of_samples("MMD²", 0.1, how="another kernel")])
    found = differences(read_runs(tmp_path))
    assert found.columns == () and "MMD²: computed in different ways" in found.notes[0]
    for seed in (0, 1):
        write_run(tmp_path, "second", seed, -95.0 - seed, "exact")
    found = differences(read_runs(tmp_path))
    assert found.names == ("exact", "second") and found.columns[0].cells[1].text.startswith("−5.0")


def test_the_reference_is_the_first_routine_as_announced(tmp_path):
    write_config(tmp_path, ["wake_sleep", "vae"], [0, 1])
    for seed in (0, 1):
        write_run(tmp_path, "vae", seed, -90.0 - seed)
        write_run(tmp_path, "wake_sleep", seed, -99.0 - 2 * seed)
    (column,) = differences(read_runs(tmp_path)).columns
    assert column.cells[0].text == "reference" and column.note == "minus wake_sleep"
    assert column.cells[1].text.startswith("+9.5 ± 6.4")


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_shows_every_table_once_and_in_order(tmp_path):
    page = Page(render(realistic(tmp_path / "run")))
    check_closed(page)
    assert re.findall(r"Table (\d+)\.", page.text) == ["1", "2", "3", "4", "5", "6"]
    assert re.findall(r"Figure (\d+)\.", page.text) == ["1", "2"]
    for words in (
        "Paired differences", "n = 3 seeds", "none is corrected for their number", "95 % interval",
        "log p(x), not to be had for gan, wgan_gp, mmd: an implicit model has no density", "unigen evaluate DIR",
        "! vae: unreliable: over 0.7 for 9% of the data", "FID ↓", "precision ↑", "minus vae",
    ):  # fmt: skip
        assert words in page.text.replace("\u00a0", " "), words
    assert not re.search(r"signific|p <|\*\*\*", page.text)
    charts = [a["aria-label"] for tag, a in page.tags if tag == "svg" and a.get("role") == "img" and a["aria-label"]]
    assert [label for label in charts if "seconds" in label] == [
        "validation log-likelihood (nats) against seconds of training",
        "MMD² of 250 samples, pixels against seconds of training",
    ]
    assert "log p(x), not to be had for gan, wgan_gp, mmd: an implicit" in table(tmp_path / "run")
    assert page.text.count("Quality against wall-clock") == 1 and "against steps" not in " ".join(charts)
    regions = [a["aria-label"] for tag, a in page.tags if tag == "div" and a.get("role") == "region"]
    assert len(regions) == len(set(regions)) == 6
    heads = [a for tag, a in page.tags if tag == "th"]
    assert all(a.get("scope") in ("row", "col") for a in heads)


def test_the_interval_of_a_run_is_over_its_test_data(tmp_path):
    entry = likelihood(-90.0, "bound") | {"interval": [-91.57, -88.43]}
    write_run(tmp_path, "new", 0, log_likelihood=entry)
    write_run(tmp_path, "old", 0, -95.0)
    text = Page(render(tmp_path)).text
    assert "−90.00 [−91.57, −88.43]" in text and "−95.00 (0.80)" in text


def test_a_density_and_a_mass_are_neither_ranked_nor_subtracted_nor_drawn_together(tmp_path):
    for key, value, of in (("vae", -134.0, "mass"), ("iwae(5)", -130.0, "mass"), ("hvae", 68.0, "density")):
        for seed in (0, 1):
            run = write_run(tmp_path, key, seed, value + seed)
            (run / "config.json").write_text(json.dumps({"routine": {"key": key, "of": of}}))
            lines = [
                {"step": s, "seconds": s, "evaluation": {"log_likelihood": value + s, "kind": "bound"}} for s in (1, 2)
            ]
            (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs, dash = read_runs(tmp_path), "\N{EN DASH}"
    results = tabulate(runs)
    assert results.names == ("hvae", "iwae-5", "vae")
    columns = {column.unit: column for column in results.columns if column.heading.startswith("lower bound")}
    shown = {unit: [cell.text != dash for cell in column.cells] for unit, column in columns.items()}
    assert shown == {"nats": [False, True, True], "nats, density": [True, False, False]}
    assert differences(runs).names == ("iwae-5", "vae")
    (panel,) = quality_panels({name: name for name in results.names}, runs)
    assert panel.title == "validation log-likelihood (nats, densities alone) against seconds of training"
    assert [curve.label for curve in panel.curves if not curve.faint] == ["hvae"]
    assert "bound, density" in Page(render(tmp_path)).text


def test_an_implicit_model_that_is_far_away_is_drawn_and_a_diverged_one_is_not_followed(tmp_path):
    ends = {"vae": 1e-3, "em": 2e-3, "gan": 0.05, "lost": 1e60}
    for key, end in ends.items():
        run = write_run(tmp_path, key, 0)
        lines = [
            {"step": s, "seconds": s / 10, "evaluation": {"distance": end * (1 + 1 / s), "of": "KID"}}
            for s in range(1, 9)
        ]
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = render(tmp_path).read_text()
    ticks = re.findall(r'text-anchor="end">([^<]*)</text>', source)
    assert "0.06" in ticks and not any("e+" in tick for tick in ticks)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.05, 12, ["0.1", "0.3", "1", "3", "10"]),
        (0.9, 60, ["1", "2", "5", "10", "20", "50"]),
        (13.5, 39.3, ["20", "30"]),
        (0.2, 0.3, ["0.20", "0.25", "0.30"]),
        (1e-30, 1e30, None),
        (1.0, 1.1, ["1.00", "1.05", "1.10"]),
    ],
)
def test_ticks_of_a_logarithmic_axis(low, high, labels):
    found = log_ticks(low, high)
    assert 2 <= len(found) <= 7 and all(low <= value <= high * (1 + 1e-12) for value, _ in found)
    assert labels is None or [label for _, label in found] == labels
    for wrong in ((0.0, 1.0), (2.0, 1.0), (1.0, math.inf)):
        with pytest.raises(ValueError, match="logarithmic"):
            log_ticks(*wrong)


def test_a_logarithmic_axis_is_one():
    drawn = panel([Series("a", ((0.0, 9.0), (0.1, 1.0), (1.0, 2.0), (10.0, 3.0)), marked=True)], logarithmic=True)
    first, second, third = (marker.x for marker in drawn.curves[0].markers)  # seconds of zero are nowhere
    assert abs((second - first) - (third - second)) < 0.11 and 0 < first < third < drawn.inner_width
    assert [tick.label for tick in drawn.x_ticks] == ["0.1", "0.2", "0.5", "1", "2", "5", "10"]
    assert panel([Series("a", ((1.0, 1.0),))], logarithmic=True).x_ticks
    assert panel([Series("a", ((1e-99, 1.0), (1e99, 1.0)))], logarithmic=True).x_ticks


# -- damaged results ---------------------------------------------------------------------------------------------------

ODD = [None, True, "x", [], {}, -1, 1e308, -1e308, 10**400, float("nan"), float("inf"), [1, "x"], {"value": 1}]


@pytest.mark.parametrize(
    "field", ["value", "standard_error", "interval", "n", "n_fake", "units", "how", "kind", "name"]
)
def test_odd_values_in_figures_never_stop_the_page(tmp_path, field):
    for number, odd in enumerate(ODD):
        for seed in (0, 1):
            figures = [of_samples("FID", 1.0 + seed) | {field: odd}, figure("ELBO", -3.0) | {field: odd}, odd]
            entry = likelihood(-1.0, "bound") | {"interval": odd} | {field: odd}
            run = write_run(tmp_path, f"r{number}", seed, log_likelihood=entry, figures=figures, refusals=figures)
            (run / "per_datum.json").write_text(json.dumps({"log_likelihood": odd}))
    write_run(tmp_path, "odd", 0, figures=3, refusals="x")
    page = Page(render(tmp_path))
    check_closed(page)
    assert not re.search(r"\b(nan|inf)\b", page.text) and "nan" not in table(tmp_path)


def test_a_figure_that_a_run_has_twice_counts_once(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "a", seed, figures=[of_samples("FID", 1.0 + seed), of_samples("FID", 50.0)])
    column = tabulate(read_runs(tmp_path), "distances").columns[0]
    assert shown(column.cells[0].text) == (1.5, 6.4)


def test_a_comparison_of_an_earlier_version_is_shown_as_before(tmp_path):
    metrics = {"mmd": {"value": 0.5, "standard_error": 0.1, "how": "raw pixels"}, "coverage": {"value": 9, "of": 10}}
    for seed in (0, 1):
        write_run(tmp_path, "a", seed, -90.0 - seed, metrics=metrics)
        write_run(tmp_path, "b", seed, -95.0 - seed, metrics=metrics)
    page = Page(render(tmp_path)).text
    assert "MMD" in page and "class coverage" in page and "9 ± 0" in page and "n = 2 seeds" in page
    assert "Samples and posteriors" not in page
