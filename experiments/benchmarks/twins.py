"""Hand-written twins in JAX: NumPyro programs under its ``SVI``, and wake-sleep algorithms, which NumPyro lacks, with optax.

Each takes the batches (count, rows, D) and returns ``run(n)``: n steps in one ``lax.scan``, compiled once for each n, which
collects the losses as ``SVI.run`` does (discarded, XLA would not compute them). With several seeds a step is one of each, on
other batches, by ``vmap``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from jax.nn import log_sigmoid, relu, softplus

__all__ = ["TWINS"]

Run = Callable[[int], Any]
RATE = 1e-3


def dense(key: Any, inputs: int, outputs: int) -> dict[str, Any]:
    bound = (6 / (inputs + outputs)) ** 0.5
    return {"w": jax.random.uniform(key, (inputs, outputs), minval=-bound, maxval=bound), "b": jnp.zeros(outputs)}


def apply(layer: dict[str, Any], x: Any) -> Any:
    return x @ layer["w"] + layer["b"]


def mlp(key: Any, *sizes: int) -> list[dict[str, Any]]:
    keys = jax.random.split(key, len(sizes))
    return [dense(k, a, b) for k, a, b in zip(keys, sizes, sizes[1:], strict=False)]


def forward(layers: list[dict[str, Any]], x: Any, activation: Any = relu) -> Any:
    for layer in layers[:-1]:
        x = activation(apply(layer, x))
    return apply(layers[-1], x)


def scan_steps(step: Callable[[Any, Any], tuple[Any, Any]], state: Any, data: Any, seeds: int = 1) -> Run:
    """Return run(n): n steps over the batches in turn, in one compiled scan. A step returns the state and its losses."""
    on_device, held = jnp.asarray(data), [state]

    @partial(jax.jit, static_argnums=1, donate_argnums=0)
    def many(state: Any, n: int) -> Any:
        def body(state: Any, index: Any) -> Any:
            if seeds == 1:
                return step(state, on_device[index % len(on_device)])
            return jax.vmap(step)(state, on_device[(index + jnp.arange(seeds)) % len(on_device)])

        return jax.lax.scan(body, state, jnp.arange(n))

    def run(n: int) -> None:
        held[0], _ = jax.block_until_ready(many(held[0], n))

    return run


Network = Callable[[Any, Any], Any]  # of parameters and a value


def autoencoder(
    decoder0: Any, encoder0: Any, latent: int, bits: bool, decode: Network, encode: Network, seeds: int = 1
) -> Callable[[Any], Run]:
    """The VAE under NumPyro's ``SVI`` with ``Trace_ELBO``."""

    def model(x: Any) -> None:
        decoder = numpyro.param("decoder", decoder0)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(latent), 1.0).to_event(1))
            raw = decode(decoder, z)
            if bits:
                numpyro.sample("x", dist.Bernoulli(logits=raw).to_event(1), obs=x)
            else:
                scale = jnp.exp(numpyro.param("log_scale", -1.0))
                numpyro.sample("x", dist.Normal(raw, scale).to_event(1), obs=x)

    def guide(x: Any) -> None:
        encoder = numpyro.param("encoder", encoder0)
        with numpyro.plate("data", len(x)):
            loc, raw = jnp.split(encode(encoder, x), 2, -1)
            numpyro.sample("z", dist.Normal(loc, softplus(raw + 0.5413) + 1e-4).to_event(1))

    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(RATE), numpyro.infer.Trace_ELBO())

    def make(data: Any) -> Run:
        keys = jax.random.split(jax.random.PRNGKey(2), seeds)
        begin = lambda key: svi.init(key, jnp.asarray(data[0]))  # noqa: E731
        state = begin(keys[0]) if seeds == 1 else jax.vmap(begin)(keys)
        return scan_steps(svi.update, state, data, seeds)

    return make


def dense_autoencoder(
    dimension: int, hidden: int, latent: int, bits: bool, activation: Any, seeds: int = 1
) -> Callable[[Any], Run]:
    keys = jax.random.split(jax.random.PRNGKey(0), 2)
    decoder, encoder = mlp(keys[0], latent, hidden, dimension), mlp(keys[1], dimension, hidden, 2 * latent)
    network = partial(forward, activation=activation)
    return autoencoder(decoder, encoder, latent, bits, network, network, seeds)


