"""What imported weights and scopes are called: the names our own models use, where the file's can be read."""

from __future__ import annotations

import re

from omnic.models.onnx.kinds import Stored

__all__ = ["Names", "scope_of"]

#: the last parts of a path in common exporters' models -> ours; the first that matches decides
_PARTS: tuple[tuple[str, str], ...] = (
    (r"(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|token_embedding|tok_emb|embedding|embed)", "embed"),
    (r"(?:wpe|embed_positions|position_embeddings|pos_emb)", "pos_embed"),
    (r"(?:lm_head|embed_out|head|output)", "head"),
    (r"(?:input_layernorm|ln_1|ln1|attention_norm|norm1)", "{b}attn_norm"),
    (r"(?:post_attention_layernorm|ln_2|ln2|ffn_norm|norm2)", "{b}ffn_norm"),
    (r"pre_feedforward_layernorm", "{b}ffn_norm"),
    (r"post_feedforward_layernorm", "{b}ffn_post_norm"),
    (r"(?:self_attn|attn|attention|self_attention)\.(?:q_proj|wq|query|q)", "{b}attn.q"),
    (r"(?:self_attn|attn|attention|self_attention)\.(?:k_proj|wk|key|k)", "{b}attn.k"),
    (r"(?:self_attn|attn|attention|self_attention)\.(?:v_proj|wv|value|v)", "{b}attn.v"),
    (r"(?:self_attn|attn|attention|self_attention)\.(?:o_proj|wo|c_proj|out_proj|dense|proj|o)", "{b}attn.o"),
    (r"(?:self_attn|attn|attention|self_attention)\.(?:c_attn|qkv_proj|qkv|query_key_value)", "{b}attn.qkv"),
    (r"(?:self_attn|attn)\.(?:q_norm|q_layernorm)", "{b}attn.q_norm"),
    (r"(?:self_attn|attn)\.(?:k_norm|k_layernorm)", "{b}attn.k_norm"),
    (r"(?:self_attn|attn)\.sinks", "{b}attn.sinks"),
    (r"(?:self_attn|attn)\.q_a_proj", "{b}attn.q_a"),
    (r"(?:self_attn|attn)\.q_a_layernorm", "{b}attn.q_a_norm"),
    (r"(?:self_attn|attn)\.q_b_proj", "{b}attn.q_b"),
    (r"(?:self_attn|attn)\.kv_a_proj_with_mqa", "{b}attn.kv_a"),
    (r"(?:self_attn|attn)\.kv_a_layernorm", "{b}attn.kv_norm"),
    (r"(?:self_attn|attn)\.kv_b_proj", "{b}attn.kv_b"),
    (r"(?:mlp|feed_forward|ffn)\.(?:gate_proj|w1)|(?:feed_forward|ffn)\.gate", "{b}ffn.gate"),
    (r"(?:mlp|block_sparse_moe)\.(?:gate|router)", "{b}ffn.router"),
    (r"mlp\.gate\.e_score_correction_bias", "{b}ffn.select_bias"),
    (r"(?:mlp|block_sparse_moe)\.experts\.gate_up_proj", "{b}ffn.experts.gate_up"),
    (r"(?:mlp|block_sparse_moe)\.experts\.gate_up_proj_bias", "{b}ffn.experts.gate_up_bias"),
    (r"(?:mlp|block_sparse_moe)\.experts\.down_proj", "{b}ffn.experts.down"),
    (r"(?:mlp|block_sparse_moe)\.experts\.down_proj_bias", "{b}ffn.experts.down_bias"),
    (r"mlp\.shared_experts\.(?:gate_proj)", "{b}ffn.shared.gate"),
    (r"mlp\.shared_experts\.(?:up_proj)", "{b}ffn.shared.up"),
    (r"mlp\.shared_experts\.(?:down_proj)", "{b}ffn.shared.down"),
    (r"(?:mlp|feed_forward|ffn)\.(?:up_proj|w3|c_fc|fc1|fc_in|up|dense_h_to_4h|fc)", "{b}ffn.up"),
    (r"(?:mlp|feed_forward|ffn)\.(?:down_proj|w2|c_proj|fc2|fc_out|down|dense_4h_to_h|proj)", "{b}ffn.down"),
    (r"(?:model\.norm|ln_f|final_layernorm|final_norm|norm_f|norm)", "final_norm"),
)
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer)\.(\d+)(?:\.(.*))?$")
_TAIL = re.compile(r"\.(weight|bias|qweight)$")
_PATTERNS = tuple((re.compile(rf"(?:^|\.)(?:{pattern})$"), ours) for pattern, ours in _PARTS)


