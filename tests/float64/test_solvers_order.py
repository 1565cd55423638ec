"""Measured orders of convergence against exact solutions, and the order conditions of every multistep row."""

import jax
import numpy as np
import pytest
from scipy.integrate import quad
from solvers_tools import END, START, VP, by_hand, problem, uneven

from diffusion import grids, oracles, schedules, solvers

STEPS = (20, 40, 80, 160)
SMOOTH = np.linspace(-24, 24, 100)
STATISTICS = solvers.Statistics(
    SMOOTH, 1 / (1 + np.exp(SMOOTH)), np.exp(-((SMOOTH / 8) ** 2)) / 4, 0.1 * np.tanh(SMOOTH / 4)
)


def er_ode(order):
    return lambda s, g: solvers.er_sde(s, g, order, noise_scale=lambda v: v)


# Builder, and the interval in which its fitted slope must lie. Multistep solvers start at first order and rise; where the
# path is nearly straight, as it is at s = 157, that costs nothing.
ORDERS = {
    "ddim": (solvers.ddim, 0.9, 1.1),
    "euler": (solvers.euler, 0.9, 1.1),
    "dpm_solver 1": (lambda s, g: solvers.dpm_solver(s, g, 1), 0.9, 1.1),
    "exponential_adams 1": (lambda s, g: solvers.exponential_adams(s, g, 1), 0.9, 1.1),
    "er_sde 1, ODE": (er_ode(1), 0.9, 1.1),
    "dpm_solver_v3 1": (lambda s, g: solvers.dpm_solver_v3(s, g, STATISTICS, 1, corrector=False), 0.9, 1.1),
    "heun": (solvers.heun, 1.8, 9),
    "dpm_solver 2": (lambda s, g: solvers.dpm_solver(s, g, 2), 1.8, 9),
    "dpm_solver 2M": (lambda s, g: solvers.dpm_solver(s, g, 2, multistep=True), 1.8, 9),
    "dpmpp 2M": (lambda s, g: solvers.dpmpp(s, g, 2), 1.8, 9),
    "dpmpp 2S": (lambda s, g: solvers.dpmpp(s, g, 2, singlestep=True), 1.8, 9),
    "exponential_adams 2": (lambda s, g: solvers.exponential_adams(s, g, 2), 1.8, 9),
    "deis t 2": (lambda s, g: solvers.deis(s, g, 2), 1.8, 9),
    "adams 2": (lambda s, g: solvers.adams(s, g, 2), 1.8, 9),
    "er_sde 2, ODE": (er_ode(2), 1.8, 9),
    "unipc 1": (lambda s, g: solvers.unipc(s, g, 1), 1.8, 9),
    "dpm_solver_v3 2": (lambda s, g: solvers.dpm_solver_v3(s, g, STATISTICS, 2, corrector=False), 1.8, 9),
    "dpm_solver 3": (lambda s, g: solvers.dpm_solver(s, g, 3), 2.6, 9),
    "dpm_solver 3M": (lambda s, g: solvers.dpm_solver(s, g, 3, multistep=True), 2.6, 9),
    "dpmpp 3M": (lambda s, g: solvers.dpmpp(s, g, 3), 2.6, 9),
    "dpmpp 3S": (lambda s, g: solvers.dpmpp(s, g, 3, singlestep=True), 2.6, 9),
    "exponential_adams 3": (lambda s, g: solvers.exponential_adams(s, g, 3), 2.6, 9),
    "exponential_adams 3, noise": (lambda s, g: solvers.exponential_adams(s, g, 3, noise_form=True), 2.6, 9),
    "deis t 3": (lambda s, g: solvers.deis(s, g, 3), 2.6, 9),
    "deis log 3": (lambda s, g: solvers.deis(s, g, 3, variant="log"), 2.6, 9),
    "adams 3": (lambda s, g: solvers.adams(s, g, 3), 2.6, 9),
    "er_sde 3, ODE": (er_ode(3), 2.6, 9),
    "sa_solver 3, ODE": (lambda s, g: solvers.sa_solver(s, g, 3, 0, tau=0.0), 2.6, 9),
    "unipc 2": (lambda s, g: solvers.unipc(s, g, 2), 2.6, 9),
    "unipc 2, bh1": (lambda s, g: solvers.unipc(s, g, 2, variant="bh1"), 2.6, 9),
    "unipc 3": (lambda s, g: solvers.unipc(s, g, 3), 3.2, 9),
    "unipc 3, noise": (lambda s, g: solvers.unipc(s, g, 3, noise_form=True), 3.2, 9),
    "exponential_adams 4": (lambda s, g: solvers.exponential_adams(s, g, 4), 3.4, 9),
}


