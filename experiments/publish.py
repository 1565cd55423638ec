"""`python -m experiments.publish --workdir=DIR --stage=NAME --name=moving_digits/teacher`: weights to start from.

Copies a finished stage's weights into pretrained/, with the times that were searched for them, and writes their provenance
beside them as JSON: config, seed, commit, steps, data, and the metrics that the run measured. `--sampler` names the row of
the run's report that belongs to them; `--half` stores float16.
"""

import argparse
import pathlib
import sys

from experiments import config as configs
from experiments import latents, tables, weights
from experiments.command import command
from experiments.config import ConfigError
from experiments.run import DONE

LIMIT = 30_000_000
"""Bytes that all of pretrained/ may take: it travels with every clone."""


@command
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.publish", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--stage", required=True, help="STAGE or STAGE@STEPS")
    parser.add_argument("--name", required=True, help="under pretrained/, for instance moving_digits/teacher")
    parser.add_argument("--report", type=pathlib.Path, help="report.json of the run that measured these weights")
    parser.add_argument("--sampler", help="the report's row")
    parser.add_argument("--half", action="store_true", help="store float16: half the bytes; measure these weights then")
    given = parser.parse_args(argv)
    run(given)
    return 0


def run(given: argparse.Namespace) -> None:
    source = weights.find(given.stage, given.workdir)
    params, record = weights.load(source)
    if told := record.get("latent"):
        record["latent"] = latents.read_from(told, source.parent)
    target = (weights.PRETRAINED / f"{given.name}.safetensors").resolve()
    if not target.is_relative_to(weights.PRETRAINED):
        raise ConfigError(f"--name {given.name!r} leads out of {weights.PRETRAINED}")
    others = sum(p.stat().st_size for p in weights.PRETRAINED.rglob("*.safetensors") if p != target)
    size = source.stat().st_size // (2 if given.half else 1)
    if others + size > LIMIT:
        raise ConfigError(f"{source} takes {size} bytes; pretrained/ may hold {LIMIT} in all and has {others}")
    metrics = configs.read_json(given.workdir / given.stage.split("@")[0] / DONE)
    if given.report is not None:
        rows = configs.read_json(given.report)["samplers"]
        row = configs.choose(given.sampler or "", rows, "--sampler")
        if "metrics" not in row:
            raise ConfigError(f"--report {given.report}: expected that of a stage of kind 'evaluate', one with metrics")
        metrics |= {"sampler": {k: v for k, v in row.items() if k not in ("metrics", "weights", "seconds_per_clip")}}
        metrics |= {k: m["value"] for k, m in row["metrics"].items()}
    times = tables.times_path(source)
    if times.is_file():
        tables.read_times(source, "--stage")  # of other weights: refused before anything is copied
    target.parent.mkdir(parents=True, exist_ok=True)
    weights.save(target, params, record, half=given.half)
    tables.times_path(target).unlink(missing_ok=True)
    if times.is_file():
        for sampler, found in configs.read_json(times)["samplers"].items():
            tables.keep_times(target, sampler, found)  # of the file as it is stored
    configs.write_json(target.with_suffix(".json"), {**record, "metrics": metrics})
    print(f"{target.relative_to(weights.PRETRAINED.parent)}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    sys.exit(main())
