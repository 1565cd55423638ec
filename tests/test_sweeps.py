"""Sweeps: points, shards, resuming, refusals, and a tiny one from end to end."""

import itertools
import json
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import ablate, mesh, stages
from experiments import config as configs
from experiments import run as runner
from experiments.ablations import sweep
from experiments.config import ConfigError
from experiments.run import parse

CONFIGS = sorted(path for path in pathlib.Path("configs/ablations").glob("*.py") if path.stem != "__init__")


def tiny(**block):
    config = ConfigDict(
        dict(
            seed=0, data=dict(kind="exact", name="a1d", size=64), schedule=dict(kind="vp_cosine"),
            stages=dict(
                exact=dict(kind="exact", num_clips=16, bootstrap=4, samplers=dict(oracle=dict(weights="oracle", steps=2)))
            ),
            sweep=dict(
                axes=dict(
                    steps=dict(path="stages.exact.samplers.oracle.steps", values=(2, 8)),
                    solver=dict(path="stages.exact.samplers.oracle", values=[{}, dict(solver="heun")], labels=["ddim", "heun"]),
                ),
                columns={"error": dict(path=("exact", "metrics", "oracle", "flow_map_rmse"))},
            ),
        )
    )  # fmt: skip
    plain = configs.plain(config)
    plain["sweep"] |= block
    return plain


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_point_of_the_shipped_sweeps_is_one_that_the_program_takes(path, tmp_path):
    config, *_ = parse(["ablate", f"--config={path}", f"--workdir={tmp_path}"])
    found = sweep.runs(config)
    for run in found:
        stages.check(stages.Context(run.config, tmp_path / run.folder, mesh.make()))
    assert len({json.dumps(run.config, sort_keys=True) for run in found}) == len(found) > 1


def test_a_point_is_the_config_with_its_values():
    found = {tuple(run.labels.values()): run.config for run in sweep.runs(tiny())}
    assert list(found) == [("2", "ddim"), ("2", "heun"), ("8", "ddim"), ("8", "heun")]
    sampler = found["8", "heun"]["stages"]["exact"]["samplers"]["oracle"]
    assert sampler == dict(weights="oracle", steps=8, solver="heun") and "sweep" not in found["8", "heun"]
    # Merging into one point leaves the others alone.
    assert "solver" not in found["8", "ddim"]["stages"]["exact"]["samplers"]["oracle"]


def test_chosen_points_and_seeds():
    found = sweep.runs(tiny(points=[{}, dict(solver="heun")], seeds=[3, 4]))
    assert [(*run.labels.values(), run.config["seed"]) for run in found] == [
        ("2", "ddim", 3), ("2", "ddim", 4), ("2", "heun", 3), ("2", "heun", 4),
    ]  # fmt: skip


@pytest.mark.parametrize("hosts", [1, 2, 3, 5])
def test_every_run_is_one_hosts(hosts):
    everything = sweep.runs(tiny())
    shards = [[run.folder for run in sweep.shard(everything, f"{i}/{hosts}")] for i in range(hosts)]
    assert sorted(itertools.chain(*shards)) == sorted(run.folder for run in everything)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("index", ["2/2", "1", "a/b", "-1/2"])
