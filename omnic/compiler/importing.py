"""From a published model to a folder omnic works on: a spec to edit, weights, tokenizer, chat template.

A model is a checkpoint's folder (:mod:`omnic.models.checkpoints`) or a GGUF file (:mod:`omnic.models.gguf`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omnic.compiler.progress import Progress, silent
from omnic.compiler.weight_files import write_weights
from omnic.errors import InputError
from omnic.ir.types import Storage
from omnic.ir.weights import WeightStore
from omnic.models.checkpoints.checkpoint import Checkpoint, open_checkpoint
from omnic.models.checkpoints.config import Effect
from omnic.models.gguf.container import read_gguf
from omnic.models.gguf.importer import is_gguf, open_gguf
from omnic.models.gguf.vocabulary import tokenizer_files
from omnic.runtime.files import write_atomic
from omnic.runtime.tokenizer_files import TokenizerFacts, copy_tokenizer, write_tokenizer
from omnic.spec import parse_spec, to_yaml

__all__ = ["SPEC", "WEIGHTS", "ImportReport", "import_checkpoint"]

SPEC, WEIGHTS = "spec.yaml", "weights.safetensors"


@dataclass(frozen=True)
class ImportReport:
    """What an import wrote.

    Attributes:
        folder: of what was written.
        family: title of the architecture.
        spec: the spec file.
        weights: the weight file, or the checkpoint's folder where it was linked.
        parameters: of the model.
        weight_bytes: of the weights as omnic holds them.
        quantised: weights that are codes.
        effects: what every key of the configuration did.
        unread: keys of the configuration that omnic does not know.
        tokenizer: what was copied, None for a model without one.
        configuration: what holds the keys, for messages.
    """

    folder: Path
    family: str
    spec: Path
    weights: Path
    parameters: int
    weight_bytes: int
    quantised: int
    effects: tuple[Effect, ...]
    unread: tuple[str, ...]
    tokenizer: TokenizerFacts | None
    configuration: str = "config.json"


def import_checkpoint(
    folder: Path,
    out: Path,
    *,
    link: bool = False,
    context: int | None = None,
    name: str | None = None,
    force: bool = False,
    tokenizer: bool = True,
    progress: Progress = silent,
) -> ImportReport:
    """Write ``out``: ``spec.yaml``, ``weights.safetensors``, tokenizer and chat template.

    Weights keep their numbers and types; codes of a quantised checkpoint stay codes.

    Args:
        folder: the checkpoint, or a GGUF file.
        out: the folder to write; what lies in it under other names stays.
        link: leave the weights where they are: the spec names the checkpoint's folder.
        context: tokens the states shall hold (the spec's ``budget.context``).
        name: of the model; the checkpoint's folder's when None.
        force: replace what ``out`` holds.
        tokenizer: False leaves it out.
        progress: told how far it is.

    Raises:
        BundleError: damaged or incomplete files.
        InputError: a family or a value of the configuration that omnic cannot express; ``out`` holds something.
    """
    if out.is_file():
        raise InputError(f"{out} is a file", "name a folder")
    there = [out / n for n in (SPEC, WEIGHTS) if (out / n).exists()]
    if there and not force:
        raise InputError(f"{there[0]} exists", "--force replaces it")
    if out.resolve() == folder.resolve():
        raise InputError(f"{out} is the checkpoint itself", "name another folder")
    progress("read", 0.0)
    checkpoint = (open_gguf if is_gguf(folder) else open_checkpoint)(folder, context=context, name=name)
    store = WeightStore.loaded(checkpoint.module, checkpoint.source)
    out.mkdir(parents=True, exist_ok=True)
    facts = _tokenizer(folder, out, checkpoint.spec.vocab.size) if tokenizer else None
    weights = folder.resolve() if link else out / WEIGHTS
    if not link:
        write_weights(store, weights, progress)
    # Last, so that an interrupted import leaves nothing a later command takes for a model.
    write_atomic(out / SPEC, _text(checkpoint, str(weights) if link else WEIGHTS, facts, out).encode())
    progress("write", 1.0)
    return ImportReport(
        folder=out,
        family=checkpoint.family.title,
        spec=out / SPEC,
        weights=weights,
        parameters=store.module.parameters(),
        weight_bytes=sum(w.type.bytes() for w in store.module.weights.values()),
        quantised=sum(isinstance(w.type.element, Storage) for w in store.module.weights.values()),
        effects=checkpoint.effects,
        unread=checkpoint.unread,
        tokenizer=facts,
        configuration="the metadata" if is_gguf(folder) else "config.json",
    )


def _tokenizer(path: Path, out: Path, rows: int) -> TokenizerFacts | None:
    if not is_gguf(path):
        return copy_tokenizer(path, out, rows)
    contents = tokenizer_files(read_gguf(path).metadata, path)
    return write_tokenizer(contents, out) if contents else None


def _text(checkpoint: Checkpoint, weights: str, tokenizer: TokenizerFacts | None, out: Path) -> str:
    """Return the spec's text, its files named; it is read once more, so that what is written is valid."""
    lines = [f"# {checkpoint.family.title}", to_yaml(checkpoint.spec).rstrip()]
    if tokenizer is not None:
        lines.append("tokenizer: tokenizer.json")
    quoted = weights.replace("\\", "\\\\").replace('"', '\\"')
    lines.append(f'weights: "{quoted}"' if weights != WEIGHTS else f"weights: {WEIGHTS}")
    text = "\n".join(lines) + "\n"
    parse_spec(text, str(out / SPEC), folder=out)
    return text
