"""Claims on video: flicker at few steps, noise over space and time, cascades, long videos, and what a clip costs in time."""

import pathlib
import time
from collections.abc import Sequence

import jax
import numpy as np

from diffusion import frames, grids, oracles, solvers
from experiments import drawing
from experiments.ablations import cascades, claims_digits, matrices, memory, page, shipped, ties, windows
from experiments.ablations.claims import Claim, Found, Statement
from experiments.ablations.claims_noise import change, made
from experiments.ablations.claims_students import NEAR, bars
from experiments.ablations.gaussian import COSINE, FRAMES, KERNELS, distance, law
from experiments.ablations.numbers import Number, difference, exact, of, ratio
from experiments.evaluation import QUALITY

# Few steps ------------------------------------------------------------------------------------------------------


def flicker() -> Found:
    counts = (50, 8, 4, 2)
    rows = {n: {k: of(m) for k, m in claims_digits.measured("ddim", n).items()} for n in counts}
    statements = []
    for n in (4, 2):
        statements += [
            Statement(
                f"moving digits, {n} steps: flicker, over that of 50",
                ratio(rows[n]["flicker"], rows[50]["flicker"]),
                least=1.1,
            ),
            Statement(
                f"moving digits, {n} steps: identity kept over the clip, minus that of 50",
                difference(rows[n]["identity_kept"], rows[50]["identity_kept"]),
                -0.02,
            ),
            Statement(
                f"moving digits, {n} steps: single frames look fine (Fréchet distance of frames, over that of 50)",
                ratio(rows[n]["frechet_frame"], rows[50]["frechet_frame"]),
                NEAR,
            ),
        ]
    statements.append(
        Statement(
            "moving digits, 8 steps are enough: flicker, over that of 50",
            ratio(rows[8]["flicker"], rows[50]["flicker"]),
            1.1,
        )
    )
    for name, kernel in KERNELS.items():
        off = {
            n: (
                abs(change(found := made(kernel, 0.0, n)) / change(kernel) - 1),
                abs(np.trace(found) / np.trace(kernel) - 1),
            )
            for n in (4,)
        }
        statements.append(
            Statement(
                f"{name}, 4 steps: error of the change from frame to frame, over that of a frame's variance",
                exact(off[4][0] / off[4][1]),
                least=1.1,
            )
        )
    figure, (axes,) = page.axes(1, 6.6, 3.8)
    for i, metric in enumerate(("flicker", "frechet_frame", "frechet_clip", "law_residual")):
        axes.plot(
            counts, [rows[n][metric].value / rows[50][metric].value for n in counts], **page.style(i), label=metric
        )
    axes.axhline(1.0, color="0.5", linestyle=":", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="over that of 50 steps")
    page.mark(axes, counts)
    axes.legend(frameon=False)
    return Found(statements, figure)


def joint() -> Found:
    table = solvers.ddim(COSINE, frames.full(matrices.clock(ties.STEPS), FRAMES))
    found = {
        name: {
            kernel: distance(c, table, matrices.END, noise=source.covariance(FRAMES)) for kernel, c in KERNELS.items()
        }
        for name, source in ties.SOURCES.items()
    }
    statements = [
        Statement(
            f"{kernel}: {ties.STEPS} steps with noise that is {name}, error over that with independent noise",
            exact(found[name][kernel] / found["iid"][kernel]),
            1.0,
        )
        for kernel in KERNELS
        for name in ("mixed, a = 1", "progressive, a = 1", "mixed, a = 4")
    ]
    for kernel in KERNELS:
        equal = {
            matrix: matrices.errors(
                kernel, matrix, "DDIM", matrices.clock, matrices.most_steps(matrix, matrices.EQUAL)
            )[0]
            for matrix in ("full", "pyramid, lag N/4")
        }
        said = f"{kernel}: levels staggered over frames (pyramid), error over that of one level, {matrices.EQUAL} calls"
        statements.append(Statement(said, exact(equal["pyramid, lag N/4"] / equal["full"]), 1.0))
    figure, (axes,) = page.axes(1, 8.0, 3.8)
    for i, kernel in enumerate(KERNELS):
        axes.bar(
            np.arange(len(found)) + 0.4 * i - 0.2,
            [row[kernel] for row in found.values()],
            0.38,
            color=page.style(i)["color"],
            label=kernel,
        )
    axes.set_xticks(range(len(found)), list(found), rotation=40, ha="right", fontsize=8)
    axes.set(ylabel=f"distance to the true law, {ties.STEPS} steps")
    axes.legend(frameon=False)
    return Found(statements, figure)


