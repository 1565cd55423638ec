"""The plan: what is read off programs against counts by hand, the line of the batch, refusals; with libtpu real compiles."""

import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.video import wan
from experiments import bench, chips, mesh, plan, programs, training
from experiments import config as configs
from experiments.config import ConfigError
from experiments.context import Context
from tests.configs import tiny, tiny_causal

GIB = 2**30
F32 = jnp.float32
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU's compiler, libtpu (extra tpu), isn't installed"
)


def counted(function, *shapes, trips=1.0):
    return programs.operations(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(s, F32) for s in shapes)), trips)


def stack(w, x):
    return jax.lax.scan(lambda h, layer: (jnp.sin(h @ layer), None), x, w)[0]


def test_operations_of_products_in_loops_and_branches():
    """2 m k n each; a scan's body as often as it runs, the dearer branch, a loop of unknown length as it is told."""
    product = 2 * 4 * 8 * 8
    assert counted(lambda w, x: x @ w[0], (7, 8, 8), (4, 8)) == product
    assert counted(stack, (7, 8, 8), (4, 8)) == 7 * product
    either = lambda w, x: jax.lax.cond(x[0, 0] > 0, lambda: x @ w[0], lambda: x @ w[0] @ w[1])  # noqa: E731
    assert counted(either, (7, 8, 8), (4, 8)) == 2 * product
    until = lambda w, x: jax.lax.while_loop(lambda h: h[0, 0] > 0, lambda h: h @ w[0], x)  # noqa: E731
    assert counted(until, (7, 8, 8), (4, 8), trips=3.0) == 3 * product


@pytest.mark.parametrize("again, forwards", [(False, 3), (True, 4)])
def test_a_gradient_is_two_forwards_more_and_recomputing_one(again, forwards):
    def layer(h, w):
        return jnp.sin(h @ w), None

    body = jax.checkpoint(layer) if again else layer
    loss = lambda w, x: jnp.sum(jax.lax.scan(body, x, w)[0])  # noqa: E731
    found = counted(jax.grad(loss, argnums=(0, 1)), (7, 8, 8), (4, 8)) / counted(stack, (7, 8, 8), (4, 8))
    assert found == forwards


def compilers(function, *arguments):
    """Its count before its choices, of a program without loops."""
    return (jax.jit(function).lower(*arguments).cost_analysis() or {})["flops"]


