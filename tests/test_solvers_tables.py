"""Properties of every table: finite weights, frames that wait, bad input, describing, saving; a grid that is traced."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import grids, oracles, sampling, schedules, solvers

VP = schedules.vp_linear()
SCHEDULES = {
    "vp": VP,
    "cosine": schedules.vp_cosine(),
    "unclipped cosine": schedules.vp_cosine(logsnr_min=-np.inf, logsnr_max=np.inf),
    "ddpm": schedules.vp_discrete(schedules.ddpm_betas()),
    "zero terminal SNR": schedules.vp_discrete(schedules.rescale_zero_terminal_snr(schedules.ddpm_betas())),
    "ve": schedules.ve(),
    "edm": schedules.edm(),
    "sub-vp": schedules.sub_vp(),
    "flow": schedules.flow(3.0),
    "laplace": schedules.laplace(),
}
GRIDS = {"logsnr": grids.uniform_logsnr, "karras": grids.karras, "time": grids.uniform_time, "q": grids.two_parameter}
KNOTS = np.linspace(-24, 24, 50)
STATISTICS = solvers.Statistics(KNOTS, 1 / (1 + np.exp(KNOTS)), 0.3 * np.cos(KNOTS / 2), 0.2 * np.sin(KNOTS))

# name -> (orders, builder(schedule, grid, order))
BUILDERS = {
    "ddim": ((1,), lambda s, g, p: solvers.ddim(s, g)),
    "ddim, eta": ((1,), lambda s, g, p: solvers.ddim(s, g, 0.7)),
    "ddpm, lower": ((1,), lambda s, g, p: solvers.ddpm(s, g)),
    "ddpm, upper": ((1,), lambda s, g, p: solvers.ddpm(s, g, "upper")),
    "euler, churn": ((1,), lambda s, g, p: solvers.euler(s, g, 10.0)),
    "heun": ((2,), lambda s, g, p: solvers.heun(s, g)),
    "heun, churn": ((2,), lambda s, g, p: solvers.heun(s, g, 10.0, s_max=50.0)),
    "dpm_solver": ((1, 2, 3), solvers.dpm_solver),
    "dpm_solver, multistep": ((1, 2, 3), lambda s, g, p: solvers.dpm_solver(s, g, p, multistep=True)),
    "dpmpp": ((1, 2, 3), solvers.dpmpp),
    "dpmpp, singlestep": ((1, 2, 3), lambda s, g, p: solvers.dpmpp(s, g, p, singlestep=True)),
    "dpmpp, sde": ((1, 2, 3), lambda s, g, p: solvers.dpmpp(s, g, p, sde=True)),
    "dpmpp, 2S sde": ((2,), lambda s, g, p: solvers.dpmpp(s, g, p, singlestep=True, sde=True)),
    "exponential_adams": ((1, 2, 3, 4), solvers.exponential_adams),
    "exponential_adams, noise": (
        (1, 2, 3, 4), lambda s, g, p: solvers.exponential_adams(s, g, p, noise_form=True, corrector=True, damping=1.5),
    ),
    "unipc": ((1, 2, 3, 4), solvers.unipc),
    "unipc, bh1 noise": ((1, 2, 3), lambda s, g, p: solvers.unipc(s, g, p, variant="bh1", noise_form=True)),
    "deis, t": ((1, 2, 3, 4), solvers.deis),
    "deis, log": ((3,), lambda s, g, p: solvers.deis(s, g, p, variant="log")),
    "adams": ((1, 2, 3, 4), solvers.adams),
    "adams, damped": ((3,), lambda s, g, p: solvers.adams(s, g, p, damping=1.5)),
    "ipndm": ((1, 2, 3, 4), solvers.ipndm),
    "ipndm, damped": ((4,), lambda s, g, p: solvers.ipndm(s, g, p, damping=1.5)),
    "pndm": ((4,), lambda s, g, p: solvers.pndm(s, g)),
    "pndm, no warm-up": ((4,), lambda s, g, p: solvers.pndm(s, g, runge_kutta=False)),
    "sa_solver": ((1, 2, 3, 4), lambda s, g, p: solvers.sa_solver(s, g, p, p + 1)),
    "er_sde": ((1, 2, 3), solvers.er_sde),
    "dpm_solver_v3": ((1, 2, 3), lambda s, g, p: solvers.dpm_solver_v3(s, g, STATISTICS, p)),
    "consistency": ((1,), lambda s, g, p: solvers.consistency(s, g)),
    "overshoot": ((1,), lambda s, g, p: solvers.overshoot(s, g)),
    "flow_map": ((1,), lambda s, g, p: solvers.flow_map(s, g, 0.5)),
}  # fmt: skip
CORRECTED = ("exponential_adams, noise", "unipc", "unipc, bh1 noise", "sa_solver", "dpm_solver_v3")
ALL = [(name, p) for name, (orders, _) in BUILDERS.items() for p in orders]


def weights(table):
    return jax.tree.leaves((table.predict, table.remember, table.correct, table.final))


def assert_finite(table):
    """No NaN; infinity in the level columns only; all of it in float32 too."""
    for leaf in weights(table):
        assert np.isfinite(np.asarray(leaf, np.float32)).all()
    for column in (table.logsnr, table.target):
        assert column is None or not np.isnan(column).any()


@hypothesis.settings(max_examples=150)
@hypothesis.given(
    st.sampled_from(ALL), st.sampled_from(sorted(SCHEDULES)), st.sampled_from(sorted(GRIDS)),
    st.booleans(), st.booleans(), st.one_of(st.integers(1, 6), st.integers(1, 60), st.sampled_from([250, 1000])),
)  # fmt: skip
def test_every_table_is_finite(solver, schedule, grid, from_noise, to_data, steps):
    (name, order), schedule = solver, SCHEDULES[schedule]
    start = -np.inf if from_noise and np.isfinite(schedule.sigma(-np.inf)) else None
    levels = GRIDS[grid](schedule, steps, start, np.inf if to_data else None)
    table = BUILDERS[name][1](schedule, levels, order)
    assert_finite(table)
    assert table.nfe >= steps
    assert table.logsnr[0] == levels[0] or "churn" in name
    # The clean end is never evaluated, and no other level than the first may be -inf.
    assert not np.isposinf(table.logsnr).any() and not np.isneginf(table.logsnr[1:]).any()


@pytest.mark.parametrize("name, order", ALL)
def test_float32_samples_are_finite_and_near_the_data(name, order):
    """From pure noise to clean data in float32 with a real denoiser; a quarter of the tables' mathematics is in the ends."""
    grid = grids.two_parameter(VP, 12, -np.inf, np.inf)
    denoise = oracles.a1d().denoiser(VP)
    if name == "flow_map":
        denoise = jax.tree_util.Partial(_ignore_target, denoise)
    x = jax.random.normal(jax.random.key(0), (64, 1))
    sample = sampling.sample(denoise, BUILDERS[name][1](VP, grid, order), x, jax.random.key(1))
    assert sample.dtype == jnp.float32 and bool(jnp.isfinite(sample).all())
    assert 1.0 < float(jnp.sqrt(jnp.mean(sample**2))) < 4.0  # the data has 2.24