def cascade(runs: pathlib.Path, _: pathlib.Path) -> Found:
    run, missing = cascades.read(runs)
    if run is None:
        return Found([Statement("the cascade's clips beat stretched ones", None, 1.0)], None, missing)
    quality = {name: of(row.metrics[QUALITY]) for name, row in run.rows.items()}
    steps = {name: row.steps for name, row in run.rows.items()}
    whole, few = quality["teachers"], quality["students"]
    stretched = next(
        value for name, value in quality.items() if name.startswith("bicubic") and name.endswith("teachers")
    )
    of_real = next(value for name, value in quality.items() if name.startswith(cascades.OF_REAL))
    statements = [
        Statement(
            f"Fréchet distance of {steps['teachers']} steps, over that of the base's clips stretched",
            ratio(whole, stretched),
            1.0,
        ),
        Statement(
            "10 + 10 steps are enough above the base: of real small clips, over what real clips get",
            ratio(of_real, exact(run.rows["teachers"].metrics[QUALITY].floor)),
            2.0,
        ),
        Statement(f"students with {steps['students']} steps, over the teachers", ratio(few, whole), NEAR),
    ]
    names = [f"{cascades.title(name)}, {steps[name]}" for name in quality]
    figure = bars(names, list(quality.values()), "Fréchet distance", run.rows["teachers"].metrics[QUALITY].floor)
    return Found(statements, figure)


# Long videos ----------------------------------------------------------------------------------------------------

KEEPS = 0.1
"""Distance to the true law, over the root of the frames (the size of a video), within which the law counts as kept."""


def long() -> Found:
    found = {}
    for name, video in windows.VIDEOS.items():
        true = law(video(FRAMES), matrices.END)
        found[name] = {way: oracles.wasserstein_gaussian(c, true) for way, c in windows.ways(video).items()}
    size = np.sqrt(FRAMES)
    statements = [
        Statement(
            f"{name}, {way}: distance of the video to the true law, over its size",
            exact(found[name][way] / size),
            KEEPS,
        )
        for name in found
        for way in (
            "chunks after 1 clean frame",
            "chunks after 4 clean frames",
            "rolling after 4 clean frames",
            "blended every 4 frames, flat",
        )
    ]
    for name, kernel in KERNELS.items():
        mean = np.sqrt(np.mean(memory.conditional(kernel)[1] ** 2))
        wrong = memory.errors(kernel, memory.WAYS["replacement"], 64) / mean
        statements.append(
            Statement(
                f"{name}, overlap put in noised at every step (replacement): error of the mean of what follows, over its size",
                exact(wrong),
                KEEPS,
            )
        )
    figure, (axes,) = page.axes(1, 9.0, 4.2)
    ways = list(found["OU"])
    for i, name in enumerate(found):
        axes.plot(
            range(len(ways)),
            [found[name][way] / size for way in ways],
            **{**page.style(i), "linestyle": ""},
            label=name,
        )
    axes.axhline(KEEPS, color="0.5", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(ways)), ways, rotation=40, ha="right", fontsize=8)
    axes.set(yscale="log", ylabel="distance to the true law, over its size")
    axes.legend(frameon=False)
    return Found(statements, figure)


# Latency --------------------------------------------------------------------------------------------------------


