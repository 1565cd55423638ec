"""The consistency family as methods: two steps each, one program through curricula and rounds, options, dropout, cost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from diffusion import grids, levels, predictions, sampling, schedules, solvers
from distill import Network, consistency, consistency_methods, continuous, pairs, regression, tract

SCHEDULE = schedules.vp_cosine()
TRAIN = {"total_steps": 8}
METHODS = {
    "distillation, Heun": (consistency_methods.consistency_distillation, {}),
    "distillation, Euler": (
        consistency_methods.consistency_distillation,
        {"solver": "euler", "target": "ema", "boundary": 4.0, "start": -8.764},
    ),
    "training": (consistency_methods.consistency_training, TRAIN),
    "improved": (consistency_methods.improved, TRAIN),
    "easy": (consistency_methods.easy, TRAIN),
    "easy, distilled": (consistency_methods.easy, TRAIN | {"solver": "euler", "boundary": float("inf")}),
    "latent": (consistency_methods.latent, {}),
    "latent, one scale": (consistency_methods.latent, {"guidance_range": None, "boundary": 6.0}),
    "multistep, eta": (consistency_methods.multistep, TRAIN | {"weight": levels.v(), "eta": 0.75}),
    "multistep, training": (consistency_methods.multistep, TRAIN | {"weight": levels.v(), "solver": "data"}),
    "truncated": (consistency_methods.truncated, {}),
    "truncated, distilled": (consistency_methods.truncated, {"solver": "heun"}),
    "continuous, distilled": (continuous.distillation, {"warmup": 4}),
    "continuous, guided": (continuous.distillation, {"guidance_range": (1.0, 4.0), "normalise": "norm"}),
    "continuous, trained": (continuous.training, {"normalise": "clip", "sigma_data": 0.5}),
    "TRACT": (tract.method, {"weight": levels.truncated_snr(), "rounds": (8, 4, 1)}),
}


def network(calls=None, schedule=SCHEDULE, prediction="v"):
    """A small function of everything it is given; `calls` collects (train, key) of every trace."""

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        if calls is not None:
            calls.append((train, key))
        shift = params["label"][cond["label"]] + params["guidance"] * cond.get("guidance", 1.0)
        return jnp.tanh(params["a"] * x + levels.expand(jnp.tanh(logsnr), x) * params["b"]) + levels.expand(shift, x)

    return Network(apply, schedule, prediction, 3, ("label", "guidance"))


PARAMS = {"a": 0.7, "b": 0.2, "label": np.array([0.1, 0.0, -0.1, 0.05]), "guidance": 0.01}
PARAMS = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PARAMS)
BATCH = {"video": jax.random.normal(jax.random.key(0), (6, 4, 2, 2, 1)), "label": jnp.arange(6) % 3}
FROZEN = {"teacher": PARAMS, "previous": PARAMS}
HYPER = {"learning_rate_scale": np.float32(1), "guidance": np.float32(1.5)}


PER_FRAME = ("distillation, Heun", "improved", "multistep, eta", "truncated", "continuous, distilled")


@pytest.mark.parametrize("name, per_frame", [*((n, False) for n in METHODS), *((n, True) for n in PER_FRAME)])
def test_two_steps_and_one_program(name, per_frame):
    """Curricula (through the step), guidance and rounds are arguments: nothing is traced or compiled again. All calls in
    training mode drop the same units; teachers and frozen targets drop none.
    """
    construct, options = METHODS[name]
    calls = []
    method = construct(
        network(calls), optimiser=optax.sgd(1e-2), **options, **({"per_frame": True} if per_frame else {})
    )
    # Optimising the program would take most of this test's time.
    step = jax.jit(method.phases["train"], compiler_options={"xla_backend_optimization_level": 0})
    state = method.init(jax.random.key(0), PARAMS)
    for i in range(2):
        hyper = HYPER | {"guidance": np.float32(1.0 + 2 * i)}
        hyper |= {"steps": np.float32((4, 1)[i])} if name == "TRACT" else {}
        state = state._replace(step=jnp.asarray(6 * i, jnp.int32))
        state, metrics = step(state, FROZEN, BATCH, jax.random.key(i), hyper)
        assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"]) and metrics["grad_norm"] > 0
        assert metrics["non_finite"] == 0
    assert step._cache_size() == 1
    assert not np.array_equal(state.params["a"], PARAMS["a"])
    taught = not ("train" in name or name in ("improved", "easy", "truncated"))
    assert any(key.startswith("gap_by_level/") for key in metrics) == taught
    assert any(key.startswith("tangent_by_level/") for key in metrics) == ("continuous" in name)
    training = [key for train, key in calls if train]
    assert len(training) == (1 if "continuous" in name else 2)
    assert all(key is training[0] for key in training), "one tracer: one dropout key"
    assert all(key is None for train, key in calls if not train)


@pytest.mark.parametrize(
    "construct, options, message",
    [
        (consistency_methods.consistency_distillation, {"solver": "hein"}, "heun"),
        (consistency_methods.consistency_distillation, {"metric": "hubber"}, "huber"),
        (consistency_methods.consistency_distillation, {"target": "emma"}, "ema"),
        (consistency_methods.consistency_distillation, {"num_levels": 1}, "num_levels"),
        (consistency_methods.consistency_distillation, {"boundary": -30.0}, "boundary"),
        (consistency_methods.consistency_distillation, {"boundary": float("inf")}, "finite"),
        (consistency_methods.consistency_training, {"total_steps": 8, "start": -30.0}, "start: .* noisy end -20"),
        (
            consistency_methods.improved,
            {"total_steps": 8, "start": 5.0, "boundary": 4.0},
            "below the boundary 4, got 5",
        ),
        (consistency_methods.improved, {"total_steps": 0}, "total_steps"),
        (consistency_methods.easy, {"total_steps": 8, "stages": 0}, "stages"),
        (consistency_methods.latent, {"guidance_range": (4.0, 2.0)}, "low <= high"),
        (consistency_methods.multistep, {"total_steps": 8, "weight": levels.v(), "solver": "addm"}, "addim"),
        (consistency_methods.multistep, {"total_steps": 8, "weight": levels.v(), "segments": 0}, "segments"),
        (consistency_methods.truncated, {"cut": 99.0}, "cut"),
        (consistency_methods.consistency_distillation, {"rho": 0.0}, "rho: expected a number above 0"),
        (
            consistency_methods.consistency_training,
            {"total_steps": 8, "s0": 1},
            "s0: expected a whole number from 2 up",
        ),
        (consistency_methods.consistency_training, {"total_steps": 8, "s0": 50, "s1": 10}, "s1: .* from 49 up, got 10"),
        (consistency_methods.improved, {"total_steps": 8, "s0": 0}, "s0: expected a whole number from 1 up"),
        (consistency_methods.easy, {"total_steps": 8, "q": 1.0}, "q: expected a number above 1"),
        (consistency_methods.easy, {"total_steps": 8, "k": -8.0}, "k: expected a number from 0 up"),
        (consistency_methods.easy, {"total_steps": 8, "limit": 1.0}, "limit: .* below 1, got 1"),
        (consistency_methods.latent, {"huber": -1.0}, "huber"),
        (consistency_methods.multistep, {"total_steps": 8, "weight": levels.v(), "first": 0}, "first"),
        (consistency_methods.multistep, {"total_steps": 8, "weight": levels.v(), "eta": -1.0}, "eta"),
        (
            consistency_methods.multistep,
            {"total_steps": 8, "weight": levels.v(), "solver": "heun", "eta": 0.5},
            "eta: only the solver 'addim' has it",
        ),
        (consistency_methods.truncated, {"limit": 1.0}, "limit: .* below 1, got 1"),
        (consistency_methods.truncated, {"df": 0.1}, "df: expected a number above 0, below 0.02, got 0.1"),
        (continuous.distillation, {"warmup": -100}, "warmup: expected a whole number from 0 up"),
        (continuous.distillation, {"c": 0.0}, "c: expected a number above 0"),
        (continuous.distillation, {"normalise": "rns"}, "rms"),
        (tract.method, {"weight": levels.v(), "rounds": (8, 3, 1)}, "multiple"),
        (tract.method, {"weight": levels.v(), "rounds": (8,)}, "falling"),
    ],
)
def test_bad_options_are_refused(construct, options, message):
    with pytest.raises(ValueError, match=message):
        construct(network(), optimiser=optax.sgd(1.0), **options)


def test_guidance_as_an_input_needs_classes_and_a_network_that_takes_it():
    with pytest.raises(ValueError, match="classes"):
        consistency_methods.latent(network()._replace(num_classes=0), optimiser=optax.sgd(1.0))
    with pytest.raises(ValueError, match="'guidance'"):
        consistency_methods.latent(network()._replace(cond_keys=("label",)), optimiser=optax.sgd(1.0))


@pytest.mark.parametrize("stage", [0, 2, 7])
def test_pairs_that_close_up_fast_keep_finite_weights(stage):
    """ECT's one-hour recipe has q = 256: at its eight stages q^-8 is far below what float32 tells from 1."""
    method = consistency_methods.easy(network(), optimiser=optax.sgd(1e-2), total_steps=8, q=256.0)
    many = jax.tree.map(lambda leaf: jnp.tile(leaf, (200,) + (1,) * (leaf.ndim - 1)), BATCH)
    state = method.init(jax.random.key(0), PARAMS)._replace(step=jnp.asarray(stage, jnp.int32))
    _, metrics = jax.jit(method.phases["train"])(state, {}, many, jax.random.key(stage), HYPER)
    assert np.isfinite(metrics["loss"]) and metrics["loss"] >= 0 and np.isfinite(metrics["grad_norm"])


