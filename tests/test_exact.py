"""Data whose law is known, and the stage that holds samplers against it."""

from statistics import NormalDist

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import config as configs
from experiments import data, exact, run
from experiments.data.exact import LAWS, Exact


@pytest.mark.parametrize("name", sorted(LAWS))
def test_clips_are_draws_of_the_law_and_pure_functions_of_their_index(name):
    one, two = Exact(name, size=20000), Exact(name, size=20000)
    np.testing.assert_array_equal(one[7]["video"], two[7]["video"])
    assert one[7]["video"].shape == one.shape and one[7]["video"].dtype == np.float32
    assert not np.array_equal(one[0]["video"], Exact(name, size=20000, split="test")[0]["video"])
    flat = one.clips.reshape(len(one), -1)
    # Mean and covariance in closed form: of two modes, of a ring, of the process.
    expected = {
        "a1d": ([0.4], [[1 + 4 - 0.4**2]]),
        "eight_mode_ring": ([0, 0], (2.0**2 / 2 + 0.1**2) * np.eye(2)),
        "gaussian_process": (np.zeros(8), np.exp(-(np.subtract.outer(range(8), range(8)) ** 2) / 8) + 0.01 * np.eye(8)),
    }[name]
    np.testing.assert_allclose(flat.mean(0), expected[0], atol=0.06)
    np.testing.assert_allclose(np.cov(flat.T).reshape(np.shape(expected[1])), expected[1], atol=0.09)


def test_batches_of_float_clips_are_read():
    batch = next(data.Batches(Exact("eight_mode_ring", size=64), 16))
    assert batch["video"].shape == (16, 1, 1, 1, 2) and batch["video"].dtype == np.float32


def test_the_wasserstein_distance_of_known_moves():
    rng = np.random.default_rng(0)
    for d in (1, 2, 5):
        points = rng.standard_normal((200, d))
        assert exact.wasserstein(points, points) == pytest.approx(0, abs=1e-6)
        # A shift is the optimal transport between a set and itself shifted; the order of points doesn't matter.
        assert exact.wasserstein(rng.permutation(points + 0.3), points) == pytest.approx(0.3 * np.sqrt(d), rel=1e-6)
        if d <= 2:
            moved = exact.wasserstein(rng.permutation(points + 0.3), points, 1)
            assert moved == pytest.approx(0.3 * np.sqrt(d), rel=1e-6)
    # A tenth of the mass that is 2 away costs .2 in order 1, sqrt(.1) 2 in order 2.
    heap, astray = np.zeros((50, 1)), np.where(np.arange(50) < 5, 2.0, 0.0)[:, None]
    assert [exact.wasserstein(astray, heap, order) for order in (1, 2)] == pytest.approx([0.2, 2 * 0.1**0.5])
    # Two halves that only swap places cost nothing, though every point is far from its own.
    pair = np.repeat([[-2.0, 0.0], [2.0, 0.0]], 50, axis=0)
    assert exact.wasserstein(-pair, pair) == pytest.approx(0, abs=1e-9)


def test_the_energy_distance_has_no_floor_and_no_liking_for_pairs():
    """Against its closed form for a shift d on the line, 2 E|N(d, 2)| - 2 E|N(0, 2)|; pairing must not change its mean."""
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((40, 2, 300, 1))
    x, y = draws[0]
    assert exact.energy(x, x) == pytest.approx(0, abs=1e-12)
    for shift in (0.0, 0.5, 2.0):
        truth = 2 * (2 * np.exp(-(shift**2) / 4) / np.sqrt(np.pi) + shift * (2 * NormalDist().cdf(shift / 2**0.5) - 1))
        truth -= 4 / np.sqrt(np.pi)
        fresh = np.array([exact.energy(x + shift, y) for x, y in draws])
        paired = np.array([exact.energy(x + shift, x) for x, _ in draws])
        for values in (fresh, paired):
            assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(len(values)) + 1e-12
    points = rng.standard_normal((50, 3))
    assert exact.energy(points + 5.0, points) > exact.energy(points + 1.0, points) > 0


@pytest.mark.parametrize("noise", exact.NOISES)
def test_the_energy_distance_of_the_law_itself_is_zero_on_average(noise):
    """Also where points of one draw keep away from each other: between all pairs they seem wider than the law."""
    n, found, all_pairs = 64, [], []
    rng = np.random.default_rng(0)
    for i in range(200):
        flow, drawn = exact.NOISES[noise](jax.random.key(i), (n, 1)), rng.standard_normal((n, 1))
        found.append(exact.energy(drawn, flow, exact.groups(noise, n)))
        all_pairs.append(exact.energy(drawn, flow))
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found)) < 4 * error
    assert (abs(np.mean(all_pairs)) > 6 * error) == (noise == "sobol")


@pytest.mark.parametrize("noise", exact.NOISES)
def test_a_few_clips_have_intervals(noise):
    """Of four noises a resample may hold no two that are independent."""
    source, n = Exact("a1d", split="test"), 4
    drawn = np.random.default_rng(0).standard_normal((2, n, 1))
    found = exact.measure(*drawn, source, 100, exact.groups(noise, n))
    assert np.isfinite(list(found.values())).all()


