"""What all moving-digits configs share: 16x16 clips of 8 frames with one digit, a 1 M video U-Net, v on the cosine."""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict(dict(kind="moving_digits", size=16, frames=8, digits=1))
    # Spelt out, though these are the defaults: shipped weights must not change their meaning with a default.
    config.model = ConfigDict(
        dict(kind="unet", shape=(8, 16, 16, 1), num_classes=10, widths=(24, 48, 96), blocks=(1, 1, 2), embed=128)
    )
    config.schedule = ConfigDict(dict(kind="vp_cosine"))
    config.prediction = "v"
    return config
