"""Tests of the densities, of the datasets with their files, and of the loader."""

import gzip
import hashlib
import http.client
import http.server
import math
import os
import re
import secrets
import threading
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch

from unigen import datafiles
from unigen.data import NAMES, DataError, Dataset, Loader, check, load
from unigen.densities import DENSITIES, GaussianMixture, Moons, Pinwheel

ROOT = os.environ.get("UNIGEN_DATA")
needs_files = pytest.mark.skipif(not ROOT, reason="UNIGEN_DATA names no folder of data files")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def fresh_seed():
    """Return a seed of this run only, and print it for the report of a failure."""
    seed = secrets.randbits(31)
    print(f"seed {seed}")
    return seed


def binary(x):
    return bool(((x == 0) | (x == 1)).all()) and 0 < float(x.mean()) < 1


def one_sentence(error):
    """Return the message, which must be a single sentence on a single line."""
    message = str(error.value)
    assert message and "\n" not in message and re.search(r"[.?!)]$", message)
    assert not re.search(r"[.!?] +[A-Z]", message)
    return message


def dataset(rows, **changes):
    empty = torch.zeros(0, rows.shape[1])
    options = dict(
        train_labels=None,
        validation_labels=None,
        test_labels=None,
        shape=(rows.shape[1],),
        levels=None,
        binarization="none",
        dequantize=False,
        citation="",
    )
    return Dataset("made", rows, empty, empty, **(options | changes))


# ---- densities ---------------------------------------------------------------------------------------------------

# Bounds of a square outside which each density is below e-30 (checkerboard: exactly zero), and a step that divides it.
SQUARES = {
    "ring": (1.1, 0.005),
    "grid": (4.5, 0.025),
    "moons": (3.5, 0.025),
    "checkerboard": (2.5, 0.05),
    "pinwheel": (4.0, 0.02),
}


def quadrature(name):
    """Return log p at the midpoints of a fine grid, and the area of a cell."""
    reach, step = SQUARES[name]
    axis = torch.arange(-reach + step / 2, reach, step, dtype=torch.float64)
    log_p = [DENSITIES[name]().log_prob(torch.cartesian_prod(rows, axis)) for rows in axis.split(40)]
    return torch.cat(log_p), step**2


@pytest.mark.parametrize("name", DENSITIES)
def test_density_integrates_to_one_and_entropy_is_minus_integral_of_p_log_p(name):
    log_p, area = quadrature(name)
    assert abs(float(log_p.exp().sum()) * area - 1) < 1e-6
    entropy = -float(torch.special.xlogy(log_p.exp(), log_p.exp()).sum()) * area
    # Pinwheel has a kink at the origin, which its own quadrature, over straight arms, has not.
    assert abs(entropy - DENSITIES[name]().entropy) < (1e-5 if name == "pinwheel" else 1e-6)


@pytest.mark.parametrize("name", DENSITIES)
def test_samples_have_the_entropy(name):
    density = DENSITIES[name]()
    x = density.sample(40_000, generator(fresh_seed()))
    log_p = density.log_prob(x.double())
    assert x.shape == (40_000, 2) and x.dtype == torch.float32 and bool(log_p.isfinite().all())
    # Six standard errors: a false alarm in 5e8 runs. The sample is fresh in every run.
    error = 6 * float(log_p.std()) / 200 + 1e-9
    assert abs(-float(log_p.mean()) - density.entropy) < error


