"""Each entry of the table of operations against torch: values and gradients, odd shapes, broadcasting, dtypes.

A case is a torch function and how its arguments are drawn; it is lowered, and its value and its derivative along a random
cotangent are compared with torch's. What a case reaches is read from its tape, so that no entry is left without a case.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy
import pytest
import scipy
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from unigen.engines.lowering import FromKey, Given, lower, precision, run, to_jax
from unigen.engines.operations import TABLE, find
from unigen.engines.recorder import capture
from unigen.engines.surroundings import Draws, plainly
from unigen.pair import Unsupported

SEEDS = st.integers(0, 2**31)
SIZES = st.sampled_from([1, 2, 3, 5])
SHAPES = st.lists(SIZES | st.just(0), max_size=3).map(tuple)
FULL = st.lists(SIZES, min_size=1, max_size=3).map(tuple)  # at least one dimension
FLOATS = [torch.float64, torch.float32]
DTYPES = st.sampled_from(FLOATS)
both_precisions = pytest.mark.parametrize("dtype", FLOATS, ids=["double", "single"])

Function = Callable[..., Tensor]


def tensor(seed: int, shape: Any, kind: str = "real", dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a tensor by seed: normal, or in a domain; ``whole`` numbers make ties and edges."""
    stream = torch.Generator().manual_seed(seed)
    normal = torch.randn(tuple(shape), generator=stream, dtype=torch.float64)
    values = {
        "real": lambda: normal,
        "positive": lambda: normal.abs() + 0.1,
        "unit": lambda: torch.sigmoid(normal).clamp(0.02, 0.98),
        "above one": lambda: normal.abs() + 1.1,
        "whole": lambda: (2 * normal).round(),
        "wide": lambda: 15 * normal,
        "bits": lambda: (normal > 0).double(),
    }[kind]()
    if not dtype.is_floating_point:
        values = (2 * values).round() if kind != "bits" else values
    return values.to(dtype)


def reached(function: Function, arguments: tuple[Tensor, ...]) -> set[str]:
    """Return the operations, with overloads, that a function and its derivative need."""
    leaves = [a.detach().clone().requires_grad_(a.is_floating_point()) for a in arguments]

    def both() -> list[Tensor | None]:
        y = function(*leaves)
        slopes = [leaf for leaf in leaves if leaf.requires_grad]
        if not y.requires_grad:
            return [y]
        return [y, *torch.autograd.grad(y, slopes, torch.ones_like(y), allow_unused=True)]

    tape = capture(both, {str(index): leaf for index, leaf in enumerate(leaves)})
    return {node.name for node in tape.live()}


def agree(function: Function, *arguments: Tensor, tolerance: float | None = None) -> None:
    """Assert that a lowered function and torch have one value and one derivative, to a relative tolerance.

    It is 1e-9 unless a number has single precision, then 3e-5.
    """
    if tolerance is None:
        tolerance = 3e-5 if any(a.dtype == torch.float32 for a in arguments) else 1e-9
    leaves = [a.detach().clone().requires_grad_(a.is_floating_point()) for a in arguments]
    expected = function(*leaves)
    with precision():
        lowered = lower(function, *arguments)
        floats = [index for index, a in enumerate(arguments) if a.is_floating_point()]
        arrays = [to_jax(a) for a in arguments]

        def of_floats(*given: Any) -> Any:
            filled = list(arrays)
            for index, array in zip(floats, given, strict=True):
                filled[index] = array
            return lowered(*filled)

        if expected.requires_grad:
            cotangent = tensor(7, expected.shape, dtype=expected.dtype)

            def derivative(cotangent: Any, *given: Any) -> Any:
                value, pull = jax.vjp(of_floats, *given)
                return value, pull(cotangent)

            value, slopes = quickly(derivative, to_jax(cotangent), *[arrays[index] for index in floats])
            wanted = torch.autograd.grad(expected, [leaves[i] for i in floats], cotangent, allow_unused=True)
        else:
            value, slopes, wanted = quickly(lowered, *arrays), (), ()
        assert jnp.shape(value) == tuple(expected.shape)
        assert str(value.dtype) == str(expected.dtype).removeprefix("torch.")
        near(value, expected, tolerance)
        for ours, theirs in zip(slopes, wanted, strict=True):
            near(ours, torch.zeros(ours.shape) if theirs is None else theirs, tolerance)


def quickly(function: Callable[..., Any], *arguments: Any) -> Any:
    """Compile a function as a whole and without optimization, which is much faster than one operation after another."""
    compiled = jax.jit(function).lower(*arguments).compile({"xla_backend_optimization_level": 0})
    return compiled(*arguments)


def near(ours: Any, theirs: Tensor, tolerance: float) -> None:
    theirs = theirs.detach()
    if theirs.is_floating_point():
        scale = theirs[theirs.isfinite()].abs().max().item() if theirs.isfinite().any() else 1.0
        numpy.testing.assert_allclose(
            numpy.asarray(ours), theirs.numpy(force=True), rtol=tolerance, atol=tolerance * max(scale, 1)
        )
    else:
        numpy.testing.assert_array_equal(numpy.asarray(ours), theirs.numpy())


# -- one argument ------------------------------------------------------------------------------------------------------

UNARY: dict[str, tuple[Function, str]] = {
    "abs": (torch.abs, "real"),
    "neg": (torch.neg, "real"),
    "exp": (torch.exp, "real"),
    "exp2": (torch.exp2, "real"),
    "expm1": (torch.expm1, "real"),
    "log": (torch.log, "positive"),
    "log1p": (torch.log1p, "positive"),
    "log2": (torch.log2, "positive"),
    "log10": (torch.log10, "positive"),
    "sqrt": (torch.sqrt, "positive"),
    "rsqrt": (torch.rsqrt, "positive"),
    "sin": (torch.sin, "real"),
    "cos": (torch.cos, "real"),
    "tan": (torch.tan, "unit"),
    "asin": (torch.asin, "unit"),
    "acos": (torch.acos, "unit"),
    "atan": (torch.atan, "real"),
    "sinh": (torch.sinh, "real"),
    "cosh": (torch.cosh, "real"),
    "tanh": (torch.tanh, "real"),
    "asinh": (torch.asinh, "real"),
    "acosh": (torch.acosh, "above one"),
    "atanh": (torch.atanh, "unit"),
    "sigmoid": (torch.sigmoid, "wide"),
    "erf": (torch.erf, "real"),
    "erfc": (torch.erfc, "real"),
    "erfinv": (torch.erfinv, "unit"),
    "lgamma": (torch.lgamma, "positive"),
    "digamma": (torch.digamma, "positive"),
    "polygamma": (lambda x: torch.polygamma(2, x), "positive"),
    "floor": (torch.floor, "real"),
    "ceil": (torch.ceil, "real"),
    "trunc": (torch.trunc, "real"),
    "frac": (torch.frac, "real"),
    "round": (lambda x: torch.round(x / 2), "whole"),
    "round to digits": (lambda x: torch.round(x, decimals=1), "real"),
    "sign": (torch.sign, "whole"),
    "sgn": (torch.sgn, "whole"),
    "reciprocal": (torch.reciprocal, "positive"),
    "square": (torch.square, "real"),
    "isnan": (lambda x: torch.isnan(x / x), "whole"),
    "isinf": (lambda x: torch.isinf(1 / x), "whole"),
    "isfinite": (lambda x: torch.isfinite(1 / x), "whole"),
    "logical_not": (torch.logical_not, "whole"),
    "ndtr": (torch.special.ndtr, "real"),
    "log_ndtr": (lambda x: torch.special.log_ndtr(x.detach()), "wide"),
    "ndtri": (lambda x: torch.special.ndtri(x.detach()), "unit"),
    "i0": (lambda x: torch.i0(x), "real"),
    "i0e": (lambda x: torch.special.i0e(x), "real"),
    "i1": (lambda x: torch.special.i1(x.detach()), "real"),
    "i1e": (lambda x: torch.special.i1e(x.detach()), "real"),
    "relu": (torch.relu, "whole"),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), "whole"),
    "elu": (lambda x: F.elu(x, 1.3), "whole"),
    "elu in place": (lambda x: F.elu(x * 1.0, 1.3, inplace=True), "real"),
    "celu": (lambda x: F.celu(x, 0.7), "real"),
    "selu": (F.selu, "real"),
    "softplus": (lambda x: F.softplus(x, 2.0, 10.0), "wide"),
    "softshrink": (lambda x: F.softshrink(x, 0.7), "real"),
    "hardshrink": (lambda x: F.hardshrink(x, 0.7), "real"),
    "silu": (F.silu, "wide"),
    "gelu": (F.gelu, "real"),
    "gelu by tanh": (lambda x: F.gelu(x, approximate="tanh"), "real"),
    "hardtanh": (F.hardtanh, "whole"),
    "relu6": (F.relu6, "wide"),
    "logsigmoid": (F.logsigmoid, "wide"),
    "logsigmoid without gradient": (torch.no_grad()(F.logsigmoid), "wide"),
    "mish": (F.mish, "real"),
    "softsign": (F.softsign, "real"),
    "threshold": (lambda x: F.threshold(x, 0.5, -1.0), "whole"),
    "hardsigmoid": (F.hardsigmoid, "wide"),
    "hardswish": (F.hardswish, "wide"),
    "clamp": (lambda x: x.clamp(-1, 1), "whole"),
    "clamp_min": (lambda x: x.clamp_min(0.5), "whole"),
    "clamp_max": (lambda x: x.clamp_max(0.5), "whole"),
    "logit": (torch.logit, "unit"),
    "logit, clamped": (lambda x: torch.logit(x, 0.3), "unit"),
    "pow": (lambda x: x**3, "real"),
    "pow of a fraction": (lambda x: x**0.3, "positive"),
    "pow of a number": (lambda x: 1.7**x, "real"),
    "rsub": (lambda x: 2 - x, "real"),
    "add": (lambda x: torch.add(x, 2, alpha=3), "real"),
    "div by a number": (lambda x: x / 3, "real"),
    "remainder": (lambda x: x % 1.5, "real"),
    "fmod": (lambda x: torch.fmod(x, 1.5), "real"),
    "nan_to_num": (lambda x: (1 / x).nan_to_num(0.0, 9.0, -9.0), "whole"),
    "detach": (lambda x: x * x.detach(), "real"),
    "clone": (lambda x: x.clone() * 2, "real"),
    "cast down": (lambda x: x.float() * 2, "real"),
    "cast to whole": (lambda x: x.long() * 3, "real"),
    "zeros_like": (lambda x: x + torch.zeros_like(x) + torch.ones_like(x), "real"),
    "full_like": (lambda x: x + torch.full_like(x, 2) + torch.empty_like(x).fill_(1), "real"),
    "new": (lambda x: x + x.new_zeros(1) + x.new_ones(1) + x.new_full((1,), 3) + x.new_empty(1).zero_(), "real"),
    "made": (lambda x: x * torch.arange(1, 4, 2).sum() + torch.arange(3).sum() + torch.ones(1).double(), "real"),
    "made, too": (
        lambda x: x + torch.full((1,), 2) + torch.scalar_tensor(3) + torch.zeros(1) + torch.eye(2).sum(),
        "real",
    ),
    "in place": (lambda x: x.clone().mul_(2).add_(x).exp_(), "real"),
    "copied": (lambda x: torch.empty_like(x).copy_(x) * x, "real"),
    "positive": (lambda x: +x * 2, "real"),
}


