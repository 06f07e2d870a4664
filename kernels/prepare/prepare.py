"""Kaggle kernel: the training DICOMs become images and TFRecord shards for the kernel rsna-kit-train.

Inputs: the competition, the dataset rsna-kit, and rsna-wheels where the image lacks a package.
The output folder holds 20 GB: a PRESET whose pictures do not fit is refused, with the number of parts that do; PART is
then 1/2 in one kernel and 2/2 in another, and the kernel rsna-kit-train takes the outputs of all. scripts/push does so.
"""

import json
import os
import sys
from pathlib import Path

KERNEL = "prepare"
SETTINGS = {  # kernels/README.md says what each means; scripts/push fills them
    "PRESET": "kaggle",
    "SET": "",
    "PART": "",
}


def attach_library() -> None:
    """Make the attached library importable, in either mount layout; it looks at everything else."""
    root = Path(os.environ.get("RSNA_KIT_INPUT") or "/kaggle/input")
    places = ("datasets/*/*", "datasets/*/*/*", "*", "*/*")  # no image tree lies on these ways
    there = [path.parents[1] for place in places for path in root.glob(f"{place}/rsna_kit/__init__.py")]
    found = list({(path.stat().st_dev, path.stat().st_ino): path for path in reversed(there)}.values())
    if len(found) == 1:  # one folder may be mounted in both layouts
        sys.path.insert(0, str(found[0]))
        return
    there = sorted(str(path) for pattern in ("*", "*/*", "datasets/*/*") for path in root.glob(pattern))[:40]
    reason = f"Attach the dataset rsna-kit, once. Found: {[str(path) for path in found]}. {root} holds: {there}"
    verdict = json.dumps({"ok": False, "kernel": KERNEL, "reason": reason})
    Path(os.environ.get("RSNA_KIT_WORKING") or "/kaggle/working", "verdict.json").write_text(verdict)
    print(f"Error: {reason}", file=sys.stderr, flush=True)
    print(f"RSNA_KIT_VERDICT {verdict}", flush=True)
    sys.exit(1)


attach_library()

from rsna_kit.session.kernel import OUTPUT_BYTES, Session, run


def work(session: Session) -> dict:
    """What this kernel is for. Imports stand here, because one that fails is to end in a verdict, too."""
    from rsna_kit.recipes.prepare import prepare

    out, part = session.working / "prepared", session.settings["PART"]
    return prepare(None, out, session.config(), session.events, room=OUTPUT_BYTES, part=part)


sys.exit(run(KERNEL, SETTINGS, ["cv2", "dicomsdl", "imagecodecs", "pydicom", "tensorflow"], work))
