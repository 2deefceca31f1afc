"""Random operations: each takes a key, and the shape and dtype of what torch drew, before the operation's own arguments."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma

from unigen.engines.operations.table import operation

__all__: list[str] = []


@operation("normal.default", "normal_functional", random=True)
def _normal_in_place(key: Any, shape: Any, dtype: Any, /, x: Any, mean: Any = 0.0, std: Any = 1.0, **_: Any) -> Any:
    return _affine(jax.random.normal(key, shape, dtype), mean, std)


@operation("normal.Tensor_float", "normal.float_Tensor", "normal.Tensor_Tensor", random=True)
def _normal(key: Any, shape: Any, dtype: Any, /, mean: Any = 0.0, std: Any = 1.0, **_: Any) -> Any:
    return _affine(jax.random.normal(key, shape, dtype), mean, std)


@operation("normal.float_float", random=True)
def _normal_of_numbers(key: Any, shape: Any, dtype: Any, /, mean: Any, std: Any, *_: Any, **__: Any) -> Any:
    return _affine(jax.random.normal(key, shape, dtype), mean, std)


def _affine(noise: Any, mean: Any, std: Any) -> Any:
    if isinstance(mean, float | int) and isinstance(std, float | int) and mean == 0 and std == 1:
        return noise
    return mean + std * noise


@operation("randn", "randn_like", random=True)
def _randn(key: Any, shape: Any, dtype: Any, /, *_: Any, **__: Any) -> Any:
    return jax.random.normal(key, shape, dtype)


@operation("rand", "rand_like", random=True)
def _rand(key: Any, shape: Any, dtype: Any, /, *_: Any, **__: Any) -> Any:
    return jax.random.uniform(key, shape, dtype)


@operation("uniform", random=True)
def _uniform(key: Any, shape: Any, dtype: Any, /, x: Any, low: Any = 0.0, high: Any = 1.0, **_: Any) -> Any:
    return low + (high - low) * jax.random.uniform(key, shape, dtype)


@operation("bernoulli.default", random=True)
def _bernoulli(key: Any, shape: Any, dtype: Any, /, p: Any, **_: Any) -> Any:
    return (jax.random.uniform(key, shape, p.dtype) < p).astype(dtype)


@operation("bernoulli.p", "bernoulli.float", random=True)
def _bernoulli_of(key: Any, shape: Any, dtype: Any, /, x: Any, p: Any = 0.5, **_: Any) -> Any:
    return jax.random.bernoulli(key, p, shape).astype(dtype)


@operation("bernoulli.Tensor", random=True)
def _bernoulli_in_place(key: Any, shape: Any, dtype: Any, /, x: Any, p: Any, **_: Any) -> Any:
    return (jax.random.uniform(key, shape, p.dtype) < p).astype(dtype)


@operation("multinomial", random=True)
def _multinomial(key: Any, shape: Any, dtype: Any, /, p: Any, samples: int, replacement: bool = False, **_: Any) -> Any:
    log_p = jnp.log(p)
    if replacement or samples == 1:
        rows = jax.random.categorical(key, log_p, -1, (samples, *p.shape[:-1]))
        return jnp.moveaxis(rows, 0, -1)
    # without replacement: the order of Gumbel-perturbed logits (Kool, van Hoof & Welling 2019)
    return jnp.argsort(-(log_p + jax.random.gumbel(key, p.shape, p.dtype)), -1)[..., :samples]


@operation("exponential", random=True)
def _exponential(key: Any, shape: Any, dtype: Any, /, x: Any, rate: Any = 1.0, **_: Any) -> Any:
    return jax.random.exponential(key, shape, dtype) / rate


@operation("cauchy", random=True)
def _cauchy(key: Any, shape: Any, dtype: Any, /, x: Any, median: Any = 0.0, sigma: Any = 1.0, **_: Any) -> Any:
    return median + sigma * jax.random.cauchy(key, shape, dtype)


@operation("log_normal", random=True)
def _log_normal(key: Any, shape: Any, dtype: Any, /, x: Any, mean: Any = 1.0, std: Any = 2.0, **_: Any) -> Any:
    return jnp.exp(mean + std * jax.random.normal(key, shape, dtype))


@operation("geometric", random=True)
def _geometric(key: Any, shape: Any, dtype: Any, /, x: Any, p: Any, **_: Any) -> Any:
    return jax.random.geometric(key, p, shape).astype(dtype)


@operation("_standard_gamma", random=True)
def _standard_gamma(key: Any, shape: Any, dtype: Any, /, alpha: Any, **_: Any) -> Any:
    return jax.random.gamma(key, alpha, shape, dtype)


@operation("_standard_gamma_grad")
def _standard_gamma_grad(alpha: Any, value: Any) -> Any:
    # by its series to rounding, where torch's own approximation has a relative error of up to 5e-4
    return jax.lax.random_gamma_grad(alpha, value)


@operation("_dirichlet_grad")
def _dirichlet_grad(x: Any, alpha: Any, total: Any) -> Any:
    """Return dx/da / (1 - x) of a Beta(a, b) variable x at a fixed level I_x(a, b) of its distribution, b = total - a.

    I_x(a, b) = p(x) x (1 - x) / a F, F the continued fraction (DLMF 8.17.22), so that dx/da = -(dI/da) / p(x) needs the
    logarithmic derivative of F alone; above the mean the complement I_{1-x}(b, a) is taken in its place, where F converges.
    """
    total = jnp.broadcast_to(total, jnp.shape(x))
    beta = total - alpha
    below = x * (total + 2) < alpha + 1
    first, second, at = (jnp.where(below, *both) for both in ((alpha, beta), (beta, alpha), (x, 1 - x)))
    along = jnp.where(below, 1, 0).astype(first.dtype)  # which parameter of F is alpha
    fraction, slope = jax.jvp(lambda f, s: _beta_fraction(at, f, s), (first, second), (along, 1 - along))
    level = jnp.log(jnp.maximum(x, jnp.finfo(x.dtype).tiny)) - digamma(alpha) + digamma(total) + slope / fraction
    return jnp.where(below, -x / alpha * (level - 1 / alpha), x / beta * level) * fraction


def _beta_fraction(x: Any, a: Any, b: Any, terms: int = 256) -> Any:
    """Return 1 / (1 + d_1 / (1 + d_2 / (1 + ...))) of DLMF 8.17.22 by its first 2 ``terms`` coefficients, last first."""

    def with_two(index: Any, tail: Any) -> Any:
        m = (terms - 1 - index).astype(x.dtype)
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        even = (m + 1) * (b - m - 1) * x / ((a + 2 * m + 1) * (a + 2 * m + 2))
        return 1 + odd / (1 + even / tail)

    return 1 / jax.lax.fori_loop(0, terms, with_two, jnp.ones_like(x))


@operation("_sample_dirichlet", random=True)
def _sample_dirichlet(key: Any, shape: Any, dtype: Any, /, alpha: Any, **_: Any) -> Any:
    return jax.random.dirichlet(key, alpha, shape[:-1], dtype)


@operation("poisson", random=True)
def _poisson(key: Any, shape: Any, dtype: Any, /, rate: Any, **_: Any) -> Any:
    return jax.random.poisson(key, rate, shape).astype(dtype)


@operation("binomial", random=True)
def _binomial(key: Any, shape: Any, dtype: Any, /, count: Any, p: Any, **_: Any) -> Any:
    return jax.random.binomial(key, count, p, shape, dtype)


@operation("randint", "randint.low", random=True)
def _randint(key: Any, shape: Any, dtype: Any, /, *bounds: Any, **_: Any) -> Any:
    low, high = (0, bounds[0]) if isinstance(bounds[1], list | tuple) else bounds[:2]
    return jax.random.randint(key, shape, low, high, dtype)


@operation("randint_like", "randint_like.low_dtype", random=True)
def _randint_like(key: Any, shape: Any, dtype: Any, /, x: Any, *bounds: Any, **_: Any) -> Any:
    low, high = (0, bounds[0]) if len(bounds) == 1 else bounds[:2]
    return jax.random.randint(key, shape, low, high, jax.dtypes.canonicalize_dtype(jnp.int64))


@operation("randperm", random=True)
def _randperm(key: Any, shape: Any, dtype: Any, /, size: int, **_: Any) -> Any:
    return jax.random.permutation(key, size).astype(dtype)
