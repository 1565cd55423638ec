"""Every correction of the reference post in numbers: docs/errata.md must show exactly what is computed here.

Each item of the page has a function that returns its figures. What is right comes from the project's own
schedules, grids, tables and oracles; what is wrong is the post's formula, written down as it stands there.
"""

import dataclasses
import functools
import math
import pathlib
import re

import jax
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import ndtr, ndtri

from diffusion import grids, levels, oracles, predictions, schedules, solvers
from diffusion.clocks import namespace

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "errata.md"
ITEMS = {}
TEXT_ONLY = {19}

VP = schedules.vp_linear()
CHAIN = schedules.vp_discrete(schedules.ddpm_betas())
EDM = schedules.edm()
A1D = oracles.a1d()
A1D_STD = math.sqrt(A1D.covariance()[0, 0])
# The interval of items 10 to 14, sigma/alpha from 157.4 to .01.
START, END = -2 * math.log(157.4), -2 * math.log(0.01)

# The mean over all starting noises: the trapezoidal rule, exact to rounding for what is smooth.
NOISE = np.linspace(-6.0, 6.0, 121)[:, None]
WEIGHT = np.exp(-(NOISE**2) / 2) / np.exp(-(NOISE**2) / 2).sum()


def item(number):
    def register(function):
        ITEMS[number] = function
        return function

    return register


def rms(x):
    return math.sqrt((WEIGHT * x**2).sum())


def denoise(x, logsnr):
    """The denoiser of a1d in VP, short for the long loops below; a test holds it against the oracle."""
    alpha2 = 1 / (1 + np.exp(-logsnr))
    signal = np.sqrt(alpha2) * x
    return signal + 2 * (1 - alpha2) * np.tanh(2 * signal + math.log(1.5) / 2)


def eps(x, logsnr):
    return (x - VP.alpha(logsnr) * denoise(x, logsnr)) / VP.sigma(logsnr)


@functools.cache
def truth():
    """Where the probability flow takes NOISE, from START to END."""
    return oracles.probability_flow(A1D.denoiser(VP), NOISE, VP, START, END)


def steps_of(table):
    """Weights (x, denoised, noise) of each step of a first-order table."""
    inner, last = table.predict, table.final
    return (
        np.append(inner.anchor[1:], last.anchor),
        np.append(inner.history[1:, 0], last.history[0]),
        np.append(inner.noise[1:], last.noise),
    )


def run(table, x, denoiser):
    """A deterministic multistep table (anchor = point, history = denoised), on the host."""
    history = []
    for i in range(table.nfe):
        x = table.predict.anchor[i] * x + mix(table.predict.history[i], history)
        history = [denoiser(x, table.logsnr[i]), *history]
    return table.final.anchor * x + mix(table.final.history, history)


def mix(weights, history):
    return sum(weight * entry for weight, entry in zip(weights, history, strict=False))


def wasserstein(samples):
    """The 2-Wasserstein distance of samples on the line to a1d."""
    x = np.linspace(-9, 9, 18001)
    cumulative = 0.4 * ndtr(x + 2) + 0.6 * ndtr(x - 2)
    quantiles = np.interp((np.arange(len(samples)) + 0.5) / len(samples), cumulative, x)
    return math.sqrt(np.mean((np.sort(samples) - quantiles) ** 2))


# Schedules --------------------------------------------------------------------------------------------------


@item(1)
def snr_of_ddpm():
    last = float(CHAIN.logsnr(1.0))
    return {
        "SNR at t = 1000": math.exp(last),
        "log-SNR at t = 1000": last,
        "alpha at t = 1000": float(CHAIN.alpha(last)),
        "t at which the SNR is .006": 1000 * float(CHAIN.time(math.log(0.006))),
        "SNR at t = 1": math.exp(CHAIN.logsnr(1 / 1000)),
    }


