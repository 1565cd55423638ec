"""The distillation page on made-up reports: its numbers, what it calls missing, and the costs behind them."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

from configs.mixture import base as mixture_config
from configs.mixture import games as mixture_games_config
from configs.moving_digits import games as digits_games_config
from configs.moving_digits import students as digits_config
from configs.moving_digits_64 import base as latents_config
from experiments import ablate, weights
from experiments import config as configs
from experiments.ablations import costs, digits, distillation, finished, games, mixture, spaces
from models.classifier import build_classifier


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def measures(distance, error=9.0, modes=8.0):
    return {
        "calls": 1, "wasserstein": [distance, distance - 0.1, distance + 0.1], "flow_map_rmse": [error, error - 1, error + 1],
        "flow_map_median": [error, 8, 10], "energy": [0.003, 0.002, 0.004], "modes": [modes, modes, modes],
    }  # fmt: skip


def mixture_run(runs, law, seed, distances, /, *, errors=(), seconds=None, **changes):
    """distances, errors: row -> distance, error of the map (else 9); the exact denoiser's distances are 1 and .5. changes: keys
    of the report or the config.
    """
    rows = {"oracle_1": 1.0, "oracle_2": 0.5, **distances}
    workdir = runs / "mixture" / f"{law}_{seed}"
    report = {
        "law": law,
        "samplers": {name: {"weights": name.rpartition("_")[0], "steps": int(name[-1])} for name in rows},
        "metrics": {"fresh draws": measures(0.25, 7.0)}
        | {name: measures(value, dict(errors).get(name, 9.0)) for name, value in rows.items()},
    }
    write(workdir / "report.json", report | {k: v for k, v in changes.items() if k in report})
    write(workdir / "config.json", {"seed": seed, "steps": 10} | {k: v for k, v in changes.items() if k not in report})
    for stage, value in (seconds or {}).items():
        write(workdir / stage / "done.json", {"seconds": value})
    return workdir


def games_run(runs, law, seed, firsts, /, *, modes=8.0, options=None, seconds=None):
    """firsts: row -> distance of order 1, of which that of order 2 is twice as much, or None for a law that lacks it, where
    the latter is 1. options: method -> options of its stage. The exact denoiser's, of order 1, are 3, .5 and .3.
    """
    firsts = {"oracle_1": 3.0, "oracle_4": 0.5, "oracle_8": 0.3} | firsts

    def entries(first):
        second = 1.0 if first is None else 2 * first
        made = {"calls": 1, "wasserstein": [second, second - 0.1, second + 0.1], "energy": [0.003, 0.002, 0.004]}
        known = {"wasserstein_1": [first, first - 0.1, first + 0.1], "modes": [modes] * 3} if first is not None else {}
        return made | known

    samplers = {name: dict(weights=name.rpartition("_")[0], steps=int(name[-1])) for name in firsts}
    methods = [name.removesuffix("_1") for name in firsts if not name.startswith("oracle")]
    stages = {m: dict(kind="train", method=m, options=(options or {}).get(m, {})) for m in ("denoiser", *methods)}
    workdir = runs / "games" / f"{law}_{seed}"
    rows = {"fresh draws": entries(0.2 if firsts["oracle_8"] is not None else None)}
    rows |= {name: entries(value) for name, value in firsts.items()}
    write(workdir / "report.json", {"law": law, "samplers": samplers, "metrics": rows})
    stages["exact"] = dict(kind="exact", num_clips=2048, samplers=samplers)
    write(workdir / "config.json", {"seed": seed, "prediction": "v", "stages": stages})
    for stage, value in (seconds or {}).items():
        write(workdir / stage / "done.json", {"seconds": value})
    return workdir


def digits_run(runs, method, distances, *, stages=None, teacher=2.0, clips=256, name=None, diversity=0.5):
    """distances: calls -> distance."""

    def sampler(steps, distance):
        entries = {name: dict(value=0.5, low=0.4, high=0.6, floor=0.9, better=None) for name in digits.SHOWN}
        entries["diversity"]["value"] = diversity
        distances = dict(value=distance, low=distance - 0.5, high=distance + 0.5, floor=1.0, better="lower")
        return {"steps": steps, "seconds_per_clip": steps / 1000, "metrics": entries | {"frechet_clip": distances}}

    samplers = {f"student_{n}": sampler(n, distance) for n, distance in distances.items()}
    workdir = runs / "digits" / (name or method)
    report = {
        "clips": clips,
        "classifier": "c",
        "device": "cpu",
        "samplers": {"teacher_50": sampler(50, teacher)} | samplers,
    }
    write(workdir / "report.json", report)
    before = digits.STAGES.get(method, (method,))[:-1] if name else ()
    names = {**{f"first_{one}": one for one in before}, "student": method}
    blocks = stages or {
        stage: dict(method=one, steps=100, teacher="pretrained:t", guidance=1.5) for stage, one in names.items()
    }
    blocks = {name: {"kind": "train", "batch_size": 16, **block} for name, block in blocks.items()}
    write(workdir / "config.json", {"seed": 0, "stages": {**blocks, "evaluate": {"kind": "evaluate"}}})
    for stage in blocks:
        write(workdir / stage / "done.json", {"seconds": 40})
    return workdir


def cells(text, first):
    """The cells of the table row whose first cell this is."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.fixture
