"""Where the time goes: seconds by kind of part, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnic.compiler.sample import sample_tokens
from omnic.ir.graph import Module
from omnic.runtime.bundle import Bundle
from omnic.runtime.session import SessionOptions, open_session
from omnic.runtime.tokenizer import Tokenizer
from omnic.targets.base import Target

__all__ = ["lines_of", "measure_profile", "part_of"]

TOKENS, STEPS = 128, 16


def measure_profile(bundle: Bundle, target: Target, tokenizer: Tokenizer | None, threads: int) -> dict[str, Any]:
    """Return the contents of ``profile.json``.

    ``phases``, each with seconds by kind of part, by scope and, where the target knows them, by line of the spec and
    op; and ``state_bytes``: what the states of one row take in a session of the bundle.
    """
    module = bundle.module
    vocab = int(str(module.meta["vocab"]))
    # Both phases fit in the states of one row, however short the context.
    capacity = int(str(module.meta["capacity"]))
    count = max(1, min(TOKENS, module.dims["T"].high, capacity - STEPS))
    ids, _ = sample_tokens(vocab, count, tokenizer)
    routed = {n.scope for n in module.function("forward").nodes if n.op == "moe"}
    phases = [
        {
            "phase": f"{p.name}, {p.tokens} tokens",
            "parts": _grouped(p.seconds, routed),
            "scopes": dict(p.seconds),
            "lines": lines_of(p.nodes, module),
        }
        for p in target.profile(bundle, ids, min(STEPS, capacity - len(ids)), threads)
    ]
    conditions = f"Measured on the machine that compiled, {threads} thread{'s' if threads > 1 else ''}, batch 1."
    session = open_session(bundle, SessionOptions(threads=threads))
    session.reset(1)
    held = session.state_bytes()
    return {"schema_version": 1, "conditions": conditions, "phases": phases, "state_bytes": held}


def _grouped(seconds: Mapping[str, float], routed: set[str]) -> list[dict[str, Any]]:
    found: dict[str, float] = {}
    for scope, spent in seconds.items():
        name = part_of(scope, routed)
        found[name] = found.get(name, 0.0) + spent
    return [{"part": name, "seconds": spent} for name, spent in sorted(found.items(), key=lambda item: -item[1])]


def lines_of(seconds: Mapping[str, float], module: Module) -> list[dict[str, Any]]:
    """Return seconds by line of the spec and op, the longest first, of seconds by node of ``@forward``.

    ``line`` is None where a node comes from no line, ``count`` how many nodes are meant.
    """
    found: dict[tuple[str, int | None, str], list[float]] = {}
    of = {n.name: n for n in module.function("forward").nodes}
    for name, spent in seconds.items():
        node = of[name]
        file, line = (node.loc.file, node.loc.line) if node.loc else ("", None)
        found.setdefault((file, line, node.op), []).append(spent)
    rows = [
        {"file": file, "line": line, "op": op, "count": len(each), "seconds": sum(each)}
        for (file, line, op), each in found.items()
    ]
    return sorted(rows, key=lambda row: -row["seconds"])


def part_of(scope: str, routed: set[str]) -> str:
    """Return the kind of part a scope belongs to, in the words of the report's palette."""
    if scope.endswith(".attn"):
        return "attention"
    if scope.endswith(".shared"):
        return "shared experts"
    if scope.endswith(".ffn"):
        return "experts" if scope in routed else "feed-forward"
    if scope in ("head", "mtp", "verifier"):
        return scope
    return "embedding" if scope == "embed" else "norms" if scope.startswith(("blocks", "final_norm")) else "other"
