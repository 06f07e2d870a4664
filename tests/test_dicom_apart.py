"""Decoders in processes of their own: kept while they are well, ended when they are not, never left behind."""

from __future__ import annotations

import dataclasses
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from dicom_files import SV1, literal, make_dicom
from waiting import wait_until

from rsna_kit.dicom import apart
from rsna_kit.dicom.apart import decode_apart
from rsna_kit.dicom.decoders import decode_dicomsdl
from rsna_kit.dicom.frame import EncodedFrame, read_frame
from rsna_kit.runtime.hardware import cpu_count

BACKENDS = {
    "pid": "return np.array([[os.getpid()]])",
    "segfault": "ctypes.string_at(0)",
    "hang_second_time": "CALLS.append(1)\n    if len(CALLS) > 1: ctypes.CDLL(None).pause()\n    "
    "return np.array([[os.getpid()]])",
    "hang": "ctypes.CDLL(None).pause()",  # holds no GIL; no Python code runs on
    "greedy": "return np.ones(9 * 2**30, np.uint8)",
    "chatty": "print('to stdout', flush=True); os.write(1, b'native stdout'); os.write(2, b'native stderr')\n    "
    "return np.array([[7]])",
    "echo": "return np.frombuffer(frame.codestream, np.uint8).reshape(1, -1)",
    "big_endian": "return np.array([[1, 2], [3, 258]], '>u2').T",
    "quiet_exit": "raise SystemExit",
}
Decode = Callable[[EncodedFrame], np.ndarray]
IMPORTS = "import ctypes, os, time\nimport numpy as np\nCALLS = []"


@pytest.fixture
def frame(tmp_path: Path) -> EncodedFrame:
    (tmp_path / "77.dcm").write_bytes(make_dicom(literal(), SV1))
    return read_frame(tmp_path / "77.dcm")


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Decode]]:
    """Backends made for the test, importable here and therefore in the children."""
    folder = tmp_path / "backends"
    folder.mkdir()
    for name, body in BACKENDS.items():
        (folder / f"apart_{name}.py").write_text(f"{IMPORTS}\n\ndef decode(frame):\n    {body}\n")
    monkeypatch.syspath_prepend(folder)
    apart.end_idle()  # a child that another test left behind has imported that test's modules
    yield lambda name: importlib.import_module(f"apart_{name}").decode
    apart.end_idle()


def alive(pid: int) -> bool:
    """Whether a process runs: not gone, and not a zombie that waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_child_serves_many_frames(frame: EncodedFrame, backend: Callable[[str], Decode]) -> None:
    first = decode_apart(backend("pid"), frame)
    assert first[0, 0] != os.getpid()
    assert np.array_equal(decode_apart(decode_dicomsdl, frame), literal())
    assert decode_apart(backend("pid"), frame).tolist() == first.tolist()


@pytest.mark.parametrize(
    ("name", "said", "used"),
    [
        ("segfault", r"^crashed \(SIGSEGV\)$", True),
        ("hang", r"^gave nothing within 2 s$", True),
        ("greedy", "allocate", False),
        ("quiet_exit", r"^ended with exit code 0$", True),
    ],
)
def test_a_child_that_failed_is_replaced(
    frame: EncodedFrame,
    backend: Callable[[str], Decode],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    said: str,
    used: bool,
) -> None:
    before = decode_apart(backend("pid"), frame)[0, 0] if used else 0
    with monkeypatch.context() as patch:
        patch.setattr(apart, "_PATIENCE_S", 2 if name == "hang" else 30)
        with pytest.raises(RuntimeError, match=said):
            decode_apart(backend(name), frame)
    after = decode_apart(backend("pid"), frame)[0, 0]
    assert after != before
    assert not alive(before)


def test_a_hang_of_a_used_child_does_not_cost_the_next_frame(
    frame: EncodedFrame, backend: Callable[[str], Decode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged heap may hang as well as crash. The new child has all the time that it takes to begin."""
    first, end = decode_apart(backend("hang_second_time"), frame)[0, 0], apart._Child.end

    def ended(child: apart._Child) -> None:
        end(child)
        monkeypatch.setattr(apart, "_PATIENCE_S", 120)

    monkeypatch.setattr(apart._Child, "end", ended)
    monkeypatch.setattr(apart, "_PATIENCE_S", 2)
    second = decode_apart(backend("hang_second_time"), frame)[0, 0]
    assert [alive(first), alive(second)] == [False, True]


