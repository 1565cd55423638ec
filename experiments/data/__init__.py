"""Data: sources of clips, chosen by `config.data.kind`, and the batches that are read from them."""

import importlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.data.pipeline import Batches, read
from experiments.data.source import Source, check_split, checked, from_config, low_shape, nearest
from experiments.names import imported, is_outside

__all__ = ["KINDS", "Batches", "Source", "build", "low_shape", "read"]

# kind -> (module, dataclass): imported when asked for, since each brings a library that others don't need.
KINDS = {
    "moving_digits": ("experiments.data.moving_digits", "MovingDigits"),
    "tfds": ("experiments.data.tfds_source", "TFDSVideos"),
    "exact": ("experiments.data.exact", "Exact"),
    "video_folder": ("experiments.data.video_folder", "VideoFolder"),
    "latents": ("experiments.data.latents", "Latents"),
    "resized": ("experiments.data.resized", "Resized"),
}


def build(config: ConfigDict | Mapping[str, Any], split: str = "train") -> Source:
    """The source that `config` (an `ml_collections.ConfigDict`, or a dict) describes.

    `config.kind` is a key of KINDS, or "package.module:Class" for a dataclass of your own; the other keys are the fields of
    that kind's dataclass. Raises KeyError, naming the nearest valid choice, for an unknown kind and for an unknown or missing
    key; ValueError for a value out of range, an unknown split, and a class that is no source.
    """
    if "kind" not in config:
        raise KeyError(f"config.data lacks the key kind; {nearest('', KINDS)}")
    if is_outside(config["kind"]):
        check_split(split)
        return checked(from_config(imported(config["kind"], "config.data.kind"), config, split))
    if config["kind"] not in KINDS:
        raise KeyError(f"unknown config.data.kind {config['kind']!r}; {nearest(config['kind'], KINDS)}")
    check_split(split)
    module, name = KINDS[str(config["kind"])]
    return from_config(getattr(importlib.import_module(module), name), config, split)