@pytest.mark.parametrize("name", UNARY)
@given(seed=SEEDS, shape=SHAPES, dtype=DTYPES)
def test_elementwise(name: str, seed: int, shape: Any, dtype: torch.dtype) -> None:
    function, kind = UNARY[name]
    agree(function, tensor(seed, shape, kind, dtype))


# -- two and three arguments that broadcast ----------------------------------------------------------------------------

BINARY: dict[str, tuple[Function, tuple[str, ...]]] = {
    "add": (lambda x, y: torch.add(x, y, alpha=2), ("real", "real")),
    "sub": (torch.sub, ("real", "real")),
    "mul": (torch.mul, ("real", "real")),
    "div": (torch.div, ("real", "positive")),
    "div, floor": (lambda x, y: torch.div(x, y, rounding_mode="floor"), ("real", "positive")),
    "div, trunc": (lambda x, y: torch.div(x, y, rounding_mode="trunc"), ("real", "positive")),
    "floor_divide": (lambda x, y: x.detach() // y.detach(), ("real", "positive")),
    "pow": (torch.pow, ("positive", "real")),
    "maximum": (torch.maximum, ("whole", "whole")),
    "minimum": (torch.minimum, ("whole", "whole")),
    "fmax": (torch.fmax, ("whole", "whole")),
    "fmin": (torch.fmin, ("whole", "whole")),
    "atan2": (torch.atan2, ("real", "positive")),
    "hypot": (torch.hypot, ("real", "positive")),
    "logaddexp": (torch.logaddexp, ("real", "real")),
    "xlogy": (torch.xlogy, ("bits", "positive")),
    "copysign": (torch.copysign, ("real", "real")),
    "remainder": (torch.remainder, ("real", "positive")),
    "fmod": (torch.fmod, ("real", "positive")),
    "eq": (torch.eq, ("whole", "whole")),
    "ne": (torch.ne, ("whole", "whole")),
    "lt": (torch.lt, ("whole", "whole")),
    "le": (torch.le, ("whole", "whole")),
    "gt": (torch.gt, ("whole", "whole")),
    "ge": (torch.ge, ("whole", "whole")),
    "logical_and": (torch.logical_and, ("bits", "bits")),
    "logical_or": (torch.logical_or, ("bits", "bits")),
    "logical_xor": (torch.logical_xor, ("bits", "bits")),
    "masked_fill": (lambda x, m: (x + m).masked_fill(m > 0, 2.0), ("real", "bits")),
    "bits": (lambda x, y: ((x > 0) & (y > 0)) | ((x > 0.5) ^ ~(y > 0.5)), ("real", "real")),
    "where": (lambda c, x, y: torch.where(c > 0, x, y), ("bits", "real", "real")),
    "lerp": (torch.lerp, ("real", "real", "unit")),
    "lerp by a number": (lambda x, y: torch.lerp(x, y, 0.7), ("real", "real")),
    "addcmul": (lambda x, y, z: torch.addcmul(x, y, z, value=0.5), ("real", "real", "real")),
    "addcdiv": (lambda x, y, z: torch.addcdiv(x, y, z, value=0.5), ("real", "real", "positive")),
    "clamp by tensors": (
        lambda x, y, z: torch.clamp(x, torch.minimum(y, z), torch.maximum(y, z)),
        ("real", "real", "real"),
    ),
    "cross entropy": (
        lambda x, y: F.binary_cross_entropy_with_logits(*torch.broadcast_tensors(x, y.detach()), reduction="none"),
        ("wide", "unit"),
    ),
    "cross entropy, summed": (
        lambda x, y: F.binary_cross_entropy_with_logits(*torch.broadcast_tensors(x, y.detach()), reduction="sum"),
        ("real", "unit"),
    ),
    "mse": (lambda x, y: F.mse_loss(*torch.broadcast_tensors(x, y)), ("real", "real")),
    "huber": (lambda x, y: F.huber_loss(*torch.broadcast_tensors(x, y)), ("real", "real")),
    "smooth l1": (lambda x, y: F.smooth_l1_loss(*torch.broadcast_tensors(x, y)), ("real", "real")),
    "kl": (lambda x, y: F.kl_div(*torch.broadcast_tensors(x, y.detach()), reduction="sum"), ("real", "unit")),
}


@pytest.mark.parametrize("name", BINARY)
@given(seed=SEEDS, data=st.data(), dtype=DTYPES)
def test_elementwise_of_several(name: str, seed: int, data: Any, dtype: torch.dtype) -> None:
    function, kinds = BINARY[name]
    shapes = data.draw(mutually_broadcastable_shapes(num_shapes=len(kinds), max_dims=3, max_side=3, min_side=0))
    pairs = zip(shapes.input_shapes, kinds, strict=True)
    agree(function, *[tensor(seed + i, shape, kind, dtype) for i, (shape, kind) in enumerate(pairs)])


WHOLE: dict[str, Function] = {
    "arithmetic": lambda x, y: (x + y) * (x - 2 * y) + x // (y * y + 1),
    "true division": lambda x, y: x / (y * y + 1),
    "truncated": lambda x, y: torch.div(x, y * y + 1, rounding_mode="trunc"),
    "remainder": lambda x, y: x % (y * y + 1),
    "bitwise": lambda x, y: (x & y) | (x ^ ~y),
    "shifts": lambda x, y: (x.abs() << 2) + (y.abs() >> 1),
    "shifts by name": lambda x, y: torch.bitwise_left_shift(x.abs(), 2) + torch.bitwise_right_shift(y.abs(), 1),
    "extremes": lambda x, y: torch.maximum(x, y).clamp(-2, 2),
    "sums": lambda x, y: (x * y).sum(),
    "running sum of bytes": lambda x, y: (x + 100).to(torch.uint8).cumsum(-1),
    "running product of bytes": lambda x, y: (x * 50).to(torch.uint8).cumprod(-1),
    "to real": lambda x, y: x.double() * 0.5 + y,
    "power": lambda x, y: x**2 + y,
    "booleans": lambda x, y: ((x > y) + (x < y)).sum() + (x == y).long().sum(),
}


@pytest.mark.parametrize("name", WHOLE)
@given(seed=SEEDS, shape=SHAPES, dtype=st.sampled_from([torch.int64, torch.int32]))
def test_whole_numbers(name: str, seed: int, shape: Any, dtype: torch.dtype) -> None:
    agree(WHOLE[name], tensor(seed, shape, "real", dtype), tensor(seed + 1, shape, "real", dtype))


def test_bfloat16_as_numbers_and_constants() -> None:
    constant = tensor(1, (3,), dtype=torch.bfloat16)
    given = tensor(0, (2, 3), dtype=torch.bfloat16)
    lowered = lower(lambda x: x * constant + 1, given)
    with precision():
        found = numpy.asarray(lowered(to_jax(given)), dtype=numpy.float64)
    torch.testing.assert_close(torch.from_numpy(found), (given * constant + 1).double(), rtol=2**-7, atol=0)


def test_numbers_of_several_dtypes() -> None:
    """Torch's promotion: a tensor of one number does not widen a tensor."""
    double, single = tensor(0, ()), tensor(1, (3,), dtype=torch.float32)
    agree(lambda x, y: x * y + 2, double, single, tolerance=1e-6)
    agree(lambda x, y: x * y, tensor(2, (3,), dtype=torch.int64), single, tolerance=1e-6)
    agree(lambda x: (x.detach() == torch.tensor(0.1).double()) * x, torch.full((3,), 0.1))
    agree(lambda x: torch.rsub(x, 5, alpha=2) + torch.add(x, 3, alpha=2), double)
    agree(lambda x: (x.detach() / 0).sign() + x, torch.zeros(3).double())


# -- reductions, softmax, running sums ---------------------------------------------------------------------------------

REDUCTIONS: dict[str, Callable[[Tensor, int, bool], Tensor]] = {
    "sum": lambda x, d, k: x.sum(d, k),
    "sum of all": lambda x, d, k: x.sum(),
    "sum of several": lambda x, d, k: x.sum([d, 0] if d % x.dim() else [d], k),
    "mean": lambda x, d, k: x.mean(d, k),
    "mean of all": lambda x, d, k: x.mean(),
    "prod": lambda x, d, k: x.prod(d, k),
    "prod of all": lambda x, d, k: x.prod(),
    "amax": lambda x, d, k: x.amax(d, k),
    "amin": lambda x, d, k: x.amin(d, k),
    "max": lambda x, d, k: x.max(d, k).values,
    "min": lambda x, d, k: x.min(d, k).values,
    "max of all": lambda x, d, k: x.max(),
    "min of all": lambda x, d, k: x.min(),
    "position of max": lambda x, d, k: x.max(d, k).indices,
    "argmax": lambda x, d, k: x.argmax(d, k),
    "argmin": lambda x, d, k: x.argmin(d, k),
    "argmax of all": lambda x, d, k: x.argmax(),
    "any": lambda x, d, k: (x > 0).any(d, k),
    "all": lambda x, d, k: (x > 0).all(d, k),
    "all of all": lambda x, d, k: (x > 0).all() | (x > 0).any(),
    "var": lambda x, d, k: x.var(d, unbiased=False, keepdim=k),
    "std": lambda x, d, k: (
        (x + x * torch.arange(x.shape[d])[0]).std(d, unbiased=False, keepdim=k) if x.shape[d] > 1 else x.sum(d, k)
    ),
    "var_mean": lambda x, d, k: torch.stack(torch.var_mean(x, d, correction=0, keepdim=k)).sum(0),
    "std_mean": lambda x, d, k: torch.stack(torch.std_mean(x.detach(), d, correction=0, keepdim=k)).sum(0),
    "norm": lambda x, d, k: torch.linalg.vector_norm(x, 2, d, k),
    "norm 1": lambda x, d, k: torch.linalg.vector_norm(x, 1, d, k),
    "norm 3": lambda x, d, k: torch.linalg.vector_norm(x, 3.0, d, k),
    "norm inf": lambda x, d, k: torch.linalg.vector_norm(x, math.inf, d, k),
    "norm -inf": lambda x, d, k: torch.linalg.vector_norm(x, -math.inf, d, k),
    "norm 0": lambda x, d, k: torch.linalg.vector_norm(x.detach(), 0, d, k),
    "cumsum": lambda x, d, k: x.cumsum(d),
    "cumprod": lambda x, d, k: x.cumprod(d),
    "logcumsumexp": lambda x, d, k: x.logcumsumexp(d),
    "logsumexp": lambda x, d, k: x.logsumexp(d, k),
    "softmax": lambda x, d, k: x.softmax(d),
    "log_softmax": lambda x, d, k: x.log_softmax(d),
    "cumsum of bits": lambda x, d, k: (x > 0).cumsum(d),
    "sum of bits": lambda x, d, k: (x > 0).sum(d, k),
    "sum as double": lambda x, d, k: x.float().sum(d, k, dtype=torch.float64),
    "count_nonzero": lambda x, d, k: (x > 0).count_nonzero(d),
}


@pytest.mark.parametrize("name", REDUCTIONS)
@given(seed=SEEDS, shape=FULL, dim=st.integers(-3, 2), keep=st.booleans(), dtype=DTYPES)
def test_reductions(name: str, seed: int, shape: Any, dim: int, keep: bool, dtype: torch.dtype) -> None:
    dim = dim % len(shape) - (len(shape) if dim < 0 else 0)
    tolerance = 1e-7 if "double" in name and dtype == torch.float64 else None
    agree(lambda x: REDUCTIONS[name](x, dim, keep), tensor(seed, shape, dtype=dtype), tolerance=tolerance)


NUMBERS = (
    "sum",
    "mean",
    "prod",
    "amax",
    "max",
    "position of max",
    "argmax",
    "any",
    "cumsum",
    "cumprod",
    "logcumsumexp",
    "logsumexp",
    "softmax",
    "log_softmax",
)


@pytest.mark.parametrize("name", NUMBERS)
def test_reductions_of_a_number(name: str) -> None:
    agree(lambda x: REDUCTIONS[name](x, 0, False), tensor(3, ()))


# -- shapes ------------------------------------------------------------------------------------------------------------

SHAPED: dict[str, tuple[Function, tuple[int, ...]]] = {
    "view": (lambda x: x.view(6, -1) * 2, (2, 3, 4)),
    "reshape": (lambda x: x.transpose(0, 1).reshape(-1) * 2, (2, 3, 4)),
    "expand": (lambda x: x.expand(5, 2, 3) * 2, (2, 1)),
    "permute": (lambda x: x.permute(2, 0, 1).exp(), (2, 3, 4)),
    "t": (lambda x: x.t() * 2, (2, 3)),
    "transpose": (lambda x: x.transpose(-1, 0) * 2, (2, 3, 4)),
    "T": (lambda x: x.mT * 2, (2, 3)),
    "unsqueeze": (lambda x: x.unsqueeze(-1).unsqueeze(0) * 2, (2, 3)),
    "squeeze": (lambda x: x.squeeze() * 2, (1, 3, 1)),
    "squeeze a dim": (lambda x: x.squeeze(0).squeeze((0, 1)) * 2, (1, 3, 1)),
    "select": (lambda x: x[1] * x[:, -1].sum(), (2, 3)),
    "slice": (lambda x: x[:, 1:8:2] * 2 + x[-1:, :1], (2, 5)),
    "split": (lambda x: torch.cat(x.split(2, -1)[::-1], -1) * 2, (2, 5)),
    "split with sizes": (lambda x: torch.cat(x.split([1, 3, 1], -1)[::-1], -1) * 2, (2, 5)),
    "chunk": (lambda x: torch.cat(x.chunk(2, -1)[::-1], -1) * 2, (2, 5)),
    "unbind": (lambda x: sum(x.unbind(1)) * 2, (2, 3)),
    "unbind of nothing": (lambda x: torch.stack(x[:, :0].unbind(0)).sum() + x.sum(), (2, 3)),
    "unsafe": (
        lambda x: (
            torch.cat([*x.unsafe_split(2, 1), *x.unsafe_chunk(2, 1), *x.unsafe_split_with_sizes([1, 4], 1)], 1) * 2
        ),
        (2, 5),
    ),
    "diagonal": (lambda x: x.diagonal(1, 0, 2) * 2, (3, 2, 4)),
    "unfold": (lambda x: x.unfold(1, 3, 2) * 2, (2, 6)),
    "cat": (lambda x: torch.cat([x, 2 * x], 1), (2, 3)),
    "stack": (lambda x: torch.stack([x, x * 2], -1) * 2, (2, 3)),
    "flip": (lambda x: x.flip(0, -1) * 2, (2, 3)),
    "roll": (lambda x: x.roll((1, -2), (0, 1)) * 2 + x.roll(1), (3, 4)),
    "repeat": (lambda x: x.repeat(2, 1, 3) * 2, (2, 3)),
    "tril": (lambda x: x.tril(1) * 2 + x.triu(-1), (3, 4)),
    "diag_embed": (lambda x: x.diag_embed(1) * 2, (2, 3)),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 1), value=3.0) * 2, (2, 3)),
    "cut": (lambda x: F.pad(x, (-1, 2, 1, -1)) * 2, (3, 4)),
    "as_strided": (lambda x: x.as_strided((2, 2), (3, 1), 1) * 2, (3, 3)),
    "strided": (lambda x: torch.empty_strided((2, 3), (1, 2)).copy_(x) * 2, (2, 3)),
    "new strided": (lambda x: x.new_empty_strided((2, 3), (1, 2)).copy_(x) * 2, (2, 3)),
    "diagonal_scatter": (lambda x: torch.diagonal_scatter(x, x[0, :, :3] * 3, 1, 0, 2), (3, 2, 4)),
    "scattered": (lambda x: torch.select_scatter(x, x[0], 0, 1) + torch.slice_scatter(x, x[:1] * 2, 0, 1, 2), (3, 2)),
    "moved": (lambda x: x.movedim(0, -1).flatten().unflatten(0, (2, -1)) * 2, (2, 3, 2)),
    "swap": (lambda x: x.swapaxes(0, 1) * 2, (2, 3)),
    "meshgrid": (lambda x: sum(torch.meshgrid(x, x * 2, indexing="ij")) * 2, (3,)),
    "tile": (lambda x: x.tile(2) * 2, (2, 3)),
    "write a row": (lambda x: _write(x.clone(), lambda y: y[1].mul_(3)), (2, 3)),
    "write a slice": (lambda x: _write(x.clone(), lambda y: y[:, 1::2].exp_()), (2, 5)),
    "write a transpose": (lambda x: _write(x.clone(), lambda y: y.t()[0].copy_(x[:, 1] * 2)), (2, 3)),
    "write a flat view": (lambda x: _write(x.clone(), lambda y: y.view(-1)[3:].neg_()), (2, 3)),
    "write a diagonal": (lambda x: _write(x.clone(), lambda y: y.diagonal().add_(1)), (3, 3)),
    "write and read": (lambda x: _write(x.clone(), lambda y: y[0].add_(y[1])).sum(0), (2, 3)),
    "squeeze in place": (lambda x: (x * 2).squeeze_(0).unsqueeze_(-1).mul_(2), (1, 3)),
    "transpose in place": (lambda x: (x * 2).t_().mul_(2), (2, 3)),
}


