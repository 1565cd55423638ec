"""Metrics of other people's networks: FVD, JEDi and VBench, for weights that you have. Nothing is downloaded here.

Clips are uint8 [n, f, h, w, c] with one or three channels. A network is a function of them, uint8 [b, f, h, w, 3] ->
features [b, d], or the path of a TorchScript file, which needs torch. Figures of networks trained on natural video say little
about digits, and depend on the number, length and size of the clips: set them beside the floor.
"""

import json
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from experiments.metrics import distances
from experiments.metrics.report import Measure, interval

Clips = UInt8[np.ndarray, "n f h w c"]
Network = Callable[[UInt8[np.ndarray, "b f h w 3"]], Float[np.ndarray, "b d"]]

I3D = "the I3D network of Kinetics-400 as TorchScript, i3d_torchscript.pt, which github.com/universome/stylegan-v links to"
V_JEPA = "a V-JEPA encoder with its SSv2 pooler (github.com/facebookresearch/jepa), exported by you as TorchScript"
FVD_OPTIONS = {"rescale": True, "resize": True, "return_features": True}
"""That I3D scales bytes to [-1, 1] and frames to 224 pixels itself, and leaves out its softmax."""


def fvd(
    videos: Clips,
    reference: Clips,
    network: Network | str | os.PathLike,
    *,
    floor_reference: Clips | None = None,
    bootstrap: int = 200,
    seed: int = 0,
) -> Measure:
    """Fréchet video distance (Unterthiner et al. 2018, arXiv 1812.01717) in the features of I3D, as StyleGAN-V computes it.

    network: a path to I3D as TorchScript, called with float [b, 3, f, h, w] in [0, 255], or a function of bytes. I3D wants 9
    or more frames.
    """
    features = _network(network, "FVD", I3D, FVD_OPTIONS)

    def statistic(own, real, weights):
        return distances.frechet(own[:, None], real[:, None], weights)

    return _measure(statistic, features, videos, reference, floor_reference, bootstrap, seed)


def jedi(
    videos: Clips,
    reference: Clips,
    network: Network | str | os.PathLike,
    *,
    floor_reference: Clips | None = None,
    bootstrap: int = 200,
    seed: int = 0,
) -> Measure:
    """JEDi (Luo et al. 2024, arXiv 2410.05203): 100 times the MMD with the kernel (x . y / d)² in features of V-JEPA.

    The biased estimate with every clip's pair with itself, as in the authors' package. network: a path to V-JEPA as
    TorchScript, called with float [b, 3, f, h, w] in [0, 255] and so with its scaling inside, or a function of bytes.
    """
    features = _network(network, "JEDi", V_JEPA, {})

    def statistic(own, real, weights):
        return 100 * distances.mmd(own, real, weights, degree=2, constant=0.0, unbiased=False)

    return _measure(statistic, features, videos, reference, floor_reference, bootstrap, seed)


def vbench(
    folder: str | os.PathLike,
    dimensions: Sequence[str],
    *,
    weights: str | os.PathLike,
    output: str | os.PathLike,
    device: str = "cpu",
) -> dict[str, float]:
    """VBench's scores (Huang et al. 2024, arXiv 2311.17982) of the video files in a folder, by its own package.

    dimensions: those for clips without its prompts, such as "motion_smoothness" or "dynamic_degree". weights: the folder
    with its networks, VBENCH_CACHE_DIR. output: a folder for its reports. "temporal_flickering" rewards clips that freeze.
    """
    if not pathlib.Path(weights).is_dir() or not any(pathlib.Path(weights).iterdir()):
        raise FileNotFoundError(
            f"VBench needs its networks (github.com/Vchitect/VBench lists them) in the folder {os.fspath(weights)!r}:"
            " it is empty or isn't there"
        )
    os.environ["VBENCH_CACHE_DIR"] = os.fspath(weights)  # read when the package is imported
    try:
        import torch
        from vbench import VBench
    except ImportError as error:
        raise ImportError("VBench's scores need its package: pip install torch vbench") from error
    judge = VBench(torch.device(device), "", os.fspath(output))
    judge.evaluate(os.fspath(folder), "fewstep", dimension_list=list(dimensions), mode="custom_input")
    found = json.loads((pathlib.Path(output) / "fewstep_eval_results.json").read_text(encoding="utf-8"))
    return {name: float(found[name][0]) for name in dimensions}


def _network(network: Network | str | os.PathLike, metric: str, what: str, options: dict[str, bool]) -> Network:
    """The network as a function of bytes."""
    if callable(network):
        return network
    path = pathlib.Path(network)
    if not path.is_file():
        raise FileNotFoundError(f"{metric} needs {what}: there is no file {os.fspath(network)!r}")
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{metric}'s network {os.fspath(network)!r} is TorchScript, which needs: pip install torch"
        ) from error
    module = torch.jit.load(os.fspath(path), map_location="cpu").eval()

    def features(clips: UInt8[np.ndarray, "b f h w 3"]) -> Float[np.ndarray, "b d"]:
        with torch.no_grad():
            return module(torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float(), **options).numpy()

    return features


def _measure(statistic, network: Network, videos, reference, floor_reference, bootstrap: int, seed: int) -> Measure:
    """The statistic with its interval and floor, as `evaluate` has them."""
    if floor_reference is not None and len(floor_reference) != len(videos):
        raise ValueError(
            f"the floor of {len(videos)} clips needs {len(videos)} other real clips, got {len(floor_reference)}"
        )
    own, real = _features(network, videos), _features(network, reference)
    equal = distances.equal_weights(len(own))
    value, *others = statistic(own, real, np.concatenate([equal, distances.resampled(len(own), bootstrap, seed)]))
    floor = None
    if floor_reference is not None:
        floor = float(statistic(_features(network, floor_reference), real, equal)[0])
    return Measure(float(value), *interval(value, others), floor, "lower")


def _features(network: Network, clips: Clips, batch: int = 8) -> Float[np.ndarray, "n d"]:
    if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[-1] not in (1, 3):
        raise ValueError(f"clips are uint8 [n, f, h, w, 1 or 3], got {clips.dtype} {list(clips.shape)}")
    parts = (clips[i : i + batch] for i in range(0, len(clips), batch))
    return np.concatenate([network(np.broadcast_to(part, (*part.shape[:-1], 3)).copy()) for part in parts])
