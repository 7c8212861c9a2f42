"""From an IR module to the files of a bundle: the package, and what tells its names from those of the IR."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omnic.ir.graph import Module, Value
from omnic.ir.text import print_module
from omnic.ir.types import Storage
from omnic.ir.weights.store import fixed_shape
from omnic.targets.base import EmitRequest, Emitted
from omnic.targets.coreml.build import Built, Carried, build_stage, check_module
from omnic.targets.coreml.chunks import plan, stages_of
from omnic.targets.coreml.devices import device_remarks
from omnic.targets.coreml.files import KIND, NAMES_FILE, package_names
from omnic.targets.coreml.legalise import legalise
from omnic.targets.coreml.metadata import describe, metadata_of, order_of
from omnic.targets.coreml.options import Options, parse_options
from omnic.targets.coreml.package import write_package
from omnic.targets.coreml.padding import pad_states
from omnic.targets.coreml.phases import CallForm, call_forms, clone
from omnic.targets.coreml.rounded import rounded
from omnic.targets.coreml.stored import WeightTable, check_scales, form_of, stored_bytes

__all__ = ["emit"]


def emit(request: EmitRequest) -> Emitted:
    """Write the package and the table of its names.

    Raises:
        InputError: the module holds what a package cannot; nothing is written then.
    """
    options = parse_options({k: v for k, v in request.options.items() if v is not None})
    check_module(request.module)
    forms = call_forms(request.module, options)
    padded = pad_states(legalise(request.module, options), options)
    module = padded.module
    for weight in module.weights.values():
        check_scales(weight, options.half)
    tables = options.compute == "ane"
    sizes = {name: stored_bytes(w, options.half, tables) for name, w in module.weights.items()}
    places = plan(module, options.chunk_bytes, sizes)
    packages = package_names(1 + max(places.values()))
    made = [WeightTable(request.weights.with_module(module), tables) for _ in packages]
    built: list[Built] = []
    for done, form in enumerate(forms):
        request.progress(f"lower {form.name}", done / len(forms))
        carried: dict[Value, Carried] = {}
        for stage in stages_of(clone(module, form), places):
            built.append(build_stage(module, form, stage, made[stage.package], options, carried))
            carried |= built[-1].carried
    record = rounded(module, options)
    text = print_module(record)
    about = metadata_of(module, options, text, request.source)
    weights: dict[str, dict[str, Any]] = {}
    for at, (name, table) in enumerate(zip(packages, made, strict=True)):
        ours = [b for b in built if b.stage.package == at]
        told = {**about, **order_of(built, packages, at)}
        offsets = write_package(
            request.out / name, ours, table, told, lambda d, ours=ours: describe(d, module, ours), request.progress)
        for weight, parts in table.record(offsets, name).items():
            weights.setdefault(weight, parts)
    functions = {f.name: _record(f, [b for b in built if b.form is f], packages) for f in forms}
    names: dict[str, Any] = {
        "schema_version": 1, "packages": list(packages), "functions": functions, "half": options.half,
        "stateful": options.stateful, "tables": tables, "metadata": about, "weights": weights,
    }
    (request.out / NAMES_FILE).write_text(json.dumps(names), encoding="utf-8")
    each = {name: _bytes(request.out / name) for name in packages}
    remarks = [*_remarks(module, forms, options, each), *padded.remarks,
               *device_remarks(module, built, options, max(each.values()))]
    programs = {name: packages[0] for name in module.functions}
    interface = {
        "functions": {f.name: _interface(module, f, [b for b in built if b.form is f], packages) for f in forms},
        "packages": each, "bytes": sum(each.values()),
    }
    return Emitted(KIND, record, programs, interface, _nodes(built), tuple(remarks))


def _bytes(package: Path) -> int:
    return sum(f.stat().st_size for f in package.rglob("*") if f.is_file())


def _record(form: CallForm, built: Sequence[Built], packages: Sequence[str]) -> dict[str, Any]:
    """Return what a session must know of a function: its stages in the order in which they run."""
    stages = [
        {"package": packages[b.stage.package], "name": b.stage.name, "inputs": dict(b.inputs),
         "outputs": dict(b.outputs), "takes": dict(b.takes), "gives": dict(b.gives), "names": dict(b.names),
         "columns": sorted(b.columns)}
        for b in built
    ]
    return {"function": form.function, "sizes": list(form.sizes), "length": form.length, "rows": form.rows,
            "stages": stages}


def _interface(module: Module, form: CallForm, built: Sequence[Built], packages: Sequence[str]) -> dict[str, Any]:
    """Return what an app needs to know to call one function."""
    function = module.function(form.function)
    types = {p.value.name: str(p.value.type) for p in function.params}
    results = {r.name: str(r.value.type) for r in function.results}
    found: dict[str, Any] = {
        "of": form.function, "lengths": list(form.sizes), "length": form.length, "rows": form.rows,
        "inputs": {name: types[v] for b in built for name, v in b.inputs.items()},
        "outputs": {name: results[v] for b in built for name, v in b.outputs.items()},
    }
    if len(built) > 1:
        found["order"] = [{"package": packages[b.stage.package], "function": b.stage.name, "takes": list(b.takes),
                           "gives": list(b.gives)} for b in built]
    return found


def _nodes(built: Sequence[Built]) -> dict[str, Sequence[str]]:
    """Return node of the IR -> what it became in the function of one token."""
    found: dict[str, Sequence[str]] = {}
    first: dict[str, CallForm] = {}
    for one in built:
        if first.setdefault(one.form.function, one.form) is one.form:
            prefix = "" if one.form.function == "forward" else f"{one.form.function}:"
            found |= {prefix + node: tuple(ops) for node, ops in one.ops.items()}
    return found


def _remarks(
    module: Module, forms: Sequence[CallForm], options: Options, sizes: Mapping[str, int]
) -> list[str]:
    lengths = ", ".join(f"{f.name} {'-'.join(map(str, f.sizes))}" for f in forms)
    found = [f"functions and their lengths: {lengths}; one row a call"]
    if len(sizes) == 1:
        found.append(f"package of {sum(sizes.values()):,} bytes")
    else:
        each = ", ".join(f"{size:,}" for size in sizes.values())
        found.append(f"{len(sizes)} packages of {each} bytes, run in the order that {NAMES_FILE} says")
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
    limit = options.chunk_bytes
    for name, size in sizes.items():
        if limit is not None and size > limit:
            found.append(f"{name} has {size:,} bytes, chunk_bytes is {limit:,}: a block and a table of embeddings are"
                         " never cut, and the program itself takes some")
    return found