@dataclasses.dataclass(frozen=True)
class Cubic:
    """logsnr = u + 9 u^3, u = 1 - 2t: the ends of a straight line from 10 to -10, another shape."""

    def logsnr(self, t):
        u = 1 - 2 * t
        return u + 9 * u**3

    def time(self, logsnr):
        xp = namespace(logsnr)
        root = 1 / math.sqrt(27)  # of u^3 + u / 9 = logsnr / 9, by Cardano
        return (1 - 2 * root * xp.sinh(xp.arcsinh(logsnr / 18 / root**3) / 3)) / 2


def mean_squared_error(logsnr):
    """E|x0 - E[x0 | x]|^2 of a1d at each level, by quadrature over x."""
    x = np.linspace(-10, 10, 801)[:, None, None]
    x = np.broadcast_to(x, (801, len(logsnr), 1)).reshape(-1, 1)
    level = np.tile(logsnr, 801)
    density = np.exp(A1D.log_density(VP)(x, level)).reshape(801, -1) * 20 / 800
    mean_square = float(A1D.covariance()[0, 0] + A1D.mean()[0] ** 2)
    return mean_square - (density * denoise(x[:, 0], level).reshape(801, -1) ** 2).sum(0)


@item(2)
def bound_and_schedule():
    nodes, weights = np.polynomial.legendre.leggauss(64)
    t, weights = (nodes + 1) / 2, weights / 2
    figures = {}
    losses = {}
    for name, clock in {"straight": schedules.Straight(-10.0, 10.0), "cubic": Cubic()}.items():
        schedule = schedules.Schedule(schedules.VP(), clock, -10.0, 10.0)
        logsnr = clock.logsnr(t)
        error = mean_squared_error(logsnr)
        bound = np.asarray(jax.jit(levels.vlb(levels.time_density(schedule)))(logsnr))
        figures[f"variational bound, {name} log-SNR"] = float(weights @ (bound * error))
        losses[f"unweighted loss of eps, {name} log-SNR"] = float(weights @ (levels.snr()(logsnr) * error))
    grid = grids.uniform_logsnr(VP, 10)
    x = run(solvers.ddim(VP, grid), NOISE, denoise)
    start = schedules.rescale(NOISE, grid[0], VP, EDM)
    other = run(solvers.ddim(EDM, grid), start, A1D.denoiser(EDM))
    same = schedules.rescale(other, grid[-1], EDM, VP)
    difference = float(abs(x - same).max())
    return {**figures, **losses, "same log-SNR, VP against VE: largest difference of samples": difference}


@item(3)
def ends():
    zero = schedules.vp_discrete(schedules.rescale_zero_terminal_snr(schedules.ddpm_betas()))
    cosine = schedules.vp_cosine()
    return {
        "DDPM at t = 1": float(CHAIN.logsnr(1 / 1000)),
        "DDPM at t = 1000": float(CHAIN.logsnr(1.0)),
        "cosine, clipped as usual, clean end": float(cosine.logsnr(0.0)),
        "cosine, clipped as usual, noise end": float(cosine.logsnr(1.0)),
        "DDPM betas with zero terminal SNR at t = 1000": float(zero.logsnr(1.0)),
    }


@item(4)
def straight_line():
    t = np.linspace(0.001, 1, 1001)
    bend = {name: abs(np.diff(s.logsnr(t), 2)).max() for name, s in {"VE": schedules.ve(), "VP": VP}.items()}
    return {
        "largest second difference of log-SNR over 1000 steps, VE geometric": float(bend["VE"]),
        "the same, VP linear": float(bend["VP"]),
        "log-SNR at the noise end, NCSN (sigma 1)": -2 * math.log(1.0),
        "log-SNR at the noise end, NCSN++ (sigma 50)": schedules.ve().logsnr_start,
        "log-SNR at the noise end, EDM (sigma 80)": EDM.logsnr_start,
    }