def _write(y: Tensor, write: Callable[[Tensor], Any]) -> Tensor:
    write(y)
    return y * 2


@both_precisions
@pytest.mark.parametrize("name", SHAPED)
def test_shapes(name: str, dtype: torch.dtype) -> None:
    function, shape = SHAPED[name]
    agree(function, tensor(1, shape, dtype=dtype))


# -- positions as data -------------------------------------------------------------------------------------------------


def positions(seed: int, shape: Any, size: int) -> Tensor:
    return torch.randint(size, tuple(shape), generator=torch.Generator().manual_seed(seed))


PLACES = torch.tensor([1, 0, 1])
INDEXED: dict[str, tuple[Function, tuple[int, ...], tuple[int, ...]]] = {
    "index": (lambda x, i: x[i] * 2, (4, 3), (2, 5)),
    "index inside": (lambda x, i: x[:, i] * 2, (2, 4), (3, 2)),
    "two indices": (lambda x, i: x[i, i[..., :1]] * 2, (4, 4), (2, 3)),
    "apart": (lambda x, i: x[i, :, i] * 2, (4, 2, 4), (3,)),
    "negative": (lambda x, i: x[i - 4] * 2, (4, 3), (5,)),
    "a number": (lambda x, i: x[i] * 2, (4, 3), ()),
    "a number from the end": (lambda x, i: x[i - 4] * 2, (4, 3), ()),
    "fill from the end": (lambda x, i: (x * 2).index_fill(1, i - 4, 3.0), (2, 4), (2,)),
    "put a row at a mask": (lambda x, i: (x * 2).index_put((x.detach()[:, 0] > 0,), x.detach()[:1]), (4, 3), ()),
    "a number inside": (lambda x, i: x[:, i] * x[..., i], (2, 4), ()),
    "a number between": (lambda x, i: x[0, i, :1] * 2, (2, 4, 3), ()),
    "two numbers": (lambda x, i: x[i, i - 4] * x[..., i, None, i], (4, 4), ()),
    "a number and positions": (lambda x, i: x[PLACES, i] * x[i, :, PLACES].sum(), (4, 4, 2), ()),
    "a number and a mask": (lambda x, i: x[i, torch.eye(2, 4) > 0] * x[torch.eye(4, 2) > 0, i].sum(), (4, 2, 4), ()),
    "a short number": (lambda x, i: x[i.to(torch.int8)] * 2, (4, 3), ()),
    "a mask of one bit": (lambda x, i: x[torch.tensor(1, dtype=torch.uint8)] * x[True, i], (4, 3), ()),
    "fixed mask": (lambda x, i: x[torch.tensor([True, False, True, True])] * 2, (4, 3), ()),
    "put": (lambda x, i: (x * 2).index_put((i,), torch.ones(3).to(x)), (4, 3), (1,)),
    "put, added": (lambda x, i: (x * 2).index_put((i,), x[:1], accumulate=True), (4, 3), (6,)),
    "fixed mask of two dimensions": (lambda x, i: x[torch.eye(4, 3) > 0] * 2, (4, 3, 2), ()),
    "put at a mask": (lambda x, i: (x * 2).index_put((x > 0,), torch.tensor(3.0).to(x)), (4, 3), ()),
    "set": (lambda x, i: _write(x.clone(), lambda y: y.__setitem__((i, 0), x[0, 1])), (4, 3), (1,)),
    "gather": (lambda x, i: x.gather(1, i) * 2, (3, 4), (2, 5)),
    "gather first": (lambda x, i: x.gather(-2, i) * 2, (4, 3), (2, 3)),
    "take_along_dim": (lambda x, i: x.take_along_dim(i, 1) * 2, (3, 4), (3, 5)),
    "scatter": (lambda x, i: (x * 2).scatter(1, i, x[:, :1] * 3), (2, 4), (2, 1)),
    "scatter a number": (lambda x, i: (x * 2).scatter(1, i, 3.0), (2, 4), (2, 3)),
    "scatter a number into bits": (lambda x, i: x * (x > 0).scatter(1, i, 1), (2, 4), (2, 3)),
    "scatter_add": (lambda x, i: (x * 2).scatter_add(1, i, x[:, :3]), (2, 4), (2, 3)),
    "scatter_reduce": (lambda x, i: (x * 2).scatter_reduce(1, i, x.detach(), "sum"), (2, 4), (2, 3)),
    "scatter_reduce, max": (
        lambda x, i: x.detach().scatter_reduce(1, i, x.detach() * 2, "amax", include_self=False),
        (2, 4),
        (2, 3),
    ),
    "index_select": (lambda x, i: x.index_select(1, i) * 2, (2, 4), (6,)),
    "index_add": (lambda x, i: (x * 2).index_add(0, i, x[:3], alpha=2), (4, 2), (3,)),
    "index_copy": (lambda x, i: (x * 2).index_copy(0, i, x[:1]), (4, 2), (1,)),
    "index_fill": (lambda x, i: (x * 2).index_fill(1, i, 3.0), (2, 4), (2,)),
    "index_fill of bits": (lambda x, i: x * (x > 0).index_fill(1, i, 1), (2, 4), (2,)),
    "embedding": (lambda x, i: F.embedding(i, x) * 2, (4, 3), (2, 5)),
    "embedding, padded": (lambda x, i: F.embedding(i, x, padding_idx=1) * 2, (4, 3), (2, 5)),
    "take": (lambda x, i: x.take(i) * 2, (2, 2), (3, 2)),
    "one_hot by name": (lambda x, i: F.one_hot(input=i, num_classes=4).to(x) @ x, (4, 3), (5,)),
    "one_hot": (lambda x, i: F.one_hot(i, 4).to(x) @ x, (4, 3), (5,)),
    "nll": (lambda x, i: F.nll_loss(x.log_softmax(-1), i), (3, 4), (3,)),
    "cross entropy": (lambda x, i: F.cross_entropy(x, i, reduction="sum"), (3, 4), (3,)),
    "gather of a number": (lambda x, i: x.gather(0, i * 0) * 2, (), ()),
    "scatter into a number": (lambda x, i: (x * 2).scatter_add(0, i * 0, x), (), ()),
}


