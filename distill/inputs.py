"""From a batch to the student's inputs: scaling, conditioning, label dropout, a noised low clip, a drawn guidance scale. Once
per step.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion import cascade, predictions, sampling
from diffusion.schedules import Schedule


class Network(NamedTuple):
    """A network as distillation knows it.

    apply(params, x, logsnr, cond, *, key=None, train=False) -> prediction, of x's shape, of kind `prediction`
    (diffusion.predictions) under `schedule`. num_classes: 0 where the network takes no label. cond_keys: what it takes in cond.
    forced: whether it is to answer every block of frames after the clip's own clean frames, given as cond["history"] (teacher
    forcing), not after those of its input.
    teacher: the network of frozen["teacher"], and of a critic that begins as it, under the same schedule and of the same
    classes; None: this one.
    augmentation: (low, high), where training draws the log-SNR of the noise in the clip to upsample; None: there is no noise.
    noise: (key, shape, dtype) -> the noise of the forward process, in training and in sampling alike (diffusion.noise).
    """

    apply: object
    schedule: Schedule
    prediction: str | predictions.Coefficients
    num_classes: int = 0
    cond_keys: tuple[str, ...] = ()
    forced: bool = False
    teacher: "Network | None" = None
    augmentation: tuple[float, float] | None = None
    noise: Callable[..., Array] = sampling.normal

    @property
    def judge(self) -> "Network":
        """Whose weights the teacher's and the critic's are."""
        return self if self.teacher is None else self.teacher

    def denoised(self, prediction: Array, x: Array, logsnr: Array) -> Array:
        """The estimate of the clean clip in an answer of the network's."""
        return predictions.denoised(self.prediction, prediction, x, logsnr, self.schedule)

    def predicting(self, kind: str | predictions.Coefficients) -> "Network":
        """The same network, its answer converted to another prediction. The conversion depends on x and the level: a derivative
        by them needs it in the network.
        """

        def apply(params, x, logsnr, cond, **options):
            value = self.apply(params, x, logsnr, cond, **options)
            return predictions.convert(value, x, logsnr, self.schedule, self.prediction, kind)

        return self._replace(apply=apply, prediction=kind)


def clean(batch: dict[str, Array]) -> Float[Array, "b f h w c"]:
    """The batch's clips in [-1, 1], float32 (float64 stays). uint8 travels to the device and is scaled here."""
    return scaled(batch["video"])


def scaled(video: Array) -> Float[Array, "b f h w c"]:
    if video.dtype == jnp.uint8:
        return video.astype(jnp.float32) / 127.5 - 1.0
    return video.astype(jnp.promote_types(video.dtype, jnp.float32))


def drop_labels(key: Array, label: Int[Array, " b"], probability: float, num_classes: int) -> Int[Array, " b"]:
    """Labels with a share replaced by `num_classes`, the index that means "no class" (classifier-free guidance)."""
    return jnp.where(jax.random.bernoulli(key, probability, label.shape), num_classes, label)


def condition(network: Network, batch: dict[str, Array], key: Array, drop: float = 0.0) -> dict[str, Any]:
    """The network's conditioning from a batch: labels, some dropped, the clip to upsample, noised, and its history, where it
    takes them.

    Drawn once a step: teacher and student see the same noise in `low`, and are told the same level.
    """
    cond = {}
    if network.num_classes:
        cond["label"] = drop_labels(key, batch["label"], drop, network.num_classes)
    if "low" in network.cond_keys:
        low, key_level, key_noise = scaled(batch["low"]), *jax.random.split(jax.random.fold_in(key, 1))
        level = jnp.inf
        if network.augmentation is not None:
            least, most = network.augmentation
            level = jax.random.uniform(key_level, low.shape[:1], low.dtype, least, most)
        given = cascade.conditioning(low, level, batch["video"].shape[1:], network.schedule, key_noise)
        cond |= {name: value for name, value in given.items() if name in network.cond_keys}
    if network.forced:
        clips, level = clean(batch), network.schedule.logsnr_end
        cond["history"] = {
            "clip": clips * network.schedule.alpha(jnp.float32(level)).astype(clips.dtype),
            "level": jnp.full(clips.shape[:1], level, jnp.float32),
        }
    return cond


def conditioned(
    network: Network, batch, key: Array, hyper, label_dropout: float, guidance_range: Sequence[float] | None
) -> tuple[dict[str, Array], dict[str, Array], Array | float]:
    """(the student's cond, its teacher's, the teacher's g): hyper["guidance"], or a g per clip that the student is told."""
    if guidance_range is None:
        cond = condition(network, batch, key, label_dropout)
        return cond, cond, hyper.get("guidance", 1.0)
    low, high = guidance_range
    key_label, key_scale = jax.random.split(key)
    cond = condition(network, batch, key_label, label_dropout)
    scale = jax.random.uniform(key_scale, batch["video"].shape[:1], minval=low, maxval=high)
    return {**cond, "guidance": scale}, cond, scale


def check_range(network: Network, guidance_range: Sequence[float] | None) -> tuple[float, float] | None:
    """A range of g, held against what the network takes; ValueError if it doesn't fit."""
    if guidance_range is None:
        return None
    if not network.num_classes:
        raise ValueError(
            f"guidance_range {tuple(guidance_range)}: the teacher has no classes to guide by; expected None"
        )
    if "guidance" not in network.cond_keys:
        raise ValueError(
            f"guidance_range {tuple(guidance_range)}: the student must take cond 'guidance', its network takes"
            f" {list(network.cond_keys)}"
        )
    if not (len(guidance_range) == 2 and -math.inf < guidance_range[0] <= guidance_range[1] < math.inf):
        raise ValueError(f"guidance_range: expected finite (low, high) with low <= high, got {tuple(guidance_range)}")
    return tuple(guidance_range)
