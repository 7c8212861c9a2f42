"""What a training in few bits begins with: the types that ``int4-packing`` gives, and the codes of GPTQ in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from omnic.compiler.lowering import listed_passes, pass_context
from omnic.errors import InputError
from omnic.ir.packing import QTensor, check_storage
from omnic.ir.types import ElementType, Storage, parse_element
from omnic.ir.weights import ResultStore, WeightStore
from omnic.models import build
from omnic.passes.base import check_options, run_passes
from omnic.passes.quantise.pack import Int4Packing
from omnic.runtime.files import sha256_file
from omnic.runtime.tokenizer import Tokenizer
from omnic.spec import Spec

__all__ = ["begin", "packing_of"]

_SWEEPS = 3
_EXAMPLES = "write t2<g64>, i4<g32, asym>, i8<row>, ..."
#: with 8 bits and more, rounding to nearest is as good a start as any
_FINE = 8


def packing_of(spec: Spec, text: str) -> Int4Packing:
    """Return the packing whose types a training is for: of the storage type ``text``, or the one the spec lists.

    Raises:
        InputError: no storage type, one that int4-packing does not give, or nothing named and nothing listed.
    """
    if text:
        try:
            element = parse_element(text)
        except InputError as error:
            raise InputError(f"--qat {text}: {error.message}", error.hint or _EXAMPLES) from error
        if not isinstance(element, Storage):
            raise InputError(f"--qat {text}: that is no storage type", _EXAMPLES)
        check_storage(element)
        if element.scale not in ("f16", "f32"):
            raise InputError(f"--qat {text}: such scales cannot be trained", "use f16 or f32 scales")
        if element.group < 0 or element.axis != -1:
            raise InputError(f"--qat {text}: groups run along a row here", _EXAMPLES)
        made = Int4Packing(kind=element.kind, group=element.group, asym=element.asym, scale=element.scale)
        check_options(made)
        return made
    listed = [each.made for each in listed_passes(spec) if isinstance(each.made, Int4Packing)]
    if not listed:
        raise InputError(f"{spec.model} lists no int4-packing whose types could be trained",
                         "name a storage type: --qat 't2<g64>'")
    return listed[-1]


def begin(
    spec: Spec, packing: Int4Packing, results: ResultStore, progress: Callable[[str, float], None]
) -> tuple[Mapping[str, ElementType], Mapping[str, QTensor]]:
    """Return the storage type that ``packing`` gives each weight of ``spec``, and GPTQ's codes where it finds some.

    Raises:
        InputError: the spec names no weights or no tokenizer, or its weights are codes already.
    """
    source, tokenizer = spec.resolve("weights"), spec.resolve("tokenizer")
    if source is None or tokenizer is None:
        raise InputError(f"{spec.model} has no weights to train in few bits", "train it first, without --qat")
    store = WeightStore.load(build(spec), source, results)
    coded = [n for n, w in store.module.weights.items() if isinstance(w.type.element, Storage)]
    if coded:
        raise InputError(f"{source} holds codes already, such as {coded[0]} in {store.module.weights[coded[0]].type}",
                         "train from the weights as they were before")
    fine = not packing.mix and packing.kind == "i8"
    chosen = packing if packing.mix or fine else replace(packing, method="gptq", sweeps=_SWEEPS)
    context = pass_context(spec, store, sha256_file(source), Tokenizer.load(tokenizer), results, progress=progress)
    module = run_passes(store.module, [chosen], context).module
    types = {n: w.type.element for n, w in module.weights.items() if isinstance(w.type.element, Storage)}
    begun = store.with_module(module)
    return types, {n: begun.quantised(n) for n in types if module.weights[n].recipe.kind == "stored"}
