"""Every shipped config is one that the program takes, and a student of an exact teacher learns something."""

import functools
import itertools
import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.mixture import games, students
from configs.mixture.base import SHAPES, SPREADS
from configs.moving_digits import causal, classifier, few_steps, forcing, quickstart, teacher
from configs.moving_digits import games as digit_games
from configs.moving_digits import students as digit_students
from configs.moving_digits_64 import autoencoder as autoencoder_64
from configs.moving_digits_64 import base as base_64
from configs.moving_digits_64 import classifier as classifier_64
from configs.moving_digits_64 import few_steps as few_steps_64
from configs.moving_digits_64 import games as games_64
from configs.moving_digits_64 import latents as latents_64
from configs.moving_digits_64 import students as students_64
from configs.moving_digits_64 import teacher as teacher_64
from distill import GAMES, METHODS
from distill.games import CRITIC, STUDENT
from experiments import beside, latents, loop, mesh, run, stages, training, weights
from experiments import config as configs
from experiments.ablations import digits
from experiments.config import ConfigError
from experiments.data import latents as store
from experiments.data.exact import SHAPES as TRUE_SHAPES
from experiments.data.exact import Exact
from models.classifier import build_classifier

pytestmark = pytest.mark.usefixtures("quick_compilation")

STUDENTS = pathlib.Path(students.__file__)


def checked(config, tmp_path):
    stages.check(stages.Context(configs.plain(config), tmp_path, mesh.make()))


@pytest.mark.parametrize("module", [teacher, classifier, quickstart, few_steps])
def test_moving_digits(module, tmp_path):
    checked(module.get_config(), tmp_path)


@pytest.mark.parametrize(
    "module, names",
    [(module, name) for module, known in ((students, students.STUDENTS), (games, games.GAMES)) for name in ("all", *known)],
)  # fmt: skip
def test_mixtures(module, names, tmp_path):
    for law in ("", *(f",{name}" for name in SHAPES)):
        checked(module.get_config(names + law), tmp_path)


@pytest.mark.parametrize("method", digit_students.STUDENTS)
def test_moving_digits_students(method, tmp_path):
    checked(digit_students.get_config(method), tmp_path)


@pytest.mark.parametrize("name, calls", [(name, n) for name, counts in digits.PIXELS.games.items() for n in counts])
def test_moving_digits_games(name, calls, tmp_path):
    """And twice the budget buys twice as many steps."""
    config = digit_games.get_config(f"{name},{calls}")
    checked(config, tmp_path)
    twice = digit_games.get_config(f"{name},{calls},{2 * digit_students.BUDGET}")
    trained = [k for k, block in configs.plain(config)["stages"].items() if block["kind"] == "train"]
    assert trained[-1] == "student" and twice.stages.student.steps == pytest.approx(
        2 * config.stages.student.steps, abs=1
    )


def test_tracts_rounds_are_its_options_after_the_first(tmp_path):
    config = configs.plain(digit_students.get_config("tract"))
    del config["stages"]["evaluate"]
    block = config["stages"]["student"]
    block |= dict(student_steps=[32, 1], options=dict(weight="v"))  # the method's own
    stages.check(stages.Context(config, tmp_path, mesh.make()))
    del block["student_steps"]
    with pytest.raises(ConfigError, match=r"student_steps must be options.rounds after its first, \[32, 1\], got \[\]"):
        stages.check(stages.Context(config, tmp_path, mesh.make()))


def test_an_adversary_alone_has_no_use_for_guidance(tmp_path):
    config = digit_games.get_config("add")
    config.stages.student.options.distillation_weight = 0.0
    with pytest.raises(ConfigError, match="has no use for its teacher's answers; remove guidance"):
        checked(config, tmp_path)


@pytest.mark.parametrize(
    "reference, message",
    [
        ("pretrained:moving_digits/forcing", None),
        ("pretrained:moving_digits_64/teacher", r"its shape is \[9, 8, 8, 8\], this stage needs \[8, 16, 16, 1\]"),
    ],
)
def test_a_denoisers_features_are_those_of_such_clips(reference, message, tmp_path):
    config = digit_games.get_config("add")
    config.stages.student.features = reference
    if message is None:
        checked(config, tmp_path)
        return
    with pytest.raises(ConfigError, match=message):
        checked(config, tmp_path)


