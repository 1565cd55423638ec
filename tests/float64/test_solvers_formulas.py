"""Every table against a plain loop over its paper's formulas, point by point.

The loops keep the papers' notation: a, s = alpha, sigma; lam = log(alpha / sigma), half of this project's log-SNR; x0 and
eps the two predictions; y = x / alpha in sigma/alpha where a paper works in the frame of EDM.
"""

import numpy as np
import pytest
from scipy.integrate import quad
from solvers_tools import EDM, FLOW, VP, by_hand, problem, uneven

from diffusion import schedules, solvers


class Model:
    """x0, eps, alpha, sigma as functions of lam, and the points at which the model was called."""

    def __init__(self, schedule, denoise):
        self.schedule, self.denoise, self.points = schedule, denoise, []

    def a(self, lam):
        return float(self.schedule.alpha(2 * lam))

    def s(self, lam):
        return float(self.schedule.sigma(2 * lam))

    def x0(self, x, lam):
        self.points.append(x)
        return self.denoise(x, np.float64(2 * lam))

    def eps(self, x, lam):
        return (x - self.a(lam) * self.x0(x, lam)) / self.s(lam)

    def ddim(self, x, lam, to):
        """The step that all samplers take from alpha = 0 and to sigma = 0."""
        ratio = self.s(to) / self.s(lam)
        return ratio * x + (self.a(to) - ratio * self.a(lam)) * self.x0(x, lam)


def agree(builder, loop, schedule=VP, grid=None, tolerance=1e-10, seed=1):
    """The table's points and sample against the loop's, both on the same noises."""
    grid = uneven(schedule) if grid is None else grid
    denoise, x = problem(schedule, grid[0])
    table = builder(schedule, grid)
    noises = list(np.random.default_rng(seed).standard_normal((table.nfe + 1, *x.shape)))
    points, sample = by_hand(table, denoise, x, noises)
    model = Model(schedule, denoise)
    expected = loop(model, list(grid / 2), x, noises)
    assert len(model.points) == table.nfe
    for ours, theirs in zip([*points, sample], [*model.points, expected], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(1.0, np.abs(theirs).max()))


# First order and ancestral ----------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim(eta):
    def loop(m, lams, x, z):
        """Song et al. 2020, eq. 12 and 16, in abar."""
        for i, (lam, to) in enumerate(zip(lams[:-1], lams[1:], strict=True)):
            abar, prev = m.a(lam) ** 2, m.a(to) ** 2
            sigma = eta * np.sqrt((1 - prev) / (1 - abar)) * np.sqrt(1 - abar / prev)
            e = m.eps(x, lam)
            x0 = (x - np.sqrt(1 - abar) * e) / np.sqrt(abar)
            x = np.sqrt(prev) * x0 + np.sqrt(1 - prev - sigma**2) * e + sigma * z[i + 1]
        return x

    agree(lambda s, g: solvers.ddim(s, g, eta), loop)


@pytest.mark.parametrize("variance", ["lower", "upper"])
def test_ddpm(variance):
    def loop(m, lams, x, z):
        """Ho et al. 2020, eq. 7 and section 3.2, the betas those of the skipped steps."""
        for i, (lam, to) in enumerate(zip(lams[:-1], lams[1:], strict=True)):
            abar, prev = m.a(lam) ** 2, m.a(to) ** 2
            beta = 1 - abar / prev
            x0 = m.x0(x, lam)
            mean = np.sqrt(prev) * beta / (1 - abar) * x0 + np.sqrt(1 - beta) * (1 - prev) / (1 - abar) * x
            var = beta if variance == "upper" else (1 - prev) / (1 - abar) * beta
            x = mean + np.sqrt(var) * z[i + 1]
        return x

    agree(lambda s, g: solvers.ddpm(s, g, variance), loop)


@pytest.mark.parametrize("schedule", [VP, EDM, FLOW, schedules.sub_vp()])
def test_ddim_is_euler_in_sigma_over_alpha(schedule):
    def loop(m, lams, x, z):
        y = x / m.a(lams[0])
        for lam, to in zip(lams[:-1], lams[1:], strict=True):
            y = y + (np.exp(-to) - np.exp(-lam)) * m.eps(m.a(lam) * y, lam)
        return m.a(lams[-1]) * y

    agree(solvers.ddim, loop, schedule, tolerance=1e-12)
    agree(solvers.euler, loop, schedule, tolerance=1e-12)


# DPM-Solver and DPM-Solver++ --------------------------------------------------------------------------------


