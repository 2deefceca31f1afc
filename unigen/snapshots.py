"""The state of a training run as one tree of copies: what ``unigen.checkpoints`` stores and the next step needs.

``restore(capture(state), other)`` makes ``other`` and every global random stream equal to what they were, bit for bit.
There are no JAX keys among the streams: an engine that runs on JAX derives the noise of a step from torch's stream, which
is here, so that a run on any engine goes on from the same tree.
"""

from __future__ import annotations

import copy
import math
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from unigen.pair import Pair
    from unigen.training import State

__all__ = ["attributes", "capture", "capture_streams", "restore", "restore_streams"]


def capture(state: State) -> dict[str, Any]:
    """Return copies, on the CPU, of a pair's parameters, buffers, chains, averages and plain attributes, of its optimizers'
    state, of the step and of the random streams.

    Buffers that are registered as not persistent are taken to be derived, and left out. Raises ``ValueError`` for an
    optimizer that moves a parameter outside the pair.
    """
    found, own = state.pair.state_dict(), dict(state.pair.named_parameters(remove_duplicate=False))
    return {
        "pair": _copied({name: value for name, value in found.items() if name in own}),
        "buffers": _copied({name: value for name, value in found.items() if name not in own}),
        "chains": _copied(dict(state.pair.chains)),
        "averages": _averages(state.pair),
        "attributes": attributes(state.pair),
        "optimizers": {group: _optimizer(state.pair, group, used) for group, used in state.optimizers.items()},
        "random": capture_streams(),
        "step": state.step,
    }


def restore(content: dict[str, Any], state: State, streams: bool = True) -> None:
    """Make ``state``, and with ``streams`` every random stream, equal to what ``capture`` saw.

    Raises ``ValueError`` in one sentence, and changes nothing, where the pair or the optimizers are not those captured.
    """
    own, names = state.pair.state_dict(), _names(state.pair)
    parameters = dict(state.pair.named_parameters(remove_duplicate=False))
    buffers = {name: buffer for name, buffer in content.get("buffers", {}).items() if name not in parameters}
    stored = content["pair"] | buffers  # earlier versions have all of them in "pair"
    for name in [*own, *stored]:
        found, wanted = stored.get(name), own.get(name)
        if isinstance(found, Tensor) and isinstance(wanted, Tensor):
            if (found.shape, found.dtype) == (wanted.shape, wanted.dtype):
                continue
        elif not isinstance(found, Tensor | None) and not isinstance(wanted, Tensor | None):
            continue
        raise ValueError(
            f"the checkpoint is not of this pair: {name} is {_kind(found)} in it, and {_kind(wanted)} here"
        )
    averages = content.get("averages")
    if _averages_kind(averages) != _averages_kind(_averages(state.pair)):
        said = [f"decay {part['decay']}" if part else "none" for part in (averages, _averages(state.pair))]
        raise ValueError(f"the checkpoint has other averages of the weights: {said[0]} in it, {said[1]} here")
    if content["optimizers"].keys() != state.optimizers.keys():
        there, here = (", ".join(part) or "none" for part in (content["optimizers"], state.optimizers))
        raise ValueError(f"the checkpoint is not of these optimizers: it moves {there}, they move {here}")
    loads = {}
    for group, optimizer in state.optimizers.items():
        saved, numbers = content["optimizers"][group], _numbers(state.pair, group, optimizer)
        shape = [[names[id(parameter)] for parameter in part["params"]] for part in optimizer.param_groups]
        if (saved["name"], [part["params"] for part in saved["groups"]]) != (type(optimizer).__name__, shape):
            raise ValueError(
                f"the checkpoint is not of the optimizer of {group}: it is {saved['name']} over "
                f"{sum(len(part['params']) for part in saved['groups'])} parameters, this is {type(optimizer).__name__} "
                f"over {sum(map(len, shape))}, or their names differ"
            )
        _check_optimizer(group, saved, optimizer, numbers)
        like = dict(state.pair.named_parameters())
        loads[group] = {
            "state": {numbers[name]: _copied(part, like[name]) for name, part in saved["state"].items()},
            "param_groups": [part | {"params": [numbers[n] for n in part["params"]]} for part in saved["groups"]],
        }
    owners: dict[str, Any] = {**dict(state.pair.named_parameters()), **dict(state.pair.named_modules())}
    kept = content.get("attributes", {}).items()  # earlier versions have none
    plain = [_attribute(owners.get(path.rpartition(".")[0]), path, text) for path, text in kept]
    state.pair.load_state_dict(stored)
    for owner, name, value in plain:
        setattr(owner, name, value)
    first = next((tensor for tensor in own.values() if isinstance(tensor, Tensor)), torch.zeros(()))
    state.pair.chains = {key: chain.to(first.device, copy=True) for key, chain in content["chains"].items()}
    if averages and state.pair.averages:
        for name, average in state.pair.averages.weights.items():
            average.copy_(averages["weights"][name])
    for group, load in loads.items():
        state.optimizers[group].load_state_dict(load)
    state.step = content["step"]
    if streams:
        restore_streams(content["random"])


