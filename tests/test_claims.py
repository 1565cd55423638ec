"""Claims: verdicts on made-up numbers, the cheapest experiments, the page, and numbers with intervals."""

import math
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

from experiments import ablate
from experiments.ablations import claims, claims_schedules, claims_students, numbers, page
from experiments.ablations.claims import FAILS, HOLDS, MISSING, OPEN, PARTLY, Claim, Found, Statement
from experiments.ablations.numbers import Number


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


BELOW, ABOVE, ACROSS = Number(1, 0.5, 1.5), Number(4, 3, 5), Number(2, 1, 3)


@pytest.mark.parametrize(
    ("number", "bounds", "expected"),
    [
        (BELOW, dict(most=2), HOLDS),
        (ABOVE, dict(most=2), FAILS),
        (ACROSS, dict(most=2), OPEN),
        (BELOW, dict(least=2), FAILS),
        (ABOVE, dict(least=2), HOLDS),
        (ACROSS, dict(least=2), OPEN),
        (ACROSS, dict(least=1, most=3), HOLDS),
        (numbers.exact(2), dict(most=2), HOLDS),
        (numbers.exact(math.nan), dict(most=2), OPEN),
        (None, dict(most=2), MISSING),
    ],
)
def test_a_statement_is_decided_by_its_whole_interval(number, bounds, expected):
    assert Statement("x", number, **bounds).outcome == expected


def said(*outcomes):
    made = {HOLDS: (BELOW, 2), FAILS: (ABOVE, 2), OPEN: (ACROSS, 2), MISSING: (None, 2)}
    return [Statement(f"{outcome} {i}", *made[outcome]) for i, outcome in enumerate(outcomes)]


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ((HOLDS, HOLDS), HOLDS),
        ((HOLDS, FAILS), PARTLY),
        ((HOLDS, OPEN), PARTLY),
        ((FAILS, OPEN), FAILS),
        ((FAILS, MISSING), FAILS),
        ((OPEN, OPEN), OPEN),
        ((OPEN, MISSING), OPEN),
        ((MISSING,), MISSING),
        ((HOLDS, MISSING), f"{HOLDS}, so far as it was run"),
        ((HOLDS, MISSING, FAILS), PARTLY),
    ],
)
def test_a_verdict_follows_from_its_statements(outcomes, expected):
    assert claims.verdict(said(*outcomes)) == expected


def test_a_condition_names_what_does_not_hold_and_what_is_open():
    assert claims.condition(said(HOLDS, FAILS, OPEN)) == f"Not: {FAILS} 1. Undecided: {OPEN} 2."
    assert claims.condition(said(FAILS, OPEN)) == f"Undecided: {OPEN} 1."
    assert claims.condition(said(HOLDS)) == claims.condition(said(FAILS)) == claims.condition(said(OPEN)) == ""


def test_ratios_and_differences_of_intervals():
    """Against draws: two independent log-normals, two independent normals."""
    rng = np.random.default_rng(0)
    a, b = (np.exp(rng.normal(m, s, 400_000)) for m, s in ((1.0, 0.2), (0.5, 0.1)))
    interval = [Number(math.exp(m), *np.exp([m - 1.96 * s, m + 1.96 * s])) for m, s in ((1.0, 0.2), (0.5, 0.1))]
    np.testing.assert_allclose(numbers.ratio(*interval)[1:], np.quantile(a / b, (0.025, 0.975)), rtol=0.01)
    plain = [Number(m, m - 1.96 * s, m + 1.96 * s) for m, s in ((3.0, 0.4), (1.0, 0.3))]
    np.testing.assert_allclose(numbers.difference(*plain), (2.0, 2 - 1.96 * 0.5, 2 + 1.96 * 0.5))
    skewed = numbers.difference(numbers.exact(3), Number(1, 0.5, 3))
    assert skewed == (2.0, 0.0, 2.5)
    with pytest.raises(ValueError, match="positive"):
        numbers.ratio(numbers.exact(-1), numbers.exact(1))
    assert numbers.ratio(Number(1, -1, 2), numbers.exact(1)).low == 0


def test_seeds_and_resampled_clips():
    assert numbers.over_seeds([(2.0, 1.0, 4.0)]) == (2.0, 1.0, 4.0)
    found = numbers.over_seeds([(1.0, 0, 0), (3.0, 0, 0)])
    assert found.value == 2 and found.high - 2 == pytest.approx(2 - found.low) == pytest.approx(12.706, abs=0.01)
    values = np.random.default_rng(0).normal(size=2000)
    mean = numbers.bootstrap(lambda x: float(x.mean()), values)
    assert (mean.high - mean.low) / 2 == pytest.approx(1.96 / math.sqrt(2000), rel=0.2)
    # Resampled together: a sample over itself is 1 whatever is drawn.
    assert numbers.bootstrap(lambda a, b: float(a.std() / b.std()), values, values) == (1, 1, 1)


