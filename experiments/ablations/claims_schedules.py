"""Claims on noise schedules: what of them matters, where they end, where steps are placed."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion import grids, oracles, sampling, schedules, solvers
from experiments.ablations import page
from experiments.ablations.claims import Claim, Found, Statement
from experiments.ablations.convergence import median, rmse
from experiments.ablations.numbers import Number, bootstrap, exact

VP = schedules.vp_linear()
A1D = oracles.a1d()


# Only the SNR matters -------------------------------------------------------------------------------------------


def lost(levels: np.ndarray) -> np.ndarray:
    """E|x0 - D(x)|^2 of the exact denoiser of a1d at every log-SNR: E x0^2 - E D^2, by a sum over x."""
    alpha, sigma = (np.asarray(part(levels))[:, None] for part in (VP.alpha, VP.sigma))
    spread = np.hypot(alpha, sigma)
    x = np.linspace(-1, 1, 1001) * (2 * alpha + 9 * spread)
    modes = (w * np.exp(-0.5 * ((x - alpha * m) / spread) ** 2) for w, m in ((0.4, -2.0), (0.6, 2.0)))
    law = sum(modes) / (spread * np.sqrt(2 * np.pi))
    each = np.repeat(levels, x.shape[1])
    mean = np.asarray(A1D.denoiser(VP)(jnp.asarray(x.reshape(-1, 1)), jnp.asarray(each))).reshape(x.shape)
    return 5.0 - np.trapezoid(law * mean**2, x, axis=1)


def objective(clock: Callable, weight: Callable[[np.ndarray], np.ndarray], points: int = 401) -> float:
    """The integral over t of weight(log-SNR) E|x0 - D|^2, the weight as it acts on the error of x0."""
    t = np.linspace(1e-4, 1, points)
    levels = clock(t)
    return float(np.trapezoid(weight(levels) * lost(levels), t))


ENDS = 8.0
STRAIGHT = (lambda t: ENDS * (1 - 2 * t)), (lambda t: np.full_like(t, 2 * ENDS))
CUBIC = (lambda t: ENDS * (1 - 2 * t) ** 3), (lambda t: 6 * ENDS * (1 - 2 * t) ** 2)
"""Two clocks of the same ends: the log-SNR, and how fast it falls."""


def only_the_snr() -> Found:
    rescaled = {
        name: dataclasses.replace(VP, scaling=scaling)
        for name, scaling in (("VE", schedules.VE()), ("flow", schedules.Flow()))
    }
    grid = grids.uniform_time(VP, 20)
    x = np.random.default_rng(0).standard_normal((256, 1))
    apart = []
    first = np.asarray(sampling.sample(A1D.denoiser(VP), solvers.dpmpp(VP, grid), jnp.asarray(x)))
    for other in rescaled.values():
        begin = schedules.rescale(x, grid[0], VP, other)
        end = sampling.sample(A1D.denoiser(other), solvers.dpmpp(other, grid), jnp.asarray(begin))
        apart.append(np.abs(schedules.rescale(np.asarray(end), grid[-1], other, VP) - first).max())

    def bound(clock):
        # The variational bound: half of the fall of the SNR over time, which is SNR times the log-SNR's fall.
        level, fall = clock
        t = np.linspace(0, 1, 801)
        return float(np.trapezoid(0.5 * np.exp(level(t)) * fall(t) * lost(level(t)), t))

    def eps(clock):
        return objective(clock[0], np.exp)

    def v(schedule):
        # An error of 1 in x0 is one of (alpha^2 + sigma^2) / sigma in v = alpha eps - sigma x0, for x in its own scale.
        weight = lambda l: ((schedule.alpha(l) ** 2 + schedule.sigma(l) ** 2) / schedule.sigma(l)) ** 2  # noqa: E731
        return objective(VP.logsnr, lambda l: np.asarray(weight(l)))

    gaps = {
        "bound": abs(bound(CUBIC) / bound(STRAIGHT) - 1),
        "eps": abs(eps(CUBIC) / eps(STRAIGHT) - 1),
        "v": abs(v(rescaled["flow"]) / v(VP) - 1),
    }
    figure, (left, right) = page.axes(2, 10.0, 3.6)
    levels = np.linspace(-ENDS, ENDS, 161)
    for i, (name, schedule) in enumerate({"VP": VP, "flow, the same log-SNR": rescaled["flow"]}.items()):
        weight = ((schedule.alpha(levels) ** 2 + schedule.sigma(levels) ** 2) / schedule.sigma(levels)) ** 2
        left.plot(levels, weight * lost(levels), **{**page.style(i), "marker": ""}, label=name)
    left.set(xlabel="log-SNR", ylabel="plain loss of v, exact denoiser")
    left.legend(frameon=False)
    t = np.linspace(0, 1, 201)
    for i, (name, clock) in enumerate({"straight": STRAIGHT, "cubic": CUBIC}.items()):
        right.plot(
            t,
            np.exp(clock[0](t)) * lost(clock[0](t)),
            **{**page.style(i), "marker": ""},
            label=f"{name} log-SNR, plain loss of eps",
        )
    right.set(xlabel="time", ylabel="loss")
    right.legend(frameon=False)
    return Found(
        [
            Statement(
                "samples in the VE and the flow scaling are those of VP, rescaled (largest difference)",
                exact(max(apart)),
                1e-9,
            ),
            Statement(
                "the variational bound is the same for another log-SNR between the same ends (relative)",
                exact(gaps["bound"]),
                1e-3,
            ),
            Statement(
                "the plain loss of v is the same in another scaling of the same log-SNR (relative)",
                exact(gaps["v"]),
                1e-3,
            ),
            Statement(
                "the plain loss of eps is the same for another log-SNR between the same ends (relative)",
                exact(gaps["eps"]),
                1e-3,
            ),
        ],
        figure,
    )


# Where schedules end --------------------------------------------------------------------------------------------


def ends() -> Found:
    chain = schedules.vp_discrete(schedules.ddpm_betas())
    known = {"VP (DDPM)": chain, "VE (NCSN++)": schedules.ve(), "EDM": schedules.edm()}
    t = np.linspace(0, 1, 401)
    curves, bends = {}, {}
    for name, schedule in known.items():
        begin, end = float(schedule.time(schedule.logsnr_end)), float(schedule.time(schedule.logsnr_start))
        curves[name] = np.asarray(schedule.logsnr(begin + t * (end - begin)))
        first, last = curves[name][0], curves[name][-1]
        bends[name] = np.max(np.abs(curves[name] - (first + t * (last - first)))) / (first - last)
    figure, (axes,) = page.axes(1, 6.6, 3.8)
    for i, (name, curve) in enumerate(curves.items()):
        axes.plot(t, curve, **{**page.style(i), "marker": ""}, label=name)
    axes.set(xlabel="time, from clean to noise", ylabel="log-SNR")
    axes.legend(frameon=False)
    span = [curve[0] for curve in curves.values()]
    return Found(
        [
            Statement("the SNR of DDPM at its first step, over 10^4", exact(np.exp(chain.logsnr_end) / 1e4), 1.1, 0.9),
            Statement("the SNR of DDPM at its last step, over .006", exact(np.exp(chain.logsnr_start) / 0.006), 2, 0.5),
            Statement(
                "the log-SNR of VE bends like the drawn curve (farthest from a straight line, over its range)",
                exact(bends["VE (NCSN++)"]),
                least=0.05,
            ),
            Statement("the log-SNR of VP bends so", exact(bends["VP (DDPM)"]), least=0.05),
            Statement(
                "all three are drawn to begin together (largest difference of log-SNR at the clean end)",
                exact(max(span) - min(span)),
                1.0,
            ),
        ],
        figure,
    )


def sub_vp() -> Found:
    schedule, t = schedules.sub_vp(), np.linspace(0, 1, 2001)
    found = {}
    for name, one in (("sub-VP", schedule), ("VP", VP)):
        levels = one.logsnr(t[1:])
        found[name] = np.asarray(one.alpha(levels) ** 2 + one.sigma(levels) ** 2)
    ends_ = {name: 1 - float(one.sigma(one.logsnr_start)) ** 2 for name, one in (("sub-VP", schedule), ("VP", VP))}
    figure, (axes,) = page.axes(1, 6.6, 3.4)
    for i, (name, curve) in enumerate(found.items()):
        axes.plot(t[1:], curve, **{**page.style(i), "marker": ""}, label=name)
    axes.set(xlabel="time", ylabel="alpha² + sigma²", ylim=(0, 1.05))
    axes.legend(frameon=False)
    return Found(
        [
            Statement(
                "the variance falls below 1 only slightly (its least value)", exact(found["sub-VP"].min()), least=0.95
            ),
            Statement(
                "sigma at the noisy end is nearer to 1 than in VP (1 - sigma², over VP's)",
                exact(ends_["sub-VP"] / ends_["VP"]),
                0.9,
            ),
        ],
        figure,
    )


# Karras' grid ---------------------------------------------------------------------------------------------------

RHOS = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0, 100.0)
EDM = schedules.edm()


def shares(rho: float, steps: int = 3000) -> np.ndarray:
    """The shares of steps in the lowest, middle and highest third of log sigma."""
    logs = -grids.karras(EDM, steps, rho=rho) / 2
    low, high = logs.min(), logs.max()
    return np.histogram(logs, np.linspace(low, high, 4))[0] / (steps + 1)


def rho_places() -> Found:
    figure, (axes,) = page.axes(1, 6.6, 3.6)
    places = {rho: shares(rho) for rho in (1.0, 3.0, 7.0, 20.0, 1000.0)}
    for i, (rho, share) in enumerate(places.items()):
        axes.bar(np.arange(3) + 0.16 * (i - 2), share, 0.15, color=page.style(i)["color"], label=f"rho = {rho:g}")
    axes.axhline(1 / 3, color="0.4", linewidth=1, linestyle=":")
    axes.set(ylabel="share of the steps")
    axes.set_xticks(range(3), ["low noise", "middle", "high noise"])
    axes.legend(frameon=False, fontsize=8)
    low, middle, high = places[7.0]
    return Found(
        [
            Statement(
                "with rho = 7 the middle third of log sigma has more steps than the low one (ratio)",
                exact(middle / low),
                least=1.0,
            ),
            Statement("it has more than the high one (ratio)", exact(middle / high), least=1.0),
            Statement("it has more than its even share of a third", exact(middle), least=1 / 3),
        ],
        figure,
    )


START, LAST = -2 * np.log(80.0), -2 * np.log(0.01)
LAWS: dict[str, tuple[Any, Callable[[np.ndarray], float]]] = {"a1d": (A1D, rmse), "b2d": (oracles.b2d(), median)}
BUILDERS = {"Heun": (solvers.heun, 18), "DDIM": (solvers.ddim, 36), "DPM-Solver++(2M)": (solvers.dpmpp, 18)}
NEAR = 1.25
"""How many times the error of the best rho counts as near-optimal."""


def rho_best(noises: int = 256, rhos: Sequence[float] = RHOS) -> Found:
    statements, figure, row = [], *page.axes(len(LAWS), 11.0, 3.8)
    for axes, (law, (oracle, summary)) in zip(row, LAWS.items(), strict=True):
        denoise = oracle.denoiser(EDM)
        x = 80.0 * np.random.default_rng(0).standard_normal((noises, *oracle.mean().shape))
        truth = oracles.probability_flow(denoise, x, EDM, START, LAST)
        for i, (name, (build, steps)) in enumerate(BUILDERS.items()):
            errors = {
                rho: np.asarray(
                    sampling.sample(denoise, build(EDM, grids.karras(EDM, steps, START, LAST, rho=rho)), jnp.asarray(x))
                )
                - truth
                for rho in rhos
            }
            sizes = {rho: summary(error) for rho, error in errors.items()}
            best = min(sizes, key=sizes.__getitem__)
            over = relative(summary, errors[7.0], errors[best])
            statements.append(
                Statement(f"{law}, {name}: the error at rho = 7, over that at the best rho, {best:g}", over, NEAR)
            )
            axes.plot(rhos, list(sizes.values()), **page.style(i), label=f"{name}, {steps} steps")
        axes.axvline(7, color="0.5", linestyle=":", linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel="rho", title=law)
        page.mark(axes, rhos)
    row[0].set_ylabel("error")
    row[0].legend(frameon=False, fontsize=8)
    spread = {rho: evenness(rho) for rho in (1.0, 2.0, 3.0, 5.0, 7.0, 10.0)}
    flattest = min(spread, key=spread.__getitem__)
    said = (
        f"rho = 7 makes Heun's steps on a1d equally hard (spread of the log of their errors, over rho = {flattest:g}'s)"
    )
    statements.append(Statement(said, exact(spread[7.0] / spread[flattest]), NEAR))
    return Found(statements, figure)


def relative(summary: Callable[[np.ndarray], float], first: np.ndarray, second: np.ndarray) -> Number:
    """summary(first) over summary(second), of errors from the same noises."""
    return bootstrap(lambda a, b: summary(a) / summary(b), first, second)


def evenness(rho: float, steps: int = 18, noises: int = 64) -> float:
    """The spread of the log of the local errors of Heun's steps along exact trajectories of a1d, but for the last steps,
    whose size is that of rounding."""
    denoise, grid = A1D.denoiser(EDM), grids.karras(EDM, steps, START, LAST, rho=rho)
    x = 80.0 * np.random.default_rng(0).standard_normal((noises, 1))
    local = []
    for here, there in zip(grid[:-1], grid[1:], strict=True):
        after = oracles.probability_flow(denoise, x, EDM, here, there)
        step = sampling.sample(denoise, solvers.heun(EDM, [here, there]), jnp.asarray(x))
        local.append(rmse(np.asarray(step) - after))
        x = after
    kept = np.log(np.array([error for error in local if error > 1e-9]))
    return float(kept.std())


CLAIMS = (
    Claim(
        "snr",
        "Of a noise schedule only the SNR matters, to training and to sampling",
        """a1d with its exact denoiser; 20 steps of DPM-Solver++(2M) with the log-SNR of VP linear in three scalings;
        objectives by integration, for two clocks with ends 8 and -8.""",
        only_the_snr,
    ),
    Claim(
        "ends",
        "DDPM's SNR falls from 10^4 to .006, and VP, VE and EDM run on alike from clean to noise",
        "The chain of DDPM's 1000 betas, NCSN++'s VE (sigma .01 to 50) and EDM's grid (.002 to 80), as they are.",
        ends,
    ),
    Claim(
        "sub_vp",
        "Sub-VP lowers the variance slightly, and does away with the mismatch at the noisy end",
        "Sub-VP and VP with beta from .1 to 20.",
        sub_vp,
    ),
    Claim(
        "rho_places",
        "Karras' grid with rho = 7 places more steps at medium noise and fewer at both extremes",
        "3000 steps from sigma = 80 to .002, counted in thirds of log sigma.",
        rho_places,
    ),
    Claim(
        "rho_best",
        "Equal steps of sigma^(1/7) are near-optimal, and make all steps equally hard",
        f"""Exact denoisers, sigma from 80 to .01, 256 noises, against the exact flow: the RMSE on a1d, the median error
        on b2d. Near-optimal is at most {NEAR} times the error of the best of eight values of rho; the intervals are over
        noises.""",
        rho_best,
    ),
)