@pytest.mark.parametrize("name", INDEXED)
@given(seed=SEEDS, dtype=DTYPES)
def test_indexing(name: str, seed: int, dtype: torch.dtype) -> None:
    function, shape, size = INDEXED[name]
    agree(function, tensor(seed, shape, dtype=dtype), positions(seed, size, 4))


ORDERED: dict[str, Function] = {
    "sort": lambda x: x.sort(-1).values * 2,
    "sort down": lambda x: x.sort(0, descending=True).values * 2,
    "order": lambda x: x.argsort(dim=-1, stable=True),
    "order down": lambda x: x.sort(stable=True, dim=0, descending=True).indices,
    "argsort": lambda x: x.argsort(0),
    "topk": lambda x: x.topk(2, 0).values * 2,
    "lowest": lambda x: x.topk(2, 0, largest=False).values,
    "searchsorted": lambda x: torch.searchsorted(x.detach().sort(-1).values, x.detach() + 0.1, right=True),
    "bucketize": lambda x: torch.bucketize(x.detach(), torch.tensor([-1.0, 0.0, 0.5]).to(x)),
    "second": lambda x: x.sort(0).values[1] * 2,
    "kthvalue": lambda x: x.kthvalue(2, 0).values * 2,
    "median": lambda x: x.median(-1, keepdim=True).values * 2,
    "median of all": lambda x: x.median() * 2,
    "median that is none": lambda x: torch.where(x > x.max() - 0.1, torch.nan, x.detach()).median(0).values,
}


