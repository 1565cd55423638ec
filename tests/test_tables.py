"""Samplers of a config that ask the network: checked before, kept beside the run, refused for another network."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import fitted, oracles, sampling, schedules, solvers
from experiments import config as configs
from experiments import tables, weights
from experiments.config import ConfigError

VP = schedules.vp_linear()


def model_of(scale):
    mix = oracles.gaussian_mixture([0.4, 0.6], [[-scale], [scale]], [0.5, 0.5])
    return tables.Model(jax.tree_util.Partial(mix.denoiser(VP)), (1,), jax.random.key(0))


SMALL_FIT = {"kind": "fitted", "num_noises": 16, "iterations": 5, "num_starts": 1, "reference_steps": 40}
BLOCKS = [
    {"solver": {"kind": "best", "num_noises": 4}},
    {"solver": SMALL_FIT},
    {"solver": "unipc", "grid": {"kind": "optimised", "num_noises": 4, "num_points": 24}},
    {"solver": {"kind": "dpm_solver_v3", "num_noises": 4, "levels": 32}, "grid": "uniform_logsnr"},
]


@pytest.mark.parametrize("block", BLOCKS)
def test_what_asking_found_is_kept_and_used_again(block, tmp_path, capsys):
    tables.check(block, 5, VP, "here")
    one = tables.make(block, 5, VP, "here", model_of(2.0), tmp_path)
    assert one.nfe == 5 and "asks the network" in capsys.readouterr().out
    two = tables.make(block, 5, VP, "here", model_of(2.0), tmp_path)
    assert capsys.readouterr().out == ""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)
    tables.make(block, 5, VP, "here", model_of(1.0), tmp_path)  # another network: a table of its own, none is lost
    assert len(list(tmp_path.glob("*.npz"))) == 2
    sample = sampling.sample(model_of(2.0).denoise, one, jax.random.normal(jax.random.key(1), (64, 1)))
    assert bool(jnp.isfinite(sample).all())


@pytest.mark.parametrize("block", BLOCKS[:2])
def test_long_asking_says_how_far_it_is(block, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "EVERY", 0.0)
    tables.make(block, 2, VP, "here", model_of(2.0), tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("here: ")]
    done, total = zip(*(map(int, line.removeprefix("here: ").split("/")) for line in lines), strict=True)
    assert set(total) == {len(fitted.CANDIDATES) + (0 if block == BLOCKS[0] else SMALL_FIT["iterations"])}
    assert list(done) == sorted(done) and 0 <= done[0] < done[-1] <= total[0]
    with pytest.raises(ConfigError, match="progress"):
        tables.check({"solver": {**block["solver"], "progress": 1}}, 2, VP, "here")


def test_a_shipped_table_serves_its_network_alone(tmp_path, monkeypatch, capsys):
    block = {"solver": {"kind": "best", "num_noises": 4}}
    monkeypatch.setattr(weights, "PRETRAINED", tmp_path)
    one = tables.make(block, 5, VP, "here", model_of(2.0), tmp_path / "digits/tables")
    capsys.readouterr()
    two = tables.make(block, 5, VP, "here", model_of(2.0), tmp_path / "run")
    assert "is shipped for this network" in capsys.readouterr().out
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)
    tables.make(block, 5, VP, "here", model_of(1.0), tmp_path / "run")
    tables.make(block, 4, VP, "here", model_of(2.0), tmp_path / "run")
    assert capsys.readouterr().out.count("asks the network") == 2


@pytest.mark.parametrize("kind", ["best", "fitted", "dpm_solver_v3"])
def test_what_is_asked_about_is_never_what_is_sampled_from(kind, monkeypatch):
    """256 clips from noise of the model's own key: none of them begins as one that the network was asked about."""
    known, asked = tables.SOLVERS[kind], []

    def spy(*given, key, **rest):
        asked.append(sampling.normal(key, (64, 1)))
        return known(*given, key=key, **rest)

    spy.__signature__ = inspect.signature(known)
    monkeypatch.setitem(tables.SOLVERS, kind, spy)
    block = {"solver": {**SMALL_FIT, "kind": kind}} if kind == "fitted" else {"solver": {"kind": kind, "num_noises": 4}}
    model = model_of(2.0)
    tables.make(block, 4, VP, "here", model)
    assert not np.isin(asked[0], sampling.normal(model.key, (256, 1))).any()


