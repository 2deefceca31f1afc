"""Running a pair's programs: as one phase wants them, how their plates nest, and every value of discrete sites."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer.inspect import get_dependencies
from pyro.ops.provenance import get_provenance, track_provenance
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, OneHotCategorical
from torch.overrides import TorchFunctionMode

from unigen.engines.sites import Record, Site, base_of, family_of
from unigen.pair import Pair, PairError

__all__ = [
    "RAISED",
    "Layout",
    "Programs",
    "device_of",
    "enumerate_sites",
    "gpus_of",
    "in_evaluation_mode",
    "reason_of",
    "swapped",
    "taken",
    "unreached",
]

MOST_JOINT_VALUES = 2**16
LONGEST_REASON = 400  # characters; torch's list of backends is thousands long
_SAME_VALUES = (Bernoulli, Categorical, OneHotCategorical)  # whatever their parameters
# what a program of a user's raises for its own mistakes
RAISED = (ValueError, RuntimeError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)


@contextmanager
def swapped(module: nn.Module, replacements: Mapping[int, Tensor]) -> Iterator[None]:
    """Put tensors in the place of parameters and buffers, found by their ``id``, for a while."""
    places: list[tuple[Any, str, Any]] = [
        (holder, name, tensor)
        for part in module.modules()
        for holder in (part._parameters, part._buffers)
        for name, tensor in holder.items()
        if id(tensor) in replacements
    ]
    try:
        for holder, name, tensor in places:
            holder[name] = replacements[id(tensor)]
        yield
    finally:
        for holder, name, tensor in places:
            holder[name] = tensor


class Layout(NamedTuple):
    """How deep a pair's plates nest, whether one of them holds the rows of a batch, and which argument x is."""

    nesting: int
    batched: bool
    x: str  # the first that the model has a site for; those before it are covariates


@dataclass(frozen=True)
class Programs:
    """A pair's two programs, run as one phase wants them: what moves, and by which estimator."""

    pair: Pair
    move: tuple[str, ...] = ()
    estimator: Any = None
    carry: bool = True  # samples carry gradient where the phase moves the program that drew them
    freeze_model: bool = False
    allow_unnormalized: bool = False
    dry: bool = False

    def without_gradient_through_samples(self) -> Programs:
        return dataclasses.replace(self, carry=False, estimator=None, freeze_model=False)

    def with_model_frozen(self) -> Programs:
        return dataclasses.replace(self, freeze_model=True)

    def run(
        self,
        which: str,
        data: Mapping[str, Any],
        *,
        values: Mapping[str, Tensor] | None = None,
        particles: int | None = None,
        dream: bool = False,
        detach: bool = False,
        grad: bool = False,
        frozen: bool = False,
        along: Any = None,
    ) -> dict[str, Site]:
        """Run ``"model"`` or ``"guide"`` on the data and return its sites.

        ``frozen`` detaches its parameters. ``along``: the estimator by which given values move with them.
        """
        names = self.pair.arguments if which == "model" else self.pair.guide_arguments
        arguments = {name: data[name] for name in names if name in data}
        layout = None if particles is None else self.layout(data)  # before Record, which would record the probe
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(grad and torch.is_grad_enabled()))
            record = stack.enter_context(Record(values or {}, dream, detach, along))
            if particles is not None and layout is not None:
                stack.enter_context(_side_by_side(which, self.pair, particles, layout))
            if frozen:
                stack.enter_context(self.held(which))
            self.pair.runner(which)(**arguments)
        for name, site in record.sites.items():
            if name in record.was_observed and name not in data and not site.weightless:
                raise PairError(
                    f"site '{name}' is observed and named as no argument of the model's data ({', '.join(data)}), so that a dream "
                    "of it would reach nobody; observe an argument under its own name, pyro.sample('x', ..., obs=x), or use "
                    "routines without a sleep phase (vae, iwae, reweighted_wake_sleep(sleep=False))"
                )
        return record.sites

    @contextmanager
    def held(self, which: str) -> Iterator[None]:
        """Detach the parameters of a program for a while; the density of a flow reads those of its transforms when asked for."""
        program: Any = self.pair.model if which == "model" else self.pair.guide
        if not isinstance(program, nn.Module):
            yield
            return
        with swapped(program, {id(p): p.detach() for p in program.parameters()}):
            yield

    def layout(self, data: Mapping[str, Any]) -> Layout:
        """Probe the pair once, without touching the random streams."""
        if self.pair.layout is None:
            with torch.random.fork_rng(devices=gpus_of(data)), torch.no_grad():
                guide, model = self.run("guide", data), self.run("model", data)
            frames = [frame for site in [*guide.values(), *model.values()] for frame in site.frames]
            self.pair.layout = Layout(
                max((-frame.dim for frame in frames), default=0),
                any(frame.name == self.pair.batch_plate for frame in frames),
                next((name for name in self.pair.arguments if name in model), next(iter(self.pair.arguments), "")),
            )
        return self.pair.layout

    def moved_by(self, kernel: Any, data: Mapping[str, Any]) -> str:
        """Return the name of the data that a kernel of a Markov chain moves: x, unless it says another."""
        return str(getattr(kernel, "site", self.layout(data).x))

    def dream(self, data: Mapping[str, Any]) -> dict[str, Tensor]:
        """Dream new data from the model, without gradient, by argument name."""
        sites = self.run("model", data, dream=True, detach=True)
        dreamt = {name: sites[name].value for name in data if name in sites}
        if not dreamt:
            raise PairError(
                f"the model dreams no data: none of its sites is named as an argument ({', '.join(self.pair.arguments)}); "
                "observe one with pyro.sample(name, ..., obs=name)"
            )
        return dreamt