@pytest.mark.parametrize("name", DENSITIES)
def test_samples_fill_the_cells_of_the_density(name):
    """Compare counts on a coarse grid with the integral of p: a sampler of another shape of equal entropy is caught."""
    reach, step = SQUARES[name]
    log_p, area = quadrature(name)
    side, blocks = round(2 * reach / step), 20
    expected = log_p.exp().mul(area).view(blocks, side // blocks, blocks, side // blocks).sum((1, 3))
    n = 40_000
    x = DENSITIES[name]().sample(n, generator(fresh_seed())).double()
    cell = ((x + reach) * (blocks / (2 * reach))).floor().long()
    counts = torch.bincount(cell[:, 0] * blocks + cell[:, 1], minlength=blocks**2).view(blocks, blocks)
    # Bernstein: a binomial count strays by t with probability at most 2 exp(-t^2 / (2 n p + 2 t / 3)); t^2 = 80 n p + 6400
    # makes that 2 exp(-30) a cell, below 1e-10 for the 400 cells. Where an edge of a cell cuts a mode, the midpoint rule
    # errs by less than 0.3% of the mode.
    assert bool(((counts - n * expected).square() < 80 * n * expected + 6400).all())


@pytest.mark.parametrize("name", DENSITIES)
def test_density_keeps_dtype_and_shape(name):
    density = DENSITIES[name]()
    x = density.sample(6, generator()).view(2, 3, 2)
    assert density.log_prob(x).dtype == torch.float32 and density.log_prob(x).shape == (2, 3)
    assert density.log_prob(x.double()).dtype == torch.float64
    assert torch.equal(density.sample(5, generator(3)), density.sample(5, generator(3)))


def test_ring_and_grid_follow_the_pacgan_protocol():
    ring, grid = DENSITIES["ring"](), DENSITIES["grid"]()
    assert ring.means.shape == (8, 2) and ring.std == 0.01
    assert torch.allclose(ring.means.norm(dim=1), torch.ones(8, dtype=torch.float64))
    assert grid.means.unique().tolist() == [-4, -2, 0, 2, 4] and len(grid.means.unique(dim=0)) == 25
    assert grid.std == 0.05


def test_entropy_of_one_and_of_two_merged_gaussians():
    """Two equal centres are one Gaussian, whose entropy log(2 pi e std^2) the quadrature has to give."""
    point = torch.zeros(1, 2, dtype=torch.float64)
    exact = math.log(2 * math.pi * math.e * 0.3**2)
    assert GaussianMixture(point, 0.3).entropy == pytest.approx(exact, abs=1e-12)
    assert GaussianMixture(point.repeat(2, 1), 0.3).entropy == pytest.approx(exact, abs=1e-9)


def test_pinwheel_twist_preserves_volume_and_entropy():
    assert Pinwheel(twist=0.0).entropy == Pinwheel(twist=3.0).entropy
    one = Pinwheel(arms=1, radius=0.0, radial_std=0.2, tangential_std=0.2)  # round: a twist changes nothing
    x = torch.randn(50, 2, dtype=torch.float64, generator=generator())
    round_ = GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), 0.2)
    assert torch.allclose(one.log_prob(x), round_.log_prob(x), atol=1e-10)


def test_checkerboard_edges():
    density = DENSITIES["checkerboard"]()
    x = torch.tensor([[0.0, 0.0], [0.5, 1.0], [-2.0, -2.0], [2.0, 0.0], [1.999, 1.0], [-0.1, 0.1], [math.nan, 0.0]])
    log_p = density.log_prob(x)
    assert log_p[:6].exp().tolist() == pytest.approx([1 / 8, 0, 1 / 8, 0, 1 / 8, 0])
    assert bool(log_p[6].isnan())


def test_checkerboard_samples_never_round_into_the_next_square(monkeypatch):
    density, rand = DENSITIES["checkerboard"](), torch.rand
    monkeypatch.setattr(torch, "rand", lambda *size, **options: rand(*size, **options) * 0 + (1 - 2**-24))
    assert bool(density.log_prob(density.sample(1000, generator())).isfinite().all())


def test_moons_lie_where_scikit_learn_has_them():
    from sklearn.datasets import make_moons

    x = torch.from_numpy(make_moons(200, shuffle=False)[0])
    # Every point of the arcs is within half a spacing of a tooth, and every tooth of some point.
    distance = torch.cdist(x, Moons()._mixture.means)
    assert float(distance.amin(0).max()) < 0.51 * math.pi / 99 and float(distance.amin(1).max()) < 0.51 * math.pi / 32


def test_moons_comb_has_no_visible_teeth():
    """A comb ten times as fine has the same density in the middle of an arc."""
    x = torch.stack([torch.tensor([math.cos(a), math.sin(a)]) for a in np.linspace(1.5, 1.65, 20)]).double()
    assert torch.allclose(Moons().log_prob(x), Moons(components=320).log_prob(x), atol=1e-4)


# ---- datasets ----------------------------------------------------------------------------------------------------