def dpm_solver_2(m, lams, x, z):
    """Lu et al. 2022a, algorithm 1."""
    for lam, to in zip(lams[:-1], lams[1:], strict=True):
        h, mid = to - lam, (lam + to) / 2
        e = m.eps(x, lam)
        u = m.a(mid) / m.a(lam) * x - m.s(mid) * (np.exp(h / 2) - 1) * e
        x = m.a(to) / m.a(lam) * x - m.s(to) * (np.exp(h) - 1) * m.eps(u, mid)
    return x


def dpm_solver_3(m, lams, x, z):
    """Lu et al. 2022a, algorithm 2."""
    r1, r2 = 1 / 3, 2 / 3
    for lam, to in zip(lams[:-1], lams[1:], strict=True):
        h = to - lam
        lam1, lam2 = lam + r1 * h, lam + r2 * h
        e = m.eps(x, lam)
        u1 = m.a(lam1) / m.a(lam) * x - m.s(lam1) * (np.exp(r1 * h) - 1) * e
        d1 = m.eps(u1, lam1) - e
        u2 = m.a(lam2) / m.a(lam) * x - m.s(lam2) * (np.exp(r2 * h) - 1) * e
        u2 = u2 - m.s(lam2) * r2 / r1 * ((np.exp(r2 * h) - 1) / (r2 * h) - 1) * d1
        d2 = m.eps(u2, lam2) - e
        x = m.a(to) / m.a(lam) * x - m.s(to) * (np.exp(h) - 1) * e
        x = x - m.s(to) / r2 * ((np.exp(h) - 1) / h - 1) * d2
    return x


def dpmpp_2s(m, lams, x, z):
    """Lu et al. 2022b, algorithm 1, with r = 1/2."""
    r = 0.5
    for lam, to in zip(lams[:-1], lams[1:], strict=True):
        h = to - lam
        mid = lam + r * h
        x0 = m.x0(x, lam)
        u = m.s(mid) / m.s(lam) * x - m.a(mid) * (np.exp(-r * h) - 1) * x0
        d = (1 - 1 / (2 * r)) * x0 + 1 / (2 * r) * m.x0(u, mid)
        x = m.s(to) / m.s(lam) * x - m.a(to) * (np.exp(-h) - 1) * d
    return x


def dpmpp_3s(m, lams, x, z):
    """The data-form twin of DPM-Solver-3."""
    r1, r2 = 1 / 3, 2 / 3
    for lam, to in zip(lams[:-1], lams[1:], strict=True):
        h = to - lam
        lam1, lam2 = lam + r1 * h, lam + r2 * h
        x0 = m.x0(x, lam)
        u1 = m.s(lam1) / m.s(lam) * x - m.a(lam1) * (np.exp(-r1 * h) - 1) * x0
        d1 = m.x0(u1, lam1) - x0
        u2 = m.s(lam2) / m.s(lam) * x - m.a(lam2) * (np.exp(-r2 * h) - 1) * x0
        u2 = u2 + m.a(lam2) * r2 / r1 * ((np.exp(-r2 * h) - 1) / (r2 * h) + 1) * d1
        d2 = m.x0(u2, lam2) - x0
        x = m.s(to) / m.s(lam) * x - m.a(to) * (np.exp(-h) - 1) * x0
        x = x + m.a(to) / r2 * ((np.exp(-h) - 1) / h + 1) * d2
    return x


def dpm_multistep(order, noise, second_difference=2.0, final=True):
    """2M and 3M by backward differences. second_difference: 2 for f'' h^2 (published code has 1, see test_order)."""

    def loop(m, lams, x, z):
        past, n = [], len(lams) - 1
        for i, (lam, to) in enumerate(zip(lams[:-1], lams[1:], strict=True)):
            past.insert(0, (m.eps if noise else m.x0)(x, lam))
            h = to - lam
            p = min(order, i + 1, n - i if final else order)
            grow = np.exp(h) - 1 if noise else np.exp(-h) - 1
            scale = m.s(to) if noise else m.a(to)
            x = (m.a(to) / m.a(lam) if noise else m.s(to) / m.s(lam)) * x - scale * grow * past[0]
            if p == 2:
                r0 = (lam - lams[i - 1]) / h
                x = x - 0.5 * scale * grow * (past[0] - past[1]) / r0
            if p == 3:
                r0, r1 = (lam - lams[i - 1]) / h, (lams[i - 1] - lams[i - 2]) / h
                d0, d1 = (past[0] - past[1]) / r0, (past[1] - past[2]) / r1
                first = d0 + r0 / (r0 + r1) * (d0 - d1)
                second = second_difference * (d0 - d1) / (r0 + r1)
                if noise:
                    x = x - scale * (grow / h - 1) * first - scale * ((grow - h) / h**2 - 0.5) * second
                else:
                    x = x + scale * (grow / h + 1) * first - scale * ((grow + h) / h**2 - 0.5) * second
        return x

    return loop


