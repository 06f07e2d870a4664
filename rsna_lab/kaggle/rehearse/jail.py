"""Inside `unshare`: build a root that holds nothing but a plan's folders, enter it, run a command. Bare Python.

    python -I jail.py PLAN.json COMMAND...

PLAN: {"root": an empty folder, "binds": [[here, inside, writable], ...], "devices": [], "folders": [], "cwd": "/"}
This process is the first of its PID namespace: when it ends, so does everything that the command has left behind.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import struct
import sys
from pathlib import Path

_RDONLY, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
# Flags of a mount that a user namespace may not take away: statvfs' name for each, and mount's.
_LOCKED = ((2, 2), (4, 4), (8, 8), (1024, 1024), (2048, 2048), (4096, 1 << 21))
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str | None, flags: int) -> None:
    """The system call."""
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    if _libc.mount(*words, ctypes.c_ulong(flags), None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {source} on {target}: {os.strerror(number)}")


def bind(source: str, target: Path, writable: bool) -> None:
    """Show a file or folder at another place."""
    if Path(source).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount(source, target, None, _BIND | _REC)
    if not writable:
        read_only(target)


def read_only(target: Path) -> None:
    """Take the right to write away from a mount; what else it forbids stays forbidden."""
    there = os.statvfs(target).f_flag
    kept = sum(flag for found, flag in _LOCKED if there & found)
    mount("none", target, None, _BIND | _REMOUNT | _RDONLY | kept)


def build(plan: dict) -> Path:
    """The new root."""
    root = Path(plan["root"])
    mount("none", Path("/"), None, _REC | _PRIVATE)
    mount("tmpfs", root, "tmpfs", 0)
    for name in (*plan["folders"], "/dev/shm"):
        (root / name.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for source, inside, writable in plan["binds"]:
        target = root / inside.lstrip("/")
        if Path(source).is_symlink() and source == inside:
            target.symlink_to(os.readlink(source))
        else:
            bind(source, target, writable)
    for device in (*_DEVICES, *plan["devices"]):
        bind(device, root / device.lstrip("/"), True)
    for name, where in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (root / "dev" / name).symlink_to(where)
    mount("tmpfs", root / "dev/shm", "tmpfs", 0)
    (root / "proc").mkdir()
    mount("proc", root / "proc", "proc", 0)
    read_only(root)
    return root


def raise_loopback() -> None:
    """`lo` is down in a new network namespace, and 127.0.0.1 is used by more than one would think."""
    request = struct.pack("16sh14x", b"lo", 1 | 64)  # IFF_UP | IFF_RUNNING
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, request)  # SIOCSIFFLAGS


def main() -> int:
    """Run the command in the new root; its exit code, or 128 and the signal."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    root = build(plan)
    raise_loopback()
    os.chroot(root)
    os.chdir(plan["cwd"])
    child = os.fork()
    if child == 0:
        os.setsid()
        os.execv(sys.argv[2], sys.argv[2:])
    while True:
        ended, status = os.wait()  # orphans come to the first process, too
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