@item(5)
def sub_vp():
    sub = schedules.sub_vp()
    logsnr = np.linspace(-9, 9, 180001)
    alpha, sigma = sub.alpha(logsnr), sub.sigma(logsnr)
    lowest = int(np.argmin(alpha**2 + sigma**2))
    gap = {name: 1 - float(s.sigma(s.logsnr(1.0))) ** 2 for name, s in {"sub": sub, "vp": VP}.items()}
    return {
        "least alpha^2 + sigma^2": float((alpha**2 + sigma**2)[lowest]),
        "alpha^2 where it is least": float(alpha[lowest] ** 2),
        "1 - sigma_T^2, sub-VP": gap["sub"],
        "1 - sigma_T^2, VP": gap["vp"],
        "difference of alpha_T": float(abs(sub.alpha(sub.logsnr(1.0)) - VP.alpha(VP.logsnr(1.0)))),
    }


@item(6)
def edm_schedule():
    def post(t, low=0.002, high=80.0, rho=7):
        return (low ** (1 / rho) + t * (high ** (1 / rho) - low ** (1 / rho))) ** rho

    law = jax.jit(levels.edm_lognormal(draw="stratified"), static_argnums=1)
    trained = np.exp(-np.asarray(law(jax.random.key(0), (4096,))) / 2)
    grid = np.exp(-grids.karras(EDM, 18, end=math.inf) / 2)
    return {
        "the post's sigma at t = 0": post(0.0),
        "the post's sigma at t = 1/2": post(0.5),
        "median sigma in EDM's training": float(np.median(trained)),
        "share of EDM's training above the post's middle": float(np.mean(trained > post(0.5))),
        "first sigma of EDM's sampling grid of 18 steps": float(grid[0]),
        "its last but one": float(grid[-2]),
        "its last": float(grid[-1]),
    }


@item(7)
def density_of_steps():
    def share(low, high):
        return float(EDM.time(-2 * math.log(high)) - EDM.time(-2 * math.log(low)))

    thirds = np.geomspace(0.002, 80.0, 4)
    uniform = schedules.edm(rho=1.0)
    return {
        "share of steps, lowest third of log sigma": share(*thirds[:2]),
        "middle third": share(*thirds[1:3]),
        "highest third": share(*thirds[2:]),
        "share per nat of log sigma, .002 to .01": share(0.002, 0.01) / math.log(5),
        "share per nat of log sigma, 10 to 80": share(10.0, 80.0) / math.log(8),
        "share below sigma = .5": share(0.002, 0.5),
        "the same with steps uniform in sigma": float(uniform.time(-2 * math.log(0.5))),
    }


# DDIM -------------------------------------------------------------------------------------------------------


@item(8)
def variance_of_ddim():
    betas = schedules.ddpm_betas()
    abar = np.concatenate([[1.0], np.cumprod(1 - betas)])
    level = lambda t: CHAIN.logsnr(t / 1000)  # noqa: E731

    def ours(t, before):
        """Coefficient of x and variance of the step t -> before with eta = 1."""
        (x,), _, (noise,) = steps_of(solvers.ddim(CHAIN, np.array([level(t), level(before)]), eta=1.0))
        return x, noise**2

    posterior = math.sqrt(1 - betas[499]) * (1 - abar[499]) / (1 - abar[500])  # Ho et al. 2020, eq. 7
    return {
        "coefficient of x, t = 500 to 499, DDPM posterior": posterior,
        "difference of the table with eta = 1": ours(500, 499)[0] - posterior,
        "coefficient of x, the post": math.sqrt((1 - abar[499] - betas[499]) / (1 - abar[500])),
        "the post's radicand at t = 2": 1 - abar[1] - betas[1],
        "the post's radicand at t = 1": 1 - abar[0] - betas[0],
        **{
            f"variance over beta_t from t = 500, skipping {skip}": ours(500, 500 - skip)[1] / betas[499]
            for skip in (20, 50, 100)
        },
    }


