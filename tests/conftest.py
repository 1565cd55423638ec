"""Shapes and types of public functions are checked at run time in tests only: users pay nothing."""

import hypothesis
from jaxtyping import install_import_hook

# The hook must be in place before the packages are imported.
install_import_hook(["diffusion", "distill"], "beartype.beartype")

# One busy machine is enough to make hypothesis think that a test hangs.
hypothesis.settings.register_profile("fewstep", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("fewstep")
