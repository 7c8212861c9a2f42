"""The verifier: a table of named rules that every module must keep.

Problems are placed in the text form: in the text that was parsed, or else in the text that the module
prints as; and in the spec, where the node says so.
"""

from __future__ import annotations

from omnic.errors import Diagnostic, InternalError
from omnic.ir.graph import Module
from omnic.ir.text.lexer import Source
from omnic.ir.text.parser import parse_with_tree, raise_problems
from omnic.ir.text.printer import print_module
from omnic.ir.text.reader import read_tree
from omnic.ir.text.tree import ModuleTree
from omnic.ir.verify import declarations, functions, recipes, stateful
from omnic.ir.verify.problem import FunctionRule, ModuleRule, Problem, locate

__all__ = ["FUNCTION_RULES", "MODULE_RULES", "Problem", "problems", "verify", "verify_text"]

MODULE_RULES: dict[str, ModuleRule] = {
    "names": declarations.names,
    "dims": declarations.dims,
    "weights": declarations.weights,
    "recipes": recipes.recipes,
    "states": declarations.states,
    "prefill": stateful.prefill,
    "decoded": stateful.decoded,
}

FUNCTION_RULES: dict[str, FunctionRule] = {
    "definitions": functions.definitions,
    "weights-used": functions.weights_used,
    "declared-dims": functions.declared_dims,
    "types": functions.types,
    "value-types": functions.value_types,
    "bound-dims": functions.bound_dims,
    "node-names": functions.node_names,
    "result-names": functions.result_names,
    "latent-weights": functions.latent_weights,
    "aliases": stateful.aliases,
    "versions": stateful.versions,
    "rings": stateful.rings,
    "forward": stateful.forward,
}


def problems(module: Module) -> list[Problem]:
    """Return everything that is wrong with ``module``, rule by rule."""
    found = [p for rule in MODULE_RULES.values() for p in rule(module)]
    for function in module.functions.values():
        found += [p for rule in FUNCTION_RULES.values() for p in rule(module, function)]
    return found


def verify(module: Module) -> None:
    """Check that ``module`` keeps every rule.

    Raises:
        DiagnosticError: it does not; carets point into the text that the module prints as.
    """
    found = problems(module)
    if not found:
        return
    source = Source(print_module(module), f"@{module.name}")
    tree, _ = read_tree(source)
    raise_problems(_placed(found, tree, source))
    raise InternalError("problems of a module were lost")


def verify_text(text: str, file: str = "<string>") -> Module:
    """Parse ``text``, check it, and return the module.

    Raises:
        DiagnosticError: the text or the module is wrong; carets point into ``text``.
    """
    source = Source(text, file)
    module, tree = parse_with_tree(source)
    raise_problems(_placed(problems(module), tree, source))
    return module


def _placed(found: list[Problem], tree: ModuleTree, source: Source) -> list[Diagnostic]:
    return [p.diagnostic(locate(p.place, tree, source)) for p in found]