def _ignore_target(denoise, x, logsnr, logsnr_to):
    return denoise(x, logsnr)


# Frames -----------------------------------------------------------------------------------------------------


def staggered(frames=3, steps=6):
    """Frame f starts f steps late and is done f steps later; the last ends at sigma = 0 in its last step."""
    own = grids.uniform_logsnr(VP, steps)
    index = np.clip(np.arange(steps + 2 * (frames - 1) + 1)[:, None] - 2 * np.arange(frames), 0, steps)
    return own[index][:, None, :]


@pytest.mark.parametrize("name, order", ALL)
def test_each_frame_is_sampled_as_if_alone(name, order):
    """With a denoiser that treats frames apart, a frame of a staggered grid gets what its own levels alone would give.

    So a waiting frame is left untouched, its first move is first order, and no history crosses a wait. Correctors also
    act where a frame arrives, as there it is evaluated once more, so for them only the frame that arrives last compares;
    PNDM's Runge-Kutta steps are the table's first three, so for it only the frame that starts first.
    """
    grid = staggered()
    table = BUILDERS[name][1](VP, grid, order)
    assert table.level_shape == (1, 3)
    denoise = oracles.ornstein_uhlenbeck(3, 0.0)
    denoise = oracles.gaussian_process(denoise, mean=0.0).denoiser(VP)
    if name == "flow_map":
        denoise = jax.tree_util.Partial(_ignore_target, denoise)
    assert_finite(table)
    x = np.random.default_rng(0).standard_normal((2, 3, 1))
    sample = _deterministic(table, denoise, x)
    for f in {"pndm": [0], **dict.fromkeys(CORRECTED, [2])}.get(name, range(3)):
        own = grid[np.concatenate([[True], np.diff(grid[:, 0, f]) > 0]), 0, f]
        alone = _deterministic(BUILDERS[name][1](VP, own, order), denoise, x)
        np.testing.assert_allclose(sample[:, f], alone[:, f], atol=2e-5)


