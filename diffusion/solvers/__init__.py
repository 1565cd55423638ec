"""Samplers as tables: every builder takes (schedule, grid, ...) and returns a `Table`."""

from diffusion.solvers.adams import adams, deis, ipndm, pndm
from diffusion.solvers.ancestral import ddpm
from diffusion.solvers.best import best, warped_adams
from diffusion.solvers.ddim import ddim
from diffusion.solvers.dpm import dpm_solver, dpmpp
from diffusion.solvers.edm import euler, heun
from diffusion.solvers.exponential import exponential_adams, unipc
from diffusion.solvers.few_step import consistency, flow_map, overshoot
from diffusion.solvers.restart import Interval, restart
from diffusion.solvers.sde import er_sde, er_sde_noise, sa_solver
from diffusion.solvers.table import Correct, Predict, Remember, Row, Table, assemble, describe, load, save
from diffusion.solvers.v3 import Statistics, dpm_solver_v3, ems_statistics

__all__ = [
    "Correct", "Interval", "Predict", "Remember", "Row", "Statistics", "Table", "adams", "assemble", "best",
    "consistency", "ddim", "ddpm", "deis", "describe", "dpm_solver", "dpm_solver_v3", "dpmpp",
    "ems_statistics", "er_sde", "er_sde_noise", "euler", "exponential_adams", "flow_map", "heun", "ipndm",
    "load", "overshoot", "pndm", "restart", "sa_solver", "save", "unipc", "warped_adams",
]  # fmt: skip
