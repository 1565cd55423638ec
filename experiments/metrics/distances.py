"""Distances between sets of clips, as functions of weights over the clips.

A statistic of a set takes `weights` [k, n], k weightings of the n clips that each sum to one, and returns [k]
values: the equal weighting gives the statistic itself, resampling counts / n its bootstrap.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.distance import cdist

NEIGHBOURS = 3
"""k of precision and recall."""

Weights = Float[np.ndarray, "k n"]
Values = Float[np.ndarray, " k"]


def equal_weights(n: int) -> Float[np.ndarray, "1 n"]:
    """The weighting that gives the plain statistic."""
    return np.full((1, n), 1 / n)


def resampled(n: int, count: int, seed: int, strata: Int[np.ndarray, " n"] | None = None) -> Weights:
    """`count` bootstrap weightings: how often each of n clips comes up in n draws with replacement, over n.

    strata: a group for every clip, whose size is by design: then each group is resampled within itself.
    """
    rng = np.random.default_rng(seed)
    groups = np.zeros(n, int) if strata is None else strata
    weights = np.zeros((count, n))
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=count)
    return weights / n


def frechet(features: Float[np.ndarray, "n p d"], reference: Float[np.ndarray, "m p d"], weights: Weights) -> Values:
    """Squared Fréchet distance of Gaussians fitted to two sets of feature vectors, p of them for each clip.

    |m1 - m2|² + tr(S1 + S2 - 2 (R S1 R)^½) with R = S2^½ (Dowson & Landau 1982; Heusel et al. 2017, eq. 6).
    The symmetric form under the root has an eigendecomposition with eigenvalues >= 0 whatever the rank,
    where the square root of S1 S2 may come out complex.

    Covariances are the unbiased ones, and still the estimate lies above the truth, by a term of order d / n:
    only figures of one n, set beside the real-against-real distance of the same n, can be compared.
    """
    features, reference = features.astype(np.float64), reference.astype(np.float64)
    mean, covariance = _moments(reference, equal_weights(len(reference))[0])
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    distances = []
    for weight in weights:
        own_mean, own = _moments(features, weight)
        overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ own @ root), 0)).sum()
        distances.append(((own_mean - mean) ** 2).sum() + np.trace(own) + np.trace(covariance) - 2 * overlap)
    return np.maximum(np.array(distances), 0.0)


def clip_features(features: Float[np.ndarray, "n f d"]) -> Float[np.ndarray, "n 1 2d"]:
    """A clip in frame features: their mean over the frames, and the mean |difference| of neighbouring frames.

    The second half makes time count: a shuffled, frozen or flickering clip has the mean of a real one.
    """
    moving = np.abs(np.diff(features, axis=1)).mean(1) if features.shape[1] > 1 else np.zeros_like(features[:, 0])
    return np.concatenate([features.mean(1), moving], -1)[:, None]


def precision(features: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m d"], weights: Weights) -> Values:
    """Share of the clips that lie in the reference's manifold (Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1-2)."""
    return weights @ in_manifold(cdist(features, reference), radii(cdist(reference, reference)))


def recall(features: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m d"], weights: Weights) -> Values:
    """Share of the reference that lies in the clips' manifold (the same, the sets exchanged).

    A weighting gives the manifold of the clips whose weight is not 0, each once, however large its weight: a resample's
    copies of a clip would be its nearest neighbours, at no distance. Measured on Gaussians in 12 dimensions, 256 and 1,024
    clips: the bootstrap's standard deviation is .8 to 1 of that over fresh clips, and its bias at most .02; with copies the
    bias is -.1.
    """
    own, between = cdist(features, features), cdist(reference, features)
    drawn = [np.flatnonzero(weight) for weight in weights]
    return np.array([in_manifold(between[:, rows], radii(own[np.ix_(rows, rows)])).mean() for rows in drawn])


def radii(own: Float[np.ndarray, "n n"]) -> Float[np.ndarray, " n"]:
    """How far each point's k-th nearest other one is, of a set's own distances; of a smaller set the farthest."""
    k = min(NEIGHBOURS, len(own) - 1)
    return np.partition(own, k, axis=1)[:, k]


def in_manifold(distances: Float[np.ndarray, "p n"], radius: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " p"]:
    """Whether each of p points is within the radius of any of n others."""
    return (distances <= radius).any(1)


def mmd(
    features: Float[np.ndarray, "n d"],
    reference: Float[np.ndarray, "m d"],
    weights: Weights,
    *,
    degree: int = 3,
    constant: float = 1.0,
    unbiased: bool = True,
) -> Values:
    """Squared maximum mean discrepancy with the kernel (x . y / d + constant)^degree: by default the kernel distance KID
    (Binkowski et al. 2018, arXiv 1801.01401, sec. 4).

    The unbiased estimate is a mean over pairs of different clips: 0 on average for clips of the reference's law, whatever
    n, so it may be negative. A clip drawn twice is no pair with itself. Measured on Gaussians in 12 dimensions, 256 and 1,024
    clips: the bootstrap's standard deviation is .98 of that over fresh clips where the laws differ, its bias .3 % of the
    value; where the laws are the same it is 1.9 times as large, so intervals around 0 are too wide, never too narrow.
    unbiased=False counts every clip's pair with itself, as JEDi does.
    """
    x, y = features.astype(np.float64), reference.astype(np.float64)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + constant) ** degree

    def within(own: np.ndarray, weights: Weights) -> Values:
        if unbiased:
            np.fill_diagonal(own, 0)
        mean = np.einsum("ki,ij,kj->k", weights, own, weights, optimize=True)
        return mean / _pairs(weights) if unbiased else mean

    return (
        within(kernel(x, x), weights) + within(kernel(y, y), equal_weights(len(y))) - 2 * weights @ kernel(x, y).mean(1)
    )


