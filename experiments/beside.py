"""The networks that a stage has beside its student's, by their weights' records: a teacher of another kind, the critic that
begins as it, the features that a discriminator sees.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax import Array

from diffusion import schedules
from distill import Discriminator, Network
from experiments import config as configs
from experiments import drawing, exact, latents, weights
from experiments import mesh as meshes
from experiments.config import ConfigError
from experiments.context import Context
from models import INPUTS, ModelDef, build_heads, inherit, weights_of
from models.classifier import DEFAULTS as CLASSIFIER_DEFAULTS
from models.classifier import build_classifier
from models.definition import chosen_layers
from models.heads import DEFAULTS as HEADS_DEFAULTS


class Own(NamedTuple):
    """A teacher's network where it is another than the student's, and the part of its record that says so."""

    definition: ModelDef
    network: Network
    record: dict[str, Any]


def own_teacher(context: Context, block: Mapping[str, Any], network: Network, where: str) -> Own | None:
    """The teacher's own network, by its weights' record, or None where it is the student's. It is completed with the inputs of
    the stage's network, and with the exit of which a critic is to be told. ConfigError where its clips, classes or schedule
    are others, or where the student would begin as it.
    """
    reference, config = block.get("teacher") or "", context.config
    # Another stage's is of the same config, and an exact teacher is no network.
    if not weights.is_file(reference):
        return None
    _, record = weights.load(weights.find(reference, context.workdir))
    if record.get("kind") != "denoiser" or (
        without_inputs(record)["model"] == without_inputs(config)["model"]
        and record["prediction"] == config["prediction"]
    ):
        return None
    ours = {
        "shape": list(config["model"]["shape"]), "num_classes": network.num_classes,
        "schedule": schedules.record(network.schedule),
    }  # fmt: skip
    check_fits(record, ours, f"{where}.teacher {reference!r}")
    if not block.get("init"):
        raise ConfigError(
            f"{where} lacks the key 'init': teacher {reference!r} is a {record['model']['kind']!r} of prediction"
            f" {record['prediction']!r}, no weights for this stage's {config['model']['kind']!r} of {config['prediction']!r}"
        )
    told = ("logsnr_to",) if configs.method_option(block["method"], block.get("options", {}), "exit_told") else ()
    wanted = {*record["model"].get("cond", ()), *config["model"].get("cond", ()), *told}
    model = {**record["model"], "cond": [name for name in INPUTS if name in wanted]}
    definition, of = configs.network({**config, "model": model, "prediction": record["prediction"]})
    of = of._replace(forced=network.forced and "history" in definition.cond_keys)
    return Own(definition, of, {"model": model, "prediction": record["prediction"]})


def check_fits(record: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """As `weights.check_fits`, but that a schedule may have a clock of its own. A network is told log-SNRs, and no times: it
    answers on any clock where data are scaled as those that it has seen, and neither noisier nor cleaner.
    """
    own, ours = record.get("schedule", expected["schedule"]), expected["schedule"]
    if own["scaling"] == ours["scaling"]:
        ends = ("logsnr_start", "logsnr_end")
        (noisy, clean), (start, end) = ([float(one[name]) for name in ends] for one in (own, ours))
        if not noisy <= start < end <= clean:
            raise ConfigError(
                f"{what} does not fit: it has seen log-SNRs from {noisy:g} to {clean:g}, config.schedule goes from {start:g} to"
                f" {end:g}"
            )
        record = {**record, "schedule": ours}
    weights.check_fits(record, expected, what)


def without_inputs(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record whose model says nothing of `INPUTS`, since a network that lacks some can be completed, and nothing of how its
    answers are computed: a teacher is computed as its student is.
    """
    return {**record, "model": {k: v for k, v in weights_of(record.get("model", {})).items() if k != "cond"}}


def critic(context: Context, block: Mapping[str, Any], definition: ModelDef, where: str) -> dict[str, Any]:
    """What the method of a game is given beside its options and optimisers: a discriminator, where it has use for one. Refuses
    what belongs to a critic from a method that has none. `heads` has the keys of `build_heads`, and `layers`: the maps that
    heads are put on, as `ModelDef.features` takes them.
    """
    given: dict[str, Any] = {}
    for parameter, keys in (("critic_optimiser", ("critic_optimiser",)), ("discriminator", ("heads", "features"))):
        if configs.takes(block["method"], parameter):
            continue
        for key in keys:
            if key in block:
                raise ConfigError(f"{where}.{key}: method {block['method']!r} has no {parameter.replace('_', ' ')}")
    if configs.takes(block["method"], "discriminator"):
        # Of a method without the choice they are the teacher's.
        whose = configs.method_option(block["method"], block.get("options", {}), "features") or "teacher"
        if (whose == "frozen") != ("features" in block):
            raise ConfigError(
                f"{where}.features names the network whose features the discriminator sees, where {where}.options.features is"
                f" 'frozen'; the latter is {whose!r}, and there is {'one' if 'features' in block else 'none'}"
            )
        if whose == "teacher" and block.get("teacher") == exact.ORACLE:
            raise ConfigError(f"{where}.options.features: the exact teacher is no network and has no features")
        of = Features(definition.features, definition.channels, definition.hidden, definition.init)
        if whose == "frozen":
            of = feature_network(context, block["features"], where)
        options = dict(block.get("heads", {}))
        configs.check_keys(options, {*HEADS_DEFAULTS, "layers"}, set(), f"{where}.heads")
        features, channels = of.features, of.channels
        if (layers := options.pop("layers", None)) is not None:
            chosen = configs.call(chosen_layers, {}, f"{where}.heads", layers=layers, count=len(of.hidden))
            features, channels = functools.partial(features, layers=chosen), tuple(of.hidden[i] for i in chosen)
        heads = configs.call(
            build_heads, {}, f"{where}.heads", config=options, channels=channels, num_classes=definition.num_classes
        )
        given["discriminator"] = Discriminator(features, heads.init, heads.apply)
    return given


