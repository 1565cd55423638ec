"""Running a table: one `lax.scan` over its rows, one network call in the compiled program whatever the sampler.

`sample` is one module-level jit over (denoise, table, x, key): other weights, another guidance scale or another sampler of
the same shape run in the same program, and compile time and memory do not grow with the number of steps.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from diffusion.levels import expand
from diffusion.schedules import Schedule
from diffusion.solvers.table import Predict, Table

Carry = tuple[Any, tuple[Any, ...]]
"""The anchor and the history, of JAX or of NumPy: a step is computed in the namespace of its state."""


def normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Independent standard normal noise: the noise source of `sample` unless told otherwise."""
    return jax.random.normal(key, shape, dtype)


def start(table: Table, x: Array) -> Carry:
    """The state before the first row: the anchor is the noise, the history is empty."""
    return x, (jnp.zeros_like(x),) * table.slots


def predict(weights: Predict, carry: Carry, noise: Any) -> Any:
    """a anchor + sum_k h_k history_k + n noise + bias, each weight of the level's shape."""
    anchor, history = carry
    point = expand(weights.anchor, anchor) * anchor + expand(weights.bias, anchor)
    for k, entry in enumerate(history):
        point = point + expand(weights.history[k], anchor) * entry
    return point if noise is None else point + expand(weights.noise, anchor) * noise


def step(denoise: Callable[..., Any], carry: Carry, row: Any, noise: Any) -> tuple[Carry, tuple[Any, Any]]:
    """One row: predict, evaluate, remember, correct. Returns the new state and (point, denoised).

    `row` is a `Table` without its leading axis. The same function runs in the scan of `sample` and in the unrolled
    loops of distillation.
    """
    point = predict(row.predict, carry, noise)
    jump = () if row.target is None else (row.target,)
    denoised = denoise(point, row.logsnr, *jump)
    if jnp.shape(denoised) != point.shape:
        raise ValueError(f"denoise answered with shape {jnp.shape(denoised)}, expected that of its x, {point.shape}")
    denoised = denoised.astype(point.dtype)
    anchor, history = carry
    entry = expand(row.remember.point, point) * point + expand(row.remember.denoised, point) * denoised
    history = (entry, *history[:-1])
    new = expand(row.correct.anchor, point) * anchor + expand(row.correct.point, point) * point
    new = new + expand(row.correct.bias, point)
    for k, entry in enumerate(history):
        new = new + expand(row.correct.history[k], point) * entry
    return (new, history), (point, denoised)


def rows(table: Table) -> Any:
    """The part of a table that has a leading axis `rows`: what the scan runs over."""
    return table.__class__(
        table.logsnr, table.predict, table.remember, table.correct, None, table.target, table.stochastic
    )


def solve(
    denoise: Callable[..., Array],
    table: Table,
    x: Array,
    key: Array | None,
    noise: Callable[..., Array],
    *,
    collect: Callable[..., Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """`sample` inside another compiled program: its scan alone, for arguments that were checked."""
    dtype = x.dtype
    table = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), table)

    def draw(i):
        return noise(jax.random.fold_in(key, i), x.shape, dtype) if table.stochastic else None

    def body(carry, inputs):
        i, row = inputs
        carry, seen = step(denoise, carry, row, draw(i))
        tell(progress, i + 1, table.nfe)
        return carry, None if collect is None else collect(*seen, row.logsnr)

    carry, collected = jax.lax.scan(body, start(table, x), (jnp.arange(table.nfe), rows(table)))
    result = predict(table.final, carry, draw(table.nfe))
    return result if collect is None else (result, collected)


def tell(progress: Callable[[int, int], None] | None, done: Array, total: int) -> None:
    """From inside a compiled program, progress(done, total) on the host."""
    if progress is not None:
        jax.debug.callback(lambda n: progress(int(n), total), done)


_STATIC = ("collect", "progress")
_sample_kept = jax.jit(solve, static_argnames=_STATIC)
_sample_donated = jax.jit(solve, static_argnames=_STATIC, donate_argnames=("x",))


