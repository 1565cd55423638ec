"""Flow maps: students that jump from any level of the probability flow to any cleaner one.

Asked for a jump from level l to l', the network gives a clean estimate D(x, l, l') in its ordinary prediction, and the jump is
the DDIM step with it. So a jump of no length leaves x alone whatever the network says, in every prediction and schedule, and
D(x, l, l) is the denoiser. In the flow schedule with velocity prediction the jump is x - (t - r) u, u the average velocity.
`predictions.flow_map` and `solvers.flow_map` sample by the same rule.

Consistency trajectory models and shortcut models learn by composing jumps: two in a row are the target of one. `composed` is
what they share: some clips of the batch learn jumps, the others the denoiser. MeanFlow (mean_flow.py) differentiates instead.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from diffusion import guidance, levels, predictions
from diffusion.levels import expand
from distill import regression
from distill.consistency import TARGETS, euler, heun
from distill.inputs import Network, check_range, clean, conditioned
from distill.jumps import ddim_step, guided_teacher, inverse_ddim, uniform_clock
from distill.method import Method, choice, whole_number
from distill.pairs import whole


def exponential_heun(schedule, denoise, x, x0, here, there) -> tuple[Array, Array]:
    """DDIM with the mean of the clean estimates at both ends: the trapezoidal rule in alpha/sigma, of second order.

    Heun in sigma/alpha, EDM's, multiplies the estimates' difference by half the ratio of the noise levels. In one step out
    of pure noise that is hundreds (VP begins at sigma/alpha = 22,000); here no estimate ever counts for more than one.
    """
    rough, denoised = euler(schedule, denoise, x, x0, here, there)
    return ddim_step(schedule, x, (denoised + denoise(rough, there)) / 2, here, there), denoised


SOLVERS = {"ddim": euler, "heun": heun, "exponential_heun": exponential_heun}
"""name -> one step of the teacher in consistency trajectory distillation. "heun" is EDM's, for schedules like its own."""


def flow_map(network: Network, params: PyTree, cond: Mapping[str, Array]) -> Callable[[Array, Array, Array], Array]:
    """jump(x, logsnr, logsnr_to) -> the point at logsnr_to on the trajectory of x."""
    estimate = estimator(network, params, cond)
    return lambda x, here, there: ddim_step(network.schedule, x, estimate(x, here, there), here, there)


def estimator(network: Network, params: PyTree, cond: Mapping[str, Array]) -> Callable[[Array, Array, Array], Array]:
    """(x, logsnr, logsnr_to) -> D, without dropout. `params` may also be such a function itself."""
    if callable(params):
        return params
    return predictions.flow_map(
        network.apply, params, dict(cond), schedule=network.schedule, prediction=network.prediction
    )


def spread(batch: int, share: float) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " n"]]:
    """(the clips that learn jumps, the others), evenly over the batch, so that devices get equal parts; at least one jumps, and
    one doesn't unless the share is 1: of jumps alone nothing says where they start from. ValueError for a batch of one clip.
    """
    if share < 1.0 and batch == 1:
        raise ValueError(
            f"share: a batch of 1 clip can't be divided, expected 2 clips or more, or a share of 1, got {share:g}"
        )
    count = min(max(1, round(share * batch)), batch if share == 1.0 else batch - 1)
    jumping = np.arange(count) * batch // count
    return jumping, np.setdiff1d(np.arange(batch), jumping)


def check(network: Network, share: float, guidance_range: Sequence[float] | None) -> None:
    """ValueError for a network that can't be told where to jump, a share outside (0, 1], a range that doesn't fit."""
    needed = ("logsnr_to",) if guidance_range is None else ("logsnr_to", "guidance")
    for name in needed:
        if name not in network.cond_keys:
            raise ValueError(f"this method needs a network that takes {name!r} in cond, got one of {network.cond_keys}")
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share: expected a part of the batch above 0 and up to 1, got {share}")
    check_range(network, guidance_range)


# Learning by composition --------------------------------------------------------------------------------------


class Jump(NamedTuple):
    """A jump to be learnt, log-SNR [n] or [n, f], and `plan`, what its composition needs beside."""

    here: Array
    there: Array
    plan: Any