def test_a_kept_table_is_refused_for_another_network(tmp_path):
    tables.make({"solver": SMALL_FIT}, 4, VP, "here", model_of(2.0), tmp_path)
    path = next(tmp_path.glob("fitted_4_*.npz"))
    table, record = tables.load(path, VP, model_of(2.0), "--table")
    assert table.nfe == 4 and record["errors"]["fitted"]["held_out"]["rmse"] >= 0
    with pytest.raises(ConfigError, match="fingerprint"):
        tables.load(path, VP, model_of(1.0), "--table")
    with pytest.raises(ConfigError, match="no table at"):
        tables.load(tmp_path / "other.npz", VP, model_of(2.0), "--table")


@pytest.mark.parametrize(
    "block, steps, message",
    [
        ({"solver": "bset"}, 4, "did you mean 'best'"),
        ({"solver": "best", "grid": "karras"}, 4, "chooses its own grid"),
        ({"solver": {"kind": "fitted", "num_noise": 8}}, 4, "did you mean 'num_noises'"),
        ({"solver": "best"}, 0, "0"),
        ({"solver": "ddim", "grid": {"kind": "optimised", "ordr": 2}}, 4, "did you mean 'order'"),
        ({"solver": {"kind": "ddim", "eta": 2.0}}, 4, "eta"),
        ({"slover": "ddim"}, 4, "did you mean 'solver'"),
        ({"solver": "dpm_solver_v3", "grid": "kaaras"}, 4, "did you mean 'karras'"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(block, steps, message):
    with pytest.raises(ConfigError, match=message):
        tables.check(block, steps, VP, "here")


def test_asking_without_a_network_is_refused():
    with pytest.raises(ConfigError, match="must ask the network"):
        tables.make({"solver": "best"}, 4, VP, "here")


# Options that have no default, beside what the program gives.
OPTIONS = {
    "restart": {"intervals": [[-2.0, 1.0, 3, 1]]},
    "vp_cosine_interpolated": {"shift_noise": 2.0},
    "rescaled": {"of": "edm", "scaling": "VP"},
}
CHAIN = configs.SCHEDULES["ddpm_chain"]()


@pytest.mark.parametrize("name", sorted(configs.SOLVERS))
def test_every_solver_is_made_by_name(name):
    table = tables.make({"solver": {"kind": name, **OPTIONS.get(name, {})}}, 6, CHAIN, "here")
    assert isinstance(table, solvers.Table) and table.nfe >= 6


@pytest.mark.parametrize("name", sorted(configs.GRIDS))
def test_every_grid_is_made_by_name(name):
    assert tables.make({"grid": name}, 6, CHAIN, "here").nfe == 6


@pytest.mark.parametrize("name", sorted(configs.SCHEDULES))
def test_every_schedule_is_made_by_name(name):
    schedule = configs.named({"kind": name, **OPTIONS.get(name, {})}, configs.SCHEDULES, "here")
    assert schedule.logsnr_start < schedule.logsnr_end
    assert schedules.restore(schedules.record(schedule)) == schedule


@pytest.mark.parametrize("choices", [configs.LAWS, configs.WEIGHTS])
def test_laws_and_weights_are_functions_with_options_by_name(choices):
    for name in choices:
        given = {"schedule": VP} if "schedule" in inspect.signature(choices[name]).parameters else {}
        made = configs.named(
            {"kind": name, **({"num_levels": 10} if name == "ict_discretised" else {})}, choices, "here", **given
        )
        values = (
            made(jax.random.key(0), (2, 4)) if choices is configs.LAWS else made(jnp.linspace(-5, 5, 8).reshape(2, 4))
        )
        assert values.shape == (2, 4) and bool(jnp.isfinite(values).all())
