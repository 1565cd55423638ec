"""`python -m experiments.cite --config=configs/X.py`: the papers of what a config uses, as BibTeX.

Schedule, prediction, model, methods with their options, samplers, metrics; of shipped weights the method that made them. A part
from outside is cited by the arXiv numbers in its docstring, or its module's. `--bibliography` prints docs/bibliography.md.
"""

import functools
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from experiments import run, stages, weights
from experiments.citations import PAPERS, USES, Paper
from experiments.command import command
from experiments.config import ConfigError
from experiments.names import imported, is_outside

KINDS = {
    "schedule": "Schedules", "prediction": "Predictions", "law": "Laws of noise levels", "weight": "Weights of the loss",
    "solver": "Solvers", "grid": "Grids", "matrix": "Schedule matrices", "method": "Methods", "source": "What a critic judges",
    "noise": "Sources of noise", "model": "Networks", "attention": "Attention", "stage": "Stages and metrics",
    "key": "Keys of a config",
}  # fmt: skip
"""kind of part -> its heading in the bibliography."""

Part = tuple[str, str]
"""(kind, name)"""


@functools.partial(command, about=__doc__)
def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 2 a mistake of the user's."""
    argv = sys.argv if argv is None else argv
    if argv[1:] == ["--bibliography"]:
        print(bibliography(), end="")
        return 0
    argv = run.joined(argv)
    for argument in argv[1:]:
        if not argument.startswith("--config"):
            raise ConfigError(f"arguments not understood: {argument} (flags are --config, --bibliography)")
    if len(argv) < 2:
        raise ConfigError(
            "usage: python -m experiments.cite --config=configs/X.py [--config.a.b=VALUE], or --bibliography"
        )
    config, source, workdir, *_ = run.parse([*argv, "--workdir=."])
    stages.check_form(config, "sweep")
    print(f"% {source}\n" + "\n".join(cited(parts(config, workdir))))
    return 0


def parts(config: Mapping[str, Any], workdir: Any = ".") -> list[Part]:
    """What a config uses, each once, in the order of its use. ConfigError for shipped weights that aren't there."""
    return list(dict.fromkeys(_parts(config, workdir)))


def _parts(config: Mapping[str, Any], workdir: Any) -> Iterator[Part]:
    if "schedule" in config:
        yield "schedule", _kind(config["schedule"])
    if "prediction" in config:
        yield "prediction", config["prediction"]
    if config.get("noise") is not None:
        yield "noise", _kind(config["noise"])
    if "augmentation" in config:
        yield "key", "augmentation"
    if "model" in config:
        yield "model", config["model"]["kind"]
        if config["model"].get("attention") in USES["attention"]:
            yield "attention", config["model"]["attention"]
    for block in config["stages"].values():
        yield from _stage(block, workdir)


def _stage(block: Mapping[str, Any], workdir: Any) -> Iterator[Part]:
    for reference in (block.get(key) for key in ("teacher", "init", "previous", "weights")):
        if isinstance(reference, str) and reference.startswith("pretrained:"):
            record = weights.load(weights.find(reference, workdir))[1]
            if "method" in record:
                yield "method", record["method"]
    if block["kind"] in USES["stage"]:
        yield "stage", block["kind"]
    options = block.get("options", {})
    if "method" in block:
        yield "method", block["method"]
        taken = ("law", "critic_law", "weight", "critic_weight", "source", "guidance_range", "per_frame")
        for key in taken:
            if value := options.get(key):
                kind = key.removeprefix("critic_")
                yield (kind, _kind(value)) if kind in USES else ("key", key)
    for sampler in _samplers(block):
        if "steps" in sampler and "weights" in sampler:
            yield "solver", _kind(sampler.get("solver", "ddim"))
        for key in ("grid", "matrix"):
            if key in sampler:
                yield key, _kind(sampler[key])
        if sampler.get("guidance", 1.0) != 1.0:
            yield "key", "guidance"
    for key in ("heads", "sdedit"):
        if block.get(key):
            yield "key", key


def _samplers(block: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The blocks of a stage that may say how it samples: itself, its samplers, the parts of a cascade's samplers."""
    yield block
    for row in block.get("samplers", {}).values():
        yield row
        yield from (part for part in row.values() if isinstance(part, Mapping) and "weights" in part)


def _kind(block: Any) -> str:
    return block if isinstance(block, str) else block["kind"]


def cited(used: list[Part]) -> Iterator[str]:
    """BibTeX, each paper once, after a comment that says what it is cited for; a line for parts from outside."""
    reasons: dict[str, list[str]] = {}
    for kind, name in used:
        if is_outside(name):
            yield f"% {kind} {name}: {outside(name)}"
        for key in USES[kind].get(name, ()):
            reasons.setdefault(key, []).append(f"{kind} {name}")
    for key, why in reasons.items():
        yield f"\n% {', '.join(why)}\n{bibtex(key)}"


def outside(name: str) -> str:
    """The arXiv numbers that a part from outside names in its own docstring or its module's."""
    try:
        found = imported(name, "cited")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    text = f"{found.__doc__ or ''} {sys.modules[name.partition(':')[0]].__doc__ or ''}"
    numbers = dict.fromkeys(re.findall(r"\b\d{4}\.\d{4,5}\b", text))
    return ", ".join(f"arXiv {number}" for number in numbers) or "no paper in its docstring"


def bibtex(key: str) -> str:
    paper = PAPERS[key]
    fields = {"author": paper.authors, "title": f"{{{paper.title}}}", "year": paper.year}
    fields |= {"eprint": paper.arxiv, "archivePrefix": "arXiv"} if paper.arxiv else {"howpublished": paper.where}
    return f"@misc{{{key},\n" + "".join(f"  {k} = {{{v}}},\n" for k, v in fields.items()).replace("&", r"\&") + "}"


def bibliography() -> str:
    """docs/bibliography.md."""
    lines = [
        "# Bibliography\n",
        "The papers of everything that is implemented here. Made by\n",
        "```bash\npython -m experiments.cite --bibliography > docs/bibliography.md\n```\n",
        "For the papers of one config, as BibTeX:\n",
        "```bash\npython -m experiments.cite --config=configs/moving_digits/games.py:dmd2,4\n```\n",
        "## What is from where",
    ]
    for kind, heading in KINDS.items():
        lines += [f"\n### {heading}\n", "| in a config | papers |", "|---|---|"]
        for name, keys in USES[kind].items():
            lines.append(f"| `{name}` | {', '.join(f'[{_short(PAPERS[k])}](#{k})' for k in keys) or '-'} |")
    lines.append("\n## Papers\n")
    for key, paper in sorted(PAPERS.items(), key=lambda item: (item[1].year, item[0])):
        where = f"[arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else paper.where
        names = paper.authors.replace(" and others", " et al.").replace(" and ", ", ")
        lines.append(f'- <a id="{key}"></a>{names} ({paper.year}). *{paper.title}*. {where}')
    return "\n".join(lines) + "\n"


def _short(paper: Paper) -> str:
    """Ho et al. 2020"""
    names = [name.split()[-1] for name in paper.authors.split(" and ")]
    who = names[0] if len(names) == 1 else f"{names[0]} & {names[1]}" if len(names) == 2 else f"{names[0]} et al."
    return f"{who} {paper.year}".replace("& others", "et al.")


if __name__ == "__main__":
    sys.exit(main())
