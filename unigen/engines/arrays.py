"""What a call of the xla engine's loop takes, as JAX arrays: tensors, batches in pools, keys, constants, given noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy
import torch
from torch import Tensor

from unigen.engines.capture import Climb
from unigen.engines.operations.table import numpy_of

__all__ = ["constants_of", "halves", "noise_of", "pooled", "seen"]


def seen(tensors: Sequence[Tensor], seeds: bool) -> Any:
    """Return a tensor as an array over the same memory where JAX can, or the tensors of several seeds stacked."""
    return _array(torch.stack([t.detach() for t in tensors]) if seeds else tensors[0].detach())


def _array(tensor: Tensor) -> Any:
    """Return a tensor as an array that the compiled loop reads; none is changed or kept by it."""
    large = tensor.is_cuda or tensor.nbytes > 2**16  # to hand small ones over as they are costs less than to share them
    return jnp.from_dlpack(tensor.contiguous()) if large else numpy_of(tensor)


def pooled(
    batches: Sequence[Any], places: Sequence[int], pools: Sequence[int], rows: int, seeds: bool
) -> tuple[list[Any], Any]:
    """Return the batches of each pool, stacked, and which of them each climb of each step takes, (rows, climbs).

    ``places``, ``pools``: for each climb, which of a step's batches it takes, and the pool of that batch.
    """
    stacked: list[Any] = []
    slots = numpy.zeros((rows, len(pools)), numpy.int32)
    for pool in range(max(pools) + 1):
        mine = [number for number, other in enumerate(pools) if other == pool]
        wanted = [(index, number) for index in range(len(batches[0])) for number in mine]
        orders = []
        for run in batches:  # a batch that comes again is held once
            known: dict[tuple[int, ...], int] = {}
            keys = [tuple(map(id, run[index][places[number]].values())) for index, number in wanted]
            orders.append([known.setdefault(key, len(known)) for key in keys])
        order = orders[0] if all(other == orders[0] for other in orders) else list(range(len(wanted)))
        first: dict[int, tuple[int, int]] = {}  # the first place of each slot, in the order of the slots
        for place, slot in zip(wanted, order, strict=True):
            slots[place] = slot
            first.setdefault(slot, place)
        size = rows * len(mine)  # also of one batch: another size would be another program
        stacked.append({})
        for name, value in batches[0][0][places[mine[0]]].items():
            if isinstance(value, Tensor):
                stack = value.new_empty((len(batches), size, *value.shape))
                for run, part in zip(batches, stack, strict=True):
                    held = [run[index][places[number]][name] for index, number in first.values()]
                    torch.stack(held, out=part[: len(held)])
                stacked[-1][f"data.{name}"] = _array(stack if seeds else stack[0])
    return stacked, slots


def halves(keys: Tensor, rows: int) -> Any:
    """Return 64-bit keys as two words each, (rows, 2)."""
    words = numpy.zeros((rows, 2), numpy.uint32)
    wide = keys.numpy().astype(numpy.uint64)
    words[: len(wide), 0], words[: len(wide), 1] = wide >> numpy.uint64(32), wide & numpy.uint64(2**32 - 1)
    return words


def constants_of(climbs: Sequence[Climb], projections: bool, seeds: bool) -> dict[int, Any]:
    """Return the constants of a climb's tape (or of its projection's), those of several seeds stacked."""
    tapes = [climb.projection if projections else climb.tape for climb in climbs]
    return {
        number: seen([tape.constants[number] for tape in tapes if tape is not None], seeds)
        for number in (tapes[0].constants if tapes[0] is not None else ())
    }


def noise_of(climbs: Sequence[Climb], noise: Sequence[Sequence[Tensor]], rows: int) -> list[list[Any]]:
    """Return given noise by climb and draw, stacked over steps, (rows, ...)."""
    found, place = [], 0
    wanted = sum(climb.draws for climb in climbs)
    if any(len(draws) != wanted for draws in noise):
        counts = sorted({len(draws) for draws in noise})
        raise ValueError(f"a step draws {wanted} times; the noise has {counts} entries a step")
    for climb in climbs:
        draws = range(place, place + climb.draws)
        place += climb.draws
        stacked = [torch.stack([noise[index][draw] for index in range(len(noise))]) for draw in draws]
        found.append([seen([torch.cat([s, s[:1].expand(rows - len(s), *s.shape[1:])])], False) for s in stacked])
    return found
