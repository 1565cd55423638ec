"""Ablations on tiny settings: the data behind their pages, the pages, and the command line's refusals."""

import functools

import jax
import numpy as np
import pytest

from experiments import ablate
from experiments.ablations import calls, clocks, convergence, overhead, page, peers, post, samplers, variance


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def chosen(solvers, *names):
    return {name: solvers[name] for name in names}


def test_slopes_on_a_few_steps():
    names = ("ddim", "dpmpp 2M", "dpm_solver 2", "unipc 2")
    found = convergence.measure(chosen(convergence.SOLVERS, *names), ("a1d", "video"), (20, 40), samples=8)
    for problem in ("a1d", "video"):
        assert abs(found["ddim"][problem].slope - 1) < 0.15
        for name in ("dpmpp 2M", "dpm_solver 2"):
            assert 1.6 < found[name][problem].slope, (name, problem)
        assert found["unipc 2"][problem].slope > found["dpmpp 2M"][problem].slope
    assert found["dpm_solver 2"]["a1d"].calls == 2 and found["ddim"]["a1d"].calls == 1


def test_every_solver_of_the_page_builds():
    for name, solver in (convergence.SOLVERS | convergence.OWN_GRIDS).items():
        statistics = (np.linspace(-20, 20, 9), *np.zeros((3, 9)))
        extra = (convergence.solvers.Statistics(*statistics),) if "_v3" in name else ()
        assert solver.build(convergence.VP, solver.grid(20, solver.start), *extra).nfe >= 20
    assert set(convergence.SHOWN) <= set(convergence.SOLVERS)


def test_the_right_samplers_reach_the_data_and_the_mistakes_do_not():
    found = post.measure((5, 100), samples=2000)
    for name in ("DDIM", "DDPM"):
        assert found[name][100].wasserstein < 0.15 < found[name][5].wasserstein
        assert found[name][100].std == pytest.approx(2.2, rel=0.05)
    assert found["DDIM, the post's score"][100].wasserstein > 10
    assert found["DDIM, the post's score"][100].outside > 0.9
    assert 0.2 < found["DDPM, the post's update"][100].wasserstein < 0.4
    assert np.isnan(found["DDPM, the post's update"][5].wasserstein)
    assert 0.02 < post.floor(2000) < 0.12


def test_the_distance_is_exact():
    exact = post.data_quantiles(4000)
    assert post.law(np.random.default_rng(0).permutation(exact)).wasserstein < 1e-12
    assert post.law(exact + 0.3).wasserstein == pytest.approx(0.3)
    assert exact.mean() == pytest.approx(0.4, abs=1e-3) and exact.std() == pytest.approx(2.2, abs=5e-3)


def test_the_variance_falls_at_the_order():
    found = variance.measure(("ddim, eta 1", "dpmpp SDE 2M"), (0.5,), (40, 80))
    assert abs(found["ddim, eta 1"][0.5].slope - 1) < 0.15
    assert abs(found["dpmpp SDE 2M"][0.5].slope - 2) < 0.2


def test_ends_of_schedules():
    scaling, start, middle, end, noise, data = clocks.ends(clocks.SCHEDULES["ve"])
    assert scaling == "VE" and (noise, data) == pytest.approx((50, 0.01))
    assert middle == pytest.approx((start + end) / 2)
    shifted, plain = (clocks.ends(clocks.SCHEDULES[name])[1] for name in ("flow, shift 3", "flow"))
    assert shifted - plain == pytest.approx(-2 * np.log(3))


def test_fewer_calls_cost_accuracy():
    ours = chosen(calls.OURS, "ddim", "dpmpp 2M")
    found = calls.measure("a1d", {name: runs[2:] for name, runs in ours.items()}, (5, 20), noises=16)
    for results in found.values():
        assert results[20].rmse < results[5].rmse / 2
    assert found["dpmpp 2M"][20].rmse < found["ddim"][20].rmse / 2


@pytest.mark.skipif("diffusers" not in peers.versions(), reason="diffusers is installed by the extra `bench` only")
def test_a_peer_lands_where_ours_does():
    found = calls.measure("a1d", {"2M": calls.THEIRS["diffusers"]["DPM++ 2M"]}, (20,), noises=16)
    assert found["2M"][20].clean and found["2M"][20].rmse < 0.05


def test_overhead_is_measured():
    assert all(cost.whole > 0 for cost in overhead.measure(repeats=1).values())


# The page and the command line ----------------------------------------------------------------------------------


def test_a_page_names_its_command_and_keeps_the_other_sections(tmp_path):
    words = {"first": "one", "second": "two"}
    sections = {name: functools.partial(lambda folder, name: f"## {words[name]}", name=name) for name in words}
    path = page.write("samplers", "About.", sections, tmp_path, ())
    text = path.read_text()
    assert text.index("python -m experiments.ablate samplers") < text.index("## one") < text.index("## two")
    words.update(first="three", second="four")
    page.write("samplers", "About.", sections, tmp_path, ("second",))
    assert "## one" in path.read_text() and "## four" in path.read_text() and "two" not in path.read_text()


def test_cells():
    assert [page.cell(v) for v in (None, "a", 3, 0.0123456, 1.23e-7, 12345.6, float("nan"))] == [
        "-", "a", "3", "0.0123", "1.2e-07", "12346", "NaN",
    ]  # fmt: skip
    assert page.table(["a", "b"], [["x", 0.5]]) == "| a | b |\n| --- | ---: |\n| x | 0.5 |"


def test_the_command_writes_a_section_with_its_figure(tmp_path):
    assert ablate.main(["samplers", "--only=schedules", f"--out={tmp_path}"]) == 0
    text = (tmp_path / "samplers.md").read_text()
    assert text.startswith("# Results: samplers") and "python -m experiments.ablate samplers" in text
    assert "vp_cosine" in text and (tmp_path / "samplers_schedules.png").stat().st_size > 10_000
    for name in samplers.SECTIONS:
        assert name in text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["sampler"], "did you mean 'samplers'"),
        (["samplers", "--only=convergance"], "did you mean 'convergence'"),
        (["samplers", "--output=x"], "did you mean 'out'"),
        (["samplers", "--only"], "--only needs a value"),
        ([], "usage:"),
    ],
)
def test_a_mistake_is_one_line(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert ablate.main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error
    assert not list(tmp_path.iterdir())