COUNTS = {
    "digits": (1297, 250, 250, 64),
    "mnist": (50_000, 10_000, 10_000, 784),
    "fashion_mnist": (50_000, 10_000, 10_000, 784),
    "binarized_mnist": (50_000, 10_000, 10_000, 784),
} | dict.fromkeys(DENSITIES, (100_000, 10_000, 10_000, 2))
FILED = ("mnist", "fashion_mnist", "binarized_mnist")


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_files) if n in FILED else n for n in NAMES])
def test_counts_shapes_and_ranges(name):
    data = load(name)
    *counts, width = COUNTS[name]
    for split, count in zip(("train", "validation", "test"), counts, strict=True):
        rows, labels = getattr(data, split), getattr(data, split + "_labels")
        assert rows.shape == (count, width) and rows.dtype == torch.float32 and rows.is_contiguous()
        if name in ("digits", "mnist", "fashion_mnist"):
            assert (
                labels.shape == (count,) and labels.dtype == torch.int64 and labels.unique().tolist() == list(range(10))
            )
        else:
            assert labels is None
    assert math.prod(data.shape) == width and data.name == name and data.citation
    assert (data.density is None) == (name not in DENSITIES)
    assert data.mean.shape == (width,) and torch.allclose(data.mean, data.train.mean(0), atol=1e-4)
    if name in DENSITIES:
        assert (data.levels, data.binarization) == (None, "none")
        return
    assert data.binarization == ("none" if name == "binarized_mnist" else "dynamic")
    assert data.levels == {"digits": 17, "binarized_mnist": 2}.get(name, 256)
    grey = data.train[:1000] * (data.levels - 1)
    assert torch.allclose(grey, grey.round(), atol=1e-4) and grey.round().unique().numel() == data.levels
    assert [float(bound) for bound in data.train.aminmax()] == [0, 1] and binary(data.test) and binary(data.validation)


@needs_files
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_pinned_files_are_the_official_ones(name):
    """The files whose sha256 is pinned have the md5 sums that torchvision publishes."""
    torchvision = pytest.importorskip("torchvision")
    for file, md5 in getattr(torchvision.datasets, {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name]).resources:
        content = (Path(ROOT) / name / file).read_bytes()
        assert hashlib.md5(content, usedforsecurity=False).hexdigest() == md5
        assert hashlib.sha256(content).hexdigest() == datafiles._SHA256[f"{name}/{file}"]


@needs_files
def test_mnist_rows_and_labels_are_the_official_ones_in_order():
    data = load("mnist", binarization="none")
    content = gzip.decompress((Path(ROOT) / "mnist" / "train-images-idx3-ubyte.gz").read_bytes())
    last = np.frombuffer(content[-784:], np.uint8).astype(np.float32) / 255
    assert torch.equal(data.validation[-1], torch.from_numpy(last))
    assert data.train_labels[:5].tolist() == [5, 0, 4, 1, 9] and data.test_labels[:4].tolist() == [7, 2, 1, 0]
    assert data.test.mean() == pytest.approx(0.1325, abs=1e-4)


def test_digits_are_those_of_scikit_learn_and_splits_are_disjoint():
    from sklearn.datasets import load_digits

    data = load("digits", binarization="none")
    rows = torch.cat((data.train, data.validation, data.test)) * 16
    labels = torch.cat((data.train_labels, data.validation_labels, data.test_labels))
    ours = sorted(map(tuple, torch.cat((rows, labels[:, None].float()), 1).tolist()))
    bundled = load_digits()
    assert ours == sorted(
        (*row, label) for row, label in zip(bundled.data.tolist(), bundled.target.tolist(), strict=True)
    )
    assert torch.equal(load("digits", binarization="none", validation=100).test, data.test)
    assert len(load("digits", validation=100).train) == 1447 and len(load("digits", validation=0).validation) == 0


def test_what_is_drawn_once_depends_on_the_seed_alone():
    first, again, other = load("digits"), load("digits"), load("digits", seed=1)
    assert torch.equal(first.test, again.test) and not torch.equal(first.test, other.test)
    assert torch.equal(first.train, other.train)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert torch.equal(load("ring", size=10).train, load("ring", size=10).train)
    assert not torch.equal(load("ring", size=10).train, load("ring", size=10, seed=1).train)
    assert not torch.equal(load("ring").validation, load("ring").test)


