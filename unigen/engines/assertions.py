"""``assert (x >= 0).all()`` in a program that is written down, where no value is there to look at.

Python asks a tensor for its truth, and goes on or raises. A program that is written down goes on, and its results are nan
where a later run would have raised, which stops a training as any value that is not finite does. That one of the two answers
leads to nothing but an exception, ``if not x.isfinite().all(): raise ValueError`` too, is read from the code that asks.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from unigen.engines.surroundings import one_hot_of

__all__ = ["Assertions"]

_QUESTIONS: dict[Any, Callable[..., Tensor]] = {
    Tensor.__bool__: lambda truth: truth,
    Tensor.item: lambda truth: truth,
    torch.allclose: lambda *args, **named: torch.isclose(*args, **named).all(),
    torch._assert: lambda truth, message: truth,
}
_BESIDE = ("TO_BOOL", "NOP", "EXTENDED_ARG")  # what stands between a question and the jump by its answer
_TURNS = ("JUMP", "RETURN", "YIELD", "ITER", "SEND")  # in the names of what may lead elsewhere


class Assertions(TorchFunctionMode):
    """Answer a tensor's truth so that the program goes on, where the other answer raises, and keep what was asserted.

    To be entered last of the modes, so that it sees the program's own frame.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asserted: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func is torch.nn.functional.one_hot:
            index, classes = one_hot_of(*args, **named)
            if classes > 0:
                self.asserted.append(((index >= 0) & (index < classes)).detach().all())
        question = _QUESTIONS.get(func)
        if question is None or not args or not isinstance(args[0], Tensor):
            return func(*args, **named)
        hoped = True if func is torch._assert else _hoped(sys._getframe(1))
        if hoped is None:
            return func(*args, **named)
        truth = question(*args, **named)
        self.asserted.append(truth.detach().bool().reshape(()) == hoped)
        return hoped

    def held(self, results: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the results, those that are not whole numbers nan where an assertion is broken."""
        if not self.asserted:
            return list(results)
        kept = torch.stack(self.asserted).all()
        return [
            result if result is None or not result.is_floating_point() else torch.where(kept, result, torch.nan)
            for result in results
        ]


def _hoped(frame: FrameType) -> bool | None:
    """Return the answer by which a frame that asks for a truth goes on, None where it may go on by both."""
    code = list(dis.get_instructions(frame.f_code))
    places = {instruction.offset: index for index, instruction in enumerate(code)}
    jump = max(index for offset, index in places.items() if offset <= frame.f_lasti)  # a call may wait in its cache
    if "JUMP" not in code[jump].opname:  # else the jump itself asks
        jump += 1 + (code[jump].opname == "PRECALL")  # of Python 3.11
        while code[jump].opname in _BESIDE:
            jump += 1
    name = code[jump].opname
    if "POP_JUMP" not in name or not name.endswith(("IF_TRUE", "IF_FALSE")):
        return None
    if _raises(code, places, jump + 1):
        return name.endswith("IF_TRUE")
    if _raises(code, places, places[code[jump].argval]):
        return name.endswith("IF_FALSE")
    return None


def _raises(code: list[dis.Instruction], places: dict[int, int], index: int) -> bool:
    """Whether what stands from a place on does nothing but raise."""
    while index < len(code):
        instruction = code[index]
        if instruction.opname == "RAISE_VARARGS":
            return True
        if instruction.opname == "JUMP_FORWARD":
            index = places[instruction.argval]
        elif any(turn in instruction.opname for turn in _TURNS):
            return False
        else:
            index += 1
    return False
