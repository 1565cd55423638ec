"""Figures: the pixels of pictures are those of the clips, files appear whole, bad input is refused by
name."""

import threading

import numpy as np
import pytest
from PIL import Image

from experiments import figures


def clips(n=3, f=5, h=6, w=7, c=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, f, h, w, c), dtype=np.uint8)


def read(path):
    with Image.open(path) as picture:
        frames = []
        for index in range(getattr(picture, "n_frames", 1)):
            picture.seek(index)
            frames.append(np.asarray(picture.convert("RGB")))
    return np.stack(frames)


def test_to_uint8_inverts_the_scaling_of_a_training_step():
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(figures.to_uint8(pixels.astype(np.float32) / 127.5 - 1), pixels)
    np.testing.assert_array_equal(figures.to_uint8(np.float32([-3, 3, np.nan, np.inf])), [0, 255, 0, 255])
    assert figures.to_uint8(pixels) is pixels
    with pytest.raises(ValueError, match="int64"):
        figures.to_uint8(np.arange(3))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("gap", [0, 2])
def test_tile_puts_every_clip_in_its_cell(channels, gap):
    videos = clips(n=5, c=channels)
    grid = figures.tile(videos, columns=2, gap=gap)
    assert grid.shape == (5, 3 * 6 + 2 * gap, 2 * 7 + gap, channels)
    for index, video in enumerate(videos):
        y, x = index // 2 * (6 + gap), index % 2 * (7 + gap)
        np.testing.assert_array_equal(grid[:, y : y + 6, x : x + 7], video)
    assert (grid[:, 2 * (6 + gap) :, 7 + gap :] == 255).all()  # the cell that has no clip


def test_film_strip_shows_first_and_last_frame(tmp_path):
    videos = clips(n=2, f=20)
    figures.film_strip(tmp_path / "strip.png", videos, max_frames=4, scale=1)
    picture = read(tmp_path / "strip.png")[0, ..., 0]
    assert picture.shape == (2 * 6 + 1, 4 * 7 + 3)
    np.testing.assert_array_equal(picture[:6, :7], videos[0, 0, ..., 0])
    np.testing.assert_array_equal(picture[7:, 24:], videos[1, 19, ..., 0])


def test_sample_grid_repeats_pixels(tmp_path):
    videos = clips(n=4)
    figures.sample_grid(tmp_path / "grid.png", videos, scale=3, frame=2)
    picture = read(tmp_path / "grid.png")[0, ..., 0]
    np.testing.assert_array_equal(picture[: 6 * 3 : 3, : 7 * 3 : 3], videos[0, 2, ..., 0])
    np.testing.assert_array_equal(picture[:3, :3], videos[0, 2, 0, 0, 0])


@pytest.mark.parametrize("name", ["a.webp", "a.png"])
def test_animation_is_lossless_and_in_step(tmp_path, name):
    rows = {"teacher": clips(n=2, c=3), "student": clips(n=2, c=3, seed=1)}
    figures.animate(tmp_path / name, rows, titles=["3", "7"], scale=2)
    frames = read(tmp_path / name)
    assert len(frames) == 5
    for videos in rows.values():
        for t, frame in enumerate(frames):
            for video in videos:
                cell = video[t].repeat(2, 0).repeat(2, 1)
                windows = np.lib.stride_tricks.sliding_window_view(frame, cell.shape)
                assert (windows[:, :, 0] == cell).all((-1, -2, -3)).any()


@pytest.mark.parametrize("side, shown", [(16, 96), (64, 128), (200, 200)])
def test_an_animation_grows_small_frames_only(tmp_path, side, shown):
    figures.animate(tmp_path / "a.webp", {"": np.zeros((1, 2, side, side, 1), np.uint8)})
    assert shown <= read(tmp_path / "a.webp")[0].shape[0] < shown + 8


@pytest.mark.parametrize("side, shown", [(16, 64), (64, 64), (200, 200)])
def test_a_picture_grows_small_frames_only(tmp_path, side, shown):
    """So that the words beside the rows can be read whatever the frames' size."""
    figures.film_strip(tmp_path / "a.png", np.zeros((1, 2, side, side, 1), np.uint8))
    assert read(tmp_path / "a.png").shape[1] == shown


