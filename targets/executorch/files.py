"""Names of the files of a bundle of this target, and the kind by which a session opens it."""

from __future__ import annotations

__all__ = ["ABOUT_FILE", "KIND", "NODES_FILE", "PROGRAM_FILE", "TABLE_FILE"]

KIND = "executorch"
#: what ExecuTorch runs
PROGRAM_FILE = "program.pte"
#: how its methods are called
ABOUT_FILE = "program.json"
#: where its weights lie
TABLE_FILE = "weights.json"
#: which instruction of it computes which node of the IR
NODES_FILE = "nodes.json"
