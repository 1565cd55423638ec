"""The kinds of stages: what keys each takes, what is checked before any work, what runs it. A stage leaves its weights, or a
report, in its own folder of the workdir.
"""

from collections.abc import Callable, Mapping
from typing import Any

from experiments import (
    autoencoder,
    cascade,
    continuation,
    data,
    evaluation,
    exact,
    generate,
    latents,
    times,
    training,
    weights,
)
from experiments import config as configs
from experiments import mesh as meshes
from experiments.config import ConfigError
from experiments.context import Context
from experiments.data.source import check_whole

__all__ = ["KEYS", "KINDS", "Context", "check"]

TRAINING = {
    "kind", "steps", "batch_size", "optimiser", "options", "init", "seed_offset",
    "log_every", "checkpoint_every", "tensorboard", "threads", "accumulate", "keep_checkpoints",
}  # fmt: skip
TRAINED = ("train", "classifier", "autoencoder")
"""Kinds of stages that run on all devices, and on all processes; the others run on the first device of the first process."""
WHOLE = {"steps", "batch_size", "log_every", "checkpoint_every", "threads", "accumulate", "keep_checkpoints"}
KEYS = {
    "train": (
        TRAINING
        | {
            "method",
            "teacher",
            "teacher_forcing",
            "previous",
            "student_steps",
            "guidance",
            "critic_optimiser",
            "heads",
            "features",
            "clips",
            "validation",
        },
        {"method", "steps", "batch_size"},
    ),
    "classifier": (TRAINING | {"model"}, {"steps", "batch_size"}),
    "autoencoder": (TRAINING | {"model"}, {"steps", "batch_size"}),
    "round_trip": (autoencoder.ROUND_TRIP, {"weights"}),
    "encode": (latents.ENCODE, {"autoencoder"}),
    "generate": (generate.KEYS, {"weights", "steps", "num_clips"}),
    "evaluate": (evaluation.KEYS, {"samplers"}),
    "continue": (continuation.KEYS, {"weights", "history", "frames", "steps"}),
    "cascade": (cascade.KEYS, {"samplers"}),
    "exact": (exact.KEYS, {"samplers"}),
    "times": (times.KEYS, {"weights", "counts"}),
}


def check(context: Context) -> None:
    """Every stage of the config, before any work: kinds, keys, names, and that what they refer to exists."""
    config = context.config
    needed = {"seed", "data", "stages"}
    configs.check_keys(
        config, {"model", "schedule", "prediction", "augmentation", "noise", "mesh", *needed}, needed, "config"
    )
    if "noise" in config and config["data"]["kind"] == "exact":
        raise ConfigError("config.noise: exact laws are known under independent noise only; remove it")
    if "model" in config:
        check_shapes(configs.source(config, "train"), config)
    earlier: dict[str, Any] = {}
    for name, block in config["stages"].items():
        where = f"config.stages.{name}"
        if not name.isidentifier():
            raise ConfigError(f"{where}: a stage's name is letters, digits and _ (it names a folder), got {name!r}")
        check_block(block, where)
        named = ("teacher", "previous", "init", "features")
        references = [block[k] for k in named if block.get(k) not in (None, exact.ORACLE)]
        if block["kind"] == "evaluate":
            evaluation.check(block, config, where)
            references += [s["weights"] for s in block["samplers"].values()]
            references += [evaluation.classifier(block, config)]
            evaluation.check_classifier(block, config, context.workdir, where)
            evaluation.check_streams(block, config, context.workdir, where)
        elif block["kind"] == "cascade":
            cascade.check(context, block, where)
            references += [evaluation.classifier(block, config)]
            evaluation.check_classifier(block, config, context.workdir, where)
        elif block["kind"] == "continue":
            continuation.check(block, config, where)
            references += [block["weights"], evaluation.classifier(block, config)]
            evaluation.check_classifier(block, config, context.workdir, where)
        elif block["kind"] == "round_trip":
            references += [block["weights"]]
        elif block["kind"] == "encode":
            latents.check_encode(block, config, where)
            references += [block["autoencoder"]]
        elif block["kind"] == "autoencoder":
            autoencoder.plan(context, block, where)
        elif block["kind"] == "generate":
            generate.check(block, config, where)
            references += [block["weights"]]
        elif block["kind"] == "exact":
            exact.check(block, config, where)
            references += [s["weights"] for s in block["samplers"].values() if s["weights"] != exact.ORACLE]
        elif block["kind"] == "times":
            times.check(block, config, where)
            references += [block["weights"]]
            if config["data"]["kind"] != "exact":
                references += [evaluation.classifier(block, config)]
                evaluation.check_classifier(block, config, context.workdir, where)
        elif block["kind"] == "train":
            if block.get("teacher") == exact.ORACLE:
                exact.source_of(config, "train", f"{where}.teacher")
            training.check(context, name, block, earlier)
        if block["kind"] in TRAINED:
            meshes.check_batch(block["batch_size"], context.mesh, where, block.get("accumulate", 1))
        for reference in references:
            stage = reference.split("@")[0]
            if reference.startswith("pretrained:") or reference.endswith(".safetensors"):
                weights.find(reference, context.workdir)
            elif stage not in earlier:
                raise ConfigError(
                    f"{where} refers to {reference!r}, which is no stage before it; {configs.nearest(stage, earlier)} "
                    "(or pretrained:NAME, or a path to a .safetensors file)"
                )
        samplers = {} if block["kind"] == "cascade" else block.get("samplers", {})
        for row, sampler in samplers.items():
            times.check_searched(sampler, earlier, context.workdir, f"{where}.samplers.{row}")
        earlier[name] = block


def check_block(block: Mapping[str, Any], where: str) -> None:
    """A stage's keys, and its whole numbers."""
    if "kind" not in block:
        raise ConfigError(f"{where} lacks the key 'kind'; choices: {', '.join(KEYS)}")
    allowed, required = configs.choose(block["kind"], KEYS, f"{where}.kind")
    configs.check_keys(block, allowed | {"kind"}, required, where)
    for key in WHOLE & block.keys():
        try:
            check_whole(f"{where}.{key}", block[key], 1)
        except ValueError as error:
            raise ConfigError(str(error)) from None


def check_shapes(source: data.Source, config: Mapping[str, Any]) -> None:
    """The data must be what the network takes."""
    model = config["model"]
    if tuple(source.shape) != tuple(model["shape"]):
        raise ConfigError(
            f"config.data gives clips of shape {tuple(source.shape)} (frames, height, width, channels), "
            f"config.model.shape is {tuple(model['shape'])}"
        )
    if model["num_classes"] and source.num_classes != model["num_classes"]:
        raise ConfigError(
            f"config.data has {source.num_classes} classes, config.model.num_classes is {model['num_classes']}"
        )
    gives, takes = data.low_shape(source) is not None, "low" in model.get("cond", ())
    if gives != takes:
        raise ConfigError(
            "config.model.cond has 'low', the clip to upsample, and config.data gives none: choose kind 'resized' with 'low'"
            if takes
            else "config.data gives 'low', the clip to upsample: put it into config.model.cond, or remove config.data.low"
        )


KINDS: dict[str, Callable[[Context, str, Mapping[str, Any]], dict[str, Any] | None]] = {
    "train": training.run,
    "classifier": training.run_classifier,
    "autoencoder": autoencoder.run,
    "round_trip": autoencoder.run_round_trip,
    "encode": latents.run_encode,
    "generate": generate.run,
    "evaluate": evaluation.run,
    "continue": continuation.run,
    "cascade": cascade.run,
    "exact": exact.run,
    "times": times.run,
}
