"""The papers of what is implemented: each part has some, the code names no others, and configs find theirs."""

import pathlib
import re

import pytest

from diffusion.predictions import PREDICTIONS
from distill import METHODS
from distill.sources import SOURCES
from experiments import cite, stages, tables
from experiments import config as configs
from experiments.citations import PAPERS, USES
from models import KINDS

ROOT = pathlib.Path(__file__).resolve().parent.parent
ARXIV = re.compile(r"\b(?:0[7-9]|1\d|2\d)(?:0[1-9]|1[0-2])\.\d{4,5}\b")


@pytest.mark.parametrize(
    "kind, registered, always",
    [
        ("method", METHODS, True), ("solver", tables.SOLVERS, True), ("schedule", configs.SCHEDULES, True),
        ("prediction", PREDICTIONS, True), ("grid", tables.GRIDS, False), ("matrix", tables.MATRICES, False),
        ("law", configs.LAWS, False), ("weight", configs.WEIGHTS, False), ("model", KINDS, False), ("source", SOURCES, False),
        ("noise", configs.NOISES, False),
    ],
)  # fmt: skip
def test_every_registered_name_has_an_entry(kind, registered, always):
    assert set(USES[kind]) == set(registered)
    assert not always or all(USES[kind].values())


def test_uses_and_papers_name_each_other():
    assert {key for uses in USES.values() for keys in uses.values() for key in keys} <= set(PAPERS)
    assert set(cite.KINDS) == set(USES)
    assert set(USES["stage"]) <= set(stages.KINDS)
    numbers = [paper.arxiv for paper in PAPERS.values() if paper.arxiv]
    assert len(set(numbers)) == len(numbers) and all(map(ARXIV.fullmatch, numbers))
    for key, paper in PAPERS.items():
        assert paper.authors.split(" and ")[0].split()[-1].lower().replace("-", "").startswith(key[:2]), key
        assert str(paper.year) in key and bool(paper.arxiv) != bool(paper.where)
        # A preprint's number begins with its year and month; a paper may be published in the year after.
        assert not paper.arxiv or 2000 + int(paper.arxiv[:2]) in (paper.year, paper.year - 1, paper.year + 1), key


def test_every_paper_that_the_code_names_is_in_the_table():
    known, missing = {paper.arxiv for paper in PAPERS.values()}, {}
    for folder in ("configs", "diffusion", "distill", "experiments", "models"):
        for path in (ROOT / folder).rglob("*.py"):
            for number in set(re.findall(rf"(?i)arXiv\s+({ARXIV.pattern})", path.read_text(encoding="utf-8"))) - known:
                missing[number] = path.relative_to(ROOT).as_posix()
    assert not missing


def test_the_bibliography_is_what_the_table_makes():
    assert (ROOT / "docs/bibliography.md").read_text(encoding="utf-8") == cite.bibliography()


def test_a_configs_papers_are_those_of_its_parts(capsys):
    """Held against what the config says of itself, read here by hand."""
    config = ROOT / "configs/moving_digits/games.py"
    assert not cite.main(["cite", f"--config={config}:dmd2,4"])
    found = dict.fromkeys(re.findall(r"@misc\{(\w+),", capsys.readouterr().out))
    assert {"yin2024dmd2", "salimans2022progressive", "ho2022guidance", "ho2020ddpm", "heusel2017fid"} <= set(found)
    assert not {"yin2023dmd", "song2023ict", "peebles2022dit"} & set(found)
    assert not cite.main(["cite", f"--config={ROOT / 'configs/mixture/students.py'}:mean_flow,a1d"])
    text = capsys.readouterr().out
    assert "% method mean_flow\n@misc{geng2025meanflow,\n  author = {Zhengyang Geng and Mingyang Deng" in text
    assert text.count("@misc{geng2025meanflow") == 1 and text.count("{") == text.count("}")


@pytest.mark.parametrize(
    "arguments, status, words",
    [
        (["--help"], 0, "the papers of what a config uses"),
        ([], 2, "usage: python -m experiments.cite"),
        (["--stage=nope"], 2, "arguments not understood: --stage=nope"),
        (["--config=FILE", "--config.stages.teacher.kind=trian"], 2, "did you mean 'train'"),
        (["--config=FILE", "--config.prediction=epss"], 2, "did you mean 'eps'"),
        (["--config", "FILE", "--config.prediction", "epss"], 2, "did you mean 'eps'"),
    ],
)
def test_a_mistake_is_one_line(arguments, status, words, capsys):
    given = [argument.replace("FILE", str(ROOT / "tests/configs/tiny.py")) for argument in arguments]
    assert cite.main(["cite", *given]) == status
    said = capsys.readouterr()
    assert words in said.out + said.err and "Traceback" not in said.err


def test_a_part_from_outside_is_cited_by_its_docstring(tmp_path, monkeypatch):
    (tmp_path / "cited_outside.py").write_text(
        '"""After arXiv 2101.02388."""\ndef f():\n    """And 2006.11239, 1.5."""\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    lines = list(cite.cited([("method", "cited_outside:f"), ("solver", "ddim")]))
    assert lines[0] == "% method cited_outside:f: arXiv 2006.11239, arXiv 2101.02388"
    assert "song2020ddim" in lines[1]
