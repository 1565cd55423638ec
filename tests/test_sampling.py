"""`sample`: one program for every sampler of a shape, equal to a plain loop over the rows, and clear refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import grids, guidance, levels, sampling, schedules, solvers
from models import build

COSINE = schedules.vp_cosine()
X = jax.random.normal(jax.random.key(0), (4, 3, 2))


def network(traces):
    """A denoiser whose weight is an argument and which counts how often it is traced."""

    def denoise(weight, x, logsnr):
        traces.append(None)
        return jnp.tanh(weight * x) * levels.expand(COSINE.alpha(logsnr), x)

    return functools.partial(jax.tree_util.Partial, denoise)


def grid(n, **ends):
    return grids.uniform_logsnr(COSINE, n, **{"start": -8.0, "end": 8.0, **ends})


def test_other_samplers_weights_and_guidance_compile_nothing():
    traces = []
    make = network(traces)

    def guided(weight, scale):
        return guidance.classifier_free(make(jnp.float32(weight)), make(jnp.float32(0.2)), scale)

    results = []
    for table in (
        solvers.ddim(COSINE, grid(6)),
        solvers.dpmpp(COSINE, grid(6)),
        solvers.unipc(COSINE, grid(6), order=2),
    ):
        for weight, scale in ((0.7, 1.5), (0.4, 1.5), (0.4, 4.0)):
            results.append(np.asarray(sampling.sample(guided(weight, scale), table, X)))
    assert len(traces) == 2, "one program: the network is traced once for each of its two calls"
    assert len({r.tobytes() for r in results}) == 9, "and yet nine different results"


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_scan_is_the_loop_over_the_rows(eta):
    denoise = network([])(jnp.float32(0.6))
    table = solvers.ddim(COSINE, grid(5), eta=eta) if eta else solvers.dpmpp(COSINE, grid(5), order=2)
    key = jax.random.key(7)
    anchor, history = np.asarray(X), [np.zeros(X.shape)] * table.slots

    def predict(weights, i):
        point = (
            weights.anchor * anchor + weights.bias + sum(w * h for w, h in zip(weights.history, history, strict=True))
        )
        drawn = np.asarray(jax.random.normal(jax.random.fold_in(key, i), X.shape)) if eta else 0.0
        return point + weights.noise * drawn

    for i in range(table.nfe):
        p, r, c = (
            jax.tree.map(lambda leaf, i=i: leaf[i], part) for part in (table.predict, table.remember, table.correct)
        )
        point = predict(p, i)
        denoised = np.asarray(denoise(jnp.asarray(point, jnp.float32), jnp.float32(table.logsnr[i])))
        history = [r.point * point + r.denoised * denoised, *history[:-1]]
        mixed = sum(w * h for w, h in zip(c.history, history, strict=True))
        anchor = c.anchor * anchor + c.point * point + mixed + c.bias
    expected = predict(table.final, table.nfe)
    np.testing.assert_allclose(sampling.sample(denoise, table, X, key), expected, atol=2e-5)


def test_program_and_memory_do_not_grow_with_the_steps():
    denoise = network([])(jnp.float32(0.6))
    sizes = []
    for n in (4, 1000):
        table = solvers.dpmpp(COSINE, grid(n))
        run = jax.jit(lambda denoise, table, x: sampling.sample(denoise, table, x))
        compiled = run.lower(denoise, table, X).compile()
        sizes.append((compiled.as_text().count("\n"), compiled.memory_analysis().temp_size_in_bytes))
    assert sizes[0] == sizes[1]


def test_collect_progress_and_a_noise_source():
    table = solvers.ddim(COSINE, grid(5), eta=1.0)
    denoise = network([])(jnp.float32(0.6))
    seen = []
    result, visited = sampling.sample(
        denoise,
        table,
        X,
        jax.random.key(1),
        collect=lambda point, denoised, logsnr: logsnr,
        progress=lambda i, n: seen.append((int(i), n)),
    )
    jax.effects_barrier()
    np.testing.assert_allclose(visited, table.logsnr, rtol=1e-6)
    assert sorted(seen) == [(i, 5) for i in range(1, 6)]
    still = sampling.sample(
        denoise, table, X, jax.random.key(1), noise=lambda key, shape, dtype: jnp.zeros(shape, dtype)
    )
    assert not np.allclose(result, still)
    other = sampling.sample(
        denoise, table, X, jax.random.key(2), noise=lambda key, shape, dtype: jnp.zeros(shape, dtype)
    )
    np.testing.assert_array_equal(still, other)


@pytest.mark.parametrize("churn", [0.0, 4.0])
@pytest.mark.parametrize("schedule", [schedules.edm(), schedules.vp_cosine()])
def test_a_sample_begins_as_large_as_the_noisy_data_where_the_network_is_called(schedule, churn):
    """With churn that is a noisier level than the grid's first, and the first row adds what lies between."""
    table = solvers.euler(schedule, grids.karras(schedule, 4, end=np.inf), churn=churn)
    x = sampling.normal(jax.random.key(0), (4096, 16), "float32") * sampling.starting(table, schedule, (4096, 16))
    np.testing.assert_allclose(x.std(), schedule.size(schedule.logsnr_start), rtol=0.01)

    def called(point, denoised, logsnr):
        return point.std(), logsnr

    _, (sizes, at) = sampling.sample(lambda x, logsnr: 0 * x, table, x, jax.random.key(1), collect=called)
    np.testing.assert_allclose(sizes[0], schedule.size(np.asarray(at[0], np.float64)), rtol=0.01)
    assert (at[0] < schedule.logsnr_start - 0.1) == (churn > 0)


