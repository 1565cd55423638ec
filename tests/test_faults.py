"""What breaks: checkpoints damaged in every way, a full disk, SIGTERM at any place, steps that hang; the best weights kept."""

import errno
import io
import json
import logging
import os
import shutil
import signal
import time

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import load_file

from experiments import checkpoints as store
from experiments import config as configs
from experiments import loop, stages, validation, weights
from experiments import mesh as meshes
from experiments import run as program
from experiments.checkpoints import Checkpoints
from experiments.config import ConfigError
from experiments.data import pipeline
from experiments.data.source import Damaged
from tests.configs import tiny_chaos

pytestmark = pytest.mark.usefixtures("quick_compilation")


def tree(seed):
    rng = np.random.default_rng(seed)
    host = {
        "weights": rng.standard_normal((40, 7), np.float32), "half": jnp.asarray(rng.standard_normal(9), jnp.bfloat16),
        "step": np.int32(seed), "long": rng.standard_normal(500, np.float32),
    }  # fmt: skip
    return meshes.put(host, meshes.make(devices=jax.devices()[:1]))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with the checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    made = Checkpoints(folder)
    for step in (1, 2):
        made.save(step, tree(step), {"step": step, "source": "clips"}, {"steps": 10, "step": step})
    made.wait()
    made.close()
    return folder


def flipped(data, place):
    at = int(place * (len(data) - 1))
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


BITS = {
    f"a bit at {place}": lambda path, place=place: path.write_bytes(flipped(path.read_bytes(), place))
    for place in (0.3, 0.45, 0.6, 0.75, 0.9)
}
DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    **BITS,
}


def check_damage(two, folder, names, how):
    """Either the newest checkpoint is what it was, or it is named and aside, and the one before it is used as it was."""
    for name in names:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(two, folder)
        DAMAGE[how](folder / "2" / name)
        made = Checkpoints(folder)
        step, state, data, record = made.restore(tree(0))
        made.close()
        assert data == {"step": step, "source": "clips"} and record == {"steps": 10, "step": step}, (name, how)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(tree(step)), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"{name} {how}")
        assert (folder / "2.damaged").is_dir() == (step == 1) != (folder / "2").is_dir()


def files(two):
    return sorted(str(path.relative_to(two / "2")) for path in (two / "2").rglob("*") if path.is_file())


@pytest.mark.slow  # a hundred restores
@pytest.mark.parametrize("how", DAMAGE)
def test_no_damage_to_any_file_is_trained_on(two, tmp_path, how):
    check_damage(two, tmp_path / "x", files(two), how)


@pytest.mark.parametrize(
    "how, places", [("a bit at 0.3", ("record/metadata", "data/metadata")), ("empty", ("state/_METADATA",))]
)
def test_damage_to_what_is_told_is_not_trusted(two, tmp_path, how, places, caplog):
    check_damage(two, tmp_path / "x", places, how)
    assert caplog.text.count("can't be read") == len(places)
    assert (
        f"checkpoint {tmp_path / 'x' / '2'} can't be read" in caplog.text and "kept aside as 2.damaged" in caplog.text
    )


def test_flipped_bits_of_numbers_are_noticed(two, tmp_path, caplog):
    """The largest file holds the arrays, of which the file format has no check, where a bit misses its own bookkeeping."""
    largest = max(files(two), key=lambda name: (two / "2" / name).stat().st_size)
    for how in BITS:
        check_damage(two, tmp_path / "x", [largest], how)
    assert "its numbers are not those that were saved" in caplog.text


def test_a_second_damaged_one_of_the_same_step_is_kept_aside_too(two, tmp_path):
    folder = tmp_path / "x"
    shutil.copytree(two, folder)
    (folder / "2.damaged").mkdir()
    (folder / "2.damaged/mine").write_text("here before")
    (folder / "2/state/_METADATA").write_bytes(b"")
    made = Checkpoints(folder)
    assert made.restore(tree(0))[0] == 1
    made.save(2, tree(2), {}, {})
    made.wait()
    made.close()
    assert (folder / "2.damaged/mine").exists() and (folder / "2.damaged.2").is_dir() and (folder / "2").is_dir()


