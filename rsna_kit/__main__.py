"""`python -m rsna_kit` is the command line of the library alone: its six verbs."""

import sys

from rsna_kit.cli import main

if __name__ == "__main__":
    sys.exit(main())
