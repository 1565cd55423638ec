"""The consistency family as methods: each is a choice of the parts in `consistency` with a paper's numbers.

`solver`, `metric` and `target` are names here, for configs. `boundary`: the log-SNR that points are mapped to; None is the
schedule's clean end. `start`, where there is a grid: the log-SNR of its noisy end; None is the schedule's. The papers' go
from s = .002 (log-SNR 12.43) to 80 (-8.76): between the ends of a schedule that goes far beyond, most levels lie where
a step changes nothing. A student answers where it was trained: sample it from there. per_frame: an independent pair of levels
for every frame. Students of a teacher need frozen["teacher"], and hyper["guidance"] where it is guided.
"""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffusion import clocks, levels
from diffusion.schedules import Schedule
from distill import pairs as pairings
from distill import regression
from distill.consistency import METRICS, TARGETS, addim, euler, heun, inverse_gap, objective, plain, pseudo_huber
from distill.inputs import Network, check_range
from distill.jumps import uniform_clock
from distill.method import Method, choice, number, whole_number
from distill.pairs import noise_ratio


def consistency_distillation(
    network: Network,
    *,
    optimiser: optax.GradientTransformation,
    solver: str = "heun",
    num_levels: int = 18,
    metric: str = "squared",
    target: str = "student",
    rho: float = 7.0,
    boundary: float | None = None,
    start: float | None = None,
    ema: float = 0.999,
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Method:
    """Consistency distillation (Song et al. 2023, algorithm 2): one teacher step on Karras' grid of `num_levels`.

    Levels, solver and target are those of CIFAR-10, with the target weights the student's own; target="ema" takes the averaged
    ones, and `ema` is then the paper's mu.
    """
    boundary = _boundary(network.schedule, boundary)
    whole_number("num_levels", num_levels, 2)
    number("rho", rho, 0.0, open_=True)
    clock = clocks.Karras(noise_ratio(boundary), noise_ratio(_start(network.schedule, start, boundary)), rho)
    construct = objective(
        network,
        pairs=pairings.neighbours(clock.logsnr, lambda step, hyper: num_levels - 1),
        solver=choice(solver, {"euler": euler, "heun": heun}, "solver"),
        target=choice(target, TARGETS, "target"),
        label_dropout=label_dropout,
        per_frame=per_frame,
    )
    return regression.method(network, construct, optimiser, ema=ema, metric=_metric(metric, per_frame))


def consistency_training(
    network: Network,
    *,
    optimiser: optax.GradientTransformation,
    total_steps: int,
    s0: int = 2,
    s1: int = 150,
    metric: str = "squared",
    target: str = "student",
    rho: float = 7.0,
    boundary: float | None = None,
    start: float | None = None,
    ema: float = 0.999,
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Method:
    """Consistency training (Song et al. 2023, algorithm 3): no teacher, grids from s0 to s1 + 1 levels.

    The target weights are the student's own, not an average with a schedule of its own: with an average the objective isn't
    that of a consistency model in the limit (Song & Dhariwal 2023, section 3.2).
    """
    boundary = _boundary(network.schedule, boundary)
    whole_number("total_steps", total_steps)
    whole_number("s0", s0, 2)
    whole_number("s1", s1, s0 - 1)
    number("rho", rho, 0.0, open_=True)
    clock = clocks.Karras(noise_ratio(boundary), noise_ratio(_start(network.schedule, start, boundary)), rho)
    construct = objective(
        network,
        pairs=pairings.neighbours(clock.logsnr, lambda step, hyper: pairings.ct_intervals(step, total_steps, s0, s1)),
        solver=None,
        target=choice(target, TARGETS, "target"),
        label_dropout=label_dropout,
        per_frame=per_frame,
    )
    return regression.method(network, construct, optimiser, ema=ema, metric=_metric(metric, per_frame))


def improved(
    network: Network,
    *,
    optimiser: optax.GradientTransformation,
    total_steps: int,
    s0: int = 10,
    s1: int = 1280,
    mean: float = -1.1,
    std: float = 2.0,
    metric: str = "huber",
    weighting: str = "inverse_gap",
    boundary: float | None = None,
    start: float | None = None,
    ema: float = 0.9999,
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Method:
    """Improved consistency training, iCT (Song & Dhariwal 2023, arXiv 2310.14189): doubling grids, log-normal levels,
    pseudo-Huber, weight 1 / (s_{i+1} - s_i).

    weighting: "plain" is a weight of 1, as before them; s0 = s1 is a grid that doesn't grow.
    """
    boundary = _boundary(network.schedule, boundary)
    whole_number("total_steps", total_steps)
    whole_number("s0", s0)
    whole_number("s1", s1, s0)
    construct = objective(
        network,
        pairs=pairings.ict(
            lambda step, hyper: pairings.ict_intervals(step, total_steps, s0, s1),
            boundary,
            _start(network.schedule, start, boundary),
            mean,
            std,
        ),
        solver=None,
        weight=choice(weighting, {"inverse_gap": inverse_gap, "plain": plain}, "weighting"),
        label_dropout=label_dropout,
        per_frame=per_frame,
    )
    return regression.method(network, construct, optimiser, ema=ema, metric=_metric(metric, per_frame))


def easy(
    network: Network,
    *,
    optimiser: optax.GradientTransformation,
    total_steps: int,
    solver: str = "data",
    stages: int = 8,
    q: float = 2.0,
    k: float = 8.0,
    b: float = 1.0,
    mean: float = -1.1,
    std: float = 2.0,
    limit: float = 0.999,
    metric: str = "norm",
    boundary: float | None = None,
    ema: float = 0.9999,
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Method:
    """Easy consistency tuning, ECT (Geng et al. 2024, arXiv 2406.14548): from denoising, pairs close up in `stages`.

    Begin with a trained denoiser. solver: "data", or "euler" or "heun" for a teacher's step. limit: of 1 - q^-(stage + 1),
    beyond which pairs would have weights that float32 doesn't hold.
    """
    boundary = _boundary(network.schedule, boundary, finite=solver == "heun")
    whole_number("total_steps", total_steps)
    whole_number("stages", stages)
    number("q", q, 1.0, open_=True)
    _check_gaps(k, b, limit)
    each = max(1, total_steps // stages)
    construct = objective(
        network,
        pairs=pairings.easy(
            network.schedule,
            levels.edm_lognormal(mean, std),
            lambda step: jnp.minimum(step // each, stages - 1),
            boundary,
            q=q,
            k=k,
            b=b,
            limit=limit,
        ),
        solver=choice(solver, {"data": None, "euler": euler, "heun": heun}, "solver"),
        weight=inverse_gap,
        label_dropout=label_dropout,
        per_frame=per_frame,
    )
    return regression.method(network, construct, optimiser, ema=ema, metric=_metric(metric, per_frame))


def latent(
    network: Network,
    *,
    optimiser: optax.GradientTransformation,
    guidance_range: Sequence[float] | None = (3.0, 15.0),
    steps: int = 50,
    huber: float = 1e-3,
    target: str = "ema",
    boundary: float | None = None,
    ema: float = 0.95,
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Method:
    """Latent consistency, LCM (Luo et al. 2023, arXiv 2310.04378): one DDIM step of a grid uniform in time, by a guided
    teacher whose g the student is told as cond["guidance"]. The paper's w is g - 1, in [2, 14].

    guidance_range: None fixes g at hyper["guidance"], and the student needs no input for it. huber: c of an element's error.
    """
    boundary = _boundary(network.schedule, boundary)
    whole_number("steps", steps)
    number("huber", huber, 0.0)
    construct = objective(
        network,
        pairs=pairings.neighbours(uniform_clock(network.schedule, boundary), lambda step, hyper: steps),
        solver=euler,
        target=choice(target, TARGETS, "target"),
        guidance_range=check_range(network, guidance_range),
        label_dropout=label_dropout,
        per_frame=per_frame,
    )
    return regression.method(network, construct, optimiser, ema=ema, metric=pseudo_huber(huber, axes=None))


def multistep(
    network: Network,
    *,
    optimiser: optax.GradientTransformation,
    weight: Callable[[Array], Array],
    segments: int = 4,
    total_steps: int,
    solver: str = "addim",
    eta: float | None = None,
    first: int = 64,
    last: int = 1280,
    huber: float = 1e-4,
    ema: float = 0.999,
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Method:
    """Multistep consistency (Heek et al. 2024, arXiv 2403.06807): consistent within each of `segments` parts of the time,
    sampled by DDIM with as many steps. solver: "addim" (`eta` as there), "euler", "heun", or "data" for training.

    The steps of the fine grid grow from `first` to `last` in the first half. weight: of the norm of the x0 error (SNR + 1).
    """
    whole_number("total_steps", total_steps)
    whole_number("segments", segments)
    whole_number("first", first)
    whole_number("last", last)
    number("huber", huber, 0.0)
    if eta is not None:
        number("eta", eta, 0.0)
        if solver != "addim":
            raise ValueError(f"eta: only the solver 'addim' has it, expected None for {solver!r}, got {eta}")

    def intervals(step, hyper):
        fine = pairings.annealed_steps(step, total_steps // 2, first, last)
        return jnp.maximum(jnp.round(fine / segments), 1.0)

    clock = uniform_clock(network.schedule)
    construct = objective(
        network,
        pairs=pairings.neighbours(clock, intervals, lambda step, hyper: segments),
        solver=choice(solver, {"addim": addim(eta), "euler": euler, "heun": heun, "data": None}, "solver"),
        weight=lambda here, there: weight(here),
        compare_denoised=True,
        label_dropout=label_dropout,
        per_frame=per_frame,
    )
    return regression.method(
        network, construct, optimiser, ema=ema, metric=pseudo_huber(huber, axes=2 if per_frame else 1)
    )


def truncated(
    network: Network,
    *,
    optimiser: optax.GradientTransformation,
    cut: float = 0.0,
    solver: str = "data",
    probability: float = 0.25,
    at_cut: float = 0.1,
    limit: float = 0.999,
    k: float = 8.0,
    b: float = 1.0,
    scale: float = 0.2,
    df: float = 0.01,
    metric: str = "norm",
    boundary: float | None = None,
    ema: float = 0.9999,
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Method:
    """Truncated consistency, TCM (Lee et al. 2024, arXiv 2410.14895), the second stage: trained at levels noisier than
    `cut` only (a log-SNR, s = 1), where a finished consistency model, frozen["previous"], takes over as the target.

    A share `probability` of the clips sits at the cut, and their mean error counts `at_cut` times that of the others: it ties
    the student to that model, so that no constant is a solution. Begin with the weights of frozen["previous"]. At levels
    cleaner than the cut the student learns nothing: sample it at noisier ones.
    """
    schedule = network.schedule
    boundary = _boundary(schedule, boundary, finite=solver == "heun")
    if not schedule.logsnr_start < cut < boundary - pairings.APART:
        raise ValueError(
            f"cut: expected a log-SNR between the noisy end {schedule.logsnr_start:g} and {pairings.APART:g} below the boundary"
            f" {boundary:g}, got {cut}"
        )
    if not 0.0 < probability < 1.0:
        raise ValueError(f"probability: expected a share of the clips above 0 and below 1, got {probability}")
    _check_gaps(k, b, limit)
    number("at_cut", at_cut, 0.0)
    number("scale", scale, 0.0, open_=True)
    number("df", df, 0.0, pairings.LARGEST_DF, open_=True)
    share = at_cut * (1.0 - probability) / probability  # the two means have different counts
    construct = objective(
        network,
        pairs=pairings.easy(
            schedule,
            pairings.truncated_law(schedule, cut, scale, df, probability),
            lambda step: math.inf,
            boundary,
            k=k,
            b=b,
            limit=limit,
        ),
        solver=choice(solver, {"data": None, "euler": euler, "heun": heun}, "solver"),
        weight=lambda here, there: jnp.where(here >= cut, share, 1.0) * inverse_gap(here, there),
        cut=cut,
        label_dropout=label_dropout,
        per_frame=per_frame,
    )
    return regression.method(network, construct, optimiser, ema=ema, metric=_metric(metric, per_frame))


def _boundary(schedule: Schedule, boundary: float | None, finite: bool = True) -> float:
    """The boundary as a log-SNR, checked."""
    if boundary is None:
        return schedule.logsnr_end
    if not schedule.logsnr_start < boundary or (finite and math.isinf(boundary)):
        raise ValueError(
            f"boundary: expected a {'finite ' if finite else ''}log-SNR above the schedule's noisy end"
            f" {schedule.logsnr_start:g}, got {boundary}"
        )
    return float(boundary)


def _start(schedule: Schedule, start: float | None, boundary: float) -> float:
    """The noisy end of a grid as a log-SNR, checked."""
    if start is None:
        return schedule.logsnr_start
    if not schedule.logsnr_start <= start < boundary:
        raise ValueError(
            f"start: expected a log-SNR from the schedule's noisy end {schedule.logsnr_start:g} to below the boundary"
            f" {boundary:g}, got {start}"
        )
    return float(start)


def _metric(name: str, per_frame: bool) -> Callable[[Array, Array], Array]:
    return choice(name, METRICS, "metric")(2 if per_frame else 1)


def _check_gaps(k: float, b: float, limit: float) -> None:
    """The options of `pairs.easy_map`. A limit of 1 would be no gap at all, with a weight that is infinite."""
    number("k", k, 0.0)
    number("b", b, 0.0)
    number("limit", limit, 0.0, 1.0)