def test_denoisers_of_two_classes_are_two_programs():
    """Structures of two dataclass nodes with as many fields are equal (jaxlib 0.10), and jit finds programs by them."""

    @dataclasses.dataclass(frozen=True)
    class Half:
        a: float

        def __call__(self, x, logsnr):
            return self.a * x / 2

    @dataclasses.dataclass(frozen=True)
    class Third:
        a: float

        def __call__(self, x, logsnr):
            return self.a * x / 3

    for kind in (Half, Third):
        jax.tree_util.register_dataclass(kind, ["a"], [])
    half, third, other = (jax.tree.structure(sampling.tree(one)) for one in (Half(1.0), Third(1.0), Half(2.0)))
    assert half != third and half == other
    assert sampling.tree(Third(2.0))(3.0, 0.0) == 2.0


def test_donated_gives_the_same():
    table, denoise = solvers.ddim(COSINE, grid(3)), network([])(jnp.float32(0.6))
    kept = sampling.sample(denoise, table, X)
    np.testing.assert_array_equal(kept, sampling.sample_donated(denoise, table, jnp.copy(X)))


def test_a_waiting_frame_is_left_alone():
    """Frames move one after the other; a frame whose level does not change keeps its values to the last bit."""
    schedule = np.array([[-8.0, -8.0, -8.0], [8.0, -8.0, -8.0], [8.0, 8.0, -8.0], [8.0, 8.0, 8.0]])[:, None]
    table = solvers.dpmpp(COSINE, schedule)
    assert table.level_shape == (1, 3)
    _, points = sampling.sample(network([])(jnp.float32(0.6)), table, X, collect=lambda point, denoised, logsnr: point)
    np.testing.assert_array_equal(points[1][:, 1:], X[:, 1:])
    np.testing.assert_array_equal(points[2][:, 2], X[:, 2])
    np.testing.assert_array_equal(points[2][:, 0], points[1][:, 0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d: sampling.sample(d, solvers.ddim(COSINE, grid(3), eta=1.0), X), "needs key"),
        (lambda d: sampling.sample(d, solvers.ddim(COSINE, grid(3)[:, None] + np.zeros(5)), X), "batch"),
        (lambda d: sampling.sample(d, solvers.ddim(COSINE, grid(3)[:, None, None] + np.zeros((1, 7))), X), "axis 1"),
        (lambda d: sampling.sample(d, solvers.ddim(COSINE, grid(3)), jnp.zeros((4, 3), jnp.int32)), "floating-point"),
        (lambda d: solvers.ddim(COSINE, grid(3)[::-1]), "rise"),
        (lambda d: solvers.ddim(COSINE, grid(3)[:1]), "N of at least 1"),
        (lambda d: solvers.ddim(COSINE, grid(3), eta=1.5), "eta"),
    ],
)
def test_bad_input_is_refused_before_anything_is_traced(call, words):
    traces = []
    with pytest.raises(ValueError, match=words):
        call(network(traces)(jnp.float32(0.5)))
    assert not traces


@pytest.mark.parametrize("answer", [lambda x: x[:, :1], lambda x: x.mean(0, keepdims=True), lambda x: x[..., 0]])
def test_an_answer_of_another_shape_is_refused_where_it_would_broadcast(answer):
    with pytest.raises(ValueError, match=r"denoise answered with shape \(.*\), expected that of its x, \(4, 3, 2\)"):
        sampling.sample(lambda x, logsnr: answer(x), solvers.ddim(COSINE, grid(2)), X)


def test_tables_are_saved_with_what_they_were_made_for(tmp_path):
    path = tmp_path / "table.npz"
    table = solvers.dpmpp(COSINE, grid(4))
    record = {"schedule": schedules.record(COSINE), "nfe": 4}
    solvers.save(path, table, record)
    loaded, found = solvers.load(path, nfe=4)
    assert found == record and jax.tree.structure(loaded) == jax.tree.structure(table)
    jax.tree.map(np.testing.assert_array_equal, loaded, table)
    with pytest.raises(ValueError, match="made for nfe = 4, not 5"):
        solvers.load(path, nfe=5)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="damaged"):
        solvers.load(path)
    assert "4 calls" in table.describe()


@pytest.mark.parametrize("make", [solvers.ddim, solvers.dpmpp, solvers.unipc])
def test_unrolled_a_sampler_costs_its_network_calls_and_nothing_to_speak_of(make):
    definition = build(
        {"kind": "dit", "shape": (4, 16, 16, 1), "num_classes": 0, "width": 96, "depth": 2, "scan": False}
    )
    params, x = definition.init(jax.random.key(0)), jnp.zeros((1, *definition.shape))
    table = jax.tree.map(jnp.float32, make(COSINE, grid(5)))

    def network(params, x, logsnr):
        return definition.apply(params, x, logsnr, {})

    def unrolled(params, table, x):
        carry, rows = sampling.start(table, x), sampling.rows(table)
        for i in range(table.nfe):
            row = jax.tree.map(lambda leaf: leaf[i], rows)  # noqa: B023
            carry, _ = sampling.step(jax.tree_util.Partial(network, params), carry, row, None)
        return sampling.predict(table.final, carry, None)

    def flops(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    ratio = flops(unrolled, params, table, x) / (table.nfe * flops(network, params, x, jnp.float32(0.0)))
    assert 0.99 < ratio <= 1.001
