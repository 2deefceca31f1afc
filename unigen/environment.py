"""What the bits of a run depend on beside its settings: versions, code, device, threads and torch's modes.

Every ``config.json`` and every checkpoint holds one; where they differ, a resumed run says so.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["differences", "environment"]

PACKAGES = ("unigen", "torch", "torchvision", "pyro-ppl", "numpyro", "jax", "jaxlib", "numpy", "scikit-learn")


def environment(device: torch.device | str) -> dict[str, Any]:
    """Return versions by package, the sum of this package's code, the device, threads, torch's modes and the platform."""
    device = torch.device(device)
    versions = {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES}
    return {
        "versions": versions,
        "code": _code(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32 products": torch.backends.cuda.matmul.fp32_precision,
        "cudnn": [torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark],
        "platform": f"{platform.system()} {platform.release()}, {sys.implementation.name}",
    }


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Return what is not the same in two environments: ``threads was 1, is 2``, for each in the order of ``here``."""
    before, now = _flat(there), _flat(here)
    return [
        f"{name} was {before.get(name, 'not recorded')}, is {now.get(name, 'not recorded')}"
        for name in dict.fromkeys([*now, *before])
        if before.get(name) != now.get(name)
    ]


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    versions = tree.get("versions")
    rest = {name: value for name, value in tree.items() if name != "versions"}
    return (versions if isinstance(versions, dict) else {}) | rest


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@functools.cache
def _code() -> str:
    """Return the sha256 sum of this package's code, as it was at the first call: a process runs the code that it loaded."""
    digest, root = hashlib.sha256(), Path(__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)} ".encode() + file.read_bytes())
    return digest.hexdigest()


@functools.cache
def _processor() -> str:
    """Return the name of the processor, on which the kernels of a product depend."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
