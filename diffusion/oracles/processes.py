"""Gaussian-process videos: exact denoiser under any level per frame and any noise covariance over frames.

x0 ~ N(mean, K (x) S), K over frames, S over the pixels of a frame. With A and N the diagonal alpha and sigma
of the frames and C the noise covariance over frames, z = A x0 + N e gives

    E[x0 | z] = mean + K A (A K A + N C N)^-1 (z - A mean)

for every spatial eigenmode with K times its eigenvalue: f x f algebra, however large the frames. Both
covariances share one basis, K = T diag(v) T^T and C = T T^T, so A K A + N C N = M M^T with M = [A T v^1/2, N
T]. With M^T = Q R the formula is T v^1/2 Q_1 R^-T (z - A mean): no matrix is squared or inverted that clean
frames (sigma = 0), waiting frames (alpha = 0) or a smooth K make singular, which decides over float32. A
level shared by all frames needs no QR: everything is diagonal in T.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

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
from diffusion.oracles.spectra import check_covariance


@dataclasses.dataclass(frozen=True)
class GaussianProcess:
    """Gaussian video [f, *frame]. Made by `gaussian_process`; a pytree.

    temporal: K, [f, f].  average: the mean, [f, p], [1, p] or [1, 1] (p pixels and channels).
    bases, variances: eigenvectors of S, one matrix for each of its Kronecker factors, and its eigenvalues
    [p]; () and [1] for independent pixels.  frame: the shape of a frame, or None where any is right.
    """

    temporal: Any
    average: Any
    bases: tuple[Any, ...]
    variances: Any
    frame: tuple[int, ...] | None

    def denoiser(self, schedule: Scaling, noise_covariance: Numbers | None = None) -> jax.tree_util.Partial:
        """denoise(x, logsnr) -> E[x0 | x], x of shape [b, f, *frame], the level [], [b] or [b|1, f].

        noise_covariance: of the noise over frames, positive definite; the identity by default. A clean frame
        comes back as x / alpha. Where K is singular too and clean frames contradict it, they get the noise of
        the last few bits.
        """
        return bind(_denoise, schedule, self, _shared_basis(self.temporal, noise_covariance))

    def score(self, schedule: Scaling, noise_covariance: Numbers | None = None) -> jax.tree_util.Partial:
        """score(x, logsnr) -> the gradient in x of the noisy video's log density; shapes as in `denoiser`."""
        return bind(_score, schedule, self, _shared_basis(self.temporal, noise_covariance))

    def flow_map(self, schedule: Scaling, noise_covariance: Numbers | None = None) -> jax.tree_util.Partial:
        """flow(x, logsnr, logsnr_to) -> the exact probability-flow solution, levels [] or [b].

        Levels that differ between frames have no closed form (the solution depends on the path): ValueError.
        """
        return bind(_flow, schedule, self, _shared_basis(self.temporal, noise_covariance))

    def sample(self, key: Array, n: int, dtype: Any = jnp.float32) -> Float[Array, "n f ..."]:
        """n independent videos [n, f, *frame]; frames of shape (p, 1, 1) where none was given."""
        frame = (self.variances.size, 1, 1) if self.frame is None else self.frame
        noise = jax.random.normal(key, (n, len(self.temporal), math.prod(frame)), dtype)
        values, vectors = np.linalg.eigh(self.temporal)
        noise = noise * jnp.sqrt(jnp.asarray(self.variances, dtype))
        with jax.default_matmul_precision("highest"):
            root = jnp.asarray(vectors * np.sqrt(np.maximum(values, 0)), dtype)
            flat = jnp.asarray(self.average, dtype) + _rotate(jnp, self.bases, root @ noise, back=True)
        return flat.reshape(n, len(self.temporal), *frame)

    def covariance(self) -> Float[np.ndarray, "fp fp"]:
        """K (x) S in full, for small videos, numbers in C order; independent pixels count as one."""
        spatial = _rotate(np, self.bases, np.diag(self.variances)[None], back=True)[0]
        return np.kron(self.temporal, _rotate(np, self.bases, spatial.T[None], back=True)[0])


