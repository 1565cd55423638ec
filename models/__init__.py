"""Networks, behind one seam: `build(config) -> ModelDef`."""

from models.attention import ATTENTION, JVP_KINDS
from models.builders import KINDS, build, weights_of
from models.definition import INPUTS, ModelDef, Params, define, inherit
from models.heads import HeadsDef, build_heads

__all__ = [
    "ATTENTION",
    "INPUTS",
    "JVP_KINDS",
    "KINDS",
    "HeadsDef",
    "ModelDef",
    "Params",
    "build",
    "build_heads",
    "define",
    "inherit",
    "weights_of",
]
