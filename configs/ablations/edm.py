"""EDM's design space of samplers: schedule, scaling, steps, solver (Karras et al. 2022, arXiv 2206.00364, table 1, figure 2).

    python -m experiments.ablate sweep --config=configs/ablations/edm.py

An exact denoiser, so that all error is the sampler's; churn, which needs a model with faults, is in edm_churn.py.
"""

from ml_collections import ConfigDict

from configs.mixture.base import base, exact_stage

SOLVERS = dict(
    euler=dict(steps=36, solver="euler"), ddim=dict(steps=36, solver="ddim"), heun=dict(steps=18, solver="heun")
)


def get_config(law: str = "a1d") -> ConfigDict:
    config = base(law)
    del config.model, config.prediction
    config.schedule = ConfigDict(dict(kind="rescaled", of="edm", scaling="VE"))
    sampler = dict(weights="oracle", grid=dict(kind="karras"), **SOLVERS["euler"])
    config.stages = ConfigDict(dict(exact=exact_stage(dict(oracle=sampler), noise="sobol", num_clips=512)))
    config.sweep = ConfigDict(
        dict(
            about="""EDM's axes (Karras et al. 2022, arXiv 2206.00364, table 1 and section 3): the schedule, which here is the
            log-SNR over time and its two ends; the scaling of x; where the steps are, uniform in the schedule's own time or
            Karras' with rho 7; and the solver, 36 calls each. The law is 0.4 N(-2, 1) + 0.6 N(2, 1), the denoiser exact, the
            error that of the map from noise, and of the law. A table of coefficients runs in the log-SNR, so that a scaling
            changes nothing: in the paper it bends the trajectories that Heun's method follows. Euler's and Heun's
            method are those of x/alpha over sigma/alpha; DDIM is the same as Euler's. The cosine's uniform time begins at
            sigma/alpha = 22,026 and its first step of 18 ends at 11: over such a step Heun's trapezoid is useless.""",
            axes=dict(
                schedule=dict(path="schedule.of", values=("edm", "vp_linear", "vp_cosine", "ve")),
                scaling=dict(path="schedule.scaling", values=("VE", "VP")),
                grid=dict(path="stages.exact.samplers.oracle.grid", values=("karras", "uniform_time")),
                solver=dict(path="stages.exact.samplers.oracle", values=list(SOLVERS.values()), labels=list(SOLVERS)),
            ),
            columns={
                "error of the map": dict(path=("exact", "metrics", "oracle", "flow_map_rmse")),
                "distance": dict(path=("exact", "metrics", "oracle", "wasserstein")),
            },
        )
    )
    return config