def counted(monkeypatch):
    """Forwards of a step as a rule, so that nothing is compiled."""
    monkeypatch.setattr(costs, "forwards", lambda *_, taught, guided, steps: 7.0 if guided else 5.0)


# Means over seeds -----------------------------------------------------------------------------------------------


def test_an_interval_over_seeds_is_students():
    """t(.975) is 4.302653 at two degrees of freedom, 12.706205 at one (tables)."""
    three = mixture.over_seeds([(v, 0, 0) for v in (1.0, 2.0, 3.0)])
    assert three.mean == 2 and three.half == pytest.approx(4.302653 / 3**0.5) and three.high == three.mean + three.half
    two = mixture.over_seeds([(0.1, 0, 0), (0.124, 0, 0)])
    assert two.half == pytest.approx(12.706205 * 0.012) and str(two) == "0.112 ± 0.15"
    one = mixture.over_seeds([(0.5, 0.3, 0.8)])
    assert one[:3] == (0.5, None, 0.8) and str(one) == "0.5"


def test_a_student_and_ddim_are_compared_seed_by_seed():
    """Both move with the seed's noise, by .3: their difference is -.1 in every seed, and its interval has no width."""
    seeds = [((0.4 + 0.3 * i, 0, 1), (0.5 + 0.3 * i, 0, 1)) for i in range(3)]
    estimate = mixture.against(seeds)
    assert estimate.excess == pytest.approx(-0.1) and estimate.high > 0.5 + 0.3
    assert mixture.against([((0.4, 0.3, 0.55), (0.5, 0, 1))]).excess == pytest.approx(0.05)
    assert mixture.against([((0.4, 0.3, 0.55), None)]).excess is None


def test_mixture_table(tmp_path):
    """Two seeds: the half-width is 12.706 times half their difference. Bold only where all of it is below DDIM."""
    for seed, distances in enumerate(
        [
            {"shortcut_1": 0.5, "shortcut_2": 0.3, "tract_2": 0.4},
            {"shortcut_1": 0.52, "shortcut_2": 0.4, "tract_2": 0.4},
        ]
    ):
        mixture_run(tmp_path, "eight_mode_ring", seed, distances, seconds={"shortcut": 10 + 20 * seed})
    text = mixture.section(tmp_path, tmp_path)
    assert cells(text, "`shortcut`") == [
        "**0.51 ± 0.13**", "0.35 ± 0.64", "-", "3 ± 0", "3 ± 0", "-", "9 ± 0", "9 ± 0", "-", "8 ± 0", "20",
    ]  # fmt: skip
    assert cells(text, "`tract`") == ["-", "**0.4 ± 0**", "-", "-", "3 ± 0", "-", "-", "9 ± 0", "-", "8 ± 0", "-"]
    assert cells(text, "exact denoiser, DDIM") == [
        "1 ± 0", "0.5 ± 0", "-", "3 ± 0", "3 ± 0", "-", "9 ± 0", "9 ± 0", "-", "8 ± 0", "-",
    ]  # fmt: skip
    assert cells(text, "fresh draws") == [*["0.25 ± 0"] * 3, *["3 ± 0"] * 3, *["7 ± 0"] * 3, "8 ± 0", "-"]
    assert (tmp_path / "distillation_mixture.png").stat().st_size > 10_000


def test_one_seed_is_judged_by_its_own_interval(tmp_path):
    mixture_run(tmp_path, "a1d", 7, {"shortcut_1": 0.85, "tract_1": 0.95})
    text = mixture.section(tmp_path, tmp_path)
    assert cells(text, "`shortcut`")[0] == "**0.85**" and cells(text, "`tract`")[0] == "0.95"
    assert "modes kept |" not in text and "`a1d`, seed 7:" in text


def test_methods_that_do_not_beat_ddim_are_named_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(mixture, "REASONS", {"tract": "It has too few updates a round."})
    for law in ("a1d", "gaussian_process"):
        distances = {"tract_1": 2.0, "tract_2": 0.1, "shortcut_1": 0.1, "shortcut_2": 0.6}
        mixture_run(tmp_path, law, 0, distances, errors=dict.fromkeys(distances, 5.0))
    # Near the law, but not by the flow's own way.
    mixture_run(tmp_path, "eight_mode_ring", 0, {"reflow_1": 0.1, "mean_flow_1": 0.1}, errors={"mean_flow_1": 5.0})
    text = mixture.section(tmp_path, tmp_path)
    assert "- `a1d`: 2 of 2 methods: `tract` (1), `shortcut` (2)." in text
    assert "- `eight_mode_ring`: 1 of 2 methods: `reflow` (1)." in text
    assert "- `tract` (`a1d`, `gaussian_process`): It has too few updates a round." in text
    assert "- `shortcut` (`a1d`, `gaussian_process`): not explained." in text