@item(9)
def euler():
    here, there = VP.logsnr(0.5), VP.logsnr(0.45)
    x = NOISE
    ddim = run(solvers.ddim(VP, np.array([here, there])), x, denoise)
    s = [math.exp(-level / 2) for level in (here, there)]
    in_s = VP.alpha(there) * (x / VP.alpha(here) + (s[1] - s[0]) * eps(x, here))
    beta, score = 0.1 + 0.5 * 19.9, A1D.score(VP)(x, here)
    in_t = x - 0.05 * (-beta / 2) * (x + score)
    exact = oracles.probability_flow(A1D.denoiser(VP), x, VP, here, there)
    return {
        "DDIM against Euler in sigma/alpha, largest difference": float(abs(ddim - in_s).max()),
        "DDIM against Euler in t, RMS difference": rms(ddim - in_t),
        "error of DDIM": rms(ddim - exact),
        "error of Euler in t": rms(in_t - exact),
    }


# DPM-Solver -------------------------------------------------------------------------------------------------


@item(10)
def probability_flow_forms():
    """All in lambda = log(alpha/sigma), half the log-SNR, as the post has it."""
    forms = {
        "alpha x0hat - alpha^2 x": lambda a, s, x, d: a * d - a**2 * x,
        "the post's sigma/2 (x - x0hat)": lambda a, s, x, d: s / 2 * (x - d),
        "twice the post's": lambda a, s, x, d: s * (x - d),
        "minus the post's": lambda a, s, x, d: -s / 2 * (x - d),
    }

    def error(form):
        def velocity(half, flat):
            x = flat[:, None]
            alpha, sigma = float(VP.alpha(2 * half)), float(VP.sigma(2 * half))
            return form(alpha, sigma, x, denoise(x, 2 * half))[:, 0]

        options = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-11, "max_step": 0.5}
        return rms(solve_ivp(velocity, (START / 2, END / 2), NOISE[:, 0], **options).y[:, -1:] - truth())

    return {f"RMSE at the end, {name}": error(form) for name, form in forms.items()}


@item(11)
def prefix():
    """On Gaussian data the whole trajectory is known, so the integral is a quadrature."""
    data = oracles.gaussian([0.5], 0.25)
    flow, denoiser = data.flow_map(VP), data.denoiser(VP)
    here, there = -4.0, 2.0
    nodes, weights = np.polynomial.legendre.leggauss(40)
    integral = 0.0
    for node, weight in zip(nodes, weights, strict=True):
        half = (here + (there - here) * (node + 1) / 2) / 2
        x = flow(NOISE, here, 2 * half)
        noise = (x - VP.alpha(2 * half) * denoiser(x, 2 * half)) / VP.sigma(2 * half)
        integral = integral + weight * (there - here) / 4 * math.exp(-half) * noise
    linear, exact = VP.alpha(there) / VP.alpha(here) * NOISE, flow(NOISE, here, there)
    return {
        "RMSE with the factor alpha_t": rms(linear - VP.alpha(there) * integral - exact),
        "RMSE with the post's sigma_t": rms(linear - VP.sigma(there) * integral - exact),
    }


SECOND_ORDER = {
    "the post's sigma_t (e^h - 1 - h) / 2h": lambda sigma, h: sigma / (2 * h) * (math.exp(h) - 1 - h),
    "the paper's sigma_t (e^h - 1)": lambda sigma, h: sigma * math.expm1(h),
    "2 sigma_t (e^h - 1 - h) / h": lambda sigma, h: 2 * sigma * (math.expm1(h) - h) / h,
}


def singlestep(correction, steps):
    """DPM-Solver-2 over steps uniform in log-SNR; the midpoint is itself a DPM-Solver-1 step."""
    grid = grids.uniform_logsnr(VP, steps, START, END)
    h = (grid[1] - grid[0]) / 2
    middle = grid[:-1] + h
    alpha, sigma, alpha_mid, sigma_mid = VP.alpha(grid), VP.sigma(grid), VP.alpha(middle), VP.sigma(middle)
    x = NOISE
    for i in range(steps):
        e = (x - alpha[i] * denoise(x, grid[i])) / sigma[i]
        mid = alpha_mid[i] / alpha[i] * x - sigma_mid[i] * math.expm1(h / 2) * e
        change = (mid - alpha_mid[i] * denoise(mid, middle[i])) / sigma_mid[i] - e
        first = alpha[i + 1] / alpha[i] * x - sigma[i + 1] * math.expm1(h) * e
        x = first - correction(sigma[i + 1], h) * change
    return rms(x - truth())


