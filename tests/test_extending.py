"""A new user's project: the files of docs/extending.md, word for word, in an empty folder, and its commands.

Nothing of the repository is changed or patched; it is found through PYTHONPATH as an installed package would be.
"""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion import schedules
from distill import METHODS
from experiments import cite, data, names, tables, training
from experiments import config as configs
from models.definition import define
from tests.configs import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.S | re.M)


FILES = {named[1]: block for block in blocks("python") if (named := re.match(r"# (\w+\.py)\n", block))}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The folder of the new user, with the page's files in it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    assert not folder.is_relative_to(ROOT)
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def command(line: str, folder: pathlib.Path) -> str:
    """Runs `python ...` in the folder, as its user would; what it printed."""
    program, *arguments = shlex.split(line)
    assert program == "python"
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_pages_project_trains_and_samples(project):
    """Every command of the page, in its order; then what the page says of their results."""
    for block in blocks("bash"):
        for line in block.splitlines():
            command(line, project)
    report = json.loads((project / "runs/ring/report.json").read_text())["metrics"]
    distance = {name: row["wasserstein"] for name, row in report.items()}
    # Intervals, not the values alone.
    assert distance["student_1"][2] < distance["oracle_1"][1] and report["student_1"]["modes"][0] == 8
    assert distance["damped_8"][2] < distance["ddim_8"][1]
    for who in ("teacher", "student"):
        clips = np.load(project / f"runs/{who}/samples.npy").astype(float)
        light = clips.mean((2, 3, 4))
        rise = light[:, -1] - light[:, 0]
        # Classes in turn: out, in. A square of the data rises or falls by 25; without a class the two means are the same.
        assert rise[1::2].mean() > 2 and rise[::2].mean() < -2 and rise[1::2].mean() - rise[::2].mean() > 8


@pytest.fixture
def at_home(project, monkeypatch):
    """The user's modules, importable here."""
    monkeypatch.syspath_prepend(project)
    yield
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_the_pages_other_code_runs(at_home):
    for block in blocks("python"):
        if block not in FILES.values():
            exec(compile(block, "docs/extending.md", "exec"), {})


def test_papers_of_parts_from_outside_are_those_that_they_name(at_home, project, capsys):
    assert not cite.main(["cite", f"--config={project / 'my_ring.py'}"])
    said = capsys.readouterr().out
    assert "% method my_methods:endpoint: arXiv 2101.02388" in said and "my_solvers:damped: arXiv 2211.01095" in said


def test_parts_from_outside_are_as_good_as_ours(at_home):
    """A clock of flow's slope is flow's clock, and comes back from its record; equal blocks give one and the same network."""
    schedule = configs.schedule({"schedule": {"kind": "my_schedules:logistic", "scale": 2.0}})
    t = np.linspace(0.01, 0.99, 9)
    np.testing.assert_allclose(schedule.logsnr(t), schedules.flow().logsnr(t), rtol=1e-12)
    np.testing.assert_allclose(schedule.time(schedule.logsnr(t)), t, rtol=1e-12)
    saved = json.loads(json.dumps(schedules.record(schedule)))
    assert saved["clock"]["kind"] == "my_schedules:Logistic" and saved["scaling"]["kind"] == "VP"
    assert schedules.restore(saved, configs.schedule_part) == schedule
    with pytest.raises(KeyError, match="kind 'my_schedules:Logistic' is not known"):
        schedules.restore(saved)
    block = {"kind": "my_models:convolutions", "shape": [4, 8, 8, 1], "num_classes": 2, "width": 8}
    definition = configs.model({"model": block})
    assert definition is configs.model({"model": dict(reversed(block.items()))})
    x = jax.random.normal(jax.random.key(0), (2, 4, 8, 8, 1))
    assert definition.apply(definition.init(jax.random.key(1)), x, 0.0).shape == x.shape
    source = data.build({"kind": "my_data:Squares", "size": 3}, "test")
    assert len(source) == 3 and isinstance(source, data.Source)


WRONG = {
    "table": "def f(schedule, grid): return 1",
    "method": "def f(network, *, optimiser): return 1",
    "model": "def f(shape, num_classes): return 1",
    "annotated": "from models import ModelDef\ndef f(shape, num_classes) -> ModelDef: return 1",
    "source": "import dataclasses\n@dataclasses.dataclass\nclass f:\n    split: str",
    "part": "class f: logsnr = time = None",
}


