"""Cascades: the exact chain's law, the noise in the clips to upsample, a whole tiny run, and what is refused by name."""

import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion import cascade, grids, levels, oracles, schedules, solvers
from distill import METHODS, Discriminator, Network
from distill.inputs import condition
from experiments import cascade as stage_kind
from experiments import config as configs
from experiments import drawing, sample, weights
from experiments import run as program
from experiments.metrics import Measure
from tests.test_non_finite import OPTIONS

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = str(ROOT / "tests/configs/tiny_cascade.py")
COSINE = schedules.vp_cosine()


# The mathematics ----------------------------------------------------------------------------------------------


def gaussian_denoiser(mean, covariance, schedule=COSINE):
    """(x, logsnr) -> E[x0 | x] of N(mean, covariance), mean [b, d]: by the closed form, one level for all."""

    def denoise(x, logsnr):
        alpha, sigma = (
            jnp.asarray(c, jnp.float32).reshape(-1)[0] for c in (schedule.alpha(logsnr), schedule.sigma(logsnr))
        )
        gain = alpha * covariance @ jnp.linalg.inv(alpha**2 * covariance + sigma**2 * jnp.eye(len(covariance)))
        flat = x.reshape(len(x), -1)
        return (mean + (flat - alpha * mean) @ gain.T).reshape(x.shape)

    return denoise


@pytest.mark.parametrize("aug_logsnr", [math.inf, 1.0, -1.0])
def test_exact_stages_make_the_joint_law(aug_logsnr):
    """Frames 0 and 2 of a Gaussian video of four, then all four given them, noised: covariance in closed form.

    Without noise it is the video's. With it the second stage knows x_low only through alpha x_low + sigma eps, and its clips
    have the video's law all the same, while their covariance with the first stage's shrinks to alpha C C_n^-1 alpha C.
    """
    law = oracles.rbf(4, 1.5, nugget=1e-2)
    kept = np.array([0, 2])
    whole, low = jnp.asarray(law, jnp.float32), jnp.asarray(law[np.ix_(kept, kept)], jnp.float32)
    cross = jnp.asarray(law[:, kept], jnp.float32)
    alpha, sigma = (float(f(aug_logsnr)) for f in (COSINE.alpha, COSINE.sigma))
    noised = alpha**2 * low + sigma**2 * jnp.eye(2)
    gain = alpha * cross @ jnp.linalg.inv(noised)

    def upsampler(cond):
        seen = cond["low"][:, ::2].reshape(-1, 2)  # every frame stands twice
        np.testing.assert_array_equal(cond["low"][:, ::2], cond["low"][:, 1::2])
        np.testing.assert_array_equal(cond["aug_logsnr"], np.full(len(seen), aug_logsnr, np.float32))
        return gaussian_denoiser(seen @ gain.T, whole - gain @ (alpha * cross.T))

    table = solvers.dpmpp(COSINE, grids.uniform_logsnr(COSINE, 60, start=-12.0, end=12.0), order=2)
    base = cascade.Stage(lambda cond: gaussian_denoiser(0.0, low), table, COSINE, (2, 1, 1, 1))
    above = cascade.Stage(upsampler, table, COSINE, (4, 1, 1, 1), aug_logsnr)
    small, made = cascade.sample([base, above], jax.random.key(0), 20_000)
    assert small.shape == (20_000, 2, 1, 1, 1) and made.shape == (20_000, 4, 1, 1, 1)
    joint = np.concatenate([np.asarray(x).reshape(len(x), -1) for x in (small, made)], 1)
    between = np.asarray(alpha * low @ gain.T)
    expected = np.block([[np.asarray(low), between], [between.T, law]])
    np.testing.assert_allclose(np.cov(joint.T), expected, atol=0.05)


