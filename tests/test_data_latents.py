"""Latents as data: written once and read as any other source, and the codec that says what they stand for."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from experiments import autoencoder as training
from experiments import data, latents, weights
from experiments.config import ConfigError
from experiments.context import Context
from experiments.data import latents as store
from experiments.mesh import make as make_mesh
from models.autoencoder import build_autoencoder

SHAPE = (2, 3, 4, 5)


def examples(count, seed=0):
    rng = np.random.default_rng(seed)
    return [dict(video=rng.standard_normal(SHAPE).astype(np.float32), label=np.int32(i % 3)) for i in range(count)]


def folder_of(path, **splits):
    """A folder of latents as a stage leaves it."""
    index = {"shape": SHAPE, "num_classes": 3, "clips": {k: len(v) for k, v in splits.items()}, "data": {"kind": "x"}}
    path.mkdir(parents=True, exist_ok=True)
    (path / store.INDEX).write_text(json.dumps(index), encoding="utf-8")
    for split, clips in splits.items():
        assert store.write(path / f"{split}.array_record", clips) == len(clips)
    return path


def build(path, split="train"):
    return data.build({"kind": "latents", "path": str(path)}, split)


def test_what_was_written_is_read(tmp_path):
    written = {"train": examples(7), "test": examples(3, seed=1)}
    folder_of(tmp_path, **written)
    for split, clips in written.items():
        source = build(tmp_path, split)
        assert isinstance(source, data.Source) and (source.shape, source.num_classes) == (SHAPE, 3)
        assert len(source) == len(clips)
        for i in reversed(range(len(clips))):  # in any order
            assert source[i]["video"].dtype == np.float32 and source[i]["label"].dtype == np.int32
            np.testing.assert_array_equal(source[i]["video"], clips[i]["video"])
            assert source[i]["label"] == clips[i]["label"]
        for index in (-1, len(clips)):
            with pytest.raises(IndexError, match=f"clip {index} of a source with {len(clips)} clips"):
                source[index]
        assert len(list(source)) == len(clips)


def test_numbers_of_any_kind_and_layout_are_written_as_float32(tmp_path):
    clips = [dict(video=np.asfortranarray(e["video"].astype(np.float64)), label=2) for e in examples(2)]
    clips += [dict(video=jax.numpy.full(SHAPE, -300.5), label=jax.numpy.int32(1))]
    source = build(folder_of(tmp_path, train=clips))
    for i, clip in enumerate(clips):
        np.testing.assert_array_equal(source[i]["video"], np.asarray(clip["video"], np.float32))
    assert [int(source[i]["label"]) for i in range(3)] == [2, 2, 1]


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_are_the_clips_whatever_the_number_of_processes(tmp_path, shuffle):
    clips = examples(10)
    source = build(folder_of(tmp_path, train=clips))
    whole = data.Batches(source, 4, 3, shuffle=shuffle)
    parts = [data.Batches(source, 4, 3, p, 2, shuffle=shuffle) for p in range(2)]
    seen = []
    for _ in range(5):  # two epochs, one batch across their border
        batch, read = next(whole), [next(part) for part in parts]
        assert batch["video"].shape == (4, *SHAPE) and batch["video"].dtype == np.float32
        for key in batch:
            np.testing.assert_array_equal(batch[key], np.concatenate([r[key] for r in read]))
        for video, label in zip(batch["video"], batch["label"], strict=True):
            (index,) = (i for i, clip in enumerate(clips) if np.array_equal(clip["video"], video))
            assert label == clips[index]["label"]
            seen.append(index)
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert (seen[:10] == list(range(10))) != shuffle


def test_a_copied_folder_is_the_same_source(tmp_path):
    source = build(folder_of(tmp_path / "here", train=examples(8), test=examples(2)))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    copy = build(tmp_path / "there")
    assert repr(copy) == repr(source) and str(tmp_path) not in repr(source)
    assert repr(build(tmp_path / "here", "test")) != repr(source)
    assert repr(build(folder_of(tmp_path / "fewer", train=examples(7), test=examples(2)))) != repr(source)
    # So that a run goes on with the copy.
    batches, resumed = data.Batches(source, 4, 1), data.Batches(copy, 4, 1)
    next(batches)
    resumed.set_state(json.loads(json.dumps(batches.get_state())))
    np.testing.assert_array_equal(next(resumed)["video"], next(batches)["video"])


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"no latents in {tmp_path}: a stage of kind 'encode' leaves them"):
        build(tmp_path)
    folder_of(tmp_path, train=examples(1))
    with pytest.raises(ValueError, match=f"{tmp_path} has no latents of the split 'test': it has .'train'."):
        build(tmp_path, "test")
    with pytest.raises(ValueError, match="unknown split 'tests'; did you mean 'test'"):
        build(tmp_path, "tests")
    with pytest.raises(KeyError, match="config.data has no key 'paths' for kind 'latents'; did you mean 'path'"):
        data.build({"kind": "latents", "paths": str(tmp_path)})
    with pytest.raises(KeyError, match="config.data lacks the key 'path', which kind 'latents' needs"):
        data.build({"kind": "latents"})


def damaged(path, end):
    path.write_bytes(path.read_bytes()[:end])


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda path: path.unlink(), "got a missing or damaged file .*No such file"),
        (lambda path: damaged(path, -1), "got a missing or damaged file"),
        (lambda path: damaged(path, 70_000), "got a missing or damaged file"),
        (lambda path: damaged(path, 0), "got a missing or damaged file"),
        (lambda path: store.write(path, examples(6)), "got 6;"),
        (lambda path: store.write(path, examples(8)), "got 8;"),
    ],
    ids=["missing", "a byte short", "cut off", "empty", "fewer", "more"],
)
def test_a_file_that_is_not_whole_is_named_before_it_is_read(tmp_path, split, damage, said):
    path = folder_of(tmp_path, train=examples(7), test=examples(7)) / f"{split}.array_record"
    damage(path)
    with pytest.raises(ValueError, match=f"{path}: expected 7 latents, {said}.*encode them again"):
        build(tmp_path, split)
    assert len(build(tmp_path, "test" if split == "train" else "train")) == 7


def test_an_interrupted_write_leaves_no_half_file(tmp_path):
    def broken():
        yield from examples(3)
        raise KeyboardInterrupt

    path = tmp_path / "train.array_record"
    with pytest.raises(KeyboardInterrupt):
        store.write(path, broken())
    assert not path.exists()
    folder_of(tmp_path, train=examples(2))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        store.write(path, broken())
    assert path.read_bytes() == before
    # What it left beside the file is no hindrance to the next.
    folder_of(tmp_path, train=examples(4, seed=5))
    assert sorted(p.name for p in tmp_path.iterdir()) == [store.INDEX, path.name]
    source = build(tmp_path)
    for i, clip in enumerate(examples(4, seed=5)):
        np.testing.assert_array_equal(source[i]["video"], clip["video"])


MODEL = dict(shape=(6, 8, 8, 1), channels=2, patch=2, group=4, widths=(4, 8), blocks=1, dtype="float32")


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Random clips of bytes; clip i has the label i."""

    length: int = 20
    shape: tuple = MODEL["shape"]
    num_classes: int = 100

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        video = np.random.default_rng(index).integers(0, 256, self.shape, dtype=np.uint8)
        return dict(video=video, label=np.int32(index))