def attributes(pair: Pair) -> dict[str, str]:
    """Return what programs read beside tensors, by its path, as text: the mode, flags, numbers and names of modules, such as a
    temperature that a callback anneals, and which parameters are frozen.
    """
    found: dict[str, Any] = {f"{name}.requires_grad": own.requires_grad for name, own in pair.named_parameters()}
    for name, module in list(pair.named_modules())[1:]:
        found |= {f"{name}.{key}": value for key, value in vars(module).items() if not key.startswith("_")}
    return {path: f"{type(value).__name__} {value}" for path, value in found.items() if type(value) in _PLAIN.values()}


_PLAIN: dict[str, Any] = {kind.__name__: kind for kind in (bool, int, float, str)}


def _attribute(owner: Any, path: str, text: str) -> tuple[Any, str, Any]:
    """Return an attribute that ``attributes`` found: its owner, name and value; ``ValueError`` where there is none such here."""
    name, (kind, _, value) = path.rpartition(".")[2], text.partition(" ")
    own, here = getattr(owner, name, None), hasattr(owner, name)
    if isinstance(owner, nn.Module):
        fits = not name.startswith("_") and (name in vars(owner) or not here) and kind in _PLAIN
        fits = fits and (own is None or {type(own).__name__, kind} in ({kind}, {"int", "float"}))
    else:
        fits = here and (name, kind) == ("requires_grad", "bool")
    if not fits:
        raise ValueError(f"the checkpoint is not of this pair: {path:.80} is {text:.80} in it, and {own!r:.80} here")
    return owner, name, value == "True" if kind == "bool" else _PLAIN[kind](value)


def capture_streams() -> dict[str, Any]:
    """Return the global random streams: python's, numpy's, torch's on the CPU and on each CUDA device in use."""
    legacy: Any = np.random.get_state(legacy=False)
    numpy = legacy | {"state": legacy["state"] | {"key": torch.from_numpy(legacy["state"]["key"].astype(np.int64))}}
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    cuda = torch.cuda.get_rng_state_all() if used else []
    return {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state(), "cuda": cuda}


