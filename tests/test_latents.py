"""A latent experiment end to end: an autoencoder, its latents, a teacher, its own clips, LADD, an evaluation of decoded clips;
and what it refuses by name.
"""

import json
import pathlib
import shutil

import numpy as np
import pytest

from diffusion import grids, solvers
from experiments import data, drawing, evaluation, generate, latents, mesh, publish, sample, stages, weights
from experiments import run as program
from experiments.config import ConfigError
from experiments.data.latents import Latents

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = str(ROOT / "tests/configs/tiny_latents.py")


def run(workdir, argument, *overrides):
    return program.main(["run", f"--config={CONFIG}:{argument}", f"--workdir={workdir}", *overrides])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(the autoencoder's workdir, the model's)."""
    folder = tmp_path_factory.mktemp("latents")
    assert run(folder / "pixels", "autoencoder") == 0
    assert run(folder / "model", f"model,{folder / 'pixels'}") == 0
    return folder / "pixels", folder / "model"


def test_a_latent_run_leaves_all_it_promises(runs):
    pixels, model = runs
    for name in ("autoencoder/weights.safetensors", "round_trip/report.json", "round_trip/comparison.webp",
                 "latents/train.array_record", "latents/test.array_record", "latents/latents.json"):  # fmt: skip
        assert (pixels / name).is_file(), name
    for name in (
        "synthetic/train.array_record",
        "student/weights.safetensors",
        "evaluate/comparison.png",
        "report.json",
    ):
        assert (model / name).is_file(), name
    found = json.loads((pixels / "round_trip/report.json").read_text())["metrics"]
    assert set(found) == {"psnr", "shimmer", "still", "seams_space", "seams_time"}
    assert all(
        np.isfinite(list(filter(None, m.values()))[:3]).all() for m in map(dict, found.values()) if m.pop("better", 1)
    )
    _, record = weights.load(model / "student/weights.safetensors")
    index = json.loads((pixels / "latents/latents.json").read_text())
    own = weights.fingerprint(pixels / "autoencoder/weights.safetensors")
    assert index["autoencoder"] == "../autoencoder/weights.safetensors" and index["fingerprint"] == own
    assert record["latent"] == {"autoencoder": "../../pixels/autoencoder/weights.safetensors", "fingerprint": own}


def test_memorisation_is_held_against_the_clips_that_were_encoded(runs):
    """The source's first, of which a copy is found; not any of all its clips."""
    config = json.loads((runs[1] / "config.json").read_text())
    known = evaluation.training_clips(config, {"num_training": 64})
    assert known is not None and len(known) == 64
    source = data.build(latents.pixels(config), "train")
    assert {clip.tobytes() for clip in known} == {source[i]["video"].tobytes() for i in range(64)}
    assert len(evaluation.training_clips(config, {})) == 64 and len(source) > 64
    # Of a single one, which may be all that was encoded, nothing can be measured.
    assert evaluation.training_clips(config, {"num_training": 1}) is None


def test_frames_per_second_are_those_that_are_decoded(runs):
    model = runs[1]
    config = json.loads((model / "config.json").read_text())
    source = data.build(config["data"], "test")
    params, network, _ = drawing.load_network(model / "student/weights.safetensors")
    table = solvers.ddim(network.schedule, grids.uniform_time(network.schedule, 1))
    codec = latents.of(source, model, "here")
    seconds, rate = drawing.speed(network, params, table, source, 1.0, None, codec, None, None)
    assert source.shape[0] == 3 and seconds * rate == pytest.approx(5)


def test_a_stage_made_from_what_is_gone_is_named(runs, tmp_path, capsys):
    """Its clips, too, are what a student is made from."""
    workdir = tmp_path / "run"
    shutil.copytree(runs[1], workdir)
    shutil.rmtree(workdir / "synthetic")
    assert run(workdir, f"model,{runs[0]}") == 2
    assert (
        "holds stage 'student', which was made from a stage 'synthetic' that is no longer there"
        in capsys.readouterr().err
    )


def test_samples_are_decoded_clips(runs, tmp_path):
    _, model = runs
    arguments = ["--weights=student", f"--workdir={model}", "--steps=2", "--solver=consistency", "--num=4"]
    assert sample.main([*arguments, f"--out={tmp_path}"]) == 0
    clips = np.load(tmp_path / "samples.npy")
    assert clips.shape == (4, 5, 16, 16, 1) and clips.dtype == np.uint8


