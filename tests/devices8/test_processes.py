"""Two real processes over the loopback, of four devices or of one each: one run, whose checkpoints any number of processes goes
on from, of which damage to one process's files is damage to both, and which a signal to one stops.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]

CONFIG = """
from tests.devices8.test_mesh import config_of
from ml_collections import ConfigDict

def get_config():
    config = config_of(mesh=dict(data={data}, fsdp={fsdp}, context={context}, tensor=1))
    config["stages"] |= {more}
    return ConfigDict(config)
"""


def start(workdir, devices, mesh, processes=None, more=()):
    config = workdir.with_name(f"{workdir.name}.py")
    config.write_text(CONFIG.format(**mesh, more=dict(more)), encoding="utf-8")
    command = ["-m", "experiments.run", f"--config={config}", f"--workdir={workdir}"]
    return python(command + ([f"--processes={processes}"] if processes else []), devices)


def python(command, devices):
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    return output


def together(workdir, mesh, devices=4, more=()):
    return pair(lambda processes: start(workdir, devices, mesh, processes, more))


def called(name, *given):
    """What two processes of one device each print that call a function of this file."""
    code = "import sys; from tests.devices8 import test_processes as here; here.join_and_call(*sys.argv[1:])"
    return pair(lambda processes: python(["-c", code, processes, name, *map(str, given)], 1))


def join_and_call(processes, name, *given):
    from experiments import run

    run.join(processes)
    globals()[name](*given)


def pair(begin):
    """What two processes print that `begin` starts. It is given what --processes says to each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    both = [begin(f"{address},2,{i}") for i in range(2)]
    try:
        return [finish(process) for process in both]
    finally:
        for process in both:
            process.kill()


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


def goes_on(two, workdir, devices, mesh):
    """What two processes left in `two` as it was after two of four steps, gone on with by one process."""
    shutil.copytree(two, workdir)
    shutil.rmtree(workdir / "teacher/checkpoints/4")
    for name in ("done.json", "weights.safetensors"):
        (workdir / "teacher" / name).unlink()
    assert "resumed at step 2 of 4" in finish(start(workdir, devices, mesh))
    return workdir


def test_two_processes_are_one_run_and_one_goes_on(tmp_path):
    """Weights in parts on both, a batch of which each reads its half; then three steps' worth of state on a single device."""
    single = dict(data=1, fsdp=1, context=1)
    first, _ = together(tmp_path / "two", dict(data=2, fsdp=4, context=1))
    assert "teacher: done" in first
    workdir = goes_on(tmp_path / "two", tmp_path / "one", 1, single)
    alone = tmp_path / "alone"
    finish(start(alone, 1, single))
    assert [step for step, _ in losses(alone)] == [1, 2, 3, 4]
    for folder in (tmp_path / "two", workdir):
        np.testing.assert_allclose(losses(folder), losses(alone), rtol=1e-5)
    one, two = (load_file(folder / "teacher/weights.safetensors") for folder in (alone, tmp_path / "two"))
    assert one.keys() == two.keys() and all(np.abs(one[k] - two[k]).max() < 1e-4 for k in one)


@pytest.mark.slow  # a pair of processes and one more of eight devices, each of which compiles everything
@pytest.mark.parametrize("mesh", [dict(data=2, fsdp=4, context=1), dict(data=1, fsdp=2, context=4)])
def test_eight_devices_of_one_process_go_on_with_what_two_left(mesh, tmp_path):
    together(tmp_path / "two", dict(data=2, fsdp=4, context=1))
    workdir = goes_on(tmp_path / "two", tmp_path / "eight", 8, mesh)
    np.testing.assert_allclose(losses(workdir), losses(tmp_path / "two"), rtol=1e-5)


@pytest.mark.slow  # two more pairs of processes, each of which compiles everything
@pytest.mark.parametrize("mesh", [dict(data=1, fsdp=1, context=8), dict(data=1, fsdp=2, context=4)])
def test_two_processes_with_parts_of_the_same_clips(mesh, tmp_path):
    """Both read the rows that their devices share."""
    together(tmp_path / "two", mesh)
    finish(start(tmp_path / "alone", 1, dict(data=1, fsdp=1, context=1)))
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "alone"), rtol=1e-5)


def puts_weights():
    import jax
    import jax.numpy as jnp
    from jax.experimental import multihost_utils

    from experiments import checkpoints
    from experiments import mesh as meshes

    mesh = meshes.make(dict(fsdp=2))
    rows = np.arange(24, dtype=np.float32).reshape(4, 6)
    with pytest.MonkeyPatch.context() as patch:
        # Each device can be given its part without a word between the processes.
        patch.delattr(multihost_utils, "process_allgather")
        tree = meshes.put({"weight": rows, "bias": rows[0], "half": jnp.bfloat16(3), "number": 2.0}, mesh)
    (part,) = tree["weight"].addressable_shards
    np.testing.assert_array_equal(part.data, rows[2 * jax.process_index() :][:2])
    assert tree["number"].dtype == np.float32 and tree["half"].dtype == jnp.bfloat16
    # What is there already stays; what a process made for itself, as a new optimiser's count, is one for all.
    again = meshes.put(tree | {"count": jnp.zeros((), jnp.int32), "own": jax.device_put(rows)}, mesh)
    assert again["weight"] is tree["weight"] and again["count"].sharding == meshes.replicated(mesh)
    host = meshes.whole(again)
    assert checkpoints.digest(again) == checkpoints.digest(host)
    np.testing.assert_array_equal(host["own"], rows)


