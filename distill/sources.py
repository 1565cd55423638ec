"""Where a student's input comes from, in methods that judge what it makes: an independent choice of theirs.

A source is a function (network, params, cond, real, key, hyper) -> Start. It calls the student without a gradient. `levels` are
those of its calls in sampling, log-SNR from noise to data; the call that learns, the exit, is drawn among them (where clips are
simulated the same one for all of them and so for all devices), or is hyper["exit"], a whole number. hyper["step"], []: the
student's finished updates.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from diffusion import grids
from diffusion.levels import expand, forward
from diffusion.schedules import Schedule
from distill.inputs import Network
from distill.jumps import estimate, uniform_clock


class Start(NamedTuple):
    """What the student is called on.

    x, logsnr, cond: its inputs.
    level: the level of the clips that it makes, of their shape, for reports; x may hold several calls a clip.
    logsnr_to: [b], where the clips go next, for methods that must know.
    clips: the student's clean estimates -> the clips that it makes of the batch.
    told: what a critic is told of these clips beside their cond.
    """

    x: Array
    logsnr: Array
    cond: Mapping[str, Array]
    level: Array
    logsnr_to: Array | None = None
    clips: Callable[[Array], Array] = lambda denoised: denoised
    told: Mapping[str, Array] = {}


Source = Callable[[Network, PyTree, Mapping[str, Array], Array, Array, Mapping[str, Array | float]], Start]


def student_levels(schedule: Schedule, steps: int) -> Array:
    """Log-SNR of the calls of a sampler of `steps` steps uniform in time, as float32: grids.uniform_time without its end."""
    return jnp.asarray(grids.uniform_time(schedule, steps)[:-1], jnp.float32)


def noise(level: float | Array) -> Source:
    """Pure noise at one level, of the variance that a clip of unit variance has there: a generator of one step.

    Not the schedule's noisy end only: a network that is told a cleaner level than its input has makes more of the noise than
    its mean (Zhou et al. 2024, SiD, sigma 2.5; Yin et al. 2024, DMD2 on SDXL, section 4.4).
    """

    def source(network, params, cond, real, key, hyper) -> Start:
        del params, hyper
        at = jnp.full((1,), level, jnp.float32)
        return Start(unit_noise(network, key, real, at), at, cond, at)

    return source


def noised(levels: Array, shares: Callable[[Array], Array] | None = None, chunk: int | None = None) -> Source:
    """The batch's clips noised to one of the levels, drawn for each (DMD on few steps; ADD, Sauer et al. 2023, section 3.2),
    or for every `chunk` frames (CausVid, Yin et al. 2024, arXiv 2412.07772).

    shares: the student's finished updates -> how often each level is drawn, [levels]; None: all alike.
    """

    def source(network, params, cond, real, key, hyper) -> Start:
        del params
        key_index, key_noise = jax.random.split(key)
        shape = real.shape[:1]
        if chunk is not None:
            shape += (chunks(real.shape[1], chunk),)
        at = levels[exit_index(key_index, len(levels), hyper, shape, shares)]
        at = at if chunk is None else jnp.repeat(at, chunk, axis=1)
        x = forward(real, network.noise(key_noise, real.shape, real.dtype), at, network.schedule)
        return Start(x, at, cond, at)

    return source


def simulated(levels: Array) -> Source:
    """Backward simulation (Yin et al. 2024, DMD2, section 4.5): what sampling would bring the student at its exit.

    From noise, each call's clean estimate is noised anew to the next level, as `solvers.consistency` does.
    """

    def source(network, params, cond, real, key, hyper) -> Start:
        key_exit, key_noise, *keys = jax.random.split(key, len(levels) + 1)
        exit_ = exit_index(key_exit, len(levels), hyper)
        student = estimate(network, params, cond)
        x = unit_noise(network, key_noise, real, levels[:1])
        for k, key_renew in enumerate(keys):
            renew = renewed(network, student, levels[k : k + 1], levels[k + 1 : k + 2], key_renew)
            x = jax.lax.cond(k < exit_, renew, lambda x: x, x)
        at = levels[exit_][None]
        return Start(jax.lax.stop_gradient(x), at, cond, at)

    return source


def rolled_out(levels: Array, chunk: int) -> Source:
    """Self-rollout (Huang et al. 2025, Self Forcing, algorithm 1): the clip is made `chunk` frames at a time, each after its
    own past, for networks that take a level per frame.

    While a chunk is made the frames before it are the student's own, clean and without a gradient, and those after it pure
    noise. All chunks leave at the same exit. Their calls are made side by side: x holds frames / chunk copies of the batch,
    and the clip takes from each the chunk that was made in it.
    """

    def source(network, params, cond, real, key, hyper) -> Start:
        schedule, (batch, frames) = network.schedule, real.shape[:2]
        count = chunks(frames, chunk)
        key_exit, key_noise, key_renew = jax.random.split(key, 3)
        exit_ = exit_index(key_exit, len(levels), hyper)
        student = estimate(network, params, cond)
        fresh = unit_noise(network, key_noise, real, levels[:1])
        clean_level = jnp.float32(schedule.logsnr_end)
        place = jnp.arange(frames) // chunk

        def at(c: Array, k: Array) -> Array:
            """The level of every frame at step k of chunk c, [1, f]."""
            return jnp.where(place < c, clean_level, jnp.where(place == c, levels[k], levels[0]))[None]

        def masked(c: Array, new: Array, old: Array) -> Array:
            return jnp.where(expand((place == c)[None], old), new, old)

        def make(x: Array, c: Array) -> tuple[Array, Array]:
            """(the clip with chunk c clean, its input at the exit)"""

            def go(k: Array, x: Array) -> Array:
                key = jax.random.fold_in(jax.random.fold_in(key_renew, c), k)
                eps = network.noise(key, x.shape, x.dtype)
                return masked(c, forward(student(x, at(c, k)), eps, levels[k + 1][None], schedule), x)

            x = jax.lax.fori_loop(0, exit_, go, x)
            return masked(c, student(x, at(c, exit_)) * schedule.alpha(clean_level), x), x

        _, stack = jax.lax.scan(make, fresh, jnp.arange(count))
        calls = jnp.repeat(jax.vmap(lambda c: at(c, exit_)[0])(jnp.arange(count)), batch, axis=0)
        repeated = jax.tree.map(lambda leaf: jnp.tile(leaf, (count,) + (1,) * (leaf.ndim - 1)), dict(cond))

        def clips(denoised: Array) -> Array:
            parts = denoised.reshape(count, batch, count, chunk, *denoised.shape[2:])
            return jnp.concatenate([parts[c, :, c] for c in range(count)], axis=1)

        x = jax.lax.stop_gradient(stack.reshape(-1, *real.shape[1:]))
        return Start(x, calls, repeated, levels[exit_][None], clips=clips)

    return source


def chunks(frames: int, chunk: int) -> int:
    """How many a clip has."""
    if frames % chunk:
        raise ValueError(f"chunk: expected a divisor of the clip's {frames} frames, got {chunk}")
    return frames // chunk


def exit_told(source: Source) -> Source:
    """The same, with the level of the call that made the clips told to the critic as `logsnr_to`.

    A critic that isn't told knows the mixture of what all calls make, and only that is matched: clips of one call may lie to
    one side of the data and those of another to the other. On moving digits that is what backward simulation does, as each
    call goes on from the last one's clips: of four, the first made digits with .82 of the data's mass and the last with 1.34.
    """

    def told(network, params, cond, real, key, hyper) -> Start:
        start = source(network, params, cond, real, key, hyper)
        return start._replace(told={"logsnr_to": start.level})

    return told


def intervals(steps: int) -> Source:
    """Pairs of times (Salimans et al. 2024, moment matching, algorithm 2): s uniform, t = min(s + d, 1), d uniform in
    [0, 1 / steps]; the clips noised to t, and s as `logsnr_to`.
    """

    def source(network, params, cond, real, key, hyper) -> Start:
        del params, hyper
        key_s, key_d, key_noise = jax.random.split(key, 3)
        s = jax.random.uniform(key_s, real.shape[:1])
        t = jnp.minimum(s + jax.random.uniform(key_d, s.shape) / steps, 1.0)
        here, there = map(uniform_clock(network.schedule), (t, s))
        x = forward(real, network.noise(key_noise, real.shape, real.dtype), here, network.schedule)
        return Start(x, here, cond, here, there)

    return source


IN_CHUNKS = ("noised_by_chunk", "rolled_out")
"""The sources that go by chunks of frames."""

SOURCES: Mapping[str, Callable[..., Source]] = {
    "noised": lambda levels, chunk: noised(levels),
    "noised_by_chunk": lambda levels, chunk: noised(levels, chunk=chunk),
    "simulated": lambda levels, chunk: simulated(levels),
    "rolled_out": rolled_out,
}
"""name -> (levels, chunk) -> source"""


def exit_index(
    key: Array,
    count: int,
    hyper: Mapping[str, Array | float],
    shape: tuple[int, ...] = (),
    shares: Callable[[Array], Array] | None = None,
) -> Array:
    """Which of the student's calls learns."""
    if "exit" in hyper:
        return jnp.full(shape, hyper["exit"], jnp.int32)
    if shares is not None:
        return jax.random.categorical(key, jnp.log(shares(hyper["step"])), shape=shape)
    return jax.random.randint(key, shape, 0, count)


def unit_noise(network: Network, key: Array, like: Array, level: Array) -> Array:
    """Noise of the variance that a noisy clip of unit variance has at `level`: 1 in VP."""
    return expand(network.schedule.size(level), like) * network.noise(key, like.shape, like.dtype)


def renewed(network: Network, student: Callable, level: Array, level_to: Array, key: Array) -> Callable[[Array], Array]:
    """x at `level` -> the student's clean estimate of it, noised anew to `level_to`."""

    def step(x: Array) -> Array:
        eps = network.noise(key, x.shape, x.dtype)
        return forward(student(x, level), eps, level_to, network.schedule)

    return step
