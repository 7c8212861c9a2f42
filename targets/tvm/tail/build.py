"""Loops through TVM: TIR of each, then objects by its LLVM for any platform, or C.

TVM's own calling convention (packed arguments, a runtime) is not used: the functions take plain pointers and B, T, R.
Floating-point sums keep their order, so that a row does not depend on the call it is in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tvm
import tvm.s_tir.transform as s_tir_transform
import tvm.tirx.transform as tirx_transform
from tvm import te, tirx
from tvm.ir import PointerType, PrimType

from omnic.errors import InternalError
from omnic.ir.dims import Dim
from omnic.targets.tvm.tail.expressions import TYPES, Reader, element, index_of
from omnic.targets.tvm.tail.loops import Apply, Loop
from omnic.targets.tvm.tail.schedules import scheduled
from omnic.targets.tvm.views import View

__all__ = ["c_text", "function_of", "object_file"]

_LLVM = {"linux-gnu": "linux-gnu", "linux-musl": "linux-musl", "windows-gnu": "windows-gnu", "macos": "apple-macos"}


def object_file(loops: Sequence[Loop], triple: str, out: Path) -> None:
    """Write an object with every loop for a platform."""
    arch, _, system = triple.partition("-")
    target = tvm.target.Target({"kind": "llvm", "mtriple": f"{arch}-{_LLVM[system]}"})
    _built(loops, target, triple).write_to_file(str(out), "o")


def c_text(loops: Sequence[Loop]) -> str:
    """Return C of every loop, as static functions without headers of TVM's."""
    text = _built(loops, tvm.target.Target({"kind": "c"})).inspect_source()
    body = text[text.index("TVM_DLL int32_t") :]
    body = re.sub(r'#ifdef __cplusplus\nextern "C"\n#endif\n', "", body)
    body = re.sub(r"^TVM_DLL (?!int32_t)[^\n]*;\n", "", body, flags=re.MULTILINE)
    return body.replace("TVM_DLL ", "static ").rstrip() + "\n"


def _built(loops: Sequence[Loop], target: Any, triple: str = "") -> Any:
    functions = {loop.name: _ordered(loop, triple).with_attr("global_symbol", loop.name) for loop in loops}
    module = tirx_transform.BindTarget(target.with_host(target))(tvm.IRModule(functions))
    module = tvm.ir.transform.Sequential(_passes())(module)
    module = tvm.IRModule({loop.name: _unpacked(module[loop.name], loop.name) for loop in loops})
    module = tvm.ir.transform.Sequential([tirx_transform.LowerTVMBuiltin(), tirx_transform.LowerIntrin()])(module)
    return tvm.get_global_func(f"target.build.{target.kind.name}")(module, target)


def _passes() -> list[Any]:
    """Return TVM's own lowering up to the point where it would pack the arguments."""
    s, t = s_tir_transform, tirx_transform
    return [
        s.CanonicalizeLoop(), s.LowerCrossThreadReduction(), s.LowerInitBlock(),
        s.PlanAndUpdateBufferAllocationLocation(), s.ConvertBlocksToOpaque(), s.CompactBufferAllocation(),
        s.LowerMatchBuffer(), s.StmtSimplify(), s.LowerOpaqueBlock(), t.FlattenBuffer(), t.NarrowDataType(32),
        s.LoopPartition(), t.VectorizeLoop(True), t.StorageRewrite(), s.HoistIfThenElse(), t.UnrollLoop(),
        t.StmtSimplify(), t.RemoveNoOp(), s.RewriteUnsafeSelect(), t.CommonSubexprElim(),
    ]


def _unpacked(function: Any, name: str) -> Any:
    """Return a function of plain pointers; it returns 0."""
    params: list[Any] = []
    declared: list[Any] = []
    for param in function.params:
        if type(param.ty).__name__ != "BufferType":
            params.append(param)
            continue
        dtype = str(getattr(param.ty.dtype, "dtype", param.ty.dtype))
        pointer = tirx.Var(f"{param.name}_p", PointerType(PrimType(dtype), "global"))
        params.append(pointer)
        declared.append(tirx.DeclBuffer(param, data=pointer))
    body = tirx.SeqStmt([*declared, function.body, tirx.Return(tirx.const(0, "int32"))])
    node: Any = "default"
    for key, value in (("device_type", 1), ("device_id", 0)):
        body = tirx.AttrStmt(node, key, tirx.const(value, "int32"), body)
    made = tirx.PrimFunc(params, body, ret_type=PrimType("int32"), attrs=function.attrs)
    return made.with_attr("global_symbol", name).with_attr("tirx.noalias", True).with_attr("calling_conv", 0)


def _ordered(loop: Loop, triple: str) -> Any:
    """Return the TIR of a loop in the order that was measured to be fast on a platform, if one was."""
    made = function_of(loop)
    return scheduled(made, json.loads(loop.traces[triple])) if triple in loop.traces else made


def function_of(loop: Loop) -> Any:
    """Return the TIR of a loop: arguments are the inputs, the output, B, T and R."""
    symbols = {name: tirx.Var(name, "int64") for name in ("B", "T", "R")}
    holders = [
        te.placeholder((_extent(view, symbols),), dtype=TYPES[view.dtype], name=f"a{at}")
        for at, view in enumerate(loop.inputs)
    ]
    places = {view: holder for view, holder in zip(loop.inputs, holders, strict=True)}

    def read(view: View) -> Callable[..., Any]:
        holder = places[view]
        strides = [index_of(s, symbols) for s in view.strides]
        return lambda index: holder[sum((i * s for i, s in zip(index, strides, strict=True)), tirx.const(0, "int64"))]

    reader = Reader(read, symbols)
    shape = [index_of(d, symbols) for d in loop.output.shape] or [tirx.const(1, "int64")]
    made: Any = te.compute(shape, lambda *index: _root(loop.root, index, reader), name="y")
    return te.create_prim_func([*holders, made, *symbols.values()])


def _root(root: Apply, index: Sequence[Any], reader: Reader) -> Any:
    whole = [tirx.Cast("int64", i) for i in index] if root.shape else []
    return element(root, whole, reader)


def _extent(view: View, symbols: Any) -> Any:
    """Return how many elements lie between the first and the last one of a view."""
    total: Dim = 1
    for size, stride in zip(view.shape, view.strides, strict=True):
        total = total + (size - 1) * stride
    if isinstance(total, int) and total < 1:
        raise InternalError("target tvm: a loop reads an empty view")
    return index_of(total, symbols)