def test_a_moved_autoencoder_can_be_named(runs, tmp_path, capsys):
    pixels, model = runs
    moved = tmp_path / "moved.safetensors"
    shutil.copy(pixels / "autoencoder/weights.safetensors", moved)
    arguments = ["--weights=student", f"--workdir={model}", "--steps=1", "--num=2", f"--out={tmp_path / 'out'}"]
    assert sample.main([*arguments, f"--autoencoder={moved}"]) == 0
    other = f"--autoencoder={pixels / 'classifier/weights.safetensors'}"
    assert sample.main([*arguments, other]) == 2 and "holds a classifier, not an autoencoder" in capsys.readouterr().err


def test_what_is_moved_together_leads_to_its_autoencoder(runs, tmp_path, monkeypatch):
    """As from another mount; so do weights that are published from there. What is moved alone is told what to do."""
    pixels, model = (shutil.copytree(folder, tmp_path / folder.name) for folder in runs)
    moved = str(pixels / "autoencoder/weights.safetensors")

    def found(folder):
        codec = latents.of(Latents(str(folder)), tmp_path, "config.data")
        return codec and codec.reference

    assert found(pixels / "latents") == found(model / "synthetic") == moved
    *_, record = drawing.load_network(weights.find("student", model))
    assert record["latent"]["autoencoder"] == moved
    monkeypatch.setattr(weights, "PRETRAINED", tmp_path / "pretrained")
    assert publish.main([f"--workdir={model}", "--stage=student", "--name=tiny"]) == 0
    *_, record = drawing.load_network(weights.find("pretrained:tiny", tmp_path))
    assert record["latent"]["autoencoder"] == moved
    alone, index = tmp_path / "alone", tmp_path / "alone/latents.json"
    shutil.move(pixels / "latents", alone)
    with pytest.raises(
        ConfigError, match=f"{index} has the autoencoder of these latents at .* or their path into that"
    ):
        found(alone)
    index.write_text(json.dumps(json.loads(index.read_text()) | {"autoencoder": moved}))
    assert found(alone) == moved


def changed(folder, argument, *statements):
    """A config file: tiny_latents with some statements after it."""
    lines = [
        "from tests.configs import tiny_latents", "def get_config():",
        f"    config = tiny_latents.get_config({argument!r})", *(f"    {line}" for line in statements), "    return config",
    ]  # fmt: skip
    path = folder / "changed.py"
    path.write_text("\n".join(lines))
    return f"--config={path}"