jax.tree_util.register_dataclass(GaussianProcess, ["temporal", "average", "bases", "variances"], meta_fields=["frame"])


# Spaces -----------------------------------------------------------------------------------------------------


def _shared_basis(temporal, noise_covariance):
    """(T, T^-1, v) with K = T diag(v) T^T and C = T T^T, in float64 on the host."""
    f = len(temporal)
    noise = np.eye(f) if noise_covariance is None else check_covariance(noise_covariance, "noise covariance")
    if noise.shape != (f, f):
        raise ValueError(f"noise covariance: expected shape [{f}, {f}] as the data's frames, got {noise.shape}")
    least, largest = np.linalg.eigvalsh(noise)[[0, -1]]
    if not least > 1e-13 * largest:
        raise ValueError(f"noise covariance: expected a positive definite matrix, its least eigenvalue is {least:.3g}")
    lower = np.linalg.cholesky(noise)
    inverse = np.linalg.inv(lower)
    values, vectors = np.linalg.eigh(inverse @ temporal @ inverse.T)
    return lower @ vectors, vectors.T @ inverse, np.maximum(values, 0)


def _rotate(xp, bases, x, back=False):
    """x [b, f, p] in the eigenbasis of S, or back from it: one small product for every Kronecker factor."""
    if not bases:
        return x
    parts = x.reshape(*x.shape[:2], *(len(basis) for basis in bases))
    for axis, basis in enumerate(bases):
        basis = xp.asarray(basis, dtype=x.dtype)
        parts = xp.moveaxis(xp.moveaxis(parts, axis + 2, -1) @ (basis.T if back else basis), -1, axis + 2)
    return parts.reshape(x.shape)


def _noisy(schedule, process, basis, x, *levels):
    """Namespace, process and basis in it, x [b, f, p], and alpha, sigma, scale [b|1, f|1] of each level."""
    x = x if hasattr(x, "ndim") else np.asarray(x)
    f, size = len(process.temporal), process.variances.size
    frame = x.shape[2:]
    fits = (process.frame is None and size in (1, math.prod(frame))) or process.frame == frame
    if x.ndim < 2 or x.shape[1] != f or not fits:
        expected = process.frame or (f"frame of {size} values" if size > 1 else "...",)
        raise ValueError(f"x of shape {x.shape}: expected [b, {f}, {', '.join(map(str, expected))}]")
    xp, (x, average, variances, *rest) = harmonise(x, process.average, process.variances, *basis, *levels)
    coordinates = []
    for logsnr in rest[3:]:
        level = expand(logsnr, x)
        if math.prod(level.shape[2:]) != 1:
            raise ValueError(f"level of shape {logsnr.shape}: a Gaussian process takes [], [b] or [b, f]")
        coordinates.append(variance_preserving(xp, schedule, level.reshape(level.shape[0], level.shape[1])))
    return xp, (average, variances, *rest[:3]), x.reshape(*x.shape[:2], -1), coordinates


def _residual(xp, x, average, coordinates):
    """x - A mean in the scaling alpha^2 + sigma^2 = 1, and x in it."""
    alpha, _, scale = coordinates
    unit = rescaled(xp, x, scale[..., None])
    return unit - alpha[..., None] * average, unit


# The three functions of a level -----------------------------------------------------------------------------


