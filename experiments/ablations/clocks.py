"""The log-SNR over time of every schedule, and where the schedules end."""

import pathlib

import numpy as np

from diffusion import schedules
from experiments.ablations import page

SCHEDULES = {
    "vp_linear": schedules.vp_linear(),
    "vp_discrete, DDPM betas": schedules.vp_discrete(schedules.ddpm_betas()),
    "vp_discrete, scaled-linear betas": schedules.vp_discrete(schedules.scaled_linear_betas()),
    "vp_cosine": schedules.vp_cosine(),
    "sub_vp": schedules.sub_vp(),
    "ve": schedules.ve(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "flow, shift 3": schedules.flow(3.0),
    "sigmoid": schedules.sigmoid(),
    "laplace": schedules.laplace(),
}


def ends(schedule: schedules.Schedule) -> tuple[str, float, float, float, float, float]:
    """Scaling; log-SNR at the noisy end, at t = 1/2 and at the clean end; sigma/alpha at the two ends."""
    start, end = schedule.logsnr_start, schedule.logsnr_end
    middle = float(schedule.logsnr(0.5))
    return type(schedule.scaling).__name__, start, middle, end, float(np.exp(-start / 2)), float(np.exp(-end / 2))


def draw(folder: pathlib.Path) -> str:
    figure, (axes,) = page.axes(1, 8.0, 4.4)
    for i, (name, schedule) in enumerate(SCHEDULES.items()):
        times = np.linspace(float(schedule.time(schedule.logsnr_end)), float(schedule.time(schedule.logsnr_start)), 801)
        axes.plot(times, schedule.logsnr(times), **{**page.style(i), "marker": ""}, label=name)
    axes.set(xlabel="time t, from clean to noise", ylabel="log-SNR", xlim=(0, 1), ylim=(-21, 21))
    page.legend_beside(figure, [axes])
    return page.save(figure, folder, "samplers_schedules.png", "log-SNR over time of every schedule")


def section(folder: pathlib.Path) -> str:
    header = ["schedule", "scaling", "log-SNR, noise", "log-SNR at t = 1/2", "log-SNR, data", "s, noise", "s, data"]
    rows = [[name, *(f"{v:.4g}" if isinstance(v, float) else v for v in ends(s))] for name, s in SCHEDULES.items()]
    return f"""## Schedules

This shows what sets schedules apart: the log-SNR over time, and where it ends. The scaling changes nothing but the scale of x.
s is sigma/alpha.

{page.table(header, rows)}

Discrete chains are joined between their 1000 levels; that of DDPM lies on vp_linear, its continuous limit.
VE is a straight line, as its sigma is geometric in time; the flow with shift 3 is the flow without, 2 log 3 lower.

{draw(folder)}
"""
