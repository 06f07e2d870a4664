"""Kaggle's interface: asked through client.py, tried again where that is safe, every failure told in Kaggle's words."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from rsna_kit.runtime.errors import MissingDependencyError
from rsna_lab.kaggle.push.errors import INSTALL, PACKAGES, KaggleError, RefusedError, failure, passing

TRIED = {"kaggle": "2.2.5", "kagglesdk": "0.1.38"}
_TALKATIVE = ("VERBOSE", "VERBOSE_OUTPUT")  # would print every request, credentials included
_FRESH_S = 600.0
CALL_S = 60.0  # a call that moves no file has no answer after this
TRIES = 5
_PAGE = 200


Listener = Callable[[dict[str, Any]], None]


class Transport(Protocol):
    """What carries one request of client.py and brings back its answer."""

    def __call__(
        self,
        request: Mapping[str, Any],
        limit_s: float,
        listen: Listener | None = None,
        stop: threading.Event | None = None,
    ) -> dict[str, Any]:
        """The answer to a request of client.py; `listen` hears events, `stop` gives it up."""


class Client:
    """client.py in the Python that has the `kaggle` package. It signs in anew now and then: some tokens live an hour.

    Args:
        python: that Python.
        environment: in which it runs.
        scrub: takes secrets out of what it says.
        folder: where it runs; made, for this user alone.
    """

    def __init__(self, python: Path, environment: Mapping[str, str], scrub: Callable[[str], str], folder: Path) -> None:
        self._python, self._scrub, self._folder = python, scrub, folder
        self._environment = {name: value for name, value in environment.items() if name not in _TALKATIVE}
        self._environment |= {"PYTHONUTF8": "1", "TMPDIR": str(folder)}
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0

    def __call__(
        self,
        request: Mapping[str, Any],
        limit_s: float,
        listen: Listener | None = None,
        stop: threading.Event | None = None,
    ) -> dict[str, Any]:
        """The answer to one request; a process that does not answer in time is stopped, and told as no answer."""
        if stop is not None:  # what can be stopped is asked beside everything else
            process = self._start()
        elif self._process is None or time.monotonic() - self._began > _FRESH_S:
            if self._process:
                _end(self._process)
            process, self._began = self._start(), time.monotonic()
        else:
            process = self._process
        self._process = process if stop is None else self._process
        assert process.stdin
        assert process.stdout
        with contextlib.suppress(BrokenPipeError):  # it has ended, and says why
            process.stdin.write(json.dumps(request).encode() + b"\n")
        rest, said, end = b"", [""], time.monotonic() + limit_s
        while time.monotonic() < end and not (stop and stop.is_set()):
            if not select.select([process.stdout], [], [], 0.1)[0]:
                continue
            data = os.read(process.stdout.fileno(), 1 << 16)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                text = self._scrub(line.decode(errors="replace"))
                value = json.loads(text) if re.match(r'\{"(?:event|answer|error)":', text) else {}
                if "event" in value and listen:
                    listen(value["event"])
                elif "event" not in value and value:
                    return dict(value)
                elif not value:
                    said.append(text)
            if not data:
                self._drop(process)
                return {"error": {"kind": "import", "text": "\n".join(said[-5:]).strip() or "it ended without a word"}}
        self._drop(process)
        return {"error": {"kind": "network", "text": f"no answer within {limit_s:.0f} seconds"}}

    def _start(self) -> subprocess.Popen[bytes]:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder.chmod(0o700)
        command = [str(self._python), str(Path(__file__).with_name("client.py"))]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "bufsize": 0}
        process = subprocess.Popen(command, env=self._environment, cwd=self._folder, start_new_session=True, **pipes)
        weakref.finalize(self, _end, process)
        return process

    def _drop(self, process: subprocess.Popen[bytes]) -> None:
        self._process = None if process is self._process else self._process
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream:
            stream.close()


def find_python(given: Path | None = None) -> Path:
    """The Python that the `kaggle` program runs with: of the one that is named, or of the one on PATH.

    Raises:
        MissingDependencyError: there is none; says how to get it.
    """
    if given is not None and not given.is_file():
        raise MissingDependencyError(f"--kaggle {given}: no such file. {INSTALL}")
    on_path = shutil.which("kaggle")
    path = given or (Path(on_path) if on_path else Path(sys.executable).with_name("kaggle"))
    if not path.is_file():
        raise MissingDependencyError(f"the kaggle program is not installed. {INSTALL}")
    with open(path, "rb") as file:
        head = file.read(600).decode("utf-8", errors="replace")
    named = re.match(r"#!\s*(?:/usr/bin/env\s+|/bin/sh\s+'''exec'\s+)?\"?([^\s\"]*python[^\s\"]*)", head)
    python = shutil.which(named[1]) if named else None
    beside = path.resolve().with_name("python")
    if python is None and not beside.is_file():
        raise MissingDependencyError(f"{path} does not say which Python it runs with. {INSTALL}")
    return Path(python) if python else beside


class Kaggle:
    """What the steps ask of Kaggle.

    Args:
        send: carries requests.
        say: tells people a line.
        pause_s: before the second try; doubled each time.
        tries: how often a question is asked. With 1, as for a plan, a Kaggle that did not answer is not asked again.
    """

    def __init__(self, send: Transport, say: Callable[[str], None], pause_s: float = 30.0, tries: int = TRIES) -> None:
        self._send, self._say, self._pause_s, self._tries = send, say, pause_s, tries
        self._silent: dict[str, Any] | None = None

    def check_version(self) -> None:
        """Refuse a `kaggle` package whose answers are not known, and name one that is newer than the one tried.

        Raises:
            MissingDependencyError: none, or one that is too old.
        """
        found = self._answer("The look at the kaggle package", lambda: {"about": True})
        if tuple(map(int, re.findall(r"\d+", found["kaggle"])[:3])) < (2, 2, 5):
            raise MissingDependencyError(f"kaggle {found['kaggle']} is too old, 2.2.5 is needed. {INSTALL}")
        if found != TRIED:
            names = " with ".join(f"{name} {version}" for name, version in found.items())
            self._say(f"{names} is not what this was tried with: pip install {PACKAGES}")

    def whoami(self) -> dict[str, Any]:
        """`username`, and the `method` by which it is known."""
        return dict(self._answer("The look at your account", lambda: {"whoami": True}))

    def ask(self, call: str, **body: Any) -> dict[str, Any]:
        """Call what changes nothing.

        Raises:
            UnreachableError: no answer, after every try.
            RefusedError: Kaggle says no.
        """
        names = ("ownerSlug", "userName", "datasetSlug", "kernelSlug", "competitionName")
        about = "/".join(body[key] for key in names if body.get(key))
        what = call.split("/")[1] + (f" of {about}" if about else "")
        return dict(self._answer(what, lambda: {"call": call, "body": body}))

    def find(self, call: str, **body: Any) -> dict[str, Any] | None:
        """The same; None for what is not there, or not for this account: Kaggle does not tell the two apart."""
        try:
            return self.ask(call, **body)
        except RefusedError as error:
            if error.status in (403, 404):
                return None
            raise

    def every(self, call: str, key: str, **body: Any) -> list[dict[str, Any]]:
        """The entries of all pages of a list."""
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            page = self.ask(call, **{"pageSize": _PAGE, "pageToken": token, **body})
            found += page.get(key) or []
            token = page.get("nextPageToken") or ""
            if not token:
                return found

    def change(self, call: str, what: str, **body: Any) -> dict[str, Any]:
        """Call what changes something, once: only a call that Kaggle turned away as one too many is tried again.

        Raises:
            UnreachableError: no answer; it may have been carried out, so look before it is done again.
            KaggleError: Kaggle says no, in its status or in its answer.
        """
        answer = dict(self._answer(what, lambda: {"call": call, "body": body}, repeat=(429,)))
        if answer.get("error"):
            raise KaggleError(f"{what} failed.", str(answer["error"]))
        return answer

    def upload(self, path: Path, listen: Listener, slowest: float) -> str:
        """Bring one file of a dataset to Kaggle; returns the token that stands for it. It is no part of anything yet.

        Args:
            path: the file.
            listen: hears how many bytes are there.
            slowest: bytes a second below which it is given up.
        """
        size, changed = path.stat().st_size, int(path.stat().st_mtime)
        about = {"type": "DATASET", "name": path.name, "contentLength": size, "lastModifiedEpochSeconds": changed}
        token = ""

        def request() -> dict[str, Any]:
            nonlocal token
            slot = self.ask("blobs/start_blob_upload", **about)  # an address is good for one try
            token = str(slot["token"])
            return {"put": slot["createUrl"], "file": str(path)}

        trouble = f"{path.name} did not arrive"
        self._answer(f"The upload of {path.name}", request, 300 + size / slowest, listen, trouble)
        return token

    def download(self, files: Mapping[str, Path], listen: Listener, limit_s: float) -> None:
        """Fetch files: address → where to."""
        left = {str(path): url for url, path in files.items()}

        def hear(event: dict[str, Any]) -> None:
            left.pop(event.get("file", ""), None)
            listen(event)

        def request() -> dict[str, Any]:
            return {"get": [[url, path] for path, url in left.items()]}

        self._answer("The download", request, limit_s, hear, "A file did not come")

    def log(self, run: str, listen: Listener, stop: threading.Event) -> None:
        """Hear a run's log, line by line, until it ends or `stop` is set; that it breaks is no error."""
        self._send({"log": run}, 24 * 3600.0, listen, stop)

    def _answer(
        self,
        what: str,
        request: Callable[[], dict[str, Any]],
        limit_s: float = CALL_S,
        listen: Listener | None = None,
        trouble: str = "Kaggle does not answer",
        repeat: Iterable[int] = (),
    ) -> Any:
        """The answer to a request, which is made anew for each try; `repeat`: statuses after which it may be."""
        if self._silent:
            raise failure(what, self._silent)
        for attempt in range(1, self._tries + 1):
            asked = request()
            reply = self._send(asked, limit_s, listen)
            if "error" not in reply:
                return reply["answer"]
            error = reply["error"]
            if attempt == self._tries or not passing(error) or (repeat and error.get("status") not in repeat):
                break
            pause = min(self._pause_s * 2 ** (attempt - 1), 300.0)
            if str(error.get("retry_after") or "").isdigit():
                pause = min(max(pause, float(error["retry_after"])), 300.0)
            said = " ".join(str(error.get("text")).split())[:200]
            self._say(f"{trouble}; try {attempt + 1} of {self._tries} in {pause:.0f} s ({said})")
            time.sleep(pause)
        if self._tries == 1 and passing(error):
            self._silent = error
        if error["kind"] == "http" and not {"put", "get"}.isdisjoint(asked):  # what an address says is not of rights
            advice = "Nothing of it was kept. Run the same command again."
            raise KaggleError(f"{what} broke off.", str(error.get("text")), advice)
        raise failure(what, error)
