"""Linear multistep samplers: x_t = A x_s + sum_k w_k F_k, with F_k the latest denoised values or noises.

The exact solution over a step is A x_s plus a weighted integral of F along the path. F is replaced by the polynomial
through its last values, in some coordinate u of the path (u = 0 at the start of the step, u = 1 at its end), so that

    w_k = integral of l_k(u) dm(u),   l_k the Lagrange polynomials of the nodes u_k,

and a family of samplers (exponential Adams, DPM-Solver multistep, DEIS, SA-Solver, ER-SDE, ...) is a coordinate and the
moments M_j = integral of u^j dm(u) of its measure. A corrector is the same with the step's end among the nodes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from diffusion.clocks import namespace
from diffusion.solvers.ddim import transition
from diffusion.solvers.steps import Steps
from diffusion.solvers.table import SLOTS, Row, Table, assemble

Form = Callable[[Any], tuple[Any, Any]]
"""level -> weights (point, denoised) of the history's entry F."""


STAGGERED = 1.5
"""The damping of schedule matrices: what a frame's neighbours do between its steps makes its path rougher than its own grid."""


class Update(NamedTuple):
    """What N steps do: x_t = anchor x_s + sum_k history[k] F_k + noise z + bias.

    Weights are [N, *level]; noise and bias are None where a sampler has none.
    """

    anchor: Any
    history: tuple[Any, ...]
    noise: Any = None
    bias: Any = None


def noise_form(schedule: Any) -> Form:
    """The history remembers eps = (x - alpha denoised) / sigma."""
    return lambda level: (1 / schedule.sigma(level), -schedule.alpha(level) / schedule.sigma(level))


def data_form(schedule: Any) -> Form:
    """The history remembers `denoised`."""
    return lambda level: (0.0 * level, 0.0 * level + 1.0)


def lagrange(positions: list[Any], moments: list[Any], count: Any) -> list[Any]:
    """Weights w_k = sum_j c_kj M_j, l_k(u) = sum_j c_kj u^j the Lagrange polynomials of the first `count` positions.

    positions: the nodes u_k; those from `count` on may hold anything and get weight 0. moments: M_j, at least as many
    as there are nodes. All of one shape, in any namespace; `count` is a host array.
    """
    xp = namespace(moments[0])
    positions = [xp.where(k < count, u, float(k)) for k, u in enumerate(positions)]
    weights = []
    for k, u in enumerate(positions):
        coefficients = [xp.ones_like(moments[0])]
        for m, v in enumerate(positions):
            if m == k:
                continue
            active = (m < count) & (k < count)
            scale = xp.where(active, 1.0 / xp.where(active, u - v, 1.0), 0.0)
            constant = xp.where(active, -v * scale, 1.0)
            zero = xp.zeros_like(scale)
            raised = [zero, *(scale * c for c in coefficients)]
            coefficients = [r + constant * c for r, c in zip(raised, [*coefficients, zero], strict=True)]
        total = sum(c * m for c, m in zip(coefficients, moments[: len(coefficients)], strict=True))
        weights.append(xp.where(k < count, total, 0.0))
    return weights


def nodes(steps: Steps, coordinate: Any, depth: int, damping: float | None = None) -> list[Any]:
    """Positions u_k of the last `depth` evaluations in units of each step, u_0 = 0 > u_1 > ...

    coordinate: the polynomial's variable at `steps.points`. damping: the largest ratio of a step to the one before it
    that an extrapolation may assume: nodes that lie nearer are moved away, which tames the weights and costs order
    where it acts.
    """
    xp = namespace(coordinate)
    length = xp.where(steps.regular, coordinate[1:] - coordinate[:-1], 1.0)
    positions, gap = [xp.zeros_like(length)], xp.ones_like(length)
    for k in range(1, depth):
        true = steps.back(length, k) / length
        gap = true if damping is None else xp.maximum(true, gap / damping)
        positions.append(positions[-1] - gap)
    return positions


def limit(steps: Steps, damping: float | None) -> float | None:
    """The damping of an extrapolation: as given; by default none, or STAGGERED where frames wait for each other."""
    return STAGGERED if damping is None and steps.staggered else damping


def predictor(
    steps: Steps,
    coordinate: Any,
    anchor: Any,
    moments: list[Any],
    *,
    order: Any = None,
    noise: Any = None,
    second: Any = None,
    damping: float | None = None,
    eta: Any = 0.0,
) -> Update:
    """The explicit update of every step.

    order: nodes of each step, steps.order unless given. second: M_1 of the steps with two nodes, where a paper has its
    own. eta: of the DDIM step that stands in where a step is not regular.
    """
    order = steps.order if order is None else order
    positions = nodes(steps, coordinate, int(order.max()), limit(steps, damping))
    history = lagrange(positions, _with(second, moments, order), order)
    return irregular(steps, Update(anchor, tuple(history), noise), eta)


