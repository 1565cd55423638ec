"""What stochastic tables do to a law, read off their coefficients: no sampling anywhere.

A point that is linear in independent standard normals is kept as the vector of its weights, so running a table by hand on
such vectors gives exact means and variances.
"""

import numpy as np
import pytest
from solvers_tools import END, START, by_hand, uneven

from diffusion import grids, schedules, solvers

INTERVAL = solvers.Interval(noisy=-1.0, clean=3.0, steps=3, repeats=2)
STOCHASTIC = {
    "ddim, eta 0.3": lambda s, g: solvers.ddim(s, g, 0.3),
    "ddim, eta 1": lambda s, g: solvers.ddim(s, g, 1.0),
    "ddpm": solvers.ddpm,
    "euler with churn": lambda s, g: solvers.euler(s, g, 3.0),
    "heun with much churn": lambda s, g: solvers.heun(s, g, 1000.0),
    "heun with churn inside": lambda s, g: solvers.heun(s, g, 2.0, s_min=0.1, s_max=5.0),
    "restart": lambda s, g: solvers.restart(s, g, [INTERVAL]),
    "dpmpp SDE 1": lambda s, g: solvers.dpmpp(s, g, 1, sde=True),
    "dpmpp SDE 2M": lambda s, g: solvers.dpmpp(s, g, 2, sde=True),
    "dpmpp SDE 3M": lambda s, g: solvers.dpmpp(s, g, 3, sde=True),
    "dpmpp SDE 2S": lambda s, g: solvers.dpmpp(s, g, 2, singlestep=True, sde=True),
    "sa_solver": solvers.sa_solver,
    "sa_solver, tau of the level": lambda s, g: solvers.sa_solver(s, g, 2, 2, lambda l: np.where(l < 0, 1.5, 0.2)),
    "er_sde 1": lambda s, g: solvers.er_sde(s, g, 1),
    "er_sde 3": lambda s, g: solvers.er_sde(s, g, 3, noise_scale=lambda v: v**2),
    "consistency": solvers.consistency,
    "overshoot": solvers.overshoot,
    "flow_map": lambda s, g: solvers.flow_map(s, g, 0.6),
    "flow_map, no jump": lambda s, g: solvers.flow_map(s, g, 1.0),
}
SCHEDULES = {
    "vp": schedules.vp_linear(), "edm": schedules.edm(), "flow": schedules.flow(), "sub-vp": schedules.sub_vp()
}  # fmt: skip
ENDS = {"finite": (-8.0, 7.0), "clean": (-8.0, np.inf), "noise": (-np.inf, 7.0), "both": (-np.inf, np.inf)}


def laws(table, denoise, start):
    """Weights of every point and of the sample over (1, z_start, z_0, z_1, ...), as [basis, 1]."""
    size = table.nfe + 3
    units = np.eye(size)[:, :, None]
    points, sample = by_hand(table, denoise, start[0] * units[0] + start[1] * units[1], list(units[2:]))
    return [p[:, 0] for p in points], sample[:, 0]


# alpha = 0 does not exist in EDM's scaling, where alpha = 1.
CASES = [(s, e) for s in SCHEDULES for e in ENDS if not (s == "edm" and e in ("noise", "both"))]


