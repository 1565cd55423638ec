"""The page of a run and of an ablation: what stands in it, what never does, and what a reader can do with it in a browser."""

import base64
import html.parser
import io
import json
import math
import pathlib
import re

import browser
import numpy as np
import pytest
from PIL import Image

from experiments import ablate, figures, plots, report, webpage
from experiments.config import ConfigError

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(html.parser.HTMLParser):
    """The elements of a page as (tag, attributes), and whether they are closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def clips(seed: int, frames: int = 6, n: int = 3) -> np.ndarray:
    """Clips [n, f, 8, 10, 1] whose every pixel is told apart by clip and frame."""
    return np.random.default_rng(seed).integers(0, 256, (n, frames, 8, 10, 1), np.uint8)


def measure(value: float) -> dict:
    return {"value": value, "low": 0.9 * value, "high": 1.2 * value, "floor": 1.0, "better": "lower"}


def make_run(folder: pathlib.Path, *, finished: bool = True, name: str = "a<b>") -> pathlib.Path:
    """A workdir as experiments.run leaves it: a student and, if it is finished, what an evaluate stage found."""
    samplers = {
        "teacher_50": ("pretrained:x", 50, 3.0),
        "student_4": ("student@4", 4, 4.0),
        "student_1": ("student@1", 1, 9.0),
    }
    config = {
        "seed": 0,
        "data": {"kind": name, "note": HOSTILE},
        "stages": {
            "student": {
                "kind": "train", "method": "progressive", "steps": 20, "student_steps": [4, 1], "options": {"ema": 0.9},
            },
            "evaluate": {"kind": "evaluate", "samplers": {k: {"weights": w, "steps": s} for k, (w, s, _) in samplers.items()}},
        },
    }  # fmt: skip
    (folder / "student").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "student" / "config.json").write_text("{}")
    rows = [{"step": s, "stage": "student", "loss": 2.0 / s, "grad_norm": 0.1 * s, "x/loss": 0.3, "g_by_level/-2..2": 1.0}
            for s in (10, 20, 40)]  # fmt: skip
    rows[1]["loss"] = None
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        (folder / "evaluate").mkdir()
        for stage in config["stages"]:
            (folder / stage / "done.json").write_text('{"seconds": 12.5}')
        found = {
            k: {"weights": w, "steps": s, "evaluations": 2 * s, "seconds_per_clip": s / 100,
                "metrics": {"frechet_clip": measure(q), "flicker": measure(q / 7)}}
            for k, (w, s, q) in samplers.items()
        }  # fmt: skip
        (folder / "evaluate" / "report.json").write_text(json.dumps({"clips": 3, "samplers": found}))
        (folder / "evaluate" / "report.md").write_text(
            "| metric | student_4 |\n| --- | --- |\n| flicker ↓ | 0.5 [0.4, 0.6] |\n"
        )
        kept = {k: clips(i) for i, k in enumerate(("real", *samplers))}
        figures.save_clips(folder / "evaluate" / "clips.npz", kept)
    return folder


def sound(text: str) -> Page:
    """What every page must be: whole, fetching nothing, with data and words for all pictures, ids that are one element's."""
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in page.all("a"):
        assert not attributes["href"].startswith("#") or attributes["href"][1:] in ids
    for tag, attributes in page.elements:
        for key in ("src", "srcset", "poster", "data", "background", "action"):
            assert attributes.get(key, "data:").startswith("data:"), (tag, key)
        assert not any(key.startswith("on") for key in attributes), tag
        assert tag not in ("iframe", "object", "embed", "base", "form")
        if tag == "link":
            assert attributes["href"].startswith("data:")
    style = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    assert "@import" not in style and not re.search(r"url\((?!#)", style)
    assert len(page.all("script")) == 1 and len(page.all("style")) == 1
    for attributes in page.all("img"):
        kind, data = re.fullmatch(r"data:image/(\w+);base64,(.+)", attributes["src"]).groups()
        assert Image.open(io.BytesIO(base64.b64decode(data))).format == kind.upper()
        assert attributes["alt"] or "hidden" in attributes
    for attributes in page.all("canvas"):
        assert attributes["aria-label"] and attributes["role"] == "img"
    for attributes in page.all("input") + page.all("select"):
        assert attributes.get("aria-label") or attributes["type"] == "checkbox"
    return page