def test_static_binarization_is_a_bernoulli_draw():
    grey, static = load("digits", binarization="none").train, load("digits", binarization="static")
    assert static.levels == 2 and binary(static.train)
    assert bool((static.train[grey == 0] == 0).all()) and bool((static.train[grey == 1] == 1).all())
    for level in range(1, 16):
        drawn = static.train[grey == level / 16]
        p = level / 16
        # The seed is fixed; a right draw fails here for one in 1e8 of all seeds (six standard errors).
        assert abs(float(drawn.mean()) - p) < 6 * math.sqrt(p * (1 - p) / len(drawn))


def test_dequantization_stays_in_the_bins():
    data, grey = load("digits", dequantize=True), load("digits", binarization="none")
    assert (data.binarization, data.levels, data.dequantize) == ("none", 17, True)
    inside = data.test * 17 - grey.test * 16
    assert -1e-5 < float(inside.min()) < 0.01 and 0.99 < float(inside.max()) < 1 + 1e-5 and float(data.test.max()) < 1
    loader = Loader(data, 1297)
    batch = loader.batch(3, 0)
    inside = batch * 17 - grey.train[loader.order(3)] * 16
    assert -1e-5 < float(inside.min()) and float(inside.max()) < 1 + 1e-5 and float(batch.max()) < 1
    assert not torch.equal(batch, loader._rows[loader.order(3)])
    assert torch.allclose(data.mean, ((grey.train * 16 + 0.5) / 17).mean(0), atol=1e-6)


def test_dequantized_values_stay_below_one():
    """Sums 255 / 256 + u / 256 round to 1 for one u in 2^17: without care 15 of these (none in one seed of 4e6)."""
    loader = Loader(dataset(torch.full((2000, 1000), 255 / 256), levels=256, dequantize=True), 2000)
    assert 1 - 1e-6 < float(loader.batch(0, 0).max()) < 1


def test_fingerprint_sees_every_tensor_and_option():
    rows = torch.rand(6, 2, generator=generator())
    plain = dataset(rows)
    changed = rows.clone()
    changed[3, 1] += 1e-6
    others = [
        dataset(changed),
        dataset(rows, train_labels=torch.arange(6)),
        dataset(rows, levels=17),
        dataset(rows, binarization="dynamic"),
        dataset(rows, shape=(1, 2)),
    ]
    prints = {plain.fingerprint, dataset(rows.clone()).fingerprint, *(other.fingerprint for other in others)}
    assert len(prints) == 1 + len(others) and all(re.fullmatch("[0-9a-f]{64}", p) for p in prints)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mnits", {}, "'mnist'"),
        ("Digits", {}, "'digits'"),
        ("digits", {"binarization": "dynamc"}, "'dynamic'"),
        ("digits", {"binarization": "static", "dequantize": True}, "both"),
        ("digits", {"binarization": "dynamic", "dequantize": True}, "both"),
        ("digits", {"size": 100}, "size=100"),
        ("digits", {"validation": 1547}, "1546"),
        ("digits", {"validation": -1}, "-1"),
        ("digits", {"validation": 2.5}, "2.5"),
        ("digits", {"seed": "0"}, "'0'"),
        ("digits", {"seed": -1}, "-1"),
        ("binarized_mnist", {"binarization": "dynamic"}, "already binary"),
        ("binarized_mnist", {"dequantize": True}, "levels=2"),
        ("binarized_mnist", {"validation": 400}, "400"),
        ("ring", {"binarization": "static"}, "density"),
        ("ring", {"dequantize": True}, "density"),
        ("ring", {"size": 0}, "size is 0"),
        ("ring", {"size": True}, "True"),
    ],
)
def test_unfit_options_are_refused(name, options, words):
    with pytest.raises(ValueError) as error:
        load(name, **options)
    assert words in one_sentence(error)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": (3,)}, "(4, 2)"),
        ({"train_labels": torch.zeros(3, dtype=torch.int64)}, "(3,)"),
        ({"binarization": "sometimes"}, "'sometimes'"),
        ({"dequantize": True}, "levels=None"),
    ],
)
def test_datasets_that_do_not_fit_together_are_refused(changes, words):
    with pytest.raises(ValueError) as error:
        dataset(torch.zeros(4, 2), **changes)
    assert words in one_sentence(error)


