"""Random specs: plain data that is a valid spec, and texts that nearly are."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

ACTIVATIONS = ("swiglu", "geglu", "gelu", "gelu_tanh", "relu", "relu2", "silu")
WORDS = st.sampled_from(
    ["cpu", "ane", "a b", 'quo"te', "true", "none", "12", "1e-3", "é", "x/y.z", "#no", "kind", "block"]
)
SCALARS = st.one_of(WORDS, st.booleans(), st.none(), st.integers(-(10**9), 10**9), st.floats(-1e6, 1e6, width=32))


def sometimes(draw: Any, data: dict[str, Any], key: str, values: st.SearchStrategy[Any]) -> None:
    """Write ``key`` in one of three specs."""
    if draw(st.integers(0, 2)) == 0:
        data[key] = draw(values)


@st.composite
def ropes(draw: Any, context: int, dims: int) -> Any:
    if draw(st.integers(0, 4)) == 0:
        return None
    rope: dict[str, Any] = {}
    sometimes(draw, rope, "base", st.sampled_from([10000, 5e5, 1000000.0]))
    sometimes(draw, rope, "dims", st.integers(1, dims // 2).map(lambda half: 2 * half))
    sometimes(draw, rope, "interleaved", st.booleans())
    if draw(st.integers(0, 3)) == 0:
        kind = draw(st.sampled_from(["linear", "ntk", "yarn", "llama3"]))
        rope["scaling"] = scaling = {"kind": kind, "factor": draw(st.sampled_from([1, 2.5, 8]))}
        sometimes(draw, scaling, "original_context", st.integers(1, context))
        if kind == "yarn":
            sometimes(draw, scaling, "attention_factor", st.sampled_from([None, 0.5, 1]))
            sometimes(draw, scaling, "truncate", st.booleans())
    return rope


@st.composite
def attentions(draw: Any, context: int, repeat: int) -> dict[str, Any]:
    kind = draw(st.sampled_from(["mha", "gqa", "mqa", "mla"]))
    data: dict[str, Any] = {"kind": kind}
    if kind == "mla":
        data |= {
            "heads": draw(st.integers(1, 9)),
            "latent": draw(st.integers(1, 99)),
            "nope_dim": draw(st.integers(1, 64)),
        }
        data |= {"rope_dim": 2 * draw(st.integers(1, 32)), "v_dim": draw(st.integers(1, 64))}
        sometimes(draw, data, "q_latent", st.integers(1, 99))
        dims = data["rope_dim"]
    else:
        kv_heads = draw(st.integers(1, 4))
        data["heads"] = kv_heads * draw(st.integers(1, 9))
        if kind == "gqa":
            data["kv_heads"] = kv_heads
        data["head_dim"] = dims = 2 * draw(st.integers(1, 40))
        sometimes(draw, data, "qk_norm", st.booleans())
        sometimes(draw, data, "sinks", st.booleans())
    sometimes(draw, data, "rope", ropes(context, dims))
    sometimes(draw, data, "window", st.one_of(st.none(), st.integers(1, context)))
    sometimes(draw, data, "softcap", st.sampled_from([None, 30, 50.5]))
    sometimes(draw, data, "bias", st.booleans())
    sometimes(draw, data, "scale", st.sampled_from([None, 0.25]))
    if data.get("window") and draw(st.booleans()):
        data["pattern"] = draw(st.lists(st.sampled_from(["local", "global"]), min_size=1, max_size=repeat))
        if "global" in data["pattern"]:
            sometimes(draw, data, "global", st.sampled_from([{}, {"rope": {"base": 1000000}}, {"softcap": None}]))
        if "local" in data["pattern"]:
            sometimes(draw, data, "local", st.sampled_from([{}, {"window": 1}, {"bias": True, "scale": 2}]))
    return data


@st.composite
def ffns(draw: Any) -> dict[str, Any]:
    data: dict[str, Any] = {"kind": draw(st.sampled_from(["dense", "moe"]))}
    split = draw(st.sampled_from([1, 1, 2, 3]))
    data["hidden"] = split * draw(st.integers(1, 500))
    sometimes(draw, data, "activation", st.sampled_from(ACTIVATIONS))
    sometimes(draw, data, "bias", st.booleans())
    if data.get("activation", "swiglu") in ("swiglu", "geglu"):
        sometimes(draw, data, "activation_beta", st.sampled_from([0, 1, -0.5]))
        sometimes(draw, data, "activation_limit", st.sampled_from([None, 7, 0.5]))
    if data.get("activation", "swiglu") == "swiglu":
        sometimes(draw, data, "activation_alpha", st.sampled_from([1, 1.702]))
    if data["kind"] == "dense":
        return data
    if split > 1:
        data["split"] = split
    chosen = data["experts"] = draw(st.integers(1, 40))
    if data["experts"] > 1 and draw(st.booleans()):
        first = draw(st.integers(1, data["experts"] - 1))
        groups = data["groups"] = [first, data["experts"] - first]
        data["top_groups"] = draw(st.integers(1, 2))
        sometimes(draw, data, "group_gate", st.booleans())
        if not data.get("group_gate") and min(groups) * split > 1:
            sometimes(draw, data, "group_score", st.sampled_from(["max", "top2_sum"]))
        chosen = sum(sorted(groups)[: data["top_groups"]])
    data["top_k"] = draw(st.integers(1, chosen))
    if draw(st.booleans()):
        data["shared"] = draw(st.integers(1, 3))
        sometimes(draw, data, "shared_hidden", st.integers(1, 500))
    sometimes(draw, data, "score", st.sampled_from(["softmax", "sigmoid"]))
    sometimes(draw, data, "renormalise", st.booleans())
    sometimes(draw, data, "select_bias", st.booleans())
    sometimes(draw, data, "router_bias", st.booleans())
    sometimes(draw, data, "gate_scale", st.sampled_from([1, 2.5]))
    noise = st.fixed_dictionaries(
        {}, optional={"temperature": st.just(2), "gumbel": st.just(0.5), "dropout": st.just(0)}
    )
    sometimes(draw, data, "router", noise)
    return data


@st.composite
def spec_data(draw: Any) -> dict[str, Any]:
    """Plain data of a valid spec, most keys of the language in it now and then."""
    context = draw(st.integers(2, 5000))
    width = draw(st.integers(1, 400))
    data: dict[str, Any] = {"model": draw(st.sampled_from(["m", "tiny_2", "A-1.b"]))}
    data["vocab"] = {"size": draw(st.integers(2, 60000))}
    data["context"] = context
    sometimes(draw, data, "omnic", st.just(1))
    sometimes(draw, data, "chunk", st.integers(1, context))
    sometimes(draw, data, "dtype", st.sampled_from(["f32", "bf16", "f16"]))
    sometimes(draw, data, "kv_dtype", st.sampled_from(["f32", "bf16", "f16"]))
    sometimes(draw, data, "tie", st.booleans())
    sometimes(draw, data, "bias", st.booleans())
    norm = st.fixed_dictionaries(
        {},
        optional={
            "kind": st.sampled_from(["rms", "layer"]),
            "eps": st.sampled_from([1e-5, 1e-12]),
            "place": st.sampled_from(["pre", "post", "both"]),
        },
    )
    sometimes(draw, data, "norm", norm)
    sometimes(
        draw,
        data,
        "softcap",
        st.fixed_dictionaries({}, optional={"attention": st.sampled_from([None, 50]), "logits": st.just(30.5)}),
    )
    sometimes(draw, data, "init", st.just({"std": 0.006}))
    sometimes(draw, data, "weights", st.sampled_from(["m.safetensors", "a b/ä.safetensors"]))
    blocks = []
    for _ in range(draw(st.integers(1, 3))):
        repeat = draw(st.integers(1, 6))
        blocks.append(
            {"repeat": repeat, "width": width, "attention": draw(attentions(context, repeat)), "ffn": draw(ffns())}
        )
    data["blocks"] = blocks
    if draw(st.booleans()):
        heads: dict[str, Any] = {}
        if data.get("chunk", context) > 4:
            mtp: dict[str, Any] = {"kind": draw(st.sampled_from(["linear", "block"]))}
            sometimes(draw, mtp, "depth", st.integers(1, 3))
            if mtp["kind"] == "block":
                sometimes(draw, mtp, "ffn", ffns())
                sometimes(draw, mtp, "normed", st.booleans())
            heads["mtp"] = mtp
        sometimes(draw, heads, "verifier", st.booleans())
        data["heads"] = heads
    budget: dict[str, Any] = {}
    sometimes(draw, budget, "memory", st.sampled_from(["4GB", "512MiB", 123456789]))
    sometimes(draw, budget, "disk", st.sampled_from(["1.5GB", None]))
    sometimes(draw, data, "budget", st.just(budget))
    sometimes(
        draw, data, "passes", st.sampled_from(["auto", [], ["fold"], ["fold", {"weights": {"bits": 4, "kind": "nf4"}}]])
    )
    options = st.dictionaries(
        st.sampled_from(["ep", "compute", "kind", "opset"]),
        st.one_of(SCALARS, st.lists(SCALARS, max_size=3)),
        max_size=3,
    )
    sometimes(draw, data, "targets", st.dictionaries(st.sampled_from(["onnx", "torch", "coreml"]), options, max_size=3))
    return data


@st.composite
def near_misses(draw: Any, texts: st.SearchStrategy[str], marks: str) -> str:
    """A valid text with a few characters, words or lines changed, dropped, doubled or moved."""
    text = draw(texts)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        end = min(len(text), at + draw(st.integers(0, 12)))
        new = draw(st.one_of(st.sampled_from(list(marks)), st.sampled_from(PIECES), st.text(max_size=4)))
        match draw(st.integers(0, 3)):
            case 0:
                text = text[:at] + new + text[end:]
            case 1:
                text = text[:at] + text[end:]
            case 2:
                text = text[:at] + text[at:end] * 2 + text[end:]
            case _:
                other = draw(st.integers(0, len(text)))
                text = text[:at] + text[min(at, other) : max(at, other)][:40] + text[at:]
    return text


PIECES = [
    "none", "true", "-1", "0", "1e999", "99999999999999999999", "32k", "4GB", "kind", "moe", "mla", "block", "x block",
    "with rope(base = 1)", "extends: tiny", "extends tiny", "blocks: {0: {repeat: 2}}", "pattern: [local, global]",
    "!!python/name:os.system", "&a", "*a", "<<: 1", "---", "\u2028", "\x00", "\ud7ff",
    "{", "}", "[[[[", "((((", '"\\ud800"',
]  # fmt: skip