@pytest.mark.parametrize("student", causal.SOURCES)
def test_moving_digits_causal(student, tmp_path):
    checked(causal.get_config(student), tmp_path)
    with pytest.raises(ValueError, match="expected one of self_forcing, "):
        causal.get_config(student[:-1])


def test_moving_digits_forcing_wide(tmp_path):
    config = forcing.get_config("wide")
    checked(config, tmp_path)
    assert config.model.widths > forcing.get_config().model.widths
    with pytest.raises(ValueError, match="expected one of shipped, wide"):
        forcing.get_config("broad")


@pytest.mark.parametrize("module, name", [(causal, "causal_teacher"), (causal, "causal_student"), (forcing, "forcing")])
def test_shipped_networks_are_those_of_their_configs(module, name, tmp_path):
    """Stored as float16, they come back as what the program computes in; a stage may begin as them."""
    params, record = weights.load(weights.find(f"pretrained:moving_digits/{name}", tmp_path))
    config = module.get_config()
    assert record["model"] == json.loads(json.dumps(configs.plain(config)["model"]))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    config.stages.teacher.init = f"pretrained:moving_digits/{name}"
    checked(config, tmp_path)


@pytest.fixture
def encoded(tmp_path, monkeypatch):
    """A folder with all that configs/moving_digits_64/latents.py leaves, but for the numbers in it."""
    monkeypatch.chdir(tmp_path)
    codec = latents.load(base_64.AUTOENCODER, tmp_path, "here")
    pixels, folder = configs.plain(base_64.clips())["data"], tmp_path / base_64.LATENTS
    counts = {"train": 1280, "test": 1}  # as many as a search for times asks for
    for split, count in counts.items():
        store.write(folder / f"{split}.array_record", [dict(video=(), label=0)] * count)
    latents.write_index(folder, codec, counts, pixels, 10)


@pytest.mark.parametrize("module", [autoencoder_64, classifier_64, latents_64])
def test_moving_digits_64(module, tmp_path):
    checked(module.get_config(), tmp_path)


@pytest.mark.parametrize("method", digit_students.STUDENTS)
def test_every_student_runs_on_latents_by_config_alone(method, tmp_path, encoded):
    checked(students_64.get_config(method), tmp_path)


def test_on_latents_the_deviation_is_theirs():
    """Latents are written with that of one, clips of pixels have .4."""
    for config, expected in ((digit_students, 0.4), (students_64, 1.0)):
        assert config.get_config("continuous_training").stages.student.options.sigma_data == expected


@pytest.mark.parametrize("name, calls", [(name, n) for name, counts in digits.LATENTS.games.items() for n in counts])
def test_every_game_runs_on_latents_by_config_alone(name, calls, tmp_path, encoded):
    checked(games_64.get_config(f"{name},{calls}"), tmp_path)


@pytest.mark.parametrize("module", [teacher_64, few_steps_64])
def test_the_latent_teachers_configs(module, tmp_path, encoded):
    checked(module.get_config(), tmp_path)


def test_latents_that_a_student_needs_are_missed_before_any_work(tmp_path, encoded):
    (tmp_path / base_64.LATENTS).rename(tmp_path / "elsewhere")
    with pytest.raises(configs.ConfigError, match="no latents in"):
        checked(students_64.get_config("tract"), tmp_path)


def test_the_shipped_latent_teacher_is_that_of_its_config(tmp_path, encoded):
    _, record = weights.load(weights.find(base_64.TEACHER, tmp_path))
    config = teacher_64.get_config()
    assert record["model"] == json.loads(json.dumps(configs.plain(config)["model"]))
    config.stages.teacher.init = base_64.TEACHER
    checked(config, tmp_path)


def test_names_and_shapes_are_those_of_the_program():
    assert SHAPES == TRUE_SHAPES
    for name, spread in SPREADS.items():
        assert Exact(name, size=8192).clips.std() == pytest.approx(spread, rel=0.03)
    assert set(students.STUDENTS) <= set(METHODS)
    assert set(METHODS) - set(students.STUDENTS) - GAMES == {"denoising", "guided"}
    # LADD's discriminator sees through its teacher's features, and an exact teacher has none.
    assert {student.method or name for name, student in games.GAMES.items()} == GAMES - {"ladd"}
    assert {game.method for game in digit_games.GAMES.values()} <= GAMES
    for module, right in ((students, "progressive"), (games, "sid")):
        for wrong in (right[:-1], f"{right}+shortcutt", f"{right},ring"):
            with pytest.raises(ValueError, match="expected (all or some|one) of"):
                module.get_config(wrong)
    for module, name in ((digit_games, "dmd2"), (games_64, "dmd2"), (games_64, "ladd")):
        for wrong in ("few", "0", "-1", "4,2k", "4,0"):
            with pytest.raises(ValueError, match=f"expected a whole number from 1 up, as in {name},4,6000"):
                module.get_config(f"{name},{wrong}")
        with pytest.raises(ValueError, match="unknown student 'dmd3', expected one of"):
            module.get_config("dmd3")


