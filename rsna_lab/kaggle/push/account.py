"""Who pushes, with which program, from which checkout: what every verb of scripts/push needs before it begins."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rsna_kit.runtime.errors import MissingDependencyError
from rsna_kit.runtime.events import Events
from rsna_lab.kaggle.credentials import CredentialError, Scrubber, check_permissions, credential_files
from rsna_lab.kaggle.metadata import PLACEHOLDER, check_owner
from rsna_lab.kaggle.push.advice import KaggleError, UnreachableError
from rsna_lab.kaggle.push.ledger import Ledger
from rsna_lab.kaggle.push.program import NEWEST, Glance, Program, find_program

LEDGER = "runs.jsonl"


@dataclass(frozen=True)
class Account:
    """Everything that the steps of the road share.

    Args:
        owner: the account's name on Kaggle.
        project: folder with kernels/, datasets/ and build/.
        program: the `kaggle` program.
        ledger: what was sent.
        events: where people read.
        scrub: takes secrets out of text.
        poll_s: seconds between two looks at something that takes time.
        limit_s: how long anything is waited for.
        public: whether what is pushed may be seen by everybody.
        again: whether to do what the ledger says is done.
    """

    owner: str
    project: Path
    program: Program
    ledger: Ledger
    events: Events
    scrub: Scrubber
    poll_s: float = 30.0
    limit_s: float = 24 * 3600.0
    public: bool = False
    again: bool = False

    @property
    def staging(self) -> Path:
        """Where copies are made that go out with the account's name in them."""
        return self.project / "build" / "push"


def open_account(
    project: Path,
    events: Events,
    owner: str | None = None,
    kaggle: Path | None = None,
    poll_s: float = 30.0,
    limit_s: float = 24 * 3600.0,
    public: bool = False,
    again: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> Account:
    """Check credentials and program, and ask the program who we are.

    Raises:
        CredentialError: credentials that others can read, or a token that has expired.
        KaggleError: no credentials, or none that Kaggle takes.
    """
    check_permissions(environment)
    scrub = Scrubber(environment)
    program = Program(find_program(kaggle), environment, scrub, _temporary(project), pause_s=poll_s / 2)
    if program.version > NEWEST:
        version = ".".join(map(str, program.version))
        events.say(f"kaggle {version} is newer than what this was tried with, {'.'.join(map(str, NEWEST))}")
    name = _who(program, environment)
    ledger = Ledger(project / LEDGER, project, scrub)
    owner = check_owner(owner or name)
    return Account(owner, project, program, ledger, events, scrub, poll_s, limit_s, public, again)


def open_for_plan(
    project: Path,
    events: Events,
    owner: str | None = None,
    kaggle: Path | None = None,
    public: bool = False,
    again: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> Account:
    """The same for a plan, which sends nothing: it is made without program, credentials or network, too.

    Without them the account is called OWNER unless it is named, and what is on the site is unknown.
    """
    check_permissions(environment)
    scrub = Scrubber(environment)
    ledger = Ledger(project / LEDGER, project, scrub)
    try:
        program = Glance(find_program(kaggle), environment, scrub, _temporary(project))
        name = check_owner(owner or _who(program, environment))
    except (KaggleError, MissingDependencyError) as error:
        program = Glance(None, environment, scrub, _temporary(project), reason=str(error))
        name = check_owner(owner) if owner else PLACEHOLDER
        events.say(f"Kaggle is not asked, and what is there is unknown. {error}")
    return Account(name, project, program, ledger, events, scrub, public=public, again=again)


def _temporary(project: Path) -> Path:
    return project / "build" / "push" / "tmp"


def _who(program: Program, environment: Mapping[str, str]) -> str:
    """The account's name; a token that is there but not used is a dead one.

    With a dead token beside good keys the program says that it uses the keys, and sends the token all the same: every
    call then fails with a message about something else.
    """
    answer = program.ask("config", "view")
    values = dict(re.findall(r"^- (\w+): (.*)$", answer.out, re.MULTILINE))
    token = _token_source(environment)
    if token and values.get("auth_method") != "ACCESS_TOKEN" and not answer.transient:
        raise CredentialError(
            f"{token} holds a token that Kaggle no longer accepts. It is sent even where good keys lie beside it.\n"
            f"  What to do: {_remedy(token)}, or put a new one there: https://www.kaggle.com/settings (API)"
        )
    if answer.transient:
        raise UnreachableError("Kaggle cannot be reached.", answer.said)
    if answer.code == 0 and values.get("username") not in (None, "None", ""):
        return values["username"]
    if not has_credentials(environment):
        files = ", ".join(dict.fromkeys(map(str, credential_files(environment))))
        raise KaggleError(
            f"No credentials were found: not in KAGGLE_API_TOKEN, KAGGLE_USERNAME and KAGGLE_KEY, nor in {files}.",
            "",
            "Make one at https://www.kaggle.com/settings (API, 'Create Legacy API Key'), then: mkdir -p -m 700 "
            "~/.kaggle && mv ~/Downloads/kaggle.json ~/.kaggle/ && chmod 600 ~/.kaggle/kaggle.json. "
            "Or: kaggle auth login",
        )
    raise KaggleError("There are no credentials that Kaggle accepts.", answer.said or "Authentication required")


def has_credentials(environment: Mapping[str, str]) -> bool:
    """Whether there are any, good or bad."""
    named = environment.get("KAGGLE_API_TOKEN") or environment.get("KAGGLE_KEY") or environment.get("KAGGLE_USERNAME")
    return bool(named) or any(path.is_file() for path in credential_files(environment))


def _token_source(environment: Mapping[str, str]) -> str:
    """Where the program takes its token from, "" without one."""
    if environment.get("KAGGLE_API_TOKEN"):
        return "KAGGLE_API_TOKEN"
    home = Path(environment.get("HOME") or Path.home()) / ".kaggle"
    files = [path for path in credential_files(environment) if path.parent == home and "token" in path.name]
    return next((str(path) for path in files if path.is_file() and path.read_text().strip()), "")


def _remedy(token: str) -> str:
    return f"unset {token}" if token == "KAGGLE_API_TOKEN" else f"rm {token}"
