"""``omnic check FILE...``: whether specs and IR texts are right, and whether two specs are the same."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from omnic.errors import Diagnostic, DiagnosticError, InputError, MissingExtraError, OmnicError, Span

if TYPE_CHECKING:
    from omnic.spec import Spec

NAME = "check"
HELP = "check specs and IR texts; all that is wrong is reported at once"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE",
        help="a spec (.yaml, .yml, .omnic), a preset's name, an IR text (.ir), or an exported decoder (.onnx)",
    )
    parser.add_argument("--same", action="store_true", help="exit 1 unless all specs mean the same model")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Check every file; raise what is wrong with all of them as one error."""
    if args.same and (len(args.files) < 2 or any(file.endswith((".ir", ".onnx")) for file in args.files)):
        raise InputError("--same compares two or more specs", "omnic check a.yaml b.omnic --same")
    wrong: list[Diagnostic] = []
    right: list[dict[str, Any]] = []
    specs: list[Spec] = []
    for file in args.files:
        try:
            if file.endswith(".ir"):
                right.append(_check_ir(file))
            elif file.endswith(".onnx"):
                right.append(_check_onnx(file))
            else:
                spec, report = _check_spec(file)
                specs.append(spec)
                right.append(report)
        except DiagnosticError as error:
            wrong += error.diagnostics
        except OmnicError as error:
            wrong.append(Diagnostic(f"{file}: {error.message}", hint=error.hint))
    if not args.json:
        _print(right)
    if wrong:
        raise DiagnosticError(dict.fromkeys(wrong))
    differences = _differences(specs) if args.same else []
    if args.json:
        _print_json(right, args.same, differences)
    elif args.same:
        _print_same(specs, differences)
    return 1 if differences else 0


def _check_ir(file: str) -> dict[str, Any]:
    from pathlib import Path

    from omnic.errors import InternalError
    from omnic.ir.equal import same_module
    from omnic.ir.text import parse_module, print_module
    from omnic.ir.verify import verify_text

    try:
        text = Path(file).read_bytes().decode("utf-8")
    except OSError as error:
        raise DiagnosticError([Diagnostic(f"{file}: cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError:
        raise DiagnosticError([Diagnostic("the file is not UTF-8 text", Span(file, 1, 1))]) from None
    module = verify_text(text, file)
    changed = same_module(module, parse_module(print_module(module), file))
    if changed:
        raise InternalError(f"{file} does not survive printing and reading: {changed[0]}")
    nodes = sum(len(function.nodes) for function in module.functions.values())
    return {"file": file, "kind": "ir", "module": module.name, "functions": len(module.functions), "nodes": nodes}


def _check_onnx(file: str) -> dict[str, Any]:
    from omnic.models.onnx import import_onnx

    module, _ = import_onnx(file)
    return {"file": file, "kind": "onnx", "module": module.name, "functions": len(module.functions),
            "nodes": len(module.function().nodes), "states": len(module.states)}


def _check_spec(file: str) -> tuple[Spec, dict[str, Any]]:
    from omnic.spec import load_spec
    from omnic.spec.sizes import count_parameters

    spec = load_spec(file)
    remarks = _check_targets(spec)
    return spec, {
        "file": spec.file,
        "kind": "spec",
        "model": spec.model,
        "layers": len(spec.layers()),
        "parameters": count_parameters(spec).total,
        "digest": spec.digest,
        "remarks": remarks,
    }


def _check_targets(spec: Spec) -> list[str]:
    """Check the options of the targets that are installed; return a remark for each that is not.

    Raises:
        DiagnosticError: a target does not take its options.
    """
    if not spec.targets:
        return []
    from omnic.errors import nearest
    from omnic.targets import get_target, target_names

    known, remarks, wrong = target_names(), list[str](), list[Diagnostic]()
    for name, options in spec.targets.items():
        node = spec.tree.find(("targets", name))
        if name not in known:
            near = nearest(name, known)
            guess = f"; did you mean '{near}'?" if near else ""
            remarks.append(f"the target '{name}' is not part of this omnic: its options are not checked{guess}")
            continue
        try:
            get_target(name).options(options)
        except MissingExtraError as error:
            remarks.append(f"{error.message}: the options of the target '{name}' are not checked")
        except InputError as error:
            wrong.append(Diagnostic(error.message, node.place if node is not None else None, error.hint))
    if wrong:
        raise DiagnosticError(wrong)
    return remarks


def _differences(specs: list[Spec]) -> list[dict[str, Any]]:
    """Return each value in which a later spec differs from the first, with both places."""
    found: list[dict[str, Any]] = []
    first, *others = specs
    for other in others:
        for path, left, right in _unlike(first.meaning(), other.meaning(), ()):
            found.append({"key": path, "files": [first.file, other.file], "values": [left, right]})
    return found


def _unlike(left: Any, right: Any, path: tuple[str | int, ...]) -> Iterable[tuple[str, Any, Any]]:
    from omnic.spec.tree import path_text

    if isinstance(left, dict) and isinstance(right, dict):
        for key in dict.fromkeys([*left, *right]):
            yield from _unlike(left.get(key), right.get(key), (*path, key))
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for index, pair in enumerate(zip(left, right, strict=True)):
            yield from _unlike(*pair, (*path, index))
    elif left != right:
        yield path_text(path), left, right


def _print(right: list[dict[str, Any]]) -> None:
    for report in right:
        if report["kind"] in ("ir", "onnx"):
            print(f"{report['file']}: ok: module {report['module']}, {report['nodes']} nodes")
            continue
        size = f"{report['parameters'] / 1e6:,.2f} M parameters"
        print(f"{report['file']}: ok: {report['model']}, {report['layers']} layers, {size}")
        for remark in report["remarks"]:
            print(f"  note: {remark}")


def _print_same(specs: list[Spec], differences: list[dict[str, Any]]) -> None:
    for item in differences:
        (one, other), (left, right) = item["files"], item["values"]
        print(f"{item['key']}: {_shown(left)} in {one}, {_shown(right)} in {other}")
    if not differences:
        print(f"the same model: {', '.join(spec.file for spec in specs)}")


def _shown(value: Any) -> str:
    import json

    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _print_json(right: list[dict[str, Any]], same: bool, differences: list[dict[str, Any]]) -> None:
    import json

    body: dict[str, Any] = {"files": right}
    if same:
        body |= {"same": not differences, "differences": differences}
    print(json.dumps(body, indent=2))
