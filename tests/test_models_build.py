"""`build` and ModelDef: configs, refusals, and params as plain trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from models import KINDS, build, inherit
from models.definition import define
from models.layers import Linear
from models.mlp import MLP

SMALL = dict(kind="unet", shape=(3, 8, 8, 2), num_classes=4, widths=(8, 12), blocks=(1, 1), embed=8, head_dim=6)


@pytest.fixture(scope="module")
def net():
    return build(SMALL)


@pytest.fixture(scope="module")
def params(net):
    return net.init(jax.random.key(0))


def leaves(tree, path=()):
    if type(tree) is dict:
        for name, sub in tree.items():
            assert type(name) is str, "keys are strings, which every checkpoint format can hold"
            yield from leaves(sub, (*path, name))
    else:
        yield path, tree


def test_params_are_plain_dicts_of_float32_arrays(net, params):
    found = dict(leaves(params))
    assert len(found) == len(jax.tree.leaves(params)) > 10
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in found.values())


def test_params_survive_a_round_trip_through_numpy(net, params):
    rebuilt = {}
    for path, leaf in leaves(params):
        at = rebuilt
        for name in path[:-1]:
            at = at.setdefault(name, {})
        at[path[-1]] = np.asarray(leaf)
    x = jnp.ones((1, 3, 8, 8, 2))
    moved = [jax.tree.map(lambda leaf: leaf + 0.1, tree) for tree in (params, rebuilt)]
    assert jax.tree.structure(moved[0]) == jax.tree.structure(moved[1])
    run = jax.jit(net.apply)
    outs = [run(tree, x, 0.0, {"label": jnp.array([1])}) for tree in moved]
    np.testing.assert_array_equal(*outs)
    assert np.abs(outs[0]).max() > 0


def test_init_is_a_function_of_the_key(net, params):
    same, other = net.init(jax.random.key(0)), net.init(jax.random.key(1))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, same)))
    assert not np.array_equal(params["stem"]["weight"], other["stem"]["weight"])


def test_layers_of_one_network_differ(params):
    first, second = params["down"]["0"]["0"]["out"]["weight"], params["up"]["0"]["0"]["out"]["weight"]
    assert first.shape == second.shape and not np.array_equal(first, second)


def test_the_definition_says_what_a_stage_must_know(net):
    assert (net.kind, net.shape, net.num_classes, net.attention, net.jvp) == (
        "unet",
        (3, 8, 8, 2),
        4,
        "xla",
        True,
    )
    assert net.cond_keys == ("label",)
    assert build(SMALL | dict(num_classes=0)).cond_keys == ()
    assert set(KINDS) == {"unet", "dit", "mlp"}


def test_equal_configs_give_the_same_definition(net):
    listed = ConfigDict(SMALL | dict(widths=[8, 12], shape=[3, 8, 8, 2]))
    assert build(listed) is net
    assert build(SMALL | dict(attention="fused")) is build(SMALL, attention="fused")
    assert build(SMALL | dict(attention="fused"), attention="xla").jvp


@pytest.mark.parametrize(
    "change, error, message",
    [
        (
            dict(kind="unett"),
            KeyError,
            "unknown model kind 'unett', expected one of unet, dit, mlp; did you mean 'unet'",
        ),
        (dict(width=(8, 12)), KeyError, "unknown key 'width' for a 'unet' model; did you mean 'widths'"),
        (dict(attention="flash"), KeyError, "unknown attention kind 'flash'"),
        (dict(shape=(3, 8, 8)), ValueError, r"shape is \(frames, height, width, channels\), got \(3, 8, 8\)"),
        (dict(shape=(3, 8, 9, 1)), ValueError, "frames of 8x9 do not divide by .* = 2"),
        (dict(num_classes=-1), ValueError, "num_classes is the number of classes or 0 for none, got -1"),
        (dict(blocks=(1,)), ValueError, r"one entry a level, got \(8, 12\) and \(1,\)"),
        (dict(blocks=(0, 1)), ValueError, r"blocks is made of whole numbers from 1 up, got \(0, 1\)"),
        (dict(widths="8,12"), ValueError, "widths is of the type of its default"),
        (dict(head_dim=10), ValueError, "the last of widths, 12, is no multiple of head_dim 10"),
        (dict(dropout=1.0), ValueError, r"dropout is in \[0, 1\), got 1.0"),
        (dict(dtype="float16"), ValueError, "dtype is 'float32' or 'bfloat16', got 'float16'"),
        (dict(embed=True), ValueError, "embed is of the type of its default, 128, got True"),
        (dict(cond="guidance"), ValueError, r"cond is a tuple of names among .*, got 'guidance'"),
        (dict(cond=("logsnr_two",)), ValueError, "got 'logsnr_two'; did you mean 'logsnr_to'"),
        (dict(level="angel"), ValueError, r"level is one of \('logsnr', 'angle'\), got 'angel'; did you mean 'angle'"),
        (dict(rope_base=1), ValueError, "rope_base is above 1, got 1"),
    ],
)
def test_a_config_that_makes_no_network_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        build(SMALL | change)


@pytest.mark.parametrize("missing", ["kind", "shape", "num_classes"])
def test_a_missing_key_is_named(missing):
    config = {name: value for name, value in SMALL.items() if name != missing}
    with pytest.raises(KeyError, match=f"a model config needs the key '{missing}'"):
        build(config)
    config["num_clases"] = 4
    if missing == "num_classes":
        with pytest.raises(KeyError, match="is 'num_clases' meant to be it"):
            build(config)


def test_dit_sizes_are_checked():
    dit = dict(kind="dit", shape=(3, 8, 8, 1), num_classes=0)
    with pytest.raises(ValueError, match="frames of 8x8 do not divide by patch 3"):
        build(dit | dict(patch=3))
    with pytest.raises(ValueError, match="width, 100, is no multiple of head_dim 48"):
        build(dit | dict(width=100))
    with pytest.raises(ValueError, match="scan is of the type of its default, True, got 1"):
        build(dit | dict(scan=1))


@pytest.mark.parametrize(
    "cond, message",
    [
        ({"low": 0}, r"this model takes cond keys \('label',\), got 'low'"),
        ({"label": np.array([0.5])}, r"cond\['label'\] is integers \[1\], got float32 of shape \(1,\)"),
        ({"label": np.array([1, 2, 3])}, r"cond\['label'\] is integers \[1\], got int32 of shape \(3,\)"),
    ],
)
def test_conditioning_is_refused_by_name(net, params, cond, message):
    with pytest.raises(ValueError, match=message):
        net.apply(params, jnp.zeros((1, 3, 8, 8, 2)), 0.0, cond)


def test_inputs_that_a_model_does_not_take_or_of_a_wrong_shape_are_refused():
    net = build(SMALL | dict(cond=("guidance",)))
    params, x = net.init(jax.random.key(0)), jnp.zeros((2, 3, 8, 8, 2))
    with pytest.raises(ValueError, match=r"takes cond keys \('label', 'guidance'\), got 'logsnr_to'"):
        net.apply(params, x, 0.0, {"logsnr_to": 1.0})
    with pytest.raises(ValueError, match=r"cond\['guidance'\] is \[\] or \[2\], got shape \(2, 3\)"):
        net.apply(params, x, 0.0, {"guidance": jnp.ones((2, 3))})
    both = build(SMALL | dict(cond=["logsnr_to", "guidance"]))
    assert both.cond_keys == build(SMALL | dict(cond=("guidance", "logsnr_to"))).cond_keys
    with pytest.raises(ValueError, match=r"axis 1 must have length 1 or the clip's 3 frames, got \(2, 4\)"):
        both.apply(both.init(jax.random.key(0)), x, 0.0, {"logsnr_to": jnp.ones((2, 4))})


def test_inheriting_adds_only_the_inputs_paths(net, params):
    more = build(SMALL | dict(cond=("logsnr_to",)))
    completed = inherit(params, more, jax.random.key(3))
    assert completed.keys() == params.keys() | {"logsnr_to"} and "logsnr_to" not in params
    assert all(completed[name] is params[name] for name in params)
    assert not np.any(completed["logsnr_to"]["out"]["weight"]) and np.any(completed["logsnr_to"]["hidden"]["weight"])
    again = inherit(completed, more, jax.random.key(4))
    assert again["logsnr_to"] is completed["logsnr_to"], "what is there stays"
    with pytest.raises(KeyError, match="params lack 'head/bias'"):
        inherit({name: leaf for name, leaf in params.items() if name != "head"}, more, jax.random.key(3))
    with pytest.raises(KeyError, match="params have 'logsnr_to/hidden/bias', which this model has not"):
        inherit(completed, net, jax.random.key(3))
    wrong = params | {"stem": params["stem"] | {"bias": jnp.zeros(9)}}
    with pytest.raises(ValueError, match=r"parameter 'stem/bias' must have shape \(8,\), got \(9,\)"):
        inherit(wrong, more, jax.random.key(3))


def test_a_network_without_attention_takes_no_kind_of_it():
    mlp = dict(kind="mlp", shape=(2, 1, 1, 2), num_classes=0)
    assert build(mlp, attention="fused") is build(mlp) and build(mlp).jvp
    net = build(mlp)
    with pytest.raises(ValueError, match=r"this MLP takes clips of shape \(2, 1, 1, 2\), got \(3, 1, 1, 2\)"):
        net.apply(net.init(jax.random.key(0)), jnp.zeros((1, 3, 1, 1, 2)), 0.0)
    with pytest.raises(ValueError, match="depth is made of whole numbers from 1 up, got 0"):
        build(mlp | dict(depth=0))


def test_an_unconditional_network_takes_no_label():
    config = SMALL | dict(num_classes=0)
    net = build(config)
    params = net.init(jax.random.key(0))
    assert "label" not in params
    x = jnp.zeros((1, 3, 8, 8, 2))
    assert jax.eval_shape(net.apply, params, x, 0.0, None).shape == x.shape
    with pytest.raises(ValueError, match=r"this model takes cond keys \(\), got 'label'"):
        net.apply(params, x, 0.0, {"label": jnp.array([0])})


@pytest.mark.parametrize("shape", [(3, 8, 8, 2), (1, 3, 8, 8, 1)])
def test_clips_of_another_shape_are_refused(net, params, shape):
    with pytest.raises(ValueError, match=r"this model takes clips \[b, f, h, w, 2\], got shape"):
        net.apply(params, jnp.zeros(shape), 0.0)


def test_frames_that_do_not_divide_are_refused(net, params):
    with pytest.raises(ValueError, match=r"multiples of 2, got frames \(8, 7\)"):
        net.apply(params, jnp.zeros((1, 3, 8, 7, 2)), 0.0)


def test_weights_of_another_network_are_refused(net, params):
    x = jnp.zeros((1, 3, 8, 8, 2))
    wrong = params | {"stem": params["stem"] | {"weight": jnp.zeros((3, 3, 2, 9))}}
    with pytest.raises(ValueError, match=r"parameter 'stem/weight' must have shape \(3, 3, 2, 8\), got"):
        net.apply(wrong, x, 0.0)
    with pytest.raises(KeyError, match="params lack 'head/bias'"):
        net.apply({name: leaf for name, leaf in params.items() if name != "head"}, x, 0.0)
    with pytest.raises(KeyError, match="params have 'heads/bias', which this model has not; nearest is 'head/bias'"):
        net.apply({"heads" if name == "head" else name: leaf for name, leaf in params.items()}, x, 0.0)


def test_a_network_from_outside_may_call_a_layer_hidden():
    """Only a number of that name says that `features` has a choice of maps."""

    class Outside(MLP):
        def __init__(self, rngs):
            super().__init__((2, 4, 4, 1), 0, (), "logsnr", 8, 1, 0.0, "float32", rngs)
            self.hidden = Linear(2, 3, rngs)

    made = define(
        "outside", Outside, shape=(2, 4, 4, 1), num_classes=0, inputs=(), attention="none", dropout=0.0, maps=False
    )
    assert made.channels == made.hidden == (8,)
