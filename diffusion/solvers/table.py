"""A sampler is a table: one row per network call, and every row does the same four things.

    predict    point    = a anchor + sum_k h_k history_k + n noise + bias
    evaluate   denoised = denoise(point, logsnr)
    remember   entry    = p point + d denoised, pushed on the history (slot 0 is the newest)
    correct    anchor   = a anchor + p point + sum_k h_k history_k + bias     (the history includes the new entry)

A last predict, stored apart, gives the sample. In a multistep sampler the anchor is the point; in a singlestep or Heun
sampler the anchor waits while the points move on; in a predictor-corrector the corrected anchor costs no call; ancestral
noise and churn are the noise coefficient of predict.

Coefficients are arrays `[rows, *level]` (`[rows, slots, *level]` for the history), where `level` is the shape of one level
of the grid: () for a level per clip, (1, frames) for a level per frame. Builders make them in NumPy, in float64, so that
orders, slots and infinite ends are decided on the host; the compiled sampler sees arrays only.
"""

import dataclasses
import json
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import schedules

SLOTS = 5
"""History slots of every table unless told otherwise: samplers of one number of calls then share one shape."""


class Predict(NamedTuple):
    """Weights of the next point: anchor, history [.., slots], noise and bias (bias is 0 but for DPM-Solver-v3)."""

    anchor: Any
    history: Any
    noise: Any
    bias: Any


class Remember(NamedTuple):
    """Weights of the history's new entry: (0, 1) is the x0 form, (1/sigma, -alpha/sigma) the eps form."""

    point: Any
    denoised: Any


class Correct(NamedTuple):
    """Weights of the new anchor: the old anchor, the evaluated point, the history and a bias."""

    anchor: Any
    point: Any
    history: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Table:
    """A fixed-step sampler. A pytree: its leaves are arguments of the compiled program, its static part is `stochastic`.

    logsnr: [rows, *level] where the network is called; only here may infinity stand.
    predict, remember, correct: weights with a leading axis `rows`.
    final: a `Predict` without that axis: the sample from the last anchor and history.
    target: None, or [rows, *level], the level to jump to, for networks that are flow maps.
    stochastic: whether any noise is drawn (two programs).
    """

    logsnr: Any
    predict: Predict
    remember: Remember
    correct: Correct
    final: Any  # a Predict; None only inside a scan, which runs over the rows
    target: Any = None
    stochastic: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def nfe(self) -> int:
        """Calls of `denoise` (a guided denoiser makes more than one network evaluation a call)."""
        return self.logsnr.shape[0]

    @property
    def slots(self) -> int:
        return self.predict.history.shape[1]

    @property
    def level_shape(self) -> tuple[int, ...]:
        """Shape of one noise level: () for one per clip, (1, frames) for one per frame."""
        return self.logsnr.shape[1:]

    def describe(self) -> str:
        """What the table does, a line per call, as text."""
        return describe(self)


class Row(NamedTuple):
    """One call, as a builder writes it: what is left out is zero. Weights are scalars or arrays of the level's shape.

    By default the history remembers `denoised` and the anchor becomes the point (a multistep sampler).
    """

    logsnr: Any
    anchor: Any = 0.0
    history: Sequence[Any] = ()
    noise: Any = 0.0
    bias: Any = 0.0
    remember: tuple[Any, Any] = (0.0, 1.0)
    correct_anchor: Any = 0.0
    correct_point: Any = 1.0
    correct_history: Sequence[Any] = ()
    correct_bias: Any = 0.0
    target: Any = None


def assemble(rows: Sequence[Row], final: Row, *, slots: int = SLOTS) -> Table:
    """A table from its rows. `final` gives the last predict (its level is where the sample stands).

    Weights have the level's shape, or a larger one where some weight has more axes (statistics per pixel, say). Weights
    that are traced give a traced table. Raises ValueError where a history is longer than `slots`, a level is NaN, some rows
    have a target and others none, or a weight is not finite (or not in float32): an infinite level must have been turned
    into a first-order row by the builder.
    """
    rows = list(rows)
    if not rows:
        raise ValueError("a table needs at least one row (one network call); got none")
    histories = ("history", "correct_history")
    longest = max(len(getattr(row, name)) for row in (*rows, final) for name in histories)
    if longest > slots:
        raise ValueError(f"a row uses {longest} history entries, the table has {slots} slots")
    singles = ("anchor", "noise", "bias", "correct_anchor", "correct_point", "correct_bias")
    values = [getattr(row, name) for row in (*rows, final) for name in singles]
    values += [w for row in (*rows, final) for name in histories for w in getattr(row, name)]
    values += [w for row in rows for w in row.remember]
    aimed = [row.target is not None for row in rows]
    if any(aimed) and not all(aimed):
        raise ValueError(
            f"either every row has a target or none, as flow maps are told one at each call; row {aimed.index(False)} has none"
        )
    for i, row in enumerate(rows):
        for name in ("logsnr", "target"):
            told = getattr(row, name)
            if told is not None and not isinstance(told, jax.Array) and np.isnan(np.asarray(told, float)).any():
                raise ValueError(f"row {i}: its {name} is NaN")
    level = np.broadcast_shapes(*{np.shape(row.logsnr) for row in rows})
    shape = np.broadcast_shapes(level, *{np.shape(value) for value in values})

    def column(parts, shape=shape):
        parts = list(parts)
        if any(isinstance(part, jax.Array) for part in parts):
            return jnp.stack([jnp.broadcast_to(jnp.asarray(part, float), shape) for part in parts])
        filled = np.empty((len(parts), *shape))
        for i, part in enumerate(parts):
            filled[i] = part
        return filled

    def history(name, group):
        parts = [[*getattr(row, name), *[0.0] * (slots - len(getattr(row, name)))] for row in group]
        filled = column(part for row in parts for part in row)
        return filled.reshape(len(parts), slots, *shape)

    def predict(group):
        anchor, noise, bias = (column(getattr(row, name) for row in group) for name in ("anchor", "noise", "bias"))
        return Predict(anchor, history("history", group), noise, bias)

    ends = predict([final])
    drawn = [row.noise for row in (*rows, final)]
    table = Table(
        logsnr=column((row.logsnr for row in rows), level),
        predict=predict(rows),
        remember=Remember(column(row.remember[0] for row in rows), column(row.remember[1] for row in rows)),
        correct=Correct(
            column(row.correct_anchor for row in rows),
            column(row.correct_point for row in rows),
            history("correct_history", rows),
            column(row.correct_bias for row in rows),
        ),
        final=Predict(*(part[0] for part in ends)),
        target=None if not aimed[0] else column((row.target for row in rows), level),
        stochastic=any(isinstance(noise, jax.core.Tracer) or bool(np.any(noise)) for noise in drawn),
    )
    for part in ("predict", "remember", "correct", "final"):
        for name, value in getattr(table, part)._asdict().items():
            if isinstance(value, np.ndarray) and not np.all(np.abs(value) <= np.finfo(np.float32).max):
                worst = value[~(np.abs(value) <= np.finfo(np.float32).max)].flat[0]
                raise ValueError(f"{part}.{name} of the table is not finite in float32: it holds {worst}")
    return table