def sheets(text: str) -> list[np.ndarray]:
    found = re.findall(r'class="sheet"[^>]*src="data:image/webp;base64,([^"]+)"', text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L")) for data in found]


# A run ------------------------------------------------------------------------------------------------------------


def test_a_finished_run(tmp_path):
    workdir = make_run(tmp_path / "run")
    assert report.main([f"--workdir={workdir}"]) == 0
    text = (workdir / "report.html").read_text()
    page = sound(text)
    words = " ".join(page.words)
    for word in (
        "Run: run",
        "2 of 2 stages done",
        "progressive",
        "options.ema",
        "0.5 [0.4, 0.6]",
        "frechet_clip",
        "held-out clips",
    ):
        assert word in words, word
    assert "4 steps, 8 evaluations, 40 ms a clip, frechet_clip 4 [3.6, 4.8]" in words
    assert len(page.all("canvas")) == 4 * 3 and len(page.all("option")) == 2 + 4
    assert text == report.run_page(workdir)  # the same workdir, the same page


def test_clips_come_back_pixel_by_pixel(tmp_path):
    """A canvas draws tile clip * frames + frame of its row's sheet, `columns` to a line."""
    workdir = make_run(tmp_path / "run")
    text = report.run_page(workdir)
    kept = figures.load_clips(workdir / "evaluate" / "clips.npz")
    assert list(kept) == ["real", "teacher_50", "student_4", "student_1"]
    columns = int(re.search(r'data-columns="(\d+)"', text)[1])
    for sheet, made in zip(sheets(text), kept.values(), strict=True):
        for clip in range(3):
            for frame in range(6):
                y, x = divmod(clip * 6 + frame, columns)
                assert np.array_equal(sheet[8 * y : 8 * y + 8, 10 * x : 10 * x + 10], made[clip, frame, ..., 0])


def test_a_slice_is_the_brightest_pixel_over_y_and_its_time_runs_down(tmp_path):
    workdir = make_run(tmp_path / "run")
    found = [a for a in Page(report.run_page(workdir)).all("img") if a["alt"] == "x-t slice of student_4, clip 2"]
    (slice_,) = [np.asarray(Image.open(io.BytesIO(base64.b64decode(a["src"].split(",")[1])))) for a in found]
    made = figures.load_clips(workdir / "evaluate" / "clips.npz")["student_4"][1, ..., 0]
    assert slice_.shape == (6, 10)
    assert all(slice_[t, x] == max(made[t, :, x]) for t in range(6) for x in range(10))


def test_a_hostile_config_is_only_text(tmp_path):
    workdir = make_run(tmp_path / "run", name="<b onclick=steal()>")
    config = json.loads((workdir / "config.json").read_text())
    config["stages"]["student"]["method"] = config["data"][HOSTILE] = HOSTILE
    (workdir / "config.json").write_text(json.dumps(config))
    found = json.loads((workdir / "evaluate" / "report.json").read_text())
    found["samplers"][HOSTILE] = {**found["samplers"]["student_4"], "weights": HOSTILE, "steps": HOSTILE}
    found["device"] = HOSTILE
    (workdir / "evaluate" / "report.json").write_text(json.dumps(found))
    (workdir / "evaluate" / "report.md").write_text(
        f"| a | b |\n| --- | --- |\n| {HOSTILE} | [x](javascript:steal()) |\n\n{HOSTILE}\n"
    )
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 50, "stage": "student", f"{HOSTILE}/loss": 1.0}) + "\n")
    figures.save_clips(workdir / "evaluate" / "clips.npz", {HOSTILE: clips(0), "file": clips(1)})
    text = report.run_page(workdir)
    page = sound(text)
    assert HOSTILE in "".join(page.words) and "javascript:" not in "".join(a["href"] for a in page.all("a"))


@pytest.mark.parametrize("metrics", ["", '{"step": 1, "stage": "student", "loss": null}\n', None])
def test_a_run_that_has_just_begun(tmp_path, metrics):
    workdir = make_run(tmp_path / "run", finished=False)
    (workdir / "metrics.jsonl").unlink()
    if metrics is not None:
        (workdir / "metrics.jsonl").write_text(metrics)
    page = sound(report.run_page(workdir))
    words = " ".join(page.words)
    assert "begun" in words and "not begun" in words and "0 of 2 stages done" in words and not page.all("canvas")


