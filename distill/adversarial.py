"""An adversary: heads on features tell clips of the data from the student's, and the student moves to deceive them.

The features are those of a network that someone else trains or nobody does: the critic's (Yin et al. 2024, DMD2, arXiv
2405.14867, section 4.3), the teacher's, or a frozen feature network's (Sauer et al. 2023, ADD, arXiv 2311.17042). Any
function will do.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from distill.fields import RATIOS, SCORE, Law, noisy
from distill.games import CriticTerm, Field, Scene, per_clip
from distill.inputs import Network
from distill.method import Metrics, number

HEADS = "heads"
"""The name of the heads in the critic."""


Logits = Array | tuple[Array, ...]


class Discriminator(NamedTuple):
    """features(params, x, logsnr, cond) -> maps [b, ...]; init(key) -> the heads' weights; apply(heads, maps, label, logsnr) ->
    logits [b, heads], high for real clips; or, of heads that judge every place of their map alone, a tuple of a map [b, ...] a
    head. label: [b], or None where there are none; logsnr: [b], where the clips were seen.
    """

    features: Callable[..., tuple[Array, ...]]
    init: Callable[[Array], PyTree]
    apply: Callable[[PyTree, tuple[Array, ...], Array | None, Array], Logits]


Feature = Callable[[Mapping[str, PyTree], Scene], PyTree]

FEATURES: Mapping[str, Feature] = {
    "critic": lambda critic, scene: critic[SCORE],
    "teacher": lambda critic, scene: scene.frozen["teacher"],
    "frozen": lambda critic, scene: scene.frozen["features"],
}
"""whose features -> the weights. "critic" is DMD2's, and learns from the discriminator's loss too; "teacher" FastGen's."""

LOSSES: Mapping[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "softplus": (lambda logit: jax.nn.softplus(-logit), lambda logit: jax.nn.softplus(-logit)),
    "hinge": (lambda logit: jax.nn.relu(1 - logit), lambda logit: -logit),
}
"""name -> (the discriminator's loss of a clip that it should call real; of one that it shouldn't: of minus the logit; and the
generator's loss of a logit)."""


def logits(
    discriminator: Discriminator, whose: str, critic: Mapping[str, PyTree], scene: Scene, x: Array, logsnr: Array
) -> Logits:
    maps = discriminator.features(FEATURES[whose](critic, scene), x, logsnr, told(whose, scene))
    return discriminator.apply(critic[HEADS], maps, scene.cond.get("label"), logsnr)


def of_heads(loss: Callable[[Array], Array], logits: Logits) -> Array:
    """[b, heads]: the loss of each logit; of a head that judges places the mean of its losses, not the loss of its mean
    (Sauer et al. 2023, StyleGAN-T, arXiv 2301.09515: what ADD and LADD have their heads from).
    """
    if isinstance(logits, tuple):
        return jnp.stack([per_clip(loss(head)) for head in logits], -1)
    return loss(logits)


def told(whose: str, scene: Scene) -> dict[str, Array]:
    """The conditioning of the network whose features are seen."""
    return dict(scene.told if whose == "critic" else scene.cond)


def placed(network: Network, law: Law | None, clips: Array, key: Array) -> tuple[Array, Array]:
    """The clips as the discriminator sees them, noised at a level of the law; without one as they are."""
    if law is not None:
        return noisy(network, law, clips, key)
    return clips, jnp.full(clips.shape[:1], network.schedule.logsnr_end, jnp.float32)


def deception(network: Network, discriminator: Discriminator, *, law: Law | None, loss: str, whose: str) -> Field:
    """The gradient of the generator's loss by the clips, its heads summed, in units that make the student's loss its mean
    over the batch beside other fields' means over all numbers.
    """
    _, generator = LOSSES[loss]

    def field(scene: Scene, key: Array) -> tuple[Array, Metrics]:
        def value(clips: Array) -> tuple[Array, Array]:
            x, logsnr = placed(network, law, clips, key)
            each = jnp.sum(of_heads(generator, logits(discriminator, whose, scene.critic, scene, x, logsnr)), -1)
            return jnp.sum(each), jnp.mean(each)

        gradient, mean = jax.grad(value, has_aux=True)(scene.fake)
        return gradient * (scene.fake.size / len(scene.fake)), {"deception": mean}

    return field