def _factors(xp, modes, values, variances, alpha, sigma):
    """For each spatial mode, Q_1 and R [b|1, p, f, f] of M^T = Q R and the root T v^1/2 [p, f, f] of K."""
    root = modes * xp.sqrt(values * variances[:, None])[:, None, :]
    # Noise of the last bits on clean frames keeps R regular when K is not, and moves nothing above rounding.
    sigma = xp.maximum(sigma, float(xp.finfo(sigma.dtype).eps) ** 0.75)
    signal = root.swapaxes(-1, -2) * alpha[:, None, None, :]
    noise = xp.broadcast_to(modes.T * sigma[:, None, None, :], signal.shape)
    q, r = xp.linalg.qr(xp.concatenate([signal, noise], axis=-2))
    return q[..., : modes.shape[0], :], r, root


def _denoise(schedule, process, basis, x, logsnr):
    xp, (average, variances, modes, inverse, values), flat, [coordinates] = _noisy(schedule, process, basis, x, logsnr)
    residual, unit = _residual(xp, flat, average, coordinates)
    residual = _rotate(xp, process.bases, residual)
    alpha, sigma, _ = (level[..., None] for level in coordinates)
    if alpha.shape[1] == 1:
        signal = values[:, None] * variances
        gain = alpha * signal / xp.maximum(alpha**2 * signal + sigma**2, smallest_variance(xp, flat.dtype))
        estimate = modes @ (gain * (inverse @ residual))
    else:
        q, r, root = _factors(xp, modes, values, variances, alpha[..., 0], sigma[..., 0])
        gain = xp.linalg.solve(r, (root @ q).swapaxes(-1, -2)).swapaxes(-1, -2)
        estimate = _per_mode(xp, gain, residual)
    estimate = average + _rotate(xp, process.bases, estimate, back=True)
    return cast(xp.where(sigma == 0, unit, estimate).reshape(x.shape), x)


def _score(schedule, process, basis, x, logsnr):
    xp, (average, variances, modes, inverse, values), flat, [coordinates] = _noisy(schedule, process, basis, x, logsnr)
    residual, _ = _residual(xp, flat, average, coordinates)
    residual = _rotate(xp, process.bases, residual)
    alpha, sigma, scale = (level[..., None] for level in coordinates)
    if alpha.shape[1] == 1:
        variance = xp.maximum(alpha**2 * values[:, None] * variances + sigma**2, smallest_variance(xp, flat.dtype))
        whitened = inverse.T @ ((inverse @ residual) / variance)
    else:
        _, r, _ = _factors(xp, modes, values, variances, alpha[..., 0], sigma[..., 0])
        half = xp.linalg.solve(r, xp.broadcast_to(xp.eye(r.shape[-1], dtype=r.dtype), r.shape))
        whitened = _per_mode(xp, half @ half.swapaxes(-1, -2), residual)
    return cast((-scale * _rotate(xp, process.bases, whitened, back=True)).reshape(x.shape), x)


def _flow(schedule, process, basis, x, logsnr, logsnr_to):
    xp, (average, variances, modes, inverse, values), flat, ends = _noisy(
        schedule, process, basis, x, logsnr, logsnr_to
    )
    if any(alpha.shape[1] != 1 for alpha, *_ in ends):
        raise ValueError(
            "flow_map of a Gaussian process: levels must be shared by all frames, [] or [b]; for other paths"
            " use probability_flow"
        )
    residual, _ = _residual(xp, flat, average, ends[0])
    residual = inverse @ _rotate(xp, process.bases, residual)
    signal = values[:, None] * variances
    before, after = (a[..., None] ** 2 * signal + s[..., None] ** 2 for a, s, _ in ends)
    growth = xp.sqrt(after / xp.maximum(before, smallest_variance(xp, flat.dtype)))
    moved = _rotate(xp, process.bases, modes @ (growth * residual), back=True)
    alpha, _, scale = ends[1]
    return cast(((moved + alpha[..., None] * average) / scale[..., None]).reshape(x.shape), x)


def _per_mode(xp, matrices, x):
    """matrices [b|1, p|1, f, f] times x [b, f, p]."""
    if matrices.shape[1] == 1:
        return matrices[:, 0] @ x
    return xp.einsum("bpij,bjp->bip", xp.broadcast_to(matrices, (x.shape[0], *matrices.shape[1:])), x)


