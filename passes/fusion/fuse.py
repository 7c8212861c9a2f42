"""The pass ``attention-fusion``: what an exporter wrote out becomes attention, norms, rope and experts again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from omnic.ir.graph import Module
from omnic.ir.rewrite import Remark
from omnic.passes.base import NOTHING, PassContext, PassResult, register_pass
from omnic.passes.fusion.attention import ATTENTION
from omnic.passes.fusion.ffn import FFN
from omnic.passes.fusion.linear import BIAS, HEADS, LINEAR
from omnic.passes.fusion.look import Fusion, fuse, merge_equal
from omnic.passes.fusion.mla import MLA
from omnic.passes.fusion.moe import MOE
from omnic.passes.fusion.norms import NORMS
from omnic.passes.fusion.packed import PACKED
from omnic.passes.fusion.products import PRODUCTS
from omnic.passes.fusion.rope import ROPE
from omnic.passes.fusion.tidy import TIDY

__all__ = ["AttentionFusion", "FUSIONS"]

#: what is looked for, in order; an entry may count on what stands before it
FUSIONS: tuple[Fusion, ...] = (
    *TIDY, *PRODUCTS, *NORMS, *FFN, *ROPE, *ATTENTION, *TIDY, *MLA, *LINEAR, *MOE, *BIAS, *PACKED, *HEADS, *TIDY,
)


@register_pass
@dataclass(frozen=True)
class AttentionFusion:
    """Fold core ops into the composites that they spell out.

    1. Layouts, constants and powers are brought to one form each; the sum of two products of queries and keys becomes
       one product of longer ones.
    2. ``x * rsqrt(mean(x * x) + eps)`` is ``rms_norm``; of a centred x it is ``layer_norm``; weight and bias go in.
    3. An elementwise piece with the values of an activation is ``act``; times a second value it is ``gated_act``, with
       the limits, silu's alpha and the number added to the second value that the two follow.
    4. A rotation of pairs by angles that are functions of integer positions is ``rope``, if the inverse frequencies are
       those of one of its scalings.
    5. Two products around a softmax are ``attention``: scales, one softcap, masks and sinks between them, heads
       repeated per group at most, and a mask that follows attention's rule of visibility.
    6. Attention over a latent is ``mla``, naive or absorbed.
    7. A product with a two-dim weight is ``linear``, rows of one at tokens ``embedding``, a product that leaves the
       function ``lm_head``; a weight that holds q, k and v (or gate and up) is one weight for each.
    8. Shares of experts that follow a rule of ``router``, times the experts' products, are ``router`` and ``moe``.

    What nearly matches stays as it is and leaves a remark: the rule that failed, and the node at which it did.

    Given::

        %q: f32[B, 2, T, 8], %k: f32[B, 1, T, 8], %v: f32[B, 1, T, 8]
        %kt = transpose(%k) {perm = [0, 1, 3, 2]} : f32[B, 1, 8, T]
        %s = matmul(%q, %kt) : f32[B, 2, T, T]
        %c = constant() {values = [0.25], shape = [], type = f32} : f32[]
        %scaled = mul(%s, %c) : f32[B, 2, T, T]
        %i = iota() {size = [T]} : i64[T]
        %row = reshape(%i) {shape = [T, 1]} : i64[T, 1]
        %seen = le(%i, %row) : bool[T, T]
        %low = constant() {values = [-1e9], shape = [], type = f32} : f32[]
        %masked = where(%seen, %scaled, %low) : f32[B, 2, T, T]
        %p = softmax(%masked) : f32[B, 2, T, T]
        %y = matmul(%p, %v) : f32[B, 2, T, 8]

    Result::

        %iota = iota() {size = [T]} : i64[T]
        %q_index = broadcast(%iota) {shape = [B, T]} : i64[B, T]
        %y = attention(%q, %k, %v, %q_index, %q_index) {scale = 0.25} : f32[B, 2, T, 8]

    Attributes:
        exact: refuse frequencies and constants of an activation that an exporter rounded to f32; by default they
            are taken for what they were rounded from, which moves logits by about 1e-6 of their size.
    """

    name: ClassVar[str] = "attention-fusion"
    exact: bool = False

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the module with every function fused.

        The context's weights, when lent, are read for tables of cosines and small constants.
        """
        fused, remarks = module, list[Remark]()
        for name in module.functions:
            fused, found = fuse(fused, fused.function(name), FUSIONS, context.weights, self.exact)
            fused = fused.with_function(merge_equal(fused.function(name)))
            remarks.extend(dict.fromkeys(found))
        changed = any(r.message.startswith("applied") for r in remarks)
        if not changed:
            return PassResult(module, False, tuple(remarks))
        idle = _used(module) - _used(fused)
        kept = {name: w for name, w in fused.weights.items() if name not in idle}
        return PassResult(replace(fused, weights=kept), True, tuple(remarks))


def _used(module: Module) -> set[str]:
    """Return the weights that some function reads: derived ones take the place of others, which then go."""
    return {name for function in module.functions.values() for name in function.weights()}