# Students of a critic ---------------------------------------------------------------------------------------------


def test_games_table(tmp_path):
    """Two seeds, of which one lacks a method: 12.706 times half their difference; bold against DDIM at 8 calls."""
    games_run(
        tmp_path, "eight_mode_ring", 0, {"dmd2_1": 0.1, "sid_1": 0.1, "sida_1": 0.4}, modes=7.0, seconds={"sid": 30}
    )
    games_run(tmp_path, "eight_mode_ring", 1, {"dmd2_1": 0.12, "sid_1": 0.28}, seconds={"sid": 50})
    text = games.section(tmp_path, tmp_path)
    assert cells(text, "`dmd2`") == ["**0.11 ± 0.13**", "**0.22 ± 0.25**", "3 ± 0", "7.5 ± 6.4", "-"]
    assert cells(text, "`sid`") == ["0.19 ± 1.1", "0.38 ± 2.3", "3 ± 0", "7.5 ± 6.4", "40"]
    assert cells(text, "`sida`") == ["0.4", "0.8", "3", "7", "-"]
    assert cells(text, "exact denoiser, DDIM, 1 call") == ["3 ± 0", "6 ± 0", "3 ± 0", "7.5 ± 6.4", "-"]
    assert cells(text, "exact denoiser, DDIM, 8 calls")[0] == "0.3 ± 0"
    assert cells(text, "fresh draws") == ["0.2 ± 0", "0.4 ± 0", "3 ± 0", "7.5 ± 6.4", "-"]
    rows = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert rows == ["dmd2", "sid", "sida"]
    assert (
        "- `eight_mode_ring`: 2 of 3 methods: `sid`, `sida`." in text
        and "- `sida` (`eight_mode_ring`): one continuous map" in text
    )
    assert (tmp_path / "distillation_games.png").stat().st_size > 10_000


def test_a_law_without_modes_or_a_distance_of_order_1(tmp_path, monkeypatch):
    monkeypatch.setattr(games, "REASONS", {"dmd2": "Its teacher is bad."})
    nothing = dict.fromkeys(("oracle_1", "oracle_4", "oracle_8", "dmd2_1"))
    games_run(tmp_path, "eight_mode_ring", 0, nothing)
    games_run(tmp_path, "a1d", 0, {"dmd2_1": 0.1, "rcm_1": 0.1})
    text = games.section(tmp_path, tmp_path)
    header, _, *rows = text.split("`eight_mode_ring`, seed 0:")[1].strip().splitlines()
    assert header == "|  | distance of order 2 | energy distance | training, s |"
    assert "| `dmd2` | 1 | 3 | - |" in rows
    assert "- `eight_mode_ring`: 1 of 1 methods: `dmd2`." in text and "- `a1d`: 0 of 2 methods." in text
    assert "- `dmd2` (`eight_mode_ring`): Its teacher is bad." in text


def test_reports_that_lack_a_measure_stand_beside_those_that_have_it(tmp_path):
    for seed in (0, 1):
        workdir = games_run(tmp_path, "a1d", seed, {"dmd2_1": 0.1, f"add_{1}": 0.1})
        if seed == 0:
            report = json.loads((workdir / "report.json").read_text())
            for row in report["metrics"].values():
                del row["wasserstein_1"]
            write(workdir / "report.json", report)
    text = games.section(tmp_path, tmp_path)
    assert cells(text, "`dmd2`") == ["**0.1**", "**0.2 ± 0**", "3 ± 0", "8 ± 0", "-"]


def test_tables_whose_runs_and_records_are_gone_stay_on_the_page(tmp_path, capsys):
    """docs/results has tables that were made before records were kept."""
    out = tmp_path / "page"
    out.mkdir()
    (out / "distillation.md").write_text("<!-- section: mixture -->\n\n## Students\n\n| a table |")
    distillation.run(out, ["mixture", "games"], tmp_path)
    text = (out / "distillation.md").read_text()
    assert "| a table |" in text and "eight_mode_ring_0: not run" not in text.partition("section: games")[0]
    assert "section: games" in text and f"{games.CONFIG}:all,a1d" in text
    assert "mixture: none of its runs was found, and what" in capsys.readouterr().out


