"""A phase as a pure function of tensors, and that function as a graph of ATen operations with its gradient inside.

The phase is the one that ``eager`` executes: here it runs once on fake tensors, autograd included, and every operation is
written down. So a graph holds the gradient explicitly, whatever the phase detaches or differentiates inside, and nothing
has to differentiate it again. A program whose course depends on the values of tensors has no such graph and is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributions import Distribution
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unigen.engines import eager
from unigen.engines.assertions import Assertions
from unigen.engines.indices import Indices
from unigen.engines.places import Places
from unigen.engines.programs import Programs, enumerate_sites, reason_of, swapped
from unigen.engines.selections import Selections, without_masks
from unigen.engines.surroundings import OneStream, kept_in_torch
from unigen.engines.tape import DRAWS
from unigen.pair import Pair, PairError, Unsupported
from unigen.phases import Chain, Enumerate, Phase
from unigen.streams import own_of_python

__all__ = ["capture", "chains_of", "enumerate_first", "gradient", "unvalidated"]


@contextlib.contextmanager
def unvalidated() -> Iterator[None]:
    """Leave out the checks of distributions, which ask for the values of tensors: ``check_once`` has made them."""
    before = Distribution._validate_args
    with pyro.validation_enabled(False):
        Distribution.set_default_validate_args(False)
        try:
            yield
        finally:
            Distribution.set_default_validate_args(before)


def chains_of(phase: Phase, pair: Pair, data: Mapping[str, Any]) -> list[str]:
    """Return the keys of the phase's persistent chains in ``pair.chains``; those that are not there start at the data."""
    found: list[str] = []
    for expectation in phase.expectations():
        if isinstance(expectation, Chain) and expectation.persistent and str(expectation) not in found:
            found.append(str(expectation))
            moved = Programs(pair).moved_by(expectation.kernel, data)
            pair.chains.setdefault(str(expectation), data[moved].detach().clone())
    return found


def enumerate_first(phase: Phase, pair: Pair, data: Mapping[str, Any]) -> None:
    """Find the values that a phase enumerates before it is captured: from real data, and random numbers that it draws aside."""
    if any(isinstance(expectation, Enumerate) for expectation in phase.expectations()):
        enumerate_sites(Programs(pair), data)


