"""The report: a fake run directory is written here, and the page and the tables are read back.

`python tests/test_report.py DIR` writes the same realistic directory and its report, to be looked at in a browser.
"""

import json
import math
import os
import random
import re
import struct
import subprocess
import sys
import threading
import time
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest

from unigen.durable import append
from unigen.figures import Series, averaged, number, panel, thinned, ticks, worth_showing
from unigen.report import _typeset, read_runs, render, table, table_markdown
from unigen.tables import aggregate, tabulate

ROOT = Path(__file__).parents[1]
BOUND = "importance-weighted bound, K = 500, 1000 test data"
VAE = "https://arxiv.org/abs/1312.6114"
# key, title, citation, url, formula, phases, final log-likelihood (None: implicit), kind, milliseconds a step
ROUTINES = [
    ("vae", "Variational autoencoder", "Kingma & Welling 2014", VAE, "max_{θ,φ} E_q [log p(x,z) − log q(z|x)]",
     [("climb elbo under Wake(1) along theta, phi", "E_data E_q(z|x) [log p_θ(x,z) − log q_φ(z|x)]")],
     -96.1, "bound", 4.1),
    ("iwae(5)", "Importance-weighted autoencoder", "Burda, Grosse & Salakhutdinov 2016", "https://arxiv.org/abs/1509.00519",
     "max_{θ,φ} E log (1/5) Σ_k p(x,z_k)/q(z_k|x)",
     [("climb iwae under Wake(5) along theta, phi", "E log (1/K) Σ_k p_θ(x,z_k)/q_φ(z_k|x)")], -94.3, "bound", 9.7),
    ("wake_sleep", "Wake-sleep", "Hinton, Dayan, Frey & Neal 1995", "https://doi.org/10.1126/science.7761831",
     "wake: max_θ E_data E_q log p; sleep: max_φ E_p log q",
     [("climb log_p under Wake(1) along theta", "E_data E_q(z|x) log p_θ(x,z)"),
      ("climb log_q under Sleep() along phi", "E_p(x,z) log q_φ(z|x)")], -99.8, "bound", 5.2),
    ("reweighted_wake_sleep(5)", "Reweighted wake-sleep", "Bornschein & Bengio 2015", "https://arxiv.org/abs/1406.2751",
     "max_θ log Σ_k w_k; max_φ Σ_k w̃_k log q(z_k|x)",
     [("climb iwae under Wake(5) along theta", "E log (1/K) Σ_k w_k"),
      ("climb log_q under Tilted(Wake(5)) along phi", "Σ_k w̃_k log q_φ(z_k|x)")], -95.2, "bound", 12.8),
    ("maximum_likelihood", "Maximum likelihood of a flow", "Dinh, Sohl-Dickstein & Bengio 2017",
     "https://arxiv.org/abs/1605.08803", "max_θ E_data log p_θ(x)",
     [("climb log_p under Wake(1) along theta", "E_data log p_θ(x)")], -97.9, "exact", 7.4),
    ("gan", "Generative adversarial network", "Goodfellow et al. 2014", "https://arxiv.org/abs/1406.2661",
     "φ: max E log q_φ(y|x); θ: max E log q_φ(1−y|x)",
     [("climb log_q under Sleep() along phi", "E_p(x,y) log q_φ(y|x)"),
      ("climb log_q_reversed under Sleep() along theta", "E_p(x,y) log q_φ(1−y|x)")], None, "none", 6.0),
    ("wgan_gp", "Wasserstein GAN, gradient penalty", "Gulrajani et al. 2017", "https://arxiv.org/abs/1704.00028",
     "min_θ max_ψ E_data f_ψ − E_p f_ψ − 10 E(‖∇f_ψ‖ − 1)²",
     [("climb critic_gap under Sleep() along psi, 5 times", "E_data f_ψ − E_p f_ψ − λ E(‖∇f_ψ(x̂)‖ − 1)²"),
      ("climb critic under Sleep() along theta", "E_p f_ψ(x)")], None, "none", 21.5),
    ("mmd", "Generative moment matching network", "Li, Swersky & Zemel 2015", "https://arxiv.org/abs/1502.02761",
     "min_θ MMD²(p_data, p_θ)", [("climb −mmd under Sleep() along theta", "−MMD²(data, p_θ)")], None, "none", 3.3),
]  # fmt: skip


