"""Wheels with hashes are installed without the network, nothing that is there is replaced, nothing damaged gets in."""

from __future__ import annotations

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


def test_what_is_missing_is_installed_and_what_is_there_stays(tmp_path: Path, target: Path) -> None:
    wheels = [write_wheel(tmp_path, name) for name in ("rsna_toy_package", "numpy")]
    write_list(tmp_path, wheels)
    said: list[str] = []
    done = install_missing(tmp_path, said.append)
    assert done.new == {"rsna-toy-package": "1.5"}
    assert done.kept["numpy"][1] == "1.5"
    assert done.kept["numpy"][0] != "1.5"
    assert sorted(path.name for path in target.iterdir()) == ["rsna_toy_package", "rsna_toy_package-1.5.dist-info"]
    assert said == [f"installing rsna-toy-package from {tmp_path}"]


def test_nothing_is_asked_of_pip_when_nothing_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_list(tmp_path, [write_wheel(tmp_path, "numpy")])
    monkeypatch.setattr(subprocess, "run", lambda *words, **more: pytest.fail("pip was started"))
    assert install_missing(tmp_path, print).new == {}


def test_what_only_a_gpu_can_use_is_left_out_without_one(tmp_path: Path, target: Path) -> None:
    write_list(tmp_path, [write_wheel(tmp_path, "nvidia_rsna_toy")])
    assert install_missing(tmp_path, print, gpu=False).new == {}
    assert install_missing(tmp_path, print, gpu=True).new == {"nvidia-rsna-toy": "1.5"}


def test_a_damaged_wheel_is_not_installed(tmp_path: Path, target: Path) -> None:
    path = write_wheel(tmp_path, "rsna_toy_package")
    write_list(tmp_path, [path])
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(
        MissingDependencyError, match=r"pip cannot install rsna-toy-package.*HASHES.*Build the dataset again"
    ):
        install_missing(tmp_path, print)
    assert not target.exists()


def test_a_wheel_that_the_upload_lost_is_named(tmp_path: Path, target: Path) -> None:
    path = write_wheel(tmp_path, "rsna_toy_package")
    write_list(tmp_path, [path])
    path.unlink()
    with pytest.raises(MissingDependencyError, match=r"No matching distribution found for rsna-toy-package==1\.5"):
        install_missing(tmp_path, print)


def test_a_wheel_for_another_interpreter_is_not_installed(tmp_path: Path, target: Path) -> None:
    other = f"cp3{sys.version_info.minor - 2}"
    write_list(tmp_path, [write_wheel(tmp_path, "rsna_toy_package", f"{other}-{other}-manylinux_2_17_x86_64")])
    with pytest.raises(MissingDependencyError, match="pip cannot install rsna-toy-package"):
        install_missing(tmp_path, print)


@pytest.mark.parametrize("line", ["rsna-toy-package", "rsna-toy-package==1.5", "--index-url https://example.org/"])
def test_a_list_without_hashes_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "requirements.txt").write_text(line)
    with pytest.raises(MissingDependencyError, match="expected NAME==VERSION --hash=sha256"):
        install_missing(tmp_path, print)
