"""A network that is causal in time: the future can't reach the past, and a cache of keys and values is the whole video."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import frames, grids, predictions, sampling, schedules, solvers
from models import ATTENTION, build

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(2)
SMALL = dict(kind="dit", shape=(6, 4, 4, 1), num_classes=3, width=12, depth=2, head_dim=6, mlp_ratio=2, causal=True)


def built(**options):
    """A network with no weight at zero, as zero-initialised gates would hide everything."""
    model = build({**SMALL, **options})
    leaves, tree = jax.tree.flatten(model.init(KEY))
    keys = jax.random.split(jax.random.key(3), len(leaves))
    noisy = [leaf + 0.3 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    return model, jax.tree.unflatten(tree, noisy)


def clip(frames, seed=0, b=2):
    return jax.random.normal(jax.random.key(seed), (b, frames, 4, 4, 1))


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("attention", ATTENTION)
def test_a_change_of_the_future_does_not_move_the_past(attention, block):
    model, params = built(attention=attention, block=block)
    level = jnp.linspace(-3, 3, 6)[None]
    apply = jax.jit(model.apply)
    before = apply(params, clip(6), level)
    later = clip(6).at[:, 4].add(1.0)
    after, moved = apply(params, later, level), apply(params, clip(6), level.at[:, 4].add(1.0))
    past = 4 // block * block  # frames of the blocks before that of frame 4
    for other in (after, moved):
        np.testing.assert_array_equal(other[:, :past], before[:, :past])
        assert all(np.abs(other[:, f] - before[:, f]).max() > 1e-4 for f in range(past, 6))


@pytest.mark.parametrize(
    "options", [{}, {"scan": False}, {"attention": "fused"}, {"block": 2}, {"cond": ("logsnr_to",)}]
)
def test_cached_equals_uncached(options):
    """Three chunks of two frames, each shown the clean ones before it, against one call of all."""
    model, params = built(**options)
    label = jnp.array([0, 2])
    clean, noisy = clip(6), clip(6, seed=1)
    cache = model.empty_cache(2, slots=5)
    for first in (0, 2, 4):
        chunk = slice(first, first + 2)
        x = jnp.concatenate([clean[:, :first], noisy[:, chunk]], axis=1)
        level = jnp.concatenate([jnp.full((1, first), 12.0), jnp.array([[0.5, -0.5]])], axis=1)
        if options.get("block", 1) == 1 or first % 2 == 0:
            whole = jax.jit(model.apply)(params, x, level, {"label": label})
            cond = {"label": label, "cache": cache}
            cached = jax.jit(model.apply)(params, noisy[:, chunk], level[:, first:], cond)
            np.testing.assert_allclose(cached, whole[:, first:], atol=1e-5)
        cache = jax.jit(model.remember)(params, clean[:, chunk], jnp.float32(12.0), {"label": label, "cache": cache})
    assert int(cache["filled"]) == 5


@pytest.mark.parametrize(
    "options", [{"block": 2, "cond": ("logsnr_to",)}, {"block": 4, "attention": "fused", "scan": False}]
)
def test_a_forced_call_is_a_call_for_every_block_after_the_history(options):
    """The last block may be short; and the gradient by the history is that of these calls, too."""
    model, params = built(**options)
    label, history, x = jnp.array([0, 2]), clip(6), clip(6, seed=1)
    level, clean = jnp.linspace(-2, 3, 6)[None] + jnp.array([[0.0], [1.0]]), jnp.array([9.0, 7.0])
    if "cond" in options:
        label_cond = {"label": label, "logsnr_to": level + 0.5}
    else:
        label_cond = {"label": label}
    block = options.get("block", 1)

    @jax.jit
    def forced(params, history):
        return model.apply(params, x, level, {**label_cond, "history": {"clip": history, "level": clean}})

    @jax.jit
    def one_by_one(params, history):
        parts = []
        for first in range(0, 6, block):
            here = slice(first, first + block)
            inputs = jnp.concatenate([history[:, :first], x[:, here]], axis=1)
            before = jnp.broadcast_to(clean[:, None], (2, first))
            cond = {**label_cond}
            if "cond" in options:
                cond["logsnr_to"] = jnp.concatenate([before, cond["logsnr_to"][:, here]], axis=1)
            parts.append(
                model.apply(params, inputs, jnp.concatenate([before, level[:, here]], axis=1), cond)[:, first:]
            )
        return jnp.concatenate(parts, axis=1)

    np.testing.assert_allclose(forced(params, history), one_by_one(params, history), atol=1e-5)
    slopes = [
        jax.jit(jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), (0, 1)))(params, history)
        for f in (forced, one_by_one)
    ]
    for a, b in zip(*map(jax.tree.leaves, slopes), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * float(1 + jnp.abs(a).max()))


@pytest.mark.parametrize("sinks", [0, 2])
def test_a_full_cache_keeps_the_last_frames_and_the_sinks(sinks):
    """Ten times the cache's length, three frames at a time. One layer's keys know their own frame only, so that the whole is
    a call with the frames that are kept.
    """
    model, params = built(depth=1)
    cache, video = model.empty_cache(1, slots=4, sinks=sinks), clip(42, b=1)
    remember, apply = jax.jit(model.remember), jax.jit(model.apply)
    for first in range(0, 42, 3):
        seen = video[:, max(0, first - (4 - sinks)) : first]
        seen = seen if first <= 4 else jnp.concatenate([video[:, :sinks], seen], axis=1)
        seen = video[:, :first] if first <= 4 else seen
        x = jnp.concatenate([seen, video[:, first : first + 3]], axis=1)
        cached = apply(params, video[:, first : first + 3], jnp.float32(1.0), {"cache": cache})
        np.testing.assert_allclose(cached, apply(params, x, jnp.float32(1.0))[:, -3:], atol=1e-5)
        cache = remember(params, video[:, first : first + 3], jnp.float32(1.0), {"cache": cache})
    assert remember._cache_size() == 1


def test_a_cache_may_be_donated_and_an_old_one_is_untouched():
    model, params = built(depth=1)
    remember = jax.jit(lambda cache, x: model.remember(params, x, jnp.float32(2.0), {"cache": cache}), donate_argnums=0)
    caches = []
    for _ in range(2):  # a second clip finds nothing of the first
        caches.append(remember(remember(model.empty_cache(2, slots=3), clip(2)), clip(2, seed=1)))
    for one, other in zip(*map(jax.tree.leaves, caches), strict=True):
        np.testing.assert_array_equal(one, other)


def test_gradients_and_tangents_flow_through_the_mask():
    model, params = built()
    level = jnp.zeros((1, 6))
    plain = jax.grad(lambda p: jnp.sum(jnp.square(model.apply(p, clip(6), level))))(params)
    fused = build({**SMALL, "attention": "fused"})
    other = jax.grad(lambda p: jnp.sum(jnp.square(fused.apply(p, clip(6), level))))(params)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * float(1 + jnp.abs(a).max()))
    tangent = jax.jvp(
        lambda x: model.apply(params, x, level), (clip(6),), (jnp.zeros_like(clip(6)).at[:, 3].set(1.0),)
    )[1]
    assert np.abs(tangent[:, :3]).max() == 0 < np.abs(tangent[:, 3:]).max()


def test_what_does_not_fit_a_cache_is_refused():
    model, params = built()
    with pytest.raises(ValueError, match="keeps from 0 to 3 of the first ones"):
        model.empty_cache(2, slots=4, sinks=4)
    with pytest.raises(ValueError, match="lacks 'cache'"):
        model.remember(params, clip(2), 0.0, {})
    cache = model.empty_cache(3, slots=4)
    with pytest.raises(ValueError, match="of 3 clips, x has 2"):
        model.apply(params, clip(2), 0.0, {"cache": cache})
    with pytest.raises(ValueError, match="6 frames do not fit a cache of 4"):
        model.remember(params, clip(6, b=3), 0.0, {"cache": cache})
    history = {"clip": clip(2), "level": jnp.float32(9.0)}
    with pytest.raises(
        ValueError, match=r"a clip of x's shape \(3, 2, 4, 4, 1\), .* got shape \(2, 2, 4, 4, 1\) and no"
    ):
        model.apply(params, clip(2, b=3), 0.0, {"history": history})
    with pytest.raises(ValueError, match="and a cache"):
        model.apply(params, clip(2, b=3), 0.0, {"history": {**history, "clip": clip(2, b=3)}, "cache": cache})
    with pytest.raises(
        ValueError, match=r"of another size: its keys have shape .*, expected \[2, b, slots, 16, 2, 6\]"
    ):
        model.apply(params, jnp.zeros((3, 2, 8, 8, 1)), 0.0, {"cache": cache})
    with pytest.raises(ValueError, match="of another network"):
        model.apply(params, clip(2, b=3), 0.0, {"cache": built(depth=1)[0].empty_cache(3, slots=4)})
    blocks, weights = built(block=2)
    with pytest.raises(ValueError, match="in whole blocks of 2, .*; got 3"):
        blocks.remember(weights, clip(3, b=3), 0.0, {"cache": cache})
    other = build({**SMALL, "causal": False})
    assert other.remember is None
    with pytest.raises(ValueError, match="takes cond keys"):
        other.apply(other.init(KEY), clip(2), 0.0, {"cache": cache})


def test_a_stream_is_the_autoregressive_sample_of_the_whole_video():
    """Finished frames stand at the grid's end in both, and the future, noise, is not seen."""
    model, params = built(block=2)
    vp = schedules.vp_cosine()
    # From a level that is not all noise: what is there is of unit variance.
    grid, label = grids.uniform_logsnr(vp, 3, -2.0, 8.0), jnp.array([1, 2])

    def denoise(params, x, logsnr, cache=None):
        cond = {"label": label, **({} if cache is None else {"cache": cache})}
        return predictions.denoiser(model.apply, params, cond, schedule=vp, prediction="v")(x, logsnr)

    def remember(params, chunk, cache):
        return model.remember(params, chunk, jnp.float32(8.0), {"label": label, "cache": cache})

    streamed = frames.stream(
        jax.tree_util.Partial(denoise, params), jax.tree_util.Partial(remember, params), solvers.dpmpp(vp, grid),
        model.empty_cache(2, slots=6), 3, KEY, shape=(2, 2, 4, 4, 1), schedule=vp,
    )  # fmt: skip
    keys = [jax.random.split(jax.random.fold_in(KEY, i))[0] for i in range(3)]
    x = jnp.concatenate([jax.random.normal(k, (2, 2, 4, 4, 1)) for k in keys], axis=1)
    matrix = frames.autoregressive(grid, 6, block=2)
    table = solvers.dpmpp(vp, matrix, damping=float("inf"))
    whole = sampling.sample(jax.tree_util.Partial(denoise, params), table, x)
    np.testing.assert_allclose(streamed, whole, atol=5e-5)
