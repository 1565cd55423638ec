"""The program end to end: stages, resume bit for bit after SIGKILL and SIGTERM, and one clear line for every mistake."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import config as configs
from experiments import evaluation, mesh, stages, weights
from experiments import run as program
from experiments.config import ConfigError
from tests.configs import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = str(ROOT / "tests/configs/tiny.py")


# Every process compiles the same few programs: the cache keeps this file's many starts short.
CACHE = tempfile.mkdtemp()
CACHED = {
    "JAX_COMPILATION_CACHE_DIR": CACHE,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


@pytest.fixture(scope="module", autouse=True)
def _remove_cache():
    yield
    shutil.rmtree(CACHE)


def start(workdir, *arguments, config=TINY):
    command = [sys.executable, "-m", "experiments.run", f"--config={config}", f"--workdir={workdir}", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | CACHED, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    output, _ = process.communicate(timeout=400)
    return process.returncode, output


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """One whole run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    code, output = finish(start(workdir))
    assert code == 0, output
    return workdir, output


def same_weights(one, other):
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


WEIGHTS = ["teacher/weights.safetensors", *(f"student/weights@{n}.safetensors" for n in (4, 2, 1))]


def test_a_run_leaves_all_it_promises(undisturbed):
    workdir, output = undisturbed
    for name in (*WEIGHTS, "config.json", "metrics.jsonl", "report.json", "evaluate/report.md"):
        assert (workdir / name).is_file(), name
    for name in (
        "comparison.png",
        "comparison.webp",
        "slices.png",
        "quality.png",
        "samples_student_1.png",
        "grid_student_1.png",
        "loss.png",
        "clips.npz",
    ):
        assert (workdir / "evaluate" / name).stat().st_size > 200, name
    page = (workdir / "report.html").read_text()  # written after the last stage: it plays that stage's clips
    assert page.count("<canvas") >= 4 and "was not written" not in output
    report = json.loads((workdir / "report.json").read_text())
    assert list(report["samplers"]) == ["teacher_4", "student_2", "student_1"]
    assert report["samplers"]["teacher_4"]["evaluations"] == 8  # 4 calls, guided: two evaluations each
    assert report["samplers"]["student_1"]["evaluations"] == 1
    for sampler in report["samplers"].values():
        assert sampler["seconds_per_clip"] > 0
        assert np.isfinite(sampler["metrics"]["frechet_clip"]["value"])
        assert sampler["metrics"]["frechet_clip"]["floor"] is not None
        assert 0.7 < sampler["metrics"]["memorisation"]["floor"] < 1.4 < sampler["metrics"]["memorisation"]["value"]
    # By weights, not by sampler; a network that has learnt nothing yet answers v = 0, whose error is that of the clips.
    assert list(report["loss_by_level"]) == ["teacher", "student@2", "student"]
    for found in report["loss_by_level"].values():
        assert list(found) == ["-8", "-6", "-4", "-2", "0", "2", "4", "6", "8"]
        assert all(0 < m["low"] < m["value"] < m["high"] < 2 for m in found.values())
    assert "| loss at log-SNR -8 ↓ |" in (workdir / "evaluate/report.md").read_text()
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"teacher", "student", "classifier"}
    assert [row["step"] for row in rows if row["stage"] == "teacher"] == [2, 4, 6]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert "student_2" in output and "left" in output


def test_a_finished_run_is_skipped(undisturbed):
    workdir, _ = undisturbed
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*.safetensors")}
    code, output = finish(start(workdir))
    assert code == 0 and output.count("already done") == 4
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob("*.safetensors")}


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_killed_at_any_moment_a_run_ends_bit_for_bit_the_same(undisturbed, tmp_path, kind):
    """Two kills at random moments of the training stages; then to the end."""
    workdir = tmp_path / "run"
    chance = random.Random(int(kind))
    for _ in range(2):
        process = start(workdir)
        # From before the first step to well into the rounds.
        time.sleep(chance.uniform(4, 18))
        process.send_signal(kind)
        code, output = finish(process)
        assert code in ((-signal.SIGKILL,) if kind == signal.SIGKILL else (0, -signal.SIGTERM)) or "done" in output
    code, output = finish(start(workdir))
    assert code == 0, output
    for name in WEIGHTS:
        same_weights(undisturbed[0] / name, workdir / name)
    steps = [
        json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines() if '"teacher"' in line
    ]
    assert steps == sorted(set(steps)), "metrics of lost steps must be cut back"


