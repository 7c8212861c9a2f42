"""The rules between values: what the schema of single keys cannot say."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

from pydantic import ValidationError

from omnic.errors import OmnicError
from omnic.spec.blocks import (
    AttentionModel,
    BlockModel,
    DenseModel,
    GqaModel,
    HeadsAttentionModel,
    MlaModel,
    MoeModel,
)
from omnic.spec.files import tokenizer_size
from omnic.spec.layers import GATED
from omnic.spec.messages import Problem, flatten, problem_of
from omnic.spec.resolve import resolve_attention, variant
from omnic.spec.sizes import read_bytes
from omnic.spec.tree import Path

if TYPE_CHECKING:
    from omnic.spec.layers import Attention
    from omnic.spec.schema import Spec

__all__ = ["DRAFT_SHARE", "check_rules"]

DRAFT_SHARE = 0.4
"""A draft reads at most this share of its target's bytes per token."""

MAX_LAYERS = 4096

DraftReader = Callable[[str, FilePath | None], "Spec | None"]
"""Gives the spec of a name seen from a folder; None for a file when there is no folder."""


def check_rules(spec: Spec, whole: bool, draft: DraftReader | None) -> list[Problem]:
    """Return what is wrong between values of a spec whose keys are right.

    Args:
        spec: the spec, bound to its tree.
        whole: nothing of it was left out as wrong; if not, rules over the whole model are not asked.
        draft: reads the spec that ``draft:`` names; None leaves files (draft, tokenizer) alone.
    """
    problems = [*_model(spec), *_heads(spec)]
    for number, block in enumerate(spec.blocks):
        problems += _block(spec, block, ("blocks", number))
    if whole and not problems:
        problems += _capacity(spec)
    if not problems and draft is not None:
        problems += [*_tokenizer(spec), *_draft(spec, draft)]
    return problems


def _model(spec: Spec) -> Iterator[Problem]:
    total = sum(block.repeat for block in spec.blocks)
    if total > MAX_LAYERS:
        yield Problem(("blocks",), f"the blocks make {total} layers; omnic takes at most {MAX_LAYERS}", at_key=True)
    for path, value, message in (
        (("vocab", "size"), spec.vocab.size, "a vocabulary of one token leaves nothing to predict"),
        (("vocab", "used"), spec.vocab.used, "one used token leaves nothing to predict"),
        (("context",), spec.context, "a context of one token leaves nothing to attend to"),
        (("budget", "context"), spec.budget.context, "states of one token leave nothing to attend to"),
    ):
        if value == 1:
            yield Problem(path, message, "write 2 or more")
    if spec.vocab.used is not None and spec.vocab.used > spec.vocab.size:
        yield Problem(("vocab", "used"), f"used {spec.vocab.used} is more than size {spec.vocab.size}")
    if spec.position_table is not None and spec.capacity > spec.position_table:
        message = f"the table of positions has {spec.position_table} rows, the states hold {spec.capacity} tokens"
        yield Problem(("position_table",), message, "write budget.context, or a longer table")
    if spec.norm.bias and spec.norm.kind == "rms":
        yield Problem(("norm", "bias"), "an RMS norm has no bias", "take it out, or write 'kind: layer'")
    if spec.chunk > spec.capacity:
        message = f"a chunk of {spec.chunk} tokens is more than the state capacity of {spec.capacity}"
        yield Problem(("chunk",), message)
    if spec.chunk_verify > spec.chunk:
        yield Problem(("chunk_verify",), f"chunk_verify {spec.chunk_verify} is more than chunk {spec.chunk}")
    for number, block in enumerate(spec.blocks):
        if block.width != spec.width:
            hint = "the residual stream runs through all blocks, so all have one width"
            message = f"width {block.width} differs from width {spec.width} of blocks[0]"
            yield Problem(("blocks", number, "width"), message, hint)


