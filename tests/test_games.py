"""Games as runs: killed in either phase, watched for collapse, refused in one line where a config makes no game."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from configs.mixture import games as configs_games
from experiments import loop, run

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = pathlib.Path(configs_games.__file__)

# Runs the program, and dies by SIGKILL in the middle of step's phase: the state is donated and half computed then.
DYING = """
import os, signal, sys
from experiments import loop, run

phase, call = sys.argv[1], int(sys.argv[2])
compile_phases = loop.compile_phases

def dying(method, mesh):
    phases = compile_phases(method, mesh)
    calls = []

    def die(*arguments):
        calls.append(None)
        result = phases_own(*arguments)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    if phase in phases:
        phases_own = phases[phase]
        phases = {**phases, phase: die}
    return phases

loop.compile_phases = dying
run.main(["run", *sys.argv[3:]])
"""


SMALL = {"steps": 10, "batch_size": 16, "log_every": 1, "checkpoint_every": 2}


def arguments(workdir, method="dmd2", **change):
    """A run of one game in seconds: the shipped config with `change` in its stage, as a config file beside the workdir."""
    text = [
        "from configs.mixture import games", "from experiments.config import plain", "from ml_collections import ConfigDict",
        "", "def get_config():", f"    config = plain(games.get_config('{method},a1d'))",
        "    config['data']['size'], config['model']['width'] = 512, 16",
        "    config['stages']['exact']['num_clips'] = 512",
        "    config['stages']['denoiser'] |= dict(steps=5, batch_size=16)", f"    stage = config['stages']['{method}']",
    ]  # fmt: skip
    for key, value in (SMALL | {"options.ratio": 2} | change if method == "dmd2" else SMALL | change).items():
        *parents, leaf = key.split(".")
        at = "stage" + "".join(f".setdefault({parent!r}, {{}})" for parent in parents)
        text.append(f"    {at}[{leaf!r}] = {value!r}")
    path = workdir.with_suffix(".py")
    path.write_text("\n".join([*text, "    return ConfigDict(config)", ""]), encoding="utf-8")
    return [f"--config={path}", f"--workdir={workdir}"]


def one_stage(workdir, method="dmd2", **change):
    return [*arguments(workdir, method, **change), f"--stage={method}"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A workdir whose denoiser is finished."""
    workdir = tmp_path_factory.mktemp("games") / "begun"
    assert not run.main(["run", *arguments(workdir), "--stage=denoiser"])
    return workdir


@pytest.fixture(scope="module")
def undisturbed(begun):
    workdir = begun.with_name("undisturbed")
    shutil.copytree(begun, workdir)
    assert not run.main(["run", *one_stage(workdir)])
    return workdir


def test_both_phases_move_in_their_turns_and_are_measured(undisturbed):
    rows = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines() if '"dmd2"' in line]
    # ratio 2: the student moves in every second step, the critic in all.
    assert [row["step"] for row in rows if "student/loss" in row] == [2, 4, 6, 8, 10]
    assert [row["step"] for row in rows if "critic/loss" in row] == list(range(1, 11))
    last = rows[-1]
    assert 0 <= last["critic/accuracy"] <= 1 and last["student/non_finite"] == 0 and last["student/diversity"] >= 0
    for name in ("score_gap", "critic_error", "teacher_error"):
        assert any(key.startswith(f"student/{name}_by_level/") for row in rows for key in row), name


@pytest.mark.parametrize("phase, call", [("critic", 5), ("student", 3)])
def test_killed_in_either_phase_a_game_ends_bit_for_bit_the_same(begun, undisturbed, tmp_path, phase, call):
    workdir = tmp_path / "run"
    shutil.copytree(begun, workdir)
    command = [sys.executable, "-c", DYING, phase, str(call), *one_stage(workdir)]
    died = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()[-2000:]
    assert not (workdir / "dmd2/weights.safetensors").exists()
    assert not run.main(["run", *one_stage(workdir)])
    one, two = (load_file(folder / "dmd2/weights.safetensors") for folder in (undisturbed, workdir))
    assert one.keys() == two.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, two[name], err_msg=name)
    begun_with = load_file(begun / "denoiser/weights.safetensors")
    assert any((one[name] != begun_with[name]).any() for name in begun_with if name in one)