def _deterministic(table, denoise, x):
    """The mean path: the same table without its noise."""
    zero = jax.tree_util.Partial(_no_noise)
    return np.asarray(sampling.sample(denoise, table, x.astype(np.float32), jax.random.key(0), noise=zero))


def _no_noise(key, shape, dtype):
    return jnp.zeros(shape, dtype)


@pytest.mark.parametrize("name, order", ALL)
def test_a_waiting_frame_keeps_every_bit_and_draws_no_noise(name, order):
    """A frame at sigma = 0 from the start (the known first frame) comes out as it went in."""
    own = grids.uniform_logsnr(VP, 5)
    grid = np.stack([np.full(6, np.inf), own], axis=-1)[:, None, :]
    table = BUILDERS[name][1](VP, grid, order)
    assert_finite(table)
    x = np.random.default_rng(0).standard_normal((2, 2, 3)).astype(np.float32)
    denoise = oracles.gaussian_process(oracles.rbf(2, 1.0), mean=0.0).denoiser(VP)
    if name == "flow_map":
        denoise = jax.tree_util.Partial(_ignore_target, denoise)
    sample = np.asarray(sampling.sample(denoise, table, x, jax.random.key(0)))
    np.testing.assert_array_equal(sample[:, 0], x[:, 0])
    assert np.isfinite(sample).all() and np.abs(sample[:, 1] - x[:, 1]).max() > 0.01


def test_after_a_wait_the_first_move_is_first_order():
    levels = np.array([-6.0, -4.0, -2.0, -2.0, 0.0, 2.0])[:, None, None] + np.zeros((1, 1, 2))
    levels[:, 0, 1] = np.linspace(-6, 2, 6)
    history = solvers.exponential_adams(VP, levels, 3, lower_order_final=False).predict.history
    used = (history != 0).sum(1)[:, 0]  # rows 1.. hold the steps before them
    np.testing.assert_array_equal(used[1:, 0], [1, 2, 0, 1])
    np.testing.assert_array_equal(used[1:, 1], [1, 2, 3, 3])


def test_levels_per_pixel():
    grid = np.linspace(-6, 4, 6).reshape(-1, 1, 1, 1) + np.random.default_rng(0).uniform(0, 1, (1, 1, 2, 3))
    table = solvers.unipc(VP, grid, 3)
    assert table.level_shape == (1, 2, 3)
    for i in range(2):
        for j in range(3):
            own = solvers.unipc(VP, grid[:, 0, i, j], 3)
            np.testing.assert_allclose(table.predict.history[..., 0, i, j], own.predict.history, atol=1e-14)


