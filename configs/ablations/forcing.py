"""Diffusion Forcing's axes: the order in which frames are denoised, and the level at which the past is shown.

    python -m experiments.ablate sweep --config=configs/ablations/forcing.py

On moving digits with the shipped network (Chen et al. 2024, arXiv 2407.01392, sections 3.3 and 4; appendix B.3 for stabilised
histories).
"""

from ml_collections import ConfigDict

from configs.moving_digits.base import base

MATRICES = {
    "full": "full",
    "pyramid, lag 3": dict(kind="pyramid", lag=3),
    "blocks of 2": dict(kind="autoregressive", block=2),
    "rolling": dict(kind="rolling", lag=3),
}
LEVELS = {"clean": None, "6.9": 6.9, "4": 4.0, "2": 2.0}


def get_config() -> ConfigDict:
    config = base()
    config.stages = ConfigDict()
    config.stages.rolled = dict(
        kind="continue", weights="pretrained:moving_digits/forcing", history=2, frames=24, steps=18, solver="dpmpp",
        told_label=True, num_clips=64, batch_size=64, bootstrap=100,
    )  # fmt: skip
    config.sweep = ConfigDict(
        dict(
            about="""Two axes of Diffusion Forcing (Chen et al. 2024, arXiv 2407.01392): the schedule matrix, and the level (a
            log-SNR) at which known and generated frames are shown to the network. 64 clips of moving digits, two known frames
            continued by 24 with the shipped network of levels per frame, 18 steps for every frame. Position is the median
            error of the sixth frame after the known ones, in pixels; identity the share of clips that keep theirs in the last
            eight frames.""",
            axes=dict(
                matrix=dict(
                    path="stages.rolled", values=[dict(matrix=m) for m in MATRICES.values()], labels=list(MATRICES)
                ),
                level=dict(path="stages.rolled", values=[dict(level=v) for v in LEVELS.values()], labels=list(LEVELS)),
            ),
            points=[dict(matrix=name) for name in MATRICES] + [dict(level=name) for name in list(LEVELS)[1:]],
            columns={
                "position, px": dict(path=("rolled", "position_error", "6")),
                "identity": dict(path=("rolled", "drift", "16-23", "identity_kept"), better="higher"),
                "class": dict(path=("rolled", "drift", "16-23", "label_accuracy"), better="higher"),
                "sharpness, real 1": dict(path=("rolled", "drift", "16-23", "sharpness"), better="higher"),
            },
        )
    )
    return config
