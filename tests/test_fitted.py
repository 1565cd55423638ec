"""Tables fitted to a denoiser, and grids optimised for one, in float32. (The default sampler: tests/float64/test_best64.py.)"""

import dataclasses
import itertools
import json
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import fitted, frames, grids, optimised, oracles, sampling, schedules, solvers
from diffusion.solvers.best import CANDIDATES, two_parameter_coordinate, warped_adams

VP = schedules.vp_linear()
INTERVALS = [(-10.0, 9.0), (-10.0, math.inf), (-math.inf, 9.0)]
STANDARD_DEVIATIONS = np.array([0.1, 0.5, 1.0, 3.0])


def gaussian():
    """Data whose exact probability flow is known in closed form."""
    return oracles.gaussian(np.array([1.0, -1.0, 0.0, 0.5]), np.diag(STANDARD_DEVIATIONS**2))


def start_of(nfe, ends, candidate=CANDIDATES[3]):
    table = candidate.table(VP, nfe, *ends, 1.0)
    return table, fitted.from_table(VP, np.append(table.logsnr, ends[1]), table)


def rmse(denoise, table, x, truth):
    return float(jnp.sqrt(jnp.mean((sampling.sample(denoise, table, x) - truth) ** 2)))


# Weights and tables -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", INTERVALS)
@pytest.mark.parametrize("nfe", [1, 2, 7])
def test_weights_of_a_builder_give_its_table_back(nfe, ends):
    for candidate in CANDIDATES[:5]:
        table, weights = start_of(nfe, ends, candidate)
        again = fitted.to_table(VP, fitted.Ends(*ends), weights)
        if candidate.nodes and math.isfinite(ends[0]):
            for a, b in zip(jax.tree.leaves(table), jax.tree.leaves(again), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        # Where nothing is corrected the anchor is written another way, so compare what the tables do.
        x, denoise = jnp.ones((3, 4)), gaussian().denoiser(VP)
        one, two = sampling.sample(denoise, table, x), sampling.sample(denoise, again, x)
        np.testing.assert_allclose(one, two, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("ends", INTERVALS)
@hypothesis.settings(max_examples=10)
@hypothesis.given(seed=st.integers(0, 2**31), size=st.floats(0.01, 2.0), nfe=st.integers(1, 9))
def test_a_constant_denoised_is_exact_whatever_was_learned(ends, seed, size, nfe):
    ends = fitted.Ends(*ends)
    _, start = start_of(nfe, ends)
    draw = np.random.default_rng(seed).standard_normal
    deviation = fitted.Weights(*(size * draw(np.shape(part)) for part in start))
    weights = fitted.deviate(start, fitted.usable(nfe, ends), deviation)
    np.testing.assert_allclose(weights.predict.sum(1), 1, rtol=1e-9)
    np.testing.assert_allclose(weights.correct[1:].sum(1), 1, rtol=1e-9)
    grid = fitted.levels(ends, weights.steps)
    assert grid[0] == ends.start and grid[-1] == ends.end and (np.diff(grid) > 0).all()
    assert (weights.predict[np.arange(nfe)[:, None] < np.arange(solvers.table.SLOTS)] == 0).all()
    x, constant = np.random.default_rng(1).standard_normal((5, 2)), 0.7
    table = fitted.to_table(VP, ends, weights)
    got = sampling.sample(lambda x, logsnr: jnp.full_like(x, constant), table, jnp.asarray(x, jnp.float32))
    ratio = VP.sigma(ends.end) / VP.sigma(ends.start)
    want = VP.alpha(ends.end) * constant + ratio * (x - VP.alpha(ends.start) * constant)
    np.testing.assert_allclose(got, want, atol=2e-4 * max(1.0, float(np.abs(deviation.predict).max())))


def test_traced_and_host_tables_agree_and_the_traced_one_has_gradients():
    ends = fitted.Ends(-10.0, math.inf)
    _, start = start_of(6, ends)
    traced = jax.jit(lambda weights: fitted.to_table(VP, ends, weights))(start)
    host = fitted.to_table(VP, ends, start)
    for a, b in zip(jax.tree.leaves(host), jax.tree.leaves(traced), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

    def end_point(weights):
        return sampling.sample(gaussian().denoiser(VP), fitted.to_table(VP, ends, weights), jnp.ones((1, 4))).sum()

    as_arrays = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), start)
    slope = jax.grad(end_point)(as_arrays)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slope))
    direction = np.linspace(-1, 1, 6)

    def moved(t):
        return float(end_point(as_arrays._replace(steps=as_arrays.steps + t * direction)))

    assert float(slope.steps @ direction) == pytest.approx((moved(0.02) - moved(-0.02)) / 0.04, rel=0.02)