@pytest.mark.parametrize(
    "method, given, expected",
    [
        ("consistency_trajectory", dict(options=dict(law="uniform_time", weight="v")), "choose options.data=False"),
        (
            "consistency_trajectory",
            dict(guidance=1.0, options=dict(law="uniform_time", weight="v", guidance_range=(1.0, 3.0))),
            "student.options.guidance_range: the clips, which teach the denoiser, know none",
        ),
        ("multistep_consistency", dict(teacher=None), "lacks the key 'teacher': multistep_consistency learns from one"),
        (
            "improved_consistency",
            dict(teacher=digit_students.TEACHER, guidance=1.5),
            "has no use for its teacher's answers; remove guidance",
        ),
        ("improved_consistency", dict(guidance=1.5), "guidance is the teacher's, and this stage has none"),
        ("mean_flow", dict(options=dict(kappa=0.5)), "options.kappa mixes a student's own guidance"),
        (
            "shortcut",
            dict(teacher=None, guidance=1.5, options=dict(label_dropout=0.0)),
            "never learns with options.label_dropout 0",
        ),
        ("shortcut", dict(teacher=None, guidance=1.5), None),
        ("reflow", dict(guidance=float("nan")), "student.guidance: expected a finite number, got nan"),
        ("reflow", dict(student_steps=8), "student_steps"),
        ("mean_flow", dict(teacher=None, guidance=2.0), None),
    ],
)
def test_what_a_student_learns_from_is_settled_before_any_work(method, given, expected, tmp_path):
    config = configs.plain(digit_students.get_config(method))
    config["stages"]["student"] |= given
    if "guidance_range" in given.get("options", {}):
        config["model"]["cond"] = ["logsnr_to", "guidance"]
    if expected is None:
        stages.check(stages.Context(config, tmp_path, mesh.make()))
        return
    with pytest.raises(ConfigError, match=re.escape(expected)):
        stages.check(stages.Context(config, tmp_path, mesh.make()))


@pytest.mark.parametrize(
    "method, options", [("moment_matching", {}), ("rcm", dict(warmup=20)), ("dmd2", dict(ratio=3, steps=1))]
)
def test_learning_rates_fall_to_their_ends_in_the_turns_that_there_are(method, options, tmp_path, monkeypatch):
    """Counted by the order in which a game's phases come."""
    config, asked = configs.plain(digit_games.get_config(method)), []
    block = config["stages"]["student"] | dict(steps=60, options=config["stages"]["student"]["options"] | options)
    make = configs.optimiser
    monkeypatch.setattr(
        configs, "optimiser", lambda rule, steps, where: asked.append(steps) or make(rule, steps, where)
    )
    *_, made, _ = training.plan(stages.Context(config, tmp_path, mesh.make()), "student", block)
    turns = [phase for step in range(60) for phase in made.order(step)]
    assert asked == [turns.count(STUDENT), turns.count(CRITIC)]


def discriminator(config, tmp_path, **heads):
    """(that of a config's student, the network's definition)"""
    context = stages.Context(configs.plain(config), tmp_path, mesh.make())
    block, (definition, _) = context.config["stages"]["student"], configs.network(context.config)
    block["heads"] = block.get("heads", {}) | heads
    return beside.critic(context, block, definition, "student")["discriminator"], definition


def seen(judge, params, shape):
    """(shapes of maps, shapes of logits, names of heads)"""
    video, level, label = jnp.zeros((2, *shape)), jnp.zeros(2), jnp.zeros(2, int)
    maps = jax.eval_shape(lambda: judge.features(params, video, level, {"label": label}))
    heads = jax.eval_shape(judge.init, jax.random.key(0))
    logits = jax.eval_shape(lambda heads, maps: judge.apply(heads, maps, label, level), heads, maps)
    return [m.shape[1:] for m in maps], jax.tree.map(lambda leaf: leaf.shape[1:], logits), sorted(heads)