def seconds(counts: Sequence[int], clips: int = 8, repeats: int = 5) -> dict[int, np.ndarray]:
    """CPU seconds of making clips of the shipped teacher with so many steps, several times in turn: what else the machine does
    meets all alike, and doesn't count.
    """
    params, network, _ = shipped.network(shipped.TEACHER)
    tables = {n: solvers.ddim(network.schedule, grids.uniform_time(network.schedule, n)) for n in counts}
    labels, noise = np.zeros(clips, np.int32), np.zeros((clips, 8, 16, 16, 1), np.float32)
    found: dict[int, list[float]] = {n: [] for n in counts}
    with jax.enable_x64(False):
        for _ in range(1 + repeats):
            for n, table in tables.items():
                begun = time.process_time()
                np.asarray(drawing.drawn(network, params, table, labels, noise, jax.random.key(0)))
                found[n].append(time.process_time() - begun)
    return {n: np.array(values[1:]) / clips for n, values in found.items()}  # the first compiles


def typical(values: np.ndarray) -> Number:
    """The median, with the least and the greatest of five, which hold it 94 % of the time."""
    return Number(float(np.median(values)), float(values.min()), float(values.max()))


def latency() -> Found:
    runs = seconds((50, 4, 1))
    taken = {n: typical(values) for n, values in runs.items()}
    statements = [
        Statement("seconds of 50 steps over those of 4 (the post: 30 over 2.5)", typical(runs[50] / runs[4]), 15, 9),
        Statement("seconds of 50 steps over those of 1", typical(runs[50] / runs[1]), 65, 35),
        Statement("frames of 16x16 per second, one step", typical(8 / runs[1]), least=24),
    ]
    figure, (axes,) = page.axes(1, 5.6, 3.6)
    values = list(taken.values())
    axes.errorbar(
        list(taken),
        [v.value for v in values],
        [[v.value - v.low for v in values], [v.high - v.value for v in values]],
        marker="o",
        linestyle="",
        capsize=3,
        label="measured",
    )
    axes.plot(
        list(taken), [taken[50].value * n / 50 for n in taken], color="0.5", linestyle=":", label="in proportion to 50"
    )
    axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="CPU seconds a clip")
    page.mark(axes, list(taken))
    axes.legend(frameon=False)
    return Found(statements, figure)


CLAIMS = (
    Claim(
        "flicker",
        "Below about 8 steps video flickers though single frames look fine",
        f"""{claims_digits.CLIPS} clips of moving digits by the shipped teacher, DDIM without guidance, from the same
        noise; Gaussian video exactly. Flickering is 1.1 times the flicker or 2 % fewer clips that keep their identity,
        fine is at most {NEAR} times the Fréchet distance of single frames.""",
        flicker,
    ),
    Claim(
        "joint",
        "Noise that differs over space and time helps the model to keep temporal structure",
        f"""Gaussian videos, exactly: DDIM with {ties.STEPS} steps and noise that hangs together over frames (PYoCo's),
        used in the denoiser too; and levels staggered over the frames.""",
        joint,
    ),
    Claim(
        "cascade",
        "A small model with 50 steps and upsampling with 10 are enough: a cascade's stages have budgets of their own",
        "A finished run (configs/moving_digits_64/cascade.py): 16x16 clips of 8 frames, then 32 frames, then 64x64 pixels.",
        cascade,
        reads_runs=True,
    ),
    Claim(
        "long",
        "Long videos are made in chunks that overlap with what came before",
        f"""Gaussian videos, exactly: a denoiser of {windows.WINDOW} frames, 64 steps of DPM-Solver++(2M), the law of
        {FRAMES} frames in a row; and {memory.KNOWN} known frames put in noised at every step. Kept is within {KEEPS} of
        the video's size.""",
        long,
    ),
    Claim(
        "latency",
        "50 steps in 30 s are 2.5 s at 4 steps and real time at 1: time goes with the steps",
        "The shipped teacher of moving digits, 8 clips at once, unguided; CPU seconds, the median of five and both ends.",
        latency,
    ),
)
