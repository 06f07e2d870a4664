"""Where the real files are that tests may use: a folder named by RSNA_KIT_REALDATA, never part of the repository.

The folder holds `dicom/` (manifest.json and the files it names), `ddsm66_tissue_masks/`, `mini_mias/`,
`cbis_ddsm_mass256/` and `tables/`. Tests that need it are skipped without it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def find_realdata(part: str) -> Path | None:
    """The folder `part` of the real data, None when it is not there."""
    root = os.environ.get("RSNA_KIT_REALDATA")
    path = Path(root) / part if root else None
    return path if path is not None and path.is_dir() else None


def realdata(part: str) -> Path:
    """The folder `part` of the real data, or skip the test that asks."""
    path = find_realdata(part)
    if path is None:
        pytest.skip(f"needs the real data: set RSNA_KIT_REALDATA to a folder that holds {part}/")
    return path
