"""An evaluator of saved ML packages in numpy: what a package computes, known where Core ML does not run.

It reads the package's own bytes.  Arithmetic: a value of type fp16 is computed in f32 from its fp16 operands, sums
included, and rounded to fp16 once, after each operation; a value of type fp32 is computed in f32 and its sums over
dims (reductions, softmax, norms) in f64, products of matrices in f32.  So a fused operation rounds once, as Core ML's
own is free to do; what Core ML's kernels do between is not modelled.
"""

from __future__ import annotations

from omnic.targets.coreml.evaluator.program import Function, Program, ValueInfo
from omnic.targets.coreml.evaluator.stored import Stored
from omnic.targets.coreml.evaluator.types import Type

__all__ = ["Function", "Program", "Stored", "Type", "ValueInfo"]
