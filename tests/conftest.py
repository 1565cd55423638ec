"""Shapes and types of public functions are checked at run time in tests only: users pay nothing.

JAX is imported in fixtures: folders with conftests of their own choose how it starts.
"""

import gc
import os

import hypothesis
import pytest
from jaxtyping import install_import_hook

# The hook must be in place before the packages are imported.
install_import_hook(["diffusion", "distill"], "beartype.beartype")

# One busy machine is enough to make hypothesis think that a test hangs.
hypothesis.settings.register_profile("fewstep", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("fewstep")


@pytest.fixture(scope="module")
def quick_compilation():
    """For modules of many small programs, and the processes that they start: optimising them takes longer than running them."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    del os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"]


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Every compiled program holds memory maps, of which a process may have 65,530: near 2,000 tests XLA crashed."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()
