"""Other libraries' samplers, run live where they are installed (the extra `bench`): diffusers and k-diffusion."""

import functools
import importlib
import importlib.metadata
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

INSTALL = "`pip install -e '.[bench]'` installs it"
PEERS = {"diffusers": "diffusers", "k-diffusion": "k_diffusion"}
BETAS = dict(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", prediction_type="sample")

# What k-diffusion imports for its image metrics and its training, and its samplers never touch.
_UNUSED = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "clip", "cleanfid")
_UNUSED += ("cleanfid.inception_torchscript", "torchvision.datasets", "torchvision.utils")


class Run(NamedTuple):
    """A sample, the levels (log-SNR) between which it was made, and the calls that it took."""

    sample: np.ndarray
    start: float
    end: float
    calls: int


@functools.cache
def load(name: str) -> types.ModuleType | None:
    """The library, or None where it can't be imported."""
    if name == "k-diffusion":
        # Stand-ins, so that a torchvision that doesn't fit torch is no reason to do without the samplers.
        stand_ins = {unused: mock.MagicMock() for unused in _UNUSED if unused not in sys.modules}
        sys.modules.update(stand_ins)
        try:
            return importlib.import_module("k_diffusion")
        except ImportError:
            return None
        finally:
            for unused in stand_ins:
                del sys.modules[unused]
    try:
        importlib.import_module("torch")
        return importlib.import_module(PEERS[name])
    except ImportError:
        return None


@functools.cache
def versions() -> dict[str, str]:
    """The libraries that are there."""
    return {name: importlib.metadata.version(name) for name in PEERS if load(name) is not None}


def scheduler(name: str, **options: Any) -> Any:
    return getattr(load("diffusers"), name)(**{**BETAS, **options})


def diffusers_run(made: Any, calls: int, denoise: Callable, z: np.ndarray, schedule: Any) -> Run:
    """A scheduler of diffusers on noise z, with the model's answer to its own levels."""
    import torch

    made.set_timesteps(calls)
    if hasattr(made, "sigmas"):
        with np.errstate(divide="ignore"):
            levels = -2 * np.log(made.sigmas.double().numpy())
    else:
        kept = made.alphas_cumprod.double().numpy()[made.timesteps.numpy()]
        levels = np.append(np.log(kept / (1 - kept)), np.inf)
    sample = torch.tensor(schedule.sigma(levels[0]) * z)
    for i, timestep in enumerate(made.timesteps):
        sample = made.step(torch.tensor(denoise(sample.numpy(), levels[i])), timestep, sample).prev_sample
    return Run(sample.numpy(), float(levels[0]), float(levels[-1]), len(made.timesteps))


def k_diffusion_run(name: str, grid: str, steps: int, denoise: Callable, z: np.ndarray, schedule: Any) -> Run:
    """A sampler of k-diffusion on its grid get_sigmas_`grid`, without the last step to sigma = 0 that its grid appends."""
    import torch

    library: Any = load("k-diffusion")
    start, end = schedule.logsnr_start, schedule.logsnr_end
    make = getattr(library.sampling, f"get_sigmas_{grid}")
    sigmas = make(steps + 1, float(np.exp(-end / 2)), float(np.exp(-start / 2)))[:-1].double()
    levels = -2 * np.log(sigmas.numpy())
    calls = 0

    def model(y, sigma):
        """Its points are x / alpha."""
        nonlocal calls
        calls += 1
        level = -2 * np.log(float(sigma[0]))
        return torch.tensor(denoise(y.numpy() * schedule.alpha(level), level))

    sampler = getattr(library.sampling, f"sample_{name}")
    sample = sampler(model, torch.tensor(z) * sigmas[0], sigmas, disable=True)
    return Run(sample.numpy() * schedule.alpha(levels[-1]), float(levels[0]), float(levels[-1]), calls)
