"""Every network of unigen.networks: shapes, gradients, seeds, starting weights, capture, states and error sentences.

No test here is statistical: the oracles are exact, or hold for every draw of the weights (bounds of a uniform law).
"""

import math
import random
from collections.abc import Callable
from functools import partial

import numpy
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from unigen.networks import (
    MLP,
    Baseline,
    ConvolutionalGenerator,
    ConvolutionalTrunk,
    Critic,
    MLPTrunk,
    Networks,
    fingerprint,
    networks,
)

IMAGES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]
ACTIVATIONS = ("tanh", "relu", "leaky_relu", "softplus", "silu", "elu")
LEADING = [(), (5,), (3, 5), (2, 3, 5), (0,)]

# Each entry: a constructor, the size of a row that goes in, and the shape of what comes out for one row.
CASES: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = {
    "mlp linear": (lambda: MLP(6, (), 4), 6, (4,)),
    "mlp trunk": (lambda: MLPTrunk(6, (7, 5)), 6, (5,)),
    "baseline": (lambda: Baseline(6), 6, ()),
    "critic mlp": (lambda: Critic(networks("mlp", (2, 3), 4, hidden=(7,))), 6, ()),
    "critic conv": (lambda: Critic(networks("conv", (1, 8, 8), 4, hidden=(7,), channels=4)), 64, ()),
}
for _name in ACTIVATIONS:
    CASES[f"mlp {_name}"] = (partial(MLP, 6, (7, 5), 4, _name), 6, (4,))
for _shape in IMAGES:
    _size = math.prod(_shape)
    CASES[f"trunk {_shape}"] = (partial(ConvolutionalTrunk, _shape, 9, 4), _size, (9,))
    CASES[f"generator {_shape}"] = (partial(ConvolutionalGenerator, 6, _shape, 4), 6, (_size,))
    CASES[f"two outputs {_shape}"] = (partial(ConvolutionalGenerator, 6, _shape, 4, 2), 6, (2 * _size,))
every_network = pytest.mark.parametrize(("build", "size", "result"), list(CASES.values()), ids=list(CASES))

