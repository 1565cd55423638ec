"""What a student learns: methods as data. `METHODS` is the one registry, read by configs."""

import functools

from distill import (
    adversarial_methods,
    consistency_methods,
    continuous,
    denoising,
    flow_maps,
    game_methods,
    guided,
    mean_flow,
    progressive,
    reflow,
    tract,
)
from distill.adversarial import Discriminator
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
    "dmd": game_methods.dmd,
    "dmd2": game_methods.dmd2,
    "f_distill": functools.partial(game_methods.dmd2, divergence="jensen_shannon"),
    "diff_instruct": game_methods.diff_instruct,
    "sid": game_methods.sid,
    "moment_matching": game_methods.moment_matching,
    "rcm": game_methods.rcm,
    "add": adversarial_methods.add,
    "ladd": adversarial_methods.ladd,
}
"""name -> constructor(network, *, optimiser, ...) -> Method"""

STUDENTS = frozenset({
    "guided", "progressive", "tract", "consistency_distillation", "latent_consistency", "continuous_distillation",
    "consistency_trajectory", "reflow", "dmd", "dmd2", "f_distill", "diff_instruct", "sid", "moment_matching", "rcm", "add",
    "ladd",
})  # fmt: skip
"""Methods that cannot do without frozen["teacher"]."""

SELF_GUIDED = frozenset({"shortcut", "mean_flow"})
"""Methods that without a teacher are guided by their own answers."""

FORWARD = frozenset({"continuous_distillation", "continuous_training", "mean_flow", "rcm"})
"""Methods that take a forward derivative of the network, `jax.jvp`, which fused attention doesn't have."""

GAMES = frozenset({"dmd", "dmd2", "f_distill", "diff_instruct", "sid", "moment_matching", "rcm", "add", "ladd"})
"""Methods with a critic."""

__all__ = ["FORWARD", "GAMES", "METHODS", "SELF_GUIDED", "STUDENTS", "Discriminator", "Method", "Network", "optimiser"]