def test_where_all_are_damaged_nothing_is_begun_anew(two, tmp_path):
    folder = tmp_path / "x"
    shutil.copytree(two, folder)
    for step in (1, 2):
        (folder / f"{step}/state/_METADATA").write_bytes(b"")
    for _ in range(2):  # also when it is asked again
        made = Checkpoints(folder)
        with pytest.raises(ConfigError, match="can be read .*they stay as they are: remove the stage's folder"):
            made.restore(tree(0))
        made.close()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_what_the_system_refuses_or_another_version_saved_is_no_damage(two, tmp_path, monkeypatch):
    folder = tmp_path / "x"
    shutil.copytree(two, folder)
    made = Checkpoints(folder)

    def refused(*args, **kwargs):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="Too many open files"):
        patch.setattr(store.ocp.Checkpointer, "restore", refused)
        made.restore(tree(0))
    with pytest.raises(ConfigError, match="they stay as they are"):
        made.restore({**tree(0), "one more": jnp.zeros(3)})
    assert made.restore(tree(0))[0] == 2
    made.close()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


@hypothesis.settings(max_examples=25)
@hypothesis.given(
    st.sampled_from(["float32", "bfloat16", "int32", "uint8"]),
    st.integers(0, 2**31),
    st.integers(0, 2**31),
    st.integers(0, 31),
)
def test_every_bit_counts_in_the_sum(dtype, seed, place, bit):
    leaf = np.random.default_rng(seed % 1000).integers(0, 256, 48, np.uint8).view(np.dtype(jnp.dtype(dtype)))
    other = leaf.copy()
    raw = other.view(np.uint8)
    raw[place % len(raw)] ^= np.uint8(1 << bit % 8)
    shape = (2, 2, -1)
    assert store.digest([leaf.reshape(shape)]) != store.digest([other.reshape(shape)])
    # Of two leaves, and of two numbers, the order counts.
    assert store.digest([leaf, other]) != store.digest([other, leaf])


def run_tiny(workdir, *stages_, **change):
    config = configs.plain(tiny_chaos.get_config())
    config["stages"] = {name: block for name, block in config["stages"].items() if name in stages_}
    for name, more in change.items():
        config["stages"][name] |= more
    program.run(stages.Context(config, workdir, meshes.make(devices=jax.devices()[:1])))
    return config


