"""What surrounds a captured run: torch takes no way of its own that reads values or hides operations; and draws recorded.

Distributions trust their arguments, recurrent layers and attention are the products and sums that they are. What no operation
shows is refused: values that leave torch, and random numbers that come twice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._decomp.decompositions import gru_impl, lstm_impl
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unigen.engines.places import place_of
from unigen.engines.tape import EAGERLY
from unigen.pair import Unsupported

__all__ = ["Draws", "OneStream", "kept_in_torch", "plainly"]

_LEAVING = ("numpy", "tolist", "__dlpack__")  # numpy.asarray asks by the first


@contextmanager
def plainly() -> Iterator[None]:
    """Let torch compute by its plain operations: enter before the recorder, whose work this leaves alone."""
    with ExitStack() as stack:
        stack.enter_context(_without_validation())
        stack.enter_context(_without_libraries())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_WithoutReading())
        yield


@contextmanager
def _without_validation() -> Iterator[None]:
    """Let distributions trust their arguments: a check reads values, and has been made when the pair was checked."""
    base = torch.distributions.Distribution
    before = base._validate_args
    base.set_default_validate_args(False)
    try:
        yield
    finally:
        base.set_default_validate_args(before)


@contextmanager
def _without_libraries() -> Iterator[None]:
    """Let layers be the operations that they are on every device, instead of one of oneDNN or cuDNN."""
    before = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    torch._C._set_cudnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before[0])
        torch._C._set_cudnn_enabled(before[1])


class _WithoutReading(TorchFunctionMode):
    """Write ``one_hot`` without the read of a value that torch makes there, and write out what a GPU does at once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.one_hot:
            index, classes = one_hot_of(*args, **(kwargs or {}))
            if classes > 0:
                return (index.unsqueeze(-1) == torch.arange(classes, device=index.device)).long()
        if func in AT_ONCE_ON_A_GPU and isinstance(args[0], Tensor) and args[0].is_cuda and not _is_packed(args):
            return AT_ONCE_ON_A_GPU[func](*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def one_hot_of(*given: Any, **named: Any) -> tuple[Any, int]:
    """Return the arguments of a call of ``one_hot``: the class of each, and how many there are, -1 where that is not said."""
    return given[0] if given else named["input"], given[1] if len(given) > 1 else named.get("num_classes", -1)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    kept = torch.empty_like(x).bernoulli_(1 - p).div_(1 - p) if 0 < p < 1 else torch.full_like(x, 1 - p)
    dropped = x * kept if training else x
    return x.copy_(dropped) if inplace else dropped


def _lstm_cell(
    x: Tensor, state: tuple[Tensor, Tensor], w: Tensor, u: Tensor, b: Tensor | None = None, c: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    i, f, g, o = (linear(x, w, b) + linear(state[0], u, c)).chunk(4, -1)
    cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _gru_cell(
    x: Tensor, state: Tensor, w: Tensor, u: Tensor, b: Tensor | None = None, c: Tensor | None = None
) -> Tensor:
    (r, z, n), (hr, hz, hn) = linear(x, w, b).chunk(3, -1), linear(state, u, c).chunk(3, -1)
    new = (n + (r + hr).sigmoid() * hn).tanh()
    return new + (z + hz).sigmoid() * (state - new)


# what is one operation on a GPU (a dropout with its mask, a recurrent cell), written out
AT_ONCE_ON_A_GPU: dict[Any, Any] = {
    torch.nn.functional.dropout: _dropout,
    torch.lstm: lstm_impl,
    torch.gru: gru_impl,
    torch.lstm_cell: _lstm_cell,
    torch.gru_cell: _gru_cell,
}


def _is_packed(args: Any) -> bool:
    """Say whether a recurrent layer is called with a packed sequence: its weights, a list, then come fourth."""
    return len(args) > 3 and isinstance(args[3], list | tuple)


@contextmanager
def kept_in_torch(fixed: Callable[[Tensor], bool]) -> Iterator[None]:
    """Refuse to hand the values of a tensor to Python and other libraries, which no mode sees in a derivative.

    ``fixed``: whether a tensor holds the same in every later run, so that its values may leave.
    """
    before = {name: getattr(Tensor, name) for name in _LEAVING}
    for name, method in before.items():
        setattr(Tensor, name, _refusing(name, method, fixed))
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Tensor, name, method)


def _refusing(name: str, method: Callable[..., Any], fixed: Callable[[Tensor], bool]) -> Callable[..., Any]:
    def leave(tensor: Tensor, *args: Any, **named: Any) -> Any:
        captured = torch._C._len_torch_dispatch_stack() > 0  # else torch itself asks, or another thread
        if captured and not fixed(tensor):
            raise Unsupported(
                f"Tensor.{name} looks at the value of a tensor, in {place_of(sys._getframe(1))}; compute with torch alone, "
                f"or {EAGERLY}"
            )
        return method(tensor, *args, **named)

    return leave


class OneStream(TorchDispatchMode):
    """Refuse a random operation that does not go on where the last one left torch's global streams, as after a seed.

    A program that is written down draws new numbers there. ``here`` says where it is. To be entered where the streams are put
    back, since it moves them.
    """

    def __init__(self, here: Callable[[], str]) -> None:
        super().__init__()
        self.here = here
        used = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
        self.streams = [torch.default_generator, *used]
        self.left: list[Tensor] = []
        self._leave()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **named)
        if named.get("generator") is not None or not self._as_left():
            raise Unsupported(
                f"{func} draws from a generator, or from a state of torch that was set (by a seed, fork_rng, or a checkpoint that "
                f"runs again), in {self.here()}, and would draw other numbers; draw from torch's stream as it goes, or {EAGERLY}"
            )
        result = func(*args, **named)
        self._leave()
        return result

    def _as_left(self) -> bool:
        with no_dispatch():
            return all(torch.equal(each.get_state(), left) for each, left in zip(self.streams, self.left, strict=False))

    def _leave(self) -> None:
        """Take the streams for left as they are now; moved too by a draw of fake tensors, and before the first."""
        moved = not self._as_left()
        with no_dispatch():
            if not moved:
                torch.rand((), device="cpu")
            self.left = [each.get_state() for each in self.streams]


class Draws(TorchDispatchMode):
    """Collect what the random operations of an eager run return, in their order: the noise that a tape can be run on.

    >>> with Draws() as draws:
    ...     x = torch.randn(3) * 2
    >>> len(draws.taken), bool((2 * draws.taken[0] == x).all())
    (1, True)
    """

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.taken.append(next(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)).detach().clone())
        return result
