"""Scripts find the project's own .venv, whichever python3 comes first on PATH."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOOR = '''#!/usr/bin/env python3
"""Says who it is."""
import in_venv
import sys
import pandas
print(sys.prefix, sys.argv[1:], sys.flags.utf8_mode)
sys.exit(3)
'''
SET_UP = """cd "$(dirname "${BASH_SOURCE[0]}")/.."
echo "Making .venv" >&2
rm -rf .venv && mv ready .venv && touch .venv/made .venv/installed
"""


def make_environment(folder: Path, packages: bool) -> Path:
    """An environment with this one's packages, or with none; returns its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    if packages:
        site = next(folder.glob("lib/python*/site-packages"))
        (site / "packages.pth").write_text(sysconfig.get_path("platlib") + "\n")
    return folder / "bin/python3"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A project with one door, an interpreter without packages beside it, and nothing set up yet."""
    root = tmp_path / "checkout"
    (root / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/in_venv.py", root / "scripts")
    (root / "scripts/door").write_text(DOOR)
    (root / "scripts/door").chmod(0o755)
    (root / "scripts/environment").write_text(SET_UP)
    make_environment(root / "ready", packages=True)
    make_environment(tmp_path / "bare", packages=False)
    return root


def knock(checkout: Path, *words: str) -> tuple[int, str, str]:
    """Open the door with the bare interpreter first on PATH, as somebody does who stands elsewhere."""
    path = f"{checkout.parent / 'bare/bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [checkout / "scripts/door", *words],
        cwd="/",
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def set_up(checkout: Path, *marks: str) -> None:
    (checkout / "ready").rename(checkout / ".venv")
    for mark in marks:
        (checkout / ".venv" / mark).touch()


def test_an_interpreter_without_the_packages_hands_over_to_the_environment(checkout: Path) -> None:
    set_up(checkout)
    assert knock(checkout, "a b", "--c") == (3, f"{checkout / '.venv'} ['a b', '--c'] 0\n", "")


def test_an_interpreter_with_the_packages_is_left_alone(checkout: Path) -> None:
    done = subprocess.run([sys.executable, checkout / "scripts/door"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, f"{sys.prefix} [] 0\n", "")
    assert not (checkout / ".venv").exists()


def test_without_an_environment_one_is_set_up_once(checkout: Path) -> None:
    code, out, talk = knock(checkout)
    assert (code, out) == (3, f"{checkout / '.venv'} [] 0\n")
    assert "lacks cv2" in talk
    assert "Making .venv" in talk
    assert knock(checkout) == (3, f"{checkout / '.venv'} [] 0\n", "")


def test_a_set_up_that_was_interrupted_is_ended(checkout: Path) -> None:
    make_environment(checkout / ".venv", packages=False)
    (checkout / ".venv/made").touch()
    code, out, _ = knock(checkout)
    assert (code, out) == (3, f"{checkout / '.venv'} [] 0\n")


def test_a_set_up_that_fails_ends_the_door(checkout: Path) -> None:
    (checkout / "scripts/environment").write_text("echo 'Error: no Python 3.12 found' >&2; exit 1\n")
    code, out, talk = knock(checkout)
    assert (code, out) == (1, "")
    assert talk.endswith("Error: no Python 3.12 found\n")


def test_asking_for_help_sets_nothing_up(checkout: Path) -> None:
    code, out, _ = knock(checkout, "--help")
    assert code == 0
    assert out.startswith("Says who it is.\n")
    assert not (checkout / ".venv").exists()


def test_an_environment_that_lacks_packages_is_said_and_not_started_for_ever(checkout: Path) -> None:
    make_environment(checkout / ".venv", packages=False)
    code, out, talk = knock(checkout)
    assert (code, out) == (1, "")
    assert talk.startswith(f"Error: {checkout / '.venv'} lacks cv2, ")
    assert f"rm -r {checkout / '.venv'} && bash " in talk


def test_every_door_that_needs_packages_begins_so() -> None:
    doors = [path for path in sorted((ROOT / "scripts").iterdir()) if path.is_file() and path.suffix == ""]
    texts = {path.name: text for path in doors if (text := path.read_text()).startswith("#!/usr/bin/env python3")}
    assert {"build", "push", "rehearse"} <= texts.keys()
    for name, text in texts.items():
        imports = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
        assert imports[1].startswith("import in_venv "), name
