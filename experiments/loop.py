"""The loop that runs a method's phases: compiled once, checkpointed, resumed bit for bit, watched for NaN."""

import collections
import dataclasses
import json
import logging
import math
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from clu import metrics as clu_metrics
from jax.sharding import Mesh
from jaxtyping import PyTree

from distill.method import Method
from experiments import mesh as meshes
from experiments.checkpoints import Checkpoints
from experiments.config import ConfigError, differences
from experiments.writers import Writer

log = logging.getLogger(__name__)

ASK_EVERY = 5.0
"""Seconds after which several processes ask one another whether SIGTERM came: a spot machine leaves some 30 to save in."""


class Stopped(BaseException):
    """SIGTERM came: what there was to save is saved, and the run may be continued. As KeyboardInterrupt it is no Exception: no
    library that tries again may take it for an error of its own.
    """


@dataclasses.dataclass
class Run:
    """What a stage trains, and where it stands. `hyper` holds Python floats; they become traced scalars."""

    method: Method
    state: PyTree
    frozen: PyTree
    hyper: dict[str, float]
    steps: int
    rounds: int = 1

    def tree(self) -> dict[str, Any]:
        """What a checkpoint must hold. A teacher that changes from round to round belongs to it, a fixed one doesn't."""
        tree = {"state": self.state, "hyper": {k: np.float32(v) for k, v in self.hyper.items()}}
        return tree | ({"frozen": self.frozen} if self.rounds > 1 else {})

    def take(self, tree: dict[str, Any]) -> None:
        self.state = tree["state"]
        self.hyper = {k: float(v) for k, v in tree["hyper"].items()}
        self.frozen = tree.get("frozen", self.frozen)


def compile_phases(method: Method, mesh: Mesh) -> dict[str, Callable]:
    """One jit for each phase, traced in the mesh's context. State and batch stay where they are put; the state is donated."""

    def on_mesh(phase: Callable) -> Callable:
        def placed(state: PyTree, frozen: PyTree, batch: PyTree, key: jax.Array, hyper: PyTree):
            try:
                with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                    state, metrics = phase(state, frozen, batch, key, hyper)
            except KeyError as error:
                # Of the trace, before any step: our own methods are checked, one from outside may ask too.
                name = next((n for n in ("teacher", "features", "previous") if error.args == (n,)), None)
                if name is None or name in frozen:
                    raise
                raise ConfigError(
                    f"the method asks for frozen[{name!r}], which this stage hasn't got: give it the key {name!r}"
                ) from error
            places = (meshes.shardings(state, mesh), jax.tree.map(lambda _: meshes.replicated(mesh), metrics))
            return jax.lax.with_sharding_constraint((state, metrics), places)

        return jax.jit(placed, donate_argnums=0)

    return {name: on_mesh(phase) for name, phase in method.phases.items()}


def train(
    run: Run,
    batches: Any,
    key: jax.Array,
    mesh: Mesh,
    *,
    name: str,
    checkpoints: Checkpoints,
    make_writer: Callable[[int], Writer],
    record: dict[str, Any],
    log_every: int,
    checkpoint_every: int,
    on_round: Callable[[Run], None],
    validate: Callable[[Run, int], dict[str, float]] = lambda run, step: {},
    preview: Callable[[Run, int], Mapping[str, Any]] = lambda run, step: {},
) -> Run:
    """Runs `run.rounds` rounds of `run.steps` steps, from the newest checkpoint if there is one.

    key: of the stage; step s uses fold_in(key, s). on_round is called with the finished round before the next begins (and
    again after a kill in between: it must be repeatable). validate and preview are called with the steps done before each
    checkpoint is saved; what the first returns is written with the metrics, what the second does as clips. Raises
    FloatingPointError for a non-finite loss, Stopped after SIGTERM or Ctrl-C, OSError where a checkpoint can't be written.
    """
    with stop_signal() as stopping, Watchdog(name) as watchdog:
        return _train(
            run, batches, key, mesh, stopping, watchdog, name=name, checkpoints=checkpoints, make_writer=make_writer,
            record=record, log_every=log_every, checkpoint_every=checkpoint_every, on_round=on_round, validate=validate,
            preview=preview,
        )  # fmt: skip


