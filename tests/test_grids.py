"""Grids: properties for every schedule and N, exact values where papers print them."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from diffusion import grids, schedules

INF = math.inf
DDPM = schedules.vp_discrete(schedules.ddpm_betas())
ZERO_SNR = schedules.vp_discrete(schedules.rescale_zero_terminal_snr(schedules.scaled_linear_betas()))
SCHEDULES = {
    "vp_linear": schedules.vp_linear(),
    "vp_cosine": schedules.vp_cosine(),
    "plain cosine": schedules.vp_cosine(1.0, -INF, INF),
    "interpolated cosine": schedules.vp_cosine_interpolated(8.0),
    "ddpm": DDPM,
    "zero terminal SNR": ZERO_SNR,
    "ve": schedules.ve(),
    "edm": schedules.edm(),
    "sub_vp": schedules.sub_vp(),
    "flow": schedules.flow(3.0),
    "sigmoid": schedules.sigmoid(),
    "laplace": schedules.laplace(),
}
CONTINUOUS = [
    grids.uniform_time,
    grids.quadratic_time,
    grids.uniform_logsnr,
    grids.exponential,
    grids.karras,
    grids.flow_shift,
    grids.two_parameter,
    grids.beta_quantiles,
    grids.linear_quadratic,
    grids.align_your_steps,
]
DISCRETE = [grids.leading, grids.linspace, grids.trailing]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
each_grid = pytest.mark.parametrize("make", CONTINUOUS)


def ratio(grid):
    """sigma / alpha of a grid of log-SNR."""
    return np.exp(-grid / 2)


def well_formed(grid, num_steps):
    assert grid.shape == (num_steps + 1,) and grid.dtype == np.float64
    assert (grid[1:] > grid[:-1]).all() and np.isfinite(grid[1:-1]).all()
    return grid


# Properties -------------------------------------------------------------------------------------------------


@each_grid
@given(name=st.sampled_from(sorted(SCHEDULES)), num_steps=st.integers(1, 1000))
def test_grids_rise_between_the_schedules_ends(make, name, num_steps):
    schedule = SCHEDULES[name]
    grid = well_formed(make(schedule, num_steps), num_steps)
    assert (grid[0], grid[-1]) == (schedule.logsnr_start, schedule.logsnr_end)
    assert np.array_equal(grids.validate(grid), grid)


@each_grid
@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    num_steps=st.integers(1, 1000),
    infinite=st.sampled_from([(-INF, None), (None, INF), (-INF, INF)]),
)
def test_grids_reach_infinite_ends(make, name, num_steps, infinite):
    schedule = SCHEDULES[name]
    grid = well_formed(make(schedule, num_steps, *infinite), num_steps)
    assert grid[0] == (schedule.logsnr_start if infinite[0] is None else -INF)
    assert grid[-1] == (schedule.logsnr_end if infinite[1] is None else INF)


@each_grid
@given(num_steps=st.integers(1, 60), start=st.floats(-9, 8.5), width=st.floats(0.1, 15))
def test_grids_have_the_ends_that_are_asked_for(make, num_steps, start, width):
    end = min(start + width, 9.0)
    grid = well_formed(make(SCHEDULES["vp_linear"], num_steps, start, end), num_steps)
    assert (grid[0], grid[-1]) == (start, end)


@pytest.mark.parametrize("make", DISCRETE)
@given(name=st.sampled_from(sorted(SCHEDULES)), num_steps=st.integers(1, 1000))
def test_discrete_spacings_are_levels_of_the_chain(make, name, num_steps):
    schedule = SCHEDULES[name]
    grid = well_formed(make(schedule, num_steps), num_steps)
    assert grid[-1] == INF
    index = 1000 * schedule.time(grid[:-1]) - 1
    np.testing.assert_allclose(index, np.round(index), atol=1e-6)
    if make is not grids.leading:
        assert index[0] == pytest.approx(999, abs=1e-6)


# Where the steps fall ---------------------------------------------------------------------------------------


def test_uniform_in_what_the_name_says():
    vp, edm = SCHEDULES["vp_linear"], SCHEDULES["edm"]
    for coordinate in (
        vp.time(grids.uniform_time(vp, 50)),
        np.sqrt(vp.time(grids.quadratic_time(vp, 50))),
        grids.uniform_logsnr(vp, 50),
        ratio(grids.karras(edm, 50)) ** (1 / 7),
        ratio(grids.karras(edm, 50, rho=1.0)),
        ratio(grids.flow_shift(vp, 50, shift=3.0)) / (3 + ratio(grids.flow_shift(vp, 50, shift=3.0))),
        (q := (ratio(grids.two_parameter(vp, 50, c=0.4, rho=3.0)) / 0.4) ** (1 / 3)) / (1 + q),
        scipy.stats.beta(0.6, 0.6).cdf(
            (vp.time(grids.beta_quantiles(vp, 50)) - vp.time(vp.logsnr_end)) / (1 - vp.time(vp.logsnr_end))
        ),
    ):
        steps = np.diff(coordinate)
        np.testing.assert_allclose(steps, steps.mean(), rtol=1e-6)


def test_karras_is_the_published_formula():
    low, high = 0.002, 80.0
    i = np.arange(18)
    sigma = (high ** (1 / 7) + i / 17 * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    np.testing.assert_allclose(ratio(grids.karras(schedules.edm(), 17)), sigma, rtol=1e-12)
    # EDM ends with 0 after N = 18 levels, so N calls.
    np.testing.assert_allclose(ratio(grids.karras(schedules.edm(), 18, end=INF)), np.append(sigma, 0), rtol=1e-12)
    # It is what "uniform in time" means on EDM's clock.
    np.testing.assert_allclose(grids.uniform_time(schedules.edm(), 17), grids.karras(schedules.edm(), 17), rtol=1e-12)


def test_large_rho_is_uniform_in_log_snr():
    schedule = SCHEDULES["edm"]
    straight = grids.uniform_logsnr(schedule, 20)
    for make in (grids.karras, grids.two_parameter):
        gaps = [abs(make(schedule, 20, rho=rho) - straight).max() for rho in (100.0, 1000.0)]
        assert gaps[1] < gaps[0] / 8 and gaps[1] < 0.2
    np.testing.assert_allclose(grids.exponential(schedule, 20), straight, rtol=1e-12)
    bent = grids.exponential(schedule, 20, rho=2.0)
    progress = (bent[-1] - bent) / (bent[-1] - bent[0])
    np.testing.assert_allclose(progress, np.linspace(1, 0, 21) ** 2, atol=1e-12)


def test_two_parameter_is_symmetric_about_its_centre_and_contains_the_flow_grid():
    ve = schedules.ve(0.01, 100.0)
    for rho in (0.5, 1.0, 4.0):
        grid = grids.two_parameter(ve, 11, c=1.0, rho=rho)
        np.testing.assert_allclose(grid + grid[::-1], 0, atol=1e-9)
    flow = schedules.flow()
    np.testing.assert_allclose(
        grids.two_parameter(flow, 9, c=5.0, rho=1.0), grids.flow_shift(flow, 9, shift=5.0), rtol=1e-10
    )
    np.testing.assert_allclose(grids.two_parameter(flow, 9, c=1.0, rho=1.0), grids.uniform_time(flow, 9), rtol=1e-9)


def test_flow_shift_is_the_warp_of_flow_time():
    flow = schedules.flow()
    t = 1 - np.arange(5) / 4
    warped = 5 * t / (1 + 4 * t)
    grid = grids.flow_shift(flow, 4, -INF, INF, shift=5.0)
    np.testing.assert_allclose(flow.time(grid), warped, atol=1e-12)
    # The four-step list 1, .75, .5, .25 of Self-Forcing under its shift of 5.
    np.testing.assert_allclose(flow.time(grid)[:4], [1.0, 0.9375, 0.8333, 0.625], atol=1e-4)
    # The schedule with that shift, uniform in its own time, is the same grid.
    np.testing.assert_allclose(grids.uniform_time(schedules.flow(5.0), 4, -INF, INF), grid, atol=1e-9)


def test_linear_quadratic_as_in_mochi():
    """Values of 1 - sigma from Mochi's own rule at N = 8 and threshold .025, worked out by hand: a straight
    line to .025 in four steps, then the parabola with that slope that reaches 1.
    """
    time = schedules.flow().time(grids.linear_quadratic(schedules.flow(), 8, -INF, INF))
    slope = 0.025 / 4
    curve = (0.975 - 4 * slope) / 16
    line = [slope * i for i in range(5)]
    parabola = [0.025 + slope * k + curve * k**2 for k in range(1, 5)]
    np.testing.assert_allclose(1 - time, line + parabola, atol=1e-9)
    steps = np.diff(1 - schedules.flow().time(grids.linear_quadratic(schedules.flow(), 64, -INF, INF)))
    np.testing.assert_allclose(steps[:32], 0.025 / 32, rtol=1e-6)
    assert (np.diff(steps[32:]) > 0).all() and steps[32] / steps[31] < 5


def test_align_your_steps_is_the_published_list():
    lists = grids.ALIGN_YOUR_STEPS
    assert {name: len(values) for name, values in lists.items()} == dict.fromkeys(lists, 11)
    for name, values in lists.items():
        start, end = (-2 * math.log(s) for s in (values[0], values[-1]))
        grid = grids.align_your_steps(schedules.ve(), 10, start, end, name)
        np.testing.assert_allclose(ratio(grid), values, rtol=1e-12)
        fine = grids.align_your_steps(schedules.ve(), 20, start, end, name)
        np.testing.assert_allclose(fine[::2], grid, rtol=1e-12)
        np.testing.assert_allclose(ratio(fine)[1::2] ** 2, np.multiply(values[1:], values[:-1]), rtol=1e-9)
    with pytest.raises(KeyError, match="nearest: 'sdxl'"):
        grids.align_your_steps(schedules.ve(), 10, model="sdx")


def test_infinite_ends_add_one_interval_where_the_formula_does_not_reach():
    ve = SCHEDULES["ve"]
    inner = grids.uniform_logsnr(ve, 8)
    np.testing.assert_array_equal(grids.uniform_logsnr(ve, 10, -INF, INF), [-INF, *inner, INF])
    middle = grids.uniform_logsnr(ve, 2, -INF, INF)[1]
    assert middle == pytest.approx((ve.logsnr_start + ve.logsnr_end) / 2, rel=1e-12)
    np.testing.assert_array_equal(grids.uniform_logsnr(ve, 1, -INF, INF), [-INF, INF])
    np.testing.assert_array_equal(grids.karras(ve, 1, 2.0, INF), [2.0, INF])
    # Where time itself gets there, no step is spent at the finite end.
    cosine = SCHEDULES["plain cosine"]
    np.testing.assert_allclose(
        cosine.time(grids.uniform_time(cosine, 10, -INF, INF)), np.linspace(1, 0, 11), atol=1e-12
    )
    clipped = SCHEDULES["vp_cosine"]
    assert grids.uniform_time(clipped, 10, end=INF)[-2] == pytest.approx(float(clipped.logsnr(0.1)), abs=1e-2)
    with pytest.raises(ValueError, match="needs its other end inside"):
        grids.karras(ve, 5, 12.0, INF)


def test_spacings_of_the_thousand():
    def index(grid):
        return np.round(1000 * DDPM.time(grid[:-1]) - 1).astype(int).tolist()

    assert index(grids.leading(DDPM, 10)) == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert index(grids.leading(DDPM, 10, offset=1))[::9] == [901, 1]
    assert index(grids.linspace(DDPM, 5)) == [999, 749, 500, 250, 0]
    assert index(grids.linspace(DDPM, 1)) == [999]
    assert index(grids.trailing(DDPM, 10)) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert index(grids.trailing(DDPM, 7)) == [999, 856, 713, 570, 428, 285, 142]
    assert grids.trailing(DDPM, 10, end=DDPM.logsnr_end)[-1] == DDPM.logsnr_end
    assert grids.trailing(ZERO_SNR, 4)[0] == -INF
    assert len(grids.trailing(schedules.vp_discrete([0.1, 0.2, 0.3]), 3)) == 4
    with pytest.raises(ValueError, match="a chain of 3 levels has no 4 steps"):
        grids.trailing(schedules.vp_discrete([0.1, 0.2, 0.3]), 4)
    with pytest.raises(ValueError, match="leading: no level"):
        grids.leading(DDPM, 10, offset=100)


def test_where_rho_seven_moves_its_steps():
    """More at high noise per log sigma than at medium, against the claim that it favours medium noise."""
    s = ratio(grids.karras(schedules.edm(), 10_000))
    terciles = np.histogram(np.log(s[1:]), np.log(np.geomspace(0.0019999, 80.0001, 4)))[0] / 10_000
    np.testing.assert_allclose(terciles, [0.185, 0.307, 0.508], atol=2e-3)
    assert (s < 0.5).mean() == pytest.approx(0.34, abs=5e-3)


# Validation -------------------------------------------------------------------------------------------------


def test_validate_takes_lists_levels_and_waiting_frames():
    assert grids.validate([0, 1]).dtype == np.float64
    assert grids.validate([-INF, 0.0, INF])[0] == -INF
    pyramid = np.array([[[-INF, -INF, -3.0]], [[0.0, -INF, -3.0]], [[INF, 0.0, -3.0]], [[INF, INF, -3.0]]])
    assert grids.validate(pyramid).shape == (4, 1, 3)


@pytest.mark.parametrize(
    "grid, message",
    [
        (0.0, "shape"),
        ([1.0], "N of at least 1"),
        ([[1.0, 2.0]], "N of at least 1"),
        ([0.0, math.nan, 1.0], r"NaN; it does in rows \[1\]"),
        ([3.0, 2.0, 1.0], "falls from row 0 to 1.*reverse"),
        ([0.0, 1.0, 1.0], "rows 1 and 2 of the grid are equal"),
        ([-INF, -INF, 0.0], "rows 0 and 1 of the grid are equal"),
        ([0.0, INF, INF], "rows 1 and 2 of the grid are equal"),
        ([[[0.0, 0.0]], [[1.0, -1.0]]], "falls from row 0 to 1"),
        ([[[0.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]]], "rows 1 and 2"),
    ],
)
def test_validate_refuses(grid, message):
    with pytest.raises(ValueError, match=message):
        grids.validate(grid)


@each_grid
@pytest.mark.parametrize(
    "num_steps, start, end, message",
    [
        (0, None, None, "whole number of at least 1"),
        (-3, None, None, "whole number of at least 1"),
        (4, 2.0, 2.0, "start < end"),
        (4, 3.0, -3.0, "start < end"),
        (4, math.nan, None, "start: expected a log-SNR, got NaN"),
        (4, None, math.nan, "end: expected a log-SNR, got NaN"),
        (4, INF, None, "start < end"),
    ],
)
def test_bad_arguments_raise(make, num_steps, start, end, message):
    with pytest.raises(ValueError, match=message):
        make(SCHEDULES["vp_linear"], num_steps, start, end)


@pytest.mark.parametrize(
    "make",
    [
        lambda s: grids.karras(s, 4, rho=0.0),
        lambda s: grids.exponential(s, 4, rho=-1.0),
        lambda s: grids.flow_shift(s, 4, shift=0.0),
        lambda s: grids.two_parameter(s, 4, c=0.0),
        lambda s: grids.two_parameter(s, 4, rho=math.inf),
        lambda s: grids.beta_quantiles(s, 4, a=0.0),
        lambda s: grids.linear_quadratic(s, 4, threshold=1.0),
        lambda s: grids.trailing(s, 1001),
        lambda s: grids.trailing(s, 0),
        lambda s: grids.leading(s, 4, end=math.nan),
    ],
)
def test_bad_options_raise(make):
    with pytest.raises(ValueError):
        make(SCHEDULES["vp_linear"])