@pytest.mark.parametrize(
    "construct, options",
    [
        (consistency_methods.consistency_distillation, {"num_levels": 12}),
        (consistency_methods.consistency_training, {"total_steps": 8}),
        (consistency_methods.improved, {"total_steps": 8}),
    ],
)
def test_a_grid_has_the_ends_that_it_is_given(construct, options):
    """Of 1,200 clips the network is asked at no level outside, and at some near either end."""
    seen = []

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        jax.debug.callback(lambda level: seen.append(np.ravel(level)), logsnr)
        return params["a"] * x

    asked = network()._replace(apply=apply)
    method = construct(asked, optimiser=optax.sgd(1e-2), start=-5.0, boundary=6.0, **options)
    many = jax.tree.map(lambda leaf: jnp.tile(leaf, (200,) + (1,) * (leaf.ndim - 1)), BATCH)
    state = method.init(jax.random.key(0), PARAMS)._replace(step=jnp.asarray(7, jnp.int32))
    jax.block_until_ready(jax.jit(method.phases["train"])(state, FROZEN, many, jax.random.key(1), HYPER))
    jax.effects_barrier()
    levels_asked = np.concatenate(seen)
    assert -5.0 - 1e-4 <= levels_asked.min() < -4.5 and 4.0 < levels_asked.max() <= 6.0 + 1e-4


