"""Training of the metric classifier as a `Method`, and its use afterwards as a function of frames."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Num, PRNGKeyArray, PyTree

from distill import regression
from distill.inputs import clean
from distill.method import Method
from experiments.metrics.suite import Classify
from models.classifier import ClassifierDef


class Augmentation(NamedTuple):
    """The largest amounts of what is done to a frame; each frame draws its own, uniformly from none to these.

    gain: relative change of the brightness above black, both ways; blur: share of the frame that is replaced
    by its 3x3 binomial blur; noise: standard deviation of white noise on the [-1, 1] scale.

    Light on purpose: the verdict on a sample should not hang on the last bit of a pixel, but a classifier
    that sees through everything would rate a blurred sample as highly as a sharp one.
    """

    gain: float = 0.15
    blur: float = 0.5
    noise: float = 0.1


def augment(key: PRNGKeyArray, frames: Float[Array, "n h w c"], amount: Augmentation) -> Float[Array, "n h w c"]:
    """Frames in [-1, 1] with random gain, blur and noise; not clipped."""
    key_gain, key_blur, key_level, key_noise = jax.random.split(key, 4)
    each = (len(frames), 1, 1, 1)
    gain = 1 + amount.gain * jax.random.uniform(key_gain, each, minval=-1)
    blur = amount.blur * jax.random.uniform(key_blur, each)
    noise = amount.noise * jax.random.uniform(key_level, each)
    light = (frames + 1) * gain
    light = light + blur * (_smooth(_smooth(light, 1), 2) - light)
    return light - 1 + noise * jax.random.normal(key_noise, frames.shape)


def _smooth(frames: Float[Array, "n h w c"], axis: int) -> Float[Array, "n h w c"]:
    """[1, 2, 1] / 4 along an axis; the edge pixel stands for what is outside."""
    pad = [(0, 0)] * frames.ndim
    pad[axis] = (1, 1)
    padded = jnp.pad(frames, pad, mode="edge")
    size = frames.shape[axis]
    before, here, after = (jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3))
    return (before + 2 * here + after) / 4


def method(
    classifier: ClassifierDef,
    *,
    optimiser: optax.GradientTransformation,
    frames_per_clip: int = 2,
    ema: float = 0.999,
    smoothing: float = 0.1,
    gain: float = Augmentation().gain,
    blur: float = Augmentation().blur,
    noise: float = Augmentation().noise,
) -> Method:
    """Cross-entropy on random frames of clips; one phase, `train`.

    A batch is dict(video [b, f, h, w, c], label [b]); a step sees b * frames_per_clip frames. gain, blur and
    noise: see `Augmentation`. Metrics: loss (nats), accuracy (on the augmented frames), grad_norm.

    smoothing: share of the target that is spread over all classes (Szegedy et al. 2016, sec. 7). The network
    is to measure, not to win: without it features grow for as long as it trains, and every blot is a certain
    digit.
    """
    if not (type(frames_per_clip) is int and frames_per_clip > 0 and 0 <= smoothing < 1):
        raise ValueError(
            f"expected frames_per_clip from 1 up and smoothing in [0, 1), got {frames_per_clip!r} and {smoothing!r}"
        )
    amount = Augmentation(gain, blur, noise)

    def pose(state: regression.RegressionState, frozen: PyTree, batch: PyTree, key: PRNGKeyArray, hyper: PyTree):
        del state, frozen, hyper
        key_frame, key_augment = jax.random.split(key)
        clips = clean(batch)
        chosen = jax.random.randint(key_frame, (len(clips), frames_per_clip), 0, clips.shape[1])
        frames = jnp.take_along_axis(clips, chosen[..., None, None, None], 1).reshape(-1, *clips.shape[2:])
        labels = jnp.repeat(batch["label"], frames_per_clip)
        frames = augment(key_augment, frames, amount)

        def loss(params: PyTree) -> tuple[Array, dict[str, Array]]:
            logits, _ = classifier.apply(params, frames)
            targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
            right = jnp.argmax(logits, -1) == labels
            return optax.softmax_cross_entropy(logits, targets).mean(), {"accuracy": jnp.mean(right)}

        return loss

    return regression.alone(pose, optimiser, ema=ema)


def classify_fn(classifier: ClassifierDef, params: PyTree, *, chunk: int = 256) -> Classify:
    """The trained classifier as the plain function that metrics take.

    Any number of frames runs through one compiled program of `chunk` frames: the last part is filled up.
    """
    apply = jax.jit(classifier.apply)

    def classify(frames: Num[np.ndarray, "n h w c"]) -> tuple[np.ndarray, np.ndarray]:
        frames = np.asarray(frames)
        if not len(frames):
            raise ValueError("there is no frame to classify")
        outputs = []
        for start in range(0, len(frames), chunk):
            part = frames[start : start + chunk].astype(np.float32)
            if frames.dtype == np.uint8:
                part = part / 127.5 - 1
            filled = np.concatenate([part, np.zeros((chunk - len(part), *part.shape[1:]), np.float32)])
            outputs.append([np.asarray(out)[: len(part)] for out in apply(params, filled)])
        logits, features = zip(*outputs, strict=True)
        return np.concatenate(logits), np.concatenate(features)

    return classify
