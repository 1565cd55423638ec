"""Whose weights a stage takes: those of its own network, however it was written down and is computed."""

import jax
import numpy as np
import pytest

from configs.moving_digits import students
from diffusion import schedules
from experiments import beside, stages, training, weights
from experiments import config as configs
from experiments import mesh as meshes
from experiments.config import ConfigError


def shipped_student(**model):
    """A student of the shipped teacher."""
    config = configs.plain(students.get_config("tract"))
    config["model"] |= model
    return config


@pytest.mark.parametrize(
    "model",
    [dict(patch=1), dict(level="logsnr"), dict(dropout=0.1), dict(dtype="bfloat16"), dict(cond=("logsnr_to",))],
    ids=str,
)
def test_defaults_spelt_out_and_how_it_is_computed_make_no_other_network(model, tmp_path):
    config = shipped_student(**model)
    context = stages.Context(config, tmp_path, meshes.make(devices=jax.devices()[:1]))
    definition, network, *_ = training.plan(context, "student", config["stages"]["student"])
    assert network.teacher is None
    own = weights.load(weights.find(config["stages"]["student"]["teacher"], tmp_path))[0]
    record = {"kind": "denoiser", "model": config["model"], "prediction": "v", "latent": None, "num_classes": 10}
    record |= {"schedule": schedules.record(network.schedule), "shape": list(definition.shape)}
    params = beside.load_fitting(context, config["stages"]["student"]["teacher"], definition, record, jax.random.key(0))
    for name, leaf in weights.flatten(own).items():
        np.testing.assert_array_equal(weights.flatten(params)[name], leaf)


def test_another_network_is_told_by_what_differs(tmp_path):
    config = shipped_student(embed=64)
    context = stages.Context(config, tmp_path, meshes.make(devices=jax.devices()[:1]))
    definition, network = configs.network(config)
    record = {"kind": "denoiser", "model": config["model"], "prediction": "v", "latent": None, "num_classes": 10}
    record |= {"schedule": schedules.record(network.schedule), "shape": list(definition.shape)}
    with pytest.raises(ConfigError, match="its model.embed is 128, this stage needs 64"):
        beside.load_fitting(context, "pretrained:moving_digits/teacher", definition, record, jax.random.key(0))


@pytest.mark.parametrize(
    "schedule, said",
    [
        (dict(kind="vp_cosine", logsnr_min=-15.0, logsnr_max=12.0, shift=3.0), None),
        (
            dict(kind="vp_cosine", shift=3.0),
            r"has seen log-SNRs from -20 to 20, config.schedule goes from -22.\d* to 17",
        ),
        (dict(kind="laplace"), None),
        (dict(kind="flow"), "its schedule.scaling is"),
    ],
)
def test_a_clock_is_a_students_own(schedule, said, tmp_path):
    """Levels are told, and no times: what the teacher has seen it knows on any clock."""
    config = shipped_student()
    config["schedule"] = schedule
    context = stages.Context(config, tmp_path, meshes.make(devices=jax.devices()[:1]))
    definition, network = configs.network(config)
    record = {"kind": "denoiser", "model": config["model"], "prediction": "v", "latent": None, "num_classes": 10}
    record |= {"schedule": schedules.record(network.schedule), "shape": list(definition.shape)}
    given = "pretrained:moving_digits/teacher", definition, record, jax.random.key(0)
    if said is None:
        beside.load_fitting(context, *given)
        return
    with pytest.raises(ConfigError, match=said):
        beside.load_fitting(context, *given)
