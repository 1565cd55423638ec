"""docs/configs.md against the code: every key of a config, which are needed, what they are unless given, and their names."""

import ast
import inspect
import pathlib
import re
from collections.abc import Callable

import pytest

import distill
from diffusion import draws, predictions
from experiments import (
    autoencoder,
    cascade,
    continuation,
    data,
    drawing,
    evaluation,
    exact,
    generate,
    latents,
    preview,
    run,
    stages,
    tables,
    times,
    training,
    validation,
)
from experiments import config as configs
from experiments import mesh as meshes
from experiments.ablations import sweep
from experiments.config import ConfigError
from experiments.metrics.validation import LEVELS
from models import INPUTS
from models import KINDS as MODELS
from models.attention import ATTENTION, NO_ATTENTION
from models.builders import COMMON
from models.classifier import DEFAULTS as CLASSIFIER

PAGE = (pathlib.Path(__file__).resolve().parent.parent / "docs/configs.md").read_text(encoding="utf-8")
PARTS = re.split(r"^###? (.+)$", re.sub(r"^```.*?^```$", "", PAGE, flags=re.S | re.M), flags=re.M)
SECTIONS = dict(zip(PARTS[1::2], PARTS[2::2], strict=True))
SHARED = "Keys of all training"
NEEDED = "needed"
CODE = {
    "train": (training,),
    "classifier": (training,),
    "autoencoder": (autoencoder,),
    "round_trip": (autoencoder,),
    "encode": (latents,),
    "generate": (generate,),
    "evaluate": (evaluation,),
    "continue": (continuation, evaluation),
    "cascade": (cascade, evaluation),
    "exact": (exact,),
    "times": (times, evaluation),
}
"""Kind of a stage -> the modules that read its keys."""
NAMES = {
    "data": data.KINDS,
    "model": MODELS,
    "schedule": configs.SCHEDULES,
    "prediction": predictions.PREDICTIONS,
    "noise": configs.NOISES,
    "method": distill.METHODS,
    "law": configs.LAWS,
    "draw": {**draws.DRAWS, **draws.MADE},
    "weight": configs.WEIGHTS,
    "solver": tables.SOLVERS,
    "grid": tables.GRIDS,
    "matrix": {**tables.MATRICES, **continuation.MATRICES},
    "way": continuation.WAYS,
    "threshold": drawing.THRESHOLDS,
}


def of(kind: str) -> str:
    """The title of a kind's section."""
    return f"`{kind}`"


def rows(title: str, table: int = 0) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    found = re.findall(r"(?:^\|.*\|\n)+", SECTIONS[title], re.M)
    lines = found[table].splitlines()
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]]


def keys(title: str) -> dict[str, str]:
    """key -> default, of the section's one table of keys."""
    found = rows(title)
    assert all(len(row) == 3 and all(row) for row in found), f"{title}: a row is key, meaning, default"
    names = [key.strip("`") for key, _, _ in found]
    assert len(set(names)) == len(names), f"{title} has a key twice"
    return {name: default for name, (_, _, default) in zip(names, found, strict=True)}


def needed(table: dict[str, str]) -> set[str]:
    return {key for key, default in table.items() if default == NEEDED}


def valid(check: Callable, *arguments) -> set[str]:
    """The keys that a check names as it refuses one that doesn't exist."""
    with pytest.raises(ConfigError, match="has no key") as raised:
        check(*arguments)
    return set(re.search(r"valid: (.*)$", str(raised.value))[1].split(", "))


def context(config: dict) -> stages.Context:
    return stages.Context(config, pathlib.Path("nowhere"), meshes.make())


def test_the_page_has_the_keys_at_the_top():
    table = keys("At the top")
    whole = dict.fromkeys(table)
    assert valid(stages.check, context({**whole, "no such key": 0})) == set(table)
    for key in table:
        with pytest.raises(ConfigError) as raised:  # what comes next: None is no block of keys
            stages.check(context({k: v for k, v in whole.items() if k != key}))
        assert (f"lacks the key {key!r}" in str(raised.value)) == (table[key] == NEEDED), key


