"""Refuse a wrong pairing of routine and pair before the first step, in one sentence that names the site and a remedy."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pyro
import torch
from pyro.distributions import Delta
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from torch.distributions import constraints

from unigen.datachecks import DataError
from unigen.engines.holdings import Holdings
from unigen.engines.jumps import jumps
from unigen.engines.probes import (
    check_data_first,
    check_dreams,
    check_enumerable,
    check_particles,
    check_values,
    mixed_rows,
)
from unigen.engines.programs import RAISED, Programs, gpus_of, reason_of, rows_of
from unigen.engines.sites import Site, base_of, check_angles, check_auxiliary, check_sampler, element_support, family_of
from unigen.engines.tape import EAGERLY
from unigen.failures import out_of_memory
from unigen.names import nearest
from unigen.objectives import log_evidence
from unigen.pair import Pair, PairError, Unsupported, nothing
from unigen.phases import PHI, PSI, THETA, Enumerate, Phase, Routine, ScoreFunction, Sleep, Tilted, Wake, name_of

__all__ = [
    "check",
    "check_dense",
    "check_kept",
    "check_observed",
    "check_once",
    "check_optimizers",
    "check_rates",
    "check_real",
    "check_routine",
]


def check(routine: Routine | Iterable[Phase], pair: Pair, x: Any) -> None:
    """Try every phase on ``x`` without a step; parameters, buffers, chains and random streams stay as they are, but for what a
    first call sets up, such as the weights of a lazy layer.

    Raises ``PairError`` (a ``ValueError``) with the phase and the reason: a group without parameters, a site that has no
    density, no reparameterization, no value or no per-datum shape, a network that psi lacks, a phase without gradient, a
    parameter that no phase gives one, a buffer that is replaced; ``DataError`` for data that are empty or not finite.
    """
    routine = check_routine(routine)
    data = pair.bind(x)
    _check_data(data)
    kept = held = Holdings(pair)
    try:
        with torch.random.fork_rng(devices=gpus_of(data)):
            with _refusals(pair, data, "the pair"):
                _check_sites(pair, data)
            if held.set_up():
                held = Holdings(pair)
                pair.refresh()
            reached: set[int] = set()
            for number, phase in enumerate(routine, 1):
                with _refusals(pair, data, f"phase {number} ({phase})", f"phase '{number} {phase}'"):
                    reached |= _check_phase(phase, pair, x)
            for _ in range(_DRAWS):
                if not _unreached(routine, pair, reached):
                    break
                for phase in routine:
                    reached |= _gradients(phase, pair, x)
            check_kept(held)
            _check_shared(pair, held)
            missing = _unreached(routine, pair, reached)
            given = [name for name in pair.optional if data.get(name) is not None]
            if missing and given:
                group, name = missing[0]
                missing = _unreached(routine, pair, reached | _reached_without(given, routine, pair, data))
                if not missing:
                    warnings.warn(
                        f"parameter {name!r} of {group} gets no gradient from a batch that gives {', '.join(given)}; it needs "
                        "batches that leave it out too",
                        stacklevel=2,
                    )
            if missing:
                group, name = missing[0]
                raise PairError(
                    f"parameter {name!r} of {group} gets no gradient in any phase; use it in the {_PROGRAM[group]}, remove it, "
                    "or freeze it by requires_grad_(False)"
                )
            with _refusals(pair, data, "the pair"):
                mixed = mixed_rows(Programs(pair), data)
                jumping = jumps(Programs(pair), data) if any(_goes_along_paths(phase) for phase in routine) else None
            for sentence in (mixed, jumping):
                if sentence:
                    warnings.warn(sentence, stacklevel=2)
        kept = held
    finally:
        kept.put_back()
        if kept is not held:
            pair.refresh()


def check_kept(held: Holdings) -> None:
    """Refuse programs that put another tensor in the place of one that the pair holds: no phase would know whose it is."""
    path = held.replaced()
    if path:
        raise PairError(f"'{path}' is replaced by a new tensor at each call; write into it in place, with copy_")


def check_dense(pair: Pair) -> None:
    """Refuse a pair that holds a sparse tensor, such as an adjacency matrix in a buffer, where a program is captured."""
    for path, tensor in (*pair.named_parameters(), *pair.named_buffers()):
        if tensor.layout is not torch.strided:
            raise Unsupported(f"'{path}' is a {str(tensor.layout).removeprefix('torch.')} tensor; {EAGERLY}")


def _check_shared(pair: Pair, held: Holdings) -> None:
    """Refuse a buffer of two groups that the programs have written to: a phase that moves one of them leaves the other's."""
    owner: dict[int, str] = {}
    for group in ("theta", "phi", "psi"):
        for buffer in pair.group_buffers(group):
            other = owner.setdefault(id(buffer), group)
            if other != group and held.written(buffer):
                raise PairError(
                    f"a buffer of shape {tuple(buffer.shape)} belongs to both {other} and {group} and is written to, as the "
                    "running mean of a shared batch norm; give each program a layer of its own"
                )