@pytest.mark.parametrize("name", ORDERED)
@given(seed=SEEDS, shape=st.tuples(st.sampled_from([2, 4]), SIZES), dtype=DTYPES)
def test_order(name: str, seed: int, shape: Any, dtype: torch.dtype) -> None:
    agree(ORDERED[name], tensor(seed, shape, dtype=dtype))


def test_a_position_outside_is_not_a_number() -> None:
    with precision():
        lowered = lower(lambda x, i: x[i] + x.gather(0, i), tensor(0, (3,)), torch.tensor([0, 2]))
        assert numpy.isnan(lowered(numpy.ones(3), numpy.array([3, 9]))).all()


OUTSIDE: dict[str, tuple[Function, int]] = {
    "index": (lambda x, i: x[i], -4),
    "gather": (lambda x, i: x.gather(0, i), -1),
    "index_select": (lambda x, i: x.index_select(0, i), -1),
    "embedding": (lambda x, i: F.embedding(i, x[:, None]), -1),
    "scatter": (lambda x, i: (x * 2).scatter(0, i, 1.0), -1),
    "scatter_add": (lambda x, i: (x * 2).scatter_add(0, i, x[:1]), -1),
    "scatter_reduce": (lambda x, i: x.detach().scatter_reduce(0, i, x.detach()[:1], "amax"), -1),
    "index_add": (lambda x, i: (x * 2).index_add(0, i, x[:1]), -1),
    "index_copy": (lambda x, i: (x * 2).index_copy(0, i, x[:1]), -1),
    "index_fill": (lambda x, i: (x * 2).index_fill(0, i, 1.0), -4),
    "index_put": (lambda x, i: (x * 2).index_put((i,), x[0]), -4),
    "put": (lambda x, i: (x * 2).put(i, x[:1]), -4),
    "nll": (lambda x, i: F.nll_loss(x.log_softmax(-1)[None], i), -1),
    "one_hot": (lambda x, i: F.one_hot(i, 3).double() * x, -1),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_torch_refuses_at_a_position_outside_is_not_a_number(name: str) -> None:
    function, low = OUTSIDE[name]
    with precision():
        lowered = lower(function, tensor(0, (3,)), torch.tensor([1]))
        for inside in (1, 2):
            expected = function(tensor(0, (3,)), torch.tensor([inside])).detach().numpy()
            numpy.testing.assert_allclose(lowered(tensor(0, (3,)).detach().numpy(), numpy.array([inside])), expected)
        for outside in (low, 3, 9):
            with pytest.raises((IndexError, RuntimeError)):
                function(tensor(0, (3,)), torch.tensor([outside]))
            assert numpy.isnan(lowered(numpy.ones(3), numpy.array([outside]))).any()


def test_a_mask_that_takes_each_its_own_value_is_refused() -> None:
    x = torch.eye(3).double()
    with pytest.raises(Unsupported, match="no write of several values at a mask"), precision():
        lower(lambda x: (x * 2).index_put((x == x.amax(1, keepdim=True),), torch.arange(3.0).double()), x)(x.numpy())


# -- linear algebra ----------------------------------------------------------------------------------------------------


def _square(x: Tensor) -> Tensor:
    return x @ x.mT + 2 * torch.eye(x.shape[-2])


ALGEBRA: dict[str, tuple[Function, tuple[tuple[int, ...], ...]]] = {
    "exponential": (lambda x: torch.linalg.matrix_exp(x) * 2, ((2, 3, 3),)),
    "mm": (lambda x, y: x @ y, ((2, 3), (3, 5))),
    "bmm": (lambda x, y: x @ y, ((4, 2, 3), (4, 3, 5))),
    "batches": (lambda x, y: x @ y, ((4, 1, 2, 3), (2, 3, 5))),
    "mv": (lambda x, y: x @ y, ((2, 3), (3,))),
    "vm": (lambda x, y: x @ y, ((3,), (3, 2))),
    "dot": (lambda x, y: x @ y, ((3,), (3,))),
    "vdot": (lambda x, y: torch.vdot(x, y), ((3,), (3,))),
    "outer": (torch.outer, ((3,), (2,))),
    "addmm": (lambda x, y, z: torch.addmm(x, y, z, beta=0.5, alpha=2), ((5,), (2, 3), (3, 5))),
    "addmv": (torch.addmv, ((2,), (2, 3), (3,))),
    "baddbmm": (lambda x, y, z: torch.baddbmm(x, y, z, beta=0), ((4, 2, 5), (4, 2, 3), (4, 3, 5))),
    "linear": (F.linear, ((4, 2, 3), (5, 3), (5,))),
    "einsum": (lambda x, y: torch.einsum("bij,bjk->ik", x, y), ((4, 2, 3), (4, 3, 5))),
    "bilinear": (lambda x, y, w: F.bilinear(x, y, w), ((4, 2), (4, 3), (5, 2, 3))),
    "trace": (lambda x: x.trace() * 2, ((3, 4),)),
    "cholesky": (lambda x: torch.linalg.cholesky(_square(x)), ((2, 3, 3),)),
    "upper cholesky": (lambda x: torch.linalg.cholesky(_square(x), upper=True), ((3, 3),)),
    "triangular": (lambda a, b: torch.linalg.solve_triangular(_square(a), b, upper=False), ((3, 3), (3, 2))),
    "triangular, right": (
        lambda a, b: torch.linalg.solve_triangular(_square(a), b, upper=True, left=False),
        ((2, 3, 3), (2, 4, 3)),
    ),
    "old triangular": (
        lambda a, b: torch.triangular_solve(b.detach(), _square(a.detach()), transpose=True).solution,
        ((3, 3), (3, 2)),
    ),
    "cholesky_solve": (
        lambda a, b: torch.cholesky_solve(b, torch.linalg.cholesky(_square(a.detach()))),
        ((3, 3), (3, 2)),
    ),
    "solve": (lambda a, b: torch.linalg.solve(_square(a), b), ((2, 3, 3), (2, 3, 2))),
    "solve a vector": (lambda a, b: torch.linalg.solve(_square(a), b), ((3, 3), (3,))),
    "inverse": (lambda a: torch.linalg.inv(_square(a)), ((2, 3, 3),)),
    "det": (lambda a: torch.linalg.det(_square(a)), ((2, 3, 3),)),
    "slogdet": (lambda a: torch.linalg.slogdet(a + a.mT).logabsdet, ((2, 3, 3),)),
    "logdet": (lambda a: torch.logdet(_square(a)), ((3, 3),)),
    "sign of det": (lambda a: torch.linalg.slogdet(a.detach()).sign, ((2, 3, 3),)),
    "qr": (lambda a: torch.linalg.qr(a.detach()).R.abs(), ((4, 3),)),
    "lu": (lambda a, b: torch.linalg.lu_solve(*torch.linalg.lu_factor(a.detach() + 2), b.detach()), ((3, 3), (3, 2))),
    "householder": (lambda a, t: torch.linalg.householder_product(a, t), ((4, 3), (3,))),
    "eigh": (
        lambda a: (lambda values, vectors: (vectors * values.exp()[..., None, :]) @ vectors.mT)(
            *torch.linalg.eigh(_square(a))
        ),
        ((2, 3, 3),),
    ),
    "eigh, upper": (lambda a: torch.linalg.eigh(a.detach(), "U").eigenvalues, ((3, 3),)),
    "eigvalsh": (lambda a: torch.linalg.eigvalsh(a.detach()), ((3, 3),)),
    "svd": (lambda a: (lambda u, s, v: u * s.log()[..., None, :] @ v)(*torch.linalg.svd(a, False)), ((2, 4, 3),)),
    "full svd": (lambda a: torch.linalg.svd(a.detach()).U.abs()[:, :3], ((4, 3),)),
    "svdvals": (lambda a: torch.linalg.svdvals(a.detach()), ((4, 3),)),
    **{
        f"cdist, p = {p}": (lambda x, y, p=p: torch.cdist(x, y, p), ((2, 4, 3), (2, 5, 3)))
        for p in (0, 1, 1.5, 2, 3, math.inf)
    },
    "cdist of a row and itself": (lambda x: torch.cdist(x, x), ((4, 3),)),
    "matrix_power": (lambda x: torch.linalg.matrix_power(x, 3), ((3, 3),)),
    "cross": (lambda x, y: torch.linalg.cross(x, y), ((2, 3), (2, 3))),
}


@both_precisions
@pytest.mark.parametrize("name", ALGEBRA)
@pytest.mark.filterwarnings("ignore:torch.*is deprecated")
def test_linear_algebra(name: str, dtype: torch.dtype) -> None:
    function, shapes = ALGEBRA[name]
    tolerance = 1e-8 if dtype == torch.float64 else 1e-4
    agree(function, *[tensor(i, shape, dtype=dtype) for i, shape in enumerate(shapes)], tolerance=tolerance)


# -- networks ----------------------------------------------------------------------------------------------------------


@given(
    seed=SEEDS,
    stride=st.sampled_from([1, 2]),
    padding=st.sampled_from([0, 1]),
    dilation=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 2]),
    transposed=st.booleans(),
    spatial=st.sampled_from([1, 2]),
    bias=st.booleans(),
    dtype=DTYPES,
)
def test_convolutions(
    seed: int,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    transposed: bool,
    spatial: int,
    bias: bool,
    dtype: torch.dtype,
) -> None:
    inputs, outputs, kernel = 2 * groups, 3 * groups, 2
    x = tensor(seed, (2, inputs, *(5, 6)[:spatial]), dtype=dtype)
    weight = tensor(
        seed + 1,
        (inputs, outputs // groups, *(kernel,) * spatial)
        if transposed
        else (outputs, inputs // groups, *(kernel,) * spatial),
        dtype=dtype,
    )
    more = (tensor(seed + 2, (outputs,), dtype=dtype),) if bias else ()
    name = f"conv{'_transpose' * transposed}{spatial}d"
    extra = {"output_padding": 1} if transposed and stride == 2 else {}

    def function(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        return getattr(F, name)(
            x, weight, *bias, stride=stride, padding=padding, dilation=dilation, groups=groups, **extra
        )

    agree(function, x, weight, *more)


POOLED: dict[str, Function] = {
    "max": lambda x: F.max_pool2d(x, 2),
    "max, overlapping": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "max, dilated": lambda x: F.max_pool2d(x, 2, 1, dilation=2),
    "average": lambda x: F.avg_pool2d(x, 2),
    "average, overlapping": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average, inside": lambda x: F.avg_pool2d(x, (3, 2), 2, 1, count_include_pad=False),
    "average of a number": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
    "global": lambda x: F.adaptive_avg_pool2d(x, 1),
    "pixels": lambda x: F.pixel_shuffle(x[:, :1].expand(-1, 4, -1, -1), 2),
    "positions": lambda x: F.max_pool2d(x, 2, return_indices=True)[1],
    "adaptive, the largest": lambda x: F.adaptive_max_pool2d(x, (2, 3)),
    "adaptive, the largest, of wide and narrow windows": lambda x: F.adaptive_max_pool2d(x, (3, 4)),
    "replicated": lambda x: F.pad(x, (1, 2, 0, 3), "replicate"),
    "replicated rows": lambda x: F.pad(x[0], (1, 2), "replicate"),
    "replicated, solid": lambda x: F.pad(x[None], (1, 2, 0, 3, 1, 0), "replicate"),
    "max, solid": lambda x: F.max_pool3d(x[None], (1, 3, 2), 2, (0, 1, 1)),
    "average, solid": lambda x: F.avg_pool3d(x[None], 2, (1, 2, 2), (1, 0, 1), ceil_mode=True),
    "adaptive, solid": lambda x: F.adaptive_avg_pool3d(x[None], (1, 2, 3)),
    "adaptive, the largest, solid": lambda x: F.adaptive_max_pool3d(x[None], (1, 2, 3)),
}


@both_precisions
@pytest.mark.parametrize("name", POOLED)
def test_pooling(name: str, dtype: torch.dtype) -> None:
    agree(lambda x: POOLED[name](x) * 2, tensor(4, (2, 2, 5, 6), dtype=dtype))


SCALES: dict[str, dict[str, Any]] = {
    "twice": {"scale_factor": 2},
    "a size": {"size": (7, 4)},
    "a factor": {"scale_factor": (1.7, 0.6)},
    "a factor of the sizes": {"scale_factor": (1.7, 0.6), "recompute_scale_factor": True},
}


UPSAMPLED = {1: ["nearest", "nearest-exact", "linear"], 3: ["nearest", "nearest-exact", "trilinear"]}
UPSAMPLED[2] = ["nearest", "nearest-exact", "bilinear", "bicubic", "bilinear, aa", "bicubic, aa"]


def upsampled(mode: str, **more: Any) -> Function:
    return partial(F.interpolate, mode=mode.split(",")[0], antialias=mode.endswith("aa"), **more)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("mode", UPSAMPLED[2])
def test_upsampling(mode: str, scale: str) -> None:
    for aligned in (None,) if "nearest" in mode else (False, True):
        agree(upsampled(mode, align_corners=aligned, **SCALES[scale]), tensor(4, (2, 2, 5, 6)))


@pytest.mark.parametrize(("dimensions", "mode"), [(d, mode) for d in (1, 3) for mode in UPSAMPLED[d]])
def test_upsampling_in_one_dimension_and_in_three(dimensions: int, mode: str) -> None:
    agree(upsampled(mode, size=(3, 7, 5)[:dimensions]), tensor(4, (2, 2, 2, 3, 4)[: 2 + dimensions]))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_sampling_at_the_points_of_a_grid(mode: str, padding: str, aligned: bool) -> None:
    sample = partial(F.grid_sample, mode=mode, padding_mode=padding, align_corners=aligned)
    agree(sample, tensor(4, (2, 3, 4, 5)), 1.5 * tensor(5, (2, 3, 2, 2)))
    agree(sample, tensor(4, (2, 3, 1, 5)), 0.9 * tensor(5, (2, 3, 2, 2)))
    if mode != "bicubic":
        agree(sample, tensor(4, (1, 2, 2, 3, 4)), 1.5 * tensor(5, (1, 2, 3, 2, 3)))


def test_a_spatial_transformer_that_leaves_the_picture_as_it_is() -> None:
    def function(x: Tensor, theta: Tensor) -> Tensor:
        return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=True), "bilinear", "border", True)

    same = torch.eye(2, 3, dtype=torch.float64).expand(2, 2, 3).contiguous()
    agree(function, tensor(4, (2, 1, 3, 4)), same)
    turned = (same + 0.1 * tensor(5, same.shape)).float()
    agree(function, tensor(4, (2, 1, 3, 4)).float(), turned, tolerance=1e-5)


NORMALIZED: dict[str, Function] = {
    "layer": lambda x, w, b: F.layer_norm(x, (4,), w, b),
    "layer, plain": lambda x, w, b: F.layer_norm(x, (3, 4)) * w,
    "group": lambda x, w, b: F.group_norm(x.transpose(1, 2), 2, w, b),
    "group, plain": lambda x, w, b: F.group_norm(x.transpose(1, 2), 2),
    "batch": lambda x, w, b: F.batch_norm(x.transpose(1, 2), None, None, w, b, True),
    "instance": lambda x, w, b: F.instance_norm(x) * w,
    "batch, fixed": lambda x, w, b: F.batch_norm(
        x.transpose(1, 2), torch.arange(4).to(x), torch.ones(4).to(x) * 2, w, b, False
    ),
    "batch, running": lambda x, w, b: _running(x, w, b),
    "rms": lambda x, w, b: F.rms_norm(x, (4,), w),
    "scaled": lambda x, w, b: F.normalize(x, dim=-1) * w,
    "weight": lambda x, w, b: torch._weight_norm(x[0], w[:3].reshape(3, 1), 0),
}


def _running(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    mean, var = torch.zeros(4).to(x), torch.ones(4).to(x)
    y = F.batch_norm(x.transpose(1, 2), mean, var, w, b, True, 0.3)
    return y + mean[:, None] + 2 * var[:, None]


@both_precisions
@pytest.mark.parametrize("name", NORMALIZED)
def test_normalization(name: str, dtype: torch.dtype) -> None:
    arguments = [tensor(seed, shape, dtype=dtype) for seed, shape in ((5, (2, 3, 4)), (6, (4,)), (8, (4,)))]
    agree(lambda x, w, b: NORMALIZED[name](x, w, b) * 2, *arguments)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "LSTM, two layers", "LSTMCell", "GRUCell"])
