"""Products of matrices and vectors, and decompositions: Cholesky, triangular and general solves, determinants, inverses,
spectra; distances of all pairs of rows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unigen.engines.operations.table import operation

__all__ = ["EXACT", "product"]

EXACT = jax.lax.Precision.HIGHEST


@operation("mm", "bmm", "mv", "dot", "matmul", "vdot")
def product(x: Any, y: Any) -> Any:
    return jnp.matmul(x, y, precision=EXACT)


@operation("addmm", "addmv", "baddbmm")
def _add_product(x: Any, y: Any, z: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    yz = product(y, z)
    yz = yz if alpha == 1 else alpha * yz
    return yz if beta == 0 else (x if beta == 1 else beta * x) + yz


@operation("_trilinear")
def _trilinear(x: Any, y: Any, z: Any, expand1: Any, expand2: Any, expand3: Any, summed: Any, unroll: int = 1) -> Any:
    parts = [jnp.expand_dims(p, tuple(e)) for p, e in zip((x, y, z), (expand1, expand2, expand3), strict=True)]
    return jnp.sum(parts[0] * parts[1] * parts[2], tuple(summed))


@operation("trace")
def _trace(x: Any) -> Any:
    return jnp.trace(x)


@operation("linalg_cholesky_ex")
def _cholesky(x: Any, *, upper: bool = False, check_errors: bool = False) -> Any:
    lower = jnp.linalg.cholesky(x, symmetrize_input=False)
    info = jnp.isnan(lower).any((-2, -1)).astype(jnp.int32)
    return (jnp.swapaxes(lower, -1, -2) if upper else lower), info


@operation("linalg_solve_triangular")
def _solve_triangular(a: Any, b: Any, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Any:
    shape = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = jnp.broadcast_to(a, (*shape, *a.shape[-2:])), jnp.broadcast_to(b, (*shape, *b.shape[-2:]))
    return jax.lax.linalg.triangular_solve(a, b, left_side=left, lower=not upper, unit_diagonal=unitriangular)


@operation("triangular_solve")
def _triangular_solve(b: Any, a: Any, upper: bool = True, transpose: bool = False, unitriangular: bool = False) -> Any:
    shape = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = jnp.broadcast_to(a, (*shape, *a.shape[-2:])), jnp.broadcast_to(b, (*shape, *b.shape[-2:]))
    solution = jax.lax.linalg.triangular_solve(
        a, b, left_side=True, lower=not upper, transpose_a=transpose, unit_diagonal=unitriangular
    )
    return solution, a


@operation("cholesky_solve")
def _cholesky_solve(b: Any, factor: Any, upper: bool = False) -> Any:
    return jax.scipy.linalg.cho_solve((factor, not upper), b)


@operation("linalg_matrix_exp")
def _matrix_exp(x: Any) -> Any:
    return jax.scipy.linalg.expm(x)


@operation("linalg_inv_ex")
def _inverse(x: Any, *, check_errors: bool = False) -> Any:
    return jnp.linalg.inv(x), jnp.zeros(x.shape[:-2], jnp.int32)


@operation("_linalg_slogdet")
def _slogdet(x: Any) -> Any:
    sign, log_size = jnp.linalg.slogdet(x)
    return sign, log_size, *_factored(x)


@operation("_linalg_det")
def _det(x: Any) -> Any:
    return jnp.linalg.det(x), *_factored(x)


def _factored(x: Any) -> tuple[Any, Any]:
    """Return the packed LU factors and torch's pivots, which count from one."""
    factors, pivots, _ = jax.lax.linalg.lu(x)
    return factors, pivots + 1