def gradient(
    phase: Phase,
    pair: Pair,
    data: dict[str, Any],
    parameters: Mapping[int, Tensor],
    buffers: Mapping[int, Tensor],
    chains: dict[str, Tensor],
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the value of a phase and, as torch's optimizers want it, the gradient of its opposite along
    ``pair.group(*phase.move)``, at the given tensors.

    ``parameters``, ``buffers``: by the ``id`` of the pair's own. ``buffers`` are written in place, ``chains`` are replaced
    by the chains after the phase. The gradient is None where a parameter has none. A closed-form phase (``solve``) has no
    gradient and writes its parameters in place.
    """
    own = pair.group(*phase.move)
    kept = pair.chains
    with contextlib.ExitStack() as stack:
        stack.enter_context(unvalidated())
        stack.enter_context(torch.enable_grad())
        leaves = {key: tensor.detach().requires_grad_() for key, tensor in parameters.items()}
        for parameter in own:
            check_hooks(parameter)
            for hook in (parameter._backward_hooks or {}).values():
                leaves[id(parameter)].register_hook(hook)
        pair.chains = chains
        stack.callback(setattr, pair, "chains", kept)
        if phase.solve:
            stack.enter_context(swapped(pair, {**parameters, **buffers}))
            return eager.solve(phase, pair, data), []
        stack.enter_context(swapped(pair, {**leaves, **buffers}))
        value, surrogate = eager.objective(phase, pair, data)
        if not surrogate.requires_grad:
            raise PairError(f"the phase '{phase}' does not depend on {', '.join(phase.move)}")
        return value, list(torch.autograd.grad(-surrogate, [leaves[id(p)] for p in own], allow_unused=True))


def check_hooks(parameter: Tensor) -> None:
    """Refuse a parameter with a hook that runs after its gradient is in place: captured, a gradient is in no place."""
    if getattr(parameter, "_post_accumulate_grad_hooks", None):
        raise Unsupported(
            "a parameter has a hook by register_post_accumulate_grad_hook, which only engine='eager' runs; use register_hook, or "
            "engine='eager'"
        )


def _normal(mean: Tensor, std: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Return ``torch.normal(mean, std)``, the same draws, without its question whether a std is negative."""
    shape = torch.broadcast_shapes(mean.shape, std.shape)
    return mean.new_empty(shape).normal_(generator=generator) * std + mean


class _Constants(TorchDispatchMode):
    """Compute what depends on these tensors alone, so that a program may look at the values, and record the rest."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self.known = {id(tensor): tensor for tensor in tensors}  # and what was computed from them

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        with no_dispatch():
            args = without_masks(str(func), args, lambda mask: id(mask) in self.known)
        given = [leaf for leaf in tree_leaves((args, named)) if isinstance(leaf, Tensor)]
        known = [id(tensor) in self.known for tensor in given]
        if any(known) and func._schema.is_mutable:
            raise Unsupported(f"{func} writes in place to a buffer at whose values the program looks")
        if not known or not all(known):
            return func(*args, **named)
        with no_dispatch():
            result = func(*args, **named)
        self.known |= {id(leaf): leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        return result


class _Outside(TorchDispatchMode):
    """Add to ``read`` the tensors of one number from outside that a run has met when it reads a number.

    The tracer knows what comes from these alone, so that it is a number of the graph, and no tensor.
    """

    def __init__(self, read: list[Tensor] | None) -> None:
        super().__init__()
        self.met: list[Tensor] = []
        self.read = [] if read is None else read

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.met += [tensor for tensor in given if not isinstance(tensor, FakeTensor) and tensor.numel() == 1]
        if func is torch.ops.aten._local_scalar_dense.default:
            self.read += self.met
            self.met.clear()
        return func(*args, **(kwargs or {}))


def capture(
    function: Callable[..., Sequence[Tensor | None]],
    arguments: list[Tensor],
    engine: str,
    constants: Sequence[Tensor] = (),
    read: list[Tensor] | None = None,
) -> GraphModule:
    """Write down what ``function`` does to tensors like ``arguments``, as a graph of ATen operations.

    ``constants``: other tensors, at whose values it may look. ``read``: gets tensors of one number that are neither, and whose
    values the graph may have as its own. Results are nan where an assertion of the program is broken.
    Raises ``Unsupported``, naming the ``engine``, for a program that reads the values of others or leaves torch.
    """

    def traced(*fakes: Tensor) -> Any:
        def known(tensor: Tensor) -> bool:
            return not isinstance(tensor, FakeTensor)

        indices = Indices(lambda index: not isinstance(index, FakeTensor) or index.constant is not None)
        with indices, Selections(known), kept_in_torch(known), OneStream(Places().here), _Outside(read):
            with _Constants(constants) if constants else contextlib.nullcontext():
                with Assertions() as assertions, own_of_python() as drawn:
                    results = assertions.held(function(*fakes))
                    if drawn():
                        raise Unsupported(DRAWS)
                    return results

    devices = {argument.device for argument in arguments if argument.is_cuda}
    try:
        # a network under torch.compile takes part as it was before
        plain = torch._dynamo.config.patch(error_on_nested_fx_trace=False)
        with (
            plain,
            torch.autograd.set_detect_anomaly(False),
            FakeTensorMode(allow_non_fake_inputs=True) as mode,
            torch.random.fork_rng(devices=list(devices)),
        ):
            fakes = [mode.from_tensor(argument, static_shapes=True) for argument in arguments]
            return make_fx(traced, {torch.ops.aten.normal.Tensor_Tensor: _normal}, tracing_mode="real")(*fakes)
    except PairError:
        raise
    except Exception as error:  # whatever torch's tracer raises, which has no common class
        raise Unsupported(
            f"engine {engine!r} cannot express this program, because it reads the value of a tensor or leaves torch "
            f"({reason_of(error)}); use engine='eager'"
        ) from error