# The experiments ------------------------------------------------------------------------------------------------


def test_the_cheapest_claims_contradict_the_post_where_they_should(tmp_path):
    assert ablate.main(["claims", "--only=ends,sub_vp,rho_places", f"--out={tmp_path}"]) == 0
    parts = page.read(tmp_path / "claims.md")
    verdicts = {name: re.search(r"\*\*Verdict: (.*?)\.\*\*", text) for name, text in parts.items()}
    assert {name: found and found[1] for name, found in verdicts.items()} == {
        "overview": None, "ends": PARTLY, "sub_vp": FAILS, "rho_places": PARTLY,
    }  # fmt: skip
    assert "0.00673 |" in parts["ends"] and "| 0.75 |" in parts["sub_vp"]
    assert all((tmp_path / f"claims_{name}.png").stat().st_size > 5000 for name in ("ends", "sub_vp", "rho_places"))
    for name, claim in claims.known().items():
        assert f"| {claim.says} |" in parts["overview"] and f"`--only={name}`" in parts["overview"]
    assert f"| {claims.known()['sub_vp'].says} | {FAILS} |" in parts["overview"]


def test_the_variance_that_is_lost_is_that_of_many_draws():
    levels = np.array([-3.0, 0.0, 2.0])
    x0 = np.asarray(claims_schedules.A1D.sample(jax.random.key(0), 200_000))
    eps = np.asarray(jax.random.normal(jax.random.key(1), x0.shape))
    for level, expected in zip(levels, claims_schedules.lost(levels), strict=True):
        x = float(claims_schedules.VP.alpha(level)) * x0 + float(claims_schedules.VP.sigma(level)) * eps
        drawn = np.mean((np.asarray(claims_schedules.A1D.denoiser(claims_schedules.VP)(x, level)) - x0) ** 2)
        assert expected == pytest.approx(drawn, rel=0.02)


def test_missing_runs_are_named_with_their_commands(tmp_path):
    (tmp_path / "runs").mkdir()
    assert (
        ablate.main(["claims", "--only=adversarial,cascade", f"--out={tmp_path}", f"--runs={tmp_path / 'runs'}"]) == 0
    )
    parts = page.read(tmp_path / "claims.md")
    assert f"**Verdict: {MISSING}.**" in parts["adversarial"] and f"**Verdict: {MISSING}.**" in parts["cascade"]
    assert "--config=configs/moving_digits/games.py:dmd2,1,20000 " in parts["adversarial"]
    assert "--config=configs/moving_digits_64/games.py:ladd,4 " in parts["adversarial"]
    found = claims_students.progressive(tmp_path / "runs", tmp_path)
    assert {one.outcome for one in found.statements} == {MISSING} and found.missing


def test_a_claim_is_told_by_kept_rows_where_its_runs_are_gone(tmp_path):
    """The students' rows that the project keeps, without any run: what the page in docs says of them."""
    shutil.copy("docs/results/distillation_digits.json", tmp_path)
    found = claims_students.adversarial(tmp_path / "runs", tmp_path)
    told = {one.says.partition(":")[0]: one.number for one in found.statements}
    page_says = pathlib.Path("docs/results/distillation.md").read_text(encoding="utf-8")
    for row, calls in (("dmd2", 4), ("add", 4)):
        number = told[f"{row.upper()}, {calls} calls, pixels"]
        assert re.search(rf"^\| `{row}` \| {calls} \| [^|]* \| {number.value:.2f} \|", page_says, re.M)
    assert told["LADD, 4 calls, latents"] is None
    assert {one.workdir.name for one, _ in found.missing} == {"ladd_4"}


def test_a_page_of_a_made_up_claim(tmp_path):
    claim = Claim("made_up", "Two is small", "No setting.", lambda: Found([Statement("two", numbers.exact(2), 3)]))
    text = claims.section(claim, pathlib.Path("runs"), tmp_path)
    assert "**Verdict: holds.**" in text and "| two | 2 | ≤ 3 | holds |" in text
    assert "python -m experiments.ablate claims --only=made_up" in text


def test_every_claim_has_a_name_of_its_own_and_words():
    known = claims.known()
    assert len(known) >= 20 and claims.OVERVIEW not in known
    assert all(name == claim.name and claim.says and claim.setting for name, claim in known.items())


def test_an_unknown_claim_is_refused(tmp_path, capsys):
    assert ablate.main(["claims", "--only=cascades", f"--out={tmp_path}"]) == 2
    assert "did you mean 'cascade'" in capsys.readouterr().err and not list(tmp_path.iterdir())
