"""What the exact sections of the page say of Gaussian video, on moving digits, by the shipped network of levels per frame: the
order of frames, noise that hangs together, blending, and kinds of history.
"""

import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from diffusion import noise
from experiments import continuation, data, figures
from experiments import mesh as meshes
from experiments.ablations import drifting, page, shipped, steps
from experiments.context import Context
from experiments.metrics import Measure, drift

FRAMES, SIDE = shipped.DATA["frames"], shipped.DATA["size"]
SHOWN_CLIPS = 5

# The order of frames ------------------------------------------------------------------------------------------

CALLS = 24
ORDERS: dict[str, Any] = {
    "full": "full",
    "pyramid, lag 1": dict(kind="pyramid", lag=1),
    "trapezoid, lag 2": dict(kind="trapezoid", lag=2),
    "2 blocks": dict(kind="autoregressive", block=4),
    "4 blocks": dict(kind="autoregressive", block=2),
    "autoregressive": "autoregressive",
}


def steps_within(matrix: Any, calls: int) -> int:
    """The most steps a frame for which the matrix has no more rows than calls; at least 1."""
    block = {"kind": matrix} if isinstance(matrix, str) else dict(matrix)
    build = continuation.MATRICES[block.pop("kind")]

    def rows(n: int) -> int:
        return len(build(np.arange(n + 1.0), FRAMES, **block)) - 1

    return max((n for n in range(1, calls + 1) if block.get("lag", 0) <= n and rows(n) <= calls), default=1)


@shipped.in_float32
def orders(folder: pathlib.Path) -> str:
    del folder
    rows, floors = [], []
    for name, matrix in ORDERS.items():
        n = steps_within(matrix, CALLS)
        clips = shipped.drawn(shipped.FORCING, n, solver="dpmpp", matrix=matrix)
        found = shipped.measured(clips, list(steps.SHOWN))
        rows.append([name, n, *shipped.cells(found)])
        floors = [one.floor for one in found.values()]
    return f"""## Schedule matrices at equal calls, on digits

This shows what is left of each order of frames at {CALLS} calls in all: 2M, no guidance, {shipped.CLIPS} clips from the same
noise against {shipped.REFERENCE} real ones, by the shipped network of levels per frame.

{page.table(["matrix", "steps a frame", *steps.SHOWN.values()], [*rows, ["real clips", "", *floors]])}
"""


# Noise that hangs together --------------------------------------------------------------------------------------

SOURCE_STEPS = 16
SOURCES = {
    "iid": noise.iid(),
    "mixed, a = 0.5": noise.mixed(0.5),
    "mixed, a = 1": noise.mixed(1.0),
    "mixed, a = 2": noise.mixed(2.0),
    "progressive, a = 1": noise.progressive(1.0),
    "shuffled, window 4": noise.window_shuffled(4, 2),
    "warped, a pixel a frame": noise.warped(np.broadcast_to([0, 1], (FRAMES - 1, SIDE, SIDE, 2))),
    "offset, 0.1": noise.offset(0.1),
    "blocks of 2, -1/3": noise.block_correlated(),
}


@shipped.in_float32
def sources(folder: pathlib.Path) -> str:
    rows, floors, pictures = [], [], {}
    for name, source in SOURCES.items():
        clips = shipped.drawn(shipped.FORCING, SOURCE_STEPS, source=source, solver="dpmpp")
        found = shipped.measured(clips, list(steps.SHOWN))
        rows.append([name, *shipped.cells(found)])
        floors = [one.floor for one in found.values()]
        pictures[name] = clips[:SHOWN_CLIPS]
    figures.comparison(folder / "video_sources.png", pictures)
    return f"""## Noise that a network wasn't trained with

This shows what noise that hangs together costs where only sampling has it: the shipped network of levels per frame, which knows
independent noise, begins with each source, {SOURCE_STEPS} steps of 2M; {shipped.CLIPS} clips. Trained and sampled with the
same, some of these are worth steps (the section `noise`); a config's `noise` is for both (configs/moving_digits/joint.py).

{page.table(["noise", *steps.SHOWN.values()], [*rows, ["real clips", *floors]])}

![clips of each noise: four frames of each](video_sources.png)
"""


# Blending -----------------------------------------------------------------------------------------------------

LONG = 32
BLENDING: dict[str, dict[str, Any]] = {
    "after clean history": dict(),
    "after history at log-SNR 6.9": dict(level=6.9),
    "blended every 2 frames, flat": dict(windows=dict(stride=2, weights="flat"), batch_size=16),
    "blended every 2 frames, pyramid": dict(windows=dict(stride=2, weights="pyramid"), batch_size=16),
}


