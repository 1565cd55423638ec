"""What a student learns: methods as data. `METHODS` is the one registry, read by configs."""

from distill import denoising, progressive
from distill.inputs import Network
from distill.method import Method, optimiser

METHODS = {"denoising": denoising.method, "progressive": progressive.method}
"""name -> constructor(network, *, optimiser, ...) -> Method"""

__all__ = ["METHODS", "Method", "Network", "optimiser"]
