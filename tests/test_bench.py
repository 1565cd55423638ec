"""What the bench says of a step: operations that can be known beforehand, and what it refuses."""

import json

import pytest

from experiments import bench
from experiments import config as configs
from experiments.context import Context
from tests.configs import tiny

DIT = dict(kind="dit", shape=(3, 16, 16, 1), num_classes=0, patch=4, width=16, depth=3, head_dim=8)


def context_of(tmp_path, **changes):
    from experiments import mesh

    config = configs.plain(tiny.get_config()) | changes
    return Context(config, tmp_path, mesh.make())


def test_operations_of_a_scanned_network_count_every_layer(tmp_path):
    """The compiler counts a loop's body once; the bench must not: five times the layers cost nearly five times as much."""
    counts = [bench.one_forward(context_of(tmp_path, model={**DIT, "depth": depth}).config, 4) for depth in (1, 6, 11)]
    # Four products of a block, of 2 d² 12 operations a token, and the two of its attention, 4 n² d a clip.
    tokens, width = 3 * 4 * 4, 16
    block = 4 * (tokens * 2 * 12 * width**2 + 4 * tokens**2 * width)
    assert [counts[1] - counts[0], counts[2] - counts[1]] == [5 * block, 5 * block]


def test_a_training_step_is_three_forwards(tmp_path):
    """Forward, and backward to the activations and to the weights."""
    block = dict(kind="train", method="denoising", steps=4, batch_size=4)
    counts, forward = bench.counted(context_of(tmp_path, model=DIT), "teacher", block)
    assert counts["train"] / forward == pytest.approx(3, rel=0.02)


def test_a_network_from_outside_is_counted_as_it_is(tmp_path):
    context = context_of(tmp_path, model={"kind": "mine:network", "shape": (3, 16, 16, 1)})
    assert bench.counting(context).config["model"] == context.config["model"]


@pytest.mark.parametrize("steps", [1, 3])
def test_a_roll_out_counts_every_call_of_every_chunk(tmp_path, steps):
    """Up to the last exit: of n chunks n steps calls, and n more that learn, which the student's phase goes back through, too.
    The judges see a clip once, however many chunks made it.
    """
    causal = DIT | dict(shape=(4, 16, 16, 1), width=48, causal=True, block=1)
    context = context_of(tmp_path, model=causal)
    context.config["data"] |= dict(frames=4)

    def forwards(chunks):
        options = dict(source="rolled_out", steps=steps, chunk=4 // chunks, adversarial=0.0, discriminative=0.0)
        block = dict(kind="train", method="dmd2", teacher="teacher", steps=5, batch_size=4, options=options)
        counts, forward = bench.counted(context, "student", block)
        return {phase: count / forward for phase, count in counts.items()}

    one, two, four = map(forwards, (1, 2, 4))
    for phase, learning in {"critic": 1, "student": 3}.items():
        more = steps + learning
        assert two[phase] - one[phase] == pytest.approx(more, rel=0.05)
        assert four[phase] - one[phase] == pytest.approx(3 * more, rel=0.05)
    assert one["critic"] == pytest.approx(steps + 1 + 3, rel=0.05)


def test_the_table_has_every_phase_and_needs_no_finished_stage(tmp_path, capsys):
    out = tmp_path / "bench.json"
    argv = ["bench", "--config=tests/configs/tiny.py", "--steps=1", "--stage=student", f"--out={out}"]
    assert bench.main(argv) == 0
    assert "student, train" in capsys.readouterr().out
    found = json.loads(out.read_text())["stages"]["student"]["train"]
    # Taught without guidance, the network has classes: the dearer branch counts, a teacher of two calls, twice.
    assert found["operations"] / found["forward"] == pytest.approx(7, rel=0.1)
    assert found["seconds"] > 0 and found["temporaries"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--steps=0"], "--steps: expected a whole number from 1 up, got '0'"),
        (["--stage=evaluate"], "--stage 'evaluate' is not known"),
        (["--config.stages.teacher.batch_size=0"], "config.stages.teacher.batch_size"),
        (["--steps=2", "--nonsense=1"], "nonsense"),
        (["--steps", "0"], "--steps: expected a whole number from 1 up, got '0'"),
    ],
)
def test_mistakes_are_named_before_any_work(arguments, says, capsys):
    assert bench.main(["bench", "--config=tests/configs/tiny.py", *arguments]) == 2
    assert says in capsys.readouterr().err
