"""The law of motion: where the ink is, how much there is, and whether it moves as a digit between elastic
walls.

Everything here is for clips with one object on black. Light means the pixel value in [0, 1]; positions are
(row, column) in pixels, times are in frames. Known values are those of real moving digits, 16x16.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

# Light below this is not tracked: a haze that the eye does not see would pull the centroid to the middle of
# the frame. Real digits lose so little by it that their centroid moves by a hundredth of a pixel.
TRACKED = 0.05
# An object is lit above this and has at least this share of the frame's light.
LIT, SHARE = 0.1, 0.15
# A frame with less light than one white pixel shows nothing.
SEEN = 1.0
# Below this many pixels per frame a step has no direction, and a clip no speed to be uneven.
STILL = 0.1

Track = Float[np.ndarray, "n f 2"]


class Bounce(NamedTuple):
    """The best elastic bounce through a track, per clip and axis: offset + fold(start + velocity * frame).

    offset: the object's centroid within its box; fold: reflection into [0, room]; residual: root mean square
    distance of the track over the frames, in pixels. velocity is >= 0: its sign is in `start`, which runs
    over [0, 2 room), the way there and back.
    """

    residual: Float[np.ndarray, "n 2"]
    offset: Float[np.ndarray, "n 2"]
    start: Float[np.ndarray, "n 2"]
    velocity: Float[np.ndarray, "n 2"]


def mass(light: Float[np.ndarray, "n f h w"]) -> Float[np.ndarray, "n f"]:
    """The light of every frame, in pixels of full brightness. Constant within a real clip."""
    return light.sum((2, 3))


def mass_variation(mass: Float[np.ndarray, "n f"]) -> Float[np.ndarray, " n"]:
    """Standard deviation of the mass over the frames / its mean. Real: below .001 (rounding to bytes)."""
    return mass.std(1) / np.maximum(mass.mean(1), 1e-3)


def mass_drift(mass: Float[np.ndarray, "n f"]) -> Float[np.ndarray, " n"]:
    """|last frame's mass - first's| / their mean. Real: below .001."""
    return 2 * np.abs(mass[:, -1] - mass[:, 0]) / np.maximum(mass[:, -1] + mass[:, 0], 1e-3)


def centroids(light: Float[np.ndarray, "n f h w"]) -> Track:
    """The centre of the light above TRACKED, sub-pixel. A dark frame has the frame's centre.

    Bilinear placement moves a real clip's centroid exactly as its digit.
    """
    ink = np.where(light > TRACKED, light, 0.0)
    total = ink.sum((2, 3))
    h, w = light.shape[2:]
    rows = (ink.sum(3) @ np.arange(h)) / np.maximum(total, 1e-9)
    columns = (ink.sum(2) @ np.arange(w)) / np.maximum(total, 1e-9)
    centre = np.array([(h - 1) / 2, (w - 1) / 2])
    return np.where((total > 0)[..., None], np.stack([rows, columns], -1), centre)


def speed(track: Track) -> Float[np.ndarray, " n"]:
    """Mean length of a step in pixels per frame; a step through a wall counts by its end points.

    A clip that stands still keeps every law: it is this distribution, held against the real one, that tells.
    """
    return _steps(track).mean(1)


def heading(track: Track) -> Float[np.ndarray, " n"]:
    """Direction of the first step in degrees, -180 to 180: 0 is to the right, 90 down. Real: every direction as often as any.

    A clip that stands still has 0.
    """
    step = track[:, 1] - track[:, 0]
    return np.degrees(np.arctan2(step[:, 0], step[:, 1]))


def speed_variation(track: Track) -> Float[np.ndarray, " n"]:
    """Standard deviation of the step length / its mean (at least STILL). Real: .14, by the bounces."""
    steps = _steps(track)
    return steps.std(1) / np.maximum(steps.mean(1), STILL)


def acceleration(track: Track) -> Float[np.ndarray, " n"]:
    """Median over frames and axes of |second difference|, in pixels per frame². Real: below .03."""
    return np.median(np.abs(np.diff(track, 2, axis=1)), axis=(1, 2))


def bounces(track: Track) -> Float[np.ndarray, " n"]:
    """Reversals of direction per clip, both axes together; steps below STILL have no direction."""
    sign = np.where(np.abs(steps := np.diff(track, axis=1)) > STILL, np.sign(steps), 0)
    last, count = sign[:, 0], np.zeros(len(sign))
    for now in np.moveaxis(sign[:, 1:], 1, 0):
        count += (now * last < 0).sum(-1)
        last = np.where(now == 0, last, now)
    return count


def objects(light: Float[np.ndarray, "n f h w"]) -> Float[np.ndarray, " n"]:
    """Separate objects per frame: connected pieces with at least SHARE of the light. Real: 1."""
    n, f, h, w = light.shape
    frames = light.reshape(n * f, h, w)
    flat = np.zeros((3, 3, 3), int)
    flat[1] = 1  # neighbours within a frame, diagonals too; none across frames
    pieces = np.zeros(frames.shape, np.int32)
    ndimage.label(frames > LIT, flat, output=pieces)
    count = int(pieces.max())
    weight = np.bincount(pieces.ravel(), frames.ravel(), count + 1)
    frame_of = np.zeros(count + 1, int)
    frame_of[pieces] = np.arange(n * f)[:, None, None]
    large = weight >= SHARE * frames.sum((1, 2))[frame_of]
    large[0] = False  # the dark
    return np.bincount(frame_of, large, n * f).reshape(n, f).mean(1)


def fit_bounce(track: Track, room: float, box: int, starts: int = 12) -> Bounce:
    """Least-squares fit of the law of an elastic box to every track; start, velocity and offset are free.

    The box has `room` pixels to move in. The offset is held to the middle of the box +- .15 box, where the
    centroid of a digit is: so a turn in mid-air is no bounce. A grid of starts and velocities (up to room /
    2 a frame) finds the basins, Levenberg's damped steps the minimum of the best `starts` of them.
    """
    n, f, _ = track.shape
    tracks = np.moveaxis(track, 2, 1).reshape(2 * n, 1, f)
    time = np.arange(f)
    middle, slack = (box - 1) / 2, 0.15 * box

    def residuals(start, velocity, tracks):
        path = _fold(start[..., None] + velocity[..., None] * time, room)
        offset = np.clip((tracks - path).mean(-1), middle - slack, middle + slack)
        return tracks - path - offset[..., None], offset

    # The grid: a step that shifts the last frame by at most room / 8, and starts room / 16 apart.
    grid_v, grid_s = np.meshgrid(
        np.linspace(0, room / 2, 8 * max(f - 1, 1) // 2 + 1), np.arange(32) * room / 16, indexing="ij"
    )
    paths = _fold(grid_s.reshape(-1, 1) + grid_v.reshape(-1, 1) * time, room)
    # A few tracks at a time: the grid of a long clip has tens of thousands of paths.
    few = max(1, 2**21 // len(paths))
    best = np.concatenate([
        np.argpartition(_grid_cost(part, paths, middle - slack, middle + slack), starts, axis=1)[:, :starts]
        for part in (tracks[i : i + few, 0] for i in range(0, len(tracks), few))
    ])  # fmt: skip
    start, velocity = grid_s.ravel()[best], grid_v.ravel()[best]

    error, offset = residuals(start, velocity, tracks)
    cost = (error**2).sum(-1)
    damping = np.full(cost.shape, 1e-2)
    for _ in range(30):
        slope = np.where((start[..., None] + velocity[..., None] * time) % (2 * room) < room, 1.0, -1.0)
        free = np.abs(offset - middle) < slack  # then the offset follows, and the slopes count from their mean
        by_start, by_velocity = (s - np.where(free, s.mean(-1), 0)[..., None] for s in (slope, slope * time))
        aa, bb = (by_start**2).sum(-1) + damping, (by_velocity**2).sum(-1) + damping
        ab = (by_start * by_velocity).sum(-1)
        ga, gb = (by_start * error).sum(-1), (by_velocity * error).sum(-1)
        determinant = aa * bb - ab**2
        new_start = start + (bb * ga - ab * gb) / determinant
        new_velocity = velocity + (aa * gb - ab * ga) / determinant
        new_error, new_offset = residuals(new_start, new_velocity, tracks)
        new_cost = (new_error**2).sum(-1)
        better = new_cost < cost
        start, velocity = np.where(better, new_start, start), np.where(better, new_velocity, velocity)
        error, offset = np.where(better[..., None], new_error, error), np.where(better, new_offset, offset)
        cost = np.where(better, new_cost, cost)
        damping = np.clip(np.where(better, damping / 5, damping * 5), 1e-9, 1e6)

    winner = np.argmin(cost, axis=1)[:, None]
    cost, offset, start, velocity = (
        np.take_along_axis(a, winner, 1).reshape(n, 2) for a in (cost, offset, start, velocity)
    )
    start = np.where(velocity < 0, -start, start) % (2 * room)  # the fold is even
    return Bounce(np.sqrt(cost / f), offset, start, np.abs(velocity))


def path(fit: Bounce, frames: int, room: float) -> Track:
    """Where the fitted law puts the object in each of `frames` frames."""
    straight = fit.start[:, None] + fit.velocity[:, None] * np.arange(frames)[:, None]
    return fit.offset[:, None] + _fold(straight, room)


def law_residual(fit: Bounce) -> Float[np.ndarray, " n"]:
    """Root mean square distance from the best elastic bounce over frames, both axes, pixels. Real: about
    .01."""
    return np.sqrt((fit.residual**2).sum(1))


def law_kept(fit: Bounce, mass: Float[np.ndarray, "n f"], tolerance: float = 0.25) -> Bool[np.ndarray, " n"]:
    """Whether all frames show something that follows a bounce to `tolerance` pixels. Real: always."""
    return (law_residual(fit) <= tolerance) & (mass >= SEEN).all(1)


def _steps(track: Track) -> Float[np.ndarray, "n f-1"]:
    return np.sqrt((np.diff(track, axis=1) ** 2).sum(-1))


def _fold(x: np.ndarray, room: float) -> np.ndarray:
    return room - np.abs(x % (2 * room) - room)


def _grid_cost(
    tracks: Float[np.ndarray, "m f"], paths: Float[np.ndarray, "g f"], low: float, high: float
) -> Float[np.ndarray, "m g"]:
    """Squared error of every path against every track, each with its best offset in [low, high]."""
    offset = tracks.mean(1)[:, None] - paths.mean(1)
    moved, straight = tracks - tracks.mean(1, keepdims=True), paths - paths.mean(1, keepdims=True)
    spread = (moved**2).sum(1)[:, None] + (straight**2).sum(1) - 2 * moved @ straight.T
    return spread + tracks.shape[1] * (offset - np.clip(offset, low, high)) ** 2
