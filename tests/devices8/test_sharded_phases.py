"""Every network and every family of methods on eight devices: loss and gradients are one device's, whatever the mesh."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import levels, schedules
from distill import METHODS, Discriminator, Network, optimiser
from experiments import autoencoder as autoencoders
from experiments import loop
from experiments import mesh as meshes
from models import build, build_heads
from models.autoencoder import DEFAULTS, build_autoencoder

COSINE = schedules.vp_cosine()
ALL = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=4) if np.prod(sizes) == 8]
SOME = [(1, 2, 2, 2), (2, 2, 1, 2), (1, 1, 8, 1)]
ONE = (1, 2, 2, 2)


def of_all(*quick):
    """All meshes; those that aren't `quick` only with the slow tests, half an hour of them."""
    return [pytest.param(sizes, marks=[] if sizes in quick else [pytest.mark.slow]) for sizes in ALL]


COMMON = dict(num_classes=3, shape=(8, 4, 4, 1))
# Eight heads, eight frames and a batch of eight: every axis can be eight long.
DIT = dict(COMMON, kind="dit", width=48, depth=1, head_dim=6, mlp_ratio=2)
NETWORKS = {
    "dit": DIT,
    "unrolled": dict(DIT, scan=False, dropout=0.2, depth=2),
    "causal": dict(DIT, causal=True),
    "unet": dict(
        COMMON, kind="unet", shape=(3, 16, 8, 1), widths=(8, 16), blocks=(1, 1), embed=16, head_dim=8, dropout=0.2
    ),
    "mlp": dict(COMMON, kind="mlp", width=16, depth=2),
}


def noisy(params, seed=3):
    """No weight at zero, as zero-initialised gates would hide everything."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


def one_step(method, params, frozen, shape, mesh, teacher=()):
    """Every phase once, in the order of step 0: the metrics and the whole state, and where that lives."""
    state = meshes.put(method.init(jax.random.key(1), jax.tree.map(jnp.copy, params), *teacher), mesh)
    frozen = meshes.put(frozen, mesh)
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (8, *shape), dtype=np.uint8)
    batch = meshes.put_batch({"video": video, "label": np.arange(8, dtype=np.int32) % 3}, mesh, 8)
    hyper = {k: np.float32(v) for k, v in {"learning_rate_scale": 1.0, "guidance": 1.5, "steps": 4.0}.items()}
    phases, seen = loop.compile_phases(method, mesh), {}
    places = jax.tree.map(lambda x: x.sharding, state)
    for name in method.phases:
        state, seen[name] = phases[name](state, frozen, batch, jax.random.key(2), hyper)
    assert jax.tree.map(lambda x: x.sharding, state) == places
    result = jax.device_get((seen, state))
    if mesh.size == 8:
        phases[name](state, frozen, batch, jax.random.key(3), hyper)
        assert phases[name]._cache_size() == 1
    return result


def same(one, other, largest=1e-5):
    """The loss, and every tree of the state within `largest` of its own greatest entry: Adam's first moments are gradients."""
    for phase, metrics in one[0].items():
        np.testing.assert_allclose(metrics["loss"], other[0][phase]["loss"], rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], other[0][phase]["grad_norm"], rtol=1e-5)
        assert metrics["grad_norm"] > 0
    found, wanted = (gradients(state) for _, state in (one, other))
    assert found and found.keys() == wanted.keys()
    for name in found:
        scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted[name]))
        for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(wanted[name]), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=largest * scale, err_msg=name)


def gradients(state):
    """The first moments of all optimisers of a state."""
    is_moments = lambda node: hasattr(node, "mu")  # noqa: E731
    nodes = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_moments)
    return {jax.tree_util.keystr(path): node.mu for path, node in nodes if is_moments(node)}


def mesh_of(sizes):
    return meshes.make(dict(zip(meshes.AXES, sizes, strict=True)))


def alone():
    return meshes.make(devices=jax.devices()[:1])


