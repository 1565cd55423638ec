"""A batch in parts has the whole one's gradient, in every phase; the state's memory is reused; bfloat16 only computes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion import levels, schedules
from distill import METHODS, Discriminator, Network, optimiser, regression
from distill.method import Method, accumulating, descent
from experiments import config as configs
from experiments import loop, stages
from experiments import mesh as meshes
from experiments.config import ConfigError
from models import build
from tests.configs import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = (2, 4, 4, 1)
QUICK = {"xla_backend_optimization_level": 0}
HYPER = {"learning_rate_scale": np.float32(0.5), "guidance": np.float32(1.5), "steps": np.float32(4.0)}


def batch(size=8):
    rng = np.random.default_rng(0)
    return {"video": rng.integers(0, 256, (size, *SHAPE), np.uint8), "label": np.arange(size, dtype=np.int32) % 3}


def noisy(tree, seed=3):
    """No weight at zero, as zero-initialised gates would hide everything."""
    leaves, form = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        form, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


def close(found, wanted, largest=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=largest * max(1e-3, np.abs(b).max()))


def test_independent_samples_teach_the_same_in_parts():
    """Level and noise of a clip drawn from its label alone: two steps of Adam with clipping, in one part and in four."""
    model = build(dict(kind="mlp", shape=SHAPE, num_classes=0, width=16, depth=2))
    schedule = schedules.vp_cosine()

    def pose(state, frozen, given, key, hyper):
        def draw(label):
            own = jax.random.fold_in(jax.random.key(5), label)
            return jax.random.normal(own, SHAPE), jax.random.uniform(own, (), minval=-3.0, maxval=3.0)

        eps, logsnr = jax.vmap(draw)(given["label"])
        clips = given["video"] / 127.5 - 1.0
        x = levels.forward(clips, eps, logsnr, schedule)

        def loss(params):
            error = jnp.square(model.apply(params, x, logsnr, {}) - eps)
            return jnp.mean(error), {"clips": jnp.sum(logsnr < 9), "share": (jnp.sum(error), jnp.float32(error.size))}

        return loss

    rule = optimiser(1e-2)
    method = Method(
        regression.init(rule), {"train": descent({"": (1.0, pose)}, rule, ema=0.9)}, lambda step: ("train",)
    )
    given = batch() | {"label": np.arange(8, dtype=np.int32)}
    ends = {}
    for parts in (1, 4):
        step = jax.jit(accumulating(method, parts).phases["train"], compiler_options=QUICK)
        state = method.init(jax.random.key(0), noisy(model.init(jax.random.key(0))))
        for i in range(2):
            state, metrics = step(state, {}, given, jax.random.key(i), HYPER)
        ends[parts] = state, metrics
    close(ends[4], ends[1])
    assert ends[4][1]["clips"] == 8, "what counts adds up"
    assert ends[1][0].step == 2


OPTIONS = {
    "denoising": dict(label_dropout=0.5),
    "progressive": {},
    "mean_flow": {},
    "dmd2": dict(steps=2, source="simulated"),
    "rcm": dict(steps=2),
    "ladd": dict(steps=2),
}


def learning(name, rule):
    """(method, its first state, frozen): a small MLP by a method with all that it takes."""
    model = build(dict(kind="mlp", shape=SHAPE, num_classes=3, width=8, depth=1, cond=("logsnr_to",)))
    network = Network(model.apply, schedules.vp_cosine(), "v", 3, model.cond_keys)
    heads = Discriminator(
        model.features,
        lambda key: {"w": jnp.float32(0.3)},
        lambda heads, maps, label, logsnr: heads["w"] * jnp.sum(jnp.tanh(maps[0]), (1, 2, 3, 4))[:, None],
    )
    given = {"discriminator": heads} if configs.takes(name, "discriminator") else {}
    method = configs.method(name, OPTIONS[name], network, rule, 8, name, **given)
    params, teacher = (noisy(model.init(jax.random.key(0)), seed) for seed in (3, 4))
    denoiser = [teacher] if len(method.phases) > 1 else []
    return method, method.init(jax.random.key(1), params, *denoiser), {"teacher": teacher}


# The others have the same two makers of phases.
@pytest.mark.parametrize(
    "name", [name if name in ("dmd2", "rcm") else pytest.param(name, marks=pytest.mark.slow) for name in OPTIONS]
)
def test_every_phase_moves_by_the_mean_of_its_parts(name):
    """Plain gradient descent, and the average of weights, are linear in the gradient: the step of a batch in two parts is the
    mean of two steps from the same state, one with the even rows and one with the odd ones."""
    method, state, frozen = learning(name, optax.sgd(1e-2))
    key, whole = jax.random.key(7), batch()
    for phase, step in method.phases.items():
        # One part alone is the part itself; both are made by one program, which knows its rows and its key as arguments.
        alone = jax.jit(step, compiler_options=QUICK)
        ends = [
            alone(state, frozen, jax.tree.map(lambda rows, i=i: rows[i::2], whole), jax.random.fold_in(key, i), HYPER)
            for i in range(2)
        ]
        found, metrics = jax.jit(accumulating(method, 2).phases[phase], compiler_options=QUICK)(
            state, frozen, whole, key, HYPER
        )
        close(found, jax.tree.map(lambda a, b: (a + b) / 2, *(end for end, _ in ends)))
        seen = [told for _, told in ends]
        for name_, value in metrics.items():
            one, other = (told[name_] for told in seen)
            if isinstance(value, tuple):
                close(value, jax.tree.map(jnp.add, one, other))
            elif name_.endswith("non_finite"):
                assert value == one + other
            elif name_ != "grad_norm":
                np.testing.assert_allclose(value, (one + other) / 2, rtol=1e-4, atol=1e-6)
        assert 0 < metrics["grad_norm"] <= 1.0001 * sum(told["grad_norm"] for told in seen) / 2
        assert seen[0]["loss"] != seen[1]["loss"]


@pytest.mark.parametrize("name, parts", [("denoising", 1), ("dmd2", 2)])
@pytest.mark.filterwarnings("error:Some donated buffers were not usable")
def test_the_memory_of_the_old_state_is_that_of_the_new_one(name, parts):
    """Of every phase, the trees that it doesn't move included; the frozen weights are not given away."""
    method, state, frozen = learning(name, optimiser(1e-3))
    mesh = meshes.make(devices=jax.devices()[:1])
    state, frozen = meshes.put(state, mesh), meshes.put(frozen, mesh)
    given = meshes.put_batch(batch(), mesh, 8)
    for phase, step in loop.compile_phases(accumulating(method, parts), mesh).items():
        compiled = step.lower(state, frozen, given, jax.random.key(0), HYPER).compile(QUICK)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        assert compiled.memory_analysis().alias_size_in_bytes >= size, phase
        before = jax.tree.leaves(state)
        state, _ = compiled(state, frozen, given, jax.random.key(0), HYPER)
        assert all(leaf.is_deleted() for leaf in before), phase
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((frozen, given)))