def check_routine(routine: Any) -> Routine | tuple[Phase, ...]:
    """Return a routine, or the phases of any iterable of them as a tuple; refuse what is neither."""
    if isinstance(routine, Routine):
        return routine
    phases = tuple(routine) if isinstance(routine, Iterable) and not isinstance(routine, str) else (None,)
    if not phases or not all(isinstance(phase, Phase) for phase in phases):
        raise PairError(f"a routine is a tuple of phases, such as routines.vae; got {routine!r}")
    return phases  # type: ignore[return-value]


def check_real(name: str, value: Tensor) -> None:
    """Refuse data that are no dense tensor of real numbers."""
    if value.layout is not torch.strided or value.is_complex() or value.is_meta:
        kind = "complex" if value.is_complex() else "meta" if value.is_meta else str(value.layout).split(".")[1]
        raise DataError(f"data {name!r} is a {kind} tensor; give a dense tensor of real numbers")


def _check_data(data: dict[str, Any]) -> None:
    """Refuse data that are no tensors, empty or not finite."""
    for name, value in data.items():
        if not isinstance(value, Tensor):
            continue
        check_real(name, value)
        if value.numel() == 0:
            raise DataError(f"data {name!r} is an empty batch, of shape {tuple(value.shape)}; give at least one datum")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise DataError(
                f"data {name!r} has NaN or infinity in {bad} of {value.numel()} values; give finite ones, with a mask as "
                "another argument where some are missing"
            )


@contextmanager
def _refusals(pair: Pair, data: dict[str, Any], where: str, *notes: str) -> Iterator[None]:
    """Turn whatever a program raises into a ``PairError`` that says where, and which numbers are of another type."""
    try:
        yield
    except PairError as error:
        raise _noted(PairError(f"{where}: {error}"), notes) from None
    except DataError:
        raise
    except RAISED as error:
        if out_of_memory(error):
            raise  # the machine's limit, not the pair's
        reason = reason_of(error)
        own = next((parameter.dtype for parameter in pair.parameters()), None)
        for name, value in data.items():
            if own is not None and isinstance(value, Tensor) and value.dtype != own:
                theirs, ours = (str(dtype).removeprefix("torch.") for dtype in (value.dtype, own))
                reason += f"; data {name!r} is {theirs} and the parameters are {ours}"
        raise _noted(PairError(f"{where} cannot run on this data: {reason}"), notes) from error


def _noted(error: PairError, notes: tuple[str, ...]) -> PairError:
    for note in notes:
        error.add_note(note)
    return error


def _check_sites(pair: Pair, data: dict[str, Any]) -> None:
    """Compare the sites that the two programs share: one size, both discrete or neither, no value outside the support."""
    programs = Programs(pair)
    with torch.no_grad():
        guide, model = programs.run("guide", data), programs.run("model", data)
    _warn_of_another_plate(programs, data, [*guide.values(), *model.values()])
    check_auxiliary(guide.values())
    check_sampler(guide.values())
    check_angles(guide, model)
    for site in model.values():
        if site.observed or site.name in data:
            check_observed(site)
    for name in guide.keys() & model.keys():
        ours, theirs = guide[name].fn, model[name].fn
        if model[name].observed:
            continue
        if ours.event_shape != theirs.event_shape:
            raise PairError(
                f"site '{name}' has event shape {tuple(ours.event_shape)} in the guide and {tuple(theirs.event_shape)} in the "
                "model; give both the same size"
            )
        kinds = _support(ours), _support(theirs)
        if isinstance(base_of(ours), Delta) or kinds in (("bounded", "real"), ("bounded", "bounded")):
            continue
        if kinds[0] != kinds[1]:
            raise PairError(
                f"site '{name}' has a {kinds[1]} support in the model ({family_of(theirs)}) and a {kinds[0]} one in the guide "
                f"({family_of(ours)}); give the guide a distribution of the model's support"
            )


