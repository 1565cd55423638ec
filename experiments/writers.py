"""Where metrics go: a text line for people, JSON lines for programs, TensorBoard for those who like it.

A writer has clu's own method names, so a `clu.metric_writers.MetricWriter` can stand in for any writer here,
also inside `MultiWriter`. None of them is built by this file: they import TensorFlow, and on top of that
they would bring only the TensorBoard files that `TensorBoardWriter` writes without it.
"""

import io
import json
import logging
import math
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from experiments.data.source import Damaged

log = logging.getLogger(__name__)

Row = dict[str, Any]


class Writer(Protocol):
    """What the training loop knows of a writer. Scalars may be Python numbers or 0-d arrays of any library.

    Images are uint8 [n, h, w, c] and videos uint8 [n, f, h, w, c] with c = 1 or 3: the one pixel format that
    every writer reads in the same way (clu takes floats as [0, 1], this project's networks work in [-1, 1]).
    """

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None: ...

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "n h w c"]]) -> None: ...

    def write_videos(self, step: int, videos: Mapping[str, UInt8[np.ndarray, "n f h w c"]]) -> None: ...

    def write_hparams(self, hparams: Mapping[str, Any]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class TextWriter:
    """One log line per call of write_scalars; pictures have no place in it."""

    def __init__(self, stage: str, logger: logging.Logger = log):
        self._stage = stage
        self._log = logger

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        values = "  ".join(f"{name} {float(value):.4g}" for name, value in scalars.items())
        self._log.info("%s  step %d  %s", self._stage, step, values)

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "n h w c"]]) -> None:
        """Nothing: a line of text holds no picture."""

    def write_videos(self, step: int, videos: Mapping[str, UInt8[np.ndarray, "n f h w c"]]) -> None:
        """Nothing: a line of text holds no picture."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._log.info("%s  %s", self._stage, "  ".join(f"{name}={value}" for name, value in hparams.items()))

    def flush(self) -> None:
        for handler in self._log.handlers:
            handler.flush()

    def close(self) -> None:
        self.flush()


class JsonlWriter:
    """Appends {"step": ..., "stage": ..., name: value, ...} lines to a file that several stages share.

    Opening repairs and cuts back the file (`cut_back`), so that after a kill at any moment the file reads as
    if the run had never gone past `resume_step`. Lines are strict JSON: a value that is not finite is
    written as null and read back as nan (which of nan and the infinities it was is lost; the loop stops on
    all of them anyway). Pictures and hyper-parameters are not written: they stand in the stage's folder and
    in config.json.
    """

    def __init__(self, path: str | os.PathLike[str], stage: str, resume_step: int | None = None):
        """resume_step: the restored step, -1 to drop all rows of the stage, None to keep them all."""
        self._path = pathlib.Path(path)
        self._stage = stage
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            cut_back(self._path, stage, resume_step)
        self._file = self._path.open("a", encoding="utf-8")

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        reserved = {"step", "stage"} & scalars.keys()
        if reserved:
            raise ValueError(f"a scalar may not be called {sorted(reserved)[0]!r}: every row has that key already")
        row = {"step": int(step), "stage": self._stage, **{name: _number(v) for name, v in scalars.items()}}
        # One write call of a whole line: what a kill can break is the last line, nothing before it.
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "n h w c"]]) -> None:
        """Nothing: see the class."""

    def write_videos(self, step: int, videos: Mapping[str, UInt8[np.ndarray, "n f h w c"]]) -> None:
        """Nothing: see the class."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Nothing: see the class."""

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if not self._file.closed:
            self.flush()
            self._file.close()


