"""Guidance: wrappers that make one denoiser of two. The scale is always g in u + g (c - u); 1 means none.

Papers that write w with (1 + w) c - w u mean g = 1 + w.
"""

import jax
from jaxtyping import Array, Float


def classifier_free(conditional, unconditional, scale: float | Array) -> jax.tree_util.Partial:
    """denoise(x, logsnr) = u + g (c - u), two network evaluations a call (Ho & Salimans 2022, eq. 6, with g = 1 + w).

    scale: g, a number or an array that broadcasts against x; it is an argument of the compiled program.
    """
    return jax.tree_util.Partial(_classifier_free, conditional, unconditional, scale)


def _classifier_free(conditional, unconditional, scale, x: Float[Array, "b ..."], logsnr) -> Float[Array, "b ..."]:
    u = unconditional(x, logsnr)
    return u + scale * (conditional(x, logsnr) - u)
