"""Times found by search: against a fine scan, kept with the weights they are for, and refused elsewhere by name."""

import functools
import json
import logging
import pathlib
import shutil

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from diffusion import grids, sampling, schedules, solvers
from experiments import config as configs
from experiments import drawing, evaluation, exact, mesh, publish, run, sample, stages, tables, times, weights
from experiments.config import ConfigError
from experiments.data.exact import Exact
from models import build
from models.classifier import DEFAULTS, build_classifier

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = pathlib.Path(__file__).parent / "configs/tiny.py"


VP = schedules.vp_cosine(logsnr_min=-10.0, logsnr_max=10.0)


# The search -------------------------------------------------------------------------------------------------


@given(
    where=st.floats(0.001, 0.999), begun=st.floats(0.001, 0.999), slope=st.floats(0.01, 100), level=st.floats(0.1, 2),
    calls=st.integers(1, 16),
)  # fmt: skip
def test_the_only_minimum_is_found_from_wherever_the_search_begins(where, begun, slope, level, calls):
    """Of a function that falls to one side of its minimum as it likes, and is level from somewhere on. From a begun range each
    call leaves at most .691 of it, but for one that may leave nearly all.
    """
    asked = []

    def f(point):
        asked.append(point)
        return min(slope * (where - point) if point < where else point - where, level)

    known = f(begun), begun
    # Where it is level all around, nothing says which way to go.
    assume(known[0] < level)
    asked.clear()
    value, found = times.golden_section(f, 0.0, 1.0, known, calls)
    assert len(asked) == calls and all(0 < point < 1 for point in asked)
    assert value == min([known[0], *map(f, list(asked))]) and value == f(found)
    assert abs(found - where) <= 0.692 ** (calls - 1)


def test_golden_section_closes_in_at_its_rate():
    """From a golden section on, by .618 a call."""
    for where in (0.03, 0.5, 0.81):
        f, golden = lambda p, w=where: abs(p - w), (3 - 5**0.5) / 2
        for calls in (1, 2, 6, 12):
            value, _ = times.golden_section(f, 0.0, 1.0, (f(golden), golden), calls)
            assert value <= 0.6181**calls


@given(where=st.floats(0.001, 0.999), begun=st.floats(0.001, 0.999), calls=st.integers(6, 16))
def test_of_two_minima_the_deeper_one_is_found(where, begun, calls):
    """Where the calls that lie evenly see it: below the shallower valley the other is wider than the space between these."""
    width = 1.8 / (calls // 2 + 1)
    assume(width / 2 < where < 1 - width / 2)
    f = lambda p: min(0.6 + 0.1 * abs(p - 0.5), abs(p - where) / (width / 2))  # noqa: E731
    value, found = times.minimum(f, 0.0, 1.0, (f(begun), begun), calls)
    assert value == f(found) < 0.6 and abs(found - where) < width / 2


def test_a_level_side_does_not_lead_the_search_astray():
    """As of a student of 2 calls whose second was nearly as bad at all clean levels: worse than at the start of the search, and
    below that the minimum.
    """
    start, asked = grids.uniform_time(VP, 2), []

    def quality(levels):
        asked.append(levels[1])
        return 63 + 5 * np.tanh(levels[1] - 1) + min(0, abs(levels[1] + 3) - 4) * 10 - 0.01 * max(levels[1] - 2, 0)

    best, before, after = times.search(quality, start, VP, sweeps=1, evaluations=8)
    assert len(asked) == 9 and abs(best[1] + 3) < 0.6 and after < before - 10


def test_coordinates_are_found_and_the_best_seen_is_kept():
    target = np.array([-10.0, -3.0, 1.0, 10.0])
    asked = []

    def far(levels):
        asked.append(levels)
        assert np.all(np.diff(levels) > 0) and levels[0] == -10 and levels[-1] == 10
        return float(np.abs(levels - target).sum())

    start = np.array([-10.0, -5.0, 5.0, 10.0])
    errors = []
    for sweeps in (1, 2, 4):
        asked.clear()
        best, before, after = times.search(far, start, VP, sweeps=sweeps, evaluations=8)
        assert len(asked) == 1 + sweeps * 2 * 8 and before == far(start) and after == far(best)
        assert after == min(map(far, list(asked)))
        errors.append(after)
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] < 0.1
    # A start that nothing seen beats is kept as it is.
    best, before, after = times.search(lambda levels: -float(levels[1] == -5.0), start, VP, sweeps=2, evaluations=5)
    assert before == after == -1 and best[1] == -5.0