def test_resume_in_the_middle_of_a_round(undisturbed, tmp_path):
    """The state that a kill leaves, made by hand: the run as it stood after the teacher and 8 of 9 student steps."""
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    for path in (workdir / "student").glob("weights*"):
        path.unlink()
    (workdir / "student/done.json").unlink()
    steps = sorted(int(p.name) for p in (workdir / "student/checkpoints").iterdir() if p.name.isdigit())
    shutil.rmtree(workdir / "student/checkpoints" / str(steps[-1]))
    code, output = finish(start(workdir))
    assert code == 0 and f"resumed at step {steps[-2]} of 9" in output, output
    same_weights(undisturbed[0] / "student/weights.safetensors", workdir / "student/weights.safetensors")


def test_an_evaluation_goes_on_with_the_sampler_that_it_was_at(undisturbed, tmp_path, monkeypatch, capsys):
    """A full disk while the third of three is drawn: the two before are kept, and not drawn again."""
    workdir, drawn, draw = tmp_path / "run", [], evaluation.drawing.draw
    shutil.copytree(undisturbed[0], workdir)
    shutil.rmtree(workdir / "evaluate")

    def interrupted(network, params, table, *rest, **options):
        drawn.append(table.nfe)
        if len(drawn) == 3:
            raise OSError(28, "No space left on device", "clips")
        return draw(network, params, table, *rest, **options)

    monkeypatch.setattr(evaluation.drawing, "draw", interrupted)
    argv = ["run", f"--config={TINY}", f"--workdir={workdir}"]
    assert program.main(argv) == 4 and drawn == [4, 2, 1]
    row = workdir / "evaluate/rows/teacher_4.npz"
    mark = json.loads(str(np.load(row)["row"]))["mark"]
    kept = evaluation.recall(row, mark)
    assert kept is not None and weights.fingerprint(workdir / WEIGHTS[0]) in mark
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(row.read_bytes()[:-9])
    assert evaluation.recall(damaged, "") is None and evaluation.recall(tmp_path / "none.npz", "") is None
    assert evaluation.recall(row, "other weights") is None
    assert program.main(argv) == 0 and drawn == [4, 2, 1, 1]
    assert "teacher_4 (1/3): drawn before" in capsys.readouterr().err
    assert not (workdir / "evaluate/rows").exists()
    reports = [json.loads((path / "report.json").read_text())["samplers"] for path in (undisturbed[0], workdir)]
    assert reports[1]["teacher_4"].pop("seconds_per_clip") == kept.seconds
    for name, there in reports[0].items():
        assert (
            there["metrics"] == reports[1][name]["metrics"] and there["evaluations"] == reports[1][name]["evaluations"]
        )
    first, second = (np.load(path / "evaluate/clips.npz") for path in (undisturbed[0], workdir))
    assert set(first) == set(second) and all(np.array_equal(first[row], second[row]) for row in first)


def test_a_checkpoint_of_another_run_is_not_gone_on_from(undisturbed, tmp_path):
    """As where a folder was emptied under a run that then saved: no config is left to tell that its steps were others."""
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    for path in [*(workdir / "student").glob("weights*"), *(workdir / "student").glob("*.json")]:
        path.unlink()
    shutil.rmtree(workdir / "evaluate")
    code, output = finish(start(workdir, "--stage=student", "--config.stages.student.steps=5"))
    assert code == 2 and "is of another run, record.train_steps: 3 -> 5: remove the stage's folder" in output, output
    assert list((workdir / "student/checkpoints").glob("[0-9]*"))