SETS = {
    "mlp": {"kind": "mlp", "shape": (1, 4, 4), "latent": 3, "hidden": (7, 5)},
    "mlp relu": {"kind": "mlp", "shape": (1, 4, 4), "latent": 3, "hidden": (7, 5), "activation": "relu"},
    "conv": {"kind": "conv", "shape": (1, 8, 8), "latent": 3, "hidden": (7, 5), "channels": 4},
}
every_set = pytest.mark.parametrize("arguments", list(SETS.values()), ids=list(SETS))


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw numbers in [-1, 1) from a stream of its own."""
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 1


def whole(shared: Networks) -> nn.Module:
    return nn.ModuleList([shared.generator, shared.trunk])


@every_network
@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_shapes(build, size, result, leading):
    assert build()(uniform(*leading, size)).shape == (*leading, *result)


@every_network
def test_leading_dimensions_are_a_batch(build, size, result):
    network = build().double()
    x = uniform(2, 3, size, dtype=torch.float64)
    together = network(x)
    for k in range(2):
        for n in range(3):
            torch.testing.assert_close(together[k, n], network(x[k, n]), rtol=0, atol=1e-10)


@every_network
def test_one_row_equals_a_row_of_a_batch(build, size, result):
    network = build().double()
    batch = uniform(64, size, dtype=torch.float64)
    together = network(batch)
    assert together.std(0).min() > 0, "rows must differ for the comparison to mean anything"
    for n in (0, 31, 63):
        torch.testing.assert_close(together[n : n + 1], network(batch[n : n + 1]), rtol=0, atol=1e-10)


@every_network
def test_every_parameter_gets_a_gradient(build, size, result):
    network = build()
    output = network(uniform(16, size))
    (output * uniform(*output.shape, seed=1)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


@every_network
def test_captured_graph_has_no_writes_in_place_and_equals_the_network(build, size, result):
    network = build()
    graph = make_fx(network)(uniform(4, size))
    operations = [node.target for node in graph.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    assert operations and not [str(o) for o in operations if o._schema.is_mutable]
    x = uniform(4, size, seed=1)
    torch.testing.assert_close(graph(x), network(x), rtol=0, atol=0)


@every_network
def test_state_round_trip(build, size, result):
    first, second = build(), build()
    with torch.no_grad():
        for value in first.state_dict().values():
            value.add_(0.25)
    assert fingerprint(first) != fingerprint(second)
    second.load_state_dict(load(save(first.state_dict())))
    assert fingerprint(first) == fingerprint(second)
    assert torch.equal(first(uniform(3, size)), second(uniform(3, size)))


def test_mlp_computes_its_formula():
    network = MLP(3, (4,), 2, output_bias=torch.tensor([1.0, -2.0]))
    x = uniform(5, 3)
    first = network.hidden.layers[0]
    expected = torch.tanh(x @ first.weight.T + first.bias) @ network.output.weight.T + torch.tensor([1.0, -2.0])
    torch.testing.assert_close(network(x), expected)


def test_trunk_without_hidden_layers_is_the_identity():
    x = uniform(5, 3)
    assert torch.equal(MLPTrunk(3, ())(x), x)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_mlp_starting_weights(name):
    # 400 x 300 uniform weights all within the bound, one of them beyond 0.99 of it: false alarm 0.99^120000 < 1e-500.
    network = MLP(300, (400,), 100, name)
    gain = {"tanh": 1 / math.sqrt(1 + 400 / 300), "leaky_relu": 1 / math.sqrt(1 + 0.2**2)}.get(name, 1.0)
    largest = network.hidden.layers[0].weight.abs().max().item() / math.sqrt(6 / 300)
    assert 0.99 * gain < largest <= gain * (1 + 1e-6)
    assert 0.99 < network.output.weight.abs().max().item() / math.sqrt(6 / 500) <= 1 + 1e-6
    assert not network.hidden.layers[0].bias.any() and not network.output.bias.any()


def test_convolutional_starting_weights():
    # The fan-in of a stage is counted: the largest response of a stage of ones, without bias, to an image of ones.
    trunk, generator = ConvolutionalTrunk((2, 32, 32), 50, 32), ConvolutionalGenerator(40, (2, 32, 32), 32)
    stages = [s for network in (trunk, generator) for s in network.stages if not isinstance(s, nn.LeakyReLU)]
    assert len(stages) == 5
    for stage in stages:
        bound = stage.weight.abs().max().item()
        assert not stage.bias.any()
        with torch.no_grad():
            ones = stage.weight.new_ones(1, stage.in_channels, 16, 16)
            stage.weight.fill_(1.0)
            fan_in = stage(ones).max().item()
        # At least 1024 weights in each stage: false alarm below 0.97^1024 < 1e-13.
        assert 0.97 < bound / math.sqrt(6 / (1.04 * fan_in)) <= 1 + 1e-6


def test_convolutional_networks_compute_their_formula():
    def leaky(value: Tensor) -> Tensor:
        return torch.maximum(value, 0.2 * value)

    trunk, generator = ConvolutionalTrunk((1, 28, 28), 9, 4), ConvolutionalGenerator(6, (1, 28, 28), 4)
    first, second = trunk.stages[0], trunk.stages[2]
    maps = leaky(second(leaky(first(uniform(5, 1, 28, 28)))))
    assert maps.shape == (5, 8, 7, 7)
    torch.testing.assert_close(trunk(uniform(5, 784)), leaky(trunk.dense(maps.flatten(1))))
    maps = leaky(generator.dense(uniform(5, 6))).reshape(5, 8, 7, 7)
    image = generator.output(leaky(generator.stages[1](maps)))
    assert image.shape == (5, 1, 28, 28)
    torch.testing.assert_close(generator(uniform(5, 6)), image.flatten(1))


def test_convolutional_generator_layout():
    # With weights of zero the output is the bias, so the channels of the last stage must fill the chunks in order.
    generator = ConvolutionalGenerator(3, (2, 8, 8), 4, outputs_per_dimension=2)
    with torch.no_grad():
        generator.output.weight.zero_()
        generator.output.weight[:, 3] = 1.0
    mean, scale = generator(uniform(5, 3)).chunk(2, -1)
    assert not mean.any() and not scale.reshape(5, 2, 64)[:, 0].any()
    assert (scale.reshape(5, 2, 64)[:, 1].std(0) > 0).all()


@every_set
def test_same_seed_same_bytes(arguments):
    first, second = networks(**arguments, seed=11), networks(**arguments, seed=11)
    torch.rand(3)
    third = networks(**arguments, seed=11)
    prints = {fingerprint(whole(shared)) for shared in (first, second, third)}
    assert len(prints) == 1
    for name, value in whole(first).state_dict().items():
        assert torch.equal(value, whole(third).state_dict()[name])
    assert fingerprint(first.head(4)) == fingerprint(third.head(4))
    assert fingerprint(Critic(first)) == fingerprint(Critic(third))


@every_set
def test_different_seed_different_bytes(arguments):
    first, second = networks(**arguments, seed=11), networks(**arguments, seed=12)
    for one, other in [
        (first.generator, second.generator),
        (first.trunk, second.trunk),
        (first.head(4), second.head(4)),
        (first.head(4), first.head(4, seed=12)),
    ]:
        assert fingerprint(one) != fingerprint(other)


def test_parts_of_a_set_have_streams_of_their_own():
    # A square set: trunk and generator have the same sizes, and a shared stream would make them equal.
    shared = networks("mlp", (4,), 4, hidden=(4,), activation="relu")
    trunk, generator, head = shared.trunk.layers[0], shared.generator.hidden.layers[0], shared.head(4)
    assert not torch.equal(trunk.weight, generator.weight)
    assert not torch.equal(trunk.weight.sign(), head.weight.sign())
    wider = networks("mlp", (4,), 4, hidden=(4,), activation="relu", mean=[0.5] * 4)
    assert fingerprint(wider.trunk) == fingerprint(shared.trunk)


@every_set
def test_global_random_state_is_unchanged(arguments):
    states = (torch.get_rng_state(), numpy.random.get_state()[1].copy(), random.getstate())
    shared = networks(**arguments, seed=5)
    shared.head(3)
    Critic(shared.copy())
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == numpy.random.get_state()[1]).all() and states[2] == random.getstate()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_random_state_of_the_device_is_unchanged():
    state = torch.cuda.get_rng_state()
    networks(**SETS["conv"], seed=5)
    assert torch.equal(state, torch.cuda.get_rng_state())


@every_set
def test_set_describes_itself(arguments):
    shared = networks(**arguments)
    assert (shared.latent, shared.shape, shared.width) == (3, arguments["shape"], 5)
    assert shared.dimension == math.prod(arguments["shape"])
    assert shared.trunk(uniform(2, 6, shared.dimension)).shape == (2, 6, 5)
    assert shared.generator(uniform(2, 6, 3)).shape == (2, 6, shared.dimension)
    head = shared.head(2 * shared.latent)
    assert head(shared.trunk(uniform(2, shared.dimension))).shape == (2, 6) and not head.bias.any()


def test_hidden_widths_are_reversed_in_the_generator():
    shared = networks("mlp", (16,), 3, hidden=(7, 5))
    shapes = {name: tuple(value.shape) for name, value in shared.generator.named_parameters()}
    assert shapes["hidden.layers.0.weight"] == (5, 3)
    assert shapes["hidden.layers.2.weight"] == (7, 5)
    assert shapes["output.weight"] == (16, 7)


def test_linear_set():
    shared = networks("mlp", (6,), 3, hidden=())
    assert shared.width == 6 and torch.equal(shared.trunk(uniform(2, 6)), uniform(2, 6))
    assert Critic(shared)(uniform(2, 6)).shape == (2,)


@every_set
def test_mean_sets_the_output_bias(arguments):
    dimension = math.prod(arguments["shape"])
    mean = torch.linspace(0, 1, dimension)
    shared = networks(**arguments, mean=mean)
    with torch.no_grad():
        shared.generator.get_parameter("output.weight").zero_()
    probabilities = torch.sigmoid(shared.generator(uniform(2, 3)))
    torch.testing.assert_close(probabilities, mean.clamp(0.001, 0.999).expand(2, -1), rtol=1e-5, atol=1e-7)
    assert fingerprint(networks(**arguments, mean=mean.tolist()).generator) == fingerprint(
        networks(**arguments, mean=mean).generator
    )


@every_set
def test_copy_is_equal_and_independent(arguments):
    shared = networks(**arguments)
    before = fingerprint(whole(shared))
    twin, critic = shared.copy(), Critic(shared)
    assert fingerprint(whole(twin)) == before and fingerprint(critic.trunk) == fingerprint(shared.trunk)
    with torch.no_grad():
        for parameter in (*whole(twin).parameters(), *critic.parameters()):
            parameter.add_(1.0)
    assert fingerprint(whole(shared)) == before != fingerprint(whole(twin))
    assert fingerprint(twin.head(2)) == fingerprint(shared.head(2))


def test_head_scale_and_dtype():
    shared = networks("mlp", (6,), 3, hidden=(5,))
    plain = shared.head(4)
    assert (
        torch.equal(shared.head(4, scale=0.5).weight, 0.5 * plain.weight) and not shared.head(4, scale=0).weight.any()
    )
    assert plain.weight.requires_grad and plain.weight.is_leaf
    shared.generator.double()
    assert shared.head(4).weight.dtype == torch.float64
    assert torch.equal(shared.head(4).weight, plain.weight.double())


def test_set_is_drawn_on_the_cpu_and_moved_to_the_default_device():
    before = torch.get_rng_state()
    with torch.device("meta"):
        moved = networks(**SETS["conv"])
    assert all(tensor.is_meta for tensor in whole(moved).state_dict().values())
    assert torch.equal(before, torch.get_rng_state())
    if torch.cuda.is_available():
        with torch.device("cuda"):
            moved = networks(**SETS["conv"])
        assert fingerprint(whole(moved)) == fingerprint(whole(networks(**SETS["conv"])))


def test_fingerprint_reads_names_dtypes_shapes_and_bytes():
    def module(name: str, value: Tensor) -> nn.Module:
        holder = nn.Module()
        holder.register_buffer(name, value)
        return holder

    base = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    variants = [
        module("a", base),
        module("b", base),
        module("a", base.reshape(4)),
        module("a", base.view(torch.int32)),
        module("a", base.T),
        module("a", torch.tensor([[-0.0, 1.0], [2.0, 3.0]])),
        module("a", base.bfloat16()),
    ]
    assert len({fingerprint(variant) for variant in variants}) == len(variants)
    assert fingerprint(module("a", base.T.contiguous().T)) == fingerprint(module("a", base))
    assert fingerprint(nn.Module()) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_baseline_tracks_the_signal_and_nothing_else_does():
    baseline = Baseline(6, (5,), decay=0.75).double()
    x, signal = uniform(8, 6, dtype=torch.float64), uniform(3, 8, dtype=torch.float64) - 50
    plain = baseline(x).detach()
    optimizer = torch.optim.SGD(baseline.parameters(), lr=0.0)
    address = baseline.mean.data_ptr()
    (baseline(x) - signal).square().sum().backward()
    optimizer.step()
    baseline.eval()(x)
    baseline.train()(x)
    assert baseline.mean.item() == 0 and "mean" not in dict(baseline.named_parameters())
    expected = 0.0
    for factor in (1.0, 2.0, -1.0):
        baseline.track((factor * signal).requires_grad_())
        expected = 0.75 * expected + 0.25 * factor * signal.mean().item()
        assert baseline.mean.item() == pytest.approx(expected, rel=1e-12)
    assert not baseline.mean.requires_grad and baseline.mean.data_ptr() == address
    torch.testing.assert_close(baseline(x) - plain, torch.full((8,), expected, dtype=torch.float64))
    assert load(save(baseline.state_dict()))["mean"] == baseline.mean


SUPPORTED = "convolutional networks support the shapes (C, 8, 8), (C, 28, 28), (C, 32, 32)"
NAMES = "tanh, relu, leaky_relu, softplus, silu, elu"
SEED = "seed must be an integer from 0 to 2^63 - 1, got "
ERRORS: list[tuple[Callable[[], object], str]] = [
    (lambda: MLP(3, (4,), 2, "tahn"), f"unknown activation 'tahn': expected one of {NAMES}, the nearest is 'tanh'"),
    (lambda: MLP(3, (4,), 2, "Relu"), f"unknown activation 'Relu': expected one of {NAMES}, the nearest is 'relu'"),
    (lambda: MLP(0, (4,), 2), "inputs must be a positive integer, got 0"),
    (lambda: MLP(3, (4, -1), 2), "a width in hidden must be a positive integer, got -1"),
    (lambda: MLP(3, (4,), 2.0), "outputs must be a positive integer, got 2.0"),  # type: ignore[arg-type]
    (lambda: MLP(True, (4,), 2), "inputs must be a positive integer, got True"),
    (lambda: MLP(3, 200, 2), "hidden must be a tuple of widths such as (200, 200), got 200"),  # type: ignore[arg-type]
    (lambda: MLP(3, (4,), 2, output_bias=torch.zeros(1)), "output_bias has shape (1,), expected (2,)"),
    (
        lambda: MLP(3, (), 2)(torch.zeros(5, 4)),
        "MLP got an input of shape (5, 4), expected flat rows of shape (..., 3)",
    ),
    (lambda: MLP(3, (), 2)(torch.zeros(())), "MLP got an input of shape (), expected flat rows of shape (..., 3)"),
    (
        lambda: ConvolutionalTrunk((1, 8, 8), 5)(torch.zeros(2, 1, 8, 8)),
        "ConvolutionalTrunk got an input of shape (2, 1, 8, 8), expected flat rows of shape (..., 64)",
    ),
    (
        lambda: ConvolutionalGenerator(3, (1, 8, 8), 5)(torch.zeros(4)),
        "ConvolutionalGenerator got an input of shape (4,), expected flat rows of shape (..., 3)",
    ),
    (lambda: ConvolutionalTrunk((1, 16, 16), 5), f"{SUPPORTED}, got (1, 16, 16): use mlp networks for other shapes"),
    (lambda: ConvolutionalTrunk((1, 8, 28), 5), f"{SUPPORTED}, got (1, 8, 28): use mlp networks for other shapes"),
    (lambda: ConvolutionalGenerator(3, (28, 28)), f"{SUPPORTED}, got (28, 28): use mlp networks for other shapes"),
    (lambda: ConvolutionalGenerator(3, 784), f"{SUPPORTED}, got 784: use mlp networks for other shapes"),  # type: ignore
    (lambda: ConvolutionalTrunk((0, 8, 8), 5), "the first entry of shape must be a positive integer, got 0"),
    (lambda: ConvolutionalTrunk((1, 8, 8), 0), "width must be a positive integer, got 0"),
    (lambda: ConvolutionalTrunk((1, 8, 8), 5, 0), "channels must be a positive integer, got 0"),
    (lambda: ConvolutionalGenerator(0, (1, 8, 8)), "latent must be a positive integer, got 0"),
    (
        lambda: ConvolutionalGenerator(3, (1, 8, 8), outputs_per_dimension=0),
        "outputs_per_dimension must be a positive integer, got 0",
    ),
    (
        lambda: ConvolutionalGenerator(3, (1, 8, 8), output_bias=torch.zeros(1)),
        "output_bias has shape (1,), expected (64,)",
    ),
    (
        lambda: networks("convolution", (1, 8, 8), 3),
        "unknown kind of networks 'convolution': expected one of mlp, conv, the nearest is 'conv'",
    ),
    (
        lambda: networks("conv", (1, 8, 8), 3, activation="sliu"),
        f"unknown activation 'sliu': expected one of {NAMES}, the nearest is 'silu'",
    ),
    (lambda: networks("conv", (7,), 3), f"{SUPPORTED}, got (7,): use mlp networks for other shapes"),
    (lambda: networks("mlp", (), 3), "shape must be a tuple of sizes such as (1, 28, 28), got ()"),
    (lambda: networks("mlp", (2, 0), 3), "a size in shape must be a positive integer, got 0"),
    (lambda: networks("mlp", (2,), 0), "latent must be a positive integer, got 0"),
    (
        lambda: networks("conv", (1, 8, 8), 3, hidden=()),
        "conv networks take the trunk's width from the last entry of hidden, got hidden=()",
    ),
    (
        lambda: networks("mlp", (2,), 3, mean=torch.zeros(3)),
        "mean has shape (3,), expected (2,), one number for each dimension",
    ),
    (
        lambda: networks("mlp", (2,), 3, mean=[-1, 0.5]),
        "mean must lie in [0, 1], got values from -1 to 0.5: pass None for such data",
    ),
    (
        lambda: networks("mlp", (2,), 3, mean=[math.nan, 0.5]),
        "mean must lie in [0, 1], got values from nan to nan: pass None for such data",
    ),
    (lambda: networks("mlp", (2,), 3, seed=-1), f"{SEED}-1"),
    (lambda: networks("mlp", (2,), 3, seed=2**63), f"{SEED}{2**63}"),
    (lambda: networks("mlp", (2,), 3, seed=0.5), f"{SEED}0.5"),  # type: ignore[arg-type]
    (lambda: networks("mlp", (2,), 3).head(0), "outputs must be a positive integer, got 0"),
    (
        lambda: networks("mlp", (2,), 3).head(1, scale=-1.0),
        "scale must be a finite number that is at least 0, got -1.0",
    ),
    (lambda: Baseline(3, decay=1.0), "decay must be a number in [0, 1), got 1.0"),
    (lambda: Baseline(3, decay="0.9"), "decay must be a number in [0, 1), got '0.9'"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "sentence"), ERRORS, ids=[sentence for _, sentence in ERRORS])
def test_error_sentences(call, sentence):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == sentence
