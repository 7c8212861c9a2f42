"""The sandbox chat templates run in, and what they find there: the same as with ``transformers`` 5.23.

Filter ``tojson`` (no HTML escapes), functions ``raise_exception`` and ``strftime_now``, ``break`` and ``continue``,
and blocks of ``{% generation %}``, which mark what the model says and render as their contents.  Namespaces and
``dict`` are forms that cannot reach the interpreter's own attributes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from omnic.errors import InputError

__all__ = ["compile_template", "rendered"]


def compile_template(source: str, origin: str, strict: bool = False) -> jinja2.Template:
    """Return a template ready to render.

    Args:
        source: Jinja text.
        origin: where it is from, for messages.
        strict: a name that is not there is an error, rather than nothing.

    Raises:
        InputError: not valid Jinja.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
        undefined=jinja2.StrictUndefined if strict else jinja2.Undefined,
    )
    environment.filters["tojson"] = _tojson
    lent: dict[str, Any] = {"raise_exception": _refuse, "strftime_now": _now, "dict": _Dict(), "namespace": _Namespace}
    environment.globals.update(lent)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"{origin}:{error.lineno}: the template is not valid Jinja: {error.message}") from error


def rendered(template: jinja2.Template, origin: str, **values: Any) -> str:
    """Return the text of a template.

    Raises:
        InputError: the template refuses the values, or fails with them.
    """
    try:
        return template.render(**values)
    except jinja2.TemplateError as error:
        raise InputError(f"{origin}: {error}") from error
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        # What a template's own expressions raise, such as None + "x".
        raise InputError(f"{origin}: the template failed: {type(error).__name__}: {error}") from error
    except RecursionError as error:
        raise InputError(f"{origin}: the template calls itself without end") from error


class _Generation(Extension):
    """``{% generation %}...{% endgeneration %}``."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Return the contents of the block as they are, in a scope of their own as ``transformers`` has it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """``dict(a=1)`` and ``dict.fromkeys(...)``, and nothing else of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Return a dict of the given keys."""
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """A namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # As jinja2's own: the object is in args, so that a template may set a name 'self'.
        self, rest = args[0], args[1:]
        names = dict(*rest, **kwargs)
        for name in names:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no name that begins with an underscore: {name!r}")


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if isinstance(value, Mapping) and not isinstance(value, dict):
        value = dict(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(format: str) -> str:
    return datetime.now().strftime(format)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