def _warn_of_another_plate(programs: Programs, data: dict[str, Any], sites: list[Site]) -> None:
    """Warn where every site is in one plate of the data's rows, whose name is not that of the pair's batch plate."""
    rows = rows_of(data)
    wanted = programs.pair.batch_plate
    if wanted is None or programs.layout(data).batched or not sites or rows < 2:
        return
    shared = set.intersection(*({frame.name for frame in site.frames if frame.size == rows} for site in sites))
    if shared:
        name = min(shared)
        warnings.warn(
            f"every site is in the plate {name!r}, so its {rows} rows are independent, but the pair takes them all for one datum; "
            f"call the plate {wanted!r} or give Pair(..., batch_plate={name!r}), or batch_plate=None if that is meant",
            stacklevel=2,
        )


def check_observed(site: Site) -> None:
    """Refuse data that a site would have to repeat, or that lie where its distribution is not defined."""
    shape = tuple(site.fn.shape())
    try:
        repeated = torch.broadcast_shapes(site.value.shape, shape) != site.value.shape
    except RuntimeError:
        repeated = True
    if repeated:
        raise DataError(
            f"data '{site.name}' has shape {tuple(site.value.shape)} where its distribution has shape {shape}; give rows (N, "
            "...), each of the size of one datum"
        )
    fn: Any = site.fn
    while hasattr(fn, "base_dist") and not hasattr(fn, "_mask"):
        fn = fn.base_dist
    if site.mask is not None or hasattr(fn, "_mask"):
        return  # what is masked may be anything
    family = family_of(site.fn)
    try:
        # A grey value under a Bernoulli is the probability of a bit: its log density is the mean over that bit.
        support = constraints.unit_interval if family == "Bernoulli" else site.fn.support
        inside = support.check(site.value)
    except (NotImplementedError, AttributeError):
        return
    if not bool(inside.all()):
        low, high = (float(bound) for bound in site.value.aminmax())
        remedy = "binarize them" if family in ("Bernoulli", "RestrictedBoltzmann") else "rescale them"
        raise DataError(
            f"data '{site.name}' has values in [{low:g}, {high:g}] that its distribution ({family}) cannot take; {remedy}, or "
            "use another likelihood"
        )


def _support(fn: Any) -> str:
    support = element_support(fn)
    return "discrete" if support.is_discrete else "real" if support is constraints.real else "bounded"


def _check_phase(phase: Phase, pair: Pair, x: Any) -> set[int]:
    """Try one phase and return the parameters (by id) that it moves."""
    for group in phase.move:
        if not pair.group(group) and not (group == "theta" and "phi" in phase.move):  # a Bayesian model may be fixed
            raise PairError(f"it moves {group}, but the pair has no {group} parameters; {_remedy(group, pair)}")
    if phase.solve and (phase.move != ("theta",) or not hasattr(pair.model, "solve")):
        raise PairError(
            f"it wants the maximizer in closed form, but {type(pair.model).__name__} has no solve(draw); climb instead, "
            "such as em(closed_form=False)"
        )
    reached = _gradients(phase, pair, x)
    expectations = list(phase.expectations())
    if any(isinstance(each, Enumerate) for each in expectations):
        check_enumerable(Programs(pair), pair.bind(x))
        if phase.maximize is log_evidence or any(isinstance(each, Tilted) for each in expectations):
            check_values(Programs(pair), pair.bind(x))
    if any(isinstance(each, Sleep) or (isinstance(each, Wake) and each.dreams) for each in expectations):
        check_dreams(Programs(pair), pair.bind(x))
    if any(isinstance(each, Enumerate) or (isinstance(each, Wake) and each.particles) for each in expectations):
        check_particles(Programs(pair), pair.bind(x))
    if getattr(phase.maximize, "data_first", False):
        check_data_first(Programs(pair), pair.bind(x), name_of(phase.maximize))
    if not reached:
        raise PairError(f"it has no gradient along {', '.join(phase.move)}; move the group its objective reads")
    return reached


