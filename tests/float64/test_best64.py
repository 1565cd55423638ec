"""The default sampler: exponential Adams in the coordinate of its grid, the choice by probing, and fitted tables' accuracy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from diffusion import fitted, grids, oracles, sampling, schedules, solvers
from diffusion.solvers.best import (
    CANDIDATES,
    Candidate,
    best,
    mean_powers,
    rule,
    two_parameter_coordinate,
    warped_adams,
)

VP = schedules.vp_linear()
START, END = -2 * math.log(157.4), -2 * math.log(0.01)


@functools.cache
def noise_and_truth(kind, schedule, n, seed=3):
    """Noise at START and where DOP853 takes it, both in the frame x / alpha at END."""
    mix = kind()
    z = np.random.default_rng(seed).standard_normal((n, *mix.shape))
    x = schedule.sigma(START) * z
    return x, oracles.probability_flow(mix.denoiser(schedule), x, schedule, START, END)


def errors(kind, schedule, table, n=128):
    """Each sample's root mean square error against DOP853, in the frame x / alpha."""
    x, truth = noise_and_truth(kind, schedule, n)
    got = sampling.sample(kind().denoiser(schedule), table, jnp.asarray(x))
    return np.sqrt(((np.asarray(got) - truth) ** 2).mean(-1)) / schedule.alpha(END)


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


# The family -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order, corrector", [(1, False), (2, False), (3, True)])
@pytest.mark.parametrize("end", [END, math.inf])
def test_in_log_snr_it_is_exponential_adams(order, corrector, end):
    grid = grids.two_parameter(VP, 9, START, end, c=0.5, rho=2.0)
    ours = warped_adams(VP, grid, lambda l: l, order, nodes=(order + 1) * corrector, lower_order_final=False)
    theirs = solvers.exponential_adams(VP, grid, order, corrector=corrector, lower_order_final=False)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_moments_are_integrals():
    coordinate = two_parameter_coordinate(0.7, 1.5)
    for here, there in [(-10.0, -9.0), (-10.0, 9.0), (0.3, 0.31)]:

        def density(l, there=there):
            return math.exp((l - there) / 2) / 2  # s_t d(1/s)

        def u(l, here=here, there=there):
            return float((coordinate(l) - coordinate(here)) / (coordinate(there) - coordinate(here)))

        total = quad(density, here, there, epsabs=0, epsrel=1e-12)[0]
        want = [quad(lambda l, j=j: density(l) * u(l) ** j, here, there, epsrel=1e-11)[0] / total for j in range(5)]
        got = mean_powers(np.float64(here), np.float64(there), coordinate, 5)
        np.testing.assert_allclose(got, want, rtol=1e-8)


def test_a_step_is_exact_for_a_denoiser_that_is_a_polynomial_in_the_coordinate():
    coordinate = two_parameter_coordinate(0.7, 1.5)
    grid = grids.two_parameter(VP, 7, START, END, c=0.7, rho=1.5)
    polynomial = np.polynomial.Polynomial([0.3, -1.0, 0.7])
    # Every update of full order, also on a grid that is not uniform in the coordinate.
    for levels in (grid, grids.karras(VP, 7, START, END)):
        table = warped_adams(VP, levels, coordinate, 3, nodes=3, lower_order_final=False)
        for i in range(3, 7):
            values = polynomial(coordinate(levels[i - 1 :: -1]))
            corrected = polynomial(coordinate(levels[i::-1]))
            s = np.exp(-levels[i] / 2)
            exact = (
                VP.alpha(levels[i])
                * quad(
                    lambda l, s=s: s * math.exp(l / 2) / 2 * float(polynomial(coordinate(np.float64(l)))),
                    levels[i - 1],
                    levels[i],
                    epsrel=1e-12,
                )[0]
            )
            assert table.predict.history[i, :3] @ values[:3] == pytest.approx(exact, rel=1e-8)
            assert table.correct.history[i, :3] @ corrected[:3] == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize(
    "order, nodes, least", [(1, 0, 0.9), (2, 0, 1.8), (2, 2, 1.8), (2, 3, 2.6), (3, 3, 2.6), (3, 4, 3.2)]
)
def test_measured_order(order, nodes, least):
    coordinate = two_parameter_coordinate(1.0, 2.0)
    counts, found = (20, 40, 80, 160), []
    for n in counts:
        grid = grids.two_parameter(VP, n, START, END, c=1.0, rho=2.0)
        table = warped_adams(VP, grid, coordinate, order, nodes=nodes, lower_order_final=False)
        found.append(rms(errors(oracles.a1d, VP, table)))
    assert -np.polyfit(np.log(counts), np.log(found), 1)[0] > least