def discrimination(
    network: Network,
    discriminator: Discriminator,
    *,
    law: Law | None,
    loss: str,
    whose: str,
    paired: bool = False,
    r1: float = 0.0,
    approximate_r1: float = 0.0,
    perturbation: float = 0.01,
) -> CriticTerm:
    """The discriminator's loss, heads summed.

    paired: a clip of the data and one of the student's get the same level and noise (FastGen); else their own.
    r1: of |gradient of a head's logit by the features|^2 at real clips, summed over heads (ADD, eq. 3: the input of the heads,
    not the pixels); of a head that judges n places that of their logits' sum, over n: the mean over places, were each judged
    by itself alone.
    approximate_r1: of |D(x) - D(x + perturbation N)|^2 at real clips as the discriminator sees them, which needs no second
    derivative (Lin et al. 2025, APT, arXiv 2501.08316, section 3.3).

    Metrics: discrimination (without penalties), accuracy over heads, places and both kinds of clips, penalty.
    """
    for name, weight in (("r1", r1), ("approximate_r1", approximate_r1)):
        number(name, weight, 0.0)
    call_real, _ = LOSSES[loss]

    def term(critic: Mapping[str, PyTree], scene: Scene, key: Array) -> tuple[Array, Metrics]:
        key_real, key_fake, key_near = jax.random.split(key, 3)
        see = lambda x, logsnr: logits(discriminator, whose, critic, scene, x, logsnr)  # noqa: E731
        shown = placed(network, law, scene.real, key_real)
        judge = lambda maps: discriminator.apply(critic[HEADS], maps, scene.cond.get("label"), shown[1])  # noqa: E731
        maps = discriminator.features(FEATURES[whose](critic, scene), *shown, told(whose, scene))
        real = judge(maps)
        fake = see(*placed(network, law, scene.fake, key_real if paired else key_fake))
        value = jnp.mean(jnp.sum(of_heads(call_real, real) + of_heads(lambda logit: call_real(-logit), fake), -1))
        right = of_heads(lambda logit: logit > 0, real), of_heads(lambda logit: logit < 0, fake)
        accuracy = 0.5 * (jnp.mean(right[0]) + jnp.mean(right[1]))
        penalty = jnp.zeros(())
        if r1:
            slopes = jax.tree.leaves(jax.jacrev(lambda maps: sums(judge(maps)))(maps))
            penalty += r1 * sum(jnp.sum(jnp.square(slope)) for slope in slopes) / len(scene.real)
        if approximate_r1:
            near = shown[0] + perturbation * jax.random.normal(key_near, shown[0].shape, shown[0].dtype)
            change = jax.tree.map(jnp.subtract, real, see(near, shown[1]))
            penalty += approximate_r1 * jnp.mean(jnp.sum(of_heads(jnp.square, change), -1))
        metrics = {"discrimination": value, "accuracy": accuracy}
        if r1 or approximate_r1:
            metrics["penalty"] = penalty
        return value + penalty, metrics

    return term


def sums(logits: Logits) -> Array:
    """[heads]: a head's logits summed, over the square root of its places: a squared slope is a mean over them."""
    if isinstance(logits, tuple):
        return jnp.stack([jnp.sum(head) * (len(head) / head.size) ** 0.5 for head in logits])
    return jnp.sum(logits, 0)


SMALLEST_RATIO, LARGEST_RATIO = 0.1, 20.0
"""Bounds of the density ratio (f-distill's code)."""


def density_ratio(
    discriminator: Discriminator, *, divergence: str, whose: str
) -> Callable[[Scene, Array, Array], tuple[Array, Metrics]]:
    """h(r) over its mean in the batch, r = exp(the mean logit): what a trained discriminator knows of real / fake (Xu et al.
    2025, f-distill, arXiv 2502.15681, section 3.3). Their running means of r in bins of the level are left out.
    """
    weigh = RATIOS[divergence]

    def ratio(scene: Scene, x: Array, logsnr: Array) -> tuple[Array, Metrics]:
        logit = jnp.mean(
            of_heads(lambda logit: logit, logits(discriminator, whose, scene.critic, scene, x, logsnr)), -1
        )
        r = jnp.clip(jnp.exp(logit), SMALLEST_RATIO, LARGEST_RATIO)
        h = weigh(r)
        return h / jnp.mean(h), {"density_ratio": jnp.mean(r)}

    return ratio
