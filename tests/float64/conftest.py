"""Float64 for this folder: the switch is read once a process, so tests/run starts the folder in a process of its own."""

import jax

jax.config.update("jax_enable_x64", True)
