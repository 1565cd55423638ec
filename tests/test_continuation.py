"""Known frames continued: a whole tiny run, the error of a position by hand, and what is refused before any work."""

import json
import pathlib
import re

import numpy as np
import pytest

from diffusion import schedules
from experiments import config as configs
from experiments import continuation, data, stages
from experiments import mesh as meshes
from experiments import run as program
from experiments.context import Context
from tests.configs import tiny_forcing

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = str(ROOT / "tests/configs/tiny_forcing.py")


def run(workdir, *overrides):
    return program.main(["run", f"--config={CONFIG}", f"--workdir={workdir}", *overrides])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forcing")
    assert run(folder) == 0
    return folder


def test_a_run_with_levels_per_frame_leaves_all_it_promises(workdir):
    evaluated = json.loads((workdir / "evaluate/report.json").read_text())["samplers"]
    # Three frames: a lag of one step each, or one frame after the other.
    assert [evaluated[row]["evaluations"] for row in ("pyramid", "single")] == [2 * (2 + 2), 2 * 3]
    for stage, calls, advance in (("chunks", 2, 2), ("rolling", 1, 1)):
        found = json.loads((workdir / stage / "report.json").read_text())
        assert (found["calls_per_period"], found["frames_per_period"]) == (calls, advance)
        assert list(found["position_error"]) == ["1", "2", "3"]  # beyond what one window reaches, too
        assert list(found["drift"]) == ["0-2", "3-5", "last - first"]
        assert np.isfinite([m["value"] for m in found["position_error"].values()]).all()
        for name in ("comparison.png", "comparison.webp", "slices.png", "report.md"):
            assert (workdir / stage / name).is_file()


def test_the_future_of_a_real_clip_has_no_error_and_a_moved_one_has_its_distance():
    clips = data.Batches(data.build(dict(kind="moving_digits", size=16, frames=5, digits=1), "test"), 8).batch_at(0)[
        "video"
    ]
    still = continuation.position_errors(clips, clips, 4, 20, 0)
    assert list(still) == [1, 2, 3, 4] and all(m.value == m.low == m.high == 0 for m in still.values())
    real = np.zeros((8, 5, 16, 16, 1), np.uint8)
    real[:, :, 4:8, 4:8] = 255
    moved = np.roll(real, (3, 4), (2, 3))
    assert all(abs(m.value - 5) < 1e-6 for m in continuation.position_errors(moved, real, 4, 20, 0).values())


def test_known_frames_are_the_beginning_of_the_longer_clip():
    """A longer clip of the same index goes on where the shorter ends: its future is the true one."""
    short, long = (data.build(dict(kind="moving_digits", size=16, frames=f, digits=1), "test") for f in (4, 9))
    np.testing.assert_array_equal(short[5]["video"], long[5]["video"][:4])


def held(workdir, **given):
    """What `continued` makes of two frames of real clips with these keys."""
    config = configs.read_json(workdir / "config.json")
    block = config["stages"]["chunks"] | dict(num_clips=8, history=2) | given
    context = Context(config, workdir, meshes.make(None))
    real = data.Batches(data.build(config["data"], "test"), 8).batch_at(0)
    return continuation.continued(context, "chunks", block, real["video"][:, :2], real["label"])


def test_a_history_is_guided_by_and_a_long_video_blended_or_queued(workdir):
    plain, advance, calls, evaluations = held(workdir, frames=3)
    assert plain.shape == (8, 3, 16, 16, 1) and (advance, calls, evaluations) == (1, 2, 2)
    once, *_, evaluations = held(workdir, frames=3, way=dict(kind="vanilla", scale=1.0))
    assert evaluations == 2 and np.abs(once.astype(int) - plain).max() <= 1
    *_, evaluations = held(workdir, frames=3, way=dict(kind="fractional", scale=2.0, partly=0.0))
    assert evaluations == 2 * 3
    # Windows of 3 over 2 + 4 frames, every frame: 4 of them.
    blended, advance, calls, evaluations = held(workdir, frames=4, windows=dict(stride=1))
    assert blended.shape[1] == 4 and (advance, calls, evaluations) == (4, 2, 2 * 4)
    # FIFO's diagonal: a queue of 4 frames, after 2 known ones, of which each window sees 3.
    fifo = dict(frames=6, steps=4, matrix=dict(kind="rolling", lag=1), windows=dict(stride=3, weights="earliest"))
    queued, advance, calls, evaluations = held(workdir, **fifo)
    assert queued.shape[1] == 6 and (advance, calls, evaluations) == (1, 1, 2)


def test_frames_that_begin_as_those_before_them_keep_what_little_noise_leaves(workdir):
    """Nearly clean every chunk stays the frame before it; from noise no chunk is."""
    real = data.Batches(data.build(configs.read_json(workdir / "config.json")["data"], "test"), 8).batch_at(0)["video"]
    last = real[:, 1:2].astype(int)
    grid = dict(kind="uniform_time", start=14.0)
    kept, advance, *_ = held(workdir, frames=3, sdedit=True, grid=grid)
    assert advance == 1 and np.abs(kept.astype(int) - last).max() <= 2
    assert np.abs(held(workdir, frames=3)[0].astype(int) - last).max() > 100