# Fitting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [(-9.0, 8.0), (-9.0, math.inf), (-math.inf, 8.0)])
def test_a_fit_beats_its_start_against_the_exact_flow(ends):
    mix, nfe = gaussian(), 5
    denoise, flow = mix.denoiser(VP), mix.flow_map(VP)
    table, record = fitted.fit_recorded(
        denoise,
        VP,
        nfe,
        jax.random.key(0),
        shape=(4,),
        start=ends[0],
        end=ends[1],
        num_noises=128,
        iterations=80,
        num_starts=2,
    )
    assert table.nfe == nfe and record["kept"] and table.logsnr.dtype == np.float64
    x = jax.random.normal(jax.random.key(9), (256, 4)) * float(VP.sigma(ends[0]))
    truth = flow(x, jnp.float32(ends[0]), jnp.float32(ends[1]))
    candidates = [c.table(VP, nfe, *ends, 1.6) for c in CANDIDATES]
    public = solvers.unipc(VP, grids.karras(VP, nfe, *ends), 2)
    ours = rmse(denoise, table, x, truth)
    assert ours < 0.3 * min(rmse(denoise, candidate, x, truth) for candidate in candidates)
    assert ours < 0.05 * rmse(denoise, public, x, truth)
    # What the record says of noises that were held out is what another set of noises finds.
    assert record["errors"]["fitted"]["held_out"]["rmse"] == pytest.approx(ours, rel=0.6, abs=5e-6)
    if math.isinf(ends[1]):
        np.testing.assert_array_equal(table.final.history, [1, 0, 0, 0, 0])
        assert table.final.anchor == 0


def test_few_noises_never_give_a_table_worse_than_its_start_on_held_out_noises():
    mix = oracles.b2d()
    for seed in range(2):
        settings = dict(shape=(2,), num_noises=2, iterations=60, num_starts=1, reference_steps=100)
        table, record = fitted.fit_recorded(mix.denoiser(VP), VP, 4, jax.random.key(seed), **settings)
        before, after = (record["errors"][name]["held_out"]["loss"] for name in ("start", "fitted"))
        assert record["kept"] == (after < before)
        if not record["kept"]:  # then it is a builder's table, which has no weights so far back
            assert not np.any(table.predict.history[:, 3:])


def test_chunks_change_the_memory_and_not_the_loss_or_its_gradient():
    denoise, ends = jax.tree_util.Partial(oracles.b2d().denoiser(VP)), fitted.Ends(-9.0, 8.0)
    _, start = start_of(4, ends)
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), start)
    zero = jax.tree.map(jnp.zeros_like, start)
    x = jax.random.normal(jax.random.key(0), (1, 12, 2))
    truth = 3 * jax.random.normal(jax.random.key(1), (1, 12, 2))
    whole = fitted._descend(denoise, start, zero, x, truth, schedule=VP, ends=ends)
    parts = (a.reshape(3, 4, 2) for a in (x, truth))
    chunked = fitted._descend(denoise, start, zero, *parts, schedule=VP, ends=ends)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(chunked), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_chunked_fit_of_one_call_the_log_and_how_far_it_is(caplog):
    caplog.set_level("INFO", "diffusion.fitted")
    settings, said = dict(shape=(4,), num_noises=16, chunk=8, num_starts=1, iterations=5, reference_steps=50), []
    table = fitted.fit(
        gaussian().denoiser(VP), VP, 1, jax.random.key(0), **settings, progress=lambda *now: said.append(now)
    )
    assert table.nfe == 1 and "held-out" in caplog.text and "rmse" in caplog.text
    assert [done for done, _ in said] == list(range(1, len(said) + 1))
    # From the first builder's table that is tried, and never beyond what was promised.
    assert len(said) >= len(CANDIDATES) and {total for _, total in said} == {len(CANDIDATES) + 5}
    assert said[-1][0] <= len(CANDIDATES) + 5


