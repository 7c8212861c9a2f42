"""Writes the pages of docs/ that come from the code.

    python docs/generate.py           # write them
    python docs/generate.py passes/   # only those whose name starts so
    python docs/generate.py --check   # exit 1 and name the pages that are not what the code says

A page is one line of ``PAGES``: its file, and the function that returns its text.  A folder is one line of
``FOLDERS``: the function returns the generated top of each page by file name; what is written by hand follows
it, from ``_text/`` of that folder under the same name.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent

# File -> "module:function", a function without arguments that returns the whole page.
PAGES = {
    "cli.md": "omnic.cli_page:text",
    "ir.md": "omnic.ir.docs:text",
    "passes/README.md": "omnic.passes.docs:index",
    "targets.md": "omnic.targets.docs:text",
}

# Folder -> "module:function", a function without arguments that returns the top of each page by file name.
FOLDERS = {
    "passes": "omnic.passes.docs:pages",
}


def call(source: str) -> Any:
    """Return what the function ``module:function`` returns."""
    module, _, function = source.partition(":")
    return getattr(importlib.import_module(module), function)()


def produced(start: str = "") -> dict[str, str]:
    """Return the text of every page whose name begins with ``start``, by its file under docs/."""
    texts = {name: call(source).rstrip() + "\n" for name, source in PAGES.items() if name.startswith(start)}
    for folder, source in FOLDERS.items():
        if not f"{folder}/".startswith(start) and not start.startswith(f"{folder}/"):
            continue
        for name, top in call(source).items():
            by_hand = DOCS / folder / "_text" / name
            below = by_hand.read_text(encoding="utf-8").strip() if by_hand.exists() else ""
            texts[f"{folder}/{name}"] = f"{top.rstrip()}\n" + (f"\n{below}\n" if below else "")
    return {name: text for name, text in texts.items() if name.startswith(start)}


def main(arguments: list[str]) -> int:
    """Write every page, or with ``--check`` name the stale ones; return the exit code."""
    stale = []
    start = next((word for word in arguments if word != "--check"), "")
    for name, text in produced(start).items():
        path = DOCS / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            print(f"docs/{name}: written")
    if "--check" in arguments and stale:
        print(f"not what the code says: {', '.join(f'docs/{name}' for name in stale)}; run: make docs")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