@operation("linalg_lu_solve")
def _lu_solve(factors: Any, pivots: Any, b: Any, *, left: bool = True, adjoint: bool = False) -> Any:
    if not left:
        flipped = _lu_solve(factors, pivots, jnp.swapaxes(b, -1, -2), adjoint=not adjoint)
        return jnp.swapaxes(flipped, -1, -2)
    order = jax.lax.linalg.lu_pivots_to_permutation(pivots - 1, factors.shape[-1])
    shape = jnp.broadcast_shapes(factors.shape[:-2], b.shape[:-2])
    factors = jnp.broadcast_to(factors, (*shape, *factors.shape[-2:]))
    b = jnp.broadcast_to(b, (*shape, *b.shape[-2:]))
    order = jnp.broadcast_to(order, (*shape, order.shape[-1]))
    solve = jax.lax.linalg.triangular_solve
    if adjoint:  # A' = U' L' P
        y = solve(factors, b, left_side=True, lower=False, transpose_a=True)
        y = solve(factors, y, left_side=True, lower=True, transpose_a=True, unit_diagonal=True)
        return jnp.take_along_axis(y, jnp.argsort(order, -1)[..., None], -2)
    y = jnp.take_along_axis(b, order[..., None], -2)
    y = solve(factors, y, left_side=True, lower=True, unit_diagonal=True)
    return solve(factors, y, left_side=True, lower=False)


@operation("linalg_lu_factor_ex")
def _lu_factor(x: Any, *, pivot: bool = True, check_errors: bool = False) -> Any:
    return *_factored(x), jnp.zeros(x.shape[:-2], jnp.int32)


@operation("_linalg_solve_ex")
def _solve(a: Any, b: Any, *, left: bool = True, check_errors: bool = False) -> Any:
    factors, pivots = _factored(a)
    column = b.ndim == 1 or (b.ndim == a.ndim - 1 and b.shape == a.shape[:-1])
    solution = _lu_solve(factors, pivots, b[..., None] if column else b, left=left)
    return solution[..., 0] if column else solution, factors, pivots, jnp.zeros(a.shape[:-2], jnp.int32)


@operation("linalg_qr")
def _qr(x: Any, mode: str = "reduced") -> Any:
    return tuple(jnp.linalg.qr(x, mode))


@operation("linalg_householder_product")
def _householder_product(x: Any, tau: Any) -> Any:
    return jax.lax.linalg.householder_product(x, tau)


@operation("_linalg_eigh")
def _eigh(x: Any, UPLO: str = "L", compute_v: bool = True) -> Any:
    if not compute_v:
        return jnp.linalg.eigvalsh(x, UPLO, symmetrize_input=False), jnp.zeros((0,), x.dtype)
    return tuple(jnp.linalg.eigh(x, UPLO, symmetrize_input=False))


@operation("_linalg_svd")
def _svd(x: Any, full_matrices: bool = False, compute_uv: bool = True, *, driver: Any = None) -> Any:
    if not compute_uv:
        empty = jnp.zeros((0,), x.dtype)
        return empty, jnp.linalg.svd(x, compute_uv=False), empty
    return tuple(jnp.linalg.svd(x, full_matrices=full_matrices))


@operation("_cdist_forward")
def _distances(x: Any, y: Any, p: float, mode: Any = None) -> Any:
    sizes = jnp.abs(x[..., :, None, :] - y[..., None, :, :])
    if p == 0:
        return (sizes != 0).sum(-1).astype(x.dtype)
    return sizes.max(-1) if p == float("inf") else (sizes**p).sum(-1) ** (1 / p)


@operation("_cdist_backward")
def _distances_backward(grad: Any, x: Any, y: Any, p: float, distances: Any) -> Any:
    difference, distance = x[..., :, None, :] - y[..., None, :, :], distances[..., None]
    if p == float("inf"):
        slope = jnp.sign(difference) * (jnp.abs(difference) == distance)
    elif p == 0:
        slope = jnp.zeros_like(difference)
    else:  # nought where two rows are the same, as in torch
        apart = distance > 0
        sizes = jnp.where(difference == 0, 1, jnp.abs(difference))
        slope = jnp.sign(difference) * (sizes / jnp.where(apart, distance, 1)) ** (p - 1) * apart
    return (grad[..., None] * slope).sum(-2)
