"""Float64 for this folder: the switch is read once a process, so tests/run starts the folder in a process of its own."""

import jax
import pytest

jax.config.update("jax_enable_x64", True)


@pytest.fixture
def noises(monkeypatch):
    """noises(a, b, ..) are what jax.random.normal draws next, in order."""

    def queue(*arrays):
        left = list(arrays)

        def normal(key, shape=(), dtype=float):
            value = left.pop(0)
            assert value.shape == tuple(shape)
            return value

        monkeypatch.setattr(jax.random, "normal", normal)

    return queue
