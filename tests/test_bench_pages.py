"""The page of what the program costs, held against the program; the networks that are timed side by side are the same."""

import math
import os
import pathlib
import re
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import bench, data
from experiments import config as configs
from experiments.ablations import costs, cpu, feeding, overhead, page, peers, rival, small_dit
from models import build

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs/results/bench.md"
FAST = ("progressive", "continuous_training", "dmd2, critic", "add, critic")
"""A phase of every family; the others are counted by `python -m pytest tests/test_bench_pages.py -m slow`."""


def made_with() -> str:
    """The jax of the page."""
    return re.search(r"jax (\d+\.\d+\.\d+(?:\.\d+)?)", PAGE.read_text())[1]


def rows(section: str) -> dict[str, dict[str, str]]:
    """name -> column -> cell, of a section's first table."""
    text = page.read(PAGE)[section].partition("\n|")[2].partition("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in ("|" + text).splitlines()]
    header, _, *table = lines
    return {cells[0].replace("`", ""): dict(zip(header[1:], cells[1:], strict=True)) for cells in table}


def same_jax(what: str) -> None:
    """Ends a test as skipped, and says why, where another jax makes other programs."""
    if jax.__version__ != made_with():
        pytest.skip(f"the page was made with jax {made_with()}, here is {jax.__version__}: {what} were not compared")


@pytest.fixture
def quick_compilation():
    """To optimise small programs takes longer than to run them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# What a step of every method costs -------------------------------------------------------------------------------


def test_every_phase_of_every_method_has_a_row_one_program_and_its_limit():
    table = rows("methods")
    assert list(table) == list(costs.VARIANTS)
    assert {variant.method for variant in costs.VARIANTS.values()} == {*configs.METHODS}
    for name, variant in costs.VARIANTS.items():
        assert table[name]["compilations"] == "1"
        if variant.limit is not None:
            assert variant.limit - 1 < float(table[name]["forwards"]) < variant.limit
    # Guidance is one call more for each that is guided: the compiler counts the dearer branch.
    for name, guided in {"progressive": 7, "mean_flow": 5, "dmd2, student": 6}.items():
        assert float(table[name]["guided"]) == pytest.approx(guided, abs=0.1)
    assert table["dmd2, critic"]["guided"] == "-"


def held(name: str) -> None:
    """A row is what the program costs today.

    The page has two decimals, and other versions count a few elementwise operations more or less: .03 forwards, where a call
    of the network more is 1. Which buffers share their memory is the compiler's choice, by its version and the machine: a
    tenth. Lines are those of our program, and of optax.
    """
    cells, found = rows("methods")[name], costs.measure({name: costs.VARIANTS[name]})[name]
    assert found.programs == int(cells["compilations"])
    for column, value in (("forwards", found.unguided), ("guided", found.guided)):
        assert (cells[column] == "-") == (value is None)
        if value is not None:
            assert float(cells[column]) == pytest.approx(value, abs=0.03), f"{name}: {column}"
    same_jax("temporaries and HLO lines")
    assert float(cells["temporaries"]) == pytest.approx(found.memory, rel=0.1), f"{name}: temporaries"
    assert int(cells["HLO lines"]) == pytest.approx(found.lines, rel=0.02), f"{name}: HLO lines"


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", FAST)
def test_a_row_is_what_the_program_costs(name):
    held(name)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", [name for name in costs.VARIANTS if name not in FAST])
def test_every_row_is_what_the_program_costs(name):
    held(name)


def test_a_second_program_would_be_counted(monkeypatch, quick_compilation):
    """A phase that gives back a step count of another type than it took is compiled twice."""

    def make(*arguments, **options):
        method, given = made(*arguments, **options)
        phase = method.phases["train"]

        def wider(*called):
            state, metrics = phase(*called)
            return state._replace(step=state.step.astype(jnp.float32)), metrics

        return method._replace(phases={"train": wider}), given

    made = costs.make
    monkeypatch.setattr(costs, "make", make)
    assert costs.programs("denoising", {}, taught=False, guided=False) == {"train": 2}


def test_the_section_of_methods(tmp_path, monkeypatch):
    def count(method, options, phase, *, taught, guided):
        return costs.Count(5.05 + guided - (phase == "critic"), 4.0 if phase == "critic" else 3.0, 100 + guided)

    monkeypatch.setattr(costs, "count", count)
    monkeypatch.setattr(costs, "programs", lambda method, options, **told: {"train": 1, "student": 2, "critic": 3})
    monkeypatch.setattr(costs, "together", lambda method, options: 5.0)
    text = costs.section(tmp_path)

    def cells(name):
        (line,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        return line.strip("| ").split(" | ")[1:]

    assert cells("progressive") == ["yes", "5.05", "6.05", "5.1", "3.00", "100", "1"]
    assert cells("denoising") == ["no", "5.05", "-", "-", "3.00", "100", "1"]
    assert cells("guided") == ["yes", "-", "6.05", "-", "3.00", "101", "1"]
    assert cells("dmd2, student") == ["yes", "5.05", "6.05", "5.1", "3.00", "100", "2"]
    assert cells("dmd2, critic") == ["yes", "4.05", "-", "4.1", "4.00", "100", "3"]
    assert "Over its limit: `continuous_training`, `mean_flow`." in text
    assert "one program of both phases of `dmd2` would take 1.25 times as much" in " ".join(text.split())


# Attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", small_dit.KINDS)
def test_a_step_of_the_small_dit_stays_within_its_forwards(kind):
    found = small_dit.forwards(*small_dit.trace(kind, True))
    assert found <= small_dit.FORWARDS[kind]
    assert float(rows("attention")[f"{kind}, scanned"]["forwards"]) == pytest.approx(found, abs=0.006)


def test_the_committed_temporaries_are_within_their_limits():
    table = {name: float(cells["temporaries, MiB"]) for name, cells in rows("attention").items()}
    told = {True: "scanned", False: "unscanned"}
    for (kind, own, plain), limit in small_dit.MEMORY.items():
        assert table[f"{kind}, {told[own]}"] <= limit * table[f"{small_dit.PLAIN}, {told[plain]}"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", small_dit.KINDS)
@pytest.mark.parametrize("scan", [True, False])
def test_temporaries_of_the_small_dit(kind, scan):
    found = small_dit.measure(kind, scan)
    same_jax("temporaries")
    cells = rows("attention")[f"{kind}, {'scanned' if scan else 'unscanned'}"]
    assert float(cells["temporaries, MiB"]) == pytest.approx(found.temporaries / 2**20, rel=0.1)


def test_the_backward_pass_reads_no_chain_of_elementwise_steps():
    """Of the widest activations one in a layer is kept, what GELU is of; of normed tokens none."""
    tokens, width, depth = 4 * 4 * 4, 24, 3
    definition = build(dict(kind="dit", shape=(4, 8, 8, 1), num_classes=0, width=width, depth=depth, head_dim=12))
    params = jax.eval_shape(definition.init, jax.random.key(0))

    def residuals(params):
        return jax.vjp(lambda params: definition.apply(params, jnp.zeros((2, 4, 8, 8, 1)), 0.0), params)[1]

    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(residuals, params))]
    assert sizes.count(depth * 2 * tokens * 4 * width) == 1
    # Twice the input of a layer; q and k before and after they are turned; v; what attention gives, and twice a branch's end.
    assert sizes.count(depth * 2 * tokens * width) == 2 + 2 * 2 + 1 + 1 + 2


# Beside PyTorch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["xla", "fused"])
def test_the_network_in_pytorch_is_ours(kind, quick_compilation):
    """Answers, gradients of a loss by every weight and, where there is one, the derivative along the inputs."""
    torch = pytest.importorskip("torch", reason="PyTorch is installed by the extra `bench` only")
    from experiments.ablations import eager

    config = {**small_dit.CONFIG["model"], "depth": 2, "shape": (2, 8, 12, 1), "attention": kind}
    definition = build(config)
    random = np.random.default_rng(0)
    blank = jax.eval_shape(definition.init, jax.random.key(0))
    # All paths open: at the start many weights are zero.
    params = jax.tree.map(lambda leaf: (0.2 * random.standard_normal(leaf.shape)).astype(np.float32), blank)
    x, dx, y = (random.standard_normal((3, *config["shape"])).astype(np.float32) for _ in range(3))
    # Beyond the range, too, and the class that means none.
    logsnr, dlogsnr = np.array([-2.5, 1.0, 25.0], np.float32), np.array([1.0, -0.5, 2.0], np.float32)
    label = np.array([0, 7, 10], np.int32)

    def loss(params):
        answer = definition.apply(params, x, logsnr, {"label": label})
        return jnp.sum(answer * y), answer

    gradient, answer = jax.jit(jax.grad(loss, has_aux=True))(params)
    inputs = [torch.from_numpy(part) for part in (x, logsnr, label)]
    for attend in eager.ATTENTION.values():
        tree = eager.weights(params)
        moving = [leaf.requires_grad_() for leaf in eager.leaves(tree)]
        theirs = eager.network(tree, *inputs, attend)
        (theirs * torch.from_numpy(y)).sum().backward()
        np.testing.assert_allclose(theirs.detach(), answer, atol=1e-4 * np.abs(answer).max())
        for leaf, ours in zip(moving, jax.tree.leaves(gradient), strict=True):
            np.testing.assert_allclose(leaf.grad, ours, atol=1e-4 * np.abs(ours).max())
    if definition.jvp:
        ours = jax.jit(rival.jvp(definition))(params, x, logsnr, label, dx, dlogsnr)
        theirs = eager.jvp(eager.weights(params), *inputs, *(torch.from_numpy(part) for part in (dx, dlogsnr)))
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(other, one, atol=1e-4 * np.abs(one).max())


def test_a_training_step_in_pytorch_moves_every_weight():
    torch = pytest.importorskip("torch", reason="PyTorch is installed by the extra `bench` only")
    from experiments.ablations import eager

    definition, _ = small_dit.prepare(small_dit.small())
    random = np.random.default_rng(0)
    blank = jax.eval_shape(definition.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: (0.1 * random.standard_normal(leaf.shape)).astype(np.float32), blank)
    tree = eager.weights(params)
    torch.manual_seed(0)
    eager.stepper(tree, small_dit.batch_of(definition, 2), eager.softmax)()
    pairs = zip(eager.leaves(tree), jax.tree.leaves(params), strict=True)
    moved = [np.abs(leaf.detach().numpy() - before).max() for leaf, before in pairs]
    # Adam's first step is the learning rate, whatever the gradient.
    assert max(moved) == pytest.approx(1e-3, rel=1e-2) and min(moved) > 0


# Time ------------------------------------------------------------------------------------------------------------


def test_times_are_medians_in_turn_without_the_first(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(time, "process_time", lambda: clock[0])
    took = {"a": [100.0, 1.0, 2.0, 9.0], "b": [50.0, 4.0, 6.0, 5.0]}

    def run(name):
        order.append(name)
        clock[0] += took[name].pop(0)

    found = cpu.in_turn({name: lambda name=name: run(name) for name in took}, 3)
    assert found == {"a": 2.0, "b": 5.0} and order == ["a", "b"] * 4


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system lets no process choose its cores")
def test_one_core_within_and_all_again_after():
    before = os.sched_getaffinity(0)
    with cpu.one_core():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_latents_of_the_bench_are_read_as_any_others(tmp_path):
    feeding.cached(tmp_path, (2, 4, 4, 3))
    source = configs.source({"data": dict(kind="latents", path=str(tmp_path))}, "train")
    assert len(source) == feeding.CLIPS
    assert next(data.Batches(source, 4, threads=0))["video"].shape == (4, 2, 4, 4, 3)


# The page and the command line -----------------------------------------------------------------------------------


def test_the_command_makes_a_section_and_keeps_the_others(tmp_path, monkeypatch):
    found = {"moving digits, drawn": (0.004, 0.4), "latents, from a file": (0.001, 0.5)}
    monkeypatch.setattr(feeding, "measure", lambda: found)
    (tmp_path / "bench.md").write_text(page.MARK.format("methods") + "\n\n## Kept\n")
    assert bench.main(["bench", "--only=input", f"--out={tmp_path}"]) == 0
    text = (tmp_path / "bench.md").read_text()
    assert "```bash\npython -m experiments.bench\n```" in text and "## Kept" in text
    assert "| moving digits, drawn | 4 | 400 | 1 % |" in text and "| latents, from a file | 1 | 500 | 0.2 % |" in text


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--only=method"], "methods"),
        (["--steps=3"], "--steps=3: without --config=... there are --only=SECTION,.. and --out=FOLDER"),
        (["--only="], "--only needs a value"),
        (["methods"], "methods: without --config"),
    ],
)
def test_mistakes_are_named_before_any_work(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bench.main(["bench", *arguments]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_gpu_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert bench.main(["bench", f"--out={tmp_path}"]) == 2
    assert "JAX runs on gpu: set JAX_PLATFORMS=cpu" in capsys.readouterr().err


def test_sections_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install -e '.[bench]'" in rival.section(tmp_path)
    monkeypatch.setattr(peers, "versions", dict)
    monkeypatch.setattr(overhead, "measure", lambda: {"Fewstep ddim": overhead.Cost(1e-6, 2e-6)})
    text = overhead.section(tmp_path)
    assert "pip install -e '.[bench]'" in text and "| Fewstep ddim | 1 | 2 |" in text