def test_recurrent_networks(kind: str) -> None:
    torch.manual_seed(0)
    name, *more = kind.split(", ")
    net = getattr(torch.nn, name)(2, 3, **({"num_layers": 2, "bidirectional": True} if more else {})).double()
    names = [name for name, _ in net.named_parameters()]

    def function(x: Tensor, *weights: Tensor) -> Tensor:
        y = torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (x,))
        return y[0] if isinstance(y, tuple) else y

    shape = (4, 2) if "Cell" in kind else (3, 4, 2)
    agree(function, tensor(9, shape), *[p.detach() for p in net.parameters()])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "LSTM, two layers", "GRU, two layers", "LSTMCell", "GRUCell"])
def test_what_a_gpu_does_at_once_is_written_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors that only say that they are on a GPU: the same numbers."""
    torch.manual_seed(0)
    name, *more = kind.split(", ")
    net = getattr(torch.nn, name)(2, 3, **({"num_layers": 2, "bidirectional": True} if more else {})).double()
    x = tensor(9, (4, 2) if "Cell" in kind else (3, 4, 2))
    expected = net(x)
    with plainly(), monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "is_cuda", True)
        written = net(x)
    for ours, theirs in zip(tree_leaves(written), tree_leaves(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="a build of torch without CUDA has no such tensors")
@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell"])
def test_no_operation_of_a_whole_cell_is_captured_for_a_gpu(kind: str) -> None:
    with FakeTensorMode():
        cell, x = getattr(torch.nn, kind)(2, 3, device="cuda"), torch.empty((4, 2), device="cuda")
        with plainly():
            graph = make_fx(lambda x: cell(x), tracing_mode="real")(x)
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    assert "aten.sigmoid.default" in called and not any("_cell" in name for name in called)


def test_attention() -> None:
    torch.manual_seed(0)
    agree(
        lambda q, k: F.scaled_dot_product_attention(q, k, k, is_causal=True), tensor(1, (2, 4, 3)), tensor(2, (2, 4, 3))
    )


# -- derivatives -------------------------------------------------------------------------------------------------------


def test_the_derivative_is_torchs() -> None:
    """With every detach, every no_grad, and derivatives inside the function."""

    def function(x: Tensor) -> Tensor:
        with torch.no_grad():
            fixed = x.exp()
        inner = (x * 2).requires_grad_() if not x.requires_grad else x * 2
        (slope,) = torch.autograd.grad(inner.sin().sum(), inner, create_graph=True)
        return (fixed * x + x.detach() * x.square() + slope).sum()

    agree(function, tensor(3, (4,)))


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


def test_a_derivative_by_hand_is_kept() -> None:
    agree(lambda x: _Doubled.apply(x) * x, tensor(3, (4,)))


def test_lowered_functions_are_jitted_and_mapped() -> None:
    with precision():
        lowered = lower(lambda x, y: (x * y).tanh().sum(), tensor(0, (3,)), tensor(1, (3,)))
        xs = to_jax(tensor(2, (5, 3)))
        slopes = jax.jit(jax.vmap(jax.grad(lowered), (0, None)))(xs, xs[0])
        numpy.testing.assert_allclose(slopes, xs[0] / jnp.cosh(xs * xs[0]) ** 2, rtol=1e-12)
        with pytest.raises(ValueError, match=r"shape \(4,\).*lowered for \(3,\)"):
            lowered(jnp.ones(4), jnp.ones(3))


def test_single_precision_needs_no_wide_numbers() -> None:
    lowered = lower(lambda x, i: x[i].sum(), torch.randn(3), torch.tensor([0, 1]))
    value, slope = jax.value_and_grad(lowered)(numpy.ones(3, numpy.float32), numpy.array([0, 0], numpy.int32))
    assert value == 2 and value.dtype == numpy.float32 and slope.tolist() == [2, 0, 0]


def test_random_numbers_have_no_place_in_a_function() -> None:
    with pytest.raises(Unsupported, match="no source"):
        lower(lambda x: x + torch.randn(3), torch.zeros(3))(numpy.zeros(3, numpy.float32))


# -- random operations -------------------------------------------------------------------------------------------------

COUNT = 20000
UNIFORM, NORMAL = (0.5, 1 / 12, 1 / 180), (0.0, 1.0, 2.0)

RANDOM: dict[str, tuple[Callable[[], Tensor], tuple[float, float, float]]] = {
    "randn": (lambda: torch.randn(COUNT), NORMAL),
    "randn_like": (lambda: torch.randn_like(torch.zeros(COUNT)), NORMAL),
    "rand": (lambda: torch.rand(COUNT), UNIFORM),
    "rand_like": (lambda: torch.rand_like(torch.zeros(COUNT)), UNIFORM),
    "normal_": (lambda: torch.empty(COUNT).normal_(2.0, 3.0), (2.0, 9.0, 162.0)),
    "normal": (lambda: torch.normal(torch.full((COUNT,), 2.0), 3.0), (2.0, 9.0, 162.0)),
    "normal of numbers": (lambda: torch.normal(2.0, 3.0, (COUNT,)), (2.0, 9.0, 162.0)),
    "normal of tensors": (
        lambda: torch.normal(torch.full((COUNT,), 2.0), torch.full((COUNT,), 3.0)),
        (2.0, 9.0, 162.0),
    ),
    "normal of a scale": (lambda: torch.normal(2.0, torch.full((COUNT,), 3.0)), (2.0, 9.0, 162.0)),
    "randn of a type": (lambda: torch.randn(COUNT, dtype=torch.float64, device="cpu"), (0.0, 1.0, 2.0)),
    "rand of a type": (lambda: torch.rand((COUNT,), dtype=torch.float64), UNIFORM),
    "randn_like of a type": (lambda: torch.randn_like(torch.zeros(COUNT), dtype=torch.float64), (0.0, 1.0, 2.0)),
    "randint of a type": (lambda: torch.randint(3, (COUNT,), dtype=torch.int32), (1.0, 2 / 3, 2 / 9)),
    "randperm of a type": (lambda: torch.randperm(COUNT, dtype=torch.int32) / COUNT, UNIFORM),
    "uniform_": (lambda: torch.empty(COUNT).uniform_(-1, 3), (1.0, 16 / 12, 256 / 180)),
    "bernoulli": (lambda: torch.bernoulli(torch.full((COUNT,), 0.3)), (0.3, 0.21, 0.0336)),
    "bernoulli_": (lambda: torch.empty(COUNT).bernoulli_(0.3), (0.3, 0.21, 0.0336)),
    "bernoulli_ of a tensor": (lambda: torch.empty(COUNT).bernoulli_(torch.full((COUNT,), 0.3)), (0.3, 0.21, 0.0336)),
    "bernoulli of p": (lambda: torch.bernoulli(torch.zeros(COUNT), 0.3), (0.3, 0.21, 0.0336)),
    "multinomial": (
        lambda: torch.multinomial(torch.tensor([1.0, 2.0, 1.0]).expand(COUNT, 3), 1, True)[:, 0],
        (1.0, 0.5, 0.25),
    ),
    "multinomial without": (
        lambda: torch.multinomial(torch.tensor([1.0, 1.0, 1.0]).expand(COUNT, 3), 2)[:, 1],
        (1.0, 2 / 3, 2 / 9),
    ),
    "exponential_": (lambda: torch.empty(COUNT).exponential_(2.0), (0.5, 0.25, 0.5)),
    "log_normal_": (lambda: torch.empty(COUNT).log_normal_(1.0, 2.0).log(), (1.0, 4.0, 32.0)),
    "cauchy_": (lambda: torch.atan((torch.empty(COUNT).cauchy_(1.0, 2.0) - 1) / 2) / math.pi + 0.5, UNIFORM),
    "geometric_": (lambda: torch.empty(COUNT).geometric_(0.5), (2.0, 2.0, 30.0)),
    "gamma": (lambda: torch._standard_gamma(torch.full((COUNT,), 3.0)), (3.0, 3.0, 36.0)),
    "dirichlet": (lambda: torch._sample_dirichlet(torch.ones(COUNT, 2))[:, 0], UNIFORM),
    "poisson": (lambda: torch.poisson(torch.full((COUNT,), 4.0)), (4.0, 4.0, 36.0)),
    "binomial": (lambda: torch.binomial(torch.full((COUNT,), 5.0), torch.full((COUNT,), 0.5)), (2.5, 1.25, 2.5)),
    "randint": (lambda: torch.randint(3, (COUNT,)), (1.0, 2 / 3, 2 / 9)),
    "randint between": (lambda: torch.randint(1, 4, (COUNT,)), (2.0, 2 / 3, 2 / 9)),
    "randint_like": (lambda: torch.randint_like(torch.zeros(COUNT), 3), (1.0, 2 / 3, 2 / 9)),
    "randint_like between": (lambda: torch.randint_like(torch.zeros(COUNT), 1, 4), (2.0, 2 / 3, 2 / 9)),
    "randperm": (lambda: torch.randperm(COUNT) / COUNT, UNIFORM),
    "dropout": (lambda: F.dropout(torch.ones(COUNT), 0.25), (1.0, 1 / 3, 4 / 27)),
}
"""Functions, with the mean, the variance and (at least) the variance of the squared distance to the mean of what they draw."""


@pytest.mark.parametrize("name", RANDOM)
def test_random_operations(name: str) -> None:
    """Mean and variance within 7 standard errors, as is what torch draws: one false alarm in 10^11 for each."""
    function, (mean, variance, spread) = RANDOM[name]
    seed = torch.seed()
    print(f"seed {seed}")
    tape = capture(lambda: [function()], {})
    with precision():
        key = jax.random.key(seed % 2**62)
        constants = {number: to_jax(constant) for number, constant in tape.constants.items()}
        one, two = (run(tape, {}, constants, FromKey(jax.random.fold_in(key, i))).outputs[0] for i in (0, 1))
        again = run(tape, {}, constants, FromKey(jax.random.fold_in(key, 0))).outputs[0]
    assert bool((one == again).all()) and not bool((one == two).all())
    for drawn in (numpy.asarray(one, dtype=float), function().double().numpy()):
        assert abs(drawn.mean() - mean) <= 7 * math.sqrt(variance / COUNT)
        assert abs(((drawn - mean) ** 2).mean() - variance) <= 7 * math.sqrt(spread / COUNT) + 1e-3 * variance


def test_draws_without_replacement_differ() -> None:
    tape = capture(lambda: [torch.multinomial(torch.ones(50, 4), 4)], {})
    with precision():
        rows = run(tape, {}, {n: to_jax(c) for n, c in tape.constants.items()}, FromKey(jax.random.key(0))).outputs[0]
    assert (numpy.sort(numpy.asarray(rows), -1) == numpy.arange(4)).all()


def test_recorded_draws_are_what_torch_drew() -> None:
    torch.manual_seed(3)
    with Draws() as draws:
        x = torch.empty(3).normal_()
        y = torch.bernoulli(torch.full((4,), 0.5))
        x.mul_(2)
    assert [draw.tolist() for draw in draws.taken] == [(x / 2).tolist(), y.tolist()]


def test_the_gradient_of_a_gamma_variable() -> None:
    def function(a: Tensor) -> Tensor:
        return torch.distributions.Gamma(a, 2.0, validate_args=False).rsample().log()

    a = tensor(1, (5,), "positive").requires_grad_()
    torch.manual_seed(0)
    with Draws() as draws:
        y = function(a)
    (expected,) = torch.autograd.grad(y.sum(), a)

    def both() -> list[Tensor]:
        y = function(a)
        return [y, *torch.autograd.grad(y.sum(), [a])]

    tape = capture(both, {"a": a})
    with precision():
        constants = {number: to_jax(constant) for number, constant in tape.constants.items()}
        outputs = run(tape, {"a": to_jax(a)}, constants, Given([to_jax(draw) for draw in draws.taken])).outputs
    near(outputs[0], y, 1e-12)
    near(outputs[1], expected, 1e-4)  # torch's own series is accurate to about that


BETAS = st.floats(0.05, 300)


@given(a=BETAS, b=BETAS, level=st.floats(0.001, 0.999))
def test_the_gradient_of_a_beta_variable(a: float, b: float, level: float) -> None:
    """By numerical derivatives of the distribution function, and near torch's own approximation."""
    x = scipy.special.betaincinv(a, b, level)
    assume(1e-200 < x < 1 - 1e-9)
    step = 1e-4 * a
    i = [scipy.special.betainc(a + k * step, b, x) for k in (-2, -1, 1, 2)]
    slope = (i[0] - 8 * i[1] + 8 * i[2] - i[3]) / (12 * step)
    expected = -slope / scipy.stats.beta.pdf(x, a, b)
    numbers = [torch.tensor([value], dtype=torch.float64) for value in (x, a, a + b)]
    with precision():
        found = find("aten._dirichlet_grad.default").function(*map(to_jax, numbers)).item() * (1 - x)
    assert found == pytest.approx(expected, rel=1e-6)
    assert found == pytest.approx(torch._dirichlet_grad(*numbers).item() * (1 - x), rel=2e-3)


