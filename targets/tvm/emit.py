"""From an IR module to the files of a bundle: ``program.c``, its library, its weights and what sessions must know."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omnic.errors import InputError
from omnic.ir.dims import symbols
from omnic.ir.graph import Function, Module
from omnic.targets.base import EmitRequest, Emitted
from omnic.targets.tvm.facts import session_facts
from omnic.targets.tvm.legalise import legalise, remarks
from omnic.targets.tvm.lower import LOWERINGS
from omnic.targets.tvm.matrices import Matrices
from omnic.targets.tvm.native import build_program, executable_name, loops_text, program_name, write_sources
from omnic.targets.tvm.patterns import AttentionForm, attention_forms
from omnic.targets.tvm.plan import Plan, Planner, held, settled
from omnic.targets.tvm.program import ABOUT_FILE, SOURCE_FILE, WEIGHTS_FILE
from omnic.targets.tvm.shortlists import check_shortlists
from omnic.targets.tvm.source import ProgramText, loop_prototypes, program_source
from omnic.targets.tvm.states import state_forms
from omnic.targets.tvm.tail.loops import Loop
from omnic.targets.tvm.text import ident
from omnic.targets.tvm.tuning.lookup import tunings_of
from omnic.targets.tvm.weights_file import write_table, write_weights

__all__ = ["KIND", "emit", "plans_of"]

KIND = "native"


def plans_of(module: Module, matrices: Matrices, functions: Mapping[str, Function] | None = None) -> list[Plan]:
    """Return the plans of a legalised module: of each function one for single tokens and one for longer calls."""
    found: list[Plan] = []
    for name, function in (functions or module.functions).items():
        forms = attention_forms(module.function(name))
        base = ident(name)
        if "T" in module.dims and "R" in module.dims:
            found.append(plan_of(module, function, forms, matrices, f"{base}_step", {"T": 1, "R": 1}))
            if not _longer(module, function):
                continue
        found.append(plan_of(module, function, forms, matrices, f"{base}_chunk", {}))
    return found


def _longer(module: Module, function: Function) -> bool:
    """Whether a function takes calls of more than a token a row."""
    used = {name for value in function.values() for size in value.type.shape for name in symbols(size)}
    return any(name in used and module.dims[name].high > 1 for name in ("T", "R"))


def plan_of(
    module: Module, function: Function, forms: Mapping[str, AttentionForm], matrices: Matrices, name: str,
    fixed: Mapping[str, int],
) -> Plan:
    """Return the plan of one function with the dims in ``fixed`` settled."""
    small = settled(function, fixed)
    if fixed:
        forms = attention_forms(small)
    return Planner(module, small, forms, matrices, name, fixed, LOWERINGS).run()


def emit(request: EmitRequest) -> Emitted:
    """Write the program, its weights and their table.

    Raises:
        InputError: the module holds what the target cannot honour.
        MissingExtraError: there is no C compiler.
    """
    options, out = request.options, request.out
    module = legalise(request.module, options)
    if "forward" not in module.functions:
        raise InputError("target tvm compiles models with a function @forward")
    matrices = Matrices(module, tunings=tunings_of(options))
    plans = plans_of(module, matrices)
    if matrices.loops and any(tunings.loops for tunings in matrices.tunings):
        from omnic.targets.tvm.tuning.loops import traced

        matrices.loops = traced(matrices.loops, matrices.tunings)
    states, row_bytes = state_forms(module)
    check_shortlists(module, request.weights.with_module(module))
    digest = write_weights(out / WEIGHTS_FILE, matrices, request.weights.with_module(module), request.progress)
    write_table(out, matrices)
    text = ProgramText(
        module, int(options["batch"]), plans, matrices, states, row_bytes, matrices.layout().bytes, digest,
        declarations(matrices, options["emit"] == "c"),
    )
    (out / SOURCE_FILE).write_text(program_source(text), encoding="utf-8")
    programs = compile_program(out, module.name, options, request, tuple(matrices.loops.values()))
    about = describe(module, module.functions, plans, row_bytes, str(options["level"]))
    about["tuning"] = [entry for tunings in matrices.tunings for entry in tunings.about()]
    (out / ABOUT_FILE).write_text(json.dumps(about), encoding="utf-8")
    nodes = {f"{plan.name}:{scope}": tuple(ops) for plan in plans for scope, ops in plan.scopes.items()}
    files = {name: programs for name in module.functions}
    said = (*remarks(module), *(line for tunings in matrices.tunings for line in tunings.remarks()))
    return Emitted(KIND, module, files, {"level": options["level"]}, nodes, said)


def declarations(matrices: Matrices, as_c: bool) -> str:
    """Return what ``program.c`` says of generated loops: their C, or only how they are called."""
    if not matrices.loops:
        return ""
    return loops_text(tuple(matrices.loops.values())) if as_c else loop_prototypes(matrices)


def compile_program(
    out: Path, model: str, options: Mapping[str, Any], request: EmitRequest, loops: Sequence[Loop]
) -> str:
    """Compile what was written, or write the sources it is compiled with; return the file that a session opens."""
    if options["emit"] == "c":
        write_sources(out)
        return SOURCE_FILE
    request.progress("compile", 0.0)
    build_program(out / SOURCE_FILE, out / program_name(), loops=loops)
    if options["triple"] != "host":
        request.progress(f"link for {options['triple']}", 0.0)
        triple, level = str(options["triple"]), str(options["level"])
        build_program(out / SOURCE_FILE, out / executable_name(model, triple), triple, True, loops, level)
    return program_name()


def describe(
    module: Module, functions_of: Mapping[str, Function], plans: list[Plan], row_bytes: int, level: str
) -> dict[str, Any]:
    """Return what a session has to know; ``functions_of`` have their dims unsettled."""
    functions: dict[str, Any] = {}
    marks: dict[str, None] = {}
    for plan in plans:
        for step in plan.steps:
            marks.setdefault(step.node.scope if step.node is not None else "results")
        name = plan.function.name
        original = functions_of[name]
        functions[name] = {
            "inputs": [
                {"name": p.value.name, "dtype": held(p.value.type.dtype).value,
                 "shape": [_dim(d) for d in p.value.type.shape]}
                for p in original.params
                if p.state is None or p.state not in module.states
            ],
            "results": [
                {"name": r.name, "value": r.value.name, "dtype": held(r.value.type.dtype).value,
                 "shape": [_dim(d) for d in r.value.type.shape]}
                for r in original.results
                if r.state is None
            ],
            "states": [p.state for p in original.params if p.state in module.states],
        }
    about = {"functions": functions, "row_bytes": row_bytes, "level": level, "marks": list(marks)}
    return about | ({"session": session_facts(module)} if _speaks(module) else {})


def _speaks(module: Module) -> bool:
    """Whether sessions can run it: it says logits of calls of tokens."""
    return {"B", "T"} <= set(module.dims) and any(r.name == "logits" for r in module.function().results)


def _dim(size: Any) -> int | str:
    return size if isinstance(size, int) else str(size)