def products(jaxpr):
    """The dtypes of all matrix products of a program, with those inside loops and calls."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            found.append({str(v.aval.dtype) for v in equation.invars})
        for inner in jax.core.jaxprs_in_params(equation.params):
            found += products(inner)
    return found


@pytest.mark.parametrize("kind", ["dit", pytest.param("unet", marks=pytest.mark.slow)])
def test_bfloat16_computes_and_float32_remembers(kind):
    """Weights, averages and moments stay float32, and so do the level's embedding and the loss; the gradient is near
    float32's. What is left in float32 are the products of the level's embedding, as many as there are without bfloat16."""
    sizes = dict(
        dit=dict(width=16, depth=1, head_dim=8, patch=2), unet=dict(widths=(8,), blocks=(1,), embed=8, head_dim=8)
    )
    states, programs = {}, {}
    for dtype in ("float32", "bfloat16"):
        model = build(dict(kind=kind, shape=SHAPE, num_classes=3, dtype=dtype, **sizes[kind]))
        network = Network(model.apply, schedules.vp_cosine(), "v", 3, model.cond_keys)
        method = METHODS["denoising"](
            network, optimiser=optimiser(1e-3), law=levels.uniform_time(network.schedule), weight=levels.v()
        )
        state = method.init(jax.random.key(0), noisy(model.init(jax.random.key(0))))
        step = accumulating(method, 2).phases["train"]
        states[dtype] = jax.jit(step, compiler_options=QUICK)(state, {}, batch(), jax.random.key(1), HYPER)
        assert {leaf.dtype for leaf in jax.tree.leaves(states[dtype][0])} == {np.dtype(np.float32), np.dtype(np.int32)}
        apply = jax.make_jaxpr(lambda p, x, model=model: model.apply(p, x, jnp.zeros(4), {"label": jnp.arange(4) % 3}))
        programs[dtype] = products(apply(state.params, jnp.zeros((4, *SHAPE))).jaxpr)
    wide, half = (jnp.concatenate([m.ravel() for m in jax.tree.leaves(states[d][0].opt[1][0].mu)]) for d in programs)
    assert 0 < np.linalg.norm(wide - half) < 0.03 * np.linalg.norm(wide)
    left = [kinds for kinds in programs["bfloat16"] if "float32" in kinds]
    assert len(left) >= 2 and len(left) < len(programs["bfloat16"]) and {"bfloat16"} in programs["bfloat16"]


def test_a_share_that_no_microbatch_can_have_is_refused(tmp_path):
    """Of 8 clips 6 jump; of 2 it would be one, and of 1 there is no other to learn the denoiser."""
    config = configs.plain(tiny.get_config())
    config["model"]["cond"] = ["logsnr_to"]
    config["stages"]["student"] |= dict(method="mean_flow", options=dict(law="uniform_time", share=0.75))
    del config["stages"]["student"]["student_steps"], config["stages"]["evaluate"]
    context = stages.Context(config, tmp_path, meshes.make(devices=jax.devices()[:1]))
    config["stages"]["student"] |= dict(accumulate=2)
    stages.check(context)
    config["stages"]["student"] |= dict(accumulate=4)
    with pytest.raises(
        ConfigError, match="student.accumulate: of a microbatch a share 0.5 would jump, of the batch 0.75"
    ):
        stages.check(context)
    for changes, named in (
        (dict(accumulate=8), "accumulate 8 of a batch of 8"),
        (dict(accumulate=1, batch_size=1), "batch_size 1"),
    ):
        config["stages"]["student"] |= changes
        with pytest.raises(ConfigError, match=f"student.{named}: of 1 clip no share 0.75 can jump"):
            stages.check(context)


@pytest.mark.parametrize("stage", ["student", "classifier"])
def test_a_batch_that_is_no_whole_number_of_parts_is_refused_by_name(stage, tmp_path):
    config = configs.plain(tiny.get_config())
    context = stages.Context(config, tmp_path, meshes.make(devices=jax.devices()[:1]))
    config["stages"][stage] |= dict(accumulate=4)
    stages.check(context)
    config["stages"][stage] |= dict(accumulate=3)
    where = f"config.stages.{stage}"
    with pytest.raises(ConfigError, match=rf"{where}.batch_size 8 is not divisible by {where}.accumulate 3; choose 9"):
        stages.check(context)
    config["stages"][stage] |= dict(accumulate=0)
    with pytest.raises(ConfigError, match=f"{where}.accumulate must be at least 1, got 0"):
        stages.check(context)
