"""From a spec and its weights to a folder that ``transformers`` loads, with a model card and checksums."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omnic import __version__
from omnic.compiler.pipeline import open_weights
from omnic.compiler.progress import Progress, silent
from omnic.compiler.weight_files import weight_source
from omnic.errors import InputError
from omnic.ir.graph import Module, Recipe
from omnic.ir.op import Array
from omnic.ir.types import DType, Storage
from omnic.ir.weights import WeightStore
from omnic.ir.weights.recipes import Evaluator, whole
from omnic.ir.weights.sources import Box
from omnic.ir.weights.store import with_stored_types
from omnic.models import build
from omnic.models.checkpoints.publish import Published, publish
from omnic.models.checkpoints.source import names_of
from omnic.runtime.files import disk_errors, sha256_file, write_atomic
from omnic.runtime.tokenizer import Tokenizer
from omnic.spec import Spec
from omnic.spec.load import with_values

__all__ = ["SHARD_BYTES", "ExportReport", "export_hf", "export_store"]

SHARD_BYTES = 5_000_000_000
"""Most bytes of one weight file, as transformers writes them."""

CARD, SUMS = "README.md", "SHA256SUMS"


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        folder: of what was written.
        family: title of the architecture.
        files: names of the written files.
        parameters: of the model.
    """

    folder: Path
    family: str
    files: tuple[str, ...]
    parameters: int


class _Weights:
    """A weight store as a source of numbers for recipes."""

    def __init__(self, store: WeightStore) -> None:
        self.store, self.description = store, f"the weights of {store.module.name}"

    def names(self) -> tuple[str, ...]:
        return tuple(self.store.module.weights)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(str(d)) for d in self.store.module.weights[name].type.shape)

    def read(self, name: str, box: Box) -> Array:
        found = self.store.array(name, box[0]) if box else self.store.array(name)
        return found[(slice(None), *(slice(a, b) for a, b in box[1:]))] if box else found


def export_hf(
    spec: Spec,
    out: Path,
    *,
    weights: Path | None = None,
    seed: int | None = None,
    family: str | None = None,
    heads: bool = True,
    force: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = silent,
) -> ExportReport:
    """Write ``out``: ``config.json``, safetensors, tokenizer, chat template, a model card and checksums.

    Args:
        spec: the model.
        out: a folder that does not exist or is empty.
        weights: its weights; what the spec names when None.
        seed: random weights instead.
        family: ``model_type`` to write; the first that can express the spec when None.
        heads: False leaves out the heads beside the main one, which only speculation uses.
        force: write into a folder that holds other files.
        shard_bytes: most bytes of one weight file.
        progress: told how far it is.

    Raises:
        InputError: no family can express the spec, or its weights are codes.
        BundleError: damaged weights.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not force):
        raise InputError(
            f"{out} exists" if out.is_file() else f"{out} is not empty", "name a new folder, or add --force"
        )
    if not heads:
        spec = with_values(spec, {"heads": {"mtp": None, "verifier": False}}, "--without-heads")
    module = build(spec)
    published = publish(spec, module, family)
    store = export_store(module, spec, weights, seed, whole=heads)
    coded = [n for n, w in store.module.weights.items() if isinstance(w.type.element, Storage)]
    if coded:
        raise InputError(f"{len(coded)} weights are codes, such as {coded[0]}", "export the weights they were made of")
    out.mkdir(parents=True, exist_ok=True)
    path = spec.resolve("tokenizer")
    tokenizer = None if path is None else Tokenizer.load(path)
    config = dict(published.config) | _token_ids(tokenizer)
    words = [] if tokenizer is None else _write_tokenizer(tokenizer, out)
    names = _write_shards(published, store, out, shard_bytes, progress)
    _json(out / "config.json", config)
    write_atomic(out / CARD, _card(spec, published, store, names).encode())
    files = [*names, "config.json", CARD, *words]
    sums = "".join(f"{sha256_file(out / name)}  {name}\n" for name in sorted(set(files)))
    write_atomic(out / SUMS, sums.encode())
    progress("write", 1.0)
    return ExportReport(out, published.family.title, (*files, SUMS), store.module.parameters())


def export_store(module: Module, spec: Spec, weights: Path | None, seed: int | None, whole: bool) -> WeightStore:
    """Return the numbers of ``module``; unless ``whole``, tensors of what was left out of it may lie beside them."""
    if whole or seed is not None:
        return open_weights(module, spec, weights, seed)[0]
    path = weights or spec.resolve("weights")
    if path is None:
        raise InputError(f"{spec.model} has no weights", "give --weights FILE, or --seed N for random ones")
    source = weight_source(path)
    store = WeightStore(with_stored_types(module, source), source)
    store.check(whole=False)
    return store


def _write_tokenizer(tokenizer: Tokenizer, out: Path) -> list[str]:
    """Write the tokenizer's files and what transformers needs to open them; return their names."""
    contents = dict(tokenizer.files.contents())
    config = json.loads(contents.get("tokenizer_config.json", "{}"))
    by_id = {identity: text for text, identity in tokenizer.special_ids.items()}
    roles = (("bos_token", tokenizer.bos), ("eos_token", tokenizer.eos))
    named = {role: by_id.get(identity) for role, identity in roles if identity is not None}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **{k: v for k, v in named.items() if v}, **config}
    contents["tokenizer_config.json"] = json.dumps(config, indent=2) + "\n"
    for name, text in contents.items():
        (out / name).parent.mkdir(exist_ok=True)
        write_atomic(out / name, text.encode())
    return list(contents)


