"""What each operation computes, in tables: one function per MIL operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from omnic.targets.coreml.evaluator.call import Call
from omnic.targets.coreml.evaluator.ops import elementwise, indexing, products, reduction, shape, state

__all__ = ["HANDLERS", "Handler"]

Handler = Callable[[Call], Any]
HANDLERS: Mapping[str, Handler] = {
    **elementwise.TABLE, **reduction.TABLE, **shape.TABLE, **indexing.TABLE, **products.TABLE, **state.TABLE,
}