def _train(
    run: Run, batches: Any, key: jax.Array, mesh: Mesh, stopping: Callable[[], bool], watchdog: "Watchdog",
    *, name: str, checkpoints: Checkpoints, make_writer: Callable[[int], Writer], record: dict[str, Any], log_every: int,
    checkpoint_every: int, on_round: Callable[[Run], None], validate: Callable[[Run, int], dict[str, float]],
    preview: Callable[[Run, int], Mapping[str, Any]],
) -> Run:  # fmt: skip
    run.state, run.frozen = meshes.put(run.state, mesh), meshes.put(run.frozen, mesh)
    total = run.steps * run.rounds
    first = 0
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), meshes.put(run.tree(), mesh)
    )
    if checkpoints.latest() is not None:
        run.state = None  # there may be no room for a second one beside it
    found = checkpoints.restore(like)
    if found is not None:
        first, tree, position, saved = found
        check_same(saved, record, f"{name}: checkpoint {checkpoints.folder / str(first)}")
        run.take(tree)
        try:
            batches.set_state(position)
        except ValueError as error:  # of a folder, say, to which files were added
            raise ConfigError(
                f"{name}: can't go on: {error}; remove the stage's folder, or choose another workdir"
            ) from None
        log.info("%s: resumed at step %d of %d", name, first, total)
    writer = make_writer(first)
    phases = compile_phases(run.method, mesh)
    progress = Progress(name, first, total)
    seen: list[tuple[int, dict[str, Any]]] = []
    history: list[dict[str, float]] = []
    alarmed = False

    def report(validation: dict[str, float]) -> None:
        """Writes the mean of the metrics since the last time; stops the stage at a loss that is not finite."""
        nonlocal alarmed
        if not seen:
            return
        values = jax.device_get([m for _, m in seen])
        measured = [*zip((step for step, _ in seen), values, strict=True), (seen[-1][0], validation)]
        for step, metrics in measured:
            for key_, value in metrics.items():
                if not np.all(np.isfinite(value)):
                    last = checkpoints.latest()
                    raise FloatingPointError(
                        f"{name}: {key_} is not finite at step {step}; the last good checkpoint is "
                        + (f"{checkpoints.folder / str(last)}" if last is not None else "none: no step was saved yet")
                    )
        scalars = average(values)
        speed = progress.speed(seen[-1][0])
        rate = {} if speed is None else {"steps_per_second": speed}
        writer.write_scalars(seen[-1][0], {**scalars, **validation, **rate})
        writer.flush()
        if meshes.leads():
            progress.line(seen[-1][0], scalars)
        for key_, bad in scalars.items():
            if key_.endswith("non_finite") and bad >= batches.batch_size:
                log.warning("%s: step %d: no clip had a finite target, nothing is learnt", name, seen[-1][0])
        history.append(scalars)
        if not alarmed and (line := run.method.alarm(history)):
            alarmed = True
            log.warning("%s: step %d: %s", name, seen[-1][0], line)
        seen.clear()

    stop, asked, since, ask = False, first, time.monotonic(), first + 1
    for step in range(first, total):
        batch = meshes.put_batch(next(batches), mesh, batches.batch_size)
        hyper = {k: np.float32(v) for k, v in run.hyper.items()}
        for index, phase in enumerate(run.method.order(step)):
            step_key = jax.random.fold_in(jax.random.fold_in(key, step), index)
            run.state, metrics = phases[phase](run.state, run.frozen, batch, step_key, hyper)
            prefix = f"{phase}/" if len(phases) > 1 else ""
            seen.append((step + 1, {f"{prefix}{k}": v for k, v in metrics.items()}))
        done = step + 1
        end_of_round = done % run.steps == 0
        pause = end_of_round or done % log_every == 0 or done % checkpoint_every == 0
        if jax.process_count() == 1:
            stop = stopping()
        elif pause or done == ask:
            # Several processes must leave at the same step. They tell one another in how many steps to ask again; 0: to stop.
            jax.block_until_ready(metrics)
            seconds = (time.monotonic() - since) / (done - asked)
            steps = min(meshes.each(0 if stopping() else max(1, int(ASK_EVERY / max(seconds, 1e-6)))))
            stop, asked, since, ask = steps == 0, done, time.monotonic(), done + steps
        due = end_of_round or done % checkpoint_every == 0
        save = due or stop
        if pause or stop:
            # A step at which SIGTERM came is validated only if it would have been without.
            report(validate(run, done) if due else {})
            if due:
                writer.write_videos(done, preview(run, done))
        if end_of_round:
            on_round(run)
            if done < total:
                if run.method.next is None:
                    raise ConfigError(f"{name}: this method has a single round, {run.rounds} were asked for")
                run.state, run.frozen, run.hyper = run.method.next(run.state, run.frozen, run.hyper)
                run.state, run.frozen = meshes.put(run.state, mesh), meshes.put(run.frozen, mesh)
        if save:
            checkpoints.save(done, run.tree(), batches.get_state(), record | {"step": done})
        watchdog.beat(done)
        if stop and done < total:
            checkpoints.wait()
            writer.close()
            raise Stopped(f"{name}: stopped at step {done} of {total}, saved; run the same command to go on")
    checkpoints.wait()
    writer.close()
    # It may have come with the last step, or while that was being saved.
    if stop or (stopping() and jax.process_count() == 1):
        raise Stopped(f"{name}: stopped after its last step, saved; run the same command to go on")
    return run


