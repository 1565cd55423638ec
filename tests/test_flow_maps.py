"""Flow maps, reflow and distilled guidance as methods: they compile once, count their clips, cost what they say, learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion import grids, levels, oracles, predictions, sampling, schedules, solvers
from distill import Network, flow_maps, guided, mean_flow, optimiser, reflow, regression
from models import build

SHAPE = (2, 1, 1, 2)
CLASSES = 3
INPUTS = ("logsnr_to", "guidance")
MLP = dict(kind="mlp", shape=SHAPE, num_classes=CLASSES, width=16, depth=1, level="angle")
FLOW = schedules.flow()
LAW = levels.logit_normal(-0.4)
RANGE = (1.0, 4.0)
METHODS = {
    "consistency_trajectory": dict(make=flow_maps.consistency_trajectory, weight=levels.velocity(), substeps=2),
    "shortcut": dict(make=flow_maps.shortcut, weight=levels.velocity()),
    "mean_flow": dict(make=mean_flow.method, kappa=0.5),
    "reflow": dict(make=reflow.method, weight=levels.velocity(), steps=3),
    "guided": dict(make=guided.method, weight=levels.truncated_snr()),
}


def network_of(definition, schedule=FLOW, prediction="velocity"):
    return Network(definition.apply, schedule, prediction, definition.num_classes, definition.cond_keys)


def make(name, network, **options):
    block = METHODS[name] | options
    return block.pop("make")(network, optimiser=optimiser(1e-2), law=LAW, **block)


def tiny(params, x, logsnr, cond, *, key=None, train=False):
    """Two layers that see all that a network can be told; labels by a table whose last row means "no class"."""
    level = levels.expand(jnp.broadcast_to(logsnr, (len(x), *jnp.shape(logsnr)[1:])), x)
    jump = levels.expand(cond.get("logsnr_to", jnp.float32(0)), x)
    scale = levels.expand(cond.get("guidance", jnp.float32(1)), x)
    seen = jnp.concatenate([jnp.broadcast_to(part, x.shape[:-1] + (1,)) for part in (level, jump, scale)], -1) / 10
    label = levels.expand(params["label"][cond["label"]], x[..., 0])[..., None]
    return jnp.tanh(jnp.concatenate([x, seen], -1) @ params["first"] + label) @ params["second"]


def tiny_params():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"first": (5, 16), "second": (16, 2), "label": (CLASSES + 1,)}
    return {name: 0.3 * jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}


TINY = Network(tiny, FLOW, "velocity", CLASSES, ("label", *INPUTS))


def batch(size=16):
    video = jax.random.normal(jax.random.key(5), (size, *SHAPE))
    return {"video": video, "label": jnp.arange(size, dtype=jnp.int32) % CLASSES}


@pytest.mark.parametrize(
    "name, teacher, ranged, per_frame",
    [
        ("consistency_trajectory", True, True, True),
        ("shortcut", False, False, False),
        ("shortcut", False, True, True),
        ("shortcut", True, True, True),
        ("mean_flow", False, False, False),
        ("mean_flow", False, False, True),
        ("mean_flow", True, True, False),
        ("reflow", True, False, True),
        ("guided", True, True, False),
    ],
)
def test_every_method_steps_twice_in_one_program(name, teacher, ranged, per_frame):
    """Two guidance scales and two teachers; everything finite, every clip counted, and the weights move."""
    params = tiny_params()
    options = {"guidance_range": RANGE} if ranged else {}
    method = make(name, TINY, per_frame=per_frame, **options)
    state = method.init(jax.random.key(0), params)
    step = jax.jit(method.phases["train"])
    for i, scale in enumerate((1.0, 2.5)):
        frozen = {"teacher": jax.tree.map(lambda leaf, i=i: leaf * (1 + 0.1 * i), params)} if teacher else {}
        hyper = {"learning_rate_scale": jnp.float32(1), "guidance": jnp.float32(scale)}
        state, metrics = step(state, frozen, batch(), jax.random.key(i), hyper)
        assert metrics["non_finite"] == 0 and np.isfinite(metrics["loss"])
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(metrics))
    assert step._cache_size() == 1
    assert not np.array_equal(state.params["second"], params["second"])
    names = {key.split("_by_level")[0] for key in metrics if "_by_level" in key}
    gap, tangent = teacher and name != "reflow", name == "mean_flow"
    assert names == {"loss", "diversity"} | ({"gap"} if gap else set()) | ({"tangent"} if tangent else set())
    counted = sum(float(count) for key, (_, count) in ((k, v) for k, v in metrics.items() if k.startswith("loss_by")))
    assert counted == 16 * (2 if per_frame else 1)


def test_trajectories_without_a_teacher_say_whom_they_lack():
    method = make("consistency_trajectory", TINY)
    state, hyper = method.init(jax.random.key(0), tiny_params()), {"learning_rate_scale": 1.0, "guidance": 1.0}
    with pytest.raises(KeyError, match="teacher"):
        method.phases["train"](state, {}, batch(), jax.random.key(0), hyper)


def test_every_eighth_clip_jumps_and_the_rest_learn_the_denoiser():
    for size, share, count in ((16, 1 / 8, 2), (10, 0.25, 2), (3, 0.01, 1), (5, 1.0, 5)):
        jumping, others = flow_maps.spread(size, share)
        assert len(jumping) == count and sorted([*jumping, *others]) == list(range(size))
    np.testing.assert_array_equal(flow_maps.spread(16, 1 / 4)[0], [0, 4, 8, 12])


def test_guidance_in_shortcut_models_enters_at_the_shortest_jump_alone():
    """By a network of gains: the target of longer jumps doesn't change with g, that of the shortest does."""

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        return levels.expand(params[cond["label"]], x) * x

    network = Network(apply, FLOW, "x0", CLASSES, ("label", "logsnr_to"))
    params = jnp.array([0.2, 0.5, 0.8, 0.4])
    draw, compose = flow_maps.halves(network, 4)
    construct = flow_maps.composed(
        network, draw=draw, compose=compose, law=LAW, weight=levels.velocity(), share=1.0, label_dropout=0.0
    )
    state = regression.RegressionState(params, params, (), 0)
    goals = []
    for scale in (1.0, 3.0):
        problem = construct(state, {}, batch(64), jax.random.key(0), {"guidance": scale})
        goals.append(problem.target(problem.x, None))
    shortest = np.asarray(FLOW.time(problem.logsnr) - FLOW.time(problem.cond["logsnr_to"])) < 0.6
    changed = np.abs(goals[1] - goals[0]).max(axis=(1, 2, 3, 4)) > 1e-4
    np.testing.assert_array_equal(changed, shortest)
    assert 0 < shortest.sum() < 64