def test_tract_rounds():
    """1024 -> 32 -> 1: the student becomes the teacher, the optimiser starts afresh, nothing shares memory or compiles."""
    method = tract.method(network(), optimiser=optax.adam(1e-2), weight=levels.truncated_snr())
    step = jax.jit(method.phases["train"], donate_argnums=0)
    state = method.init(jax.random.key(0), jax.tree.map(jnp.copy, PARAMS))
    frozen, hyper = {"teacher": PARAMS}, {"learning_rate_scale": 1.0, "guidance": 2.0, "steps": 32.0}
    for r in range(2):
        numbers = {k: np.float32(v) for k, v in hyper.items()}
        state, metrics = step(state, frozen, BATCH, jax.random.key(r), numbers)
        assert np.isfinite(metrics["loss"])
        if r == 0:
            student = jax.tree.map(np.asarray, state.ema)
            state, frozen, hyper = method.next(state, frozen, hyper)
            assert hyper["steps"] == 1.0 and hyper["guidance"] == 1.0 and state.step == 0
            jax.tree.map(np.testing.assert_array_equal, frozen["teacher"], student)
            buffers = [a.unsafe_buffer_pointer() for a in jax.tree.leaves((state.params, state.ema, frozen["teacher"]))]
            assert len(set(buffers)) == len(buffers)
    assert step._cache_size() == 1
    with pytest.raises(ValueError, match="no round follows 1"):
        method.next(state, frozen, hyper)


