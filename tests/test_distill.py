"""Methods: the shared step, EMA, rounds without a new compilation, label dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion import grids, levels, oracles, sampling, schedules, solvers
from distill import METHODS, Network, jumps, optimiser, progressive, regression
from distill.inputs import clean, condition, drop_labels
from distill.method import Method, exponential_moving_average
from experiments import loop
from experiments import mesh as meshes
from experiments.config import ConfigError

COSINE = schedules.vp_cosine()


NODES = jnp.linspace(-6, 6, 13)


def linear_network(traces=None):
    """Predicts x0 as a gain, interpolated between 13 levels: enough for Gaussian data, trained in a moment."""

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        if traces is not None:
            traces.append(train)
        gain = jnp.interp(logsnr, NODES, params["c"])
        return levels.expand(gain, x) * x

    return Network(apply, COSINE, "x0")


def test_denoising_finds_the_conditional_expectation():
    """On N(0, s^2) data the minimiser is the posterior mean, a gain known in closed form."""
    variance = 0.25
    method = METHODS["denoising"](
        linear_network(),
        optimiser=optimiser(0.02, steps=600, decay="cosine", clip=0.0),
        law=levels.uniform_logsnr(COSINE, -6.5, 6.5),
        weight=levels.uniform(),
        ema=0.99,
    )
    state = method.init(jax.random.key(0), {"c": jnp.zeros(13)})
    step = jax.jit(method.phases["train"])
    for i in range(600):
        x0 = np.sqrt(variance) * jax.random.normal(jax.random.key(i), (512, 1, 1, 1, 1))
        state, metrics = step(state, {}, {"video": x0}, jax.random.key(10_000 + i), {"learning_rate_scale": 1.0})
    alpha, sigma = COSINE.alpha(NODES), COSINE.sigma(NODES)
    np.testing.assert_allclose(state.ema["c"], alpha * variance / (alpha**2 * variance + sigma**2), atol=0.05)
    total, count = metrics["loss_by_level/-2..2"]
    assert count > 0 and np.isfinite(total)


def test_all_halvings_share_one_compilation():
    """16 -> 8 -> 4 -> 2 -> 1: teacher, N and the learning-rate scale are arguments."""
    traces = []
    method = METHODS["progressive"](
        linear_network(traces), optimiser=optimiser(1e-3, steps=2, decay="linear"), weight=levels.v()
    )
    params = {"c": jnp.full(13, 0.5, jnp.float32)}
    state = method.init(jax.random.key(0), params)
    run = loop.Run(
        method,
        state,
        {"teacher": jax.tree.map(jnp.copy, params)},
        {"learning_rate_scale": 1.0, "steps": 8.0, "guidance": 1.0},
        2,
        4,
    )
    mesh = meshes.make()
    phases = loop.compile_phases(method, mesh)
    batch = {"video": jnp.ones((4, 1, 1, 1, 1))}
    seen = []
    for r in range(4):
        for i in range(2):
            state, frozen = meshes.put(run.state, mesh), meshes.put(run.frozen, mesh)
            hyper = {k: np.float32(v) for k, v in run.hyper.items()}
            run.state, metrics = phases["train"](state, frozen, batch, jax.random.key(i), hyper)
            assert np.isfinite(metrics["loss"])
        seen.append(run.hyper["steps"])
        if r < 3:
            run.state, run.frozen, run.hyper = method.next(run.state, run.frozen, run.hyper)
    assert seen == [8.0, 4.0, 2.0, 1.0]
    assert phases["train"]._cache_size() == 1
    # One trace of the student and two of the teacher, for all eight steps.
    assert len(traces) == 3


def test_what_a_method_asks_for_and_lacks_is_named():
    """No list of methods knows what one from outside needs, but for its own program."""
    asking = lambda state, frozen, batch, key, hyper: (state, {"loss": frozen["teacher"]["c"]})  # noqa: E731
    forgetful = lambda state, frozen, batch, key, hyper: (state, {"loss": batch["video"]["c"]})  # noqa: E731
    method = Method(lambda key, params: params, {"train": asking, "own": forgetful}, order=lambda step: ("train",))
    phases = loop.compile_phases(method, meshes.make())
    given = {}, {}, {"video": {}}, jax.random.key(0), {}
    with pytest.raises(ConfigError, match=r"asks for frozen\['teacher'\], which .*: give it the key 'teacher'"):
        phases["train"](*given)
    with pytest.raises(KeyError, match="c"):
        phases["own"](*given)

    def bare(*given):
        raise KeyError

    with pytest.raises(KeyError):
        loop.compile_phases(method._replace(phases={"own": bare}), meshes.make())["own"](*given)


def test_a_guided_teacher_takes_guided_steps_and_only_in_the_first_round():
    """Against the sampler: two DDIM steps of a table on the guided denoiser, u + g (c - u)."""

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        return levels.expand(params["gain"][cond["label"]], x) * x  # a gain for each class; the last is "no class"

    network = Network(apply, COSINE, "x0", 3)
    params = {"gain": jnp.array([0.1, 0.4, 0.7, 0.25])}
    objective = progressive.objective(network, weight=levels.v())
    batch = {"video": jax.random.normal(jax.random.key(0), (9, 1, 2, 2, 1)), "label": jnp.arange(9) % 3}
    fine = grids.uniform_time(COSINE, 2)
    for g in (1.0, 1.5, 3.0):
        problem = objective(None, {"teacher": params}, batch, jax.random.key(1), {"steps": 1.0, "guidance": g})
        gain = levels.expand(0.25 + g * (params["gain"][batch["label"]] - 0.25), problem.x)
        two = sampling.sample(jax.tree_util.Partial(lambda k, x, l: k * x, gain), solvers.ddim(COSINE, fine), problem.x)
        one = jumps.ddim_step(COSINE, problem.x, problem.target(problem.x, None), *jnp.asarray(fine)[jnp.array([0, 2])])
        np.testing.assert_allclose(one, two, atol=1e-5)
    method = METHODS["progressive"](network, optimiser=optimiser(1e-2), weight=levels.v())
    state = method.init(jax.random.key(0), params)
    hyper = {"learning_rate_scale": 1.0, "steps": 4.0, "guidance": 1.5}
    assert method.next(state, {"teacher": params}, hyper)[2]["guidance"] == 1.0


def test_a_student_that_is_told_g_steps_as_the_guided_teacher_does():
    """The second stage of Meng et al.: a network that answers u + g (c - u) when told g, against guidance from outside."""

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        gain = params["gain"]
        scale = cond.get("guidance", 1.0)
        return levels.expand(gain[3] + scale * (gain[cond["label"]] - gain[3]), x) * x

    params = {"gain": jnp.array([0.1, 0.4, 0.7, 0.25])}
    batch = {"video": jax.random.normal(jax.random.key(0), (9, 1, 2, 2, 1)), "label": jnp.arange(9) % 3}
    plain = Network(apply, COSINE, "x0", 3, ("label",))
    told = plain._replace(cond_keys=("label", "guidance"))
    given = (None, {"teacher": params}, batch, jax.random.key(1))
    for g in (1.0, 2.5):
        outside = progressive.objective(plain, weight=levels.v())(*given, {"steps": 2.0, "guidance": g})
        inside = progressive.objective(told, weight=levels.v(), guidance_range=(g, g))(*given, {"steps": 2.0})
        np.testing.assert_allclose(inside.cond["guidance"], g)
        targets = (problem.target(problem.x, None) for problem in (outside, inside))
        np.testing.assert_allclose(*targets, rtol=1e-4, atol=1e-4)
    drawn = progressive.objective(told, weight=levels.v(), guidance_range=(1.0, 4.0))(*given, {"steps": 2.0})
    assert 1 <= drawn.cond["guidance"].min() < 2.5 < drawn.cond["guidance"].max() <= 4
    with pytest.raises(ValueError, match="must take cond 'guidance'"):
        METHODS["progressive"](plain, optimiser=optimiser(1e-2), weight=levels.v(), guidance_range=(1.0, 4.0))


def test_next_makes_the_student_the_teacher_and_starts_the_optimiser_afresh():
    method = METHODS["progressive"](linear_network(), optimiser=optimiser(1e-2), weight=levels.v())
    params = {"c": jnp.arange(13.0)}
    state = method.init(jax.random.key(0), params)
    teacher = {"c": jnp.full(13, 0.3)}
    hyper = {"learning_rate_scale": jnp.float32(1), "steps": jnp.float32(4), "guidance": jnp.float32(1)}
    state, _ = jax.jit(method.phases["train"])(
        state, {"teacher": teacher}, {"video": jnp.ones((4, 1, 1, 1, 1))}, jax.random.key(1), hyper
    )
    new, frozen, hyper = method.next(state, {"teacher": teacher}, hyper)
    np.testing.assert_array_equal(frozen["teacher"]["c"], state.ema["c"])
    np.testing.assert_array_equal(new.params["c"], state.ema["c"])
    assert new.step == 0 and hyper["steps"] == 2
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(new.opt))
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((new.params, new.ema, frozen))]
    assert len(set(buffers)) == len(buffers), "the state is donated: nothing may share its memory"
    with pytest.raises(ValueError, match="no round follows that of 1 steps"):
        method.next(new, frozen, hyper | {"steps": jnp.float32(1)})


def test_tangents_are_the_derivative_along_them():
    """With tangents, target sees the student and its derivative; the step's loss is their combination."""

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        return params["a"] * x**2 + levels.expand(logsnr, x) * params["b"]

    network = Network(apply, COSINE, "x0")
    x, logsnr = jnp.array([[1.0], [2.0]]), jnp.array([0.5, -1.0])
    dx, dlogsnr = jnp.array([[0.1], [0.2]]), jnp.array([1.0, 2.0])

    def objective(params, frozen, batch, key, hyper):
        return regression.Problem(
            x,
            logsnr,
            {},
            lambda prediction: 3 * prediction,
            lambda primal, tangent: primal - tangent,
            jnp.ones(2),
            (dx, dlogsnr, {}),
        )

    step = regression.method(network, objective, optax.sgd(1.0), ema=0.0).phases["train"]
    params = {"a": jnp.array(0.7), "b": jnp.array(0.4)}
    state = regression.init(optax.sgd(1.0))(jax.random.key(0), params)
    new, metrics = step(
        state, {}, {"video": jnp.ones((2, 1, 1, 1, 1))}, jax.random.key(0), {"learning_rate_scale": 1.0}
    )
    tangent = 3 * (0.7 * 2 * x * dx + dlogsnr[:, None] * 0.4)
    np.testing.assert_allclose(metrics["loss"], jnp.mean(tangent**2), rtol=1e-6)
    # The target carries no gradient: d/da of mean((3 f - target)^2) = mean(2 tangent 3 x^2).
    np.testing.assert_allclose(params["a"] - new.params["a"], jnp.mean(2 * tangent * 3 * x**2), rtol=1e-5)


