"""Clips beside a training: those of the weights that are left, the same after a stop, without effect on what is learnt."""

import shutil
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from diffusion import grids, sampling, solvers
from experiments import config as configs
from experiments import drawing, evaluation, figures, preview, report, stages, weights
from experiments import mesh as meshes
from experiments import run as program
from experiments.config import ConfigError
from experiments.metrics import classifier_training
from tests.configs import tiny, tiny_cascade, tiny_chaos

pytestmark = pytest.mark.usefixtures("quick_compilation")

CLIPS = 3


def run_tiny(workdir, **more):
    """The teacher, and its student in rounds of 4 and 2 steps, with what is given for their blocks."""
    config = configs.plain(tiny.get_config())
    config["stages"] = {name: config["stages"][name] | more.get(name, {}) for name in ("teacher", "student")}
    config["stages"]["student"]["student_steps"] = [4, 2]
    program.run(stages.Context(config, workdir, meshes.make(devices=jax.devices()[:1])))
    return workdir


GIVEN = {"teacher": {"preview": dict(steps=5, clips=CLIPS, guidance=2.0)}, "student": {"preview": dict(clips=CLIPS)}}


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    return run_tiny(tmp_path_factory.mktemp("seen") / "run", **GIVEN)


def noise_of(workdir, stage):
    context = stages.Context(
        configs.read_json(workdir / "config.json"), workdir, meshes.make(devices=jax.devices()[:1])
    )
    return jax.random.fold_in(context.key(stage), preview.APART)


@pytest.mark.parametrize("stage, reference, steps", [("teacher", "teacher", 5), ("student", "student@2", 2)])
def test_the_last_clips_are_those_of_the_weights_that_are_left(seen, stage, reference, steps):
    """By one call of `sample`, with the guidance written out; each round is drawn in its own student's steps."""
    rows = figures.load_clips(seen / stage / "clips.npz")
    params, network, _ = drawing.load_network(weights.find(reference, seen))
    labels, none, scale = np.arange(CLIPS), np.full(CLIPS, 10), 2.0 if stage == "teacher" else 1.0

    def denoise(x, logsnr):
        def of(label):
            eps_or_v = network.apply(params, x, logsnr, {"label": label})
            return network.schedule.alpha(logsnr) * x - network.schedule.sigma(logsnr) * eps_or_v

        return of(none) + scale * (of(labels) - of(none))

    x = drawing.start(network, noise_of(seen, stage), (CLIPS, 3, 16, 16, 1))
    table = solvers.ddim(network.schedule, grids.uniform_time(network.schedule, steps))
    expected = np.clip(sampling.sample(denoise, table, x), -1, 1)
    made = [*rows.values()][-1]
    assert made.shape == expected.shape and made.std() > 1
    # A rounded byte may fall to either side.
    assert np.abs(made.astype(float) - (expected + 1) * 127.5).max() < 1.01


def test_weights_are_on_the_device_before_anything_is_drawn(seen, tmp_path, monkeypatch):
    """As NumPy arrays every call of a compiled program would copy them there."""
    config, given = configs.read_json(seen / "config.json"), []
    params, network, _ = drawing.load_network(weights.find("teacher", seen))
    made = np.zeros((CLIPS, 3, 16, 16, 1), np.float32), 0.0
    monkeypatch.setattr(drawing, "draw", lambda network, params, *_, **__: given.append(params) or made)
    context = stages.Context(config, tmp_path, meshes.make(devices=jax.devices()[:1]))
    source = configs.source(config, "train")
    look = preview.Preview(context, "teacher", config["stages"]["teacher"], network, source, None)
    look(types.SimpleNamespace(state=types.SimpleNamespace(ema=params), hyper={}), 1)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(classifier_training, "classify_fn", lambda classifier, params: given.append(params))
    evaluation.load_classifier(weights.find(evaluation.CLASSIFIERS[16], seen))
    for tree in (params, *given):
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree))


def test_clips_of_every_checkpoint_are_kept_and_shown(seen):
    rows = figures.load_clips(seen / "teacher/clips.npz")
    assert [*rows] == ["step 2", "step 4", "step 6"] and (rows["step 2"] != rows["step 6"]).any()
    # Rounds of 3 steps, a checkpoint every 2 and one at the end of each round.
    assert [*figures.load_clips(seen / "student/clips.npz")] == ["step 2", "step 3", "step 4", "step 6"]
    assert (seen / "teacher/comparison.png").stat().st_size > 0
    assert "step 4" in report.write(seen).read_text(encoding="utf-8")
    (events,) = (seen / "teacher/tensorboard").iterdir()
    assert events.read_bytes().count(b"preview/0") == 3
    # A page of many runs shows what samplers make, not how one came to be.
    assert report.read_run(seen).clips == {"teacher": {}, "student": {}}


