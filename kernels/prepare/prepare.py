"""Kaggle kernel: the training DICOMs become images and TFRecord shards for the kernel rsna-kit-train.

Inputs: the competition, the dataset rsna-kit, and rsna-wheels where the image lacks a package.
The output folder holds 20 GB: 54,706 PNG pictures fit at 1024x512, not at 1536x768.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

INPUT = Path(os.environ.get("RSNA_KIT_INPUT", "/kaggle/input"))
WORKING = Path(os.environ.get("RSNA_KIT_WORKING", "/kaggle/working"))


def attached(slug: str) -> Path | None:
    """The folder of an attached dataset, in the mount layout since 2025 or the older one."""
    return next((folder for pattern in (f"datasets/*/{slug}", slug) for folder in INPUT.glob(pattern)), None)


def attach_library() -> None:
    """Install what Kaggle's image lacks, without the network, and make the library importable."""
    if wheels := attached("rsna-wheels"):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--find-links"]
        subprocess.run([*pip, str(wheels), "--requirement", str(wheels / "requirements.txt")], check=True)
    library = attached("rsna-kit")
    if library is None or not (library / "rsna_kit" / "__init__.py").is_file():
        sys.exit(f"Attach the dataset 'rsna-kit'. {INPUT} holds: {sorted(str(p) for p in INPUT.glob('*/*'))}")
    sys.path.insert(0, str(library))


attach_library()

from rsna_kit.config import with_overrides
from rsna_kit.presets import preset
from rsna_kit.recipes.prepare import prepare
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.hardware import describe

print(json.dumps(describe()))
settings = ["image.height=1024", "image.width=512", "data.save=none", *os.environ.get("RSNA_KIT_SET", "").split()]
config = with_overrides(preset("default"), settings)
result = prepare(None, WORKING / "prepared", config, Events(WORKING / "events.jsonl"))
print(json.dumps(result, indent=2))
sys.exit(0 if result["ok"] else 1)