def test_diversity_tells_a_collapse_to_the_mean_from_answers_as_varied_as_the_clips():
    """By two students whose answers are known: the clips themselves, and their mean. A batch of one has none to tell of."""
    video = jax.random.normal(jax.random.key(0), (64, 2, 1, 1, 3))

    def objective(state, frozen, batch, key, hyper):
        logsnr = jnp.linspace(-9.0, 9.0, len(batch["video"]))
        return regression.Problem(
            batch["video"], logsnr, {}, lambda prediction: prediction, lambda primal, _: primal, jnp.ones_like(logsnr)
        )

    def diversity(gain, video):
        network = Network(lambda params, x, logsnr, cond, **_: params * x, COSINE, "x0")
        step = regression.method(network, objective, optax.sgd(1.0), ema=0.0).phases["train"]
        state = regression.init(optax.sgd(1.0))(jax.random.key(0), jnp.float32(gain))
        _, metrics = step(state, {}, {"video": video}, jax.random.key(0), {"learning_rate_scale": 1.0})
        return np.array([metrics[k] for k in metrics if k.startswith("diversity_by_level")])

    for gain in (1.0, 0.5, 0.0):
        total, count = diversity(gain, video).sum(0)
        assert count == 64
        np.testing.assert_allclose(total / count, gain**2, rtol=1e-5)
    assert not diversity(1.0, video[:1]).any(), "one clip alone counts nowhere"


