"""Any TFDS dataset with a video tensor or images, read at random and without TensorFlow.

The dataset must have been prepared with `file_format='array_record'`, TFDS's random-access format.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments.data import framing
from experiments.data import source as source_lib

# TFDS's decorators hide its signatures from type checkers: builders and features are Any here.


@dataclasses.dataclass(frozen=True, repr=False)
class TFDSVideos:
    """The source: one clip per example; an image becomes a clip of one frame.

    Args:
        data_dir: the folder that datasets were prepared in, or one dataset's own (with dataset_info.json).
        name: 'dataset', 'dataset/config' or 'dataset/config:version' below data_dir; may be left out if there
            is only one dataset.
        frames: frames per clip, cut out of longer videos; None: as many as the dataset has.
        size: frame side or (height, width): the largest box of that aspect, resized; None: as in the dataset.
        video_key: the feature with the video or image; None: the only one there is.
        label_key: a class label; None: the one there is, if there is one.
        crop: 'centre', or 'random', a pure function of (seed, index).
        train_split, test_split: what the dataset calls the splits; TFDS slices such as 'train[:90%]' work.

    Raises ValueError for a missing folder, another file format, a video of fewer frames or another size;
    KeyError for a missing dataset, split or feature.
    """

    data_dir: str
    name: str = ""
    frames: int | None = None
    size: int | tuple[int, int] | None = None
    video_key: str | None = None
    label_key: str | None = None
    crop: str = "centre"
    seed: int = 0
    train_split: str = "train"
    test_split: str = "test"
    split: str = "train"

    def __post_init__(self):
        source_lib.check_split(self.split)
        source_lib.check_whole("seed", self.seed, 0)
        framing.check_crop(self.crop)
        if self.frames is not None:
            source_lib.check_whole("frames", self.frames, 1)
        if self.size is not None:
            object.__setattr__(self, "size", framing.check_size(self.size))
        _ = self._keys, self._examples  # a missing folder, split or key shows here and now
        length = _as_clip_shape(self._builder.info.features[self._keys[0]])[0]  # None: it varies
        if self.frames is not None and length is not None and self.frames > length:
            raise ValueError(
                f"frames={self.frames}: the clips of {self._builder.data_dir} have {length}; nearest: {length}"
            )

    @functools.cached_property
    def _builder(self) -> Any:
        folder = find_dataset(self.data_dir, self.name)
        try:
            builder: Any = tfds.builder_from_directory(folder)
        except ImportError as error:
            raise ValueError(
                f"{folder} has features that TFDS decodes with TensorFlow only ({error}): "
                "install the extra 'fewstep[tf]', or store the video as features.Tensor"
            ) from error
        if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise ValueError(
                f"{folder} is stored as {builder.info.file_format.value}, which has no random access: "
                "prepare it with file_format='array_record'"
            )
        return builder

    @functools.cached_property
    def _examples(self) -> Any:
        wanted = self.train_split if self.split == "train" else self.test_split
        have = self._builder.info.splits
        if wanted.split("[")[0].split("+")[0] not in have:
            where = self._builder.data_dir
            raise KeyError(f"{where} has no split {wanted!r}; {source_lib.nearest(wanted, have)}")
        return self._builder.as_data_source(split=wanted)

    @functools.cached_property
    def _keys(self) -> tuple[str, str | None]:
        """The names of the video's and of the label's feature."""
        features, where = self._builder.info.features, self._builder.data_dir
        videos = sorted(key for key, feature in features.items() if _is_video(feature))
        labels = sorted(key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel))
        for what, key, have in (("video", self.video_key, videos), ("label", self.label_key, labels)):
            if key is not None and key not in have:
                raise KeyError(f"{where} has no {what} feature {key!r}; {source_lib.nearest(key, have)}")
        if self.video_key is None and len(videos) != 1:
            have = ", ".join(videos) or "it has none"
            raise KeyError(f"{where}: set video_key to one of its video features: {have}")
        if self.label_key is None and len(labels) > 1:
            raise KeyError(f"{where}: set label_key to one of its class labels: {', '.join(labels)}")
        return self.video_key or videos[0], self.label_key or next(iter(labels), None)

    @property
    def num_classes(self) -> int:
        label = self._keys[1]
        return 0 if label is None else self._builder.info.features[label].num_classes

    @functools.cached_property
    def shape(self) -> tuple[int, int, int, int]:
        feature = self._builder.info.features[self._keys[0]]
        full = _as_clip_shape(feature)
        if None in full:  # sizes that vary, or are not recorded: the first clip tells
            full = self._read(0)[0].shape
        frames = full[0] if self.frames is None else self.frames
        height, width = full[1:3] if self.size is None else framing.check_size(self.size)
        return frames, height, width, full[3]

    def __len__(self) -> int:
        return len(self._examples)

    def __repr__(self) -> str:
        # Without the folder, so that a data set may be moved between two runs.
        chosen: dict[str, Any] = dict(split=self._split_name, keys=self._keys, shape=self.shape)
        chosen.update(crop=self.crop, seed=self.seed)
        options = ", ".join(f"{key}={value!r}" for key, value in chosen.items())
        return f"TFDSVideos({self._builder.info.full_name!r}, {options}, clips={len(self)})"

    @property
    def _split_name(self) -> str:
        return self.train_split if self.split == "train" else self.test_split

    def _read(self, index: int) -> tuple[np.ndarray, np.int32]:
        """The whole video of an example as uint8 [f, h, w, c], and its label."""
        video_key, label_key = self._keys
        example = self._examples[index]
        video = np.asarray(example[video_key])
        feature = self._builder.info.features[video_key]
        if isinstance(feature, tfds.features.Image):
            video = video[None]
        elif len(feature.shape) == 3:
            video = video[..., None] if feature.shape[-1] not in (1, 3) else video[None]
        return video, np.int32(0 if label_key is None else example[label_key])

    def __getitem__(self, index: int) -> source_lib.Example:
        index = source_lib.check_index(index, len(self))
        video, label = self._read(index)
        frames, height, width, _ = self.shape
        if len(video) < frames:
            got = f"example {index} has {len(video)}"
            raise source_lib.Damaged(f"{self!r}: expected at least {frames} frames, {got}")
        where = framing.placement(self.crop, self.seed, index)
        video = video[framing.window(len(video), frames, where[0])]
        if self.size is not None:
            video = framing.crop_and_resize(video, (height, width), where[1:])
        return dict(video=video, label=label)


def _is_video(feature: Any) -> bool:
    shape: Any = feature.shape
    if isinstance(feature, tfds.features.Image):
        return True
    holds_pixels = isinstance(feature, tfds.features.Tensor | tfds.features.Video)
    return holds_pixels and feature.np_dtype == np.uint8 and len(shape) in (3, 4)


def _as_clip_shape(feature: Any) -> tuple[Any, ...]:
    """The feature's shape as [f, h, w, c]; three axes: an image if the last is 1 or 3, else grey."""
    shape = tuple(feature.shape)
    if len(shape) == 4:
        return shape
    return (1, *shape) if isinstance(feature, tfds.features.Image) or shape[-1] in (1, 3) else (*shape, 1)


