"""The sections of `ablate video` on small settings: figures that video.md promises, and a page."""

import json

import jax
import numpy as np
import pytest

from diffusion import frames, noise, oracles, solvers
from experiments import ablate, continuation, tables
from experiments.ablations import cascades, faults, gaussian, matrices, memory, on_digits, ties, windows
from experiments.metrics.corruptions import MUST_NOT_REACT, MUST_REACT, Reading


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def test_the_known_distances_at_sixteen_steps():
    """Measured by others with code of their own on the cosine schedule: .520, .351 and .322 for OU."""
    clock = matrices.grids.uniform_time(gaussian.COSINE, 16)
    for matrix, expected in (("full", 0.520), ("pyramid, lag 1", 0.351), ("pyramid, lag N/4", 0.322)):
        table = solvers.ddim(gaussian.COSINE, matrices.MATRICES[matrix](clock))
        assert abs(gaussian.distance(gaussian.KERNELS["OU"], table, 20.0) - expected) < 1e-3


def test_calls_are_shared_out():
    assert matrices.most_steps("full", 64) == 64 and matrices.most_steps("pyramid, lag 1", 64) == 49
    assert matrices.most_steps("autoregressive", 64) == 4 and matrices.most_steps("autoregressive", 20) == 0


def test_known_frames_and_replacement():
    kernel = gaussian.KERNELS["OU"]
    exact, replaced = (memory.errors(kernel, memory.WAYS[way], 16) for way in list(memory.WAYS)[:2])
    assert exact < 1e-3 < 0.1 < replaced


def test_correlated_noise_is_priced(tmp_path):
    text = ties.section(tmp_path)
    table = solvers.ddim(gaussian.COSINE, frames.full(matrices.clock(ties.STEPS), gaussian.FRAMES))
    iid, mixed = (
        gaussian.distance(gaussian.KERNELS["OU"], table, matrices.END, noise=source.covariance(gaussian.FRAMES))
        for source in (noise.iid(), noise.mixed(1.0))
    )
    assert f"| iid | {iid:.3g} |" in text and f"| mixed, a = 1 | {mixed:.3g} |" in text and mixed < 0.7 * iid


def test_a_roll_out_of_a_basis_is_the_law_of_a_roll_out():
    """The exact covariance of chunks against 4,000 clips of `frames.roll_out` itself."""
    short = oracles.gaussian_process(windows.VIDEOS["OU"](windows.WINDOW)).denoiser(gaussian.COSINE)
    matrix = frames.known(frames.full(matrices.clock(16), windows.WINDOW - 2), before=2)
    first = windows.begun(windows.VIDEOS["OU"](windows.WINDOW), short, None, matrix, 2)
    exact = windows.rolled(short, matrix, first, 2, windows.WINDOW - 2, 18)
    x = np.random.default_rng(0).standard_normal((4000, windows.WINDOW)) @ first
    video = frames.roll_out(
        short, solvers.dpmpp(gaussian.COSINE, matrix), x[..., None, None, None], 3, jax.random.key(0), matrix=matrix,
        schedule=gaussian.COSINE, history=2,
    )  # fmt: skip
    drawn = np.asarray(video)[:, -gaussian.FRAMES :, 0, 0, 0]
    np.testing.assert_allclose(drawn.T @ drawn / len(drawn), exact, atol=0.08)


def test_the_page_is_made_section_by_section(tmp_path):
    assert ablate.main(["video", "--only=noise", f"--out={tmp_path}"]) == 0
    text = (tmp_path / "video.md").read_text()
    assert "## Correlated noise" in text and "python -m experiments.ablate video" in text
    assert ablate.main(["video", "--only=noize", f"--out={tmp_path}"]) == 2


