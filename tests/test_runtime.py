"""The floor every room stands on."""

from __future__ import annotations

import io
import json
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from rsna_kit.runtime.clock import Clock, format_duration, parse_duration
from rsna_kit.runtime.errors import MissingDependencyError, UsageError, did_you_mean
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import read_json, replacing, sha256_file, write_json
from rsna_kit.runtime.lazy import require
from rsna_kit.runtime.threads import in_daemons


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("8h", 28800), ("8h30m", 30600), ("1h0m5s", 3605)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5", "0", "5d", "h", "1m1h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a duration"):
        parse_duration(text)


@pytest.mark.parametrize(("seconds", "text"), [(42, "0:42"), (725, "12:05"), (11220, "3:07:00"), (math.inf, "?")])
def test_durations_are_written(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_clock_without_limit_never_ends() -> None:
    assert Clock().remaining_s() == math.inf
    assert Clock(limit_s=-1).remaining_s() < 0


def write_half(target: Path) -> None:
    with replacing(target) as temporary:
        temporary.write_text("half a new")
        raise RuntimeError("disk full")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "scores.csv"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="disk full"):
        write_half(target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    dead, alive = tmp_path / ".scores.tmp-999999999.csv", tmp_path / ".scores.tmp-1.csv"
    for path in (dead, alive):
        path.write_text("half")
    with replacing(tmp_path / "scores.csv") as temporary:
        temporary.write_text("whole")
        assert not list(tmp_path.glob("scores*.csv"))  # no pattern takes it for the file
    assert sorted(path.name for path in tmp_path.iterdir()) == [".scores.tmp-1.csv", "scores.csv"]
    left = tmp_path / ".model.weights.tmp-999999999.weights.h5"  # Keras insists on this suffix
    left.write_text("half")
    with replacing(tmp_path / "model.weights.h5") as temporary:
        temporary.write_text("whole")
    assert not left.exists()


def test_json_goes_round_and_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "value.json"
    write_json(path, {"b": 1, "a": [0.5, None]})
    assert read_json(path) == {"b": 1, "a": [0.5, None]}
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"score": math.nan})
    assert read_json(path)["b"] == 1


def test_sha256_is_the_known_one(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc").startswith("ba7816bf8f01cfea")


def test_suggestions_only_when_close() -> None:
    assert did_you_mean("heigth", ["height", "width"]) == " Did you mean 'height'?"
    assert did_you_mean("zzz", ["height", "width"]) == ""


def test_a_missing_package_names_its_extra() -> None:
    with pytest.raises(MissingDependencyError, match=r"rsna-kit\[train\]"):
        require("no_such_package", "train")


def test_events_are_json_lines_and_plain_talk(tmp_path: Path) -> None:
    stream = io.StringIO()
    events = Events(tmp_path / "events.jsonl", stream)
    events.say("fold 0 starts", kind="fold", fold=0)
    with events.progress(3, "prepare") as progress:
        progress.advance()
        progress.advance(2)
    assert stream.getvalue().splitlines()[0] == "fold 0 starts"
    assert stream.getvalue().splitlines()[-1].startswith("prepare: 3/3 images in 0:00")
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["fold", "progress"]
    assert lines[0]["fold"] == 0


def test_a_log_gets_a_line_with_an_eta(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rsna_kit.runtime.events.LINE_EVERY_S", 0.0)
    stream = io.StringIO()
    with Events(stream=stream).progress(10, "prepare") as progress:
        progress.advance(5)
    assert stream.getvalue().startswith("prepare: 5/10 images, ")
    assert ", ETA 0:00" in stream.getvalue()


def test_a_terminal_gets_one_line_that_is_written_over() -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    with Events(stream=stream).progress(10, "prepare") as progress:
        progress.advance(5, kind="threads")
        progress._last = 0.0
        progress.advance(5, "note", kind="GPU 0")
    shown = stream.getvalue().split("\r\x1b[K")
    assert len(shown) == 3
    assert shown[1].startswith("prepare: 10/10 images, ")
    assert ", GPU 0 " in shown[1]
    assert ", threads " in shown[1]
    assert shown[1].endswith(", note")
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize("workers", [1, 3, 50])
def test_daemons_give_every_result_with_its_number(workers: int) -> None:
    found = list(in_daemons(lambda item: item * item, range(10, 40), workers))
    assert sorted(found) == [(number, (number + 10) ** 2) for number in range(30)]
    assert list(in_daemons(abs, [], workers)) == []


def test_daemons_are_told_little_ahead_and_end_with_the_generator() -> None:
    """20 items under way at most while 10 work; closed, nothing more begins and no thread is left."""
    drawn, begun = [], []
    before = set(threading.enumerate())
    results = in_daemons(begun.append, (drawn.append(number) or number for number in range(1000)), 10)
    for taken in range(1, 101):
        next(results)
        assert len(drawn) <= taken - 1 + 20
    assert len(set(threading.enumerate()) - before) <= 10
    results.close()
    assert wait_until(lambda: set(threading.enumerate()) <= before)
    assert len(begun) <= len(drawn) <= 119


def test_daemons_begin_nothing_after_the_generator_is_closed() -> None:
    """Two are busy and one item waits for them: it is dropped."""
    before = set(threading.enumerate())
    free = threading.Event()
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        assert item == 0 or free.wait(60)

    results = in_daemons(work, range(1000), 2)
    assert next(results) == (0, None)
    assert wait_until(lambda: len(begun) == 3)
    results.close()
    free.set()
    assert wait_until(lambda: set(threading.enumerate()) <= before)
    assert sorted(begun) == [0, 1, 2]


def test_what_a_daemon_raises_is_raised_in_its_place_and_ends_the_others() -> None:
    before = set(threading.enumerate())
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 3:
            raise SystemExit("three")
        return item

    results = in_daemons(work, range(1000), 1)
    assert [next(results) for _ in range(3)] == [(0, 0), (1, 1), (2, 2)]
    with pytest.raises(SystemExit, match="three"):
        next(results)
    assert list(results) == []
    assert wait_until(lambda: set(threading.enumerate()) <= before)
    assert len(begun) <= 6


def test_items_that_raise_end_the_daemons() -> None:
    before = set(threading.enumerate())

    def items() -> Iterator[int]:
        yield 1
        raise OSError("the list ends here")

    with pytest.raises(OSError, match="ends here"):
        list(in_daemons(abs, items(), 2))
    assert wait_until(lambda: set(threading.enumerate()) <= before)


def test_a_stuck_daemon_holds_up_no_other_and_costs_the_time_limit() -> None:
    free = threading.Event()
    before = set(threading.enumerate())
    found = list(in_daemons(lambda item: free.wait(60) if item == 0 else item, range(100), 2, limit_s=2))
    free.set()
    assert found == [(number, number) for number in range(1, 100)]
    assert wait_until(lambda: set(threading.enumerate()) <= before)


def test_daemons_begin_nothing_when_the_time_is_over() -> None:
    begun = []
    assert list(in_daemons(begun.append, range(5), 2, limit_s=-1)) == []
    results = in_daemons(begun.append, range(1000), 1, limit_s=1)
    next(results)
    time.sleep(1.1)
    assert len(list(results)) <= 1
    assert len(begun) <= 2
