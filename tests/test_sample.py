"""`experiments.sample`: what it takes, what it refuses in one line, and before any work."""

import jax
import numpy as np
import pytest

from diffusion import schedules
from experiments import ablate, bench, sample, weights
from models import build

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_shipped_weights_are_sampled_as_their_figures_were(tmp_path, capsys):
    assert sample.main(["--weights=pretrained:moving_digits/causal_student", "--num=2", f"--out={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert 'as it was measured: {"steps": 4, "stream": 2}' in said and "4 calls for each 2 frames" in said
    assert np.load(tmp_path / "samples.npy").shape == (2, 8, 16, 16, 1)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (
            ["--weights=pretrained:moving_digits/causal_student", "--steps=1", "--stream=3"],
            "a divisor of the clip's 8 frames",
        ),
        (
            ["--weights=pretrained:moving_digits/teacher", "--steps=1", "--stream=2"],
            "sees all frames at once; a stream needs",
        ),
        (
            ["--weights=pretrained:moving_digits/teacher", "--guidance=2"],
            "--steps is needed, or a --table",
        ),
        (["--weights=pretrained:moving_digits/teacher", "--steps=0"], "--steps must be at least 1, got 0"),
        (["--weights=pretrained:moving_digits/teacher", "--steps=1", "--threshold=statik"], "did you mean 'static'"),
        (
            ["--weights=pretrained:moving_digits/causal_student", "--steps=1", "--stream=2", "--matrix=pyramid"],
            "--stream takes no matrix; remove --stream or --matrix",
        ),
        (
            ["--weights=pretrained:moving_digits_64/teacher", "--steps=1", "--threshold=static"],
            "--threshold 'static': latents have no range",
        ),
    ],
)
def test_what_samples_cannot_be_is_one_line(words, answer, tmp_path, capsys):
    assert sample.main([*words, f"--out={tmp_path / 'out'}"]) == 2
    assert answer in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_samples_take_every_key_of_a_samplers_config(tmp_path):
    """A matrix and a threshold, as in a config: other clips of the same noise."""
    given = ["--weights=pretrained:moving_digits/forcing", "--steps=2", "--num=2"]
    made = {}
    for name, more in {
        "plain": [],
        "pyramid": ['--matrix={"kind": "pyramid", "lag": 1}'],
        "autoregressive": ["--matrix=autoregressive"],
        "static": ["--threshold=static"],
    }.items():
        assert sample.main([*given, *more, f"--out={tmp_path / name}"]) == 0
        made[name] = np.load(tmp_path / name / "samples.npy")
    one, *others = made.values()
    assert all(other.shape == one.shape and (other != one).any() for other in others)


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    out = f"--out={tmp_path / 'file'}"
    monkeypatch.setattr(sample, "chosen_table", lambda *_: pytest.fail("it began to work"))
    assert sample.main(["--weights=pretrained:moving_digits/teacher", "--steps=1", out]) == 2
    assert f"can't write to --out {tmp_path / 'file'}: File exists" in capsys.readouterr().err
    assert ablate.main(["samplers", out]) == 2 and "can't write to --out" in capsys.readouterr().err
    config = "--config=configs/ablations/edm.py"
    assert ablate.main(["sweep", config, f"--workdir={tmp_path / 'runs'}", out]) == 2
    assert "can't write to --out" in capsys.readouterr().err and not (tmp_path / "runs").exists()
    assert bench.main(["bench", out]) == 2 and "can't write to --out" in capsys.readouterr().err
    assert bench.main(["bench", "--config=tests/configs/tiny.py", f"--out={tmp_path}"]) == 2
    assert f"--out: {tmp_path} is a folder, expected a file" in capsys.readouterr().err


def test_points_of_a_law_are_kept_as_numbers(tmp_path, capsys):
    """A ring of radius 2 is no picture: bytes end at 1."""
    model = {"kind": "mlp", "shape": [1, 1, 1, 2], "num_classes": 0}
    schedule = schedules.vp_cosine()
    record = {
        "format": 1, "kind": "denoiser", "model": model, "prediction": "x0", "schedule": schedules.record(schedule),
        "shape": model["shape"], "num_classes": 0, "latent": None, "data": {"kind": "exact", "law": "eight_mode_ring"},
    }  # fmt: skip
    params = jax.tree.map(lambda leaf: leaf + 3.0, build(model).init(jax.random.key(0)))
    weights.save(tmp_path / "ring.safetensors", params, record)
    given = [f"--weights={tmp_path / 'ring.safetensors'}", "--steps=1", "--num=4", f"--out={tmp_path / 'out'}"]
    assert sample.main(given) == 0 and "no pictures of points of a law" in capsys.readouterr().out
    found = np.load(tmp_path / "out/samples.npy")
    assert found.dtype == np.float32 and found.shape == (4, 1, 1, 1, 2) and abs(found).max() > 1