def test_modes_are_counted():
    ring, two = Exact("eight_mode_ring").oracle, Exact("a1d").oracle
    assert exact.modes_kept(np.repeat(ring.means, 10, 0), ring) == 8
    assert exact.modes_kept(np.repeat(ring.means[:5], 10, 0), ring) == 5
    assert exact.modes_kept(np.zeros((100, 2)), ring) == 0
    # Modes that overlap: a point is of one mode only, and of none far out. The weights are .4 and .6.
    assert exact.modes_kept(np.reshape([2.0] * 87 + [-2.0] * 13, (100, 1)), two) == 1
    assert exact.modes_kept(np.reshape([2.0] * 86 + [-2.0] * 14, (100, 1)), two) == 2
    assert exact.modes_kept(np.full((100, 1), 7.0), two) == 0


def test_even_noise_leaves_little_to_chance():
    """The distance between the exact flow's samples from two draws of the noise, which is 0 for the law itself."""
    source = Exact("eight_mode_ring")
    schedule = configs.schedule({"schedule": dict(kind="vp_cosine")})
    distance = {}
    for name, noise in exact.NOISES.items():
        one, two = (exact.truth(source, schedule, jax.random.key(i), 512, noise)[1].reshape(512, 2) for i in (0, 1))
        distance[name] = [exact.wasserstein(one, two, order) for order in (1, 2)]
        np.testing.assert_allclose(one.mean(0), 0, atol=0.2)
    assert distance["sobol"][0] < 0.5 * distance["independent"][0]
    assert distance["sobol"][1] < 0.7 * distance["independent"][1]


def config_of(name, samplers):
    config = ConfigDict(dict(seed=0, data=dict(kind="exact", name=name, size=2048), schedule=dict(kind="vp_cosine")))
    config.stages = ConfigDict(dict(exact=dict(kind="exact", num_clips=256, bootstrap=20, samplers=samplers)))
    return config


def start(tmp_path, config):
    path = tmp_path / "config.py"
    text = f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({config.to_dict()!r})\n"
    path.write_text(text)
    return run.main(["run", f"--config={path}", f"--workdir={tmp_path / 'run'}"])


def test_the_stage_measures_what_is_known(tmp_path):
    """On the Gaussian process DDIM's error falls with its steps at first order, and a better sampler stands below it."""
    samplers = {f"ddim_{n}": dict(weights="oracle", steps=n) for n in (1, 32, 64)}
    samplers["best_16"] = dict(weights="oracle", steps=16, solver="best")
    assert not start(tmp_path, config_of("gaussian_process", samplers))
    report = configs.read_json(tmp_path / "run" / "report.json")["metrics"]
    error = {row: report[row]["flow_map_rmse"][0] for row in samplers}
    # With one call every sample is the mean, 0: the error is the spread of the law, of trace 1.01 a frame.
    assert error["ddim_1"] == pytest.approx(np.sqrt(1.01), rel=0.1)
    assert error["ddim_32"] / error["ddim_64"] == pytest.approx(2, rel=0.2)
    assert error["best_16"] < 0.1 * error["ddim_64"]
    low, high = report["ddim_64"]["wasserstein"][1:]
    assert low <= report["ddim_64"]["wasserstein"][0] <= high
    assert (tmp_path / "run" / "exact" / "samples.png").stat().st_size > 5000
    assert list((tmp_path / "run" / "exact" / "tables").glob("best_16_*.npz"))


def test_a_grid_of_its_own_start_begins_at_the_noise_of_that_level(tmp_path):
    """Of a schedule whose noise grows without end: begun at the size of the schedule's start, all would end far away."""
    config = config_of("a1d", {"late": dict(weights="oracle", steps=32, grid=dict(kind="karras", start=-4.0))})
    config.schedule = dict(kind="edm")
    assert not start(tmp_path, config)
    assert configs.read_json(tmp_path / "run" / "report.json")["metrics"]["late"]["wasserstein"][0] < 0.5


def test_a_student_does_not_begin_as_the_oracle_which_has_no_weights(tmp_path, capsys):
    config = "--config=configs/mixture/students.py:reflow,a1d"
    begins = "--config.stages.reflow.init=oracle"
    assert run.main(["run", config, begins, f"--workdir={tmp_path}"]) == 2
    assert "config.stages.reflow refers to 'oracle', which is no stage before it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(samplers=dict(a=dict(weights="oracle", steps=0))), "0"),
        (dict(samplers=dict(a=dict(weights="oracel", steps=1))), "refers to 'oracel'"),
        (dict(samplers=dict(a=dict(weights="oracle", stps=1))), "did you mean 'steps'"),
        (dict(samplers=dict()), "empty"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, change, message):
    config = config_of("a1d", dict(a=dict(weights="oracle", steps=1)))
    config.stages.exact.samplers = ConfigDict(change["samplers"])
    assert start(tmp_path, config) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_weights_of_other_points_are_refused_before_any_work(tmp_path, capsys):
    config = config_of("a1d", {"a": dict(weights="pretrained:moving_digits/teacher", steps=1)})
    assert start(tmp_path, config) == 2
    assert "exact.samplers.a.weights does not fit: its" in capsys.readouterr().err
    assert not (tmp_path / "run/exact").exists()


def test_an_exact_teacher_needs_an_exact_law(tmp_path, capsys):
    config = config_of("a1d", dict(a=dict(weights="oracle", steps=1)))
    config.data = ConfigDict(dict(kind="moving_digits", size=16, frames=8))
    assert start(tmp_path, config) == 2
    assert "law is known" in capsys.readouterr().err


def test_an_unknown_law_is_refused():
    with pytest.raises(KeyError, match="did you mean 'a1d'"):
        Exact("a2d")
    assert jax.tree.leaves(Exact("a1d").oracle)