def restore_streams(streams: dict[str, Any]) -> None:
    """Set the global random streams to what ``capture_streams`` returned; CUDA devices that are not there are left out."""
    random.setstate(streams["python"])
    numpy = streams["numpy"]
    if tuple(numpy["state"]["key"].shape) != (624,) or not 0 <= numpy["state"]["pos"] <= 624:
        raise ValueError("the stream of numpy is none")  # numpy itself would read beyond its end
    np.random.set_state(numpy | {"state": numpy["state"] | {"key": numpy["state"]["key"].numpy().astype(np.uint32)}})
    torch.set_rng_state(streams["torch"])
    for index, stream in enumerate(streams["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(stream, index)


def _averages(pair: Pair) -> dict[str, Any] | None:
    found = pair.averages
    return None if found is None else {"decay": found.decay, "weights": _copied(found.weights)}


def _averages_kind(averages: dict[str, Any] | None) -> Any:
    if averages is None:
        return None
    return averages["decay"], {name: _kind(tensor) for name, tensor in averages["weights"].items()}


def _optimizer(pair: Pair, group: str, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state with the pair's parameter names in place of numbers."""
    names = {number: name for name, number in _numbers(pair, group, optimizer).items()}
    saved = optimizer.state_dict()
    return {
        "name": type(optimizer).__name__,
        "groups": [_copied(part) | {"params": [names[n] for n in part["params"]]} for part in saved["param_groups"]],
        "state": {names[number]: _copied(part) for number, part in saved["state"].items()},
    }


def _numbers(pair: Pair, group: str, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Return the number that an optimizer's ``state_dict`` gives to each parameter, by name."""
    names, moved = _names(pair), [parameter for part in optimizer.param_groups for parameter in part["params"]]
    for parameter in moved:
        if id(parameter) not in names:
            raise ValueError(
                f"the optimizer of {group} moves a parameter of shape {tuple(parameter.shape)} that the pair lacks"
            )
    return {names[id(parameter)]: number for number, parameter in enumerate(moved)}


def _check_optimizer(
    group: str, saved: dict[str, Any], optimizer: torch.optim.Optimizer, numbers: dict[str, int]
) -> None:
    """Refuse settings of other kinds than the optimizer's, and tensors of other shapes than a step of it makes.

    A fused step does not look at shapes: a moment that is too short makes it write beyond the moment's end.
    """
    for theirs, ours in zip(saved["groups"], optimizer.state_dict()["param_groups"], strict=True):
        there, here = ({name: _signature(value) for name, value in part.items()} for part in (theirs, ours))
        for name in (there | here).keys() - {"params"}:
            if there.get(name) != here.get(name):
                raise ValueError(
                    f"the checkpoint has other settings of the optimizer of {group}: {name} is not the same"
                )
    memo: dict[int, Any] = {}
    probe = copy.deepcopy(optimizer, memo)
    lost = {name: value for name, value in vars(optimizer).items() if name not in vars(probe)}  # a subclass's own
    vars(probe).update(copy.deepcopy(lost, memo))
    for part in probe.param_groups:
        for parameter in part["params"]:
            parameter.grad = torch.zeros_like(parameter)
    probe.step()
    made = probe.state_dict()["state"]
    for name, part in saved["state"].items():
        wanted = {key: _kind(value) for key, value in made.get(numbers[name], {}).items()}
        if {key: _kind(value) for key, value in part.items()} != wanted:
            raise ValueError(f"the checkpoint's state of {name} is not one that {type(optimizer).__name__} makes")


def _signature(value: Any) -> Any:
    """Return what of a setting must not change: all of a switch or a word, of a number that it is one."""
    if value is None or isinstance(value, bool | str):
        return repr(value)
    if isinstance(value, list | tuple):
        return [_signature(entry) for entry in value]
    return math.isfinite(value) if isinstance(value, int | float) else _kind(value)


def _names(pair: Pair) -> dict[int, str]:
    return {id(parameter): name for name, parameter in pair.named_parameters()}


def _copied(tree: Any, like: nn.Parameter | None = None) -> Any:
    """Return a copy of a tree with its tensors on the CPU, those of ``like``'s shape in ``like``'s memory layout."""
    if isinstance(tree, Tensor):
        if like is not None and tree.shape == like.shape:
            return torch.empty_like(like, dtype=tree.dtype, device="cpu", requires_grad=False).copy_(tree)
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: _copied(part, like) for key, part in tree.items()}
    return type(tree)(_copied(part, like) for part in tree) if isinstance(tree, list | tuple) else tree


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return "nothing" if value is None else type(value).__name__
