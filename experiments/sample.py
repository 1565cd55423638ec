"""`python -m experiments.sample --weights=... --steps=4 --out=DIR`: videos from finished weights.

--weights takes what a config takes: pretrained:NAME, a path to a .safetensors file, or STAGE[@STEPS|@best] with --workdir.
Shipped weights without a word on how to sample them (--steps and the like) are sampled as their figures were measured.
"""

import argparse
import io
import json
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from diffusion.solvers import Table
from distill import Network
from experiments import config as configs
from experiments import drawing, figures, latents, tables, weights
from experiments.command import command
from experiments.config import ConfigError

ASKED = ("steps", *tables.PARTS, "guidance", "threshold", "stream")
"""Arguments that are keys of a sampler in a config."""


@command
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.sample", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", required=True, help="pretrained:NAME, a .safetensors file, or STAGE[@STEPS|@best]")
    parser.add_argument("--workdir", default=".", help="of the run whose stage is named")
    parser.add_argument("--steps", type=int, help="steps of the grid; not with --table")
    parser.add_argument("--solver", help=f"ddim by default; one of {', '.join(tables.SOLVERS)}, or as in a config")
    parser.add_argument("--grid", help=f"uniform_time by default; one of {', '.join(tables.GRIDS)}, or as in a config")
    parser.add_argument("--matrix", help=f"every frame's level: one of {', '.join(tables.MATRICES)}, or as in a config")
    parser.add_argument("--table", help="a table that was fitted to, or chosen for, this network: a .npz file")
    parser.add_argument("--guidance", type=float, help="g in u + g (c - u); 1, the default, is none")
    parser.add_argument(
        "--threshold", help=f"keeps estimates in the range of pixels: one of {', '.join(drawing.THRESHOLDS)}"
    )
    parser.add_argument("--stream", type=int, help="frames made at a time, of a network that is causal in time")
    parser.add_argument(
        "--autoencoder", help="of a model of latents: its file, where it isn't where it was in training"
    )
    parser.add_argument("--label", type=int, help="class of all clips; by default each class in turn")
    parser.add_argument("--num", type=int, default=16, help="clips")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out",
        required=True,
        help="folder for samples.npy (bytes; of data whose law is known, numbers), samples.png and samples.webp",
    )
    given = parser.parse_args(argv)
    run(given)
    return 0