def slope(errors, steps=STEPS):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def errors(builder, schedule, denoise, x, truth, grid_of, steps=STEPS, summary=None):
    summary = summary or (lambda e: np.sqrt(np.mean(e**2)))
    return [summary(by_hand(builder(schedule, grid_of(n)), denoise, x)[1] - truth) for n in steps]


def uniform(n):
    return grids.uniform_logsnr(VP, n, START, END)


@pytest.fixture(scope="module")
def a1d():
    denoise, x = problem(VP, START, samples=64)
    return denoise, x, oracles.probability_flow(denoise, x, VP, START, END)


@pytest.fixture(scope="module")
def video():
    """Eight frames of 2 x 2 pixels, smooth in time and space."""
    spatial = 0.5 * np.eye(4) + 0.5
    process = oracles.gaussian_process(oracles.rbf(8, 2.0), spatial, 0.3)
    x = float(VP.sigma(START)) * np.random.default_rng(0).standard_normal((4, 8, 2, 2, 1))
    return process.denoiser(VP), x, process.flow_map(VP)(x, START, END)


@pytest.mark.parametrize("name", ORDERS)
def test_order_on_a_mixture(name, a1d):
    builder, low, high = ORDERS[name]
    denoise, x, truth = a1d
    found = errors(builder, VP, denoise, x, truth, uniform)
    assert low <= slope(found) <= high, (name, slope(found), found)


@pytest.mark.parametrize("name", ORDERS)
def test_order_on_a_gaussian_process_video(name, video):
    builder, low, high = ORDERS[name]
    denoise, x, truth = video
    found = errors(builder, VP, denoise, x, truth, uniform)
    if name == "unipc 3":
        # In data form two terms of its error cancel at 20 steps on Gaussian data of any variance, as a shift in log-SNR
        # does not change a uniform grid. The order shows from 40 steps on.
        assert slope(found[1:], STEPS[1:]) >= low, (name, found)
        return
    assert low <= slope(found) <= high, (name, slope(found), found)


def test_order_on_narrow_modes():
    """b2d: the median error, as the few trajectories that change mode hide any order in the mean."""
    mix = oracles.b2d()
    denoise = mix.denoiser(VP)
    x = float(VP.sigma(START)) * np.random.default_rng(0).standard_normal((64, 2))
    truth = oracles.probability_flow(denoise, x, VP, START, END, rtol=1e-8)

    def median(e):
        return np.median(np.sqrt(np.mean(e**2, axis=-1)))

    for name, least in (("ddim", 0.8), ("dpmpp 2M", 1.6), ("exponential_adams 3", 2.2), ("unipc 3", 2.5)):
        found = errors(ORDERS[name][0], VP, denoise, x, truth, uniform, (40, 80, 160), median)
        assert slope(found, (40, 80, 160)) >= least, (name, found)


def test_own_uniform_grids(a1d):
    """iPNDM on steps equal in sigma/alpha, PNDM on steps equal in time (where it is of order 2)."""
    denoise, x, truth = a1d
    for runge_kutta in (True, False):
        found = errors(
            lambda s, g, rk=runge_kutta: solvers.pndm(s, g, runge_kutta=rk),
            VP, denoise, x, truth, lambda n: grids.uniform_time(VP, n, START, END),
        )  # fmt: skip
        assert slope(found) >= 1.8, found
    start = -2 * np.log(8.0)  # 160 equal steps from s = 157 are all longer than the data is wide
    x = x / VP.sigma(START) * VP.sigma(start)
    truth = oracles.probability_flow(denoise, x, VP, start, END)
    for order, least in ((1, 0.85), (2, 1.8), (3, 2.6), (4, 3.2)):
        found = errors(
            lambda s, g, p=order: solvers.ipndm(s, g, p),
            VP, denoise, x, truth, lambda n: grids.karras(VP, n, start, END, rho=1.0),
        )  # fmt: skip
        assert slope(found) >= least, (order, found)