def _heads(spec: Spec) -> Iterator[Problem]:
    mtp = spec.heads.mtp
    if mtp is None:
        return
    if mtp.kind == "linear" and mtp.ffn is not None:
        hint = "use 'kind: block', or take ffn out"
        yield Problem(("heads", "mtp", "ffn"), "a linear mtp head has no ffn", hint, at_key=True)
    if mtp.kind == "linear" and mtp.normed:
        message = "'normed' is for blocks: a linear mtp head reads the hidden state after the final norm"
        yield Problem(("heads", "mtp", "normed"), message, "use 'kind: block', or take normed out", at_key=True)
    yield from _ffn(mtp.ffn, ("heads", "mtp", "ffn"))
    if mtp.depth >= spec.chunk:
        yield Problem(("heads", "mtp", "depth"), f"depth {mtp.depth} does not fit a chunk of {spec.chunk} tokens")


def _block(spec: Spec, block: BlockModel, path: Path) -> Iterator[Problem]:
    yield from _ffn(block.ffn, (*path, "ffn"))
    attention = block.attention
    if not isinstance(attention, AttentionModel):
        return
    path = (*path, "attention")
    yield from _pattern(block, attention, path)
    names = dict.fromkeys(attention.pattern) if attention.pattern is not None else (None,)
    seen: set[Problem] = set()
    for name in names:
        for problem in _variant(spec, block, attention, name, path):
            if problem not in seen:
                seen.add(problem)
                yield problem


def _pattern(block: BlockModel, attention: AttentionModel, path: Path) -> Iterator[Problem]:
    if attention.pattern is None:
        for name, value in (("local", attention.local), ("global", attention.global_)):
            if value is not None:
                hint, reads = "add 'pattern: [local, global]'", ((*path, "pattern"),)
                yield Problem((*path, name), f"'{name}' needs a pattern", hint, at_key=True, reads=reads)
        return
    for name, value in (("local", attention.local), ("global", attention.global_)):
        if value is not None and name not in attention.pattern:
            yield Problem((*path, name), f"no layer of the pattern is {name}", at_key=True)
    if len(attention.pattern) > block.repeat:
        message = f"the pattern has {len(attention.pattern)} layers, the block repeats {block.repeat} times"
        yield Problem((*path, "pattern"), message, at_key=True)
    local = variant(attention, "local")
    alike = attention.local is None and attention.global_ is None
    if alike and "local" in attention.pattern and local.get("window") is None:
        hint, reads = "add 'window: TOKENS'", ((*path, "window"), (*path, "local"))
        yield Problem((*path, "pattern"), "local layers need a window", hint, at_key=True, reads=reads)


def _variant(
    spec: Spec, block: BlockModel, attention: AttentionModel, name: str | None, path: Path
) -> Iterator[Problem]:
    """Check the attention of the layers of one name of the pattern; places prefer the name's own mapping."""

    def at(*keys: str) -> Path:
        own = (*path, name, *keys) if name is not None else (*path, *keys)
        return own if spec.tree.find(own) is not None else (*path, *keys)

    if name is not None:
        try:
            type(attention).model_validate(variant(attention, name))
        except ValidationError as error:
            for steps, item in flatten(error.errors(include_url=False)):
                found = problem_of(type(attention), spec.tree.nearest(path), steps, item, (*path, name))
                yield Problem(at(*(str(step) for step in found.path)), found.message, found.hint, found.at_key)
            return
    attention = type(attention).model_validate(variant(attention, name))
    yield from _head_rules(spec, block, attention, at)
    layer = resolve_attention(spec, block, name)
    yield from _reach(spec, layer, at)


def _head_rules(spec: Spec, block: BlockModel, attention: AttentionModel, at: Callable[..., Path]) -> Iterator[Problem]:
    heads = attention.heads
    if isinstance(attention, MlaModel):
        if spec.qk_norm:
            message = "qk_norm is not for mla, whose latent is normed already"
            yield Problem(("qk_norm",), message, "take it out, or set it in the other blocks' attention")
        if spec.sinks:
            yield Problem(("sinks",), "sinks are not for mla", "take it out, or set it in the other blocks' attention")
        if attention.rope is not None and attention.rope_dim % 2:
            yield Problem(at("rope_dim"), f"rope_dim {attention.rope_dim} is odd; rope turns pairs of dims")
        return
    if not isinstance(attention, HeadsAttentionModel):
        return
    if isinstance(attention, GqaModel):
        kv_heads = attention.kv_heads or spec.kv_heads
        if kv_heads is None:
            hint = "write it here, or once for all blocks at the top"
            yield Problem(at(), "'kv_heads' is missing in gqa", hint, at_key=True)
        elif heads % kv_heads:
            where = at("kv_heads") if attention.kv_heads else ("kv_heads",)
            divisors = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            message = f"kv_heads {kv_heads} does not divide heads {heads}"
            yield Problem(where, message, f"divisors of {heads}: {divisors}" if heads <= 512 else None)
    if attention.head_dim is None and spec.head_dim is None and block.width % heads:
        message = f"heads {heads} does not divide width {block.width}"
        yield Problem(at("heads"), message, "or write head_dim", reads=(at("head_dim"), ("head_dim",)))