def test_they_change_nothing_of_what_is_learnt(seen, tmp_path):
    blind = run_tiny(tmp_path / "run")
    for reference in ("teacher", "student@4", "student@2"):
        one, other = (load_file(weights.find(reference, folder)) for folder in (seen, blind))
        assert all((one[name] == other[name]).all() for name in one)
    assert not (blind / "teacher/clips.npz").exists()


def test_a_stage_that_goes_on_from_an_earlier_step_makes_the_same_again(seen, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(seen, again)
    shutil.rmtree(again / "teacher/checkpoints/6")
    (again / "teacher/done.json").unlink()
    run_tiny(again, **GIVEN)
    one, other = (figures.load_clips(folder / "teacher/clips.npz") for folder in (seen, again))
    assert [*one] == [*other] and all((one[name] == other[name]).all() for name in one)


def test_of_many_steps_the_newest_and_some_of_the_others_are_kept(tmp_path):
    given = {"steps": 12, "checkpoint_every": 1, "preview": dict(steps=1, clips=1)}
    rows = figures.load_clips(run_tiny(tmp_path / "run", teacher=given) / "teacher/clips.npz")
    steps = [int(name.removeprefix("step ")) for name in rows]
    assert steps[0] == 1 and steps[-1] == 12 and len(steps) <= preview.MOST and steps == sorted(steps)


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(clips=2), "teacher.preview lacks the key 'steps'"),
        (dict(step=2), "did you mean 'steps'"),
        (dict(steps=0), "teacher.preview.steps must be at least 1, got 0"),
        (dict(steps=2, clips=0), "teacher.preview.clips must be at least 1, got 0"),
        (dict(steps=2, solver="best"), "preview.solver 'best' is made by asking a network: this one still learns"),
        (dict(steps=2, grid="searched"), "preview.grid 'searched' is made by asking a network"),
        (dict(steps=2, solver="dimm"), "did you mean 'ddim'"),
        (dict(steps=2, threshold="statik"), "did you mean 'static'"),
        (dict(steps=2, guidance="much"), "preview.guidance: expected a finite number"),
        (dict(steps=2, solver="flow_map"), "must be told .'logsnr_to'., and this one's inputs are label"),
    ],
)
def test_a_wrong_preview_is_one_line_before_any_work(given, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run_tiny(tmp_path / "run", teacher={"preview": given})
    assert not (tmp_path / "run/teacher").exists()


@pytest.mark.parametrize(
    "module, argument, stage, change, message",
    [
        (tiny, (), "teacher", {"num_classes": 0}, "preview.guidance: the network is unconditional"),
        (tiny_chaos, (), "teacher", {}, "preview: data of kind 'exact' are points"),
        (tiny_cascade, ("spatial",), "teacher", {}, "preview: this network upsamples clips"),
    ],
)
def test_what_has_no_such_clips_is_refused_by_name(module, argument, stage, change, message, tmp_path):
    config = configs.plain(module.get_config(*argument))
    guided = {"guidance": 2.0} if change else {}
    config["stages"] = {stage: config["stages"][stage] | {"preview": dict(steps=2, **guided)}}
    config["model"] |= change
    with pytest.raises(ConfigError, match=message):
        stages.check(stages.Context(config, tmp_path, meshes.make(devices=jax.devices()[:1])))


def test_clips_that_cannot_be_shown_are_refused():
    for channels in (1, 3):
        drawing.check_pictured(channels, "here.preview")
    with pytest.raises(ConfigError, match="here.preview: pictures are of clips with 1 or 3 channels, these have 2"):
        drawing.check_pictured(2, "here.preview")


def test_damaged_pictures_are_made_anew(tmp_path):
    """They say nothing of the weights: no reason to lose a checkpoint."""
    look = preview.Preview.__new__(preview.Preview)
    look.folder = tmp_path
    (tmp_path / "clips.npz").write_bytes(b"")
    look.keep(2, np.zeros((1, 2, 4, 4, 1), np.uint8))
    assert list(figures.load_clips(tmp_path / "clips.npz")) == ["step 2"]
