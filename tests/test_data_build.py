"""`build`: a config, or one clear line that names what is wrong with it."""

import dataclasses
import pathlib

import av
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import data
from experiments.data import tfds_builder
from experiments.data.moving_digits import MovingDigits
from experiments.data.source import from_config


def test_defaults_of_moving_digits():
    source = data.build(ConfigDict(dict(kind="moving_digits")))
    assert source == MovingDigits()
    assert (source.shape, source.num_classes, len(source)) == ((8, 16, 16, 1), 10, 2**20)
    assert source.speed == (0.5, 2.0) and data.build(dict(kind="moving_digits", size=64)).speed == (2.0, 8.0)


def test_every_key_arrives():
    options = dict(size=64, frames=5, digits=2, speed=(1.0, 1.5), seed=9, num_clips=77)
    source = data.build(ConfigDict(dict(kind="moving_digits", **options)), "test")
    assert source == MovingDigits(**options, split="test")
    assert data.build(dict(kind="moving_digits", speed=[1, 2])) == MovingDigits(speed=(1.0, 2.0))
    assert eval(repr(source), dict(MovingDigits=MovingDigits)) == source


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A TFDS folder and a folder with one video file."""
    root = tmp_path_factory.mktemp("data")
    tfds_builder.prepare(str(root / "tfds"), MovingDigits(), train_clips=4, test_clips=2)
    (root / "videos").mkdir()
    with av.open(str(root / "videos" / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 16
        for level in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 20 * level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return root


@pytest.mark.parametrize(
    ("options", "num_classes"),
    [
        (dict(kind="moving_digits", num_clips=5), 10),
        (dict(kind="resized", of=dict(kind="moving_digits", num_clips=5), space=2, crop=(4, 8)), 10),
        (dict(kind="tfds", data_dir="tfds"), 10),
        (dict(kind="video_folder", path="videos", frames=4, size=8, channels=1), 0),
    ],
)
def test_every_kind_keeps_the_contract(folders, options, num_classes):
    for key in ("data_dir", "path"):
        if key in options:
            options = options | {key: str(folders / options[key])}
    source = data.build(ConfigDict(options))
    assert isinstance(source, data.Source)
    assert source.num_classes == num_classes
    assert repr(source) == repr(data.build(options)) and str(folders) not in repr(source)
    for index in range(len(source)):
        example = source[index]
        assert example.keys() == {"video", "label"}
        assert example["video"].shape == source.shape and example["video"].dtype == np.uint8
        assert example["label"].shape == () and example["label"].dtype == np.int32
    with pytest.raises(IndexError, match=f"clip {len(source)} of a source with"):
        source[len(source)]
    batch = next(data.Batches(source, 2))
    assert batch["video"].shape == (2, *source.shape)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(), "config.data lacks the key kind; valid: exact, latents, moving_digits, resized, tfds, video_folder"),
        (dict(kind="moving_digit"), "unknown config.data.kind 'moving_digit'; did you mean 'moving_digits'"),
        (
            dict(kind="moving_digits", frame=8),
            "config.data has no key 'frame' for kind 'moving_digits'; did you mean 'frames'",
        ),
        (dict(kind="moving_digits", split="train"), "has no key 'split'"),
        (
            dict(kind="video_folder", path="x", size=8),
            "lacks the key 'frames', which kind 'video_folder' needs",
        ),
        (dict(kind="tfds"), "lacks the key 'data_dir', which kind 'tfds' needs"),
    ],
)
def test_a_wrong_config_is_named(config, message):
    with pytest.raises(KeyError, match=message):
        data.build(ConfigDict(config))


def test_a_field_with_a_factory_has_a_default():
    @dataclasses.dataclass
    class Own:
        sizes: list = dataclasses.field(default_factory=lambda: [1, 2])
        split: str = "train"

    assert from_config(Own, dict(kind="own:Own"), "test") == Own([1, 2], "test")
    assert from_config(Own, dict(kind="own:Own", sizes=[3]), "test") == Own([3], "test")


def test_a_seed_of_exact_draws_is_one_of_a_keys():
    law = dict(kind="exact", name="a1d", size=2)
    assert np.isfinite(data.build(law | dict(seed=2**32 - 1))[0]["video"]).all()
    for seed in (2**32, 2**70, -1):
        with pytest.raises(ValueError, match=f"seed must be at least 0 and at most {2**32 - 1}, got {seed}"):
            data.build(law | dict(seed=seed))


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="unknown split 'tset'; did you mean 'test'. valid: test, train"):
        data.build(dict(kind="moving_digits"), "tset")


def test_every_kind_can_be_imported_by_its_name():
    assert set(data.KINDS) == {"moving_digits", "tfds", "exact", "video_folder", "latents", "resized"}
    for module, _ in data.KINDS.values():
        assert pathlib.Path(data.__file__).with_name(module.rsplit(".", 1)[1] + ".py").exists()
