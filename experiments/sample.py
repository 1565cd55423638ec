"""`python -m experiments.sample --weights=... --steps=4 --out=DIR`: videos from finished weights.

--weights takes what a config takes: pretrained:NAME, a path to a .safetensors file, or STAGE[@STEPS] with --workdir.
"""

import argparse
import pathlib
import sys

import jax
import numpy as np

from experiments import config as configs
from experiments import evaluation, figures, weights
from experiments.config import ConfigError
from experiments.run import fail


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.sample", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", required=True, help="pretrained:NAME, a .safetensors file, or STAGE[@STEPS]")
    parser.add_argument("--workdir", default=".", help="of the run whose stage is named")
    parser.add_argument("--steps", type=int, required=True, help="network calls")
    parser.add_argument("--solver", default="ddim", help=f"one of {', '.join(configs.SOLVERS)}")
    parser.add_argument("--grid", default="uniform_time", help=f"one of {', '.join(configs.GRIDS)}")
    parser.add_argument("--guidance", type=float, default=1.0, help="g in u + g (c - u); 1 is none")
    parser.add_argument("--label", type=int, help="class of all clips; by default each class in turn")
    parser.add_argument("--num", type=int, default=16, help="clips")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, help="folder for samples.npy, samples.png and samples.webp")
    given = parser.parse_args(argv)
    try:
        run(given)
    except ConfigError as error:
        return fail(str(error), 2)
    return 0


def run(given: argparse.Namespace) -> None:
    params, network, record = evaluation.load_network(weights.find(given.weights, pathlib.Path(given.workdir)))
    table = configs.table({"solver": given.solver, "grid": given.grid}, given.steps, network.schedule, "--steps")
    classes = network.num_classes
    if given.num < 1:
        raise ConfigError(f"--num must be at least 1, got {given.num}")
    if given.label is not None and not 0 <= given.label < max(classes, 1):
        raise ConfigError(f"--label must lie between 0 and {classes - 1}, got {given.label}")
    if given.guidance != 1.0 and not classes:
        raise ConfigError("--guidance needs a network with classes; this one is unconditional")
    labels = np.arange(given.num) % max(classes, 1) if given.label is None else np.full(given.num, given.label)
    key = jax.random.key(given.seed)
    noise = np.asarray(jax.random.normal(key, (given.num, *record["shape"])))
    clips, seconds = evaluation.draw(
        network, params, table, labels.astype(np.int32), noise, key, batch_size=given.num, scale=given.guidance
    )
    out = pathlib.Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "samples.npy", figures.to_uint8(clips))
    figures.film_strip(out / "samples.png", clips)
    figures.animate(out / "samples.webp", {"": clips[:16]})
    print(f"{given.num} clips, {table.nfe} calls, {1e3 * seconds:.1f} ms a clip: {out}/samples.webp")


if __name__ == "__main__":
    sys.exit(main())