class TensorBoardWriter:
    """TensorBoard event files through tensorboardX, without TensorFlow.

    A video is an animated PNG inside an image summary: the browser plays it, and no video encoder is needed.
    """

    def __init__(self, folder: str | os.PathLike[str], resume_step: int | None = None):
        """resume_step: the step that was restored; TensorBoard then hides older events of later steps."""
        try:
            import tensorboardX
            from tensorboardX.proto import summary_pb2
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"the TensorBoard writer needs tensorboardX ({error}): pip install tensorboardX"
            ) from error
        messages: Any = summary_pb2  # its classes are made when it is imported
        self._summary = messages.Summary
        purge = None if resume_step is None else resume_step + 1
        self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=purge)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, float(value), step)

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "n h w c"]]) -> None:
        for name, batch in images.items():
            _check_pixels(name, batch, "n h w c")
            self._add(name, step, batch[:, None])

    def write_videos(self, step: int, videos: Mapping[str, UInt8[np.ndarray, "n f h w c"]]) -> None:
        for name, batch in videos.items():
            _check_pixels(name, batch, "n f h w c")
            self._add(name, step, batch)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        # As text: tensorboardX's own hparams open a second event file, which TensorBoard shows as a second
        # run.
        rows = "\n".join(f"| {name} | {value} |" for name, value in hparams.items())
        self._writer.add_text("hparams", "| name | value |\n| --- | --- |\n" + rows, 0)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _add(self, name: str, step: int, videos: UInt8[np.ndarray, "n f h w c"]) -> None:
        values = [
            self._summary.Value(
                tag=f"{name}/{i}" if len(videos) > 1 else name,
                image=self._summary.Image(
                    height=video.shape[1],
                    width=video.shape[2],
                    colorspace=video.shape[3],
                    encoded_image_string=animated_png(video),
                ),
            )
            for i, video in enumerate(np.asarray(videos))
        ]
        events: Any = self._writer.file_writer
        events.add_summary(self._summary(value=values), step)


class MultiWriter:
    """Passes every call on to each of its writers, in order."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = tuple(writers)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "n h w c"]]) -> None:
        for writer in self._writers:
            writer.write_images(step, images)

    def write_videos(self, step: int, videos: Mapping[str, UInt8[np.ndarray, "n f h w c"]]) -> None:
        for writer in self._writers:
            writer.write_videos(step, videos)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.write_hparams(hparams)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a JSONL metrics file in file order; null becomes nan.

    A last line without its newline is what a kill leaves behind, and is left out. Any other line that is not
    a row is damage that no kill makes: `Damaged` with the file and the line number.
    """
    return [
        {name: math.nan if value is None else value for name, value in row.items()}
        for _, row in _complete_lines(pathlib.Path(path))
    ]


def cut_back(path: str | os.PathLike[str], stage: str, resume_step: int | None) -> None:
    """Drops a broken last line and the stage's rows after `resume_step` (None: no row), in one atomic
    replacement.

    Rows of other stages stay as they are, byte for byte.
    """
    path = pathlib.Path(path)
    kept = b"".join(
        line
        for line, row in _complete_lines(path)
        if row["stage"] != stage or resume_step is None or row["step"] <= resume_step
    )
    if len(kept) == path.stat().st_size:
        return
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(kept)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o777)
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def animated_png(frames: UInt8[np.ndarray, "f h w c"]) -> bytes:
    """The bytes of a looping animated PNG at 8 frames a second (a still PNG for one frame), lossless."""
    pictures = [Image.fromarray(np.squeeze(f, -1) if f.shape[-1] == 1 else f) for f in np.asarray(frames)]
    buffer = io.BytesIO()
    if len(pictures) == 1:
        pictures[0].save(buffer, "PNG")
    else:
        pictures[0].save(buffer, "PNG", save_all=True, append_images=pictures[1:], duration=125, loop=0)
    return buffer.getvalue()


def _complete_lines(path: pathlib.Path) -> list[tuple[bytes, Row]]:
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Damaged(f"{path}, line {number}: not a JSON object ({error})") from error
        if not isinstance(row, dict) or type(row.get("step")) is not int or "stage" not in row:
            raise Damaged(f"{path}, line {number}: expected an object with step and stage, got {line[:80]!r}")
        rows.append((line, row))
    return rows


def _number(value: Any) -> float | int | None:
    if isinstance(value, bool | int | np.integer):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def _check_pixels(name: str, batch: np.ndarray, axes: str) -> None:
    rank = len(axes.split())
    if batch.dtype != np.uint8 or batch.ndim != rank or batch.shape[-1] not in (1, 3):
        raise ValueError(
            f"{name}: expected uint8 [{axes}] with c = 1 or 3, got {batch.dtype} {list(batch.shape)}; "
            "figures.to_uint8 converts [-1, 1]"
        )
