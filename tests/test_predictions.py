"""Every pair of predictions, at every level, against the papers' definitions; denoisers as arguments of
programs.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion import levels, predictions, schedules

INF = math.inf
SCHEDULES = {
    "vp": schedules.vp_cosine(),
    "ve": schedules.edm(),
    "sub_vp": schedules.sub_vp(),
    "flow": schedules.flow(shift=3.0),
}
KINDS = {**predictions.PREDICTIONS, "F(1.3)": predictions.F(1.3)}
DETERMINING = ("eps", "v", "velocity", "score", "F")
each = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def truth(kind, x0, eps, logsnr, schedule):
    """What a perfect network of that kind returns, as its paper defines it."""
    alpha, sigma = (np.asarray(f(logsnr)).reshape(-1, *[1] * (x0.ndim - 1)) for f in (schedule.alpha, schedule.sigma))
    if isinstance(kind, predictions.F) or kind == "F":
        # Karras et al.'s table 1 in their own frame y = x / alpha, s = sigma / alpha.
        sd, s = (0.5 if kind == "F" else kind.sigma_data), sigma / alpha
        skip, out = sd**2 / (s**2 + sd**2), s * sd / np.sqrt(s**2 + sd**2)
        return (x0 - skip * (x0 + s * eps)) / out
    return {
        "x0": x0,
        "eps": eps,
        "v": alpha * eps - sigma * x0,
        "velocity": eps - x0,
        "score": -eps / sigma,
    }[kind]


def data(seed=0, shape=(5, 3, 2)):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.normal(size=shape)


@each
@pytest.mark.parametrize("source, target", itertools.product(KINDS, KINDS))
def test_every_pair_against_the_definitions(schedule, source, target):
    x0, eps = data()
    logsnr = np.array([-20.0, -6.0, 0.3, 5.0, 20.0])
    x = levels.forward(x0, eps, logsnr, schedule)
    source, target = (KINDS[k] if "(" in k else k for k in (source, target))
    value, expected = (truth(k, x0, eps, logsnr, schedule) for k in (source, target))
    found = predictions.convert(value, x, logsnr, schedule, source, target)
    assert found.dtype == np.float64
    # Recovering the small part of x (x0 at -20, eps at 20) loses the digits of sigma / alpha = e^10.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-10 * abs(expected).max())


@each
@given(
    logsnr=st.floats(-6.0, 6.0),
    seed=st.integers(0, 1000),
    source=st.sampled_from(DETERMINING),
    target=st.sampled_from(DETERMINING),
)
def test_round_trips_in_single_precision(schedule, logsnr, seed, source, target):
    x0, eps = (a.astype(np.float32) for a in data(seed, (2, 3)))
    x = levels.forward(x0, eps, logsnr, schedule)
    value = np.random.default_rng(seed + 1).normal(size=x.shape).astype(np.float32)
    there = predictions.convert(value, x, logsnr, schedule, source, target)
    back = predictions.convert(there, x, logsnr, schedule, target, source)
    assert there.dtype == back.dtype == np.float32
    np.testing.assert_allclose(back, value, atol=2e-3)


# Infinite ends --------------------------------------------------------------------------------------------

ALWAYS = ("v", "velocity", "F")
ANSWERS = {
    -INF: {k: tuple(predictions.PREDICTIONS) for k in (*ALWAYS, "x0")}
    | {k: ("eps", "score") for k in ("eps", "score")},
    INF: {k: ("x0", "eps", *ALWAYS) for k in (*ALWAYS, "eps", "score")} | {"x0": ("x0",)},
}


@each
@pytest.mark.parametrize("end", [-INF, INF])
def test_ends_have_an_answer_or_an_error(schedule, end):
    """v, velocity and F determine everything; eps says nothing about x0 in pure noise, nor x0 about eps in
    clean data.
    """
    if end == -INF and schedule.scaling == schedules.VE():
        return
    x0, eps = data()
    near = dict.fromkeys(predictions.PREDICTIONS)
    alpha, sigma = float(schedule.alpha(end)), float(schedule.sigma(end))
    near |= {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "velocity": eps - x0}
    near["F"] = x0 / 0.5 if end == -INF else -eps
    near["score"] = -eps / sigma if sigma else None
    x = alpha * x0 + sigma * eps
    for source, target in itertools.permutations(predictions.PREDICTIONS, 2):
        value = near[source] if near[source] is not None else np.full_like(x0, -1e9)
        if target in ANSWERS[end][source]:
            if near[source] is None:  # The score of clean data is infinite; eps = -sigma score = 0 of it.
                continue
            found = predictions.convert(value, x, end, schedule, source, target)
            np.testing.assert_allclose(found, near[target], rtol=1e-12, atol=1e-12)
            predictions.check_levels(source, np.array([0.0, end]), schedule, target)
        else:
            with pytest.raises(ValueError, match=f"{source} does not determine {target} at logsnr"):
                predictions.convert(value, x, end, schedule, source, target)
            with pytest.raises(ValueError, match="use a finite level"):
                predictions.check_levels(source, np.array([0.0, end]), schedule, target)


def test_ends_inside_a_compiled_program():
    x0, eps = (jnp.asarray(a, jnp.float32) for a in data())
    schedule = SCHEDULES["vp"]
    at_noise = jax.jit(
        lambda l: [predictions.denoised(k, p, eps, l, schedule) for k, p in zip(ALWAYS, noise, strict=True)]
    )
    at_data = jax.jit(
        lambda l: [predictions.convert(p, x0, l, schedule, k, "eps") for k, p in zip(ALWAYS, clean, strict=True)]
    )
    noise, clean = (-x0, eps - x0, x0 / 0.5), (eps, eps - x0, -eps / 1.0)
    for found in at_noise(jnp.float32(-INF)):
        np.testing.assert_allclose(found, x0, atol=1e-5)
    for found in at_data(jnp.float32(INF)):
        np.testing.assert_allclose(found, eps, atol=1e-5)


def test_no_answer_is_nan_where_the_level_is_traced():
    x = jnp.ones((2, 3))
    convert = jax.jit(lambda l: predictions.denoised("eps", x, x, l, SCHEDULES["vp"]))
    assert np.isnan(convert(jnp.float32(-INF))).all()
    assert np.isfinite(convert(jnp.float32(-20.0))).all()


@each
def test_v_has_finite_gradients_at_both_ends(schedule):
    x0, eps = (jnp.asarray(a, jnp.float32) for a in data())

    def loss(value, logsnr):
        x = levels.forward(x0, eps, logsnr, schedule)
        return (predictions.denoised("v", value, x, logsnr, schedule) ** 2).sum()

    for end in (INF, -INF):
        if end == -INF and schedule.scaling == schedules.VE():
            continue
        for slope in jax.grad(loss, (0, 1))(eps, jnp.float32(end)):
            assert np.isfinite(slope).all()


# Precision and errors -------------------------------------------------------------------------------------


def test_half_precision_is_cast_up():
    x0, eps = data()
    schedule = SCHEDULES["vp"]
    x = jnp.asarray(levels.forward(x0, eps, 1.0, schedule), jnp.float32)
    value = jnp.asarray(truth("v", x0, eps, 1.0, schedule), jnp.bfloat16)
    found = predictions.denoised("v", value, x, jnp.asarray(1.0, jnp.bfloat16), schedule)
    assert found.dtype == jnp.float32
    exact = predictions.denoised("v", value.astype(jnp.float32), x, 1.0, schedule)
    np.testing.assert_allclose(found, exact, atol=1e-6)
    same = predictions.convert(value, x.astype(jnp.bfloat16), 1.0, schedule, "v", "v")
    assert same.dtype == jnp.float32


@pytest.mark.parametrize("shape", [(2, 4, 8, 8, 1), (2, 1, 8, 8, 3), (1, 4, 8, 8, 3)])
def test_an_answer_of_another_shape_is_refused_not_spread_over_x(shape):
    with pytest.raises(ValueError, match=r"a prediction of shape .* expected the same"):
        predictions.denoised("velocity", jnp.ones(shape), jnp.ones((2, 4, 8, 8, 3)), 0.0, SCHEDULES["flow"])


@each
def test_half_precision_levels_and_data_of_the_host_are_as_others(schedule):
    """A noisy clip, and its data found again, at a level that bfloat16 has exactly."""
    x0, eps = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), np.ones((2, 3), np.float32)
    x = levels.forward(x0, eps, -6.0, schedule)
    np.testing.assert_allclose(levels.forward(x0, eps, jnp.bfloat16(-6.0), schedule), x, rtol=1e-6)
    back = jax.jit(lambda level: predictions.convert(eps, x, level, schedule, "eps", "x0"))(-6.0)
    np.testing.assert_allclose(back, predictions.convert(eps, x, -6.0, schedule, "eps", "x0"), rtol=1e-4, atol=1e-3)
    other = schedules.edm()
    moved = jax.jit(lambda level: schedules.rescale(x, level, schedule, other))(jnp.bfloat16(-6.0))
    np.testing.assert_allclose(moved, schedules.rescale(x, -6.0, schedule, other), rtol=1e-6)


def test_levels_per_frame():
    x0, eps = (jnp.asarray(a, jnp.float32) for a in data(shape=(2, 4, 3, 3, 1)))
    schedule = SCHEDULES["flow"]
    logsnr = jnp.linspace(-5, 5, 8).reshape(2, 4)
    x = levels.forward(x0, eps, logsnr, schedule)
    found = predictions.denoised("velocity", eps - x0, x, logsnr, schedule)
    np.testing.assert_allclose(found, x0, atol=1e-4)
    with pytest.raises(ValueError, match=r"a level per frame is \[1, 4\] or \[2, 4\]"):
        predictions.denoised("velocity", eps - x0, x, logsnr[0], schedule)


def test_unknown_names_raise_with_the_nearest():
    with pytest.raises(KeyError, match="nearest: 'velocity'"):
        predictions.denoiser(lambda p, x, l, c: x, {}, schedule=SCHEDULES["vp"], prediction="velocty")
    with pytest.raises(KeyError, match="prediction 'epsilon' is not known.*nearest: 'eps'"):
        predictions.convert(np.ones(2), np.ones(2), 0.0, SCHEDULES["vp"], "v", "epsilon")
    with pytest.raises(ValueError, match="sigma_data above 0"):
        predictions.F(0.0)


# Denoisers ------------------------------------------------------------------------------------------------


def test_other_weights_do_not_recompile():
    traces = []

    def apply(params, x, logsnr, cond):
        traces.append(1)
        return params["w"] * x + cond["label"][:, None]

    @jax.jit
    def run(denoise, x, logsnr):
        return denoise(x, logsnr)

    x = jnp.ones((2, 3))
    for w in (1.0, 2.0):
        for label in (0.0, 3.0):
            params, cond = {"w": jnp.float32(w)}, {"label": jnp.full((2,), label)}
            # Schedules and kinds are compared by value, so they may be made anew each time.
            denoise = predictions.denoiser(
                apply, params, cond, schedule=schedules.vp_linear(), prediction=predictions.F(1.0)
            )
            found = run(denoise, x, jnp.float32(0.0))
            value = w + label
            np.testing.assert_allclose(found, math.sqrt(0.5) * (1 + value), rtol=1e-5)
    assert len(traces) == 1
    run(
        predictions.denoiser(apply, params, cond, schedule=schedules.vp_linear(), prediction="x0"),
        x,
        jnp.float32(0),
    )
    assert len(traces) == 2
    assert jax.tree.leaves(denoise)[0] is not None and len(jax.tree.leaves(denoise)) == 2


def test_dropout_key_and_train_reach_the_network():
    def apply(params, x, logsnr, cond, *, key=None, train=False):
        assert train and cond is None
        return x + jax.random.normal(key, x.shape)

    x, key = jnp.zeros((2, 3)), jax.random.key(3)
    denoise = predictions.denoiser(apply, {}, schedule=SCHEDULES["vp"], prediction="x0", key=key, train=True)
    np.testing.assert_array_equal(denoise(x, 0.0), jax.random.normal(key, x.shape))


def test_flow_map_is_a_ddim_step():
    """On data at one point c the average velocity of the flow from t to r is eps - c, and a DDIM step lands
    on r.
    """
    schedule = schedules.flow()
    c, eps = 0.7, jnp.asarray(data()[1], jnp.float32)
    seen = []

    def apply(params, x, logsnr, cond):
        seen.append((cond["label"], cond["logsnr_to"]))
        return (x - c) / schedule.time(logsnr)

    jump = predictions.flow_map(apply, {}, {"label": 4}, schedule=schedule, prediction="velocity")
    here, there = 0.5, 3.0
    x = levels.forward(jnp.full_like(eps, c), eps, here, schedule)
    denoised = jump(x, here, there)
    ratio = schedule.sigma(there) / schedule.sigma(here)
    landed = ratio * x + (schedule.alpha(there) - ratio * schedule.alpha(here)) * denoised
    np.testing.assert_allclose(landed, schedule.alpha(there) * c + schedule.sigma(there) * eps, atol=1e-5)
    t, r = schedule.time(here), schedule.time(there)
    np.testing.assert_allclose(landed, x - (t - r) * (eps - c), atol=1e-5)
    assert seen == [(4, there)]


# Preconditioning ------------------------------------------------------------------------------------------


@each
@given(logsnr=st.floats(-20, 20), sd=st.floats(0.1, 3.0))
def test_preconditioning_is_the_conversion_of_f(schedule, logsnr, sd):
    skip, out, into = predictions.preconditioning(logsnr, schedule, sd)
    x, value = data()
    found = predictions.denoised(predictions.F(sd), value, x, logsnr, schedule)
    np.testing.assert_allclose(found, skip * x + out * value, rtol=1e-9, atol=1e-12)
    # x has unit variance at the network's input.
    variance = schedule.alpha(logsnr) ** 2 * sd**2 + schedule.sigma(logsnr) ** 2
    assert into**2 * variance == pytest.approx(1, rel=1e-12)


@each
@given(share=st.floats(0, 1), logsnr=st.floats(-15, 10), sd=st.floats(0.1, 3.0))
def test_boundary_is_the_identity_there_and_leaves_unit_variance(schedule, share, logsnr, sd):
    boundary = logsnr + share * 15
    skip, out, _ = predictions.boundary_coefficients(boundary, boundary, schedule, sd)
    assert (skip, out) == (pytest.approx(1, rel=1e-12), pytest.approx(0, abs=1e-9))
    skip, out, _ = predictions.boundary_coefficients(logsnr, boundary, schedule, sd)
    # Covariances of (x at the boundary, x) for data of variance sd^2 and the same noise.
    a, s, a_to, s_to = (float(f(l)) for l in (logsnr, boundary) for f in (schedule.alpha, schedule.sigma))
    var, var_to, cov = a**2 * sd**2 + s**2, a_to**2 * sd**2 + s_to**2, a * a_to * sd**2 + s * s_to
    assert skip == pytest.approx(cov / var, rel=1e-10)
    assert out**2 == pytest.approx(var_to - cov**2 / var, rel=1e-6, abs=1e-12 * var_to)


def test_boundary_in_known_frames():
    t, e, sd = 3.0, 0.5, 0.5
    skip, out, into = predictions.boundary_coefficients(-2 * math.log(t), -2 * math.log(e), SCHEDULES["ve"], sd)
    assert skip == pytest.approx((sd**2 + e * t) / (sd**2 + t**2), rel=1e-12)
    assert out == pytest.approx((t - e) * sd / math.sqrt(sd**2 + t**2), rel=1e-12)
    assert into == pytest.approx(1 / math.sqrt(sd**2 + t**2), rel=1e-12)
    # TrigFlow: angles theta with tan theta = sigma / alpha.
    here, there = 1.2, 0.3
    levels_ = [-2 * math.log(math.tan(a)) for a in (here, there)]
    skip, out, into = predictions.boundary_coefficients(*levels_, SCHEDULES["vp"], 1.0)
    assert skip == pytest.approx(math.cos(here - there), rel=1e-12)
    assert out == pytest.approx(math.sin(here - there), rel=1e-12)
    for schedule in SCHEDULES.values():
        at_clean = predictions.boundary_coefficients(0.7, INF, schedule, 0.8)
        np.testing.assert_allclose(at_clean, predictions.preconditioning(0.7, schedule, 0.8), rtol=1e-12)


def test_a_denoiser_serves_any_scaling():
    """One network for VP data, read in the flow scaling through `rescale`: the same estimate of x0."""
    vp = SCHEDULES["vp"]
    flow = dataclasses.replace(vp, scaling=schedules.Flow())
    x0, eps = data()
    logsnr = np.linspace(-8, 8, 5)

    def apply(params, x, level, cond):
        return np.tanh(params * x)

    network = predictions.denoiser(apply, 1.7, schedule=vp, prediction="v")
    x = levels.forward(x0, eps, logsnr, flow)
    wide = logsnr[:, None, None]
    found = network(schedules.rescale(x, wide, flow, vp), logsnr)
    np.testing.assert_allclose(found, network(levels.forward(x0, eps, logsnr, vp), logsnr), rtol=1e-9)
