"""The documents: links lead somewhere, code runs, commands name configs that build, and figures say where they are from.

docs/index.md says what the comments mean that are read here.
"""

import ast
import functools
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from experiments import run
from experiments.ablations import ABLATIONS

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_FIGURES = [ROOT / name for name in ("README.md", "docs/index.md", "docs/tour.md", "docs/choosing.md")]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def name(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_of(path: pathlib.Path) -> str:
    return path.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M))


@functools.cache
def anchors(path: pathlib.Path) -> frozenset[str]:
    """What can stand after # : headings, as GitHub and mkdocs write them, and ids."""
    found = set(re.findall(r'<a id="([^"]+)"', text_of(path)))
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text_of(path), flags=re.S | re.M), re.M):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).strip().lower())
        found |= {slug.replace(" ", "-"), re.sub(r"[\s-]+", "-", slug)}
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_anchors_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists() and path.is_relative_to(ROOT), f"{name(page)}: {target}"
        if anchor:
            assert anchor in anchors(path), f"{name(page)}: {target}; there are {sorted(anchors(path))}"


def blocks(page: pathlib.Path, language: str) -> list[tuple[str, str]]:
    """(the line before a block, the block)"""
    return re.findall(rf"([^\n]*)\n+^```{language}\n(.*?)^```$", text_of(page), re.S | re.M)


def runnable(page: pathlib.Path) -> list[str]:
    """Python blocks but for those that say why not, and for whole files, which test_extending.py writes and runs."""
    return [
        code
        for before, code in blocks(page, "python")
        if not re.fullmatch(r"<!-- not run: .+ -->", before) and page.name != "extending.md"
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=name)
def test_python_blocks_run(page):
    """All of a page in one process: a block may use what the ones before it made, and a config that is empty at first."""
    alone("\n".join(["from ml_collections import ConfigDict", "config = ConfigDict()", *runnable(page)]))


def alone(code: str) -> None:
    """Runs in a process of its own, from the repository's root, without a screen."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"MPLBACKEND": "Agg"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def commands() -> list[tuple[str, str]]:
    """(page, command), each command once: of bash blocks, of results pages too, and of comments."""
    found = {}
    for page in PAGES:
        lines = [line for _, block in blocks(page, "bash") for line in re.sub(r"\\\n", " ", block).splitlines()]
        lines += re.findall(r"<!-- measured: (.+) -->", text_of(page))
        lines += re.findall(r"`(python -m [^`\n]+)`", text_of(page))
        for line in lines:
            if line.startswith("python -m ") and "X.py" not in line:
                found.setdefault(line, name(page))
    return [(page, line) for line, page in found.items()]


def outside(line: str) -> bool:
    """Of the new user's project in docs/extending.md, which is run as a whole elsewhere."""
    return "--config=my_" in line or "runs/squares" in line


@functools.cache
def built(config: str) -> dict:
    return run.parse(["run", f"--config={config}", "--workdir=."])[0]


