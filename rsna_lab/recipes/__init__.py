"""The verbs of the workbench: stories that read top to bottom, called by the command line and by scripts."""
