"""Lowering to XNNPACK without the passes that find nothing: most of the time of a lowering is spent in them.

XNNPACK runs seventeen passes over each of its parts of a program, and nearly each of them traces the part again,
whether it found something or not; two of them first lower a pattern of their own.  Here a pass is left out where the
operators that it looks for are not in the part.  In the same way a method is decomposed once, not two or three times.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

__all__ = ["decomposed", "partitioner", "without_idle_passes"]


def _has(*names: str) -> Callable[[Any, str], bool]:
    return lambda node, name: any(part in name for part in names)


def _long(node: Any, name: str) -> bool:
    """Whether a node joins more than XNNPACK joins at once."""
    return name == "aten.cat.default" and len(node.args[0]) > 5


def _constant(node: Any, name: str) -> bool:
    return not node.all_input_nodes


_IMAGES = _has("conv", "pool", "upsample", "prelu", "batch_norm", "pixel")
#: pass of ExecuTorch 1.5.1 backends/xnnpack/_passes -> whether a node is one that it looks for; others always run
LOOKS_FOR: dict[str, Callable[[Any, str], bool]] = {
    "ChannelsLastTaggedReshapePass": _IMAGES,
    "ConstPropPass": _constant,
    "Conv1dUnsqueezePass": _IMAGES,
    "ConvertToLinearPass": _has("addmm", "aten.mm."),
    "ConvertToSDPAPass": _has("scaled_dot_product_attention"),
    "ConvertToUpsampleBilinear2d": _has("upsample", "aten.index.Tensor"),
    "DecomposeBatchNorm": _IMAGES,
    "DecomposeConcatenate": _long,
    "DimOrderOpsRevertPass": _has("dim_order"),
    "FuseActivationPass": _has("relu", "hardtanh", "clamp"),
    "FuseBatchNormPass": _IMAGES,
    "InsertPadQDQPass": _has("constant_pad"),
    "PReLUReshapePass": _IMAGES,
    "PropagateCustomMetaPass": _has("quantize"),
    "RemoveGetItemPass": _has("max_pool2d", "aten.max.dim"),
    "RemoveRedundantCopyPass": _has("_to_copy"),
}


def _finds(kind: type, graph: Any) -> bool:
    looks_for = LOOKS_FOR.get(kind.__name__)
    if looks_for is None:
        return True
    called = (n for n in graph.nodes if n.op == "call_function")
    return any(looks_for(n, str(getattr(n.target, "__name__", n.target))) for n in called)


@contextlib.contextmanager
def without_idle_passes() -> Iterator[None]:
    """Leave out XNNPACK's passes that would find nothing, while the context is open."""
    from executorch.backends.xnnpack import xnnpack_preprocess as module

    whole: Any = module.XNNPACKPassManager

    def shortened(program: Any, passes: Any = None) -> Any:
        manager = whole(program, passes)
        manager.passes = [p for p in manager.passes if _finds(p, program.graph)] or manager.passes[:1]
        return manager

    module.XNNPACKPassManager = shortened  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        module.XNNPACKPassManager = whole  # type: ignore[misc]


def decomposed(program: Any, preserved: Collection[Any]) -> Any:
    """Return an exported program without mutations and composite operators, traced once instead of two or three times.

    ``to_edge_transform_and_lower`` first removes mutations and then, where it finds some, decomposes operators; each
    traces the program anew.  Here both are done at once, and the program given back has nothing more to decompose.

    Args:
        program: as ``torch.export`` gives it.
        preserved: operators that stay whole.
    """
    from executorch.exir.program._program import _default_decomposition_table

    table = _default_decomposition_table()
    for op in preserved:
        table.pop(op, None)
    done = program.run_decompositions(table)
    again = done.run_decompositions
    # An empty table asks for mutations to be removed, and there are none.
    done.run_decompositions = lambda table=None, **options: again(table, **options) if table else done
    return done


def partitioner() -> Any:
    """Return XNNPACK's partitioner, which says that it takes operators whole without asking for each when it does."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    class Partitioner(XnnpackPartitioner):
        def ops_to_not_decompose(self, ep: Any) -> tuple[Any, Any]:
            wanted, takes = super().ops_to_not_decompose(ep)
            assert takes is not None
            named = set(wanted)
            nodes = [n for n in ep.graph.nodes if n.op == "call_function" and n.target in named]
            return (wanted, None) if all(takes(n) for n in nodes) else (wanted, takes)

    return Partitioner()