class Features(NamedTuple):
    """(params, x, logsnr, cond, layers=None) -> maps of a network, their channels, those of all its layers, its `init`."""

    features: Callable[..., Any]
    channels: tuple[int, ...]
    hidden: tuple[int, ...]
    init: Callable[..., Any]


def feature_network(context: Context, reference: str, where: str) -> Features:
    """A classifier or a denoiser, finished or still to be trained."""
    stage = context.config["stages"].get(reference.split("@")[0])
    if stage is None:
        record = weights.load(weights.find(reference, context.workdir))[1]
    elif stage["kind"] in ("classifier", "train"):
        model = {**CLASSIFIER_DEFAULTS, **stage.get("model", {})} if stage["kind"] == "classifier" else None
        record = {"kind": stage["kind"], "model": model or context.config["model"]}
    else:
        raise ConfigError(f"{where}.features: stage {reference!r} trains no network")
    if record["kind"] == "classifier":
        frame, shape = tuple(record["model"]["shape"]), tuple(context.config["model"]["shape"])
        if latents.is_latent(context.config) or frame != shape[1:]:
            clips = "latents" if latents.is_latent(context.config) else "clips"
            raise ConfigError(
                f"{where}.features {reference!r} is a classifier of frames of pixels of shape {frame}, the {clips} are of shape"
                f" {shape}; a discriminator on the teacher's own features fits them (method 'ladd')"
            )
        classifier = configs.call(build_classifier, {}, f"{where}.features", config=record["model"])

        def taps(
            params: Any, x: Array, logsnr: Array, cond: Any, layers: Sequence[int] | None = None
        ) -> tuple[Array, ...]:
            maps = classifier.taps(params, x)
            return maps if layers is None else tuple(maps[i] for i in layers)

        return Features(taps, classifier.channels, classifier.channels, classifier.init)
    if stage is None:
        config, what = context.config, f"{where}.features {reference!r}"
        ours = {"schedule": schedules.record(configs.schedule(config))}
        ours |= {"shape": list(config["model"]["shape"]), "num_classes": config["model"]["num_classes"]}
        check_fits(record, ours, what)
        codec = latents.of(configs.source(config, "train"), context.workdir, what)
        drawing.check_space(record, codec and codec.record, what)
    network = configs.model({"model": record["model"]})
    return Features(network.features, network.channels, network.hidden, network.init)


def expected_of(
    context: Context, definition: ModelDef, network: Network, codec: latents.Codec | None
) -> dict[str, Any]:
    """What the record of a stage's weights says of their network, and that of weights to begin with must."""
    return {
        "kind": "denoiser", "model": context.config["model"], "prediction": network.prediction,
        "schedule": schedules.record(network.schedule), "shape": list(definition.shape),
        "num_classes": definition.num_classes, "latent": codec and codec.record,
    }  # fmt: skip


def check_record(record: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Refuses weights whose network is another than `expected_of`, or of another space."""
    keys = ("kind", "model", "prediction", "schedule", "shape", "num_classes")
    check_fits(without_inputs(record), without_inputs({k: expected[k] for k in keys}), what)
    drawing.check_space(record, expected["latent"], what)


def check_files(
    context: Context, block: Mapping[str, Any], definition: ModelDef, network: Network, own: Own | None, where: str
) -> None:
    """Weights from elsewhere, before any work: those of the run's own stages fit. A teacher answers for the noise that it was
    trained with; weights to begin with may learn another (as PYoCo did).
    """
    for key in ("teacher", "init", "previous"):
        if not weights.is_file(reference := block.get(key) or ""):
            continue
        what, (_, record) = f"{where}.{key} {reference!r}", weights.load(weights.find(reference, context.workdir))
        if record.get("kind") != "denoiser":
            continue  # refused where all that a stage refers to is
        codec = latents.of(configs.source(context.config, "train"), context.workdir, "config.data")
        expected = expected_of(context, definition, network, codec)
        check_record(record, expected | (own.record if own and key == "teacher" else {}), what)
        if key != "init" and not configs.same_noise(configs.noise(record, tuple(record["shape"])), network.noise):
            told = (record.get("noise", "iid"), context.config.get("noise", "iid"))
            raise ConfigError(f"{what} was trained with noise {told[0]!r}, config.noise is {told[1]!r}")


def load_fitting(
    context: Context, reference: str, definition: ModelDef, expected: Mapping[str, Any], key: jax.Array
) -> Any:
    """Weights by reference, on the mesh, refused by name if their record doesn't fit the stage that wants them.

    A network may lack inputs that the stage's has (`cond` of its config): it is completed, and answers as before. How it is
    computed (`models.builders.COMPUTED`) is no part of its weights.
    """
    path = weights.find(reference, context.workdir)
    params, record = weights.load(path)
    check_record(record, expected, f"{reference} ({path})")
    try:
        return meshes.put(inherit(params, definition, key), context.mesh)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{reference} ({path}) does not fit: {error.args[0]}") from None