def test_the_adaptive_weight_makes_every_clips_error_count_alike():
    """The loss is the mean over a clip's numbers, the paper's norm a sum: at p = 1 it is 1 however many there are."""
    error = jnp.array([1e-1, 1.0, 10.0])[:, None] * jnp.ones((3, 4))
    losses = {p: mean_flow.adaptive(p, 1e-9)(error, jnp.zeros((3, 4))).mean(1) for p in (0.0, 0.5, 1.0)}
    np.testing.assert_allclose(losses[1.0], 1, rtol=1e-4)
    np.testing.assert_allclose(losses[0.5], [0.2, 2.0, 20.0], rtol=1e-4)
    np.testing.assert_allclose(losses[0.0], [0.04, 4.0, 400.0], rtol=1e-4)
    slope = jax.grad(lambda u: mean_flow.adaptive(1.0, 1e-9)(u, jnp.zeros((1, 4))).mean())(jnp.ones((1, 4)))
    np.testing.assert_allclose(slope, 2 / 4, rtol=1e-4)


def scanned(depth=4, width=1024):
    """Matrix products in a scan, as in a large network: clips of `width` numbers, all cost in the layers."""

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        there = cond.get("logsnr_to", logsnr)
        h = x.reshape(len(x), width) + (logsnr + there)[:, None]
        h, _ = jax.lax.scan(lambda h, w: (h + jnp.sin(h @ w), None), h, params)
        return h.reshape(x.shape)

    return apply, jax.ShapeDtypeStruct((depth, width, width), jnp.float32)


