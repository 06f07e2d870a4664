"""What a kernel may see and touch → the command that runs it so: bubblewrap, unshare, or a plain process.

Inside, /kaggle/input and /kaggle/src (with script.py alone) are read-only, /kaggle/working, /kaggle/temp and /tmp are
writable, there is no network but `lo`, and nothing of this machine is there except its programs. What the kernel
installs with pip goes to a folder of its own (PIP_TARGET) that Python searches first: this machine's packages stay as
they are, and Kaggle's image is as writable.

A plain process sees the same inputs through links in a temporary folder, whose place RSNA_KIT_INPUT tells it, and can
reach everything else; of the network, only Python's own sockets are refused. `Jail.unchecked` says what is not held.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rsna_kit.runtime.errors import UsageError

TOKEN_FILE = "KAGGLE_API_V1_TOKEN"
LEVELS = ("auto", "bubblewrap", "unshare", "plain")
INPUT, WORKING, SCRIPT, INSTALLED = "/kaggle/input", "/kaggle/working", "/kaggle/src/script.py", "/kaggle/lib"
# Where programs and their libraries lie. Whoever has his interpreter elsewhere gets that folder, too.
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/opt", "/sys", "/nix")
HOW_TO_INSTALL = "Install bubblewrap for a sandbox; on Debian or Ubuntu: apt-get install bubblewrap."
_PLAIN_UNCHECKED = ("network off", "read-only input", "only /kaggle/working writable", "absolute /kaggle paths",
                    "files of this machine out of sight")  # fmt: skip
_NO_NETWORK = '''"""No network: a plain process has nothing better than this."""
import socket
_connect = socket.socket.connect
def connect(self, address):
    if self.family == socket.AF_UNIX or str(address[0]) in ("127.0.0.1", "::1", "localhost"):
        return _connect(self, address)
    raise OSError(101, "Network is unreachable")
socket.socket.connect = connect
'''


@dataclass(frozen=True)
class Cell:
    """What a run is to see, whoever holds it in.

    Args:
        inputs: path below /kaggle/input → file or folder here, read-only.
        script: becomes /kaggle/src/script.py.
        working: becomes /kaggle/working.
        scratch: an empty folder here, for /tmp and what pip installs; removed by the caller.
        environment: of the kernel. What it says for TOKEN_FILE goes into a file, and the variable names that.
        python: the interpreter.
    """

    inputs: Mapping[str, Path]
    script: Path
    working: Path
    scratch: Path
    environment: Mapping[str, str]
    python: str = sys.executable


@dataclass(frozen=True)
class Jail:
    """A command that is ready to be started, in what, and what it does not check. `name` is None without a sandbox."""

    name: str | None
    command: list[str]
    environment: dict[str, str]
    unchecked: list[str] = field(default_factory=list)


def open_jail(cell: Cell, level: str = "auto") -> Jail:
    """The best jail that works here, or the one that is asked for.

    Raises:
        UsageError: a level that is asked for by name and does not work here; says why.
    """
    reasons: list[str] = []
    for name, build in _JAILS.items():
        if level not in ("auto", name):
            continue
        command, reason = build(cell)
        if command is None:
            reasons.append(f"{name}: {reason}")
            continue
        environment = {"HOME": "/tmp", "TMPDIR": "/tmp", **cell.environment, **_pip(INSTALLED)}
        return Jail(name, [*command, cell.python, SCRIPT], environment | _token(cell, Path("/tmp")))
    if level not in ("auto", "plain"):
        raise UsageError(f"--sandbox {level} does not work here ({'; '.join(reasons)}). {HOW_TO_INSTALL}")
    return _plain(cell, [*_PLAIN_UNCHECKED, *(f"sandbox: {reason}" for reason in reasons)])


def _pip(target: str) -> dict[str, str]:
    """Installed packages go to `target`, and are found there."""
    return {"PIP_TARGET": target, "PYTHONPATH": target, "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore", "PIP_NO_CACHE_DIR": "1"}  # fmt: skip


def _token(cell: Cell, temporary: Path) -> dict[str, str]:
    """Kaggle keeps this token in a file; the variable says where. `temporary`: what the kernel sees as /tmp."""
    if TOKEN_FILE not in cell.environment:
        return {}
    (cell.scratch / "tmp" / TOKEN_FILE).write_text(cell.environment[TOKEN_FILE])
    return {TOKEN_FILE: str(temporary / TOKEN_FILE)}


def _folders(cell: Cell) -> dict[str, Path]:
    """The folders that are writable inside, made here."""
    places = {"/tmp": cell.scratch / "tmp", "/kaggle/temp": cell.scratch / "temp", INSTALLED: cell.scratch / "lib"}
    for folder in places.values():
        folder.mkdir(exist_ok=True)
    return {**places, WORKING: cell.working}


def _programs(python: str) -> list[Path]:
    """The folders that an interpreter needs."""
    asked = "import sys; print(sys.prefix, sys.base_prefix, sys.executable, sep='\\n')"
    said = subprocess.run([python, "-I", "-c", asked], capture_output=True, text=True, check=True).stdout.split("\n")
    prefix, base, executable = (Path(line) for line in said[:3])
    folders = {prefix, base, prefix.resolve(), base.resolve(), executable.resolve().parent}
    own = {folder for folder in folders if not any(folder.is_relative_to(place) for place in _SYSTEM)}
    return [*map(Path, _SYSTEM), *sorted(own)]


def _devices() -> list[str]:
    """GPUs of this machine."""
    return [str(path) for pattern in ("nvidia*", "dri", "kfd") for path in sorted(Path("/dev").glob(pattern))]


def _works(command: list[str], python: str) -> str | None:
    """Why a command cannot hold an interpreter, None when it can."""
    try:
        done = subprocess.run([*command, python, "-c", ""], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"


def _bubblewrap(cell: Cell) -> tuple[list[str] | None, str]:
    """The command line, or None and why not."""
    program = shutil.which("bwrap")
    if program is None:
        return None, "not installed"
    command = [program, "--unshare-net", "--unshare-pid", "--unshare-ipc", "--die-with-parent", "--new-session"]
    command += ["--proc", "/proc", "--dev", "/dev", "--dir", INPUT]
    for device in _devices():
        command += ["--dev-bind-try", device, device]
    for inside, folder in _folders(cell).items():  # /tmp first: the interpreter may itself lie below it
        command += ["--bind", str(folder), inside]
    for folder in _programs(cell.python):
        if folder.is_symlink():
            command += ["--symlink", os.readlink(folder), str(folder)]
        elif folder.exists():
            command += ["--ro-bind", str(folder), str(folder)]
    for where, path in cell.inputs.items():
        command += ["--ro-bind", str(path), f"{INPUT}/{where}"]
    command += ["--ro-bind", str(cell.script), SCRIPT, "--remount-ro", "/", "--chdir", WORKING, "--"]
    reason = _works(command, cell.python)
    return (None, reason) if reason else (command, "")


def _unshare(cell: Cell) -> tuple[list[str] | None, str]:
    """The same by hand: `unshare` opens the namespaces, `jail.py` builds the root."""
    program = shutil.which("unshare")
    if program is None:
        return None, "not installed"
    root = cell.scratch / "root"
    root.mkdir(exist_ok=True)
    binds = [[str(folder), inside, True] for inside, folder in _folders(cell).items()]
    binds += [[str(folder), str(folder), False] for folder in _programs(cell.python) if folder.exists()]
    binds += [[str(path), f"{INPUT}/{where}", False] for where, path in cell.inputs.items()]
    binds += [[str(cell.script), SCRIPT, False]]
    plan = cell.scratch / "jail.json"
    plan.write_text(json.dumps({"root": str(root), "binds": binds, "devices": _devices(), "folders": [INPUT],
                                "cwd": WORKING}))  # fmt: skip
    command = [program, *(() if os.geteuid() == 0 else ("--map-root-user",)), "--mount", "--net", "--ipc", "--pid",
               "--fork", "--kill-child", "--", sys.executable, "-I", str(Path(__file__).with_name("jail.py")),
               str(plan)]  # fmt: skip
    reason = _works(command, cell.python)
    return (None, reason) if reason else (command, "")


def _plain(cell: Cell, unchecked: list[str]) -> Jail:
    """A process like any other, with links where the mounts would be."""
    root, alone, patch = cell.scratch / "input", cell.scratch / "src" / "script.py", cell.scratch / "patch"
    for where, path in cell.inputs.items():
        (root / where).parent.mkdir(parents=True, exist_ok=True)
        (root / where).symlink_to(path)
    for folder in (root, alone.parent, patch):
        folder.mkdir(exist_ok=True)
    shutil.copy(cell.script, alone)
    (patch / "sitecustomize.py").write_text(_NO_NETWORK)
    folders = _folders(cell)
    installed, temporary = str(folders[INSTALLED]), str(folders["/tmp"])
    environment = {"HOME": temporary, "TMPDIR": temporary, **cell.environment, **_pip(installed),
                   "RSNA_KIT_INPUT": str(root), "RSNA_KIT_WORKING": str(cell.working)}  # fmt: skip
    environment["PYTHONPATH"] = f"{installed}{os.pathsep}{patch}"
    return Jail(None, [cell.python, str(alone)], environment | _token(cell, Path(temporary)), unchecked)


_JAILS: dict[str, Callable[[Cell], tuple[list[str] | None, str]]] = {"bubblewrap": _bubblewrap, "unshare": _unshare}
