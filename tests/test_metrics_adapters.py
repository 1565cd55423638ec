"""Adapters of other people's networks, with a network of three numbers and stand-ins for torch and vbench.

What cannot be tested here is that I3D, V-JEPA and VBench themselves give their published figures.
"""

import json
import sys
import types

import numpy as np
import pytest

from experiments.metrics import adapters, distances


def clips(seed, n=24, channels=1):
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, (n, 5, 1, 1, 1)) * np.ones((8, 8, channels))).astype(np.uint8)


def network(videos):
    assert videos.dtype == np.uint8 and videos.shape[-1] == 3 and len(videos) <= 8
    light = videos.mean((2, 3, 4)) / 255.0
    return np.stack([light.mean(1), light[:, 0], light[:, -1]], 1)


def test_fvd_is_the_frechet_distance_of_the_network_s_features():
    got = adapters.fvd(clips(0), clips(1), network, floor_reference=clips(2), bootstrap=50)
    own, real, other = (network_all(clips(i))[:, None] for i in range(3))
    equal = distances.equal_weights(24)
    assert got.value == pytest.approx(distances.frechet(own, real, equal)[0])
    assert got.floor == pytest.approx(distances.frechet(other, real, equal)[0])
    assert got.low < got.value < got.high and got.better == "lower"
    assert adapters.fvd(clips(0), clips(0), network, bootstrap=0).value == pytest.approx(0, abs=1e-9)
    gray, colour = (adapters.fvd(clips(0, channels=c), clips(1, channels=c), network, bootstrap=0) for c in (1, 3))
    assert gray == colour and gray.floor is None


def network_all(videos):
    return np.concatenate([network(np.repeat(videos[i : i + 8], 3, -1)) for i in range(0, len(videos), 8)])


def test_jedi_is_a_hundred_times_the_biased_mmd_with_a_square_kernel():
    got = adapters.jedi(clips(0), clips(1), network, bootstrap=20)
    x, y = network_all(clips(0)), network_all(clips(1))

    def mean(a, b):
        return np.mean((a @ b.T / 3) ** 2)

    assert got.value == pytest.approx(100 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)))


@pytest.mark.parametrize(
    "metric, what",
    [(adapters.fvd, "FVD needs the I3D network .* as TorchScript"), (adapters.jedi, "JEDi needs a V-JEPA encoder")],
)
def test_missing_networks_are_named(metric, what, tmp_path, monkeypatch):
    path = tmp_path / "network.pt"
    with pytest.raises(FileNotFoundError, match=f"{what}.*there is no file '{path}'"):
        metric(clips(0), clips(1), path)
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=f"'{path}' is TorchScript, which needs: pip install torch"):
        metric(clips(0), clips(1), path)


def test_bad_clips_are_refused():
    with pytest.raises(ValueError, match=r"clips are uint8 \[n, f, h, w, 1 or 3\], got float64 \[24, 5, 8, 8, 1\]"):
        adapters.fvd(clips(0) / 255.0, clips(1), network)
    with pytest.raises(ValueError, match="the floor of 24 clips needs 24 other real clips, got 3"):
        adapters.fvd(clips(0), clips(1), network, floor_reference=clips(2)[:3])


def test_torchscript_gets_bytes_as_floats_with_channels_first(tmp_path):
    torch = pytest.importorskip(
        "torch", reason="torch is installed by the extra `bench` only; callables cover the rest"
    )

    class Means(torch.nn.Module):
        def forward(self, x, rescale: bool = False, resize: bool = False, return_features: bool = False):
            assert rescale and resize and return_features
            light = x.mean([1, 3, 4]) / 255.0
            return torch.stack([light.mean(1), light[:, 0], light[:, -1]], 1)

    torch.jit.script(Means()).save(tmp_path / "i3d.pt")
    got, expected = (adapters.fvd(clips(0), clips(1), net, bootstrap=5) for net in (tmp_path / "i3d.pt", network))
    np.testing.assert_allclose(got[:3], expected[:3], rtol=1e-4)


def test_vbench_is_called_with_the_user_s_networks(tmp_path, monkeypatch):
    made = tmp_path / "vbench"
    with pytest.raises(FileNotFoundError, match=f"VBench needs its networks .* in the folder '{made}'"):
        adapters.vbench("clips", ["dynamic_degree"], weights=made, output=tmp_path)
    made.mkdir()
    (made / "raft.pth").write_bytes(b"")
    monkeypatch.setenv("VBENCH_CACHE_DIR", "another")
    monkeypatch.setitem(sys.modules, "vbench", None)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(device=lambda name: name))
    with pytest.raises(ImportError, match="pip install torch vbench"):
        adapters.vbench("clips", ["dynamic_degree"], weights=made, output=tmp_path)

    class VBench:
        def __init__(self, device, full_info, output):
            self.output = output

        def evaluate(self, videos_path, name, dimension_list, mode):
            assert (videos_path, mode) == ("clips", "custom_input")
            scores = {dimension: [0.25, [{"video_path": "a.mp4"}]] for dimension in dimension_list}
            (tmp_path / f"{name}_eval_results.json").write_text(json.dumps(scores))

    monkeypatch.setitem(sys.modules, "vbench", types.SimpleNamespace(VBench=VBench))
    got = adapters.vbench("clips", ["dynamic_degree", "motion_smoothness"], weights=made, output=tmp_path)
    assert got == {"dynamic_degree": 0.25, "motion_smoothness": 0.25}
