"""Discriminator heads that are told the level at which their clips were seen: what they need it for, and that it is safe."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models import build_heads
from models.layers import LOGSNR_LIMIT

pytestmark = pytest.mark.usefixtures("quick_compilation")

CHANNELS, CLASSES, BATCH = (3, 5), 4, 4
LEVELS = jnp.array([-12.0, -1.0, 0.5, 7.0])
FAR = (20.0, 1000.0, np.inf)


def maps(seed=0, same=False):
    """Two maps of different sizes: [b, 4, 3, 3, 3] and [b, 4, 2, 2, 5]. same: all clips alike."""
    rng = np.random.default_rng(seed)
    drawn = (rng.standard_normal((BATCH, 4, n, n, c)) for n, c in zip((3, 2), CHANNELS, strict=True))
    return tuple(jnp.asarray(np.tile(x[:1], (BATCH, 1, 1, 1, 1)) if same else x, jnp.float32) for x in drawn)


@functools.cache
def heads(level, num_classes=0):
    """(definition, weights moved off their zeros, the compiled call)."""
    made = build_heads(dict(width=8, level=level), CHANNELS, num_classes)
    params = made.init(jax.random.key(0))
    rng = np.random.default_rng(1)
    moved = jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32), params)
    return made, moved, jax.jit(made.apply)


def without_level(params):
    return {name: {key: leaf for key, leaf in part.items() if key != "level"} for name, part in params.items()}


def test_heads_with_a_level_need_it():
    for num_classes in (0, CLASSES):
        made, params, _ = heads(True, num_classes)
        with pytest.raises(ValueError, match=r"level True and need logsnr, \[b\|1\]"):
            made.apply(params, maps())
        label = jnp.zeros(BATCH, int) if num_classes else None
        assert made.apply(params, maps(), label, LEVELS).shape == (BATCH, 4)


@pytest.mark.parametrize("wrong", [1, 0, "logsnr", None])
def test_level_is_true_or_false(wrong):
    with pytest.raises(ValueError, match=f"level is True or False, got {wrong!r}"):
        build_heads(dict(level=wrong), CHANNELS, 0)


def test_the_default_is_without_and_the_two_are_different_definitions():
    plain = build_heads(dict(width=8), CHANNELS, 0)
    assert plain is heads(False)[0] and plain is not heads(True)[0]
    tree = lambda level: jax.tree.structure(heads(level)[0].init(jax.random.key(0)))  # noqa: E731
    assert tree(False) != tree(True)
    assert jax.tree.structure(without_level(heads(True)[1])) == tree(False)


def test_every_head_hears_its_clips_level():
    """Of equal clips the logits differ by their levels, for all heads and far apart; each clip by its own level alone."""
    _, params, apply = heads(True)
    x = maps(same=True)
    logits = apply(params, x, None, LEVELS)
    assert logits.shape == (BATCH, 4) and logits.dtype == jnp.float32
    gaps = np.abs(logits[:, None] - logits[None])[~np.eye(BATCH, dtype=bool)]
    assert gaps.min() > 1e-4 and gaps.max(0).min() > 1e-2
    moved = apply(params, x, None, LEVELS.at[2].set(3.0))
    assert (np.abs(moved - logits).min(-1) > 1e-4).tolist() == [False, False, True, False]
    np.testing.assert_allclose(apply(params, x, None, LEVELS[::-1]), logits[::-1], atol=1e-5)


def test_a_level_for_all_clips_is_that_level_for_each():
    """[1] and [b]."""
    _, params, apply = heads(True, CLASSES)
    label = jnp.array([0, 3, CLASSES, 1])
    for level in LEVELS:
        one, each = (apply(params, maps(), label, jnp.full(n, level)) for n in (1, BATCH))
        assert one.shape == (BATCH, 4)
        np.testing.assert_allclose(one, each, atol=1e-5)


def test_without_a_level_logsnr_is_ignored():
    """Whatever it is."""
    for num_classes in (0, CLASSES):
        _, params, apply = heads(False, num_classes)
        label = jnp.array([0, 3, CLASSES, 1]) if num_classes else None
        plain = apply(params, maps(), label)
        for logsnr in (None, LEVELS, LEVELS[:1], jnp.array([np.inf]), jnp.full(BATCH, np.nan)):
            np.testing.assert_array_equal(apply(params, maps(), label, logsnr), plain)
    made, params, _ = heads(False)
    slope = jax.grad(lambda logsnr: jnp.sum(made.apply(params, maps(), None, logsnr)))(LEVELS)
    np.testing.assert_array_equal(slope, 0)


def test_the_level_is_projected_on_the_mean_of_the_last_hidden_map():
    """An embedding of 0 leaves heads without a level; that of sqrt(width) times the logit's weights doubles the logit, less
    its bias; label and level add up.
    """
    _, params, apply = heads(True, CLASSES)
    _, _, plainly = heads(False, CLASSES)
    label = jnp.array([0, 3, CLASSES, 1])

    def crafted(scale):
        """The embedding is `scale` x sqrt(width) x the logit's weights at any level."""

        def head(part):
            out = part["level"]["out"]
            bias = scale * 8**0.5 * part["logit"]["weight"][:, 0]
            level = part["level"] | {"out": {"weight": 0 * out["weight"], "bias": bias}}
            return part | {"level": level, "logit": part["logit"] | {"bias": jnp.zeros(1)}}

        return {name: head(part) for name, part in params.items()}

    bare = without_level(crafted(0.0))
    silent = {name: part | {"label": {"table": 0 * part["label"]["table"]}} for name, part in bare.items()}
    plain, logit = (plainly(weights, maps(), label) for weights in (bare, silent))
    assert np.abs(logit).min() > 1e-4
    np.testing.assert_allclose(apply(crafted(0.0), maps(), label, LEVELS), plain, atol=1e-6)
    np.testing.assert_allclose(apply(crafted(1.0), maps(), label, LEVELS), plain + logit, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_infinite_levels_are_the_last_ones_and_have_finite_gradients(sign):
    """Logits and all gradients, by level, weights and maps; beyond the limit the level is deaf, at it it isn't."""
    made, params, apply = heads(True)
    slopes = jax.jit(jax.grad(lambda logsnr, params, x: jnp.sum(made.apply(params, x, None, logsnr)), (0, 1, 2)))
    last = apply(params, maps(), None, jnp.full(BATCH, sign * LOGSNR_LIMIT))
    assert np.isfinite(last).all()
    for level in FAR:
        for count in (1, BATCH):
            logsnr = jnp.full(count, sign * level, jnp.float32)
            np.testing.assert_allclose(apply(params, maps(), None, logsnr), last, atol=1e-5)
            by_level, *others = slopes(logsnr, params, maps())
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((by_level, others)))
            assert by_level.shape == (count,) and np.all((np.abs(by_level) > 1e-5) == (level == LOGSNR_LIMIT))


