"""Noise that hangs together over frames in training: every method draws it, the best denoiser is another one, and sampling
begins with the same.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.moving_digits import joint
from diffusion import levels, noise, oracles, sampling, schedules, solvers
from distill import METHODS, Discriminator, Network, denoising
from experiments import config as configs
from experiments import drawing, mesh, stages, tables, weights
from experiments import run as program
from experiments.metrics import validation
from tests.configs import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation")

COSINE, FRAMES = schedules.vp_cosine(), 4
SOURCES = {"iid": noise.iid(), "mixed": noise.mixed(2.0), "progressive": noise.progressive(1.0)}
VIDEO = oracles.gaussian_process(oracles.ornstein_uhlenbeck(FRAMES, 0.9))


def answer(source, level):
    """The exact denoiser's matrix over frames, under the noise's covariance."""
    denoise = VIDEO.denoiser(COSINE, source.covariance(FRAMES))
    return np.asarray(denoise(np.eye(FRAMES)[..., None, None, None], level))[..., 0, 0, 0].T


@pytest.mark.parametrize("name", SOURCES)
def test_regression_on_what_training_shows_finds_the_exact_denoiser_under_that_noise(name):
    """Linear regression of the targets of one large step on its inputs: the denoiser of this noise, and of no other."""
    level, network = 0.5, Network(None, COSINE, "x0", noise=SOURCES[name])
    objective = denoising.objective(network, law=lambda key, shape: jnp.full(shape, level), weight=levels.uniform())
    batch = {"video": VIDEO.sample(jax.random.key(0), 40_000)}
    problem = objective(None, {}, batch, jax.random.key(1), {})
    shown, goal = (np.asarray(part).reshape(-1, FRAMES) for part in (problem.x, problem.target(problem.x, None)))
    found = np.linalg.lstsq(shown, goal, rcond=None)[0].T
    apart = {other: np.abs(found - answer(source, level)).max() for other, source in SOURCES.items()}
    assert apart.pop(name) < 0.02 and min(apart.values()) > 0.1


@pytest.mark.parametrize("name", METHODS)
def test_every_method_draws_its_noise_from_the_networks_source(name, monkeypatch):
    drawn = []  # uniform numbers, so that normal ones are from anywhere else

    def source(key, shape, dtype=jnp.float32):
        drawn.append(shape)
        return jax.random.uniform(key, shape, dtype)

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        return params["a"] * x + params["label"][cond["label"]].mean()

    network = Network(apply, COSINE, "v", 3, ("label", "guidance", "logsnr_to"), noise=source)
    given = {}
    if configs.takes(name, "discriminator"):
        given["discriminator"] = Discriminator(
            lambda params, x, logsnr, cond: (x * params["a"],),
            lambda key: {"w": jnp.float32(0.3)},
            lambda heads, maps, label, logsnr: heads["w"] * jnp.sum(maps[0], (1, 2, 3, 4))[:, None],
        )
    method = configs.method(name, {}, network, optax.sgd(1e-2), 8, name, **given)
    params = {"a": jnp.float32(0.7), "label": jnp.array([0.1, 0.0, -0.1, 0.05])}
    state = method.init(jax.random.key(0), params)
    frozen = {"teacher": params, "previous": params, "features": params}
    batch = {"video": jnp.zeros((6, 2, 2, 2, 1), jnp.uint8), "label": jnp.zeros(6, jnp.int32)}
    hyper = {"learning_rate_scale": 1.0, "guidance": 1.5, "steps": 4.0}

    def elsewhere(*_, **__):
        raise AssertionError("noise that is not the source's")

    monkeypatch.setattr(jax.random, "normal", elsewhere)
    for phase in method.phases.values():
        drawn.clear()
        jax.eval_shape(phase, state, frozen, batch, jax.random.key(1), hyper)
        assert drawn and all(shape[1:] == (2, 2, 2, 1) for shape in drawn)


def test_the_loss_by_level_is_that_of_the_noise_it_is_told():
    """The exact denoiser of a noise has the least loss under it: tr of the posterior's covariance."""
    source, level = SOURCES["mixed"], 0.0
    clips = VIDEO.sample(jax.random.key(0), 2_000)
    found = {
        name: validation.loss_by_level(
            VIDEO.denoiser(COSINE, of.covariance(FRAMES)), COSINE, clips, jax.random.key(1), levels=[level],
            noise=source, bootstrap=2,
        )["0"].value
        for name, of in list(SOURCES.items())[:2]
    }  # fmt: skip
    alpha, sigma = COSINE.alpha(level), COSINE.sigma(level)
    prior = np.asarray(oracles.ornstein_uhlenbeck(FRAMES, 0.9))
    noisy = alpha**2 * prior + sigma**2 * source.covariance(FRAMES)
    left = np.trace(prior - alpha**2 * prior @ np.linalg.solve(noisy, prior)) / FRAMES
    assert found["mixed"] == pytest.approx(2 * left, rel=0.05) and found["mixed"] < 0.9 * found["iid"]


# The program --------------------------------------------------------------------------------------------------


def config(**block) -> Any:
    made: Any = tiny.get_config()
    made.stages = {"teacher": made.stages.teacher}
    made.stages.teacher.steps = 1
    made.noise = block
    return made


