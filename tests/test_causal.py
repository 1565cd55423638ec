"""A causal student of a teacher that is another network: by config alone, streamed, and refused by name where it can't be."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.moving_digits.base import base
from diffusion import frames, grids, sampling, schedules, solvers
from distill import Network
from experiments import config as configs
from experiments import drawing, mesh, run, stages, training, weights
from models import build
from tests.configs import tiny_causal

pytestmark = pytest.mark.usefixtures("quick_compilation")

UNET = dict(kind="unet", shape=(4, 16, 16, 1), num_classes=10, widths=(4, 8), blocks=(1, 1), embed=8, head_dim=8)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A U-Net that predicts x0, in a file."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    schedule = schedules.vp_cosine()
    record = {
        "format": 1, "kind": "denoiser", "model": json.loads(json.dumps(UNET)), "prediction": "x0",
        "schedule": schedules.record(schedule), "shape": [4, 16, 16, 1], "num_classes": 10, "latent": None,
    }  # fmt: skip
    weights.save(path, build(UNET).init(jax.random.key(0)), record)
    return str(path)


def written(folder, teacher, *statements):
    """The tiny config, with some statements after it, as a file."""
    lines = [
        "from tests.configs import tiny_causal",
        "def get_config():",
        f"    config = tiny_causal.get_config({teacher!r})",
    ]
    path = folder / "changed.py"
    path.write_text("\n".join([*lines, *(f"    {line}" for line in statements), "    return config"]))
    return f"--config={path}"


def test_a_causal_student_of_a_teacher_of_another_network(teacher, tmp_path):
    folder = tmp_path / "run"
    assert run.main(["run", written(tmp_path, teacher), f"--workdir={folder}"]) == 0
    report = json.loads((folder / "report.json").read_text())["samplers"]
    for row, calls in {"streamed": 6, "whole": 2}.items():
        assert report[row]["evaluations"] == calls
        assert report[row]["ms to the first frames"] > 0 < report[row]["frames per second"]
    assert report["whole"]["ms to the first frames"] * report["whole"]["frames per second"] == pytest.approx(4e3)
    text = (folder / "evaluate/report.md").read_text()
    assert "ms to the first frames" in text and "frames per second" in text
    params, record = weights.load(folder / "student/weights.safetensors")
    assert (
        record["model"]["kind"] == "dit"
        and params.keys() == weights.load(folder / "causal/weights.safetensors")[0].keys()
    )


@pytest.mark.parametrize(
    "statement, said",
    [
        ("del config.stages.student.init", "lacks the key 'init': teacher '"),
        ("config.stages.student.method = 'progressive'; config.stages.student.student_steps = [2]; "
         "del config.stages.student.options", "becomes the teacher of the next round"),
        ("config.schedule.kind = 'flow'", "does not fit: its schedule.scaling is"),
        ("config.model.num_classes = 0; del config.stages.evaluate", "does not fit: its num_classes is 10"),
        ("config.stages.student.teacher_forcing = True", "judges clips that have a past of their own"),
        ("config.model.causal = False", "sees all frames at once; a causal one is a 'dit' with causal=True"),
        ("config.stages.evaluate.samplers.whole.stream = 2", "sees all frames at once; a stream needs"),
        ("config.stages.evaluate.samplers.streamed.stream = 1", "in whole blocks of the network's 2, got 1"),
        ("config.stages.evaluate.samplers.streamed.stream = 3", "a divisor of the clip's 4 frames"),
        ("config.data.frames = 16; del config.model; config.stages = dict(evaluate=config.stages.evaluate); "
         "config.stages.evaluate.samplers = dict(longer=dict(weights='pretrained:moving_digits/causal_student', steps=2, "
         "stream=16))", "longer.stream must be at least 1 and at most 8"),
        ("config.stages = dict(evaluate=config.stages.evaluate); del config.schedule", "config lacks the key 'schedule'"),
        ("config.stages.evaluate.samplers.streamed.matrix = 'full'", "remove one of the keys 'stream' and 'matrix'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(teacher, tmp_path, capsys, statement, said):
    folder = tmp_path / "run"
    assert run.main(["run", written(tmp_path, teacher, statement), f"--workdir={folder}"]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error, error
    assert not any(folder.rglob("weights*"))


def test_a_teacher_that_is_the_students_network_changes_nothing(tmp_path):
    """Only the record decides, and inputs that it lacks are no other network."""
    config = configs.plain(tiny_causal.get_config("pretrained:moving_digits/teacher"))
    config["data"]["frames"] = 8
    config["model"] = {**configs.plain(base())["model"], "cond": ["logsnr_to"]}
    context = stages.Context(config, tmp_path, mesh.make())
    block = {**config["stages"]["student"], "init": None}
    assert training.plan(context, "student", block)[1].teacher is None
    config["prediction"] = "x0"
    with pytest.raises(configs.ConfigError, match="lacks the key 'init'"):
        training.plan(context, "student", block)


def test_a_guided_stream_is_the_whole_windows_sample():
    """Along the autoregressive matrix, from the same noise: each call of the guidance has a past of its own."""
    config = dict(kind="dit", shape=(4, 4, 4, 1), num_classes=3, width=12, depth=1, head_dim=6, causal=True, block=2)
    model, record = build(config), {"model": config, "shape": config["shape"]}
    leaves, tree = jax.tree.flatten(model.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = jax.tree.unflatten(
        tree, [leaf + 0.3 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    )
    schedule = schedules.vp_cosine()
    network = Network(model.apply, schedule, "v", 3, model.cond_keys)
    grid, labels, key, scale = grids.uniform_time(schedule, 3), np.array([1, 2]), jax.random.key(2), 2.5
    streams = drawing.streamer(network, record, solvers.ddim(schedule, grid), 2, 4, scale)
    noise = jnp.concatenate(
        [jax.random.normal(jax.random.split(jax.random.fold_in(key, i))[0], (2, 2, 4, 4, 1)) for i in range(2)], axis=1
    )
    table = solvers.ddim(schedule, frames.autoregressive(grid, 4, block=2))
    whole = sampling.sample(drawing.denoiser(network, params, jnp.asarray(labels), scale), table, noise)
    streamed = streams(params, labels, key)
    np.testing.assert_allclose(streamed, whole, atol=1e-4)
    # A longer clip begins as the shorter, and goes on with its own last frames: two, of four that the network knows.
    longer = drawing.streamer(network, record, solvers.ddim(schedule, grid), 2, 8, scale)(params, labels, key)
    assert longer.shape == (2, 8, 4, 4, 1) and np.isfinite(longer).all()
    np.testing.assert_allclose(longer[:, :4], streamed, atol=1e-5)