def test_the_best_time_of_a_hand_made_student_is_found():
    """Data N(0, 2^2), whose exact flow is a rescaling, and a consistency model that is exact at the start and at log-SNR 1.5
    and stretches ever more away from them: with two calls the best level is 1.5, and a fine scan finds no better.
    """

    def student(x, logsnr):
        spread = jnp.sqrt(4 * VP.alpha(logsnr) ** 2 + VP.sigma(logsnr) ** 2)
        flaw = 1 + 0.3 * jnp.minimum(jnp.abs(logsnr - 1.5), jnp.abs(logsnr + 10))
        return 2 * flaw * x / spread

    noise = np.random.default_rng(0).standard_normal((1024, 1))
    x, clean = jnp.asarray(noise * np.hypot(2 * VP.alpha(-10.0), VP.sigma(-10.0)), jnp.float32), 2 * noise
    denoise, key = jax.tree_util.Partial(student), jax.random.key(0)

    def quality(levels):
        drawn = sampling.sample(denoise, solvers.consistency(VP, levels), x, key)
        return exact.energy(np.asarray(drawn, np.float64), clean)

    best, before, after = times.search(quality, grids.uniform_time(VP, 2), VP, sweeps=1, evaluations=14)
    scan = np.linspace(-9.9, 9.9, 100)
    values = [quality(np.array([-10.0, level, 10.0])) for level in scan]
    assert abs(best[1] - 1.5) < 0.25 and abs(best[1] - scan[np.argmin(values)]) < 0.3
    assert after <= min(values) + 1e-3 and after < 0.1 * before


# The stage --------------------------------------------------------------------------------------------------


def config_of(**changes):
    """A denoiser, its times with DDIM, and both grids held against the law."""
    config = ConfigDict(dict(seed=0, prediction="v", data=dict(kind="exact", name="a1d", size=4096)))
    config.model = ConfigDict(dict(kind="mlp", shape=(1, 1, 1, 1), num_classes=0, width=32, depth=2))
    config.schedule = ConfigDict(dict(kind="vp_cosine", logsnr_min=-10.0, logsnr_max=10.0))
    samplers = {"default_2": dict(weights="denoiser", steps=2), "searched_2": SEARCHED_2}
    config.stages = ConfigDict()
    config.stages.denoiser = dict(kind="train", method="denoising", steps=1, batch_size=8)
    config.stages.times = dict(kind="times", weights="denoiser", counts=[2, 3], num_clips=512) | changes
    config.stages.exact = dict(kind="exact", num_clips=1024, bootstrap=10, samplers=samplers)
    return config


SEARCHED_2 = dict(weights="denoiser", steps=2, grid="searched")


def record_of(config):
    return {
        "kind": "denoiser", "model": config["model"], "prediction": config["prediction"],
        "schedule": schedules.record(configs.schedule(config)), "shape": list(config["model"]["shape"]),
    }  # fmt: skip


