"""Kaggle's own Python objects in a process of their own: JSON requests on standard input, answers on standard output.

It is run as a script by the Python that has the `kaggle` package, and imports nothing of this project. One line each:

    {"about": true}                          versions of kaggle and kagglesdk; neither is imported
    {"whoami": true}                         the account's name, and how it is known
    {"call": "kernels/get_kernel", "body": {…}}   a method of kagglesdk, fields as the API names them
    {"put": URL, "file": PATH}               a file to an address that the API gave
    {"get": [[URL, PATH], …]}                files from such addresses
    {"log": "OWNER/SLUG/VERSION"}            a run's log, line by line, until it ends

The answer is {"answer": …} or {"error": {"kind", "status", "text", "retry_after"}}, where kind is one of http, network,
garbled (no JSON), disk, import, credentials, dead token, unknown field, other. Before it come lines {"event": …} about
what is under way. Nothing here tries twice.
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import inspect
import json
import os
import re
import sys
import time
from typing import Any

TIMEOUT_S = (30, 60)  # to connect, and without a byte; of the calls of kagglesdk, whoever started this takes the time
CHUNK = 1 << 20


def main() -> None:
    """Answer one request after the other."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [place for place in sys.path if os.path.abspath(place or ".") != here]  # its neighbours are not ours
    asked, sys.stdin = sys.stdin, open(os.devnull)  # noqa: SIM115 - the package leaves by exit(), which closes it
    sys.stdout = sys.stderr  # and prints advice of its own
    for line in asked:
        try:
            reply = {"answer": plain(answer(json.loads(line)))}
        except (Exception, SystemExit) as error:
            reply = {"error": described(error)}
        write(reply)


def write(value: Any) -> None:
    """One line to whoever asked."""
    print("\n" + json.dumps(value), file=sys.__stdout__, flush=True)  # whatever the package left on the line


def answer(request: dict[str, Any]) -> Any:
    """What one request asks for."""
    if "about" in request:
        from importlib.metadata import version

        return {name: version(name) for name in ("kaggle", "kagglesdk")}
    if "put" in request:
        return put(request["put"], request["file"])
    if "get" in request:
        for url, path in request["get"]:
            get(url, path)
        return None
    api = signed_in()
    if "whoami" in request:
        return whoami(api)
    if "log" in request:
        return follow(api, request["log"])
    area, method = request["call"].split("/")
    with api.build_kaggle_client() as client:
        parts = vars(getattr(client, area)).values()
        function = next(getattr(part, method) for part in parts if hasattr(part, method))
        kind = inspect.signature(function).parameters["request"].annotation
        check_fields(kind, request["body"])
        return function(kind.from_dict(request["body"]))


class DeadTokenError(Exception):
    """A token that Kaggle no longer takes; the package would send it all the same."""


class UnknownFieldError(Exception):
    """A field that the installed kagglesdk would leave out without a word."""


def signed_in() -> Any:
    """The package's own interface, with the credentials that it found."""
    import kaggle  # signs in, and hides what went wrong

    if not kaggle.api.get_config_value("auth_method"):
        kaggle.api.authenticate()
    return kaggle.api


def whoami(api: Any) -> dict[str, Any]:
    """Who asks. A token that is there but not used is a dead one."""
    from kagglesdk import get_access_token_from_env

    token, source = get_access_token_from_env()
    method = api.get_config_value("auth_method")
    if token and method != "ACCESS_TOKEN":
        raise DeadTokenError(source)
    return {"username": api.get_config_value("username"), "method": method, "token": source}


def check_fields(kind: Any, body: dict[str, Any]) -> None:
    """Refuse a request of which kagglesdk would send less than it says."""
    fields = {field.json_name: field.field_type for field in kind._fields}
    for name, value in body.items():
        if name not in fields:
            raise UnknownFieldError(f"{kind.__name__} has no {name}")
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                check_fields(fields[name], item)


def plain(value: Any) -> Any:
    """The same for JSON. kagglesdk's own to_dict loses the days of a duration: 30 hours come out as 6."""
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, list):
        return [plain(item) for item in value]
    if hasattr(value, "_fields"):
        return {field.json_name: plain(getattr(value, field.field_name)) for field in value._fields}
    return value


class Watched:
    """A file that says how far it has been read."""

    def __init__(self, path: str) -> None:
        self.file, self.size, self.told = open(path, "rb"), os.path.getsize(path), 0  # noqa: SIM115

    def __len__(self) -> int:
        return self.size

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        if self.file.tell() - self.told >= CHUNK:
            self.told = self.file.tell()
            write({"event": {"bytes": self.told}})
        return self.file.read(size)


def put(url: str, path: str) -> None:
    """Send one file."""
    import requests

    watched = Watched(path)
    with watched.file:
        requests.put(url, data=watched if len(watched) else b"", timeout=TIMEOUT_S).raise_for_status()


def get(url: str, path: str) -> None:
    """Fetch one file, whole or not at all."""
    import requests

    with requests.get(url, stream=True, timeout=TIMEOUT_S) as response:
        response.raise_for_status()
        with open(path, "wb") as file:
            for data in response.iter_content(CHUNK):
                file.write(data)
    write({"event": {"file": path}})


def follow(api: Any, run: str) -> None:
    """Tell a log line by line; a line that breaks is taken up again, from the start, and what was told is left out."""
    told = 0
    for attempt in range(5):
        with contextlib.suppress(OSError):  # what requests raises, too
            for number, event in enumerate(api.kernels_logs_stream(run)):
                if number >= told:
                    write({"event": {"log": str(event.get("data", ""))}})
                    told += 1
            return
        time.sleep(2**attempt)


def described(error: BaseException) -> dict[str, Any]:
    """kind, status and text of an error."""
    response, kind, text = getattr(error, "response", None), "other", str(error)
    status = getattr(response, "status_code", None)
    if isinstance(error, SystemExit):
        kind, text = "credentials", ""
    elif isinstance(error, DeadTokenError):
        kind = "dead token"
    elif isinstance(error, UnknownFieldError):
        kind = "unknown field"
    elif isinstance(error, ImportError):
        kind = "import"
    elif isinstance(error, json.JSONDecodeError):  # requests' own is one of these, too
        kind, text = "garbled", re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", error.doc))[:300]
    elif type(error).__module__.startswith(("requests", "urllib3")):
        kind = "network" if response is None else "http"
        if response is not None and (status or 0) < 400:  # Kaggle may hide the status in the answer
            with contextlib.suppress(ValueError, AttributeError):
                status = response.json().get("code", status)
    elif isinstance(error, OSError):
        kind = "disk"
    text = text if kind != "other" else f"{type(error).__name__}: {text}"
    text = re.sub(r"(https?://[^\s?]*)\?[^\s'\")]*", r"\1", text)  # without what opens signed addresses
    wait = response.headers.get("Retry-After") if response is not None else None
    return {"kind": kind, "status": status, "text": text, "retry_after": wait}


if __name__ == "__main__":
    main()