def test_ladds_discriminator_judges_every_place_of_every_level(tmp_path):
    """And another choice of maps, by config; heads that are told nothing else keep to the bottleneck and one logit each."""
    config, down, low = games_64.get_config("ladd"), (9, 8, 8), (9, 4, 4)
    judge, net = discriminator(config, tmp_path)
    params = jax.eval_shape(net.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)
    maps, logits, names = seen(judge, params, net.shape)
    assert maps == [(*down, 96), (*low, 128), (*down, 96)] and logits == (down, down, low, low, down, down)
    assert names == [f"{kind}{i}" for kind in ("spatial", "temporal") for i in range(3)]
    maps, logits, _ = seen(discriminator(config, tmp_path, layers=(2,), places=False)[0], params, net.shape)
    assert maps == [(*down, 96)] and logits == (2,)
    config.stages.student.heads = {}
    maps, logits, _ = seen(discriminator(config, tmp_path)[0], params, net.shape)
    assert maps == [(*low, 128)] and logits == (2,)


def test_of_a_frozen_networks_maps_some_may_be_chosen(tmp_path):
    config, network = digit_games.get_config("add"), build_classifier(classifier.STAGE.get("model", {}))
    params, shape = network.init(jax.random.key(0)), tuple(config.model.shape)
    every, _, _ = seen(discriminator(config, tmp_path)[0], params, shape)
    some, logits, _ = seen(discriminator(config, tmp_path, layers=(2, 0), kinds=("spatial",))[0], params, shape)
    assert len(every) == 3 and some == [every[2], every[0]] and logits == (2,)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (dict(layers=(3,)), r"student.heads: layers is 'all' or different whole numbers from 0 to 2, got \(3,\)"),
        (dict(layers="al"), "student.heads: layers is 'all' or different whole numbers from 0 to 2, got 'al'"),
        (dict(layrs="all"), "student.heads has no key 'layrs'; did you mean 'layers'"),
    ],
)
def test_maps_that_there_are_not_are_refused(heads, message, tmp_path):
    with pytest.raises(configs.ConfigError, match=message):
        discriminator(games_64.get_config("ladd"), tmp_path, **heads)


def test_a_student_of_the_exact_teacher_beats_ddim_at_one_call(tmp_path):
    """A tiny run of the whole chain: denoiser, consistency trajectories with an input that the denoiser lacks, the truth."""
    code = run.main([
        "run", f"--config={STUDENTS}:consistency_trajectory,a1d", f"--workdir={tmp_path}", "--config.data.size=4096",
        "--config.stages.denoiser.steps=150", "--config.stages.denoiser.batch_size=128",
        "--config.stages.consistency_trajectory.steps=250",
        "--config.stages.consistency_trajectory.batch_size=128",
    ])  # fmt: skip
    assert not code
    report = configs.read_json(tmp_path / "report.json")["metrics"]
    assert report["consistency_trajectory_1"]["wasserstein"][2] < 0.7 * report["oracle_1"]["wasserstein"][1]


def test_ten_halvings_from_1024_steps_compile_once(tmp_path, monkeypatch):
    """The mixture's progressive student, at two updates a round: every round is the same program."""
    compiled = {}

    def remember(method, mesh):
        compiled.update(compile_phases(method, mesh))
        return compiled

    compile_phases = loop.compile_phases
    monkeypatch.setattr(loop, "compile_phases", remember)
    config = students.get_config("progressive")
    with config.unlocked():
        del config.stages["exact"]
        config.stages.denoiser.steps = 1
        config.stages.progressive.steps = 2
    context = stages.Context(configs.plain(config), tmp_path, mesh.make())
    run.run(context)
    assert compiled["train"]._cache_size() == 1
    left = sorted(int(path.stem.split("@")[1]) for path in (tmp_path / "progressive").glob("weights@*.safetensors"))
    assert left == [2**k for k in range(10)]