@pytest.mark.parametrize(
    "name, teacher, options, most",
    [
        ("mean_flow", False, {}, 4.6),
        ("mean_flow", True, {}, 5.6),
        ("shortcut", False, {}, 3.5),
        ("consistency_trajectory", True, dict(solver="ddim", share=1.0), 5.3),
        ("consistency_trajectory", True, dict(share=1.0), 6.3),
    ],
)
def test_cost_of_a_step_in_forwards(name, teacher, options, most):
    """The compiler counts a loop's body once; all loops here have the same trips, so the ratio is right without them."""
    apply, params = scanned()
    network = Network(apply, FLOW, "velocity", 0, ("logsnr_to",))
    method = make(name, network, **({"substeps": 1} if "trajectory" in name else {}), **options)
    clips, level = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4096, 1, 32, 32, 1), (4096,)))
    forward = jax.jit(lambda p, x, l: apply(p, x, l, {})).lower(params, clips, level).compile()
    frozen = {"teacher": params} if teacher else {}
    hyper = {"learning_rate_scale": 1.0, "guidance": 1.0}
    state = jax.eval_shape(method.init, jax.random.key(0), params)
    step = jax.jit(method.phases["train"]).lower(state, frozen, {"video": clips}, jax.random.key(0), hyper).compile()
    forwards = step.cost_analysis()["flops"] / forward.cost_analysis()["flops"]
    assert 2.9 < forwards < most, forwards
    print(f"{name}, teacher {teacher}, {options}: {forwards:.2f} forwards")


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("consistency_trajectory", dict(share=0.0), "share: expected a part of the batch above 0 and up to 1, got 0.0"),
        (
            "consistency_trajectory",
            dict(solver="huen"),
            "solver 'huen' is not known: expected one of .*; nearest: 'heun'",
        ),
        ("consistency_trajectory", dict(intervals=0), "intervals: expected a whole number from 1 up, got 0"),
        ("consistency_trajectory", dict(substeps=0), "substeps: expected a whole number from 1 up, got 0"),
        ("consistency_trajectory", dict(target="emma"), "target 'emma' is not known: .*; nearest: 'ema'"),
        ("shortcut", dict(finest=100), "finest: expected a power of two from 2 up, got 100"),
        (
            "shortcut",
            dict(guidance_range=(3.0, 1.0)),
            r"guidance_range: expected finite \(low, high\) with low <= high",
        ),
        ("shortcut", dict(share=1.0), "share: expected below 1"),
        ("shortcut", dict(guidance_range=(1.0, np.inf)), "guidance_range: expected finite"),
        ("mean_flow", dict(kappa=1.0), "kappa: expected a number from 0 up, below 1, got 1.0"),
        ("mean_flow", dict(c=0.0), "c: expected a number above 0, got 0.0"),
        ("reflow", dict(steps=0), "steps: expected a whole number from 1 up, got 0"),
        ("reflow", dict(solver="dpm"), "solver 'dpm' is not known: .*; nearest: 'dpmpp'"),
        ("guided", dict(guidance_range=(3.0, 1.0)), r"guidance_range: expected finite \(low, high\) with low <= high"),
    ],
)
def test_options_that_make_no_method_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, TINY, **options)


