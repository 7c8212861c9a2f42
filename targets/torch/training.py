"""The training module: Python written from the front IR, and the loader that runs it.

The keys of ``state_dict()`` are the names of the weights in the IR, one to one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from omnic.errors import InputError, InternalError
from omnic.ir.graph import Module
from omnic.passes.specialise import specialise_train
from omnic.targets.torch import library
from omnic.targets.torch.text.load import load_source
from omnic.targets.torch.text.scopes import Scope, ScopeTree
from omnic.targets.torch.text.steps import (
    ROUTER_LISTS,
    Program,
    Step,
    bring_out_routers,
    dead_code,
    hoist_rope_tables,
    name_causal_attention,
    program_of,
)
from omnic.targets.torch.text.training import TRAINING
from omnic.targets.torch.text.write import library_source, write_classes

if TYPE_CHECKING:
    from omnic.ir.weights import WeightStore

__all__ = ["emit_training", "load_training_module"]

_HEAD = '''"""{title}: the training module, written by omnic from its IR.

model(tokens: int64 [B, T]) returns a dict:
{outputs}{mtp}

The keys of model.state_dict() are the names of the weights everywhere else in omnic.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
'''
_OUTPUTS = {
    "logits": "logits         [B, T, V], of the next token",
    "hidden": "hidden         [B, T, D], the residual stream before the final norm (after it with heads.mtp.normed)",
    "mtp": "mtp            [B, T, depth, V], head j predicts the token after the next j + 1",
    "verifier": "verifier       [B, T, V]",
    "router_logits": "router_logits  a list of [B, T, E], one for each mixture of experts (also model.router_logits)",
    "router_indices": "router_indices a list of int64 [B, T, k], the experts chosen (also model.router_indices)",
    "router_gates": "router_gates   a list of [B, T, k], their gates (also model.router_gates)",
}


def emit_training(module: Module, choices: bool = False) -> str:
    """Return the source of the training module of ``module`` (a front module).

    Args:
        module: the front module.
        choices: it also returns the experts that its routers chose and their gates.

    Raises:
        InputError: the module keeps states that training cannot do without.
    """
    trained = specialise_train(module)
    programs = [_prepared(trained, name, choices) for name in trained.functions]
    tree = ScopeTree(programs, trained.weights)
    methods = {p.name: "forward" if p.name == "forward" else f"{p.name.replace('.', '_')}_forward" for p in programs}
    limit = max(int(trained.dims["T"].high), int(str(trained.meta.get("context", 0))))
    classes, helpers = write_classes(programs, tree, TRAINING, _class_name, methods, limit)
    outputs = [*programs[0].results, *(n for n in ROUTER_LISTS if n in programs[0].routers.values())]
    head = _HEAD.format(
        title=module.name,
        outputs="\n".join(f"    {_OUTPUTS.get(n, n)}" for n in outputs),
        mtp="".join(
            f"\n\nmodel.{m}(hidden, next_tokens) returns (logits, hidden) of the multi-token-prediction block."
            for n, m in methods.items()
            if n != "forward"
        ),
    )
    functions = _with_dependencies(helpers)
    imports = "\nfrom omnic.targets.torch.grouped import grouped_linear\n" if "mix_experts" in functions else ""
    source = library_source([getattr(library, n) for n in functions])
    texts = [*(c.text for c in classes[:-1]), classes[-1].text + _several_blocks(list(methods))]
    return "\n\n".join([head + imports, source, *texts]).rstrip("\n") + "\n"


def _several_blocks(functions: list[str]) -> str:
    """Return the method that picks one of several MTP blocks; nothing for one block, which is that method itself."""
    count = sum(name.startswith("mtp.") for name in functions)
    if not count:
        return ""
    methods = ", ".join(f"self.mtp_{n}_forward" for n in range(count))
    return (
        "\n    def mtp_forward(self, hidden, next_tokens, depth=0):\n"
        f"        return ({methods}{',' if count == 1 else ''})[min(depth, {count - 1})](hidden, next_tokens)\n"
    )


def _prepared(module: Module, name: str, choices: bool) -> Program:
    program = program_of(module.function(name))
    name_causal_attention(program)
    hoist_rope_tables(program)
    if name == "forward":
        bring_out_routers(program, choices)
    dead_code(program)
    used = {v for step in program.steps for v in step.inputs()} | program.returned()
    program.params = [p for p in program.params if p in used]
    return program


def _with_dependencies(names: list[str]) -> list[str]:
    """Return ``names`` and the library functions they call, in the library's order."""
    wanted, queue = set(names), list(names)
    while queue:
        called = getattr(library, queue.pop()).__code__.co_names
        fresh = [n for n in called if n in library.__all__ and n not in wanted]
        wanted.update(fresh)
        queue += fresh
    order = {n: i for i, n in enumerate(vars(library))}
    return sorted(wanted, key=lambda n: order[n])


def _class_name(scope: Scope) -> str:
    """Return what a person would call the class of a scope."""
    ops = {s.op for body in scope.bodies.values() for e in body.entries if isinstance(e, Step) for s in [e]}
    last = scope.path.rsplit(".", 1)[-1]
    if "moe" in ops:
        return "MoE"
    if ops & {"causal_mla", "mla"}:
        return "LatentAttention"
    if ops & {"causal_attention", "attention"}:
        return "Attention"
    if last.isdigit():
        return scope.path.rsplit(".", 2)[-2].removesuffix("s").capitalize()
    named = {"ffn": "MLP", "shared": "MLP", "mtp": "MTP", "block": "Block"}
    return named.get(last, "".join(w.capitalize() for w in last.split("_")))


def load_training_module(module: Module, weights: WeightStore | None = None, choices: bool = False) -> nn.Module:
    """Return the training module of ``module`` with its numbers, parameters in f32.

    Args:
        module: a front module.
        weights: where its numbers come from; None leaves the parameters uninitialised.
        choices: the model also returns ``router_indices`` and ``router_gates``, one of each a router.

    Raises:
        InputError: a weight is not finite, missing, or of another shape.
    """
    model = load_source(emit_training(module, choices), module.name).Model()
    assert isinstance(model, nn.Module)
    parameters = dict(model.named_parameters())
    if set(parameters) != set(module.weights):
        raise InternalError(
            f"the emitted module of {module.name} has other parameters than the IR: "
            f"{sorted(set(parameters) ^ set(module.weights))[:4]}"
        )
    if weights is None:
        return model
    with torch.no_grad():
        for name, parameter in parameters.items():
            numbers = np.array(weights.array(name), dtype=np.float32)
            if numbers.shape != tuple(parameter.shape):
                raise InputError(f"weight {name} is {list(numbers.shape)}, the model wants {list(parameter.shape)}")
            parameter.copy_(torch.from_numpy(numbers))
    return model
