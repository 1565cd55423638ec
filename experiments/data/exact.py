"""Data whose law is known in closed form, as clips: what a student learns from it can be held against the truth."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffusion import oracles
from experiments.data import source as source_lib


def _a1d() -> oracles.Mixture:
    return oracles.gaussian_mixture([0.4, 0.6], np.reshape([-2.0, 2.0], (2, 1, 1, 1, 1)), 1.0)


def _ring() -> oracles.Mixture:
    angle = np.arange(8) * np.pi / 4
    means = 2 * np.stack([np.cos(angle), np.sin(angle)], -1)
    return oracles.gaussian_mixture(np.ones(8), means.reshape(8, 1, 1, 1, 2), 0.1**2)


def _video() -> oracles.GaussianProcess:
    return oracles.gaussian_process(oracles.rbf(8, 2.0, nugget=1e-2), (1, 1, 1))


LAWS = {"a1d": _a1d, "eight_mode_ring": _ring, "gaussian_process": _video}
"""name -> oracle of clips [f, h, w, c]: two modes on the line; eight on a ring in the plane, as two channels of one pixel;
a smooth Gaussian video of eight frames of one pixel."""

SHAPES = {"a1d": (1, 1, 1, 1), "eight_mode_ring": (1, 1, 1, 2), "gaussian_process": (8, 1, 1, 1)}


@dataclasses.dataclass(frozen=True)
class Exact:
    """`size` draws of the law `name`, float32 clips as they are (no bytes, no [-1, 1]); `oracle` is the law itself."""

    name: str
    size: int = 65536
    seed: int = 0
    split: str = "train"
    video_dtype = np.float32
    num_classes = 0

    def __post_init__(self):
        if self.name not in LAWS:
            raise KeyError(f"unknown law {self.name!r}; {source_lib.nearest(self.name, LAWS)}")
        source_lib.check_split(self.split)
        source_lib.check_whole("size", self.size, 1)
        source_lib.check_whole("seed", self.seed, 0, 2**32 - 1)  # beyond it keys come again

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return SHAPES[self.name]

    @property
    def oracle(self) -> oracles.Mixture | oracles.GaussianProcess:
        return LAWS[self.name]()

    @functools.cached_property
    def clips(self) -> Float[np.ndarray, "n f h w c"]:
        """All of the split's clips."""
        key = jax.random.fold_in(jax.random.key(self.seed), source_lib.SPLITS.index(self.split))
        drawn = self.oracle.sample(key, self.size)
        return np.asarray(jnp.asarray(drawn, jnp.float32)).reshape(self.size, *self.shape)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> source_lib.Example:
        index = source_lib.check_index(index, self.size)
        return dict(video=self.clips[index], label=np.int32(0))

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The clips of these indices as one batch: a step on these laws is over before its clips are read one by one."""
        return dict(video=self.clips[indices], label=np.zeros(len(indices), np.int32))