def test_the_gradient_of_a_power_of_a_uniform_variable() -> None:
    """Beta(a, 1) is u^(1/a), of which dx/da = -x log(x) / a."""
    a, x = tensor(1, (50,), "positive"), tensor(2, (50,), "unit")
    with precision():
        found = numpy.asarray(find("aten._dirichlet_grad.default").function(to_jax(x), to_jax(a), to_jax(a + 1)))
    near(found, -x * x.log() / a / (1 - x), 1e-12)


# -- every entry has a case --------------------------------------------------------------------------------------------


def _cases() -> list[tuple[Function, tuple[Tensor, ...]]]:
    cases: list[tuple[Function, tuple[Tensor, ...]]] = []
    cases += [(function, (tensor(0, (2, 3), kind),)) for function, kind in UNARY.values()]
    cases += [(f, tuple(tensor(i, (2, 3), k) for i, k in enumerate(kinds))) for f, kinds in BINARY.values()]
    cases += [(f, (tensor(0, (3,), "real", torch.int64), tensor(1, (3,), "real", torch.int64))) for f in WHOLE.values()]
    cases += [(lambda x, f=f: f(x, 0, False), (tensor(0, (2, 3)),)) for f in REDUCTIONS.values()]
    cases += [(f, (tensor(1, shape),)) for f, shape in SHAPED.values()]
    cases += [(f, (tensor(1, shape), positions(1, size, 4))) for f, shape, size in INDEXED.values()]
    cases += [(f, (tensor(1, (4, 2)),)) for f in ORDERED.values()]
    cases += [(f, tuple(tensor(i, s) for i, s in enumerate(shapes))) for f, shapes in ALGEBRA.values()]
    cases += [(f, (tensor(4, (2, 2, 5, 6)),)) for f in POOLED.values()]
    cases += [(upsampled(mode, size=2), (tensor(4, (1, 1, *[3] * d)),)) for d in UPSAMPLED for mode in UPSAMPLED[d]]
    cases += [
        (partial(F.grid_sample, align_corners=True), (tensor(4, (1, 1, *[3] * d)), tensor(5, (1, *[2] * d, d))))
        for d in (2, 3)
    ]
    cases += [(f, (tensor(5, (2, 3, 4)), tensor(6, (4,)), tensor(8, (4,)))) for f in NORMALIZED.values()]
    cases += [(lambda x, w: F.conv1d(x, w), (tensor(0, (1, 2, 5)), tensor(1, (3, 2, 2))))]
    cases += [(f, ()) for f, _ in RANDOM.values()]
    cases += [
        (lambda a: torch.distributions.Gamma(a, 2.0, validate_args=False).rsample(), (tensor(1, (2,), "positive"),)),
        (lambda a: torch.distributions.Dirichlet(a, validate_args=False).rsample(), (tensor(1, (2,), "positive"),)),
    ]
    return cases