def check_same(saved: dict[str, Any], record: dict[str, Any], what: str) -> None:
    """Refuses to go on from the checkpoint of a stage that was run in another way. Another commit may go on."""
    kept, wanted = ({k: v for k, v in r.items() if k not in ("step", "commit", "config")} for r in (saved, record))
    if found := differences(kept, json.loads(json.dumps(wanted)), "record"):
        raise ConfigError(f"{what} is of another run, {found[0]}: remove the stage's folder, or choose another workdir")


def average(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The mean of each metric over steps. A pair (sum, count) is averaged over its counts; without any it is left out."""
    scalars = {}
    for name in dict.fromkeys(k for row in rows for k in row):
        values = [row[name] for row in rows if name in row]
        if isinstance(values[0], tuple):
            total, count = (float(np.sum([v[i] for v in values])) for i in (0, 1))
            if count:
                scalars[name] = total / count
        else:
            scalars[name] = float(clu_metrics.Average.from_model_output(np.asarray(values)).compute())
    return scalars


class Progress:
    """A line with speed and time left: rewritten in place on a terminal, one line a report elsewhere."""

    def __init__(self, name: str, first: int, total: int, stream=sys.stderr):
        self.name, self.first, self.total, self.stream = name, first, total, stream
        self._begun: float | None = None
        self._from = first

    def speed(self, done: int) -> float | None:
        """Steps per second, `done` of them by now, since the first report, which pays for compilation; None up to there."""
        if self._begun is None or done <= self._from:
            return None
        return (done - self._from) / max(time.monotonic() - self._begun, 1e-9)

    def line(self, done: int, scalars: dict[str, float]) -> None:
        if self._begun is None:
            self._begun, self._from = time.monotonic(), done
        speed = self.speed(done)
        pace = "time left not known yet"
        if speed is not None:
            pace = f"{speed:.2f} steps/s  {duration((self.total - done) / speed)} left"
        loss = next((v for k, v in scalars.items() if k.endswith("loss")), math.nan)
        text = f"{self.name}: step {done}/{self.total}  loss {loss:.4g}  {pace}"
        terminal = self.stream.isatty()
        print(
            f"\r{text:<78}" if terminal else text,
            end="" if terminal and done < self.total else "\n",
            file=self.stream,
            flush=True,
        )


def duration(seconds: float) -> str:
    seconds = round(seconds)
    if seconds < 90:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class stop_signal:
    """A context in which SIGTERM and Ctrl-C are noted, not obeyed: the loop asks, saves and leaves. at_once: they are obeyed,
    by `Stopped`, as there is nothing to save; contexts inside of this one may still defer them, but no second Ctrl-C.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, *, at_once: bool = False):
        self._at_once = at_once

    def __enter__(self) -> Callable[[], bool]:
        self._noted: int | None = None

        def note(number, frame):
            if number == self._noted == signal.SIGINT:
                raise KeyboardInterrupt
            if number == signal.SIGINT and not self._at_once:
                print("stopping after this step; Ctrl-C again: at once, without saving", file=sys.stderr, flush=True)
            self._noted = number
            if self._at_once and is_forgetful(frame):
                threading.Timer(0.05, come_again, (threading.get_ident(), number)).start()
            elif self._at_once:
                raise Stopped("stopped; run the same command to go on")

        def come_again(thread, number):
            if callable(signal.getsignal(number)):  # else the run has ended
                signal.pthread_kill(thread, number)

        try:
            self._before = {number: signal.signal(number, note) for number in self.NUMBERS}
        except ValueError:  # signals can be set in the main thread only
            self._before = {}
        return lambda: self._noted is not None

    def __exit__(self, kind: type[BaseException] | None, *unused: Any) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        # One that came after the loop had last asked is handed on.
        before = self._before.get(self._noted)
        if not self._at_once and kind is None and callable(before):
            before(self._noted, None)


