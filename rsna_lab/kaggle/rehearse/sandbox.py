"""What a kernel may see and touch: bubblewrap holds it in, or it is a plain process.

Inside, /kaggle/input and /kaggle/src (with script.py alone) are read-only, /kaggle/working, /kaggle/temp and /tmp are
writable, there is no network but `lo`, and nothing of this machine is there except its programs. What the kernel
installs with pip goes to a folder of its own (PIP_TARGET) that Python searches first: this machine's packages stay as
they are, and Kaggle's image is as writable.

A plain process sees the same inputs through links in a temporary folder, whose place RSNA_KIT_INPUT tells it, and can
reach everything else; of the network, only Python's own sockets are refused. `Jail.unchecked` says what is not held.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

TOKEN_FILE = "KAGGLE_API_V1_TOKEN"
INPUT, WORKING, SCRIPT, INSTALLED = "/kaggle/input", "/kaggle/working", "/kaggle/src/script.py", "/kaggle/lib"
# Where programs and their libraries lie. Whoever has his interpreter elsewhere gets that folder, too.
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/opt", "/sys", "/nix")
TOKENS = ("KAGGLE_USER_SECRETS_TOKEN", "KAGGLE_DATA_PROXY_TOKEN", TOKEN_FILE)
_PLACES = {
    "KAGGLE_URL_BASE": "https://www.kaggle.com",
    "KAGGLE_DATA_PROXY_URL": "https://dp.kaggle.net",
    "KAGGLE_GRPC_DATA_PROXY_URL": "dp.kaggle.net:443",
    "KAGGLE_KERNEL_INTEGRATIONS": "",
    "KAGGLE_CONTAINER_NAME": "rehearsal",
    "KAGGLE_DOCKER_IMAGE": "rehearsal",
}
GPUS = list(Path("/dev").glob("nvidia[0-9]*"))
HOW_TO_INSTALL = "Install bubblewrap for a sandbox; on Debian or Ubuntu: apt-get install bubblewrap."
_PLAIN_UNCHECKED = (
    "network off",
    "read-only input",
    "only /kaggle/working writable",
    "absolute /kaggle paths",
    "files of this machine out of sight",
)
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
    """

    inputs: Mapping[str, Path]
    script: Path
    working: Path
    scratch: Path
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Jail:
    """A command that is ready to be started, in what, and what it does not check. `name` is None without a sandbox."""

    name: str | None
    command: list[str]
    environment: dict[str, str]
    unchecked: list[str] = field(default_factory=list)


def open_jail(cell: Cell, sandbox: bool = True) -> Jail:
    """Bubblewrap, where it works here and `sandbox` says so; else a plain process."""
    places = {"/tmp": cell.scratch / "tmp", "/kaggle/temp": cell.scratch / "temp", INSTALLED: cell.scratch / "lib"}
    for folder in places.values():
        folder.mkdir(exist_ok=True)
    why_not = "not asked for"
    if sandbox:
        command = _bubblewrap(cell, {**places, WORKING: cell.working})
        why_not = _why_not([*command, sys.executable, "-c", ""])
        if not why_not:
            environment = _environment(cell, places["/tmp"], "/tmp", INSTALLED)
            return Jail("bubblewrap", [*command, sys.executable, SCRIPT], environment)
    root, alone, patch = cell.scratch / "input", cell.scratch / "src" / "script.py", cell.scratch / "patch"
    for folder in (root, alone.parent, patch):
        folder.mkdir(exist_ok=True)
    for where, path in cell.inputs.items():
        (root / where).parent.mkdir(parents=True, exist_ok=True)
        (root / where).symlink_to(path)
    shutil.copy(cell.script, alone)
    (patch / "sitecustomize.py").write_text(_NO_NETWORK)
    environment = _environment(cell, places["/tmp"], str(places["/tmp"]), str(places[INSTALLED]))
    environment |= {"RSNA_KIT_INPUT": str(root), "RSNA_KIT_WORKING": str(cell.working)}
    environment["PYTHONPATH"] += f"{os.pathsep}{patch}"
    return Jail(None, [sys.executable, str(alone)], environment, [*_PLAIN_UNCHECKED, f"sandbox: {why_not}"])


def session_environment(tokens: Mapping[str, str], rerun: bool) -> dict[str, str]:
    """The variables of a Kaggle session, with stand-ins for its tokens; and what the person sets for the kernels."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("RSNA_KIT_")}
    if GPUS and "LD_LIBRARY_PATH" in os.environ:
        kept["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    path = os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"])
    common = {"PATH": path, "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    scoring = {"KAGGLE_IS_COMPETITION_RERUN": "1"} if rerun else {}
    return {**common, "KAGGLE_KERNEL_RUN_TYPE": "Batch", **_PLACES, **tokens, **scoring, **kept}


def _environment(cell: Cell, here: Path, temporary: str, installed: str) -> dict[str, str]:
    """The kernel's variables; /tmp is `here` on this machine and called `temporary` inside.

    Packages that it installs go to `installed`. Kaggle keeps one token in a file, and the variable says where.
    """
    said = {"HOME": temporary, "TMPDIR": temporary, **cell.environment, "PIP_TARGET": installed}
    said |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore", "PIP_NO_CACHE_DIR": "1"}
    said["PYTHONPATH"] = installed
    if TOKEN_FILE in said:
        (here / TOKEN_FILE).write_text(said[TOKEN_FILE])
        said[TOKEN_FILE] = f"{temporary}/{TOKEN_FILE}"
    return said


def _bubblewrap(cell: Cell, writable: Mapping[str, Path]) -> list[str]:
    """The command line that a program is appended to."""
    command = ["bwrap", "--unshare-net", "--unshare-pid", "--unshare-ipc", "--die-with-parent", "--new-session"]
    command += ["--proc", "/proc", "--dev", "/dev", "--dir", INPUT]
    for pattern in ("nvidia*", "dri", "kfd"):  # GPUs of this machine
        for device in sorted(map(str, Path("/dev").glob(pattern))):
            command += ["--dev-bind-try", device, device]
    for inside, folder in writable.items():  # /tmp first: the interpreter may itself lie below it
        command += ["--bind", str(folder), inside]
    prefix, base, executable = map(Path, (sys.prefix, sys.base_prefix, sys.executable))
    own = {prefix, base, prefix.resolve(), base.resolve(), executable.resolve().parent}
    own = {folder for folder in own if not any(folder.is_relative_to(place) for place in _SYSTEM)}
    for folder in (*map(Path, _SYSTEM), *sorted(own)):
        if folder.is_symlink():
            command += ["--symlink", os.readlink(folder), str(folder)]
        elif folder.exists():
            command += ["--ro-bind", str(folder), str(folder)]
    for where, path in cell.inputs.items():
        command += ["--ro-bind", str(path), f"{INPUT}/{where}"]
    return [*command, "--ro-bind", str(cell.script), SCRIPT, "--remount-ro", "/", "--chdir", WORKING, "--"]


def _why_not(command: list[str]) -> str:
    """Why a command cannot be run, "" when it can."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return "not installed"
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
