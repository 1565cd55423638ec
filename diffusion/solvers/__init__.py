"""Samplers as tables: every builder takes (schedule, grid, ...) and returns a `Table`."""

from diffusion.solvers.ddim import ddim
from diffusion.solvers.dpm import dpmpp
from diffusion.solvers.table import Correct, Predict, Remember, Row, Table, assemble, describe, load, save

__all__ = ["Correct", "Predict", "Remember", "Row", "Table", "assemble", "ddim", "describe", "dpmpp", "load", "save"]