@pytest.mark.parametrize("page, line", [found for found in commands() if not outside(found[1])])
def test_commands_name_programs_and_configs_that_are_there(page, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(line, comments=True)
    module, arguments = words[2], words[3:]
    assert importlib.util.find_spec(module), line
    given = [word for word in arguments if word.startswith("--config=")]
    if module == "experiments.run":
        argv = ["run", *arguments]
        config, _, _, stage, _ = run.parse(argv)
        assert stage is None or stage in config["stages"], line
    elif given:
        built(given[-1].removeprefix("--config="))
    if module == "experiments.ablate":
        assert arguments[0] in ABLATIONS or given, line


FIGURE = re.compile(r"(?<![\w.\-])\d*\.\d+(?:e-?\d+)?(?![\w.])")
COMMENT = re.compile(r"<!-- (figures|measured): (.+?) -->")


def paragraphs(page: pathlib.Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """(a paragraph or table without code and links' targets, the comments that follow it)"""
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.S | re.M)
    found: list[tuple[str, list[tuple[str, str]]]] = []
    for part in re.split(r"\n\s*\n", text):
        plain = re.sub(r"\]\([^)]*\)", "]", re.sub(r"<!--.*?-->", "", part, flags=re.S)).strip()
        if plain:
            found.append((plain, []))
        if found:
            found[-1][1].extend(COMMENT.findall(part))
    return found


@pytest.mark.parametrize("page", WITH_FIGURES, ids=name)
def test_no_figure_lacks_where_it_is_from(page):
    for text, comments in paragraphs(page):
        assert comments or not FIGURE.search(without_code(text)), f"{name(page)}: where is this from? {text}"


def claims() -> list[tuple[str, str, str, str, str]]:
    """(page, the paragraph, file, row, number)"""
    found = []
    for page in PAGES:
        for text, comments in paragraphs(page):
            for kind, said in comments:
                if kind == "figures":
                    file, _, items = said.partition(": ")
                    for item in items.split("; "):
                        row, _, number = item.rpartition(" = ")
                        found.append((name(page), text, file, row, number))
    return found


def numbers(text: str) -> list[str]:
    """The numbers of a text, without separators of thousands."""
    return re.findall(r"(?<![\w.])-?\d*\.?\d+(?:e-?\d+)?", re.sub(r"(?<=\d),(?=\d{3})", "", text))


def agrees(stated: str, value: float) -> bool:
    """Whether a number is this value, rounded to the digits that it has."""
    digits = 0 if "." not in stated or "e" in stated else len(stated.partition(".")[2])
    unit = 10.0**-digits if "e" not in stated else 10.0 ** float(stated.partition("e")[2]) / 10
    return abs(float(stated) - value) <= 0.5 * unit * (1 + 1e-6)


def values(file: str, row: str) -> list[float]:
    """The numbers in the rows that begin as `row` of PAGE#SECTION, or the one at a dotted key of a record. A page without
    sections is one.
    """
    file, _, section = file.partition("#")
    path = ROOT / file
    if path.suffix == ".json":
        value = json.loads(text_of(path))
        for key in row.split("."):
            value = value[key]
        return [value]
    head, *parts = re.split(r"^<!-- section: (\w+) -->$", text_of(path), flags=re.M)
    text = dict(zip(parts[::2], parts[1::2], strict=True))[section] if parts else head
    lines = [line for line in text.splitlines() if line.startswith(f"| {row} |")]
    return [float(number) for line in lines for number in numbers(line)]


@pytest.mark.parametrize(
    "page, text, file, row, number", [pytest.param(*c, id=f"{c[0]}-{c[3]}-{c[4]}") for c in claims()]
)
def test_figures_are_those_of_their_source(page, text, file, row, number):
    """Both ways: the number stands in the page as it is said, and in its source."""
    assert any(float(said) == float(number) for said in numbers(text)), f"{page} doesn't say {number}"
    found = values(file, row)
    assert any(agrees(number, value) for value in found), f"{page}: {row} = {number}, {file} has {found}"


def test_a_drifting_figure_is_found():
    assert agrees("3.50", 3.5015) and not agrees("3.50", 3.506) and agrees(".92", 0.9219) and not agrees(".92", 0.926)
    assert (
        agrees("2.8e-04", 2.8e-4) and not agrees("2.8e-04", 2.9e-4) and agrees("20061", 20061) and not agrees("3", 3.6)
    )
    assert numbers("| 20,061 | 1.06 [3.24, 4.26] | .92 | 2.3e-06") == [
        "20061",
        "1.06",
        "3.24",
        "4.26",
        ".92",
        "2.3e-06",
    ]
    assert FIGURE.search("it is .92 now") and FIGURE.search("at 3.5 steps") and not FIGURE.search("arXiv2, p.5 and 12")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pictures_have_their_command(page):
    """A picture is followed by the command that makes it; those of a page of results are made with the page."""
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text_of(page))
    if "results" in page.parts:
        assert not pictures or re.search(rf"python -m experiments.ablate {page.stem}\b", text_of(page))
        return
    for picture in pictures:
        after = text_of(page).partition(f"({picture})")[2]
        assert re.match(r"\s*<!-- measured: python -m .+? -->", after), f"{name(page)}: what makes {picture}?"


def test_no_picture_lies_about():
    shown = {
        path.resolve()
        for page in PAGES
        for path in (page.parent / p for p in re.findall(r"\]\(([^)]+)\)", text_of(page)))
    }
    assert {p for p in (ROOT / "docs").rglob("*") if p.suffix in (".png", ".webp")} <= shown


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_notebooks_run_top_to_bottom(notebook):
    cells = [cell for cell in json.loads(text_of(notebook))["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    sources = ["".join(cell["source"]) for cell in cells]
    for source in sources:
        ast.parse(source)
    alone(f"space = {{'__name__': '__main__'}}\nfor source in {sources!r}:\n    exec(source, space)\n")


def test_every_page_is_in_the_site():
    nav = re.findall(r": ([\w/]+\.md)$", text_of(ROOT / "mkdocs.yml"), re.M)
    assert sorted(ROOT / "docs" / page for page in nav) == [page for page in PAGES if "docs" in page.parts]
    assert len(NOTEBOOKS) == 2


def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # Docstrings came along.
    assert "rectified flow" in (tmp_path / "api/diffusion/index.html").read_text(encoding="utf-8").lower()
