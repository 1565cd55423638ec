"""DPM-Solver (noise form, Lu et al. 2022, arXiv 2206.00927) and DPM-Solver++ (data form, arXiv 2211.01095)."""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from diffusion.schedules import Schedule
from diffusion.solvers import multistep
from diffusion.solvers.ddim import ddim
from diffusion.solvers.exponential import (
    check_damping,
    data_anchor,
    data_moments,
    data_noise,
    exponential_table,
    half,
)
from diffusion.solvers.singlestep import Scheme, Stage, basis, eps, singlestep
from diffusion.solvers.steps import steps_of
from diffusion.solvers.table import Table


def dpm_solver(
    schedule: Schedule,
    grid: Float[ArrayLike, "points ..."],
    order: int = 2,
    *,
    multistep: bool = False,
    damping: float | None = None,
    lower_order_final: bool | None = None,
) -> Table:
    """DPM-Solver-1, -2, -3 on a rising grid [N+1, *level]: `order` calls a step, or one with `multistep`.

    Singlestep are the paper's algorithms 1 and 2 (r_1 = 1/2; r_1 = 1/3, r_2 = 2/3), whose inner levels are placed between
    the grid's points in lambda. Multistep is the same expansion with backward differences (2M, 3M). Its third order has
    the full second difference: with half of it, as in published code, it is of order 2. damping and lower_order_final
    belong to `multistep`, see `exponential_adams`.
    """
    steps = steps_of(
        "dpm_solver", schedule, grid, order, largest=3, lower_order_final=lower_order_final, in_logsnr=True
    )
    check_damping("dpm_solver", damping)
    if order == 1:
        return ddim(schedule, steps.grid)
    if multistep:
        return exponential_table(steps, noise=True, second=half, damping=damping)
    _check_unused("dpm_solver", damping, lower_order_final)
    here, there = steps.grid[:-1], steps.grid[1:]
    scheme = {2: _dpm_solver_2, 3: _dpm_solver_3}[order]
    return singlestep(schedule, here, here, there, lambda s, t: scheme(schedule, s, t), careful=True)


def _check_unused(name, damping, lower_order_final):
    if damping is not None or lower_order_final is not None:
        raise ValueError(f"{name}: damping and lower_order_final are of multistep solvers; singlestep uses neither")


def _dpm_solver_2(schedule, here, there):
    """Algorithm 1: u = alpha_m/alpha x - sigma_m (e^{h/2} - 1) eps(x), x_t = alpha_t/alpha x - sigma_t (e^h - 1) eps(u)."""
    x, (d0, d1), _ = basis(2, here)
    middle, h = (here + there) / 2, (there - here) / 2
    alpha, sigma = schedule.alpha, schedule.sigma
    u = alpha(middle) / alpha(here) * x - sigma(middle) * np.expm1(h / 2) * eps(schedule, here, x, d0)
    end = alpha(there) / alpha(here) * x - sigma(there) * np.expm1(h) * eps(schedule, middle, u, d1)
    return Scheme([Stage(middle, u)], end)


def _dpm_solver_3(schedule, here, there):
    """Algorithm 2."""
    x, (d0, d1, d2), _ = basis(3, here)
    h = (there - here) / 2
    r1, r2 = 1 / 3, 2 / 3
    level1, level2 = here + 2 * r1 * h, here + 2 * r2 * h
    alpha, sigma = schedule.alpha, schedule.sigma
    e0 = eps(schedule, here, x, d0)
    u1 = alpha(level1) / alpha(here) * x - sigma(level1) * np.expm1(r1 * h) * e0
    difference1 = eps(schedule, level1, u1, d1) - e0
    u2 = alpha(level2) / alpha(here) * x - sigma(level2) * np.expm1(r2 * h) * e0
    u2 = u2 - sigma(level2) * r2 / r1 * (np.expm1(r2 * h) / (r2 * h) - 1) * difference1
    difference2 = eps(schedule, level2, u2, d2) - e0
    end = alpha(there) / alpha(here) * x - sigma(there) * np.expm1(h) * e0
    end = end - sigma(there) / r2 * (np.expm1(h) / h - 1) * difference2
    return Scheme([Stage(level1, u1), Stage(level2, u2)], end)


