"""What the mixture configs share: data whose law is known, a small network, an exact teacher, students against the truth."""

from ml_collections import ConfigDict

SPREADS = {"a1d": 2.2, "eight_mode_ring": 1.4, "gaussian_process": 1.0}
"""Standard deviations."""
SHAPES = {"a1d": (1, 1, 1, 1), "eight_mode_ring": (1, 1, 1, 2), "gaussian_process": (8, 1, 1, 1)}


def base(name: str) -> ConfigDict:
    """The config of a law, without stages."""
    if name not in SHAPES:
        raise ValueError(f"unknown law {name!r}, expected one of {', '.join(SHAPES)}")
    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict(dict(kind="exact", name=name, size=65536))
    # One network for all methods: told where to jump if it is to, its levels embedded as angles, which some differentiate.
    inputs = dict(cond=("logsnr_to",), level="angle")
    config.model = ConfigDict(dict(kind="mlp", shape=SHAPES[name], num_classes=0, width=128, depth=3, **inputs))
    # Between s = e^5 and e^-5: the laws have a spread near 1, and their finest detail is .1.
    config.schedule = ConfigDict(dict(kind="vp_cosine", logsnr_min=-10.0, logsnr_max=10.0))
    config.prediction = "v"
    return config


def train_stage(method: str, steps: int, optimiser: dict | None = None, **block) -> dict:
    rule = dict(learning_rate=1e-3, decay="cosine", warmup=100, clip=1.0) | (optimiser or {})
    return dict(
        kind="train", method=method, steps=steps, batch_size=256, optimiser=rule, log_every=250, checkpoint_every=1000,
        tensorboard=False, **block,
    )  # fmt: skip


def exact_stage(samplers: dict, **block) -> dict:
    return dict(kind="exact", num_clips=1024, samplers=samplers) | block