@given(batch=st.integers(2, 64), share=st.floats(0.001, 1.0))
def test_some_clips_jump_and_others_learn_where_from(batch, share):
    jumping, others = flow_maps.spread(batch, share)
    assert sorted([*jumping, *others]) == [*range(batch)]
    assert len(jumping) >= 1 and (share == 1.0 or len(others) >= 1)
    assert abs(len(jumping) - share * batch) <= 1
    with pytest.raises(ValueError, match="share: a batch of 1 clip can't be divided"):
        flow_maps.spread(1, min(share, 0.99))


@pytest.mark.parametrize("name", METHODS)
def test_networks_that_lack_an_input_are_refused_by_name(name):
    jumps = name not in ("reflow", "guided")
    with pytest.raises(ValueError, match="'logsnr_to'" if jumps else "guidance"):
        make(name, network_of(build(MLP)), guidance_range=None if jumps else RANGE)
    unguided = network_of(build(MLP | dict(cond=("logsnr_to",))))
    with pytest.raises(ValueError, match="guidance"):
        make(name, unguided, guidance_range=RANGE)
    with pytest.raises(ValueError, match="no classes to guide by"):
        make(name, network_of(build(MLP | dict(cond=INPUTS, num_classes=0))), guidance_range=RANGE)


MIX = oracles.gaussian_mixture([0.4, 0.6], np.reshape([-2.0, 2.0], (2, 1, 1, 1, 1)), 1.0)


def learnt(name, steps, size=256, **options):
    """One-step root mean square error of the map from noise, against the exact flow of two modes on the line."""
    definition = build(
        dict(kind="mlp", shape=(1, 1, 1, 1), num_classes=0, width=64, cond=("logsnr_to",), level="angle")
    )
    network = network_of(definition)
    options = METHODS[name] | dict(law=levels.uniform_time(FLOW), label_dropout=0.0) | options
    block = {k: v for k, v in options.items() if k != "make"}
    method = options["make"](network, optimiser=optimiser(3e-3, steps=steps, decay="cosine"), **block)
    state = method.init(jax.random.key(0), definition.init(jax.random.key(1)))
    frozen, hyper = {"teacher": MIX.denoiser(FLOW)}, {"learning_rate_scale": 1.0, "guidance": 1.0}

    @jax.jit
    def run(state):
        def body(i, state):
            key = jax.random.fold_in(jax.random.key(2), i)
            data = {"video": MIX.sample(jax.random.fold_in(key, 7), size)}
            return method.phases["train"](state, frozen, data, key, hyper)[0]

        return jax.lax.fori_loop(0, steps, body, state)

    state = run(state)
    x = jax.random.normal(jax.random.key(3), (1000, 1, 1, 1, 1))
    ends = (FLOW.logsnr_start, FLOW.logsnr_end)
    truth = oracles.probability_flow(MIX.denoiser(FLOW), np.asarray(x, np.float64), FLOW, *ends, 1e-7)
    jump = predictions.flow_map(network.apply, state.ema, schedule=FLOW, prediction="velocity")
    one = sampling.sample(jump, solvers.flow_map(FLOW, np.array(ends)), x)
    teacher = sampling.sample(MIX.denoiser(FLOW), solvers.ddim(FLOW, grids.uniform_time(FLOW, 4)), x)
    return [float(np.sqrt(np.mean((np.asarray(sample) - truth) ** 2))) for sample in (one, teacher)]


@pytest.mark.parametrize(
    "name, options",
    [
        ("consistency_trajectory", dict(substeps=1, data=False, ema=0.99)),
        ("shortcut", dict(share=0.5, finest=32, ema=0.99)),
        ("mean_flow", dict(share=0.75, ema=0.99)),
    ],
)
def test_one_jump_of_a_student_beats_four_steps_of_its_exact_teacher(name, options):
    one, four = learnt(name, 600, **options)
    print(f"{name}: one jump {one:.3f}, the teacher's four DDIM steps {four:.3f}")
    assert one < four