def test_a_cascade_is_read_from_its_run(tmp_path):
    """A metric that is no better is named with its cause, one within the intervals as such; a missing run with its command."""
    assert "python -m experiments.run --config=configs/moving_digits_64/cascade.py:evaluate" in cascades.section(
        tmp_path, tmp_path
    )

    def measures(**values):
        given = {name: (1.0, 0.9, 1.1) for name in cascades.SHOWN} | values
        ways = dict(frechet_clip="lower", flicker="lower", label_accuracy="higher")
        return {
            name: dict(value=value, low=low, high=high, floor=0.5, better=ways.get(name))
            for name, (value, low, high) in given.items()
        }

    def row(steps, **values):
        return dict(steps=steps, evaluations=8, seconds_per_clip=0.5, metrics=measures(**values))

    ours = row("4 + 2", frechet_clip=(2.0, 1.5, 2.5), flicker=(3.0, 2.5, 3.5), label_accuracy=(0.8, 0.7, 0.9))
    base = row("4", frechet_clip=(9.0, 8.0, 10.0), flicker=(1.0, 0.5, 1.5), label_accuracy=(0.85, 0.8, 0.9))
    folder = tmp_path / cascades.WORKDIR
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "report.json").write_text(json.dumps(dict(clips=4, samplers=dict(students=ours, bicubic_students=base))))
    text = cascades.section(tmp_path, tmp_path)
    assert "| students | 4 + 2 | 8 | 500 | 2 [1.5, 2.5] |" in text
    assert "| students, base only, bicubic and repeated | 4 | 8 | 500 | 9 [8, 10] |" in text
    assert "in 1 of 8 metrics; worse in flicker; no better, within the intervals, in label_accuracy" in text
    assert "- flicker: most frames" in text and "- label_accuracy: not explained." in text
    # Real small clips, made larger both ways: flicker sees the stretch and a fault of the stages, accuracy neither.
    real = row("2", flicker=(2.0, 1.6, 2.4), label_accuracy=(0.55, 0.45, 0.6))
    still = row("0", flicker=(1.0, 0.8, 1.2), label_accuracy=(0.5, 0.4, 0.6))
    rows = dict(students=ours, bicubic_students=base, of_real_students=real, bicubic_of_real_students=still)
    (folder / "report.json").write_text(json.dumps(dict(clips=4, samplers=rows)))
    text = cascades.section(tmp_path, tmp_path)
    assert "| real small clips, bicubic and repeated | 0 |" in text
    assert "1 of these 7 metrics don't see that a real clip was stretched" in " ".join(text.split())
    assert "| flicker | 0.5 | 1 [0.8, 1.2] | 2 [1.6, 2.4] | yes | yes | most frames" in text
    assert "| label_accuracy | 0.5 | 0.5 [0.4, 0.6] | 0.55 [0.45, 0.6] | no | no | not explained |" in text


@pytest.mark.parametrize("name", on_digits.ORDERS)
def test_orders_use_up_the_calls_that_there_are(name):
    matrix = on_digits.ORDERS[name]
    block = {"kind": matrix} if isinstance(matrix, str) else matrix

    def calls(n):
        table = tables.make(dict(matrix=block), n, gaussian.COSINE, name, tables.Model(None, (8, 16, 16, 1), None))
        return table.nfe

    found = on_digits.steps_within(matrix, on_digits.CALLS)
    assert calls(found) <= on_digits.CALLS < calls(found + 1)
    assert on_digits.steps_within("autoregressive", 7) == 1


def test_what_is_asked_of_digits_is_what_the_program_takes():
    """Ways to go on, and sources, as the checks of a run see them."""
    common = dict(history=2, steps=6, solver="dpmpp")
    for options in on_digits.BLENDING.values():
        found = continuation.plan(common | dict(frames=on_digits.LONG) | options, gaussian.COSINE, 8, "blending")
        assert (found.windows is None) == ("windows" not in options)
    for options in on_digits.HISTORIES.values():
        found = continuation.plan(common | dict(frames=6) | options, gaussian.COSINE, 8, "history")
        assert found.advance == 6 and (found.way is None) == ("way" not in options)
    for source in on_digits.SOURCES.values():
        assert jax.eval_shape(lambda key, s=source: s(key, (2, 8, 16, 16, 1)), jax.random.key(0)).shape == (
            2,
            8,
            16,
            16,
            1,
        )


def test_a_corruption_is_listed_with_what_reacts_and_what_fails_to():
    found = {m: Reading(1.0, 5.0) for m in MUST_REACT["jitter"]} | {
        m: Reading(1.0, 0.5) for m in MUST_NOT_REACT["jitter"]
    }
    name, react, to, not_to = faults.rows({"jitter": found | {"warping_error": Reading(1.0, -9.0)}})[0]
    assert name == "jitter" and react.split(", ")[0] == "warping_error" and "mass" not in react
    count, still = len(MUST_REACT["jitter"]), len(MUST_NOT_REACT["jitter"])
    assert to == f"{count} of {count}" and not_to == f"{still} of {still}"
    broken = found | {"acceleration": Reading(0.0, 1.9), "mass": Reading(0.0, -2.1)}
    *_, to, not_to = faults.rows({"jitter": broken})[0]
    assert to == f"{count - 1} of {count} (not acceleration)" and not_to == f"{still - 1} of {still} (but mass)"
