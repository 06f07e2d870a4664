"""`python -m rsna_kit` is the command `rsna-kit`."""

import sys

from rsna_kit.cli import main

if __name__ == "__main__":
    sys.exit(main())