def test_games_that_are_missing(tmp_path):
    games_run(tmp_path, "a1d", 0, {f"{name}_1": 0.1 for name in games.NAMES})
    games_run(tmp_path, "a1d", 1, {"dmd2_1": 0.1, "sid_1": 0.1})
    games_run(tmp_path, "a1d", 2, {"sid_1": 0.1}, options={"sid": {"alpha": 1.0}})
    games_run(tmp_path, "a1d", 3, {"sid_1": 0.1}, options={"denoiser": {"ema": 0.5}})
    text = games.section(tmp_path, tmp_path)
    reasons = dict(re.findall(r"# \S+/games/(\w+): (.*)", text))
    assert "`a1d`, seeds 0, 1:" in text and "a1d_0" not in reasons
    lacking = ", ".join(name for name in games.NAMES if name not in ("dmd2", "sid"))
    assert reasons["a1d_1"] == f"lacks {lacking}; remove its folder exact first"
    first = f"not run as {tmp_path}/games/a1d_0 was: "
    assert reasons["a1d_2"] == first + "stages.sid.options.alpha: '(absent)' -> 1.0"
    assert reasons["a1d_3"] == first + "stages.denoiser.options.ema: '(absent)' -> 0.5"
    assert (
        "python -m experiments.run --config=configs/mixture/games.py:all,a1d --config.seed=1 "
        f"--workdir={tmp_path}/games/a1d_1\n"
    ) in text


# Runs that can't be read ----------------------------------------------------------------------------------------


def test_missing_runs_are_listed_with_their_command(tmp_path):
    mixture_run(tmp_path, "a1d", 0, {"shortcut_1": 0.5})
    (tmp_path / "mixture" / "a1d_1").mkdir()
    write(tmp_path / "mixture" / "a1d_2" / "config.json", {})
    write(tmp_path / "mixture" / "a1d_2" / "report.json", '{"law": ')
    mixture_run(tmp_path, "a1d", 3, {}, law="eight_mode_ring")
    mixture_run(tmp_path, "a1d", 4, {}, seed=5)
    mixture_run(tmp_path, "a1d", 5, {"shortcut_1": 0.5}, steps=20)
    for seed, report in ((6, []), (7, {"law": "a1d", "samplers": {"x": 1}}), (8, {"law": "a1d", "samplers": {}})):
        workdir = mixture_run(tmp_path, "a1d", seed, {})
        write(workdir / "report.json", report)
    text = mixture.section(tmp_path, tmp_path)
    assert "`a1d`, seed 0:" in text
    reasons = dict(re.findall(r"# \S+/mixture/(\w+): (.*)", text))
    assert reasons["a1d_1"] == "not finished: it has no report.json"
    assert "report.json is not readable JSON" in reasons["a1d_2"]
    assert reasons["a1d_3"] == "its law is 'eight_mode_ring', not 'a1d'"
    assert reasons["a1d_4"] == "its seed is 5, not 4"
    assert reasons["a1d_5"] == f"not run as {tmp_path}/mixture/a1d_0 was: run.steps: 10 -> 20"
    assert "not one of the `exact` stage" in reasons["a1d_6"]
    assert "isn't one of these runs" in reasons["a1d_7"]
    assert reasons["a1d_8"] == "its report has no row of the exact denoiser"
    assert [reasons[f"gaussian_process_{seed}"] for seed in (0, 1, 2)] == ["not run"] * 3
    assert (
        "python -m experiments.run --config=configs/mixture/students.py:all,gaussian_process --config.seed=2 "
        f"--workdir={tmp_path}/mixture/gaussian_process_2\n"
    ) in text


def test_a_page_without_any_run_lists_them_all(tmp_path, counted):
    distillation.run(tmp_path, ("mixture", "games", "digits"), tmp_path / "runs")
    text = (tmp_path / "distillation.md").read_text()
    made = len(digits.STUDENTS) + sum(map(len, digits.PIXELS.games.values()))
    assert text.count("python -m experiments.run") == 9 + 6 + made + 1  # the teacher at few calls
    assert "![" not in text and [path.name for path in tmp_path.iterdir()] == ["distillation.md"]


# Moving digits --------------------------------------------------------------------------------------------------


