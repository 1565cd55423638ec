"""Every shipped config is one that the program takes, and a student of an exact teacher learns something."""

import pathlib

import pytest

from configs.mixture import students
from configs.mixture.base import SHAPES
from configs.moving_digits import classifier, quickstart, teacher
from configs.moving_digits import students as digit_students
from distill import METHODS
from experiments import config as configs
from experiments import mesh, run, stages
from experiments.data.exact import SHAPES as TRUE_SHAPES

STUDENTS = pathlib.Path(students.__file__)


def checked(config, tmp_path):
    stages.check(stages.Context(configs.plain(config), tmp_path, mesh.make()))


@pytest.mark.parametrize("module", [teacher, classifier, quickstart])
def test_moving_digits(module, tmp_path):
    checked(module.get_config(), tmp_path)


@pytest.mark.parametrize("method", students.STUDENTS)
def test_mixtures(method, tmp_path):
    for law in ("", *(f",{name}" for name in SHAPES)):
        checked(students.get_config(method + law), tmp_path)


@pytest.mark.parametrize("method", digit_students.STUDENTS)
def test_moving_digits_students(method, tmp_path):
    checked(digit_students.get_config(method), tmp_path)


def test_names_and_shapes_are_those_of_the_program():
    assert SHAPES == TRUE_SHAPES
    assert set(students.STUDENTS) <= set(METHODS)
    for wrong in ("progresive", "progressive,ring"):
        with pytest.raises(ValueError, match="expected one of"):
            students.get_config(wrong)


def test_a_student_of_the_exact_teacher_beats_ddim_at_one_call(tmp_path):
    """A tiny run of the whole chain: denoiser, consistency trajectories with an input that the denoiser lacks, the truth."""
    code = run.main([
        "run", f"--config={STUDENTS}:consistency_trajectory,a1d", f"--workdir={tmp_path}", "--config.data.size=4096",
        "--config.stages.denoiser.steps=150", "--config.stages.denoiser.batch_size=128",
        "--config.stages.student.steps=250", "--config.stages.student.batch_size=128",
    ])  # fmt: skip
    assert not code
    report = configs.read_json(tmp_path / "report.json")["metrics"]
    assert report["student_1"]["wasserstein"][2] < 0.7 * report["oracle_1"]["wasserstein"][1]


@pytest.mark.parametrize(
    "override, message",
    [
        ("--config.stages.student.teacher=denoser", "no stage before it; did you mean 'denoiser'"),
        ("--config.stages.student.student_steps=(8,4,1)", "must halve"),
        ("--config.stages.student.options.weight=snrr", "did you mean 'snr'"),
        ("--config.data.name=a1d", "shape"),
    ],
)
def test_wrong_pairs_are_refused_by_name(override, message, tmp_path, capsys):
    arguments = ["run", f"--config={STUDENTS}:progressive", f"--workdir={tmp_path}"]
    assert run.main([*arguments, override]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "method, change, message",
    [
        ("progressive", dict(guidance=2.0), "unconditional"),
        ("consistency_distillation", dict(teacher=None), "lacks the key 'teacher'"),
        ("easy_consistency", dict(method="truncated_consistency"), "lacks the key 'previous'"),
        ("tract", dict(student_steps=(16, 1)), "student_steps must be options.rounds"),
        ("shortcut", dict(options=dict(law="uniform_time", weight="velocity", finest=100)), "finest"),
    ],
)
def test_stages_that_cannot_be_are_refused_by_name(method, change, message, tmp_path):
    config = students.get_config(method)
    with config.unlocked():
        config.stages.student.update(change)
        if change.get("teacher", "") is None:
            del config.stages.student["teacher"]
    with pytest.raises(configs.ConfigError, match=message):
        checked(config, tmp_path)


def test_a_forward_derivative_refuses_fused_attention(tmp_path):
    config = quickstart.get_config()
    config.model.attention = "fused"
    with config.unlocked():
        config.stages.student = dict(
            kind="train", method="continuous_distillation", teacher=config.stages.student.teacher, steps=1, batch_size=4
        )
        del config.stages["evaluate"]
    with pytest.raises(configs.ConfigError, match="forward derivative"):
        checked(config, tmp_path)