def test_the_page_has_all_kinds_of_stages_and_no_other():
    assert {title for title in SECTIONS if re.fullmatch(r"`\w+`", title)} == {of(kind) for kind in stages.KEYS}
    assert set(CODE) == set(stages.KEYS)
    assert len(stages.KEYS) == 11 and "one of the eleven below" in SECTIONS["Stages"]
    assert "`kind`" in SECTIONS["Stages"]


@pytest.mark.parametrize("kind", stages.KEYS)
def test_a_kinds_section_has_its_keys(kind):
    """kind itself is said of all stages at once."""
    allowed, required = stages.KEYS[kind]
    table = keys(of(kind))
    shared = keys(SHARED) if kind in stages.TRAINED else {}
    assert ("(#keys-of-all-training)" in SECTIONS[of(kind)]) == (kind in stages.TRAINED)
    assert not set(table) & set(shared)
    assert set(table) | set(shared) == set(allowed) - {"kind"}
    assert needed(table | shared) == set(required)


def test_the_shared_keys_are_those_of_training():
    assert set(keys(SHARED)) == stages.TRAINING - {"kind"}


def test_the_page_has_the_keys_of_the_blocks_of_training():
    own = keys("Keys of `validation`")
    assert set(own) == valid(validation.check, None, {"validation": {"no such key": 0}, "batch_size": 1}, "")
    assert needed(own) == {"clips"}
    own = keys("Keys of `preview`")
    assert set(own) == preview.KEYS and not needed(own)
    own = keys("Keys of `optimiser`")
    parameters = inspect.signature(distill.optimiser).parameters
    assert set(own) == valid(configs.optimiser, {"no such key": 0}, 1, "") == set(parameters) - {"steps"}
    for key, default in own.items():
        if default == NEEDED:
            assert parameters[key].default is inspect.Parameter.empty
        else:
            assert default.strip("`") == str(parameters[key].default), key


def test_the_page_has_the_keys_of_networks_with_their_defaults():
    table = {row[0].strip("`"): row[1:-1] for row in rows("Keys of `model`")}
    [head, *_] = re.findall(r"^\| key \|.*$", SECTIONS["Keys of `model`"], re.M)
    assert re.findall(r"`(\w+)`", head) == list(MODELS)
    for index, (kind, known) in enumerate(MODELS.items()):
        said = {key: ast.literal_eval(cells[index].strip("`")) for key, cells in table.items() if cells[index]}
        assert said == known.options | COMMON, kind
    assert all(f'`"{name}"`' in SECTIONS["Keys of `model`"] for name in (*ATTENTION, NO_ATTENTION, *INPUTS, "angle"))


def test_the_page_has_the_keys_of_sweeps():
    table = keys("Sweeps")
    assert set(table) == sweep.KEYS
    with pytest.raises(ConfigError, match="lacks"):
        sweep.runs({"sweep": {}})
    assert needed(table) == {"axes", "columns"}


def test_the_page_has_the_keys_of_samplers_and_who_takes_them():
    table = keys("Samplers")
    assert set(table) == evaluation.SAMPLER_KEYS
    assert needed(table) == {"weights", "steps"}
    takes = {
        "evaluate": evaluation.SAMPLER_KEYS,
        "cascade": cascade.STAGE_KEYS,
        "exact": exact.SAMPLER_KEYS,
        "generate": generate.KEYS,
        "continue": continuation.KEYS,
        "times": times.KEYS,
        "preview": preview.KEYS,
    }
    [_, head, *_] = re.findall(r"^\| key \|.*$", SECTIONS["Samplers"], re.M)
    assert re.findall(r"`(\w+)`", head) == list(takes)
    said = {row[0].strip("`"): row[1:] for row in rows("Samplers", 1)}
    assert set(said) == set(table)
    for index, (who, allowed) in enumerate(takes.items()):
        assert {key for key, cells in said.items() if cells[index] == "yes"} == allowed & set(table), who
    assert cascade.STAGE_KEYS - set(table) == {"aug_logsnr"} and "`aug_logsnr`" in SECTIONS[of("cascade")]
    for title in [of(kind) for kind in stages.KEYS] + ["Keys of `preview`", "Samplers"]:
        for key in {"solver", "grid"} & keys(title).keys():
            assert keys(title)[key] == f"`{tables.CHOICES[key][0]}`", title


