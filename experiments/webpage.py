"""A web page in one file: style, script, pictures and clips inside, nothing fetched, so that it opens anywhere and for ever.

Text that comes from elsewhere goes through `text`; a policy in the page's head also forbids every script but its own, and
every address but data within the page.
"""

import base64
import hashlib
import html
import io
import itertools
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from experiments import plots

HERE = pathlib.Path(__file__).parent
PLAYER_BYTES = 2_000_000
"""What the clips of one player may weigh."""
FPS = 8


class Section(NamedTuple):
    """A part of a page: its title as text, its body as HTML."""

    title: str
    body: str


class Row(NamedTuple):
    """Clips of one sampler in a player, and what is said beside them, as text."""

    clips: UInt8[np.ndarray, "n f h w c"]
    told: str = ""


def text(value: Any) -> str:
    """Any value as HTML text."""
    return html.escape(str(value), quote=True)


def page(title: str, introduction: str, sections: Iterable[Section]) -> str:
    """The whole page. introduction: HTML under the title."""
    script, style = ((HERE / f"report.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    made, taken = [], set()
    for section in sections:
        name = anchor(section.title, taken)
        made.append((name, section))
    links = "".join(f'<a href="#{name}">{text(section.title)}</a>' for name, section in made)
    bodies = "".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{text(section.title)}</h2>{section.body}</section>'
        for name, section in made
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{text(title)}</title><style>{style}</style></head>\n<body>{plots.DEFINITIONS}"
        f'<header><div class="head"><h1>{text(title)}</h1><button type="button" class="theme">Dark</button></div>'
        f'{introduction}<nav aria-label="Sections">{links}</nav></header>\n<main>{bodies}</main>\n'
        f"<script>{script}</script></body></html>\n"
    )


def anchor(title: str, taken: set[str]) -> str:
    """A title as an id that no other title of the page has."""
    plain = "s-" + (re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section")
    numbered = itertools.chain([plain], (f"{plain}-{i}" for i in itertools.count(2)))
    name = next(one for one in numbered if one not in taken)
    taken.add(name)
    return name


def details(summary: str, body: str) -> str:
    return f"<details><summary>{text(summary)}</summary>{body}</details>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table in a box that scrolls. Cells are HTML; the first of a row is its head; what begins as a number stands right."""

    rows = [list(row) for row in rows]

    def kind(cell: str) -> str:
        bare = re.sub(r"<[^>]*>", "", cell).strip()
        return ' class="number"' if re.match(r"[-+±−]?\.?\d|NaN|-$", bare) else ""

    def head(i: int, cell: str) -> str:
        below = [row[i] for row in rows if i < len(row) and row[i]]
        return f'<th scope="col"{" class=number" * (i > 0 and any(below) and all(map(kind, below)))}>{cell}</th>'

    lines = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td{kind(cell)}>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    top = "".join(head(i, cell) for i, cell in enumerate(header))
    named = f"<caption>{text(caption)}</caption>" if caption else ""
    label = text(caption or "table")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"<table>{named}<thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def settings(block: Mapping[str, Any]) -> str:
    """A nested dict as a table of a.b.c and value."""
    rows = ((f"<code>{text(k)}</code>", f"<code>{text(v)}</code>") for k, v in flat(block))
    return f'<div class="settings">{table(("setting", "value"), rows)}</div>'


def flat(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """(a.b.c, value) of every leaf of a nested dict."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


# Pictures and clips -----------------------------------------------------------------------------------------------


def picture(data: bytes, kind: str, alt: str) -> str:
    return f'<figure class="picture"><img src="{uri(data, kind)}" alt="{text(alt)}"></figure>'


def uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def encoded(pixels: UInt8[np.ndarray, "h w c"], kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def sheet(clips: UInt8[np.ndarray, "n f h w c"]) -> tuple[UInt8[np.ndarray, "H W c"], int]:
    """(all frames of all clips as tiles of one picture, filled row by row; its columns). WebP has at most 16,383 pixels a
    side, so the picture is about square.
    """
    n, f, h, w, c = clips.shape
    columns = min(n * f, max(1, math.ceil(math.sqrt(n * f * h / w))))
    rows = -(-n * f // columns)
    tiles = np.zeros((rows * columns, h, w, c), np.uint8)
    tiles[: n * f] = clips.reshape(n * f, h, w, c)
    tiles = tiles.reshape(rows, columns, h, w, c).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(rows * h, columns * w, c), columns


def player(rows: Mapping[str, Row], label: str, most_bytes: int = PLAYER_BYTES) -> str:
    """Clips that play in step, a row for each sampler, under one button and one slider, each above its x-t slice.

    The i-th clips of all rows stand in one column. Pixels are exact where that fits into `most_bytes`, at first with fewer
    clips; else they are compressed, and the page says so.
    """
    most = max(len(row.clips) for row in rows.values())
    frames = max(row.clips.shape[1] for row in rows.values())
    tries = [(most, {"lossless": True}), (min(most, 4), {"lossless": True}), (min(most, 4), {"quality": 80})]
    for shown, options in [*tries, (min(most, 2), {"quality": 60})]:  # noqa: B007 (the last one is kept)
        sheets = {name: sheet(row.clips[:shown]) for name, row in rows.items()}
        pictures = {name: encoded(pixels, "WEBP", method=4, **options) for name, (pixels, _) in sheets.items()}
        if sum(map(len, pictures.values())) <= most_bytes:
            break
    parts = []
    for name, row in rows.items():
        (_, f, h, w, _), columns, cells = row.clips.shape, sheets[name][1], []
        for i, clip in enumerate(row.clips[:shown]):
            # The brightest pixel over y: time runs down.
            crossing = uri(encoded(clip.max(1)), "png")
            cells.append(
                f'<div class="cell"><canvas width="{w}" height="{h}" role="img" data-clip="{i}" data-frames="{f}" '
                f'data-columns="{columns}" aria-label="{text(name)}, clip {i + 1}"></canvas>'
                f'<div class="slice"><img src="{crossing}" alt="x-t slice of {text(name)}, clip {i + 1}"></div></div>'
            )
        parts.append(
            f'<div class="row"><div class="name"><b>{text(name)}</b><span>{text(row.told)}</span></div>'
            f'<div class="cells"><img class="sheet" hidden alt="" src="{uri(pictures[name], "webp")}">'
            f"{''.join(cells)}</div></div>"
        )
    exact = "pixels are exact" if "lossless" in options else "compressed to keep the page small"
    note = f"{shown} clip{'s' * (shown > 1)} of each, {exact}. Space plays, ← and → step, 1 to 4 choose the speed. "
    note += "Below each clip its x-t slice: the brightest pixel over y, time running down, the line at the frame shown."
    widest = max(row.clips.shape[3] for row in rows.values())
    speeds = "".join(
        f'<option value="{s}"{" selected" * (s == 1)}>{told}</option>'
        for s, told in ((0.25, "¼×"), (0.5, "½×"), (1, "1×"), (2, "2×"))
    )
    return (
        f'<div class="player" role="group" aria-label="{text(label)}" data-frames="{frames}" data-fps="{FPS}" '
        f'style="--n:{shown};--cell:{max(112, 2 * widest)}px"><div class="controls">'
        '<button type="button" class="play" aria-pressed="false">▶ Play</button>'
        f'<input type="range" class="frame" min="0" max="{frames - 1}" value="0" step="1" aria-label="Frame">'
        f'<output class="at">1 / {frames}</output>'
        f'<select class="speed" aria-label="Speed">{speeds}</select>'
        '<label class="toggle"><input type="checkbox" class="slices" checked> x-t</label></div>'
        f'<div class="rows">{"".join(parts)}</div><p class="note">{note}</p></div>'
    )


# Markdown ---------------------------------------------------------------------------------------------------------


def markdown(source: str, folder: pathlib.Path) -> str:
    """The Markdown that this project's reports are written in, as HTML: headings, tables, lists, fences, pictures (put into the
    page from `folder`), bold, italic, code and links. Anything else is text.
    """
    parts, lines = [], re.sub(r"<!--.*?-->", "", source, flags=re.S).splitlines()
    while lines:
        line = lines.pop(0)
        if not line.strip():
            continue
        if line.startswith("```"):
            code = list(itertools.takewhile(lambda one: not one.startswith("```"), lines))
            del lines[: len(code) + 1]
            parts.append(f'<pre tabindex="0"><code>{text(chr(10).join(code))}</code></pre>')
        elif found := re.match(r"(#+) +(.*)", line):
            level = min(max(len(found[1]), 2), 6)
            parts.append(f"<h{level}>{inline(found[2], folder)}</h{level}>")
        elif line.startswith("|"):
            grid = [line, *_taken(lines, lambda one: one.startswith("|"))]
            cells = [
                [inline(c.strip(), folder) for c in re.split(r"(?<!\\)\|", one.strip()[1:].rstrip("|"))] for one in grid
            ]
            ruled = len(grid) > 1 and set(grid[1]) <= set("|-: ")
            parts.append(table(cells[0], cells[2:] if ruled else cells[1:]))
        elif re.match(r"[-*] |\d+\. ", line):
            block = [line, *_taken(lines, lambda one: bool(one.strip()))]
            items = re.split(r"\n(?=[-*] |\d+\. )", "\n".join(block))
            made = "".join(f"<li>{inline(re.sub(r'^([-*]|[0-9]+[.]) +', '', item), folder)}</li>" for item in items)
            parts.append(f"<ol>{made}</ol>" if line[0].isdigit() else f"<ul>{made}</ul>")
        else:
            block = [line, *_taken(lines, lambda one: bool(one.strip()) and not re.match(r"```|\||#+ ", one))]
            made = inline("\n".join(block), folder)
            parts.append(made if made.startswith("<figure") else f"<p>{made}</p>")
    return "".join(parts)


def _taken(lines: list[str], keep) -> list[str]:
    """Removes from the front of `lines` those that `keep` keeps, and returns them."""
    found = list(itertools.takewhile(keep, lines))
    del lines[: len(found)]
    return found


def inline(source: str, folder: pathlib.Path) -> str:
    """Markdown within a paragraph."""
    codes: list[str] = []

    def keep(match: re.Match[str]) -> str:
        codes.append(match[1])
        return f"\0{len(codes) - 1}\0"

    # Code is set aside, so that its stars and brackets stay as they are while bold text may hold code.
    source = text(re.sub(r"\\([\\`*_\[\]()#|])", r"\1", re.sub(r"`([^`]+)`", keep, source.replace("\0", ""))))
    source = re.sub(
        r"!\[([^\]]*)\]\(([^)\s]+)\)", lambda m: _shown(html.unescape(m[1]), html.unescape(m[2]), folder), source
    )
    # Only addresses that open a page; a link is followed by the reader, never fetched.
    source = re.sub(r"\[([^\]]+)\]\(((?:https?://)?[\w./#?=&;%~-]+)\)", r'<a href="\2">\1</a>', source)
    source = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", source, flags=re.S)
    source = re.sub(r"(?<![\w*])\*(?=\S)(.+?)(?<=\S)\*(?![\w*])", r"<i>\1</i>", source, flags=re.S)
    return re.sub(r"\0(\d+)\0", lambda m: f"<code>{text(codes[int(m[1])])}</code>", source)


def _shown(alt: str, name: str, folder: pathlib.Path) -> str:
    path = folder / name
    if not path.is_file():
        return f"<em>{text(alt)}: {text(name)} is missing</em>"
    return picture(path.read_bytes(), path.suffix[1:].lower(), alt)
