"""What the device matrix says of a package: what may fall back, on what it does not load, and why."""

from __future__ import annotations

from collections.abc import Sequence

from omnic.ir.graph import Module
from omnic.ir.types import Storage
from omnic.ir.weights.store import fixed_shape
from omnic.targets.coreml.build import Built
from omnic.targets.coreml.caps import CAPS
from omnic.targets.coreml.matrix import matrix
from omnic.targets.coreml.options import DEVICES_ALL, Options
from omnic.targets.coreml.stored import form_of

__all__ = ["device_remarks"]


def device_remarks(module: Module, built: Sequence[Built], options: Options, size: int) -> tuple[str, ...]:
    """Return what falls back, or may, on the devices that were asked for, and why."""
    holds = _conditions(module, built, options, size)
    found = [
        f"{r['says']} ({_source(r['source'])})" + (f": {holds[r['when']]}" if holds[r["when"]] else "")
        for r in matrix()["reports"]
        if r["when"] in holds and r["compute"] in ("any", options.compute)
    ]
    earlier = [name for name, s in matrix()["systems"].items() if s["mlprogram"]["value"] == "iOS17"]
    found.append(f"the package needs iOS 18 or macOS 15: it does not load on {', '.join(earlier)}"
                 f" ({_source('multifunction')})")
    if options.device != DEVICES_ALL:
        chip = matrix()["chips"][options.device]
        products = chip["int8_products"]
        known = "unknown" if products["value"] == "unknown" else ("yes" if products["value"] else "no")
        found.append(f"{options.device}: int8 products on its neural engine: {known}"
                     + (f" ({_source(products['source'])})" if "source" in products else "")
                     + "; the package's products are fp16 or fp32")
    return tuple(found)


def _source(name: str) -> str:
    return str(matrix()["sources"].get(name, name))


def _conditions(module: Module, built: Sequence[Built], options: Options, size: int) -> dict[str, str]:
    """Return the conditions of reports that hold, each with what it is about."""
    forms = {n: form_of(e, fixed_shape(w.type), options.compute == "ane") for n, w in module.weights.items()
             if isinstance(e := w.type.element, Storage)}
    multiple = CAPS.limit("state_multiple")
    odd = [f"{s.name} {s.type}" for s in module.states.values()
           if any(isinstance(d, int) and d % multiple for d in s.type.shape[-2:])]
    blocks = [n for n, f in forms.items() if f.kind == "blocks"]
    tables = [n for n, f in forms.items() if f.kind == "table"]
    gathered = {v.name for f in module.functions.values() for node in f.nodes if node.op == "moe"
                for v in node.inputs() if v.weight and isinstance(v.type.element, Storage)}
    scatter = sorted({b.form.name for b in built if any("scatter" in ops for ops in b.ops.values())})
    found = {
        "decode": "", "stateful": "" if options.stateful else None, "state_dim": _few(odd), "blocks": _few(blocks),
        "scatter": _few(scatter), "gathered_codes": _few(sorted(gathered)),
        "large": f"{size:,} bytes" if size >= 2 * CAPS.limit("file_bytes") else None,
        "stateful_table": _few(tables) if options.stateful else None,
    }
    return {k: v for k, v in found.items() if v is not None}


def _few(names: Sequence[str]) -> str | None:
    if not names:
        return None
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
