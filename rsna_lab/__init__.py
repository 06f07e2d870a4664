"""The workbench at home: makes, shows and sends what `rsna_kit` runs. Never bundled, never imported by `rsna_kit`."""
