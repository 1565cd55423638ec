"""Training stages: a denoiser or a student by any method, and the metric network; what is refused before they begin."""

import collections
import functools
import logging
import math
import pathlib
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import parameter_overview

from distill import FORWARD, METHODS, SELF_GUIDED, STUDENTS, Network, flow_maps, games
from distill.method import Method, accumulating
from experiments import beside, data, exact, figures, latents, loop, preview, validation, weights
from experiments import config as configs
from experiments import mesh as meshes
from experiments.checkpoints import Checkpoints
from experiments.config import ConfigError
from experiments.context import Context
from experiments.data.latents import INDEX
from experiments.data.source import Damaged
from experiments.metrics import classifier_training
from experiments.writers import JsonlWriter, MultiWriter, TensorBoardWriter, Writer
from models import JVP_KINDS, ModelDef
from models.classifier import DEFAULTS as CLASSIFIER_DEFAULTS
from models.classifier import ClassifierDef, build_classifier

log = logging.getLogger(__name__)

HELD_OUT = 512
"""Clips on which a classifier is judged after training, where there are as many."""


def check(context: Context, name: str, block: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
    """Everything of a train stage, before any work. earlier: the stages before it."""
    where = f"config.stages.{name}"
    _, network, *_ = plan(context, name, block)
    check_told(context, block, earlier, where)
    check_clips(context, block, earlier, where)
    validation.check(context, block, where)
    preview.check(context, block, network, where)


def plan(context: Context, name: str, block: Mapping[str, Any]):
    """(model, network, method, rounds) of a train stage: builds everything, computes nothing."""
    where = f"config.stages.{name}"
    for key in ("model", "schedule", "prediction"):
        if key not in context.config:
            raise ConfigError(f"config lacks the key {key!r}, which stage {name!r} needs")
    definition, network = configs.network(context.config)
    check_eps_loss(network, block, where)
    check_levels(definition, network, block, where)
    network = network._replace(forced=forced(block, definition, where))
    judge = definition
    own = beside.own_teacher(context, block, network, where)
    beside.check_files(context, block, definition, network, own, where)
    if own is not None:
        judge, network = own.definition, network._replace(teacher=own.network)
    options = block.get("options", {})
    option = functools.partial(configs.method_option, block["method"], options)
    given, updates = beside.critic(context, block, judge, where), block["steps"]
    build = functools.partial(configs.method, block["method"], options, network, steps=updates, where=where)
    rule, turns = block.get("optimiser", {"learning_rate": 1e-3}), 0
    if configs.has_critic(block["method"]):
        # Both take turns, as the method says. Their learning rates are to fall to their ends all the same.
        updates, turns = moves(build(optimiser=optax.identity(), **given), updates, where)
    optimiser = configs.optimiser(rule, updates, f"{where}.optimiser")
    if turns:
        own_rule = {**rule, **block.get("critic_optimiser", {})}
        given["critic_optimiser"] = configs.optimiser(own_rule, turns, f"{where}.critic_optimiser")
    method = build(optimiser=optimiser, **given)
    rounds = block.get("student_steps", [])
    if own is not None and method.next is not None:
        raise ConfigError(
            f"{where}.teacher {block['teacher']!r} is another network than the student, which in {block['method']} becomes the"
            " teacher of the next round; choose a teacher of the same model and prediction, or a method of one round"
        )
    if method.next is None and rounds:
        raise ConfigError(f"{where}.student_steps: method {block['method']!r} has no rounds")
    if block["method"] == "tract":
        counts = list(option("rounds"))
        if list(rounds) != counts[1:]:
            raise ConfigError(
                f"{where}.student_steps must be options.rounds after its first, {counts[1:]}, got {rounds}"
            )
    elif method.next is not None:
        if not rounds or any(a != 2 * b for a, b in zip(rounds[:-1], rounds[1:], strict=True)) or min(rounds) < 1:
            raise ConfigError(f"{where}.student_steps must halve from round to round, as [8, 4, 2, 1], got {rounds}")
    asks = block["method"] in STUDENTS or option("solver") in ("euler", "heun", "addim")
    if asks and not block.get("teacher"):
        raise ConfigError(f"{where} lacks the key 'teacher': {block['method']} learns from one")
    if block["method"] == "truncated_consistency" and not block.get("previous"):
        raise ConfigError(
            f"{where} lacks the key 'previous': the finished consistency model that takes over at the cut"
        )
    # A method from outside may ask for one, too.
    if block.get("previous") and block["method"] in METHODS and block["method"] != "truncated_consistency":
        raise ConfigError(
            f"{where}.previous: {block['method']} has no use for a finished consistency model; remove it, or choose method"
            " 'truncated_consistency'"
        )
    if block["method"] in FORWARD and not definition.jvp:
        raise ConfigError(
            f"{where}: {block['method']} takes a forward derivative (jax.jvp), which config.model.attention "
            f"{definition.attention!r} doesn't have; choose one of {', '.join(JVP_KINDS)}"
        )
    if block["method"] in FORWARD and context.config["model"].get("level", "logsnr") != "angle":
        log.warning(
            "%s: %s differentiates by the level; config.model.level='angle' keeps that finite near pure noise",
            name, block["method"],
        )  # fmt: skip
    if block.get("teacher") and option("kappa"):
        raise ConfigError(
            f"{where}.options.kappa mixes a student's own guidance, and this one has a teacher; remove it"
        )
    if block.get("guidance", 1.0) != 1.0:
        if block["method"] not in SELF_GUIDED and not block.get("teacher"):
            raise ConfigError(f"{where}.guidance is the teacher's, and this stage has none")
        # Of an adversary alone the teacher is asked for features, and for no clean clip.
        if not (asks or block["method"] in SELF_GUIDED) or option("distillation_weight") == 0:
            raise ConfigError(
                f"{where}.guidance: with these options {block['method']} has no use for its teacher's answers; remove guidance"
            )
        if not (block.get("teacher") or block.get("init") or option("label_dropout")):
            raise ConfigError(
                f"{where}.guidance is away from the student's own answer without a class, which it never learns with"
                " options.label_dropout 0; nearest: 0.1"
            )
        if not network.num_classes or block.get("teacher") == exact.ORACLE:
            raise ConfigError(f"{where}.guidance: the teacher is unconditional (config.model.num_classes is 0)")
    scale = "guidance" if told(block) is None else "options.guidance_range"
    if (
        block["method"] == "consistency_trajectory"
        and option("data")
        and (told(block) or block.get("guidance", 1.0) != 1.0)
    ):
        raise ConfigError(
            f"{where}.{scale}: the clips, which teach the denoiser, know none, and its jumps would be guided; choose"
            " options.data=False"
        )
    share, size, parts = option("share"), block["batch_size"], block.get("accumulate", 1)
    if share is not None and share < 1 and 1 <= parts <= size < 2 * parts:
        named = f"{where}.batch_size {size}" if parts == 1 else f"{where}.accumulate {parts} of a batch of {size}"
        raise ConfigError(f"{named}: of 1 clip no share {share:g} can jump; expected 2 clips or more")
    if share is not None and 1 < parts <= size:
        whole, part = (len(flow_maps.spread(n, share)[0]) / n for n in (size, size // parts))
        if whole != part:
            raise ConfigError(
                f"{where}.accumulate: of a microbatch a share {part:g} would jump, of the batch {whole:g}; choose fewer parts"
            )
    return definition, network, accumulating(method, block.get("accumulate", 1)), rounds


def moves(method: Method, steps: int, where: str) -> tuple[int, int]:
    """How often a game's student moves in so many steps, and its critic; refuses steps in which a phase never comes."""
    counts = collections.Counter(phase for step in range(steps) for phase in method.order(step))
    for player in (phase for phase in method.phases if not counts[phase]):
        first = next((step for step in range(steps + 1, 2**20) if player in method.order(step - 1)), "never")
        raise ConfigError(
            f"{where}.steps: with these options the {player}'s first step is {first}; nearest: {first}, got {steps}"
        )
    return counts.get(games.STUDENT, steps), counts.get(games.CRITIC, steps)


def forced(block: Mapping[str, Any], definition: ModelDef, where: str) -> bool:
    """Whether a stage learns every block of frames after the data's own clean ones (teacher forcing)."""
    wanted = block.get("teacher_forcing", False)
    if wanted and "history" not in definition.cond_keys:
        raise ConfigError(
            f"{where}.teacher_forcing: the network sees all frames at once; a causal one is a 'dit' with causal=True"
        )
    if wanted and configs.has_critic(block["method"]):
        raise ConfigError(
            f"{where}.teacher_forcing: {block['method']} judges clips that have a past of their own; remove it"
        )
    return bool(wanted)


def check_told(context: Context, block: Mapping[str, Any], earlier: Mapping[str, Any], where: str) -> None:
    """Where a student is told g, a fixed g has no meaning; and halvings of such a student need a teacher that was told it."""
    if told(block) is None:
        return
    if block.get("guidance", 1.0) != 1.0:
        raise ConfigError(
            f"{where}.guidance {block['guidance']} and options.guidance_range {list(told(block))}: a student that is told g has"
            " no fixed one; remove one of the two"
        )
    if block["method"] == "progressive":
        teacher = block["teacher"]
        stage = earlier.get(teacher.split("@")[0])
        knows = told(stage) if stage else weights.load(weights.find(teacher, context.workdir))[1].get("guidance_range")
        if knows is not None and not knows[0] <= min(told(block)) <= max(told(block)) <= knows[1]:
            raise ConfigError(
                f"{where}.options.guidance_range {list(told(block))}: teacher {teacher!r} was told g from {knows[0]:g} to"
                f" {knows[1]:g}; choose a part of that"
            )
        if knows is None:
            raise ConfigError(
                f"{where}.options.guidance_range: teacher {teacher!r} was never told g; halve the steps of a student of method "
                "'guided', or remove guidance_range"
            )


def told(block: Mapping[str, Any]) -> Any:
    """The range from which a stage draws g for its student, or None."""
    if block["kind"] != "train":
        return None
    return configs.method_option(block["method"], block.get("options", {}), "guidance_range")


NO_SIGNAL = 1e-8
"""SNR, or weight, below which nothing is learnt: DDPM's schedule ends at 4e-5, VE's at 5e-7 or more, the cosine at 2e-9."""


def check_eps_loss(network: Network, block: Mapping[str, Any], where: str) -> None:
    """Refuses an eps-loss on a schedule with zero terminal SNR (Lin et al. 2023, arXiv 2305.08891, section 3.2).

    There x is eps: a prediction of eps, or of the score, learns nothing at the level where sampling begins; no more does x0
    under a weight that vanishes as the SNR does, which a denoiser of all levels may yet bear, but no student's first step.
    """
    start = network.schedule.logsnr_start
    if math.exp(start) >= NO_SIGNAL:
        return
    named = block.get("options", {}).get("weight")
    weight = None if named is None else configs.named(named, configs.WEIGHTS, f"{where}.options.weight")
    lossy = [f"config.prediction {network.prediction!r}"] if network.prediction in ("eps", "score") else []
    if (
        weight is not None
        and block["method"] != "denoising"
        and float(np.max(weight(np.full((1, 1), start)))) < NO_SIGNAL
    ):
        lossy.append(f"{where}.options.weight {named!r}")
    if lossy:
        raise ConfigError(
            f"{lossy[0]} is an eps-loss, and config.schedule has no signal at its noisy end (SNR {math.exp(start):.1g}): choose"
            f" 'v' or 'x0' (weight 'v' or 'truncated_snr'), or a schedule whose SNR ends at {NO_SIGNAL:g} or above"
        )


def check_levels(definition: ModelDef, network: Network, block: Mapping[str, Any], where: str) -> None:
    """Refuses a law, or a weight, of levels per frame or pixel where the method draws one for all, and the other way round."""
    options = block.get("options", {})
    laws = configs.laws(block["method"], options, network.schedule, where)
    option = functools.partial(configs.method_option, block["method"], options)
    axes = 3 if option("per_pixel") else 1 if option("per_frame") else 0
    shape = (2, *definition.shape[:axes])
    for key, made in laws.items():
        here, is_law = f"{where}.options.{key}", key.endswith("law")
        configs.made(made, Callable, here)
        try:
            found = jax.eval_shape(
                lambda made=made, is_law=is_law: made(jax.random.key(0), shape) if is_law else made(jnp.zeros(shape))
            )
        except ValueError as error:
            more = "options.per_frame or options.per_pixel, where the method has it, draws a level for each"
            raise ConfigError(f"{here}: {error}" + (f"; {more}" if not axes else "")) from error
        except TypeError as error:
            raise ConfigError(f"{here}: {configs.said(error)}") from error
        try:
            fits = np.broadcast_shapes(found.shape, shape) == shape
        except (AttributeError, ValueError):
            fits = False
        if not fits:
            raise ConfigError(f"{here}: expected numbers of shape {shape}, got {found}")


def check_clips(context: Context, block: Mapping[str, Any], earlier: Mapping[str, Any], where: str) -> None:
    """Clips of its own that a stage learns from: a stage before it that makes latents, or a folder with some."""
    if "clips" not in block:
        return
    if not latents.is_latent(context.config):
        raise ConfigError(f"{where}.clips: latents, where config.data are clips of pixels")
    if (stage := earlier.get(block["clips"])) is not None:
        if stage["kind"] != "generate":
            raise ConfigError(f"{where}.clips {block['clips']!r}: a stage of kind 'generate' is needed")
        if block["batch_size"] > stage["num_clips"]:
            raise ConfigError(
                f"{where}.batch_size asks for {block['batch_size']} clips, stage {block['clips']!r} makes {stage['num_clips']};"
                f" nearest: {stage['num_clips']}"
            )
        return
    if not (pathlib.Path(block["clips"]) / INDEX).is_file():
        raise ConfigError(
            f"{where}.clips {block['clips']!r} is no stage before it and no folder of latents; "
            + configs.nearest(block["clips"], earlier)
        )
    configs.check_enough(clips_of(context, block, where), block["batch_size"], f"{where}.batch_size", "train")


def clips_of(context: Context, block: Mapping[str, Any], where: str) -> data.Source:
    """What a stage learns from: the config's data, or `clips` of its own, which must be latents of the same kind."""
    source = configs.source(context.config, "train")
    if "clips" not in block:
        return source
    folder = context.workdir / block["clips"]
    own = configs.source(
        {"data": {"kind": "latents", "path": str(folder if folder.is_dir() else block["clips"])}}, "train"
    )
    for key in ("shape", "num_classes", "fingerprint"):
        if own.index.get(key) != source.index[key]:
            raise ConfigError(
                f"{where}.clips: their {key} is {own.index.get(key)!r}, config.data has {source.index[key]!r}"
            )
    return own


def run(context: Context, name: str, block: Mapping[str, Any]) -> None:
    """Trains a denoiser or a student and leaves its EMA weights with their record."""
    definition, network, method, rounds = plan(context, name, block)
    source = clips_of(context, block, f"config.stages.{name}")
    codec = latents.of(source, context.workdir, "config.data")
    record = {
        "format": 1,
        **beside.expected_of(context, definition, network, codec),
        "cond_keys": list(definition.cond_keys),
        "law": block.get("options", {}).get("law", "uniform_time") if block["method"] == "denoising" else None,
        "weights": "ema",
        "method": block["method"],
        "teacher": block.get("teacher"),
        "guidance": g if (g := block.get("guidance", 1.0)) != 1.0 or block.get("teacher") else None,
        "guidance_range": told(block),
        "latent": codec and codec.record_in(context.workdir / name),
    }
    if network.augmentation is not None:
        record["augmentation"] = network.augmentation
    if "noise" in context.config:
        record["noise"] = context.config["noise"]
    key = context.key(name)
    frozen = {}
    teacher = block.get("teacher")
    start = block.get("init") or (None if teacher == exact.ORACLE else teacher)
    initial = jax.random.fold_in(key, 2**31 - 1)
    if start:
        params = beside.load_fitting(context, start, definition, record, initial)
    else:
        params = meshes.made(definition.init, context.mesh, initial)
    if teacher == exact.ORACLE:
        # The exact denoiser, a function with its weights as leaves, like any other teacher an argument of the program.
        frozen["teacher"] = source.oracle.denoiser(network.schedule)
    elif teacher:
        own = beside.own_teacher(context, block, network, f"config.stages.{name}")
        fitting = (definition, record) if own is None else (own.definition, record | own.record)
        frozen["teacher"] = beside.load_fitting(context, teacher, *fitting, initial)
    if block.get("features"):
        frozen["features"] = meshes.put(weights.load(weights.find(block["features"], context.workdir))[0], context.mesh)
    if block.get("previous"):
        frozen["previous"] = beside.load_fitting(context, block["previous"], definition, record, initial)
    # Steps of the student stand in hyper from the first round on; teachers and steps are arguments, never constants.
    hyper = {"learning_rate_scale": 1.0, "guidance": float(block.get("guidance", 1.0))}
    if rounds:
        hyper["steps"] = float(rounds[0])
    # A critic of clips that a student will make is a denoiser first: the teacher, where the student begins as something else.
    denoiser = [frozen["teacher"]] if configs.has_critic(block["method"]) and teacher != exact.ORACLE else []
    state = meshes.made(method.init, context.mesh, key, params, *denoiser)
    run = loop.Run(method, state, frozen, hyper, block["steps"], max(1, len(rounds)))
    del params, state, frozen, denoiser  # what isn't used any more would stay for as long as it trains
    look = preview.Preview(context, name, block, network, source, codec) if "preview" in block else None
    finish_training(context, name, block, run, source, key, record, look)


def plan_classifier(block: Mapping[str, Any], where: str) -> tuple[dict[str, Any], ClassifierDef, Method]:
    """(its model's config spelt out, the classifier, the method): builds everything, computes nothing."""
    model = {**CLASSIFIER_DEFAULTS, **block.get("model", {})}  # spelt out: weights outlive a change of defaults
    classifier = configs.call(build_classifier, {}, f"{where}.model", config=model)
    optimiser = configs.optimiser(block.get("optimiser", {"learning_rate": 1e-3}), block["steps"], f"{where}.optimiser")
    method = configs.call(
        classifier_training.method,
        block.get("options", {}),
        f"{where}.options",
        classifier=classifier,
        optimiser=optimiser,
    )
    return model, classifier, accumulating(method, block.get("accumulate", 1))


def check_classifier(block: Mapping[str, Any], source: data.Source, where: str) -> None:
    """A classifier stage, before any work: its frames and classes are those of the clips."""
    model, *_ = plan_classifier(block, where)
    if tuple(model["shape"]) != tuple(source.shape[1:]):
        raise ConfigError(
            f"{where}.model.shape is {tuple(model['shape'])}, the frames of config.data are {tuple(source.shape[1:])}"
        )
    if not 0 < source.num_classes <= model["num_classes"]:
        raise ConfigError(
            f"{where}.model.num_classes is {model['num_classes']}, config.data has {source.num_classes or 'none'}: a classifier"
            " learns the classes of the clips"
        )


def run_classifier(context: Context, name: str, block: Mapping[str, Any]) -> dict[str, Any]:
    """Trains the frame classifier whose features the metrics use; returns its accuracy on held-out frames."""
    model, classifier, method = plan_classifier(block, f"config.stages.{name}")
    source, key = configs.source(context.config, "train"), context.key(name)
    state = method.init(key, classifier.init(jax.random.fold_in(key, 2**31 - 1)))
    record = {"format": 1, "kind": "classifier", "model": model, "shape": list(source.shape), "weights": "ema"}
    run = loop.Run(method, state, {}, {"learning_rate_scale": 1.0}, block["steps"])
    finish_training(context, name, block, run, source, key, record)
    clips = configs.source(context.config, "test")
    held_out = data.Batches(clips, min(HELD_OUT, len(clips)), seed=context.config["seed"]).batch_at(0)
    classify = classifier_training.classify_fn(classifier, meshes.whole(run.state.ema))
    logits, _ = classify(held_out["video"].reshape(-1, *source.shape[1:]))
    right = logits.argmax(-1) == np.repeat(held_out["label"], source.shape[0])
    return {"held_out_accuracy": float(right.mean()), "held_out_frames": len(right)}


def finish_training(
    context, name, block, run: loop.Run, source, key, record, look: preview.Preview | None = None
) -> None:
    """The part that all training shares: data, checkpoints, metrics, and the weights at the end of every round."""
    folder = context.workdir / name
    record = record | {
        "stage": name, "config": context.source, "seed": context.config["seed"], "data": context.config["data"],
        "batch_size": block["batch_size"], "train_steps": run.steps, "commit": commit(),
    }  # fmt: skip
    if meshes.leads():
        print(f"{name}: {int(parameter_overview.count_parameters(run.state.params)):,} parameters", flush=True)
        overview = parameter_overview.get_parameter_overview(run.state.params, include_stats=False)
        figures.write_atomically(folder / "parameters.txt", f"{overview}\n".encode())
    part, parts = meshes.reader(context.mesh, block["batch_size"])
    threads = block.get("threads", 1)
    batches = data.Batches(
        source, block["batch_size"], seed=context.config["seed"] + block.get("seed_offset", 0),
        process_index=part, process_count=parts, threads=threads, prefetch=2 * threads,
    )  # fmt: skip
    student_steps = block.get("student_steps", [])

    def on_round(run: loop.Run) -> None:
        params = meshes.whole(run.state.ema)
        if meshes.leads():
            save(run, params)
        meshes.meet(f"{name}: weights are written")

    def save(run: loop.Run, params: Any) -> None:
        if student_steps:
            steps = round(run.hyper["steps"])
            weights.save(weights.result_path(context.workdir, name, steps), params, record | {"steps": steps})
            if steps != student_steps[-1]:
                return
            weights.save(weights.result_path(context.workdir, name), params, record | {"steps": steps})
        else:
            weights.save(weights.result_path(context.workdir, name), params, record)

    def make_writer(step: int) -> Writer:
        if not meshes.leads():
            return MultiWriter([])
        try:
            writers: list[Writer] = [JsonlWriter(context.workdir / "metrics.jsonl", name, resume_step=step)]
        except Damaged as error:
            raise Damaged(f"{error}; remove that line, or the file") from None
        if block.get("tensorboard", True):
            writers.append(TensorBoardWriter(folder / "tensorboard", resume_step=step))
        return MultiWriter(writers)

    watching: dict[str, Any] = {}
    if "validation" in block:
        watching["validate"] = validation.Validation(context, name, block, key, run, record)
    if look is not None:
        watching["preview"] = look
    checkpoints = Checkpoints(folder / "checkpoints", keep=block.get("keep_checkpoints", 2))
    try:
        loop.train(
            run, batches, key, context.mesh, name=name, checkpoints=checkpoints, make_writer=make_writer, record=record,
            log_every=block.get("log_every", 50), checkpoint_every=block.get("checkpoint_every", 500), on_round=on_round,
            **watching,
        )  # fmt: skip
    finally:
        checkpoints.close()


@functools.cache
def commit() -> str | None:
    """The checkout's commit, with + where files differ from it; None outside a checkout."""
    folder = pathlib.Path(__file__).resolve().parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