def test_learning_rate_scale_scales_the_update():
    method = METHODS["denoising"](
        linear_network(), optimiser=optimiser(1e-2), law=levels.uniform_time(COSINE), weight=levels.v()
    )
    params = {"c": jnp.zeros(13)}
    moved = []
    for scale in (1.0, 0.25, 0.0):
        state = method.init(jax.random.key(0), params)
        state, _ = method.phases["train"](
            state, {}, {"video": jnp.ones((4, 1, 1, 1, 1))}, jax.random.key(1), {"learning_rate_scale": scale}
        )
        moved.append(np.asarray(state.params["c"]))
    np.testing.assert_allclose(moved[1], 0.25 * moved[0], rtol=1e-6)
    assert np.any(moved[0]) and not np.any(moved[2])


def test_per_frame_levels():
    """Independent levels per frame, and the loss by level still adds up to the loss."""
    method = METHODS["denoising"](
        linear_network(), optimiser=optimiser(1e-2), law=levels.uniform_time(COSINE), weight=levels.v(), per_frame=True
    )
    state = method.init(jax.random.key(0), {"c": jnp.zeros(13)})
    _, metrics = method.phases["train"](
        state, {}, {"video": jnp.ones((4, 6, 2, 2, 1))}, jax.random.key(1), {"learning_rate_scale": 1.0}
    )
    bands = [v for k, v in metrics.items() if k.startswith("loss_by_level")]
    assert sum(float(count) for _, count in bands) == 4 * 6
    np.testing.assert_allclose(sum(float(total) for total, _ in bands) / 24, metrics["loss"], rtol=1e-5)