# Order at the ends ------------------------------------------------------------------------------------------


def test_lower_orders_at_the_end_are_for_few_steps_unless_asked_for():
    def orders(grid, **options):
        table = solvers.exponential_adams(VP, grid, 3, **options)
        return [int((h != 0).sum()) for h in [*table.predict.history[1:], table.final.history]]

    def used(steps, **options):
        return orders(grids.uniform_logsnr(VP, steps), **options)

    assert used(6) == [1, 2, 3, 3, 2, 1]
    assert used(6, lower_order_final=False) == [1, 2, 3, 3, 3, 3]
    assert used(19)[-3:] == [3, 2, 1] and used(20)[-3:] == [3, 3, 3]
    assert used(20, lower_order_final=True)[-3:] == [3, 2, 1]
    # And for a last step that is long; one to sigma = 0 is of first order anyway, and those before it stay.
    for end, last in ((4.4, [3, 3, 3]), (4.6, [3, 2, 1]), (np.inf, [3, 3, 1])):
        grid = np.append(np.linspace(-3.0, 3.0, 25)[:-1], [3.0, 3.0 + (end - 3.0) / 4])
        assert orders(grid)[-3:] == last, end
    assert orders(np.append(np.linspace(-3.0, 3.0, 25), 4.0), lower_order_final=False)[-3:] == [3, 3, 3]


