"""Metric writers: what is written is read back, and a killed run leaves a file that resumes cleanly."""

import io
import json
import logging
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from experiments import writers


def test_rows_come_back_as_written(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    writer = writers.JsonlWriter(path, "teacher")
    writer.write_scalars(10, {"loss": np.float32(0.25), "clips": 3, "grad": np.asarray(1e-9)})
    writer.write_scalars(20, {"loss": 0.125})
    writer.close()
    writer.close()  # closing twice is harmless: the loop closes in a finally block
    assert writers.read_rows(path) == [
        {"step": 10, "stage": "teacher", "loss": 0.25, "clips": 3, "grad": 1e-9},
        {"step": 20, "stage": "teacher", "loss": 0.125},
    ]


def test_non_finite_values_stay_strict_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = writers.JsonlWriter(path, "teacher")
    writer.write_scalars(1, {"a": math.nan, "b": math.inf, "c": np.float32(-np.inf)})
    writer.close()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    row = json.loads(path.read_text(), parse_constant=refuse)
    assert row == {"step": 1, "stage": "teacher", "a": None, "b": None, "c": None}
    assert all(math.isnan(writers.read_rows(path)[0][name]) for name in "abc")


@given(cut=st.integers(0, 300), resume=st.integers(-1, 6))
def test_a_kill_at_any_byte_resumes(tmp_path_factory, cut, resume):
    """Cut the file anywhere, resume at any step: whole rows up to that step remain, of other stages all."""
    path = tmp_path_factory.mktemp("kill") / "metrics.jsonl"
    first = writers.JsonlWriter(path, "teacher")
    for step in range(3):
        first.write_scalars(step, {"loss": step / 4})
    first.close()
    second = writers.JsonlWriter(path, "student")
    for step in range(6):
        second.write_scalars(step, {"loss": step / 8})
    second.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    complete = [json.loads(line) for line in whole[:cut].splitlines(keepends=True) if line.endswith(b"\n")]

    writer = writers.JsonlWriter(path, "student", resume_step=resume)
    writer.write_scalars(resume + 1, {"loss": -1.0})
    writer.close()
    expected = [row for row in complete if row["stage"] == "teacher" or row["step"] <= resume]
    assert writers.read_rows(path) == [*expected, {"step": resume + 1, "stage": "student", "loss": -1.0}]
    assert [p.name for p in path.parent.iterdir()] == ["metrics.jsonl"]  # no temporary file is left


def test_opening_without_a_step_keeps_every_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        writer = writers.JsonlWriter(path, "evaluate")
        writer.write_scalars(step, {"frechet": 2.0})
        writer.close()
    assert [row["step"] for row in writers.read_rows(path)] == [1, 2]


def test_damage_is_named_and_nothing_is_lost(tmp_path):
    path = tmp_path / "metrics.jsonl"
    text = '{"step": 1, "stage": "teacher"}\nnot json\n{"step": 2, "stage": "teacher"}\n'
    path.write_text(text)
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: not a JSON object"):
        writers.JsonlWriter(path, "teacher", resume_step=0)
    assert path.read_text() == text
    path.write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="line 1: expected an object with step and stage"):
        writers.read_rows(path)


def test_reserved_names_are_refused(tmp_path):
    writer = writers.JsonlWriter(tmp_path / "metrics.jsonl", "teacher")
    with pytest.raises(ValueError, match="'step'"):
        writer.write_scalars(1, {"step": 3})
    writer.close()


def test_text_lines(caplog):
    with caplog.at_level(logging.INFO):
        writer = writers.TextWriter("teacher")
        writer.write_scalars(7, {"loss": np.float32(0.5)})
        writer.write_hparams({"batch_size": 16})
    assert caplog.messages == ["teacher  step 7  loss 0.5", "teacher  batch_size=16"]


def test_an_animated_png_is_lossless():
    frames = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    picture = Image.open(io.BytesIO(writers.animated_png(frames)))
    assert picture.n_frames == 5
    for index, frame in enumerate(frames):
        picture.seek(index)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), frame)
    still = Image.open(io.BytesIO(writers.animated_png(frames[:1, ..., :1])))
    np.testing.assert_array_equal(np.asarray(still), frames[0, ..., 0])


def test_tensorboard_events(tmp_path):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    clips = np.random.default_rng(1).integers(0, 256, (2, 4, 6, 6, 1), dtype=np.uint8)
    writer = writers.TensorBoardWriter(tmp_path, resume_step=4)
    writer.write_scalars(5, {"loss": np.float32(0.5)})
    writer.write_images(5, {"still": clips[:1, 0]})
    writer.write_videos(5, {"clips": clips})
    writer.write_hparams({"batch_size": 16})
    writer.flush()
    writer.close()

    (path,) = tmp_path.iterdir()
    data, events = path.read_bytes(), []
    # A record: length, its checksum, payload, its checksum (8 + 4 + length + 4 bytes, little endian).
    while data:
        length = int.from_bytes(data[:8], "little")
        payload = data[12 : 12 + length]
        assert int.from_bytes(data[12 + length : 16 + length], "little") == masked_crc32c(payload)
        events.append(Event.FromString(payload))
        data = data[16 + length :]
    values = {value.tag: (event.step, value) for event in events for value in event.summary.value}
    assert values["loss"][0] == 5 and values["loss"][1].simple_value == 0.5
    assert {"still", "clips/0", "clips/1"} <= values.keys()
    assert any("batch_size" in str(value) for _, value in values.values())
    purged = [event.step for event in events if event.HasField("session_log")]
    assert purged == [5]  # TensorBoard hides what an earlier attempt wrote from here on
    picture = Image.open(io.BytesIO(values["clips/1"][1].image.encoded_image_string))
    assert picture.n_frames == 4
    picture.seek(3)
    np.testing.assert_array_equal(np.asarray(picture), clips[1, 3, ..., 0])
    with pytest.raises(ValueError, match=r"clips: expected uint8 \[n f h w c\].*float64"):
        writer.write_videos(5, {"clips": clips / 255})


def test_tensorboard_missing_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ModuleNotFoundError, match="pip install tensorboardX"):
        writers.TensorBoardWriter(tmp_path)


def test_multi_writer_reaches_all(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        jsonl = writers.JsonlWriter(tmp_path / "metrics.jsonl", "teacher")
        writer = writers.MultiWriter([writers.TextWriter("teacher"), jsonl])
        writer.write_scalars(1, {"loss": 2.0})
        writer.write_images(1, {"still": np.zeros((1, 4, 4, 1), np.uint8)})
        writer.write_videos(1, {"clip": np.zeros((1, 2, 4, 4, 1), np.uint8)})
        writer.write_hparams({"batch_size": 16})
        writer.flush()
        writer.close()
    assert writers.read_rows(tmp_path / "metrics.jsonl") == [{"step": 1, "stage": "teacher", "loss": 2.0}]
    assert caplog.messages == ["teacher  step 1  loss 2", "teacher  batch_size=16"]
