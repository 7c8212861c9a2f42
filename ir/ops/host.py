"""The one way out of a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omnic.ir.op import Array, Attr, In, ShapeError, register
from omnic.ir.ops.composite import Composite
from omnic.ir.types import TensorType

if TYPE_CHECKING:
    from omnic.ir.builder import FunctionBuilder
    from omnic.ir.graph import Value


@register
class HostFetch(Composite):
    """slots[...] = the place where the host holds item ids[...] of ``layer`` once the call returns.

    The program hands item numbers to the host, which brings the items (experts, or blocks of keys and values) into
    memory and answers with slot numbers.  With as many slots as items the answer is the identity: what the reference
    and the decomposition do.  A program is right when its result does not depend on how many slots there are.
    """

    name = "host.fetch"
    category = "host"
    source = "definition"
    inputs = (In("ids", "index", doc="[...] item numbers, each at least 0"),)
    attrs = (
        Attr("kind", "str", choices=("expert", "kv_block"), doc="what is fetched"),
        Attr("layer", "int", doc="whose"),
    )
    outputs = ("slots",)

    def infer(self, *types: Any, **attrs: Any) -> TensorType:
        """The type of ids."""
        if attrs["layer"] < 0:
            raise ShapeError(f"host.fetch: layer {attrs['layer']} is negative")
        return types[0]

    def reference(self, *arrays: Any, **attrs: Any) -> Array:
        """The identity."""
        return arrays[0]

    def decompose(self, b: FunctionBuilder, *values: Any, **attrs: Any) -> Value:
        """The identity."""
        return values[0]