def test_no_nan_in_any_candidate():
    for schedule in (VP, schedules.edm(), schedules.flow(), schedules.vp_cosine()):
        starts = [schedule.logsnr_start] + ([-math.inf] if np.isfinite(schedule.sigma(-np.inf)) else [])
        for start in starts:
            for end in (schedule.logsnr_end, math.inf):
                for nfe in (1, 2, 3, 4, 5, 12, 60):
                    for candidate in (*CANDIDATES[:5], *CANDIDATES[-5:]):
                        table = candidate.table(schedule, nfe, start, end, 1.0)  # assemble refuses what is not finite
                        assert table.nfe == nfe and table.logsnr[0] == start and not table.stochastic


# The choice -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [VP, schedules.flow()])
@pytest.mark.parametrize("kind, summary", [(oracles.a1d, rms), (oracles.b2d, np.median)])
def test_probing_beats_the_best_of_the_usual_samplers(schedule, kind, summary):
    """The geometric mean over numbers of calls, against the best of nine samplers, chosen with the truth in hand."""
    ratios, denoise = [], kind().denoiser(schedule)
    for nfe in (5, 8, 15):
        table = best(schedule, denoise, nfe, START, END, shape=kind().shape, key=jax.random.key(0))
        assert table.nfe == nfe
        makers = (grids.karras, grids.uniform_logsnr, grids.uniform_time)
        rivals = []
        for grid in (make(schedule, nfe, START, END) for make in makers):
            rivals += [solvers.dpmpp(schedule, grid, 2), *(solvers.unipc(schedule, grid, order) for order in (2, 3))]
        least = min(summary(errors(kind, schedule, rival)) for rival in rivals)
        ratios.append(summary(errors(kind, schedule, table)) / least)
    assert np.exp(np.mean(np.log(ratios))) < 1


def test_the_choice_follows_the_scale_of_the_data():
    small, large = (oracles.gaussian_mixture([0.4, 0.6], [[-2 * k], [2 * k]], [k**2] * 2) for k in (0.01, 100.0))
    tables = []
    for mix, k in ((small, 0.01), (large, 100.0)):
        shift = -2 * math.log(k)
        tables.append(
            best(schedules.edm(), mix.denoiser(schedules.edm()), 8, -9 + shift, 8 + shift, (1,), jax.random.key(0))
        )
        tables[-1] = tables[-1].logsnr - shift
    np.testing.assert_allclose(tables[0], tables[1], atol=1e-3)


def test_choosing_compiles_one_program_for_all_candidates_and_is_repeatable():
    denoise = jax.tree_util.Partial(lambda x, logsnr: x * jax.nn.sigmoid(logsnr))
    before = sampling._sample_kept._cache_size()
    one = best(VP, denoise, 6, shape=(3,), key=jax.random.key(0), num_noises=16)
    assert sampling._sample_kept._cache_size() - before == 2  # the fine solve and the candidates
    two = best(VP, denoise, 6, shape=(3,), key=jax.random.key(0), num_noises=16)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("nfe", [1, 2, 5, 6, 10, 25, 100])
@pytest.mark.parametrize("end", [None, math.inf])
def test_without_a_denoiser_to_ask_there_is_a_rule(nfe, end):
    table = best(VP, None, nfe, end=end)
    assert table.nfe == nfe and isinstance(rule(nfe), Candidate)
    if nfe == 100:
        assert rms(errors(oracles.a1d, VP, best(VP, None, nfe, START, END))) < 1e-4


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(nfe=0), "nfe"),
        (dict(start=4.0, end=1.0), "up to end"),
        (dict(shape=(2,)), "key"),
        (dict(key=jax.random.key(0)), "shape"),
        (dict(shape=(0,), key=jax.random.key(0)), "at least 1"),
        (dict(denoise=None, shape=(2,), key=jax.random.key(0)), "denoise"),
        (dict(shape=(2,), key=jax.random.key(0), num_noises=65), "64"),
        (dict(denoise=lambda x, l: x + jnp.nan, shape=(2,), key=jax.random.key(0)), "not finite"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    arguments = dict(schedule=VP, denoise=oracles.b2d().denoiser(VP), nfe=4) | arguments
    with pytest.raises(ValueError, match=message):
        best(**arguments)


def test_bad_nodes_are_refused():
    with pytest.raises(ValueError, match="nodes"):
        warped_adams(VP, grids.karras(VP, 5), lambda l: l, 2, nodes=1)


# Fitted tables in float64 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("nfe, public", [(5, 0.0279), (8, 0.00859)])
def test_a_fitted_table_against_the_best_public_error(nfe, public):
    """At most a quarter of the best RMSE that any public sampler reaches on this problem, from a small fit."""
    mix = oracles.a1d()
    settings = dict(shape=(1,), start=START, end=END, num_noises=256, iterations=150)
    table = fitted.fit(mix.denoiser(VP), VP, nfe, jax.random.key(1), **settings)
    assert rms(errors(oracles.a1d, VP, table)) < 0.25 * public
