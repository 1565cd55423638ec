"""Against diffusers and k-diffusion, run live on the same grid where they are installed (the extra `bench`).

Where they are not, the same samplers are held against the papers' formulas in test_solvers_formulas.py, so nothing is lost
but the second opinion: that is why these tests skip. The peers keep their noise levels in float32, hence the tolerance.
"""

import numpy as np
import pytest
from solvers_tools import EDM, VP, by_hand, problem

from diffusion import solvers
from experiments.ablations import peers

WHY = "diffusers, k-diffusion and torch are installed by the extra `bench` only; the papers' loops cover the samplers"
torch = pytest.importorskip("torch", reason=WHY)


def diffusers_run(scheduler, steps, denoise, x):
    """The grid that a scheduler used, as log-SNR, its points and its sample, on a model that predicts x0."""
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double().numpy()
    with np.errstate(divide="ignore"):
        grid = -2 * np.log(sigmas)
    sample, points = torch.tensor(x), []
    for i, timestep in enumerate(scheduler.timesteps):
        points.append(sample.numpy())
        denoised = torch.tensor(denoise(points[-1], grid[i]))
        sample = scheduler.step(denoised, timestep, sample).prev_sample
    return grid, points, sample.numpy()


def betas():
    return dict(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", prediction_type="sample")


@pytest.mark.parametrize("steps", [6, 10, 25])
@pytest.mark.parametrize("name", ["dpmpp 2M", "unipc 1", "unipc 2", "unipc 3", "unipc 2, bh1"])
def test_diffusers(name, steps):
    diffusers = pytest.importorskip("diffusers", reason=WHY)
    denoise, x = problem(VP, -10.0)
    options = dict(use_karras_sigmas=True, **betas())
    if name == "dpmpp 2M":
        scheduler = diffusers.DPMSolverMultistepScheduler(solver_order=2, **options)
        builder = solvers.dpmpp
    else:
        order, variant = int(name[6]), "bh1" if "bh1" in name else "bh2"
        scheduler = diffusers.UniPCMultistepScheduler(
            solver_order=order, solver_type=variant, final_sigmas_type="zero", **options
        )
        # Its lower orders at the end hold for any number of steps.
        builder = lambda s, g: solvers.unipc(s, g, order, variant=variant, lower_order_final=True)  # noqa: E731
    grid, expected, last = diffusers_run(scheduler, steps, denoise, x)
    assert np.isposinf(grid[-1])
    points, sample = by_hand(builder(VP, grid), denoise, x)
    if "bh1" not in name:  # there its last step, to sigma = 0, is inf * 0
        points, expected = [*points, sample], [*expected, last]
    for ours, theirs in zip(points, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize("steps", [6, 25])
@pytest.mark.parametrize("name", ["dpmpp 2M", "heun", "ddim", "adams", "dpmpp SDE 2M"])
def test_k_diffusion(name, steps):
    k = peers.load("k-diffusion")  # with stand-ins for what its samplers never touch
    if k is None:
        pytest.skip(WHY)
    denoise, x = problem(EDM, EDM.logsnr_start)
    sigmas = k.sampling.get_sigmas_karras(steps, 0.002, 80.0).double()
    with np.errstate(divide="ignore"):
        grid = -2 * np.log(sigmas.numpy())
    noises = list(np.random.default_rng(0).standard_normal((steps + 1, *x.shape)))

    def model(point, sigma):
        return torch.tensor(denoise(point.numpy(), -2 * np.log(float(sigma[0]))))

    drawn = iter(noises[1:])
    sampler, builder = {
        "dpmpp 2M": (k.sampling.sample_dpmpp_2m, lambda s, g: solvers.dpmpp(s, g, lower_order_final=False)),
        "heun": (k.sampling.sample_heun, solvers.heun),
        "ddim": (k.sampling.sample_euler, solvers.ddim),
        "adams": (
            lambda *a, **o: k.sampling.sample_lms(*a, order=3, **o),
            lambda s, g: solvers.adams(s, g, 3, lower_order_final=False),
        ),
        "dpmpp SDE 2M": (
            lambda *a, **o: k.sampling.sample_dpmpp_2m_sde(*a, noise_sampler=lambda s, t: torch.tensor(next(drawn)), **o),
            lambda s, g: solvers.dpmpp(s, g, sde=True, lower_order_final=False),
        ),
    }[name]  # fmt: skip
    if name == "adams":  # it also extrapolates to sigma = 0, where ours is first order
        grid, sigmas = grid[:-1], sigmas[:-1]
    expected = sampler(model, torch.tensor(x), sigmas, disable=True).numpy()
    sample = by_hand(builder(EDM, grid), denoise, x, noises if name == "dpmpp SDE 2M" else None)[1]
    tolerance = 1e-3 if name == "adams" else 2e-5  # its coefficients are quadratures to 1e-4
    np.testing.assert_allclose(sample, expected, atol=tolerance * np.abs(expected).max())
