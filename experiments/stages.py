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
    drawing,
    evaluation,
    exact,
    generate,
    latents,
    tables,
    times,
    training,
    weights,
)
from experiments import config as configs
from experiments import mesh as meshes
from experiments.config import ConfigError
from experiments.context import Context

__all__ = ["KEYS", "KINDS", "Context", "check", "check_form"]

TRAINING = {
    "kind", "steps", "batch_size", "optimiser", "options", "seed_offset",
    "log_every", "checkpoint_every", "tensorboard", "threads", "accumulate", "keep_checkpoints",
}  # fmt: skip
LEAVES = {"train": "denoiser", "classifier": "classifier", "autoencoder": "autoencoder"}
"""Kind of a stage -> that of the weights that it leaves."""
TRAINED = tuple(LEAVES)
"""Kinds of stages that run on all devices, and on all processes; the others run on the first device of the first process."""
JUDGED = ("evaluate", "cascade", "continue", "times")
"""Kinds of stages that measure clips, by a metric network."""
WHOLE = {"num_clips": 2, "num_reference": 2} | dict.fromkeys(
    ("steps", "batch_size", "log_every", "checkpoint_every", "threads", "accumulate", "keep_checkpoints", "bootstrap", "shown"),
    1,
)  # fmt: skip
"""Keys whose values are whole numbers -> the least."""
NAMED = {
    "teacher": ("denoiser",),
    "previous": ("denoiser",),
    "features": ("classifier", "denoiser"),
    "autoencoder": ("autoencoder",),
}
"""Keys that name weights -> the kinds that they may be of."""
FORMS = (
    dict.fromkeys(
        ("model", "options", "optimiser", "critic_optimiser", "heads", "validation", "preview", "samplers"), Mapping
    )
    | dict.fromkeys((*NAMED, "init", "classifier"), str | None)
    | dict.fromkeys(("kind", "method", "weights", "clips", "autoencoder"), str)
    | dict.fromkeys(("latency", "sdedit", "teacher_forcing", "tensorboard", "told_label"), bool)
)
"""Keys that hold a block of keys, a name, or a truth value."""
KEYS = {
    "train": (
        TRAINING
        | {
            "method",
            "init",
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
            "preview",
        },
        {"method", "steps", "batch_size"},
    ),
    "classifier": (TRAINING | {"model"}, {"steps", "batch_size"}),
    "autoencoder": (TRAINING | {"model", "init"}, {"steps", "batch_size"}),
    "round_trip": (autoencoder.ROUND_TRIP, {"weights"}),
    "encode": (latents.ENCODE, {"autoencoder"}),
    "generate": (generate.KEYS, {"weights", "steps", "num_clips"}),
    "evaluate": (evaluation.KEYS, {"samplers"}),
    "continue": (continuation.KEYS, {"weights", "history", "frames", "steps"}),
    "cascade": (cascade.KEYS, {"samplers"}),
    "exact": (exact.KEYS, {"samplers"}),
    "times": (times.KEYS, {"weights", "counts"}),
}


def check_form(config: Mapping[str, Any], *more: str) -> None:
    """What of a config needs no data and no finished stage: its keys (and `more`), its names, every stage's kind and keys."""
    needed = {"seed", "data", "stages"}
    configs.check_keys(
        config, {"model", "schedule", "prediction", "augmentation", "noise", "mesh", *more, *needed}, needed, "config"
    )
    configs.check_forms(config, dict.fromkeys(("data", "model", "stages"), Mapping) | {"prediction": str}, "config")
    configs.check_forms(config["stages"], dict.fromkeys(config["stages"], Mapping), "config.stages")
    if "schedule" in config:
        configs.schedule(config)
    if "prediction" in config:
        configs.prediction(config)
    for name, block in config["stages"].items():
        where = f"config.stages.{name}"
        if not name.isidentifier():
            raise ConfigError(f"{where}: a stage's name is letters, digits and _ (it names a folder), got {name!r}")
        check_block(block, where)


