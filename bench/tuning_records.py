"""Measure the records of tuning that omnic ships for this machine: the 125M class in int4 and tiny, on 1 and 2 threads.

    python bench/tuning_records.py [--budget 60s]

Writes targets/tvm/tuning/records/PROCESSOR-PLATFORM.jsonl anew, about four budgets long; nothing else should run
meanwhile.  Needs a C compiler.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from native_peers import SPEC

from omnic import cli
from omnic.targets.tvm.tuning.records import SHIPPED
from omnic.targets.tvm.tuning.tune import default_file


def main() -> int:
    """Tune each model for each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", default="60s", help="of each of the four (default 60s)")
    args = parser.parse_args()
    records = SHIPPED / default_file().name
    records.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "class_125m_native.yaml"
        spec.write_text(SPEC, encoding="utf-8")
        for words in ([str(spec)], ["tiny", "--pass", "int4-packing{group=32, scale=s4}"]):
            for threads in ("1", "2"):
                failed = cli.main(["tune", *words, "--threads", threads, "--budget", args.budget, "--records",
                                   str(records)])
                if failed:
                    return failed
    return 0


if __name__ == "__main__":
    sys.exit(main())