def test_digits_table(tmp_path, counted):
    digits_run(tmp_path, "shortcut", {4: 2.5, 2: 3.5})
    halving = dict(method="progressive", steps=100, student_steps=[4, 2, 1], teacher="pretrained:t", guidance=1.5)
    digits_run(tmp_path, "progressive", {4: 3.0, 2: 3.0}, stages={"student": halving})
    text = digits.section(digits.PIXELS, tmp_path, tmp_path)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `shortcut` |")]
    assert [row[1:4] for row in rows] == [["4", "2.5 [2, 3]", "1.25"], ["2", "3.5 [3, 4]", "1.75"]]
    assert rows[0][4:] == ["0.5"] * 6 + ["4", "12.5", "700", "40 |"]
    assert text.count("| 1,700 | 40 |") == 2  # guidance in the first of three rounds only: 100 (7 + 5 + 5)
    assert cells(text, "teacher, 50 steps") == ["50", "2 [1.5, 2.5]", "1.00", *["0.5"] * 6, "50", "1", "-", "-"]
    assert cells(text, "real clips") == ["-", "1", "-", *["0.9"] * 6, *["-"] * 4]
    assert (
        "- 4 calls, within 1.3 times the teacher's distance: 1 of 2: `shortcut` 1.25; not: `progressive` 1.50." in text
    )
    assert (
        "- 2 calls, within 1.6 times the teacher's distance: 1 of 2: `progressive` 1.50; not: `shortcut` 1.75." in text
    )
    assert (
        "- 4 calls, class, identity and motion at most 10% worse than the teacher's: 2 of 2: `progressive`, `shortcut`."
        in text
    )
    assert "- `progressive`: 273 updates a round" in text and "- `shortcut`: not explained." in text
    assert (tmp_path / "distillation_digits.png").stat().st_size > 10_000


def test_smaller_batches_stand_beside_the_forwards(tmp_path, counted):
    smaller = dict(method="shortcut", steps=100, teacher="pretrained:t", guidance=1.5, batch_size=8)
    digits_run(tmp_path, "shortcut", {4: 2.5}, stages={"student": smaller})
    assert cells(digits.section(digits.PIXELS, tmp_path, tmp_path), "`shortcut`")[-2] == "700 × 8 clips"


def test_training_that_was_elsewhere_says_where(tmp_path, counted):
    """Seconds of another device than that of the table's clips, and none where a run was stopped and went on."""
    for name, seconds, device in (("shortcut", 40, "cpu"), ("progressive", 9, "gpu"), ("tract", None, "gpu")):
        workdir = digits_run(tmp_path, name, {4: 2.5})
        write(workdir / "student/done.json", {"seconds": seconds, "device": device})
    expected = {"shortcut": "40", "progressive": "9 on gpu", "tract": "on gpu"}
    for _ in range(2):
        text = digits.section(digits.PIXELS, tmp_path, tmp_path)
        assert {name: cells(text, f"`{name}`")[-1] for name in expected} == expected
        shutil.rmtree(tmp_path / "digits", ignore_errors=True)  # rows that are kept say it too


@pytest.mark.parametrize("family, config", [(digits.PIXELS, digits_config), (digits.LATENTS, latents_config)])
def test_a_teacher_is_called_shipped_only_where_it_is(family, config, tmp_path):
    text = digits.section(family, tmp_path, tmp_path)
    assert "beside the teacher at 50 steps" in text
    assert "shipped" not in text or config.TEACHER.startswith("pretrained:")


def test_students_of_two_stages(tmp_path, counted):
    """All training counts, and the report of another student in their folder is refused."""
    two = {
        "easy": dict(method="easy_consistency", steps=10, teacher="pretrained:t", guidance=1.5),
        "student": dict(method="truncated_consistency", steps=20, options={}),
    }
    digits_run(tmp_path, "truncated_consistency", {2: 3.0}, stages=two)
    digits_run(tmp_path, "easy_consistency", {2: 3.0}, stages=two)
    found, missing = finished.gather(digits.wanted(tmp_path, digits.PIXELS, {})[0], digits.parse)
    assert list(found) == ["truncated_consistency"]
    run = found["truncated_consistency"]
    assert (run.forwards, run.seconds) == (10 * 7 + 20 * 5, 80) and run.ratios == {2: 1.5}
    (reason,) = (one.reason for one in missing if one.wanted.workdir.name == "easy_consistency")
    assert reason == (
        "its training stages have the methods ['easy_consistency', 'truncated_consistency'], not ['easy_consistency']"
    )


def test_digits_that_were_judged_otherwise_stand_in_no_table(tmp_path, counted):
    digits_run(tmp_path, "progressive", {4: 2.5})
    digits_run(tmp_path, "shortcut", {4: 2.5}, clips=64)
    workdir = digits_run(tmp_path, "mean_flow", {4: 2.5})
    report = json.loads((workdir / "report.json").read_text())
    del report["samplers"]["student_4"]["metrics"]["flicker"]
    write(workdir / "report.json", report)
    text = digits.section(digits.PIXELS, tmp_path, tmp_path)
    assert "| `progressive` |" in text and "| `shortcut` |" not in text and "| `mean_flow` |" not in text
    assert f"not run as {tmp_path}/digits/progressive was: run.clips: 256 -> 64" in text
    assert "isn't one of these runs (KeyError: 'flicker')" in text
    assert (
        f"python -m experiments.run --config=configs/moving_digits/students.py:tract --workdir={tmp_path}/digits/tract"
        in text
    )