def test_a_student_learns_the_flow_and_is_sampled_in_one_step():
    """Consistency distillation of N(0, s^2) with the exact teacher: the student's one call is the exact flow's gain."""
    std, schedule = 0.5, schedules.edm(sigma_min=0.02, sigma_max=20.0)
    nodes = jnp.linspace(schedule.logsnr_start, schedule.logsnr_end, 25)

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        # F of EDM is x's scale apart from a gain: what is left to learn is smooth.
        return levels.expand(jnp.interp(logsnr, nodes, params) / jnp.sqrt(std**2 + schedule.sigma(logsnr) ** 2), x) * x

    student = Network(apply, schedule, "F")
    method = consistency_methods.consistency_distillation(
        student, optimiser=optax.adam(optax.cosine_decay_schedule(0.03, 2000)), num_levels=40, ema=0.99
    )
    teacher = Partial(lambda x, l: levels.expand(std**2 / (std**2 + schedule.sigma(l) ** 2), x) * x)
    step = jax.jit(method.phases["train"])
    state = method.init(jax.random.key(0), jnp.zeros(25))
    for i in range(2000):
        batch = {"video": std * jax.random.normal(jax.random.key(i), (256, 1, 1, 1, 1))}
        hyper = {"learning_rate_scale": 1.0, "guidance": 1.0}
        state, metrics = step(state, {"teacher": teacher}, batch, jax.random.key(10**6 + i), hyper)
    x = schedule.sigma(schedule.logsnr_start) * jnp.ones((1, 1, 1, 1, 1))
    denoise = predictions.denoiser(apply, state.ema, schedule=schedule, prediction="F")
    one = sampling.sample(denoise, solvers.consistency(schedule, grids.uniform_time(schedule, 1)), x)
    variances = [std**2 + schedule.sigma(l) ** 2 for l in (schedule.logsnr_end, schedule.logsnr_start)]
    exact = x * np.sqrt(variances[0] / variances[1])
    single = solvers.ddim(schedule, grids.uniform_time(schedule, 1))
    naive = sampling.sample(teacher, single, x)
    assert abs(one - exact).max() < 0.05 * abs(naive - exact).max()


# What a step costs ------------------------------------------------------------------------------------------------


WIDTH = 256


def matmuls():
    """Four square layers: 8 WIDTH^2 operations a clip, and elementwise work that is small beside it."""

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        y = x.reshape(len(x), -1) + logsnr[:, None]
        for layer in params:
            y = jnp.tanh(y @ layer)
        return y.reshape(x.shape)

    return Network(apply, SCHEDULE, "v")


@pytest.mark.parametrize(
    "construct, options, most",
    [
        (consistency_methods.consistency_distillation, {"solver": "euler"}, 5.1),
        (consistency_methods.consistency_distillation, {"solver": "heun"}, 6.1),
        (consistency_methods.improved, TRAIN, 4.1),
        (consistency_methods.multistep, TRAIN | {"weight": levels.v()}, 5.1),
        (tract.method, {"weight": levels.v(), "rounds": (8, 4, 1)}, 5.1),
        (continuous.training, {}, 4.5),
        (continuous.distillation, {}, 5.5),
    ],
)
def test_forwards_a_step(construct, options, most):
    """Operations of the compiled step, in forward passes of the network; a backward pass is two."""
    method = construct(matmuls(), optimiser=optax.sgd(1.0), **options)
    params = [0.1 * jax.random.normal(jax.random.key(i), (WIDTH, WIDTH)) for i in range(4)]
    batch = {"video": jnp.zeros((32, 4, 8, 8, 1))}
    state = method.init(jax.random.key(0), params)
    hyper = HYPER | {"steps": np.float32(4)}
    lowered = jax.jit(method.phases["train"]).lower(state, {"teacher": params}, batch, jax.random.key(0), hyper)
    compiled = lowered.compile({"xla_backend_optimization_level": 0})
    cost = compiled.cost_analysis()
    forward = 2 * 32 * 4 * WIDTH**2
    found = (cost[0] if isinstance(cost, list) else cost)["flops"] / forward
    print(construct.__name__, options, f"{found:.2f}")
    assert most - 1.2 < found < most, found


def test_parts_are_used_as_given():
    """The objective takes functions: pairs and weights of one's own."""
    chosen = lambda key, shape, step, hyper: pairs.Pair(*(jnp.full(shape, l) for l in (-1.0, 0.0, 3.0)))  # noqa: E731
    objective = consistency.objective(network(), pairs=chosen, solver=None, weight=consistency.inverse_gap)
    problem = objective(regression.RegressionState(PARAMS, PARAMS, (), 0), {}, BATCH, jax.random.key(0), {})
    np.testing.assert_allclose(problem.weight, 1 / (np.exp(0.5) - 1), rtol=1e-6)
    np.testing.assert_array_equal(problem.logsnr, -1.0)