@pytest.mark.parametrize("steps", [12, 30])
def test_deis_in_log_snr_is_exponential_adams_in_noise_form(steps):
    """On the cosine's clock, too, whose last step of 30 is ten times as long as the one before."""
    schedule = schedules.vp_cosine()
    grid = grids.uniform_time(schedule, steps)
    ours, other = (
        solvers.deis(schedule, grid, 2, variant="log"),
        solvers.exponential_adams(schedule, grid, 2, noise_form=True),
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("steps", [20, 50])
def test_2m_is_no_worse_than_ddim_where_the_clock_ends_in_a_long_step(steps):
    """The cosine's last step of 20 is 15 in log-SNR, the one before 1.4; through both the extrapolation is worth nothing."""
    cosine, process = schedules.vp_cosine(), oracles.gaussian_process(oracles.ornstein_uhlenbeck(16, 0.95))
    denoise, x = process.denoiser(cosine), jax.random.normal(jax.random.key(0), (64, 16, 1, 1, 1))
    exact = sampling.sample(denoise, solvers.dpmpp(cosine, grids.uniform_logsnr(cosine, 600)), x)
    grid = grids.uniform_time(cosine, steps)

    def error(table):
        return float(jnp.sqrt(jnp.mean((sampling.sample(denoise, table, x) - exact) ** 2)))

    ours, ddim = error(solvers.dpmpp(cosine, grid)), error(solvers.ddim(cosine, grid))
    free = error(solvers.dpmpp(cosine, grid, lower_order_final=False))
    assert ours < 0.6 * ddim and ours < 0.5 * free


EXPLICIT = (
    "heun", "dpm_solver", "dpm_solver, multistep", "dpmpp", "dpmpp, singlestep", "exponential_adams",
    "exponential_adams, noise", "unipc", "unipc, bh1 noise", "deis, t", "adams", "ipndm", "pndm",
)  # fmt: skip
"""Builders of samplers that draw no noise and follow the flow."""


BEGIN_IN_NOISE = {f.__name__: f() for f in (schedules.vp_cosine, schedules.flow, schedules.sigmoid, schedules.laplace)}


@pytest.mark.parametrize("schedule", BEGIN_IN_NOISE.values(), ids=BEGIN_IN_NOISE)
@pytest.mark.parametrize(("name", "order"), [one for one in ALL if one[0] in EXPLICIT])
def test_no_sampler_is_worse_than_ddim_where_a_schedule_begins_in_noise_alone(name, order, schedule):
    """At the cosine's log-SNR -20 sigma/alpha is 22026 and the first of 8 steps ends at 5: the trapezoid in it was 400 off,
    here; at a flow's -13.8 it is 1000.
    """
    mix = oracles.a1d()
    denoise, x = mix.denoiser(schedule), jax.random.normal(jax.random.key(0), (256, 1))
    exact = sampling.sample(denoise, solvers.dpmpp(schedule, grids.uniform_time(schedule, 400), 3), x)

    def error(table):
        return float(jnp.sqrt(jnp.mean((sampling.sample(denoise, table, x) - exact) ** 2)))

    build = BUILDERS[name][1]
    for steps in (1, 2, 4, 8):
        grid = grids.uniform_time(schedule, steps)
        assert error(build(schedule, grid, order)) < 1.15 * error(solvers.ddim(schedule, grid)), steps


def test_calls_are_counted():
    finite, clean = grids.uniform_logsnr(VP, 6), grids.uniform_logsnr(VP, 6, end=np.inf)
    assert solvers.heun(VP, finite).nfe == 12 and solvers.heun(VP, clean).nfe == 11
    assert solvers.dpm_solver(VP, finite, 3).nfe == 18 and solvers.dpmpp(VP, clean, 2, singlestep=True).nfe == 11
    assert solvers.unipc(VP, clean, 3).nfe == 6 and solvers.pndm(VP, finite).nfe == 15
    assert solvers.restart(VP, finite, [(-2.0, 1.0, 3, 2)]).nfe == 12 + 12


# A traced grid ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [4.0, np.inf])
def test_a_traced_grid_gives_a_traced_table_with_gradients(end):
    host = np.array([-np.inf, -8.0, -5.0, -1.0, 1.0, end])

    def leaves(inner):
        grid = jnp.concatenate([jnp.asarray([-jnp.inf]), inner, jnp.asarray([end])])
        table = solvers.exponential_adams(VP, grid, 3, corrector=True, like=host)
        return table, sum(jnp.sum(jnp.square(leaf)) for leaf in weights(table))

    inner = jnp.asarray(host[1:-1])
    table, _ = jax.jit(leaves)(inner)
    reference = solvers.exponential_adams(VP, host, 3, corrector=True)
    for ours, theirs in zip(jax.tree.leaves(table), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=3e-5)
    gradient = jax.grad(lambda l: leaves(l)[1])(inner)
    step = 1e-2
    for i in range(4):
        numeric = []
        for sign in (1, -1):
            moved = host.copy()
            moved[i + 1] += sign * step
            numeric.append(sum(np.sum(w**2) for w in weights(solvers.exponential_adams(VP, moved, 3, corrector=True))))
        np.testing.assert_allclose(gradient[i], (numeric[0] - numeric[1]) / (2 * step), rtol=0.02, atol=0.02)
    with pytest.raises(ValueError, match="like"):
        solvers.exponential_adams(VP, inner, 3, like=host)


# Bad input --------------------------------------------------------------------------------------------------

GRID = grids.uniform_logsnr(VP, 5)


@pytest.mark.parametrize("name, order", ALL)
def test_bad_grids_and_schedules_are_refused_by_every_builder(name, order):
    build = BUILDERS[name][1]
    with pytest.raises(ValueError, match="rise"):
        build(VP, GRID[::-1].copy(), order)
    with pytest.raises(ValueError, match="shape"):
        build(VP, GRID[:1], order)
    with pytest.raises(ValueError, match="equal"):
        build(VP, GRID[[0, 1, 1, 2]], order)
    with pytest.raises(ValueError, match="NaN"):
        build(VP, np.array([-1.0, np.nan, 1.0]), order)
    with pytest.raises(ValueError, match="infinite"):
        build(schedules.edm(), np.array([-np.inf, 0.0, 2.0]), order)


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: solvers.ddim(VP, GRID, 1.2), "eta must lie between 0"),
        (lambda: solvers.ddim(VP, GRID, -0.1), "eta must lie between 0"),
        (lambda: solvers.ddpm(VP, GRID, "uper"), "nearest: 'upper'"),
        (lambda: solvers.dpm_solver(VP, GRID, 4), "order must be a whole number from 1 to 3, got 4"),
        (lambda: solvers.dpmpp(VP, GRID, 0), "order must be a whole number from 1 to 3, got 0"),
        (lambda: solvers.dpmpp(VP, GRID, 3, singlestep=True, sde=True), "order 3 has none"),
        (lambda: solvers.dpmpp(VP, GRID, 2, singlestep=True, damping=1.5), "dpmpp: damping and .* are of multistep"),
        (lambda: solvers.dpm_solver(VP, GRID, 2, lower_order_final=False), "dpm_solver: .* are of multistep"),
        (lambda: solvers.unipc(VP, GRID, 5), "order must be a whole number from 1 to 4"),
        (lambda: solvers.unipc(VP, GRID, variant="bh3"), "nearest: 'bh"),
        (lambda: solvers.exponential_adams(VP, GRID, damping=0.0), "damping"),
        (lambda: solvers.deis(VP, GRID, variant="tab"), "variant 'tab' is not known"),
        (lambda: solvers.heun(VP, GRID, -1.0), "churn must be finite and not below 0"),
        (lambda: solvers.heun(VP, GRID, 1.0, s_min=2.0, s_max=1.0), "s_min <= s_max"),
        (lambda: solvers.euler(VP, GRID, 1.0, s_noise=np.nan), "s_noise"),
        (lambda: solvers.sa_solver(VP, GRID, 3, 6), "corrector_order"),
        (lambda: solvers.sa_solver(VP, GRID, 5), "predictor_order must be a whole number from 1 to 4, got 5"),
        (lambda: solvers.sa_solver(VP, GRID, tau=-1.0), "tau must be finite"),
        (lambda: solvers.er_sde(VP, GRID, noise_scale=lambda s: s**0.5), "must not fall with s"),
        (lambda: solvers.flow_map(VP, GRID, 1.5), "gamma must lie between"),
        (lambda: solvers.restart(VP, GRID, []), "at least one Interval"),
        (lambda: solvers.restart(VP, GRID, [(5.0, 1.0, 3, 2)]), "noisy level below its clean end"),
        (lambda: solvers.restart(VP, staggered(), [(-2.0, 1.0, 3, 2)]), "one for all frames"),
        (lambda: solvers.dpm_solver_v3(VP, GRID, STATISTICS._replace(l=KNOTS[1:])), "l must be finite, of shape"),
        (lambda: solvers.dpm_solver_v3(VP, GRID, STATISTICS._replace(logsnr=KNOTS[::-1])), "rising levels"),
    ],
)
def test_bad_arguments_are_refused_with_the_valid_ones_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_a_traced_grid_alone_is_refused():
    with pytest.raises(ValueError, match="unipc: a traced grid needs `like`"):
        jax.jit(lambda grid: solvers.unipc(VP, grid).logsnr)(jnp.asarray(GRID))