def test_each_phase_is_one_program(begun, tmp_path, monkeypatch):
    compiled = {}

    def remember(method, mesh):
        compiled.update(compile_phases(method, mesh))
        return compiled

    compile_phases = loop.compile_phases
    monkeypatch.setattr(loop, "compile_phases", remember)
    shutil.copytree(begun, tmp_path / "run")
    assert not run.main(["run", *one_stage(tmp_path / "run")])
    assert {name: phase._cache_size() for name, phase in compiled.items()} == {"critic": 1, "student": 1}


def test_a_frozen_feature_network_judges(begun, tmp_path):
    """ADD with the finished denoiser's features: they stay as they are, the heads learn, the run has no denoising critic."""
    shutil.copytree(begun, tmp_path / "run")
    before = load_file(begun / "denoiser/weights.safetensors")
    assert not run.main(["run", *one_stage(tmp_path / "run", "add", steps=4)])
    after = load_file(tmp_path / "run/denoiser/weights.safetensors")
    assert all((before[name] == after[name]).all() for name in before)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines() if '"add"' in line]
    assert any("critic/accuracy" in row for row in rows) and any("student/deception" in row for row in rows)
    assert not any("critic_error" in key for row in rows for key in row)


def test_a_collapse_is_one_line(begun, tmp_path, capsys):
    """A student of one call begins at the mean; kept there, it is reported, once, after as many reports as it is given."""
    shutil.copytree(begun, tmp_path / "run")
    still = {"optimiser.learning_rate": 1e-12, "steps": 46}
    assert not run.main(["run", *one_stage(tmp_path / "run", **still)])
    lines = [line for line in capsys.readouterr().err.splitlines() if "collapsed" in line]
    assert len(lines) == 1 and "dmd2: step 40: the student has collapsed: its clips have" in lines[0], lines


@pytest.mark.parametrize(
    "method, change, message",
    [
        ("dmd2", {"options.source": "simulatd"}, "nearest: 'simulated'"),
        ("dmd2", {"options.normaliser": "clip"}, "normaliser 'clip' is not known: expected one of sample, batch, none"),
        ("dmd2", {"options.ratio": 0}, "ratio: expected a whole number"),
        ("dmd2", {"options.steps": 0}, "steps: expected a whole number from 1 up, got 0"),
        ("dmd2", {"options.start": -2.0, "options.steps": 4}, "a student of 4 steps"),
        ("dmd2", {"options.start": 1e9}, "start: expected a log-SNR from -10 to below 10"),
        ("dmd2", {"options.adversarial": -1.0}, "adversarial: expected a number from 0 up"),
        ("dmd2", {"options.r1": -1.0}, "r1: expected a number from 0 up"),
        ("dmd2", {"options.ratio": 5, "steps": 4}, "the student's first step is 5; nearest: 5, got 4"),
        ("add", {"options.distillation_weight": -2.5}, "distillation_weight: expected a number from 0 up"),
        ("dmd2", {"options.discriminative": 0.0}, "discriminative: expected a weight above 0"),
        ("dmd2", {"options.features": "teacher"}, "the exact teacher is no network"),
        ("dmd2", {"options.divergence": "kl"}, "divergence 'kl' is not known"),
        ("dmd2", {"heads.widht": 3}, "did you mean 'width'"),
        ("add", {"features": "denoisr"}, "'denoisr'"),
        ("add", {"options.features": "critic"}, "features"),
        ("sid", {"heads.width": 0}, "width"),
        ("moment_matching", {"heads.width": 3}, "has no discriminator"),
        ("rcm", {"options.normalise": "l2", "options.warmup": 1}, "normalise 'l2' is not known"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, method, change, message):
    assert run.main(["run", *arguments(tmp_path / "run", method, **change)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error, error
    assert not (tmp_path / "run" / method).exists()
