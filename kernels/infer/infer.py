"""Kaggle kernel: the hidden test's DICOMs become submission.csv.

Inputs: the competition, the datasets rsna-kit and rsna-weights (or the output of the kernel rsna-kit-train),
and rsna-wheels where the image lacks a package. Internet off. A commit run that fails too many images ends
with an error; the scoring rerun keeps the submission it has once images are scored.
"""

import json
import os
import subprocess
import sys
import traceback
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
from rsna_kit.config import Config, with_overrides
from rsna_kit.recipes.infer import infer
from rsna_kit.runtime.clock import Clock, parse_duration
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.hardware import describe

print(json.dumps(describe()))
rerun = bool(os.environ.get("KAGGLE_IS_COMPETITION_RERUN"))
config = with_overrides(Config(), os.environ.get("RSNA_KIT_SET", "").split())
bundles = [folder for folder in find_inputs("metadata.json", INPUT, depth=7) if (folder / "model.weights.h5").is_file()]
bundles += find_inputs("ensemble.json", INPUT, depth=7)  # written by blend: it names bundles and their weights
print("bundles:", *bundles, sep="\n  ")
# Kaggle stops the run at 9 h; half an hour is left for its start, its end and the writing.
clock = Clock(parse_duration(os.environ.get("RSNA_KIT_TIME_LIMIT", "8h30m")))
try:
    result = infer(None, WORKING, bundles, config.infer, Events(WORKING / "events.jsonl"), clock, config.decode)
except Exception:
    if not (rerun and (WORKING / "image_scores.csv").is_file()):
        raise
    traceback.print_exc()  # some images are scored, and nobody can start the scoring rerun again
    sys.exit(0)
print(json.dumps(result, indent=2))
if not result["ok"] and not rerun:
    sys.exit(1)
