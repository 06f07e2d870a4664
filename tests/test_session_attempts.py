"""A kernel that dies in the scoring run is started again and goes on; in vain, it ends with what is saved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from rsna_kit.competition.submission import check_submission
from rsna_kit.competition.tables import read_sample, read_test
from rsna_kit.recipes import infer as infer_module
from rsna_kit.runtime.clock import Clock
from rsna_kit.session import attempts
from rsna_kit.session import kernel as sessions
from rsna_kit.session import verdict as verdicts
from rsna_kit.session.attempts import MOST_ATTEMPTS, run_attempts

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# A kernel's script: each attempt adds two rows to its progress, up to eight; what comes after the rows is the test's.
SCRIPT = f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from rsna_kit.session.kernel import run

def work(session):
    path = session.working / "rows.csv"
    rows = path.read_text().splitlines() if path.is_file() else ["image_id"]
    rows += [f"{{session.attempt}}" for _ in range(2)]
    GROW
    path.write_text("".join(row + "\\n" for row in rows))
    if len(rows) < 9:
        END
    return {{"rows": len(rows) - 1}}

sys.exit(run("infer", {{"TIME_LIMIT": "1h"}}, [], work, script=globals().get("__file__"), progress="rows.csv"))
"""
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
Kernel = Callable[..., tuple[int, str, dict, list[int]]]


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """Runs SCRIPT as a kernel; exit code, what was said, its verdict and the attempt of each row."""

    def start(end: str, grow: str = "pass", rerun: bool = True) -> tuple[int, str, dict, list[int]]:
        for name in ("input", "working"):
            (tmp_path / name).mkdir(exist_ok=True)
        script = tmp_path / "script.py"
        script.write_text(SCRIPT.replace("GROW", grow).replace("END", end))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RSNA_KIT_", "KAGGLE_"))}
        kept |= {f"RSNA_KIT_{name.upper()}": str(tmp_path / name) for name in ("input", "working")}
        kept |= {"KAGGLE_IS_COMPETITION_RERUN": "1"} if rerun else {}
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, env=kept)
        rows = tmp_path / "working/rows.csv"
        numbers = [int(row) for row in rows.read_text().splitlines()[1:]] if rows.is_file() else []
        verdict = json.loads((tmp_path / "working/verdict.json").read_text())
        assert done.stdout.splitlines()[-1] == f"RSNA_KIT_VERDICT {json.dumps(verdict)}"
        return done.returncode, done.stdout + done.stderr, verdict, numbers

    return start


def test_the_scoring_run_goes_on_where_it_died_and_the_clock_with_it(kernel: Kernel) -> None:
    """Killed, ended by a library, and by an error; at last a thread is left that does not end."""
    ends = [KILLED, "os._exit(1)", "raise RuntimeError('CUDA_ERROR_LAUNCH_FAILED')"]
    left = "print('LEFT', session.clock.remaining_s()); sys.stdout.flush()"
    end = f"{left}; exec({ends!r}[session.attempt - 1])"
    forever = "import threading; threading.Thread(target=time.sleep, args=(3600,)).start()"
    code, said, verdict, rows = kernel(end, grow=forever)
    assert (code, rows) == (0, [1, 1, 2, 2, 3, 3, 4, 4])
    assert (verdict["ok"], verdict["counts"]) == (True, {"rows": 8})
    assert said.count("once more from there, in a new process") == 3
    assert "attempt 1 ended: ended by SIGKILL, as Linux does when memory runs out. 2 images are scored" in said
    assert "attempt 2 ended: exit code 1. 4 images" in said
    remaining = [float(line.split()[1]) for line in said.splitlines() if line.startswith("LEFT")]
    assert 3600 > remaining[0] > remaining[1] > remaining[2]


@pytest.mark.parametrize(("rerun", "saved", "attempts", "wanted"), [(False, 2, 1, 1), (True, 2, 5, 0), (True, 0, 4, 1)])
def test_what_dies_in_vain_ends_with_what_is_scored(
    kernel: Kernel, rerun: bool, saved: int, attempts: int, wanted: int
) -> None:
    """The commit run at once; the scoring run after four attempts without anything new, well where there is any."""
    code, said, verdict, rows = kernel(KILLED, grow=f"rows = rows[:{saved + 1}]", rerun=rerun)
    assert (code, rows) == (wanted, [1] * saved)
    assert said.count("once more") == attempts - 1
    assert verdict["ok"] is False
    assert verdict["reason"] == "ended by SIGKILL, as Linux does when memory runs out"
    assert f"Error: {verdict['reason']}" in said


def test_whatever_happens_to_the_one_that_waits_what_is_scored_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No memory for another process; and an output that cannot be read for its hash."""
    for name in ("input", "working"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"RSNA_KIT_{name.upper()}", str(tmp_path / name))
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    monkeypatch.setattr(attempts, "_PAUSE_S", 0.0)

    def failing(*words: object, **more: object) -> str:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(attempts.subprocess, "Popen", failing)
    monkeypatch.setattr(verdicts, "sha256_file", failing)
    rows = tmp_path / "working/rows.csv"
    rows.write_text("image_id\n1\n")
    for wanted in (0, 1):
        arguments = ("infer", {"TIME_LIMIT": "1h"}, [], lambda session: {})
        assert sessions.run(*arguments, script="script.py", progress="rows.csv") == wanted
        verdict = json.loads((tmp_path / "working/verdict.json").read_text())
        assert "it could not be started: [Errno 11]" in verdict["reason"]
        rows.unlink(missing_ok=True)


def test_who_ends_the_one_that_waits_ends_the_kernel(tmp_path: Path) -> None:
    mark = "27.182818"
    text = SCRIPT.replace("GROW", f"import subprocess; subprocess.run(['sleep', '{mark}'])").replace("END", "pass")
    (tmp_path / "script.py").write_text(text)
    environment = {**os.environ, "RSNA_KIT_INPUT": str(tmp_path), "RSNA_KIT_WORKING": str(tmp_path)}
    process = subprocess.Popen([sys.executable, tmp_path / "script.py"], env=environment, stdout=subprocess.DEVNULL)
    while not alive(mark):
        time.sleep(0.1)
        assert process.poll() is None
    process.terminate()
    assert process.wait(60) == 1
    assert not alive(mark)
    assert json.loads((tmp_path / "verdict.json").read_text())["reason"].startswith("KeyboardInterrupt")


def alive(mark: str) -> bool:
    """Whether a process with this word on its command line is there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            found.append(path.read_text(errors="replace"))
    return any(mark in line for line in found)


