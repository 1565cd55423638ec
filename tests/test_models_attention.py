"""Attention kinds and rotary positions against float64 NumPy, and the relative property of RoPE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import ATTENTION, JVP_KINDS, attention
from models.rope import axis_split, grid_turns, rotate
from models.splash import Ordered

# 37 tokens in chunks of 16: three chunks, of which the last is padded.
BATCH, TOKENS, HEADS, WIDTH = 2, 37, 3, 8


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(attention, "QUERY_CHUNK", 16)


def problem():
    rng = np.random.default_rng(0)
    return [rng.standard_normal((BATCH, TOKENS, HEADS, WIDTH)) for _ in range(4)]


def exact(q, k, v, g):
    """softmax(q k^T / sqrt(d)) v and its gradients for the output gradient g: float64, head by head."""
    out, grads = np.zeros_like(q), [np.zeros_like(q) for _ in range(3)]
    for b in range(BATCH):
        for h in range(HEADS):
            qh, kh, vh, gh = (x[b, :, h] for x in (q, k, v, g))
            scores = qh @ kh.T / np.sqrt(WIDTH)
            p = np.exp(scores - scores.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            out[b, :, h] = p @ vh
            for i in range(TOKENS):
                # The softmax's Jacobian written out: diag(p) - p p^T.
                jacobian = np.diag(p[i]) - np.outer(p[i], p[i])
                ds = jacobian @ (vh @ gh[i]) / np.sqrt(WIDTH)
                grads[0][b, i, h] = ds @ kh
                grads[1][b, :, h] += np.outer(ds, qh[i])
                grads[2][b, :, h] += np.outer(p[i], gh[i])
    return out, grads


@pytest.mark.parametrize("kind", ATTENTION)
def test_value_and_gradient_are_exact(kind):
    q, k, v, g = problem()
    want, want_grads = exact(q, k, v, g)
    f32 = [jnp.asarray(x, jnp.float32) for x in (q, k, v, g)]

    @jax.jit
    def run(q, k, v, g):
        out, pullback = jax.vjp(ATTENTION[kind], q, k, v)
        return out, pullback(g)

    out, grads = run(*f32)
    np.testing.assert_allclose(out, want, atol=1e-5)
    for got, wanted in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ATTENTION)
def test_large_scores_stay_finite(kind):
    q, k, v, _ = (jnp.asarray(x, jnp.float32) for x in problem())

    def total(q):
        return jnp.sum(ATTENTION[kind](100 * q, 100 * k, v))

    value, grad = jax.jit(jax.value_and_grad(total))(q)
    assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize("kind", JVP_KINDS)
def test_jvp_is_the_slope_of_the_exact_value(kind):
    q, k, v, direction = problem()
    step = 1e-5
    slope = (exact(q + step * direction, k, v, v)[0] - exact(q - step * direction, k, v, v)[0]) / (2 * step)
    q, k, v, direction = (jnp.asarray(x, jnp.float32) for x in (q, k, v, direction))
    tangent = jax.jit(lambda q, d: jax.jvp(lambda q: ATTENTION[kind](q, k, v), (q,), (d,))[1])(q, direction)
    np.testing.assert_allclose(tangent, slope, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in ATTENTION if kind not in JVP_KINDS])
def test_the_other_kinds_have_no_forward_derivative(kind):
    q = jnp.ones((1, 4, 1, 8))
    with pytest.raises((TypeError, ValueError), match="forward-mode|custom_vjp|jvp"):
        jax.jvp(lambda q: ATTENTION[kind](q, q, q), (q,), (q,))


def test_an_unknown_kind_is_refused_by_name():
    with pytest.raises(KeyError, match="did you mean 'fused'"):
        attention.attention_kind("fusd")


def test_one_chunk_equals_many(monkeypatch):
    q, k, v, _ = (jnp.asarray(x, jnp.float32) for x in problem())
    many = ATTENTION["fused"](q, k, v)
    monkeypatch.setattr(attention, "QUERY_CHUNK", 64)
    np.testing.assert_allclose(ATTENTION["fused"](q, k, v), many, atol=1e-6)


@pytest.mark.parametrize("kind", ATTENTION)
def test_bfloat16_goes_in_and_out(kind):
    q, k, v, g = problem()
    out = jax.jit(ATTENTION[kind])(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), exact(q, k, v, g)[0], atol=0.03)


@pytest.mark.parametrize("head_dim", [6, 8, 32, 48, 64, 128])
def test_every_channel_of_a_head_turns_with_one_axis(head_dim):
    split = axis_split(head_dim)
    assert sum(split) == head_dim and all(width % 2 == 0 and width > 0 for width in split)
    assert grid_turns(2, 3, 4, head_dim, 100.0).shape == (2, 24, head_dim // 2)


def test_scores_depend_on_position_differences_alone():
    """q at p + d against k at p is the same number for every p: all pairs of a 3 x 4 x 5 grid."""
    rng = np.random.default_rng(1)
    grid, width = (3, 4, 5), 32
    turns = grid_turns(*grid, width, 100.0)
    q, k = (jnp.asarray(rng.standard_normal(width), jnp.float32) for _ in range(2))
    tokens = int(np.prod(grid))
    turned_q = rotate(jnp.broadcast_to(q, (1, tokens, 1, width)), turns)[0, :, 0]
    turned_k = rotate(jnp.broadcast_to(k, (1, tokens, 1, width)), turns)[0, :, 0]
    scores = np.asarray(turned_q @ turned_k.T)
    positions = np.indices(grid).reshape(3, -1).T
    groups = {}
    for i, p in enumerate(positions):
        for j, r in enumerate(positions):
            groups.setdefault(tuple(p - r), []).append(scores[i, j])
    assert max(np.ptp(values) for values in groups.values()) < 1e-4
    # Different differences do give different scores, on every axis.
    assert len({round(float(np.mean(values)), 3) for values in groups.values()}) > 0.9 * len(groups)
    np.testing.assert_allclose(groups[(0, 0, 0)][0], float(q @ k), atol=1e-4)


def test_rotation_keeps_lengths_and_longer_clips_extend_shorter_ones():
    turns = grid_turns(6, 2, 2, 12, 100.0)
    np.testing.assert_array_equal(turns[:, :8], grid_turns(2, 2, 2, 12, 100.0))
    x = jax.random.normal(jax.random.key(0), (2, 24, 3, 12))
    np.testing.assert_allclose(jnp.linalg.norm(rotate(x, turns), axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)


def test_the_table_of_turns_is_made_by_the_program_and_not_written_into_it():
    """As a constant it would stand in a program once for every call of the network, of 30k tokens 8 MB each."""

    def written(*grid):
        x = jax.ShapeDtypeStruct((1, int(np.prod(grid)), 1, 32), jnp.float32)
        return len(jax.jit(lambda x: rotate(x, grid_turns(*grid, 32, 100.0))).lower(x).as_text())

    assert written(8, 16, 16) < 1.5 * written(4, 8, 8) < written(8, 16, 16) + 20_000


@pytest.mark.parametrize("head_dim", [4, 7, 33])
def test_heads_that_do_not_split_are_refused(head_dim):
    with pytest.raises(ValueError, match=f"even width of at least 6, got {head_dim}"):
        axis_split(head_dim)


@pytest.mark.parametrize("kind", ATTENTION)
def test_an_order_masks_what_is_later(kind):
    """Against attention over the keys that a query may see, one query at a time; keys of number infinity are not there."""
    q, k, v, _ = (jnp.asarray(x, jnp.float32) for x in problem())
    rows = np.arange(TOKENS) // 5.0
    columns = np.where(np.arange(TOKENS) % 7 == 3, np.inf, rows)
    out = jax.jit(lambda q, k, v: ATTENTION[kind](q, k, v, (rows, columns)))(q, k, v)
    if kind != "splash":
        np.testing.assert_array_equal(jax.jit(ATTENTION[kind])(q, k, v, (rows, columns)), out)
    for i in (0, 4, 5, 20, 36):
        seen = np.flatnonzero(np.asarray(columns) <= rows[i])
        alone = attention.plain(q[:, i : i + 1], k[:, seen], v[:, seen])
        np.testing.assert_allclose(out[:, i : i + 1], alone, atol=1e-5)


@pytest.mark.parametrize("kind", ATTENTION)
def test_more_keys_than_queries(kind):
    """As with a cache of 600 tokens: more than a block of the TPU's kernel, not a multiple of any."""
    rng = np.random.default_rng(2)
    q, k, v = (jnp.asarray(rng.standard_normal((1, n, 2, 8)), jnp.float32) for n in (20, 620, 620))
    columns = np.arange(620) // 10.0
    order = (columns[600:], columns)
    out = jax.jit(lambda q, k, v: ATTENTION[kind](q, k, v, order))(q, k, v)
    np.testing.assert_allclose(out[:, :10], attention.plain(q[:, :10], k[:, :610], v[:, :610]), atol=1e-5)
    np.testing.assert_allclose(out[:, 10:], attention.plain(q[:, 10:], k, v), atol=1e-5)


def test_the_tpu_kernel_has_no_masks_that_depend_on_data():
    q = jnp.ones((1, 4, 1, 8))
    with pytest.raises(ValueError, match="'splash' has no masks that depend on data, .* attention 'fused'"):
        jax.jit(ATTENTION["splash"])(q, q, q, (jnp.zeros(4), jnp.zeros(4)))


def test_a_mask_is_made_block_by_block():
    """The kernel knows masks by their content: equal ones are one, and any block is that of the whole."""
    rows, columns = np.arange(6) // 2.0, np.arange(8) // 3.0
    mask = Ordered(rows, columns)
    whole = columns[None] <= rows[:, None]
    assert mask.shape == whole.shape == (6, 8)
    np.testing.assert_array_equal(mask[2:4, 1:7], whole[2:4, 1:7])
    assert mask == Ordered(rows.copy(), columns) and hash(mask) == hash(Ordered(rows.copy(), columns))
    assert mask != Ordered(rows, columns + 1)