def is_forgetful(frame: types.FrameType | None) -> bool:
    """Whether Python prints what is raised here and goes on: in `__del__`, and in what JAX has the collector call."""
    while frame is not None:
        if frame.f_code.co_name in ("__del__", "_xla_gc_callback"):
            return True
        frame = frame.f_back
    return False


class Watchdog:
    """A context that says so where no step ends for long: for `times` the longest of the last hundred, and `least` seconds.

    Before the first step has ended the limit is that of a compilation, `first` seconds. It says it again each time that the
    wait has doubled. Raises nothing: what hangs may yet go on.
    """

    def __init__(
        self,
        name: str,
        *,
        least: float = 60.0,
        first: float = 600.0,
        times: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        every: float = 5.0,
    ):
        self.name, self.least, self.first, self.times, self.clock, self.every = name, least, first, times, clock, every
        self._gaps: collections.deque[float] = collections.deque(maxlen=100)
        self._step: int | None = None
        self._last = clock()
        self._said = 0.0
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, step: int) -> None:
        """A step has ended."""
        now = self.clock()
        if self._step is not None:  # the first one's time is that of compiling
            self._gaps.append(now - self._last)
        self._step, self._last, self._said = step, now, 0.0

    def late(self) -> str | None:
        """The line, if it is time for one."""
        waited = self.clock() - self._last
        limit = max(self.least, self.times * max(self._gaps, default=0.0)) if self._step is not None else self.first
        if waited < max(limit, 2 * self._said):
            return None
        self._said = waited
        if self._step is None:
            return f"{self.name}: no step has ended for {duration(waited)}, since the beginning; it may still compile"
        usual = f", where the longest of the last {len(self._gaps)} took {max(self._gaps):.3g} s" if self._gaps else ""
        return (
            f"{self.name}: no step has ended for {duration(waited)}, since step {self._step}{usual}: data, a device or another"
            " process may hang"
        )

    def _watch(self) -> None:
        while not self._leave.wait(self.every):
            if line := self.late():
                log.warning("%s", line)

    def __enter__(self) -> "Watchdog":
        self._last = self.clock()
        self._thread.start()
        return self

    def __exit__(self, *unused: Iterable[Any]) -> None:
        self._leave.set()
