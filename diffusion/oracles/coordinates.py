"""What all oracles share: one namespace, and one scaling in which nothing overflows.

Two schedules at the same log-SNR differ by a rescaling of x, so every oracle is written once, in the scaling
with alpha^2 + sigma^2 = 1. There all variances stay between the data's and 1 at any level, s = sigma/alpha
from 0 to infinity.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

# Whatever np.asarray takes; docstrings give the shape, and the functions check it themselves.
Numbers = Any


@runtime_checkable
class Scaling(Protocol):
    """The part of a schedule that an oracle needs."""

    def alpha(self, logsnr: Any) -> Any: ...

    def sigma(self, logsnr: Any) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Bound:
    """function(schedule, *arguments), equal for equal schedules, so that they share a compiled program.

    Matrix products are asked for in full precision: an exact answer must not be rounded to bfloat16 or TF32.
    """

    function: Callable[..., Any]
    schedule: Scaling

    def __call__(self, *arguments):
        with jax.default_matmul_precision("highest"):
            return self.function(self.schedule, *arguments)


def bind(function: Callable[..., Any], schedule: Scaling, *operands: Any) -> jax.tree_util.Partial:
    """A callable that is a pytree: the operands are arguments of a compiled program, the schedule static."""
    return jax.tree_util.Partial(Bound(function, schedule), *operands)


def harmonise(*arrays: Any) -> tuple[Any, list[Any]]:
    """The arrays in one namespace and type: float64 NumPy, or the first's JAX type, at least float32."""
    if not any(isinstance(array, jax.Array) for array in arrays):
        return np, [None if array is None else np.asarray(array, np.float64) for array in arrays]
    dtype = jnp.promote_types(jnp.result_type(arrays[0]), jnp.float32)
    return jnp, [None if array is None else jnp.asarray(array, dtype) for array in arrays]


def cast(result: Any, like: Any) -> Any:
    """JAX results in the (possibly narrower) floating type of the JAX array `like`."""
    if isinstance(like, jax.Array) and jnp.issubdtype(like.dtype, jnp.floating):
        return result.astype(like.dtype)
    return result


def variance_preserving(xp, schedule: Scaling, logsnr):
    """alpha and sigma with alpha^2 + sigma^2 = 1, and the factor from the schedule's x to x in this scaling.

    The factor is 0 where the schedule's sigma is infinite (x carries no signal there).
    """
    zero = xp.zeros_like(logsnr)
    alpha, sigma = xp.exp(-xp.logaddexp(zero, -logsnr) / 2), xp.exp(-xp.logaddexp(zero, logsnr) / 2)
    # Either ratio alone is 0/0 at one of the infinite ends; the ratio of the sums is not.
    return alpha, sigma, (alpha + sigma) / (schedule.alpha(logsnr) + schedule.sigma(logsnr))


def rescaled(xp, x, factor):
    """x * factor, and 0 where the factor is 0 although x may be infinite."""
    return xp.where(factor == 0, xp.zeros_like(x), x) * factor


def smallest_variance(xp, dtype) -> float:
    """A floor for variances in denominators: its inverse times a squared distance still fits the type."""
    return float(xp.finfo(dtype).tiny) ** 0.5
