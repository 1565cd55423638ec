"""Eight CPU devices for this folder: their number is read when JAX starts, so tests/run starts the folder in a process of its
own.
"""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def eight_devices():
    if jax.device_count() != 8:
        pytest.fail(
            "JAX had started before this folder could ask for eight devices: run it on its own, as tests/run does"
        )


@pytest.fixture(scope="session", autouse=True)
def quick_compilation():
    """Many small programs: optimising them takes longer than running them."""
    jax.config.update("jax_disable_most_optimizations", True)