def decibels(power: Float[np.ndarray, "n k"], reference: Float[np.ndarray, "m k"], weights: Weights) -> Values:
    """Log-spectral distance of two mean power spectra in dB, root mean square over the k frequencies (Gray & Markel 1976).

    Both have the power of rounding light to bytes, 1 / (12 255²), added: so black clips are at a finite distance.
    """
    rounding = 1 / (12 * 255**2)
    level, real = (10 * np.log10(mean + rounding) for mean in (weights @ power, reference.mean(0)))
    return np.sqrt(((level - real) ** 2).mean(1))


def mean_pairwise_distance(points: Float[np.ndarray, "n d"], weights: Weights) -> Values:
    """Mean Euclidean distance of two different clips' points; a clip drawn twice is no pair with itself."""
    squares = (points.astype(np.float64) ** 2).sum(1)
    products = points.astype(np.float64) @ points.T.astype(np.float64)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0))
    np.fill_diagonal(distances, 0)
    return np.einsum("ki,ij,kj->k", weights, distances, weights, optimize=True) / _pairs(weights)


def class_entropy(classes: Int[np.ndarray, " n"], num_classes: int, weights: Weights) -> Values:
    """Entropy of the class histogram / log(number of classes): 1 where all classes are equally frequent."""
    shares = weights @ np.eye(num_classes)[classes]
    return -(shares * np.log(np.maximum(shares, 1e-12))).sum(1) / np.log(num_classes)


def wasserstein(values: Float[np.ndarray, "n ..."], reference: Float[np.ndarray, "m ..."], weights: Weights) -> Values:
    """1-Wasserstein distance of two distributions on the line: the area between their distribution
    functions. Values of one clip share its weight."""
    points, gaps = _gaps(values, reference, weights)
    return np.array([np.abs(gap[:-1]) @ np.diff(points) for gap in gaps])


def circular_wasserstein(
    angles: Float[np.ndarray, "n ..."], reference: Float[np.ndarray, "m ..."], weights: Weights, *, turn: float = 360.0
) -> Values:
    """1-Wasserstein distance of two distributions on a circle of circumference `turn`.

    The least area between the distribution functions over all shifts of one of them, which is that for the median of their
    difference (Rabin, Delon & Gousseau 2011, "Transportation distances on the circle").
    """
    points, gaps = _gaps(angles % turn, reference % turn, weights)
    lengths = np.diff(points, append=points[0] + turn)
    distances = []
    for gap in gaps:
        order = np.argsort(gap)
        median = gap[order][np.searchsorted(np.cumsum(lengths[order]), turn / 2).clip(max=len(gap) - 1)]
        distances.append(np.abs(gap - median) @ lengths)
    return np.array(distances)


def _gaps(values: np.ndarray, reference: np.ndarray, weights: Weights) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """All points in order, and for every weighting the difference of the distribution functions from each point on.

    One weighting after another: all of them would be k times the size of the data.
    """
    points = np.concatenate([values.ravel(), reference.ravel()])
    order = np.argsort(points, kind="stable")
    each = values.size // len(values)
    real = np.full(reference.size, -1 / reference.size)
    gaps = (np.cumsum(np.concatenate([np.repeat(weight / each, each), real])[order]) for weight in weights)
    return points[order], gaps


def _moments(points: Float[np.ndarray, "n p d"], weight: Float[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased covariance of all points; a clip's points share its weight."""
    n, p, d = points.shape
    flat, each = points.reshape(n * p, d), np.repeat(weight / p, p)
    mean = each @ flat
    centred = flat - mean
    return mean, (centred * each[:, None]).T @ centred / _pairs(each)


def _pairs(weights: Float[np.ndarray, "... n"]) -> np.ndarray:
    """1 - sum of squares: the weight of pairs of different points, (n - 1) / n for equal weights."""
    return np.maximum(1 - (weights**2).sum(-1), 1e-12)