def start(folder, config):
    path = folder / "config.py"
    text = (
        f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({configs.plain(config)!r})\n"
    )
    path.write_text(text)
    return run.main(["run", f"--config={path}", f"--workdir={folder / 'run'}"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose denoiser, as if trained, is a network with random weights: it has best times like any other."""
    folder, config = tmp_path_factory.mktemp("times"), configs.plain(config_of())
    definition = build(config["model"])
    flat, unravel = jax.flatten_util.ravel_pytree(definition.init(jax.random.key(0)))
    params = unravel(flat + 0.2 * jax.random.normal(jax.random.key(1), flat.shape))
    weights.save(folder / "run/denoiser/weights.safetensors", params, record_of(config))
    (folder / "run/denoiser/done.json").write_text("{}")
    assert not start(folder, config_of())
    return folder


def copy_of(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


def test_the_stage_finds_what_a_scan_finds_and_the_sampler_uses_it(finished):
    workdir = finished / "run"
    path = workdir / "denoiser/weights.safetensors"
    kept = configs.read_json(workdir / "denoiser/weights.times.json")
    assert kept["weights"] == weights.fingerprint(path)
    found = kept["samplers"]["ddim"]
    assert list(found) == ["2", "3"]
    for count, entry in found.items():
        assert len(entry["levels"]) == int(count) + 1 and entry["levels"] == sorted(entry["levels"])
        assert entry["levels"][0] == -10 and entry["levels"][-1] == 10
        assert entry["after"] < entry["before"] and entry["fresh_after"] < entry["fresh_before"]
        assert entry["quality"] == "wasserstein" and entry["noises"] == 512
    # The same quality, made again from the seed, over a fine scan of the one level.
    context = stages.Context(configs.plain(config_of()), workdir, mesh.make())
    params, network, _ = drawing.load_network(path)
    keys = jax.random.split(jax.random.fold_in(context.key("times"), times.APART))
    quality = times.to_the_law(exact.wasserstein, 512, Exact("a1d", size=4096), params, network, keys)

    def at(*levels, part=0):
        return quality(solvers.ddim(network.schedule, np.array(levels)), part)

    entry = found["2"]
    assert at(*entry["levels"]) == entry["after"] and at(*entry["levels"], part=1) == entry["fresh_after"]
    assert at(*grids.uniform_time(network.schedule, 2)) == entry["before"]
    scan = [at(-10, level, 10) for level in np.linspace(-9.5, 9.5, 77)]
    # A rough function of more than one minimum: of what a move of this level can bring, most.
    assert entry["after"] <= 1.1 * min(scan) and entry["before"] - entry["after"] > 0.7 * (entry["before"] - min(scan))
    # On the noise of the exact stage, which the search hasn't seen, it's better too.
    rows = configs.read_json(workdir / "report.json")["metrics"]
    assert rows["searched_2"]["wasserstein"][0] < 0.9 * rows["default_2"]["wasserstein"][0]


def test_a_finished_stage_is_skipped_and_a_broken_one_goes_on(finished, tmp_path, capsys):
    workdir = copy_of(finished, tmp_path)
    assert not start(tmp_path, config_of())
    assert capsys.readouterr().out.count("already done") == 3
    # As a kill after the first count leaves it: no file beside the weights yet.
    file, beside = workdir / "times/report.json", workdir / "denoiser/weights.times.json"
    whole, report = configs.read_json(beside), configs.read_json(file)
    del report["times"]["3"]
    configs.write_json(file, report)
    beside.unlink()
    (workdir / "times/done.json").unlink()
    assert not start(tmp_path, config_of())
    said = capsys.readouterr().err
    assert "at 3 calls, 17/17" in said.replace("calls: ", "calls, ") and "at 2 calls" not in said
    assert configs.read_json(beside) == whole


def test_other_weights_and_a_missing_file_are_refused_when_they_are_met(finished, tmp_path, capsys):
    workdir = copy_of(finished, tmp_path)
    (workdir / "exact/done.json").unlink()
    path = workdir / "denoiser/weights.safetensors"
    params, record = weights.load(path)
    weights.save(path, params, record | {"seed": 1})
    assert start(tmp_path, config_of()) == 2
    error = capsys.readouterr().err
    assert "times of other weights" in error and weights.fingerprint(path) in error
    (workdir / "denoiser/weights.times.json").unlink()
    assert start(tmp_path, config_of()) == 2
    assert f"no searched times at {workdir / 'denoiser/weights.times.json'}" in capsys.readouterr().err


def test_a_network_without_classes_draws_none_that_is_asked_for(finished, tmp_path, capsys):
    asked = ["--weights=denoiser", f"--workdir={copy_of(finished, tmp_path)}", "--steps=2", f"--out={tmp_path}"]
    assert sample.main([*asked, "--label=1"]) == 2
    assert "--label needs a network with classes; this one is unconditional" in capsys.readouterr().err


def test_several_samplers_keep_their_times_beside_the_same_weights(tmp_path):
    path = tmp_path / "student.v2@4.safetensors"
    weights.save(path, {"a": np.zeros(2)}, {})
    entry = {"levels": [-10.0, 0.0, 10.0]}
    tables.keep_times(path, "ddim", {"2": entry})
    tables.keep_times(path, "consistency", {"2": entry})
    tables.keep_times(path, "ddim", {"3": entry})
    tables.keep_times(
        path, tables.sampler_name(dict(solver=dict(kind="flow_map", gamma=0.5), guidance=2.0)), {"2": entry}
    )
    found = tables.read_times(path, "here")
    assert tables.listed(found) == (
        "ddim at 2, 3 calls; consistency at 2 calls; flow_map(gamma=0.5) with guidance 2 at 2 calls"
    )
    block = tables.searched(dict(solver="consistency", grid="searched", steps=2, guidance=1.0), path, "here")
    np.testing.assert_array_equal(tables.make(block, 2, VP, "here").logsnr, [-10, 0])
    unlike = [dict(steps=4), dict(solver="unipc"), dict(guidance=2.0), dict(solver=dict(kind="ddim", eta=0.5))]
    for change in unlike:
        with pytest.raises(ConfigError, match="has ddim at 2, 3 calls; consistency at 2 calls"):
            tables.searched(dict(grid="searched", steps=2) | change, path, "here")
    plain = dict(solver="unipc", grid="karras")
    assert tables.searched(dict(plain, steps=2, guidance=1.0), path, "here") == plain
    # New weights under the old name: the old times go.
    weights.save(path, {"a": np.ones(2)}, {})
    tables.keep_times(path, "ddim", {"2": entry})
    assert tables.listed(tables.read_times(path, "here")) == "ddim at 2 calls"


# Mistakes ---------------------------------------------------------------------------------------------------


def checked(config, workdir):
    stages.check(stages.Context(configs.plain(config), workdir, mesh.make()))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(counts=(1, 2)), "no level between the ends"),
        (dict(counts=()), "counts must be"),
        (dict(counts=2), "counts must be"),
        (dict(evaluations=0), "evaluations must be at least 1"),
        (dict(sweeps=0), "sweeps must be at least 1"),
        (dict(solver="best"), "solver 'best' is made by asking a network: a search begins with a table that is known"),
        (dict(solver="consistecy"), "did you mean 'consistency'"),
        (dict(weights="denoser"), "refers to 'denoser'"),
        (dict(sweps=2), "did you mean 'sweeps'"),
        (dict(batch_size=64), "has no key 'batch_size'"),
        # The stage is right, but it isn't what the sampler of `exact` asks for.
        (dict(counts=(3, 4)), "samplers.searched_2.*for ddim at 2 calls; times finds ddim at 3, 4 calls"),
        (dict(solver="consistency"), "times finds consistency at 2, 3 calls"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        checked(config_of(**change), tmp_path)


def test_times_must_be_searched_before_or_lie_beside_weights_from_elsewhere(finished, tmp_path):
    config = config_of()
    with config.unlocked():
        del config.stages["times"]
    with pytest.raises(ConfigError, match="'denoiser' for ddim at 2 calls; there is none of kind 'times'"):
        checked(config, finished / "run")
    path = tmp_path / "elsewhere.safetensors"
    shutil.copyfile(finished / "run/denoiser/weights.safetensors", path)
    config.stages.exact.samplers.searched_2.weights = str(path)
    with pytest.raises(ConfigError, match="no searched times at .*elsewhere.times.json"):
        checked(config, tmp_path)
    shutil.copyfile(finished / "run/denoiser/weights.times.json", path.with_suffix(".times.json"))
    checked(config, tmp_path)
    config.stages.exact.samplers.searched_2.steps = 4
    with pytest.raises(ConfigError, match="no times for ddim at 4 calls in .*it has ddim at 2, 3 calls"):
        checked(config, tmp_path)
    config.stages.exact.samplers.searched_2.weights = "oracle"
    with pytest.raises(ConfigError, match="'oracle' for ddim"):
        checked(config, tmp_path)


def test_a_grid_may_be_written_out():
    block = {"solver": "consistency", "grid": {"kind": "levels", "levels": [-10, 1, 10]}}
    tables.check(block, 2, VP, "here")
    np.testing.assert_array_equal(tables.make(block, 2, VP, "here").logsnr, [-10, 1])
    with pytest.raises(ConfigError, match="3 calls need 4 levels, got 3"):
        tables.check(block, 3, VP, "here")
    with pytest.raises(ConfigError, match="must rise"):
        tables.check({"grid": {"kind": "levels", "levels": [0, 1, -1]}}, 2, VP, "here")
    with pytest.raises(ConfigError, match="has no key 'of'"):
        tables.check({"grid": {"kind": "searched", "of": 2}}, 2, VP, "here")
    with pytest.raises(ConfigError, match="did you mean 'searched'"):
        tables.check({"grid": "serched"}, 2, VP, "here")
    with pytest.raises(ConfigError, match="lies beside weights"):
        tables.make({"grid": "searched"}, 2, VP, "here")


# Clips ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(context of the tiny digits config, its folder with an untrained student and metric network)."""
    folder = tmp_path_factory.mktemp("tiny")
    scope = {}
    exec(TINY.read_text(), scope)
    config = configs.plain(scope["get_config"]())
    config["model"] = dict(kind="mlp", shape=[3, 16, 16, 1], num_classes=10, width=16, depth=1)  # quick to compile
    definition = build(config["model"])
    weights.save(folder / "student/weights.safetensors", definition.init(jax.random.key(0)), record_of(config))
    model = DEFAULTS | dict(widths=(4, 4, 4))
    classifier = build_classifier(model)
    record = {"kind": "classifier", "model": model}
    weights.save(folder / "classifier/weights.safetensors", classifier.init(jax.random.key(1)), record)
    (folder / "student/done.json").write_text("{}")
    return stages.Context(config, folder, mesh.make()), folder


DIGITS = dict(
    kind="times", weights="student", solver="consistency", counts=[2], classifier="classifier", num_clips=16,
    num_reference=32, batch_size=8, evaluations=3,
)  # fmt: skip


def test_digits_are_judged_against_clips_that_the_verdict_does_not_fall_by(tiny, capsys, monkeypatch, caplog):
    context, folder = tiny
    seen, compiled = [], []
    source = configs.source
    monkeypatch.setattr(configs, "source", lambda config, split: seen.append(split) or source(config, split))
    draw = drawing.draw

    def counting(*given, **options):
        compiled.append(sum("Compiling" in r.message for r in caplog.records))
        return draw(*given, **options)

    monkeypatch.setattr(drawing, "draw", counting)
    times.check(DIGITS, context.config, "here")
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        times.run(context, "times", DIGITS)
    # All that is compiled, is compiled by the first grid.
    total = sum("Compiling" in r.message for r in caplog.records)
    assert len(compiled) == 4 + 2 and compiled[0] < compiled[1] and set(compiled[1:]) == {total}
    assert set(seen) == {"train"}
    entry = tables.read_times(folder / "student/weights.safetensors", "here")["consistency"]["2"]
    assert entry["quality"] == evaluation.QUALITY and 0 < entry["after"] <= entry["before"]
    said = capsys.readouterr()
    assert "4/4: frechet_clip" in said.err and "saved as" in said.out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--stage=student", "--name="], "--name: expected one as moving_digits/teacher, got ''"),
        (["--stage=student", "--name=a//b"], "--name: expected one as"),
        (["--stage=student", "--name=a", "--sampler=student_2"], "--sampler names a row of a report: give --report"),
        (["--stage=x/weights.safetensors", "--name=a"], "--stage: expected STAGE or STAGE@STEPS"),
        (["--stage=student", "--name=a", "--report=nope.json"], "--report: there is no nope.json"),
        (["--stage=student", "--name=a", "--report=CONFIG"], "expected that of a stage of kind 'evaluate'"),
        (
            ["--stage=student", "--name=a", "--report=REPORT", "--sampler=teacher_4"],
            "is of the weights 'teacher', not of 'stu",
        ),
    ],
)
def test_figures_of_other_weights_are_not_published(tiny, tmp_path, monkeypatch, capsys, arguments, message):
    _, folder = tiny
    shutil.copytree(folder / "student", tmp_path / "run/student")
    params, record = weights.load(folder / "student/weights.safetensors")
    weights.save(tmp_path / "run/teacher/weights.safetensors", params, record | {"seed": 1})
    monkeypatch.setattr(weights, "PRETRAINED", tmp_path / "pretrained")
    report, config = tmp_path / "run/report.json", tmp_path / "run/config.json"
    rows = {
        f"{name}_4": dict(weights=name, steps=4, metrics={"mass": {"value": 1.0}}) for name in ("teacher", "student")
    }
    rows["student_4"]["ms to the first frames"] = 7.0
    report.write_text(json.dumps({"samplers": rows}))
    config.write_text("{}")
    names = {"CONFIG": str(config), "REPORT": str(report)}
    given = [functools.reduce(lambda a, n: a.replace(n, names[n]), names, argument) for argument in arguments]
    assert publish.main([f"--workdir={tmp_path / 'run'}", *given]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "pretrained").exists()
    right = ["--stage=student", "--name=a", f"--report={report}", "--sampler=student_4"]
    assert publish.main([f"--workdir={tmp_path / 'run'}", *right]) == 0
    stated = json.loads((tmp_path / "pretrained/a.json").read_text())["metrics"]
    # What was measured beside the clips is no key that a sampler takes.
    assert stated["sampler"] == {"steps": 4} and stated["ms to the first frames"] == 7.0 and stated["mass"] == 1.0