@pytest.mark.parametrize(
    "override, message",
    [
        ("--config.stages.progressive.teacher=denoser", "no stage before it; did you mean 'denoiser'"),
        ("--config.stages.progressive.student_steps=(8,4,1)", "must halve"),
        ("--config.stages.progressive.options.weight=snrr", "did you mean 'snr'"),
        ("--config.data.name=a1d", "shape"),
    ],
)
def test_wrong_pairs_are_refused_by_name(override, message, tmp_path, capsys):
    arguments = ["run", f"--config={STUDENTS}:progressive", f"--workdir={tmp_path}"]
    assert run.main([*arguments, override]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "method, change, message",
    [
        ("progressive", dict(guidance=2.0), "unconditional"),
        ("consistency_distillation", dict(teacher=None), "lacks the key 'teacher'"),
        ("truncated_consistency", dict(previous=None), "lacks the key 'previous'"),
        (
            "consistency_distillation",
            dict(previous="denoiser"),
            "stages.consistency_distillation.previous: .* has no use for",
        ),
        ("tract", dict(student_steps=(16, 1)), "student_steps must be options.rounds"),
        ("shortcut", dict(options=dict(law="uniform_time", weight="velocity", finest=100)), "finest"),
        ("mean_flow", dict(steps=0), r"stages.mean_flow.steps must be at least 1, got 0"),
        ("mean_flow", dict(log_every=0), "log_every must be at least 1"),
        ("mean_flow", dict(options=dict(ema=99.9)), r"options: ema: expected a number from 0 up, below 1, got 99.9"),
        (
            "progressive",
            dict(options=dict(weight="fused_min_snr")),
            "options.weight: fused_min_snr: expected a level per frame",
        ),
    ],
)
def test_stages_that_cannot_be_are_refused_by_name(method, change, message, tmp_path):
    config = students.get_config(method)
    with config.unlocked():
        for key, value in change.items():
            if value is None:
                del config.stages[method][key]
            else:
                config.stages[method].update({key: value})
    with pytest.raises(configs.ConfigError, match=message):
        checked(config, tmp_path)


def paths(block, path=()):
    for key, value in block.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from paths(value, (*path, key))


@pytest.mark.parametrize(
    "config", [quickstart.get_config(), causal.get_config(), forcing.get_config(), games.get_config("dmd2")]
)
def test_a_value_of_another_form_is_a_mistake_and_no_accident(config, tmp_path):
    """Of every key one that can't be: it is refused in a line of our own, or harmless; nothing breaks over it."""
    wrong = itertools.cycle([None, [1, 2, 3, 4, 5], "x", {}, math.nan, -1.5, True])
    refused = 0
    for path, value in zip(paths(configs.plain(config)), wrong, strict=False):
        changed = configs.plain(config)
        functools.reduce(dict.__getitem__, path[:-1], changed)[path[-1]] = value
        try:
            stages.check(stages.Context(changed, tmp_path, mesh.make()))
        except ConfigError as error:
            # In tests the annotations themselves refuse what isn't plain, at length.
            assert len(str(error).splitlines()) == 1 or "Type-check error" in str(error), error
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(options=dict(label_dropout=10)), r"label_dropout: expected a number from 0 up, below 1, got 10"),
        (dict(options=dict(label_dropout=[0.1])), r"label_dropout: expected a number from 0 up, below 1, got \[0.1\]"),
        (dict(options=dict(ema="x")), r"options: ema: expected a number, got 'x'"),
        (dict(options=dict(per_frame=2)), r"options: per_frame: expected True or False, got 2"),
        (dict(options=None), r"stages.teacher.options: expected a block of keys, got None"),
        (dict(init=7), r"stages.teacher.init: expected a name, got 7"),
        (dict(tensorboard="no"), r"stages.teacher.tensorboard: expected True or False, got 'no'"),
        (dict(options=dict(weight=3)), r"options.weight: expected a name, or a block of keys with 'kind', got 3"),
        (dict(options=dict(law=dict(kind="per_frame", draw=3))), r"law.kind 'per_frame' is not known"),
    ],
)
def test_a_value_of_another_form_is_named(change, message, tmp_path):
    config = configs.plain(teacher.get_config())
    config["stages"]["teacher"] |= change
    with pytest.raises(ConfigError, match=message):
        stages.check(stages.Context(config, tmp_path, mesh.make()))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(guidance=1.5), r"guidance 1.5 and options.guidance_range \[1.0, 3.0\]: .* remove one of the two"),
        (dict(options=dict(guidance_range=(1.0, 9.0))), r"range \[1.0, 9.0\]: teacher 'guided' was told g from 1 to 3"),
        (dict(teacher=digit_students.TEACHER), "teacher 'pretrained:moving_digits/teacher' was never told g"),
    ],
)
def test_halvings_of_a_student_that_is_told_g_need_a_teacher_that_was(change, message, tmp_path):
    config = digit_students.get_config("guided")
    with config.unlocked():
        config.stages.student.update(change)
    with pytest.raises(configs.ConfigError, match=message):
        checked(config, tmp_path)