def _canonical(path: str) -> str | None:
    """Return our name for a module path such as ``model.layers.3.self_attn.q_proj``, or None."""
    if path.endswith("final_norm_layernorm"):  # the builder of onnxruntime-genai counts it as one more layer
        return "final_norm"
    block = _BLOCK.search(path)
    prefix = f"blocks.{block.group(1)}." if block else ""
    rest = (block.group(2) or "") if block else path
    for pattern, ours in _PATTERNS:
        if not pattern.search(rest):
            continue
        if ours.startswith("{b}") != bool(block):
            continue
        return ours.replace("{b}", prefix)
    return None


def scope_of(path: str) -> str:
    """Return the scope of a node from the module path its exporter wrote, such as ``blocks.3.attn``."""
    block = _BLOCK.search(path)
    if path.endswith("final_norm_layernorm"):
        return "final_norm"
    if block is None:
        found = _canonical(path)
        return found if found in ("embed", "head", "final_norm", "pos_embed") else ""
    rest = block.group(2) or ""
    inner = ""
    if re.match(r"(self_attn|attn|attention|self_attention)(\.|$)", rest):
        inner = ".attn"
    elif re.match(r"(mlp|feed_forward|ffn|block_sparse_moe)(\.|$)", rest):
        inner = ".ffn"
    return f"blocks.{block.group(1)}{inner}"


class Names:
    """Gives every weight a name of its own.

    ``paths`` maps the label of a tensor to the module path of a node that reads it, for exporters that
    number their initialisers (``onnx::MatMul_663``).
    """

    def __init__(self) -> None:
        self.paths: dict[str, str] = {}
        self._given: dict[object, str] = {}
        self._taken: set[str] = set()

    def weight(self, tensor: Stored) -> str:
        """Return the name of a weight: the same for the same recipe and type."""
        key = (str(tensor.recipe), tensor.shape, tensor.dtype)
        if key not in self._given:
            name, count = self._wanted(tensor.label, tensor.shape), 1
            base = name
            while name in self._taken:
                count += 1
                name = f"{base}.{count}"
            self._taken.add(name)
            self._given[key] = name
        return self._given[key]

    def _wanted(self, label: str, shape: tuple[int, ...]) -> str:
        plain = label.replace("/", ".").strip(".")
        numbered = "::" in label or re.fullmatch(r"(?:val|constant|onnx)_?[\d.]*", plain)
        if numbered and label in self.paths:
            plain = f"{self.paths[label]}.{'sinks' if _per_head(shape) else 'weight'}"
        tail = _TAIL.search(plain)
        stem = plain[: tail.start()] if tail else plain
        stem = stem.removesuffix(".MatMul").removesuffix(".Add")
        found = _canonical(stem)
        if found is None:
            return ".".join(part for part in re.split(r"\W+", plain) if part) or "weight"
        return f"{found}_bias" if tail and tail.group(1) == "bias" else found


def _per_head(shape: tuple[int, ...]) -> bool:
    """Whether a weight is one number a head, laid out for scores [B, H, T, S]."""
    return len(shape) == 4 and shape[0] == shape[2] == shape[3] == 1