@pytest.mark.parametrize("confirmed", [True, False])
def test_what_fresh_noises_do_not_confirm_is_not_kept(tiny, capsys, monkeypatch, confirmed):
    context, folder = tiny
    middle = []

    def quality(table, part):
        middle.append(float(table.logsnr[1]))
        away = abs(middle[-1] - middle[0])
        return -away if part == 0 or confirmed else away

    monkeypatch.setattr(times, "to_real_clips", lambda *given: quality)
    times.run(context, f"guess_{confirmed}", DIGITS)
    entry = tables.read_times(folder / "student/weights.safetensors", "here")["consistency"]["2"]
    assert (entry["levels"][1] != middle[0]) == (entry["after"] < entry["before"]) == confirmed
    assert (entry["fresh_after"] < entry["fresh_before"]) == confirmed
    assert ("the default grid stays" in capsys.readouterr().out) != confirmed


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(num_clips=10), "not a multiple of batch_size 8"),
        (dict(num_reference=600), "616 clips, the train split has 512"),
        (dict(num_reference=1), "num_reference must be at least 2"),
        (dict(grid="trailing"), "here.grid 'trailing' goes from log-SNR -7.82405 to inf, and a level moves in time"),
    ],
)
def test_mistakes_with_clips(tiny, change, message):
    with pytest.raises(ConfigError, match=message):
        times.check(DIGITS | change, tiny[0].config | {"schedule": "ve"}, "here")


