"""What is in pretrained/, sampled as its records say, measured and drawn: their gallery, and the figures they state.

    python -m experiments.run --config=configs/shipped.py:moving_digits --workdir=runs/shipped/moving_digits
    python -m experiments.run --config=configs/shipped.py:moving_digits,teacher,dmd2_4 --workdir=runs/shipped/two
    python -m experiments.run --config=configs/shipped.py:moving_digits_64 --workdir=runs/shipped/moving_digits_64

The argument is FOLDER or FOLDER,NAME,... The pictures are in report.html in the workdir. moving_digits_64 asks for the latents
that configs/moving_digits_64/latents.py leaves.
"""

import json
import pathlib

from ml_collections import ConfigDict

from configs.moving_digits.base import base
from configs.moving_digits_64.base import latents

PRETRAINED = pathlib.Path(__file__).resolve().parent.parent / "pretrained"
FOLDERS = {"moving_digits": base, "moving_digits_64": latents}


def stated(folder: str) -> dict[str, dict]:
    """name -> metrics, of the weights in a folder of pretrained/ whose records name the sampler that these are of; of a table
    fitted to other weights, the sampler names them.
    """
    found = {
        path.stem: json.loads(path.read_text()).get("metrics", {}) for path in (PRETRAINED / folder).glob("*.json")
    }
    return {name: metrics for name, metrics in sorted(found.items()) if "sampler" in metrics}


def get_config(argument: str = "moving_digits") -> ConfigDict:
    folder, *names = argument.split(",")
    if folder not in FOLDERS:
        raise ValueError(f"unknown folder {folder!r}, expected one of {', '.join(FOLDERS)}")
    known = stated(folder)
    for name in names:
        if name not in known:
            raise ValueError(f"no figures of {name!r} in pretrained/{folder}, expected one of {', '.join(known)}")
    samplers = {
        name: {"weights": f"pretrained:{folder}/{name}"}
        | {key: value for key, value in known[name]["sampler"].items() if key != "evaluations"}
        for name in names or known
    }
    config = FOLDERS[folder]()
    config.stages = ConfigDict(
        dict(evaluate=dict(kind="evaluate", num_clips=256, batch_size=64, loss_levels=[], samplers=samplers))
    )
    return config
