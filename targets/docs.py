"""The page docs/targets.md: what each target does with each op, type and state, read from their capabilities."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omnic.ir.caps import Caps, GroupRule, OpSupport
from omnic.ir.op import all_ops
from omnic.targets import TARGETS, caps_of

__all__ = ["text"]

_ROOT = Path(__file__).resolve().parent.parent
#: what ``bench/op_costs.py`` records; the page of an installed package goes without
_COSTS = _ROOT / "bench" / "history" / "op_costs.jsonl"
_PROSE = Path(__file__).with_name("docs_prose.md")


def _mark(support: OpSupport | None) -> str:
    if support is None:
        return "refused"
    word = {"native": "native", "decompose": "decomposed", "excluded": "refused"}[support.form]
    return f"{word}¹" if support.refuses else word


def _capabilities() -> dict[str, Caps]:
    """Return the capabilities of each target, and of each profile where a target has several."""
    found: dict[str, Caps] = {}
    for name in TARGETS:
        module = importlib.import_module(_caps_module(name))
        profiles: Mapping[str, Caps] = getattr(module, "PROFILE_CAPS", {name: caps_of(name)})
        found |= {caps.target: caps for caps in profiles.values()}
    return found


def _caps_module(name: str) -> str:
    """Return the module of a target's capabilities."""
    return TARGETS[name][0].partition(":")[0].rpartition(".")[0] + ".caps"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    names = list(head)
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return [*lines, *(f"| {' | '.join(cells)} |" for cells in rows)]


def _glance(caps: Mapping[str, Caps]) -> list[str]:
    lines = [
        "## Ops at a glance",
        "",
        "¹ but for some values of an attribute: [refused attributes](#refused-attributes).",
    ]
    for title, composite in (("Composites", True), ("Core ops", False)):
        marks: dict[tuple[str, ...], list[str]] = {}
        for name, op in sorted(all_ops().items()):
            if op.composite == composite:
                marks.setdefault(tuple(_mark(c.ops.get(name)) for c in caps.values()), []).append(f"`{name}`")
        lines += [
            "",
            f"### {title}",
            "",
            *_table(["op", *caps], ([", ".join(ops), *cells] for cells, ops in marks.items())),
        ]
    return lines


def _each(caps: Mapping[str, Caps]) -> list[str]:
    lines = ["## As what, and by which source"]
    for name, one in caps.items():
        groups: dict[tuple[str, str], list[str]] = {}
        for op, support in one.ops.items():
            form = {"native": "native", "decompose": "decomposed", "excluded": "refused"}[support.form]
            groups.setdefault((form, support.source), []).append(f"`{op}`")
        order = {"native": 0, "decomposed": 1, "refused": 2}
        rows = sorted(((order[form], ", ".join(ops), form, source) for (form, source), ops in groups.items()),
                      key=lambda row: row[0])
        lines += [
            "",
            f"### {name}",
            "",
            *_table(["op", "", "as what, by which source; or why not"], (row[1:] for row in rows)),
        ]
    return lines


def _attributes(caps: Mapping[str, Caps]) -> list[str]:
    rows: dict[tuple[str, str, str], list[str]] = {}
    for name, one in caps.items():
        for op, support in one.ops.items():
            for refused in support.refuses:
                value = {"storage": "a storage type", "other": "anything but the default"}.get(
                    refused.value, refused.value
                )
                rows.setdefault((f"`{op}`", f"`{refused.attr}`: {value}", refused.source), []).append(name)
    return [
        "## Refused attributes",
        "",
        *_table(
            ["op", "attribute", "why", "target"],
            ((op, attr, why, ", ".join(who)) for (op, attr, why), who in rows.items()),
        ),
    ]