@pytest.mark.parametrize("schedule", [VP, EDM, FLOW])
@pytest.mark.parametrize(
    "builder, loop",
    [
        (lambda s, g: solvers.dpm_solver(s, g, 2), dpm_solver_2),
        (lambda s, g: solvers.dpm_solver(s, g, 3), dpm_solver_3),
        (lambda s, g: solvers.dpmpp(s, g, 2, singlestep=True), dpmpp_2s),
        (lambda s, g: solvers.dpmpp(s, g, 3, singlestep=True), dpmpp_3s),
        (lambda s, g: solvers.dpm_solver(s, g, 2, multistep=True), dpm_multistep(2, True)),
        (lambda s, g: solvers.dpm_solver(s, g, 3, multistep=True), dpm_multistep(3, True)),
        (lambda s, g: solvers.dpmpp(s, g, 2), dpm_multistep(2, False)),
        (lambda s, g: solvers.dpmpp(s, g, 3), dpm_multistep(3, False)),
        (lambda s, g: solvers.dpmpp(s, g, 3, lower_order_final=False), dpm_multistep(3, False, final=False)),
    ],
    ids=["2", "3", "++2S", "++3S", "2M", "3M", "++2M", "++3M", "++3M full"],
)
def test_dpm_solvers(builder, loop, schedule):
    agree(builder, loop, schedule)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_sde_dpmpp_multistep(order):
    def loop(m, lams, x, z):
        """Lu et al. 2022b, SDE-DPM-Solver++(2M); third order as k-diffusion's 3M SDE with the full second difference."""
        past, n = [], len(lams) - 1
        for i, (lam, to) in enumerate(zip(lams[:-1], lams[1:], strict=True)):
            past.insert(0, m.x0(x, lam))
            h = to - lam
            p = min(order, i + 1, n - i)
            x = m.s(to) / m.s(lam) * np.exp(-h) * x + m.a(to) * (1 - np.exp(-2 * h)) * past[0]
            if p == 2:
                r0 = (lam - lams[i - 1]) / h
                x = x + 0.5 * m.a(to) * (1 - np.exp(-2 * h)) * (past[0] - past[1]) / r0
            if p == 3:
                r0, r1 = (lam - lams[i - 1]) / h, (lams[i - 1] - lams[i - 2]) / h
                d0, d1 = (past[0] - past[1]) / r0, (past[1] - past[2]) / r1
                first, second = d0 + r0 / (r0 + r1) * (d0 - d1), 2 * (d0 - d1) / (r0 + r1)
                phi2 = (np.exp(-2 * h) - 1) / (2 * h) + 1
                x = x + m.a(to) * phi2 * first - m.a(to) * (phi2 / (2 * h) - 0.5) * second
            x = x + m.s(to) * np.sqrt(1 - np.exp(-2 * h)) * z[i + 1]
        return x

    agree(lambda s, g: solvers.dpmpp(s, g, order, sde=True), loop)
    agree(lambda s, g: solvers.dpmpp(s, g, order, sde=True), loop, EDM)


def test_sde_dpmpp_2s():
    def loop(m, lams, x, z):
        """k-diffusion's DPM++ SDE (r = 1/2, eta = 1, the end from D at the middle), the two noises one Brownian path."""
        noises = iter(z[1:])
        for lam, to in zip(lams[:-1], lams[1:], strict=True):
            h, mid = to - lam, (lam + to) / 2
            first = m.s(mid) * np.sqrt(1 - np.exp(-h)) * next(noises)
            u = m.s(mid) / m.s(lam) * np.exp(-h / 2) * x + m.a(mid) * (1 - np.exp(-h)) * m.x0(x, lam) + first
            x = m.s(to) / m.s(lam) * np.exp(-h) * x + m.a(to) * (1 - np.exp(-2 * h)) * m.x0(u, mid)
            x = x + m.s(to) / m.s(mid) * np.exp(-h / 2) * first + m.s(to) * np.sqrt(1 - np.exp(-h)) * next(noises)
        return x

    agree(lambda s, g: solvers.dpmpp(s, g, 2, singlestep=True, sde=True), loop)


# Exponential Adams and UniPC --------------------------------------------------------------------------------


