"""The pair: a generative program p_theta(z, x), an inference program q_phi(z|x), and named networks psi.

Conventions that every engine relies on:

* The arguments of ``model`` and ``guide`` are data, named as the sites that observe them (``def forward(self, x)`` with
  ``pyro.sample("x", ..., obs=x)``). In the sleep phase the dreamt value of a site takes its argument's place, so
  an observed site of another name is refused there; an argument that no site is named after is a covariate and stays. An
  argument that may be left out (``y=None``) is latent where it is.
* ``pyro.plate("data", len(x))`` makes the rows of a batch independent: densities are then per datum, (N,). A program
  without that plate is one datum, whatever plates it has inside: densities are ().
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from pyro.poutine.reparam_messenger import ReparamHandler
from torch import Tensor, nn
from torch.distributions import Transform
from torch.utils._pytree import tree_leaves

from unigen.averages import Averages
from unigen.names import nearest

__all__ = ["Pair", "PairError", "Unsupported", "nothing"]

pyro.settings.set(module_local_params=True)  # parameters live in the modules, never in a global store


class PairError(ValueError):
    """A routine and a pair, or the two programs of a pair, do not fit; the sentence names the site and a remedy."""


class Unsupported(PairError):
    """A program that an engine cannot express; the sentence names what stands in the way and the engines that work."""


class Pair(nn.Module):
    """A model, a guide and named networks over disjoint parameter groups theta, phi, psi.

    ``model``, ``guide``: Pyro programs (``PyroModule`` or any callable) of the same data arguments; a guide of ``None`` is
    the empty program, and an autoguide of Pyro's one after its first call. ``psi``: named networks, such as a critic or a
    baseline. ``batch_plate``: the name of the plate that holds the rows of a batch; None for a pair that is one datum, whatever
    its plates. ``likelihood`` says what log p(x) can be had: ``"exact"``, ``"bound"`` or ``"none"``.

    A parameter in two groups is refused with a ``PairError`` that names it.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None = None,
        psi: Mapping[str, nn.Module] | None = None,
        *,
        likelihood: str = "bound",
        batch_plate: str | None = "data",
    ) -> None:
        super().__init__()
        if likelihood not in ("exact", "bound", "none"):
            raise ValueError(f"likelihood={likelihood!r}: {nearest(likelihood, ('exact', 'bound', 'none'))}")
        self.model = model
        self.guide: Callable[..., Any] = guide  # type: ignore[assignment]  # as __setattr__ makes it
        self.psi: nn.ModuleDict = psi  # type: ignore[assignment]
        self.likelihood = likelihood
        self.batch_plate = batch_plate
        self.chains: dict[str, Tensor] = {}  # the persistent chains of ``Chain(..., persistent=True)``
        self.averages: Averages | None = None  # running averages of the weights, where they are wanted
        self._callables: dict[str, Callable[..., Any]] = {}
        self._walked: dict[str, tuple[list[nn.Parameter], list[Tensor]]] = {}
        self.layout: Any = None  # how the plates nest, probed by the engine once
        self.unreached: dict[Any, Any] = {}  # which densities a latent site cannot change, by the data that are given
        self.supports: dict[Any, Any] = {}  # every value of the guide's discrete sites, by the shape of the data
        self.checked: set[Any] = set()  # the routines that have been checked against this pair
        self.compiled: dict[Any, Any] = {}  # what an engine has made of the routines
        self._meet()

    def _meet(self) -> None:
        """Find the arguments of the programs, and refuse programs that do not go together."""
        arguments, own = _arguments(self.model), _arguments(self.guide)
        foreign = [name for name in own if name not in arguments]
        if foreign:
            raise PairError(f"guide argument {foreign[0]!r} is not one of the model's: {', '.join(arguments)}")
        owner: dict[int, str] = {}
        for group in ("theta", "phi", "psi"):
            for name, parameter in self.named_group(group):
                other = owner.setdefault(_memory(parameter), group)
                if other != group:
                    raise PairError(f"parameter {name!r} belongs to both {other} and {group}; give each its own copy")
        self.arguments = arguments
        self.optional = tuple(p.name for p in _parameters(self.model) if p.default is None)
        self.guide_arguments = arguments if _takes_any(self.guide) else own
        self._callables.clear()
        self.compiled.clear()
        self._forget()

    def _forget(self) -> None:
        """Forget what was found out about the programs, and remember of what programs that is true."""
        self._walked.clear()
        self.supports.clear()
        self.checked.clear()
        self.unreached.clear()
        self.layout = None
        self.compiled.pop("xla parameters", None)
        if self.averages is not None:
            self.averages = self.averages.follow(self)
        self._seen = self.signature()[1]

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; another model, guide, psi or batch plate is met as that which the pair was made of."""
        if name == "guide" and value is None:
            value = nothing
        if name == "psi" and not isinstance(value, nn.Module):
            value = nn.ModuleDict(value or {})
        if name not in ("model", "guide", "psi", "batch_plate") or "_seen" not in vars(self):
            super().__setattr__(name, value)
            return
        old = getattr(self, name)
        self._put(name, value)
        try:
            self._meet()
        except PairError:
            self._put(name, old)
            self._meet()
            raise

    def _put(self, name: str, value: Any) -> None:
        self._modules.pop(name, None)  # torch takes no function in the place of a module
        super().__setattr__(name, value)

    @property
    def generative_model(self) -> Callable[..., Any]:
        """The model, by the field's other names: generative network, data likelihood model, generator, decoder."""
        return self.model

    @property
    def inference_model(self) -> Callable[..., Any]:
        """The guide, by the field's other names: variational approximation, recognition or inference network, encoder."""
        return self.guide

    generative_network = data_likelihood_model = generator = decoder = probabilistic_decoder = generative_model
    inference_network = recognition_model = recognition_network = variational_approximation = inference_model
    encoder = probabilistic_encoder = inference_model

    def _program(self, group: str) -> Any:
        return {"theta": self.model, "phi": self.guide, "psi": self.psi}[group]

    def runner(self, which: str) -> Callable[..., Any]:
        """Return ``"model"`` or ``"guide"`` as the engine calls it.

        A ``PyroModule`` announces every parameter of a network to Pyro's handlers whenever the network is touched, which
        costs more than a small network's forward pass, and nothing here listens: parameters live in the modules. Called
        as a plain torch module it keeps quiet. One with ``PyroSample`` attributes needs Pyro's own call.
        """
        if which not in self._callables:
            program: Any = self.model if which == "model" else self.guide
            quiet = isinstance(program, PyroModule) and not any(
                getattr(module, "_pyro_samples", None) for module in program.modules()
            )
            self._callables[which] = partial(nn.Module.__call__, program) if quiet else program
        return self._callables[which]

    def named_group(self, group: str) -> list[tuple[str, nn.Parameter]]:
        """Return the (name, parameter) of ``"theta"``, ``"phi"`` or ``"psi"``."""
        program = self._program(group)
        return list(program.named_parameters()) if isinstance(program, nn.Module) else []

    def named_groups(self) -> list[tuple[str, nn.Parameter]]:
        """Return every (name, parameter), the group first: ``theta.generator.weight``."""
        return [(f"{group}.{name}", p) for group in ("theta", "phi", "psi") for name, p in self.named_group(group)]

    def group(self, *groups: str, frozen: bool = False) -> list[nn.Parameter]:
        """Return the parameters of the named groups, in order; those with ``requires_grad_(False)`` only with ``frozen``."""
        return [p for group in groups for p in self._tensors(group)[0] if frozen or p.requires_grad]

    def group_buffers(self, *groups: str) -> list[Tensor]:
        """Return the buffers of the named groups' modules."""
        return [buffer for group in groups for buffer in self._tensors(group)[1]]

    def signature(self) -> tuple[tuple[bool, ...], tuple[Any, ...]]:
        """Return what a program reads of the pair when it is captured, beside values of tensors: where it changes, it is captured
        anew.

        First the mode of each module. Then which parameters and buffers there are, which are frozen, and all hooks; the flags,
        numbers and names of each module, such as a temperature that a callback anneals.
        """
        modes: list[bool] = []
        found: list[Any] = [torch.get_default_dtype()]
        for module in self.modules():
            own = vars(module)
            modes.append(module.training)
            found += [(k, v) for k, v in own.items() if type(v) in _READ and k != "training" and not k.startswith("_")]
            if "forward" in own:  # one of its own, in the place of its class's
                found.append(id(own["forward"]))
            for p in module._parameters.values():
                if p is not None:
                    found.append((id(p), p.requires_grad, *map(id, (p._backward_hooks or {}).values())))
            for held in _HELD(module):
                if held:
                    found += map(id, held.values())
        return tuple(modes), tuple(found)

    def refresh(self) -> bool:
        """Forget what was found of modules and routines, where modules have been replaced or parameters frozen since; say
        whether something like it has happened. A change of mode is nothing like it.
        """
        changed: bool = self.signature()[1] != self._seen
        if changed:
            self._forget()
        return changed

    def _tensors(self, group: str) -> tuple[list[nn.Parameter], list[Tensor]]:
        """Walk a group's modules once: an engine asks for them in every phase."""
        if group not in self._walked:
            program = self._program(group)
            buffers = list(program.buffers()) if isinstance(program, nn.Module) else []
            self._walked[group] = ([parameter for _, parameter in self.named_group(group)], buffers)
        return self._walked[group]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.refresh()
        self.compiled.clear()
        super()._apply(fn, recurse)  # which may replace tensors
        self.chains = {key: fn(chain) for key, chain in self.chains.items()}
        if self.averages is not None:
            self.averages = self.averages.moved(self, fn)
        self._forget()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Pair:
        same = self.__class__.__new__(self.__class__)
        memo[id(self)] = same
        for module in self.modules():  # a copy of a flow's transform remembers nothing of its last call
            remembered = vars(module).items() if isinstance(module, Transform) else ()
            for part in tree_leaves([value for name, value in remembered if name.startswith("_cache")]):
                if isinstance(part, Tensor):
                    memo[id(part)] = None
        kept = {k: v for k, v in self.__dict__.items() if k not in ("_walked", "_callables", "compiled")}
        same.__dict__.update(copy.deepcopy(kept, memo) | {"_walked": {}, "_callables": {}, "compiled": {}})
        same._seen = same.signature()[1]
        return same

    def bind(self, x: Any) -> dict[str, Any]:
        """Name a batch by the model's arguments: a tensor, a tuple or list of them in order, or a dict by name."""
        if isinstance(x, Tensor) and self.arguments:
            return {self.arguments[0]: x}
        if isinstance(x, Mapping):
            data = dict(x)
        else:
            # a DataLoader gives a batch of several tensors as a list
            listed = isinstance(x, list) and all(isinstance(value, Tensor) for value in x)
            values = x if listed or isinstance(x, tuple) else (x,)
            data = dict(zip(self.arguments, values, strict=False))
            if len(values) > len(self.arguments):
                raise PairError(f"the model takes {', '.join(self.arguments) or 'no data'}; got {len(values)} values")
        seen: set[int] = set()
        for name, value in data.items():
            if isinstance(value, Tensor) and id(value) in seen:
                data[name] = value.view_as(value)  # its own: the next batch may have another tensor there
            seen.add(id(value))
            if name not in self.arguments:
                raise PairError(f"data {name!r} is no argument of the model; {nearest(name, self.arguments)}")
            if hasattr(value, "__len__") and not isinstance(value, Tensor | str):
                raise PairError(f"data {name!r} is a {type(value).__name__}; give a torch tensor")
        return data

    def network(self, name: str) -> nn.Module:
        """Return the psi network of this name."""
        if name not in self.psi:
            raise PairError(
                f"the routine reads the network {name!r} of psi, which this pair lacks; {nearest(name, self.psi)}"
            )
        return self.psi[name]


HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""Where a module has its hooks."""
_HELD = attrgetter("_buffers", *HOOKS)
_READ = {bool, float, str}  # attributes of a module that a program reads when it is captured; integers often count


def _memory(parameter: nn.Parameter) -> int:
    """Return where a parameter's numbers lie, the same of one and of its transpose; of one without numbers, its identity."""
    lazy = nn.parameter.is_lazy(parameter)  # type: ignore[no-untyped-call]
    return (0 if lazy else parameter.data_ptr()) or id(parameter)


def nothing(*_: Any, **__: Any) -> None:
    """Infer nothing: the guide of a pair without latents."""


def _parameters(program: Any) -> list[inspect.Parameter]:
    function, given = program, 0
    while True:
        if isinstance(function, partial) and function.args and isinstance(function.args[0], Messenger):
            given += len(function.args) - 2  # what a Pyro handler wraps: partial(wrap, handler, program, self)
            function = function.args[1]
        elif isinstance(function, ReparamHandler):
            function = function.fn
        else:
            break
    if isinstance(function, nn.Module):
        return _parameters(function.forward)
    return list(inspect.signature(function).parameters.values())[given:]


def _arguments(program: Any) -> tuple[str, ...]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(p.name for p in _parameters(program) if p.kind in kinds)


def _takes_any(program: Any) -> bool:
    """Say whether a program takes every argument by name, as Pyro's autoguides do."""
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in _parameters(program))
