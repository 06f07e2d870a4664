"""A page → what headless Chromium makes of it: its text, errors, requests and screenshots.

Chromium is driven by its DevTools protocol over two pipes (--remote-debugging-pipe), which needs nothing installed but
the browser: JSON messages that end with a zero byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
          "--no-first-run", "--disable-component-update", "--disable-background-networking")  # fmt: skip


def find_chromium() -> str | None:
    """The browser's program, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One Chromium with one tab; a context manager.

    `errors` collects what the console complained of and exceptions nobody caught, `requests` every address asked for
    but the page's own and data: URIs, since the last `open`.
    """

    def __init__(self, program: str, timeout_s: float = 60) -> None:
        self._timeout_s, self._number, self._buffer = timeout_s, 0, b""
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loaded: set[str] = set()
        self._url = ""
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        theirs, self._write = os.pipe()
        self._read, back = os.pipe()

        def place() -> None:
            # Chromium reads 3 and writes 4; both pipes are first moved out of the way of these numbers.
            moved = os.dup(theirs), os.dup(back)
            high = [os.dup2(one, 60 + place) for place, one in enumerate(moved)]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        command = [program, *_FLAGS, "--remote-debugging-pipe", f"--user-data-dir={self._profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, preexec_fn=place, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs)
        os.close(back)
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Page.setLifecycleEventsEnabled", enabled=True)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._call("Browser.close")
            self._process.wait(10)
        except (OSError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, path: Path, fragment: str = "") -> None:
        """Load a file, with a #fragment, and wait until it is there."""
        self._load("about:blank")  # else a new fragment alone would load nothing
        self.errors, self.requests = [], []
        self._url = path.resolve().as_uri()
        self._load(self._url + fragment)

    def _load(self, url: str) -> None:
        loader = self.send("Page.navigate", url=url)["loaderId"]
        deadline = time.monotonic() + self._timeout_s
        while loader not in self._loaded:
            self._receive(deadline)

    def evaluate(self, script: str) -> Any:
        """The value of a piece of JavaScript, JSON-ready; a promise is waited for."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, key: str, text: str = "") -> None:
        """Press and release a key, such as "Tab" or "Enter"; `text` is what it types."""
        code = {"Tab": 9, "Enter": 13, " ": 32, "ArrowDown": 40, "End": 35}.get(key, ord(key[0].upper()))
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def look(self, width: int, dark: bool = False, media: str = "screen", phone: bool = False) -> None:
        """Set the window's width, the colour scheme and the medium ("screen" or "print")."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=2 if phone else 1,
                  mobile=phone)  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", media=media, features=features)

    def screenshot(self, path: Path, top: int = 0, height: int | None = None) -> None:
        """The whole page as PNG, or a strip of it."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": top, "width": size["width"], "height": height or size["height"] - top, "scale": 1}
        answer = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(answer["data"]))

    def pdf(self, path: Path) -> None:
        """The page as it is printed on A4."""
        answer = self.send("Page.printToPDF", printBackground=False, paperWidth=8.27, paperHeight=11.69)
        path.write_bytes(base64.b64decode(answer["data"]))

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol to the tab."""
        return self._call(method, self._session, **parameters)

    def _call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters} | (
            {"sessionId": session} if session else {}
        )
        left = json.dumps(message).encode() + b"\0"
        while left:
            left = left[os.write(self._write, left) :]
        deadline = time.monotonic() + self._timeout_s
        while (answer := self._receive(deadline)).get("id") != self._number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self, deadline: float) -> dict[str, Any]:
        """The next message; events are taken note of."""
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise TimeoutError(f"no answer from Chromium within {self._timeout_s:g} s")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise OSError("Chromium ended")
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, facts: Mapping[str, Any]) -> None:
        if method == "Page.lifecycleEvent" and facts["name"] == "load":
            self._loaded.add(facts["loaderId"])
        elif method == "Runtime.exceptionThrown":
            details = facts["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(part.get("value")) for part in facts["args"]))
        elif method == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.errors.append(facts["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = facts["request"]["url"]
            if not url.startswith(("data:", "about:")) and url.partition("#")[0] != self._url:
                self.requests.append(url)
