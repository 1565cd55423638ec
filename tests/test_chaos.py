"""Twenty kills at random moments of a run of several stages: nothing is lost, and it ends as the run that nothing disturbed.

    python -m pytest tests/test_chaos.py -m slow -s

prints where each of the kills fell. A run that ends before it is killed is held against the undisturbed one, and the kills go
on with another.
"""

import json
import multiprocessing
import os
import pathlib
import random
import re
import signal
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = str(ROOT / "tests/configs/tiny_chaos.py")
WEIGHTS = ["teacher/weights", *(f"student/weights@{n}" for n in (4, 2, 1)), "student/weights", "game/weights"]
STAGES = ("teacher", "student", "game")
KILLS = 20
FOLLOWING = 3
"""Losses after a resume that must be the undisturbed run's."""


# Every run is a process of its own, which a server with all modules imported forks: the seconds of importing, in which there
# is nothing to lose, need not be waited for at each kill.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["experiments.run"])


def program(workdir, devices, cache, log):
    """The process: `python -m experiments.run` on that many CPU devices. What the cache has is not compiled again."""
    with open(log, "w", buffering=1) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(ROOT)
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    import jax

    from experiments import run

    for name, value in (("min_compile_time_secs", 0), ("min_entry_size_bytes", -1)):
        jax.config.update(f"jax_persistent_cache_{name}", value)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    sys.exit(run.main(["run", f"--config={CONFIG}", f"--workdir={workdir}"]))


def start(workdir, devices):
    log = workdir.with_suffix(".log")
    log.unlink(missing_ok=True)
    process = FORKS.Process(target=program, args=(workdir, devices, workdir.parent.parent / "cache", log))
    process.start()
    return process


def finish(process, workdir):
    process.join(600)
    assert process.exitcode is not None, "it hangs"
    log = workdir.with_suffix(".log")
    return process.exitcode, log.read_text() if log.exists() else ""


def saved(workdir):
    """stage -> the steps of its whole checkpoints."""
    return {
        stage: sorted(int(p.name) for p in (workdir / stage / "checkpoints").glob("*") if p.name.isdecimal())
        for stage in STAGES
    }


def losses(workdir):
    """(stage, step) -> every number of its line but the speed."""
    path = workdir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {
        (row["stage"], row["step"]): {k: v for k, v in row.items() if k.endswith("loss") or k == "grad_norm"}
        for row in rows
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    for name in ("first", "second"):
        # The second finds the programs of the first, as those that are killed do.
        workdir, begun = tmp_path_factory.mktemp("undisturbed") / name, time.monotonic()
        code, output = finish(start(workdir, 1), workdir)
        assert code == 0, output
    return workdir, time.monotonic() - begun


def place(output):
    """The last thing that a run said before it was killed."""
    lines = [line for line in output.splitlines() if re.match(r"(teacher|student|game|exact|stopped)", line)]
    return lines[-1][:60] if lines else "starting"


def check_nothing_is_lost(before, output, workdir):
    """What there was to go on from was gone on from; nothing was found damaged; no file is broken off."""
    assert "can't be read" not in output and "Traceback" not in output, output
    for stage, step in re.findall(r"^(\w+): resumed at step (\d+)", output, re.M):
        assert int(step) == before[stage][-1], output
    for stage, steps in before.items():
        now = saved(workdir)[stage]
        assert not steps or now[-1] >= steps[-1], f"{stage}: {steps} before, {now} after"
    assert not list(workdir.rglob("*.damaged*"))


# Moments from the first line of the program to the end of an undisturbed run; both signals, in any order.
@pytest.mark.slow
@pytest.mark.parametrize("devices", [(1,), (1, 2, 4, 8)], ids=["fixed devices", "changing devices"])
def test_twenty_kills(undisturbed, tmp_path, devices):
    reference, seconds = undisturbed
    wanted = losses(reference)
    chance = random.Random(len(devices))
    number, kills, resumes, worst = 0, [], 0, 0.0
    workdir = tmp_path / "0"
    while True:
        before, on = saved(workdir), chance.choice(devices)
        process = start(workdir, on)
        last = len(kills) == KILLS
        if last:
            kind, moment, (code, output) = None, None, finish(process, workdir)
        else:
            kind, moment = chance.choice([signal.SIGKILL, signal.SIGTERM]), chance.uniform(0.3, 0.6 * seconds)
            process.join(moment)
            if process.exitcode is None:
                os.kill(process.pid, kind)
            code, output = finish(process, workdir)
        check_nothing_is_lost(before, output, workdir)
        done = code == 0 and (workdir / "exact/done.json").exists()
        if not done:
            # Before the first stage a process knows nothing of SIGTERM, and has nothing to save.
            early = "starting" == place(output)
            assert code == -kind or (kind == signal.SIGTERM and code == 0), f"{code}, {kind}: {output}"
            assert early or kind == signal.SIGKILL or (code == 0 and "run the same command to go on" in output), output
            kills.append((kind.name, round(moment, 1), on, place(output)))
            print(f"\nkill {len(kills)} of run {number}: {kills[-1]}", flush=True)
        found = losses(workdir)
        for stage, step in re.findall(r"^(\w+): resumed at step (\d+)", output, re.M):
            for following in range(int(step) + 1, int(step) + 1 + FOLLOWING):
                for name, value in found.get((stage, following), {}).items():
                    other = wanted[stage, following][name]
                    worst, resumes = max(worst, abs(value - other) / max(abs(other), 1e-12)), resumes + 1
                    np.testing.assert_allclose(value, other, rtol=1e-5, err_msg=f"{stage}, step {following}: {name}")
        if done:
            compare(reference, workdir, bitwise=len(devices) == 1)
            print(f"\nrun {number} ended as the undisturbed one", flush=True)
            if last:
                break
            number += 1
            workdir = tmp_path / str(number)
    print(
        f"\n{len(kills)} kills, {number + 1} runs, {resumes} numbers after resumes, the largest difference {worst:.2g}"
    )


def compare(reference, workdir, bitwise):
    assert losses(workdir).keys() == losses(reference).keys(), "lines of metrics lost or doubled"
    for name in WEIGHTS:
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (reference, workdir))
        assert one.keys() == other.keys()
        for key in one:
            if bitwise:
                np.testing.assert_array_equal(one[key], other[key], err_msg=f"{name}: {key}")
            else:
                np.testing.assert_allclose(one[key], other[key], rtol=0, atol=1e-4, err_msg=f"{name}: {key}")