def _goes_along_paths(phase: Phase) -> bool:
    """Say whether the guide moves along the paths of its draws."""
    if "phi" not in phase.move or isinstance(phase.estimator, ScoreFunction):
        return False
    return any(isinstance(expectation, Wake) for expectation in (phase.under, phase.against))


def _reached_without(given: list[str], routine: Iterable[Phase], pair: Pair, data: dict[str, Any]) -> set[int]:
    """Return what has a gradient on data without these, which the model may lack, such as the labels of other batches."""
    left = {name: value for name, value in data.items() if name not in given}
    try:
        return {number for phase in routine for number in _gradients(phase, pair, left)}
    except PairError:
        return set()


def _gradients(phase: Phase, pair: Pair, x: Any) -> set[int]:
    """Return the ids of the parameters that one draw of a phase gives a gradient, or that it sets in closed form."""
    from unigen.engines.eager import objective

    moved = pair.group(*phase.move)
    value, surrogate = objective(phase, pair, x, dry=True)
    if not bool(torch.isfinite(value)):
        raise PairError(
            f"its value is {float(value)}; look for data that the model gives no probability, or rescale them"
        )
    _check_leaves(surrogate, pair, pair.bind(x))
    if not surrogate.requires_grad or not moved:
        return set()
    gradients = torch.autograd.grad(surrogate, moved, allow_unused=True)
    for name, gradient in zip(
        (f"{group} {n}" for group in phase.move for n, p in pair.named_group(group) if p.requires_grad),
        gradients,
        strict=True,
    ):
        if gradient is not None and gradient.layout is not torch.strided:
            raise PairError(f"the gradient of {name} is a sparse tensor; make its layer without sparse=True")
        if gradient is not None and not bool(torch.isfinite(gradient).all()):
            raise PairError(f"the gradient of {name} is not finite; rescale the data, or start from smaller weights")
    reached = {id(parameter) for parameter, gradient in zip(moved, gradients, strict=True) if gradient is not None}
    return {id(parameter) for parameter in moved} if phase.solve and reached else reached