def test_a_loss_that_is_not_finite_breaks_its_curve_and_is_marked(tmp_path):
    page = sound(report.run_page(make_run(tmp_path / "run", finished=False)))
    crosses = [a for a in page.all("path") if a.get("class") == "cross"]
    assert len(crosses) == 1
    curves = [a for a in page.all("path") if "data-values" in a]
    assert ["10,0.2", "10,0.2", "40,0.05", "40,0.05"] in [a["data-values"].split() for a in curves]
    assert not any("nan" in a["d"].lower() for a in curves)


def test_reports_without_samplers_are_tables_and_curves(tmp_path):
    workdir = make_run(tmp_path / "run", finished=False)
    config = json.loads((workdir / "config.json").read_text())
    config["stages"] = {"chunks": {"kind": "continue"}, "exact": {"kind": "exact"}, "trip": {"kind": "round_trip"}}
    (workdir / "config.json").write_text(json.dumps(config))
    found = {
        "chunks": {
            "position_error": {"1": measure(1.0), "2": measure(2.0)},
            "drift": {"0-7": {"mass": measure(1)}, "8-15": {"mass": measure(2)}},
        },
        "exact": {
            "samplers": {"a_1": {"weights": "a", "steps": 1}},
            "metrics": {
                "fresh draws": {"calls": None, "wasserstein": [0.1, 0.05, 0.2]},
                "a_1": {"calls": 1, "wasserstein": [2.0, 1.0, 3.0]},
            },
        },
        "trip": {"clips": 8, "metrics": {"psnr": measure(31.25)}},
    }  # fmt: skip
    for stage, block in found.items():
        (workdir / stage).mkdir()
        (workdir / stage / "report.json").write_text(json.dumps(block))
    figures.film_strip(workdir / "exact" / "samples.png", clips(0))
    page = sound(report.run_page(workdir))
    labels = [a["aria-label"] for a in page.all("svg") if "aria-label" in a]
    assert any(label.startswith("wasserstein against network evaluations") for label in labels)
    assert any(label.startswith("mass: mass against frame") for label in labels)
    assert len([a for a in page.all("img") if a["alt"] == "exact: samples.png"]) == 1
    assert "31.2 [28.1, 37.5]" in page.words


