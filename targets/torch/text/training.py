"""Lowering of composites for the training module: lines of library calls that autograd and autocast take."""

from __future__ import annotations

from dataclasses import fields

from omnic.errors import InputError
from omnic.ir.rope import rope_frequencies
from omnic.ir.router_training import RouterTraining
from omnic.ir.types import DType
from omnic.targets.torch.text.core import CORE, Code, Lowering, Pen, call, gate_numbers, torch_dtype
from omnic.targets.torch.text.steps import Step

__all__ = ["TRAINING", "activation"]

_ACTIVATIONS = {
    "silu": "F.silu({})",
    "gelu": "F.gelu({})",
    "gelu_tanh": 'F.gelu({}, approximate="tanh")',
    "relu": "F.relu({})",
}


def activation(pen: Pen, kind: str, x: str) -> str:
    """Return the expression of an activation of the expression ``x``."""
    return f"{pen.helper('relu2')}({x})" if kind == "relu2" else _ACTIVATIONS[kind].format(x)


def _linear(pen: Pen, step: Step) -> Code:
    x, w, bias = step.operands
    if step.attrs["act"] != "none":
        raise InputError(
            f"{step.scope}: activations quantised as {step.attrs['act']} cannot be trained", "train the front module"
        )
    return call("F.linear", pen.arg(x), pen.arg(w), pen.arg(bias) if bias else "")


def _embedding(pen: Pen, step: Step) -> Code:
    w, tokens = step.operands
    return call("F.embedding", pen.arg(tokens), pen.arg(w))


def _fake_quant(pen: Pen, step: Step) -> Code:
    to, x = step.attrs["to"], step.operands[0]
    if isinstance(to, DType):
        return Code(f"{pen.atom(x)}.to({torch_dtype(to)}).float()")
    if to.kind in ("nf4", "fp4") or to.scale not in ("f16", "f32") or to.axis != -1 or to.group < 0:
        raise InputError(f"{step.scope}: {to} cannot be trained", "integers and t2 in groups of the last dim can")
    size = x.type.shape[-1] if x is not None else 0
    if to.group and int(str(size)) % to.group:
        raise InputError(f"{step.scope}: a last group that is short cannot be trained: {to} of {size} numbers")
    words = [pen.arg(x), f'"{to.kind}"', str(to.group), "asym=True" if to.asym else ""]
    return call(pen.helper("fake_quant"), *words, 'scale="f32"' if to.scale == "f32" else "")


def _act(pen: Pen, step: Step) -> Code:
    return Code(activation(pen, step.attrs["kind"], pen.arg(step.operands[0])))


def _gated_act(pen: Pen, step: Step) -> Code:
    gate, up = step.operands
    numbers = gate_numbers(step)
    if numbers:
        return call(pen.helper("gated"), pen.arg(gate), pen.arg(up), f'"{step.attrs["kind"]}"', *numbers)
    return Code(f"{activation(pen, step.attrs['kind'], pen.arg(gate))} * {pen.atom(up)}", False)


def _rms_norm(pen: Pen, step: Step) -> Code:
    return call(pen.helper("rms_norm"), *(pen.arg(v) for v in step.operands), pen.number("eps", step.attrs["eps"]))


def _layer_norm(pen: Pen, step: Step) -> Code:
    return call(pen.helper("layer_norm"), *(pen.arg(v) for v in step.operands), pen.number("eps", step.attrs["eps"]))


def _rope_table(pen: Pen, step: Step) -> Code:
    positions, attrs = step.operands[0], step.attrs
    if attrs["scaling"] == "none":
        name, numbers = "rope_table", (repr(attrs["dims"]), repr(attrs["base"]))
    else:
        frequencies, magnitude = rope_frequencies(**attrs)
        name, numbers = "scaled_rope_table", (repr(frequencies), repr(magnitude))
    if positions is not None:
        return call(pen.helper(name), pen.arg(positions), *numbers)
    # One table for every position there can be, made once: compiled graphs would compute it again in each layer.
    cos, sin = pen.buffers(("cos", "sin"), call(pen.helper(name), "torch.arange({limit})", *numbers).text)
    tokens = pen.dims(step.results[0].type.shape[:1])
    return Code(f"{cos}[:{tokens}], {sin}[:{tokens}]")