def _check_leaves(surrogate: Tensor, pair: Pair, data: Mapping[str, Any]) -> None:
    """Refuse an objective that depends on a parameter which belongs to no group, as of a network that a function closes over."""
    own = {id(tensor) for tensor in (*pair.parameters(), *data.values())}
    named = {id(value): f"pyro.param {name!r}" for name, value in pyro.get_param_store()._params.items()}
    waiting, seen = [surrogate.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf: Any = getattr(node, "variable", None)
        if id(leaf) not in own and (isinstance(leaf, torch.nn.Parameter) or id(leaf) in named):
            what = named.get(id(leaf), f"a parameter of shape {tuple(leaf.shape)}")
            raise PairError(
                f"it depends on {what}, which no group of the pair holds, so that nothing trains it; make it a parameter of the "
                "model's or guide's module or of a network in psi, or freeze it by requires_grad_(False)"
            )
        waiting += [before for before, _ in node.next_functions]


def _unreached(routine: Routine | Iterable[Phase], pair: Pair, reached: set[int]) -> list[tuple[str, str]]:
    """Return the (group, name) of the parameters that a routine moves without ever giving them a gradient.

    A network of psi of which no parameter is reached is one that this routine does not read, as where a pair serves several.
    """
    moved = {group for phase in routine for group in phase.move}
    missing = []
    for group in ("theta", "phi", "psi"):
        named = pair.named_group(group) if group in moved else []
        read = {name.split(".")[0] for name, parameter in named if id(parameter) in reached}
        for name, parameter in named:
            unread = group == "psi" and name.split(".")[0] not in read
            if parameter.requires_grad and id(parameter) not in reached and not unread:
                missing.append((group, name))
    return missing


_DRAWS = 30  # a program may take another branch at each draw: one of probability 1/2 is missed once in 2^31 checks
_PROGRAM = {"theta": "model", "phi": "guide", "psi": "networks"}
_REMEDY = {
    "theta": "give the model networks, or use a routine that moves the guide (vae, iwae)",
    "phi": "give the pair a guide with networks, or use a routine for explicit models (maximum_likelihood)",
    "psi": "pass psi={name: network} to the pair",
}


def _remedy(group: str, pair: Pair) -> str:
    program, name = (pair.guide, "guide") if group == "phi" else (pair.model, "model")
    if isinstance(program, AutoGuide):
        return "an autoguide makes its own at its first call, so call guide(data) before it is put into a pair"
    if group == "psi" or isinstance(program, torch.nn.Module) or program is nothing:
        return _REMEDY[group]
    return f"the {name} is a function, and parameters are those of modules: write it as a torch module that holds its networks"


def check_optimizers(routine: Iterable[Phase], pair: Pair, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    """Refuse what is not one torch optimizer a group, over parameters of that group and all that a routine moves of it.

    One that evaluates its objective several times a step is refused too: each time a phase has other noise.
    """
    if not isinstance(optimizers, Mapping):
        kind = type(optimizers).__name__
        raise TypeError(
            f"optimizers are a dict by parameter group, as optimizers_for(routine, pair) makes it; got {kind}"
        )
    held = {group: _held(group, pair, optimizer) for group, optimizer in optimizers.items()}
    for phase in routine:
        if phase.solve:
            continue
        for group in phase.move:
            own = pair.group(group)
            if own and group not in held:
                raise PairError(f"the phase '{phase}' moves {group}, for which there is no optimizer")
            if any(id(parameter) not in held[group] for parameter in own):
                _check_whole(group, pair, held[group])


def _held(group: str, pair: Pair, optimizer: torch.optim.Optimizer) -> set[int]:
    """Return the ids of the parameters that the optimizer of a group holds, if it is one."""
    if group not in THETA + PHI + PSI:
        raise PairError(f"optimizers has {group!r}, which is no parameter group; {nearest(group, THETA + PHI + PSI)}")
    kind: Any = type(optimizer)
    if not hasattr(optimizer, "param_groups"):
        raise TypeError(
            f"the optimizer of {group} is a {kind.__name__}; give one of torch.optim, such as "
            f"torch.optim.Adam(pair.group({group!r})), or none, and optimizers_for(routine, pair) makes it"
        )
    if _wants_closure(kind):
        raise PairError(
            f"the optimizer of {group}, {kind.__name__}, evaluates its objective several times a step, and each time a "
            "phase has other noise; use one that moves along a gradient, such as torch.optim.Adam"
        )
    held = {id(parameter) for part in optimizer.param_groups for parameter in part["params"]}
    if not held <= {id(parameter) for parameter in pair.group(group, frozen=True)}:
        raise PairError(
            f"the optimizer of {group} holds a tensor that is no parameter of {group}, as where it serves two groups or a "
            "network was replaced since; make one for each group, as optimizers_for(routine, pair) does"
        )
    return held


@lru_cache
def _wants_closure(kind: Any) -> bool:
    closure = inspect.signature(kind.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def check_rates(
    optimizers: Mapping[str, torch.optim.Optimizer], rates: Sequence[Sequence[float]] | None, steps: int
) -> None:
    """Refuse learning rates that are not one for each step and parameter group of the optimizers."""
    groups = sum(len(optimizer.param_groups) for optimizer in optimizers.values())
    if rates is not None and (len(rates) != steps or any(len(row) != groups for row in rates)):
        raise ValueError(
            f"rates has {len(rates)} rows, of {sorted({len(row) for row in rates})} learning rates, for {steps} steps; give a row "
            f"a step, with one for each of the {groups} parameter groups of the optimizers"
        )


def _check_whole(group: str, pair: Pair, held: Collection[int]) -> None:
    """Refuse parameters that an optimizer does not hold; of psi, whole networks may be left to other routines."""
    named = pair.named_group(group)
    networks = {name.split(".")[0] for name, parameter in named if id(parameter) in held}
    for name, parameter in named:
        other = group == "psi" and name.split(".")[0] not in networks
        if parameter.requires_grad and id(parameter) not in held and not other:
            raise PairError(
                f"the optimizer of {group} leaves out {name!r}, which would never move; make it of pair.group({group!r}), or "
                "freeze the parameter by requires_grad_(False)"
            )


def check_once(routine: Routine | Iterable[Phase], pair: Pair, x: Any) -> None:
    """``check`` at the first use of a routine with a pair."""
    key = tuple(check_routine(routine))
    try:
        hash(key)
    except TypeError as error:
        raise PairError(f"a phase must be hashable, so its settings are tuples, not lists: {error}") from None
    if key not in pair.checked:
        check(key, pair, x)
        pair.checked.add(key)
