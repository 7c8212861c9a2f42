"""From a spec and its weights to a file that llama.cpp loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnic.compiler.exporting import export_store
from omnic.compiler.progress import Progress, silent
from omnic.errors import InputError
from omnic.models import build
from omnic.models.gguf.exporter import KEEP, Written, write_gguf
from omnic.models.gguf.publish import publish_gguf
from omnic.models.gguf.vocabulary import PREFIX
from omnic.models.gguf.vocabulary_out import vocabulary_keys
from omnic.runtime.files import disk_errors
from omnic.runtime.tokenizer import Tokenizer
from omnic.spec import Spec
from omnic.spec.load import with_values

__all__ = ["GgufReport", "export_gguf"]


@dataclass(frozen=True)
class GgufReport:
    """What an export wrote.

    Attributes:
        file: the file.
        bytes: its size.
        architecture: what llama.cpp calls it.
        written: its tensors.
        tokenizer: kind of the vocabulary in it, ``none`` without one.
        parameters: of the model.
    """

    file: Path
    bytes: int
    architecture: str
    written: Written
    tokenizer: str
    parameters: int


def export_gguf(
    spec: Spec,
    out: Path,
    *,
    weights: Path | None = None,
    seed: int | None = None,
    family: str | None = None,
    type: str = KEEP,
    heads: bool = True,
    tokenizer: bool = True,
    force: bool = False,
    progress: Progress = silent,
) -> GgufReport:
    """Write ``out``, whole or not at all: the weights, the tokenizer and its chat templates.

    Args:
        spec: the model.
        out: the file.
        weights: its weights; what the spec names when None.
        seed: random weights instead.
        family: the architecture to write; the first that can express the spec when None.
        type: of the matrices, one of :data:`omnic.models.gguf.exporter.TYPES`.
        heads: False leaves out the heads beside the main one, which only speculation uses.
        tokenizer: False leaves it out.
        force: replace a file.
        progress: told how far it is.

    Raises:
        InputError: no architecture can express the spec, llama.cpp has no such tokenizer or type, or ``out`` exists.
        BundleError: damaged weights.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder", f"name a file, as {out / (spec.model + '.gguf')}")
    if out.exists() and not force:
        raise InputError(f"{out} exists", "--force replaces it")
    if not out.absolute().parent.is_dir():
        raise InputError(f"the folder {out.parent} does not exist", "create it first")
    if not heads:
        spec = with_values(spec, {"heads": {"mtp": None, "verifier": False}}, "--without-heads")
    model = publish_gguf(spec, family)
    extra = _vocabulary(spec) if tokenizer else {PREFIX + "model": "none"}
    module = build(spec)
    store = export_store(module, spec, weights, seed, whole=heads)
    part = out.with_name(f".{out.name}.part")
    try:
        with disk_errors(out), part.open("wb") as file:
            written = write_gguf(file, model, store, extra, type, lambda share: progress("weights", share))
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return GgufReport(out, out.stat().st_size, model.arch.name, written, extra[PREFIX + "model"],
                      store.module.parameters())


def _vocabulary(spec: Spec) -> dict[str, Any]:
    path = spec.resolve("tokenizer")
    if path is None:
        return {PREFIX + "model": "none"}
    tokenizer = Tokenizer.load(path)
    named = dict(tokenizer.files.named)
    for role, identity in (("bos_token", tokenizer.bos), ("eos_token", tokenizer.eos)):
        if role not in named and identity is not None:
            named[role] = tokenizer.token(identity)
    templates = {name: source for name, (source, _) in tokenizer.files.templates.items()}
    found = vocabulary_keys(tokenizer.files.text, named, tokenizer.stops, templates, spec.vocab.size)
    if not tokenizer.files.known:  # a lone file: what stands around a text follows from its tokens
        found[PREFIX + "add_bos_token"] = bool(tokenizer.frame[0])
    return found