def refused(capsys, folder, argument, *statements):
    """What the program says of such a config; nothing was trained."""
    workdir = folder / "run"
    assert program.main(["run", changed(folder, argument, *statements), f"--workdir={workdir}"]) == 2
    assert not any(workdir.rglob("weights*"))
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "statement, said",
    [
        ("config.stages.evaluate.samplers.teacher_2.threshold = 'static'", "latents have no range"),
        ("config.stages.evaluate.samplers.teacher_2.threshold = 'dynamik'", "did you mean 'dynamic'?"),
        ("config.stages.evaluate.classifier = 'pretrained:moving_digits_64/classifier'",
         "takes frames of shape (64, 64, 1), the clips behind these latents have (16, 16, 1)"),
        ("config.stages.student.method = 'add'; config.stages.student.features = 'pretrained:moving_digits/classifier'; "
         "config.stages.student.options = dict(steps=2)", "is a classifier of frames of pixels"),
        ("config.stages.student.options = dict(steps=2, head_start=config.stages.student.steps)",
         "config.stages.student.steps: with these options the student's first step is "),
        ("config.stages.student.steps = 5; config.stages.student.options = dict(steps=2, ratio=3, head_start=3)",
         "the student's first step is 6; nearest: 6, got 5"),
        ("config.stages.student.clips = 'teacher'", "a stage of kind 'generate' is needed"),
        ("config.stages.student.clips = 'synthetik'", "did you mean 'synthetic'?"),
        ("config.stages.student.batch_size = 64", "batch_size asks for 64 clips, stage 'synthetic' makes 32; nearest: 32"),
        ("config.stages.student.clips = config.data.path; config.stages.student.batch_size = 128",
         "config.stages.student.batch_size asks for 128 clips, the train split has 64"),
        ("config.stages.teacher.init = 'pretrained:moving_digits/teacher'",
         "config.stages.teacher.init 'pretrained:moving_digits/teacher' does not fit: its model."),
        ("config.stages.student.init = 'pretrained:moving_digits_64/teacher'", "config.stages.student.init 'pretrained:"),
        ("config.stages.latents = dict(kind='encode', autoencoder='x')", "config.data are latents already"),
        ("config.stages.more = dict(kind='autoencoder', steps=1, batch_size=8)", "learns from clips of pixels"),
        ("config.data.path = '/nowhere'", "no latents in /nowhere"),
        ("config.model.shape = (3, 4, 4, 2)", "config.model.shape is (3, 4, 4, 2)"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_latents_is_refused_by_name(runs, tmp_path, capsys, statement, said):
    assert said in refused(capsys, tmp_path, f"model,{runs[0]}", statement)


def test_latents_that_are_not_finite_are_no_data(runs, tmp_path, monkeypatch):
    model = runs[1]
    config = json.loads((model / "config.json").read_text())
    workdir = tmp_path / "run"
    shutil.copytree(model / "teacher", workdir / "teacher")
    monkeypatch.setattr(drawing, "drawn", lambda *given: np.full((16, 3, 4, 4, 3), np.nan, np.float32))
    context = stages.Context(config, workdir, mesh.make())
    with pytest.raises(FloatingPointError, match="samples are not finite with calls at log-SNR"):
        generate.run(context, "synthetic", config["stages"]["synthetic"])
    assert not (workdir / "synthetic/latents.json").exists()


ALONE = (
    "del config.stages.teacher, config.stages.synthetic, config.stages.evaluate",
    "del config.stages.student.clips",
)
"""The student's stage only."""


def test_a_teacher_of_pixels_is_refused(runs, tmp_path, capsys):
    teacher = "config.stages.student.teacher = 'pretrained:moving_digits/teacher'"
    assert "does not fit" in refused(capsys, tmp_path, f"model,{runs[0]}", *ALONE, teacher)


@pytest.mark.parametrize(
    "statement, said",
    [
        ("config.stages.autoencoder.model.shape = (5, 8, 8, 1)", "config.data gives clips of shape (5, 16, 16, 1)"),
        ("config.stages.autoencoder.model.patch = 5", "do not divide by patch"),
        ("config.stages.autoencoder.model.chanels = 5", "did you mean 'channels'?"),
        ("config.stages.autoencoder.init = 'pretrained:moving_digits_64/autoencoder'", "does not fit: its model."),
        ("config.stages.autoencoder.options.frames = 6", "frames: expected a whole number from 1 to the clip's 5"),
        ("config.stages.latents.train_clips = 0", "train_clips: expected 1 to"),
        ("config.stages.latents.autoencoder = 'autoencoda'", "did you mean 'autoencoder'?"),
    ],
)  # fmt: skip
def test_mistakes_in_an_autoencoders_run(runs, tmp_path, capsys, statement, said):
    assert said in refused(capsys, tmp_path, "autoencoder", statement)


def test_another_autoencoders_latents_are_refused(runs, tmp_path, capsys):
    """By the fingerprint of its weights, wherever they lie."""
    pixels, model = runs
    folder = tmp_path / "pixels"
    shutil.copytree(pixels, folder)
    params, record = weights.load(folder / "autoencoder/weights.safetensors")
    weights.save(folder / "autoencoder/weights.safetensors", params, record | {"seed": 99})
    index = json.loads((folder / "latents/latents.json").read_text())
    index["autoencoder"] = str(folder / "autoencoder/weights.safetensors")
    (folder / "latents/latents.json").write_text(json.dumps(index))
    assert run(tmp_path / "run", f"model,{folder}") == 2
    assert "must be encoded again" in capsys.readouterr().err
    index["fingerprint"] = weights.fingerprint(folder / "autoencoder/weights.safetensors")
    (folder / "latents/latents.json").write_text(json.dumps(index))
    teacher = f"config.stages.student.teacher = '{model}/teacher/weights.safetensors'"
    assert "its weights are a model of latents of" in refused(capsys, tmp_path, f"model,{folder}", *ALONE, teacher)