def test_the_teacher_at_few_steps_has_a_table_of_its_own(tmp_path, counted):
    """Its rows are held against its own 50 steps of DDIM, and a row of another sampler is refused."""
    digits_run(tmp_path, "shortcut", {4: 2.5})
    workdir = digits_run(tmp_path, "few_steps", {}, name="teacher")
    report = json.loads((workdir / "report.json").read_text())
    like = report["samplers"].pop("teacher_50")

    def row(steps, distance):
        return like | {
            "steps": steps, "seconds_per_clip": steps / 1000,
            "metrics": like["metrics"] | {"frechet_clip": like["metrics"]["frechet_clip"] | {"value": distance}},
        }  # fmt: skip

    report["samplers"] = {"ddim_50": row(50, 2.0), "ddim_4": row(4, 5.0), "fitted_4": row(4, 3.0)}
    write(workdir / "report.json", report)
    text = digits.section(digits.PIXELS, tmp_path, tmp_path)
    assert text.count("| DDIM | ") == 2
    assert cells(text, "a fitted table")[2] == "1.50" and cells(text, "a fitted table")[10] == "12.5"
    assert "digits/teacher" not in text
    report["samplers"]["euler_4"] = row(4, 5.0)
    write(workdir / "report.json", report)
    text = digits.section(digits.PIXELS, tmp_path, tmp_path)
    assert "digits/teacher: its report has a row 'euler_4': expected SAMPLER_STEPS" in text
    report["samplers"] = {"ddim_4": row(4, 5.0)}
    write(workdir / "report.json", report)
    assert "its report has no row 'ddim_50'" in digits.section(digits.PIXELS, tmp_path, tmp_path)


def test_the_front_is_of_points_that_none_beats():
    points = [(4, 1.0), (1, 5.0), (2, 2.0), (2, 3.0), (8, 1.5), (1, 6.0)]
    assert digits.front(points) == [(1, 5.0), (2, 2.0), (4, 1.0)]


def test_rows_stay_when_their_runs_are_gone(tmp_path, counted):
    """A page made of runs of two machines, one after the other; a run that is made again takes the place of the row."""
    digits_run(tmp_path, "progressive", {4: 3.0})
    digits_run(tmp_path, "dmd2", {2: 2.5}, name="dmd2_2")
    first = digits.section(digits.PIXELS, tmp_path, tmp_path)
    shutil.rmtree(tmp_path / "digits")
    assert digits.section(digits.PIXELS, tmp_path, tmp_path) == first
    digits_run(tmp_path, "shortcut", {4: 2.5})
    digits_run(tmp_path, "dmd2", {2: 3.5}, name="dmd2_2")
    text = digits.section(digits.PIXELS, tmp_path, tmp_path)
    assert cells(text, "`progressive`") == cells(first, "`progressive`") and cells(text, "`shortcut`")[2] == "1.25"
    assert (cells(first, "`dmd2`")[2], cells(text, "`dmd2`")[2]) == ("1.25", "1.75")
    assert "digits/progressive" not in text and "digits/dmd2_2" not in text
    kept = (tmp_path / "distillation_digits.json").read_text()
    assert kept.count("\n") == 2 + 3 and "teacher_50" in kept


@pytest.mark.parametrize(
    "ablation, run, name",
    [(mixture, mixture_run, "shortcut_1"), (games, games_run, "dmd2_1")],
    ids=["mixture", "games"],
)
def test_seeds_stay_when_their_runs_are_gone(tmp_path, ablation, run, name):
    """A table over two seeds, of which the second was made on another machine than the first, which had a third, too."""
    for seed in (0, 7):
        run(tmp_path, "a1d", seed, {name: 0.1}, seconds={name[:-2]: 30})
    first = ablation.section(tmp_path, tmp_path)
    shutil.rmtree(tmp_path / ablation.__name__.rpartition(".")[2])
    assert ablation.section(tmp_path, tmp_path) == first
    run(tmp_path, "a1d", 1, {name: 0.1}, seconds={name[:-2]: 50})
    text = ablation.section(tmp_path, tmp_path)
    assert "`a1d`, seeds 0, 7:" in first and "`a1d`, seeds 0, 1, 7:" in text
    assert cells(first, f"`{name[:-2]}`")[-1] == "30" and cells(text, f"`{name[:-2]}`")[-1] == "37"
    assert set(finished.load(tmp_path / ablation.RECORDS)) == {"a1d_0", "a1d_1", "a1d_7"}


def test_a_row_of_a_run_that_was_judged_otherwise_is_kept_but_not_shown(tmp_path, counted):
    digits_run(tmp_path, "shortcut", {4: 2.5})
    digits.section(digits.PIXELS, tmp_path, tmp_path)
    shutil.rmtree(tmp_path / "digits")
    digits_run(tmp_path, "progressive", {4: 3.0}, clips=64)
    text = digits.section(digits.PIXELS, tmp_path, tmp_path)
    assert "| `shortcut` |" not in text
    assert f"# {tmp_path}/digits/shortcut: not run as {tmp_path}/digits/progressive was: run.clips: 64 -> 256" in text
    assert set(finished.load(tmp_path / "distillation_digits.json")) == {"shortcut", "progressive"}