def slug_of(key: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", key).strip("-")


def png(pixels: numpy.ndarray) -> bytes:
    """Encode (H, W) bytes as a grayscale PNG."""
    height, width = pixels.shape
    raw = b"".join(b"\0" + row.tobytes() for row in pixels.astype(numpy.uint8))

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def picture(noise: float, rows: int, seed: int) -> bytes:
    """A grid of scikit-learn's digits with noise, eight rows of sixteen at most."""
    from sklearn.datasets import load_digits

    generator = numpy.random.default_rng(seed)
    images = load_digits().images[generator.integers(0, 1797, rows * 12)] * 15.9
    images = numpy.clip(images + noise * generator.normal(size=images.shape), 0, 255)
    framed = numpy.pad(images, ((0, 0), (1, 1), (1, 1))).reshape(rows, 12, 10, 10)
    return png(framed.transpose(0, 2, 1, 3).reshape(rows * 10, 120))


def likelihood(value: float | None, kind: str) -> dict:
    how = {"bound": BOUND, "exact": "exact, 1000 test data", "none": "implicit: none"}[kind]
    return {"value": value, "standard_error": None if value is None else 0.8, "kind": kind, "how": how, "units": "nats"}


def figure(name: str, value: float | None, kind: str = "estimate", **changes) -> dict:
    """A figure as the evaluator writes it."""
    return {"name": name, "value": value, "kind": kind, "units": "", "n": 360, "standard_error": None, "interval": None,
            "how": "", "bits_per_dimension": None, "warning": ""} | changes  # fmt: skip


def of_samples(name: str, value: float | None, kind: str = "distance", **changes) -> dict:
    return figure(name, value, kind, n_real=360, n_fake=360, features="pixels", p_value=None) | changes


def write_run(path: Path, key: str, seed: int, value: float | None = -90.0, kind: str = "bound", **changes) -> Path:
    """A complete run with no curves and no pictures."""
    path = path / slug_of(key) / f"seed-{seed}"
    path.mkdir(parents=True)
    result = {"status": "complete", "routine": key, "seed": seed,
              "steps": 100, "seconds": 2.0, "seconds_per_step": 0.02,
              "log_likelihood": likelihood(value, kind), "metrics": {}, "error": None} | changes  # fmt: skip
    (path / "result.json").write_text(json.dumps(result))
    return path


def write_config(path: Path, keys: list[str], seeds: list[int], **changes) -> None:
    path.mkdir(parents=True, exist_ok=True)
    described = {routine[0]: routine for routine in ROUTINES}
    entries = []
    for key in keys:
        _, title, citation, url, formula, phases, *_ = described.get(key, (key, key, "", "", "", []))
        pair = "adversarial" if "gan" in key or key == "mmd" else "latent"
        entries.append({
            "key": key, "slug": slug_of(key), "pair": pair, "title": title, "citation": citation, "url": url,
            "formula": formula, "summary": "", "phases": [{"words": w, "formula": f} for w, f in phases],
            "optimizer": "Adam(lr=0.001, betas=(0.9, 0.999))",
        })  # fmt: skip
    sha = {seed: random.Random(seed).randbytes(32).hex() for seed in range(20)}
    config = {
        "unigen": "0.1.0",
        "command": "unigen compare --routines " + " ".join(map(repr, keys)) + " --seeds 0 1 2 --steps 2000",
        "created": "2025-11-20T21:40:00+00:00",
        "data": {"name": "digits", "citation": "Alpaydin & Kaynak 1998", "fingerprint": sha[7], "shape": [1, 8, 8],
                 "n_train": 1437, "n_test": 360, "binarization": "dynamic"},
        "networks": {"kind": "mlp", "hidden": [200, 200], "latent": 20, "activation": "tanh",
                     "parameters": {"theta": 57464, "phi": 61240}},
        "likelihood": "bernoulli", "budget": {"steps": 2000, "epochs": None, "seconds": None}, "batch_size": 100,
        "seeds": seeds, "routines": entries,
        "hashes": {"weights": {str(s): sha[s] for s in seeds}, "order": {str(s): sha[s + 10] for s in seeds}},
        "versions": {"python": "3.12.3", "torch": "2.10.0", "pyro": "1.9.2", "numpy": "2.4.0"},
        "device": "cpu", "threads": 2, "platform": "Linux x86_64",
    } | changes  # fmt: skip
    (path / "config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")


def realistic(path: Path) -> Path:
    """Eight routines, three seeds; one run failed, one was stopped in the middle of a line."""
    write_config(path, [routine[0] for routine in ROUTINES], [0, 1, 2])
    for index, (key, *_, phases, final, kind, milliseconds) in enumerate(ROUTINES):
        for seed in (0, 1, 2):
            noise = random.Random(100 * index + seed)
            end = None if final is None else final + noise.gauss(0, 0.25)
            figures = [
                of_samples("FID", 1.0 + 0.3 * index + noise.gauss(0, 0.05), standard_error=0.04, how="biased upwards"),
                of_samples("MMD²", 0.0021 + 0.0004 * index + noise.gauss(0, 1e-4), standard_error=1e-4,
                           interval=[0.001, 0.004], how="unbiased U-statistic"),
                of_samples("precision", noise.uniform(0.7, 0.9), "estimate", standard_error=0.02),
                of_samples("classes covered", 10.0 if index != 6 else 9.0 - seed % 2, "estimate", units="of 10"),
            ]  # fmt: skip
            refusals = [] if end is not None else [{"name": "log p(x)", "why": "an implicit model has no density"}]
            if kind == "bound":
                figures.append(figure("ELBO", end - 2.5, "lower bound", units="nats", standard_error=0.8))
                figures.append(figure("Pareto k-hat, median", noise.uniform(0.3, 0.6), interval=[0.2, 0.7],
                                      warning="unreliable: over 0.7 for 9% of the data"))  # fmt: skip
            each = milliseconds / 1e3 * noise.uniform(0.95, 1.05)
            times = {"steps": 2000, "seconds": 2000 * each, "seconds_per_step": each}
            found = {"figures": figures, "refusals": refusals}
            run = write_run(path, key, seed, end, kind, **found, **times)
            lines = []
            for step in range(20, 2001, 20):
                line: dict = {"step": step, "seconds": step * milliseconds / 1e3}
                rise = math.exp(-step / 180) * 260 + 40 * math.exp(-step / 700)
                start = -1.2 if final is None else final - 3
                size, spread = (0.002, 0.05) if final is None else (1, 2)
                values = {
                    f"{i + 1} {words.split()[1]}": start - rise * size * (i + 1) + noise.gauss(0, spread)
                    for i, (words, _) in enumerate(phases)
                }
                lines.append(json.dumps(line | {"values": values}))
                if step % 200 == 0 and end is not None:
                    evaluation = {"log_likelihood": end - rise + rise * math.exp(-9), "kind": kind}
                    lines.append(json.dumps(line | {"evaluation": evaluation}))
                if step % 200 == 0:
                    far = {"distance": 0.002 + 4e-4 * index + 1e-4 * rise, "of": "MMD² of 250 samples, pixels"}
                    lines.append(json.dumps(line | {"evaluation": far}))
            if (key, seed) == ("wake_sleep", 1):
                lines = [*lines[:60], lines[60][:25]]
                (run / "result.json").unlink()
            if (key, seed) == ("mmd", 2):
                error = {
                    "status": "failed",
                    "seed": 2,
                    "steps": 431,
                    "error": "The loss of phase 1 is not finite at step 431.",
                }
                (run / "result.json").write_text(json.dumps(error))
                lines = lines[:21]
            (run / "metrics.jsonl").write_text("\n".join(lines))
            (run / "samples.png").write_bytes(picture(12 + 9 * index, 6, 10 * index + seed))
            if kind == "bound":
                (run / "reconstructions.png").write_bytes(picture(10, 4, 7))
    return path


class Page(HTMLParser):
    """Tags with their attributes, and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def check_closed(page: Page) -> None:
    """Nothing runs, nothing is loaded, and links go to this page or to http(s)."""
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "link", "object", "embed", "base", "form", "video", "audio", "use", "image"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcset", "srcdoc")]
        if "src" in attributes:
            assert tag == "img" and attributes["src"].startswith("data:image/png;base64,")
        if "href" in attributes:
            assert tag == "a" and re.match(r"#routine-\d+$|https?://", attributes["href"])
    policy = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policy) == 1 and policy[0].startswith("default-src 'none'")
    assert not re.search(r"url\(|@import", page.text)


def test_realistic_page(tmp_path):
    path = render(realistic(tmp_path / "run"))
    assert path == tmp_path / "run" / "report.html"
    page = Page(path)
    check_closed(page)
    for key, title, citation, url, formula, phases, *_ in ROUTINES:
        assert all(word in page.text for word in (key, title, citation, phases[0][0]))
        plain = re.sub(r"[_^{} ]", "", formula + phases[0][1])
        assert plain[: len(formula) // 2] in page.text.replace(" ", "")
        assert url in [attributes.get("href") for _, attributes in page.tags]
    assert "2 of 24 runs did not finish" in page.text
    assert "The loss of phase 1 is not finite at step 431." in page.text
    titles = [attributes.get("title") for _, attributes in page.tags]
    assert "2 of 3: 1 incomplete" in titles and "2 of 3: 1 failed" in titles
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 8 + 4
    charts = [a for tag, a in page.tags if tag == "svg" and a.get("class") == "chart"]
    assert len(charts) == 2 + sum(len(routine[5]) for routine in ROUTINES)
    assert [path.name for path in path.parent.glob(".*")] == []


def test_exact_and_bound_are_different_columns(tmp_path):
    write_run(tmp_path, "a", 0, -90.0, "exact")
    write_run(tmp_path, "b", 0, -80.0, "bound")
    write_run(tmp_path, "c", 0, None, "none")
    other = likelihood(-70.0, "bound") | {"how": "importance-weighted bound, K = 5, 1000 test data"}
    write_run(tmp_path, "d", 0, log_likelihood=other)
    results = tabulate(read_runs(tmp_path))
    assert [c.heading for c in results.columns[:3]] == [
        "exact log-likelihood ↑", "lower bound (K = 5) ↑", "lower bound (K = 500) ↑"]  # fmt: skip
    assert [[cell.text for cell in column.cells] for column in results.columns[:3]] == [
        ["−90.00 (0.80)", "–", "implicit: none", "–"], ["–", "–", "", "−70.00 (0.80)"], ["–", "−80.00 (0.80)", "", "–"]
    ]  # fmt: skip
    assert not any(cell.best for column in results.columns for cell in column.cells)
    assert {c.unit for c in results.columns[:3]} == {"nats"}


def test_implicit_routines_alone(tmp_path):
    write_run(tmp_path, "gan", 0, None, "none")
    assert tabulate(read_runs(tmp_path)).columns[0].cells[0].text == "implicit: none"
    assert "implicit: none" in Page(render(tmp_path)).text


def test_aggregation_is_exact(tmp_path):
    assert aggregate([1.0, 2.0, 6.0]) == (3.0, math.sqrt(7.0) / math.sqrt(3.0))
    assert aggregate([4.5]) == (4.5, None)
    with pytest.raises(ValueError, match="at least one value"):
        aggregate([])
    for seed, value in enumerate((-90.0, -91.0, -95.0)):
        write_run(tmp_path, "vae", seed, value)
    write_run(tmp_path, "one", 0, -80.0)
    column = tabulate(read_runs(tmp_path)).columns[0]
    # 4.30265 sqrt(7 / 3) = 6.57 over three seeds; of one seed the standard error of its evaluation
    assert [cell.text for cell in column.cells] == ["−80.0 (0.8)", "−92.0 ± 6.6"]
    assert column.heading == "lower bound (K = 500) ↑"


def test_one_seed_shows_the_error_of_its_evaluation(tmp_path):
    write_config(tmp_path, ["vae"], [0])
    run = write_run(tmp_path, "vae", 0, -91.234)
    page = Page(render(tmp_path)).text
    assert "−91.23 (0.80)" in table(tmp_path) and "−91.23 (0.80)" in page
    assert (
        "One seed: in parentheses the standard error of its own evaluation, which says nothing of another seed." in page
    )
    result = json.loads((run / "result.json").read_text())
    result["log_likelihood"]["standard_error"] = None
    (run / "result.json").write_text(json.dumps(result))
    assert "−91.23 (" not in table(tmp_path) and "−91.23 ±" not in table(tmp_path)


def test_failed_runs_are_left_out_of_the_mean(tmp_path):
    write_run(tmp_path, "vae", 0, -90.0)
    write_run(tmp_path, "vae", 1, -92.0)
    write_run(tmp_path, "vae", 2, -500.0, status="failed", error="Out of memory.")
    write_run(tmp_path, "dead", 0, -1.0, status="failed", error="Phase 2 is not finite.")
    text = table(tmp_path)
    assert "−91 ± 13" in text and "2 of 3: 1 failed" in text and "0 of 1: 1 failed" in text
    page = Page(render(tmp_path))
    assert "Out of memory." in page.text and "Phase 2 is not finite." in page.text
    assert page.text.count("failed") >= 4


def test_a_value_that_some_seeds_lack_says_so(tmp_path):
    write_run(tmp_path, "vae", 0, -90.0)
    write_run(tmp_path, "vae", 1, float("nan"))
    assert "−90.00 (0.80) (1 of 2 seeds)" in table(tmp_path)


def test_bold_is_the_best_and_what_its_interval_does_not_tell_from_it(tmp_path):
    for key, values in {"a": (-90.0, -92.0), "b": (-91.0, -95.0), "c": (-120.0, -120.0)}.items():
        for seed, value in enumerate(values):
            write_run(tmp_path, key, seed, value, metrics={"mmd": {"value": -value / 1e4, "how": "x"}})
    bound, mmd, *times = tabulate(read_runs(tmp_path)).columns
    assert [cell.best for cell in bound.cells] == [True, True, False]
    assert [cell.best for cell in mmd.cells] == [True, True, False]  # lower is better
    assert (mmd.unit, mmd.cells[0].text) == ("", "0.0091 ± 0.0013")
    assert not any(cell.best for column in times for cell in column.cells)
    assert "**−91 ± 13**" in table_markdown(tmp_path)


def test_metrics_computed_differently_are_not_ranked(tmp_path):
    write_run(tmp_path, "a", 0, metrics={"kid": {"value": 0.5, "how": "1000 samples"}})
    write_run(tmp_path, "b", 0, metrics={"kid": {"value": 0.1, "how": "50 samples"}})
    kid = tabulate(read_runs(tmp_path)).columns[1]
    assert kid.note == "1000 samples; 50 samples" and not any(cell.best for cell in kid.cells)


def test_small_numbers_and_units(tmp_path):
    metrics = {"mmd": {"value": 0.00123}, "coverage": {"value": 9, "of": 10}, "my_cost": {"value": 12.345678}}
    write_run(tmp_path, "a", 0, metrics=metrics, seconds_per_step=0.0042, seconds=12345.6)
    columns = {c.heading: (c.unit, c.cells[0].text) for c in tabulate(read_runs(tmp_path)).columns}
    assert columns["MMD ↓"] == ("10⁻³", "1.230")
    assert columns["class coverage ↑"] == ("of 10", "9")
    assert columns["my cost"] == ("", "12.35")
    assert columns["time per step"] == ("ms", "4.20")
    assert columns["time in total"] == ("s", "12,346")


def test_text_table_is_aligned(tmp_path):
    lines = table(realistic(tmp_path / "run")).splitlines()
    head, units, rule, *rows = lines[:11]
    assert len(rule) == max(map(len, [head, units, *rows])) and set(rule) == {"-"}
    assert [row.split()[0] for row in rows] == [routine[0] for routine in ROUTINES]
    assert "lower bound (K = 500) ↑: " + BOUND in lines


@pytest.mark.parametrize(
    "removed", ["config.json", "metrics.jsonl", "result.json", "samples.png", "reconstructions.png"]
)
@pytest.mark.parametrize("damage", ["missing", "half", "empty", "array", "bytes"])
def test_damaged_files_never_stop_the_page(tmp_path, removed, damage):
    write_config(tmp_path, ["vae", "gan"], [0, 1])
    for seed in (0, 1):
        run = write_run(tmp_path, "vae", seed)
        (run / "metrics.jsonl").write_text('{"step": 1, "seconds": 0.1, "values": {"1 elbo": -3.0}}\n')
        for name in ("samples.png", "reconstructions.png"):
            (run / name).write_bytes(png(numpy.zeros((4, 4))))
    for path in tmp_path.rglob(removed):
        content = path.read_bytes()
        path.write_bytes(
            {"half": content[: len(content) // 2], "array": b"[1]", "bytes": b"\xff\x00\xfe"}.get(damage, b"")
        )
        if damage == "missing":
            path.unlink()
    page = Page(render(tmp_path))
    check_closed(page)
    assert "vae" in page.text
    if removed == "result.json":
        assert page.text.count("no result.json that can be read") >= 2
    if removed.endswith("png"):
        assert len([tag for tag, _ in page.tags if tag == "img"]) == 1


def test_torn_last_line_is_skipped(tmp_path):
    run = write_run(tmp_path, "vae", 0)
    lines = ['{"step": 100, "seconds": 1.5, "values": {"1 elbo": -120.5}}', "not json", "[3]",
             '{"step": 100, "seconds": 1.5, "evaluation": {"log_likelihood": -99.0, "kind": "bound"}}',
             '{"step": 150, "seconds": 1.9, "values": {"1 elbo": NaN}}',
             '{"step": 200, "seconds": 2.5, "values": {"1 elbo": -11']  # fmt: skip
    (run / "metrics.jsonl").write_text("\n".join(lines))
    (only,) = read_runs(tmp_path)
    assert only.values == {"1 elbo": [(100.0, 1.5, -120.5)]}
    assert only.evaluations == [(100.0, 1.5, -99.0)] and only.kind == "bound"
    render(tmp_path)


def test_announced_but_absent_runs_are_marked(tmp_path):
    odd = [{"key": "out", "slug": "../outside"}, "nonsense", {"slug": 7, "phases": 3}]
    write_config(tmp_path, [], [0, 1], routines=[{"key": "vae", "slug": "vae"}, *odd])
    write_run(tmp_path, "vae", 1)
    write_run(tmp_path.parent / "outside", "x", 0)
    runs = read_runs(tmp_path)
    assert [(run.name, run.seed, run.status) for run in runs[:3]] == [
        ("vae", "0", "not started"), ("vae", "1", "complete"), ("out", "0", "not started")]  # fmt: skip
    assert all(run.status == "not started" for run in runs[2:])
    page = Page(render(tmp_path))
    assert "0 of 2: 2 not started" in [attributes.get("title") for _, attributes in page.tags]
    assert page.text.count("not started") >= 6


def test_no_comparison_here(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected config.json"):
        render(tmp_path)
    assert not (tmp_path / "report.html").exists()


# -- runs that were stopped, resumed or half written -------------------------------------------------------------------


def test_resumed_runs_are_marked_and_what_was_unusual_stands_on_top(tmp_path):
    write_config(tmp_path, ["vae", "gan"], [0])
    odd = "step-000000000060 was rejected: pair.safetensors has 0 bytes, not 400"
    write_run(tmp_path, "vae", 0, notes=["resumed at step 40"])
    write_run(tmp_path, "gan", 0, notes=["resumed at step 40", odd, 7])
    page = Page(render(tmp_path))
    assert [words for words in page.words if words == "resumed"] == ["resumed"] * 2
    assert f"vae, seed 0 : resumed at step 40 gan, seed 0 : resumed at step 40; {odd}; 7" in page.text
    top = page.text[: page.text.index("Results")]
    assert f"gan, seed 0: {odd}" in top and "vae, seed 0" not in top and "resumed at step" not in top


def test_runs_that_were_never_stopped_are_not_marked(tmp_path):
    write_config(tmp_path, ["vae"], [0, 1])
    write_run(tmp_path, "vae", 0, notes=[])
    write_run(tmp_path, "vae", 1)
    text = Page(render(tmp_path)).text
    assert "resumed" not in text and "did not simply go on" not in text


def test_a_stopped_run_goes_on_and_a_failed_one_says_how_to_retry(tmp_path):
    write_config(tmp_path, ["vae"], [0, 1, 2, 3])
    full = "9 bytes could not be written to metrics.jsonl: No space left on device"
    run = write_run(tmp_path, "vae", 0, status="stopped", error=full)
    (run / "checkpoints" / "step-000000000060").mkdir(parents=True)
    (run / "checkpoints" / "step-000000000050").mkdir()
    (run / "checkpoints" / "rejected-step-000000000090-1").mkdir()
    write_run(tmp_path, "vae", 1, status="failed", error="Phase 1 is not finite.")
    killed = tmp_path / "vae" / "seed-2"
    (killed / "checkpoints" / "step-000000000020").mkdir(parents=True)
    (killed / "metrics.jsonl").write_text('{"step": 25, "values": {}}\n')
    write_run(tmp_path, "vae", 3)
    assert [run.status for run in read_runs(tmp_path)] == ["incomplete", "failed", "incomplete", "complete"]
    text = Page(render(tmp_path)).text
    assert f"{full}; the same command goes on from step 60" in text
    assert "Phase 1 is not finite.; not tried again unless vae/seed-1 is deleted" in text
    assert "no result.json that can be read; last record at step 25; the same command goes on from step 20" in text
    assert "1 of 4: 1 failed, 2 incomplete" in table(tmp_path)


def test_without_its_own_configuration_a_comparison_is_described_by_its_runs(tmp_path):
    write_config(tmp_path, ["vae", "gan"], [0])
    config = json.loads((tmp_path / "config.json").read_text())
    for entry in config["routines"]:
        run = write_run(tmp_path, entry["key"], 0)
        (run / "config.json").write_text(json.dumps(config | {"routine": entry, "seed": 0}))
    whole = Page(render(tmp_path)).text
    (tmp_path / "config.json").write_text("{")
    page = Page(render(tmp_path))
    for words in ("digits", "Kingma & Welling 2014", "Goodfellow et al. 2014", "hidden 200-200", "Linux x86_64"):
        assert words in whole and words in page.text


def test_a_report_of_files_cut_at_any_byte_marks_what_is_incomplete(tmp_path):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    write_config(tmp_path, ["vae"], [0, 1])
    for label in (0, 1):
        run = write_run(tmp_path, "vae", label, notes=["resumed at step 50"])
        lines = [{"step": s, "seconds": s / 9, "values": {"1 elbo": -300.0 / s}} for s in range(1, 100)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "samples.png").write_bytes(png(numpy.zeros((4, 4))))
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    first = tmp_path / "vae" / "seed-0"
    for _ in range(40):
        for path, content in files.items():
            if path.parent in (first, tmp_path):
                path.write_bytes(content[: chance.randrange(len(content) - 1)])  # its last byte may be a line's end
        runs = {run.seed: run for run in read_runs(tmp_path)}
        assert runs["0"].status == "incomplete" and runs["1"].status == "complete"
        steps = (first / "metrics.jsonl").read_bytes().count(b"}}")
        assert len(runs["0"].values.get("1 elbo", [])) == steps and runs["0"].samples == ""
        assert len(runs["1"].values["1 elbo"]) == 99 and runs["1"].samples
        page = Page(render(tmp_path))
        check_closed(page)
        assert "1 of 2 runs did not finish" in page.text and "no result.json that can be read" in page.text


def test_reports_are_whole_while_another_process_writes_runs_and_reports(tmp_path):
    write_config(tmp_path, ["vae"], [0])
    run = tmp_path / "vae" / "seed-0"
    run.mkdir(parents=True)
    done = threading.Event()

    def write() -> None:
        step = 0
        while not done.is_set():
            step += 1
            append(
                run / "metrics.jsonl", json.dumps({"step": step, "values": {"1 elbo": -1.0 / step}}).encode() + b"\n"
            )
            time.sleep(0.002)
            (run / "result.json").write_text('{"status": "complete", "no')
            (run / "result.json").unlink()

    writer = threading.Thread(target=write)
    writer.start()
    other = [sys.executable, "-c", RENDER, str(tmp_path)]
    beside = subprocess.Popen(other, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        count = 0
        while beside.poll() is None or count < 5:
            count += 1
            page = Page(render(tmp_path))
            assert page.text.endswith(END) and "1 of 1 runs did not finish" in page.text
    finally:
        done.set()
        writer.join()
    assert beside.wait() == 0
    assert not list(tmp_path.glob(".*")) and not list(tmp_path.glob("*.tmp"))


END = "it can be archived beside the paper."
RENDER = """
import sys
from unigen.report import render
for _ in range(10):
    render(sys.argv[1])
"""


def test_a_page_that_cannot_be_written_is_an_error_and_the_former_one_stays(tmp_path, monkeypatch):
    write_config(tmp_path, ["vae"], [0])
    before = render(tmp_path).read_text()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    write_run(tmp_path, "vae", 0)
    with pytest.raises(OSError, match=r"\d+ bytes could not be written to .*report.html: No space left on device"):
        render(tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "report.html").read_text() == before and not list(tmp_path.glob(".*"))


# -- hostile strings, charts -------------------------------------------------------------------------------------------

HOSTILE = "</title></style></svg>\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}\x1b[31m&lt;"


def everywhere(value, text):
    """Replace every string of a JSON value by the hostile one, keys of mappings kept."""
    if isinstance(value, dict):
        return {key: everywhere(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [everywhere(item, text) for item in value]
    return text if isinstance(value, str) else value


def test_hostile_strings_are_escaped(tmp_path):
    clean = realistic(tmp_path / "clean")
    template_tags = {tag for tag, _ in Page(render(clean)).tags}
    bad = tmp_path / "bad"
    write_config(bad, ["vae"], [0])
    config = everywhere(json.loads((bad / "config.json").read_text()), HOSTILE)
    config["versions"][HOSTILE] = HOSTILE
    config["hashes"]["weights"][HOSTILE] = HOSTILE
    config["routines"] = [config["routines"][0] | {"slug": "vae"}]
    (bad / "config.json").write_text(json.dumps(config))
    run = write_run(
        bad, "vae", 0, metrics={HOSTILE: {"value": 1.0, "how": HOSTILE, "of": 3}}, routine=HOSTILE, error=HOSTILE
    )
    result = json.loads((run / "result.json").read_text())
    result["log_likelihood"] |= {"how": HOSTILE, "kind": HOSTILE, "units": HOSTILE}
    (run / "result.json").write_text(json.dumps(result))
    lines = [{"step": s, "seconds": 1.0, "values": {HOSTILE: 1.0}} for s in (1, 2)]
    lines += [{"step": s, "seconds": s, "evaluation": {"log_likelihood": -s, "kind": HOSTILE}} for s in (1, 2)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (bad / "<b onclick=x>" / "seed-<i>").mkdir(parents=True)
    page = Page(render(bad))
    check_closed(page)
    assert {tag for tag, _ in page.tags} <= template_tags
    assert "<script>alert(1)</script>" in page.text and "{{ 7 * 7 }}" in page.text and "<b onclick=x>" in page.text
    assert "\x1b" not in table(bad) and "\n<" not in table_markdown(bad)
    assert "\\<script\\>" in table_markdown(bad)


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "data:text/html,x", "//host/x", "http://[", "file:///etc/passwd", 3]
)
def test_only_http_links(tmp_path, url):
    write_config(tmp_path, [], [0], routines=[{"key": "vae", "slug": "vae", "citation": "Someone 2020", "url": url}])
    write_run(tmp_path, "vae", 0)
    page = Page(render(tmp_path))
    assert "Someone 2020" in page.text
    assert {a["href"] for _, a in page.tags if "href" in a} == {"#routine-1"}


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 2000, ["0", "500", "1000", "1500", "2000"]),
        (-96.2, -93.9, ["−96.0", "−95.5", "−95.0", "−94.5", "−94.0"]),
        (0, 0.004, ["0.000", "0.001", "0.002", "0.003", "0.004"]),
        (0, 50_000, ["0", "10,000", "20,000", "30,000", "40,000", "50,000"]),
    ],
)
def test_ticks(low, high, labels):
    assert [label for _, label in ticks(low, high)] == labels


def test_ticks_lie_inside_and_are_distinct():
    draw = random.Random(0)
    for _ in range(300):
        low = draw.uniform(-1, 1) * 10 ** draw.uniform(-8, 8)
        high = low + 10 ** draw.uniform(-3, 1) * max(abs(low), 1e-6)
        found = ticks(low, high)
        width = high - low
        assert 2 <= len(found) <= 6 and all(low - 1e-6 * width <= value <= high + 1e-6 * width for value, _ in found)
    with pytest.raises(ValueError, match="low < high"):
        ticks(1.0, 1.0)


def test_chart_geometry():
    flat = panel([Series("a", ((0.0, 3.0), (10.0, 3.0), (5.0, math.nan), (6.0, 1e200)))])
    assert flat is not None and len(flat.curves[0].path.split("L")) == 2
    rising = panel([Series("a", ((0.0, 0.0), (10.0, 1.0)), marked=True)], x_label="steps")
    assert rising is not None
    first, last = rising.curves[0].markers
    assert first.x == 0 and last.x <= rising.inner_width and last.y < first.y <= rising.inner_height
    assert panel([]) is None and panel([Series("a", ((0.0, math.inf),))]) is None


def test_means_over_seeds_only_where_every_seed_is():
    runs = [[(1, 0.5, 10.0), (2, 1.0, 20.0), (3, 1.5, 7.0)], [(1, 1.5, 30.0), (2, 2.0, 0.0)]]
    assert averaged(runs) == [(1, 1.0, 20.0), (2, 1.5, 10.0)]
    assert averaged([]) == []


def test_thinning_keeps_the_mean():
    points = [(float(i), float(i * i)) for i in range(1000)]
    kept = thinned(points, 100)
    assert len(kept) == 100 and math.isclose(sum(y for _, y in kept) / 100, sum(y for _, y in points) / 1000)
    assert thinned(points[:5], 100) == points[:5]


def test_range_is_not_stretched_by_early_or_diverged_values():
    good = [Series(str(i), ((0.0, -500.0), (1.0, -100.0), (2.0, -95.0 - i)), i) for i in range(3)]
    low, high = worth_showing([*good, Series("diverged", ((0.0, -500.0), (2.0, -9e4)))])
    assert high == -95.0 and -200 < low < -100
    assert worth_showing([]) is None


def test_formulas_are_typeset():
    assert _typeset("max_{θ,φ} E_data log w̃_k^2") == [
        ("", "max"), ("sub", "θ,φ"), ("", " E"), ("sub", "data"), ("", " log w̃"), ("sub", "k"), ("sup", "2")]  # fmt: skip
    assert _typeset("log_q_reversed − <b>_1") == [("", "log_q_reversed − <b>"), ("sub", "1")]
    assert _typeset("E_q(z|x) f_ψ(x)") == [("", "E"), ("sub", "q(z|x)"), ("", " f"), ("sub", "ψ"), ("", "(x)")]
    assert _typeset("") == []


def test_number():
    assert [number(v, d) for v, d in ((-0.001, 2), (-94.317, 2), (12345.6, 0), (3e9, 0))] == [
        "0.00",
        "−94.32",
        "12,346",
        "3e+09",
    ]


if __name__ == "__main__":
    print(render(realistic(Path(sys.argv[1]))))