def test_frames_that_are_not_finite_are_no_black_ones(workdir, monkeypatch):
    """Clipped to bytes nan is black, and black moves without a fault."""
    monkeypatch.setattr(continuation.frames, "roll_out", lambda *given, **options: np.full((8, 3, 16, 16, 1), np.nan))
    with pytest.raises(FloatingPointError, match="samples are not finite with calls at log-SNR"):
        held(workdir, frames=3)


@pytest.mark.parametrize(
    "given, error",
    [
        (dict(way="vanila"), "did you mean 'vanilla'|nearest.*vanilla"),
        (dict(way=dict(kind="vanilla")), "scale"),
        (dict(way=dict(kind="vanilla", scale="2")), "way: scale: expected a number, got '2'"),
        (dict(way=dict(kind="temporal", memories=[[1.0, [2]]])), "memories of known frames 0 to 1, got .2."),
        (dict(way=dict(kind="reconstruction", weight=-1.0)), "a weight from 0 up, got -1.0"),
        (dict(way="replacement", level=4.0), "level: replacement shows known frames at the level of all others"),
        (dict(way="replacement", matrix="autoregressive"), "replacement is for one level of all frames; choose 'full'"),
        (dict(level="clean"), "level: expected a log-SNR .* got 'clean'"),
        (dict(level=float("nan")), "level: expected a log-SNR .* got nan"),
        (dict(sdedit=True), "sdedit: the grid begins at the schedule's noise, log-SNR -20"),
        (
            dict(sdedit=True, windows=dict(stride=1), grid=dict(kind="uniform_time", start=-2.0)),
            "sdedit: only whole chunks begin as those before them",
        ),
        (dict(windows=2), "windows: expected .*, got 2"),
        (dict(windows=dict(strid=2)), "stride"),
        (dict(windows=dict(stride=4)), "windows: .*stride"),
        (dict(windows=dict(stride=3), frames=5), "windows of 3 every 3 end at frame 6 of 7"),
        (dict(windows=dict(stride=1, weights="flatt")), "weights to be one of flat, pyramid, earliest"),
        (
            dict(windows=dict(stride=1), matrix=dict(kind="pyramid", lag=0.25), frames=9),
            "wave of this schedule matrix is 8 frames long, the window has 3",
        ),
    ],
)
def test_ways_and_windows_that_do_not_fit_are_refused(given, error):
    block = dict(history=2, frames=6, steps=2) | given
    with pytest.raises(configs.ConfigError, match=error):
        continuation.plan(block, schedules.vp_cosine(), 3, "config.stages.chunks")


@pytest.mark.parametrize(
    "override, error",
    [
        ("--config.stages.chunks.history=3", "at least 1 and at most 2"),
        ("--config.stages.chunks.frames=7", "nearest: 6"),
        ("--config.stages.chunks.matrix=pyramyd", "pyramid"),
        ("--config.stages.chunks.matrix=rolling", "lag"),
        ("--config.stages.chunks.solver=ddmp", "solver.kind .ddmp. is not known"),
        ("--config.stages.chunks.solver=heun", "solver: roll_out: .* by a solver that calls between rows"),
        ("--config.stages.chunks.solver=flow_map", "solver .* jumps, and frames that go on step"),
        ("--config.stages.chunks.solver=fitted", "is made by asking a network: a matrix gives every frame a level"),
        ("--config.stages.rolling.history=2", "window is 2 frames and 2 of history, the model's clip has 3"),
        ("--config.stages.chunks.num_clips=15", "not a multiple"),
        ("--config.stages.teacher.options.law.draw.kind=mixtur", "nearest: 'mixture'"),
    ],
)
def test_mistakes_are_one_line_before_any_work(tmp_path, capsys, override, error):
    assert run(tmp_path / "run", override) == 2
    said = capsys.readouterr().err
    assert re.search(error, said), said
    assert not (tmp_path / "run" / "teacher").exists()


def test_weights_of_other_clips_are_refused(tmp_path):
    config = configs.plain(tiny_forcing.get_config())
    config["stages"]["chunks"] |= dict(weights="pretrained:moving_digits/forcing")
    with pytest.raises(
        configs.ConfigError, match=r"make clips of shape \[8, 16, 16, 1\], config.data has \[3, 16, 16, 1\]"
    ):
        stages.check(Context(config, tmp_path, meshes.make()))


def test_guidance_towards_a_class_that_is_not_told_is_refused(tmp_path):
    """Both calls would be told no class, and be the same."""
    config = configs.plain(tiny_forcing.get_config())
    config["stages"]["chunks"] |= dict(guidance=2.0)
    context = Context(config, tmp_path, meshes.make())
    with pytest.raises(configs.ConfigError, match="isn't told any; choose told_label=True, or remove guidance"):
        stages.check(context)
    config["stages"]["chunks"] |= dict(told_label=True)
    stages.check(context)
