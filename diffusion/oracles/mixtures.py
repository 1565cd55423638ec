"""Gaussian mixtures and finite data sets: exact denoiser, score, density, samples, one mode's exact flow map.

With x = alpha x0 + sigma eps and x0 ~ sum_k w_k N(m_k, C_k), each mode of the noisy data is
N(alpha m_k, V_k), V_k = alpha^2 C_k + sigma^2 I, so

    E[x0 | x] = sum_k gamma_k (m_k + alpha C_k V_k^-1 (x - alpha m_k)),   gamma_k ~ w_k N(x; alpha m_k, V_k)
    score(x)  = -sum_k gamma_k V_k^-1 (x - alpha m_k)

All matrices here are functions of C_k, so a mode is stored by its spectrum: a diagonal, or
C_k = v_k I + Q_k diag(e_k) Q_k^T. Tweedie's formula (Efron 2011) links the two lines:
E[x0 | x] = (x + sigma^2 score) / alpha.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion.levels import expand
from diffusion.oracles.coordinates import (
    Numbers,
    Scaling,
    bind,
    cast,
    harmonise,
    rescaled,
    smallest_variance,
    variance_preserving,
)
from diffusion.oracles.spectra import LowRank, spectra


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture over samples of `shape` (d numbers each). Made by `gaussian_mixture`; a pytree.

    log_weights: [k]. means: [k, d]. float64 on the host, as all leaves.
    variances: [k, d], or [k, 1] where a mode has one for all directions (outside its basis, if it has one).
    basis, extra: None, or orthonormal directions [k, d, r] and what each adds to the variance, [k, r], padded
        with zeros.
    """

    log_weights: Any
    means: Any
    variances: Any
    basis: Any
    extra: Any
    shape: tuple[int, ...]

    def denoiser(self, schedule: Scaling) -> jax.tree_util.Partial:
        """denoise(x, logsnr) -> E[x0 | x], x of shape [b, *shape] (or one sample, [*shape]).

        The level is [], [b] or [1]; where no mode has a basis, it may also be one per frame, pixel or
        channel. At +inf the answer is x / alpha, at -inf the mean of the data. Levels that don't fit raise
        ValueError.
        """
        return bind(_denoise, schedule, self)

    def score(self, schedule: Scaling) -> jax.tree_util.Partial:
        """score(x, logsnr) -> the gradient in x of the noisy data's log density; shapes as in `denoiser`."""
        return bind(_score, schedule, self)

    def log_density(self, schedule: Scaling) -> jax.tree_util.Partial:
        """log_density(x, logsnr) -> the noisy data's log density [b], in nats; the data's own at +inf."""
        return bind(_log_density, schedule, self)

    def responsibilities(self, schedule: Scaling) -> jax.tree_util.Partial:
        """responsibilities(x, logsnr) -> the probability [b, k] of each mode given x."""
        return bind(_responsibilities, schedule, self)

    def flow_map(self, schedule: Scaling) -> jax.tree_util.Partial:
        """flow(x, logsnr, logsnr_to) -> the exact probability-flow solution, for one mode (else ValueError).

        In every direction of the spectrum x - alpha m grows as its standard deviation, sqrt(alpha^2 c +
        sigma^2).
        """
        if len(self.means) != 1:
            raise ValueError(
                f"flow_map is closed for one Gaussian only, this mixture has {len(self.means)} modes:"
                " use probability_flow"
            )
        return bind(_flow, schedule, self)

    def sample(self, key: Array, n: int, dtype: Any = jnp.float32) -> Float[Array, "n ..."]:
        """n independent samples of the data, [n, *shape]."""
        mode_key, key = jax.random.split(key)
        modes = jax.random.categorical(mode_key, jnp.asarray(self.log_weights), shape=(n,))
        noise = jax.random.normal(key, (n, self.means.shape[1]), dtype)
        if self.basis is None:
            means, std = (jnp.asarray(part, dtype) for part in (self.means, np.sqrt(self.variances)))
            flat = means[modes] + std[modes] * noise
        else:
            # Mode by mode: one basis a sample would be n times the memory of the mixture.
            flat = jnp.zeros_like(noise)
            for k in range(len(self.means)):
                one = jax.tree.map(lambda leaf, k=k: jnp.asarray(leaf, dtype)[k : k + 1], self)
                drawn = one.means + _apply(one, jnp.sqrt, noise[:, None])[:, 0]
                flat = jnp.where((modes == k)[:, None], drawn, flat)
        return flat.reshape(n, *self.shape)

    def mean(self) -> Float[np.ndarray, "..."]:
        """The mean of the data, of a sample's shape."""
        return (np.exp(self.log_weights) @ self.means).reshape(self.shape)

    def covariance(self) -> Float[np.ndarray, "d d"]:
        """The covariance of the data over a sample's d numbers."""
        weights, centred = np.exp(self.log_weights), self.means - self.mean().reshape(-1)
        total = np.einsum("k,kd,ke->de", weights, centred, centred)
        total = total + np.diag(np.broadcast_to(weights @ self.variances, self.means.shape[1:]))
        if self.basis is not None:
            total = total + np.einsum("k,kdr,kr,ker->de", weights, self.basis, self.extra, self.basis)
        return total