# Which model a table was made for ---------------------------------------------------------------------------


def test_a_table_is_refused_for_another_model(tmp_path):
    mix = gaussian()
    settings = dict(shape=(4,), num_noises=16, iterations=3, num_starts=1, reference_steps=50)
    table, record = fitted.fit_recorded(mix.denoiser(VP), VP, 3, jax.random.key(0), end=math.inf, **settings)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    path = tmp_path / "table.npz"
    solvers.save(path, table, record)
    again, _ = solvers.load(path, fingerprint=fitted.fingerprint(jax.jit(mix.denoiser(VP)), VP, (4,)))
    np.testing.assert_array_equal(again.predict.history, table.predict.history)
    others = [
        fitted.fingerprint(
            oracles.gaussian(np.array([1.0, -1.0, 0.0, 0.6]), np.diag(STANDARD_DEVIATIONS**2)).denoiser(VP), VP, (4,)
        ),
        fitted.fingerprint(mix.denoiser(schedules.edm()), schedules.edm(), (4,)),
        fitted.fingerprint(oracles.gaussian(np.zeros(3), np.eye(3)).denoiser(VP), VP, (3,)),
    ]
    assert len({record["fingerprint"], *others}) == 4
    for other in others:
        with pytest.raises(ValueError, match="fingerprint"):
            solvers.load(path, fingerprint=other)