@pytest.mark.parametrize("schedule, ends", CASES)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_single_point_keeps_its_marginal_at_every_call(name, schedule, ends):
    """Data that is the one point m: x is N(alpha m, sigma^2) at every level, whatever the noise and the skipped steps."""
    schedule, (start, end) = SCHEDULES[schedule], ENDS[ends]
    grid = uneven(schedule, 6, -8.0, 7.0)
    grid[0], grid[-1] = start, end
    m = 1.7
    target = np.array([m])

    def denoise(x, logsnr, *jump):
        answer = np.zeros_like(x)
        answer[0] = target
        return answer

    table = STOCHASTIC[name](schedule, grid)
    assert table.stochastic
    points, sample = laws(table, denoise, (float(schedule.alpha(start)) * m, float(schedule.sigma(start))))
    for law, logsnr in zip([*points, sample], [*table.logsnr, end], strict=True):
        alpha, sigma = float(schedule.alpha(logsnr)), float(schedule.sigma(logsnr))
        scale = max(1.0, sigma)
        assert abs(law[0] - alpha * m) <= 1e-12 * scale
        assert abs(np.sum(law[1:] ** 2) - sigma**2) <= 1e-12 * scale**2


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
def test_the_upper_variance_is_exact_on_unit_gaussian_data(schedule):
    """N(0, I) data and ddpm(variance="upper"): the variance alpha^2 + sigma^2 at every level, for any skip."""
    for steps in (1, 2, 5, 40):
        grid = grids.uniform_logsnr(schedule, steps, -9.0, 7.0)

        def denoise(x, logsnr):
            alpha, sigma = schedule.alpha(logsnr), schedule.sigma(logsnr)
            return alpha / (alpha**2 + sigma**2) * x

        variance = [float(schedule.alpha(l) ** 2 + schedule.sigma(l) ** 2) for l in grid]
        points, sample = laws(solvers.ddpm(schedule, grid, "upper"), denoise, (0.0, np.sqrt(variance[0])))
        for law, exact in zip([*points, sample], variance, strict=True):
            np.testing.assert_allclose(np.sum(law**2), exact, rtol=1e-12)
        lower = laws(solvers.ddpm(schedule, grid), denoise, (0.0, np.sqrt(variance[0])))[1]
        assert np.sum(lower**2) < variance[-1] * (1 - 1e-4)


GAUSSIAN = {
    "ddim, eta 0.5": (lambda s, g: solvers.ddim(s, g, 0.5), 0.9, 1.15),
    "ddpm": (solvers.ddpm, 0.9, 1.15),
    "dpmpp SDE 1": (lambda s, g: solvers.dpmpp(s, g, 1, sde=True), 0.9, 1.15),
    "er_sde 1": (lambda s, g: solvers.er_sde(s, g, 1), 0.9, 1.15),
    "euler with churn": (lambda s, g: solvers.euler(s, g, 5.0), 0.85, 1.15),
    "dpmpp SDE 2M": (STOCHASTIC["dpmpp SDE 2M"], 1.8, 9),
    "dpmpp SDE 3M": (STOCHASTIC["dpmpp SDE 3M"], 1.8, 9),
    "dpmpp SDE 2S": (STOCHASTIC["dpmpp SDE 2S"], 1.8, 9),
    "sa_solver 3, 4": (solvers.sa_solver, 1.8, 9),
    "er_sde 3": (lambda s, g: solvers.er_sde(s, g, 3), 1.8, 9),
    "heun with churn": (lambda s, g: solvers.heun(s, g, 5.0), 1.8, 9),
}


@pytest.mark.parametrize("spread", [0.5, 2.0])
@pytest.mark.parametrize("name", GAUSSIAN)
def test_order_of_the_variance_on_gaussian_data(name, spread):
    builder, low, high = GAUSSIAN[name]
    schedule = SCHEDULES["vp"]

    def denoise(x, logsnr):
        alpha, sigma = schedule.alpha(logsnr), schedule.sigma(logsnr)
        return alpha * spread**2 / (alpha**2 * spread**2 + sigma**2) * x

    def variance(logsnr):
        return float(schedule.alpha(logsnr) ** 2 * spread**2 + schedule.sigma(logsnr) ** 2)

    found, steps = [], (40, 80, 160, 320)
    for n in steps:
        table = builder(schedule, grids.uniform_logsnr(schedule, n, START, END))
        sample = laws(table, denoise, (0.0, np.sqrt(variance(START))))[1]
        found.append(abs(np.sum(sample**2) - variance(END)))
    order = -np.polyfit(np.log(steps), np.log(found), 1)[0]
    assert low <= order <= high, (name, order, found)