# Constructors -----------------------------------------------------------------------------------------------


def gaussian_process(
    temporal_covariance: Numbers,
    spatial_covariance: Any = None,
    mean: Numbers = 0.0,
) -> GaussianProcess:
    """The video N(mean, K (x) S), [f, *frame].

    spatial_covariance: S over the p values of a frame, [p, p] (frames of any shape with p values); or a
        sequence of its Kronecker factors, [h, h], [w, w], [c, c] (frames [h, w, c]), which is how 64 x 64
        frames stay cheap; or the shape (h, w, c) of independent pixels of variance 1; or None, independent
        pixels and any shape.
    mean: broadcasts to [f, *frame]; a scalar where the frame's shape isn't given.

    Raises ValueError for matrices that aren't covariances and shapes that don't fit.
    """
    temporal = check_covariance(temporal_covariance, "temporal covariance")
    frame, factors = None, []
    if isinstance(spatial_covariance, Sequence) and all(np.ndim(part) == 0 for part in spatial_covariance):
        frame = tuple(int(n) for n in spatial_covariance)
        if any(n < 1 for n in frame):
            raise ValueError(f"Gaussian process: expected a frame shape of positive sizes, got {frame}")
    elif isinstance(spatial_covariance, Sequence) and all(np.ndim(part) == 2 for part in spatial_covariance):
        factors = [
            check_covariance(part, f"spatial covariance, factor {i}") for i, part in enumerate(spatial_covariance)
        ]
        frame = tuple(len(factor) for factor in factors)
    elif spatial_covariance is not None:
        factors = [check_covariance(spatial_covariance, "spatial covariance")]
    spectra = [np.linalg.eigh(factor) for factor in factors]
    variances = np.ones(1)
    for values, _ in spectra:
        variances = np.kron(variances, np.maximum(values, 0))
    mean = np.asarray(mean, np.float64)
    if mean.ndim == 0:
        mean = mean.reshape(1, 1)
    elif frame is None:
        raise ValueError(
            f"Gaussian process: a mean of shape {mean.shape} needs a frame shape; give the spatial covariance"
            " as a shape (h, w, c) or as a sequence of Kronecker factors"
        )
    else:
        full = (len(temporal), *frame)
        try:
            mean = np.broadcast_to(mean, full).reshape(len(temporal), -1)
        except ValueError as error:
            raise ValueError(f"Gaussian process: a mean of shape {mean.shape} does not broadcast to {full}") from error
    return GaussianProcess(temporal, mean, tuple(vectors for _, vectors in spectra), variances, frame)


def ornstein_uhlenbeck(frames: int, rho: float) -> Float[np.ndarray, "f f"]:
    """rho^|i - j|: a Markov video, rough in time. -1 <= rho <= 1."""
    if not -1 <= rho <= 1:
        raise ValueError(f"ornstein_uhlenbeck: expected rho in [-1, 1], got {rho}")
    return float(rho) ** _lags(frames)


def rbf(frames: int, length: float, nugget: float = 0.0) -> Float[np.ndarray, "f f"]:
    """exp(-(i - j)^2 / (2 length^2)), length in frames: a smooth video, nearly singular from length 3 on.

    nugget: a variance added to every frame alone. Without one, clean frames that a sampler left slightly off
    this law are taken at their word, and what follows them is extrapolated wildly.
    """
    if not (length > 0 and nugget >= 0):
        raise ValueError(f"rbf: expected a length above 0 and a nugget >= 0, got {length} and {nugget}")
    return np.exp(-((_lags(frames) / length) ** 2) / 2) + nugget * np.eye(frames)


def _lags(frames: int) -> Int[np.ndarray, "f f"]:
    if frames < 1:
        raise ValueError(f"kernel: expected at least one frame, got {frames}")
    return np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))
