"""The reference: what a module means, computed in numpy (f64, or f32 on request)."""

from omnic.ir.reference.interpreter import Interpreter, Numbers, Routing, Trace, WeightReader, empty_states
from omnic.ir.reference.session import ReferenceExecutor, ReferenceSession

__all__ = ["Interpreter", "Numbers", "ReferenceExecutor", "ReferenceSession", "Routing", "Trace", "WeightReader",
           "empty_states"]
