"""What Kaggle does with what the `kaggle` package sends: a small Kaggle in memory and in one folder, traps included.

Datasets have versions that are processed before they are ready; kernels have versions with sources, and their scripts
are really run by an executor; submissions rerun a kernel version on a hidden test set and are scored. The rules are a
reading of issues, documents and the package's source: no GPU, no quota but what `Traps` says. Methods are called as
kagglesdk calls them. HTTP around it is in kaggle_double.py.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SLUG = "rsna-breast-cancer-detection"
IMAGE = f"gcr.io/kaggle-gpu-images/python@sha256:{'0' * 64}"
BASE = "http://files.example"  # any name: everything comes through the proxy
USER, KEY, TOKEN = "tester", "0123456789abcdef0123456789abcdef", "KGAT_00112233445566778899aabbccddeeff"


class Refused(Exception):  # noqa: N818
    """An answer that is none: an HTTP status, or with another kind a line that breaks or a page that is no JSON."""

    def __init__(self, status: int, message: str, kind: str = "http", retry_after: str = "") -> None:
        super().__init__(message)
        self.status, self.kind, self.retry_after = status, kind, retry_after


@dataclass
class Traps:
    """Everything that goes wrong on request; a rule of the real site, or of a bad day."""

    push_error: str = ""  # reported inside a 200 answer
    version_zero: bool = False  # a push that is thrown away
    make_public: bool = False
    force_internet: bool = False
    other_image: str = ""  # the kernel runs on this one
    other_text: str = ""  # somebody else pushed this in between
    output_names: dict[str, str] = field(default_factory=dict)  # files that claim another name
    truncate_output: set[str] = field(default_factory=set)
    dataset_error: str = ""  # reported inside a 200 answer
    processing_polls: int = 1
    late_polls: int = 0  # looks at the status before which a new version does not even show as processing
    fail_processing: bool = False
    never_ready: bool = False
    lose_files: set[str] = field(default_factory=set)  # that a dataset version does not have in the end
    refuse: dict[str, list[Refused]] = field(default_factory=dict)  # answers by method, used up one by one
    lose: dict[str, list[Refused]] = field(default_factory=dict)  # the same, after the call was carried out
    other_sizes: set[str] = field(default_factory=set)  # files that arrive one byte longer
    other_shape: str | None = None  # the accelerator that a kernel gets
    not_joined: bool = False  # the competition's rules are not accepted


@dataclass
class Session:
    """One run of a kernel version: what the executor gets, and what it leaves."""

    text: str
    metadata: dict[str, Any]
    sources: dict[str, Path]  # place below /kaggle/input → folder
    working: Path
    rerun: bool = False
    status: str = "RUNNING"
    failure: str = ""
    log: list[dict[str, Any]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str, stream: str = "stdout") -> None:
        """A line of the log."""
        self.log.append({"stream_name": stream, "time": time.monotonic() - self.began, "data": text + "\n"})


def plain_process(session: Session) -> int:
    """Run a script here, alone in a folder, with inputs linked where the environment says."""
    place = session.working.parent / "run"
    shutil.rmtree(place, ignore_errors=True)
    for where, folder in session.sources.items():
        (place / "input" / where).parent.mkdir(parents=True, exist_ok=True)
        (place / "input" / where).symlink_to(folder)
    (place / "src").mkdir(parents=True)
    (place / "src" / "script.py").write_text(session.text)
    environment = {"RSNA_KIT_INPUT": str(place / "input"), "RSNA_KIT_WORKING": str(session.working), "PATH": "/usr/bin"}
    if session.rerun:
        environment["KAGGLE_IS_COMPETITION_RERUN"] = "1"
    done = subprocess.run(
        [sys.executable, "-I", place / "src" / "script.py"],
        cwd=session.working,
        env=environment,
        capture_output=True,
        text=True,
    )
    for line in (done.stdout + done.stderr).splitlines():
        session.say(line)
    return done.returncode


@dataclass
class Dataset:
    """A dataset: its settings, and a folder for each version."""

    title: str
    private: bool
    versions: list[Path] = field(default_factory=list)
    ready: int = 0  # versions that can be attached
    polls_left: int = 0
    late: int = 0
    status: str = "READY"
    description: str = ""


@dataclass
class Kernel:
    """A kernel: one entry for each version."""

    title: str
    versions: list[Session] = field(default_factory=list)
    queued: int = 0


class Site:
    """The state of the double, and one method for each call of the API.

    Args:
        folder: where files live.
        competition: the folder that is mounted as the competition.
        hidden: the folder that takes its place in a scoring run.
    """

    def __init__(self, folder: Path, competition: Path, hidden: Path) -> None:
        self.folder, self.competition, self.hidden = folder, competition, hidden
        self.executor: Callable[[Session], int] = plain_process  # runs a script and returns its exit code
        self.traps = Traps()
        self.lock = threading.RLock()
        self.datasets: dict[str, Dataset] = {}
        self.kernels: dict[str, Kernel] = {}
        self.blobs: dict[str, tuple[str, bytes]] = {}
        self.submissions: list[dict[str, Any]] = []
        self.allowed_submissions = 5
        self.gpu_hours_used = 2.5
        self.threads: list[threading.Thread] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def answer(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        """What Kaggle answers to one call, such as save_kernel."""
        with self.lock:
            self.calls.append((method, body))
            self.spring(self.traps.refuse, method)
            found: dict[str, Any] = getattr(self, method)(body)
            self.spring(self.traps.lose, method)
            return found

    def spring(self, traps: dict[str, list[Refused]], method: str) -> None:
        """Refuse what a test says, once."""
        if waiting := traps.get(method):
            raise waiting.pop(0)

    def sent(self, method: str) -> list[dict[str, Any]]:
        """The bodies of every call of one method."""
        return [body for name, body in self.calls if name == method]

    @property
    def changes(self) -> list[str]:
        """The calls that brought or changed something."""
        return [name for name, _ in self.calls if name.startswith(("create_", "save_", "start_"))]

    # ---- blobs and datasets

    def start_blob_upload(self, body: dict[str, Any]) -> dict[str, Any]:
        token = f"blob{len(self.blobs)}"
        self.blobs[token] = (body["name"], b"")
        return {"token": token, "createUrl": f"{BASE}/blob/{token}?signature=secret"}

    def put(self, token: str, content: bytes) -> None:
        """What the address of a blob does with a file."""
        self.spring(self.traps.refuse, "put")
        self.blobs[token] = (self.blobs[token][0], content)

    def unpack(self, files: list[dict[str, Any]], folder: Path) -> None:
        """What Kaggle makes of the files of a version: zip archives become folders."""
        folder.mkdir(parents=True)
        for file in files:
            name, content = self.blobs[file["token"]]
            if name.endswith(".zip"):
                zipfile.ZipFile(io.BytesIO(content)).extractall(folder / name.removesuffix(".zip"))
            else:
                (folder / name).write_bytes(content + (b"x" if name in self.traps.other_sizes else b""))
        for name in self.traps.lose_files:
            (folder / name).unlink(missing_ok=True)

    def dataset(self, body: dict[str, Any]) -> Dataset:
        found = self.datasets.get(f"{body['ownerSlug']}/{body['datasetSlug']}".lower())
        if found is None:
            raise Refused(403, "Permission 'datasets.get' was denied")
        return found

    def create_dataset(self, body: dict[str, Any]) -> dict[str, Any]:
        reference = f"{body['ownerSlug']}/{body['slug']}".lower()
        if self.traps.dataset_error:
            return {"status": "error", "error": self.traps.dataset_error}
        if reference in self.datasets:
            return {"status": "error", "error": "The requested title is already in use by a dataset."}
        private = bool(body.get("isPrivate")) and not self.traps.make_public
        self.datasets[reference] = Dataset(body["title"], private)
        return self.add_version(reference, body)

    def create_dataset_version(self, body: dict[str, Any]) -> dict[str, Any]:
        found = self.dataset(body)
        if self.traps.dataset_error:
            return {"status": "error", "error": self.traps.dataset_error}
        if found.polls_left:
            raise Refused(403, "Permission 'datasets.update' was denied")
        return self.add_version(f"{body['ownerSlug']}/{body['datasetSlug']}".lower(), body["body"])

    def add_version(self, reference: str, body: dict[str, Any]) -> dict[str, Any]:
        dataset = self.datasets[reference]
        folder = self.folder / "datasets" / reference / str(len(dataset.versions) + 1)
        self.unpack(body["files"], folder)
        dataset.versions.append(folder)
        dataset.description = body.get("description", "")
        dataset.polls_left, dataset.status = self.traps.processing_polls, "BLOBS_RECEIVED"
        dataset.late = self.traps.late_polls
        if not dataset.polls_left:
            dataset.ready, dataset.status = len(dataset.versions), "READY"
        return {"status": "Ok", "url": f"https://www.kaggle.com/datasets/{reference}", "error": ""}

    def get_dataset_status(self, body: dict[str, Any]) -> dict[str, Any]:
        dataset = self.dataset(body)
        if dataset.late:
            dataset.late -= 1
            return {"status": "READY"}
        if dataset.polls_left and not self.traps.never_ready:
            dataset.polls_left -= 1
            if not dataset.polls_left:
                dataset.status = "FAILED" if self.traps.fail_processing else "READY"
                dataset.ready = dataset.ready if self.traps.fail_processing else len(dataset.versions)
        return {"status": dataset.status}

    def get_dataset(self, body: dict[str, Any]) -> dict[str, Any]:
        dataset = self.dataset(body)
        return {
            "title": dataset.title,
            "isPrivate": dataset.private,
            "currentVersionNumber": dataset.ready,
            "description": dataset.description,
        }

    def list_dataset_files(self, body: dict[str, Any]) -> dict[str, Any]:
        dataset = self.dataset(body)
        names, token = page(files_below(dataset.versions[dataset.ready - 1]), body)
        files = [{"name": name, "totalBytes": size, "creationDate": "2026-11-01T00:00:00Z"} for name, size in names]
        return {"datasetFiles": files, "nextPageToken": token}

    def list_datasets(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"datasets": []}

    # ---- kernels

    def mount(self, metadata: dict[str, Any]) -> tuple[dict[str, Path], dict[str, list[str]]]:
        """Where the sources of a kernel are mounted, and those that are not valid. There are no models here."""
        mounted: dict[str, Path] = {}
        invalid: dict[str, list[str]] = {}
        for kind, place in (
            ("Dataset", "datasets"),
            ("Competition", "competitions"),
            ("Kernel", "notebooks"),
            ("Model", ""),
        ):
            for reference in metadata.get(f"{kind[0].lower()}{kind[1:]}DataSources", []):
                folder = None
                if kind == "Dataset" and (dataset := self.datasets.get(reference.lower())) and dataset.ready:
                    folder = dataset.versions[dataset.ready - 1]
                if kind == "Competition" and reference == SLUG:
                    folder = self.competition
                if kind == "Kernel":
                    folder = next(
                        (r.working for r in self.versions_of(reference)[::-1] if r.status == "COMPLETE"), None
                    )
                if folder:
                    mounted[f"{place}/{reference}"] = folder
                else:
                    invalid.setdefault(kind, []).append(reference)
        return mounted, invalid

    def versions_of(self, reference: str) -> list[Session]:
        kernel = self.kernels.get(reference.lower())
        return kernel.versions if kernel else []

    def save_kernel(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.traps.push_error:
            return {"error": self.traps.push_error}
        reference = body["slug"].lower()
        if reference not in self.kernels:  # the address of a new kernel is made of its title
            slug = re.sub(r"[^a-z0-9]+", "-", body["newTitle"].lower()).strip("-")
            reference = f"{reference.split('/')[0]}/{slug}"
        url = f"https://www.kaggle.com/code/{reference}"
        if self.traps.version_zero:
            return {"ref": f"/code/{reference}", "url": url, "versionNumber": 0}
        kernel = self.kernels.setdefault(reference, Kernel(body["newTitle"]))
        mounted, invalid = self.mount(body)
        number = len(kernel.versions) + 1
        working = self.folder / "kernels" / reference / str(number) / "working"
        working.mkdir(parents=True)
        gone = [reference for references in invalid.values() for reference in references]
        kept = {
            key: [source for source in value if source not in gone] if key.endswith("DataSources") else value
            for key, value in body.items()
        }
        session = Session(body["text"], kept, mounted, working)
        kernel.versions.append(session)
        kernel.queued = 1
        self.start(session)
        return {
            "ref": f"/code/{reference}",
            "url": url,
            "versionNumber": number,
            **{f"invalid{kind}Sources": names for kind, names in invalid.items()},
        }

    def start(self, session: Session, then: Callable[[], None] = lambda: None) -> None:
        def run() -> None:
            code = self.executor(session)
            if code:
                session.failure = session.failure or f"Your notebook exited with code {code}."
            session.status = "ERROR" if code else "COMPLETE"
            then()

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def run_of(self, body: dict[str, Any]) -> tuple[Kernel, Session]:
        """The version a call asks for: the newest unless it names one."""
        kernel = self.kernels.get(f"{body['userName']}/{body['kernelSlug']}".lower())
        if kernel is None:
            raise Refused(403, "Permission 'kernels.get' was denied")
        number = int(body.get("versionLabel", "").removeprefix("v") or len(kernel.versions))
        if number > len(kernel.versions):
            raise Refused(404, "Not found")
        return kernel, kernel.versions[number - 1]

    def get_kernel_session_status(self, body: dict[str, Any]) -> dict[str, Any]:
        kernel, session = self.run_of(body)
        if kernel.queued and session is kernel.versions[-1]:
            kernel.queued -= 1
            return {"status": "QUEUED"}
        return {"status": session.status, **({"failureMessage": session.failure} if session.failure else {})}

    def get_kernel(self, body: dict[str, Any]) -> dict[str, Any]:
        kernel, session = self.run_of(body)
        data = session.metadata
        lists = [key for key in data if key.endswith("DataSources") or key == "categoryIds"]
        shape = data.get("machineShape", "") if self.traps.other_shape is None else self.traps.other_shape
        metadata = {key: data.get(key, False) for key in ("enableGpu", "enableTpu", *lists)}
        metadata |= {
            "isPrivate": data.get("isPrivate", False) and not self.traps.make_public,
            "enableInternet": data.get("enableInternet", False) or self.traps.force_internet,
            "dockerImage": self.traps.other_image or data.get("dockerImage", IMAGE),
            "machineShape": shape,
            "currentVersionNumber": len(kernel.versions),
        }
        return {"metadata": metadata, "blob": {"source": self.traps.other_text or session.text}}

    def list_kernels(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"kernels": []}

    def list_kernel_session_output(self, body: dict[str, Any]) -> dict[str, Any]:
        kernel, session = self.run_of(body)
        reference = f"{body['userName']}/{body['kernelSlug']}".lower()
        names, token = page(files_below(session.working), body)
        place = f"{BASE}/output/{reference}/{kernel.versions.index(session) + 1}"
        files = [{"fileName": self.traps.output_names.get(name, name), "url": f"{place}/{name}"} for name, _ in names]
        log = json.dumps(session.log) if session.status != "RUNNING" else ""
        return {"files": files, "log": log, "nextPageToken": token}

    def list_kernel_files(self, body: dict[str, Any]) -> dict[str, Any]:
        _, session = self.run_of(body)
        names, token = page(files_below(session.working), body)
        return {
            "files": [
                {"name": self.traps.output_names.get(name, name), "size": size, "creationDate": "2026-11-01"}
                for name, size in names
            ],
            "nextPageToken": token,
        }

    def get(self, path: str) -> bytes:
        """What the address of an output file gives."""
        owner, slug, number, name = path.split("/", 3)
        self.spring(self.traps.refuse, "get")
        content = (self.kernels[f"{owner}/{slug}"].versions[int(number) - 1].working / name).read_bytes()
        return content[: len(content) // 2] if name in self.traps.truncate_output else content

    def get_accelerator_quota_statistics(self, body: dict[str, Any]) -> dict[str, Any]:
        gpu = {"timeUsed": f"{self.gpu_hours_used * 3600:.0f}s", "totalTimeAllowed": "108000s"}
        return {"quotaRefreshTime": "2026-11-28T00:00:00Z", "gpuQuota": gpu}

    # ---- the competition

    def get_submission_limits(self, body: dict[str, Any]) -> dict[str, Any]:
        used = len(self.submissions)
        return {"numToday": used, "numTotal": used, "numAllowedNow": max(self.allowed_submissions - used, 0)}

    def create_code_submission(self, body: dict[str, Any]) -> dict[str, Any]:
        kernel = self.kernels[f"{body['kernelOwner']}/{body['kernelSlug']}".lower()]
        version = kernel.versions[body["kernelVersion"] - 1]
        entry: dict[str, Any] = {"ref": 1000 + len(self.submissions), "date": "2026-11-22T00:00:00Z"}
        entry |= {"status": "PENDING", "description": body.get("submissionDescription", "")}
        self.submissions.insert(0, entry)
        working = version.working.parent / f"rerun{entry['ref']}" / "working"
        working.mkdir(parents=True)
        sources = {**version.sources, f"competitions/{SLUG}": self.hidden}
        rerun = Session(version.text, version.metadata, sources, working, rerun=True)

        def score() -> None:  # a failed rerun is COMPLETE as well: with a description, and without a score
            result = working / body["fileName"]
            if rerun.status == "ERROR":
                entry["errorDescription"] = rerun.failure
            else:  # the score is the number of rows
                entry["publicScore"] = entry["privateScore"] = f"0.{len(result.read_text().splitlines()) - 1}"
            entry["status"] = "COMPLETE"

        self.start(rerun, score)
        return {"message": "Successfully submitted", "ref": entry["ref"]}

    def list_submissions(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"submissions": [{key: value for key, value in entry.items() if value} for entry in self.submissions]}

    def get_competition(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"ref": body["competitionName"], "userHasEntered": not self.traps.not_joined}

    def list_data_files(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.traps.not_joined:
            raise Refused(403, "You must accept this competition's rules before you'll be able to download files.")
        return {"files": [{"name": "train.csv"}]}

    def introspect_token(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"active": True, "username": USER} if body["token"] == TOKEN else {"active": False}


def files_below(folder: Path) -> list[tuple[str, int]]:
    """Names and sizes of the files of a version, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths]


def page(items: list[tuple[str, int]], body: dict[str, Any]) -> tuple[list[tuple[str, int]], str]:
    """One page of a list, and the token of the next."""
    start, size = int(body.get("pageToken") or 0), int(body.get("pageSize") or 20)
    return items[start : start + size], str(start + size) if start + size < len(items) else ""


@contextmanager
def waited(site: Site) -> Iterator[Site]:
    """A site whose runs have ended when the block does."""
    try:
        yield site
    finally:
        for thread in site.threads:
            thread.join(60)