def corrector(
    steps: Steps, coordinate: Any, anchor: Any, moments: list[Any], *, order: Any = None, second: Any = None
) -> Update:
    """The implicit update: one node at the step's end, whose weight is history[0], the others as in `predictor`.

    order: nodes of each step, the new one included; one more than steps.order unless given.
    """
    xp = namespace(moments[0])
    order = steps.order + 1 if order is None else order
    behind = nodes(steps, coordinate, max(int(order.max()) - 1, 1))
    positions = [xp.ones_like(behind[0]), *behind][: int(order.max())]
    return Update(anchor, tuple(lagrange(positions, _with(second, moments, order), order)))


def _with(second: Any, moments: list[Any], order: Any) -> list[Any]:
    if second is None or len(moments) < 2:
        return moments
    xp = namespace(moments[0])
    return [moments[0], xp.where(order == 2, second, moments[1]), *moments[2:]]


def irregular(steps: Steps, update: Update, eta: Any = 0.0) -> Update:
    """`update` with the first-order step of DDIM(eta) where a step is not regular: from or to infinity, and waits.

    There the history remembers plain `denoised` (see `table`).
    """
    xp = namespace(steps.grid)
    x, denoised, noise = transition(steps.schedule, steps.grid[:-1], steps.grid[1:], eta)
    first, *rest = update.history
    return Update(
        xp.where(steps.regular, update.anchor, x),
        (xp.where(steps.regular, first, denoised), *(xp.where(steps.regular, w, 0.0) for w in rest)),
        None if update.noise is None else xp.where(steps.regular, update.noise, noise),
        None if update.bias is None else xp.where(steps.regular, update.bias, 0.0),
    )


def table(steps: Steps, form: Form, predict: Update, correct: Update | None = None) -> Table:
    """The table of a multistep sampler: row i stands at grid[i], N calls.

    A corrector needs the evaluation at the end of its step, so it acts on every row but the first, and not on the sample.
    """
    xp = namespace(steps.grid)
    point, denoised = form(steps.nodes)
    rows = []
    for i in range(len(steps.moves)):
        entry = xp.where(steps.regular[i], point[i], 0.0), xp.where(steps.regular[i], denoised[i], 1.0)
        row = Row(steps.grid[i], anchor=1.0, remember=entry)
        if i:
            row = row._replace(**_predict(predict, i - 1))
        if i and correct is not None:
            row = row._replace(**_correct(steps, predict, correct, (point[i], denoised[i]), i - 1))
        rows.append(row)
    slots = max(SLOTS, len(predict.history), 0 if correct is None else len(correct.history))
    return assemble(rows, Row(steps.grid[-1], **_predict(predict, len(steps.moves) - 1)), slots=slots)


def _predict(update: Update, i: int) -> dict[str, Any]:
    return dict(
        anchor=update.anchor[i],
        history=[w[i] for w in update.history],
        noise=0.0 if update.noise is None else update.noise[i],
        bias=0.0 if update.bias is None else update.bias[i],
    )


def _correct(steps: Steps, predict: Update, correct: Update, form: tuple[Any, Any], i: int) -> dict[str, Any]:
    """The corrected point in place of the anchor, after row i + 1; where step i is not regular, the point itself.

    Noise that was drawn is in the point only, so there the difference to the predictor is added to the point. Where the
    next step is not regular the newest entry is plain `denoised`, and F is made of it and the point.
    """
    xp = namespace(steps.grid)
    length = max(len(correct.history), len(predict.history) + 1)
    history = [w[i] for w in correct.history] + [0.0] * (length - len(correct.history))
    anchor, point = correct.anchor[i], 0.0
    bias = 0.0 if correct.bias is None else correct.bias[i]
    if predict.noise is not None:
        before = [0.0, *(w[i] for w in predict.history)] + [0.0] * (length - 1 - len(predict.history))
        history = [a - b for a, b in zip(history, before, strict=True)]
        anchor, point = anchor - predict.anchor[i], 1.0
        bias = bias if predict.bias is None else bias - predict.bias[i]
    plain = ~steps.regular[i + 1]
    point = point + xp.where(plain, history[0] * form[0], 0.0)
    history[0] = xp.where(plain, history[0] * form[1], history[0])
    acts = steps.regular[i]
    return dict(
        correct_anchor=xp.where(acts, anchor, 0.0),
        correct_point=xp.where(acts, point, 1.0),
        correct_history=[xp.where(acts, w, 0.0) for w in history],
        correct_bias=xp.where(acts, bias, 0.0),
    )