HANGS = """
import os, subprocess, time
if os.environ["RSNA_KIT_ATTEMPT"] == "1":
    subprocess.Popen(["sleep", "31.415926"])
    time.sleep(0.5)
    open("rows.csv", "w").write("image_id\\n1\\n")
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("text", "limit_s", "reason", "wanted"),
    [
        (HANGS, 1000.0, "", "attempt 1 ended: it hung: nothing new for 0:01. 1 images are scored"),
        ("import time; time.sleep(60)", 0.5, "it did not end, 0:00 after its time was over", ""),
        ("raise SystemExit(3)", 200.0, "exit code 3", ""),
    ],
)
def test_one_that_hangs_is_ended_with_all_that_it_started_and_the_clock_is_watched(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    limit_s: float,
    reason: str,
    wanted: str,
) -> None:
    """Too little time is not worth another start."""
    for name, value in {"STALL_S": 1.0, "LATE_S": 0.5, "_LOOK_EVERY_S": 0.1}.items():
        monkeypatch.setattr(attempts, name, value)
    monkeypatch.chdir(tmp_path)
    script, verdict = tmp_path / "script.py", tmp_path / "verdict.json"
    script.write_text(text)
    assert run_attempts(script, tmp_path / "rows.csv", verdict, Clock(limit_s), MOST_ATTEMPTS) == reason
    said = capsys.readouterr().out
    assert said.startswith(wanted)
    assert bool(said) == bool(wanted)
    assert not alive("31.415926")


def test_two_deadly_images_cost_themselves_and_their_neighbours() -> None:
    """10,000 images at 4 a second, saved every 20 s: what each attempt scores before it meets one of them."""
    for deadly in ({2100, 8100}, {100, 9900}, {10, 5000, 9990}):
        scored: set[int] = set()
        idle = number = 0
        while idle < attempts.MOST_IDLE and number < MOST_ATTEMPTS:
            number += 1
            left = pd.DataFrame({"image": [image for image in range(10_000) if image not in scored]})
            order = infer_module._ordered(left, number)["image"].tolist()
            before = next((at for at, image in enumerate(order) if image in deadly), len(order))
            new = set(order[: before - before % (4 * 20)] if before < len(order) else order)
            idle = 0 if new else idle + 1
            scored |= new
        assert len(scored) > 9_500


INFER = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(TESTS)!r}]
import rsna_kit.recipes.infer as recipe
import rsna_kit.session.attempts as attempts
import toy_networks

attempts.MOST_IDLE = 1  # each costs seven seconds
toy_networks.add_backbone()
recipe.SAVE_EVERY_S = 0.0
DEADLY = os.environ["DEADLY_IMAGE"]
record = recipe._Scoring.add

def deadly(scoring, batch, scores):
    if any(outcome.image_id == DEADLY for outcome in batch):
        os.kill(os.getpid(), signal.SIGSEGV)
    return record(scoring, batch, scores)

recipe._Scoring.add = deadly
kernel = {str(ROOT / "kernels/infer/infer.py")!r}
exec(compile(open(kernel).read(), kernel, "exec"))
"""


@pytest.mark.slow
@pytest.mark.tf
def test_an_image_that_kills_the_run_costs_its_batch_and_not_the_submission(
    phantom: Path, bundle: Path, tmp_path: Path
) -> None:
    """The real kernel, whose second attempt comes from the other end."""
    test = read_test(phantom / "hidden/test.csv")
    deadly = test["image_id"].iloc[len(test) // 2]
    (tmp_path / "working").mkdir()
    for name, target in {
        "competitions/rsna-breast-cancer-detection": phantom / "hidden",
        "datasets/me/rsna-weights/fold0": bundle,
        "datasets/me/rsna-kit": ROOT,
    }.items():
        (tmp_path / "input" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "input" / name).symlink_to(target)
    (tmp_path / "script.py").write_text(INFER)
    environment = {
        **os.environ,
        "RSNA_KIT_INPUT": str(tmp_path / "input"),
        "KAGGLE_IS_COMPETITION_RERUN": "1",
        "RSNA_KIT_WORKING": str(tmp_path / "working"),
        "DEADLY_IMAGE": str(deadly),
        "RSNA_KIT_SET": "infer.batch_size=2",
    }
    command = [sys.executable, tmp_path / "script.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "attempt 1 ended: ended by SIGSEGV" in done.stdout
    scores = pd.read_csv(tmp_path / "working/image_scores.csv", dtype={"image_id": str})
    missed = set(test["image_id"]) - set(scores["image_id"])
    assert str(deadly) in missed
    assert len(missed) <= 4  # its batch, from either side
    submission = pd.read_csv(tmp_path / "working/submission.csv", dtype={"prediction_id": str})
    check_submission(submission, read_sample(phantom / "hidden/sample_submission.csv"))