@pytest.mark.parametrize(
    "name, message",
    [
        ("elsewhere:f", "config.x.kind 'elsewhere:f': there is no module 'elsewhere'"),
        ("experiments.nothing:f", "there is no module 'experiments.nothing'"),
        ("experiments.names:importd", "has no function 'importd'; did you mean 'imported'"),
        ("experiments.names:__doc__", "has no function '__doc__'"),
        ("experiments names:f", "is named as 'package.module:function'"),
        (":f", "is named as 'package.module:function'"),
        ("json:loads:x", "is named as 'package.module:function'"),
    ],
)
def test_what_cannot_be_imported_is_refused_by_name(name, message):
    with pytest.raises(configs.ConfigError) as raised:
        configs.named({"kind": name}, configs.SCHEDULES, "config.x")
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_an_error_inside_a_module_is_its_own(tmp_path, monkeypatch):
    (tmp_path / "broken_inside.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        names.imported("broken_inside:f", "x")


def test_functions_that_return_something_else_are_refused(tmp_path, monkeypatch):
    for name, text in WRONG.items():
        (tmp_path / f"wrong_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    flow = schedules.flow()
    network = configs.Network(None, flow, "v")
    shaped = {"shape": [1, 1, 1, 1], "num_classes": 0}
    refused = {
        "wrong_table:f": lambda kind: tables.check({"solver": kind}, 2, flow, "here"),
        "wrong_method:f": lambda kind: configs.method(kind, {}, network, None, 1, "here"),
        "wrong_annotated:f": lambda kind: configs.model({"model": {"kind": kind, **shaped}}),
        "wrong_model:f": lambda kind: configs.model({"model": {"kind": kind, **shaped}}),
        "wrong_source:f": lambda kind: configs.source({"data": {"kind": kind}}, "train"),
        "wrong_part:f": configs.schedule_part,
        "collections:OrderedDict": lambda kind: configs.schedule({"schedule": kind}),
        # A record of weights names its model's function: no other function is ever called for it.
        "os:system": lambda kind: configs.model({"model": {"kind": kind, "command": "false", **shaped}}),
    }
    for kind, build in refused.items():
        with pytest.raises(configs.ConfigError, match="expected a function|is no data source|is no dataclass"):
            build(kind)


PARTS = """
import dataclasses
import jax.numpy as jnp
import numpy as np
from diffusion import grids
from diffusion.schedules import Schedule, VP
from models import ModelDef, define

@dataclasses.dataclass(frozen=True)
class Line:
    start: float = 10.0
    factor: float = -20.0
    def logsnr(self, t):
        return self.start + self.factor * t
    def time(self, logsnr):
        return (logsnr - self.start) / self.factor

class Shifted(Line):
    def time(self, logsnr):
        return super().time(logsnr) + 0.1

@dataclasses.dataclass(frozen=True)
class Twice:
    def alpha(self, logsnr):
        return 2 * VP().alpha(logsnr)
    def sigma(self, logsnr):
        return VP().sigma(logsnr)

def good():
    return Schedule(VP(), Line(), -10.0, 10.0)
def rising():
    return Schedule(VP(), Line(-10.0, 20.0), -10.0, 10.0)
def shifted():
    return Schedule(VP(), Shifted(), -10.0, 10.0)
def scaled():
    return Schedule(Twice(), Line(), -10.0, 10.0)
def unwritten():
    return Schedule(VP(), Line(np.float32(10.0)), -10.0, 10.0)
def short(schedule, num_steps):
    return grids.uniform_time(schedule, num_steps - 1)
def flat(schedule, num_steps, frames):
    return np.tile(grids.uniform_time(schedule, num_steps)[:, None], frames)
def lawless():
    return None
def narrow():
    return lambda key, shape: jnp.zeros((7,))
def host():
    return lambda logsnr: np.exp(logsnr)
"""


def test_parts_that_are_not_what_they_say_are_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "odd_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    assert configs.schedule({"schedule": "odd_parts:good"}).logsnr_end == 10.0
    flow = schedules.flow()

    def schedule(name):
        return configs.schedule({"schedule": f"odd_parts:{name}"})

    def levels(key, name):
        config = configs.plain(tiny.get_config())
        block = config["stages"]["teacher"] | {"options": {key: f"odd_parts:{name}"}}
        training.check_levels(*configs.network(config), block, "here")

    refused = {
        "each is to undo the other": lambda: schedule("rising"),
        "config.schedule: its clock's logsnr and time are to fall": lambda: schedule("shifted"),
        "its scaling's alpha and sigma": lambda: schedule("scaled"),
        "config.schedule: .*float32.* is not JSON serializable": lambda: schedule("unwritten"),
        "the schedule's part 'nowhere_at_all:Line'": lambda: configs.schedule_part("nowhere_at_all:Line"),
        r"here.grid: expected 5 levels, got those of shape \[4\]": lambda: tables.check(
            {"grid": "odd_parts:short"}, 4, flow, "here"
        ),
        r"here.matrix: expected levels \[rows \+ 1, 1, 2\], got those of shape \[5, 2\]": lambda: tables.check(
            {"matrix": "odd_parts:flat"}, 4, flow, "here"
        ),
        "here.options.law: expected a function": lambda: levels("law", "lawless"),
        r"here.options.law: expected numbers of shape \(2,\), got": lambda: levels("law", "narrow"),
        "here.options.weight: .*__array__": lambda: levels("weight", "host"),
    }
    for said, build in refused.items():
        with pytest.raises(configs.ConfigError, match=said):
            build()


def test_a_network_that_answers_other_shapes_is_refused():
    """Broadcast against the clips it would train to the end, and be of no use."""

    class Wrong(nnx.Module):
        def __init__(self, rngs):
            self.gain = nnx.Param(jnp.ones(()))

        def __call__(self, x, level, cond, key):
            return self.gain[...] * x[:, 0]

        def features(self, x, level, cond):
            return (x,)

    given = dict(shape=(2, 3, 3, 1), num_classes=0, inputs=(), attention="none", dropout=0.0)
    network = define("wrong", Wrong, **given)
    params = network.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"'wrong' answers clips of shape \[4, 2, 3, 3, 1\] with \[4, 3, 3, 1\]"):
        network.apply(params, jnp.zeros((4, 2, 3, 3, 1)), 0.0)


def test_only_functions_are_taken_from_outside():
    """Names of stages, sections and predictions are no functions'."""
    for choices in ({"a": {}}, dict.fromkeys(["v"]), {}):
        with pytest.raises(configs.ConfigError, match="is not known"):
            configs.choose("json:loads", choices, "it")
    assert all(":" not in name for known in (METHODS, tables.SOLVERS, configs.SCHEDULES, data.KINDS) for name in known)