def test_weights_of_other_clips_than_the_runs_are_refused(tiny, tmp_path):
    """Of latents of the same shape, say, which this run's codec would decode to clips all the same."""
    context, folder = tiny
    params, record = weights.load(folder / "student/weights.safetensors")
    other = tmp_path / "other.safetensors"
    weights.save(other, params, record | {"latent": {"autoencoder": "theirs", "fingerprint": "0"}})
    with pytest.raises(ConfigError, match="weights: its weights are a model of latents of theirs .* clips are pixels"):
        times.run(context, "elsewhere", DIGITS | dict(weights=str(other)))


def test_published_weights_take_their_times_along_and_sample_uses_them(tiny, tmp_path, monkeypatch, capsys):
    _, folder = tiny
    path = folder / "student/weights.safetensors"
    tables.keep_times(path, "consistency", {"2": {"levels": [-10.0, 2.5, 10.0]}})
    monkeypatch.setattr(weights, "PRETRAINED", tmp_path / "pretrained")
    given = [f"--workdir={folder}", "--stage=student", "--name=digits/student"]
    assert not publish.main(given)
    copied = tmp_path / "pretrained/digits/student.times.json"
    assert json.loads(copied.read_text()) == json.loads((folder / "student/weights.times.json").read_text())
    whole = copied.with_name("student.safetensors").stat().st_size
    assert publish.main([*given, "--half"]) == 2
    assert "is there already; choose another name, or give --replace" in capsys.readouterr().err
    assert not publish.main([*given, "--half", "--replace"])
    halved = copied.with_name("student.safetensors")
    assert halved.stat().st_size < 0.75 * whole  # the record is text in both
    assert json.loads(copied.read_text())["weights"] == weights.fingerprint(halved)
    stored, own = (jax.tree.leaves(weights.load(one)[0]) for one in (halved, path))
    for a, b in zip(stored, own, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7)

    used = []
    draw = drawing.draw
    monkeypatch.setattr(drawing, "draw", lambda *given, **o: used.append(given[2]) or draw(*given, **o))
    given = ["--weights=pretrained:digits/student", "--steps=2", "--grid=searched", "--num=2", f"--out={tmp_path}"]
    assert not sample.main([*given, "--solver=consistency"])
    np.testing.assert_array_equal(used[0].logsnr, [-10, 2.5])
    assert sample.main(given) == 2
    assert "no times for ddim at 2 calls" in capsys.readouterr().err

    # Times of other weights aren't published; weights without times leave none behind.
    tables.times_path(path).write_text(copied.read_text().replace(weights.fingerprint(path), "0"))
    given = [f"--workdir={folder}", "--stage=student", "--name=digits/student", "--replace"]
    assert publish.main(given) == 2 and "other weights" in capsys.readouterr().err
    tables.times_path(path).unlink()
    assert not publish.main(given) and not copied.exists()
    # A record without weights, as of a fitted table, is a name, too.
    halved.with_name("fitted.json").write_text("{}")
    asked = [f"--workdir={folder}", "--stage=student", "--name=digits/fitted"]
    assert publish.main(asked) == 2 and "is there already" in capsys.readouterr().err
    params, record = weights.load(path)
    weights.save(halved, params, record | {"kind": "classifier"})
    assert publish.main(given) == 2 and "is a classifier" in capsys.readouterr().err
