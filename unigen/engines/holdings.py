"""What the modules of a pair hold, as it was before its programs ran: which buffers are replaced, and everything put back."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from unigen.pair import Pair

__all__ = ["Holdings"]


class _Place(NamedTuple):
    """Where a module holds a parameter or buffer; ``memory`` are its numbers where they lay, None where it had none yet."""

    path: str
    holder: Any
    name: str
    tensor: Tensor | None
    memory: Tensor | None
    copy: Tensor | None
    version: int

    @property
    def is_buffer(self) -> bool:
        return not isinstance(self.tensor, torch.nn.Parameter)

    @property
    def replaced(self) -> bool:
        held = self.holder[self.name] if self.name in self.holder else None  # of a script no dict, and without get
        if held is not self.tensor:
            return True
        return self.is_buffer and self.memory is not None and _address(self.tensor) != _address(self.memory)

    @property
    def written(self) -> bool:
        """Whether the numbers are others; of a sparse tensor, which torch does not compare, whether it was written to."""
        if self.tensor is None or self.copy is None:
            return False
        if self.copy.layout is not torch.strided:
            return self.tensor._version != self.version
        return not torch.equal(self.tensor, self.copy)


class Holdings:
    """The parameters, buffers and flags of a pair's modules as they are now."""

    def __init__(self, pair: Pair) -> None:
        self.places: list[_Place] = []
        self.flags: list[tuple[dict[str, Any], str, bool]] = []
        for path, module in pair.named_modules():
            own = vars(module)
            self.flags += [(own, name, value) for name, value in own.items() if type(value) is bool]
            for holder in (module._parameters, module._buffers):
                for name, tensor in holder.items():
                    memory = None if tensor is None or is_lazy(tensor) else tensor.detach()  # type: ignore[no-untyped-call]
                    copy = None if memory is None else memory.clone()
                    version = 0 if memory is None else memory._version
                    self.places.append(_Place(f"{path}.{name}", holder, name, tensor, memory, copy, version))

    def replaced(self) -> str | None:
        """Return the path of a buffer or parameter in whose place, or in the place of whose memory, there is another."""
        return next((place.path for place in self.places if place.replaced), None)

    def written(self, tensor: Tensor) -> bool:
        """Whether a parameter or buffer has other numbers."""
        return any(place.tensor is tensor and place.written for place in self.places)

    def set_up(self) -> bool:
        """Whether modules have been set up since: a lazy layer has its shape, a flag of the first call is turned, a buffer
        has come.
        """
        lazy = any(place.memory is None and place.tensor is not None for place in self.places)
        return lazy or self.replaced() is not None or any(own.get(name) is not value for own, name, value in self.flags)

    @torch.no_grad()
    def put_back(self, flags: bool = True) -> None:
        """Let the pair hold what it held, with the same numbers; ``flags``: and the flags of its modules."""
        for place in self.places:
            if place.replaced:
                place.holder[place.name] = place.tensor
                if place.is_buffer and place.memory is not None:
                    place.tensor.data = place.memory  # type: ignore[union-attr]
            if place.written:
                place.tensor.copy_(place.copy)  # type: ignore[union-attr, arg-type]
        for own, name, value in self.flags if flags else ():
            own[name] = value


def _address(tensor: Any) -> int:
    return tensor.data_ptr() if tensor.layout is torch.strided and not tensor.is_nested else 0
