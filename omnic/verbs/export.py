"""``omnic export SPEC --as yaml|dsl|json``: a spec in the other language."""

from __future__ import annotations

import argparse

NAME = "export"
HELP = "write a spec as YAML, DSL or JSON"

SUFFIX = {"yaml": ".yaml", "dsl": ".omnic", "json": ".json"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("spec", metavar="SPEC", help="a spec file or the name of a preset")
    parser.add_argument("--as", dest="form", choices=tuple(SUFFIX), required=True, help="the form to write")
    parser.add_argument("-o", "--out", metavar="FILE", help="where to; without it the text goes to stdout")
    parser.add_argument("--force", action="store_true", help="replace a file of other content")


def run(args: argparse.Namespace) -> int:
    """Write the spec; what it extends is merged in, comments are not kept."""
    from omnic.spec import load_spec, to_dsl, to_json, to_yaml

    spec = load_spec(args.spec)
    text = {"yaml": to_yaml, "dsl": to_dsl, "json": to_json}[args.form](spec)
    if args.out is None:
        print(text, end="")
        return 0
    _write(args.out, text, args.form, args.force)
    print(f"{args.out}: written")
    return 0


def _write(out: str, text: str, form: str, force: bool) -> None:
    """Write ``text`` to a file, whole or not at all."""
    import os
    from pathlib import Path

    from omnic.errors import InputError

    path = Path(out)
    if path.is_dir():
        raise InputError(f"{out} is a folder", f"name a file, as {path / ('model' + SUFFIX[form])}")
    if path.exists() and not force and path.read_bytes() != text.encode():
        raise InputError(f"{out} exists with other content", "--force replaces it")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist", "create it first")
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