@contextmanager
def _side_by_side(which: str, pair: Pair, particles: int, layout: Layout) -> Iterator[None]:
    """Run a program for several particles at once, in a plate on the left of its own."""
    try:
        with pyro.plate("_particles", particles, dim=-1 - layout.nesting):
            yield
    except ValueError as error:
        if isinstance(error, PairError) or "plate('_particles')" not in str(error):
            raise
        rows = pair.batch_plate is not None and not layout.batched
        raise PairError(
            f"the {which} does not run for several particles, which stand before the data ({reason_of(error)}); "
            + f"put its rows in pyro.plate('{pair.batch_plate}', len(x)), and " * rows
            + "declare the own dimensions of its sites with .to_event()"
        ) from error


@contextmanager
def in_evaluation_mode(pair: Pair) -> Iterator[None]:
    """Put every module of a pair into evaluation mode, and back into the mode that it was in."""
    training = [module for module in pair.modules() if module.training]
    pair.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def reason_of(error: Exception) -> str:
    """Return the first line of what an error says, of a very long one the first sentence, or its kind."""
    line = str(error).strip().split("\n")[0]
    if len(line) > LONGEST_REASON:
        line = line.split(". ")[0][:LONGEST_REASON]
    return line or type(error).__name__


def device_of(data: Mapping[str, Any]) -> torch.device:
    """Return the device of the first tensor."""
    return next((value.device for value in data.values() if isinstance(value, Tensor)), torch.device("cpu"))


def lengths_of(data: Mapping[str, Any]) -> list[int]:
    """Return the length of each tensor that has rows."""
    return [len(value) for value in data.values() if isinstance(value, Tensor) and value.dim()]


def rows_of(data: Mapping[str, Any]) -> int:
    """Return the rows of the first tensor that has any, 0 where none has."""
    return next(iter(lengths_of(data)), 0)


def taken(data: Mapping[str, Any], total: int, index: slice | Tensor) -> dict[str, Any]:
    """Return some rows of a batch of ``total``; what has not one row a datum goes whole."""
    return {
        name: value[index] if isinstance(value, Tensor) and value.dim() and len(value) == total else value
        for name, value in data.items()
    }