CONVOLUTIONS = [
    dict(padding="VALID"),
    dict(padding="SAME"),
    dict(padding="SAME", window_strides=(2, 3)),
    dict(padding=((2, -1), (0, 5)), window_strides=(1, 2)),
    dict(padding="SAME", rhs_dilation=(2, 3)),
    dict(padding=((1, 2), (3, 0)), lhs_dilation=(3, 2), window_strides=(2, 1)),
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("groups", [1, 3])
def test_operations_of_a_convolution_are_the_compilers(options, groups):
    """Which counts no product with a zero that padding or spreading put there; so of its gradients."""

    def convolve(x, k):
        given = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups) | options
        return jax.lax.conv_general_dilated(x, k, given.pop("window_strides", (1, 1)), given.pop("padding"), **given)

    x, k = (jax.ShapeDtypeStruct(s, F32) for s in ((2, 9, 7, 6), (3, 4, 6 // groups, 9)))
    by_x = lambda k, out: jax.linear_transpose(lambda x: convolve(x, k), x)(out)  # noqa: E731
    by_k = lambda x, out: jax.linear_transpose(lambda k: convolve(x, k), k)(out)  # noqa: E731
    out = jax.eval_shape(convolve, x, k)
    for function, arguments in ((convolve, (x, k)), (by_x, (k, out)), (by_k, (x, out))):
        assert programs.operations(jax.make_jaxpr(function)(*arguments)) == compilers(function, *arguments)


@pytest.mark.parametrize(
    "model",
    [
        dict(kind="dit", shape=(3, 16, 16, 1), num_classes=0, patch=4, width=48, depth=5, head_dim=12, scan=False),
        dict(kind="unet", shape=(3, 16, 16, 1), num_classes=10, widths=(24, 48), blocks=(1, 2), embed=32, head_dim=24),
    ],
    ids=["dit", "unet"],
)
def test_operations_of_a_network_are_nearly_the_compilers(model):
    """Which counts all that is no product, too."""
    function, arguments = bench.one_call({"model": model}, 4)
    found, given = bench.one_forward({"model": model}, 4), compilers(function, *arguments)
    assert 0.9 * given < found < given
    if model["kind"] == "dit":
        assert bench.one_forward({"model": model | dict(scan=True)}, 4) == found


def test_sizes_of_shapes():
    assert programs.size("(bf16[2,3]{1,0:T(8,128)(2,1)}, f32[], /*index=2*/pred[5]{0:T(512)}, s4[8])") == 12 + 4 + 5 + 4
    # What lies in the core's own memory is no traffic.
    assert programs.size("(f32[16]{0:T(128)S(1)}, f32[2]{0:T(128)})", resident=True) == 8


@pytest.mark.parametrize(
    "text",
    [
        "replica_groups={{0,2},{1,3},{4,6},{5,7}}, to_apply=%add",
        "replica_groups=[4,2]<=[2,2,2]T(0,2,1), to_apply=%add",
        "replica_groups=mesh['a'=2,'b'=2,'c'=2] {'b'}, to_apply=%add",
    ],
)
def test_groups_are_the_same_in_every_spelling(text):
    assert sorted(programs.groups(text, 8)) == [[0, 2], [1, 3], [4, 6], [5, 7]]


def test_groups_of_all_and_pairs():
    assert programs.groups("channel_id=1, replica_groups={}", 4) == [[0, 1, 2, 3]]
    assert programs.groups("source_target_pairs={{0,1},{1,2},{2,0}}, x={}", 3) == [[0, 1], [1, 2], [2, 0]]


@given(given_=st.floats(1, 1e9), own=st.integers(1, 16), slices=st.integers(1, 4))
def test_an_all_reduce_sends_what_a_scatter_and_a_gather_send(given_, own, slices):
    """Within a slice, and across: whatever the number of slices."""
    together, places = [list(range(own * slices))], np.repeat(np.arange(slices), own)
    reduced = programs.sent("all-reduce", given_, together, places)
    scattered = programs.sent("reduce-scatter", given_, together, places)
    assert reduced == pytest.approx(tuple(2 * part for part in scattered))
    if slices == 1:
        gathered = programs.sent("all-gather", given_ / own, together, places)
        assert reduced == pytest.approx(tuple(a + b for a, b in zip(scattered, gathered, strict=True)))


def test_two_slices_exchange_only_what_each_has_of_its_own():
    """All-reduce of 800 bytes over 2 x 4: within a slice a ring of 4, across a half of what is left of it, both ways."""
    inside, across = programs.sent("all-reduce", 800.0, [list(range(8))], np.repeat([0, 1], 4))
    assert (inside, across) == (2 * 3 / 4 * 800, 2 * 1 / 2 * 800 / 4)
    assert programs.sent("all-reduce", 800.0, [[0, 1], [2, 3]], np.repeat([0, 1], 2))[1] == 0


PROGRAM = """\
HloModule step, is_scheduled=true

%body (p: (s32[], bf16[64,32])) -> (s32[], bf16[64,32]) {
  %p = (s32[]{:T(128)}, bf16[64,32]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %w = bf16[64,32]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %gathered = bf16[256,32]{1,0:T(8,128)(2,1)} all-gather(%w), channel_id=1, replica_groups=mesh['a'=4] {'a'}, dimensions={0}
  ROOT %out = (s32[]{:T(128)}, bf16[64,32]{1,0:T(8,128)(2,1)}) tuple(%i, %w)
}

%scatter (q: f32[32]) -> f32[8] {
  %q = f32[32]{0:T(128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %sum = f32[32]{0:T(128)} all-reduce(%q), channel_id=2, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %own = f32[8]{0:T(128)} dynamic-slice(%sum, %zero), dynamic_slice_sizes={8}
}

%condition (c: (s32[], bf16[64,32])) -> pred[] {
  %c = (s32[]{:T(128)}, bf16[64,32]{1,0:T(8,128)(2,1)}) parameter(0)
  %n = s32[]{:T(128)} constant(30)
  %j = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %n), direction=LT
}

ENTRY %main (x: f32[32], w: bf16[64,32]) -> f32[8] {
  %x = f32[32]{0:T(128)} parameter(0)
  %w.1 = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(1)
  %start = s32[]{:T(128)} constant(0)
  %t = (s32[]{:T(128)}, bf16[64,32]{1,0:T(8,128)(2,1)}) tuple(%start, %w.1)
  %loop = (s32[]{:T(128)}, bf16[64,32]{1,0:T(8,128)(2,1)}) while(%t), condition=%condition, body=%body, metadata={op_name="(("}
  ROOT %result = f32[8]{0:T(128)} fusion(%x), kind=kCustom, calls=%scatter
}
"""
"""As libtpu writes it: a gather of 64x32 by four devices in each of 30 turns, and a reduce-scatter in a fusion."""


def test_a_compiled_program_by_hand():
    found = programs.transfers(PROGRAM, [0] * 4).by_kind()
    assert found == {"all-gather": (30, 30 * 3 * 64 * 32 * 2), "reduce-scatter": (1, 3 / 4 * 32 * 4)}
    unknown = PROGRAM.replace("constant(30)", "parameter(1)")
    assert programs.transfers(unknown, [0] * 4, trips=3).by_kind()["all-gather"][0] == 3


def test_memory_counts_of_a_loop_only_the_slices_that_it_reads():
    """A matrix of the stack is sliced, which reads and writes it, and read: not the whole stack in each of the ten turns."""
    compiled = jax.jit(stack).lower(*(jax.ShapeDtypeStruct(s, F32) for s in ((10, 256, 256), (1, 256)))).compile()
    weights = 10 * 256 * 256 * 4
    assert weights <= programs.transfers(compiled.as_text()).memory < 5 * weights


def test_the_roofline_by_hand():
    """A chip of 100 operations, 10 bytes of memory, 4 to its neighbours and 1 to other slices a second."""
    chip = chips.Chip(0.0, 10.0, 100.0, 4.0, 1.0, ())
    found = plan.Compiled("", 1, True, 0.0, operations=300.0, memory=20.0, sent=16.0, across=3.5)
    least = plan.roofline(found, chip)
    assert least == (3.0, 2.0, 4.0, 3.5)
    assert (least.bound, least.limit) == (4.0, "links")


@settings(max_examples=50)
@given(
    base=st.integers(0, 10**10), slope=st.integers(1, 10**9), parts=st.integers(1, 64), memory=st.integers(1, 10**11)
)
def test_the_largest_batch_is_the_last_that_fits(base, slope, parts, memory):
    of = plan.line((parts, base + slope * parts), (4 * parts, base + slope * 4 * parts))
    assert of(0) == pytest.approx(base, abs=1e-3)
    largest = of.largest(memory, parts)
    assert largest % parts == 0
    assert largest == 0 or base + slope * largest <= memory * (1 + 1e-6)
    assert base + slope * (largest + parts) > memory * (1 - 1e-6)


@pytest.mark.parametrize(
    "text, size",
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 57.60G of 15.75G hbm. Exceeded by 41.85G.", 57.6),
        ("Ran out of memory on HBM, the total memory required for HLO temporaries (57.60G) exceeds available HBM", 57.6),
        ("something else", math.nan),
    ],
)  # fmt: skip
def test_what_a_program_that_does_not_fit_asked_for(text, size):
    assert plan.asked(text) == pytest.approx(size * GIB, nan_ok=True)


def context_of(argument, **changes):
    return Context(configs.plain(wan.get_config(argument)) | changes, None, mesh.make())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("size, billions", [("1.3b", (1.2, 1.45)), ("14b", (13.5, 15.0))])
def test_pod_sized_networks_are_shapes_only(size, billions):
    """Student, average, two moments, critic, its two moments and the teacher: eight networks of float32."""
    context = context_of(f"{size},dmd2,v5p-256")
    block = context.config["stages"]["student"]
    _, (state, frozen, batch, _, _) = bench.begin(context, "student", block, shapes=True)
    leaves = jax.tree.leaves((state, frozen, batch))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    one = sum(leaf.size for leaf in jax.tree.leaves(state.params)) / 1e9
    assert billions[0] < one < billions[1]
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state, frozen))) / 1e9
    assert held == pytest.approx(8 * 4 * one, rel=1e-3)
    assert batch["video"].shape == (64, 21, 60, 104, 16)


