"""TFDS: moving digits written and read back, other datasets' features, and no TensorFlow anywhere."""

import io
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from experiments import data
from experiments.data import framing, tfds_builder
from experiments.data.moving_digits import MovingDigits


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Moving digits below a data_dir, and the dataset's own folder."""
    root = tmp_path_factory.mktemp("digits")
    builder = tfds_builder.prepare(str(root), MovingDigits(frames=4), train_clips=12, test_clips=3)
    return root, pathlib.Path(builder.data_dir)


class Odd(tfds.core.GeneratorBasedBuilder):
    """Features of many kinds: images of varying size, a grey video of varying length, two labels."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = pathlib.Path(__file__)

    def _info(self):
        features = dict(
            picture=tfds.features.Image(shape=(None, None, 3)),
            grey=tfds.features.Tensor(shape=(None, 9, 12), dtype=np.uint8, encoding="zlib"),
            scalar=tfds.features.Scalar(np.int64),
            colour=tfds.features.ClassLabel(names=["red", "green"]),
            shape=tfds.features.ClassLabel(num_classes=5),
        )
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "validation": self._generate_examples()}

    def _generate_examples(self):
        for i in range(4):
            png = io.BytesIO()
            Image.fromarray(picture(i)).save(png, "PNG")
            png.seek(0)
            yield i, dict(picture=png, grey=grey(i), scalar=i, colour=i % 2, shape=i)


def picture(i):
    return np.random.default_rng(i).integers(0, 256, (10 + i, 20, 3), np.uint8)


def grey(i):
    return np.random.default_rng(i).integers(0, 256, (5 + i, 9, 12), np.uint8)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    root = tmp_path_factory.mktemp("odd")
    Odd(data_dir=str(root), file_format="array_record").download_and_prepare()
    return dict(kind="tfds", data_dir=str(root))


def test_what_was_written_is_read_back(digits):
    for split, length in (("train", 12), ("test", 3)):
        source = data.build(dict(kind="tfds", data_dir=str(digits[0])), split)
        expected = MovingDigits(frames=4, split=split)
        assert (len(source), source.shape, source.num_classes) == (length, (4, 16, 16, 1), 10)
        for index in range(length):
            np.testing.assert_array_equal(source[index]["video"], expected[index]["video"])
            assert source[index]["label"] == expected[index]["label"]


def test_tfds_reads_it_by_its_own_means(digits):
    read = tfds.builder_from_directory(digits[1]).as_data_source(split="train")
    np.testing.assert_array_equal(read[5]["video"], MovingDigits(frames=4)[5]["video"])
    same = tfds.data_source(f"moving_digits/{digits[1].parent.name}", data_dir=digits[0], split="train")
    np.testing.assert_array_equal(same[5]["video"], read[5]["video"])


def test_preparing_again_writes_nothing(digits):
    before = {path: path.stat().st_mtime_ns for path in digits[1].iterdir()}
    tfds_builder.prepare(str(digits[0]), MovingDigits(frames=4), train_clips=12, test_clips=3)
    assert before == {path: path.stat().st_mtime_ns for path in digits[1].iterdir()}


def test_the_command_writes_and_no_tensorflow_is_imported(tmp_path):
    program = (
        "import sys\n"
        "from experiments import data\n"
        "from experiments.data import tfds_builder\n"
        "tfds_builder.main(sys.argv[1:])\n"
        "source = data.build(dict(kind='tfds', data_dir=sys.argv[1].split('=')[1], frames=2, size=8))\n"
        "print(next(data.Batches(source, 2))['video'].shape, 'tensorflow' in sys.modules)\n"
    )
    options = [f"--data_dir={tmp_path}", "--train_clips=3", "--test_clips=1", "--digits=2", "--frames=3"]
    root = pathlib.Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", program, *options], capture_output=True, text=True, check=True, cwd=root
    )
    folder, shape = run.stdout.strip().splitlines()[-2:]
    assert pathlib.Path(folder).relative_to(tmp_path).parts[0] == "moving_digits"
    assert shape == "(2, 2, 8, 8, 1) False"


@pytest.mark.parametrize("option, said", [("--size=17", "17"), ("--train_clips=0", "num_clips must be at least 1")])
def test_a_mistake_of_the_command_is_one_line_and_writes_nothing(tmp_path, capsys, option, said):
    assert tfds_builder.main([f"--data_dir={tmp_path}", option]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not any(tmp_path.iterdir())


def test_an_image_is_a_clip_of_one_frame(odd):
    source = data.build(dict(odd, video_key="picture", label_key="shape", size=(10, 20)))
    assert source.shape == (1, 10, 20, 3) and source.num_classes == 5
    np.testing.assert_array_equal(source[0]["video"][0], picture(0))
    for index in range(4):
        assert source[index]["video"].shape == source.shape and source[index]["label"] == index


def test_images_of_another_size_are_an_error_unless_resized(odd):
    source = data.build(dict(odd, video_key="picture", label_key="shape"))
    with pytest.raises(ValueError, match=r"expected a video of shape \(1, 10, 20, 3\), got \(1, 11, 20, 3\)"):
        next(data.Batches(source, 4, shuffle=False))


def test_a_grey_video_is_cut_to_the_frames_wanted(odd):
    source = data.build(dict(odd, video_key="grey", label_key="colour", frames=5))
    assert source.shape == (5, 9, 12, 1) and source.num_classes == 2
    for index, start in enumerate((0, 1, 1, 2)):  # the middle window of 5, 6, 7, 8 frames
        np.testing.assert_array_equal(source[index]["video"][..., 0], grey(index)[start : start + 5])
    draw = dict(odd, video_key="grey", label_key="colour", frames=2, crop="random")
    once, again, other = (data.build(dict(draw, seed=seed)) for seed in (1, 1, 2))
    clips = [[source[i]["video"].tobytes() for i in range(4)] for source in (once, again, other)]
    assert clips[0] == clips[1] != clips[2]
    short = data.build(dict(odd, video_key="grey", label_key="colour", frames=7))
    with pytest.raises(ValueError, match="expected at least 7 frames, example 0 has 5"):
        short[0]


def test_a_dataset_is_found_by_name_or_by_its_own_folder(digits, odd, tmp_path):
    name = f"moving_digits/{digits[1].parent.name}"
    direct = data.build(dict(kind="tfds", data_dir=str(digits[1])))
    for wanted in ("moving_digits", name, f"{name}:1.0.0"):
        assert repr(data.build(dict(kind="tfds", data_dir=str(digits[0]), name=wanted))) == repr(direct)
    shutil.copytree(digits[0], tmp_path, dirs_exist_ok=True)
    shutil.copytree(odd["data_dir"], tmp_path, dirs_exist_ok=True)
    assert repr(data.build(dict(kind="tfds", data_dir=str(tmp_path), name="moving_digits"))) == repr(direct)
    with pytest.raises(KeyError, match=f"several datasets for ''; set name to one: {name}/1.0.0, odd/1.0.0"):
        data.build(dict(kind="tfds", data_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(data_dir="/no/such"), ValueError, "config.data.data_dir '/no/such' is not a folder"),
        (dict(name="ood"), KeyError, "has no dataset 'ood'; valid: odd/1.0.0"),
        (
            dict(video_key="pitcure"),
            KeyError,
            "no video feature 'pitcure'; did you mean 'picture'. valid: grey, picture",
        ),
        (dict(video_key="scalar"), KeyError, "no video feature 'scalar'; valid: grey, picture"),
        (dict(), KeyError, "set video_key to one of its video features: grey, picture"),
        (dict(video_key="grey"), KeyError, "set label_key to one of its class labels: colour, shape"),
        (
            dict(video_key="grey", label_key="color"),
            KeyError,
            "no label feature 'color'; did you mean 'colour'",
        ),
        (
            dict(video_key="grey", label_key="shape", train_split="validatoin"),
            KeyError,
            "has no split 'validatoin'; did you mean 'validation'. valid: train, validation",
        ),
        (dict(crop="center"), ValueError, "unknown crop 'center'; did you mean 'centre'"),
        (dict(size=0), ValueError, "size must be a positive whole number or .height, width., got 0"),
    ],
)
def test_a_wrong_option_is_named(odd, options, error, message):
    with pytest.raises(error, match=message):
        data.build(odd | options)


def test_more_frames_than_are_recorded_are_refused_at_once(digits, odd):
    assert data.build(dict(kind="tfds", data_dir=str(digits[0]), frames=4)).shape == (4, 16, 16, 1)
    with pytest.raises(ValueError, match=r"frames=16: the clips of .*moving_digits.* have 4; nearest: 4"):
        data.build(dict(kind="tfds", data_dir=str(digits[0]), frames=16))
    with pytest.raises(ValueError, match="frames=2: the clips of .*odd.* have 1; nearest: 1"):
        data.build(dict(odd, video_key="picture", label_key="shape", frames=2))


def test_no_dataset_and_another_file_format_are_errors(tmp_path, digits):
    with pytest.raises(KeyError, match="holds no TFDS dataset"):
        data.build(dict(kind="tfds", data_dir=str(tmp_path)))
    shutil.copytree(digits[1], tmp_path / "copy")
    info = tmp_path / "copy" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(ValueError, match="stored as tfrecord, which has no random access: prepare it with"):
        data.build(dict(kind="tfds", data_dir=str(tmp_path / "copy")))


def test_features_that_need_tensorflow_say_so(tmp_path, odd, monkeypatch):
    def needs_tensorflow(folder):
        raise ImportError("No module named 'tensorflow'")

    monkeypatch.setattr(tfds, "builder_from_directory", needs_tensorflow)
    with pytest.raises(ValueError, match=r"install the extra 'fewstep\[tf\]', or store the video as features.Tensor"):
        data.build(odd)


def test_a_crop_keeps_the_aspect_and_the_place():
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, None, :, None], (2, 20, 40, 3))
    centre = framing.crop_and_resize(ramp, (20, 20), np.array([0.5, 0.5]))
    np.testing.assert_array_equal(centre, ramp[:, :, 10:30])
    left = framing.crop_and_resize(ramp, (20, 20), np.array([0.5, 0.0]))
    np.testing.assert_array_equal(left, ramp[:, :, :20])
    small = framing.crop_and_resize(ramp, (10, 20), np.array([0.5, 0.5]))
    assert small.shape == (2, 10, 20, 3)
    # Halved, column j is the mean of columns 2 j and 2 j + 1 of the ramp, up to the rounding to whole levels.
    assert np.abs(small[..., 2:-2, :] - (2 * np.arange(20) + 0.5)[2:-2, None]).max() <= 0.51


SIDES, PLACES = st.integers(1, 512), st.sampled_from((0.0, 0.3, 0.5, 1.0))


@settings(max_examples=300)
@given(video=st.tuples(SIDES, SIDES), size=st.tuples(SIDES, SIDES), where=st.tuples(PLACES, PLACES))
@example(video=(450, 800), size=(112, 112), where=(0.5, 0.5))
@example(video=(400, 225), size=(56, 56), where=(1.0, 1.0))
@example(video=(600, 450), size=(224, 224), where=(0.5, 0.3))
@example(video=(848, 464), size=(448, 448), where=(0.3, 0.5))
def test_a_crop_of_any_size_lies_in_the_frame(video, size, where):
    made = framing.crop_and_resize(np.full((1, *video, 1), 200, np.uint8), size, np.array(where))
    assert made.shape == (1, *size, 1) and (made == 200).all()