def test_a_low_clip_has_the_noise_that_it_is_said_to_have():
    low = jnp.full((4000, 2, 3, 3, 1), 0.5)
    level = jnp.where(jnp.arange(4000) < 2000, 1.0, 5.0)
    cond = cascade.conditioning(low, level, (4, 6, 6, 1), COSINE, jax.random.key(0))
    np.testing.assert_array_equal(cond["aug_logsnr"], level)
    made = np.asarray(cond["low"])
    assert made.shape == (4000, 4, 6, 6, 1)
    # Repeated in time and space: noise, too.
    np.testing.assert_array_equal(made[:, ::2], made[:, 1::2])
    np.testing.assert_array_equal(made[:, :, ::2, ::2], made[:, :, 1::2, 1::2])
    for rows, logsnr in ((slice(0, 2000), 1.0), (slice(2000, None), 5.0)):
        part = made[rows, ::2, ::2, ::2]
        assert part.mean() == pytest.approx(0.5 / math.sqrt(1 + math.exp(-logsnr)), abs=0.01)
        assert part.var() == pytest.approx(1 / (1 + math.exp(logsnr)), rel=0.02)
    assert abs(np.corrcoef(made[:, 0, 0, 0, 0], made[:, 2, 0, 0, 0])[0, 1]) < 0.06
    clean = cascade.conditioning(low, math.inf, (2, 3, 3, 1), COSINE, jax.random.key(0))
    np.testing.assert_array_equal(clean["low"], low)


def test_what_is_repeated_then_cropped_is_what_is_cropped_then_repeated():
    low = jnp.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4, 1)
    whole = cascade.upsample(low, (4, 16, 16))
    part = cascade.upsample(low[:, 1:, 1:3, 2:4], (2, 8, 8))
    np.testing.assert_array_equal(whole[:, 2:, 4:12, 8:16], part)
    # Frames go with frames, rows with rows.
    assert whole[0, 3, 15, 0, 0] == low[0, 1, 3, 0, 0] and whole[0, 0, 0, 15, 0] == low[0, 0, 0, 3, 0]


@pytest.mark.parametrize(
    "low, shape, said",
    [((3, 4, 4), (8, 4, 4), "8 frames can't be made of 3: no whole factor; nearest: 9"),
     ((4, 4, 4), (4, 6, 4), "6 rows can't be made of 4"), ((4, 4, 4), (4, 4, 7), "7 columns can't be made of 4")],
)  # fmt: skip
def test_a_factor_that_does_not_divide_is_refused_by_name(low, shape, said):
    with pytest.raises(ValueError, match=said):
        cascade.factors(low, shape)
    with pytest.raises(ValueError, match=said):
        cascade.upsample(jnp.zeros((1, *low, 1)), shape)


def test_a_stage_that_does_not_fit_is_refused_before_any_clip_is_made():
    table = solvers.ddim(COSINE, grids.uniform_time(COSINE, 1))
    made = []

    def denoise(cond):
        made.append(cond)
        return lambda x, logsnr: x

    stages = [cascade.Stage(denoise, table, COSINE, shape) for shape in ((2, 4, 4, 1), (2, 6, 4, 1))]
    with pytest.raises(ValueError, match="6 rows can't be made of 4"):
        cascade.sample(stages, jax.random.key(0), 1)
    assert not made


def test_factors_that_a_record_does_not_tell_are_missed_by_name():
    with pytest.raises(configs.ConfigError, match="here: the record of these weights doesn't say how much larger"):
        stage_kind.grown((2, 4, 4, 1), dict(cond_keys=["low"], data=dict(kind="mine:Clips")), "here")


# Training -----------------------------------------------------------------------------------------------------


def batch(size=4096):
    rng = np.random.default_rng(0)
    return {
        "video": jnp.asarray(rng.integers(0, 256, (size, 2, 2, 2, 1), np.uint8)),
        "low": jnp.full((size, 1, 1, 1, 1), 204, jnp.uint8),  # .6
        "label": jnp.zeros(size, jnp.int32),
    }