def convolutional_autoencoder(maps: int, width: int, latent: int) -> Callable[[Any], Run]:
    """4 x 4 kernels of stride 2 over 28 x 28 images, as ``unigen.networks`` has them, in JAX's order of dimensions."""
    keys = jax.random.split(jax.random.PRNGKey(0), 7)
    size, layout = 7 * 7 * 2 * maps, ("NHWC", "HWIO", "NHWC")

    def kernel(key: Any, inputs: int, outputs: int) -> dict[str, Any]:
        bound = (6 / (16 * inputs)) ** 0.5
        w = jax.random.uniform(key, (4, 4, inputs, outputs), minval=-bound, maxval=bound)
        return {"w": w, "b": jnp.zeros(outputs)}

    def down(layer: Any, x: Any) -> Any:
        return jax.lax.conv_general_dilated(x, layer["w"], (2, 2), "SAME", dimension_numbers=layout) + layer["b"]

    def up(layer: Any, x: Any) -> Any:
        return jax.lax.conv_transpose(x, layer["w"], (2, 2), "SAME", dimension_numbers=layout)

    encoder = {"one": kernel(keys[0], 1, maps), "two": kernel(keys[1], maps, 2 * maps)}
    encoder |= {"dense": dense(keys[2], size, width), "head": dense(keys[3], width, 2 * latent)}
    decoder = {"dense": dense(keys[4], latent, size), "one": kernel(keys[5], 2 * maps, maps)}
    decoder |= {"two": kernel(keys[6], maps, 1), "bias": jnp.zeros(28 * 28)}
    activation = partial(jax.nn.leaky_relu, negative_slope=0.2)

    def encode(p: Any, x: Any) -> Any:
        features = activation(down(p["two"], activation(down(p["one"], x.reshape(-1, 28, 28, 1)))))
        return apply(p["head"], activation(apply(p["dense"], features.reshape(-1, size))))

    def decode(p: Any, z: Any) -> Any:
        features = activation(apply(p["dense"], z)).reshape(-1, 7, 7, 2 * maps)
        features = activation(up(p["one"], features) + p["one"]["b"])
        return up(p["two"], features).reshape(len(z), -1) + p["bias"]

    return autoencoder(decoder, encoder, latent, True, decode, encode)