def main(workdir, *arguments):
    config = str(program.pathlib.Path(tiny_chaos.__file__))
    return program.main(["run", f"--config={config}", f"--workdir={workdir}", "--stage=teacher", *arguments])


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("what", ["a checkpoint", "weights", "metrics"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(what, tmp_path, monkeypatch, capsys):
    """Each kind of file refuses from its second write on."""
    with monkeypatch.context() as patch:
        if what == "a checkpoint":
            wait = store.ocp.CheckpointManager.wait_until_finished
            save = store.ocp.CheckpointManager.save

            def full(self, step, **more):
                if step > 2:
                    # As Orbax does: the error of the thread that wrote comes with the next call.
                    wait(self)
                    raise ValueError("Failed to write: No space left on device") from FULL
                return save(self, step, **more)

            patch.setattr(store.ocp.CheckpointManager, "save", full)
        elif what == "weights":

            def broken(arrays, path, metadata):
                raise weights.SafetensorError(
                    "Error while serializing: I/O error: No space left on device (os error 28)"
                )

            patch.setattr(weights, "save_file", broken)
        else:

            def refuse(self, step, scalars):
                raise FULL

            patch.setattr("experiments.writers.JsonlWriter.write_scalars", refuse)
        assert main(tmp_path / "run") == 4
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(error) == 1 and "No space left on device" in error[0], error
    if what == "a checkpoint":
        assert f"the last whole one is {tmp_path / 'run/teacher/checkpoints/2'}" in error[0]
    if what == "a checkpoint":
        # Orbax names long paths first.
        said = f"Error writing {'x' * 500}: No space left on device"
        assert len(store._line(OSError(said))) < 450 and store._line(OSError(said)).endswith("No space left on device")
    if what == "weights":
        assert str(tmp_path / "run/teacher/weights.safetensors") in error[0]
    assert not (tmp_path / "run/teacher/weights.safetensors").exists()
    assert main(tmp_path / "run") == 0
    assert (tmp_path / "run/teacher/weights.safetensors").exists()


def test_a_clip_that_becomes_unreadable_is_one_line_and_the_run_goes_on_when_it_is_mended(
    tmp_path, monkeypatch, capsys
):
    """It is read in the threads of the pipeline, after some batches."""
    with monkeypatch.context() as patch:
        read, batches = pipeline.read, []

        def broken(*given):
            batches.append(given)
            if len(batches) > 4:
                raise Damaged("clips.array_record: latent 7 is damaged; encode them again")
            return read(*given)

        patch.setattr(pipeline, "read", broken)
        assert main(tmp_path / "run") == 4
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert error == ["error: clips.array_record: latent 7 is damaged; encode them again"]
    assert main(tmp_path / "run") == 0
    assert (tmp_path / "run/teacher/weights.safetensors").exists()


def test_a_stage_that_is_refused_in_its_first_step_is_not_in_the_way_of_the_config_that_mends_it(
    tmp_path, monkeypatch, capsys
):
    """TensorBoard's file is there by then, and no result; a checkpoint is one."""

    def refused(*given):
        raise ConfigError("not so")

    folder, given = tmp_path / "run/teacher", "--config.stages.teacher.tensorboard=True"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "compile_phases", lambda method, mesh: {"train": refused})
        assert main(tmp_path / "run", given) == 2
    assert "not so" in capsys.readouterr().err and not folder.exists()
    assert main(tmp_path / "run", given, "--config.stages.teacher.steps=2") == 0
    assert list(folder.glob("tensorboard/*"))
    for name in ("done.json", "weights.safetensors"):
        (folder / name).unlink()
    program.forget(folder)
    assert (folder / "checkpoints/2").exists()


def test_a_damaged_line_of_the_metrics_is_named_and_the_run_goes_on_without_it(tmp_path, capsys):
    path = tmp_path / "run/metrics.jsonl"
    path.parent.mkdir()
    path.write_text("not a row\n")
    assert main(tmp_path / "run") == 4
    (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error"))
    assert f"{path}, line 1: not a JSON object" in error and error.endswith("; remove that line, or the file")
    path.unlink()
    assert main(tmp_path / "run") == 0


def test_a_signal_in_a_place_that_forgets_exceptions_comes_again():
    """Python prints what is raised in `__del__` and goes on."""

    class Dying:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    reached = False
    with pytest.raises(loop.Stopped), loop.stop_signal(at_once=True) as stopping:
        dying = Dying()
        del dying
        reached = stopping()
        time.sleep(10)
    assert reached


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_obeyed_at_once_but_where_there_is_something_to_save(number):
    before = signal.getsignal(number)
    with pytest.raises(loop.Stopped, match="run the same command to go on"):
        with loop.stop_signal(at_once=True):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    reached = False
    with pytest.raises(loop.Stopped):
        with loop.stop_signal(at_once=True) as outer:
            with loop.stop_signal() as inner:
                os.kill(os.getpid(), number)
                reached = inner() and not outer()
            pytest.fail("what came after the loop last asked is handed on")
    assert reached
    # An error that is on its way is not replaced.
    with pytest.raises(KeyError), loop.stop_signal(at_once=True), loop.stop_signal():
        os.kill(os.getpid(), number)
        raise KeyError


def test_a_second_interruption_does_not_wait(capsys):
    with pytest.raises(KeyboardInterrupt), loop.stop_signal(at_once=True), loop.stop_signal() as stopping:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping() and "Ctrl-C again: at once" in capsys.readouterr().err
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it was asked for twice")


@pytest.mark.parametrize("where", ["last step", "evaluation"])
def test_sigterm_ends_the_program_well_wherever_it_comes(where, tmp_path, monkeypatch, capsys):
    """With the last step, of which a stage that follows would know nothing; and in a stage without steps."""
    workdir = tmp_path / "run"
    config = str(program.pathlib.Path(tiny_chaos.__file__))
    arguments = ["run", f"--config={config}", f"--workdir={workdir}"]
    arguments += [f"--config.stages.{s}.steps=2" for s in ("teacher", "student", "game")]
    if where == "last step":
        arguments.append("--stage=teacher")
        save = Checkpoints.save

        def killed(self, step, *given):
            save(self, step, *given)
            os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", killed)
            assert program.main(arguments) == 0
        assert "stopped after its last step, saved" in capsys.readouterr().err
        assert not (workdir / "teacher/done.json").exists()
    else:
        with monkeypatch.context() as patch:
            patch.setitem(stages.KINDS, "exact", lambda *given: os.kill(os.getpid(), signal.SIGTERM))
            assert program.main(arguments) == 0
        assert capsys.readouterr().err.splitlines()[-1] == "stopped; run the same command to go on"
        assert (workdir / "game/done.json").exists() and not (workdir / "exact/done.json").exists()
    assert program.main(arguments) == 0
    assert (workdir / ("teacher" if where == "last step" else "exact") / "done.json").exists()


def test_a_watchdog_says_so_where_no_step_ends_for_long(caplog):
    now = [0.0]
    dog = loop.Watchdog("teacher", clock=lambda: now[0])
    now[0] = 599.0
    assert dog.late() is None, "the first step compiles"
    now[0] = 601.0
    assert "no step has ended for 10 min, since the beginning" in dog.late()
    assert dog.late() is None, "once"
    for step in range(1, 12):
        dog.beat(step)
        now[0] += 2.0
    now[0] = 621.0 + 59.0
    assert dog.late() is None
    now[0] = 621.0 + 61.0
    assert "no step has ended for 61 s, since step 11, where the longest of the last 10 took 2 s" in dog.late()
    now[0] = 621.0 + 121.0
    assert dog.late() is None
    now[0] = 621.0 + 123.0
    assert "for 2 min" in dog.late()
    # Slow steps are usual here: ten of the longest.
    dog.beat(12)
    now[0] += 130.0
    dog.beat(13)
    now[0] += 1290.0
    assert dog.late() is None
    now[0] += 30.0
    assert "since step 13" in dog.late()


def test_the_watchdog_barks_beside_a_loop_that_hangs_and_leaves_with_it(caplog):
    with loop.Watchdog("teacher", least=0.05, every=0.01) as dog:
        dog.beat(1)
        dog._thread.join(timeout=0.5)
        assert "no step has ended" in caplog.text
    dog._thread.join(timeout=5)
    assert not dog._thread.is_alive() and dog._thread.daemon


def rows(workdir, stage="teacher"):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in found if row["stage"] == stage}


def test_a_stop_between_checkpoints_validates_nothing(tmp_path, monkeypatch):
    """Where it would not have been without, the best weights must not depend on when a run was stopped."""
    workdir, enter = tmp_path / "run", loop.stop_signal.__enter__
    monkeypatch.setattr(loop.stop_signal, "__enter__", lambda self: enter(self) and (lambda: True))
    with pytest.raises(loop.Stopped, match="stopped at step 1 of 4"):
        run_tiny(workdir, "teacher", teacher=dict(steps=4, log_every=1, validation=dict(clips=16)))
    assert sorted(rows(workdir)) == [1] and "validation/loss" not in rows(workdir)[1]


def test_speed_is_that_of_the_steps_done_by_now(monkeypatch):
    now, progress = [0.0], loop.Progress("teacher", 0, 100, io.StringIO())
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    speeds = []
    for step in range(10, 60, 10):  # a second each
        now[0] = float(step)
        speeds.append(progress.speed(step))
        progress.line(step, {"loss": 1.0})
    assert speeds == [None, 1.0, 1.0, 1.0, 1.0]
    assert "1.00 steps/s  50 s left" in progress.stream.getvalue()


def test_the_best_weights_by_held_out_loss_are_kept(tmp_path, monkeypatch):
    """At a learning rate that makes it worse in the end; the same after a stop, and usable by a later stage."""
    worse = dict(
        steps=8, accumulate=1, optimiser=dict(learning_rate=0.3, clip=0.0), options=dict(ema=0.0),
        validation=dict(clips=32, keep_best="loss"), keep_checkpoints=3,
    )  # fmt: skip
    workdir = tmp_path / "run"
    config = run_tiny(workdir, "teacher", teacher=worse)
    measured = {step: row["validation/loss"] for step, row in rows(workdir).items() if "validation/loss" in row}
    assert list(measured) == [2, 4, 6, 8] and len(set(measured.values())) == 4
    first = min(measured, key=measured.get)
    _, record = weights.load(weights.find("teacher@best", workdir))
    assert (record["step"], record["validation"]) == (first, pytest.approx(measured[first], rel=1e-6))
    assert first < 8, "chosen so that the last is not the best"
    # Of a stage that has not ended the best is only the best yet.
    whole = workdir / "teacher/weights.safetensors"
    whole.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="'teacher@best' is missing or unfinished"):
        weights.find("teacher@best", workdir)
    (tmp_path / "elsewhere").rename(whole)
    kept = sorted(int(p.name) for p in (workdir / "teacher/checkpoints").iterdir() if p.name.isdecimal())
    assert kept == [4, 6, 8]
    # Gone on from an earlier step: the same losses, the same choice, the same weights.
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    for name in ("checkpoints/6", "checkpoints/8"):
        shutil.rmtree(again / "teacher" / name)
    (again / "teacher/done.json").unlink()
    program.run(stages.Context(config, again, meshes.make(devices=jax.devices()[:1])))
    after = [{k: v for k, v in rows(folder)[8].items() if k != "steps_per_second"} for folder in (again, workdir)]
    assert after[0] == after[1]
    one, other = (load_file(weights.result_path(folder, "teacher", "best")) for folder in (workdir, again))
    assert all((one[name] == other[name]).all() for name in one)
    last = load_file(weights.result_path(workdir, "teacher"))
    assert any((one[name] != last[name]).any() for name in one)


