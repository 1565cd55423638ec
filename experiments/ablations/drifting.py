"""Roll-outs of moving digits to eight times the clip, by the shipped network of levels per frame: drift, chunk by chunk."""

import pathlib
import tempfile
from typing import Any

import numpy as np
from jaxtyping import UInt8

from experiments import continuation, data
from experiments import mesh as meshes
from experiments.ablations import page, shipped
from experiments.context import Context
from experiments.metrics import Measure, drift

FRAMES, PAST, STEPS, CLIPS = 64, 2, 6, shipped.CLIPS
WAYS: dict[str, dict[str, Any]] = {
    "clean history": dict(),
    "history at log-SNR 6.9": dict(level=6.9),
}
SHOWN = ("identity_kept", "label_accuracy", drift.IDENTITY, "mass", "law_residual", "flicker", "change", "frechet_clip")


def measured(
    options: dict[str, Any], frames: int = FRAMES
) -> tuple[dict[str, dict[str, Measure]], UInt8[np.ndarray, "n f h w c"]]:
    """Drift of continued clips with the class told, rows by chunks of the model's 8 frames; and the clips."""
    source = data.build({**shipped.DATA, "frames": PAST + frames}, "test")
    real = data.Batches(source, CLIPS + shipped.REFERENCE, seed=0).batch_at(0)
    truth, labels, others = (
        real["video"][:CLIPS],
        real["label"][:CLIPS],
        real["video"][CLIPS:, : shipped.DATA["frames"]],
    )
    block = dict(
        weights=shipped.FORCING, history=PAST, frames=frames, steps=STEPS, solver="dpmpp", told_label=True, batch_size=CLIPS,
    ) | options  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        context = Context(dict(seed=0), pathlib.Path(folder), meshes.make(None))
        made = continuation.continued(context, "drift", block, truth[:, :PAST], labels)[0]
    rows = drift.drift(
        made, others, chunk=shipped.DATA["frames"], labels=labels, floor_reference=truth[:, PAST:],
        names=[name for name in SHOWN if name != drift.IDENTITY], classify=shipped.judge().classify,
        bootstrap=shipped.BOOTSTRAP,
    )  # fmt: skip
    return rows, made


@shipped.in_float32
def section(folder: pathlib.Path) -> str:
    found = {way: measured(options)[0] for way, options in WAYS.items()}
    lines = []
    for way, rows in found.items():
        for row in ("0-7", "8-15", "24-31", f"{FRAMES - 8}-{FRAMES - 1}", drift.CONTRAST):
            lines.append([way, row, *shipped.cells({name: rows[row][name] for name in SHOWN})])
    last = next(iter(found.values()))[f"{FRAMES - 8}-{FRAMES - 1}"]
    lines.append(["real clips", "the last", *(last[name].floor for name in SHOWN)])
    shown = (drift.IDENTITY, "label_accuracy", "law_residual", "frechet_clip")
    figure, axes = page.axes(len(shown), 12.5, 3.6)
    for one, name in zip(axes, shown, strict=True):
        for i, (way, rows) in enumerate(found.items()):
            points = [m[name] for row, m in rows.items() if row != drift.CONTRAST]
            bars = [[max(p.value - p.low, 0) for p in points], [max(p.high - p.value, 0) for p in points]]
            one.errorbar(
                np.arange(1, 1 + len(points)), [p.value for p in points], yerr=bars, **page.style(i), label=way
            )
        floors = [m[name].floor for row, m in next(iter(found.values())).items() if row != drift.CONTRAST]
        one.plot(np.arange(1, 1 + len(floors)), floors, color="0.4", linestyle="--", linewidth=1, label="real")
        one.set(xlabel="length, in clips of the model's", title=name)
    page.legend_beside(figure, axes)
    picture = page.save(figure, folder, "video_drift.png", "drift of roll-outs to eight times the clip")
    return f"""## Drift of roll-outs to eight times the clip

This shows what a long roll-out loses: the shipped network of levels per frame (configs/moving_digits/forcing.py) continues
{PAST} known frames by {FRAMES}, 6 at a time, {STEPS} steps of 2M each, the class told; {CLIPS} clips, 95 % intervals over them.

{page.table(["history", "frames", *SHOWN], lines)}

{picture}
"""
