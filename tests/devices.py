"""The suite on another device: ``UNIGEN_TEST_DEVICE=cuda`` makes it the default of every tensor and network.

Tests are written for the CPU where they draw from a generator of the CPU or read a tensor as numbers of numpy; for them, and
never for the package, the tensor is moved there and back.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_map_only

HERE, TORCH = str(Path(__file__).parent), str(Path(torch.__file__).parent)


def put_all_on(device: str) -> None:
    """Let tensors be made on the device from now on."""
    torch.set_default_device(device)
    _Moved().__enter__()


class _Moved(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        drawn = generator is not None and generator.device.type == "cpu"
        if func in (torch.Tensor.numpy, torch.Tensor.__array__):
            return func(args[0].cpu() if _asked_by_a_test() else args[0], *args[1:], **kwargs)
        if drawn and func in _device_constructors() and kwargs.get("device") is None:
            made = func(*args, **{**kwargs, "device": "cpu"})
            return made.to(torch.get_default_device()) if _asked_by_a_test() else made
        if drawn and _asked_by_a_test():
            made = func(
                *tree_map_only(Tensor, torch.Tensor.cpu, args), **tree_map_only(Tensor, torch.Tensor.cpu, kwargs)
            )
            if func.__name__.endswith("_"):
                return args[0].copy_(made)
            return made.to(torch.get_default_device())
        return func(*args, **kwargs)


def _asked_by_a_test() -> bool:
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(TORCH):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(HERE)