def pixels(count=20):
    return np.stack([Pixels()[i]["video"] for i in range(count)])


@functools.cache
def tiny():
    """(autoencoder, its random weights, the statistics of `pixels`)."""
    autoencoder = build_autoencoder(MODEL)
    params = autoencoder.init(jax.random.key(4))
    # Zeros at the start: latents with a mean of their own, and decoded clips that leave the range.
    params["encoder"]["last"]["bias"] = params["encoder"]["last"]["bias"] + jax.numpy.array([0.5, -2.0, 0.0, 0.0])
    params["decoder"]["last"]["weight"] = 3 * params["decoder"]["last"]["weight"]
    return autoencoder, params, training.statistics(params, autoencoder, pixels(), "here")


@pytest.fixture
def codec(tmp_path):
    """The codec of weights in the folder of a stage."""
    _, params, moments = tiny()
    record = {"kind": "autoencoder", "model": MODEL, **moments}
    weights.save(weights.result_path(tmp_path, "autoencoder"), params, record)
    return latents.load("autoencoder", tmp_path, "config.stages.encode")


def test_a_codec_is_its_autoencoder_between_latents_of_unit_variance(codec):
    autoencoder, params, moments = tiny()
    assert codec.autoencoder is autoencoder
    clips = pixels()
    z = codec.encode(clips)
    assert z.shape == (20, *autoencoder.latent_shape) and z.dtype == np.float32
    # 20 clips are no whole number of the batches that the statistics are taken in.
    np.testing.assert_allclose(z.mean((0, 1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(z.var((0, 1, 2, 3)), 1, atol=1e-3)
    mean = jax.jit(autoencoder.encode)(params, clips / np.float32(127.5) - 1)[0]
    np.testing.assert_allclose(z * moments["latent_std"] + moments["latent_mean"], mean, atol=1e-5)
    np.testing.assert_allclose(codec.encode(clips / np.float32(127.5) - 1), z, atol=1e-5)
    made, raw = codec.decode(z), np.asarray(jax.jit(autoencoder.decode)(params, mean))
    assert made.shape == clips.shape and made.dtype == np.float32
    assert (np.abs(raw) > 1).any() and (np.abs(raw) < 1).any()
    np.testing.assert_allclose(made, np.clip(raw, -1, 1), atol=1e-4)


def test_clips_are_encoded_in_order_with_their_labels_and_lead_back_to_the_codec(codec, tmp_path):
    folder = tmp_path / "latents"
    want = codec.encode(pixels())
    for count, size in ((7, 20), (20, 20), (3, 2)):
        clips = latents.encoded(codec, Pixels(), count, size, "encode: train")
        assert store.write(folder / "train.array_record", clips) == count
        latents.write_index(folder, codec, {"train": count}, {"kind": "moving_digits"}, 100)
        source = build(folder)
        assert len(source) == count and source.shape == codec.autoencoder.latent_shape and source.num_classes == 100
        np.testing.assert_allclose([source[i]["video"] for i in range(count)], want[:count], atol=1e-5)
        assert [int(source[i]["label"]) for i in range(count)] == list(range(count))
    found = latents.of(source, tmp_path, "config.data")
    assert found.record == codec.record and found.autoencoder is codec.autoencoder
    assert latents.of(Pixels(), tmp_path, "config.data") is None
    config = {"data": {"kind": "latents", "path": str(folder)}}
    assert latents.pixels(config) == {"kind": "moving_digits"} and latents.is_latent(config)


def test_what_latents_stand_for_is_known_from_either_split(tmp_path):
    config = {"data": {"kind": "latents", "path": str(folder_of(tmp_path, test=examples(2)))}}
    assert latents.pixels(config) == {"kind": "x"}
    with pytest.raises(ConfigError, match=f"config.data: no latents in {tmp_path}/none"):
        latents.pixels({"data": {"kind": "latents", "path": f"{tmp_path}/none"}})
    with pytest.raises(ConfigError, match="config.data has no key 'paths'; did you mean 'path'"):
        latents.pixels({"data": {"kind": "latents", "paths": str(tmp_path)}})


def test_whole_splits_are_kept_but_for_those_of_a_retrained_autoencoder(codec, tmp_path, monkeypatch):
    """Latents are a number of the weights here, so that nothing is compiled."""

    def number(params):
        return float(params["encoder"]["last"]["bias"][0])

    shape = (4, *codec.autoencoder.latent_shape)
    monkeypatch.setattr(latents.Codec, "encode", lambda self, clips: np.full(shape, number(self.params)))
    monkeypatch.setattr(latents.configs, "source", lambda config, split: Pixels())
    written, write = [], store.write
    monkeypatch.setattr(store, "write", lambda path, clips: written.append(path.stem) or write(path, clips))
    context, folder = Context({"data": {"kind": "x"}}, tmp_path, make_mesh()), tmp_path / "encode"

    def cut_off_and_continued():
        """(what is written again after a stage that had finished its first split only, the numbers of both)."""
        (folder / "test.array_record").unlink(missing_ok=True)
        (folder / store.INDEX).unlink(missing_ok=True)
        written.clear()
        latents.run_encode(context, "encode", dict(autoencoder="autoencoder", train_clips=4, test_clips=4))
        found = [np.unique([clip["video"] for clip in build(folder, split)]) for split in ("train", "test")]
        return [*written], *(n.tolist() for n in found)

    assert cut_off_and_continued() == (["train", "test"], [0.5], [0.5])
    assert cut_off_and_continued() == (["test"], [0.5], [0.5])
    params, record = weights.load(weights.result_path(tmp_path, "autoencoder"))
    params["encoder"]["last"]["bias"] = params["encoder"]["last"]["bias"] + 1
    weights.save(weights.result_path(tmp_path, "autoencoder"), params, record)
    assert cut_off_and_continued() == (["train", "test"], [1.5], [1.5])


def test_a_codec_has_no_other_clips_and_no_other_weights(codec, tmp_path):
    codec.check_clips(MODEL["shape"], "config.data")
    with pytest.raises(ConfigError, match=r"config.data: the autoencoder .* is for clips of shape \(6, 8, 8, 1\)"):
        codec.check_clips((5, 8, 8, 1), "config.data")
    # The reference stands for the weights from any workdir.
    again = latents.codec_of(codec.record, tmp_path / "elsewhere", "config.data")
    assert again.record == codec.record
    path = weights.result_path(tmp_path, "autoencoder")
    params, record = weights.load(path)
    weights.save(path, params, record | {"seed": 1})
    with pytest.raises(
        ConfigError, match=f"of an autoencoder with the fingerprint {codec.fingerprint}, .*encoded again"
    ):
        latents.codec_of(codec.record, tmp_path, "config.data")


def test_weights_of_something_else_are_refused(tmp_path):
    reference = "pretrained:moving_digits/classifier"
    with pytest.raises(ConfigError, match=f"config.data: '{reference}' .* holds a classifier, not an autoencoder"):
        latents.load(reference, tmp_path, "config.data")
    with pytest.raises(ConfigError, match="'autoencoder' is missing or unfinished"):
        latents.load("autoencoder", tmp_path, "config.data")