def test_something_that_is_no_schedule_is_refused():
    from diffusion.solvers.steps import steps_of

    unchecked = getattr(steps_of, "__wrapped__", steps_of)  # the tests' type checker would answer first
    with pytest.raises(ValueError, match="expected a schedule"):
        unchecked("ddim", GRID, GRID)


# Statistics of DPM-Solver-v3 --------------------------------------------------------------------------------


def test_statistics_of_gaussian_data_are_those_of_its_closed_form():
    """D = c y / (c + s^2) with c the variance: 1 - l = c / (c + s^2), so f = 0 with that l, and s, b are noise-free zeros
    up to the 0/0 of the regression; with two variances in one sample f is not 0 and per-element statistics are exact.
    """
    variances = np.array([0.25, 4.0])
    denoise = oracles.gaussian_mixture([1.0], np.zeros((1, 2)), np.diag(variances)[None]).denoiser(VP)
    x = jax.random.normal(jax.random.key(0), (32, 2)) * float(VP.sigma(VP.logsnr_start))
    found = solvers.ems_statistics(denoise, VP, x, jax.random.key(1), levels=32, per_element=True)
    s2 = np.exp(-found.logsnr)[:, None, None]
    np.testing.assert_allclose(1 - found.l, (variances / (variances + s2)), rtol=1e-4)
    pooled = solvers.ems_statistics(denoise, VP, x, jax.random.key(1), levels=32)
    np.testing.assert_allclose(1 - pooled.l, (variances / (variances + s2)).mean((1, 2)), rtol=1e-4)
    grid = grids.uniform_logsnr(VP, 8)
    table = solvers.dpm_solver_v3(VP, grid, pooled, 2)
    assert table.level_shape == () and table.predict.anchor.shape == (8,)
    each = solvers.dpm_solver_v3(VP, grid, found, 2)
    assert each.level_shape == () and each.predict.anchor.shape == (8, 1, 2)
    # Exact per element: linear data leaves nothing to integrate, one step lands on the truth.
    one = solvers.dpm_solver_v3(VP, grids.uniform_logsnr(VP, 2), found._replace(s=0 * found.s, b=0 * found.b), 1)
    y = sampling.sample(denoise, one, x) / VP.alpha(VP.logsnr_end)
    start, end = np.exp(-VP.logsnr_start), np.exp(-VP.logsnr_end)
    truth = x / VP.alpha(VP.logsnr_start) * np.sqrt((variances + end) / (variances + start))
    np.testing.assert_allclose(y, truth, rtol=0.02, atol=0.01)


