"""From a batch to the student's inputs: scaling, conditioning, label dropout. Done once per step, before any call."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion.schedules import Schedule


class Network(NamedTuple):
    """A network as distillation knows it.

    apply(params, x, logsnr, cond, *, key=None, train=False) -> prediction, of x's shape, of kind `prediction`
    (diffusion.predictions) under `schedule`. num_classes: 0 where the network takes no label. cond_keys: what it takes in cond.
    """

    apply: object
    schedule: Schedule
    prediction: str
    num_classes: int = 0
    cond_keys: tuple[str, ...] = ()


def clean(batch: dict[str, Array]) -> Float[Array, "b f h w c"]:
    """The batch's clips in [-1, 1], float32. uint8 travels to the device and is scaled here."""
    video = batch["video"]
    if video.dtype == jnp.uint8:
        return video.astype(jnp.float32) / 127.5 - 1.0
    return video.astype(jnp.float32)


def drop_labels(key: Array, label: Int[Array, " b"], probability: float, num_classes: int) -> Int[Array, " b"]:
    """Labels with a share replaced by `num_classes`, the index that means "no class" (classifier-free guidance)."""
    return jnp.where(jax.random.bernoulli(key, probability, label.shape), num_classes, label)


def condition(network: Network, batch: dict[str, Array], key: Array, drop: float = 0.0) -> dict[str, Array]:
    """The network's conditioning from a batch: labels, some dropped, where it takes them."""
    if not network.num_classes:
        return {}
    return {"label": drop_labels(key, batch["label"], drop, network.num_classes)}
