"""Networks, behind one seam: `build(config) -> ModelDef`."""

from models.attention import ATTENTION, JVP_KINDS, require_jvp
from models.builders import KINDS, build
from models.definition import ModelDef, Params, inherit

__all__ = ["ATTENTION", "JVP_KINDS", "KINDS", "ModelDef", "Params", "build", "inherit", "require_jvp"]
