"""Files from elsewhere: nothing in them is run, no name in them leaves its folder, and damage ends in a good answer or in one
line that names the file.
"""

import ast
import json
import pathlib
import shutil

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from diffusion import grids, schedules, solvers
from experiments import config as configs
from experiments import data, latents, weights, writers
from experiments.config import ConfigError
from experiments.data import latents as store
from tests import test_data_latents as made

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("configs", "diffusion", "distill", "experiments", "models")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]

# Modules that make objects, and so run code, of what they read; or that unpack archives, whose names may lead anywhere.
LOADERS = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "yaml", "tarfile",
}  # fmt: skip
RUNNERS = {"eval", "exec", "compile", "__import__", "execfile"}
UNPACKERS = {"extractall", "unpack_archive", "system", "popen"}


def offences(text):
    """What a module does that could run what a file holds."""
    found, nodes = [], list(ast.walk(ast.parse(text)))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in LOADERS]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").split(".")[0] in LOADERS else []
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            constant = {k: v.value for k, v in given.items() if isinstance(v, ast.Constant)}
            if isinstance(node.func, ast.Name) and name in RUNNERS - own or name in UNPACKERS:
                found.append(name)
            if constant.get("allow_pickle") or constant.get("shell"):
                found.append(f"{name}(allow_pickle or shell)")
            whose = (
                node.func.value.id if name == "load" and isinstance(getattr(node.func, "value", None), ast.Name) else ""
            )
            if whose in ("np", "numpy", "jnp") and constant.get("allow_pickle") is not False:
                found.append("np.load without allow_pickle=False")
            if whose == "torch" and not constant.get("weights_only"):
                found.append("torch.load without weights_only")
    return found


def test_nothing_that_is_read_is_run():
    assert len(MODULES) > 50
    assert not {str(path): found for path in MODULES if (found := offences(path.read_text(encoding="utf-8")))}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "import numpy as np\nnp.load(p)", "np.load(p, allow_pickle=True)",
        "eval(text)", "archive.extractall()", "torch.load(path)", "subprocess.run(line, shell=True)", "import dill as d",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(text):
    assert offences(text)


@pytest.mark.parametrize(
    "reference",
    ["../run", "stage@../../x", "/etc", "stage/../..", "stage@1/2", ".", "pretrained:../README", "pretrained:/x"],
)
def test_no_name_of_weights_leaves_its_folder(reference, tmp_path):
    with pytest.raises(ConfigError, match="is no STAGE, STAGE@STEPS|no pretrained weights"):
        weights.find(reference, tmp_path / "run")


def test_a_link_in_a_folder_of_videos_does_not_lead_out_of_it(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    video(tmp_path / "elsewhere/a.avi")
    (tmp_path / "clips").mkdir()
    video(tmp_path / "clips/b.avi")
    (tmp_path / "clips/a.avi").symlink_to(tmp_path / "elsewhere/a.avi")
    with pytest.raises(ConfigError, match="a.avi"):
        configs.source({"data": dict(kind="video_folder", path=str(tmp_path / "clips"), frames=3, size=16)}, "train")


def damages(data):
    """Some bytes others than they were, or the end cut off."""
    flips = st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(1, 255)), min_size=1, max_size=4)
    cut = st.integers(0, len(data) - 1)

    def flipped(changes):
        raw = bytearray(data)
        for at, by in changes:
            raw[at] ^= by
        return bytes(raw)

    head = st.lists(st.tuples(st.integers(0, min(600, len(data) - 1)), st.integers(1, 255)), min_size=1, max_size=2)
    return st.one_of(flips.map(flipped), head.map(flipped), cut.map(lambda n: data[:n]))