def test_the_page_has_the_keys_of_a_search_where_the_law_is_known():
    assert all(f"`{key}`" in SECTIONS[of("times")].partition("| key |")[0] for key in times.COMMON)


@pytest.mark.parametrize("key", NAMES)
def test_the_page_has_the_names_to_choose_from(key):
    (said,) = [row[1] for row in rows("Names and their options") if row[0].startswith(f"`{key}`")]
    named, known = set(re.findall(r"`(\w+)`", said)), set(NAMES[key])
    assert known <= named and named - known <= set(stages.KEYS), named ^ known


def test_every_name_to_choose_is_looked_at():
    assert {row[0].split("`")[1] for row in rows("Names and their options")} == set(NAMES)


def defaults(module) -> dict[str, set]:
    """key -> what stands as its default wherever a module reads it as block.get(key, default)."""
    found: dict[str, set] = {}
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get"):
            continue
        match node.args:
            case [ast.Constant(key), ast.Constant(value)]:
                found.setdefault(key, set()).add(value)
            case [ast.Constant(key), ast.Name(name)] if hasattr(module, name):
                found.setdefault(key, set()).add(getattr(module, name))
    return found


PLAIN = re.compile(r"`(\d+(?:\.\d+)?|True|False|None)`")


def stated() -> list[tuple[str, str, object, tuple]]:
    """(section, key, default, the modules that read it), of defaults that are a number or a truth value."""
    titles = {of(kind): modules for kind, modules in CODE.items()}
    titles |= {SHARED: (training,), "Keys of `preview`": (preview,), "Samplers": (evaluation,)}
    return [
        (title, key, ast.literal_eval(found[1]), modules)
        for title, modules in titles.items()
        for key, default in keys(title).items()
        if (found := PLAIN.fullmatch(default))
    ]


@pytest.mark.parametrize("title, key, default, modules", [pytest.param(*s, id=f"{s[0]}-{s[1]}") for s in stated()])
def test_a_default_is_the_codes(title, key, default, modules):
    own = next((found[key] for module in modules if key in (found := defaults(module))), set())
    if title == SHARED and key == "accumulate":
        own |= defaults(stages)[key]
    read = {(type(value), value) for value in own if value is not None}
    truth = default is False and not read  # block.get(key), and only its truth counts
    assert truth or read == {(type(default), default)}, f"{title}: {key} is {default!r} on the page, {own} in the code"


def test_defaults_said_in_words_are_the_codes():
    assert "-8 to 8 in steps of 2" in keys(of("evaluate"))["loss_levels"] and LEVELS == tuple(range(-8, 9, 2))
    assert "16x16x1, 10 classes" in keys(of("classifier"))["model"]
    assert CLASSIFIER["shape"] == (16, 16, 1) and CLASSIFIER["num_classes"] == 10
    assert all(f"`{name}`" in keys(of("evaluate"))["classifier"] for name in evaluation.CLASSIFIERS.values())


def test_the_whole_config_is_one(tmp_path, monkeypatch):
    """The page's file passes all checks, and its commands name keys that it has."""
    (file,) = re.findall(r"^```python\n(# (my_\w+\.py)\n.*?)^```$", PAGE, re.S | re.M)
    monkeypatch.chdir(tmp_path)
    (tmp_path / file[1]).write_text(file[0], encoding="utf-8")
    lines = re.findall(r"^python -m experiments\.run (.*)$", PAGE, re.M)
    assert len(lines) == 2
    for line in lines:
        config, *_ = run.parse(["run", *line.split()])
        stages.check(context(config))