def dpmpp(
    schedule: Schedule,
    grid: Float[ArrayLike, "points ..."],
    order: int = 2,
    *,
    singlestep: bool = False,
    sde: bool = False,
    damping: float | None = None,
    lower_order_final: bool | None = None,
) -> Table:
    """DPM-Solver++ on a rising grid [N+1, *level]: multistep (2M, 3M; N calls) or singlestep (2S, 3S; `order` calls a step).

    2M is algorithm 2 of the paper, 2S algorithm 1 with r = 1/2, 3S the data-form twin of DPM-Solver-3. 3M is the
    expansion to third order with backward differences; published code halves its second difference, which leaves order 2.
    sde: the reverse SDE of DDPM's strength, SDE-DPM-Solver++(1, 2M) of the paper's appendix, 3M, and 2S with the Brownian
    path kept at the middle; 3S has none. damping and lower_order_final belong to multistep, see `exponential_adams`.
    """
    steps = steps_of("dpmpp", schedule, grid, order, largest=3, lower_order_final=lower_order_final, in_logsnr=True)
    check_damping("dpmpp", damping)
    if order == 1:
        return ddim(schedule, steps.grid, eta=1.0 if sde else 0.0)
    if singlestep:
        _check_unused("dpmpp", damping, lower_order_final)
        return _singlestep(schedule, steps.grid, order, sde)
    if not sde:
        return exponential_table(steps, second=half, damping=damping)
    moments = data_moments(steps, order, tau=1.0)
    update = multistep.predictor(
        steps,
        steps.points,
        data_anchor(steps, tau=1.0),
        moments,
        noise=data_noise(steps, tau=1.0),
        second=moments[0] / 2,
        damping=damping,
        eta=np.float64(1.0),
    )
    return multistep.table(steps, multistep.data_form(schedule), update)


def _singlestep(schedule, grid, order, sde):
    if sde and order == 3:
        raise ValueError("dpmpp: the SDE form is multistep (order 1 to 3) or singlestep of order 2; order 3 has none")
    scheme = _dpmpp_2s_sde if sde else {2: _dpmpp_2s, 3: _dpmpp_3s}[order]
    return singlestep(schedule, grid[:-1], grid[:-1], grid[1:], lambda s, t: scheme(schedule, s, t))


def _dpmpp_2s(schedule, here, there):
    """Algorithm 1, r = 1/2: u = sigma_m/sigma x - alpha_m (e^{-h/2} - 1) D_0 and
    x_t = sigma_t/sigma x - alpha_t (e^{-h} - 1) D_1."""
    x, (d0, d1), _ = basis(2, here)
    middle, h = (here + there) / 2, (there - here) / 2
    alpha, sigma = schedule.alpha, schedule.sigma
    u = sigma(middle) / sigma(here) * x - alpha(middle) * np.expm1(-h / 2) * d0
    end = sigma(there) / sigma(here) * x - alpha(there) * np.expm1(-h) * d1
    return Scheme([Stage(middle, u)], end)


def _dpmpp_3s(schedule, here, there):
    """r_1 = 1/3, r_2 = 2/3, with the differences of D in place of those of eps."""
    x, (d0, d1, d2), _ = basis(3, here)
    h = (there - here) / 2
    r1, r2 = 1 / 3, 2 / 3
    level1, level2 = here + 2 * r1 * h, here + 2 * r2 * h
    alpha, sigma = schedule.alpha, schedule.sigma
    u1 = sigma(level1) / sigma(here) * x - alpha(level1) * np.expm1(-r1 * h) * d0
    u2 = sigma(level2) / sigma(here) * x - alpha(level2) * np.expm1(-r2 * h) * d0
    u2 = u2 + alpha(level2) * r2 / r1 * (np.expm1(-r2 * h) / (r2 * h) + 1) * (d1 - d0)
    end = sigma(there) / sigma(here) * x - alpha(there) * np.expm1(-h) * d0
    end = end + alpha(there) / r2 * (np.expm1(-h) / h + 1) * (d2 - d0)
    return Scheme([Stage(level1, u1), Stage(level2, u2)], end)


def _dpmpp_2s_sde(schedule, here, there):
    """2S of the SDE: the noise of the first half step is in u, carried on to the end, and the second half's is added.

    u = sigma_m/sigma e^{-h/2} x + alpha_m (1 - e^{-h}) D_0 + sigma_m sqrt(1 - e^{-h}) z_1
    x_t = sigma_t/sigma e^{-h} x + alpha_t (1 - e^{-2h}) D_1 + sigma_t/sigma_m e^{-h/2} (u - its mean) + ... z_2
    """
    x, (d0, d1), last = basis(2, here)
    middle, h = (here + there) / 2, (there - here) / 2
    alpha, sigma = schedule.alpha, schedule.sigma
    mean = sigma(middle) / sigma(here) * np.exp(-h / 2) * x - alpha(middle) * np.expm1(-h) * d0
    deviation = np.sqrt(-np.expm1(-h))
    carried = sigma(there) / sigma(middle) * np.exp(-h / 2) * (last - mean)
    end = sigma(there) / sigma(here) * np.exp(-h) * x - alpha(there) * np.expm1(-2 * h) * d1 + carried
    return Scheme([Stage(middle, mean, sigma(middle) * deviation)], end, sigma(there) * deviation)