# ---- files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A root with an mnist folder of 20 + 4 images, whose sums are pinned in place of the official ones."""
    stream = np.random.RandomState(1)
    folder = tmp_path / "root" / "mnist"
    folder.mkdir(parents=True)
    pinned = dict(datafiles._SHA256)
    for part, count in (("train", 20), ("t10k", 4)):
        images, labels = stream.bytes(count * 784), bytes(range(count))
        for file, content in (
            (f"{part}-images-idx3-ubyte.gz", bytes(16) + images),
            (f"{part}-labels-idx1-ubyte.gz", bytes(8) + labels),
        ):
            (folder / file).write_bytes(gzip.compress(content))
            pinned[f"mnist/{file}"] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    monkeypatch.setattr(datafiles, "_SHA256", pinned)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("UNIGEN_DATA", raising=False)
    return tmp_path / "root"


def test_root_and_environment_variable(small, monkeypatch):
    data = load("mnist", small, validation=5)
    assert data.train.shape == (15, 784) and data.validation_labels.tolist() == [15, 16, 17, 18, 19]
    monkeypatch.setenv("UNIGEN_DATA", str(small))
    assert load("mnist", validation=5).fingerprint == data.fingerprint


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def damage_flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_empty(path):
    path.write_bytes(b"")


def damage_other(path):
    path.write_text("<html>404 Not Found</html>")


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_empty, damage_other])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_a_damaged_file_is_refused(small, damage, file):
    path = small / "mnist" / file
    damage(path)
    with pytest.raises(DataError) as error:
        load("mnist", small, validation=5)
    message = one_sentence(error)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert str(path) in message and found in message and datafiles._SHA256[f"mnist/{file}"] in message


def test_a_missing_or_unreadable_file_is_refused(small):
    path = small / "mnist" / "t10k-images-idx3-ubyte.gz"
    path.unlink()
    for _ in range(2):  # missing, then a folder in its place
        with pytest.raises(DataError) as error:
            load("mnist", small, validation=5)
        message = one_sentence(error)
        assert str(path) in message and datafiles._SHA256["mnist/t10k-images-idx3-ubyte.gz"] in message
        path.mkdir(exist_ok=True)


@pytest.mark.parametrize("name", FILED)
@pytest.mark.parametrize("variable", [True, False])
def test_a_given_root_without_the_folder_is_never_a_download(tmp_path, monkeypatch, name, variable):
    monkeypatch.setattr(datafiles, "_download", lambda name: pytest.fail("a download was tried"))
    monkeypatch.setenv("UNIGEN_DATA", str(tmp_path if variable else tmp_path / "other"))
    with pytest.raises(DataError) as error:
        load(name, None if variable else tmp_path)
    message = one_sentence(error)
    assert str(tmp_path / name) in message and "UNIGEN_DATA" in message and "digits" in message