def test_fitted_statistics_beat_both_fixed_forms_on_a_mixture():
    denoise = oracles.a1d().denoiser(VP)
    start, end = -2 * np.log(157.4), -2 * np.log(0.01)
    x = jax.random.normal(jax.random.key(0), (256, 1)) * float(VP.sigma(start))
    found = solvers.ems_statistics(denoise, VP, x, jax.random.key(1), start=start, end=end)
    fresh = jax.random.normal(jax.random.key(2), (256, 1)) * float(VP.sigma(start))
    truth = oracles.probability_flow(denoise, np.asarray(fresh), VP, start, end, rtol=1e-5)
    grid = grids.uniform_logsnr(VP, 8, start, end)

    def error(table):
        return float(np.sqrt(np.mean((np.asarray(sampling.sample(denoise, table, fresh)) - truth) ** 2)))

    fitted = error(solvers.dpm_solver_v3(VP, grid, found, 2))
    for noise in (False, True):
        assert fitted < 0.5 * error(solvers.unipc(VP, grid, 2, noise_form=noise))


def test_statistics_are_refused_where_they_make_no_sense():
    denoise, x = oracles.a1d().denoiser(VP), np.zeros((2, 1), np.float32)
    with pytest.raises(ValueError, match="at least 8 levels"):
        solvers.ems_statistics(denoise, VP, x, jax.random.key(0), levels=4)
    with pytest.raises(ValueError, match="finite"):
        solvers.ems_statistics(denoise, VP, x, jax.random.key(0), end=np.inf)


# Hand-made tables, words, files -----------------------------------------------------------------------------


def test_assemble_refuses_what_no_sampler_could_run():
    row = solvers.Row(0.0, anchor=1.0)
    with pytest.raises(ValueError, match="at least one row"):
        solvers.assemble([], row)
    with pytest.raises(ValueError, match="6 history entries, the table has 5 slots"):
        solvers.assemble([row], row._replace(history=[1.0] * 6))
    aimed = row._replace(target=2.0)
    for rows, first in (([row, aimed], 0), ([aimed, row], 1)):
        with pytest.raises(ValueError, match=f"row {first} has none"):
            solvers.assemble(rows, row)
    for name in ("logsnr", "target"):
        with pytest.raises(ValueError, match=f"row 1: its {name} is NaN"):
            solvers.assemble([aimed, aimed._replace(**{name: np.nan})], row)
    for bad in (np.inf, np.nan, 1e39):
        with pytest.raises(ValueError, match="predict.noise of the table is not finite"):
            solvers.assemble([row._replace(noise=bad)], row)


