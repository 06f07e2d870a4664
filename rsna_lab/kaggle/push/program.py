"""The `kaggle` program, called as a program: found, its version looked at, run without a shell, and always with an end.

Nothing it prints leaves this module with a secret in it. It gets a temporary folder of its own, because it keeps upload
addresses there that would let others exchange files, and none of the variables that make it print its requests.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from rsna_kit.runtime.errors import MissingDependencyError
from rsna_lab.kaggle.push.advice import KaggleError, UnreachableError
from rsna_lab.kaggle.push.judge import Answer, check

OLDEST, NEWEST = (2, 2, 4), (2, 2, 5)  # what this was tried with
PRECISE = (2, 2, 5)  # from here on a version of a kernel can be asked for; before, the newest one answers
_INSTALL = (
    "Install it beside this project, not into it: python3 -m venv ~/kaggle && ~/kaggle/bin/pip install kaggle six. "
    "Then name it: --kaggle ~/kaggle/bin/kaggle, or link this one program into a folder on PATH: "
    "ln -s ~/kaggle/bin/kaggle ~/.local/bin/"
)
_TALKATIVE = ("VERBOSE", "VERBOSE_OUTPUT")  # would print every request, credentials included
QUICK_S = 180.0  # one call that moves no files; the program itself waits and tries again when Kaggle is busy
_TRIES = 5
_GLANCE_S = 60.0


class Program:
    """One installed `kaggle`.

    Args:
        path: of the program.
        environment: in which it runs.
        scrub: takes secrets out of what it prints.
        temporary: its temporary folder; made, for this user alone.
        pause_s: how long to wait before a failed look is tried again; doubled each time.
    """

    def __init__(
        self,
        path: Path,
        environment: Mapping[str, str],
        scrub: Callable[[str], str],
        temporary: Path,
        pause_s: float = 15.0,
    ) -> None:
        self.path, self.temporary, self._scrub, self._pause_s = path, temporary, scrub, pause_s
        self._environment = {name: value for name, value in environment.items() if name not in _TALKATIVE}
        self._environment |= {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        self.version = self._read_version()

    @property
    def precise(self) -> bool:
        """Whether it can be asked about one version of a kernel."""
        return self.version >= PRECISE

    def call(
        self,
        *words: str | Path,
        limit_s: float = QUICK_S,
        listen: Callable[[str], None] | None = None,
        corner: str = "calls",
    ) -> Answer:
        """Run it once.

        Args:
            words: what stands behind `kaggle`.
            limit_s: after which it is stopped.
            listen: gets every line as it is printed, and every state of a progress bar.
            corner: folder below the temporary one. Uploads that broke off are taken up again by name, size and time of
                a file alone, so other content needs another corner.
        """
        spoken = tuple(str(word) for word in words)
        with _Running([str(self.path), *spoken], self._surroundings(corner), self.temporary, self._scrub) as running:
            ended = running.wait(limit_s, listen)
        if not ended:
            said = f"{running.err}\ntimed out: no end after {limit_s:.0f} seconds"
            return Answer(spoken, -1, running.out, said.strip())
        return Answer(spoken, running.code, running.out, running.err)

    def ask(self, *words: str | Path, limit_s: float = QUICK_S) -> Answer:
        """Run a command that changes nothing, and again when Kaggle or the network has a moment of weakness."""
        for attempt in range(_TRIES):
            answer = self.call(*words, limit_s=limit_s)
            if not answer.transient:
                return answer
            if attempt + 1 < _TRIES:
                time.sleep(min(self._pause_s * 2**attempt, 300.0))
        return answer

    def told(self, *words: str | Path) -> Answer:
        """The same, where anything but success is an error.

        Raises:
            KaggleError: with what Kaggle says.
        """
        return check(self.ask(*words), f"kaggle {shlex.join(str(word) for word in words)}")

    def open_stream(self, *words: str) -> subprocess.Popen[str]:
        """Start a command that prints until it is stopped; its lines are not scrubbed yet."""
        return subprocess.Popen(
            [str(self.path), *words], env=self._surroundings("calls"), cwd=self.temporary, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip

    def _surroundings(self, corner: str) -> dict[str, str]:
        folder = self.temporary / corner
        self.temporary.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.temporary.chmod(0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
        return {**self._environment, "TMPDIR": str(folder)}

    def _read_version(self) -> tuple[int, ...]:
        answer = self.call("--version")
        found = re.search(r"Kaggle CLI (\d+(?:\.\d+)+)", answer.out)
        if answer.code != 0 or not found:
            raise KaggleError(f"{self.path} does not start.", answer.said)
        version = tuple(map(int, found[1].split(".")))
        if version < OLDEST:
            raise MissingDependencyError(
                f"kaggle {found[1]} is too old: from 2.2.4 on its answers can be judged. {_INSTALL}"
            )
        return version


class Glance(Program):
    """The program for a plan: it is asked once, and what it cannot find out quickly is unknown.

    Args:
        path: of the program; None where nothing can be asked.
        environment, scrub, temporary: as for `Program`.
        reason: why nothing can be asked.
    """

    def __init__(
        self,
        path: Path | None,
        environment: Mapping[str, str],
        scrub: Callable[[str], str],
        temporary: Path,
        reason: str = "",
    ) -> None:
        self.reason = reason
        if path is None:
            self.version = NEWEST
        else:
            super().__init__(path, environment, scrub, temporary)

    def ask(self, *words: str | Path, limit_s: float = _GLANCE_S) -> Answer:
        """Run a command that changes nothing.

        Raises:
            UnreachableError: there is nobody to ask.
        """
        if not self.reason:
            answer = self.call(*words, limit_s=min(limit_s, _GLANCE_S))
            if not answer.transient:
                return answer
            self.reason = answer.said
        raise UnreachableError("Kaggle cannot be asked.", self.reason)


def find_program(given: Path | None = None) -> Path:
    """The `kaggle` program: the one that is named, or the one on PATH.

    Raises:
        MissingDependencyError: there is none; says how to get it.
    """
    if given is not None:
        if not given.is_file():
            raise MissingDependencyError(f"--kaggle {given}: no such file. {_INSTALL}")
        return given.resolve()
    beside = Path(sys.executable).with_name("kaggle")
    found = shutil.which("kaggle") or (str(beside) if beside.is_file() else None)
    if found is None:
        raise MissingDependencyError(f"the kaggle program is not installed. {_INSTALL}")
    return Path(found).absolute()


class _Running:
    """A started process whose two streams are read side by side."""

    def __init__(
        self, command: list[str], environment: dict[str, str], folder: Path, scrub: Callable[[str], str]
    ) -> None:
        self._scrub = scrub
        self._process = subprocess.Popen(
            command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace", start_new_session=True,
        )  # fmt: skip
        self._texts: dict[str, list[str]] = {"out": [], "err": []}
        self._readers: list[threading.Thread] = []

    def __enter__(self) -> _Running:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def wait(self, limit_s: float, listen: Callable[[str], None] | None) -> bool:
        """Read until it ends; False when it was stopped at the limit."""
        for name, stream in {"out": self._process.stdout, "err": self._process.stderr}.items():
            self._readers.append(threading.Thread(target=self._read, args=(name, stream, listen), daemon=True))
            self._readers[-1].start()
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _read(self, name: str, stream: Iterable[str], listen: Callable[[str], None] | None) -> None:
        for line in stream:  # a bar's states end with a carriage return, which counts as a line end here
            self._texts[name].append(line)
            if listen and line.strip():
                listen(self._scrub(line.strip()))

    @property
    def code(self) -> int:
        return self._process.returncode

    @property
    def out(self) -> str:
        return self._scrub("".join(self._texts["out"]))

    @property
    def err(self) -> str:
        return self._scrub("".join(self._texts["err"]))