@shipped.in_float32
def blending(folder: pathlib.Path) -> str:
    names, lines, pictures = drifting.SHOWN, [], {}
    for way, options in BLENDING.items():
        rows, clips = drifting.measured(options, LONG)
        pictures[way] = clips[:SHOWN_CLIPS]
        for row in (f"0-{FRAMES - 1}", f"{LONG - FRAMES}-{LONG - 1}", drift.CONTRAST):
            lines.append([way, row, *shipped.cells({name: rows[row][name] for name in names})])
        last = rows[f"{LONG - FRAMES}-{LONG - 1}"]
    lines.append(["real clips", "the last", *(last[name].floor for name in names)])
    figures.slices(folder / "video_blending.png", pictures)
    return f"""## Blending against history, on digits

This shows two ways to a video of {LONG} frames, four clips of the model's, after {drifting.PAST} known ones: chunk after
chunk, each after the last frames of the one before, and all at once, the estimates of windows averaged where they overlap.
{drifting.STEPS} steps of 2M, the class told, {shipped.CLIPS} clips. Blending calls the network for every window of every step.

{page.table(["way", "frames", *names], lines)}

![x-t and y-t slices of continued clips: time runs down](video_blending.png)
"""


# Kinds of history ---------------------------------------------------------------------------------------------

HISTORY_STEPS = 16
HISTORIES: dict[str, dict[str, Any]] = {
    "shown clean": dict(),
    "shown at log-SNR 6.9": dict(level=6.9),
    "vanilla, g = 1.5": dict(way=dict(kind="vanilla", scale=1.5)),
    "vanilla, g = 3": dict(way=dict(kind="vanilla", scale=3.0)),
    "fractional at log-SNR -2, g = 2": dict(way=dict(kind="fractional", scale=2.0, partly=-2.0)),
    "temporal, each frame alone, 1/2 + 1/2": dict(way=dict(kind="temporal", memories=[[0.5, [0]], [0.5, [1]]])),
    "replaced": dict(weights=shipped.TEACHER, way="replacement"),
    "reconstruction, weight 2": dict(weights=shipped.TEACHER, way=dict(kind="reconstruction", weight=2.0)),
}
OF_FUTURE = ("law_residual", "flicker", "change", "identity_kept", "frechet_clip")


def continued(options: Mapping[str, Any]) -> tuple[dict[int, Measure], Float[np.ndarray, "n f h w c"], int]:
    """(errors of position by frame, known and continued frames, evaluations of a clip)."""
    past = drifting.PAST
    real = data.Batches(data.build(shipped.DATA, "test"), shipped.CLIPS, seed=0).batch_at(0)
    block = dict(
        weights=shipped.FORCING, history=past, frames=FRAMES - past, steps=HISTORY_STEPS, solver="dpmpp",
        told_label=True, batch_size=shipped.CLIPS,
    ) | dict(options)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        context = Context(dict(seed=0), pathlib.Path(folder), meshes.make(None))
        made, _, _, evaluations = continuation.continued(
            context, "history", block, real["video"][:, :past], real["label"]
        )
    errors = continuation.position_errors(made, real["video"][:, past:], FRAMES - past, shipped.BOOTSTRAP, 0)
    return errors, np.concatenate([real["video"][:, :past], made], axis=1), evaluations


@shipped.in_float32
def history(folder: pathlib.Path) -> str:
    rows, floors, pictures = [], [], {}
    for name, options in HISTORIES.items():
        errors, clips, evaluations = continued(options)
        found = shipped.measured(clips, list(OF_FUTURE))
        far = {"first": errors[1], "last": errors[FRAMES - drifting.PAST]}
        rows.append([name, evaluations, *shipped.cells({**far, **found})])
        floors = [one.floor for one in found.values()]
        pictures[name] = clips[:SHOWN_CLIPS]
    figures.comparison(folder / "video_history.png", pictures, max_frames=FRAMES)
    header = ["way", "evaluations", "first frame off, px", f"frame {FRAMES - drifting.PAST} off, px"]
    return f"""## Kinds of history, on digits

This shows how each way holds on to {drifting.PAST} known frames: {FRAMES - drifting.PAST} more by the shipped network of
levels per frame (*replaced* and *reconstruction*: the teacher of one level for all), {HISTORY_STEPS} steps of 2M, the class
told, {shipped.CLIPS} clips. Two frames say how the digit moves, so its position is known: the median distance from it, of
the first frame and of the last. The other columns are of the known frames and what follows together.

{page.table([*header, *(steps.SHOWN[name] for name in OF_FUTURE)], [*rows, ["real clips", "", "", "", *floors]])}

![known and continued frames of each way](video_history.png)
"""
