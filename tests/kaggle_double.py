"""A local Kaggle that the real, unmodified `kaggle` program talks to: HTTP around kaggle_site.py.

The program is told `KAGGLE_API_ENVIRONMENT=LOCALHOST` and finds `http://localhost` through `HTTP_PROXY`, so no right to
a port and no change of the program is needed. Its home, configuration and temporary folder are the test's own.
Everything that arrives is kept, for tests that look for what must not be sent.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from kaggle_site import KEY, TOKEN, USER, Refused, Site, waited

ROOT = Path(__file__).parent.parent
VERSIONS = ("2.2.4", "2.2.5")
XML_403 = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>ExpiredToken</Code>"
    b"<Message>The provided token has expired.</Message></Error>"
)


def installed(version: str) -> Path | None:
    """The `kaggle` of this version that scripts/test installs."""
    path = ROOT / ".venv-kaggle" / version / "bin" / "kaggle"
    return path if path.is_file() else None


def program(version: str) -> Path:
    """The same; the test is skipped where there is none."""
    path = installed(version)
    if path is None:
        pytest.skip(f"kaggle {version} is not installed in .venv-kaggle; scripts/test installs it")
    return path


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
        url = urlsplit(self.path)
        self.server.arrived.append((method, self.path, body))
        try:
            with self.server.site.lock:
                status, kind, content = self.server.route(method, url.path, parse_qs(url.query), body, self.headers)
            headers: dict[str, str] = {}
        except Refused as refused:
            status, kind, headers = refused.status, "application/json", refused.headers
            content = json.dumps({"code": status, "message": str(refused)}).encode()
            if url.path.startswith("/output/"):
                kind, content = "application/xml", XML_403
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a program that was stopped
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)


class Double(ThreadingHTTPServer):
    """The server; `site` is its state, `arrived` every request as (method, address, body)."""

    daemon_threads = True

    def __init__(self, site: Site) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.site = site
        self.arrived: list[tuple[str, str, bytes]] = []
        self.base = "http://files.example"  # any name: everything comes through the proxy
        self.unknown: list[str] = []

    def calls(self, method: str) -> list[dict[str, Any]]:
        """The bodies of every call of one method of the API."""
        return [json.loads(body) for _, path, body in self.arrived if path.endswith(f"/{method}")]

    def route(
        self, method: str, path: str, query: dict[str, list[str]], body: bytes, headers: Any
    ) -> tuple[int, str, bytes]:
        if path.startswith("/blob/"):
            return self.site.put_blob(path.removeprefix("/blob/"), body), "text/plain", b""
        if path.startswith("/output/"):
            return 200, "application/octet-stream", self.site.output_file(path.removeprefix("/output/"))
        call = path.removeprefix("/api/v1/")
        if not call.startswith("security."):
            self.check_credentials(headers.get("Authorization", ""))
        if waiting := self.site.traps.refuse.get(call.rpartition("/")[2]):
            raise waiting.pop(0)
        if call.startswith("kernels/logs/stream/"):
            return self.log_stream(call.removeprefix("kernels/logs/stream/"), query)
        return 200, "application/json", json.dumps(self.call(call, json.loads(body or b"{}"))).encode()

    def call(self, call: str, body: dict[str, Any]) -> dict[str, Any]:
        site = self.site
        methods = {
            "blobs.BlobApiService/StartBlobUpload": lambda: site.start_blob(body, self.base),
            "datasets.DatasetApiService/CreateDataset": lambda: site.create_dataset(body),
            "datasets.DatasetApiService/CreateDatasetVersion": lambda: site.version_dataset(body),
            "datasets.DatasetApiService/GetDatasetStatus": lambda: site.dataset_status(body),
            "datasets.DatasetApiService/GetDataset": lambda: site.get_dataset(body),
            "datasets.DatasetApiService/GetDatasetMetadata": lambda: site.dataset_metadata(body),
            "datasets.DatasetApiService/ListDatasetFiles": lambda: site.dataset_files(body),
            "models.ModelApiService/CreateModel": lambda: site.create_model(body),
            "models.ModelApiService/GetModel": lambda: site.get_model(body),
            "models.ModelApiService/GetModelInstance": lambda: site.get_variation(body),
            "models.ModelApiService/CreateModelInstance": lambda: site.add_model_version(body),
            "models.ModelApiService/CreateModelInstanceVersion": lambda: site.add_model_version(body),
            "kernels.KernelsApiService/SaveKernel": lambda: site.save_kernel(body),
            "kernels.KernelsApiService/GetKernel": lambda: site.get_kernel(body),
            "kernels.KernelsApiService/GetKernelSessionStatus": lambda: site.kernel_status(body),
            "kernels.KernelsApiService/ListKernelSessionOutput": lambda: site.session_output(body, self.base),
            "kernels.KernelsApiService/ListKernelFiles": lambda: site.kernel_files(body),
            "kernels.KernelsApiService/GetAcceleratorQuotaStatistics": lambda: site.quota(body),
            "competitions.CompetitionApiService/CreateCodeSubmission": lambda: site.submit_code(body),
            "competitions.CompetitionApiService/GetSubmissionLimits": lambda: site.limits(body),
            "competitions.CompetitionApiService/ListSubmissions": lambda: site.list_submissions(body),
            "competitions.CompetitionApiService/GetSubmission": lambda: site.get_submission(body),
            "security.OAuthService/IntrospectToken": lambda: (
                {"active": True, "username": USER} if body["token"] == TOKEN else {"active": False}
            ),
        }
        if call not in methods:
            self.unknown.append(call)
            raise Refused(501, f"the double does not know {call}")
        return methods[call]()

    def check_credentials(self, authorization: str) -> None:
        basic = base64.b64encode(f"{USER}:{KEY}".encode()).decode()
        if authorization not in (f"Basic {basic}", f"Bearer {TOKEN}"):
            raise Refused(401, "Unauthorized")

    def log_stream(self, reference: str, query: dict[str, list[str]]) -> tuple[int, str, bytes]:
        """All lines so far as a stream of events that has an end, as a finished session gives them."""
        owner, slug = reference.split("/")
        body = {"userName": owner, "kernelSlug": slug}
        if "versionLabel" in query:
            body["versionLabel"] = query["versionLabel"][0]
        if self.site.traps.no_log_stream:
            raise Refused(500, "Internal error")
        _, session = self.site.run_of(body)
        lines = [f"data: {json.dumps(event)}\n\n" for event in list(session.log)]
        return 200, "text/event-stream", "".join([*lines, "data: END_OF_LOG\n\n"]).encode()


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
    """What the program needs in its environment to find the double and nothing of the person at this machine."""
    proxy = f"http://127.0.0.1:{double.server_port}"
    home.mkdir(parents=True, exist_ok=True)
    (home / "tmp").mkdir(exist_ok=True)
    return {
        "PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home / "tmp"), "LANG": "C.UTF-8",
        "KAGGLE_CONFIG_DIR": str(home / ".kaggle"), "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "HTTP_PROXY": proxy, "http_proxy": proxy, "NO_PROXY": "", "no_proxy": "",
    }  # fmt: skip


def write_keys(home: Path, key: str = KEY, mode: int = 0o600) -> Path:
    """A kaggle.json in the home's configuration folder."""
    path = home / ".kaggle" / "kaggle.json"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    path.write_text(json.dumps({"username": USER, "key": key}))
    path.chmod(mode)
    return path
