"""What is taken from coremltools: imported in one place, its chatter about what it cannot do here kept quiet."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import Any

with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
    warnings.simplefilter("ignore")
    _level = logging.root.manager.disable
    # Of missing Core ML, of the versions of torch and scikit-learn, none of which is used.
    logging.disable(logging.WARNING)
    import coremltools
    from coremltools import proto
    from coremltools.converters.mil import Builder as _Builder
    from coremltools.converters.mil.backend.mil.load import CoreMLProtoExporter as _CoreMLProtoExporter
    from coremltools.converters.mil.backend.mil.load import MILProtoExporter
    from coremltools.converters.mil.mil import Function, Program, Var, get_new_symbol, types
    from coremltools.libmilstoragepython import _BlobStorageReader as BlobReader
    from coremltools.libmilstoragepython import _BlobStorageWriter as BlobWriter
    from coremltools.libmodelpackage import ModelPackage

    logging.disable(_level)

#: the builder's methods are made when coremltools is imported
Builder: Any = _Builder
CoreMLProtoExporter: Any = _CoreMLProtoExporter

__all__ = ["BlobReader", "BlobWriter", "Builder", "CoreMLProtoExporter", "Function", "MILProtoExporter", "ModelPackage",
           "Program", "Var", "coremltools", "get_new_symbol", "nptype", "proto", "type_word", "types"]


def nptype(word: str) -> Any:
    """Return the numpy type that stands for a type of MIL, such as ``int4``."""
    return types.nptype_from_builtin(types.string_to_builtin(word))


def type_word(var: Any) -> str:
    """Return the word for a value's element type, such as ``fp32``."""
    return types.builtin_to_string(var.dtype)