def describe(table: Table) -> str:
    """A line per call: the level, and each of the four parts with the weights that are not zero."""

    def mix(**terms):
        words = []
        for name, weight in terms.items():
            weight = np.asarray(weight, np.float64)
            if name == "history":
                words += [f"{_short(w)} h{k}" for k, w in enumerate(weight) if np.any(w)]
            elif np.any(weight):
                words.append(_short(weight) if name == "bias" else f"{_short(weight)} {name}")
        return " + ".join(words) if words else "0"

    noisy = "with fresh noise" if table.stochastic else "deterministic"
    lines = [f"{table.nfe} calls, {table.slots} history slots, {noisy}, level shape {table.level_shape}"]
    for i in range(table.nfe):
        parts = (table.predict, table.remember, table.correct)
        predict, remember, correct = (jax.tree.map(lambda leaf, i=i: leaf[i], part) for part in parts)
        jump = "" if table.target is None else f" -> {_short(table.target[i])}"
        lines.append(
            f"{i:4d}  logsnr {_short(table.logsnr[i])}{jump}  point = {mix(**predict._asdict())};"
            f"  h0 = {mix(**remember._asdict())};  anchor = {mix(**correct._asdict())}"
        )
    lines.append(f"      sample = {mix(**table.final._asdict())}")
    return "\n".join(lines)


def _short(value) -> str:
    value = np.asarray(value, np.float64)
    if value.size == 1 or np.all(value == value.flat[0]):
        return f"{value.flat[0]:.4g}"
    return f"[{value.min():.3g}..{value.max():.3g}]"


def save(path: str | pathlib.Path, table: Table, record: Mapping[str, Any]) -> None:
    """Writes a table with the record of what it was made for (schedule, ends, shape, the denoiser's fingerprint).

    One .npz file: arrays and a JSON text, no pickle. Written beside and renamed, so that a broken write leaves the old one.
    """
    path = pathlib.Path(path)
    leaves = jax.tree.leaves(table)
    names = [f"leaf{i:02d}" for i in range(len(leaves))]
    header = {"record": dict(record), "stochastic": table.stochastic, "target": table.target is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".writing")
    with open(beside, "wb") as file:
        np.savez(file, header=np.asarray(json.dumps(header)), **dict(zip(names, map(np.asarray, leaves), strict=True)))
    beside.replace(path)


def load(path: str | pathlib.Path, **expected: Any) -> tuple[Table, dict[str, Any]]:
    """The table and its record. Every keyword is held against the record: a table made for another model is refused.

    A schedule, a tuple or an infinite end is meant as a record has them: by `schedules.record`, as a list, as text.
    """
    path = pathlib.Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            leaves = [file[name] for name in sorted(n for n in file.files if n != "header")]
    except FileNotFoundError:
        raise ValueError(f"no table at {path}") from None
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a table written by solvers.save, or it is damaged: {error}") from None
    record = header["record"]
    for key, value in expected.items():
        value = schedules.plain(value)
        if record.get(key) != value:
            hint = " (of other weights, or guided otherwise)" if key == "fingerprint" else ""
            raise ValueError(f"the table {path} was made for {key} = {record.get(key)!r}, not {value!r}{hint}")
    template = Table(
        logsnr=0, predict=Predict(0, 0, 0, 0), remember=Remember(0, 0), correct=Correct(0, 0, 0, 0),
        final=Predict(0, 0, 0, 0), target=0 if header["target"] else None, stochastic=header["stochastic"],
    )  # fmt: skip
    structure = jax.tree.structure(template)
    if structure.num_leaves != len(leaves):
        raise ValueError(f"{path} holds {len(leaves)} arrays, a table has {structure.num_leaves}: it is damaged")
    return jax.tree.unflatten(structure, leaves), record
