"""EDM's churn, on a network with faults and on the exact denoiser (Karras et al. 2022, arXiv 2206.00364, figure 4, table 5).

python -m experiments.ablate sweep --config=configs/ablations/edm_churn.py
"""

from ml_collections import ConfigDict

from configs.mixture.base import base, exact_stage, train_stage

# The last is more than can be: algorithm 2 raises the noise of one step by a factor of sqrt 2 at most, a churn of 13 for 32.
CHURNS = (0.0, 5.0, 10.0, 20.0)


def get_config(law: str = "eight_mode_ring") -> ConfigDict:
    config = base(law)
    samplers = {
        name: dict(weights=weights, steps=32, grid=dict(kind="karras"), solver=dict(kind="heun", churn=0.0))
        for name, weights in (("oracle", "oracle"), ("network", "denoiser"))
    }
    first = dict(law="uniform_time", weight="v", ema=0.99)
    config.stages = ConfigDict(
        dict(
            denoiser=train_stage("denoising", 300, dict(warmup=50), options=first),
            exact=exact_stage(samplers, noise="sobol", num_clips=512),
        )
    )
    # One number in two places, and an axis acts on one: its values are whole samplers.
    churned = [
        {name: {**block, "solver": dict(kind="heun", churn=churn)} for name, block in samplers.items()}
        for churn in CHURNS
    ]
    config.sweep = ConfigDict(
        dict(
            about="""Churn (Karras et al. 2022, arXiv 2206.00364, algorithm 2 and figure 4): fresh noise before every step of
            Heun's method, here 32 steps, 63 calls. The network has seen 300 batches of the ring of eight modes, and makes
            mistakes; the exact denoiser makes none. At 13 churn reaches the most that the algorithm adds. Samples with noise
            of their own have no map, so the energy distance (from other noises, with no floor) judges them.""",
            axes=dict(
                churn=dict(path="stages.exact.samplers", values=churned, labels=[f"{churn:g}" for churn in CHURNS])
            ),
            seeds=(0, 1, 2),
            columns={
                f"energy, {title}": dict(path=("exact", "metrics", name, "energy"))
                for name, title in (("network", "network"), ("oracle", "exact denoiser"))
            },
        )
    )
    return config
