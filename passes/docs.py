"""The pages of ``docs/passes/`` that come from the code: one a pass, and the index of all.

A page's top (what the pass does, its stage, options, rules, Given and Result) is the docstring of its class.  When to
use it and what it costs is written by hand in ``docs/passes/_text/<name>.md``; ``docs/generate.py`` joins the two.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from omnic.passes.base import STAGES, all_passes, stage_of
from omnic.passes.options import describe_options
from omnic.passes.pipelines import PIPELINES

__all__ = ["index", "pages"]

_STAGE = {
    "front": "front: the numbers stay what they were",
    "lossy": "lossy: the bundle's fidelity says what it cost",
    "specialise": "specialise: clones of a function for a phase of the call",
    "legalise": "legalise: what one target wants",
}


def _ours() -> dict[str, Any]:
    """Return the passes of omnic itself; pages of other packages are theirs to write."""
    found = sorted(all_passes().items())
    return {name: cls for name, cls in found if cls.__module__.startswith("omnic.")}


def pages() -> dict[str, str]:
    """Return file name -> text of the generated top of each page."""
    return {f"{name}.md": _page(name, cls) for name, cls in _ours().items()}


def _page(name: str, cls: Any) -> str:
    about, _, _ = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:")
    title, _, body = about.partition("\n")
    source = "passes/" + cls.__module__.removeprefix("omnic.passes.").replace(".", "/") + ".py"
    lines = [f"# `{name}`", "", _inline(title), ""]
    lines += [f"Stage: {_STAGE[stage_of(cls)]}. Source: [`{source}`](../../{source}).", ""]
    lines += [*_markdown(body.strip().splitlines()), ""]
    rows = describe_options(cls)
    if rows:
        lines += ["## Options", "", "| option | type | default | range | meaning |", "|---|---|---|---|---|"]
        for row in rows:
            cells = (f"`{row['name']}`", row["type"], _default(row), row["range"], _inline(row["about"]).rstrip("."))
            lines.append(f"| {' | '.join(_cell(c) for c in cells)} |")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _default(row: dict[str, Any]) -> str:
    if "default" not in row:
        return "must be given"
    value = row["default"]
    words = {True: "true", False: "false", None: "none"}
    return f"`{words[value] if value is None or isinstance(value, bool) else str(value)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _inline(text: str) -> str:
    return text.replace("``", "`")


def _markdown(lines: list[str]) -> list[str]:
    """Return the lines of a docstring as Markdown: a line that ends in ``::`` introduces a block of text IR."""
    out: list[str] = []
    block = False
    heading = False
    for index, line in enumerate(lines):
        if block and line.strip() and not line.startswith("    "):
            _close(out)
            block = False
        if block:
            out.append(line[4:])
        elif line.rstrip().endswith("::"):
            if not heading and line.startswith("Given"):
                out += ["## Example", ""]
                heading = True
            out += [f"{_inline(line.rstrip()[:-1])}", "", "```"]
            block = True
        else:
            if line.startswith("1. ") and "## Rules" not in out and not heading:
                out += ["## Rules", ""]
            out.append(_inline(line))
        if block and index == len(lines) - 1:
            _close(out)
    return out


def _close(out: list[str]) -> None:
    """End a block of text IR: no empty lines at either end."""
    while out[-1] == "":
        out.pop()
    start = len(out) - 1 - out[::-1].index("```")
    while len(out) > start + 1 and out[start + 1] == "":
        del out[start + 1]
    out += ["```", ""]


def index() -> str:
    """Return the text of ``docs/passes/README.md``."""
    lines = [
        "# Passes",
        "",
        "Every pass of omnic, by stage. A pass runs when a spec's `passes:` list or",
        "`omnic compile --pass NAME{option=value}` names it; `omnic list passes` prints this table with the passes of",
        "installed packages too.",
        "How to write one: [writing_passes.md](../writing_passes.md).",
        "",
    ]
    for stage in STAGES:
        found = {name: cls for name, cls in _ours().items() if stage_of(cls) == stage}
        if not found:
            continue
        lines += [f"## {stage}", "", f"{_STAGE[stage].partition(': ')[2].capitalize()}.", ""]
        lines += ["| pass | what it does | options |", "|---|---|---|"]
        for name, cls in found.items():
            options = ", ".join(f"`{row['name']}`" for row in describe_options(cls))
            title = inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]
            lines.append(f"| [`{name}`]({name}.md) | {_cell(_inline(title))} | {options} |")
        lines.append("")
    lines += [
        "## Pipelines",
        "",
        "A pipeline is a list of passes with a name. The name may stand wherever a pass's may.",
        "",
    ]
    for pipeline in PIPELINES.values():
        lines += [f"### `{pipeline.name}`", "", f"{_inline(pipeline.about[:1].upper() + pipeline.about[1:])}.", ""]
        if pipeline.steps:
            lines += ["| pass | why here |", "|---|---|"]
            lines += [f"| [`{s.name}`]({s.name}.md) | {_cell(_inline(s.why))} |" for s in pipeline.steps]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"
