"""``omnic export SPEC --as FORM``: a spec in the other language, or the model as others publish theirs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omnic.spec import Spec

NAME = "export"
HELP = "write a spec as YAML, DSL or JSON, or the model as a Hugging Face checkpoint or a GGUF file"

SUFFIX = {"yaml": ".yaml", "dsl": ".omnic", "json": ".json"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("spec", metavar="SPEC", help="a spec file or the name of a preset")
    parser.add_argument("--as", dest="form", choices=(*SUFFIX, "hf", "gguf"), required=True, help="the form to write")
    parser.add_argument(
        "-o", "--out", metavar="PATH", help="where to; a spec without it goes to stdout, a checkpoint is a folder"
    )
    parser.add_argument("--weights", metavar="FILE", help="hf, gguf: weights other than those the spec names")
    parser.add_argument("--seed", type=int, metavar="N", help="hf, gguf: random weights instead")
    parser.add_argument(
        "--family", metavar="NAME",
        help="hf: the model_type to write, gguf: the architecture (default: the first that fits)",
    )  # fmt: skip
    parser.add_argument(
        "--without-heads", action="store_true", help="hf, gguf: leave out heads beside the main one (speculation's)"
    )
    parser.add_argument(
        "--type", choices=("keep", "f32", "f16", "bf16", "q8_0", "q4_0"), default="keep",
        help="gguf: how matrices are written (default keep: as the weights are, codes included)",
    )  # fmt: skip
    parser.add_argument("--without-tokenizer", action="store_true", help="gguf: for callers that give token ids")
    parser.add_argument("--force", action="store_true", help="replace a file of other content")


def run(args: argparse.Namespace) -> int:
    """Write the spec; what it extends is merged in, comments are not kept."""
    from omnic.spec import load_spec, to_dsl, to_json, to_yaml

    spec = load_spec(args.spec)
    if args.form == "hf":
        return _checkpoint(args, spec)
    if args.form == "gguf":
        return _gguf(args, spec)
    text = {"yaml": to_yaml, "dsl": to_dsl, "json": to_json}[args.form](spec)
    if args.out is None:
        print(text, end="")
        return 0
    _write(args.out, text, args.form, args.force)
    print(f"{args.out}: written")
    return 0


def _checkpoint(args: argparse.Namespace, spec: Spec) -> int:
    from pathlib import Path

    from omnic.compiler.exporting import export_hf
    from omnic.compiler.progress import Bar
    from omnic.errors import InputError

    if args.out is None:
        raise InputError("a checkpoint is a folder", "name it: -o DIR")
    with Bar(f"{spec.model} → hf") as bar:
        report = export_hf(
            spec, Path(args.out), weights=Path(args.weights) if args.weights else None, seed=args.seed,
            family=args.family, heads=not args.without_heads, force=args.force, progress=bar,
        )  # fmt: skip
    print(f"{report.folder}: {report.family}, {report.parameters / 1e6:,.2f} M parameters")
    for name in report.files:
        print(f"  {name}")
    return 0


def _gguf(args: argparse.Namespace, spec: Spec) -> int:
    from pathlib import Path

    from omnic.compiler.exporting_gguf import export_gguf
    from omnic.compiler.progress import Bar
    from omnic.errors import InputError
    from omnic.runtime.files import human_bytes

    if args.out is None:
        raise InputError("a GGUF file has no text", "name it: -o FILE.gguf")
    with Bar(f"{spec.model} → gguf") as bar:
        report = export_gguf(
            spec, Path(args.out), weights=Path(args.weights) if args.weights else None, seed=args.seed,
            family=args.family, type=args.type, heads=not args.without_heads, tokenizer=not args.without_tokenizer,
            force=args.force, progress=bar,
        )  # fmt: skip
    types = ", ".join(f"{count} {name}" for name, count in report.written.types.items())
    kept = f" ({report.written.kept} kept their codes)" if report.written.kept else ""
    print(f"{report.file}: {report.architecture}, {report.parameters / 1e6:,.2f} M parameters, "
          f"{human_bytes(report.bytes)}")
    print(f"  tensors    {types}{kept}")
    print(f"  tokenizer  {report.tokenizer}")
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
