"""The verbs of the workbench, one module each; the command line and scripts call these."""