@pytest.mark.filterwarnings("ignore:torch.*is deprecated")
def test_every_entry_has_a_case() -> None:
    entries = {id(entry): name for name, entry in TABLE.items()}
    tested = set()
    for function, arguments in _cases():
        for name in reached(function, arguments):
            entry = find(name)
            tested |= {id(entry)} if entry is not None else set()
    by_function = {id(entry.function) for entry in TABLE.values() if id(entry) in tested}
    left = sorted(
        name for key, name in entries.items() if key not in tested and id(TABLE[name].function) not in by_function
    )
    assert left == [], f"entries without a case: {left}"


@pytest.mark.filterwarnings("ignore:torch.*is deprecated")
def test_every_entry_takes_constants() -> None:
    """As where a model indexes its data: what does not depend on an argument is in the tape with constants alone."""
    for function, arguments in _cases():

        def of_constants(_: Tensor, function: Any = function, arguments: Any = arguments) -> Tensor:
            return function(*arguments)

        with precision(), plainly():
            expected = function(*arguments)
            try:
                lowered = lower(of_constants, torch.zeros(()))
                found = jax.eval_shape(lowered, numpy.zeros(()))
            except Unsupported as error:
                assert "no source of them" in str(error)  # random numbers
            else:
                assert found.shape == tuple(expected.shape)