def test_ema_ramp_and_limit():
    params = {"a": jnp.array(1.0)}
    first = exponential_moving_average({"a": jnp.array(0.0)}, params, jnp.array(0), 0.999)
    np.testing.assert_allclose(first["a"], 0.9, rtol=1e-6)  # decay 1/10 in the first update
    late = exponential_moving_average({"a": jnp.array(0.0)}, params, jnp.array(10**6), 0.999)
    np.testing.assert_allclose(late["a"], 1e-3, rtol=1e-2)
    copy = exponential_moving_average({"a": jnp.array(5.0)}, params, jnp.array(3), 0.0)
    np.testing.assert_allclose(copy["a"], 1.0)


def test_labels_are_dropped_at_the_rate_asked_for():
    label = jnp.arange(10_000) % 10
    dropped = drop_labels(jax.random.key(0), label, 0.1, 10)
    share = float(jnp.mean(dropped == 10))
    assert abs(share - 0.1) < 0.01
    np.testing.assert_array_equal(dropped[dropped != 10], label[dropped != 10])
    network = Network(None, COSINE, "v", 10)
    assert "label" in condition(network, {"label": label}, jax.random.key(0))
    assert condition(network._replace(num_classes=0), {"label": label}, jax.random.key(0)) == {}


def test_uint8_is_scaled_on_the_device():
    video = np.array([0, 255, 51], np.uint8).reshape(1, 1, 1, 3, 1)
    np.testing.assert_allclose(clean({"video": jnp.asarray(video)}).ravel(), [-1, 1, -0.6], atol=1e-6)


def test_an_unknown_decay_is_refused():
    with pytest.raises(ValueError, match="cosine"):
        optimiser(1e-3, decay="cosin")


def test_an_objective_that_returns_no_problem_is_named():
    """As one that returns the pair that its author thinks it is, or a target that is no function."""
    x, level = jnp.zeros((2, 1, 1, 1, 1)), jnp.zeros(2)
    whole = regression.Problem(x, level, {}, output=lambda p: p, target=lambda primal, tangent: x, weight=level)
    for wrong in ((x, x), whole._replace(target=x), whole._replace(output=x)):
        pose = regression.term(linear_network(), lambda *_, wrong=wrong: wrong)
        with pytest.raises(TypeError, match="must return a Problem"):
            pose(None, {}, {"video": x}, jax.random.key(0), {})
    assert (
        float(
            regression.term(linear_network(), lambda *_: whole)(None, {}, {"video": x}, jax.random.key(0), {})(
                {"c": jnp.zeros(13)}
            )[0]
        )
        == 0
    )