def test_training_draws_the_level_of_the_low_clip_in_its_range():
    network = Network(None, COSINE, "v", 3, ("label", "low", "aug_logsnr"), augmentation=(1.0, 3.0))
    cond = jax.jit(lambda b, key: condition(network, b, key))(batch(), jax.random.key(0))
    level, low = np.asarray(cond["aug_logsnr"]), np.asarray(cond["low"])
    assert set(cond) == {"label", "low", "aug_logsnr"} and level.shape == (4096,) and low.shape == (4096, 2, 2, 2, 1)
    assert 1 <= level.min() < 1.01 and 2.99 < level.max() <= 3 and level.mean() == pytest.approx(2, abs=0.05)
    # Every clip has the noise of its own level.
    eps = (low[:, 0, 0, 0, 0] - 0.6 / np.sqrt(1 + np.exp(-level))) * np.sqrt(1 + np.exp(level))
    for half in (level < 2, level >= 2):
        assert eps[half].mean() == pytest.approx(0, abs=0.08) and eps[half].std() == pytest.approx(1, abs=0.05)
    # Labels are those of a network that upsamples nothing.
    plain = condition(network._replace(cond_keys=("label",)), batch(), jax.random.key(0), 0.5)
    assert list(plain) == ["label"]
    np.testing.assert_array_equal(plain["label"], condition(network, batch(), jax.random.key(0), 0.5)["label"])


