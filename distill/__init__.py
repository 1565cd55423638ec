"""What a student learns: methods as data. `METHODS` is the one registry, read by configs."""

from distill import (
    consistency_methods,
    continuous,
    denoising,
    flow_maps,
    guided,
    mean_flow,
    progressive,
    reflow,
    tract,
)
from distill.inputs import Network
from distill.method import Method, optimiser

METHODS = {
    "denoising": denoising.method,
    "guided": guided.method,
    "progressive": progressive.method,
    "tract": tract.method,
    "consistency_distillation": consistency_methods.consistency_distillation,
    "consistency_training": consistency_methods.consistency_training,
    "improved_consistency": consistency_methods.improved,
    "easy_consistency": consistency_methods.easy,
    "latent_consistency": consistency_methods.latent,
    "multistep_consistency": consistency_methods.multistep,
    "truncated_consistency": consistency_methods.truncated,
    "continuous_distillation": continuous.distillation,
    "continuous_training": continuous.training,
    "consistency_trajectory": flow_maps.consistency_trajectory,
    "shortcut": flow_maps.shortcut,
    "mean_flow": mean_flow.method,
    "reflow": reflow.method,
}
"""name -> constructor(network, *, optimiser, ...) -> Method"""

STUDENTS = frozenset({
    "guided", "progressive", "tract", "consistency_distillation", "latent_consistency", "continuous_distillation",
    "consistency_trajectory", "reflow",
})  # fmt: skip
"""Methods that cannot do without frozen["teacher"]."""

FORWARD = frozenset({"continuous_distillation", "continuous_training", "mean_flow"})
"""Methods that take a forward derivative of the network, `jax.jvp`, which fused attention doesn't have."""

__all__ = ["FORWARD", "METHODS", "STUDENTS", "Method", "Network", "optimiser"]
