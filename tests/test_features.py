"""The frozen LeNets: what their files say of them is so, a changed file is refused, and rounding and folding lose nothing."""

import json
import os
import shutil

import pytest
import torch
import train_features
from safetensors.torch import load_file

from unigen.data import load
from unigen.evaluate.features import LENETS, WEIGHTS, LeNet, features_of, lenet, principal_components
from unigen.evaluate.sample_metrics import sample_metrics

LEAST = {"mnist": 0.99, "fashion_mnist": 0.91}
needs_files = pytest.mark.skipif("UNIGEN_DATA" not in os.environ, reason="UNIGEN_DATA is not set")


@pytest.fixture(autouse=True)
def global_stream_is_untouched():
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 784, generator=torch.Generator().manual_seed(seed))


# ---- the stored weights ----


@pytest.mark.parametrize("name", LENETS)
def test_stored_weights_are_small_half_precision_and_described(name):
    said = json.loads((WEIGHTS / f"{name}.json").read_text())
    path = WEIGHTS / f"{name}.safetensors"
    assert path.stat().st_size == said["bytes"] < 300_000
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    assert said["test accuracy"] >= LEAST[name] and said["test images"] == 10_000


def test_all_weights_together_are_under_a_megabyte():
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 1_000_000


@needs_files
@pytest.mark.parametrize("name", LENETS)
def test_the_stated_accuracy_is_that_of_the_stored_weights(name):
    data = load(name, binarization="none")
    network = lenet(name)
    assert data.test_labels is not None
    found = network.accuracy(data.test, data.test_labels)
    said = json.loads((WEIGHTS / f"{name}.json").read_text())["test accuracy"]
    # another processor's rounding may turn an image that lies on a border
    assert found == pytest.approx(said, abs=0.0003) and found >= LEAST[name]
    # and not of any weights: the other network, or one class for all
    other = lenet(next(one for one in LENETS if one != name))
    assert other.accuracy(data.test, data.test_labels) < 0.5


@pytest.mark.parametrize("name", LENETS)
def test_the_network_is_frozen_and_its_parts_agree(name):
    network, x = lenet(name), images(7)
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    features = network.features(x)
    assert features.shape == (7, 84) and features.dtype == torch.float64 and (features >= 0).all()
    logits = network.logits(x)
    assert torch.allclose(network.output(features.float()), logits, atol=1e-5)
    assert torch.equal(network.predict(x), logits.argmax(-1))
    assert torch.allclose(network.log_probabilities(x).exp().sum(1), torch.ones(7, dtype=torch.float64))
    assert torch.equal(network.features(x.repeat(100, 1))[-7:], network.features(x.repeat(100, 1))[:7])
    with pytest.raises(ValueError, match=r"shape \(N, 784\), but got \(7, 64\)"):
        network(torch.zeros(7, 64))


