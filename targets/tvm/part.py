"""Values inside a function: the part between given and wanted values, planned and compiled over the saved weights.

A program shows what its functions return and nothing between.  So the part is planned anew from the bundle's IR, its C
compiled (and kept in the user's cache folder), and run on the file of weights that the program itself reads.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.errors import InputError
from omnic.ir.dims import evaluate
from omnic.ir.graph import Function, Module
from omnic.targets.cut import module_of, part_of
from omnic.targets.tvm.emit import declarations, describe, plan_of
from omnic.targets.tvm.matrices import Matrices
from omnic.targets.tvm.native import cached_program
from omnic.targets.tvm.patterns import attention_forms
from omnic.targets.tvm.program import ABOUT_FILE, WEIGHTS_FILE, Program, zero_pages
from omnic.targets.tvm.schedule import needed_inputs
from omnic.targets.tvm.source import ProgramText, program_source
from omnic.targets.tvm.states import StateForm, state_forms
from omnic.targets.tvm.weights_file import layout_of

__all__ = ["run_part"]


def run_part(
    bundle: Path, inputs: Mapping[str, NDArray[Any]], names: Sequence[str], function: str
) -> dict[str, NDArray[np.float32]]:
    """Run the part of ``function`` between ``inputs`` and ``names``; states that are not given are empty.

    Raises:
        InputError: a name is not a value of the function, or the inputs do not determine it.
    """
    module = module_of(bundle)
    whole = module.function(function)
    part, given_states = part_of(whole, inputs, names)
    sizes = _sizes(module, part, inputs)
    forms = {n.name: f for n, f in _forms(whole, part).items()}
    matrices = Matrices(module, layout_of(bundle))
    plan = plan_of(module, part, forms, matrices, "part", {})
    states, row_bytes = state_forms(module)
    with (bundle / WEIGHTS_FILE).open("rb") as file:
        digest = file.read(80)[16:80].decode("ascii")
    text = ProgramText(
        module, module.dims["B"].high if "B" in module.dims else 1, [plan], matrices, states, row_bytes,
        matrices.layout().bytes, digest, declarations(matrices, False),
    )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "program.c"
        source.write_text(program_source(text), encoding="utf-8")
        library = cached_program(source, tuple(matrices.loops.values()))
    level = json.loads((bundle / ABOUT_FILE).read_text(encoding="utf-8"))["level"]
    program = Program(bundle, 1, library, describe(module, {part.name: part}, [plan], row_bytes, level))
    block = zero_pages(sizes["B"] * row_bytes)
    for name, state in given_states.items():
        _fill(next(s for s in states if s.name == state), block, np.asarray(inputs[name]))
    bound = program.bind(plan.function.name, sizes["B"], sizes["T"], sizes["R"])
    for name, array in bound.inputs.items():
        array[...] = np.asarray(inputs[name])
    program.run(bound, block.ctypes.data)
    return {name: array.astype(np.float32) for name, array in bound.outputs.items()}


def _forms(whole: Function, part: Function) -> dict[Any, Any]:
    """Return how attention of the part runs on its states.

    Raises:
        InputError: a value that it needs is neither given nor in the part.
    """
    known = {p.value for p in part.params} | {v for n in part.nodes for v in n.results}
    forms = attention_forms(whole)
    found: dict[Any, Any] = {}
    for node in part.nodes:
        form = forms.get(node.name)
        if form is None:
            continue
        missing = [v.name for v in needed_inputs(node, forms) if not v.weight and v not in known]
        if missing:
            raise InputError(
                f"%{node.results[0].name} is attention over states, and {', '.join(missing)} is not in the part",
                "give the state, start and length, not what cache_read makes of them",
            )
        found[node] = form
    return found


def _sizes(module: Module, part: Function, inputs: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Return the sizes of this call."""
    sizes = {"B": 1, "T": 1, "R": 1}
    for param in part.params:
        if param.value.name not in inputs or param.state is not None:
            continue
        shape = np.shape(inputs[param.value.name])
        for size, wanted in zip(shape, param.value.type.shape, strict=True):
            if not isinstance(wanted, int) and str(wanted) in module.dims:
                sizes[str(wanted)] = size
    for param in part.params:
        if param.value.name in inputs and param.state is None:
            shape = tuple(evaluate(d, sizes) for d in param.value.type.shape)
            given = np.shape(inputs[param.value.name])
            if shape != given:
                raise InputError(f"%{param.value.name} is {list(shape)}, not {list(given)}")
    return sizes


def _fill(form: StateForm, block: NDArray[np.uint8], array: NDArray[Any]) -> None:
    """Write a given state of plain numbers."""
    if form.group:
        raise InputError(f"the state '{form.name}' holds codes and cannot be given", "leave it out: it is empty then")
    plain = form.plain(block, len(array))
    if form.type == "BF16":
        plain[...] = (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    else:
        plain[...] = array