jax.tree_util.register_dataclass(
    Mixture, ["log_weights", "means", "variances", "basis", "extra"], meta_fields=["shape"]
)


# Functions of the spectrum ----------------------------------------------------------------------------------


def _apply(mix: Mixture, function, residual):
    """function(C_k) times residual [b, k, d]; `function` maps eigenvalues [k, .] to factors [b|1, k, .]."""
    if mix.basis is None:
        return function(mix.variances) * residual
    along = (residual.swapaxes(0, 1) @ mix.basis).swapaxes(0, 1)
    across = residual - _expand(mix, along)
    return function(mix.variances) * across + _expand(mix, function(mix.variances + mix.extra) * along)


def _expand(mix: Mixture, along):
    """Coefficients [b, k, r] on each mode's basis as vectors [b, k, d]."""
    return (along.swapaxes(0, 1) @ mix.basis.swapaxes(-1, -2)).swapaxes(0, 1)


def _trace(mix: Mixture, function):
    """trace of function(C_k), [b|1, k]."""
    d = mix.means.shape[1]
    if mix.basis is None:
        values = function(mix.variances)
        return values.sum(-1) * (d // values.shape[-1])
    rest = function(mix.variances)[..., 0] * (d - mix.extra.shape[-1])
    return rest + function(mix.variances + mix.extra).sum(-1)


def _noisy(schedule, mix: Mixture, x, *levels):
    """Namespace, mixture and x [b, d] in it, and alpha, sigma, scale of each level, all [b|1, 1|d]."""
    xp, (x, log_weights, means, variances, basis, extra, *levels) = harmonise(
        x, mix.log_weights, mix.means, mix.variances, mix.basis, mix.extra, *levels
    )
    if x.shape[1:] != mix.shape:
        raise ValueError(f"x of shape {x.shape}: expected [b, *{mix.shape}] or one sample of shape {mix.shape}")
    mix = dataclasses.replace(mix, log_weights=log_weights, means=means, variances=variances, basis=basis, extra=extra)
    coordinates = []
    for logsnr in levels:
        level = expand(logsnr, x)
        if math.prod(level.shape[1:]) == 1:
            level = level.reshape(-1, 1)
        elif basis is None:
            level = xp.broadcast_to(level, level.shape[:1] + mix.shape).reshape(level.shape[0], -1)
        else:
            raise ValueError(
                f"level of shape {logsnr.shape}: a full or low-rank covariance needs one level per sample, [] or [b]"
            )
        coordinates.append(variance_preserving(xp, schedule, level))
    return xp, mix, x.reshape(x.shape[0], -1), coordinates


def _modes(schedule, mix: Mixture, x, logsnr):
    """Namespace, mixture, x in the unit scaling, level, law of variances, residuals and logits at x."""
    xp, mix, flat, [(alpha, sigma, scale)] = _noisy(schedule, mix, x, logsnr)
    unit = rescaled(xp, flat, scale)
    floor = smallest_variance(xp, unit.dtype)
    a, s = alpha[:, None], sigma[:, None]

    def variance(eigenvalues):
        return xp.maximum(a * a * eigenvalues + s * s, floor)

    residual = unit[:, None] - a * mix.means
    # |V^-1/2 r|^2 and not r.V^-1 r: rounding in the projection on the basis then counts squared.
    whitened = _apply(mix, lambda c: 1 / xp.sqrt(variance(c)), residual)
    determinant = _trace(mix, lambda c: xp.log(variance(c)))
    logits = mix.log_weights - (whitened * whitened).sum(-1) / 2 - determinant / 2
    return xp, mix, unit, (alpha, sigma, scale), variance, residual, logits


def _top(xp, logits):
    """The largest logit, to derivatives a constant: its own is 0/0 where XLA computes the logits twice, rounded otherwise."""
    top = logits.max(-1, keepdims=True)
    return top if xp is np else jax.lax.stop_gradient(top)


def _softmax(xp, logits):
    weights = xp.exp(logits - _top(xp, logits))
    return weights / weights.sum(-1, keepdims=True)


def _batched(function):
    """Lets function(schedule, mix, x, *levels) take one sample without its batch axis too."""

    def wrapped(schedule, mix, x, *levels):
        x = x if hasattr(x, "ndim") else np.asarray(x)
        if x.ndim == len(mix.shape):
            return function(schedule, mix, x[None], *levels)[0]
        return function(schedule, mix, x, *levels)

    return wrapped


@_batched
def _denoise(schedule, mix, x, logsnr):
    xp, mix, unit, (alpha, sigma, _), variance, residual, logits = _modes(schedule, mix, x, logsnr)
    a = alpha[:, None]
    modes = mix.means + _apply(mix, lambda c: a * c / variance(c), residual)
    mean = (_softmax(xp, logits)[..., None] * modes).sum(1)
    # Without noise alpha is 1 in this scaling and x is the data, on a singular covariance's support or not.
    return cast(xp.where(sigma == 0, unit, mean).reshape(x.shape), x)


@_batched
def _score(schedule, mix, x, logsnr):
    xp, mix, _, (_, _, scale), variance, residual, logits = _modes(schedule, mix, x, logsnr)
    modes = _apply(mix, lambda c: 1 / variance(c), residual)
    return cast((-scale * (_softmax(xp, logits)[..., None] * modes).sum(1)).reshape(x.shape), x)


@_batched
def _log_density(schedule, mix, x, logsnr):
    xp, mix, unit, (_, _, scale), _, _, logits = _modes(schedule, mix, x, logsnr)
    d = unit.shape[-1]
    jacobian = xp.log(scale).sum(-1) * (d // scale.shape[-1])
    top = _top(xp, logits)
    total = top[:, 0] + xp.log(xp.exp(logits - top).sum(-1))
    return cast(total - d * math.log(2 * math.pi) / 2 + jacobian, x)


@_batched
def _responsibilities(schedule, mix, x, logsnr):
    xp, *_, logits = _modes(schedule, mix, x, logsnr)
    return cast(_softmax(xp, logits), x)


@_batched
def _flow(schedule, mix, x, logsnr, logsnr_to):
    xp, mix, flat, [(a, s, scale), (a_to, s_to, scale_to)] = _noisy(schedule, mix, x, logsnr, logsnr_to)
    floor = smallest_variance(xp, flat.dtype)

    def growth(c):
        after, before = a_to * a_to * c + s_to * s_to, xp.maximum(a * a * c + s * s, floor)
        return xp.sqrt(after / before)[:, None]

    residual = rescaled(xp, flat, scale) - a * mix.means
    moved = a_to * mix.means + _apply(mix, growth, residual[:, None])[:, 0]
    return cast((moved / scale_to).reshape(x.shape), x)


# Constructors -----------------------------------------------------------------------------------------------


def gaussian_mixture(weights: Numbers, means: Numbers, covariances: Any) -> Mixture:
    """The mixture sum_k w_k N(m_k, C_k) over samples of shape means.shape[1:]; d is their size.

    weights: above 0, normalised here.
    covariances: one per mode, each a variance [], a diagonal [d] (or of a sample's shape), a matrix [d, d],
        or `low_rank`; one variance or one low_rank alone serves all modes. Singular ones are allowed: a
        variance of 0 is a point.

    Raises ValueError for weights that aren't positive, shapes that don't fit and matrices that aren't
    covariances.
    """
    weights, means = np.asarray(weights, np.float64), np.asarray(means, np.float64)
    if weights.ndim != 1 or means.ndim < 1 or len(weights) != len(means) or not len(means):
        raise ValueError(f"mixture: expected weights [k] and means [k, ...], got {weights.shape} and {means.shape}")
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(f"mixture: expected finite weights above 0, got {weights}")
    if not np.isfinite(means).all():
        raise ValueError("mixture: expected finite means")
    k, shape, flat = len(means), means.shape[1:], means.reshape(len(means), -1)
    alone = not isinstance(covariances, list | tuple) and np.ndim(covariances) == 0
    if alone or isinstance(covariances, LowRank):
        covariances = [covariances] * k
    if len(covariances) != k:
        raise ValueError(f"mixture: expected one covariance for each of the {k} modes, got {len(covariances)}")
    return Mixture(np.log(weights / weights.sum()), flat, *spectra(covariances, shape, flat.shape[1]), shape)


def gaussian(mean: Numbers, covariance: Any) -> Mixture:
    """One Gaussian of the mean's shape, covariance as in `gaussian_mixture`: it has a closed `flow_map`."""
    return gaussian_mixture([1.0], np.asarray(mean, np.float64)[None], [covariance])


def empirical(clips: Numbers, weights: Numbers | None = None) -> Mixture:
    """Data that is exactly these n clips, equally likely by default: E[x0 | x] is a softmax average of them.

    The optimum of a denoiser trained on this set alone (Karras et al. 2022, appendix B.3). Levels per frame
    or pixel are supported: clean frames select the clips that agree with them, pure-noise frames say nothing.
    Memory without jit is batch x n x clip size; compiled, the sums are fused.
    """
    clips = np.asarray(clips)
    if clips.dtype.kind != "f":
        raise ValueError(f"empirical: expected floating-point clips (pixels in [-1, 1]), got {clips.dtype}")
    return gaussian_mixture(np.ones(len(clips)) if weights is None else weights, clips, 0.0)


def a1d() -> Mixture:
    """Two modes on the line, weights .4 and .6, means -2 and 2, variances 1: smooth at every level."""
    return gaussian_mixture([0.4, 0.6], [[-2.0], [2.0]], 1.0)


def b2d() -> Mixture:
    """Eight equal modes in the plane, angles k pi/4, radius 2 (k even) or 4 (odd), std .05, .1, .15, .2, ...

    Narrow modes: the denoiser is stiff, and trajectories near a border between modes part.
    """
    k = np.arange(8)
    radius, std = np.where(k % 2 == 0, 2.0, 4.0), 0.05 * (1 + k % 4)
    means = radius[:, None] * np.stack([np.cos(k * np.pi / 4), np.sin(k * np.pi / 4)], -1)
    return gaussian_mixture(np.ones(8), means, std**2)


def eight_mode_ring(radius: float = 2.0, std: float = 0.1) -> Mixture:
    """Eight equal modes in the plane on one circle: the usual picture of a sampler that drops modes."""
    angle = np.arange(8) * np.pi / 4
    return gaussian_mixture(np.ones(8), radius * np.stack([np.cos(angle), np.sin(angle)], -1), float(std) ** 2)