def gpus_of(data: Mapping[str, Any]) -> list[torch.device]:
    """Return the GPUs that have tensors of the data, whose random streams a run may move."""
    return list({value.device for value in data.values() if isinstance(value, Tensor) and value.is_cuda})


def enumerate_sites(programs: Programs, data: Mapping[str, Any]) -> tuple[dict[str, Tensor], int]:
    """Return every joint value of the guide's sites, by name, (M, ..., event), and M: once for each shape of the data."""
    known, like = programs.pair.supports, shapes_of(data)
    if like not in known:
        known[like] = _enumerate_sites(programs, data)
    return known[like]


def unreached(programs: Programs, data: Mapping[str, Any]) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return for each latent site of the guide the log densities that its value cannot change, as ("model", site).

    Found once for each set of data given, by Pyro's provenance of values. A program that reads a value, to branch on it say,
    may depend on it where no provenance tells; then every site reaches everything.
    """
    known, given = programs.pair.unreached, tuple(name for name, value in data.items() if value is not None)
    if given not in known:
        known[given] = _unreached(programs, data)
    return known[given]


class _Reads(TorchFunctionMode):
    """Whether a program read the value of a tensor."""

    NAMES = tuple("__bool__ __int__ __float__ __index__ __array__ item tolist numpy equal allclose".split())

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found = self.found or getattr(func, "__name__", "") in self.NAMES
        return func(*args, **(kwargs or {}))


def _unreached(programs: Programs, data: Mapping[str, Any]) -> dict[str, tuple[tuple[str, str], ...]]:
    pair = programs.pair
    found: dict[str, Any] = {}
    with _Reads() as reads:
        for which, names in (("guide", pair.guide_arguments), ("model", pair.arguments)):
            arguments = {name: data[name] for name in names if name in data}
            found[which] = get_dependencies(_on_copies_of_buffers(pair, which), (), arguments)
    upstream = {which: each["prior_dependencies"] for which, each in found.items()}
    latent = found["guide"]["posterior_dependencies"]
    apart: dict[str, tuple[tuple[str, str], ...]] = {}
    for name in latent:
        reached = {name}  # values: of the guide, in the order in which they are drawn
        for other, above in upstream["guide"].items():
            if not reached.isdisjoint(above):
                reached.add(other)
        terms = [
            (which, site)
            for which in ("model", "guide")
            for site, above in upstream[which].items()
            if reached.isdisjoint(above) and site not in reached
        ]
        apart[name] = () if reads.found else tuple(terms)
    return apart


def _on_copies_of_buffers(pair: Pair, which: str) -> Callable[..., Any]:
    """Return a program that leaves its buffers alone, a running mean for one."""
    program: Any = pair.model if which == "model" else pair.guide
    if not isinstance(program, nn.Module):
        return pair.runner(which)

    def run(**arguments: Any) -> None:
        with swapped(program, {id(buffer): buffer.clone() for buffer in program.buffers()}):
            pair.runner(which)(**arguments)

    return run


def shapes_of(data: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what a captured program depends on: shape, dtype and device of each tensor, the value of everything else.

    Raises ``PairError`` for an object, in which anything may change unseen.
    """
    for name, value in data.items():
        if not isinstance(value, Tensor) and type(value).__hash__ in (None, object.__hash__):
            raise PairError(
                f"data {name!r} is an object, of {type(value).__name__}, in which numbers may change unseen; give what the "
                "programs read of it as tensors or numbers, each an argument of its own"
            )
    return tuple(
        (name, value.shape, value.dtype, value.device) if isinstance(value, Tensor) else (name, type(value), value)
        for name, value in data.items()
    )