def first_order(steps):
    """DDIM, as Euler in s = sigma/alpha on y = x/alpha (item 9)."""
    grid = grids.uniform_logsnr(VP, steps, START, END)
    s, alpha = np.exp(-grid / 2), VP.alpha(grid)
    y = NOISE / alpha[0]
    for i in range(steps):
        y = y + (s[i + 1] - s[i]) / s[i] * (y - denoise(alpha[i] * y, grid[i]))
    return rms(alpha[-1] * y - truth())


@item(12)
def second_order():
    runs = {name: functools.partial(singlestep, correction) for name, correction in SECOND_ORDER.items()}
    runs["DDIM"] = first_order
    figures = {}
    for name, error in runs.items():
        fine = error(320)
        figures[f"RMSE at 320 steps, {name}"] = fine
        figures[f"order, {name}"] = math.log2(error(160) / fine)
    return figures


@item(13)
def two_lambdas():
    here, there = -2.4, -1.4
    (_,), (weight,), _ = steps_of(solvers.ddim(VP, np.array([here, there])))
    factor = lambda h: float(VP.sigma(there)) * math.expm1(h)  # noqa: E731
    of_eps = float(weight * VP.sigma(here) / VP.alpha(here))
    return {
        "sigma_t (e^h - 1), log-SNR -2.4 to -1.4, h of log(alpha/sigma)": factor(0.5),
        "the same, h of log(alpha^2/sigma^2)": factor(1.0),
        "difference of the table's weight of eps from the first": abs(of_eps - factor(0.5)),
    }


def steps_for(error, order, tolerance, guess):
    """The least number of steps with an error of at most `tolerance`."""
    n = guess
    for _ in range(4):
        n = max(2, round(n * (error(n) / tolerance) ** (1 / order)))
    while error(n) > tolerance:
        n += 1
    while error(n - 1) <= tolerance:
        n -= 1
    return n


@item(14)
def steps_saved():
    def multistep(steps):
        table = solvers.dpmpp(VP, grids.uniform_logsnr(VP, steps, START, END))
        return rms(run(table, NOISE, denoise) - truth())

    midpoint = functools.partial(singlestep, SECOND_ORDER["the paper's sigma_t (e^h - 1)"])
    kinds = {
        "DDIM": (first_order, 1, 1),
        "DPM-Solver++(2M)": (multistep, 2, 1),
        "DPM-Solver-2": (midpoint, 2, 2),
    }
    figures = {}
    for name, (solve, order, calls) in kinds.items():
        error, guess = functools.cache(solve), 40
        for tolerance in (0.1, 0.01, 0.001):
            guess = steps_for(error, order, tolerance, guess)
            figures[f"calls for RMSE {tolerance:g}, {name}"] = calls * guess
            guess = round(guess * 10 ** (1 / order))
    return figures


# Stochastic and deterministic -------------------------------------------------------------------------------

STD = 0.5


def gain(logsnr):
    """D(x) = gain x is the exact denoiser of N(0, STD^2) in VP."""
    return VP.alpha(logsnr) * STD**2 / (VP.alpha(logsnr) ** 2 * STD**2 + VP.sigma(logsnr) ** 2)


def law(schedule, grid, eta, deviation=None):
    """(standard deviation, factor of the start) of DDIM(eta) on N(0, STD^2) data, in closed form."""
    x, denoised, noise = steps_of(solvers.ddim(schedule, grid, eta=eta))
    factors = x + denoised * gain(grid[:-1])
    alpha, sigma = schedule.alpha(grid[0]), schedule.sigma(grid[0])
    variance = alpha**2 * STD**2 + sigma**2 if deviation is None else deviation**2
    for factor, added in zip(factors, noise, strict=True):
        variance = factor**2 * variance + added**2
    return math.sqrt(variance), float(np.prod(factors))


