"""A kernel that dies in the scoring run is started again and goes on; in vain, it ends with what is saved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
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
from rsna_kit.session.attempts import MOST_ATTEMPTS, Ended, run_attempts, run_script

ROOT = Path(__file__).parent.parent
# A kernel's script: each attempt adds two rows to its progress, up to six; what comes after the rows is the test's.
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
    if len(rows) < 7:
        END
    return {{"rows": len(rows) - 1}}

sys.exit(run("infer", {{"TIME_LIMIT": "1h"}}, [], work, script=globals().get("__file__"), progress="rows.csv"))
"""
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs SCRIPT as a kernel; exit code, what was said, its verdict and the attempt of each row."""

    def start(end: str, grow: str = "", rerun: bool = True, limit: str = "1h") -> tuple[int, str, dict, list[int]]:
        for name in ("input", "working"):
            (tmp_path / name).mkdir(exist_ok=True)
        script = tmp_path / "script.py"
        script.write_text(SCRIPT.replace("GROW", grow or "pass").replace("END", end).replace('"1h"', repr(limit)))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RSNA_KIT_", "KAGGLE_"))}
        environment = kept | {f"RSNA_KIT_{name.upper()}": str(tmp_path / name) for name in ("input", "working")}
        done = subprocess.run(
            [sys.executable, script],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment | ({"KAGGLE_IS_COMPETITION_RERUN": "1"} if rerun else {}),
        )
        rows = tmp_path / "working/rows.csv"
        numbers = [int(row) for row in rows.read_text().splitlines()[1:]] if rows.is_file() else []
        verdict = json.loads((tmp_path / "working/verdict.json").read_text())
        last = done.stdout.splitlines()[-1]
        assert last == f"RSNA_KIT_VERDICT {json.dumps(verdict)}"
        return done.returncode, done.stdout + done.stderr, verdict, numbers

    return start


ENDS = [KILLED, "os._exit(1)", "raise RuntimeError('CUDA_ERROR_LAUNCH_FAILED')"]


@pytest.mark.parametrize("end", ENDS)
def test_the_scoring_run_goes_on_where_it_died(kernel, end: str) -> None:
    code, said, verdict, rows = kernel(end)
    assert (code, rows) == (0, [1, 1, 2, 2, 3, 3])
    assert verdict["ok"] is True
    assert verdict["counts"] == {"rows": 6}
    assert said.count("once more from there, in a new process") == 2
    assert "attempt 1 ended: " in said
    assert "2 images are scored" in said


def test_a_run_that_ended_is_not_undone_by_a_thread_that_does_not(kernel) -> None:
    forever = "import threading; threading.Thread(target=time.sleep, args=(3600,)).start()"
    code, said, verdict, rows = kernel("pass", grow=forever)
    assert (code, verdict["ok"], rows) == (0, True, [1, 1])
    assert "attempt" not in said


def test_whatever_happens_to_the_one_that_waits_what_is_scored_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No memory for another process; and an output that cannot be read for its hash."""
    for name in ("input", "working"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"RSNA_KIT_{name.upper()}", str(tmp_path / name))
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    monkeypatch.setattr(attempts, "_PAUSE_S", 0.0)

    def unstartable(*words: object, **more: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    def unreadable(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(attempts.subprocess, "Popen", unstartable)
    monkeypatch.setattr(verdicts, "sha256_file", unreadable)
    (tmp_path / "working/rows.csv").write_text("image_id\n1\n")
    given = {"TIME_LIMIT": "1h"}
    assert sessions.run("infer", given, [], lambda session: {}, script="script.py", progress="rows.csv") == 0
    assert (
        "it could not be started: [Errno 11]" in json.loads((tmp_path / "working/verdict.json").read_text())["reason"]
    )
    (tmp_path / "working/rows.csv").unlink()
    assert sessions.run("infer", given, [], lambda session: {}, script="script.py", progress="rows.csv") == 1


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


def test_the_commit_run_fails_at_once_and_says_what_ended_it(kernel) -> None:
    code, said, verdict, rows = kernel(KILLED, rerun=False)
    assert (code, rows) == (1, [1, 1])
    assert verdict["ok"] is False
    assert verdict["reason"] == "ended by SIGKILL, as Linux does when memory runs out"
    assert f"Error: {verdict['reason']}" in said


def test_what_dies_in_vain_ends_with_the_submission_that_is_there(kernel) -> None:
    """Four attempts in a row without anything new: there will be nothing new."""
    code, said, verdict, rows = kernel(KILLED, grow="rows = rows[:3]")
    assert (code, rows) == (0, [1, 1])
    assert verdict["ok"] is False
    assert said.count("once more") == 4


def test_a_scoring_run_in_which_nothing_was_scored_fails(kernel) -> None:
    code, _, verdict, rows = kernel(KILLED, grow="rows = rows[:1]")
    assert (code, rows) == (1, [])
    assert verdict["reason"].startswith("ended by SIGKILL")


def test_the_clock_is_the_sessions_and_not_the_attempts(kernel) -> None:
    end = f"print('LEFT', session.clock.remaining_s()); sys.stdout.flush(); time.sleep(1); {KILLED}"
    _, said, _, _ = kernel(end)
    left = [float(line.split()[1]) for line in said.splitlines() if line.startswith("LEFT")]
    assert len(left) == 2
    assert left[1] < left[0] - 1


def test_a_time_limit_that_is_none_ends_in_a_verdict(kernel) -> None:
    code, _, verdict, _ = kernel("session.clock", rerun=False, limit="soon")
    assert (code, verdict["ok"]) == (1, False)
    assert "time limit: got 'soon'" in verdict["reason"]


def attempt(tmp_path: Path, text: str, limit_s: float = 1000.0, most: int = MOST_ATTEMPTS) -> tuple[Ended, list[str]]:
    script = tmp_path / "script.py"
    script.write_text(text)
    said: list[str] = []
    progress, began, clock = tmp_path / "rows.csv", time.monotonic(), Clock(limit_s)
    ended = run_attempts(
        lambda number: run_script(str(script), number, progress, began, clock), progress, clock, most, said.append
    )
    return ended, said


def alive(mark: str) -> bool:
    """Whether a process with this word on its command line is there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            found.append(path.read_text(errors="replace"))
    return any(mark in line for line in found)


def test_one_that_hangs_after_it_scored_is_ended_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that it had started, which would hold the GPU."""
    monkeypatch.setattr(attempts, "STALL_S", 1.0)
    monkeypatch.setattr(attempts, "_LOOK_EVERY_S", 0.1)
    mark = "31.415926"
    ended, said = attempt(
        tmp_path,
        f"""
import os, subprocess, time
if os.environ["RSNA_KIT_ATTEMPT"] == "1":
    subprocess.Popen(["sleep", "{mark}"])
    time.sleep(0.5)
    open("{tmp_path}/rows.csv", "w").write("image_id\\n1\\n")
    time.sleep(60)
""",
    )
    assert ended == Ended(0, "", 2, 1)
    assert said[0].startswith("attempt 1 ended: it hung: nothing new for 0:01. 1 images are scored")
    assert not alive(mark)


def test_one_that_does_not_end_is_ended_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "LATE_S", 0.5)
    monkeypatch.setattr(attempts, "_LOOK_EVERY_S", 0.1)
    began = time.monotonic()
    ended, said = attempt(tmp_path, "import time; time.sleep(60)", limit_s=0.5)
    assert (ended.reason, said) == ("it did not end, 0:00 after its time was over", [])
    assert ended.code == -9
    assert time.monotonic() - began < 30


def test_too_little_time_is_not_worth_a_start(tmp_path: Path) -> None:
    ended, said = attempt(tmp_path, "raise SystemExit(3)", limit_s=200.0)
    assert (ended, said) == (Ended(3, "exit code 3", 1, 0), [])


INFER = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import rsna_kit.recipes.infer as recipe

recipe.SAVE_EVERY_S = 0.0
DEADLY = os.environ["DEADLY_IMAGE"]
record = recipe._Scoring.add

def deadly(scoring, batch):
    if any(outcome.image_id == DEADLY for outcome in batch):
        os.kill(os.getpid(), signal.SIGSEGV)
    return record(scoring, batch)

recipe._Scoring.add = deadly
kernel = {str(ROOT / "kernels/infer/infer.py")!r}
exec(compile(open(kernel).read(), kernel, "exec"))
"""


@pytest.mark.slow
@pytest.mark.tf
def test_an_image_that_kills_the_run_costs_its_batch_and_not_the_submission(
    phantom: Path, lite_bundle: Path, tmp_path: Path
) -> None:
    """The real kernel, whose second attempt comes from the other end."""
    test = read_test(phantom / "hidden/test.csv")
    deadly = test["image_id"].iloc[len(test) // 2]
    (tmp_path / "working").mkdir()
    for name, target in {
        "competitions/rsna-breast-cancer-detection": phantom / "hidden",
        "datasets/me/rsna-weights/fold0": lite_bundle,
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
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "attempt 1 ended: ended by SIGSEGV" in done.stdout
    scores = pd.read_csv(tmp_path / "working/image_scores.csv", dtype={"image_id": str})
    missed = set(test["image_id"]) - set(scores["image_id"])
    assert str(deadly) in missed
    assert len(missed) <= 4  # its batch, from either side
    submission = pd.read_csv(tmp_path / "working/submission.csv", dtype={"prediction_id": str})
    check_submission(submission, read_sample(phantom / "hidden/sample_submission.csv"))
