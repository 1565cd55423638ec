"""What reading a batch costs beside the training step that takes it."""

import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments import config as configs
from experiments import data
from experiments.ablations import cpu, page
from experiments.ablations.small_dit import CONFIG, stepper
from experiments.ablations.spaces import LATENTS
from experiments.data import latents as store

SIZE, CLIPS, ROUNDS, TOGETHER = 16, 256, 5, 8
DIGITS = {
    **CONFIG,
    "model": dict(kind="unet", shape=(8, 16, 16, 1), num_classes=10, widths=(24, 48, 96), blocks=(1, 1, 2)),
}
"""The shipped teacher's network on its clips."""


def cached(folder: pathlib.Path, shape: tuple[int, ...]) -> None:
    """Latents of no meaning, as a stage of kind 'encode' leaves them."""
    random = np.random.default_rng(0)
    rows = (dict(video=random.standard_normal(shape, np.float32), label=np.int32(i % 10)) for i in range(CLIPS))
    store.write(folder / "train.array_record", rows)
    index = dict(shape=list(shape), num_classes=10, clips=dict(train=CLIPS), data=DIGITS["data"])
    configs.write_json(folder / store.INDEX, index)


def reader(config: Mapping[str, Any]) -> Callable[[], None]:
    """Reads TOGETHER batches in this thread: the clock of CPU time ticks slowly beside one."""
    batches = data.Batches(configs.source(config, "train"), SIZE, threads=0)

    def run() -> None:
        for _ in range(TOGETHER):
            next(batches)

    return run


def measure() -> dict[str, tuple[float, float]]:
    """data -> CPU seconds of (reading a batch, its training step)."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        cached(folder, LATENTS["shape"])
        latents = {**CONFIG, "data": dict(kind="latents", path=name), "model": LATENTS}
        every = {"moving digits, drawn": DIGITS, "latents, from a file": latents}
        runs = {title: (reader(config), stepper(config, SIZE)) for title, config in every.items()}
        found = cpu.in_turn({f"{t}, {i}": run for t, pair in runs.items() for i, run in enumerate(pair)}, ROUNDS)
    return {title: (found[f"{title}, 0"] / TOGETHER, found[f"{title}, 1"]) for title in runs}


def section(folder: pathlib.Path) -> str:
    del folder
    rows = [[title, 1e3 * read, 1e3 * step, f"{100 * read / step:.2g} %"] for title, (read, step) in measure().items()]
    return f"""## Reading a batch beside its step

This shows whether a device waits for its data: CPU time of one thread that reads a batch of {SIZE} clips, beside that of the
training step, a denoiser's, that takes it; medians of {ROUNDS} rounds. Digits are clips of 8 frames of 16x16 for the shipped
teacher's network, latents 9 of 8x8x8 for the latent teacher's. Training reads ahead in a thread of its own: reading must stay
well below a step of the device at hand.

{page.table(["", "reading, ms", "step, ms", "reading over step"], rows)}

On a device that is a hundred times as fast as this core the step is a hundredth, reading is not.
"""
