"""A teacher that fails on a clip: every method leaves the clip out, counts it, and goes on with finite numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from diffusion import levels, schedules
from distill import GAMES, METHODS, STUDENTS, Discriminator, Network
from experiments import config as configs

FROM_DATA = ("denoising", "consistency_training", "improved_consistency", "continuous_training")
OPTIONS = {
    "guided": dict(guidance_range=[1.0, 3.0]),
    "tract": dict(rounds=[8, 4]),
    "easy_consistency": dict(solver="euler"),
    "truncated_consistency": dict(solver="heun"),
    "consistency_trajectory": dict(data=False, substeps=2),
    "reflow": dict(steps=2),
    "dmd": dict(teacher_steps=2),
    "dmd2": dict(normaliser="batch", source="noised"),
    "f_distill": dict(source="noised"),
    "sid": dict(adversarial=0.1, discriminative=0.1),
    "moment_matching": dict(steps=2),
    "rcm": dict(steps=2),
    "add": dict(weighting="score"),
}
BATCH = {"video": jax.random.normal(jax.random.key(0), (6, 2, 2, 2, 1)), "label": jnp.arange(6) % 3}


def apply(params, x, logsnr, cond, *, key=None, train=False):
    del key, train
    shift = params["label"][cond["label"]] + levels.expand(cond.get("logsnr_to", logsnr), x)[..., 0, 0, 0].mean(1) / 100
    return jnp.tanh(params["a"] * x + levels.expand(jnp.tanh(logsnr), x) * params["b"]) + levels.expand(shift, x)


def broken(x, logsnr):
    """Half of x, and no number for the first clip that it is asked about."""
    return jnp.where(levels.expand(jnp.arange(len(x)) == 0, x), jnp.nan, 0.5 * x)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in FROM_DATA and name not in GAMES])
@pytest.mark.parametrize("per_frame", [False, True])
def test_a_clip_without_a_finite_target_teaches_nothing_and_is_counted(name, per_frame):
    network = Network(apply, schedules.vp_cosine(), "v", 3, ("label", "guidance", "logsnr_to"))
    options = OPTIONS.get(name, {}) | {"per_frame": per_frame}
    method = configs.method(name, options, network, optax.sgd(1e-2), 8, name)
    params = {"a": jnp.float32(0.7), "b": jnp.float32(0.2), "label": jnp.array([0.1, 0.0, -0.1, 0.05])}
    frozen = {"teacher": Partial(broken), "previous": params}
    hyper = {"learning_rate_scale": 1.0, "guidance": 1.5, "steps": 4.0}
    step = jax.jit(method.phases["train"], compiler_options={"xla_backend_optimization_level": 0})
    state, metrics = step(method.init(jax.random.key(0), params), frozen, BATCH, jax.random.key(1), hyper)
    # Jumping clips and the others are asked about apart, so there it may be two.
    assert 1 <= metrics["non_finite"] <= 2
    for key, value in metrics.items():
        assert np.all(np.isfinite(value)), key
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert not np.array_equal(state.params["a"], params["a"]), "the other clips teach"
    counted = sum(float(count) for key, (_, count) in pairs(metrics) if key.startswith("loss_by_level"))
    assert counted == (6 - metrics["non_finite"]) * (2 if per_frame else 1)


# LADD asks its teacher for features only, and those of an exact teacher there are none.
@pytest.mark.parametrize("name", sorted(GAMES - {"ladd"}))
def test_in_a_game_it_moves_neither_the_student_nor_the_critic(name):
    """Each phase: finite metrics and weights, and the other clips teach."""
    network = Network(apply, schedules.vp_cosine(), "v", 3, ("label", "guidance", "logsnr_to"))
    heads = Discriminator(
        lambda params, x, logsnr, cond: (x * params["a"],),
        lambda key: {"w": jnp.float32(0.3)},
        lambda heads, maps, label, logsnr: heads["w"] * jnp.sum(jnp.tanh(maps[0]), (1, 2, 3, 4))[:, None],
    )
    given = {"discriminator": heads} if configs.takes(name, "discriminator") else {}
    method = configs.method(name, OPTIONS.get(name, {}), network, optax.sgd(1e-2), 8, name, **given)
    params = {"a": jnp.float32(0.7), "b": jnp.float32(0.2), "label": jnp.array([0.1, 0.0, -0.1, 0.05])}
    frozen = {"teacher": Partial(broken), "features": {"a": jnp.float32(1.0)}}
    hyper = {"learning_rate_scale": 1.0, "guidance": 1.5}
    state = method.init(jax.random.key(0), params)
    for phase in ("critic", "student"):
        step = jax.jit(method.phases[phase], compiler_options={"xla_backend_optimization_level": 0})
        new, metrics = step(state, frozen, BATCH, jax.random.key(1), hyper)
        assert all(np.all(np.isfinite(value)) for value in metrics.values()), metrics
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))
        moved = [
            a for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True) if not np.array_equal(a, b)
        ]
        assert moved, "the other clips teach"
        state = new
    # rCM asks the teacher in the term of its own too.
    assert metrics["non_finite"] == 1 and metrics.get("consistency_non_finite", 1) == 1


def pairs(metrics):
    return [(key, value) for key, value in metrics.items() if isinstance(value, tuple)]


def test_the_list_of_methods_without_a_teacher_is_right():
    assert not STUDENTS & set(FROM_DATA)