def test_describe_tells_a_line_per_call():
    text = solvers.ddim(VP, GRID, 0.5).describe()
    assert text.startswith("5 calls, 5 history slots, with fresh noise, level shape ()")
    lines = text.splitlines()
    assert len(lines) == 7 and "noise" in lines[2] and lines[-1].lstrip().startswith("sample = ")
    assert "logsnr -> " not in text and " -> " in solvers.flow_map(VP, GRID).describe()
    assert "[" in solvers.ddim(VP, staggered()).describe()


def test_saved_tables_come_back_bit_by_bit(tmp_path):
    record = {"schedule": schedules.record(VP), "denoiser": "5f3a", "nfe": 5}
    for i, table in enumerate((solvers.ddpm(VP, GRID), solvers.unipc(VP, staggered(), 3), solvers.flow_map(VP, GRID))):
        path = tmp_path / "deep" / f"{i}.npz"
        solvers.save(path, table, record)
        back, found = solvers.load(path, denoiser="5f3a", schedule=schedules.record(VP))
        assert (
            found == record and back.stochastic == table.stochastic and (back.target is None) == (table.target is None)
        )
        for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(table), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert jax.tree.structure(back) == jax.tree.structure(table)


def test_files_that_are_no_table_or_another_models_are_refused(tmp_path):
    path = tmp_path / "table.npz"
    made = {"denoiser": "5f3a", "shape": [2], "start": "-inf", "schedule": schedules.record(VP)}
    solvers.save(path, solvers.ddim(VP, GRID), made)
    assert solvers.load(path, shape=(2,), start=-np.inf, schedule=VP)[1] == made
    with pytest.raises(ValueError, match="was made for denoiser = '5f3a', not 'beef'"):
        solvers.load(path, denoiser="beef")
    with pytest.raises(ValueError, match="was made for end = None"):
        solvers.load(path, end=3.0)
    with pytest.raises(ValueError, match="was made for shape = "):
        solvers.load(path, shape=(3,))
    with pytest.raises(ValueError, match="no table at"):
        solvers.load(tmp_path / "none.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a table written by|damaged"):
        solvers.load(path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(ValueError, match="not a table written by"):
        solvers.load(path)


def test_a_table_is_a_pytree_without_a_name():
    a, b = solvers.dpmpp(VP, GRID), solvers.unipc(VP, GRID, 3)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert jax.tree.structure(a) != jax.tree.structure(solvers.ddpm(VP, GRID))
    assert [leaf.shape for leaf in jax.tree.leaves(a)] == [leaf.shape for leaf in jax.tree.leaves(b)]
    assert dataclasses.is_dataclass(a) and a.slots == 5


@pytest.mark.parametrize("start", [-12.0, -14.0, -20.0])
def test_statistics_serve_grids_that_begin_beyond_them(start):
    """l goes on as its law there: held constant, the same steps were 6e4 off from -20, more than noise is large."""
    mix, key = oracles.a1d(), jax.random.key(0)
    denoise, x = mix.denoiser(VP), jax.random.normal(key, (256, 1))
    statistics = solvers.ems_statistics(denoise, VP, x, key)
    grid = grids.uniform_logsnr(VP, 16, start)
    exact = sampling.sample(denoise, solvers.dpmpp(VP, grids.uniform_logsnr(VP, 400, start), 3), x)

    def error(table):
        return float(jnp.sqrt(jnp.mean((sampling.sample(denoise, table, x) - exact) ** 2)))

    assert error(solvers.dpm_solver_v3(VP, grid, statistics)) < 0.5 * error(solvers.dpmpp(VP, grid, 3))