@item(15)
def ddim_50_ddpm_1000():
    error = {}
    for steps, eta in ((50, 0.0), (1000, 0.0), (50, 1.0), (1000, 1.0)):
        grid = grids.trailing(CHAIN, steps)
        error[steps, eta] = abs(law(CHAIN, grid, eta)[0] / STD - 1)
    return {
        "relative error of the std, DDIM 50": error[50, 0.0],
        "relative error of the std, DDIM 1000": error[1000, 0.0],
        "relative error of the std, DDPM 50": error[50, 1.0],
        "relative error of the std, DDPM 1000": error[1000, 1.0],
    }


@item(16)
def what_noise_does():
    figures = {}
    for steps in (10, 20, 50):
        for eta in (0.0, 1.0):
            std, _ = law(VP, grids.uniform_logsnr(VP, steps, START, END), eta)
            exact = math.sqrt(VP.alpha(END) ** 2 * STD**2 + VP.sigma(END) ** 2)
            figures[f"relative error of the std, {steps} calls, eta = {eta:g}"] = abs(std / exact - 1)
    for eta in (0.0, 1.0):
        grid = grids.uniform_logsnr(VP, 200, 0.0, END)
        figures[f"what is left of an error of 1 made at log-SNR 0, eta = {eta:g}"] = law(VP, grid, eta)[1]
    return figures


# Distillation -----------------------------------------------------------------------------------------------


@item(17)
def distilling_eps():
    flow = schedules.flow()
    recovered = {}
    for name, schedule in {"VP": VP, "flow scaling": flow}.items():
        alpha, sigma = float(schedule.alpha(0.0)), float(schedule.sigma(0.0))
        x0, noise = 1.0, -0.4
        x, v = alpha * x0 + sigma * noise, alpha * noise - sigma * x0
        recovered[name] = alpha * x - sigma * v
        exact = predictions.convert(np.array([v]), np.array([x]), 0.0, schedule, "v", "x0")[0]
        np.testing.assert_allclose(exact, x0, rtol=1e-12)
    with pytest.raises(ValueError, match="eps does not determine x0 at logsnr"):
        predictions.convert(np.ones(1), np.ones(1), -math.inf, VP, "eps", "x0")
    return {
        "error of x0 from an error of 1 in eps at log-SNR -20": math.exp(10.0),
        "weight of the error of x0 in the plain loss of eps there": float(levels.snr()(np.float64(-20.0))),
        "weight in the plain loss of v": float(levels.v()(np.float64(-20.0))),
        "alpha x - sigma v for x0 = 1 at log-SNR 0, VP": recovered["VP"],
        "the same in the flow scaling": recovered["flow scaling"],
        "rounds from 1024 steps to 1": math.log2(1024),
    }


@item(18)
def consistency_ends():
    denoiser = A1D.denoiser(EDM)
    ends = [EDM.logsnr_start, EDM.logsnr_end]
    wide, narrow = (oracles.probability_flow(denoiser, size * NOISE, EDM, *ends, rtol=1e-7) for size in (80.0, 1.0))
    spread = lambda x: rms(x - (WEIGHT * x).sum())  # noqa: E731
    return {
        "std of the data": A1D_STD,
        "std of one-step samples from N(0, 80^2)": spread(wide),
        "std of one-step samples from N(0, 1)": spread(narrow),
        "RMS difference of f = x_eps and the denoised estimate there": rms(wide - denoiser(wide, ends[1])),
    }


@item(20)
def proportional_time():
    return {"30 s at 50 steps, in seconds at 4 steps": 30 * 4 / 50}


# The demo, transcribed --------------------------------------------------------------------------------------


def target_score(x, t):
    variance = 1.0 + t
    p1 = 0.4 * np.exp(-0.5 * (x + 2.0) ** 2 / variance) / np.sqrt(2 * np.pi * variance)
    p2 = 0.6 * np.exp(-0.5 * (x - 2.0) ** 2 / variance) / np.sqrt(2 * np.pi * variance)
    return (p1 * (-(x + 2.0) / variance) + p2 * (-(x - 2.0) / variance)) / (p1 + p2 + 1e-30)