def _enumerate_sites(programs: Programs, data: Mapping[str, Any]) -> tuple[dict[str, Tensor], int]:
    nesting = programs.layout(data).nesting
    with torch.random.fork_rng(devices=gpus_of(data)), torch.no_grad():
        sites = {name: site for name, site in programs.run("guide", data).items() if not site.observed}
    _check_counts(programs, data, sites)
    supports = {name: _support(site, programs.pair.batch_plate) for name, site in sites.items()}
    rows = 1
    for support in supports.values():
        rows *= len(support)
    if rows > MOST_JOINT_VALUES:
        raise PairError(
            f"sites {', '.join(repr(n) for n in supports)} have {rows} joint values, more than {MOST_JOINT_VALUES} to enumerate; "
            "use a routine that samples (vimco, reweighted_wake_sleep)"
        )
    index = torch.arange(rows)
    values = {}
    for name, support in supports.items():
        site, size = sites[name], len(support)
        batch, event = site.fn.batch_shape, site.fn.event_shape
        column = support.to(site.value.device)[index % size]
        index = index // size
        padded = column.reshape(rows, *(1,) * (nesting - len(batch)), *column.shape[1:])
        values[name] = padded.expand(rows, *(1,) * (nesting - len(batch)), *batch, *event)
    return values, rows


class _Apart(TorchFunctionMode):
    """Leave to each parameter of a distribution its own provenance where they are given one shape and one type."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.broadcast_tensors:
            shape = torch.broadcast_shapes(*(each.shape for each in args))
            return tuple(each.expand(shape) for each in args)
        if func is torch.Tensor.type_as:
            return args[0].to(args[1].dtype)
        return func(*args, **(kwargs or {}))


def _check_counts(programs: Programs, data: Mapping[str, Any], sites: Mapping[str, Site]) -> None:
    """Refuse sites whose values, as the counts of a binomial, are others with other data, since they are found once."""
    counting = [name for name, site in sites.items() if not isinstance(base_of(site.fn), _SAME_VALUES)]
    if not counting:
        return
    tracked = {
        name: track_provenance(value, frozenset({name})) if isinstance(value, Tensor) else value
        for name, value in data.items()
    }
    with torch.random.fork_rng(devices=gpus_of(data)), torch.no_grad(), _Apart():
        found = programs.run("guide", tracked)
    for name in counting:
        if source := get_provenance(getattr(base_of(found[name].fn), "total_count", None)):
            raise PairError(
                f"site '{name}' ({family_of(sites[name].fn)}) has as many values as the data {', '.join(sorted(source))} say, and "
                "they are summed over once for all batches; give it a fixed total_count, or use a routine that samples (vimco, "
                "reweighted_wake_sleep)"
            )


def _support(site: Site, batch_plate: str | None) -> Tensor:
    """Return every joint value of a datum's part of the site: (values, batch, event), the batch plate's size being 1."""
    fn, elements = base_of(site.fn), 1
    if not getattr(fn, "has_enumerate_support", False):
        raise PairError(
            f"site '{site.name}' ({family_of(fn)}) has no finite support to enumerate; use a routine that samples (vae, iwae)"
        )
    values = fn.enumerate_support(expand=False)
    values = values.reshape(len(values), *fn.event_shape)
    inner = {frame.dim for frame in site.frames if frame.name != batch_plate}  # plates inside a datum vary jointly
    depth = len(site.fn.batch_shape)
    within = [size if dim - depth in inner else 1 for dim, size in enumerate(site.fn.batch_shape)]
    for size in (*within, *site.fn.event_shape[: len(site.fn.event_shape) - len(fn.event_shape)]):
        elements *= size
    if len(values) ** elements > MOST_JOINT_VALUES:
        raise PairError(
            f"site '{site.name}' has {len(values)}^{elements} values, more than {MOST_JOINT_VALUES} to enumerate; "
            "use a routine that samples (vimco, reweighted_wake_sleep)"
        )
    columns = torch.cartesian_prod(*[torch.arange(len(values))] * elements).reshape(-1, elements)
    return values[columns].reshape(-1, *within, *site.fn.event_shape)