def sample(
    denoise: Callable[..., Array],
    table: Table,
    x: Shaped[ArrayLike, "b ..."],
    key: Array | None = None,
    *,
    noise: Callable[..., Array] | None = None,
    collect: Callable[..., Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Runs the sampler `table` from the noise `x`.

    denoise: (x, logsnr) -> the estimate of the clean data, of x's shape; a `jax.tree_util.Partial` is an argument of the
        compiled program (its arrays may change without a new one), a bare function is static by identity. A table with a
        `target` calls denoise(x, logsnr, logsnr_to).
    x: the noise at the grid's first level, [b, ...], in the schedule's scale, as of `starting`. The state is kept in float32
        (float64 if x is float64).
    key: needed by a stochastic table; row i draws with fold_in(key, i).
    noise: (key, shape, dtype) -> noise, a source with its own covariance (diffusion.noise); standard normal by default.
    collect: (point, denoised, logsnr) -> what to return for every call, stacked; then (sample, collected) is returned.
    progress: called on the host with (calls done, calls in all). Both are static by identity: a new lambda compiles anew.

    Raises ValueError, before anything is traced, for a table and an x that don't fit, or a missing key, and while it is traced
    for a denoise that answers with another shape.
    """
    return _run(_sample_kept, denoise, table, x, key, noise, collect, progress)


def starting(table: Table, schedule: Schedule, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """How large the unit noise of a sample of `shape` [b, ...] is where `table` begins: as noisy data of unit variance at the
    grid's first level, in a shape that broadcasts to `shape`.

    Where the first row adds noise of its own (churn: Karras et al. 2022, arXiv 2206.00364, algorithm 2), it calls the network
    at a noisier level than the grid's first; what it adds is taken away again, with its factor s_noise, of which a table knows
    nothing: with EDM's 1.007 the start is .7 % too small.
    """
    like = np.empty(shape, np.float32)
    parts = (table.logsnr, table.predict.anchor, table.predict.noise)
    level, anchor, added = (expand(np.asarray(part, np.float64)[0], like) for part in parts)
    size = schedule.size(level)
    return np.where(added == 0, size, np.sqrt(np.maximum(size**2 - added**2, 0))) / anchor


def sample_donated(denoise, table, x, key=None, *, noise=None, collect=None, progress=None):
    """As `sample`, but gives the memory of x away: x can't be used afterwards."""
    return _run(_sample_donated, denoise, table, x, key, noise, collect, progress)


def _run(program, denoise, table, x, key, noise, collect, progress):
    x = check(table, x, key)
    return program(tree(denoise), table, x, key, tree(noise or normal), collect=collect, progress=progress)


def tree(function: Callable[..., Any]) -> Callable[..., Any]:
    """A denoiser or a noise source as a pytree, an argument of a compiled program: a bare function is static by identity.

    A node of a class of its own goes with its class: the structures of two registered dataclasses are equal where their fields
    are as many (jaxlib 0.10), and a program compiled for one could be run for the other.
    """
    if type(function) is jax.tree_util.Partial:
        return function
    if jax.tree_util.all_leaves([function]):
        return jax.tree_util.Partial(function)
    return jax.tree_util.Partial(_Called(type(function)), function)


@dataclasses.dataclass(frozen=True)
class _Called:
    """Calls its first argument, a callable of this class. The static part of `tree`, compared by value."""

    kind: type

    def __call__(self, function, *inputs):
        return function(*inputs)


def check(table: Any, x: Any, key: Array | None) -> Float[Array, "b ..."]:
    """x as float32 or float64, after the checks of `sample`."""
    if not isinstance(table, Table):
        raise ValueError(
            f"sample needs a solvers.Table (for instance solvers.ddim(schedule, grid)), got {type(table).__name__}"
        )
    if np.ndim(x) < 1:
        raise ValueError("x needs a leading batch axis; got a scalar")
    shape = np.shape(x)
    _fits("level shape", table.level_shape, shape)
    _fits("weights' shape", np.shape(table.predict.anchor)[1:], shape)
    if table.stochastic and key is None:
        raise ValueError("this table draws noise (table.stochastic): sample needs key=jax.random.key(...)")
    if isinstance(x, jax.Array) and x.dtype in (jnp.float32, jnp.float64):
        return x
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"x must be floating-point noise, got {dtype}")
    return jnp.asarray(x, jnp.promote_types(dtype, jnp.float32))


def _fits(what: str, level: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if len(level) > len(shape):
        raise ValueError(f"the table's {what} is {level}, more axes than x with shape {shape}")
    for axis, size in enumerate(level):
        if size not in (1, shape[axis]):
            name = "batch" if axis == 0 else f"axis {axis}"
            raise ValueError(
                f"the table's {what} {level} does not fit x of shape {shape}: {name} must be 1 or {shape[axis]}"
            )
