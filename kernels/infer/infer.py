"""Kaggle kernel: the hidden test's DICOMs become submission.csv.

Inputs: the competition, the dataset rsna-kit, and rsna-wheels where the image lacks a package; bundles from a Kaggle
Model, the output of the kernel rsna-kit-train or the dataset rsna-weights, in this order. Internet off. A commit run
that fails too many images ends with an error; the scoring run keeps the submission it has once images are scored. A
scoring run that dies (a crash, a lost GPU, no memory) is started again and goes on from the scores that are saved.
"""

import json
import os
import sys
from pathlib import Path

KERNEL = "infer"
SETTINGS = {  # kernels/README.md says what each means; scripts/push fills them
    "SET": "",
    "BUNDLES": "",
    "TIME_LIMIT": "8h30m",  # Kaggle stops the run at 9 h: half an hour for its start, its end and the writing
    "REQUIRE_GPU": "no",
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

from rsna_kit.session.kernel import Session, run


def work(session: Session) -> dict:
    """What this kernel is for. Imports stand here, because one that fails is to end in a verdict, too."""
    from rsna_kit.recipes.infer import first_submission, infer

    out, config = session.working, session.config()
    first_submission(None, out, session.events)
    bundles = session.bundles()
    session.require_gpu()
    told, clock = session.events, session.clock
    return infer(None, out, bundles, config.infer, told, clock, config.decode, attempt=session.attempt)


NEEDS = ["cv2", "dicomsdl", "imagecodecs", "keras", "pydicom"]
sys.exit(run(KERNEL, SETTINGS, NEEDS, work, script=globals().get("__file__"), progress="image_scores.csv"))
