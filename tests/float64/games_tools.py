"""What the tests of games share: data, students and critics that are exact, and a small discriminator."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion import levels, oracles, schedules
from distill import Discriminator, Network, games
from distill.fields import SCORE
from distill.sources import Start

SCHEDULES = {"cosine": schedules.vp_cosine(), "edm": schedules.edm(), "flow": schedules.flow()}
COSINE = SCHEDULES["cosine"]
LEVEL = float(np.log(0.36 / 0.64))
"""alpha = .6, sigma = .8 in VP."""
SNR = np.exp(LEVEL)
HYPER = {"learning_rate_scale": jnp.ones(())}
SHAPE = (1, 1, 1, 1)
VIDEO = (6, 2, 2, 1, 1)
STUDENT, TEACHER = (0.7, 0.5), (-0.4, 1.1)


def posterior(schedule, mean, std, x, logsnr):
    """E[x0 | x] of N(mean, std^2)."""
    alpha, sigma = (levels.expand(part, x) for part in (schedule.alpha(logsnr), schedule.sigma(logsnr)))
    return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)


def network_of(schedule):
    """Weights say what it is: a line shift + scale x, or the exact denoiser of N(mean, std^2)."""

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        if "scale" in params:
            return params["shift"] + params["scale"] * x
        return posterior(schedule, params["mean"], params["std"], x, logsnr)

    return Network(apply, schedule, "x0")


def line(shift, scale):
    return {"shift": jnp.asarray(shift, float), "scale": jnp.asarray(scale, float)}


def law_of(mean, std):
    return {"mean": jnp.asarray(mean, float), "std": jnp.asarray(std, float)}


def gaussian_teacher(schedule, mean, std, shape=SHAPE):
    return oracles.gaussian(np.full(shape, mean), std**2).denoiser(schedule)


def signs(n):
    """n columns of +-1, all combinations: as noises they have a standard normal's moments up to the third. [n, 2^n, ...]."""
    return jnp.asarray(list(itertools.product((1.0, -1.0), repeat=n))).T.reshape(n, 2**n, *SHAPE)


def at(level):
    return lambda key, shape: jnp.full(shape, level)


def given(x, level=LEVEL, logsnr_to=None):
    """A source of inputs that are known."""
    here = jnp.full(x.shape[:1], level)
    there = None if logsnr_to is None else jnp.full(x.shape[:1], logsnr_to)
    return lambda network, params, cond, real, key, hyper: Start(x, here, cond, here, there)


def game(network, source, moves=None, terms=None, rate=1.0):
    """With sgd(1) the weights move by minus the gradient."""
    weighted = [{k: (1.0, v) for k, v in (part or {}).items()} for part in (moves, terms)]
    return games.method(
        network, source=source, fields=weighted[0], critic={SCORE: games.copied}, critic_terms=weighted[1],
        optimiser=optax.sgd(rate), critic_optimiser=None, order=games.turns(1, True), ema=0.0,
    )  # fmt: skip


def begin(method, params, critic, rate=1.0):
    return method.init(jax.random.key(0), params)._replace(critic=critic, critic_opt=optax.sgd(rate).init(critic))


def gradient(method, params, critic, frozen, batch, phase="student", key=None, step=0):
    """(the gradient that a phase of a method with sgd(1) takes after `step` updates, its metrics)"""
    state = begin(method, params, critic)._replace(step=jnp.int32(step))
    new, metrics = method.phases[phase](
        state, frozen, {"video": batch}, jax.random.key(1) if key is None else key, HYPER
    )
    return jax.tree.map(
        lambda a, b: np.asarray(a - b),
        *((s.params, s.critic)[phase == "critic"] for s in (state, new)),
    ), metrics


def scene_of(fake, critic, teacher, frozen=None, start=None, real=None):
    """What a field sees, without a student."""
    start = (
        Start(fake, jnp.full(fake.shape[:1], LEVEL), {}, jnp.full(fake.shape[:1], LEVEL)) if start is None else start
    )
    return games.Scene(fake, start, fake if real is None else real, {}, critic, teacher, frozen)


def small_judge(heads=2):
    """Two maps, and heads that see both."""

    def features(params, x, logsnr, cond):
        flat = x.reshape(len(x), -1)
        return jnp.tanh(params["mean"] + flat), params["std"] * flat**2 + levels.expand(logsnr, flat) / 10

    def apply(weights, maps, label, logsnr):
        return jnp.tanh(jnp.concatenate(maps, -1) @ weights["first"]) @ weights["second"]

    def init(key):
        return {
            "first": jax.random.normal(key, (8, 5)),
            "second": jax.random.normal(jax.random.fold_in(key, 1), (5, heads)),
        }

    return Discriminator(features, init, apply)