def find_dataset(data_dir: str, name: str = "") -> pathlib.Path:
    """The folder with the dataset_info.json of dataset `name` ('dataset/config:version') below `data_dir`.

    Raises ValueError if `data_dir` is no folder, KeyError unless exactly one dataset fits.
    """
    root = pathlib.Path(data_dir).expanduser()
    if not root.is_dir():
        raise ValueError(f"config.data.data_dir {str(data_dir)!r} is not a folder")
    # data_dir / dataset / [config] / version, and data_dir may be the version itself.
    found = {
        path.parent.relative_to(root).as_posix(): path.parent
        for depth in range(4)
        for path in sorted(root.glob("*/" * depth + "dataset_info.json"))
    }
    wanted = name.replace(":", "/").strip("/")
    fits = sorted(key for key in found if not wanted or key == wanted or key.startswith(wanted + "/"))
    if len(fits) == 1:
        return found[fits[0]]
    if not found:
        raise KeyError(f"{str(data_dir)!r} holds no TFDS dataset (no dataset_info.json)")
    if not fits:
        raise KeyError(f"{str(data_dir)!r} has no dataset {name!r}; {source_lib.nearest(wanted, found)}")
    raise KeyError(f"{str(data_dir)!r} has several datasets for {name!r}; set name to one: {', '.join(fits)}")