def small_joint() -> Any:
    """configs/moving_digits/joint.py with a small network, for a step: half of the noise is the same in all frames."""
    made: Any = joint.get_config()
    made.model.update(widths=(4, 8), blocks=(1, 1), embed=8, head_dim=8)
    made.stages = {"teacher": made.stages.teacher}
    del made.stages.teacher["init"]
    made.stages.teacher.update(steps=1, batch_size=8, tensorboard=False)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    file = folder / "config.py"
    file.write_text("from tests.test_noise_training import small_joint as get_config\n")
    assert program.main(["run", f"--config={file}", f"--workdir={folder / 'run'}"]) == 0
    return folder / "run"


def test_weights_are_sampled_with_the_noise_that_they_were_trained_with(folder):
    """What sampling begins with, and what a network that knows nothing is left with, has the covariance of the source."""
    source, covariance = noise.mixed(1.0), noise.mixed(1.0).covariance(8)
    params, network, record = drawing.load_network(folder / "teacher" / "weights.safetensors")
    assert record["noise"] == {"kind": "mixed", "a": 1.0} and network.noise == source
    start = drawing.start(network, jax.random.key(0), (32, *record["shape"]))
    np.testing.assert_allclose(np.cov(np.moveaxis(start, 1, 0).reshape(8, -1)), covariance, atol=0.05)
    still = network._replace(apply=lambda params, x, logsnr, cond, **_: 0 * x, prediction="x0")
    table = solvers.ddim(COSINE, np.array([-20.0, -4.0, 0.0]), eta=1.0)  # it ends halfway, with noise of its own
    made = drawing.drawn(still, params, table, np.zeros(32, np.int32), start, jax.random.key(1))
    np.testing.assert_allclose(np.cov(np.moveaxis(np.asarray(made), 1, 0).reshape(8, -1)), covariance / 2, atol=0.03)


def test_the_joint_config_samples_its_sweeps(folder):
    params, network, record = drawing.load_network(folder / "teacher" / "weights.safetensors")
    start = drawing.start(network, jax.random.key(0), (2, *record["shape"]))
    whole: Any = joint.get_config()
    sampler = whole.stages.evaluate.samplers.columns.to_dict()
    block = {part: sampler[part] for part in ("solver", "matrix")}
    model = tables.Model(drawing.classes_in_turn(network, params, 1.0), tuple(record["shape"]), jax.random.key(1))
    table = tables.make(block, 2, COSINE, "joint", model)
    made = drawing.drawn(network, params, table, np.zeros(2, np.int32), start, jax.random.key(1))
    assert made.shape == (2, 8, 16, 16, 1) and np.isfinite(made).all() and np.ptp(np.asarray(made)) > 0


def refused(made, tmp_path, said):
    with pytest.raises(configs.ConfigError, match=said):
        stages.check(stages.Context(configs.plain(made), tmp_path, mesh.make()))


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (dict(kind="mixd"), "config.noise.kind 'mixd' is not known; did you mean 'mixed'"),
        (dict(kind="mixed", b=1.0), "config.noise has no key 'b'"),
        (dict(kind="mixed", a=-1.0), "config.noise: mixed noise: expected a in"),
        (dict(kind="block_correlated", correlation=0.5, block=5), "config.noise: .* multiples of 5, got 16 x 16"),
        (dict(kind="window_shuffled", window=4, stride=3), "nearest stride: 2"),
        (dict(kind="warped", flow=[[[[0, 1]]]]), r"config.noise: warped noise: the flow is for .* \(2, 1, 1\)"),
        (dict(kind="os:getcwd"), "config.noise.kind 'os:getcwd' is not known"),
    ],
)  # fmt: skip
def test_a_wrong_source_is_refused_before_any_work(block, said, tmp_path):
    made = config(**block)
    refused(made, tmp_path, said)
    made.stages = {}  # nor does it wait for a stage that trains
    refused(made, tmp_path, said)


def test_exact_laws_know_independent_noise_only(tmp_path):
    made = config(kind="mixed")
    made.data = dict(kind="exact", name="a1d")
    refused(made, tmp_path, "config.noise: exact laws are known under independent noise only")


def test_a_teacher_of_another_noise_is_refused_and_weights_to_begin_with_are_not(folder, tmp_path):
    path, made = str(folder / "teacher" / "weights.safetensors"), small_joint()
    given = dict(kind="train", method="progressive", teacher=path, student_steps=[2, 1], steps=1, batch_size=8)
    made.stages = {"student": given}
    made.noise = dict(kind="progressive", a=1.0)
    refused(made, tmp_path, "was trained with noise .*'mixed'.*, config.noise is .*'progressive'")
    made.noise = dict(kind="mixed", a=1)  # an equal number is the same source
    stages.check(stages.Context(configs.plain(made), tmp_path, mesh.make()))
    made = small_joint()
    made.noise = dict(kind="progressive", a=1.0)
    made.stages.teacher.init = path
    stages.check(stages.Context(configs.plain(made), tmp_path, mesh.make()))


def test_independent_noise_by_name_is_what_there_is_without(tmp_path):
    assert configs.same_noise(configs.noise({"noise": "iid"}, (3, 4, 4, 1)), sampling.normal)
    assert not configs.same_noise(noise.mixed(1.0), noise.mixed(2.0))
    flow = np.ones((1, 2, 2, 2), int)
    assert configs.same_noise(noise.warped(flow), noise.warped(flow))
    assert not configs.same_noise(noise.warped(flow), noise.warped(0 * flow))
    path = pathlib.Path(weights.PRETRAINED / "moving_digits/teacher.safetensors")
    assert drawing.load_network(path)[1].noise is sampling.normal
