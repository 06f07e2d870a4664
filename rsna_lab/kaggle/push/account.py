"""Who pushes, from which checkout, and what was sent: what every verb of scripts/push needs before it begins.

The ledger is runs.jsonl, one JSON line for each event, only ever added to; no line holds a secret:

    upload   dataset version: digest of its files; state sent, ready (and checked), or failed
    push     kernel version: digest of script, metadata and inputs, versions of what it reads, image and accelerator
    run      ended run: status, failure, seconds
    fetch    output that was fetched and checked: sha256 of its files
    submit   submission: its number on Kaggle
    score    scored submission, or the error

It is for people. What was done already is asked of Kaggle, where every version says what it was made of; of the ledger
only which version of a dataset was sent last, because Kaggle may not show that yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsna_kit.runtime.errors import MissingDependencyError, RsnaKitError
from rsna_kit.runtime.events import Events
from rsna_lab.kaggle.metadata import PLACEHOLDER, check_owner
from rsna_lab.kaggle.push.api import Client, Kaggle, find_python
from rsna_lab.kaggle.push.errors import KaggleError, RefusedError
from rsna_lab.kaggle.secrecy import Secrets, check_permissions, credential_files

LEDGER = "runs.jsonl"


def same(one: str, other: str) -> bool:
    """Whether two names of Kaggle's are one.

    Example:
        >>> same("Alice-K/rsna-kit", "alice-k/rsna-kit")
        True
    """
    return one.casefold() == other.casefold()


class Ledger:
    """The lines of one file.

    Args:
        project: the checkout that it lies in, and whose commit is noted.
        hide: takes secrets out of a line.
    """

    def __init__(self, project: Path, hide: Callable[[str], str]) -> None:
        self.path, self._project, self._hide = project / LEDGER, project, hide

    def add(self, kind: str, **fields: Any) -> None:
        """Append one line, whole and on disk when this returns."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {"at": now, "kind": kind, "commit": commit_of(self._project), **fields}
        with open(self.path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            text = self._hide(json.dumps(line, ensure_ascii=False)) + "\n"
            if file.seek(0, os.SEEK_END) and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                text = "\n" + text  # whoever wrote before was killed
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[dict[str, Any]]:
        """Every whole line, oldest first."""
        found = []
        for text in self.path.read_text("utf-8", "replace").splitlines() if self.path.is_file() else []:
            with contextlib.suppress(ValueError):  # the rest of a line whose writer was killed
                line = json.loads(text)
                found += [line] if isinstance(line, dict) else []
        return found

    def last(self, kind: str, **match: str) -> dict[str, Any]:
        """The newest line of a kind whose fields have these values, names in any case; empty where there is none."""
        for line in reversed(self.lines()):
            if line.get("kind") == kind and all(same(str(line.get(key)), match[key]) for key in match):
                return line
        return {}


def commit_of(project: Path) -> str:
    """The commit of a checkout, with -dirty where tracked files differ from it; "" where git knows nothing of it."""
    words = ["git", "-C", str(project), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@dataclass(frozen=True)
class Account:
    """Everything that the steps share.

    Args:
        owner: the account's name on Kaggle.
        project: folder with kernels/, datasets/ and build/.
        kaggle: what is asked.
        ledger: what was sent.
        events: where people read.
        secrets: of this person, which are taken out of text and found in files.
        poll_s: seconds between two looks at something that takes time.
        limit_s: how long anything is waited for.
        public: whether what is pushed may be seen by everybody.
        again: whether to do what is done already.
        accept_accelerator: whether a run on another accelerator than the one asked for will do.
    """

    owner: str
    project: Path
    kaggle: Kaggle
    ledger: Ledger
    events: Events
    secrets: Secrets
    poll_s: float = 30.0
    limit_s: float = 24 * 3600.0
    public: bool = False
    again: bool = False
    accept_accelerator: bool = False

    @property
    def staging(self) -> Path:
        """Where copies are made that go out with the account's name in them."""
        return self.project / "build" / "push"

    def check_private(self, what: Mapping[str, Any], name: str, page: str) -> None:
        """Refuse what everybody can see, unless that is meant.

        Args:
            what: a kernel's metadata or a dataset, as Kaggle has it.
            name: owner/slug.
            page: where it is made private.

        Raises:
            KaggleError: everybody can see it.
        """
        if not self.public and not what.get("isPrivate"):
            raise KaggleError(
                f"{name} can be seen by everybody.",
                "isPrivate is false",
                f"Nothing more is sent to it. Make it private at {page}, then run the same command again; or say "
                "--public if that is meant.",
            )


def open_account(
    project: Path,
    events: Events,
    owner: str | None = None,
    program: Path | None = None,
    environment: Mapping[str, str] = os.environ,
    plan: bool = False,
    poll_s: float = 30.0,
    **how: Any,
) -> Account:
    """Check credentials and the kaggle package, and ask who we are.

    Args:
        project: folder with kernels/, datasets/ and build/.
        events: where people read.
        owner: the account's name, where it is another than that of the credentials.
        program: `kaggle`; the one on PATH unless given.
        environment: holds or leads to the credentials.
        plan: nothing will be sent. What is on the site is asked once; without package, credentials or network it is
            unknown, and the account is called OWNER unless it is named.
        poll_s: seconds between two looks.
        how: further fields of the account.

    Raises:
        CredentialError: credentials that others can read.
        KaggleError: no credentials, or none that Kaggle takes.
    """
    check_permissions(environment)
    secrets = Secrets(environment)
    try:
        send = Client(find_python(program), environment, secrets.hide, project / "build" / "push" / "tmp")
        kaggle = Kaggle(send, events.say, poll_s, **({"tries": 1} if plan else {}))
        kaggle.check_version()
        name = owner or _who(kaggle, environment, poll_s)
    except (KaggleError, MissingDependencyError) as error:
        if not plan:
            raise
        reason, name = str(error), owner or ""
        events.say(f"Kaggle is not asked, and what is there is unknown. {reason}")
        kaggle = Kaggle(lambda *_: {"error": {"kind": "network", "text": reason}}, events.say, tries=1)
    name = check_owner(name) if name else PLACEHOLDER
    return Account(name, project, kaggle, Ledger(project, secrets.hide), events, secrets, poll_s, **how)


def _who(kaggle: Kaggle, environment: Mapping[str, str], poll_s: float) -> str:
    """The account's name. A token counts as dead only when Kaggle says so twice."""
    for last in (False, True):
        try:
            return str(kaggle.whoami()["username"])
        except RefusedError as refused:
            error = refused
        if not last:
            time.sleep(poll_s)
    places = list(dict.fromkeys(map(str, credential_files(environment))))
    there = [place for place in places if Path(place).is_file()]
    there += [name for name in ("KAGGLE_API_TOKEN", "KAGGLE_KEY", "KAGGLE_USERNAME") if environment.get(name)]
    if there:
        raise KaggleError(
            f"{str(error).splitlines()[0]} There are {', '.join(there)}.",
            error.said,
            "Put a new token or key in its place (https://www.kaggle.com/settings, API). A token is sent even where "
            "good keys lie beside it: where there are some, take it away",
        )
    raise KaggleError(
        "No credentials were found: not in KAGGLE_API_TOKEN, KAGGLE_USERNAME and KAGGLE_KEY, nor in "
        f"{', '.join(places)}.",
        advice="Make one at https://www.kaggle.com/settings (API, 'Create Legacy API Key'), then: "
        "mkdir -p -m 700 ~/.kaggle && mv ~/Downloads/kaggle.json ~/.kaggle/ && chmod 600 ~/.kaggle/kaggle.json. "
        "Or: kaggle auth login",
    )


@contextlib.contextmanager
def alone(project: Path) -> Iterator[None]:
    """Keep a second scripts/push that sends something out of this checkout while the block runs.

    Raises:
        RsnaKitError: there is one.
    """
    path = project / "build" / "push" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise RsnaKitError(
                f"another scripts/push is at work in this checkout (process {file.read().strip() or 'unknown'}), and "
                "two would push and submit twice.\n  What to do: wait for it, or stop it; scripts/push follow, status, "
                "logs and fetch work beside it"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