def check(context: Context) -> None:
    """Every stage of the config, before any work: kinds, keys, names, and that what they refer to exists."""
    config = context.config
    check_form(config)
    clips = configs.source(config, "train")
    if "noise" in config and config["data"]["kind"] == "exact":
        raise ConfigError("config.noise: exact laws are known under independent noise only; remove it")
    configs.check_whole("config.seed", config["seed"], 0, 2**32 - 1)
    if "model" in config:
        definition = configs.model(config)
        check_shapes(clips, config)
        configs.augmentation(config, definition)
        configs.noise(config, definition.shape)
    if not config["stages"]:
        raise ConfigError("config.stages is empty: there is nothing to run")
    earlier: dict[str, Any] = {}
    for name, block in config["stages"].items():
        where = f"config.stages.{name}"
        if block["kind"] == "evaluate":
            evaluation.check(block, config, where)
            evaluation.check_classifier(block, config, context.workdir, where)
        elif block["kind"] == "cascade":
            cascade.check(context, block, where)
            evaluation.check_classifier(block, config, context.workdir, where)
        elif block["kind"] == "continue":
            continuation.check(block, config, where)
            evaluation.check_classifier(block, config, context.workdir, where)
        elif block["kind"] == "encode":
            latents.check_encode(block, config, where)
        elif block["kind"] == "autoencoder":
            autoencoder.plan(context, block, where)
        elif block["kind"] == "classifier":
            training.check_classifier(block, clips, where)
        elif block["kind"] == "round_trip":
            drawing.check_pictured(clips.shape[-1], where)
            asked = block.get("num_clips", autoencoder.NUM_CLIPS)
            configs.check_enough(configs.source(config, "test"), asked, f"{where}.num_clips", "test")
        elif block["kind"] == "generate":
            generate.check(block, config, where)
        elif block["kind"] == "exact":
            exact.check(block, config, where)
        elif block["kind"] == "times":
            times.check(block, config, where)
            if config["data"]["kind"] != "exact":
                evaluation.check_classifier(block, config, context.workdir, where)
        elif block["kind"] == "train":
            if block.get("teacher") == exact.ORACLE:
                exact.source_of(config, "train", f"{where}.teacher")
            training.check(context, name, block, earlier)
        if block["kind"] in TRAINED:
            seed = config["seed"]
            configs.check_whole(f"{where}.seed_offset", block.get("seed_offset", 0), -seed, 2**32 - 1 - seed)
            meshes.check_batch(block["batch_size"], context.mesh, where, block.get("accumulate", 1))
            if "clips" not in block:
                configs.check_enough(
                    configs.source(config, "train"), block["batch_size"], f"{where}.batch_size", "train"
                )
        for reference, kinds in references(block, config):
            stage, _, part = reference.partition("@")
            if weights.is_file(reference):
                kind = weights.load(weights.find(reference, context.workdir))[1].get("kind")
            elif stage not in earlier:
                raise ConfigError(
                    f"{where} refers to {reference!r}, which is no stage before it; {configs.nearest(stage, earlier)} "
                    "(or pretrained:NAME, or a path to a .safetensors file)"
                )
            elif part and part not in (parts := kept(earlier[stage])):
                raise ConfigError(
                    f"{where} refers to {reference!r}; stage {stage!r} leaves"
                    f" {', '.join(f'{stage}@{one}' for one in parts) or 'its last weights only'}"
                )
            else:
                kind = LEAVES.get(earlier[stage]["kind"])
            if kind not in kinds:
                held = "which leaves no weights" if kind is None else f"weights of kind {kind!r}"
                raise ConfigError(f"{where} refers to {reference!r}, {held}; expected {' or '.join(map(repr, kinds))}")
        if block["kind"] == "evaluate":
            evaluation.check_networks(block, config, context.workdir, where)
        samplers = {} if block["kind"] == "cascade" else block.get("samplers", {})
        for row, sampler in samplers.items():
            times.check_searched(sampler, earlier, context.workdir, f"{where}.samplers.{row}")
            check_jumps(sampler, context, f"{where}.samplers.{row}")
        if block["kind"] == "generate":
            times.check_searched(block, earlier, context.workdir, where)
        if block["kind"] in ("generate", "continue", "times"):
            model = evaluation.model_of(block["weights"], config, context.workdir)
            evaluation.check_shape(model, clips.shape, f"{where}.weights {block['weights']!r}")
            check_jumps(block, context, where)
            if "guidance" in block:
                drawing.check_guided(block["guidance"], model.get("num_classes", 0), f"{where}.guidance")
                if block["kind"] == "continue" and block["guidance"] != 1.0 and not block.get("told_label"):
                    raise ConfigError(
                        f"{where}.guidance is towards a class, and the network isn't told any; choose told_label=True, or"
                        " remove guidance"
                    )
        earlier[name] = block