def test_comparison_and_slices_show_the_clips(tmp_path):
    video = np.zeros((1, 4, 6, 6, 1), np.uint8)
    for t in range(4):
        video[0, t, 1, t, 0] = 50 + t
    figures.slices(tmp_path / "slices.png", {"": video}, scale=1)
    picture = read(tmp_path / "slices.png")[0, 20:24, :, 0]  # below the titles
    np.testing.assert_array_equal(
        picture[:, :6], np.diag([50, 51, 52, 53])[:, [0, 1, 2, 3, 3, 3]] * ([1] * 4 + [0] * 2)
    )
    np.testing.assert_array_equal(picture[:, 8], [50, 51, 52, 53])  # y-t: the bright row stands still
    figures.comparison(tmp_path / "rows.png", {"50": clips(), "4": clips(n=2)}, titles=["0", "1", "2"], scale=4)
    assert read(tmp_path / "rows.png").shape[1] == 20 + 2 * (6 * 4 + 6)


def metric_rows():
    return [
        {"step": step, "stage": stage, "loss": 2 / (step + 1)}
        for stage in ("teacher", "student")
        for step in range(0, 300, 10)
    ]


def test_plots_are_drawn_without_pyplot_in_any_thread(tmp_path):
    points = [figures.Point(0.1, 2.0, "4", 1.8, 2.3), figures.Point(0.5, 1.0, "16")]

    def draw():
        figures.loss_curves(tmp_path / "new" / "loss.png", metric_rows())
        figures.quality_against_seconds(tmp_path / "new" / "quality.png", {"DDIM": points}, floor=0.5)

    thread = threading.Thread(target=draw)
    thread.start()
    thread.join()
    for name in ("loss.png", "quality.png"):
        pixels = read(tmp_path / "new" / name)[0]
        coloured = np.ptp(pixels.astype(int), axis=-1) > 60
        assert coloured.mean() > 1e-3  # there is a curve
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["loss.png", "quality.png"]


def test_a_loss_that_is_never_positive_has_a_curve(tmp_path):
    rows = [{"stage": "student", "step": step, "loss": -1.0 / step} for step in range(1, 20)]
    figures.loss_curves(tmp_path / "loss.png", rows)
    assert (np.ptp(read(tmp_path / "loss.png")[0].astype(int), axis=-1) > 60).mean() > 1e-3


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_damaged_clips_are_named(tmp_path, content):
    (tmp_path / "clips.npz").write_bytes(content)
    with pytest.raises(ValueError, match="clips.npz holds no clips"):
        figures.load_clips(tmp_path / "clips.npz")


def test_loss_curves_name_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"no row of critic has 'loss'; stages with it: \['teacher', 'student'\]"):
        figures.loss_curves(tmp_path / "loss.png", metric_rows(), stages=["critic"])
    with pytest.raises(ValueError, match="no row of any stage has 'fid'"):
        figures.loss_curves(tmp_path / "loss.png", metric_rows(), metric="fid")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    figures.write_atomically(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(figures.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        figures.write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_bad_input_is_refused(tmp_path):
    path = tmp_path / "a.webp"
    with pytest.raises(ValueError, match=r"expected clips \[n, f, h, w, c\] with c = 1 or 3, got \[3, 5, 6, 7, 2\]"):
        figures.film_strip(path, clips(c=2))
    with pytest.raises(ValueError, match="one length"):
        figures.animate(path, {"a": clips(f=4), "b": clips(f=5)})
    with pytest.raises(ValueError, match="one frame shape"):
        figures.comparison(path, {"a": clips(h=4), "b": clips()})
    with pytest.raises(ValueError, match="2 column titles for 3 columns"):
        figures.comparison(path, {"a": clips()}, titles=["0", "1"])
    with pytest.raises(ValueError, match="'.gif'"):
        figures.animate(tmp_path / "a.gif", {"a": clips()})
    assert not list(tmp_path.iterdir())