def test_a_host_that_is_not_one_of_them_is_refused(index):
    with pytest.raises(ConfigError, match="--index is i/n"):
        sweep.shard(sweep.runs(tiny()), index)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (dict(axis={}), "did you mean 'axes'"),
        (dict(points=[dict(solvers="heun")]), "did you mean 'solver'"),
        (dict(points=[dict(solver="huen")]), "did you mean 'heun'"),
        (dict(points=[{}, {}]), "same labels"),
        (dict(axes=dict(steps=dict(path="stages.exat.steps", values=[1]))), "did you mean 'exact'"),
        (dict(axes=dict(steps=dict(path="seed", values=[1, 2], labels=["a"]))), "a label of its own"),
        (dict(axes=dict(steps=dict(paths="seed", values=[1, 2]))), "did you mean 'path'"),
        (dict(axes=dict(steps=dict(path="prediction.foo", values=[1]))), "has no key 'prediction'"),
        (dict(axes=dict(steps=dict(path="seed.foo", values=[1]))), "config.seed is a value, it has no key 'foo'"),
        (dict(axes=dict(steps=dict(path=3, values=[1]))), "axes.steps.path: expected a name, got 3"),
        (dict(axes=dict(steps=dict(path="seed", values=3))), "axes.steps.values: expected a list, got 3"),
        (dict(axes=dict(steps=4)), "axes.steps: expected a block of keys, got 4"),
        (dict(seeds=3), "sweep.seeds: expected a list, got 3"),
        (dict(seeds=[]), "sweep.seeds: expected at least one"),
        (dict(seeds=[1, 1]), r"sweep.seeds: expected at least one, and none twice, got \[1, 1\]"),
        (dict(seeds=["a"]), r"sweep.seeds\[0\]"),
        (dict(points=["steps"]), r"points\[0\]: expected labels by axis, got 'steps'"),
        (dict(about=3), "sweep.about: expected a name, got 3"),
        (dict(columns={"error": dict(path=())}), r"path: expected \(a stage, keys of its report.json"),
        (dict(columns={"error": dict(path="exact.metrics")}), r"path: expected \(a stage, keys of its report.json"),
        (dict(columns={"error": dict(path=("exatc", "metrics"))}), "the stage 'exatc' is not known; .*'exact'"),
        (dict(columns={"error": dict(better="higher")}), "lacks the key 'path'"),
        (dict(columns={"error": dict(path=("exact",), over="last")}), "over 'last' is not known; .*mean"),
        (dict(columns={"error": dict(path=("exact",), better="more")}), "better 'more' is not known"),
    ],
)
def test_a_wrong_block_is_refused_by_name(block, words):
    with pytest.raises(ConfigError, match=words):
        sweep.runs(tiny(**block))


@pytest.mark.parametrize("path", [("calls",), ("row",), ("name",)])
def test_a_column_that_leads_to_no_measure_is_named(tmp_path, path):
    (tmp_path / "exact").mkdir()
    report = {"calls": 4, "row": {"error": [1.0, 0.5, 2.0]}, "name": "ddim"}
    (tmp_path / "exact/report.json").write_text(json.dumps(report))
    (tmp_path / "exact/done.json").write_text("{}")
    with pytest.raises(ConfigError, match=f"{path[0]} is no measure"):
        sweep.measured(tmp_path, ("exact", *path))
    assert sweep.measured(tmp_path, ("exact", "row", "error")) == [1.0, 0.5, 2.0]