def test_the_slope_by_the_level_is_the_logits():
    """Against central differences, clip by clip."""
    made, params, apply = heads(True)
    slope = jax.grad(lambda logsnr: jnp.sum(made.apply(params, maps(), None, logsnr)))(LEVELS)
    ahead, behind = (apply(params, maps(), None, LEVELS + step) for step in (1e-2, -1e-2))
    assert np.abs(slope).min() > 1e-3
    np.testing.assert_allclose(slope, np.sum(ahead - behind, -1) / 2e-2, rtol=0.02, atol=2e-3)


def flipping(seed, n):
    """Clips of one number, levels on both sides of 0, and what is right: the sign of their product. Each clip comes twice, at a
    level and at minus that.
    """
    rng = np.random.default_rng(seed)
    x, level = (rng.uniform(0.5, high, n) * rng.choice([-1, 1], n) for high in (2.0, 8.0))
    x, level = np.tile(x, 2), np.concatenate([level, -level])
    return (jnp.asarray(x.reshape(-1, 1, 1, 1, 1), jnp.float32),), jnp.asarray(level, jnp.float32), np.sign(x * level)


def trained(level):
    """How often such heads are right after 200 steps, each head apart."""
    made = build_heads(dict(width=8, level=level), (1,), 0)
    params, optimiser = made.init(jax.random.key(0)), optax.adam(3e-2)

    @jax.jit
    def step(params, state, x, logsnr, right):
        loss = lambda p: jnp.mean(jax.nn.softplus(-right[:, None] * made.apply(p, x, None, logsnr)))  # noqa: E731
        updates, state = optimiser.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimiser.init(params)
    for i in range(200):
        params, state = step(params, state, *flipping(i, 32))
    x, logsnr, right = flipping(1000, 500)
    return np.mean(np.sign(made.apply(params, x, None, logsnr)) == right[:, None], axis=0)


def test_where_the_answer_flips_with_the_level_heads_need_to_be_told():
    """A clip that is real at high and the student's at low levels: without the level just one of the two can be right."""
    assert trained(level=True).min() > 0.97
    np.testing.assert_array_equal(trained(level=False), 0.5)