def test_a_fingerprint_does_not_change_with_rounding():
    denoise = gaussian().denoiser(VP)
    assert fitted.fingerprint(denoise, VP, (4,)) == fitted.fingerprint(
        lambda x, logsnr: denoise(x, logsnr) * (1 + 1e-6), VP, (4,)
    )


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(nfe=0), "nfe"),
        (dict(start=3.0, end=3.0), "up to end"),
        (dict(shape=None), "shape"),
        (dict(num_noises=0), "num_noises"),
        (dict(num_noises=10, chunk=3), "chunk"),
        (dict(iterations=0), "iterations"),
        (dict(num_starts=0), "num_starts"),
        (dict(denoise=lambda x, logsnr: x * jnp.nan), "not finite"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    settings = dict(denoise=gaussian().denoiser(VP), nfe=3, shape=(4,), num_noises=8, reference_steps=20) | settings
    denoise, nfe = settings.pop("denoise"), settings.pop("nfe")
    with pytest.raises(ValueError, match=message):
        fitted.fit(denoise, VP, nfe, jax.random.key(0), **settings)


# Optimised grids --------------------------------------------------------------------------------------------


def problem(num_points=12, schedule=VP, ends=(-9.0, 8.0), order=2):
    """Costs on a fine grid, and what they were made from."""
    denoise = oracles.b2d().denoiser(schedule)
    solved = optimised._solve(denoise, schedule, *ends, (2,), jax.random.key(0), 8, num_points)
    return optimised.costs(schedule, *solved, lambda logsnr: logsnr, order, True), solved


def path_cost(table, path):
    """The sum of the costs of the steps of a path 0 = p_0 < ... < p_N = M."""
    if len(path) == 2:
        return float(table.first[path[-1]])
    middle = sum(table.inner[k, i, j] for k, i, j in zip(path[:-3], path[1:-2], path[2:-1], strict=True))
    return float(table.first[path[1]] + middle + table.last[path[-3], path[-2]])


def test_the_path_is_the_cheapest_of_all():
    costs, (grid, *_) = problem()
    last = len(grid) - 1
    for steps in (1, 2, 3, 4, 6):
        paths = [np.array([0, *inner, last]) for inner in itertools.combinations(range(1, last), steps - 1)]
        cheapest = min(path_cost(costs, path) for path in paths)
        assert path_cost(costs, optimised.shortest(costs, steps)) == pytest.approx(cheapest, rel=1e-12)
    everything = optimised.shortest(costs, last)
    np.testing.assert_array_equal(everything, np.arange(last + 1))


def test_levels_that_wait_end_low_on_long_matrices_too():
    """Where they don't, a polynomial in a coordinate of its own diverges: 167 from a law that DDIM is .09 from."""
    matrix = frames.pyramid(grids.uniform_time(VP, 48), 8, lag=1)
    assert len(matrix) > 50
    made = [
        warped_adams(VP, matrix, two_parameter_coordinate(1.0, 3.0), 2, **given)
        for given in ({}, dict(lower_order_final=True), dict(lower_order_final=False))
    ]
    assert all(map(np.array_equal, jax.tree.leaves(made[0]), jax.tree.leaves(made[1])))
    assert not all(map(np.array_equal, jax.tree.leaves(made[0]), jax.tree.leaves(made[2])))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("coordinate", [lambda logsnr: logsnr, two_parameter_coordinate(0.7, 1.5)])
def test_costs_are_the_solvers_own_errors(order, coordinate):
    _, (grid, states, estimates, growth) = problem()
    costs = optimised.costs(VP, grid, states, estimates, growth, coordinate, order, False)
    for k, i, j in [(0, 1, 2), (1, 4, 9), (3, 5, 12)]:
        table = warped_adams(VP, grid[[k, i, j]], coordinate, order, lower_order_final=False)
        step = table.final.anchor * states[i] + sum(
            w * estimates[m] for w, m in zip(table.final.history, (i, k), strict=False)
        )
        error = growth[j] * np.linalg.norm(step - states[j], axis=-1).mean()
        got = costs.last[k, i] if j == 12 else costs.inner[k, i, j]
        assert got == pytest.approx(error, rel=1e-5)


def test_the_grid_is_the_same_in_every_scaling_and_legal_at_infinite_ends():
    ends = dict(start=-9.0, end=8.0, shape=(2,), key=jax.random.key(0), num_noises=8, num_points=48)
    mix = oracles.b2d()
    one = optimised.optimised(VP, 6, mix.denoiser(VP), **ends)
    two = optimised.optimised(schedules.flow(), 6, mix.denoiser(schedules.flow()), **ends)
    np.testing.assert_allclose(one, two, atol=0.6)  # neighbours on the fine grid may cost the same to rounding
    flow = schedules.flow()
    grid = optimised.optimised(flow, 5, mix.denoiser(flow), **(ends | dict(start=-math.inf, end=math.inf)))
    assert grid.shape == (6,) and grid[0] == -math.inf and grid[-1] == math.inf and np.isfinite(grid[1:-1]).all()


def test_an_optimised_grid_beats_the_usual_ones_on_noises_it_has_not_seen():
    mix, steps, ends = oracles.a1d(), 10, (-10.0, 9.0)
    denoise = mix.denoiser(VP)
    x = jax.random.normal(jax.random.key(5), (256, 1)) * float(VP.sigma(ends[0]))
    truth = oracles.probability_flow(denoise, np.asarray(x, np.float64), VP, *ends)
    best = optimised.optimised(VP, steps, denoise, *ends, shape=(1,), key=jax.random.key(0))

    def error(grid):
        return rmse(denoise, solvers.exponential_adams(VP, grid, 2), x, truth)

    for other in (grids.uniform_logsnr(VP, steps, *ends), grids.karras(VP, steps, *ends)):
        assert error(best) < 0.5 * error(other)
    assert error(best) < 1.1 * error(grids.two_parameter(VP, steps, *ends, c=1.0, rho=3.0))


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(num_steps=0), "nfe"),
        (dict(num_steps=20, num_points=10), "num_points"),
        (dict(start=2.0, end=1.0), "up to end"),
        (dict(key=None), "key"),
        (dict(order=3), "order"),
    ],
)
def test_bad_settings_of_a_grid_are_refused(settings, message):
    settings = dict(num_steps=4, shape=(2,), key=jax.random.key(0)) | settings
    with pytest.raises(ValueError, match=message):
        optimised.optimised(VP, denoise=oracles.b2d().denoiser(VP), **settings)


def test_a_denoiser_that_is_a_dataclass_has_its_arrays_as_arguments():
    """Of two weights two texts, and no program that holds the first."""

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Scaled:
        gain: jax.Array

        def __call__(self, x, logsnr):
            return self.gain * x

    one, other = (
        fitted.fingerprint(Scaled(jnp.asarray(gain)), schedules.vp_cosine(), (4,)) for gain in ([0.5] * 4, [0.9] * 4)
    )
    assert one != other
