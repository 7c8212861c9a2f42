"""Running emitted source."""

from __future__ import annotations

import itertools
import linecache
import sys
from types import ModuleType

__all__ = ["load_source"]

_serial = itertools.count()


def load_source(source: str, name: str) -> ModuleType:
    """Run emitted source as a Python module of its own; tracebacks, ``inspect`` and torch.compile find its lines.

    Only text that an emitter made in this process, from an IR module, may come here.
    """
    title = f"omnic_emitted_{''.join(c if c.isalnum() else '_' for c in name)}_{next(_serial)}"
    file = f"<{title}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    made = ModuleType(title)
    made.__file__ = file
    sys.modules[title] = made  # torch.compile looks the globals of what it traces up by module name
    exec(compile(source, file, "exec"), made.__dict__)
    return made
