"""``python -m omnic``: the command line without the installed script."""

import sys

from omnic.cli import main

if __name__ == "__main__":
    sys.exit(main())