def test_a_damaged_packed_file_is_refused_before_it_is_parsed(tmp_path):
    folder = tmp_path / "binarized_mnist"
    folder.mkdir()
    np.savez(folder / "binarized_mnist_packed.npz", train=np.array([{"an": "object"}], dtype=object))
    with pytest.raises(DataError) as error:
        load("binarized_mnist", tmp_path)
    assert "sha256" in one_sentence(error)


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("no route"),
        OSError("Error.\nNext line."),
        TimeoutError(),
        http.client.IncompleteRead(b""),
    ],
)
@pytest.mark.parametrize(
    ("name", "title"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("binarized_mnist", "MNIST")]
)
def test_offline(small, monkeypatch, tmp_path, failure, name, title):
    def fail(address):
        raise failure

    monkeypatch.setattr(datafiles, "_fetch", fail)
    with pytest.raises(DataError) as error:
        load(name)
    message = one_sentence(error)
    assert all(word in message for word in (title, "UNIGEN_DATA", "--data-root", "'digits'"))
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on this machine in place of the mirrors; it answers with what ``answers`` holds by name, else with 404."""
    answers: dict[str, tuple[int, dict[str, str], bytes]] = {}

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, body = answers.get(self.path[1:], (404, {}, b"<html>Not Found</html>"))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        address = f"http://127.0.0.1:{listening.server_address[1]}/"
        monkeypatch.setattr(datafiles, "_MIRRORS", {name: (address,) for name in ("mnist", "fashion_mnist")})
        monkeypatch.setattr(datafiles, "_SECONDS", 5.0)
        yield answers
        listening.shutdown()
        thread.join()


def test_what_a_server_sends_is_kept_only_with_the_right_sum(small, server, tmp_path):
    secret, cache = tmp_path / "secret", tmp_path / "cache"
    secret.write_text("x")
    for file in (small / "mnist").iterdir():
        server[file.name] = (200, {}, file.read_bytes())
    good = dict(server)
    image = "train-images-idx3-ubyte.gz"
    whole = good[image][2]
    bad = {
        "missing": (404, {}, b""),
        "an error page": (200, {"Content-Type": "text/html"}, b"<html>maintenance</html>"),
        "one bit": (200, {}, whole[:-1] + bytes([whole[-1] ^ 1])),
        "truncated": (200, {"Content-Length": str(len(whole))}, whole[:100]),
        "empty": (200, {}, b""),
        "longer": (200, {}, whole + b"x"),
        "beyond the bound": (200, {}, bytes(2**20)),
        "another file": good["t10k-images-idx3-ubyte.gz"],
        "a redirection to a file": (302, {"Location": f"file://{secret}"}, b""),
        "a redirection to itself": (302, {"Location": image}, b""),
        "no status": (999, {}, b""),
        "a server's error": (500, {}, b""),
    }
    for name, answer in bad.items():
        server[image] = answer
        with pytest.MonkeyPatch.context() as patch:
            if name == "beyond the bound":
                patch.setattr(datafiles, "_MOST_BYTES", 2**18)
            with pytest.raises(DataError) as error:
                load("mnist", validation=5)
        assert image in one_sentence(error) and "could not be downloaded" in str(error.value), name
        assert not list(cache.rglob(image + "*")), name
    server[image] = good[image]
    assert load("mnist", validation=5).fingerprint == load("mnist", small, validation=5).fingerprint
    server.clear()
    load("mnist", validation=5)  # from the cache


def fake_download(monkeypatch, source):
    """Answer downloads of MNIST from a folder, and return the list of the addresses that were asked for."""
    calls = []

    def copy(address):
        calls.append(address)
        return (Path(source) / address.rsplit("/", 1)[1]).read_bytes()

    monkeypatch.setattr(datafiles, "_fetch", copy)
    return calls


def test_downloads_go_to_the_cache_once_and_are_verified(small, monkeypatch, tmp_path):
    calls = fake_download(monkeypatch, small / "mnist")
    data = load("mnist", validation=5)
    assert data.fingerprint == load("mnist", small, validation=5).fingerprint == load("mnist", validation=5).fingerprint
    assert len(calls) == len(set(calls)) == 4 and all(call.startswith("https://") for call in calls)
    path = tmp_path / "cache" / "unigen" / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    damage_flip(path)
    with pytest.raises(DataError) as error:
        load("mnist", validation=5)
    assert str(path) in one_sentence(error) and "delete the folder" in str(error.value)


@needs_files
def test_binarized_mnist_without_a_file_is_a_draw_of_our_own(monkeypatch, tmp_path):
    monkeypatch.delenv("UNIGEN_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fake_download(monkeypatch, Path(ROOT) / "mnist")
    data, packed = load("binarized_mnist"), load("binarized_mnist", ROOT)
    grey = load("mnist", ROOT, binarization="none")
    assert data.train.shape == packed.train.shape and data.test.shape == packed.test.shape and data.levels == 2
    assert data.train_labels is None and "our own" in data.citation and "our own" not in packed.citation
    assert binary(data.train)
    for split in ("validation", "test"):
        drawn, p = getattr(data, split), getattr(grey, split)
        assert bool((drawn[p == 0] == 0).all()) and bool((drawn[p == 1] == 1).all())
        # Six standard errors of a fixed draw: one seed in 5e8 fails.
        assert abs(float((drawn - p).double().sum())) < 6 * math.sqrt(float((p * (1 - p)).double().sum()))
    # The packed file is another draw in another order: the mean of 50,000 images has a standard error of 2e-4.
    assert float(packed.mean.mean()) == pytest.approx(float(data.mean.mean()), abs=2e-3)


# ---- loader ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_order_is_a_permutation_and_a_pure_function_of_seed_and_epoch(digits):
    one, two = Loader(digits, 100, seed=5), Loader(digits, 32, seed=5)
    for epoch in (3, 0, 1):  # in any order of asking, and whatever was asked before
        two.batch(epoch + 1, 2)
        assert torch.equal(one.order(epoch), two.order(epoch))
        assert torch.equal(one.order(epoch).sort().values, torch.arange(1297))
    orders = [Loader(digits, 100, seed=seed).order(epoch) for seed in range(3) for epoch in range(3)]
    assert all(not torch.equal(a, b) for i, a in enumerate(orders) for b in orders[:i])


@pytest.mark.parametrize("options", [{}, {"binarization": "none"}, {"binarization": "static"}, {"dequantize": True}])
def test_batches_are_pure_and_leave_the_global_random_state_alone(options):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    data = load("digits", **options)
    loader, fresh = Loader(data, 100, seed=7), Loader(data, 100, seed=7)
    forward = [loader.at(step) for step in range(30)]
    for step in reversed(range(30)):
        assert torch.equal(fresh.at(step), forward[step])
        assert torch.equal(fresh.batch(step // 13, step % 13), forward[step])
    for name in DENSITIES:
        load(name, size=10)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_dynamic_binarization_is_redrawn_for_each_epoch_and_batch(digits):
    loader = Loader(digits, 1297, seed=2)
    unshuffled = [loader.batch(epoch, 0)[loader.order(epoch).argsort()] for epoch in range(4)]
    grey = digits.train
    assert not torch.equal(unshuffled[0], unshuffled[1])
    assert not torch.equal(
        unshuffled[0], Loader(digits, 1297, seed=3).batch(0, 0)[Loader(digits, 1297, seed=3).order(0).argsort()]
    )
    for x in unshuffled:
        assert binary(x)
        assert bool((x[grey == 0] == 0).all()) and bool((x[grey == 1] == 1).all())
        # Six standard errors of a fixed draw, four of them: one seed in 1e8 fails.
        assert abs(float((x - grey).double().sum())) < 6 * math.sqrt(float((grey * (1 - grey)).double().sum()))
    # Draws of two epochs are independent: their covariance over entries is zero within six standard errors.
    product = ((unshuffled[0] - grey) * (unshuffled[1] - grey)).double()
    assert abs(float(product.sum())) < 6 * math.sqrt(float((grey * (1 - grey)).double().square().sum()))


@pytest.mark.parametrize("options", [{"binarization": "dynamic"}, {"levels": 4, "dequantize": True}])
def test_noise_differs_between_seeds_epochs_and_batches(options):
    """Rows that are all equal show the noise alone."""
    rows = torch.full((20, 50), 0.5)
    batches = [Loader(dataset(rows, **options), 10, seed=s).batch(e, i) for s in (0, 1) for e in (0, 1) for i in (0, 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(batches) for b in batches[:i])


def test_an_epoch_has_every_row_once_and_a_last_partial_batch(digits):
    grey = load("digits", binarization="none")
    loader = Loader(grey, 100, seed=1)
    batches = list(loader.epoch(2))
    assert len(loader) == loader.steps_per_epoch == len(batches) == 13
    assert [len(batch) for batch in batches] == [100] * 12 + [97]
    assert torch.equal(torch.cat(batches), grey.train[loader.order(2)])
    assert torch.equal(torch.cat([grey.train[loader.indices(2, index)] for index in range(13)]), torch.cat(batches))
    assert all(torch.equal(a, b) for a, b in zip(loader, loader.epoch(0), strict=True))
    short = Loader(grey, 100, seed=1, drop_last=True)
    assert len(short) == 12 and torch.equal(short.at(12), short.batch(1, 0))
    assert torch.equal(torch.cat(list(short.epoch(2))), torch.cat(batches)[:1200])
    assert len(Loader(grey, 1297)) == len(Loader(grey, 1297, drop_last=True)) == 1


def test_batches_share_no_memory_with_the_data():
    data = load("digits", binarization="none")
    loader, before = Loader(data, 100), data.train.clone()
    loader.batch(0, 0).zero_()
    loader.order(0).zero_()
    assert torch.equal(data.train, before) and torch.equal(loader.order(0).sort().values, torch.arange(1297))


def test_order_fingerprint(digits):
    one, same = Loader(digits, 100, seed=1), Loader(load("digits", binarization="none"), 100, seed=1)
    assert one.order_fingerprint(20) == same.order_fingerprint(20)
    prints = {one.order_fingerprint(steps) for steps in (0, 1, 12, 13, 14, 26)}
    prints |= {Loader(digits, 100, seed=2).order_fingerprint(13), Loader(digits, 50, seed=1).order_fingerprint(26)}
    assert len(prints) == 8
    rows = b"".join(one.indices(*divmod(step, 13)).numpy().tobytes() for step in range(20))
    assert one.order_fingerprint(20) == hashlib.sha256(b"100" + rows).hexdigest()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": -3}, "-3"),
        ({"batch_size": 1298}, "1297"),
        ({"batch_size": 2.0}, "2.0"),
        ({"batch_size": True}, "True"),
        ({"batch_size": "100"}, "'100'"),
        ({"batch_size": 10, "seed": -1}, "seed is -1"),
        ({"batch_size": 10, "seed": 0.5}, "seed is 0.5"),
        ({"batch_size": 10, "device": "abacus"}, "'abacus'"),
    ],
)
def test_unfit_loaders_are_refused(digits, options, words):
    with pytest.raises(ValueError) as error:
        Loader(digits, **options)
    assert words in one_sentence(error)


@pytest.mark.parametrize(
    "ask",
    [
        lambda loader: loader.batch(0, 13),
        lambda loader: loader.batch(0, -1),
        lambda loader: loader.batch(-1, 0),
        lambda loader: loader.batch(0.0, 0),
        lambda loader: loader.at(-1),
        lambda loader: loader.order(-1),
        lambda loader: loader.order_fingerprint(-1),
    ],
)
def test_batches_that_do_not_exist_are_refused(digits, ask):
    with pytest.raises(ValueError) as error:
        ask(Loader(digits, 100))
    assert "expected an integer" in one_sentence(error)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[0.0, NAN], [0.0, 1.0]], "1 of 2 rows"),
        ([[0.0, INF], [-INF, NAN]], "2 of 2 rows"),
        ([[0.0, 1.5]], "[0, 1.5]"),
        ([[-0.25, 1.0]], "[-0.25, 1]"),
        ([[0.0, 255.0]], "x / 255"),
    ],
)
def test_unfit_rows_are_refused_in_every_split(rows, words):
    fit, unfit = torch.zeros(3, 2), torch.tensor(rows)
    for splits in ((unfit, fit, fit), (fit, unfit, fit), (fit, fit, unfit)):
        data = Dataset("made", *splits, None, None, None, (2,), 256, "dynamic", False, "")
        with pytest.raises(DataError) as error:
            Loader(data, 1)
        assert words in one_sentence(error) and "made." in str(error.value)


def test_an_empty_or_double_training_set_is_refused():
    for rows in (torch.zeros(0, 2), torch.zeros(4, 2, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.int64)):
        with pytest.raises(DataError) as error:
            Loader(dataset(rows), 1)
        one_sentence(error)


@pytest.mark.parametrize(
    "x", [np.zeros((2, 2), np.float32), [[0.0]], None, torch.zeros(2), torch.zeros(2, 1, 2), torch.zeros(2, 0)]
)
def test_check_refuses_what_is_no_matrix(x):
    with pytest.raises(DataError) as error:
        check(x, "rows")
    assert one_sentence(error).startswith("rows ")


def test_check_and_loader_accept_odd_but_sound_rows():
    constant, wide = torch.full((1, 3), 0.5), torch.full((2, 2), -1e30)
    assert check(constant, "rows", low=0, high=1) is constant and check(wide, "rows") is wide
    rows = torch.rand(3, 8, generator=generator()).t()  # not contiguous
    loader = Loader(dataset(rows), 4)
    assert torch.equal(torch.cat(list(loader)), rows[loader.order(0)])
    assert Loader(dataset(constant), 1).at(5).tolist() == constant.tolist()
