"""What an object looks like from frame to frame, once its motion is taken out, and the power spectra of clips.

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
    spectrum = np.fft.fft2(light)
    first, second, cross = _aligned(spectrum[:, :-1], spectrum[:, 1:], track[:, :-1], track[:, 1:])
    change = np.maximum(first + second - 2 * cross, 0) / np.maximum((first + second) / 2, 1e-9)
    # One offset for the whole clip: it is a constant of the object.
    return np.sqrt(change.mean(1).min((1, 2)))


def warping_error(light: Float[np.ndarray, "n f h w"], path: Float[np.ndarray, "n f 2"]) -> Float[np.ndarray, " n"]:
    """`flicker` where the frames are aligned by a path that is known, not by where the object went. Real: about .01.

    The warping error of Lai et al. 2018 (arXiv 1808.00449) with the law's motion in place of optical flow, relative to the
    frames. It sees what flickers and, too, what leaves the path. Only the path's steps count, no constant added to it.
    """
    return flicker(light, path)


def identity_correlation(
    light: Float[np.ndarray, "n f h w"], track: Float[np.ndarray, "n f 2"]
) -> Float[np.ndarray, " n"]:
    """Normalised correlation of the last frame with the first, aligned by their centroids. Real: above
    .99."""
    spectrum = np.fft.fft2(light[:, [0, -1]])
    spectrum[..., 0, 0] = 0  # without the frames' means
    ends = ([0], [-1])
    first, second, cross = _aligned(*(spectrum[:, e] for e in ends), *(track[:, e] for e in ends))
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


def power_in_time(light: Float[np.ndarray, "n f h w"]) -> Float[np.ndarray, "n k"]:
    """Power of every temporal frequency 0, 1/f, .. 1/2 a frame, mean over the pixels: |FFT|² / f.

    White noise of variance v has v at every frequency. The order of the frames counts, the direction of time doesn't.
    """
    n, f, h, w = light.shape
    return (np.abs(np.fft.rfft(light.reshape(n, f, h * w), axis=1)) ** 2).mean(2) / f


def power_in_space(light: Float[np.ndarray, "n f h w"]) -> Float[np.ndarray, "n k"]:
    """Power of every spatial frequency, mean over directions and frames: |FFT|² / (h w), in rings of one cycle a frame side.

    Rings 0 to h/2; the corners beyond are left out. White noise of variance v has v in every ring.
    """
    h, w = light.shape[2:]
    half = w // 2 + 1
    power = (np.abs(np.fft.rfft2(light)) ** 2).mean(1) / (h * w)
    radius = np.hypot(h * np.fft.fftfreq(h)[:, None], np.arange(half)).round().astype(int)
    # A column of rfft2 stands for its mirror image too, but the first and, of an even width, the last.
    twice = np.where((np.arange(half) == 0) | (2 * np.arange(half) == w), 1.0, 2.0)
    member = (radius[..., None] == np.arange(h // 2 + 1)) * twice[:, None]
    return np.einsum("nhw,hwk->nk", power, member / member.sum((0, 1)), optimize=True)


def _aligned(
    a: Complex[np.ndarray, "n p h w"],
    b: Complex[np.ndarray, "n p h w"],
    at_a: Float[np.ndarray, "n p 2"],
    at_b: Float[np.ndarray, "n p 2"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """|a'|², |b'|² and <a', b'> for pairs of frames aligned by bilinear shifts: each [n, p, OFFSETS,
    OFFSETS]. a and b are the frames' spectra.

    A frame is its object placed at p by a bilinear kernel K(p), which blurs by the fraction of p. Aligning
    by a shift would compare two different blurs. But convolutions commute: a placed again at p_b and b
    placed again at p_a have seen both kernels, and are equal if the object is the same. Here p = centroid -
    c, with c the object's centroid within its box; only its fraction matters, and all of OFFSETS x OFFSETS
    are returned.

    All in Fourier space, where a (circular) shift is a factor for the rows times one for the columns, so that
    the three numbers of all candidates are bilinear forms.
    """
    h, w = a.shape[2:]
    rows_a, rows_b = (_placement(at[..., 0], h) for at in (at_b, at_a))
    columns_a, columns_b = (_placement(at[..., 1], w) for at in (at_b, at_a))

    def form(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return np.real(rows @ values @ columns.swapaxes(-1, -2)) / (h * w)

    return (
        form(np.abs(a) ** 2, np.abs(rows_a) ** 2, np.abs(columns_a) ** 2),
        form(np.abs(b) ** 2, np.abs(rows_b) ** 2, np.abs(columns_b) ** 2),
        form(a * b.conj(), rows_a * rows_b.conj(), columns_a * columns_b.conj()),
    )


def _placement(position: Float[np.ndarray, "n p"], size: int) -> Complex[np.ndarray, "n p o size"]:
    """The bilinear kernel at position - c in frequency, for every candidate fraction c."""
    shift = position[..., None] - np.arange(OFFSETS) / OFFSETS
    whole = np.floor(shift)[..., None]
    part = (shift - np.floor(shift))[..., None]
    turn = np.exp(-2j * np.pi * np.fft.fftfreq(size))
    return turn**whole * (1 - part + part * turn)
