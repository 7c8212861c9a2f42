"""What ``bench`` and ``tune`` share: a model that is a bundle, or a spec with what a compile of it takes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from omnic.errors import InputError

if TYPE_CHECKING:
    from omnic.runtime.bundle import Bundle

__all__ = ["given_bundle", "spec_options"]


def spec_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that go with a spec."""
    parser.add_argument("--weights", metavar="FILE", help="of a spec: a safetensors file (default: what it names)")
    parser.add_argument("--seed", type=int, metavar="N", help="of a spec: random weights instead of trained ones")
    parser.add_argument("--pass", dest="passes", action="append", default=[], metavar="NAME{opt=val}",
                        help="of a spec: run this pass; may be repeated")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE",
                        help="of a spec: an option of the target; may be repeated")


def given_bundle(args: argparse.Namespace) -> Bundle | None:
    """Return the bundle that ``args.model`` names, None where it is no bundle.

    Raises:
        InputError: options of a spec were given with it.
    """
    from omnic.runtime.bundle import MANIFEST, open_bundle

    path = Path(args.model)
    if not (path / MANIFEST).is_file() and path.name != MANIFEST:
        return None
    given = [n for n, v in (("--target", args.target), ("--weights", args.weights), ("--seed", args.seed),
                            ("--pass", args.passes), ("--option", args.option)) if v not in (None, [])]  # fmt: skip
    if given:
        raise InputError(f"{given[0]} is for a spec, and {path} is a bundle", "leave it out, or give the spec")
    return open_bundle(path)
