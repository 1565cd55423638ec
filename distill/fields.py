"""How a student's clips should move, by the scores of a teacher and of a critic that knows the student's own clips.

With D the clean estimates at a noisy clip x = alpha x0 + sigma eps, the scores differ by s_fake - s_real = alpha / sigma^2
(D_fake - D_real), and what moves x moves x0 by alpha: so the gradient of the KL divergence between the noisy laws of student
and teacher is SNR (D_fake - D_real) by the student's clip, and every distribution matching loss here is a weight of D_fake -
D_real. The critic is the denoiser of the student's clips; the student's gradient flows through neither estimate, but for
score identity distillation.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from diffusion.levels import expand, forward
from diffusion.schedules import Schedule
from distill.games import Field, Scene, per_clip
from distill.inputs import Network
from distill.jumps import ancestral_step, estimate
from distill.method import Metrics
from distill.regression import by_level, finite

Law = Callable[[Array, tuple[int, ...]], Array]
SCORE = "score"
"""The name of the denoiser in the critic."""

WEIGHTINGS: Mapping[str, Callable[[Schedule, Array], Array]] = {
    "one": lambda schedule, logsnr: jnp.ones_like(logsnr),
    "alpha": lambda schedule, logsnr: schedule.alpha(logsnr),
    "snr": lambda schedule, logsnr: jnp.exp(logsnr),
}
"""name -> (schedule, log-SNR) -> the weight of D_fake - D_real. "snr" is the gradient of the KL divergence; "alpha" is what
DMD's equations 7 and 8 leave of w_t alpha_t (s_fake - s_real); "one" is DMD's listing and all later code. In EDM's scaling,
where alpha = 1, the last two are the same."""

NORMALISERS: Mapping[str, Callable[[Array], Array]] = {
    "sample": lambda distance: per_clip(jnp.abs(distance)),
    "batch": lambda distance: jnp.full(distance.shape[:1], jnp.nanmean(jnp.abs(distance))),
    "none": lambda distance: jnp.ones(distance.shape[:1]),
}
"""name -> (the student's clips minus D_real -> [b], what their moves are divided by). "sample" is DMD's, "batch"
FastVideo's."""
SMALLEST = 1e-5
"""Of a normaliser (rCM's code): a clip that the teacher would leave as it is moves nowhere, however small the divisor."""

RATIOS: Mapping[str, Callable[[Array], Array]] = {
    "reverse_kl": jnp.ones_like,
    "forward_kl": lambda r: r,
    "jensen_shannon": lambda r: 1 - 1 / (1 + r),
    "softened_reverse_kl": lambda r: 1 / (1 + r),
    "neyman": lambda r: 1 / r,
    "squared_hellinger": jnp.sqrt,
    "jeffreys": lambda r: 1 + r,
}
"""f-divergence -> h(r) = r^2 f''(r) up to a factor, r the density ratio real / fake at the noisy clip (Xu et al. 2025,
arXiv 2502.15681, table 1)."""


def noisy(network: Network, law: Law, clips: Array, key: Array) -> tuple[Array, Array]:
    """(the clips with noise, their levels [b])"""
    key_level, key_noise = jax.random.split(key)
    logsnr = jnp.clip(law(key_level, clips.shape[:1]), network.schedule.logsnr_start, network.schedule.logsnr_end)
    eps = network.noise(key_noise, clips.shape, clips.dtype)
    return forward(clips, eps, logsnr, network.schedule), logsnr


def compared(fake: Array, of_critic: Array, of_teacher: Array, logsnr: Array) -> Metrics:
    """By level: the gap between the two estimates, squared, and the error of each as a denoiser of the student's clips.

    A critic that keeps up is nearer to these clips than the teacher.
    """
    known = ~finite(of_critic - of_teacher)[1]
    metrics = {}
    for name, difference in {
        "score_gap": of_critic - of_teacher, "critic_error": of_critic - fake, "teacher_error": of_teacher - fake,
    }.items():  # fmt: skip
        metrics |= by_level(name, jnp.square(difference), logsnr, known)
    return metrics


def distribution_matching(
    network: Network,
    *,
    law: Law,
    weighting: str,
    normaliser: str,
    ratio: Callable[[Scene, Array, Array], tuple[Array, Metrics]] | None = None,
) -> Field:
    """weight (D_fake - D_real) / normaliser at clips noised anew (Yin et al. 2024, DMD, arXiv 2311.18828, eq. 7).

    ratio: (scene, noisy clips, levels) -> ([b], metrics), a further factor (f-distill).
    """
    weight, divide = WEIGHTINGS[weighting], NORMALISERS[normaliser]

    def field(scene: Scene, key: Array) -> tuple[Array, Metrics]:
        x, logsnr = noisy(network, law, scene.fake, key)
        real = scene.teacher(x, logsnr)
        fake = estimate(network.judge, scene.critic[SCORE], scene.told)(x, logsnr)
        factor = weight(network.schedule, logsnr) / jnp.maximum(divide(scene.fake - real), SMALLEST)
        metrics = compared(scene.fake, fake, real, logsnr)
        if ratio is not None:
            value, reported = ratio(scene, x, logsnr)
            factor, metrics = factor * value, metrics | reported
        return expand(factor, x) * (fake - real), metrics

    return field


def score_identity(network: Network, *, law: Law, alpha: float, normaliser: str = "sample") -> Field:
    """The gradient of w d . ((D_real - x0) - alpha d), d = D_real - D_fake, *through* both estimates (Zhou et al. 2024, SiD,
    arXiv 2404.04057, eq. 23), w one over the mean distance |x0 - D_real|, without a gradient.

    At the critic's optimum the value is (1 - alpha) E|d|^2: negative for alpha > 1, no measure of convergence, and not logged.
    """
    divide = NORMALISERS[normaliser]

    def field(scene: Scene, key: Array) -> tuple[Array, Metrics]:
        critic = estimate(network.judge, scene.critic[SCORE], scene.told)

        def value(clips: Array) -> tuple[Array, Metrics]:
            x, logsnr = noisy(network, law, clips, key)
            real, fake = scene.teacher(x, logsnr), critic(x, logsnr)
            gap = real - fake
            size = jax.lax.stop_gradient(jnp.maximum(divide(clips - real), SMALLEST))
            return jnp.sum(gap * ((real - clips) - alpha * gap) / expand(size, clips)), compared(
                clips, fake, real, logsnr
            )

        return jax.grad(value, has_aux=True)(scene.fake)

    return field


def moments(network: Network, *, weight: Callable[[Array], Array]) -> Field:
    """w(s) (g_phi - g_theta) at a draw of q(z_s | z_t, the student's clip) (Salimans et al. 2024, arXiv 2406.04103, alg. 2).

    It is half the difference of E[clip | z_s] between student and teacher, since the critic stays between the two.
    """

    def field(scene: Scene, key: Array) -> tuple[Array, Metrics]:
        x, logsnr = bridged(network, scene, key)
        fake = estimate(network.judge, scene.critic[SCORE], scene.told)(x, logsnr)
        real = scene.teacher(x, logsnr)
        return expand(weight(logsnr), x) * (fake - real), compared(scene.fake, fake, real, logsnr)

    return field


def bridged(network: Network, scene: Scene, key: Array) -> tuple[Array, Array]:
    """(z_s drawn between the student's input z_t and its clip, s)"""
    start = scene.start
    if start.logsnr_to is None:
        raise ValueError(
            "moment matching takes its student's input from `intervals`, which says where the clip goes next"
        )
    eps = network.noise(key, scene.fake.shape, scene.fake.dtype)
    x = ancestral_step(network.schedule, start.x, scene.fake, start.logsnr, start.logsnr_to, eps)
    return x, start.logsnr_to


def distillation(network: Network, *, law: Law, weighting: str) -> Field:
    """2 c(t) (x0 - D_real(x)), the gradient of c(t) |x0 - sg D_real|^2 (Sauer et al. 2023, ADD, arXiv 2311.17042, eq. 4)."""
    weight = DISTILLATION[weighting]

    def field(scene: Scene, key: Array) -> tuple[Array, Metrics]:
        x, logsnr = noisy(network, law, scene.fake, key)
        real = scene.teacher(x, logsnr)
        away = scene.fake - real
        metrics = by_level("teacher_error", jnp.square(away), logsnr, ~finite(away)[1])
        return expand(2 * weight(network.schedule, logsnr), x) * away, metrics

    return field


DISTILLATION: Mapping[str, Callable[[Schedule, Array], Array]] = {
    "exponential": lambda schedule, logsnr: schedule.alpha(logsnr),
    "score": lambda schedule, logsnr: 0.5 * jnp.exp(logsnr / 2),
}
"""name -> ADD's c(t): "exponential" is alpha, its ablations' choice; "score" alpha / (2 sigma), which makes the field that of
score distillation, eps_real - eps. The noise-free variant of its released models is left out."""


# What critics learn -------------------------------------------------------------------------------------------


def denoise_fakes(network: Network, *, law: Law, weight: Callable[[Array], Array]) -> Callable:
    """The critic denoises the student's clips (DMD, eq. 6)."""

    def term(critic: Mapping[str, PyTree], scene: Scene, key: Array) -> tuple[Array, Metrics]:
        x, logsnr = noisy(network, law, scene.fake, key)
        denoised = estimate(network.judge, critic[SCORE], scene.told)(x, logsnr)
        error = expand(weight(logsnr), x) * jnp.square(denoised - scene.fake)
        known = jnp.ones(x.shape[:1], bool)
        return jnp.mean(error), by_level("loss", jax.lax.stop_gradient(error), logsnr, known)

    return term


def between(network: Network, *, weight: Callable[[Array], Array]) -> Callable:
    """w(s) (|x0 - g_phi|^2 + |g_theta - g_phi|^2): the critic of moment matching, held near the teacher (algorithm 2)."""

    def term(critic: Mapping[str, PyTree], scene: Scene, key: Array) -> tuple[Array, Metrics]:
        x, logsnr = bridged(network, scene, key)
        denoised = estimate(network.judge, critic[SCORE], scene.told)(x, logsnr)
        teacher, bad = finite(scene.teacher(x, logsnr))
        error = jnp.square(denoised - scene.fake) + jnp.square(denoised - teacher)
        error = expand(weight(logsnr) * ~bad, x) * error
        return jnp.mean(error), by_level("loss", jax.lax.stop_gradient(error), logsnr, ~bad)

    return term
