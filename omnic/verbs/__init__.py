"""The verbs of the command line, one file each.

A file ``<verb>.py`` here is a verb: no table names it anywhere.  It defines::

    NAME = "check"
    HELP = "one line for the overview"
    def configure(parser: argparse.ArgumentParser) -> None: ...
    def run(args: argparse.Namespace) -> int: ...      # the exit code

and imports whatever is heavy inside ``run``.  ``HELP`` is read from the source text, so the
overview imports no verb at all.  A file whose name starts with an underscore is shared code.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType

from omnic.errors import InternalError

__all__ = ["GROUPS", "catalogue", "load"]

# The order of the overview; a verb that stands in no group is listed under the last heading.
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("describe a model", ("list", "check", "info", "explain", "plan")),
    ("train it", ("tokenizer", "train", "tune")),
    ("compile it", ("compile", "import", "export", "diff", "report")),
    ("use it", ("run", "chat", "serve", "bench")),
    ("more", ()),
)


def _files() -> dict[str, Path]:
    """Return verb name -> file; ``import_.py`` is the verb ``import``, ``a_b.py`` is ``a-b``."""
    folder = Path(__file__).parent
    return {
        path.stem.rstrip("_").replace("_", "-"): path
        for path in sorted(folder.glob("*.py"))
        if not path.stem.startswith("_")
    }


def _help_line(path: Path) -> str:
    """Return the literal ``HELP`` of a verb file without importing the file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "HELP" for t in node.targets):
            value = ast.literal_eval(node.value)
            if isinstance(value, str):
                return value
    raise InternalError(f"{path.name} defines no HELP string")


def catalogue() -> dict[str, str]:
    """Return every verb with its one-line help, in the order of the overview."""
    files = _files()
    grouped = [name for _, names in GROUPS for name in names if name in files]
    names = [*grouped, *(name for name in files if name not in grouped)]
    return {name: _help_line(files[name]) for name in names}


def names() -> list[str]:
    """Return the names of all verbs."""
    return [*_files()]  # a verb file named list.py shadows the builtin in this package


def load(name: str) -> ModuleType:
    """Import the file of one verb.

    Raises:
        KeyError: there is no such verb.
    """
    return importlib.import_module(f"omnic.verbs.{_files()[name].stem}")
