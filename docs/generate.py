"""Writes the pages of docs/ that come from the code.

    python docs/generate.py           # write them
    python docs/generate.py --check   # exit 1 and name the pages that are not what the code says

A page is one line of ``PAGES``: its file, and the function that returns its text.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent

# File -> "module:function", a function without arguments that returns the whole page.
PAGES = {
    "cli.md": "omnic.cli_page:text",
    "ir.md": "omnic.ir.docs:text",
}


def produced(source: str) -> str:
    """Return the text of one page."""
    module, _, function = source.partition(":")
    return getattr(importlib.import_module(module), function)().rstrip() + "\n"


def main(arguments: list[str]) -> int:
    """Write every page, or with ``--check`` name the stale ones; return the exit code."""
    stale = []
    for name, source in PAGES.items():
        path, text = DOCS / name, produced(source)
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8", newline="\n")
            print(f"docs/{name}: written")
    if "--check" in arguments and stale:
        print(f"not what the code says: {', '.join(f'docs/{name}' for name in stale)}; run: make docs")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