def survive(path, raw, read, errors):
    """Reads damaged bytes: a good answer, or one of the errors, in one line that names the file."""
    path.write_bytes(raw)
    try:
        read(path)
    except errors as error:
        assert path.stem in str(error) and "\n" not in " ".join(str(error).splitlines()[:1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def examples(data, number=60):
    """A decorator: runs a check on that many damaged forms of the bytes."""

    def run(check):
        @hypothesis.settings(max_examples=number, database=None)
        @hypothesis.given(damages(data))
        def inner(raw):
            check(raw)

        inner()

    return run


def test_a_parameter_without_axes_stays_one(tmp_path):
    weights.save(tmp_path / "a.safetensors", {"gain": np.float32(3)}, {})
    assert weights.load(tmp_path / "a.safetensors")[0]["gain"].shape == ()


def test_damaged_weights(folder):
    path = folder / "teacher.safetensors"
    tree = {"layers": {"qkv": np.ones((3, 4), np.float32), "bias": np.zeros(4, np.float16)}, "head": np.arange(5)}
    weights.save(path, tree, {"kind": "denoiser", "shape": [1, 2, 3, 4], "model": {"width": 8}})
    good = path.read_bytes()

    def read(path):
        params, record = weights.load(path)
        assert isinstance(params, dict) and isinstance(record, dict)

    @examples(good, 200)
    def _(raw):
        survive(path, raw, read, ConfigError)


@pytest.mark.parametrize(
    "record", ["[1]", "3", "null", "[" * 100_000, '{"a":', "\ud800".encode("utf-8", "surrogatepass").decode("latin1")]
)
def test_weights_with_a_record_that_is_none(record, folder):
    path = folder / "odd.safetensors"
    weights.save_file({"a": np.ones(2, np.float32)}, path, metadata={"record": record})
    with pytest.raises(ConfigError, match="odd.safetensors is damaged"):
        weights.load(path)


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b")])
def test_weights_whose_names_contradict_each_other(names, folder):
    path = folder / "odd.safetensors"
    weights.save_file({name: np.ones(2, np.float32) for name in names}, path, metadata={"record": "{}"})
    with pytest.raises(ConfigError, match="odd.safetensors is damaged"):
        weights.load(path)


def test_damaged_json(folder):
    path = folder / "config.json"
    configs.write_json(path, {"seed": 3, "name": "clips é", "nested": {"a": [1.5, None, True]}})

    @examples(path.read_bytes())
    def _(raw):
        survive(path, raw, configs.read_json, ConfigError)

    for raw in (b"\xff\xfe", b"[" * 100_000, b""):
        path.write_bytes(raw)
        with pytest.raises(ConfigError, match="config.json is not readable JSON"):
            configs.read_json(path)


def test_damaged_lines_of_metrics(folder):
    path = folder / "metrics.jsonl"
    good = b"".join(json.dumps({"step": i, "stage": "teacher", "loss": 0.5}).encode() + b"\n" for i in range(4))

    def read(path):
        writers.JsonlWriter(path, "teacher", resume_step=2).close()

    @examples(good)
    def _(raw):
        survive(path, raw, read, ValueError)


@pytest.fixture(scope="module")
def good_latents(tmp_path_factory):
    path = made.folder_of(tmp_path_factory.mktemp("latents") / "clips", train=made.examples(3), test=made.examples(2))
    index = json.loads((path / store.INDEX).read_text())
    (path / store.INDEX).write_text(json.dumps(index | {"autoencoder": "pretrained:x", "fingerprint": "abc"}))
    return path


def read_latents(path):
    """Builds the source as the program does, and reads it as the pipeline does."""
    source = configs.source({"data": {"kind": "latents", "path": str(path)}}, "train")
    for i in range(len(source)):
        data.source.check_example(source[i], source)


def test_damaged_latents(good_latents, tmp_path):
    path = tmp_path / "clips"
    shutil.copytree(good_latents, path)
    record = path / "train.array_record"
    # Two groups of records and the end of a file of many empty bytes.
    full = record.read_bytes()

    @examples(full)
    def _(raw):
        survive(record, raw, lambda record: read_latents(record.parent), (ConfigError, ValueError))


def test_a_damaged_index_of_latents(good_latents, tmp_path):
    path = tmp_path / "clips"
    shutil.copytree(good_latents, path)
    index = path / store.INDEX

    @examples(index.read_bytes(), 100)
    def _(raw):
        index.write_bytes(raw)
        try:
            read_latents(path)
        except (ConfigError, ValueError) as error:
            assert len(str(error).splitlines()) == 1

    for told in (
        [],
        {},
        {"shape": "1234"},
        {"shape": [1, 2, 3, -4], "num_classes": 0, "clips": {"train": 3}, "data": {}},
    ):
        index.write_text(json.dumps(told))
        with pytest.raises(ConfigError, match="latents.json is damaged.*encode them again"):
            read_latents(path)


def test_latents_of_which_it_is_not_said_what_made_them(tmp_path):
    for told in ({}, {"autoencoder": 3}, {"autoencoder": "pretrained:x"}):
        with pytest.raises(ConfigError, match="config.data: what tells of the latents is damaged, it lacks"):
            latents.codec_of(told, tmp_path, "config.data")


def test_a_split_that_was_cut_off_is_not_taken_for_whole(good_latents, tmp_path):
    path = tmp_path / "train.array_record"
    full = (good_latents / "train.array_record").read_bytes()
    path.write_bytes(full)
    assert store.is_whole(path, 3) and not store.is_whole(path, 4) and not store.is_whole(tmp_path / "none", 3)
    for end in (0, 1, len(full) // 2, len(full) - 1):
        path.write_bytes(full[:end])
        assert not store.is_whole(path, 3)


def video(path):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4" if path.suffix == ".mp4" else "ffv1", rate=8)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        rng = np.random.default_rng(0)
        for _ in range(7):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (16, 16, 3), np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv"])
def test_damaged_videos(suffix, folder):
    clips = folder / f"clips_{suffix}"
    clips.mkdir()
    path = clips / f"clip.{suffix}"
    video(path)

    def read(path):
        source = data.build(dict(kind="video_folder", path=str(path.parent), frames=3, size=16), "train")
        for i in range(len(source)):
            data.source.check_example(source[i], source)

    read(path)

    @examples(path.read_bytes(), 40)
    def _(raw):
        survive(path, raw, read, ValueError)


def test_damaged_tables(folder):
    path = folder / "table.npz"
    schedule = schedules.vp_cosine()
    solvers.save(path, solvers.ddim(schedule, grids.uniform_logsnr(schedule, 4)), {"nfe": 4})

    @examples(path.read_bytes(), 150)
    def _(raw):
        survive(path, raw, solvers.load, ValueError)
