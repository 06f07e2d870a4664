"""`python -m rsna_lab` is the command `rsna-kit`, with the verbs of the workbench."""

import sys

from rsna_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
