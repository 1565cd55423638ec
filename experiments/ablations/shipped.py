"""Clips of the shipped networks of moving digits, and what is measured on them: for sections that no exact law answers."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from experiments import data, drawing, evaluation, tables, weights
from experiments.ablations import page
from experiments.metrics import METRICS, Measure, Sample, describe, evaluate

CLIPS, REFERENCE, BOOTSTRAP = 64, 256, 200
TEACHER, FORCING = "pretrained:moving_digits/teacher", "pretrained:moving_digits/forcing"
DATA = dict(kind="moving_digits", size=16, frames=8, digits=1)


class Judge(NamedTuple):
    """Held-out clips: `others` of which as many as are sampled, whose classes are asked for, and a reference."""

    classify: Any
    labels: Int[np.ndarray, " n"]
    floor: Sample
    reference: Sample


@functools.cache
def judge(clips: int = CLIPS, reference: int = REFERENCE) -> Judge:
    classify = evaluation.load_classifier(weights.find(evaluation.CLASSIFIERS[16], None))
    held_out = data.Batches(data.build(DATA, "test"), clips + reference, seed=0).batch_at(0)
    labels, videos = held_out["label"][:clips], held_out["video"]
    return Judge(classify, labels, describe(videos[:clips], classify, labels), describe(videos[clips:], classify))


@functools.cache
def network(reference: str):
    return drawing.load_network(weights.find(reference, None))


def drawn(
    reference: str, steps: int, scale: float = 1.0, source: Callable[..., Any] | None = None, **block: Any
) -> Float[np.ndarray, "n f h w c"]:
    """CLIPS clips, from the same noise and of the same classes whatever the sampler. source: of noise, in place of the
    network's own. block: solver, grid, matrix.
    """
    params, net, record = network(reference)
    net = net if source is None else net._replace(noise=source)
    shape, key = tuple(record["shape"]), jax.random.key(0)
    model = tables.Model(drawing.classes_in_turn(net, params, scale), shape, key)
    table = tables.make(block, steps, net.schedule, reference, model)
    print(f"{steps} steps, {block}", file=sys.stderr, flush=True)
    noise = drawing.start(net, key, (CLIPS, *shape))
    clips = drawing.drawn(net, params, table, judge().labels, noise, jax.random.fold_in(key, 1), scale)
    return np.clip(np.asarray(clips), -1, 1)


def measured(clips: np.ndarray, names: Sequence[str]) -> dict[str, Measure]:
    """Some of METRICS with their intervals and floors."""
    known = judge()
    return evaluate(
        clips, known.reference, labels=known.labels, classify=known.classify, floor_reference=known.floor,
        bootstrap=BOOTSTRAP, metrics={name: METRICS[name] for name in names},
    )  # fmt: skip


def cells(measures: Mapping[str, Measure]) -> list[str]:
    return [page.interval(measure) for measure in measures.values()]


def in_float32(section: Callable[..., str]) -> Callable[..., str]:
    """Networks are float32 also where a page is made in float64."""

    @functools.wraps(section)
    def made(*arguments: Any) -> str:
        with jax.enable_x64(False):
            return section(*arguments)

    return made