def test_students_of_a_critic_on_digits(tmp_path, counted):
    """A run for every number of calls; theirs are demands of their own, and the other students' stay as they are."""
    digits_run(tmp_path, "shortcut", {4: 2.5})
    for name, distance, diversity in (("dmd2_4", 2.4, 0.85), ("dmd2_1", 4.2, 0.7), ("dmd2_2", 3.0, 0.9)):
        digits_run(tmp_path, "dmd2", {int(name[-1]): distance, 3: 2.0}, name=name, diversity=diversity)
    text = digits.section(digits.PIXELS, tmp_path, tmp_path)
    table = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert [(row[0], row[1], row[3]) for row in table] == [
        ("| `shortcut`", "4", "1.25"), ("| `dmd2`", "4", "1.20"), ("| `dmd2`", "2", "1.50"), ("| `dmd2`", "1", "2.10"),
    ]  # fmt: skip
    assert "- 4 calls, within 1.3 times the teacher's distance: 1 of 1: `shortcut` 1.25." in text
    first, second = text.split("Students of a critic, each made for its calls:")
    assert "diversity at least" not in first and "within 2.0" not in first and "2 calls" not in first
    assert "- 4 calls, within 1.3 times the teacher's distance: 1 of 1: `dmd2` 1.20." in second
    assert "- 4 calls, diversity at least 0.8 of real clips': 1 of 1: `dmd2` 0.85." in second
    assert "- 1 call, within 2.0 times the teacher's distance: 0 of 1; not: `dmd2` 2.10." in second
    assert "- 1 call, diversity at least 0.8 of real clips': 0 of 1." in second
    assert "- `dmd2`: not explained." in second and "games.py:dmd2" not in text
    assert "games.py:moment_matching,4" in text


def test_a_student_of_a_critic_was_made_for_its_calls(tmp_path, counted):
    digits_run(tmp_path, "dmd2", {4: 2.4}, name="dmd2_1")
    digits_run(tmp_path, "shortcut", {4: 2.4}, name="dmd2_4")
    _, missing = finished.gather(digits.wanted(tmp_path, digits.PIXELS, {})[0], digits.parse)
    reasons = {one.wanted.workdir.name: one for one in missing}
    assert reasons["dmd2_1"].reason == "its report has no row 'student_1'"
    assert reasons["dmd2_1"].wanted.arguments == ("--config=configs/moving_digits/games.py:dmd2,1,20000",)
    assert reasons["dmd2_4"].reason == "its training stages have the methods ['shortcut'], not ['progressive', 'dmd2']"


def test_the_expected_runs_are_those_of_the_configs():
    assert set(mixture.LAWS) == set(mixture_config.SHAPES)
    assert set(games.NAMES) == set(mixture_games_config.GAMES)
    assert set(digits.STUDENTS) == set(digits_config.STUDENTS)
    for name, student in digits_config.STUDENTS.items():
        assert tuple(stage.method for stage in student.stages.values()) == digits.STAGES.get(name, (name,))
    assert set(digits.PIXELS.games) == set(digits_games_config.GAMES)
    for name, counts in digits.PIXELS.games.items():
        for calls in counts:
            stages = configs.plain(digits_games_config.get_config(f"{name},{calls}"))["stages"]
            made = tuple(block["method"] for block in stages.values() if block["kind"] == "train")
            assert made == digits.STAGES.get(name, (name,))
            sampler = stages["evaluate"]["samplers"][f"student_{calls}"]
            assert (sampler["weights"], sampler["steps"]) == ("student", calls)


# What a step costs ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, name",
    [(config, name) for config, known in ((digits_config, digits_config.STUDENTS),
                                          (digits_games_config, digits_games_config.GAMES)) for name in known],
)  # fmt: skip
def test_a_students_budget_is_what_the_compiler_counts(config, name):
    """The config states a step's forwards by hand; all of its training must cost the budget, within a tenth or so."""
    stages = configs.plain(config.get_config(name))["stages"].values()
    total = sum(digits.training(block) for block in stages if block["kind"] == "train")
    assert 0.85 * digits_config.BUDGET < total < 1.1 * digits_config.BUDGET


@pytest.mark.parametrize(
    "identity, residual, accuracy, kept",
    [(0.46, 0.54, 0.46, True), (0.44, 0.5, 0.5, False), (0.5, 0.56, 0.5, False), (1.0, 0.0, 0.07, False)],
    ids=["near", "identity", "motion", "an empty frame"],
)
def test_class_identity_and_motion_are_kept_within_a_tenth(identity, residual, accuracy, kept):
    """The teacher has .5 of all: .45 and .55 are the limits."""

    def row(identity, residual, accuracy):
        entries = {"identity_kept": identity, "law_residual": residual, "label_accuracy": accuracy}
        return digits.Row(4, 0.1, {k: digits.Measure(v, v, v, v, None) for k, v in entries.items()})

    run = digits.Run(row(0.5, 0.5, 0.5), {4: row(identity, residual, accuracy)}, {}, {}, 1.0, 16, None, {})
    assert digits.keeps(run, 4) == kept


