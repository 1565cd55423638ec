"""The mesh of a config, where weights live on it, and runs that go on from their checkpoints on other devices."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import config as configs
from experiments import loop, stages, training
from experiments import mesh as meshes
from experiments import run as program
from experiments.config import ConfigError
from models import build
from tests.configs import tiny


def test_an_axis_is_inferred_and_data_takes_all_by_default():
    assert dict(meshes.make().shape) == dict(data=8, fsdp=1, context=1, tensor=1)
    assert meshes.make(dict(fsdp=2)).shape["data"] == 4
    assert meshes.make(dict(data=2, tensor=-1)).shape["tensor"] == 4
    assert meshes.make(dict(fsdp=-1)).shape == dict(data=1, fsdp=8, context=1, tensor=1)
    assert list(meshes.make(dict(data=2, context=4)).devices.flat) == jax.devices()


@pytest.mark.parametrize(
    "sizes, message",
    [
        (dict(data=3), "config.mesh: data 3 x fsdp 1 x context 1 x tensor 1 is 3, which is not the 8 devices"),
        (dict(data=-1, fsdp=3), "fsdp 3 x context 1 x tensor 1 is 3, which does not divide the 8 devices"),
        (dict(data=4, fsdp=4), "is 16, which is not the 8 devices"),
        (dict(fdsp=2), "config.mesh has no axis 'fdsp'; did you mean 'fsdp'"),
        (dict(data=-1, tensor=-1), "one axis can take what is left, got -1 for data and tensor"),
        (dict(data=0), "config.mesh.data: expected a whole number from 1 up, or -1 for what is left, got 0"),
        (dict(data=2.0), "got 2.0"),
        (8, "config.mesh names sizes of axes among data, fsdp, context, tensor, got 8"),
    ],
)
def test_what_makes_no_mesh_is_refused_by_name(sizes, message):
    with pytest.raises(ConfigError, match=message):
        meshes.make(sizes)


def config_of(**change):
    config = tiny.get_config()
    config.model = ConfigDict(
        dict(kind="dit", shape=(3, 16, 16, 1), num_classes=10, width=24, depth=2, head_dim=12, mlp_ratio=2, patch=4)
    )
    config.stages = ConfigDict(
        dict(teacher={**config.stages.teacher, "steps": 4, "log_every": 1, "tensorboard": False})
    )
    config.stages.teacher.optimiser = dict(learning_rate=3e-3)
    return configs.plain(config) | change


def test_a_batch_that_does_not_divide_is_refused_by_name(tmp_path):
    config = config_of()
    config["stages"]["teacher"]["batch_size"] = 12
    stages.check(stages.Context(config, tmp_path, meshes.make(dict(data=2, fsdp=2, context=2))))
    with pytest.raises(
        ConfigError, match=r"teacher.batch_size 12 is not divisible by the mesh's data 4 x fsdp 2 = 8 parts"
    ):
        stages.check(stages.Context(config, tmp_path, meshes.make(dict(data=4, fsdp=2))))


def test_weights_live_where_the_rules_say():
    """Matrices in parts, in every tree that holds them, and small things everywhere; what doesn't divide isn't split."""
    mesh = meshes.make(dict(data=2, fsdp=2, tensor=2))
    model = build(dict(kind="dit", shape=(2, 4, 4, 1), num_classes=3, width=12, depth=2, head_dim=6))
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = {"params": params, "critic": {"score": params}, "opt": ({"mu": params}, jnp.zeros((), jnp.int32))}
    places = meshes.shardings(state, mesh)
    for tree in (places["params"], places["critic"]["score"], places["opt"][0]["mu"]):
        assert tree["layers"]["qkv"].spec == jax.P(None, "fsdp", "tensor")
        assert tree["layers"]["contract"].spec == jax.P(None, "tensor", "fsdp")
        assert (
            tree["layers"]["contract_bias"].spec == tree["label"]["table"].spec == tree["head"]["bias"].spec == jax.P()
        )
        assert tree["modulation"]["weight"].spec == jax.P("fsdp")
        assert tree["level"]["out"]["weight"].spec == jax.P("tensor", "fsdp")
    assert places["opt"][1].spec == jax.P()
    odd = {
        "weight": jax.ShapeDtypeStruct((3, 3, 5, 6), jnp.float32),
        "out": {"weight": jax.ShapeDtypeStruct((5, 5), jnp.float32)},
    }
    assert meshes.shardings(odd, mesh) == {
        "weight": jax.NamedSharding(mesh, jax.P(None, None, None, "tensor")), "out": {"weight": meshes.replicated(mesh)},
    }  # fmt: skip


@pytest.mark.parametrize(
    "sizes", [dict(), dict(data=2, context=4), dict(data=1, tensor=8), dict(data=2, fsdp=2, tensor=2)]
)
def test_every_row_of_a_batch_is_where_it_belongs(sizes):
    mesh, rows = meshes.make(sizes), np.arange(16 * 3).reshape(16, 3)
    assert meshes.reader(mesh, 16) == (0, 1)
    placed = meshes.put_batch({"video": rows}, mesh, 16)["video"]
    np.testing.assert_array_equal(placed, rows)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    assert {shard.data.shape for shard in placed.addressable_shards} == {(16 // parts, 3)}


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in rows}


ONE = "one device"
PLACES = {"a mesh": dict(data=2, fsdp=2, context=1, tensor=2), "another": dict(data=1, fsdp=4, context=2, tensor=1)}


def context(place, workdir):
    if place == ONE:
        return stages.Context(config_of(), workdir, meshes.make(devices=jax.devices()[:1]))
    return stages.Context(config_of(mesh=PLACES[place]), workdir, meshes.make(PLACES[place]))


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    """Four steps on one device, and on a mesh; checkpoints after two and four."""
    folders = {}
    for place in (ONE, "a mesh"):
        folders[place] = tmp_path_factory.mktemp("whole") / "run"
        program.run(context(place, folders[place]))
    return folders


def test_a_run_on_a_mesh_is_the_run_on_one_device(whole_runs):
    one, other = (losses(whole_runs[place]) for place in (ONE, "a mesh"))
    assert one.keys() == other.keys() == {1, 2, 3, 4}
    np.testing.assert_allclose([*other.values()], [*one.values()], rtol=1e-5)


@pytest.mark.parametrize("before, after", [(ONE, "a mesh"), ("a mesh", ONE), ("a mesh", "another")])
def test_a_run_goes_on_on_other_devices(before, after, whole_runs, tmp_path, caplog):
    """As a kill after three steps leaves it; a changed config.mesh is no other run."""
    workdir = tmp_path / "run"
    shutil.copytree(whole_runs[before], workdir)
    shutil.rmtree(workdir / "teacher/checkpoints/4")
    for name in ("done.json", "weights.safetensors"):
        (workdir / "teacher" / name).unlink()
    made = context(after, workdir)
    with caplog.at_level("INFO"):
        program.run(made)
    assert "resumed at step 2 of 4" in caplog.text
    np.testing.assert_allclose([*losses(workdir).values()], [*losses(whole_runs[before]).values()], rtol=1e-5)


def test_no_device_ever_holds_more_than_its_part(tmp_path, monkeypatch):
    """From the first step, and from the first after a resume: a state for which there is room on all is made on no one."""
    seen = []

    def bytes_of_devices():
        found = dict.fromkeys(jax.devices(), 0)
        pieces = {p.data.unsafe_buffer_pointer(): p for a in jax.live_arrays() for p in a.addressable_shards}
        for piece in pieces.values():
            found[piece.device] += piece.data.nbytes
        return list(found.values())

    def watched(function):
        def first(*given, **options):
            seen.append(bytes_of_devices())
            return function(*given, **options)

        return first

    # Once all is made, and before the first step, when what was restored is there.
    monkeypatch.setattr(training, "finish_training", watched(training.finish_training))
    monkeypatch.setattr(loop, "compile_phases", watched(loop.compile_phases))
    sizes = dict(data=1, fsdp=8, context=1, tensor=1)
    config = config_of(mesh=sizes)
    config["model"] |= dict(width=96, head_dim=24)
    config["stages"]["student"] = config["stages"]["teacher"] | dict(
        method="tract", teacher="teacher", student_steps=[2]
    )
    config["stages"]["student"]["options"] = dict(rounds=[4, 2])
    before = bytes_of_devices()
    program.run(stages.Context(config, tmp_path, meshes.make(sizes)))
    for name in ("done.json", "weights.safetensors"):
        (tmp_path / "student" / name).unlink()
    shutil.rmtree(tmp_path / "student/checkpoints/4")
    program.run(stages.Context(config, tmp_path, meshes.make(sizes)))
    found = np.subtract(seen, before)
    assert len(found) == 6  # teacher, student, student resumed
    for here in found:
        assert here.max() < 1.3 * here[1:].min() + 2**16
    # A resumed state stands there once.
    assert found[5].max() < 1.2 * found[3].max()