def test_weights_are_put_without_a_word_between_processes():
    called("puts_weights")


@pytest.mark.slow  # three processes more, each of which compiles a teacher and a student
def test_two_processes_of_one_device_begin_another_round(tmp_path):
    """The student of two steps becomes the teacher of that of one, with an optimiser begun anew."""
    mesh = dict(data=-1, fsdp=1, context=1)
    student = dict(
        kind="train", method="progressive", teacher="teacher", student_steps=[2, 1], steps=2, batch_size=8, log_every=1,
        checkpoint_every=1, optimiser=dict(learning_rate=3e-3), tensorboard=False,
    )  # fmt: skip
    together(tmp_path / "two", mesh, 1, {"student": student})
    finish(start(tmp_path / "alone", 1, mesh, more={"student": student}))
    assert len(losses(tmp_path / "two")) == 4 + 2 * 2
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "alone"), rtol=1e-5)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "nothing": lambda step: None,
    "missing": shutil.rmtree,
    "empty": lambda step: (step / "state/_METADATA").write_bytes(b""),
    "a bit of what is told": lambda step: flip(step / "data/metadata"),
    "bits of numbers": lambda step: [flip(p) for p in step.rglob("*") if p.is_file() and p.stat().st_size > 2000],
}


def goes_back(folder):
    import jax

    from experiments import mesh as meshes
    from experiments.checkpoints import Checkpoints
    from experiments.config import ConfigError

    folder, mesh = pathlib.Path(folder), meshes.make(dict(fsdp=2))

    def tree(step):
        return meshes.put({"weight": np.random.default_rng(step).standard_normal((60, 40), np.float32)}, mesh)

    saved = Checkpoints(folder / "both")
    for step in (1, 2):
        saved.save(step, tree(step), {"step": step, "source": "clips"}, {"step": step})
    saved.wait()
    saved.close()
    for how, whose, steps in [*((how, whose, [2]) for how in DAMAGE for whose in (0, 1)), ("empty", 1, [1, 2])]:
        # Each process with files of its own, of which those of one are damaged.
        own = folder / f"{how} {whose} {steps} of {jax.process_index()}"
        shutil.copytree(folder / "both", own)
        for step in steps if whose == jax.process_index() else []:
            DAMAGE[how](own / str(step))
        meshes.meet(own.name.split(" of ")[0])
        made = Checkpoints(own)
        if steps == [1, 2]:
            with pytest.raises(ConfigError, match="they stay as they are"):
                made.restore(tree(0))
        else:
            step, state, *told = made.restore(tree(0))
            assert step == (2 if how == "nothing" else 1), (how, whose)
            assert told == [{"step": step, "source": "clips"}, {"step": step}]
            np.testing.assert_array_equal(meshes.whole(state)["weight"], meshes.whole(tree(step))["weight"])
            # The first process keeps for all aside what is damaged for one.
            assert not meshes.leads() or (own / "2").exists() == (how == "nothing"), (how, whose)
        made.close()


def test_damage_that_one_process_sees_sends_both_to_the_step_before(tmp_path):
    called("goes_back", tmp_path)


class Slow:
    """Batches of a hundredth of a second each. With the fortieth the second process is told to stop."""

    batch_size = 2

    def __init__(self):
        self.begun, self.made = time.monotonic(), 0

    def __next__(self):
        import jax

        time.sleep(0.01)
        self.made += 1
        if self.made == 40 and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        assert time.monotonic() < self.begun + 60, "nobody asked"
        return {"video": np.ones((1, 3), np.float32)}

    def get_state(self):
        return {"made": self.made}


def stops(folder):
    import jax
    import jax.numpy as jnp

    from distill.method import Method
    from experiments import loop
    from experiments import mesh as meshes
    from experiments.checkpoints import Checkpoints
    from experiments.writers import MultiWriter

    def phase(state, frozen, batch, key, hyper):
        return {"sum": state["sum"] + batch["video"].sum()}, {"loss": state["sum"]}

    asked, each = [], meshes.each
    batches, checkpoints = Slow(), Checkpoints(pathlib.Path(folder))
    run = loop.Run(Method(None, {"train": phase}, lambda step: ("train",)), {"sum": jnp.zeros(())}, {}, {}, 10**6)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(loop.Stopped):
        patch.setattr(loop, "ASK_EVERY", 0.5)
        patch.setattr(meshes, "each", lambda value: asked.append(each(value)) or asked[-1])
        loop.train(
            run, batches, jax.random.key(0), meshes.make(), name="slow", checkpoints=checkpoints,
            make_writer=lambda step: MultiWriter([]), record={}, log_every=10**6, checkpoint_every=10**6,
            on_round=lambda run: None,
        )  # fmt: skip
    assert checkpoints.latest() == batches.made and float(run.state["sum"]) == 6 * batches.made
    assert len(asked) < batches.made / 2  # not at every step
    checkpoints.close()
    print(f"stopped at {batches.made}")


def test_a_signal_to_one_process_stops_both_soon_and_at_the_same_step(tmp_path):
    """With no line of metrics and no checkpoint due before."""
    one, two = (output.splitlines()[-1] for output in called("stops", tmp_path))
    assert one == two and one.startswith("stopped at ")