def normal(value: Any, loc: Any, scale: Any) -> Any:
    return (-0.5 * ((value - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)).sum(-1)


def bernoulli(value: Any, logits: Any) -> Any:
    return (value * log_sigmoid(logits) + (1 - value) * log_sigmoid(-logits)).sum(-1)


def phased(
    losses: list[tuple[Callable[..., Any], tuple[str, ...]]], parameters: dict[str, Any]
) -> Callable[[Any], Run]:
    """Descend each loss along the named groups in turn, one Adam a group."""
    rule = optax.adam(RATE)

    def step(carry: Any, x: Any) -> Any:
        parameters, moments, key = carry
        values = []
        for loss, moved in losses:
            key, own = jax.random.split(key)
            rest = {name: value for name, value in parameters.items() if name not in moved}
            value, slopes = jax.value_and_grad(
                lambda part, rest=rest, own=own, loss=loss: loss({**rest, **part}, x, own)
            )({name: parameters[name] for name in moved})
            values.append(value)
            for name in moved:
                change, later = rule.update(slopes[name], moments[name])
                moments = {**moments, name: later}
                parameters = {**parameters, name: optax.apply_updates(parameters[name], change)}
        return (parameters, moments, key), jnp.stack(values)

    def make(data: Any) -> Run:
        moments = {name: rule.init(value) for name, value in parameters.items()}
        state = jax.tree.map(jnp.array, (parameters, moments, jax.random.PRNGKey(1)))
        return scan_steps(step, state, data)

    return make


def reweighted(dimension: int, hidden: int, latent: int, particles: int) -> Callable[[Any], Run]:
    keys = jax.random.split(jax.random.PRNGKey(0), 2)
    parameters = {"theta": mlp(keys[0], latent, hidden, dimension), "phi": mlp(keys[1], dimension, hidden, 2 * latent)}

    def inferred(phi: Any, x: Any) -> tuple[Any, Any]:
        loc, raw = jnp.split(forward(phi, x), 2, -1)
        return loc, softplus(raw + 0.5413) + 1e-4

    def wake(p: Any, x: Any, key: Any) -> Any:
        loc, scale = inferred(p["phi"], x)
        z = jax.lax.stop_gradient(loc + scale * jax.random.normal(key, (particles, *loc.shape)))
        log_p = bernoulli(x, forward(p["theta"], z)) + normal(z, 0.0, 1.0)
        log_q = normal(z, loc, scale)
        weights = jax.lax.stop_gradient(jax.nn.softmax(log_p - log_q, 0))
        return -(weights * (log_p + log_q)).sum(0).mean()

    def sleep(p: Any, x: Any, key: Any) -> Any:
        first, second = jax.random.split(key)
        z = jax.random.normal(first, (len(x), latent))
        dreamt = jax.random.bernoulli(second, jax.nn.sigmoid(forward(p["theta"], z))).astype(x.dtype)
        return -normal(z, *inferred(p["phi"], dreamt)).mean()

    return phased([(wake, ("theta", "phi")), (sleep, ("phi",))], parameters)


def belief(dimension: int, widths: tuple[int, ...]) -> Callable[[Any], Run]:
    sizes = (dimension, *widths)
    keys = jax.random.split(jax.random.PRNGKey(0), 2 * len(widths))
    up = [dense(k, a, b) for k, a, b in zip(keys, sizes, sizes[1:], strict=False)]
    down = [dense(k, b, a) for k, a, b in zip(keys[len(widths) :], sizes, sizes[1:], strict=False)]
    parameters = {"theta": {"down": down, "top": jnp.zeros(sizes[-1])}, "phi": {"up": up}}

    def draw(key: Any, logits: Any) -> Any:
        return jax.lax.stop_gradient(jax.random.bernoulli(key, jax.nn.sigmoid(logits)).astype(jnp.float32))

    def wake(p: Any, x: Any, key: Any) -> Any:
        layers = [x]
        for k, layer in zip(jax.random.split(key, len(widths)), p["phi"]["up"], strict=True):
            layers.append(draw(k, apply(layer, 2 * layers[-1] - 1)))
        total = bernoulli(layers[-1], p["theta"]["top"])
        for layer, above, below in zip(p["theta"]["down"], layers[1:], layers, strict=False):
            total = total + bernoulli(below, apply(layer, 2 * above - 1))
        return -total.mean()

    def sleep(p: Any, x: Any, key: Any) -> Any:
        keys = jax.random.split(key, len(sizes))
        layers = [draw(keys[0], jnp.broadcast_to(p["theta"]["top"], (len(x), sizes[-1])))]
        for k, layer in zip(keys[1:], reversed(p["theta"]["down"]), strict=True):
            layers.append(draw(k, apply(layer, 2 * layers[-1] - 1)))
        layers = layers[::-1]
        pairs = zip(p["phi"]["up"], layers, layers[1:], strict=False)
        return -sum(bernoulli(above, apply(layer, 2 * below - 1)) for layer, below, above in pairs).mean()

    return phased([(wake, ("theta",)), (sleep, ("phi",))], parameters)


TWINS: dict[str, Callable[[Any], Run]] = {
    "2-D toy pair, 64 hidden, z = 2": lambda data: dense_autoencoder(2, 64, 2, False, jnp.tanh)(data),
    "VAE 784-400-20": lambda data: dense_autoencoder(784, 400, 20, True, relu)(data),
    "RWS, 8 particles, 784-256-20": lambda data: reweighted(784, 256, 20, 8)(data),
    "wake-sleep, SBN 200-200-200": lambda data: belief(784, (200, 200, 200))(data),
    "convolutional VAE 28x28": lambda data: convolutional_autoencoder(32, 256, 20)(data),
    "10 seeds of the toy pair": lambda data: dense_autoencoder(2, 64, 2, False, jnp.tanh, seeds=10)(data),
}
