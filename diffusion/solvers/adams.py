"""Adams-Bashforth samplers on eps in the variables of their papers: DEIS, Adams in sigma/alpha, iPNDM, and PNDM.

With y = x/alpha and s = sigma/alpha the probability flow is dy = eps ds, so x_t = alpha_t/alpha_s x_s + alpha_t int eps ds.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from diffusion.clocks import namespace
from diffusion.names import choice
from diffusion.schedules import Schedule
from diffusion.solvers import multistep
from diffusion.solvers.ddim import transition
from diffusion.solvers.exponential import check_damping, noise_anchor, noise_moments
from diffusion.solvers.multistep import noise_form
from diffusion.solvers.steps import Steps, gauss_legendre, steps_of
from diffusion.solvers.table import SLOTS, Row, Table, assemble

_POINTS, _WEIGHTS = gauss_legendre(64)


def s_of(level: Any) -> Any:
    """sigma/alpha."""
    return namespace(level).exp(-level / 2)


def s_moments(steps: Steps, count: int) -> list[Any]:
    """alpha_t int u^j ds for u linear in s: alpha_t (s_t - s_s) / (j + 1)."""
    length = steps.schedule.alpha(steps.there) * (s_of(steps.there) - s_of(steps.here))
    return [length / (j + 1) for j in range(count)]


def _time_moments(steps: Steps, count: int) -> list[Any]:
    """alpha_t int u^j ds for u linear in the schedule's time, by Gauss-Legendre quadrature in log-SNR."""
    length = s_moments(steps, 1)[0]  # j = 0 is exact
    begin, end = steps.schedule.time(steps.here), steps.schedule.time(steps.there)
    alpha, totals = steps.schedule.alpha(steps.there), [0.0 * length for _ in range(1, count)]
    for v, weight in zip(_POINTS, _WEIGHTS, strict=True):
        level = steps.here + v * (steps.there - steps.here)
        u = (steps.schedule.time(level) - begin) / (end - begin)
        density = -weight * alpha * s_of(level) * steps.h
        totals = [total + density * u ** (j + 1) for j, total in enumerate(totals)]
    return [length, *totals]


VARIABLES: dict[str, tuple[Callable[[Schedule, Any], Any], Callable[[Steps, int], list[Any]]]] = {
    "t": (lambda schedule, level: schedule.time(level), _time_moments),
    "rho": (lambda schedule, level: s_of(level), s_moments),
    "log": (lambda schedule, level: level, noise_moments),
}
"""DEIS's variables by name: (schedule, level) -> coordinate, and the moments of ds in it."""


def deis(
    schedule: Schedule,
    grid: Float[ArrayLike, "points ..."],
    order: int = 3,
    *,
    variant: str = "t",
    damping: float | None = None,
    lower_order_final: bool | None = None,
) -> Table:
    """DEIS Adams-Bashforth (Zhang & Chen 2022, arXiv 2204.13902, eq. 14-15): eps is a polynomial through its last `order`
    values in `variant`, "t" (tAB, the schedule's time), "rho" (sigma/alpha) or "log" (log-SNR, as exponential Adams in
    noise form); the integral is exact. N calls; order 1 (DDIM) to 4. The paper's AB-r has order r + 1.

    damping and lower_order_final: see `exponential_adams`.
    """
    choice(variant, VARIABLES, "deis: variant")
    return _adams("deis", schedule, grid, order, variant, damping, lower_order_final)


def adams(
    schedule: Schedule,
    grid: Float[ArrayLike, "points ..."],
    order: int = 3,
    *,
    damping: float | None = None,
    lower_order_final: bool | None = None,
) -> Table:
    """Adams-Bashforth with variable steps in s = sigma/alpha on dy/ds = eps (k-diffusion's LMS, DEIS's rhoAB); N calls.

    order: 1 (DDIM) to 4. damping and lower_order_final: see `exponential_adams`.
    """
    return _adams("adams", schedule, grid, order, "rho", damping, lower_order_final)


def _adams(name, schedule, grid, order, variable, damping, lower_order_final):
    in_logsnr = variable == "log"
    steps = steps_of(name, schedule, grid, order, lower_order_final=lower_order_final, in_logsnr=in_logsnr)
    check_damping(name, damping)
    coordinate, moments = VARIABLES[variable]
    update = multistep.predictor(
        steps,
        coordinate(schedule, steps.points),
        noise_anchor(steps),
        moments(steps, int(steps.order.max())),
        damping=damping,
    )
    return multistep.table(steps, noise_form(schedule), update)


