"""What an object looks like from frame to frame, once its motion is taken out.

Light means the pixel value in [0, 1]. Known values are those of real moving digits, 16x16.
"""

import numpy as np
from jaxtyping import Complex, Float

# Candidates per axis for the fraction of a pixel at which the object's box lies relative to its centroid.
OFFSETS = 16


def flicker(light: Float[np.ndarray, "n f h w"], track: Float[np.ndarray, "n f 2"]) -> Float[np.ndarray, " n"]:
    """Change between neighbouring frames that motion does not explain, relative to the frames. Real: about
    .01.

    |a - b| / sqrt((|a|² + |b|²) / 2) of neighbouring frames, aligned by their centroids; root mean square
    over the clip. 0 for perfect motion, about 1 for two different digits. Speed does not enter: a frozen
    clip and a fast one are both 0. (The plain |difference| that is often called flicker falls as clips
    freeze or blur.)
    """
    first, second, cross = _aligned(light[:, :-1], light[:, 1:], track[:, :-1], track[:, 1:], centred=False)
    change = np.maximum(first + second - 2 * cross, 0) / np.maximum((first + second) / 2, 1e-9)
    # One offset for the whole clip: it is a constant of the object.
    return np.sqrt(change.mean(1).min((1, 2)))


def identity_correlation(
    light: Float[np.ndarray, "n f h w"], track: Float[np.ndarray, "n f 2"]
) -> Float[np.ndarray, " n"]:
    """Normalised correlation of the last frame with the first, aligned by their centroids. Real: above
    .99."""
    ends = ([0], [-1])
    first, second, cross = _aligned(*(light[:, e] for e in ends), *(track[:, e] for e in ends), centred=True)
    return (cross / np.sqrt(np.maximum(first * second, 1e-12)))[:, 0].max((1, 2))


def change(light: Float[np.ndarray, "n f h w"]) -> Float[np.ndarray, " n"]:
    """Mean |x_{t+1} - x_t| over pixels and frames: motion and flicker together. To be held against real
    clips."""
    return np.abs(np.diff(light, axis=1)).mean((1, 2, 3))


def sharpness(light: Float[np.ndarray, "n f h w"]) -> Float[np.ndarray, " n"]:
    """Energy of the gradient / energy, mean over frames, per pixel²; falls with blur, rises with noise.

    To be held against real clips; brightness does not enter.
    """
    gradient = sum((np.diff(light, axis=axis) ** 2).sum((2, 3)) for axis in (2, 3))
    return (gradient / np.maximum((light**2).sum((2, 3)), 1e-9)).mean(1)


def _aligned(
    a: Float[np.ndarray, "n p h w"],
    b: Float[np.ndarray, "n p h w"],
    at_a: Float[np.ndarray, "n p 2"],
    at_b: Float[np.ndarray, "n p 2"],
    *,
    centred: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """|a'|², |b'|² and <a', b'> for pairs of frames aligned by bilinear shifts: each [n, p, OFFSETS,
    OFFSETS].

    A frame is its object placed at p by a bilinear kernel K(p), which blurs by the fraction of p. Aligning
    by a shift would compare two different blurs. But convolutions commute: a placed again at p_b and b
    placed again at p_a have seen both kernels, and are equal if the object is the same. Here p = centroid -
    c, with c the object's centroid within its box; only its fraction matters, and all of OFFSETS x OFFSETS
    are returned.

    All in Fourier space, where a (circular) shift is a factor for the rows times one for the columns, so that
    the three numbers of all candidates are bilinear forms. centred: the frames' means are taken out before.
    """
    h, w = a.shape[2:]
    spectrum_a, spectrum_b = np.fft.fft2(a), np.fft.fft2(b)
    if centred:
        spectrum_a[..., 0, 0] = spectrum_b[..., 0, 0] = 0
    rows_a, rows_b = (_placement(at[..., 0], h) for at in (at_b, at_a))
    columns_a, columns_b = (_placement(at[..., 1], w) for at in (at_b, at_a))

    def form(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return np.real(rows @ values @ columns.swapaxes(-1, -2)) / (h * w)

    return (
        form(np.abs(spectrum_a) ** 2, np.abs(rows_a) ** 2, np.abs(columns_a) ** 2),
        form(np.abs(spectrum_b) ** 2, np.abs(rows_b) ** 2, np.abs(columns_b) ** 2),
        form(spectrum_a * spectrum_b.conj(), rows_a * rows_b.conj(), columns_a * columns_b.conj()),
    )


def _placement(position: Float[np.ndarray, "n p"], size: int) -> Complex[np.ndarray, "n p o size"]:
    """The bilinear kernel at position - c in frequency, for every candidate fraction c."""
    shift = position[..., None] - np.arange(OFFSETS) / OFFSETS
    whole = np.floor(shift)[..., None]
    part = (shift - np.floor(shift))[..., None]
    turn = np.exp(-2j * np.pi * np.fft.fftfreq(size))
    return turn**whole * (1 - part + part * turn)