def test_a_damaged_checkpoint_is_named_and_kept_aside(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    for path in [*(workdir / "student").glob("weights*"), workdir / "student/done.json"]:
        path.unlink()
    folder = workdir / "student/checkpoints"
    newest = max((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    for path in newest.rglob("*"):
        if path.is_file() and path.stat().st_size > 100:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, output = finish(start(workdir, "--stage=student"))
    assert code == 0, output
    assert f"{newest.name}.damaged" in output and (folder / f"{newest.name}.damaged").is_dir()
    same_weights(undisturbed[0] / "student/weights.safetensors", workdir / "student/weights.safetensors")


def test_damaged_weights_are_named(undisturbed, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    (workdir / "student/done.json").unlink()
    path = workdir / "teacher/weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert program.main(["run", f"--config={TINY}", f"--workdir={workdir}"]) == 2
    assert f"{path} is damaged" in capsys.readouterr().err
    path.unlink()
    assert program.main(["run", f"--config={TINY}", f"--workdir={workdir}"]) == 2
    said = capsys.readouterr().err
    assert f"that stage is marked as done: restore them, or remove {path.parent} and what was made of it" in said


def test_a_damaged_mark_of_a_finished_stage_is_named(undisturbed, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    mark = workdir / "teacher/done.json"
    mark.write_text(mark.read_text()[:10])
    assert program.main(["run", f"--config={TINY}", f"--workdir={workdir}"]) == 2
    assert str(mark) in capsys.readouterr().err


def test_what_a_run_leaves_others_may_read(undisturbed):
    """As the umask says."""
    written = [undisturbed[0] / name for name in ("teacher/weights.safetensors", "teacher/done.json")]
    assert len({path.stat().st_mode for path in written}) == 1


def override(**keys):
    return [f"--config.{key.replace('__', '.')}={value}" for key, value in keys.items()]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.stages.teacher.stpes=3"], ["stpes", "steps"]),
        (override(schedule__kind="vp_cosin"), ["vp_cosin", "vp_cosine"]),
        (override(prediction="w"), ["prediction", "'w'"]),
        (override(stages__teacher__method="denoise"), ["denoise", "denoising"]),
        (override(stages__student__teacher="teachr"), ["teachr", "teacher"]),
        (override(stages__student__teacher="pretrained:nothing"), ["no pretrained weights 'nothing'"]),
        (override(data__frames=4), ["(4, 16, 16, 1)", "(3, 16, 16, 1)"]),
        (override(data__kind="moving_digit"), ["moving_digit", "moving_digits"]),
        (override(stages__evaluate__num_clips=10), ["num_clips 10", "batch_size 8"]),
        (override(stages__evaluate__num_clips=0), ["evaluate.num_clips must be at least 2, got 0"]),
        (override(stages__evaluate__num_reference=500), ["ask for 516 clips, the test split has"]),
        (override(stages__evaluate__bootstrap=-1), ["evaluate.bootstrap must be at least 1, got -1"]),
        (override(stages__evaluate__samplers__student_2__weights="student@3"), ["student@4, student@2, student@1"]),
        (override(stages__evaluate__samplers__teacher_4__weights="teacher@best"), ["its last weights only"]),
        (override(stages__evaluate__samplers__teacher_4__guidance="nan"), ["teacher_4.guidance", "finite", "nan"]),
        (override(stages__classifier__model__widths=(4, 0, 4)), ["config.stages.classifier.model", "widths"]),
        (override(stages__teacher__batch_size=520), ["teacher.batch_size asks for 520 clips", "has 512; nearest: 512"]),
        (override(stages__teacher__optimiser__learning_rate=-1.0), ["teacher.optimiser", "a number above 0, got -1.0"]),
        (override(seed=-1), ["config.seed must be at least 0"]),
        (["--stage=studnt"], ["studnt", "student"]),
        (["--workdr=x"], ["workdr"]),
        (["extra"], ["extra"]),
    ],
)
def test_a_mistake_is_one_clear_line_before_any_work(arguments, expected, tmp_path, capsys):
    workdir = tmp_path / "run"
    code = program.main(["run", f"--config={TINY}", f"--workdir={workdir}", *arguments])
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    for word in expected:
        assert word in error
    assert not list(workdir.glob("*/checkpoints")), "nothing may have begun"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (dict(num_training=-1), "num_training (0: no memorisation) must be at least 0, got -1"),
        (dict(num_training=600), "num_training asks for 600 clips, the train split has 512; nearest: 512"),
        (dict(loss_levels=3.0), r"loss_levels must be numbers, log-SNRs as [-4, 0, 4]"),
        (dict(loss_levels=[0.0, float("inf")]), "loss_levels must be numbers"),
    ],
)
def test_what_judges_beside_the_samples_is_checked(given, expected):
    config = tiny.get_config().to_dict()
    with pytest.raises(ConfigError, match=re.escape(expected)):
        evaluation.check(config["stages"]["evaluate"] | given, config, "config.stages.evaluate")
    for nothing in (dict(num_training=0), dict(loss_levels=[])):
        evaluation.check(config["stages"]["evaluate"] | nothing, config, "config.stages.evaluate")
    assert evaluation.training_clips(config, dict(num_training=0)) is None
    assert len(evaluation.training_clips(config, {})) == 512


MANY = dict(num_clips=8, num_reference=8, batch_size=8, classifier="classifier")


@pytest.mark.parametrize(
    "block, message",
    [
        (dict(kind="round_trip", weights="teacher", num_clips=8), "weights of kind 'denoiser'; expected 'autoencoder'"),
        (
            dict(kind="continue", weights="classifier", history=1, frames=3, steps=2, **MANY),
            "'classifier', weights of kind 'classifier'; expected 'denoiser'",
        ),
        (dict(init="classifier"), "refers to 'classifier', weights of kind 'classifier'; expected 'denoiser'"),
        (dict(init="pretrained:moving_digits/classifier"), "weights of kind 'classifier'; expected 'denoiser'"),
        (
            dict(kind="round_trip", weights="nets", num_clips=999_999),
            r"num_clips asks for 999999 clips, the test split has",
        ),
        (
            dict(kind="evaluate", samplers={"real": dict(weights="teacher", steps=2)}, **MANY),
            "samplers.real: the table has a row 'real' of its own",
        ),
        (
            dict(kind="times", weights="teacher", counts=[2], guidance=2.0, **MANY),
            "guidance: the network is unconditional",
        ),
        (
            dict(kind="continue", weights="teacher", history=1, frames=3, steps=2, guidance=2.0, **MANY),
            "guidance: the network is unconditional",
        ),
        (dict(seed_offset=-4), "last.seed_offset must be at least -3 and at most 4294967292, got -4"),
        (
            dict(kind="classifier", steps=1, batch_size=8, model=dict(num_classes=5)),
            "last.model.num_classes is 5, config.data has 10: a classifier learns the classes of the clips",
        ),
        (
            dict(kind="classifier", steps=1, batch_size=8, model=dict(shape=(8, 8, 1))),
            r"last.model.shape is \(8, 8, 1\), the frames of config.data are \(16, 16, 1\)",
        ),
        (
            dict(kind="classifier", steps=1, batch_size=8, options=dict(smoothing=3.0)),
            "last.options: expected frames_per_clip from 1 up and smoothing in",
        ),
        (
            dict(kind="cascade", samplers={"a": dict(base=dict(weights="teacher", steps=2))}, of_real="a", **MANY),
            r"of_real must be names of rows, as \('teachers',\), got 'a'",
        ),
        (
            dict(
                kind="evaluate",
                **MANY,
                samplers={"a": dict(weights="teacher", steps=2, threshold="experiments.config:choose")},
            ),
            "samplers.a.threshold 'experiments.config:choose' is not known",
        ),
        (
            dict(options=dict(law=dict(kind="uniform_time", draw="monotone"))),
            r"options.law: draw 'monotone': expected a level per frame, .* got shape \(2,\); options.per_frame",
        ),
    ],
)
def test_what_a_stage_cannot_do_is_refused_before_any_work(block, message, tmp_path):
    config = configs.plain(tiny.get_config())
    teacher = config["stages"]["teacher"]
    last = block if "kind" in block else teacher | block
    config["stages"] = dict(classifier=config["stages"]["classifier"], nets=teacher, teacher=teacher, last=last)
    config["model"]["num_classes"] = 0
    with pytest.raises(ConfigError, match=message):
        stages.check(stages.Context(config, tmp_path, mesh.make()))


def test_a_missing_config_and_a_missing_workdir(tmp_path, capsys):
    assert program.main(["run", "--config=nowhere.py", f"--workdir={tmp_path}"]) == 2
    assert "nowhere.py" in capsys.readouterr().err
    assert program.main(["run", f"--config={TINY}"]) == 2
    assert "--workdir" in capsys.readouterr().err


def test_a_misspelt_key_in_the_config_file(tmp_path, capsys):
    path = tmp_path / "wrong.py"
    path.write_text(
        pathlib.Path(TINY).read_text().replace("optimiser=dict(learning_rate", "optimizer=dict(learning_rate")
    )
    assert program.main(["run", f"--config={path}", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "'optimizer'; did you mean 'optimiser'" in capsys.readouterr().err


def test_a_workdir_of_another_config_is_refused_and_left_alone(undisturbed, capsys):
    workdir, _ = undisturbed
    before = sorted((p, p.stat().st_mtime_ns) for p in workdir.rglob("*.json"))
    assert program.main(["run", f"--config={TINY}", f"--workdir={workdir}", "--config.seed=4"]) == 2
    error = capsys.readouterr().err
    assert "another config" in error and "config.seed: 3 -> 4" in error
    assert before == sorted((p, p.stat().st_mtime_ns) for p in workdir.rglob("*.json"))


def test_what_was_made_from_a_stage_does_not_outlive_it(undisturbed, tmp_path, capsys):
    """Else the report would be of students of a teacher that nobody has any more."""
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    argv = ["run", f"--config={TINY}", f"--workdir={workdir}"]
    shutil.rmtree(workdir / "teacher")
    for left in ("student", "evaluate"):
        assert program.main(argv) == 2
        error = capsys.readouterr().err
        assert (
            f"holds stage '{left}', which was made from a stage 'teacher'" in error and f"folder of '{left}'" in error
        )
        assert not (workdir / "teacher").exists()
        shutil.rmtree(workdir / left)


def test_a_second_run_in_the_same_workdir(tmp_path, capsys):
    with program.exclusively(tmp_path):
        assert program.main(["run", f"--config={TINY}", f"--workdir={tmp_path}"]) == 2
    assert "another run is working" in capsys.readouterr().err


def test_a_workdir_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert program.main(["run", f"--config={TINY}", f"--workdir={tmp_path / 'file' / 'run'}"]) == 2
    assert "can't write to workdir" in capsys.readouterr().err


def test_a_missing_data_folder_and_an_unreadable_clip(tmp_path, capsys):
    path = tmp_path / "folder.py"
    text = pathlib.Path(TINY).read_text()
    line = next(line for line in text.splitlines() if "config.data =" in line)
    path.write_text(
        text.replace(
            line, f"    config.data = ConfigDict(dict(kind='video_folder', path='{tmp_path}/clips', frames=3, size=16))"
        )
    )
    arguments = ["run", f"--config={path}", f"--workdir={tmp_path / 'run'}"]
    assert program.main(arguments) == 2
    error = capsys.readouterr().err
    assert "clips" in error and error.count("\n") == 1
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/broken.mp4").write_bytes(b"not a video")
    assert program.main(arguments) == 2
    assert "broken.mp4" in capsys.readouterr().err


def test_a_non_finite_loss_stops_the_stage_and_names_the_step(tmp_path, capsys):
    arguments = ["run", f"--config={TINY}", f"--workdir={tmp_path / 'run'}", "--stage=teacher"]
    assert program.main([*arguments, "--config.stages.teacher.optimiser.learning_rate=1e30"]) == 3
    error = capsys.readouterr().err
    assert "not finite at step" in error and "last good checkpoint" in error
    assert not (tmp_path / "run/teacher/weights.safetensors").exists()


def test_the_environment_has_no_say(undisturbed, tmp_path):
    """Another working directory, other environment variables: the same weights."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "77"}
    command = [sys.executable, "-m", "experiments.run", f"--config={TINY}", "--workdir=run", "--stage=teacher"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    same_weights(undisturbed[0] / WEIGHTS[0], tmp_path / "run" / WEIGHTS[0])


def test_an_evaluation_alone_names_missing_weights_before_it_draws(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation.metrics, "describe", lambda *given, **more: pytest.fail("work has begun"))
    (tmp_path / "run/teacher").mkdir(parents=True)
    assert program.main(["run", f"--config={TINY}", f"--workdir={tmp_path / 'run'}", "--stage=evaluate"]) == 2
    assert re.search(r"error: '\w+(@2)?' is missing or unfinished", capsys.readouterr().err)
    assert not (tmp_path / "run/evaluate").exists(), (
        "it never began, and must not stand in the way of the stages before it"
    )


def test_what_a_config_file_raises_is_told_with_its_place(tmp_path, capsys):
    wrong = "configs/moving_digits/students.py:tracct"
    assert program.main(["run", f"--config={wrong}", f"--workdir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"error: .*students\.py, line \d+: ValueError: unknown student 'tracct', expected one of .*reflow\n", said
    )


def test_rounds_that_a_stage_did_not_leave_are_named_with_the_nearest(undisturbed):
    with pytest.raises(weights.ConfigError, match="'student@3' is missing .*did you mean 'student@"):
        weights.find("student@3", undisturbed[0])
    with pytest.raises(weights.ConfigError, match="there is no folder .*nowhere"):
        weights.find("student", undisturbed[0] / "nowhere")


def test_a_value_may_stand_apart_from_its_flag(tmp_path):
    apart = ["run", "--config", str(TINY), "--workdir", str(tmp_path), "--config.seed", "3"]
    assert program.parse(apart) == program.parse(
        ["run", f"--config={TINY}", f"--workdir={tmp_path}", "--config.seed=3"]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "from ml_collections import ConfigDict\ndef get_config():\n    c = ConfigDict(dict(a=dict(b=1)))\n    c.a = [1]",
            "wrong.py, line 4: TypeError: Could not override field 'a'",
        ),
        (
            "from ml_collections import ConfigDict\nimport numpy as np\n"
            "def get_config():\n    return ConfigDict(dict(a=dict(b=(1, np.zeros(2)))))",
            "config.a.b[1]: a config holds numbers, texts, lists and blocks of them, got a ndarray: array([0., 0.])",
        ),
        ("def get_config():\n    return {}", "get_config() is to return an ml_collections.ConfigDict, got a dict"),
        ("x = undefined", "line 1: NameError: name 'undefined' is not defined"),
        ("def get_config():\n    return 1 / 0", "line 2: ZeroDivisionError: division by zero"),
        ('def get_config():\n    return {}["seed"]', "line 2: KeyError: seed"),
        ("x = (", "error: '(' was never closed (wrong.py, line 1)"),
    ],
)
def test_a_config_file_may_raise_anything(text, expected, tmp_path, capsys):
    (tmp_path / "wrong.py").write_text(text)
    assert program.main(["run", f"--config={tmp_path}/wrong.py", f"--workdir={tmp_path}/run"]) == 2
    assert expected in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_an_empty_workdir_is_none_and_a_process_has_an_index_below_their_count(tmp_path, capsys):
    assert program.main(["run", f"--config={TINY}", "--workdir="]) == 2
    assert "usage" in capsys.readouterr().err
    assert program.main(["run", f"--config={TINY}", f"--workdir={tmp_path}", "--processes=localhost:1,2,2"]) == 2
    assert "the index below the count" in capsys.readouterr().err
