"""Wheels with hashes are installed without the network, nothing that is there is replaced, nothing damaged gets in."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rsna_kit.runtime.errors import MissingDependencyError
from rsna_kit.runtime.files import sha256_file
from rsna_kit.session.offline import install_missing


def write_wheel(folder: Path, name: str, tag: str = "py3-none-any", version: str = "1.5") -> Path:
    """A wheel with one module of its name."""
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "HERE = True\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def write_list(folder: Path, wheels: list[Path]) -> None:
    rows = [[*path.name.split("-")[:2], sha256_file(path)] for path in wheels]
    lines = [f"{name.replace('_', '-')}=={version} --hash=sha256:{digest}" for name, version, digest in rows]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip installs to in this test, as in a rehearsal."""
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "target"))
    return tmp_path / "target"


def test_what_is_missing_is_installed_and_what_is_there_stays(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only a GPU can use is left out without one; nothing is asked of pip when nothing is missing."""
    write_list(tmp_path, [write_wheel(tmp_path, name) for name in ("rsna_toy_package", "numpy", "nvidia_rsna_toy")])
    said = install_missing(tmp_path, gpu=False)
    assert re.fullmatch(r"rsna-toy-package 1\.5 in \d+\.\d s; the image's own stay: numpy 2\.\S+", said)
    assert sorted(path.name for path in target.iterdir()) == ["rsna_toy_package", "rsna_toy_package-1.5.dist-info"]
    assert install_missing(tmp_path).startswith("rsna-toy-package 1.5, nvidia-rsna-toy 1.5 in ")
    write_list(tmp_path, [tmp_path / "numpy-1.5-py3-none-any.whl"])
    monkeypatch.setattr(subprocess, "run", lambda *words, **more: pytest.fail("pip was started"))
    assert install_missing(tmp_path).startswith("nothing new in ")


@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        ("damaged", r"pip cannot install rsna-toy-package.*HASHES.*Build the dataset again"),
        ("lost", r"No matching distribution found for rsna-toy-package==1\.5"),
        ("foreign", "pip cannot install rsna-toy-package"),
    ],
)
def test_a_wheel_that_cannot_be_used_is_named(tmp_path: Path, target: Path, flaw: str, message: str) -> None:
    other = f"cp3{sys.version_info.minor - 2}"
    tags = [f"{other}-{other}-manylinux_2_17_x86_64"] if flaw == "foreign" else []
    path = write_wheel(tmp_path, "rsna_toy_package", *tags)
    write_list(tmp_path, [path])
    if flaw == "damaged":
        path.write_bytes(path.read_bytes() + b"\n")
    elif flaw == "lost":
        path.unlink()
    with pytest.raises(MissingDependencyError, match=message):
        install_missing(tmp_path)
    assert not target.exists()


@pytest.mark.parametrize("line", ["rsna-toy-package", "rsna-toy-package==1.5", "--index-url https://example.org/"])
def test_a_list_without_hashes_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "requirements.txt").write_text(line)
    with pytest.raises(MissingDependencyError, match="expected NAME==VERSION --hash=sha256"):
        install_missing(tmp_path)