def _reach(spec: Spec, layer: Attention, at: Callable[..., Path]) -> Iterator[Problem]:
    if layer.window is not None and layer.window > spec.context:
        yield Problem(at("window"), f"window {layer.window} is more than context {spec.context}")
    rope = layer.rope
    if rope is None:
        return
    whole = layer.rope_dim if layer.rope_dim is not None else layer.head_dim
    named = "rope_dim" if layer.rope_dim is not None else "head_dim"
    if rope.dims > whole:
        yield Problem(at("rope", "dims"), f"rope.dims {rope.dims} is more than {named} {whole}")
    elif rope.dims % 2 and layer.kind != "mla":
        where = at("rope", "dims") if spec.tree.find(at("rope", "dims")) is not None else at("head_dim")
        yield Problem(where, f"rope turns pairs of dims, and {rope.dims} is odd", "use an even number")
    scaling = rope.scaling
    if scaling is None:
        return
    if scaling.beta_slow >= scaling.beta_fast:
        message = f"beta_slow {scaling.beta_slow:g} must be less than beta_fast {scaling.beta_fast:g}"
        yield Problem(at("rope", "scaling", "beta_slow"), message)
    for key, unset, kinds in (
        ("attention_factor", None, ("yarn", "longrope")),
        ("truncate", True, ("yarn",)),
        ("factors", (), ("longrope",)),
    ):
        if scaling.kind not in kinds and getattr(scaling, key) != unset:
            message = f"{key} is for {' and '.join(kinds)}, not for {scaling.kind}"
            yield Problem(at("rope", "scaling", key), message, at_key=True)
    if scaling.kind == "longrope" and len(scaling.factors) != rope.dims // 2:
        message = f"longrope has {len(scaling.factors)} factors for the {rope.dims // 2} frequencies"
        hint = f"a factor for each pair of the {rope.dims} rotated dims"
        yield Problem(at("rope", "scaling", "factors"), message, hint)
    if scaling.original_context > spec.context:
        message = f"original_context {scaling.original_context} is more than context {spec.context}"
        yield Problem(at("rope", "scaling", "original_context"), message)
    reach = int(scaling.original_context * scaling.factor)
    if layer.window is None and spec.capacity > max(reach, spec.context):
        message = f"factor {scaling.factor:g} reaches {reach} tokens, less than budget.context {spec.capacity}"
        needed = -(-spec.capacity // scaling.original_context)
        yield Problem(at("rope", "scaling", "factor"), message, f"a factor of {needed} would do")


def _ffn(ffn: object, path: Path) -> Iterator[Problem]:
    if isinstance(ffn, DenseModel | MoeModel):
        plain = {"activation_alpha": 1.0, "activation_beta": 0.0, "activation_limit": None}
        changed = [key for key, default in plain.items() if getattr(ffn, key) != default]
        if changed and ffn.activation not in GATED:
            message = f"'{changed[0]}' needs a gated activation, and {ffn.activation} has no gate"
            yield Problem((*path, changed[0]), message, "gated: " + ", ".join(sorted(GATED)), at_key=True)
        elif ffn.activation_alpha != 1.0 and ffn.activation != "swiglu":
            message = f"activation_alpha is for swiglu, not for {ffn.activation}"
            yield Problem((*path, "activation_alpha"), message, at_key=True)
    if isinstance(ffn, MoeModel):
        yield from _moe(ffn, path)


def _moe(moe: MoeModel, path: Path) -> Iterator[Problem]:
    chosen, among = moe.experts, f"{moe.experts} experts"
    if moe.groups is not None:
        total = sum(moe.groups)
        if total != moe.experts:
            yield Problem((*path, "groups"), f"groups sum to {total}, experts are {moe.experts}", at_key=True)
        if moe.top_groups > len(moe.groups):
            yield Problem((*path, "top_groups"), f"top_groups {moe.top_groups} is more than {len(moe.groups)} groups")
        chosen = sum(sorted(moe.groups)[: moe.top_groups])
        among = f"the {chosen} experts that {_count(moe.top_groups, 'chosen group')} may have"
    else:
        for key in ("top_groups", "group_gate", "group_score"):
            if key in moe.model_fields_set:
                hint = "add 'groups: [SIZE, SIZE, ...]'"
                reads = ((*path, "groups"),)
                yield Problem((*path, key), f"'{key}' needs groups", hint, at_key=True, reads=reads)
    if moe.group_score != "max" and moe.groups is not None:
        where = (*path, "group_score")
        if moe.group_gate:
            yield Problem(where, f"group_score {moe.group_score} is for groups without a group gate", at_key=True)
        elif min(moe.groups) * moe.split < 2:
            yield Problem(where, f"group_score {moe.group_score} needs two experts in every group")
    if moe.top_k > chosen:
        yield Problem((*path, "top_k"), f"top_k {moe.top_k} is more than {among}", reads=((*path, "groups"),))
    if moe.hidden % moe.split:
        yield Problem((*path, "split"), f"split {moe.split} does not divide hidden {moe.hidden}")
    if moe.shared_hidden is not None and not moe.shared:
        hint, reads = "add 'shared: 1'", ((*path, "shared"),)
        message = "'shared_hidden' needs shared experts"
        yield Problem((*path, "shared_hidden"), message, hint, at_key=True, reads=reads)


def _count(number: int, what: str) -> str:
    return f"one {what}" if number == 1 else f"{number} {what}s"


def _capacity(spec: Spec) -> Iterator[Problem]:
    """Beyond the trained length, rope must be scaled: by every layer without a window, and by one at least."""
    if spec.capacity <= spec.context:
        return
    rotated = [layer for layer in spec.layers() if layer.attention.rope is not None]
    scaled = [layer for layer in rotated if layer.attention.rope.scaling is not None]  # type: ignore[union-attr]
    bare = [layer for layer in rotated if layer.attention.rope.scaling is None]  # type: ignore[union-attr]
    if scaled and all(layer.attention.window is not None for layer in bare):
        return
    if not rotated:
        return
    message = f"budget.context {spec.capacity} is beyond the trained context of {spec.context}, and rope is not scaled"
    factor = -(-spec.capacity // spec.context)
    yield Problem(("budget", "context"), message, f"add rope.scaling: {{kind: yarn, factor: {factor}}}")


def _tokenizer(spec: Spec) -> Iterator[Problem]:
    path = spec.resolve("tokenizer")
    if path is None or not os.path.isfile(path):
        return
    try:
        found = tokenizer_size(path)
    except OmnicError as error:
        yield Problem(("tokenizer",), error.message, error.hint)
        return
    wanted = spec.vocab.used if spec.vocab.used is not None else spec.vocab.size
    if found == wanted:
        return
    key = "vocab.used" if spec.vocab.used is not None else "vocab.size"
    hint = f"write 'used: {found}' in vocab if the rows beyond are padding" if found < wanted else None
    yield Problem(("tokenizer",), f"the tokenizer has {found} tokens, {key} is {wanted}", hint)


def _draft(spec: Spec, read: DraftReader) -> Iterator[Problem]:
    if spec.draft is None:
        return
    node = spec.tree.find(("draft",))
    try:
        draft = read(spec.draft, node.folder if node is not None else None)
    except OmnicError as error:
        first = error.render().splitlines()[0].replace("error: ", "")
        yield Problem(("draft",), f"the draft is no valid spec: {first}", error.hint)
        return
    if draft is None:
        return
    if draft.vocab.size != spec.vocab.size:
        message = f"the draft {draft.model} has a vocabulary of {draft.vocab.size}, {spec.model} of {spec.vocab.size}"
        yield Problem(("draft",), message, "a draft proposes tokens of its target's vocabulary")
    share = read_bytes(draft) / read_bytes(spec)
    if share > DRAFT_SHARE:
        message = f"the draft {draft.model} reads {share:.2f}x the bytes per token of {spec.model}"
        yield Problem(("draft",), message, f"a draft pays off up to {DRAFT_SHARE}x")
