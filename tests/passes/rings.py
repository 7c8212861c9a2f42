"""A small model with every kind of state that kv-quant may keep in blocks or beside recent tokens."""

#: windowed keys, windowed latents, and latents of the whole context
RINGS = """omnic: 1
model: rings
vocab: {size: 512}
context: 256
chunk: 64
blocks:
  - width: 32
    attention: {kind: gqa, heads: 4, kv_heads: 2, window: 40}
    ffn: {kind: dense, hidden: 48}
  - width: 32
    attention: {kind: mla, heads: 4, latent: 32, nope_dim: 8, rope_dim: 4, v_dim: 8, window: 40}
    ffn: {kind: dense, hidden: 48}
  - width: 32
    attention: {kind: mla, heads: 4, latent: 32, nope_dim: 8, rope_dim: 4, v_dim: 8}
    ffn: {kind: dense, hidden: 48}
"""
FORMS = {
    "newest in f16": "kv-quant{bits=4, keep=8}",
    "blocks": "kv-quant{bits=4, keys=channel, block=16, keep=4, recent=36}",
    "blocks, rope as it is": "kv-quant{bits=2, keys=channel, block=16, keep=0, recent=32, rope=keep}",
}
