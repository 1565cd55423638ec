"""Two known frames continued in every way there is, by shipped networks: nothing is trained.

    python -m experiments.run --config=configs/moving_digits/history.py --workdir=runs/history

Shown clean, shown at log-SNR 6.9, and under history guidance (vanilla, fractional, temporal: Song et al. 2025, arXiv
2502.06764); begun as the frame before, noised (SDEdit: Meng et al. 2021, arXiv 2108.01073); replaced, and guided towards (Ho
et al. 2022, arXiv 2204.03458), with the teacher that knows one level for all frames; then long videos: blended windows
(MultiDiffusion), and FIFO-Diffusion's diagonal with and without its lookahead.

What begins as the frame before stays near it: the sixth frame is 1.8 pixels off where it begins at log-SNR -3, and 3.5 at 0, of
1.2 from -6 and from noise.
"""

from ml_collections import ConfigDict

from configs.moving_digits.base import base
from configs.moving_digits.students import TEACHER

FORCING = "pretrained:moving_digits/forcing"
STABLE = 6.9
WAYS = {
    "shown": dict(),
    "stabilised": dict(level=STABLE),
    "vanilla": dict(way=dict(kind="vanilla", scale=1.5)),
    "fractional": dict(way=dict(kind="fractional", scale=2.0, partly=-2.0)),
    "temporal": dict(way=dict(kind="temporal", memories=[[0.5, [0]], [0.5, [1]]])),
    "sdedit": dict(sdedit=True, grid=dict(kind="uniform_time", start=-3.0)),
    "replaced": dict(weights=TEACHER, way="replacement"),
    "reconstructed": dict(weights=TEACHER, way=dict(kind="reconstruction", weight=2.0)),
}
LONG = {
    "blended": dict(windows=dict(stride=2, weights="pyramid")),
    "fifo": dict(matrix=dict(kind="rolling", lag=1), steps=14, windows=dict(stride=8, weights="earliest")),
    "lookahead": dict(matrix=dict(kind="rolling", lag=1), steps=14, windows=dict(stride=4, weights="earliest")),
}


def get_config() -> ConfigDict:
    config = base()
    config.stages = ConfigDict()
    common = dict(kind="continue", weights=FORCING, history=2, steps=16, solver="dpmpp", num_clips=64, told_label=True)
    for name, options in WAYS.items():
        config.stages[name] = common | dict(frames=8) | options
    for name, options in LONG.items():
        config.stages[name] = common | dict(frames=32, batch_size=16) | options
    return config
