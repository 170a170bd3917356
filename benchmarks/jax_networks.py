"""The same networks in plain JAX, on one sample, with the weights of the torch module.

``HEADS`` and ``TAILS`` mirror ``Case.head`` and ``Case.tail``; ``check`` holds every twin against torch.
"""

# A module call is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from jax import Array, lax
from jax import numpy as jnp
from networks import Case

Weights = dict[str, Array]


def weights(model: torch.nn.Module) -> Weights:
    """Parameters and buffers by their torch names."""
    return {name: jnp.asarray(np.array(tensor)) for name, tensor in model.state_dict().items()}


def linear(p: Weights, name: str, x: Array) -> Array:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def conv(p: Weights, name: str, x: Array, *, stride: int = 1, padding: int = 0, dilation: int = 1) -> Array:
    """A convolution of torch's layout in one or two dimensions."""
    kernel = p[f"{name}.weight"]
    dims = kernel.ndim - 2
    out = lax.conv_general_dilated(
        x[None], kernel, (stride,) * dims, [(padding, padding)] * dims, rhs_dilation=(dilation,) * dims
    )[0]
    return out + _channels(p[f"{name}.bias"], out) if f"{name}.bias" in p else out


def conv_transpose(p: Weights, name: str, x: Array, *, stride: int, padding: int = 0, extra: int = 0) -> Array:
    """``nn.ConvTranspose2d``: the input spread out, the kernel flipped."""
    kernel = jnp.flip(p[f"{name}.weight"], (2, 3)).swapaxes(0, 1)
    edge = kernel.shape[-1] - 1 - padding
    out = lax.conv_general_dilated(x[None], kernel, (1, 1), [(edge, edge + extra)] * 2, lhs_dilation=(stride, stride))
    return out[0] + _channels(p[f"{name}.bias"], out[0])


def _channels(values: Array, like: Array) -> Array:
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def layer_norm(p: Weights, name: str, x: Array) -> Array:
    """With ``var``: written with the centred input used twice, jit of its Jacobian is wrong by 20 % (JAX 0.10.2)."""
    scaled = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]


def batch_norm(p: Weights, name: str, x: Array) -> Array:
    scale = p[f"{name}.weight"] * lax.rsqrt(p[f"{name}.running_var"] + 1e-5)
    return (x - _channels(p[f"{name}.running_mean"], x)) * _channels(scale, x) + _channels(p[f"{name}.bias"], x)


def gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def max_pool(x: Array) -> Array:
    """2×2 by reshaping: as fast as ``reduce_window``, which asdex does not know."""
    channels, height, width = x.shape
    return x.reshape(channels, height // 2, 2, width // 2, 2).max((2, 4))


def chain(p: Weights, name: str, count: int, x: Array, activation: Callable[[Array], Array]) -> Array:
    """A Sequential of ``count`` linear layers at even places, an activation between them."""
    for i in range(count):
        x = linear(p, f"{name}{2 * i}", x)
        x = activation(x) if i < count - 1 else x
    return x


def mlp_block(p: Weights, name: str, x: Array) -> Array:
    h = gelu(linear(p, f"{name}.fc1", layer_norm(p, f"{name}.norm", x)))
    return x + linear(p, f"{name}.fc2", h)


def residual_mlp(p: Weights, x: Array) -> Array:
    for i in range(7):
        x = mlp_block(p, f"blocks.{i}", x)
    return x


def transformer_block(p: Weights, name: str, x: Array, heads: int = 4) -> Array:
    tokens, width = x.shape
    h = linear(p, f"{name}.attention.qkv", layer_norm(p, f"{name}.norm", x))
    q, k, v = h.reshape(tokens, 3, heads, width // heads).transpose(1, 2, 0, 3)
    scores = jax.nn.softmax(q @ k.swapaxes(1, 2) / np.sqrt(width // heads), axis=-1)
    mixed = (scores @ v).swapaxes(0, 1).reshape(tokens, width)
    return mlp_block(p, f"{name}.mlp", x + linear(p, f"{name}.attention.proj", mixed))


def mixer_block(p: Weights, name: str, x: Array) -> Array:
    mixed = chain(p, f"{name}.token_mlp.", 2, layer_norm(p, f"{name}.norm1", x).T, gelu).T
    x = x + mixed
    return x + chain(p, f"{name}.channel_mlp.", 2, layer_norm(p, f"{name}.norm2", x), gelu)


def recurrent(p: Weights, x: Array) -> Array:
    h = jnp.zeros(64, x.dtype)
    for step in x:
        h = jnp.tanh(linear(p, "enter", step) + linear(p, "recur", h))
    return linear(p, "read", h)


def gru(p: Weights, x: Array) -> Array:
    h = jnp.zeros(32, x.dtype)
    states = []
    for step in x:
        a = step @ p["gru.weight_ih_l0"].T + p["gru.bias_ih_l0"]
        b = h @ p["gru.weight_hh_l0"].T + p["gru.bias_hh_l0"]
        (ar, az, an), (br, bz, bn) = jnp.split(a, 3), jnp.split(b, 3)
        update = jax.nn.sigmoid(az + bz)
        h = (1 - update) * jnp.tanh(an + jax.nn.sigmoid(ar + br) * bn) + update * h
        states.append(h)
    return linear(p, "read", jnp.stack(states))


def lstm(p: Weights, x: Array) -> Array:
    h = c = jnp.zeros(48, x.dtype)
    for step in x:
        i, f, g, o = jnp.split(linear(p, "gates", jnp.concatenate([step, h])), 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return h


def flow(p: Weights, x: Array) -> Array:
    for i in range(8):
        a, b = jnp.split(x, 2)
        if i % 2:
            a, b = b, a
        scale, shift = jnp.split(chain(p, f"layers.{i}.net.", 3, a, jax.nn.relu), 2)
        b = b * jnp.exp(jnp.tanh(scale)) + shift
        x = jnp.concatenate([b, a] if i % 2 else [a, b])
    return x


def sinusoid(p: Weights, x: Array) -> Array:
    for i in range(3):
        x = jnp.sin(6.0 * linear(p, f"layers.{i}", x))
    return linear(p, "last", x)


def conv_local(p: Weights, x: Array) -> Array:
    x = jax.nn.relu(conv(p, "0", x, padding=1))
    return conv(p, "4", jax.nn.relu(conv(p, "2", x, padding=1)), padding=1)


def conv_autoencoder(p: Weights, x: Array) -> Array:
    x = jax.nn.relu(conv(p, "encoder.0", x, stride=2, padding=1))
    x = jax.nn.relu(conv(p, "encoder.2", x, stride=2, padding=1))
    x = linear(p, "expand", linear(p, "encoder.5", x.ravel())).reshape(32, 7, 7)
    x = jax.nn.relu(conv_transpose(p, "decoder.1", jax.nn.relu(x), stride=2, padding=1))
    return conv_transpose(p, "decoder.3", x, stride=2, padding=1)


def unet(p: Weights, x: Array) -> Array:
    a = jax.nn.relu(conv(p, "down1.0", x, padding=1))
    b = jax.nn.relu(conv(p, "down2.0", max_pool(a), padding=1))
    c = jax.nn.relu(conv(p, "middle.0", max_pool(b), padding=1))
    b = jnp.concatenate([conv_transpose(p, "up2", c, stride=2), b])
    b = jax.nn.relu(conv(p, "merge2.0", b, padding=1))
    a = jnp.concatenate([conv_transpose(p, "up1", b, stride=2), a])
    return conv(p, "last", jax.nn.relu(conv(p, "merge1.0", a, padding=1)))


def wavenet(p: Weights, x: Array) -> Array:
    h = conv(p, "start", x)
    total = jnp.zeros_like(h)
    for i, d in enumerate((1, 2, 4, 8)):
        padded = jnp.pad(h, ((0, 0), (d, 0)))
        gate = jax.nn.sigmoid(conv(p, f"gates.{i}", padded, dilation=d))
        out = conv(p, f"mixes.{i}", jnp.tanh(conv(p, f"filters.{i}", padded, dilation=d)) * gate)
        total, h = total + out, h + out
    return conv(p, "end.3", jax.nn.relu(conv(p, "end.1", jax.nn.relu(total))))


def decoder_48(p: Weights, z: Array) -> Array:
    h = jax.nn.relu(linear(p, "expand", z)).reshape(64, 6, 6)
    for name in ("up1", "up2"):
        h = jax.nn.relu(conv_transpose(p, name, h, stride=2, padding=1))
    return jax.nn.sigmoid(conv_transpose(p, "up3", h, stride=2, padding=1))


def decoder_64(p: Weights, z: Array) -> Array:
    h = jax.nn.silu(linear(p, "expand", z)).reshape(32, 8, 8)
    for name in ("convs.0", "convs.1"):
        h = jax.nn.silu(conv(p, name, h.repeat(2, axis=1).repeat(2, axis=2), padding=1))
    return jnp.tanh(conv(p, "last", h.repeat(2, axis=1).repeat(2, axis=2), padding=1))


def vae_decoder(p: Weights, z: Array) -> Array:
    h = jax.nn.relu(chain(p, "fc.", 2, z, jax.nn.relu)).reshape(32, 7, 7)
    for place in (0, 3):
        h = conv_transpose(p, f"deconv.{place}", h, stride=2, padding=1, extra=1)
        h = jax.nn.leaky_relu(batch_norm(p, f"deconv.{place + 1}", h), 0.1)
    return jax.nn.sigmoid(conv(p, "deconv.6", h, padding=1))


def _residual(p: Weights, name: str, x: Array, stride: int) -> Array:
    h = jax.nn.relu(batch_norm(p, f"{name}.bn1", conv(p, f"{name}.conv1", x, stride=stride, padding=1)))
    h = batch_norm(p, f"{name}.bn2", conv(p, f"{name}.conv2", h, padding=1))
    if f"{name}.skip.0.weight" in p:
        x = batch_norm(p, f"{name}.skip.1", conv(p, f"{name}.skip.0", x, stride=stride))
    return jax.nn.relu(h + x)


def resnet(p: Weights, x: Array) -> Array:
    x = jax.nn.relu(batch_norm(p, "stem.1", conv(p, "stem.0", x, padding=1)))
    for i, stride in enumerate((1, 2, 2)):
        x = _residual(p, f"stages.{i}", x, stride)
    return linear(p, "head", x.mean((1, 2)))


def classifier(p: Weights, x: Array) -> Array:
    x = max_pool(jax.nn.relu(conv(p, "features.0", x, padding=1)))
    x = max_pool(jax.nn.relu(conv(p, "features.3", x, padding=1)))
    x = jax.nn.relu(linear(p, "classifier.0", x.ravel()))
    return linear(p, "classifier.3", x)


def _patches(p: Weights, x: Array) -> Array:
    return conv(p, "embed", x, stride=4).reshape(32, -1).T


HEADS: dict[str, Callable[[Weights, Array], Array]] = {
    "transformer_block": lambda p, x: transformer_block(p, "blocks.0", x),
    "mixer": lambda p, x: mixer_block(p, "blocks.0", _patches(p, x)),
}

TAILS: dict[str, Callable[[Weights, Array], Array]] = {
    "bottleneck": lambda p, x: chain(p, "", 4, x, jnp.tanh),
    "mlp_classifier": lambda p, x: chain(p, "", 3, x, jax.nn.relu),
    "mlp_tiny": lambda p, x: chain(p, "", 3, x, jnp.tanh),
    "mlp_tall": lambda p, x: chain(p, "", 3, x, jax.nn.relu),
    "mlp_square": lambda p, x: chain(p, "", 5, x, jnp.tanh),
    "transformer_block": lambda p, h: transformer_block(p, "blocks.1", h),
    "transformer": lambda p, x: transformer_block(p, "blocks.1", transformer_block(p, "blocks.0", x)),
    "mixer": lambda p, h: mixer_block(p, "blocks.1", h),
    **{
        f.__name__: f
        for f in (
            residual_mlp,
            recurrent,
            gru,
            lstm,
            flow,
            sinusoid,
            conv_local,
            conv_autoencoder,
            unet,
            wavenet,
            decoder_48,
            decoder_64,
            vae_decoder,
            resnet,
            classifier,
        )
    },
}


def twin(case: Case) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Head and tail of a case with its weights in them, on one sample; the tail returns a flat vector.

    Raises:
        AssertionError: the twin and the module disagree by more than 1e-4 of the largest value.
    """
    model = case.model()
    p = weights(model)
    before = HEADS.get(case.name)
    after = TAILS[case.name]

    def head(x: Array) -> Array:
        return before(p, x) if before else x

    def tail(h: Array) -> Array:
        return after(p, h).ravel()

    check(case, model, lambda x: tail(head(x)))
    return head, tail


def check(case: Case, model: torch.nn.Module, f: Callable[[Array], Array]) -> None:
    """Hold a twin against torch."""
    x = case.samples(0)[:2]
    with torch.no_grad():
        want: Any = case.tail(model, case.head(model, x)).flatten(1).numpy()
    got = np.asarray(jax.vmap(f)(jnp.asarray(x.numpy())))
    assert got.shape == want.shape, f"{case.name}: JAX gives {got.shape}, torch {want.shape}"
    error = float(np.abs(got - want).max() / np.abs(want).max())
    assert error < 1e-4, f"{case.name}: the JAX twin is off by {error:.1e}"