@pytest.mark.parametrize(
    "stage, given, message",
    [
        ("teacher", dict(clips=24), "validation.clips: expected a multiple of batch_size 16"),
        ("teacher", dict(clips=0), "validation.clips: expected a multiple of batch_size 16"),
        ("teacher", dict(clip=16), "did you mean 'clips'"),
        ("student", dict(clips=16, keep_best="loss"), "losses of rounds with other steps can't be compared"),
    ],
)
def test_a_wrong_validation_is_one_line_before_any_work(stage, given, message, tmp_path):
    config = configs.plain(tiny_chaos.get_config())
    config["stages"][stage]["validation"] = given
    with pytest.raises(ConfigError, match=message):
        stages.check(stages.Context(config, tmp_path, meshes.make(devices=jax.devices()[:1])))


def test_a_held_out_loss_that_is_not_finite_stops_the_stage(tmp_path, monkeypatch):
    """With keep_best it would leave no weights to keep, and the stage that asks for them would be blamed."""
    monkeypatch.setattr(validation.Validation, "__call__", lambda self, run, step: {"validation/loss": float("nan")})
    with pytest.raises(FloatingPointError, match="teacher: validation/loss is not finite at step 2"):
        run_tiny(tmp_path / "run", "teacher", teacher=dict(validation=dict(clips=16, keep_best="loss")))


def test_a_metric_that_is_not_measured_is_named(tmp_path):
    with pytest.raises(ConfigError, match="keep_best 'los' is not measured; did you mean 'loss'"):
        run_tiny(tmp_path / "run", "teacher", teacher=dict(validation=dict(clips=16, keep_best="los")))
    # And doesn't stand in the way of the config that mends it.
    assert not (tmp_path / "run/teacher").exists()


@pytest.fixture(autouse=True)
def _messages(caplog):
    """The program sets up logging for itself; tests read it."""
    caplog.set_level(logging.INFO, "experiments")