def right_score(x, t, alpha, sigma):
    """The post's function at the right point: x_t / alpha is data plus noise of variance (sigma/alpha)^2."""
    return target_score(x / alpha, (sigma / alpha) ** 2) / alpha


def vp_schedule(t):
    log_alpha2 = -(0.1 * t + 0.5 * 19.9 * t**2)
    return np.exp(0.5 * log_alpha2), np.sqrt(1 - np.exp(log_alpha2))


def demo(x, steps, update, score=None):
    """The loop of both demo samplers; `update` makes the step."""
    times = np.linspace(1.0, 0.001, steps + 1)
    for i in range(steps):
        (alpha, sigma), (alpha_to, sigma_to) = vp_schedule(times[i]), vp_schedule(times[i + 1])
        slope = target_score(x, sigma**2) if score is None else score(x, None, alpha, sigma)
        noise = -sigma * slope
        x = update(i == steps - 1, (x - sigma * noise) / alpha, noise, alpha, sigma, alpha_to, sigma_to)
    return x


def ddim_update(last, x0, noise, alpha, sigma, alpha_to, sigma_to):
    return alpha_to * x0 + sigma_to * noise


def quantile_noise(n=5000):
    return ndtri((np.arange(n) + 0.5) / n)


@item(21)
def demo_score():
    x = np.linspace(-6, 6, 241)
    worst, repaired = 0.0, 0.0
    for t in np.linspace(0.001, 1.0, 200):
        alpha, sigma = vp_schedule(t)
        exact = A1D.score(VP)(x[:, None], VP.logsnr(t))[:, 0]
        worst = max(worst, abs(target_score(x, sigma**2) - exact).max())
        repaired = max(repaired, abs(right_score(x, t, alpha, sigma) - exact).max())
    few, samples = (demo(quantile_noise(), steps, ddim_update) for steps in (10, 500))
    right = demo(quantile_noise(), 500, ddim_update, right_score)
    return {
        "the post's score at x = 1, t = 1": float(target_score(1.0, vp_schedule(1.0)[1] ** 2)),
        "the right score there": float(A1D.score(VP)(np.ones((1, 1)), VP.logsnr(1.0))[0, 0]),
        "largest error of the post's score on (-6, 6)": float(worst),
        "largest error after the repair": float(repaired),
        "std of the demo's DDIM samples, 10 steps": float(few.std()),
        "std of the demo's DDIM samples, 500 steps": float(samples.std()),
        "std of the data": A1D_STD,
        "W2 of the demo's DDIM to the data, 500 steps": wasserstein(samples),
        "share of its samples outside the plotted range": float(np.mean(abs(samples) > 6)),
        "W2 of the demo's DDIM with the right score, 500 steps": wasserstein(right),
    }


def ddpm_update(rng):
    """The post's mean and standard deviation, with its constants .5 and .1."""

    def update(last, x0, noise, alpha, sigma, alpha_to, sigma_to):
        mean = alpha_to * x0 + sigma_to * np.sqrt(1 - (sigma_to / sigma) ** 2 * 0.5) * noise
        with np.errstate(invalid="ignore"):
            std = np.sqrt(sigma_to**2 - sigma_to**2 * (alpha_to * sigma / (alpha * sigma_to)) ** 2 * 0.1)
        return mean if last else mean + std * rng.standard_normal(x0.shape)

    return update


def ancestral_update(rng):
    """The variance of the posterior, sigma_p^2/sigma_t^2 (1 - alpha_t^2/alpha_p^2), and the mean with it."""

    def update(last, x0, noise, alpha, sigma, alpha_to, sigma_to):
        variance = sigma_to**2 / sigma**2 * (1 - alpha**2 / alpha_to**2)
        mean = alpha_to * x0 + np.sqrt(sigma_to**2 - variance) * noise
        return mean + np.sqrt(variance) * rng.standard_normal(x0.shape)

    return update


