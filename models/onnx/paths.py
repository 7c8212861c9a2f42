"""Where in the exported model a node comes from, by what each exporter writes down."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["module_path"]

_SCOPES = re.compile(r"'([^']*)'")


def module_path(node: Any) -> str:
    """Return the module path of an ``onnx_ir`` node, such as ``model.layers.0.self_attn.q_proj``, or "".

    torch's dynamo exporter keeps it in the metadata; tracing and the builder of onnxruntime-genai write it into
    the node's name.
    """
    held = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if held:
        scopes = _SCOPES.findall(held)
        return str(scopes[-2]) if len(scopes) > 1 else ""
    name = str(node.name or "")
    if not name.startswith("/"):
        return ""
    return name.strip("/").rpartition("/")[0].replace("/", ".")