def test_a_wrong_point_is_refused_before_any_work(tmp_path):
    config = tiny()
    config["sweep"]["axes"]["solver"]["values"][1]["solver"] = "huen"
    with pytest.raises(ConfigError, match="point steps=2-solver=heun-seed=0: .*did you mean 'heun'"):
        sweep.sweep(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_best_and_what_cannot_be_told_from_it():
    found = [
        sweep.Number(2, 1, 3),
        sweep.Number(1.5, 1.2, 1.8),
        sweep.Number(3, 2.5, 3.5),
        None,
        sweep.Number(np.nan, 0, 0),
    ]
    assert sweep.best(found, "lower") == {0, 1} and sweep.best(found, "higher") == {0, 2}
    assert sweep.best([None], "lower") == set()
    # Of a best that isn't sure itself, a precise row within its interval can't be told either.
    wide, precise, apart = (
        sweep.Number(0.169, 0.094, 0.243),
        sweep.Number(0.184, 0.173, 0.196),
        sweep.Number(0.3, 0.25, 0.35),
    )
    assert sweep.best([wide, precise, apart], "lower") == {0, 1}


def test_a_seed_that_breaks_down_is_shown(tmp_path, monkeypatch):
    """Of three, by a column that asks for the worst, in the direction that is the worse one."""
    triples = iter([[1.0, 0.9, 1.1], [8.0, 7.0, 9.0], [2.0, 1.9, 2.1]] * 3)
    monkeypatch.setattr(sweep, "measured", lambda folder, path: next(triples))
    own = [sweep.Run({}, "x", {})] * 3
    asked = (dict(over="worst"), dict(over="worst", better="higher"), dict(over="mean"))
    found = [sweep.over(tmp_path, own, {"path": ("exact",), **column}) for column in asked]
    assert found[0] == (8.0, 7.0, 9.0) and found[1] == (1.0, 0.9, 1.1)
    assert found[2] is not None and found[2].value == pytest.approx(11 / 3)


def test_a_sweep_from_end_to_end(tmp_path, capsys):
    """Two hosts, a table in between; then again, which runs nothing; the numbers are the reports' own."""
    config, out = tiny(), tmp_path / "out"
    sweep.sweep(config, tmp_path, "0/2")
    text = sweep.write(config, "configs/ablations/tiny.py", tmp_path, out).read_text()
    assert "Not run yet: 2 of 4 runs" in text and "| 2 | heun | - |" in text
    sweep.sweep(config, tmp_path, "1/2")
    capsys.readouterr()
    sweep.sweep(config, tmp_path)
    assert capsys.readouterr().out.count("already done, skipped") == 4
    text = sweep.write(config, "configs/ablations/tiny.py", tmp_path, out).read_text()
    assert "python -m experiments.ablate sweep --config=configs/ablations/tiny.py" in text and "Not run" not in text
    other = sweep.write(config, "configs/ablations/tiny.py:a,2", tmp_path, out, ["--config.seed=1"])
    assert other.name == "ablations_tiny_a_2.md"
    assert "--config=configs/ablations/tiny.py:a,2 --config.seed=1\n" in other.read_text()
    errors = {}
    for run in sweep.runs(config):
        report = json.loads((tmp_path / run.folder / "report.json").read_text())
        errors[tuple(run.labels.values())] = report["metrics"]["oracle"]["flow_map_rmse"]
    least = min(errors, key=lambda key: errors[key][0])
    assert least[0] == "8" and f"| {' | '.join(least)} | **{sweep.page.cell(errors[least][0])} [" in text


def test_a_point_that_cannot_be_trained_is_a_row(tmp_path, monkeypatch):
    def diverges(context):
        raise FloatingPointError("loss is nan at step 3")

    monkeypatch.setattr(sweep.runner, "run", diverges)
    config = tiny(points=[{}])
    sweep.sweep(config, tmp_path)
    assert "not finite (1 of 1)" in sweep.table(config, tmp_path)
    monkeypatch.setattr(sweep.runner, "run", lambda context: pytest.fail("it was tried again"))
    sweep.sweep(config, tmp_path)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "usage:"),
        (["--confg=x"], "did you mean 'config'"),
        (["--config=configs/ablations/none.py"], "no config file"),
        (["--config=configs/mixture/students.py"], "no block 'sweep'"),
    ],
)
def test_a_mistake_is_one_line(argv, words, capsys):
    assert ablate.main(["sweep", *argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error


def test_a_scaling_of_its_own():
    """The log-SNR is that of the other schedule at all times; alpha and sigma are those of the named scaling."""
    made = configs.schedule({"schedule": dict(kind="rescaled", of=dict(kind="edm", rho=3.0), scaling="VP")})
    other = configs.schedule({"schedule": dict(kind="edm", rho=3.0)})
    times = np.linspace(0.01, 0.99, 9)
    np.testing.assert_allclose(made.logsnr(times), other.logsnr(times))
    assert (made.logsnr_start, made.logsnr_end) == (other.logsnr_start, other.logsnr_end)
    np.testing.assert_allclose(made.alpha(other.logsnr(times)) ** 2 + made.sigma(other.logsnr(times)) ** 2, 1.0)
    with pytest.raises(ConfigError, match="scaling 'VPP' is not known; did you mean 'VP'"):
        configs.schedule({"schedule": dict(kind="rescaled", of="edm", scaling="VPP")})


def test_a_pairs_weight_is_one_that_is_known(tmp_path):
    config, *_ = parse(["ablate", "--config=configs/ablations/improved_consistency.py", f"--workdir={tmp_path}"])
    config["sweep"] |= {"points": [{}]}
    config["stages"]["student"]["options"]["weighting"] = "plane"
    del config["sweep"]["axes"]["weight"]
    with pytest.raises(ConfigError, match="weighting.*plane.*plain"):
        sweep.sweep(config, tmp_path)


def test_a_sweep_is_not_run_as_one_config(tmp_path, capsys):
    assert runner.main(["run", "--config=configs/ablations/edm.py", f"--workdir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert "this config is a sweep: python -m experiments.ablate sweep --config=configs/ablations/edm.py" in said
    assert not (tmp_path / "run").exists()
