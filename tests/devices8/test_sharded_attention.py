"""Attention with batch, heads and tokens split over eight devices: value, gradient and causality are those of one device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import mesh as meshes
from models import ATTENTION, JVP_KINDS, attention, build

MESHES = {
    "tokens": dict(context=4, data=2),
    "tokens, heads, batch": dict(data=2, context=2, tensor=2),
    "heads": dict(data=1, fsdp=2, tensor=4),
}
BATCH, HEADS, WIDTH = 2, 4, 8


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(attention, "QUERY_CHUNK", 16)


def problem(queries, keys):
    rng = np.random.default_rng(0)
    q, k, v, g = (rng.standard_normal((BATCH, n, HEADS, WIDTH), np.float32) for n in (queries, keys, keys, queries))
    return q, k, v, g


def blocks(queries, keys, frame=5):
    """Blocks of `frame` tokens in order, the last key's block that of the last query."""
    columns = np.arange(keys, dtype=np.float32) // frame
    return columns[keys - queries :], columns


def on(mesh, function):
    """A jit of the function in the mesh's context, as the loop makes its phases."""

    def inside(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return lambda *arguments: jax.jit(inside)(*jax.device_put(arguments, meshes.replicated(mesh)))


def value_and_gradients(kind, order):
    def run(q, k, v, g):
        out, pullback = jax.vjp(lambda q, k, v: ATTENTION[kind](q, k, v, order), q, k, v)
        return out, *pullback(g)

    return run


# Lengths that no axis divides, and keys of a cache before those of the queries.
@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("lengths, ordered", [((40, 40), False), ((40, 40), True), ((37, 37), True), ((10, 37), True)])
@pytest.mark.parametrize("kind", [kind for kind in ATTENTION if kind != "splash"])
def test_value_and_gradient_are_those_of_one_device(kind, lengths, ordered, sizes):
    given, order = problem(*lengths), blocks(*lengths) if ordered else None
    want = jax.jit(value_and_gradients("xla", order))(*given)
    found = on(meshes.make(MESHES[sizes]), value_and_gradients(kind, order))(*given)
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("sizes, ordered", [("tokens, heads, batch", False), ("tokens", True)])
def test_the_tpu_kernel_is_interpreted_to_the_same(sizes, ordered):
    given, order = problem(37, 37), blocks(37, 37) if ordered else None
    want = jax.jit(value_and_gradients("xla", order))(*given)
    found = on(meshes.make(MESHES[sizes]), value_and_gradients("splash", order))(*given)
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("kind", JVP_KINDS)
def test_derivatives_forward(kind):
    q, k, v, direction = problem(37, 37)
    order = blocks(37, 37)

    def tangent(kind):
        return lambda q, k, v, d: jax.jvp(lambda q, k: ATTENTION[kind](q, k, v, order), (q, k), (d, d))[1]

    want = jax.jit(tangent("xla"))(q, k, v, direction)
    found = on(meshes.make(MESHES["tokens, heads, batch"]), tangent(kind))(q, k, v, direction)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("kind", ATTENTION)
def test_an_order_that_is_an_argument(kind):
    """As a cache's is, which fills up while a program runs."""
    q, k, v, _ = problem(10, 37)
    mesh, order = meshes.make(MESHES["tokens"]), blocks(10, 37)
    if kind == "splash":
        with pytest.raises(ValueError, match="attention 'splash' has no masks that depend on data"):
            on(mesh, ATTENTION[kind])(q, k, v, order)
        return
    np.testing.assert_allclose(on(mesh, ATTENTION[kind])(q, k, v, order), attention.plain(q, k, v, order), atol=1e-5)


@pytest.mark.parametrize("kind", ["ulysses", "splash"])
def test_heads_that_context_does_not_divide_are_refused_by_name(kind):
    q, k, v, _ = problem(40, 40)
    message = f"attention '{kind}' splits heads over the mesh axis 'context': 4 heads do not divide by 8; .* 'ring'"
    for sizes in (dict(data=1, context=8), dict(data=1, context=4, tensor=2)):
        with pytest.raises(ValueError, match=message):
            on(meshes.make(sizes), ATTENTION[kind])(q, k, v)


@pytest.mark.parametrize("kind", ["ring", "fused", "ulysses"])
def test_no_device_has_the_scores_of_all_tokens(kind):
    """The largest array in a device's program, of an eighth of the queries or of the heads, against the 64 x 64 of 4 heads."""
    mesh = meshes.make(dict(data=2, context=4))
    q, k, v = jax.device_put(problem(64, 64)[:3], jax.NamedSharding(mesh, jax.P("data", "context")))

    def inside(q, k, v):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return ATTENTION[kind](q, k, v)

    text = jax.jit(inside).lower(q, k, v).compile().as_text()
    sizes = [int(np.prod([int(n) for n in shape.split(",")])) for shape in re.findall(r"f32\[([\d,]+)\]", text)]
    assert max(sizes) == {"ring": 4 * 16 * 16, "fused": 4 * 16 * 64, "ulysses": 64 * 64}[kind]


CAUSAL = dict(
    kind="dit", shape=(6, 4, 4, 1), num_classes=3, width=24, depth=2, head_dim=6, mlp_ratio=2, causal=True, block=2
)


@pytest.mark.parametrize("kind", ATTENTION)
def test_a_change_of_the_future_does_not_move_the_past(kind):
    model = build({**CAUSAL, "attention": kind})
    params = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), model.init(jax.random.key(0))
    )
    x, level = jax.random.normal(jax.random.key(1), (2, 6, 4, 4, 1)), jnp.linspace(-3, 3, 6)[None]
    apply = on(meshes.make(MESHES["tokens, heads, batch"]), model.apply)
    before, after = apply(params, x, level), apply(params, x.at[:, 4].add(1.0), level)
    np.testing.assert_allclose(before, jax.jit(build(CAUSAL).apply)(params, x, level), atol=1e-5)
    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    assert all(np.abs(after[:, f] - before[:, f]).max() > 1e-4 for f in (4, 5))


def test_devices_exchange_whole_tiles_of_tokens():
    """Of 24 tokens four devices would have six each: they are filled up to 16 each, here and after the exchange."""
    model, mesh = build({**CAUSAL, "attention": "ulysses"}), meshes.make(MESHES["tokens"])

    def inside(params, x, level):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return model.apply(params, x, level)

    shapes = jax.eval_shape(model.init, jax.random.key(0)), jnp.zeros((2, 6, 4, 4, 1)), jnp.zeros((1, 6))
    everywhere = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=meshes.replicated(mesh)), shapes
    )
    text = jax.jit(inside).lower(*everywhere).as_text()
    exchanged = set(re.findall(r"all_to_all.*?\(tensor<([\dx]+)xf32>\)", text))
    assert exchanged == {"1x16x4x6", "1x64x1x6"}


@pytest.mark.parametrize("kind", [kind for kind in ATTENTION if kind != "splash"])
def test_a_cache_is_the_whole_video(kind):
    model = build({**CAUSAL, "attention": kind})
    params = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), model.init(jax.random.key(0))
    )
    x, level = jax.random.normal(jax.random.key(1), (2, 6, 4, 4, 1)), jnp.full((1, 6), 2.0)
    mesh = meshes.make(MESHES["tokens"])

    def streamed(params, x):
        cache = model.empty_cache(2, slots=5)
        cache = model.remember(params, x[:, :4], level[:, :4], {"cache": cache})
        return model.apply(params, x[:, 4:], level[:, 4:], {"cache": cache})

    np.testing.assert_allclose(on(mesh, streamed)(params, x), model.apply(params, x, level)[:, 4:], atol=1e-5)