def _rotate(pen: Pen, step: Step) -> Code:
    return call(
        pen.helper("rotate_pairs" if step.attrs["interleaved"] else "rotate"), *(pen.arg(v) for v in step.operands)
    )


def _options(pen: Pen, step: Step) -> list[str]:
    """Return scale, and window and softcap where they are set."""
    found = [f"scale={pen.number('scale', step.attrs['scale'])}"]
    return found + [f"{n}={pen.number(n, step.attrs[n])}" for n in ("window", "softcap") if step.attrs[n]]


def _causal_attention(pen: Pen, step: Step) -> Code:
    q, k, v, sinks = step.operands
    capped = step.attrs["softcap"] or sinks is not None
    return call(
        pen.helper("attend_capped" if capped else "attend"),
        pen.arg(q),
        pen.arg(k),
        pen.arg(v),
        *_options(pen, step),
        f"sinks={pen.arg(sinks)}" if sinks is not None else "",
    )


def _causal_mla(pen: Pen, step: Step) -> Code:
    return call(pen.helper("attend_latent"), *(pen.arg(v) for v in step.operands), *_options(pen, step))


def _router(pen: Pen, step: Step) -> Code:
    x, weight, group_weight, bias, gate_bias = step.operands
    attrs = step.attrs
    words = [pen.arg(x), pen.arg(weight)]
    words += [f"group_weight={pen.arg(group_weight)}"] if group_weight is not None else []
    words += [f"bias={pen.arg(bias)}"] if bias is not None else []
    words += [f"gate_bias={pen.arg(gate_bias)}"] if gate_bias is not None else []
    words.append(f"top_k={pen.number('top_k', attrs['top_k'])}")
    if attrs["groups"] is not None:
        words += [f"groups={attrs['groups']}", f"top_groups={pen.number('top_groups', attrs['top_groups'])}"]
    words += [f'group_score="{attrs["group_score"]}"'] if attrs["group_score"] != "max" else []
    words += [f'score="{attrs["score"]}"'] if attrs["score"] != "softmax" else []
    words += ["renormalise=False"] if not attrs["renormalise"] else []
    words += [f"scale={pen.number('scale', attrs['scale'])}"] if attrs["scale"] != 1.0 else []
    rule = RouterTraining.parse(attrs["train"])
    if rule.noisy:
        values = ((f.name, getattr(rule, f.name), f.default) for f in fields(rule) if f.name != "dropout")
        noise = (f"{name}={pen.number(name, value)}" for name, value, off in values if value != off)
        own = f"gate_bias={pen.arg(gate_bias)}" if gate_bias is not None else ""
        noisy = call(pen.helper("noisy_logits"), pen.arg(x), pen.arg(weight), "self.training", own, *noise)
        words.append(f"logits={noisy.text}")
    if rule.dropout:
        words.append(f"dropout={pen.number('dropout', rule.dropout)} if self.training else 0.0")
    return call(pen.helper("route"), *words)


def _moe(pen: Pen, step: Step) -> Code:
    named = zip(("gate", "up_bias", "down_bias", "gate_bias"), step.operands[5:], strict=True)
    return call(
        pen.helper("mix_experts"),
        *(pen.arg(v) for v in step.operands[:5]),
        *(f"{n}={pen.arg(v)}" for n, v in named if v is not None),
        f'kind="{step.attrs["kind"]}"',
        *gate_numbers(step),
    )


def _lm_head(pen: Pen, step: Step) -> Code:
    x, w, rows, bias = step.operands
    wanted = pen.arg(x) if rows is None else f"{pen.atom(x)}.take_along_dim({pen.atom(rows)}[..., None], 1)"
    product = call("F.linear", wanted, pen.arg(w), pen.arg(bias) if bias else "").text
    full = f"{pen.helper('full_precision')}({product})"
    cap = step.attrs["softcap"]
    if not cap:
        return Code(full)
    number = pen.number("softcap", cap)
    return Code(f"{number} * torch.tanh({full} / {number})", False)


#: op -> how the training module writes it
TRAINING: dict[str, Lowering] = {
    **CORE,
    "linear": _linear,
    "embedding": _embedding,
    "act": _act,
    "fake_quant": _fake_quant,
    "gated_act": _gated_act,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "rope_table": _rope_table,
    "rotate": _rotate,
    "causal_attention": _causal_attention,
    "causal_mla": _causal_mla,
    "router": _router,
    "moe": _moe,
    "lm_head": _lm_head,
}
