"""The regression family: an objective constructs targets, and this one step is shared by all of them.

An objective is a function (state, frozen, batch, key, hyper) -> Problem. The step evaluates the student on the problem's
inputs, once, and moves it towards a target that carries no gradient. Where the target needs the derivative along the inputs
(continuous-time consistency, MeanFlow), `tangents` asks for it and one `jax.jvp` gives value and derivative together. A clip
whose target isn't finite teaches nothing and is counted.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from diffusion.levels import expand
from distill.inputs import Network, clean
from distill.method import Method, Metrics, Term, descent

LEVEL_EDGES = (-6.0, -2.0, 2.0, 6.0)
"""Log-SNR edges of the loss by level: one mean loss hides which noise levels learn."""


Report = Mapping[str, tuple[Array, Array | None]]


class Problem(NamedTuple):
    """One regression problem.

    x, logsnr, cond: the student's inputs.
    output: prediction -> the compared quantity (usually the denoised clip).
    target: (primal, tangent) -> its target, where primal is the student's own output and tangent its derivative along
        `tangents`, or None. No gradient flows through either.
    weight: a level-shaped factor of the squared error.
    tangents: None, or the tangents of (x, logsnr, cond).
    dropout: the student's dropout key, where the objective itself calls a network that must drop the same units.
    jumps: [b], the clips that learn to leave their level where others learn the denoiser; None: all. Diversity is theirs.
    report: (primal, tangent) -> what the objective logs by level beside the loss (the gap to a teacher, say): name -> (numbers
        of x's shape or the level's, [b] whether they mean anything of a clip, or None: of all).
    """

    x: Array
    logsnr: Array
    cond: dict[str, Array]
    output: Callable[[Array], Array]
    target: Callable[[Array, Array | None], Array]
    weight: Array
    tangents: tuple[Array, Array, dict[str, Array]] | None = None
    dropout: Array | None = None
    jumps: Array | None = None
    report: Callable[[Array, Array | None], Report] = lambda primal, tangent: {}


class RegressionState(NamedTuple):
    """params and ema: trees of weights; opt: the optimiser's state; step: finished updates, []."""

    params: PyTree
    ema: PyTree
    opt: Any
    step: Array


def init(optimiser: optax.GradientTransformation) -> Callable[[Array, PyTree], RegressionState]:
    """(key, params) -> the state before the first update. The key is not needed: nothing here is random."""

    def initial(key: Array, params: PyTree) -> RegressionState:
        del key
        # A copy: the state is donated whole, so no two of its trees may share a buffer.
        return RegressionState(params, jax.tree.map(jnp.copy, params), optimiser.init(params), jnp.zeros((), jnp.int32))

    return initial


def succeed(
    initial: Callable[[Array, PyTree], RegressionState], state: RegressionState
) -> tuple[RegressionState, PyTree]:
    """(the state of a next round, which begins as the student and fresh, that round's teacher: the student)."""
    student = state.ema
    begun = initial(jax.random.key(0), student)
    return begun, jax.tree.map(jnp.copy, student)  # the state is donated: the teacher must not share its buffers


def squared_error(output: Array, target: Array) -> Array:
    return jnp.square(output - target)