def test_a_child_that_was_killed_while_idle_is_replaced(frame: EncodedFrame, backend: Callable[[str], Decode]) -> None:
    first = decode_apart(backend("pid"), frame)[0, 0]
    os.kill(first, signal.SIGKILL)
    assert wait_until(lambda: not alive(first))
    assert decode_apart(backend("pid"), frame)[0, 0] != first


def test_bytes_types_and_shapes_come_back_as_they_are(frame: EncodedFrame, backend: Callable[[str], Decode]) -> None:
    stream = np.random.default_rng(0).bytes(9_000_001)  # more than any buffer of a socket
    echoed = decode_apart(backend("echo"), dataclasses.replace(frame, codestream=stream))
    assert echoed.shape == (1, 9_000_001)
    assert echoed.tobytes() == stream
    swapped = decode_apart(backend("big_endian"), frame)
    assert swapped.dtype == np.dtype(">u2")
    assert swapped.tolist() == [[1, 3], [2, 258]]
    assert decode_apart(backend("echo"), dataclasses.replace(frame, codestream=b"")).shape == (1, 0)


def test_many_threads_share_as_many_children_as_there_are_cores(
    frame: EncodedFrame, backend: Callable[[str], Decode]
) -> None:
    """More threads than children, good and bad requests mixed: every one gets its own answer."""

    def ask(number: int) -> object:
        if number % 8 == 3:
            with pytest.raises(RuntimeError, match="SIGSEGV"):
                decode_apart(backend("segfault"), frame)
            return int(decode_apart(backend("pid"), frame)[0, 0])
        stream = number.to_bytes(4, "little") * 1000
        assert decode_apart(backend("echo"), dataclasses.replace(frame, codestream=stream)).tobytes() == stream
        return int(decode_apart(backend("pid"), frame)[0, 0])

    with ThreadPoolExecutor(3 * cpu_count()) as pool:
        pids = set(pool.map(ask, range(4 * cpu_count())))
    assert sum(map(alive, pids)) <= cpu_count()


def test_an_interrupted_request_does_not_answer_the_next_one(
    frame: EncodedFrame, backend: Callable[[str], Decode], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    decode_apart(backend("pid"), frame)
    with monkeypatch.context() as patch:
        patch.setattr(apart.json, "loads", interrupt)
        with pytest.raises(KeyboardInterrupt):
            decode_apart(backend("pid"), frame)
    assert decode_apart(backend("chatty"), frame).tolist() == [[7]]


PARENT = """
import importlib, os, signal, sys, threading, time
from pathlib import Path
from rsna_kit.dicom import apart
from rsna_kit.dicom.frame import read_frame

frame = read_frame(Path(sys.argv[1]))

def ask(name="pid"):
    return int(apart.decode_apart(importlib.import_module(f"apart_{name}").decode, frame)[0, 0])

first = ask()
told, tell = os.pipe()
forked = os.fork()
if not forked:  # it neither talks to its parent's child nor ends it
    own = ask()
    os.write(tell, f"{own} {ask()}".encode())
    os._exit(0)
assert os.waitpid(forked, 0)[1] == 0
print(first, ask(), os.read(told, 100).decode(), flush=True)
"""


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), signal.SIGKILL)"], ids=["end", "killed"])
def test_children_end_with_their_parent_and_a_forked_process_has_its_own(frame: EncodedFrame, end: str) -> None:
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", PARENT + end, str(frame.path)]
    ended = subprocess.run(command, capture_output=True, text=True, env=path, timeout=120)
    first, again, own, own_again = (int(pid) for pid in ended.stdout.split())
    assert (first, own) == (again, own_again)
    assert first != own
    assert ended.stderr == ""
    assert wait_until(lambda: not alive(first) and not alive(own))