def test_gaussian_oracle_as_teacher_is_learnt_exactly():
    """A sanity check through the oracle of another file: two of its DDIM steps, learnt by a student of one step."""
    mix = oracles.gaussian_mixture([1.0], [[0.0]], [0.25])
    denoise = mix.denoiser(COSINE)

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        exact = denoise(x.reshape(-1, 1), logsnr).reshape(x.shape)
        gain = levels.expand(params["c"][0], x)
        return jnp.where(params["c"][1] > 0, exact, gain * x)

    network = Network(apply, COSINE, "x0")
    method = METHODS["progressive"](
        network, optimiser=optimiser(0.05, steps=300, decay="linear", clip=0.0), weight=levels.uniform()
    )
    teacher = {"c": jnp.array([0.0, 1.0])}
    state = method.init(jax.random.key(0), {"c": jnp.array([0.0, -1.0])})
    step = jax.jit(method.phases["train"])
    batch = {"video": 0.5 * jax.random.normal(jax.random.key(5), (256, 1, 1, 1, 1))}
    for i in range(300):
        state, _ = step(
            state,
            {"teacher": teacher},
            batch,
            jax.random.key(i),
            {"learning_rate_scale": 1.0, "steps": 1.0, "guidance": 1.0},
        )
    # One student step from pure noise: two DDIM steps of the teacher, the second from t = 1/2 to the clean end.
    middle = 0.0
    alpha = np.sqrt(0.5)
    gain_middle = alpha * 0.25 / (0.5 * 0.25 + 0.5)
    a1, s1 = float(COSINE.alpha(-20.0)), float(COSINE.sigma(-20.0))
    gain_start = a1 * 0.25 / (a1**2 * 0.25 + s1**2)
    one = alpha / s1 + (alpha - alpha / s1 * a1) * gain_start
    expected = one * gain_middle
    assert COSINE.time(middle) == pytest.approx(0.5)
    np.testing.assert_allclose(state.params["c"][0], expected, atol=2e-3)


@pytest.mark.parametrize(
    "name, options", [("denoising", dict(law=lambda key, shape: jnp.zeros(shape))), ("progressive", {})]
)
def test_a_forced_network_is_given_the_clean_clip(name, options):
    """As the schedule's clean end has it, of variance alpha^2 there; so are a teacher of its kind, and the labels beside it."""
    schedule, seen = schedules.vp_cosine(logsnr_max=2.0), []

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        seen.append(cond)
        return params["c"] * x + cond["history"]["clip"] + 0.0 * levels.expand(cond["label"], x)

    network = Network(apply, schedule, "x0", num_classes=2, forced=True)
    method = METHODS[name](network, optimiser=optax.sgd(0.0), weight=levels.uniform(), ema=0.0, **options)
    video = jax.random.normal(jax.random.key(0), (4, 2, 1, 1, 1))
    batch = {"video": video, "label": jnp.arange(4) % 2}
    params = {"c": jnp.zeros(())}
    hyper = {"learning_rate_scale": 1.0, "steps": jnp.float32(2), "guidance": 1.5}
    _, metrics = method.phases["train"](
        method.init(jax.random.key(0), params), {"teacher": params}, batch, jax.random.key(1), hyper
    )
    alpha = float(jax.nn.sigmoid(2.0)) ** 0.5
    history = seen[-1]["history"]
    np.testing.assert_allclose(history["clip"], alpha * video, rtol=1e-6)
    np.testing.assert_array_equal(history["level"], np.full(4, 2.0))
    # The answer is the history at any level: off by 1 - alpha of the clip, and a student's step is its teacher's.
    expected = (1 - alpha) ** 2 * float(jnp.mean(video**2)) if name == "denoising" else 0.0
    np.testing.assert_allclose(metrics["loss"], expected, atol=1e-10, rtol=1e-5)