@pytest.mark.parametrize(
    "options, average",
    [
        # A critic's update is 4, a student's 5 with it or in its place; backward simulation for 3 calls adds 1 to both.
        (dict(ratio=4), (4 * 4 + 5) / 4),
        (dict(ratio=4, critic_in_student_steps=False, steps=3), (3 * 5 + 6) / 4),
    ],
)
def test_a_games_step_is_the_mean_over_its_turns(options, average):
    given = costs.ALONE | options
    assert costs.forwards("dmd2", given, taught=True, guided=False) == pytest.approx(average, abs=0.1)


def test_an_adversary_looks_at_half_a_network():
    """add: the student's 3, its teacher's 1, features there and back; its critic makes clips and sees them and real ones."""
    student, critic = (
        costs.count("add", {}, phase, taught=True, guided=False).forwards for phase in ("student", "critic")
    )
    assert (student, critic) == pytest.approx((5, 2), abs=0.1)


def test_a_head_start_costs_its_updates_of_the_critic():
    counted = {
        phase: costs.count("ladd", {}, phase, taught=True, guided=False).forwards for phase in ("student", "critic")
    }
    found = costs.forwards("ladd", dict(head_start=3), taught=True, guided=False, steps=4)
    assert found == pytest.approx(counted["critic"] + counted["student"] / 4)


def test_a_roll_out_is_not_counted():
    with pytest.raises(configs.ConfigError, match="dmd2: a roll-out costs by the number of its chunks"):
        costs.forwards("dmd2", dict(source="rolled_out"), taught=True, guided=False)


@pytest.fixture
def quick_compilation():
    """To optimise small programs takes longer than to run them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_the_section_on_spaces(tmp_path, monkeypatch, quick_compilation):
    """Both games are measured, here of tiny networks, and the text and its table say what came out."""
    small = dict(kind="mlp", num_classes=10, width=8, depth=1)
    monkeypatch.setattr(spaces, "PIXELS", small | dict(shape=(2, 8, 8, 1)))
    monkeypatch.setattr(spaces, "LATENTS", small | dict(shape=(1, 2, 2, 1)))
    frames = dict(shape=(8, 8, 1), widths=(4,), features=4, num_classes=10)
    seen = build_classifier(frames).init(jax.random.key(0))
    weights.save(tmp_path / "c.safetensors", seen, dict(kind="classifier", model=frames))
    monkeypatch.setattr(spaces, "FEATURES", f"{tmp_path}/c.safetensors")
    monkeypatch.setattr(spaces, "BATCH", 2)
    found, measure = [], spaces.measure
    monkeypatch.setattr(spaces, "measure", lambda config: found.append(measure(config, 1)) or found[-1])
    text = " ".join(spaces.section(tmp_path).split())
    add, ladd = found
    assert all(0 < value < np.inf for step in found for value in step)
    # Pixels cost more: more of them, and the classifier sees them.
    assert ladd.operations < 0.5 * add.operations and ladd.temporaries < add.temporaries
    assert (
        f"It takes {ladd.seconds / add.seconds:.2f} of ADD's CPU seconds and {ladd.operations / add.operations:.2f} of its"
        " operations"
    ) in text
    for name, step in (("add, pixels", add), ("ladd, latents", ladd)):
        numbers = f"{step.operations / 1e9:.1f} | {step.seconds:.2f} | {step.temporaries / 2**20:.0f}"
        assert f"| `{name}` | {numbers} |" in text


# The command line -----------------------------------------------------------------------------------------------


def test_the_command_reads_the_runs(tmp_path):
    mixture_run(tmp_path / "runs", "a1d", 0, {"shortcut_1": 0.5})
    out = tmp_path / "out"
    assert ablate.main(["distillation", "--only=mixture", f"--runs={tmp_path / 'runs'}", f"--out={out}"]) == 0
    text = (out / "distillation.md").read_text()
    assert text.startswith("# Results: distillation") and "python -m experiments.ablate distillation" in text
    assert cells(text, "`shortcut`")[0] == "**0.5**"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["distillation", "--only=mixtures"], "did you mean 'mixture'"),
        (["distillation", "--runs=nowhere"], "there is no folder nowhere"),
        (["samplers", "--runs=."], "samplers reads no finished runs: --runs is for claims, distillation, video"),
        (["distillation", "--runs"], "--runs needs a value"),
    ],
)
def test_a_mistake_is_one_line(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert ablate.main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error
    assert not list(tmp_path.iterdir())