def test_a_budget_is_a_number_that_pays_for_a_step(tmp_path):
    assert digit_students.get_config("mean_flow,61").stages.student.steps == 10
    with pytest.raises(ValueError, match="budget '2k': expected a whole number of forwards"):
        digit_students.get_config("mean_flow,2k")
    with pytest.raises(configs.ConfigError, match="steps must be at least 1"):
        checked(digit_students.get_config("mean_flow,3"), tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(prediction="eps"),
            r"config.prediction 'eps' is an eps-loss, .* no signal .*SNR 2e-09.*choose 'v' or 'x0'",
        ),
        (dict(prediction="score"), "config.prediction 'score' is an eps-loss"),
        (dict(weight="snr"), r"stages.student.options.weight 'snr' is an eps-loss, .*weight 'v' or 'truncated_snr'"),
        (dict(weight="min_snr"), "options.weight 'min_snr' is an eps-loss"),
    ],
)
def test_an_eps_loss_refuses_zero_terminal_snr(change, message, tmp_path):
    """On the cosine, which ends in noise alone; the mixtures' schedule keeps some signal, so there eps may stand beside v."""
    config = quickstart.get_config()
    config.prediction = change.get("prediction", "v")
    config.stages.student.options.weight = change.get("weight", "v")
    with pytest.raises(configs.ConfigError, match=message):
        checked(config, tmp_path)
    config = students.get_config("progressive")
    config.prediction = "eps"
    config.stages.progressive.options.weight = "snr"
    checked(config, tmp_path)


@pytest.mark.parametrize("schedule, refused", [(dict(kind="vp_cosine"), True), (dict(kind="vp_linear"), False)])
def test_fused_weights_of_a_level_per_frame_are_held_against_the_noisy_end(schedule, refused, tmp_path):
    """They vanish as the SNR does, so that a student's first step would learn nothing where there is none."""
    config = configs.plain(students.get_config("progressive"))
    block = config["stages"]["progressive"] | {"options": dict(per_frame=True, weight="fused_min_snr")}
    config |= {"schedule": schedule, "stages": config["stages"] | {"progressive": block}}
    context = stages.Context(config, tmp_path, mesh.make())
    if refused:
        with pytest.raises(ConfigError, match="options.weight 'fused_min_snr' is an eps-loss"):
            stages.check(context)
    else:
        stages.check(context)


def test_a_forward_derivative_refuses_fused_attention(tmp_path):
    config = quickstart.get_config()
    config.model.attention = "fused"
    with config.unlocked():
        config.stages.student = dict(
            kind="train", method="continuous_distillation", teacher=config.stages.student.teacher, steps=1, batch_size=4
        )
        del config.stages["evaluate"]
    with pytest.raises(configs.ConfigError, match="forward derivative"):
        checked(config, tmp_path)


def test_an_unknown_student_of_latents_is_told_of_ladd():
    with pytest.raises(ValueError, match=r"unknown student 'lad', expected one of dmd, .*, add, ladd$"):
        games_64.get_config("lad")


@pytest.mark.parametrize("where", ["a stage's weights", "shipped weights", "times", "a table of a law"])
def test_a_solver_that_jumps_refuses_a_network_that_is_not_told_where_to(where, tmp_path):
    config = quickstart.get_config()
    jumping = dict(steps=2, solver="flow_map")
    if where == "a stage's weights":
        config.stages.evaluate.samplers.student_1.solver = "flow_map"
    elif where == "shipped weights":
        config.stages.evaluate.samplers = ConfigDict(
            dict(a=dict(weights="pretrained:moving_digits/teacher", **jumping))
        )
    elif where == "times":
        del config.stages["evaluate"]
        config.stages.times = dict(kind="times", weights="student", counts=(2,), solver="flow_map")
    else:
        config = students.get_config("progressive")
        config.stages.exact.samplers = ConfigDict(dict(a=dict(weights="oracle", **jumping)))
    with pytest.raises(configs.ConfigError, match="solver jumps to levels that its network must be told"):
        checked(config, tmp_path)
    told = digit_students.get_config("shortcut")
    assert told.stages.evaluate.samplers.student_1.solver == "flow_map"
    checked(told, tmp_path)