def lagrange_integral(kernel, nodes, k, low, high):
    """int kernel(u) l_k(u) du by adaptive quadrature."""

    def basis(u):
        return np.prod([(u - v) / (nodes[k] - v) for j, v in enumerate(nodes) if j != k])

    return quad(lambda u: kernel(u) * basis(u), low, high, epsabs=1e-13, epsrel=1e-13, limit=200)[0]


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("corrector", [False, True])
def test_exponential_adams(order, noise, corrector):
    def step(m, x, lam, to, nodes, values):
        if noise:
            kernel, first = lambda u: -m.a(to) * np.exp(-u), m.a(to) / m.a(lam)
        else:
            kernel, first = lambda u: m.s(to) * np.exp(u), m.s(to) / m.s(lam)
        weights = [lagrange_integral(kernel, nodes, k, lam, to) for k in range(len(nodes))]
        return first * x + sum(w * v for w, v in zip(weights, values, strict=True))

    def loop(m, lams, x, z):
        """The exact solution with the interpolating polynomial under the integral (Lu et al. 2022a, eq. 3.4)."""
        past, n = [], len(lams) - 1
        point, orders = x, []
        for i, lam in enumerate(lams[:-1]):
            past.insert(0, (m.eps if noise else m.x0)(point, lam))
            if i and corrector:
                p = orders[-1]
                x = step(m, x, lams[i - 1], lam, lams[i - p : i + 1][::-1], past[: p + 1])
            else:
                x = point
            orders.append(min(order, i + 1, n - i))
            p = orders[-1]
            point = step(m, x, lam, lams[i + 1], lams[i - p + 1 : i + 1][::-1], past[:p])
        return point

    agree(lambda s, g: solvers.exponential_adams(s, g, order, noise_form=noise, corrector=corrector), loop)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc(order, noise, variant):
    def coefficients(h, rs, p, corrector):
        """a_p of the paper: R_p(h) a = phi_p(h) / B(h); 1/2 outright with a single difference."""
        hh = h if noise else -h
        b_h = hh if variant == "bh1" else np.expm1(hh)
        if len(rs) == 1:
            return b_h, np.array([0.5])
        phi, factorial, right = np.expm1(hh) / hh - 1, 1.0, []
        for k in range(1, len(rs) + 1):
            right.append(phi * factorial / b_h)
            factorial *= k + 1
            phi = phi / hh - 1 / factorial
        return b_h, np.linalg.solve(np.array([[r ** (k) for r in rs] for k in range(len(rs))]), np.array(right))

    def step(m, x, lams, i, past, p, new=None):
        """From lams[i] to lams[i + 1] with p values; `new` at the end for the corrector."""
        lam, to = lams[i], lams[i + 1]
        h = to - lam
        rs = [(lams[i - k] - lam) / h for k in range(1, p)] + ([1.0] if new is not None else [])
        d = [(past[k] - past[0]) / r for k, r in zip(range(1, p), rs, strict=False)]
        d += [new - past[0]] if new is not None else []
        out = m.a(to) / m.a(lam) * x if noise else m.s(to) / m.s(lam) * x
        scale = m.s(to) if noise else m.a(to)
        out = out - scale * np.expm1(h if noise else -h) * past[0]
        if rs:
            b_h, a = coefficients(h, rs, p, new is not None)
            out = out - scale * b_h * sum(c * v for c, v in zip(a, d, strict=True))
        return out

    def loop(m, lams, x, z):
        """Zhao et al. 2023, algorithms 1 and 2: the corrected point isn't evaluated, the last isn't corrected."""
        past, point, n, p = [], x, len(lams) - 1, 1
        for i, lam in enumerate(lams[:-1]):
            new = (m.eps if noise else m.x0)(point, lam)
            x = step(m, x, lams, i - 1, past, p, new) if i else x
            past.insert(0, new)
            p = min(order, i + 1, n - i)
            point = step(m, x, lams, i, past, p)
        return point

    agree(lambda s, g: solvers.unipc(s, g, order, noise_form=noise, variant=variant), loop)


# Adams ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("variant", ["t", "rho", "log"])
def test_deis(order, variant):
    def loop(m, lams, x, z):
        """Zhang & Chen 2022, eq. 15: C_j = alpha_t int l_j d(sigma/alpha), the Lagrange polynomials in the variable."""
        variable = {
            "t": lambda lam: float(m.schedule.time(2 * lam)), "rho": lambda lam: np.exp(-lam), "log": lambda lam: lam
        }[variant]  # fmt: skip
        past, n = [], len(lams) - 1
        for i, (lam, to) in enumerate(zip(lams[:-1], lams[1:], strict=True)):
            past.insert(0, m.eps(x, lam))
            p = min(order, i + 1, n - i)
            nodes = [variable(node) for node in lams[i - p + 1 : i + 1][::-1]]
            x = m.a(to) / m.a(lam) * x
            for k in range(p):

                def integrand(u, k=k, nodes=nodes):
                    basis = np.prod([(variable(u) - v) / (nodes[k] - v) for j, v in enumerate(nodes) if j != k])
                    return -np.exp(-u) * basis

                x = x + m.a(to) * quad(integrand, lam, to, epsabs=1e-13, epsrel=1e-13, limit=200)[0] * past[k]
        return x

    agree(lambda s, g: solvers.deis(s, g, order, variant=variant), loop)
    if variant == "rho":
        agree(lambda s, g: solvers.adams(s, g, order), loop, EDM)