def test_the_published_third_multistep_order_is_two(a1d):
    """Half of the second difference, as in published DPM-Solver(++)-3M code, leaves order 2; the whole gives 3."""
    denoise, x, truth = a1d

    def halved(schedule, grid):
        """x_t with coefficient phi_3 for f''/2 instead of f''."""
        lams, past, point = grid / 2, [], x
        for i, (lam, to) in enumerate(zip(lams[:-1], lams[1:], strict=True)):
            past.insert(0, denoise(point, 2 * lam))
            h, a, s = to - lam, float(VP.alpha(2 * to)), VP.sigma(2 * to) / VP.sigma(2 * lam)
            point = s * point - a * np.expm1(-h) * past[0]
            if i == 1:
                point = point - 0.5 * a * np.expm1(-h) * (past[0] - past[1])
            if i > 1:
                d0, d1 = past[0] - past[1], past[1] - past[2]
                phi2 = np.expm1(-h) / h + 1
                point = point + a * phi2 * (d0 + (d0 - d1) / 2) - a * (phi2 / h - 0.5) * (d0 - d1) / 2
        return point

    steps = (40, 80, 160)
    found = [np.sqrt(np.mean((halved(VP, uniform(n)) - truth) ** 2)) for n in steps]
    ours = errors(lambda s, g: solvers.dpmpp(s, g, 3), VP, denoise, x, truth, uniform, steps)
    assert slope(found, steps) < 2.3 < 2.6 < slope(ours, steps)
    assert ours[-1] < found[-1] / 3


# Order conditions -------------------------------------------------------------------------------------------

