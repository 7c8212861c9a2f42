"""From an IR module to the files of a bundle: the package, and what tells its names from those of the IR."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from omnic.ir.graph import Module
from omnic.ir.text import print_module
from omnic.ir.types import Storage
from omnic.ir.weights.store import fixed_shape
from omnic.targets.base import EmitRequest, Emitted
from omnic.targets.coreml.build import Built, build_function, check_module
from omnic.targets.coreml.caps import CAPS
from omnic.targets.coreml.devices import device_remarks
from omnic.targets.coreml.files import KIND, NAMES_FILE, PACKAGE
from omnic.targets.coreml.legalise import legalise
from omnic.targets.coreml.metadata import describe, metadata_of
from omnic.targets.coreml.options import Options, parse_options
from omnic.targets.coreml.package import write_package
from omnic.targets.coreml.phases import CallForm, call_forms
from omnic.targets.coreml.rounded import rounded
from omnic.targets.coreml.stored import WeightTable, check_scales, form_of

__all__ = ["emit"]


def emit(request: EmitRequest) -> Emitted:
    """Write the package and the table of its names.

    Raises:
        InputError: the module holds what a package cannot; nothing is written then.
    """
    options = parse_options({k: v for k, v in request.options.items() if v is not None})
    check_module(request.module)
    forms = call_forms(request.module, options)
    module = legalise(request.module, options)
    for weight in module.weights.values():
        check_scales(weight, options.half)
    tables = options.compute == "ane"
    table = WeightTable(request.weights.with_module(module), tables)
    built: list[Built] = []
    for done, form in enumerate(forms):
        request.progress(f"lower {form.name}", done / len(forms))
        built.append(build_function(module, form, table, options))
    record = rounded(module, options)
    text = print_module(record)
    offsets = write_package(
        request.out / PACKAGE, built, table, metadata_of(module, options, text), lambda d: describe(d, module, built),
        request.progress,
    )
    names: dict[str, Any] = {"functions": {b.form.name: _record(b) for b in built}, "half": options.half,
                             "stateful": options.stateful, "tables": tables,
                             "weights": table.record(offsets)}
    (request.out / NAMES_FILE).write_text(json.dumps(names), encoding="utf-8")
    size = sum(f.stat().st_size for f in (request.out / PACKAGE).rglob("*") if f.is_file())
    remarks = [*_remarks(module, forms, options, size), *device_remarks(module, built, options, size)]
    programs = {name: PACKAGE for name in module.functions}
    interface = {"functions": {b.form.name: _interface(module, b) for b in built}, "bytes": size}
    return Emitted(KIND, record, programs, interface, _nodes(built), tuple(remarks))


def _record(built: Built) -> dict[str, Any]:
    form = built.form
    return {
        "function": form.function, "sizes": list(form.sizes), "length": form.length, "rows": form.rows,
        "inputs": dict(built.inputs), "outputs": dict(built.outputs), "names": dict(built.names),
        "columns": sorted(built.columns),
    }


def _interface(module: Module, built: Built) -> dict[str, Any]:
    """Return what an app needs to know to call one function."""
    function = module.function(built.form.function)
    types = {p.value.name: str(p.value.type) for p in function.params}
    results = {r.name: str(r.value.type) for r in function.results}
    return {
        "of": built.form.function, "lengths": list(built.form.sizes), "length": built.form.length,
        "rows": built.form.rows,
        "inputs": {name: types[v] for name, v in built.inputs.items()},
        "outputs": {name: results[v] for name, v in built.outputs.items()},
    }


def _nodes(built: Sequence[Built]) -> dict[str, Sequence[str]]:
    """Return node of the IR -> what it became in the function of one token."""
    found: dict[str, Sequence[str]] = {}
    done: set[str] = set()
    for one in built:
        if one.form.function not in done:
            done.add(one.form.function)
            prefix = "" if one.form.function == "forward" else f"{one.form.function}:"
            found |= {prefix + node: tuple(ops) for node, ops in one.ops.items()}
    return found


def _remarks(module: Module, forms: Sequence[CallForm], options: Options, size: int) -> list[str]:
    lengths = ", ".join(f"{f.name} {'-'.join(map(str, f.sizes))}" for f in forms)
    found = [f"functions and their lengths: {lengths}; one row a call", f"package of {size:,} bytes"]
    changed: Mapping[str, list[str]] = {}
    grouped: dict[str, list[str]] = dict(changed)
    for name, weight in module.weights.items():
        element = weight.type.element
        if not isinstance(element, Storage):
            continue
        form = form_of(element, fixed_shape(weight.type), options.compute == "ane")
        lies = f"{element} lies as {form.codes} {'indices of a table' if form.kind == 'table' else 'codes'}"
        lies += " with repeated scales" if form.repeat > 1 else ""
        grouped.setdefault(lies, []).append(name)
    for lies, names in grouped.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        found.append(f"{lies}: {', '.join(names[:3])}{more}")
    if options.compute == "ane" and size > CAPS.limit("file_bytes"):
        found.append(f"the package is larger than {CAPS.limit('file_bytes'):,} bytes: it may not load where the neural"
                     f" engine is to run it ({CAPS.sources['limits']})")
    return found
