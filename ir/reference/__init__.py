"""The reference: what a module means, computed in numpy (f64, or f32 on request)."""

from omnic.ir.reference.interpreter import Interpreter, Numbers, WeightReader, empty_states

__all__ = ["Interpreter", "Numbers", "WeightReader", "empty_states"]