def references(block: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """What a stage reads: names of weights, and of what kinds they may be. Those of a cascade are of other runs."""
    kind = block["kind"]
    wanted = {**NAMED, "init": (LEAVES.get(kind, "denoiser"),)}
    if kind == "train" and block.get("teacher") == exact.ORACLE:
        del wanted["teacher"]  # no weights
    found = [(block[key], kinds) for key, kinds in wanted.items() if block.get(key) is not None]
    if kind not in TRAINED and "weights" in block:
        found.append((block["weights"], ("autoencoder" if kind == "round_trip" else "denoiser",)))
    if kind in ("evaluate", "exact"):
        named = [sampler["weights"] for sampler in block["samplers"].values()]
        found += [(name, ("denoiser",)) for name in named if (kind, name) != ("exact", exact.ORACLE)]
    if kind in JUDGED and config["data"]["kind"] != "exact":
        found.append((evaluation.classifier(block, config), ("classifier",)))
    return found


def made_from(block: Mapping[str, Any], config: Mapping[str, Any]) -> set[str]:
    """The stages of its own run that a stage reads from."""
    plan = config["stages"]
    read = {reference.split("@")[0] for reference, _ in references(block, config)} | {block.get("clips")}
    samplers = {} if block["kind"] == "cascade" else block.get("samplers", {})
    for sampler in (*samplers.values(), *([block] if block["kind"] == "generate" else [])):
        read |= set(times.searches(sampler, plan)) if tables.is_searched(sampler) else set()
    return read & set(plan)


def check_jumps(sampler: Mapping[str, Any], context: Context, where: str) -> None:
    """A solver that jumps asks for a network that is told where to. sampler: its solver and weights."""
    if tables.asks(sampler, "solver"):
        return
    solver = {"solver": sampler["solver"]} if "solver" in sampler else {}
    table = tables.make(solver, 2, configs.schedule(context.config), where)
    if table.target is None:
        return
    model = {}
    if (reference := sampler["weights"]) != exact.ORACLE:
        model = evaluation.model_of(reference, context.config, context.workdir)
    drawing.check_jumps(table, model.get("cond", ()), f"{where}.solver")


def kept(block: Mapping[str, Any]) -> list[str]:
    """What a stage of training leaves beside its last weights: PART of STAGE@PART."""
    best = "keep_best" in block.get("validation", {})
    return [*map(str, block.get("student_steps", ())), *(["best"] if best else [])]


def check_block(block: Mapping[str, Any], where: str) -> None:
    """A stage's keys, and its whole numbers."""
    if "kind" not in block:
        raise ConfigError(f"{where} lacks the key 'kind'; choices: {', '.join(KEYS)}")
    allowed, required = configs.choose(block["kind"], KEYS, f"{where}.kind")
    configs.check_keys(block, allowed | {"kind"}, required, where)
    configs.check_forms(block, FORMS, where)
    samplers = block.get("samplers", {})
    configs.check_forms(samplers, dict.fromkeys(samplers, Mapping), f"{where}.samplers")
    for row, sampler in samplers.items() if block["kind"] != "cascade" else ():
        configs.check_forms(sampler, {"weights": str}, f"{where}.samplers.{row}")
        configs.check_whole(f"{where}.samplers.{row}.steps", sampler.get("steps", 1), 1)
    for key in WHOLE.keys() & block.keys():
        configs.check_whole(f"{where}.{key}", block[key], WHOLE[key])
    rounds = block.get("student_steps", ())
    if not isinstance(rounds, list | tuple):
        raise ConfigError(f"{where}.student_steps must be numbers of steps, as [8, 4, 2, 1], got {rounds!r}")
    for steps in rounds:
        configs.check_whole(f"{where}.student_steps", steps, 1)
    if "guidance" in block:
        configs.check_finite(block["guidance"], f"{where}.guidance")


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