def ipndm(
    schedule: Schedule,
    grid: Float[ArrayLike, "points ..."],
    order: int = 4,
    *,
    damping: float | None = None,
    lower_order_final: bool | None = None,
) -> Table:
    """iPNDM (Zhang & Chen 2022, appendix; Liu et al. 2022, arXiv 2202.09778): Adams-Bashforth weights of equal steps on
    any grid, x_t a DDIM step with eps = 3/2 eps_0 - 1/2 eps_1 and so on; order 1 to 4, rising from 1 at the start; N calls.

    It has that order only where steps in s are equal. On other grids it is an extrapolation that knows no step ratio.
    damping: where a step in s is longer than `damping` times the one before, the extrapolation is scaled back in proportion.
    """
    steps = steps_of("ipndm", schedule, grid, order, lower_order_final=lower_order_final)
    check_damping("ipndm", damping)
    depth, damping = int(steps.order.max()), multistep.limit(steps, damping)
    moments = s_moments(steps, depth)
    positions = [np.full(steps.h.shape, -float(k)) for k in range(depth)]
    first, *rest = multistep.lagrange(positions, moments, steps.order)
    if damping is not None and rest:
        s = s_of(steps.points)
        reach = -multistep.nodes(steps, s, 2)[1]  # the step before in units of this one
        kept = np.where(steps.order > 1, np.minimum(1.0, damping * reach), 1.0)
        first = moments[0] + kept * (first - moments[0])
        rest = [kept * w for w in rest]
    update = multistep.irregular(steps, multistep.Update(noise_anchor(steps), (first, *rest)))
    return multistep.table(steps, noise_form(schedule), update)


_RUNGE_KUTTA_STEPS = 3
_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def pndm(schedule: Schedule, grid: Float[ArrayLike, "points ..."], *, runge_kutta: bool = True) -> Table:
    """PNDM (Liu et al. 2022, arXiv 2202.09778, algorithm 2), for the record: three pseudo Runge-Kutta steps of four calls
    each, then pseudo linear multistep steps with the Adams-Bashforth weights of order 4; N + 9 calls (with fewer
    than three steps, or with steps from noise alone or to infinity, which take one call: fewer).

    Made for grids uniform in time, where it is of order 2. runge_kutta: False starts with lower orders instead (N calls).
    Inner levels are halfway in the schedule's time. The history has 13 slots, as the first values are far back.
    """
    steps = steps_of("pndm", schedule, grid, 4, lower_order_final=False, careful=True)
    grid, here, there = steps.grid, steps.here, steps.there
    middle = schedule.logsnr((schedule.time(here) + schedule.time(there)) / 2)
    x, plain, _ = transition(schedule, grid[:-1], grid[1:])

    def transfer(to):
        """phi of the paper, eq. 11: weights (x, eps) of the DDIM step with eps held."""
        return schedule.alpha(to) / schedule.alpha(here), schedule.alpha(to) * (s_of(to) - s_of(here))

    half_x, half_eps = transfer(middle)
    full_x, full_eps = transfer(there)
    point, denoised = noise_form(schedule)(steps.nodes)
    entry = np.where(steps.regular, point, 0.0), np.where(steps.regular, denoised, 1.0)
    rows, calls, move = [], [], dict(anchor=1.0)
    for i, regular in enumerate(steps.regular):
        rows.append(Row(grid[i], remember=(entry[0][i], entry[1][i]), **move))
        if runge_kutta and i < _RUNGE_KUTTA_STEPS and regular.any():
            inner = ((middle[i], half_x[i], half_eps[i]),) * 2 + ((there[i], full_x[i], full_eps[i]),)
            for level, of_x, of_eps in inner:
                level = np.where(regular, level, grid[i])
                form = noise_form(schedule)(np.where(regular, level, schedule.logsnr_start))
                row = Row(level, np.where(regular, of_x, 1.0), [np.where(regular, of_eps, 0.0)], remember=form)
                rows.append(row._replace(correct_anchor=1.0, correct_point=0.0))
            mixed = [np.where(regular, full_eps[i] * w / 6, 0.0) for w in (1, 2, 2, 1)]
            mixed[3] = np.where(regular, mixed[3], plain[i])
            end = np.where(regular, full_x[i], x[i])
            rows[-1] = rows[-1]._replace(correct_anchor=end, correct_history=mixed)
            calls.append(4)
            move = dict(anchor=1.0)
            continue
        history = [np.zeros_like(here[i]) for _ in range(1 + sum(calls[-3:]))]
        for order, weights in enumerate(_BASHFORTH, start=1):
            for k, w in enumerate(weights[: i + 1]):
                slot = sum(calls[len(calls) - k :])
                history[slot] = history[slot] + np.where(regular & (steps.order[i] == order), full_eps[i] * w, 0.0)
        history[0] = np.where(regular, history[0], plain[i])
        move = dict(anchor=np.where(regular, full_x[i], x[i]), history=history)
        calls.append(1)
    longest = max(len(row.history) for row in rows)
    return assemble(rows, Row(grid[-1], **move), slots=max(SLOTS, longest, len(move.get("history", ()))))
