"""What the solver tests share: a table run by hand in NumPy, and the problem on which it runs."""

import jax
import numpy as np

from diffusion import grids, oracles, schedules

START, END = -2 * np.log(157.4), -2 * np.log(0.01)


def by_hand(table, denoise, x, noises=None):
    """Every evaluated point and the sample of a table, as a plain loop over its rows (noises: one per row and one more)."""
    table = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), table)
    noises = [np.zeros_like(x)] * (table.nfe + 1) if noises is None else noises
    anchor, history, points = x, [np.zeros_like(x)] * table.slots, []

    def wide(weight):
        return weight.reshape(weight.shape + (1,) * (x.ndim - weight.ndim))

    def mix(weights, **others):
        total = wide(weights.bias)
        for name, value in others.items():
            total = total + wide(getattr(weights, name)) * value
        return total + sum(wide(w) * h for w, h in zip(weights.history, history, strict=True))

    for i in range(table.nfe):
        predict, remember, correct = (
            type(part)(*(leaf[i] for leaf in part)) for part in (table.predict, table.remember, table.correct)
        )
        point = mix(predict, anchor=anchor, noise=noises[i])
        jump = () if table.target is None else (table.target[i],)
        denoised = np.asarray(denoise(point, table.logsnr[i], *jump))
        history = [wide(remember.point) * point + wide(remember.denoised) * denoised, *history[:-1]]
        anchor = mix(correct, anchor=anchor, point=point)
        points.append(point)
    return points, mix(table.final, anchor=anchor, noise=noises[-1])


def problem(schedule, start, samples=6, seed=0):
    """The denoiser of a1d under a schedule, and noise at the level `start`."""
    sigma = float(schedule.sigma(start))
    z = np.random.default_rng(seed).standard_normal((samples, 1))
    return oracles.a1d().denoiser(schedule), z * (sigma if np.isfinite(sigma) else 1.0)


def uneven(schedule, steps=6, start=START, end=END):
    """A grid whose steps differ in every coordinate."""
    return grids.karras(schedule, steps, start, end, rho=3.0)


VP = schedules.vp_linear()
EDM = schedules.edm()
FLOW = schedules.flow()