def composed(
    network: Network,
    *,
    draw: Callable[[Array, tuple[int, ...]], Jump],
    compose: Callable[..., tuple[Array, Array | None]],
    law: Callable,
    weight: Callable[[Array], Array],
    share: float,
    data: bool = False,
    target: Callable[[regression.RegressionState], PyTree] = TARGETS["ema"],
    guidance_range: Sequence[float] | None = None,
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Callable[..., regression.Problem]:
    """A `share` of the clips learns jumps, the others D(x, l, l) at levels of `law`. Errors are those of D, times weight(l).

    draw: (key, shape) -> the jumps. compose: (jump, x, estimate, teacher, scale) -> (x at jump.there, the teacher's clean
    estimate at x or None), with estimate(drop) the target network's D, drop for its answer without a class.
    data: the denoiser is learnt from the clips even where there is a teacher; else from frozen["teacher"], if there is one,
    guided at hyper["guidance"] or at a g per clip that the student is told (guidance_range).

    Comparing D is comparing points at l' divided by what D weighs in them, (alpha' - alpha sigma'/sigma): at l' = clean it
    is the comparison of clean clips, and it costs no call. (Kim et al. 2023 jump on from l' to the clean end, with the
    target network, for a feature distance that only means something there: two more calls, one of them differentiated.)
    The target's D is a mix of its parts' with weights that add to one, so short jumps are no worse conditioned.

    Logged: with a teacher `gap` by level, the squared distance of D from the teacher's denoiser, of clips that learn D(x, l, l)
    from it, else of those that jump.
    """
    schedule = network.schedule

    def construct(state, frozen, batch, key, hyper) -> regression.Problem:
        key_level, key_jump, key_noise, key_cond = jax.random.split(key, 4)
        x0 = clean(batch)
        shape = x0.shape[:2] if per_frame else x0.shape[:1]
        jumping, others = spread(len(x0), share)
        jump = draw(key_jump, (len(jumping), *shape[1:]))
        level = jnp.clip(law(key_level, shape), schedule.logsnr_start, schedule.logsnr_end)
        here, there = (level.at[jumping].set(end) for end in (jump.here, jump.there))
        x = levels.forward(x0, network.noise(key_noise, x0.shape, x0.dtype), here, schedule)
        cond, teacher_cond, scale = conditioned(network, batch, key_cond, hyper, label_dropout, guidance_range)
        weights = target(state)

        def teacher(rows):
            """The guided teacher of these clips, or None."""
            if "teacher" not in frozen:
                return None
            return guided_teacher(network, frozen["teacher"], _rows(teacher_cond, rows), _rows(scale, rows))

        def estimate(drop: bool = False):
            part = _rows(cond, jumping)
            if drop:
                part = {**part, "label": jnp.full_like(part["label"], network.num_classes)}
            return estimator(network, weights, part)

        x_there, first = compose(jump, x[jumping], estimate, teacher(jumping), _rows(scale, jumping))
        goal = x0.at[jumping].set(inverse_ddim(schedule, x[jumping], x_there, jump.here, jump.there))
        compared = (jumping, first)
        denoise = teacher(others)
        if denoise is not None and not data and len(others):
            answer = denoise(x[others], here[others])
            goal, compared = goal.at[others].set(answer), (others, answer)

        def only(rows) -> Array:
            return jnp.zeros(len(x0), bool).at[rows].set(True)

        def report(primal: Array, tangent: Array | None) -> regression.Report:
            rows, answer = compared
            return {} if answer is None else {"gap": ((primal - goal.at[rows].set(answer)) ** 2, only(rows))}

        return regression.Problem(
            x,
            here,
            {**cond, "logsnr_to": there},
            lambda answer: network.denoised(answer, x, here),
            lambda *_: goal,
            weight(here),
            jumps=only(jumping),
            report=report,
        )

    return construct


def _rows(tree: PyTree, rows: Int[np.ndarray, " n"]) -> PyTree:
    """These clips of every leaf that has a batch axis."""
    return jax.tree.map(lambda leaf: leaf[rows] if jnp.ndim(leaf) else leaf, tree)


# Consistency trajectory models --------------------------------------------------------------------------------


def trajectories(network: Network, intervals: int, substeps: int, solver: Callable) -> tuple[Callable, Callable]:
    """(draw, compose) of consistency trajectory models (Kim et al. 2023, arXiv 2310.02279, eq. 6 and algorithm 1).

    On a grid of `intervals` equal steps of the schedule's time, a jump goes from t to any s below it. Its target: the
    teacher makes h ~ U{1..substeps} steps t -> u, not past s, and the target network jumps on, u -> s; from u = s it stays
    where it is. (In the paper u is uniform in [s, t); the authors' code draws one h a batch, with probability proportional
    to h, and t and s to fit. One h per clip, cut at s, costs a known number of calls, but the law of u is another.)
    """
    schedule, clock = network.schedule, uniform_clock(network.schedule)

    def at(index: Array) -> Array:
        return clock(index / intervals)

    def draw(key, shape) -> Jump:
        key_t, key_s, key_h = jax.random.split(key, 3)
        t = whole(key_t, shape, float(intervals)) + 1.0
        s = whole(key_s, shape, t)
        u = jnp.maximum(t - 1.0 - whole(key_h, shape, float(substeps)), s)
        return Jump(at(t), at(s), (t, u))

    def compose(jump: Jump, x, estimate, teacher, scale):
        if teacher is None:
            raise KeyError("teacher")
        t, u = jump.plan

        def move(step, x):
            here, there = (at(jnp.maximum(t - step - k, u)) for k in (0.0, 1.0))
            return solver(schedule, teacher, x, None, here, there)

        x, first = move(0.0, x)
        if substeps > 1:
            x = jax.lax.fori_loop(1, substeps, lambda step, x: move(step, x)[0], x)
        middle = at(u)
        return ddim_step(schedule, x, estimate()(x, middle, jump.there), middle, jump.there), first

    return draw, compose


def consistency_trajectory(
    network: Network,
    *,
    optimiser: optax.GradientTransformation,
    law: Callable,
    weight: Callable[[Array], Array],
    intervals: int = 17,
    substeps: int = 1,
    solver: str = "exponential_heun",
    share: float = 0.75,
    data: bool = True,
    target: str = "ema",
    guidance_range: Sequence[float] | None = None,
    ema: float = 0.999,
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Method:
    """Consistency trajectory models without their adversarial term: without it the paper reports much weaker samples.

    Denoising score matching, a second loss in the paper, is a share of the batch here: 1 - share of the clips learn
    D(x, l, l), from the clip (data) or from the teacher's answer. Each update calls the teacher substeps times (twice that
    but for DDIM) and the target network once, on the jumping clips. The paper's numbers on CIFAR: EDM's schedule, 17
    intervals, Heun, up to 17 substeps, EMA .999 (.9999 in the unconditional run with the adversarial term).
    """
    check(network, share, guidance_range)
    for name, value in (("intervals", intervals), ("substeps", substeps)):
        whole_number(name, value)
    draw, compose = trajectories(network, intervals, substeps, choice(solver, SOLVERS, "solver"))
    objective = composed(
        network, draw=draw, compose=compose, law=law, weight=weight, share=share, data=data,
        target=choice(target, TARGETS, "target"), guidance_range=guidance_range, label_dropout=label_dropout,
        per_frame=per_frame,
    )  # fmt: skip
    return regression.method(network, objective, optimiser, ema=ema)


# Shortcut models ----------------------------------------------------------------------------------------------


def halves(network: Network, finest: int) -> tuple[Callable, Callable]:
    """(draw, compose) of shortcut models (Frans et al. 2024, arXiv 2410.12557, algorithm 1), with t = 1 noise.

    A jump of length d = 1, 1/2, .., 2/finest on its own grid in the schedule's time is to land where two of d/2 do: in flow
    time, where s(x, t, d) is the velocity, s(x, t, d) = (s(x, t, d/2) + s(x', t - d/2, d/2)) / 2. The shortest, d/2 =
    1/finest, is an Euler step of the denoiser D(x, l, l). Where there is no teacher, guidance at hyper["guidance"] enters
    in that one and goes up from length to length.
    """
    schedule, clock = network.schedule, uniform_clock(network.schedule)
    sizes = finest.bit_length() - 1

    def draw(key, shape) -> Jump:
        key_size, key_time = jax.random.split(key)
        count = 2.0 ** whole(key_size, shape, float(sizes))
        t = (whole(key_time, shape, count) + 1.0) / count
        here, middle, there = (clock(t - k / (2.0 * count)) for k in (0.0, 1.0, 2.0))
        return Jump(here, there, (middle, 2.0 * count == finest))

    def compose(jump: Jump, x, estimate, teacher, scale):
        middle, shortest = jump.plan
        guided = denoise = estimate()
        if teacher is None and network.num_classes:
            scale = jnp.where(shortest, expand(jnp.asarray(scale), jump.here), 1.0)
            mixed = guidance.classifier_free(denoise, estimate(drop=True), scale)

            def guided(*args):
                return jax.lax.cond(jnp.all(scale == 1.0), denoise, mixed, *args)

        for here, there in ((jump.here, middle), (middle, jump.there)):
            x = ddim_step(schedule, x, guided(x, here, jnp.where(shortest, here, there)), here, there)
        return x, None

    return draw, compose


def shortcut(
    network: Network,
    *,
    optimiser: optax.GradientTransformation,
    law: Callable,
    weight: Callable[[Array], Array],
    finest: int = 128,
    share: float = 0.125,
    target: str = "ema",
    guidance_range: Sequence[float] | None = None,
    ema: float = 0.999,
    label_dropout: float = 0.1,
    per_frame: bool = False,
) -> Method:
    """Shortcut models: a share of the clips learns by composition, the others the denoiser, from data or a teacher.

    The loss is the paper's with weight levels.velocity(). Sample it at finest / 2^k steps, k from 1 up, of grids.uniform_time,
    with solvers.flow_map: no other lengths are learnt. The denoiser is asked at length 0, where the paper's network is told
    1 / finest.
    """
    check(network, share, guidance_range)
    if share == 1.0:
        raise ValueError("share: expected below 1: of jumps alone nothing says where the shortest ones go")
    if finest < 2 or finest & (finest - 1):
        raise ValueError(f"finest: expected a power of two from 2 up, got {finest}")
    draw, compose = halves(network, finest)
    objective = composed(
        network, draw=draw, compose=compose, law=law, weight=weight, share=share,
        target=choice(target, TARGETS, "target"), guidance_range=guidance_range, label_dropout=label_dropout,
        per_frame=per_frame,
    )  # fmt: skip
    return regression.method(network, objective, optimiser, ema=ema)