def run(given: argparse.Namespace) -> None:
    path = weights.find(given.weights, pathlib.Path(given.workdir))
    params, network, record = drawing.load_network(path)
    classes = network.num_classes
    if given.num < 1:
        raise ConfigError(f"--num must be at least 1, got {given.num}")
    if not 0 <= given.seed < 2**32:
        raise ConfigError(f"--seed must lie between 0 and {2**32 - 1}, got {given.seed}")
    if given.label is not None and not classes:
        raise ConfigError("--label needs a network with classes; this one is unconditional")
    if given.label is not None and not 0 <= given.label < classes:
        raise ConfigError(f"--label must lie between 0 and {classes - 1}, got {given.label}")
    sampler = asked(given, path)
    scale, chunk = sampler.get("guidance", 1.0), sampler.get("stream")
    configs.check_finite(scale, "--guidance")
    if scale != 1.0 and not classes:
        raise ConfigError("--guidance needs a network with classes; this one is unconditional")
    if chunk is not None:
        drawing.check_stream(record["model"], chunk, record["shape"][0], "--stream", given.weights)
        for key in drawing.UNSTREAMED:
            if key in sampler:
                raise ConfigError(f"--stream takes no {key}; remove --stream or --{key}")
    if "threshold" in sampler:
        drawing.check_threshold(sampler["threshold"], bool(record.get("latent")), "--threshold")
    out, key = pathlib.Path(given.out), jax.random.key(given.seed)
    configs.make_folder(out, "--out")
    codec, told = None, record.get("latent")
    if given.autoencoder is not None and not told:
        raise ConfigError("--autoencoder: these weights are a model of pixels")
    if told:
        told = told | ({"autoencoder": given.autoencoder} if given.autoencoder else {})
        codec = latents.codec_of(told, pathlib.Path(given.workdir), "--weights")
    denoise = drawing.classes_in_turn(network, params, scale)
    model = tables.Model(denoise, tuple(record["shape"]), key, network.noise)
    table = chosen_table(given, sampler, path, network, model, out / "tables")
    drawing.check_jumps(table, network.cond_keys, "--solver" if given.table is None else f"--table {given.table}")
    labels = np.arange(given.num) % max(classes, 1) if given.label is None else np.full(given.num, given.label)
    noise = drawing.start(network, key, (given.num, *record["shape"]))
    streams = None if chunk is None else drawing.streamer(network, record, table, chunk, record["shape"][0], scale)
    # Points of a law have no range.
    points = record.get("data", {}).get("kind") == "exact"
    clips, seconds = drawing.draw(
        network,
        params,
        table,
        labels.astype(np.int32),
        noise,
        key,
        batch_size=given.num,
        scale=scale,
        threshold=sampler.get("threshold"),
        codec=codec,
        streams=streams,
        pixels=not points,
    )
    buffer = io.BytesIO()
    np.save(buffer, clips if points else figures.to_uint8(clips))
    figures.write_atomically(out / "samples.npy", buffer.getvalue())
    if points or clips.shape[-1] not in figures.CHANNELS:
        why = "points of a law" if points else f"{clips.shape[-1]} channels"
        print(f"{given.num} clips, {table.nfe} calls: {out}/samples.npy, and no pictures of {why}")
        return
    figures.film_strip(out / "samples.png", clips)
    figures.animate(out / "samples.webp", {"": clips[:16]})
    each = "" if chunk is None else f" for each {chunk} frames"
    print(f"{given.num} clips, {table.nfe} calls{each}, {1e3 * seconds:.1f} ms a clip: {out}/samples.webp")


def asked(given: argparse.Namespace, path: pathlib.Path) -> dict[str, Any]:
    """The sampler that the arguments ask for, as in a config; without any, that of the figures in the weights' record."""
    words = {name: getattr(given, name) for name in ASKED}
    sampler = {name: value for name, value in words.items() if value is not None}
    if given.table is not None:
        for name in ("steps", *tables.PARTS):
            if name in sampler:
                raise ConfigError(f"--{name} and --table exclude each other: a table has its own")
        return sampler
    if not sampler and (sampler := measured(path)):
        print(f"sampled as it was measured: {json.dumps(sampler)}")
    if "steps" not in sampler:
        raise ConfigError("--steps is needed, or a --table")
    configs.check_whole("--steps", sampler["steps"], 1)
    return sampler | {part: _part(value) for part, value in tables.block_of(sampler).items()}


def measured(path: pathlib.Path) -> dict[str, Any]:
    """The sampler of the figures beside shipped weights."""
    record = path.with_suffix(".json")
    stated = configs.read_json(record).get("metrics", {}).get("sampler", {}) if record.is_file() else {}
    return {name: value for name, value in stated.items() if name != "evaluations"}


def chosen_table(
    given: argparse.Namespace, sampler: Mapping[str, Any], path: pathlib.Path, network: Network, model: tables.Model,
    folder: pathlib.Path,
) -> Table:  # fmt: skip
    """The table that --table names, or the sampler asks for."""
    if given.table is not None:
        return tables.load(pathlib.Path(given.table), network.schedule, model, "--table")[0]
    try:
        tables.check(tables.block_of(sampler), sampler["steps"], network.schedule, "--steps")
        return tables.make(
            tables.searched(sampler, path, "--grid"), sampler["steps"], network.schedule, "--steps", model, folder
        )
    except ConfigError as error:
        raise ConfigError(re.sub(r"--steps\.(solver|grid|matrix)(\.kind)?", r"--\1", str(error))) from None


def _part(text: Any) -> Any:
    """A name, or {"kind": name, ...} as JSON."""
    if not isinstance(text, str) or not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{text} is not readable JSON ({error})") from None


if __name__ == "__main__":
    sys.exit(main())