@pytest.mark.parametrize("where", wan.SLICES)
@pytest.mark.parametrize("student", wan.STUDENTS)
def test_pod_sized_configs_are_ones_that_a_stage_takes(student, where):
    for size in wan.SIZES:
        context = context_of(f"{size},{student},{where}")
        for name, block in context.config["stages"].items():
            training.plan(context, name, block)
        sizes, batch = wan.SLICES[where][size]
        assert batch % math.prod(sizes.get(axis, 1) for axis in ("data", "fsdp")) == 0
        assert math.prod(sizes.values()) == {"64": 64, "256": 256}[where.split("-")[1]] * (2 if where[0] == "2" else 1)
        heads = context.config["model"]["width"] // context.config["model"]["head_dim"]
        assert heads % sizes["context"] == 0 or student == "scm"


@pytest.mark.parametrize("argument", ["2b,dmd2,v5p-64", "14b,dmd,v5p-64", "14b,dmd2,v5p-65", "14b"])
def test_unknown_pod_configs(argument):
    with pytest.raises(ValueError, match="expected"):
        wan.get_config(argument)


TINY = "--config=tests/configs/tiny.py"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([TINY], "usage:"),
        ([TINY, "--topology=v5q:4x4"], "no chip 'v5q'; did you mean 'v5"),
        ([TINY, "--topology=v5p:4x4"], "v5p has no '4x4'; nearest: 'v5p:2x2x4'"),
        ([TINY, "--topology=v6e:17x16"], "nearest: 'v6e:16x16'"),
        (
            [TINY, "--topology=v5e:2x2", "--num_slices=none"],
            "--num_slices: expected a whole number from 1 up, got 'none'",
        ),
        ([TINY, "--topology=v5e:2x2", "--nonsense=1"], "nonsense"),
    ],
)
def test_mistakes_are_named_before_any_work(arguments, says, capsys):
    assert plan.main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_without_the_compiler_one_line_names_the_extra(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert plan.main(["plan", TINY, "--topology=v5e:2x2"]) == 2
    error = capsys.readouterr().err
    assert "pip install -e '.[tpu]'" in error and error.count("\n") == 1


class Device:
    platform = "cpu"

    def __init__(self, slice_index):
        self.slice_index = slice_index


@pytest.mark.parametrize(
    "sizes, slices, nearest",
    [
        (dict(fsdp=48), 1, "nearest: data=1, fsdp=64"),
        (dict(data=3), 1, "nearest: data=64, fsdp=1"),
        (dict(fsdp=16, context=4, tensor=2), 1, "nearest: data=1, fsdp=8, context=4, tensor=2"),
        (dict(fsdp=5, context=3), 2, "nearest: data=16, fsdp=4"),
    ],
)
def test_a_mesh_that_the_devices_do_not_make_up(sizes, slices, nearest):
    with pytest.raises(ConfigError, match=nearest):
        chips.mesh_of(sizes, [Device(i % slices) for i in range(64)])


def test_stages_without_programs():
    with pytest.raises(ConfigError, match="no stage of kind train, generate, evaluate"):
        bench.chosen({"stages": {"c": dict(kind="classifier")}}, None, plan.PLANNED)
    with pytest.raises(ConfigError, match="--stage 'studnet' is not known; did you mean 'student'"):
        bench.chosen({"stages": {"student": dict(kind="train")}}, "studnet", plan.PLANNED)


@pytest.mark.parametrize(
    "model, held, says",
    [
        (dict(remat="none"), 1e10, "set config.model.remat='layers'"),
        (dict(attention="xla"), 1e10, "set config.model.attention='splash'"),
        ({}, 1e12, "are 931 GiB: more chips, 60 at the least, or chips of more memory"),
    ],
)
def test_hints(model, held, says):
    context = context_of("14b,dmd2,v5e-256")
    context.config["model"].update(model)
    found = plan.Compiled("student, critic", 1, False, math.nan)
    block = {**context.config["stages"]["student"], "batch_size": 1}
    assert says in plan.hint(context, block, found, held, chips.CHIPS["v5e"], 1)


@pytest.mark.parametrize(
    "sizes, slices, batch, held, sets",
    [
        # Half of a chip's 15.75 GiB leaves room for 63 GiB on eight, for 32 on four.
        (dict(fsdp=4, context=4), 1, 4, 60, dict(fsdp=8, context=2, batch_size=8)),
        (dict(data=16, fsdp=1), 1, 16, 60, dict(data=2, fsdp=8)),
        # Slices are a part of `data`, so that a half of the devices can split the weights.
        (dict(fsdp=1, context=2), 2, 8, 100, dict(fsdp=8, context=1, batch_size=16)),
        # The weights leave room and the batch is the smallest: a clip over more devices.
        (dict(fsdp=8, context=2), 1, 8, 31, dict(fsdp=4, context=4)),
        (dict(data=4, fsdp=4), 1, 16, 31, dict(data=2, context=2)),
    ],
)  # fmt: skip
def test_hints_name_meshes_that_the_devices_make_up(sizes, slices, batch, held, sets):
    devices = [Device(i * slices // 16) for i in range(16)]
    context = context_of("14b,dmd2,v5e-256", mesh=sizes)
    block = context.config["stages"]["student"]
    block["batch_size"] = batch
    parts = math.prod(mesh.make(sizes, devices).shape[axis] for axis in mesh.BATCH)
    context = Context(context.config, None, mesh.make(sizes, devices))  # pyright: ignore[reportArgumentType]
    found = plan.Compiled("student, critic", batch, False, math.nan)
    told = [f"config.{'mesh' if name in mesh.AXES else 'stages.student'}.{name}={n}" for name, n in sets.items()]
    assert plan.hint(context, block, found, held * GIB, chips.CHIPS["v5e"], parts) == "set " + ", ".join(told)
    # Taken at its word the config is one that a run takes.
    where = mesh.make(sizes | {axis: n for axis, n in sets.items() if axis in mesh.AXES}, devices)
    assert where.shape["data"] % slices == 0
    mesh.check_batch(sets.get("batch_size", batch), where, "student")


def test_a_step_in_microbatches_costs_what_the_whole_batch_does():
    """Its program loops over the parts, of which the compiler's own analysis counts one."""
    model = dict(kind="dit", shape=(3, 16, 16, 1), num_classes=0, patch=4, width=16, depth=1, head_dim=8)
    config = configs.plain(tiny.get_config()) | dict(model=model)

    def of(accumulate):
        block = dict(kind="train", method="denoising", steps=4, batch_size=8, accumulate=accumulate)
        config["stages"]["teacher"] = block
        context = Context(config, None, mesh.make())  # pyright: ignore[reportArgumentType]
        counts, forward = bench.counted(context, "teacher", block)
        assert plan.training(context, "teacher", 8)[0].count() == (counts["train"], forward)
        return counts["train"], forward

    found, forward = of(1)
    assert of(4) == (pytest.approx(found, rel=0.02), forward)
    assert found / forward == pytest.approx(3, rel=0.15)


CHIP = chips.Chip(100.0, 1.0, 1.0, 1.0, 1.0, ())


def planned(monkeypatch, memory, chip=CHIP, batch_size=8, **more):
    """(plans of a stage of two programs whose memory is memory[name](batch), the batches at which each was compiled)"""
    seen = {name: [] for name in memory}

    def build(program, batch, devices, room, whole):
        seen[program.name].append(batch)
        peak, least = memory[program.name](batch), memory[program.name](0)
        return plan.Compiled(program.name, batch, peak <= room, peak, least, peak - least)

    made = [plan.Program(name, lambda: None, lambda: (1.0, 1.0), 1.0, 1e2, 0.0) for name in memory]
    monkeypatch.setattr(plan, "build", build)
    monkeypatch.setitem(plan.PLANNED, "train", lambda context, name, batch: made)
    block = dict(kind="train", method="denoising", batch_size=batch_size, **more)
    config = dict(model=dict(kind="dit", remat="layers", attention="splash"), stages=dict(a=block))
    return plan.plan(Context(config, None, mesh.make()), "a", chip), seen  # pyright: ignore[reportArgumentType]


def test_two_compiles_of_each_program_and_one_of_the_one_that_limits(monkeypatch):
    plans, seen = planned(monkeypatch, {"small": lambda b: 30 + b, "large": lambda b: 10 + 3 * b})
    assert seen == {"small": [8, 4], "large": [8, 4, 30]}
    assert [one.largest for one in plans] == [30, 30] and all(one.fits for one in plans)
    assert plans[1].predicted == plans[1].confirmed == 100 and math.isnan(plans[0].confirmed)


def test_a_line_that_the_compiler_does_not_keep_to(monkeypatch):
    plans, _ = planned(monkeypatch, {"bent": lambda b: 10 + 3 * b + (b > 8)})
    assert plans[0].largest is None and "does not fit" in (plan.told(plans[0]) or "")


@pytest.mark.parametrize("slope, seen", [(10, [1, 4, 8]), (24, [1, 2, 3])])
def test_the_smallest_batch_is_tried_with_one_far_from_it_that_fits(monkeypatch, slope, seen):
    plans, tried = planned(monkeypatch, {"large": lambda b: 10 + slope * b}, batch_size=1)
    assert tried == {"large": seen} and plans[0].largest == seen[-1]


def test_the_search_ends(monkeypatch):
    plans, seen = planned(monkeypatch, {"flat": lambda b: 10.0})
    assert plans[0].largest == 8 * plan.FARTHEST and seen == {"flat": [8, 4, 64]}


def test_what_does_not_fit_is_told_what_to_set(monkeypatch):
    plans, seen = planned(monkeypatch, {"large": lambda b: 10 + 30 * b})
    assert seen == {"large": [8]} and not plans[0].fits
    assert plan.verdict(plans[0], CHIP).startswith("does not fit: needs ")
    assert plans[0].hint == "set config.stages.large.accumulate=8, or config.stages.large.batch_size=1"


def test_batches_that_are_tried_divide_into_the_microbatches(monkeypatch):
    plans, seen = planned(monkeypatch, {"large": lambda b: 10 + 3 * b}, accumulate=4)
    assert seen == {"large": [8, 4, 28]} and plans[0].largest == 28
    plans, _ = planned(monkeypatch, {"large": lambda b: 10 + 30 * b}, accumulate=4)
    assert plans[0].hint == "set config.stages.large.accumulate=8, or config.stages.large.batch_size=4"


def test_what_arguments_alone_exceed_is_not_compiled():
    program = plan.Program("large", lambda: pytest.fail("it was lowered"), lambda: (1.0, 1.0), 1.0, 1e2, 101.0)
    found = plan.build(program, 8, [None], CHIP.memory)
    assert not found.fits and found.peak == 101
    said = plan.verdict(plan.Plan(found, None, math.nan, math.nan, "set nothing"), CHIP._replace(memory=100 * GIB))
    assert said == "does not fit: its arguments alone need 0.0 GiB of 100.00; set nothing"


@needs_libtpu
def test_a_program_for_a_tpu_and_one_that_is_too_large():
    chip, devices = chips.described("v5e:2x2", 1)
    where = mesh.make(dict(fsdp=4), devices)
    spec = jax.ShapeDtypeStruct((4096, 4096), F32, sharding=mesh.split(where))
    product = plan.Program(
        "product", lambda: jax.jit(lambda x: jnp.sum(x @ x)).lower(spec), lambda: (2 * 4096.0**3, 1.0), 1.0, 0.0, 0.0
    )
    found = plan.build(product, 4096, devices, chip.memory)
    assert found.fits and found.arguments == 4096 * 4096 * 4 / 4 and found.peak < chip.memory
    assert plan.on_one_device((spec,)) == found.arguments
    # Every device needs all rows: three quarters of them travel, as bfloat16, of which a TPU makes its products.
    assert found.sent == pytest.approx(3 / 4 * 4096 * 4096 * 2, rel=0.01)
    large = lambda x: jnp.sum(jnp.sort(jnp.sin(jnp.tile(x, (64, 64))), axis=0)[::7])  # noqa: E731
    product = product._replace(lower=lambda: jax.jit(large).lower(spec))
    found = plan.build(product, 4096, devices, chip.memory)
    assert not found.fits and found.peak > chip.memory


@needs_libtpu
def test_a_config_that_cannot_fit_is_refused_before_it_is_compiled(capsys):
    where = ["--config=configs/video/wan.py:14b,teacher,v5p-64", "--topology=v5e:2x2", "--config.mesh.fsdp=2"]
    assert plan.main(["plan", *where, "--config.mesh.context=2", "--config.stages.teacher.batch_size=2"]) == 1
    printed = capsys.readouterr()
    assert "compiling" not in printed.err and "arguments alone" in printed.out
    assert "more chips, 15 at the least" in printed.out


@needs_libtpu
def test_slices_are_parts_of_data():
    _, devices = chips.described("v5e:2x2", 2)
    with pytest.raises(ConfigError, match="slices.*nearest: data=2, fsdp=4"):
        chips.mesh_of(dict(fsdp=8), devices)


def test_samplers_cost_a_forward_a_call_and_two_where_they_are_guided():
    config = configs.plain(tiny.get_config())
    sampler = dict(weights="teacher", steps=5)
    config["stages"]["evaluate"] = dict(
        kind="evaluate", batch_size=4, samplers={"plain": sampler, "guided": {**sampler, "guidance": 2.0}}
    )
    made = plan.sampling(Context(config, None, mesh.make()), "evaluate", 4)  # pyright: ignore[reportArgumentType]
    assert [one.name for one in made] == ["evaluate, plain", "evaluate, guided"]
    assert [step / forward for step, forward in (one.count() for one in made)] == pytest.approx(
        [5, 10], rel=1e-3
    )  # the level is one for all clips
    found = plan.build(made[0], 4, jax.devices()[:1], math.inf)
    assert found.fits and found.arguments > 4 * sum(
        leaf.size for leaf in jax.tree.leaves(jax.eval_shape(configs.model(config).init, jax.random.key(0)))
    )


def programs_of(config, samplers):
    config["stages"]["evaluate"] = dict(kind="evaluate", batch_size=4, samplers=samplers)
    return plan.sampling(Context(config, None, mesh.make()), "evaluate", 4)  # pyright: ignore[reportArgumentType]


def test_a_matrix_is_made_for_the_networks_own_frames():
    """Of three, and not of the two that a block without a network is checked with: one by one, two calls for each."""
    sampler = dict(weights="teacher", steps=2, matrix="autoregressive")
    (made,) = programs_of(configs.plain(tiny.get_config()), {"one_by_one": sampler})
    step, forward = made.count()
    assert step / forward == pytest.approx(3 * 2, rel=1e-2)


def test_a_stream_is_planned_with_its_cache():
    """Of four frames, two at a time, each pair in three calls and one that remembers it; twice where it is guided."""
    config = configs.plain(tiny_causal.get_config("nowhere"))
    sampler = dict(weights="causal", steps=3, stream=2)
    whole = {key: value for key, value in sampler.items() if key != "stream"}
    plain, guided, clips = programs_of(config, {"a": sampler, "b": sampler | dict(guidance=2.0), "c": whole})
    once, twice = plain.count()[0], guided.count()[0]
    assert twice == pytest.approx(2 * once, rel=1e-3)
    # Half a clip's tokens in each of six calls and in the two that remember, which need no answer.
    assert 3 < once / clips.count()[1] < 4
    found = plan.build(plain, 4, jax.devices()[:1], math.inf)
    assert found.fits and plain.least < clips.least  # it draws its own noise
    with pytest.raises(ConfigError, match="evaluate.stream: 'teacher' sees all frames at once"):
        programs_of(configs.plain(tiny.get_config()), {"a": sampler | dict(weights="teacher")})


def test_a_sampler_that_asks_the_network_cannot_be_planned():
    config = configs.plain(tiny.get_config())
    config["stages"]["evaluate"] = dict(
        kind="evaluate", samplers={"b": dict(weights="teacher", steps=5, solver="best")}
    )
    with pytest.raises(ConfigError, match="ask the network first"):
        plan.sampling(Context(config, None, mesh.make()), "evaluate", 4)  # pyright: ignore[reportArgumentType]
