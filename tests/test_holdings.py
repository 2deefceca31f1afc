"""What a check and a capture leave of a pair: buffers that are replaced, weights that a program projects, sparse tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from unigen import fit
from unigen.checkpoints import CheckpointError
from unigen.engines import eager, engine_named
from unigen.engines.capture import capture_phase
from unigen.engines.checks import check
from unigen.engines.programs import LONGEST_REASON, reason_of
from unigen.evaluate import log_likelihood
from unigen.objectives import elbo
from unigen.pair import Pair, PairError, Unsupported
from unigen.phases import PHI, THETA, Phase, Wake
from unigen.routines import vae

ENGINES = ["eager", "compiled", "xla"]
X = torch.linspace(-1, 1, 12).reshape(4, 3)


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x), 0.1).to_event(1))


class Model(nn.Module):
    """A decoder with ``last``, a layer or a function of the model and its output, at the end."""

    def __init__(self, last: Callable[..., Tensor], **buffers: Tensor | None) -> None:
        super().__init__()
        self.net, self.own, self.ready = nn.Linear(2, 3), nn.Parameter(torch.full((3,), 2.0)), False
        self.last = last
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            loc = self.net(z)
            loc = self.last(loc) if isinstance(self.last, nn.Module) else self.last(self, loc)
            pyro.sample("x", dist.Normal(loc + self.own, 1.0).to_event(1), obs=x)


def pair_of(last: Callable[..., Tensor], **buffers: Tensor | None) -> Pair:
    torch.manual_seed(0)
    return Pair(Model(last, **buffers), Guide())


def optimizers_of(pair: Pair) -> dict[str, torch.optim.Optimizer]:
    return {group: torch.optim.SGD(pair.group(group), 1e-2) for group in ("theta", "phi")}


def copies_of(pair: Pair) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in pair.state_dict().items()}


def unchanged(pair: Pair, before: dict[str, Tensor]) -> bool:
    now = pair.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


# -- buffers -----------------------------------------------------------------------------------------------------------


def assigned(model: nn.Module, loc: Tensor) -> Tensor:
    model.mean = 0.9 * model.mean + 0.1 * loc.detach().mean(0)
    return loc - model.mean


def assigned_as_data(model: nn.Module, loc: Tensor) -> Tensor:
    model.mean.data = 0.9 * model.mean + 0.1 * loc.detach().mean(0)
    return loc - model.mean


def written(model: nn.Module, loc: Tensor) -> Tensor:
    model.mean.copy_(0.9 * model.mean + 0.1 * loc.detach().mean(0))
    return loc - model.mean


def registered(model: nn.Module, loc: Tensor) -> Tensor:
    model.register_buffer("mean", loc.detach().mean(0))
    return loc - model.mean


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("last", [assigned, assigned_as_data, registered])
def test_a_buffer_that_each_call_replaces_is_refused_and_put_back(last: Callable[..., Tensor], engine: str) -> None:
    pair = pair_of(last, mean=torch.zeros(3))
    own, before = pair.model.mean, copies_of(pair)
    for _ in range(2):
        with pytest.raises(PairError, match=r"'model.mean' is replaced by a new tensor at each call; .*copy_"):
            engine_named(engine).advance(vae, pair, optimizers_of(pair), [[X]])
        assert pair.model.mean is own and pair.group_buffers("theta")[0] is own and unchanged(pair, before)
    pair.model.last = written
    engine_named("eager").advance(vae, pair, optimizers_of(pair), [[X]])
    assert pair.model.mean is own and bool(own.any())


def test_a_buffer_that_is_replaced_in_another_mode_than_the_checked_is_refused_by_the_capture() -> None:
    pair = pair_of(lambda model, loc: assigned(model, loc) if model.training else loc, mean=torch.zeros(3)).eval()
    check(vae, pair, X)
    own = pair.model.mean
    with pytest.raises(PairError, match=r"'model.mean' is replaced"):
        capture_phase(vae[0], pair.train(), pair.bind(X), {})
    assert pair.model.mean is own and not bool(own.any())


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm1d(3),
    "lazy": lambda: nn.Sequential(nn.LazyBatchNorm1d(), nn.LazyLinear(3)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(3, 3)),
    "former spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(3, 3)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(3, 3)),
    "former weight norm": lambda: nn.utils.weight_norm(nn.Linear(3, 3)),
}


@pytest.mark.parametrize("engine", ["eager", "xla"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:Lazy modules:UserWarning")
def test_layers_of_torch_train(layer: str, engine: str) -> None:
    pair = pair_of(LAYERS[layer]())
    check(vae, pair, X)  # which sets up the lazy ones
    before = copies_of(pair)
    check(vae, pair, X)
    assert unchanged(pair, before)
    engine_named(engine).advance(vae, pair, optimizers_of(pair), [[X]])
    assert not unchanged(pair, before)


def masked(model: nn.Module, loc: Tensor) -> Tensor:
    if model.mask is None:
        model.mask = torch.ones(3)
    return loc * model.mask


def begun(model: nn.Module, loc: Tensor) -> Tensor:
    if not model.ready:
        model.own.data.copy_(loc.detach().mean(0) + 5)
        model.ready = True
    return loc


@pytest.mark.parametrize("engine", ["eager", "xla"])
def test_what_a_first_call_sets_up_stays(engine: str) -> None:
    pair = pair_of(masked, mask=None)
    engine_named(engine).advance(vae, pair, optimizers_of(pair), [[X], [X]])
    assert pair.group_buffers("theta")[0] is pair.model.mask is not None
    pair = pair_of(begun)
    engine_named(engine).advance(vae, pair, optimizers_of(pair), [[X]])
    assert pair.model.ready and bool((pair.model.own > 3).all())


# -- weights -----------------------------------------------------------------------------------------------------------


def clamped(model: nn.Module, loc: Tensor) -> Tensor:
    with torch.no_grad():
        model.own.clamp_(-1, 1)
    return loc


def clamped_as_data(model: nn.Module, loc: Tensor) -> Tensor:
    model.own.data.clamp_(-1, 1)
    return loc


class Embedded(nn.Module):
    """An embedding of the signs, of these settings."""

    def __init__(self, **settings: bool | float) -> None:
        super().__init__()
        self.table = nn.Embedding(2, 3, **settings)  # type: ignore[arg-type]

    def forward(self, loc: Tensor) -> Tensor:
        return loc + self.table((loc.detach().sum(-1) > 0).long())


@pytest.mark.parametrize("last", [clamped, clamped_as_data, Embedded(max_norm=0.1)], ids=["clamp", "data", "max_norm"])
@pytest.mark.filterwarnings("ignore:the density of site 'x'")
def test_weights_that_a_program_projects_are_left_by_a_check_and_a_capture(last: Callable[..., Tensor]) -> None:
    pair = pair_of(last)
    before = copies_of(pair)
    check(vae, pair, X)
    assert unchanged(pair, before)
    with pytest.raises(Unsupported, match="writes in place to 'theta"):
        engine_named("xla").advance(vae, pair, optimizers_of(pair), [[X]])
    assert unchanged(pair, before)


# -- sparse tensors ----------------------------------------------------------------------------------------------------


def neighbours(model: nn.Module, loc: Tensor) -> Tensor:
    return (model.graph @ loc.reshape(-1, 3).T).T.reshape(loc.shape)


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_a_sparse_buffer_trains_by_eager_and_is_refused_by_the_others(layout: str) -> None:
    graph = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]])
    routine = (Phase(elbo, Wake(), THETA), Phase(elbo, Wake(), PHI))
    ends = []
    for own in (graph, getattr(graph, layout)()):
        pair = pair_of(neighbours, graph=own)
        state, history = fit(X, routine, pair, steps=3, average=0.9, progress=False)
        ends.append((history.values, log_likelihood(state.pair, X, particles=5).value))
    assert torch.allclose(torch.tensor(ends[0][0]), torch.tensor(ends[1][0])) and ends[0][1] == pytest.approx(
        ends[1][1]
    )
    for engine in ("compiled", "xla"):
        with pytest.raises(Unsupported, match=r"'model.graph' is a sparse_\w+ tensor; use engine='eager'"):
            engine_named(engine).advance(routine, pair, optimizers_of(pair), [[X]])


def test_a_sparse_buffer_is_left_out_of_checkpoints_where_it_is_derived(tmp_path: Path) -> None:
    pair = pair_of(neighbours, graph=torch.eye(3).to_sparse())
    with pytest.raises(CheckpointError, match=r"model.graph is a torch.sparse_coo tensor; .* with persistent=False"):
        fit(X, vae, pair, steps=2, checkpoints=tmp_path / "refused", progress=False)
    pair.model.register_buffer("graph", pair.model.graph, persistent=False)
    state, _ = fit(X, vae, pair, steps=2, checkpoints=tmp_path / "written", progress=False)
    again, _ = fit(X, vae, pair, steps=2, checkpoints=tmp_path / "written", progress=False)
    assert state.step == again.step == 2


def sparse(_: nn.Module, loc: Tensor) -> Tensor:
    return torch.sparse.mm(torch.eye(3).to_sparse(), loc.reshape(-1, 3).T).T.reshape(loc.shape)


def nested(_: nn.Module, loc: Tensor) -> Tensor:
    return loc + torch.nested.nested_tensor([loc[0], loc[1]]).to_padded_tensor(0.0).sum()


@pytest.mark.parametrize(("last", "kind"), [(sparse, "sparse_coo"), (nested, "[nN]ested")])
@pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors", "ignore:site 'x' of the model has another density"
)
def test_what_is_not_dense_is_left_to_eager(last: Callable[..., Tensor], kind: str) -> None:
    pair = pair_of(last)
    eager.advance(vae, pair, optimizers_of(pair), [[X]])
    with pytest.raises(Unsupported, match=f"test_holdings.* is a {kind} tensor, where .*; use engine='eager'"):
        engine_named("xla").advance(vae, pair, optimizers_of(pair), [[X]])
    with pytest.raises(Unsupported, match=f"engine 'compiled' .*{kind}.*; use engine='eager'"):
        engine_named("compiled").advance(vae, pair, optimizers_of(pair), [[X]])


# -- sentences ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the density of site 'x'")
def test_embeddings_are_refused_in_a_sentence() -> None:
    pair = pair_of(Embedded(sparse=True))
    with pytest.raises(
        PairError, match=r"the gradient of theta last.table.weight is a sparse tensor; .*without sparse"
    ):
        check(vae, pair, X)
    pair = pair_of(Embedded(scale_grad_by_freq=True))
    with pytest.raises(
        Unsupported, match="the xla engine has no embedding whose gradient is scaled by frequency, which"
    ):
        engine_named("xla").advance(vae, pair, optimizers_of(pair), [[X]])


def test_a_long_reason_is_its_first_sentence() -> None:
    assert reason_of(ValueError("one. two\nthree")) == "one. two"
    assert reason_of(ValueError("one. " + "backend, " * 500)) == "one"
    assert len(reason_of(ValueError("backend, " * 500))) == LONGEST_REASON
    with pytest.raises(NotImplementedError) as caught:
        torch.equal(torch.eye(2).to_sparse(), torch.eye(2).to_sparse())
    assert reason_of(caught.value) == "Could not run 'aten::equal' with arguments from the 'SparseCPU' backend"
