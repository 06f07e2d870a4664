"""Scripts run where the project's packages are, whichever Python they were started with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = '''#!/usr/bin/env python3
"""Says who it is."""
import in_venv
import sys
import tqdm
print(sys.prefix, sys.argv[1:], sys.flags.utf8_mode)
sys.exit(3)
'''
SET_UP = """cd "$(dirname "${BASH_SOURCE[0]}")/.."
echo "Making .venv" >&2
rm -rf .venv && mv ready .venv && touch .venv/made .venv/installed
"""


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ready`, an environment with this one's packages, and `bare`, one with none."""
    folder = tmp_path_factory.mktemp("environments")
    for name in ("ready", "bare"):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / name], check=True)
    site = next((folder / "ready").glob("lib/python*/site-packages"))
    (site / "packages.pth").write_text(sysconfig.get_path("platlib") + "\n")
    return folder


@pytest.fixture
def checkout(tmp_path: Path, environments: Path) -> Path:
    """A project with one script, an environment that could become its own, and nothing set up yet."""
    root = tmp_path / "checkout"
    (root / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/in_venv.py", root / "scripts")
    (root / "scripts/tool").write_text(SCRIPT)
    (root / "scripts/tool").chmod(0o755)
    (root / "scripts/environment").write_text(SET_UP)
    shutil.copytree(environments / "ready", root / "ready", symlinks=True)
    return root


def start(checkout: Path, environments: Path, *words: str) -> tuple[int, str, str]:
    """Run the script with the bare interpreter first on PATH, from another folder."""
    path = f"{environments / 'bare/bin'}{os.pathsep}{os.environ['PATH']}"
    command, env = [checkout / "scripts/tool", *words], {**os.environ, "PATH": path}
    done = subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_an_interpreter_without_the_packages_hands_over_to_the_environment(checkout: Path, environments: Path) -> None:
    (checkout / "ready").rename(checkout / ".venv")
    assert start(checkout, environments, "a b", "--c") == (3, f"{checkout / '.venv'} ['a b', '--c'] 0\n", "")


def test_an_interpreter_with_the_packages_is_left_alone(checkout: Path) -> None:
    done = subprocess.run([sys.executable, checkout / "scripts/tool"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, f"{sys.prefix} [] 0\n", "")
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("interrupted", [False, True])
def test_without_an_environment_one_is_set_up_once(checkout: Path, environments: Path, interrupted: bool) -> None:
    if interrupted:
        shutil.copytree(environments / "bare", checkout / ".venv", symlinks=True)
        (checkout / ".venv/made").touch()
    code, out, talk = start(checkout, environments)
    assert (code, out) == (3, f"{checkout / '.venv'} [] 0\n")
    assert "lacks cv2" in talk
    assert "Making .venv" in talk
    assert start(checkout, environments) == (3, f"{checkout / '.venv'} [] 0\n", "")


def test_a_set_up_that_fails_ends_the_script(checkout: Path, environments: Path) -> None:
    (checkout / "scripts/environment").write_text("echo 'Error: no Python 3.12 found' >&2; exit 1\n")
    code, out, talk = start(checkout, environments)
    assert (code, out) == (1, "")
    assert talk.endswith("Error: no Python 3.12 found\n")


def test_asking_for_help_sets_nothing_up(checkout: Path, environments: Path) -> None:
    code, out, _ = start(checkout, environments, "--help")
    assert code == 0
    assert out.startswith("Says who it is.\n")
    assert not (checkout / ".venv").exists()


def test_an_environment_that_lacks_packages_is_said_and_not_started_for_ever(
    checkout: Path, environments: Path
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    code, out, talk = start(checkout, environments)
    assert (code, out) == (1, "")
    assert talk.startswith(f"Error: {checkout / '.venv'} lacks cv2, ")
    assert f"rm -r {checkout / '.venv'} && bash " in talk


def test_every_script_that_needs_packages_begins_so() -> None:
    files = [path for path in sorted((ROOT / "scripts").iterdir()) if path.is_file() and path.suffix == ""]
    texts = {path.name: text for path in files if (text := path.read_text()).startswith("#!/usr/bin/env python3")}
    assert {"build", "push", "rehearse"} <= texts.keys()
    for name, text in texts.items():
        imports = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
        assert imports[1].startswith("import in_venv "), name
