"""Decoders without a spec: an exported ``.onnx`` file, or the module and weights that an import wrote.

The compile driver asks a model for its name, its passes and where they are written, its weights, and what bounds its
states.  :class:`Imported` answers as a spec does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omnic.compiler.options import pass_node
from omnic.compiler.weight_files import fingerprint, weight_source
from omnic.errors import InputError
from omnic.ir.graph import Module
from omnic.ir.text import print_module
from omnic.ir.verify import verify_text
from omnic.ir.weights import ResultStore, WeightStore
from omnic.spec.tree import Node, Text

__all__ = ["MODULE", "WEIGHTS", "Imported", "ImportedVocab", "check_states", "is_imported", "open_imported"]

MODULE, WEIGHTS = "module.ir", "weights.safetensors"
FUSION = "attention-fusion"


@dataclass(frozen=True)
class ImportedVocab:
    """The tokens that an imported module knows: as many as it gives logits."""

    size: int


@dataclass(frozen=True)
class Imported:
    """A module and its weights in the place of a spec.

    Attributes:
        file: what was opened.
        module: of the front stage.
        weights: its numbers.
        tree: where its passes are written.
        sha256: tells its content apart.
    """

    file: Path
    module: Module
    weights: WeightStore
    tree: Node
    sha256: str
    targets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

    @property
    def model(self) -> str:
        """The name of the module."""
        return self.module.name

    @property
    def passes(self) -> Sequence[Any]:
        """The list of passes, as a spec has it."""
        node = self.tree.find(("passes",))
        plain = None if node is None else node.plain()
        assert isinstance(plain, list)
        return plain

    @property
    def capacity(self) -> int:
        """Tokens that the states hold."""
        known = self.module.meta.get("capacity", self.module.dims["T"].high)
        assert isinstance(known, int)
        return known

    @property
    def vocab(self) -> ImportedVocab:
        """As many tokens as there are logits."""
        logits = next(r for r in self.module.function().results if r.name == "logits")
        size = logits.value.type.shape[-1]
        assert isinstance(size, int)
        return ImportedVocab(size)

    @property
    def folder(self) -> None:
        """None: no value of it names a file."""

    def resolve(self, key: Literal["weights", "tokenizer", "draft"]) -> Path | None:
        """Return the tokenizer that lies beside the module; the other keys name nothing."""
        beside = self.file.parent / "tokenizer.json"
        return beside if key == "tokenizer" and beside.is_file() else None

    def text(self) -> str:
        """Return the module as a bundle keeps it."""
        return print_module(self.module)

    def origin(self) -> dict[str, Any]:
        """Return where the numbers come from."""
        return {"path": str(self.file.absolute()), "sha256": self.sha256}


def is_imported(name: str) -> bool:
    """Whether a command's argument names an exported file, an IR text, or a folder that an import wrote."""
    return name.endswith((".onnx", ".ir")) or (Path(name) / MODULE).is_file()


def open_imported(
    name: str, passes: Sequence[str], replace: bool = False, results: ResultStore | None = None
) -> Imported:
    """Open an exported decoder, or what ``omnic import`` made of one.

    Args:
        name: an ``.onnx`` file, a ``module.ir``, or the folder of one, its weights beside it.
        passes: texts ``NAME{opt=val}`` to run after ``attention-fusion``.
        replace: leave ``attention-fusion`` out.
        results: where calibrated weights are kept.

    Raises:
        InputError: what cannot be imported, a module that no session could call, a text of another form.
        BundleError: damaged files.
        DiagnosticError: an IR text that is wrong.
    """
    path = Path(name)
    if path.is_dir():
        path = path / MODULE
    module, weights, digest = _onnx(path) if path.suffix == ".onnx" else _written(path, results)
    source = Text("--pass", FUSION)
    first = [] if replace else [Node(FUSION, source.at(0, len(FUSION)), None, source)]
    listed = Node([*first, *(pass_node(text) for text in passes)], source.at(0, len(FUSION)), None, source)
    return Imported(path, module, weights, Node({"passes": listed}, source.at(0), None, source), digest)


def _onnx(path: Path) -> tuple[Module, WeightStore, str]:
    from omnic.models.onnx import import_onnx

    module, weights = import_onnx(path)
    return module, weights, _digest([path, *_beside(path)])


def _beside(path: Path) -> list[Path]:
    """Return the files that external data of an exported file may lie in."""
    return sorted(p for p in path.parent.iterdir() if p != path and p.is_file() and p.name.startswith(path.stem))


def _written(path: Path, results: ResultStore | None) -> tuple[Module, WeightStore, str]:
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text", "an IR text is what omnic import writes as module.ir") from None
    module = verify_text(text, str(path))
    if "forward" not in module.functions or not any(r.name == "logits" for r in module.function().results):
        raise InputError(f"{path}: @{module.name} has no function @forward with a result 'logits'",
                         "omnic compiles decoders: see docs/onnx_import.md")
    beside = path.parent / WEIGHTS
    if not beside.is_file():
        raise InputError(f"{beside} is not there", f"weights lie beside {path.name}, as omnic import writes them")
    return module, WeightStore.loaded(module, weight_source(beside), results), _digest([path, beside])


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {fingerprint(file)}\n".encode())
    return digest.hexdigest()


def check_states(module: Module) -> None:
    """Check that a session can append tokens to the module's states.

    Raises:
        InputError: ``@forward`` has no states, so every call would begin anew.
    """
    if module.states:
        return
    raise InputError(
        f"@{module.name} has no states: every call would compute all tokens from the first on",
        "export it with its cache (past_key_values in, present out)",
    )