def test_without_augmentation_the_low_clip_is_clean():
    network = Network(None, COSINE, "v", 0, ("low",))
    cond = condition(network, batch(8), jax.random.key(0))
    assert list(cond) == ["low"]
    np.testing.assert_allclose(cond["low"], 0.6, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_every_call_the_low_clip_of_its_clips(name):
    """Teacher, student and critic: the low clips are rows of those that were drawn for the step, beside the level of each."""
    seen = []

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        assert cond["low"].shape == x.shape and cond["aug_logsnr"].shape == (len(x),)
        seen.append(train)
        mean = cond["low"] * jnp.tanh(levels.expand(cond["aug_logsnr"], x)) + params["label"][cond["label"]].mean()
        return params["a"] * x + params["b"] * mean

    network = Network(apply, COSINE, "v", 3, ("label", "guidance", "logsnr_to", "low", "aug_logsnr"), (1.0, 3.0))
    heads = Discriminator(
        lambda params, x, logsnr, cond: (x * params["a"],),
        lambda key: {"w": jnp.float32(0.3)},
        lambda heads, maps, label, logsnr: heads["w"] * jnp.sum(maps[0], (1, 2, 3, 4))[:, None],
    )
    optimiser, given = optax.sgd(1e-2), {}
    if configs.takes(name, "discriminator"):
        given["discriminator"] = heads
    method = configs.method(name, OPTIONS.get(name, {}), network, optimiser, 8, name, **given)
    params = {"a": jnp.float32(0.7), "b": jnp.float32(0.2), "label": jnp.array([0.1, 0.0, -0.1, 0.05])}
    frozen = {"teacher": params, "previous": params, "features": params}
    hyper = {"learning_rate_scale": 1.0, "guidance": 1.5, "steps": 4.0}
    for phase in method.phases.values():
        seen.clear()
        jax.eval_shape(phase, method.init(jax.random.key(0), params), frozen, batch(6), jax.random.key(1), hyper)
        assert seen, "the network is called"


def test_sampling_gives_every_clip_its_own_low_clip_with_the_noise_that_is_told():
    """By a network that answers with it, in both branches of guidance; over batches, levels that are told come back too."""

    def apply(params, x, logsnr, cond, **_):
        return cond["low"] + params * jnp.minimum(levels.expand(cond["aug_logsnr"], x), 10.0)

    network = Network(apply, COSINE, "x0", 3, ("label", "low", "aug_logsnr"), (0.0, 8.0))
    table = solvers.ddim(COSINE, grids.uniform_time(COSINE, 2))
    low = np.linspace(-0.9, 0.9, 12, dtype=np.float32).reshape(6, 2, 1, 1, 1)
    noise = np.random.default_rng(0).standard_normal((6, 4, 2, 2, 1)).astype(np.float32)

    def made(told, **options):
        labels = np.zeros(6, np.int32)
        return drawing.draw(
            network, jnp.float32(told), table, labels, noise, jax.random.key(0), batch_size=3, scale=2.0, timed=False,
            low=low, **options,
        )[0]  # fmt: skip

    expected = np.asarray(cascade.upsample(jnp.asarray(low), (4, 2, 2)))
    np.testing.assert_allclose(made(0.0), expected, atol=1e-3)
    noised = made(0.0, aug_logsnr=7.0)
    error = (noised - expected)[:, ::2, 0, 0, 0]
    assert 0.3 < error.std() * math.exp(3.5) < 2 and len(np.unique(error.round(5))) == 12
    np.testing.assert_allclose(made(0.01, aug_logsnr=7.0) - noised, 0.07, atol=1e-3)


# The stages' programs -----------------------------------------------------------------------------------------


def run(workdir, argument, *overrides):
    return program.main(["run", f"--config={CONFIG}:{argument}", f"--workdir={workdir}", *overrides])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cascade")
    for name in ("base", "temporal", "spatial"):
        assert run(folder / name, name) == 0
    assert run(folder / "made", f"evaluate,{folder}") == 0
    return folder


def test_a_cascade_leaves_all_it_promises(folder):
    report = json.loads((folder / "made/cascade/report.json").read_text())["samplers"]
    assert list(report) == [
        "teachers",
        "bicubic_teachers",
        "of_real_teachers",
        "bicubic_of_real_teachers",
        "students",
        "bicubic_students",
    ]
    # A guided call is two evaluations; the second row of the table tells them stage by stage.
    evaluations = {row: found["evaluations"] for row, found in report.items()}
    assert list(evaluations.values()) == [3 * 2 + 2 + 2 * 2, 3 * 2, 2 + 2 * 2, 0, 3, 1]
    assert report["teachers"]["steps"] == "3 + 2 + 2" and report["students"]["steps"] == "1 + 1 + 1"
    for found in report.values():
        assert all(np.isfinite(m["value"]) for m in found["metrics"].values())
    text = (folder / "made/cascade/report.md").read_text()
    assert re.search(r"evaluations of spatial \| 4 \|  \| 4 \|  \| 1 \|", text) and "ms per clip of temporal" in text
    for name in ("comparison.png", "comparison.webp", "quality.png", "samples_students.png"):
        assert (folder / "made/cascade" / name).is_file()
    against = json.loads((folder / "made/cascade/done.json").read_text())["against_bicubic"]
    assert set(against) == {"teachers", "students"}
    for row, found in against.items():
        assert sorted(found["better"] + found["worse"]) == sorted(report[row]["metrics"])


def test_weights_that_upsample_are_refused_where_there_is_nothing_to_upsample(folder, tmp_path, capsys):
    path = folder / "temporal/student/weights.safetensors"
    assert sample.main([f"--weights={path}", "--steps=1", f"--out={tmp_path}"]) == 2
    assert "a stage of kind 'cascade' samples it" in capsys.readouterr().err


def test_weights_remember_what_they_upsample_and_the_noise_they_know(folder):
    for name, factors in (("temporal", [2, 1]), ("spatial", [1, 2])):
        for what in ("teacher", "student"):
            _, record = weights.load(folder / name / what / "weights.safetensors")
            assert record["augmentation"] == [0.0, 8.0] and record["data"]["low"] == factors
    assert "augmentation" not in weights.load(folder / "base/teacher/weights.safetensors")[1]


def changed(path, argument, *statements):
    body = [f"config = tiny_cascade.get_config({argument!r})", *statements, "return config"]
    lines = ["from tests.configs import tiny_cascade", "def get_config():", *(f"    {line}" for line in body)]
    path.write_text("\n".join(lines))
    return str(path)


SPATIAL = "config.stages.cascade.samplers.teachers.spatial"


@pytest.mark.parametrize(
    "statement, said",
    [
        (f"{SPATIAL}.aug_logsnr = 9.0", r"aug_logsnr 9.0: training saw \[0.0, 8.0\]; nearest: 8"),
        (f"del {SPATIAL}['aug_logsnr']", "spatial lacks the key 'aug_logsnr'"),
        ("config.stages.cascade.samplers.teachers.base.aug_logsnr = 1.0", "base.aug_logsnr 1.0: these weights know no noise"),
        (f"{SPATIAL}.weights = config.stages.cascade.samplers.teachers.temporal.weights",
         r"makes clips of shape \(16, 8, 8, 1\), config.data has \(8, 16, 16, 1\)"),
        (f"{SPATIAL}.weights = config.stages.cascade.samplers.teachers.base.weights; del {SPATIAL}['aug_logsnr']",
         "upsample nothing"),
        ("config.stages.cascade.samplers.students = dict(one=config.stages.cascade.samplers.teachers.temporal.to_dict())",
         "first stage of a cascade begins with noise alone"),
        ("config.stages.cascade.samplers.bicubic_teachers = config.stages.cascade.samplers.teachers.to_dict()",
         "the table has a row 'bicubic_teachers' of its own"),
        (f"{SPATIAL}.solver = 'best'", "a table that asks the network"),
        (f"{SPATIAL}.stepz = 3", "did you mean 'steps'"),
        (f"{SPATIAL}.weights = '/nowhere.safetensors'", "no weights at /nowhere"),
        ("config.stages.cascade.num_clips = 9", "not a multiple"),
        ("config.stages.cascade.of_real = ('teacher',)", "did you mean 'teachers'"),
        ("config.stages.cascade.samplers = {}", "samplers is empty"),
        ("config.stages.cascade.samplers.students = {}", "samplers.students has no stages"),
        ("config.stages.cascade.classifier = 'pretrained:moving_digits_64/classifier'", r"takes frames of shape \(64, 64, 1\)"),
    ],
)  # fmt: skip
def test_what_makes_no_cascade_is_refused_by_name(folder, tmp_path, capsys, statement, said):
    config = changed(tmp_path / "changed.py", f"evaluate,{folder}", statement)
    assert program.main(["run", f"--config={config}", f"--workdir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert not (tmp_path / "run/classifier").exists()


@pytest.mark.parametrize(
    "argument, statement, said",
    [
        ("spatial", "config.data.low = (1, 3)", "low: 3 does not divide 16 rows; nearest: 2"),
        ("temporal", "config.data.low = (3, 1)", "low: 3 does not divide 8 frames; nearest: 2"),
        ("base", "config.data.space = 3", "time, space: 3 does not divide 16 rows"),
        ("spatial", "config.data.crop = (4, 9)", r"crop \(4, 9\): low: 2 does not divide 9 rows"),
        ("base", "config.model['cond'] = ('low',)", "config.data gives none: choose kind 'resized' with 'low'"),
        ("spatial", "del config.model['cond'], config['augmentation']", "put it into config.model.cond"),
        ("spatial", "del config['augmentation']", "lacks the key 'augmentation'"),
        ("spatial", "config.model.cond = ('low',)", r"augmentation \[0.0, 8.0\]: the network must be told the level"),
        ("spatial", "config.augmentation = (3.0, 1.0)", "log-SNR with low <= high"),
        ("spatial", "config.stages.teacher.threads = 0", "threads must be at least 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_by_name(tmp_path, capsys, argument, statement, said):
    config = changed(tmp_path / "changed.py", argument, statement)
    assert program.main(["run", f"--config={config}", f"--workdir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert not (tmp_path / "run/teacher").exists()


def test_a_resumed_stage_goes_on_with_the_same_noise(folder, tmp_path):
    """The noise in the low clip is drawn from the step's key: two halves are the whole, bit for bit."""
    assert run(tmp_path / "halves", "spatial", "--stage=teacher", "--config.stages.teacher.steps=2") == 0
    whole, halves = (
        weights.load(p / "teacher/weights.safetensors")[0] for p in (folder / "spatial", tmp_path / "halves")
    )
    jax.tree.map(np.testing.assert_array_equal, whole, halves)


# What is compared ---------------------------------------------------------------------------------------------


def test_stretched_clips_are_bicubic_in_space_and_repeated_in_time():
    ramp = np.broadcast_to(np.linspace(-0.7, 0.7, 8)[:, None], (1, 2, 8, 8)).astype(np.float32)[..., None]
    ramp = ramp * np.array([1.0, 0.5], np.float32)[None, :, None, None, None]
    made = stage_kind.stretched(ramp, (6, 32, 32, 1))
    assert made.shape == (1, 6, 32, 32, 1)
    np.testing.assert_array_equal(made[:, 0], made[:, 2])
    np.testing.assert_allclose(made[:, 3], made[:, 0] / 2, atol=1e-6)
    # Cubic interpolation keeps a straight line, away from the ends: pixel centres are (i + 1/2) / 4 - 1/2.
    rows = np.arange(8, 24)
    np.testing.assert_allclose(made[0, 0, rows, 5, 0], -0.7 + 0.2 * ((rows + 0.5) / 4 - 0.5), atol=1e-5)


def test_a_row_is_beaten_where_the_other_is_better_or_nearer_to_real_clips():
    def measures(high, low, neither, within=0.04):
        kinds = {"high": (high, 1.0, "higher"), "low": (low, 0.0, "lower"), "neither": (neither, 1.0, None)}
        return {k: Measure(v, v - within, v + within, floor, better) for k, (v, floor, better) in kinds.items()}

    ours, other, every = measures(0.9, 0.1, 1.2), measures(0.8, 0.2, 0.7), ["high", "low", "neither"]
    assert stage_kind.compared(ours, other) == {"better": every, "worse": [], "unsure": []}
    assert stage_kind.compared(other, ours) == {"better": [], "worse": every, "unsure": []}
    assert stage_kind.compared(ours, ours) == {"better": [], "worse": every, "unsure": every}
    assert stage_kind.compared(measures(0.9, 0.1, 1.2, 0.06), measures(0.8, 0.2, 0.7, 0.05))["unsure"] == [
        "high",
        "low",
    ]


def test_the_shipped_cascade_is_one_that_the_program_takes(tmp_path):
    from configs.moving_digits_64 import cascade as shipped
    from experiments import data, mesh, stages

    shape = None
    for name, part in shipped.PARTS.items():
        config = configs.plain(shipped.get_config(name))
        stages.check(stages.Context(config, tmp_path, mesh.make()))
        source = data.build(config["data"])
        assert shape is None or data.build({**config["data"], "crop": None}).low_shape == shape
        shape = data.build({**config["data"], "crop": None}).shape
        assert source.shape == tuple(part.model["shape"])
    assert shape == (32, 64, 64, 1)
    rows = shipped.get_config("evaluate").stages.evaluate.samplers
    steps = {row: {name: part.steps for name, part in rows[row].items()} for row in ("teachers", "students")}
    assert steps == {
        "teachers": dict(base=50, temporal=10, spatial=10), "students": dict(base=4, temporal=2, spatial=2),
    }  # fmt: skip
    with pytest.raises(ValueError, match="unknown argument 'bas', expected one of base, temporal, spatial"):
        shipped.get_config("bas")
