"""The page docs/ir.md: written text in ``docs_prose.md``, and tables and the op reference from the classes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import cast

from omnic.errors import InternalError
from omnic.ir import packing
from omnic.ir.graph import AttrValue
from omnic.ir.numeric import CLASSES
from omnic.ir.op import Attr, In, Op, all_ops
from omnic.ir.text.printer import print_attribute
from omnic.ir.verify import FUNCTION_RULES, MODULE_RULES

__all__ = ["MAX_BYTES", "op_entry", "text"]

MAX_BYTES = 60_000

_PROSE = Path(__file__).parent / "docs_prose.md"

# Order of the op reference: (heading, files of ir/ops it holds).
_CHAPTERS = (
    ("Composites: products and embeddings", ("linear",)),
    ("Composites: norms and positions", ("norms", "rope")),
    ("Composites: attention", ("attention", "block_attention", "mla")),
    ("Composites: mixture of experts", ("moe",)),
    ("Composites: heads", ("heads", "argmax")),
    ("Composites: recurrences and pooling", ("recurrent",)),
    ("Composites: the host", ("host",)),
    ("Core: arithmetic and functions of one element", ("elementwise",)),
    ("Core: comparison and logic", ("logic",)),
    ("Core: reductions and scans", ("reduce",)),
    ("Core: products", ("linalg", "conv")),
    ("Core: shapes", ("shape",)),
    ("Core: indices and order", ("index",)),
    ("Core: storage types", ("quant",)),
    ("Core: states", ("cache", "cache_blocks")),
)


def text() -> str:
    """Return the whole page.

    Raises:
        InternalError: the prose names a table that does not exist, an op is in no chapter, or the page is too long.
    """
    tables: dict[str, Callable[[], str]] = {
        "ops": _ops, "classes": _classes, "rules": _rules, "packing": _packing,
    }

    def fill(match: re.Match[str]) -> str:
        if match.group(1) not in tables:
            raise InternalError(f"docs_prose.md asks for the table '{match.group(1)}'")
        return tables[match.group(1)]()

    page = re.sub(r"\{\{(\w+)\}\}", fill, _PROSE.read_text(encoding="utf-8"))
    if len(page.encode()) > MAX_BYTES:
        raise InternalError(f"docs/ir.md would be {len(page.encode())} bytes; {MAX_BYTES} is the limit")
    return page


def _ops() -> str:
    by_file: dict[str, list[Op]] = {}
    for op in all_ops().values():
        by_file.setdefault(type(op).__module__.rpartition(".")[2], []).append(op)
    missing = sorted(set(by_file) - {f for _, files in _CHAPTERS for f in files})
    if missing:
        raise InternalError(f"the ops of {', '.join(missing)} are in no chapter of docs/ir.md")
    lines: list[str] = []
    for heading, files in _CHAPTERS:
        lines += [f"### {heading}", ""]
        for file in files:
            lines += [op_entry(op) for op in by_file.get(file, ())]
    return "\n".join(lines).rstrip()


def op_entry(op: Op) -> str:
    """Return the entry of one op: signature, meaning, source, inputs and attributes."""
    lines = [f"**`{_signature(op)}`**", "", _flat(op.__doc__ or "")]
    if op.source and op.source != "definition":
        lines[-1] += f" [{op.source}]"
    notes = [f"`{i.name}` {i.doc}" for i in op.inputs if i.doc]
    notes += [f"`{a.name}`{_choices(a)}{': ' if _choices(a) and a.doc else ' '}{a.doc}" for a in op.attrs if a.doc]
    if notes:
        lines += ["", "; ".join(n.strip() for n in notes) + "."]
    if type(op).flops is not Op.flops and type(op).flops.__doc__:
        lines[-1] += f" FLOPs: {_lower(_flat(type(op).flops.__doc__ or ''))}"
    return "\n".join([*lines, ""])


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _signature(op: Op) -> str:
    inputs = ", ".join(_input(i) for i in op.inputs)
    attrs = ", ".join(_attr(a) for a in op.attrs)
    return f"{op.name}({inputs})" + (f" {{{attrs}}}" if attrs else "") + f" -> {', '.join(op.outputs)}"


def _input(entry: In) -> str:
    star = "*" if entry.variadic else ""
    return f"{star}{entry.name}{'?' if entry.optional else ''}: {'state' if entry.state else entry.domain}"


def _attr(attr: Attr) -> str:
    if attr.default is None:
        return f"{attr.name}?: {attr.kind}"
    if attr.required:
        return f"{attr.name}: {attr.kind}"
    return f"{attr.name}: {attr.kind} = {print_attribute(cast(AttrValue, attr.default))}"


def _choices(attr: Attr) -> str:
    return f" ({' | '.join(str(c) for c in attr.choices)})" if attr.choices else ""


def _flat(doc: str) -> str:
    """Return a docstring as one paragraph each block, single backticks."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(doc))
    return "\n\n".join(" ".join(block.split()).replace("``", "`") for block in blocks)


def _classes() -> str:
    lines = ["| class | error, bound (over logit rms) | KL bound | why |", "|---|---|---|---|"]
    for kind in CLASSES.values():
        bound = "choice only" if kind.bound is None else f"{kind.bound:g}"
        divergence = "" if kind.kl is None else f"{kind.kl:g}"
        lines.append(f"| {kind.name} | {kind.error:g}, {bound} | {divergence} | {kind.reason} |")
    return "\n".join(lines)


def _rules() -> str:
    lines: list[str] = []
    for name, rule in (*MODULE_RULES.items(), *FUNCTION_RULES.items()):
        lines.append(f"* `{name}`: {_flat(inspect.getdoc(rule) or '').partition(chr(10))[0]}")
    return "\n".join(lines)


def _packing() -> str:
    """Return the rules of quantisation: the docstring of the packing without its first paragraph's first line."""
    doc = inspect.getdoc(packing) or ""
    return doc.partition("\n\n")[2].replace("``", "`")
