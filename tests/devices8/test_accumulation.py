"""A batch in parts on eight devices: each has its share of every part, and what comes out is one device's."""

import jax
import numpy as np
import pytest

from distill.method import accumulating
from experiments import loop
from experiments import mesh as meshes
from experiments.config import ConfigError
from tests.devices8.test_sharded_phases import alone, denoising, one_step, same


def test_parts_on_a_mesh_are_parts_on_one_device_and_no_row_travels():
    method, *given = denoising("mlp")
    method = accumulating(method, 2)
    # Eight rows in two parts: four parts of the mesh have a row of each.
    same(one_step(method, *given, meshes.make(dict(data=4, tensor=2))), one_step(method, *given, alone()))
    mesh = meshes.make()
    params, frozen, shape = given
    state = meshes.put(method.init(jax.random.key(1), params), mesh)
    rows = {"video": np.zeros((16, *shape), np.uint8), "label": np.zeros(16, np.int32)}
    arguments = (
        state,
        frozen,
        meshes.put_batch(rows, mesh, 16),
        jax.random.key(2),
        {"learning_rate_scale": np.float32(1)},
    )
    program = loop.compile_phases(method, mesh)["train"].lower(*arguments).compile().as_text()
    assert "all-reduce" in program
    assert not any(kind in program for kind in ("all-to-all", "collective-permute", "all-gather"))


def test_a_part_that_does_not_divide_is_refused_by_name():
    mesh = meshes.make(dict(data=4, context=2))
    meshes.check_batch(8, mesh, "stage", 2)
    with pytest.raises(ConfigError, match="stage.batch_size 8 / accumulate 4 is not divisible by the mesh's data 4"):
        meshes.check_batch(8, mesh, "stage", 4)
