"""Two ways to a local Kaggle (kaggle_site.py): over HTTP for the real `kaggle` package, in this process for speed.

The package is told `KAGGLE_API_ENVIRONMENT=LOCALHOST` and finds `http://localhost` through `HTTP_PROXY`, so no right to
a port and no change of the package is needed. Its home, configuration and temporary folder are the test's own.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kaggle_site import KEY, TOKEN, USER, Refused, Site, waited

from rsna_lab.kaggle.push.api import TRIED

ROOT = Path(__file__).parent.parent


def program() -> Path:
    """The `kaggle` that scripts/test installs; the test is skipped where there is none."""
    path = ROOT / ".venv-kaggle" / TRIED["kaggle"] / "bin" / "kaggle"
    if not path.is_file():
        pytest.skip(f"kaggle {TRIED['kaggle']} is not installed in .venv-kaggle; scripts/test installs it")
    return path


class FakeClient:
    """Answers the requests of client.py in this process, as the real one would with this site behind it.

    `seen` holds every request; `whoami` is what the account is called.
    """

    def __init__(self, site: Site, whoami: str = USER) -> None:
        self.site, self.whoami = site, whoami
        self.seen: list[dict[str, Any]] = []

    def __call__(
        self,
        request: Mapping[str, Any],
        limit_s: float,
        listen: Callable[[dict[str, Any]], None] | None = None,
        stop: threading.Event | None = None,
    ) -> dict[str, Any]:
        self.seen.append(json.loads(json.dumps(request)))  # nothing but JSON passes
        try:
            return {"answer": self._answer(request, listen or (lambda event: None))}
        except Refused as error:
            return {
                "error": {
                    "kind": error.kind,
                    "status": error.status,
                    "text": str(error),
                    "retry_after": error.retry_after,
                }
            }

    def _answer(self, request: Mapping[str, Any], listen: Callable[[dict[str, Any]], None]) -> Any:
        if "about" in request:
            return dict(TRIED)
        if "whoami" in request:
            return {"username": self.whoami, "method": "LEGACY_API_KEY"}
        if "put" in request:
            name = urlsplit(request["put"]).path.rpartition("/")[2]
            return self.site.put(name, Path(request["file"]).read_bytes())
        if "log" in request:
            owner, slug, *version = request["log"].split("/")
            _, session = self.site.run_of({"userName": owner, "kernelSlug": slug, "versionLabel": f"v{version[0]}"})
            for event in list(session.log):
                listen({"log": event["data"]})
            return None
        for url, path in request.get("get", []):
            Path(path).write_bytes(self.site.get(urlsplit(url).path.removeprefix("/output/")))
            listen({"file": path})
        if "call" not in request:
            return None
        answer = self.site.answer(request["call"].split("/")[1], dict(request["body"]))
        for quota in (value for value in answer.values() if isinstance(value, dict) and "timeUsed" in value):
            quota |= {key: float(value.rstrip("s")) for key, value in quota.items()}  # the client gives seconds
        return answer


class Handler(BaseHTTPRequestHandler):
    """Requests in absolute form, as a proxy gets them."""

    protocol_version = "HTTP/1.1"
    server: Double

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self.answer("GET")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.arrived.append((method, self.path, body))
        kind, extra = "application/json", ""
        try:
            status, content = 200, self.server.route(urlsplit(self.path).path, body, self.headers)
        except Refused as refused:
            status, content, extra = (
                refused.status,
                json.dumps({"code": refused.status, "message": str(refused)}),
                (refused.retry_after),
            )
            if refused.kind == "garbled":
                status, kind, content = 200, "text/html", f"<html><body>{refused}</body></html>"
            if refused.kind == "network":
                self.close_connection = True
                return
        if content.startswith("data: "):
            kind = "text/event-stream"
        data = content.encode("latin-1")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a client that was stopped
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            if extra:
                self.send_header("Retry-After", extra)
            self.end_headers()
            self.wfile.write(data)


class Double(ThreadingHTTPServer):
    """The server; `site` is its state, `arrived` every request as (method, address, body)."""

    daemon_threads = True

    def __init__(self, site: Site) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.site = site
        self.arrived: list[tuple[str, str, bytes]] = []

    def route(self, path: str, body: bytes, headers: Any) -> str:
        """The body of an answer, one byte a character."""
        if path.startswith("/blob/"):
            self.site.put(path.removeprefix("/blob/"), body)
            return ""
        if path.startswith("/output/"):
            return self.site.get(path.removeprefix("/output/")).decode("latin-1")
        call = path.removeprefix("/api/v1/")
        if not call.startswith("security."):
            basic = base64.b64encode(f"{USER}:{KEY}".encode()).decode()
            if headers.get("Authorization", "") not in (f"Basic {basic}", f"Bearer {TOKEN}"):
                raise Refused(401, "Unauthorized")
        if call.startswith("kernels/logs/stream/"):
            owner, slug = call.removeprefix("kernels/logs/stream/").split("/")
            _, session = self.site.run_of({"userName": owner, "kernelSlug": slug})
            lines = [f"data: {json.dumps(event)}\n\n" for event in list(session.log)]
            return "".join([*lines, "data: END_OF_LOG\n\n"])
        method = re.sub(r"(?<!^)(?=[A-Z])", "_", call.rpartition("/")[2]).lower()
        return json.dumps(self.site.answer(method, json.loads(body or b"{}")))


@contextmanager
def served(site: Site) -> Iterator[Double]:
    """A double that answers while the block runs."""

    with waited(site):
        double = Double(site)
        thread = threading.Thread(target=double.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield double
        finally:
            double.shutdown()
            double.server_close()
            thread.join()


def environment(double: Double, home: Path) -> dict[str, str]:
    """What the package needs in its environment to find the double and nothing of the person at this machine."""
    proxy = f"http://127.0.0.1:{double.server_port}"
    (home / "tmp").mkdir(exist_ok=True, parents=True)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "LANG": "C.UTF-8",
        "KAGGLE_CONFIG_DIR": str(home / ".kaggle"),
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "HTTP_PROXY": proxy,
        "http_proxy": proxy,
        "NO_PROXY": "",
        "no_proxy": "",
    }


def write_keys(home: Path, key: str = KEY, mode: int = 0o600) -> Path:
    """A kaggle.json in the home's configuration folder."""
    path = home / ".kaggle" / "kaggle.json"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    path.write_text(json.dumps({"username": USER, "key": key}))
    path.chmod(mode)
    return path
