"""Looking into the passes of a compile: the module in between, and why a rule did not apply."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from omnic.compiler.imported import Imported
from omnic.compiler.lowering import Listed, Lowered, listed_passes
from omnic.errors import InputError, nearest
from omnic.ir.graph import Module
from omnic.ir.text import print_module
from omnic.passes.base import STAGES
from omnic.runtime.manifest import PassRecord
from omnic.spec import Spec

__all__ = ["Inspector", "print_why", "why"]


class Inspector:
    """What ``--print-after``, ``--stop-after`` and ``--why`` ask for.

    Args:
        spec: with its passes.
        print_after: a pass, or ``all``.
        stop_after: a pass or a stage.
        why: a pass.

    Raises:
        InputError: one of them is not in the list of passes.
    """

    def __init__(self, spec: Spec | Imported, print_after: str | None, stop_after: str | None, why: str | None) -> None:
        self.listed = listed_passes(spec)
        self.print_after, self.stop_after = print_after, stop_after
        self._seen = 0
        names = [p.name for p in self.listed]
        for option, name, also in (
            ("--print-after", print_after, ("all",)),
            ("--stop-after", stop_after, STAGES),
            ("--why", why, ()),
        ):
            if name is None or name in names or name in also:
                continue
            near = nearest(name, [*names, *also])
            hint = f"did you mean '{near}'?" if near else f"add it with --pass {name}, or see: omnic list passes"
            ran = ", ".join(names) or "none"
            raise InputError(f"{option} {name}: it is not among the passes of this compile ({ran})", hint)

    @property
    def watches(self) -> bool:
        """Whether anything is to be seen between passes."""
        return self.print_after is not None or self.stop_after is not None

    def watch(self, each: Listed, module: Module) -> bool:
        """Print the module where asked for, and say whether to go on."""
        self._seen += 1
        if self.print_after in ("all", each.name):
            print(f"# after {each.name} ({self._seen} of {len(self.listed)})", file=sys.stderr)
            print(print_module(module), file=sys.stderr)
        return not self._stops(each)

    def _stops(self, each: Listed) -> bool:
        if self.stop_after not in STAGES:
            return each.name == self.stop_after
        # A stage ends before the first pass of a later one.
        limit = STAGES.index(self.stop_after)
        rest = self.listed[self._seen :]
        return not rest or STAGES.index(rest[0].stage) > limit

    def print_stopped(self, lowered: Lowered, as_json: bool) -> None:
        """Print the module that ``--stop-after`` asked for."""
        module = lowered.lossy
        if self.stop_after in STAGES and self.listed:
            # No pass of the list may run when its first one is of a later stage already.
            first = STAGES.index(self.listed[0].stage)
            module = lowered.front if first > STAGES.index(self.stop_after) else module
        if as_json:
            passes = [p.model_dump(mode="json") for p in lowered.passes]
            print(json.dumps({"module": print_module(module), "passes": passes}, indent=2))
        else:
            print(print_module(module))


def why(passes: Sequence[PassRecord], name: str) -> dict[str, Any]:
    """Return what the pass ``name`` did by rule, where it nearly applied, and what else it said."""
    records = [p for p in passes if p.name == name]
    remarks = [r for p in records for r in p.remarks]
    applied = Counter(r.rule for r in remarks if r.message == "applied")
    return {
        "pass": name,
        "changed": any(p.changed for p in records),
        "applied": dict(applied),
        "missed": [{"rule": r.rule, "reason": r.message, "node": r.node} for r in remarks if r.missed],
        "said": [
            {"rule": r.rule, "message": r.message, "node": r.node}
            for r in remarks
            if not r.missed and r.message != "applied"
        ],
    }


def print_why(found: Any) -> None:
    """Print what :func:`why` found, if anything was asked."""
    if found is None:
        return
    print(f"{found['pass']}: {'changed the module' if found['changed'] else 'changed nothing'}")
    for rule, count in found["applied"].items():
        print(f"  {rule}: applied {count} time{'s' if count != 1 else ''}")
    for said in found["said"]:
        print(f"  {said['rule']}: {said['message']}{_at(said['node'])}")
    for missed in found["missed"]:
        print(f"  {missed['rule']}: not applied: {missed['reason']}{_at(missed['node'])}")
    if not (found["applied"] or found["said"] or found["missed"]):
        print("  no rule came near to anything in this module")


def _at(node: str) -> str:
    return f"  at {node}" if node else ""