def _costs() -> list[str]:
    if not _COSTS.is_file():
        return []
    entry: dict[str, Any] = json.loads(_COSTS.read_text(encoding="utf-8").splitlines()[-1])
    about, rows = entry["conditions"], entry["rows"]
    counted = list(dict.fromkeys(name for r in rows for name in r["nodes"]))
    timed = list(dict.fromkeys(name for r in rows for name in r["ratios"]))
    body: list[list[str]] = []
    for one in rows:
        ops = sorted(set(one["into"]))
        into = f"{len(one['into'])}: {', '.join(ops)}" if ops else "0: its operand"
        counts = ["{} → {}".format(*one["nodes"][n]) if n in one["nodes"] else "" for n in counted]
        times = [f"{one['ratios'][n]:.2f}x" if n in one["ratios"] else "refused" for n in timed]
        body.append([f"`{one['op']}`", into, *counts, *times])
    return [
        "## What a decomposition costs",
        "",
        "Each composite by itself, as the target takes it and decomposed beforehand, by `python bench/op_costs.py`"
        f" ({entry['at']}, {entry['processor']}, one thread, {about['tokens']} tokens, a layer {about['width']} wide;"
        f" torch {about['torch']}, onnxruntime {about['onnxruntime']}, coremltools {about['coremltools']}). Nodes are"
        " those of the program, constants of Core ML not counted, with one or two more for each result. Times are"
        " decomposed over as it is, the median of 21 rounds in turns: above 1 the target gains by having the op, and it"
        " is about 1 where the target decomposes the op itself, as `attention` and `mla` of onnx and coreml, which are"
        " native over caches and have inputs for keys here."
        " Programs of Core ML are counted and not timed.",
        "",
        *_table(["op", "core nodes", *(f"nodes, {n}" for n in counted), *(f"time, {n}" for n in timed)], body),
    ]


def _rule(rule: GroupRule | None) -> str:
    if rule is None:
        return "no"
    names = {0: "row", -1: "head"}
    groups = ", ".join(names.get(g, f"g{g}") for g in rule.groups)
    asym = ", zero points" if rule.asym else ""
    return f"{groups}; {', '.join(sorted(rule.scales))} scales{asym}"


def _types(caps: Mapping[str, Caps]) -> list[str]:
    lines = ["## Types", "", "Element types of values:", ""]
    kinds = sorted({str(e) for c in caps.values() for e in c.elements})
    lines += _table(
        ["target", *kinds, "source"],
        (
            [
                name,
                *("yes" if k in {str(e) for e in c.elements} else "no" for k in kinds),
                c.sources.get("elements", ""),
            ]
            for name, c in caps.items()
        ),
    )
    for title, state in (("Weights stored as codes", False), ("States stored as codes", True)):
        groups: dict[tuple[str, str], list[str]] = {}
        for name, c in caps.items():
            rules = c.state_storage if state else c.storage
            source = c.sources.get("state_storage" if state else "storage", "")
            shapes: dict[str, list[str]] = {}
            for rule in rules:
                shapes.setdefault(_rule(rule), []).append(rule.kind)
            for shape, which in shapes.items():
                groups.setdefault((", ".join(which), f"{shape} | {source}"), []).append(name)
            if not rules:
                groups.setdefault(("none", " | "), []).append(name)
        lines += [
            "",
            f"{title}:",
            "",
            *_table(
                ["target", "kinds", "groups and scales", "source"],
                ([", ".join(who), which, shape] for (which, shape), who in groups.items()),
            ),
        ]
    return lines


def _facts(caps: Mapping[str, Caps]) -> list[str]:
    forms = {
        "in_place": "buffers that a call changes in place",
        "functional": "inputs and outputs",
        "state_type": "a state type of the runtime, or inputs and outputs",
    }
    lines = ["## States, programs, products, limits"]
    for name, c in caps.items():
        facts = [
            ("states", forms[c.state], c.sources.get("state", "")),
            (
                "programs",
                {"one": "one for calls of any length", "per_phase": "one a length of call"}[c.programs],
                c.sources.get("programs", ""),
            ),
            ("dims that may be symbolic", ", ".join(sorted(c.dynamic)) or "none", c.sources.get("dynamic", "")),
            (
                "activations of products",
                ", ".join(f"`{a}`" for a in sorted(c.activations)),
                c.sources.get("activations", ""),
            ),
            (
                "operator sets",
                ", ".join(f"{n or 'standard'} {v}" for n, v in c.opset.items()),
                c.sources.get("opset", ""),
            ),
            ("limits", ", ".join(f"{n} {v:,}" for n, v in c.limits.items()), c.sources.get("limits", "")),
            ("numeric class", c.numeric, "docs/ir.md, Numbers"),
            (
                "rows are the same to the bit for any call",
                "yes" if c.batch_invariant else "no",
                c.sources.get("batch_invariant", ""),
            ),
            (
                "a weight that two ops read lies once",
                "yes" if c.shared_weights else "no",
                c.sources.get("shared_weights", ""),
            ),
        ]
        lines += ["", f"### {name}: facts", "", *_table(["", "", "source"], (f for f in facts if f[1]))]
    return lines


def text() -> str:
    """Return the page as Markdown."""
    caps = _capabilities()
    parts = [
        [_PROSE.read_text(encoding="utf-8").strip()],
        _glance(caps),
        _attributes(caps),
        _costs(),
        _types(caps),
        _facts(caps),
        _each(caps),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)
