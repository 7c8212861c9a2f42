"""``omnic tokenizer build``: a byte-level BPE from a corpus, the same file every time."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from omnic.errors import InputError

NAME = "tokenizer"
HELP = "build a byte-level BPE tokenizer from a corpus"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("action", choices=["build"], help="build: learn the merges and write tokenizer.json")
    parser.add_argument("--vocab-size", type=int, metavar="N", help="entries in all (default: SPEC's, else 4096)")
    parser.add_argument("--spec", metavar="SPEC", help="take the size from a spec file or a preset")
    parser.add_argument(
        "--corpus", default="stdlib", metavar="TEXT", help="stdlib, stdlib+tests or a folder of text (default stdlib)"
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("tokenizer.json"), metavar="FILE", help="(default tokenizer.json)"
    )
    parser.add_argument("--force", action="store_true", help="replace a file of other content")
    parser.add_argument("--json", action="store_true", help="print what was built as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Build the tokenizer and say how well it packs the held-out text."""
    from omnic.runtime.tokenizer import Tokenizer
    from omnic.training.corpus import load_corpus
    from omnic.training.heldout import heldout
    from omnic.training.tokenizer_build import build_tokenizer

    size = args.vocab_size
    if args.spec is not None:
        from omnic.spec import load_spec

        wanted = load_spec(args.spec).vocab.size
        if size is not None and size != wanted:
            raise InputError(f"--vocab-size {size} is not the spec's vocab.size {wanted}", "give one of the two")
        size = wanted
    if args.out.is_dir():
        raise InputError(f"{args.out} is a folder", "give the file to write: -o DIR/tokenizer.json")
    if not args.out.parent.is_dir():
        raise InputError(f"there is no folder {args.out.parent}", "create it first")
    corpus = load_corpus(args.corpus)
    scratch = args.out.with_name(args.out.name + ".new")
    try:
        built = build_tokenizer(corpus, size or 4096, scratch)
        if args.out.exists() and args.out.read_bytes() != scratch.read_bytes() and not args.force:
            raise InputError(f"{args.out} exists and is another tokenizer", "choose another name with -o, or --force")
        scratch.replace(args.out)
    finally:
        scratch.unlink(missing_ok=True)
    tokenizer: Tokenizer = built
    held = heldout()
    facts = {
        "file": str(args.out),
        "size": tokenizer.size,
        "sha256": tokenizer.sha256,
        "corpus": {"source": corpus.source, "sha256": corpus.sha256, "bytes": corpus.size},
        "heldout_bytes_per_token": held.size / len(tokenizer.encode(held.text)),
    }
    if args.json:
        print(json.dumps(facts))
    else:
        print(args.out)
        print(
            f"{tokenizer.size} entries from {corpus.size / 1e6:.1f} MB, "
            f"{facts['heldout_bytes_per_token']:.3f} bytes a token on the held-out text",
            file=sys.stderr,
        )
    return 0
