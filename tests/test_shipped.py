"""Weights in pretrained/ give the figures that their records state, by the commands that anyone would use.

One student is measured in every run of the suite; the others, up to some minutes each, with `tests/run -m slow`.
"""

import json
import pathlib

import numpy as np
import pytest

from configs import shipped
from experiments import data, evaluation, run, tables, weights

CONFIGS = pathlib.Path(shipped.__file__).resolve().parent
STUDENTS = ("dmd2_4", "consistency_trajectory", "causal_student")
"""One of a family: of a critic and an adversary, of jumps on the teacher's path, halved and streaming."""
FITTED = ("teacher_fitted_4",)
LATENT_FITTED = ("teacher_fitted_4", "teacher_fitted_8")
LIMIT = 30_000_000
"""Bytes that all of pretrained/ may take: it travels with every clone."""
# Another processor adds in another order: some of 2,048 frames are read as another digit, some of 256 clips lose theirs.
NEAR = dict(rel=0.03, abs=0.01)


def record(name):
    return json.loads((weights.PRETRAINED / f"{name}.json").read_text())


def launch(config, workdir, *more):
    assert run.main(["run", f"--config={CONFIGS / config}", f"--workdir={workdir}", *more]) == 0


def assert_stated(folder, names, workdir):
    """Every metric of the records comes out again."""
    launch(f"shipped.py:{','.join([folder, *names])}", workdir)
    rows = json.loads((workdir / "report.json").read_text())["samplers"]
    assert rows.keys() == set(names)
    for name, row in rows.items():
        stated, found = shipped.stated(folder)[name], row["metrics"]
        common = found.keys() & stated.keys()
        assert {"frechet_clip", "identity_kept", "flicker", "diversity", "recall"} <= common, (
            f"{name} states too little"
        )
        assert {key: found[key]["value"] for key in common} == pytest.approx(
            {key: stated[key] for key in common}, **NEAR
        )


def test_a_student_and_the_fitted_teacher_give_the_figures_of_their_records(tmp_path, monkeypatch):
    """The table is found: nothing is fitted again."""
    build = tables._build

    def without_asking(*given, **asked):
        assert "denoise" not in asked, "no shipped table is this network's"
        return build(*given, **asked)

    monkeypatch.setattr(tables, "_build", without_asking)
    assert_stated("moving_digits", (*FITTED, "dmd2_4"), tmp_path / "run")


@pytest.mark.slow
def test_students_give_the_figures_of_their_records(tmp_path):
    assert_stated("moving_digits", STUDENTS[1:], tmp_path / "run")


@pytest.mark.slow
def test_teachers_give_the_figures_of_their_records(tmp_path):
    teachers = shipped.stated("moving_digits").keys() - {*STUDENTS, *FITTED}
    assert teachers >= {"teacher", "causal_teacher", "forcing"}
    assert_stated("moving_digits", sorted(teachers), tmp_path / "run")


@pytest.mark.slow
def test_the_latent_teacher_and_its_tables_give_the_figures_of_their_records(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ("--config.stages.latents.train_clips=64", "--config.stages.latents.test_clips=64")
    launch("moving_digits_64/latents.py", pathlib.Path("runs/moving_digits_64/latents"), *few)
    assert_stated("moving_digits_64", ["teacher", *LATENT_FITTED], tmp_path / "run")


@pytest.mark.slow
def test_the_autoencoder_gives_the_figures_of_its_record(tmp_path):
    launch(
        "moving_digits_64/autoencoder.py", tmp_path, "--stage=round_trip",
        "--config.stages.round_trip.weights=pretrained:moving_digits_64/autoencoder",
    )  # fmt: skip
    found = json.loads((tmp_path / "round_trip/report.json").read_text())["metrics"]
    stated = record("moving_digits_64/autoencoder")["metrics"]
    assert {key: measure["value"] for key, measure in found.items()} == pytest.approx(
        {key: stated[key] for key in found}, **NEAR
    )


@pytest.mark.parametrize("name", ["moving_digits/classifier", "moving_digits_64/classifier"])
def test_metric_networks_read_held_out_frames_as_well_as_their_records_say(name):
    told = record(name)
    stated, source = told["metrics"], data.build(told["data"], "test")
    count, rest = divmod(stated["held_out_frames"], source.shape[0])
    assert not rest
    clips = data.Batches(source, count, seed=told["seed"]).batch_at(0)
    classify = evaluation.load_classifier(weights.find(f"pretrained:{name}", None))
    found = classify(clips["video"].reshape(-1, *source.shape[1:]))[0].argmax(-1)
    right = np.mean(found == np.repeat(clips["label"], source.shape[0]))
    assert right == pytest.approx(stated["held_out_accuracy"], abs=3 / stated["held_out_frames"])


def test_every_file_has_a_record_and_all_travel_light():
    files = {path.relative_to(weights.PRETRAINED).with_suffix("") for path in weights.PRETRAINED.rglob("*.safetensors")}
    assert {"moving_digits/teacher", "moving_digits/causal_teacher", "moving_digits_64/teacher"} <= set(map(str, files))
    for file in map(str, files):
        told = record(file)
        assert {"config", "seed", "commit", "data", "metrics"} <= told.keys(), file
        assert told["metrics"].keys() - {"seconds"}, f"{file} states no figure"
    assert sum(path.stat().st_size for path in weights.PRETRAINED.rglob("*") if path.is_file()) <= LIMIT


def test_a_name_without_figures_is_refused():
    with pytest.raises(
        ValueError, match="no figures of 'classifier' in pretrained/moving_digits, expected one of causal_s"
    ):
        shipped.get_config("moving_digits,classifier")
    with pytest.raises(ValueError, match="unknown folder 'games', expected one of moving_digits, moving_digits_64"):
        shipped.get_config("games")