def _token_ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    return {} if tokenizer is None else {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}


def _json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


# -- weights ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Tensor:
    name: str
    recipe: Recipe
    shape: tuple[int, ...]
    dtype: DType

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.bits // 8


def _tensors(published: Published, store: WeightStore) -> list[_Tensor]:
    """Return the published tensors in their order; each has the widest type of the weights it is made of."""
    source = _Weights(store)
    found: list[_Tensor] = []
    for name, recipe in published.tensors.items():
        types = {store.module.weights[n].type.dtype for n in names_of(recipe)}
        dtype = next(iter(types)) if len(types) == 1 else DType.F32
        found.append(_Tensor(name, recipe, Evaluator(name, (), source, None, None).shape(recipe), dtype))
    return found


def _write_shards(published: Published, store: WeightStore, out: Path, limit: int, progress: Progress) -> list[str]:
    shards: list[list[_Tensor]] = [[]]
    for tensor in _tensors(published, store):
        if shards[-1] and sum(t.bytes for t in shards[-1]) + tensor.bytes > limit:
            shards.append([])
        shards[-1].append(tensor)
    many = len(shards)
    names = [f"model-{i + 1:05}-of-{many:05}.safetensors" if many > 1 else "model.safetensors" for i in range(many)]
    for i, (name, shard) in enumerate(zip(names, shards, strict=True)):
        progress("weights", i / many)
        _write_shard(shard, store, out / name)
    if many == 1:
        return names
    where = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
    total = sum(t.bytes for shard in shards for t in shard)
    _json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    return [*names, "model.safetensors.index.json"]


def _write_shard(shard: list[_Tensor], store: WeightStore, path: Path) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in shard:
        span = [offset, offset + tensor.bytes]
        header[tensor.name] = {"dtype": tensor.dtype.value.upper(), "shape": list(tensor.shape), "data_offsets": span}
        offset += tensor.bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_name(f".{path.name}.part")
    try:
        with disk_errors(path), part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in shard:
                for rows in _slices(tensor, store):
                    file.write(rows.astype(tensor.dtype.numpy, copy=False).tobytes())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _slices(tensor: _Tensor, store: WeightStore, limit: int = 1 << 26) -> Iterator[Array]:
    """Yield consecutive rows of a tensor, at most ``limit`` numbers each."""
    evaluator = Evaluator(tensor.name, (), _Weights(store), None, None)
    if not tensor.shape:
        yield evaluator.numbers(tensor.recipe, ())
        return
    step = max(1, limit // max(1, int(np.prod(tensor.shape[1:], dtype=np.int64))))
    for start in range(0, tensor.shape[0], step):
        box = ((start, min(start + step, tensor.shape[0])), *whole(tensor.shape[1:]))
        yield np.ascontiguousarray(evaluator.numbers(tensor.recipe, box))


# -- card ---------------------------------------------------------------------------------------------------
def _card(spec: Spec, published: Published, store: WeightStore, names: list[str]) -> str:
    """Return a model card (Mitchell et al., arXiv:1810.03993, in the form hubs read)."""
    layers = spec.layers()
    attention = sorted({f"{x.attention.kind} with {x.attention.heads} heads" for x in layers})
    window = sorted({x.attention.window for x in layers if x.attention.window is not None})
    rows = [
        ("architecture", published.family.title),
        ("model_type", published.config["model_type"]),
        ("parameters", f"{store.module.parameters():,}"),
        ("layers", f"{len(layers)} of width {spec.width}"),
        ("attention", ", ".join(attention) + (f", windows of {', '.join(map(str, window))}" if window else "")),
        ("vocabulary", f"{spec.vocab.size:,}"),
        ("trained length", f"{spec.context:,} tokens"),
        ("stored as", spec.dtype),
        ("spec sha256", spec.digest),
    ]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    own = _own_card(spec)
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- omnic\n---\n\n# {spec.model}\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        f"Written by omnic {__version__} from a spec of `{spec.model}`.  `sha256sum -c {SUMS}` checks the files.\n\n"
        "```python\nfrom transformers import AutoModelForCausalLM\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n```\n' + (f"\n{own}" if own else "")
    )


def _own_card(spec: Spec) -> str:
    """Return what the card beside the weights says, without its title."""
    weights = spec.resolve("weights")
    if weights is None or weights.is_dir():
        return ""
    path = weights.with_name(f"{weights.name.removesuffix('.safetensors')}.card.md")
    if not path.is_file():
        return ""
    lines = path.read_text("utf-8").splitlines()
    return "\n".join(lines[1:] if lines and lines[0].startswith("# ") else lines).strip() + "\n"
