"""omnic: a compiler toolchain for generative models that run on devices.

The public names are loaded on first use, so ``import omnic`` costs neither torch nor a backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omnic.api import compile, import_checkpoint, load
    from omnic.errors import (
        BundleError,
        CheckFailed,
        Diagnostic,
        DiagnosticError,
        InputError,
        InternalError,
        MissingExtraError,
        OmnicError,
        Span,
    )
    from omnic.spec import Spec, load_spec

__version__ = "0.1.0"

__all__ = [
    "BundleError",
    "CheckFailed",
    "Diagnostic",
    "DiagnosticError",
    "InputError",
    "InternalError",
    "MissingExtraError",
    "OmnicError",
    "Span",
    "Spec",
    "__version__",
    "compile",
    "import_checkpoint",
    "load",
    "load_spec",
]

# Which module each public name lives in; a name added here is added above as well.
_HOME = {
    **dict.fromkeys(
        (
            "BundleError",
            "CheckFailed",
            "Diagnostic",
            "DiagnosticError",
            "InputError",
            "InternalError",
            "MissingExtraError",
            "OmnicError",
            "Span",
        ),
        "omnic.errors",
    ),
    **dict.fromkeys(("Spec", "load_spec"), "omnic.spec"),
    **dict.fromkeys(("compile", "import_checkpoint", "load"), "omnic.api"),
}


def __getattr__(name: str) -> object:
    """Import the module that holds ``name`` and return it (PEP 562)."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'omnic' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, loaded or not."""
    return sorted({*globals(), *__all__})