def denoising(name, **change):
    model = build({**NETWORKS[name], **change})
    network = Network(model.apply, COSINE, "v", model.num_classes, model.cond_keys)
    method = METHODS["denoising"](
        network, optimiser=optimiser(1e-3), law=levels.uniform_time(COSINE), weight=levels.v(), per_frame=True
    )
    return method, noisy(model.init(jax.random.key(0))), {}, model.shape


@pytest.fixture(scope="module")
def reference():
    """name -> one step of its method on one device, made once."""
    made = {}

    def of(name, problem):
        if name not in made:
            made[name] = one_step(*problem[:4], alone(), *problem[4:])
        return made[name]

    return of


@pytest.mark.parametrize("sizes", ALL)
def test_all_meshes_of_eight(sizes, reference):
    problem = denoising("causal")
    same(one_step(*problem, mesh_of(sizes)), reference("causal", problem))


@pytest.mark.parametrize("sizes", of_all(*SOME))
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "causal"])
def test_every_network(name, sizes, reference):
    problem = denoising(name)
    same(one_step(*problem, mesh_of(sizes)), reference(name, problem))


def progressive():
    model = build(NETWORKS["unet"])
    network = Network(model.apply, COSINE, "v", model.num_classes, model.cond_keys)
    method = METHODS["progressive"](network, optimiser=optimiser(1e-3), weight=levels.truncated_snr())
    params = [noisy(model.init(jax.random.key(0)), seed) for seed in (3, 4)]
    return method, params[0], {"teacher": params[1]}, model.shape


def mean_flow(attention):
    """A derivative forward through the network, with the tokens split."""
    model = build({**DIT, "level": "angle", "cond": ("logsnr_to",)}, attention)
    network = Network(model.apply, COSINE, "v", model.num_classes, model.cond_keys)
    law = levels.uniform_logsnr(COSINE, -4.0, 4.0)
    method = METHODS["mean_flow"](network, optimiser=optimiser(1e-3), law=law, share=1.0, p=0.0)
    return method, noisy(model.init(jax.random.key(0))), {}, model.shape


def dmd2(name):
    """Student, score and heads: three networks' worth of weights, two phases, backward simulation."""
    model = build({**NETWORKS[name], "dropout": 0.0})
    network = Network(model.apply, COSINE, "v", model.num_classes, model.cond_keys)
    heads = build_heads({"width": 8}, model.channels, model.num_classes)
    rule = optimiser(1e-3)
    method = METHODS["dmd2"](
        network, optimiser=rule, critic_optimiser=rule, steps=2, adversarial=1.0, discriminative=1.0,
        discriminator=Discriminator(model.features, heads.init, heads.apply),
    )  # fmt: skip
    params = [noisy(model.init(jax.random.key(0)), seed) for seed in (3, 4)]
    return method, params[0], {"teacher": params[1]}, model.shape, (params[1],)


def autoencoder():
    shape = (5, 16, 16, 1)
    pair = build_autoencoder({**DEFAULTS, "shape": shape, "widths": (8, 16), "blocks": 1, "patch": 2, "channels": 3})
    return autoencoders.method(pair, optimiser=optimiser(1e-3)), pair.init(jax.random.key(0)), {}, shape


FAMILIES = {
    "progressive": (progressive,),
    "mean_flow": (mean_flow, "checkpoint"),
    "mean_flow on a ring": (mean_flow, "ring"),
    "mean_flow by heads": (mean_flow, "ulysses"),
    "dmd2": (dmd2, "causal"),
    "dmd2 of a unet": (dmd2, "unet"),
    "autoencoder": (autoencoder,),
}


# dmd2 of a U-Net is as long as three others: its convolutions are the autoencoder's, its phases those of dmd2.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "dmd2 of a unet" else []) for name in FAMILIES]
)
@pytest.mark.parametrize("sizes", of_all(ONE))
def test_every_phase_of_every_family(name, sizes, reference):
    make, *given = FAMILIES[name]
    method, params, frozen, shape, *teacher = make(*given)
    # Every attention must give what plain attention gives on one device.
    plain, kind = (mean_flow("xla"), "mean_flow") if make is mean_flow else (make(*given), name)
    same(one_step(method, params, frozen, shape, mesh_of(sizes), *teacher), reference(kind, plain))
