"""``python -m monosema``: the command line."""

import sys

from monosema.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