def test_changed_missing_or_strange_files_are_refused(tmp_path):
    for file in WEIGHTS.glob("mnist.*"):
        shutil.copy(file, tmp_path)
    assert torch.equal(lenet("mnist", tmp_path).output.bias, lenet("mnist").output.bias)
    content = bytearray((tmp_path / "mnist.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "mnist.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"has sha256 .*, expected .*: install the package anew"):
        lenet("mnist", tmp_path)
    (tmp_path / "mnist.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        lenet("mnist", tmp_path)
    with pytest.raises(ValueError, match="no LeNet of 'fashion'; did you mean 'fashion_mnist'"):
        lenet("fashion")


# ---- the script ----


def test_folding_keeps_the_function():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trained = train_features.Trained()
        for parameter in trained.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        for batch in range(3):
            trained(images(50, batch))
        trained.eval()
    x = images(20, 9)
    folded = trained.folded()
    assert torch.allclose(folded.logits(x), trained(x), atol=1e-5)
    folded.dense_1.bias.data += 0.1
    assert not torch.allclose(folded.logits(x), trained(x), atol=1e-3)


def test_shifts_move_images_whole_by_up_to_two_pixels():
    x = torch.zeros(200, 28, 28)
    x[:, 10, 12] = 1.0
    with torch.random.fork_rng():
        torch.manual_seed(1)
        moved = train_features.shifted(x.reshape(200, 784)).reshape(200, 28, 28)
    places = moved.nonzero()
    assert len(places) == 200
    assert set(places[:, 1].tolist()) == {8, 9, 10, 11, 12} and set(places[:, 2].tolist()) == {10, 11, 12, 13, 14}


def test_training_is_a_pure_function_of_its_seed():
    x, labels = images(60), torch.arange(60) % 10
    first, again, other = (
        train_features.train(x, labels, train_features.Settings(epochs=1, batch_size=30, seed=seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.output.weight, again.output.weight)
    assert not torch.equal(first.output.weight, other.output.weight)


@needs_files
def test_the_script_writes_what_the_loader_reads(tmp_path, capsys):
    settings = train_features.Settings(data="fashion_mnist", epochs=1, rows=400, batch_size=40, out=str(tmp_path))
    found = train_features.main(settings)
    data = load("fashion_mnist", binarization="none")
    assert data.test_labels is not None
    network = lenet("fashion_mnist", tmp_path)
    assert network.accuracy(data.test, data.test_labels) == found["test accuracy"] > 0.3
    assert "test accuracy" in capsys.readouterr().out
    with pytest.raises(ValueError, match="got 'digits'"):
        train_features.main(train_features.Settings(data="digits"))


# ---- which features a dataset has ----


def test_features_have_names():
    assert features_of(load("digits")).name == "pixels"
    assert features_of(load("ring", size=10, validation=1)).name == "coordinates"
    x = images(3)[:, :64]
    assert torch.equal(features_of(load("digits"))(x), x.double())


@needs_files
def test_images_of_28_pixels_have_a_lenet():
    for name, expected in (("mnist", "mnist"), ("binarized_mnist", "mnist"), ("fashion_mnist", "fashion_mnist")):
        found = features_of(load(name))
        assert found.name == f"84 features of the LeNet of {expected}" and isinstance(found.classifier, LeNet)
        assert torch.equal(found(images(5)), lenet(expected).features(images(5)))


def test_principal_components_are_those_of_a_singular_value_decomposition():
    x = images(300)[:, :30].double() @ torch.linspace(0.2, 3, 30).double().diag()
    found = principal_components(x, 5)
    assert found.name == "5 principal components"
    _, _, axes = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    expected = (x - x.mean(0)) @ axes[:5].T
    assert torch.allclose(found(x).abs(), expected.abs(), atol=1e-9)
    with pytest.raises(ValueError, match="1 to D components"):
        principal_components(x, 31)


# ---- the whole examination ----


def test_every_figure_that_digits_and_a_ring_permit():
    digits = load("digits")
    found = sample_metrics(digits, digits.validation)
    every = {"fid", "kid", "mmd", "precision", "recall", "density", "coverage", "sliced_wasserstein", "wasserstein"}
    assert set(found) == every | {"memorization"}
    assert all(one.n_fake == 250 and one.n_real == 250 for one in found.values())
    assert found["kid"].p_value > 1e-3 and sample_metrics(digits, digits.validation) == found
    with torch.random.fork_rng():
        torch.manual_seed(0)
        noise = torch.bernoulli(digits.validation.mean(0).expand(250, 64))
    worse = sample_metrics(digits, noise)
    assert worse["mmd"].p_value == 1 / 201 and worse["mmd"].interval[0] > found["mmd"].interval[1]
    assert worse["coverage"].value < found["coverage"].value and worse["fid"].value > found["fid"].value
    ring = load("ring", size=500, validation=300)
    assert {"modes", "high_quality", "reverse_kl"} < set(sample_metrics(ring, ring.validation, permutations=None))
    with pytest.raises(ValueError, match="251 samples but only 250 test rows"):
        sample_metrics(digits, torch.cat([digits.validation, digits.validation[:1]]))


@needs_files
def test_every_figure_that_mnist_permits():
    data = load("mnist", binarization="static")
    fake = data.validation[:300]
    found = sample_metrics(data, fake, permutations=99)
    assert found["classes"].value == 10 and found["class_kl"].value < 0.1
    assert found["inception_score"].value == pytest.approx(found["inception_score_of_data"].value, rel=0.1)
    assert found["kid"].p_value > 1e-3 and "LeNet of mnist" in found["fid"].features
    assert (found["inception_score_of_data"].n_real, found["inception_score_of_data"].n_fake) == (300, 0)
    assert "LeNet of mnist" in found["classes"].features and found["memorization"].features == "pixels"
    collapsed = sample_metrics(data, fake[data.validation_labels[:300] == 3].repeat(20, 1)[:300], permutations=99)
    assert collapsed["classes"].value <= 3 and collapsed["class_kl"].value > 1.5
    assert collapsed["inception_score"].value < 2 and collapsed["kid"].p_value == 0.01
