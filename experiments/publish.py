"""`python -m experiments.publish --workdir=DIR --stage=NAME --name=moving_digits/teacher`: weights to start from.

Copies a finished stage's weights into pretrained/, with the times that were searched for them, and writes their provenance
beside them as JSON: config, seed, commit, steps, data, and, with `--report=FILE` (the report.json that measured them) and
`--sampler=ROW` (their row there), the metrics. `--half` stores float16.
"""

import argparse
import contextlib
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

from experiments import config as configs
from experiments import evaluation, latents, tables, weights
from experiments.command import command
from experiments.config import ConfigError


@command
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.publish", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--stage", required=True, help="STAGE or STAGE@STEPS")
    parser.add_argument("--name", required=True, help="under pretrained/, for instance moving_digits/teacher")
    parser.add_argument("--report", type=pathlib.Path, help="report.json of the run that measured these weights")
    parser.add_argument("--sampler", help="the report's row")
    parser.add_argument("--half", action="store_true", help="store float16: half the bytes; measure these weights then")
    parser.add_argument("--replace", action="store_true", help="what has that name, with its figures and times")
    given = parser.parse_args(argv)
    run(given)
    return 0


def run(given: argparse.Namespace) -> None:
    if weights.is_file(given.stage):
        raise ConfigError(f"--stage: expected STAGE or STAGE@STEPS, got {given.stage!r}")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", given.name):
        raise ConfigError(f"--name: expected one as moving_digits/teacher, got {given.name!r}")
    if given.sampler is not None and given.report is None:
        raise ConfigError("--sampler names a row of a report: give --report, too")
    source = weights.find(given.stage, given.workdir)
    params, record = weights.load(source)
    if told := record.get("latent"):
        record["latent"] = latents.read_from(told, source.parent)
    target = (weights.PRETRAINED / f"{given.name}.safetensors").resolve()
    if not target.is_relative_to(weights.PRETRAINED):
        raise ConfigError(f"--name {given.name!r} leads out of {weights.PRETRAINED}")
    if target.is_file() and (there := weights.load(target)[1].get("kind")) != record.get("kind"):
        raise ConfigError(f"--name {given.name!r} is a {there}, {source} a {record.get('kind')}; choose another name")
    # A table fitted to other weights has a record alone.
    if not given.replace and (target.is_file() or target.with_suffix(".json").is_file()):
        raise ConfigError(f"--name {given.name!r} is there already; choose another name, or give --replace")
    metrics = configs.read_json(given.workdir / given.stage.split("@")[0] / weights.DONE)
    if given.report is not None:
        if not given.report.is_file():
            raise ConfigError(f"--report: there is no {given.report}")
        report = configs.read_json(given.report)
        rows = report.get("samplers") if isinstance(report, Mapping) else None
        measured = isinstance(rows, Mapping) and all(
            isinstance(row, Mapping) and "metrics" in row for row in rows.values()
        )
        if not rows or not measured:
            raise ConfigError(f"--report {given.report}: expected that of a stage of kind 'evaluate', one with metrics")
        row = configs.choose(given.sampler or "", rows, "--sampler")
        check_row(row, source, given)
        asked = evaluation.SAMPLER_KEYS | {"evaluations"}
        metrics |= {"sampler": {k: v for k, v in row.items() if k in asked and k != "weights"}}
        metrics |= {k: v for k, v in row.items() if k not in asked | {"metrics", "seconds_per_clip"}}
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


def check_row(row: Mapping[str, Any], source: pathlib.Path, given: argparse.Namespace) -> None:
    """Refuses the figures of other weights. A report names them from its run's folder, which is its own or the one above."""
    for folder in (given.workdir, given.report.parent, given.report.parent.parent):
        with contextlib.suppress(ConfigError):
            if weights.fingerprint(weights.find(row["weights"], folder)) == weights.fingerprint(source):
                return
    raise ConfigError(f"--sampler {given.sampler!r} is of the weights {row['weights']!r}, not of {given.stage!r}")


if __name__ == "__main__":
    sys.exit(main())
