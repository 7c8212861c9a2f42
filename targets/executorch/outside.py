"""Weights in a file of their own (``weights.ptd``) beside the program.

ExecuTorch moves a constant out of the program when its node carries the name of a file: constants that its own kernels
read by a callback of ``to_executorch``, those of XNNPACK by a tag of the node that the delegate looks at.
"""

from __future__ import annotations

from typing import Any

__all__ = ["DATA", "DATA_FILE", "outside_tag", "tag_weights"]

#: what ExecuTorch calls the file, without its ending
DATA = "weights"
DATA_FILE = f"{DATA}.ptd"
#: of the placeholders of our weights: a parameter or a buffer, a product's or a table's
_OURS = ("p_w_", "b_w_", "b_t_")


def tag_weights(program: Any) -> None:
    """Tag the weights of an exported program, so that delegates put them into the file."""
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name.startswith(_OURS):
            node.meta["custom"] = {**(node.meta.get("custom") or {}), "delegate_constant_tag": DATA}


def outside_tag(node: Any) -> str | None:
    """Return the file that a constant of ExecuTorch's own kernels goes to, None for the program itself."""
    return DATA if node.name.startswith(_OURS) else None