def term(
    network: Network, objective: Callable[..., Problem], metric: Callable[[Array, Array], Array] = squared_error
) -> Term:
    """An objective as a term of a student's loss.

    Its metrics: `non_finite`, the clips whose target wasn't finite, and by bands of log-SNR `loss_by_level/..`, what the
    objective reports, and `diversity_by_level/..`: how far the student's clean estimates lie from their mean over the batch,
    squared, in units of the clips' own variance. A denoiser's falls to 0 towards noise. That of a student that maps noise to
    clips stays near 1 there, or tells of a collapse to the mean while the loss looks well; shorter jumps are in between.
    """

    def pose(state: Any, frozen: PyTree, batch: PyTree, key: Array, hyper: PyTree):
        key_problem, key_dropout = jax.random.split(key)
        problem = objective(state, frozen, batch, key_problem, hyper)
        if not isinstance(problem, Problem) or not (callable(problem.output) and callable(problem.target)):
            raise TypeError(f"an objective must return a Problem with functions output and target, got {problem!r:.80}")
        key_dropout = key_dropout if problem.dropout is None else problem.dropout

        def loss(params: PyTree) -> tuple[Array, Metrics]:
            def student(x, logsnr, cond):
                prediction = network.apply(params, x, logsnr, cond, key=key_dropout, train=True)
                return problem.output(prediction), prediction

            inputs = (problem.x, problem.logsnr, problem.cond)
            if problem.tangents is None:
                (primal, prediction), tangent = student(*inputs), None
            else:
                primal, tangent, prediction = jax.jvp(student, inputs, problem.tangents, has_aux=True)
                tangent = jax.lax.stop_gradient(tangent)
            detached = jax.lax.stop_gradient(primal)
            goal, bad = finite(jax.lax.stop_gradient(problem.target(detached, tangent)))
            if goal.shape != primal.shape:
                raise ValueError(
                    f"an objective's target is of shape {list(goal.shape)}, the output {list(primal.shape)}"
                )
            target = jnp.where(expand(bad, primal), detached, goal)
            error = expand(problem.weight, primal) * metric(primal, target)
            reported = problem.report(detached, tangent)
            prediction, seen = jax.lax.stop_gradient((prediction, error))
            return jnp.mean(error), watched(problem, batch, seen, prediction, bad, reported)

        return loss

    def watched(problem: Problem, batch, error, prediction, bad, reported: Report) -> Metrics:
        metrics: Metrics = {"non_finite": jnp.sum(bad)}
        spread, comparable = diversity(network.denoised(prediction, problem.x, problem.logsnr), clean(batch))
        comparable &= True if problem.jumps is None else problem.jumps
        for name, (numbers, known) in {"loss": (error, None), "diversity": (spread, comparable), **reported}.items():
            metrics |= by_level(name, numbers, problem.logsnr, ~bad if known is None else known & ~bad)
        return metrics

    return pose


def finite(clips: Array) -> tuple[Array, Array]:
    """(the clips with 0 for those that hold a number that isn't finite, [b] which these are)."""
    bad = ~jnp.all(jnp.isfinite(clips), tuple(range(1, clips.ndim)))
    return jnp.where(expand(bad, clips), 0.0, clips), bad


def diversity(clips: Array, real: Array) -> tuple[Array, Array]:
    """(the squared distance of every number of the clips from its mean over the batch, in units of the real clips' variance;
    [b], whether it means anything: equal clips, or one alone, have no variance to compare with).
    """
    own, theirs = (jnp.square(one - jnp.mean(one, 0, keepdims=True)) for one in (clips, real))
    variance = jnp.mean(theirs)
    return own / jnp.where(variance > 0, variance, 1.0), jnp.full(len(clips), variance > 0)


def method(
    network: Network,
    objective: Callable[..., Problem],
    optimiser: optax.GradientTransformation,
    *,
    ema: float,
    metric: Callable[[Array, Array], Array] = squared_error,
) -> Method:
    """An objective as a `Method`, as `alone` makes it."""
    return alone(term(network, objective, metric), optimiser, ema=ema)


def alone(term: Term, optimiser: optax.GradientTransformation, *, ema: float) -> Method:
    """A `Method` of one round with the one phase `train`: the step of a student with one term and nothing else."""
    train = descent({"": (1.0, term)}, optimiser, ema=ema)
    return Method(init(optimiser), {"train": train}, lambda step: ("train",))


def by_level(name: str, numbers: Array, logsnr: Array, known: Array) -> Metrics:
    """The mean of `numbers` in bands of log-SNR as `name`_by_level/.., each as (sum, count): bands may be empty in one step.

    known: [b], the clips that count.
    """
    level = expand(logsnr, numbers)
    level = jnp.broadcast_to(level, (len(numbers), *level.shape[1:]))
    numbers = jnp.mean(numbers, tuple(a for a in range(numbers.ndim) if level.shape[a] == 1), keepdims=True)
    band = jnp.where(expand(known, level), jnp.searchsorted(jnp.asarray(LEVEL_EDGES), level), -1)
    edges = ("-inf", *(f"{e:g}" for e in LEVEL_EDGES), "inf")
    return {
        f"{name}_by_level/{low}..{high}": (jnp.sum(jnp.where(band == i, numbers, 0.0)), jnp.sum(band == i))
        for i, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True))
    }