@item(22)
def demo_ddpm():
    times = np.linspace(1.0, 0.001, 501)
    alpha, sigma = vp_schedule(times)
    ratio = sigma[1:] / sigma[:-1]
    total = 2 - 0.5 * ratio**2 - 0.1 * (alpha[1:] / alpha[:-1] / ratio) ** 2
    noise = quantile_noise(20000)
    make = lambda update, seed: update(np.random.default_rng(seed))  # noqa: E731
    broken = demo(noise, 5, make(ddpm_update, 0))
    wrong = {n: wasserstein(demo(noise, n, make(ddpm_update, 1), right_score)) for n in (100, 500)}
    right = wasserstein(demo(noise, 500, make(ancestral_update, 2), right_score))
    return {
        "least total variance over sigma_p^2, 500 steps": float(total.min()),
        "largest total variance over sigma_p^2, 500 steps": float(total[:-1].max()),
        "share of samples that are NaN at 5 steps": float(np.isnan(broken).mean()),
        "W2 with the right score and the post's update, 100 steps": wrong[100],
        "W2 with the right score and the post's update, 500 steps": wrong[500],
        "W2 with the right score and the right update, 500 steps": right,
    }


@item(23)
def start_of_the_demo():
    return {"alpha at t = 1, taken for 0 by a start from N(0, 1)": float(VP.alpha(VP.logsnr(1.0)))}


# The page ---------------------------------------------------------------------------------------------------


def documented():
    """{item: {figure: text}} of the tables on the page; items without a table have an empty one."""
    page = PAGE.read_text(encoding="utf-8")
    parts = re.split(r"^## (\d+)\. ", page, flags=re.M)[1:]
    rows = re.compile(r"^\| (.+?) \| ([^|]+?) \|$", flags=re.M)
    found = {}
    for number, text in zip(parts[::2], parts[1::2], strict=True):
        _, _, table = text.partition("| measured | value |\n|---|---|\n")
        found[int(number)] = dict(rows.findall(table))
    return found


def agrees(text, value):
    """Whether the printed number is the computed one, to the last printed digit."""
    if text == "NaN" or math.isnan(value):
        return text == "NaN" and math.isnan(value)
    if text.startswith("below "):
        return abs(value) < float(text.removeprefix("below "))
    if math.isinf(value) or "inf" in text:
        return float(text) == value
    mantissa, _, exponent = text.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(float(text) - value) <= 0.51 * unit


@pytest.mark.parametrize("number", sorted(ITEMS))
def test_the_page_shows_what_is_computed(number):
    shown, computed = documented()[number], ITEMS[number]()
    assert list(shown) == list(computed)
    wrong = {name: (shown[name], value) for name, value in computed.items() if not agrees(shown[name], value)}
    assert not wrong, f"docs/errata.md, item {number}: (shown, computed) = {wrong}"


def test_every_item_is_on_the_page():
    page = documented()
    assert sorted(page) == list(range(1, 24)) == sorted({*ITEMS, *TEXT_ONLY})
    assert [n for n, rows in page.items() if not rows] == sorted(TEXT_ONLY)


def test_short_denoiser():
    logsnr = np.linspace(-12, 12, 25)
    x = np.random.default_rng(0).normal(size=(25, 1)) * 2
    np.testing.assert_allclose(denoise(x, logsnr[:, None]), A1D.denoiser(VP)(x, logsnr), rtol=1e-11)


@pytest.mark.parametrize(
    "text, value, expected",
    [
        ("4.036e-05", 4.0359e-5, True),
        ("4.036e-05", 4.037e-5, False),
        ("445", 444, False),
        ("below 1e-12", 2e-13, True),
        ("below 1e-12", -2e-12, False),
        ("-inf", -math.inf, True),
        ("NaN", math.nan, True),
        ("1.0", math.nan, False),
    ],
)
def test_agreement_is_to_the_last_digit(text, value, expected):
    assert agrees(text, value) is expected