DATA, NOISE = 0, 1
MULTISTEP = {
    "exponential_adams": (lambda s, g: solvers.exponential_adams(s, g, 3, lower_order_final=False), DATA, "log", 3),
    "exponential_adams 4": (lambda s, g: solvers.exponential_adams(s, g, 4, lower_order_final=False), DATA, "log", 4),
    "noise form": (
        lambda s, g: solvers.exponential_adams(s, g, 3, noise_form=True, lower_order_final=False), NOISE, "log", 3,
    ),
    "unipc": (lambda s, g: solvers.unipc(s, g, 3, corrector=False, lower_order_final=False), DATA, "log", 3),
    "dpmpp": (lambda s, g: solvers.dpmpp(s, g, 3, lower_order_final=False), DATA, "log", 3),
    "deis t": (lambda s, g: solvers.deis(s, g, 4, lower_order_final=False), NOISE, "t", 4),
    "adams": (lambda s, g: solvers.adams(s, g, 4, lower_order_final=False), NOISE, "rho", 4),
    "sa_solver": (lambda s, g: solvers.sa_solver(s, g, 4, 0, 0.0, lower_order_final=False), DATA, "log", 4),
    "er_sde": (
        lambda s, g: solvers.er_sde(s, g, 3, noise_scale=lambda v: v, lower_order_final=False), DATA, "rho", 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("schedule", [VP, schedules.edm(), schedules.flow(), schedules.vp_cosine()])
@pytest.mark.parametrize("name", MULTISTEP)
def test_order_conditions(name, schedule):
    """Every row integrates polynomials of degree below its order exactly, in the solver's own variable: the weights of a
    step reproduce alpha_t int q d(sigma/alpha) (noise) or sigma_t int q d(alpha/sigma) (data).
    """
    builder, form, variable, order = MULTISTEP[name]
    grid = uneven(schedule, 7, -6.0, 7.0)
    table = builder(schedule, grid)
    coordinate = {
        "t": lambda l: float(schedule.time(l)), "rho": lambda l: np.exp(-l / 2), "log": lambda l: l
    }[variable]  # fmt: skip
    for i in range(7):
        step = table.final if i == 6 else jax.tree.map(lambda leaf, i=i: leaf[i + 1], table.predict)
        here, there, p = grid[i], grid[i + 1], min(order, i + 1)
        start = coordinate(here)
        factor, kernel, anchor = (
            (schedule.alpha(there), lambda l: -0.5 * np.exp(-l / 2), schedule.alpha(there) / schedule.alpha(here))
            if form == NOISE
            else (schedule.sigma(there), lambda l: 0.5 * np.exp(l / 2), schedule.sigma(there) / schedule.sigma(here))
        )
        np.testing.assert_allclose(step.anchor, anchor, rtol=1e-13)
        nodes = [coordinate(grid[i - k]) for k in range(p)]
        width = coordinate(there) - coordinate(here)
        assert not np.any(step.history[p:])
        for degree in range(p):

            def q(u, degree=degree, at=start, width=width):
                return ((u - at) / width) ** degree

            exact = (
                factor
                * quad(lambda l, kernel=kernel: kernel(l) * q(coordinate(l)), here, there, epsabs=1e-14, epsrel=1e-12)[
                    0
                ]
            )
            # UniPC and DPM-Solver++ set the two-node weights themselves, to the same order (see `half`).
            loose = degree == 1 and p == 2 and name in ("unipc", "dpmpp")
            mixed = sum(w * q(u) for w, u in zip(step.history, nodes, strict=False))
            scale = max(1.0, np.abs(step.history[:p]).sum())
            assert abs(mixed - exact) <= (0.5 if loose else 1e-10) * scale, (i, degree, mixed, exact)


def test_phi_functions():
    from diffusion.solvers.exponential import phi

    for k in range(1, 6):
        for z in (-60.0, -3.0, -1.0, -0.999, -1e-3, -1e-9, 0.0, 1e-12, 0.02, 0.999, 1.0, 1.001, 4.0, 30.0):
            exact = quad(
                lambda u, z=z, k=k: np.exp((1 - u) * z) * u ** (k - 1) / np.prod(range(1, k)),
                0, 1, epsabs=0, epsrel=1e-13, limit=200,
            )[0]  # fmt: skip
            np.testing.assert_allclose(phi(k, np.float64(z)), exact, rtol=3e-13)


def test_damping_limits_what_an_extrapolation_may_assume():
    """Equal steps are untouched; after a short step the weights are those after one of `damping`'s ratio."""
    even = uniform(12)
    for builder in (solvers.exponential_adams, solvers.unipc, solvers.dpmpp):
        free, damped = builder(VP, even, 3), builder(VP, even, 3, damping=1.5)
        for a, b in zip(jax.tree.leaves(free), jax.tree.leaves(damped), strict=True):
            np.testing.assert_array_equal(a, b)
    for order, before in ((2, [-6.9]), (3, [-6.9 - 2 / 3, -6.9])):
        short = np.array([*np.linspace(-6.1, -6.0, order - 1), -5.9, -4.4, -4.0])
        allowed = np.array([*before, -5.9, -4.4, -4.0])  # steps of 2/3, 1 and 1.5
        free = solvers.exponential_adams(VP, short, order, lower_order_final=False).predict.history[order]
        damped = solvers.exponential_adams(VP, short, order, damping=1.5, lower_order_final=False).predict.history[
            order
        ]
        limit = solvers.exponential_adams(VP, allowed, order, lower_order_final=False).predict.history[order]
        np.testing.assert_allclose(damped, limit, atol=1e-12)
        np.testing.assert_allclose(damped.sum(), free.sum(), atol=1e-12)  # consistent either way
        assert np.abs(free).sum() > 2 * np.abs(damped).sum()
    in_s = solvers.adams(VP, np.array([-2.0, -1.99, -0.5, 0.0]), 2, damping=1.5, lower_order_final=False)
    assert abs(in_s.predict.history[2, 1]) <= 0.751 * abs(in_s.predict.history[2].sum())
    constant = solvers.ipndm(VP, np.array([-2.0, -1.99, -0.5, 0.0]), 2, damping=1.5, lower_order_final=False)
    assert abs(constant.predict.history[2, 1]) < 0.05 * abs(constant.predict.history[2].sum())