AB = {1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm(order):
    def loop(m, lams, x, z):
        """Adams-Bashforth weights on eps whatever the steps are, moved by DDIM."""
        past, n = [], len(lams) - 1
        for i, (lam, to) in enumerate(zip(lams[:-1], lams[1:], strict=True)):
            past.insert(0, m.eps(x, lam))
            e = sum(w * v for w, v in zip(AB[min(order, i + 1, n - i)], past, strict=False))
            x = m.a(to) / m.a(lam) * (x - m.s(lam) * e) + m.s(to) * e
        return x

    agree(lambda s, g: solvers.ipndm(s, g, order), loop)


@pytest.mark.parametrize("runge_kutta", [True, False])
def test_pndm(runge_kutta):
    def loop(m, lams, x, z):
        """Liu et al. 2022, algorithm 2, with eq. 11's transfer in alpha and sigma."""

        def transfer(x, e, lam, to):
            return m.a(to) / m.a(lam) * (x - m.s(lam) * e) + m.s(to) * e

        past = []
        for i, (lam, to) in enumerate(zip(lams[:-1], lams[1:], strict=True)):
            e1 = m.eps(x, lam)
            past.insert(0, e1)
            if runge_kutta and i < 3:
                t = [float(m.schedule.time(2 * v)) for v in (lam, to)]
                mid = float(m.schedule.logsnr(sum(t) / 2)) / 2
                e2 = m.eps(transfer(x, e1, lam, mid), mid)
                e3 = m.eps(transfer(x, e2, lam, mid), mid)
                e4 = m.eps(transfer(x, e3, lam, to), to)
                e = (e1 + 2 * e2 + 2 * e3 + e4) / 6
            else:
                e = sum(w * v for w, v in zip(AB[min(4, i + 1)], past, strict=False))
            x = transfer(x, e, lam, to)
        return x

    agree(lambda s, g: solvers.pndm(s, g, runge_kutta=runge_kutta), loop)


# Heun, churn and Restart ------------------------------------------------------------------------------------


def heun_step(m, y, s, to):
    """Karras et al. 2022, algorithm 1, lines 4 to 8, in y and s = sigma/alpha."""

    def d(y, s):
        lam = -np.log(s)
        return (y - m.x0(m.a(lam) * y, lam)) / s

    slope = d(y, s)
    guess = y + (to - s) * slope
    return guess if to == 0 else y + (to - s) * (slope + d(guess, to)) / 2


@pytest.mark.parametrize("schedule", [EDM, VP])
@pytest.mark.parametrize("end", [-2 * np.log(0.01), np.inf])
@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("churn", [0.0, 1.5, 40.0])
def test_edm(schedule, end, second_order, churn):
    options = dict(churn=churn, s_min=0.05, s_max=20.0, s_noise=1.007)

    def loop(m, lams, x, z):
        """Karras et al. 2022, algorithm 2."""
        levels = [np.exp(-lam) for lam in lams]
        y, n, z = x / m.a(lams[0]), len(levels) - 1, iter(z)
        for s, to in zip(levels[:-1], levels[1:], strict=True):
            gamma = min(churn / n, np.sqrt(2) - 1) if 0.05 <= s <= 20.0 else 0.0
            hat = s + gamma * s
            y = y + np.sqrt(hat**2 - s**2) * 1.007 * next(z)
            if second_order:
                y = heun_step(m, y, hat, to)
                if to > 0:
                    next(z)
            else:
                lam = -np.log(hat)
                y = y + (to - hat) * (y - m.x0(m.a(lam) * y, lam)) / hat
        return m.a(lams[-1]) * y

    builder = solvers.heun if second_order else solvers.euler
    agree(lambda s, g: builder(s, g, **options), loop, schedule, uneven(schedule, end=end), tolerance=1e-9)


def test_restart():
    interval = solvers.Interval(noisy=-2 * np.log(2.0), clean=-2 * np.log(0.3), steps=3, repeats=2)

    def loop(m, lams, x, z):
        """Xu et al. 2023, algorithm 1: after the grid's point nearest to t_min, K rounds up to t_max and back."""
        levels = [np.exp(-lam) for lam in lams]
        place = 1 + int(np.argmin([abs(np.log(s / 0.3)) for s in levels[1:]]))
        y, z = x / m.a(lams[0]), iter(z)
        for i, (s, to) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
            next(z)
            y = heun_step(m, y, s, to)
            next(z)
            if i + 1 != place:
                continue
            for _ in range(2):
                y = y + np.sqrt(2.0**2 - to**2) * next(z)
                down = (2.0 ** (1 / 7) + np.arange(4) / 3 * (to ** (1 / 7) - 2.0 ** (1 / 7))) ** 7
                for k, (up, low) in enumerate(zip(down[:-1], down[1:], strict=True)):
                    if k:
                        next(z)
                    y = heun_step(m, y, up, low)
                    next(z)
        return m.a(lams[-1]) * y

    agree(lambda s, g: solvers.restart(s, g, [interval]), loop, tolerance=1e-9)
    agree(lambda s, g: solvers.restart(s, g, [tuple(interval)]), loop, EDM, tolerance=1e-9)


# Reverse SDEs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p, c", [(1, 0), (2, 0), (3, 4), (2, 2), (3, 1)])
@pytest.mark.parametrize("tau", [0.0, 0.8, lambda logsnr: np.where(logsnr > 0, 0.3, 1.0)])
def test_sa_solver(p, c, tau):
    def loop(m, lams, x, z):
        """Xue et al. 2023, algorithm 1 with eq. 14 to 18, tau constant on each step; the corrector uses the same noise."""
        strength = [float(tau(2 * lam)) if callable(tau) else tau for lam in lams]

        def step(x, i, nodes, values, noise):
            lam, to, t2 = lams[i], lams[i + 1], strength[i] ** 2
            weights = [
                lagrange_integral(lambda u: (1 + t2) * m.a(to) * np.exp(-(1 + t2) * (to - u)), nodes, k, lam, to)
                for k in range(len(nodes))
            ]
            mean = m.s(to) / m.s(lam) * np.exp(-t2 * (to - lam)) * x
            deviation = m.s(to) * np.sqrt(1 - np.exp(-2 * t2 * (to - lam)))
            return mean + sum(w * v for w, v in zip(weights, values, strict=True)) + deviation * noise

        past, n, point = [], len(lams) - 1, x
        for i, lam in enumerate(lams[:-1]):
            past.insert(0, m.x0(point, lam))
            available = min(i, n - i + 1)  # of the step that ends here
            if i and c:
                k = min(c, available + 1)
                x = step(x, i - 1, lams[: i + 1][::-1][:k], past[:k], z[i])
            else:
                x = point
            k = min(p, i + 1, n - i)
            point = step(x, i, lams[: i + 1][::-1][:k], past[:k], z[i + 1])
        return point

    agree(lambda s, g: solvers.sa_solver(s, g, p, c, tau), loop)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("phi", [solvers.er_sde_noise, lambda s: s**2, lambda s: s**1.5, lambda s: s])
def test_er_sde(order, phi):
    def loop(m, lams, x, z):
        """Cui et al. 2023, prop. 3: Taylor terms with int 1/phi; x0' and x0'' are those of the interpolating polynomial
        (at second order the paper's difference).
        """
        levels = [np.exp(-lam) for lam in lams]
        y, past, n = x / m.a(lams[0]), [], len(levels) - 1
        for i, (s, to) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
            past.insert(0, m.x0(m.a(lams[i]) * y, lams[i]))
            r = phi(to) / phi(s)
            variance = to**2 - s**2 * r**2
            y = r * y + (1 - r) * past[0]
            y = y + np.sqrt(variance if variance > 1e-12 * to**2 else 0.0) * z[i + 1]  # phi = s has rounding only
            p = min(order, i + 1, n - i)
            if p == 1:
                continue
            options = dict(epsabs=1e-14, epsrel=1e-13, limit=200)
            first = to - s + phi(to) * quad(lambda v: 1 / phi(v), to, s, **options)[0]
            d0 = (past[0] - past[1]) / (s - levels[i - 1])
            if p == 2:
                y = y + first * d0
                continue
            second = (to - s) ** 2 / 2 + phi(to) * quad(lambda v, s=s: (v - s) / phi(v), to, s, **options)[0]
            d1 = (past[1] - past[2]) / (levels[i - 1] - levels[i - 2])
            curved = (d0 - d1) / (s - levels[i - 2])
            y = y + first * (d0 + curved * (s - levels[i - 1])) + second * 2 * curved
        return m.a(lams[-1]) * y

    grid = uneven(EDM, 7, -2 * np.log(20.0), -2 * np.log(0.05))
    agree(lambda s, g: solvers.er_sde(s, g, order, noise_scale=phi), loop, EDM, grid, tolerance=1e-9)
    agree(lambda s, g: solvers.er_sde(s, g, order, noise_scale=phi), loop, VP, grid, tolerance=1e-9)


# DPM-Solver-v3 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("corrector", [False, True])
def test_dpm_solver_v3(order, corrector):
    """Against the paper's eq. 9 to 12 with l, s, b straight lines in lam, whose integrals are known."""
    (l0, l1), (s0, s1), (b0, b1) = (0.6, -0.05), (-0.3, 0.04), (0.2, 0.1)
    knots = np.linspace(-24, 24, 9)
    lines = solvers.Statistics(knots, *(at0 + slope * knots / 2 for at0, slope in ((l0, l1), (s0, s1), (b0, b1))))

    def loop(m, lams, x, z):
        def big(at0, slope, low, high):
            return at0 * (high - low) + slope * (high**2 - low**2) / 2

        def offset(start, at):
            return quad(lambda r: np.exp(-big(s0, s1, start, r)) * (b0 + b1 * r), start, at, epsabs=1e-13)[0]

        def f(x, lam):
            l = l0 + l1 * lam
            x0 = m.x0(x, lam)
            eps = (x - m.a(lam) * x0) / m.s(lam)
            return (m.s(lam) * eps - l * x) / m.a(lam)

        def step(x, lam, to, nodes, values):
            g = [np.exp(-big(s0, s1, lam, u)) * v - offset(lam, u) for u, v in zip(nodes, values, strict=True)]

            def kernel(u):
                return np.exp(big(l0, l1, lam, u) + big(s0, s1, lam, u))

            total = sum(lagrange_integral(kernel, nodes, k, lam, to) * v for k, v in enumerate(g))
            total = total + quad(lambda u: kernel(u) * offset(lam, u), lam, to, epsabs=1e-13)[0]
            return m.a(to) * np.exp(-big(l0, l1, lam, to)) * (x / m.a(lam) - total)

        past, n, point, p = [], len(lams) - 1, x, 1
        for i, lam in enumerate(lams[:-1]):
            past.insert(0, f(point, lam))
            x = step(x, lams[i - 1], lam, lams[i - p : i + 1][::-1], past[: p + 1]) if i and corrector else point
            p = min(order, i + 1, n - i)
            point = step(x, lam, lams[i + 1], lams[i - p + 1 : i + 1][::-1], past[:p])
        return point

    agree(lambda s, g: solvers.dpm_solver_v3(s, g, lines, order, corrector=corrector), loop, tolerance=1e-9)


def test_dpm_solver_v3_has_both_forms_as_special_cases():
    denoise, x = problem(VP, uneven(VP)[0])
    knots = np.linspace(-30, 30, 20)
    for form, (l, s) in ((False, (1.0, 0.0)), (True, (0.0, -1.0))):
        flat = solvers.Statistics(knots, np.full(20, l), np.full(20, s), np.zeros(20))
        ours = by_hand(solvers.dpm_solver_v3(VP, uneven(VP), flat, 3), denoise, x)
        adams = by_hand(solvers.exponential_adams(VP, uneven(VP), 3, noise_form=form, corrector=True), denoise, x)
        np.testing.assert_allclose(ours[1], adams[1], rtol=0, atol=1e-11)


# Few steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [VP, FLOW])
def test_consistency(schedule):
    def loop(m, lams, x, z):
        """Song et al. 2023, algorithm 1, to the clean end."""
        for i, lam in enumerate(lams[:-1]):
            x0 = m.x0(x, lam)
            x = m.a(lams[i + 1]) * x0 + m.s(lams[i + 1]) * z[i + 1]
        return x0

    agree(solvers.consistency, loop, schedule, uneven(schedule, 4, end=np.inf))


@pytest.mark.parametrize("schedule", [VP, FLOW])
def test_overshoot(schedule):
    def loop(m, lams, x, z):
        """Meng et al. 2023: DDIM over two steps of the grid, then noise of variance (1 - exp(l_s - l_k)) sigma_s^2."""
        for i, lam in enumerate(lams[:-1]):
            k, s = lams[min(i + 2, len(lams) - 1)], lams[i + 1]
            x0 = m.x0(x, lam)
            x = m.a(k) * x0 + m.s(k) * (x - m.a(lam) * x0) / m.s(lam)
            if k > s:
                x = m.a(s) / m.a(k) * x + np.sqrt((1 - np.exp(2 * (s - k))) * m.s(s) ** 2) * z[i + 1]
        return x

    agree(solvers.overshoot, loop, schedule, uneven(schedule, 4))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("end", [-2 * np.log(0.05), np.inf])
def test_flow_map(gamma, end):
    """Kim et al. 2023, algorithm 3, with the exact flow of a Gaussian as the network, in s = sigma/alpha."""
    spread = 0.7
    grid = uneven(EDM, 4, end=end)

    def flow(y, s, to):
        return y * np.sqrt((spread**2 + to**2) / (spread**2 + s**2))

    def network(x, logsnr, logsnr_to):
        s, to = np.exp(-logsnr / 2), np.exp(-logsnr_to / 2)
        return (flow(x, s, to) - to / s * x) / (1 - to / s)  # the x0 whose DDIM step lands there

    x = 157.4 * np.random.default_rng(0).standard_normal((6, 1))
    noises = np.random.default_rng(1).standard_normal((5, 6, 1))
    points, sample = by_hand(solvers.flow_map(EDM, grid, gamma), network, x, noises)
    levels = [np.exp(-l / 2) for l in grid]
    for i, (s, to) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        np.testing.assert_allclose(points[i], x, atol=1e-9)
        low = to if i == 3 else np.sqrt(1 - gamma**2) * to
        x = flow(x, s, low) + (0.0 if i == 3 else gamma * to) * noises[i + 1]
    np.testing.assert_allclose(sample, x, atol=1e-9)


# Infinite ends ----------------------------------------------------------------------------------------------

SOLVERS = {
    "exponential_adams": lambda s, g: solvers.exponential_adams(s, g, 3),
    "noise form": lambda s, g: solvers.exponential_adams(s, g, 3, noise_form=True),
    "unipc": lambda s, g: solvers.unipc(s, g, 3, corrector=False),
    "dpmpp": lambda s, g: solvers.dpmpp(s, g, 3),
    "deis": lambda s, g: solvers.deis(s, g, 3),
    "adams": lambda s, g: solvers.adams(s, g, 3),
    "ipndm": lambda s, g: solvers.ipndm(s, g, 3),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_infinite_ends_are_ddim_steps(name):
    """From alpha = 0 and to sigma = 0 one DDIM step each, and between them the sampler as if it started there."""
    inner = uneven(VP, 6, start=-8.0, end=7.0)
    denoise, x = problem(VP, -np.inf)
    points, sample = by_hand(SOLVERS[name](VP, np.array([-np.inf, *inner, np.inf])), denoise, x)
    m = Model(VP, denoise)
    second = m.ddim(x, -np.inf, inner[0] / 2)
    np.testing.assert_allclose(points[1], second, atol=1e-12)
    np.testing.assert_allclose(sample, denoise(points[-1], 7.0), atol=1e-12)
    own, last = by_hand(SOLVERS[name](VP, inner), denoise, second)
    for ours, theirs in zip(points[1:6], own[:5], strict=True):  # the sixth knows that the end is near
        np.testing.assert_allclose(ours, theirs, atol=1e-10)


@pytest.mark.parametrize("noise", [False, True])
def test_a_corrector_before_a_wait_corrects_in_its_own_form(noise):
    """The frame's last entry is plain `denoised` then, and the corrector has to make eps of it and the point."""
    inner = uneven(VP, 5, start=-8.0, end=4.0)
    frames = np.stack([np.append(inner, 4.0), np.append(inner, 9.0)], axis=-1)[:, None, :]
    denoise, x = problem(VP, -8.0)

    def table(grid):
        return solvers.exponential_adams(
            VP, grid, 2, noise_form=noise, corrector=True, lower_order_final=False, damping=np.inf
        )

    def each(x, logsnr):
        return np.hstack([denoise(x[:, f : f + 1], logsnr[0, f]) for f in range(2)])

    sample = by_hand(table(frames), each, np.hstack([x, x]))[1]
    # Where the next step is tiny the sample is the corrected point.
    corrected = by_hand(table(np.append(inner, 4.0 + 1e-7)), denoise, x)[1]
    np.testing.assert_allclose(sample[:, :1], corrected, atol=1e-6)
    plain = solvers.exponential_adams(VP, inner, 2, noise_form=noise, corrector=True, lower_order_final=False)
    assert np.abs(by_hand(plain, denoise, x)[1] - corrected).max() > 1e-3  # and not the predicted one
    np.testing.assert_allclose(sample[:, 1:], by_hand(table(frames[:, 0, 1]), denoise, x)[1], atol=1e-12)