def test_no_run_is_an_error_in_a_line_and_never_stops_one(tmp_path, capsys, caplog):
    assert report.main([f"--workdir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no config.json" in error and not list(tmp_path.iterdir())
    report.attempt(tmp_path)
    assert "was not written" in caplog.text
    workdir = make_run(tmp_path / "run")
    (workdir / "metrics.jsonl").write_text("{}\n{}\n")
    with pytest.raises(ConfigError, match="line 1"):
        report.write(workdir)
    for damaged in ([1], {"stages": {"teacher": {}}}):
        (workdir / "config.json").write_text(json.dumps(damaged))
        with pytest.raises(ConfigError, match="config.json is damaged"):
            report.write(workdir)


def test_a_page_has_a_size_budget():
    noise = np.random.default_rng(0).integers(0, 256, (8, 16, 48, 48, 3), np.uint8)
    exact = webpage.player({"a": webpage.Row(noise)}, "clips", most_bytes=2_000_000)
    small = webpage.player({"a": webpage.Row(noise)}, "clips", most_bytes=150_000)
    assert "8 clips of each, pixels are exact" in exact and len(exact) > 8 * 16 * 48 * 48 * 3
    assert "4 clips of each, compressed" in small and len(small) < 300_000
    assert small.count("<canvas") == 4


def test_long_clips_fit_into_a_sheet():
    long = np.zeros((8, 256, 64, 64, 1), np.uint8)
    pixels, columns = webpage.sheet(long)
    assert max(pixels.shape) < 16_383 and columns * 64 == pixels.shape[1]


# Plots and Markdown -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("low, high", [(1.0, 1.0), (0.3, 0.34), (1e-6, 4e3), (5.0, 5000.0), (2.0, 30.0)])
def test_ticks_are_round_and_inside(low, high, log):
    scale = plots.axis([low, high, math.nan], log)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 12 and all(scale.low <= t <= scale.high for t in ticks)
    assert all(len(f"{t:.10g}".strip("0.").replace(".", "").split("e")[0].strip("0")) <= 3 for t in ticks)
    assert 0 < scale.place(low) <= scale.place(high) < 1
    assert scale.place(math.sqrt(scale.low * scale.high) if log else (scale.low + scale.high) / 2) == pytest.approx(0.5)


def test_an_axis_of_losses_below_zero_is_linear():
    assert not plots.axis([-1.0, 2.0], log=True).log and plots.axis([1.0, 2.0], log=True).log


def test_points_stand_where_their_values_are():
    """Three decades, three points: the middle one lies in the middle, and the bar reaches from low to high."""
    points = [plots.Point(x, y, y / 2, y * 2) for x, y in ((1, 1.0), (10, 10.0), (100, 100.0))]
    page = Page(plots.plot([plots.Series("a", points)], title="t", x="x", y="y", log_x=True, log_y=True))
    (curve,) = [a for a in page.all("path") if "data-values" in a]
    x, y = np.array([float(v) for v in re.findall(r"[\d.]+", curve["d"])]).reshape(-1, 2).T
    assert x[1] == pytest.approx((x[0] + x[2]) / 2, abs=0.11) and y[1] == pytest.approx((y[0] + y[2]) / 2, abs=0.11)
    assert x[0] < x[2] and y[0] > y[2]
    (bar,) = [a["d"] for a in page.all("path") if a.get("class", "").endswith("bar")]
    bottom, top = map(float, re.search(r"M[\d.]+ ([\d.]+)m[^V]*V([\d.]+)", bar).groups())
    assert bottom - y[0] == pytest.approx(y[0] - top, abs=0.11) and bottom > top


def test_the_eighth_curve_is_told_from_the_first():
    series = [plots.Series(f"{i}", [plots.Point(0, i), plots.Point(1, i)]) for i in range(9)]
    page = Page(plots.plot(series, title="t", x="x", y="y"))
    kinds = [a["class"] for a in page.all("path") if "data-values" in a]
    assert len(set(kinds)) == 9 and [kind for kind in kinds if "dashed" in kind] == kinds[7:]


def test_smoothing_keeps_a_line_and_leaves_out_what_is_not_finite():
    line = [plots.Point(s, 3.0 * s) for s in range(20)]
    assert plots.smooth(line, 3) == line
    assert len(plots.smooth([*line, plots.Point(20, math.nan)], 3)) == 20


def test_markdown(tmp_path):
    figures.film_strip(tmp_path / "x.png", clips(0))
    source = """Some *slanted*, **bold `code_*` words** and `a<b`; 2 * 3 * 4, [a link](../errata.md).

| a | b |
| --- | ---: |
| `x` \\| y | **0.5** |

- one
  goes on
- two

<!-- section: hidden -->
```bash
python -m x --a=<b>
```

![a picture](x.png)

![none](y.png)
"""
    made = webpage.markdown(source, tmp_path)
    page = Page(made)
    for part in (
        "<i>slanted</i>", "<b>bold <code>code_*</code> words</b>", "<code>a&lt;b</code>; 2 * 3 * 4",
        '<a href="../errata.md">a link</a>',
        '<td class="number"><b>0.5</b></td>', "<li>one\n  goes on</li><li>two</li>", "python -m x --a=&lt;b&gt;</code></pre>",
        "<code>x</code> | y", "y.png is missing",
    ):  # fmt: skip
        assert part in made, part
    assert len(page.all("img")) == 1 and "hidden" not in made


# Many runs --------------------------------------------------------------------------------------------------------


def test_an_ablation_writes_the_same_kind_of_page(tmp_path, capsys):
    assert ablate.main(["samplers", "--only=schedules", f"--out={tmp_path}"]) == 0
    page = sound((tmp_path / "samplers.html").read_text())
    words = " ".join(page.words)
    assert "Results: samplers" in words and "vp_cosine" in words and len(page.all("img")) == 1
    assert report.main([f"--results={tmp_path / 'sampler.md'}"]) == 2 and "no page" in capsys.readouterr().err


def test_the_page_of_many_runs_shows_what_they_share_once(tmp_path, caplog):
    (tmp_path / "distillation.md").write_text("# Results: distillation\n\nMade.\n\n## One `thing`\n\nText.\n")
    for i, name in enumerate(("one", "two")):
        workdir = make_run(tmp_path / "runs" / "digits" / name)
        kept = figures.load_clips(workdir / "evaluate" / "clips.npz")
        figures.save_clips(workdir / "evaluate" / "clips.npz", kept | {"student_4": clips(10 + i)})
    (tmp_path / "runs" / "digits" / "empty").mkdir()
    broken = make_run(tmp_path / "runs" / "digits" / "broken")
    (broken / "evaluate" / "report.json").write_text('{"samplers": {"x": 3}}')
    path = report.results(tmp_path / "distillation.md", tmp_path / "runs")
    page = sound(path.read_text())
    names = re.findall(r'<div class="name"><b>(.*?)</b>', path.read_text())
    assert names == ["real", "teacher_50", "one: student_4", "one: student_1", "two: student_4"]
    assert {"One thing", "Runs: moving digits"} <= set(page.words)
    assert "one: loss" in page.words and "two: loss" in page.words
    assert "broken is left out" in caplog.text and "broken: loss" not in page.words


# In a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    program = browser.find()
    if program is None:
        pytest.skip(
            f"no browser: none of {', '.join(browser.NAMES)} is on the PATH, and ${browser.VARIABLE} names none"
        )
    one = browser.Browser(program)
    yield one
    one.close()


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A page with a hostile config and two players, the second with longer clips."""
    workdir = make_run(tmp_path_factory.mktemp("shown") / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["stages"]["again"] = config["stages"]["evaluate"]
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "again").mkdir()
    kept = {"real": clips(20, frames=9), "short": clips(21, frames=4), "c" * 60: clips(22, frames=9)}
    figures.save_clips(workdir / "again" / "clips.npz", kept)
    return report.write(workdir), kept


SET = "(() => {{ const e = document.querySelectorAll('{0}')[{1}]; e.value = '{2}'; e.dispatchEvent(new Event('{3}')); }})()"
PIXELS = """[...document.querySelectorAll('.player')[{player}].querySelectorAll('canvas')].map(c => {{
  const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; return [...d].filter((_, i) => i % 4 === 0); }})"""


def pixels(one, player: int = 0) -> np.ndarray:
    """What the canvases of a player show."""
    return np.array(one.ask(PIXELS.format(player=player)), np.uint8)


def frame_of(kept, frame: int) -> np.ndarray:
    """What they should show: a shorter clip waits at its end."""
    return np.stack([clip[min(frame, len(clip) - 1), ..., 0].ravel() for row in kept.values() for clip in row])


def test_nothing_is_fetched_and_nothing_complains(chromium, shown):
    path, _ = shown
    for dark in (False, True):
        chromium.open(path, dark=dark)
        chromium.click(".theme")
        assert chromium.requested() == [path.resolve().as_uri()] and chromium.complaints() == []
        assert chromium.ask("document.title") == "Run: run"


def test_the_policy_forbids_other_scripts_and_addresses(chromium, shown, tmp_path):
    """The complaint that the tests above would see, and that the page's policy is what makes it."""
    text = shown[0].read_text()
    added = "<script>document.title = 'taken'</script><img src='https://example.org/x.png'>"
    (tmp_path / "taken.html").write_text(text.replace("</main>", f"{added}</main>"))
    chromium.open(tmp_path / "taken.html")
    assert chromium.ask("document.title") == "Run: run" and len(chromium.complaints()) == 2


def test_the_slider_sets_the_frame_of_all_canvases(chromium, shown):
    path, kept = shown
    chromium.open(path)
    first = figures.load_clips(path.parent / "evaluate" / "clips.npz")
    for frame in (0, 3, 5):
        chromium.ask(SET.format(".frame", 0, frame, "input"))
        assert np.array_equal(pixels(chromium), frame_of(first, frame))
        assert chromium.ask("document.querySelector('.at').textContent") == f"{frame + 1} / 6"
    assert np.array_equal(pixels(chromium, 1), frame_of(kept, 0))  # the other player has a slider of its own
    chromium.ask(SET.format(".frame", 1, 7, "input"))
    assert np.array_equal(pixels(chromium, 1), frame_of(kept, 7))


def test_play_moves_all_canvases_together(chromium, shown):
    path, _ = shown
    chromium.open(path)
    kept = figures.load_clips(path.parent / "evaluate" / "clips.npz")
    frames = [frame_of(kept, t) for t in range(6)]
    chromium.click(".play")
    assert chromium.ask("document.querySelector('.play').getAttribute('aria-pressed')") == "true"
    seen = set()
    for _ in range(12):
        now = chromium.ask("document.querySelector('.at').textContent")
        chromium.wait(f"document.querySelector('.at').textContent !== {now!r}")
        found = pixels(chromium)
        (at,) = [t for t, frame in enumerate(frames) if np.array_equal(found, frame)]  # never two frames at once
        seen.add(at)
    assert len(seen) >= 4
    chromium.click(".play")
    now = pixels(chromium)
    chromium.ask("new Promise(done => setTimeout(done, 400))")
    assert np.array_equal(pixels(chromium), now)


def test_keys(chromium, shown):
    path, _ = shown
    chromium.open(path)
    chromium.ask("document.querySelector('.player').scrollIntoView()")

    def at():
        return chromium.ask("document.querySelector('.at').textContent")

    for key, expected in (
        ("ArrowRight", "2 / 6"),
        ("ArrowRight", "3 / 6"),
        ("ArrowLeft", "2 / 6"),
        ("ArrowLeft", "1 / 6"),
        ("ArrowLeft", "6 / 6"),
    ):
        chromium.press(key)
        assert at() == expected
    chromium.press("4")
    assert chromium.ask("document.querySelector('.speed').value") == "2"
    chromium.press(" ")
    chromium.wait("document.querySelector('.at').textContent !== '6 / 6'")
    chromium.press(" ")
    assert chromium.ask("document.querySelector('.play').getAttribute('aria-pressed')") == "false"


@pytest.mark.parametrize("width", [360, 800, 1600, 2000])
def test_a_page_is_never_wider_than_its_window(chromium, shown, width):
    chromium.open(shown[0], width=width)
    for closed in (True, False):
        assert chromium.ask("document.documentElement.scrollWidth") <= width
        if closed:
            chromium.ask("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    wide = "[...document.querySelectorAll('canvas')].map(c => c.getBoundingClientRect())"
    wide += ".every(b => b.width >= 20 && b.right <= innerWidth)"
    assert chromium.ask(wide)


def test_light_and_dark(chromium, shown):
    def lightness():
        found = chromium.ask("['backgroundColor', 'color'].map(k => getComputedStyle(document.body)[k])")
        return [np.mean([int(v) for v in re.findall(r"\d+", colour)[:3]]) for colour in found]

    for dark in (False, True):
        chromium.open(shown[0], dark=dark)
        back, ink = lightness()
        assert (back < 60 and ink > 200) if dark else (back > 200 and ink < 60)
        chromium.click(".theme")
        assert lightness()[0] > 200 if dark else lightness()[0] < 60
        assert chromium.ask("document.querySelector('.theme').textContent") == ("Dark" if dark else "Light")


def test_a_choice_shows_its_plots_and_the_pointer_its_numbers(chromium, shown):
    chromium.open(shown[0])
    visible = (
        "[...document.querySelectorAll('[data-choice]')].filter(e => e.offsetHeight > 0).map(e => e.dataset.choice)"
    )
    assert chromium.ask(visible) == ["frechet_clip"]
    chromium.ask(SET.format(".choice", 0, "flicker", "change"))
    assert chromium.ask(visible) == ["flicker"]
    x, y = chromium.ask(
        "(() => { const v = document.querySelector('[data-choice=flicker] svg'); v.scrollIntoView({block: 'center'});"
        " const p = v.querySelectorAll('[data-values]')[1], q = p.getPointAtLength(0), b = v.getBoundingClientRect();"
        " const k = b.width / v.viewBox.baseVal.width; return [b.x + q.x * k + 2, b.y + q.y * k - 1]; })()"
    )
    chromium.move(x, y)
    told = chromium.ask("document.querySelector('[data-choice=flicker] .readout').textContent")
    assert told == "network evaluations 2: student 1.286"
