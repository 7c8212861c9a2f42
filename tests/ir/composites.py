"""One composite as a module: run as it is, and run decomposed."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnic.ir.builder import ModuleBuilder
from omnic.ir.decompose import decompose
from omnic.ir.dims import Dim, DimRange, symbol
from omnic.ir.graph import Module
from omnic.ir.op import all_ops, find_op
from omnic.ir.reference import Interpreter
from omnic.ir.types import DType, TensorType


def module_of(op: str, arrays: list[Any], symbols: dict[str, int], **attrs: Any) -> Module:
    """Return a module whose @forward applies ``op`` to parameters shaped like ``arrays`` (None = absent).

    A dim whose size is a value of ``symbols`` becomes that symbol, so decompositions see symbolic dims.
    """
    names = {size: name for name, size in symbols.items()}
    builder = ModuleBuilder("one", {name: DimRange(1, 4096) for name in symbols})
    f = builder.function("forward")
    values = []
    for index, array in enumerate(arrays):
        if array is None:
            values.append(None)
            continue
        shape: tuple[Dim, ...] = tuple(symbol(names[s]) if s in names else s for s in array.shape)
        element = DType.I64 if array.dtype.kind == "i" else DType.F32
        values.append(f.param(f"p{index}", TensorType(element, shape)))
    for name, value in zip(find_op(op).outputs, f.emit(op, *values, **attrs), strict=False):
        f.result(name, value)
    return builder.build()


def inputs_of(arrays: list[Any]) -> dict[str, Any]:
    return {f"p{i}": a for i, a in enumerate(arrays) if a is not None}


def is_core(module: Module) -> bool:
    ops = all_ops()
    return all(not ops[n.op].composite for f in module.functions.values() for n in f.nodes)


def check_decomposition(op: str, arrays: list[Any], symbols: dict[str, int], tolerance: float = 1e-9, **attrs: Any):
    """Check that the op and its decomposition agree, and that the shape rule tells the truth; return the results."""
    module = module_of(op, arrays, symbols, **attrs)
    inputs = inputs_of(arrays)
    whole = Interpreter(module, {}).run(inputs)
    split = decompose(module)
    assert is_core(split)
    params = {p.value for p in split.function().params}
    for before, after in zip(module.function().results, split.function().results, strict=True):
        assert after.value in params or after.value.name == before.value.name
    parts = Interpreter(split, {}).run(inputs)
    for result in module.function().results:
        from omnic.ir.dims import evaluate

        expected = tuple(evaluate(d, symbols) for d in result.value.type.shape)
        assert whole[result.name].shape == expected
        assert parts[result.name].shape == expected
        scale = max(1.0, float(np.max(np.abs(whole[result.name]), initial=0.0)))
        np.testing.assert_allclose(parts[result.name], whole[result.name], rtol=0, atol=tolerance * scale)
    return whole
