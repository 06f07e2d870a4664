"""Wheels for Kaggle: on the list of hashes, for both interpreters, agreeing with what the image has."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name, parse_wheel_filename

from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.runtime.files import sha256_file
from rsna_lab.kaggle import wheels
from rsna_lab.kaggle.build import Wanted, build
from rsna_lab.kaggle.wheels import (
    PYTHONS,
    Image,
    check_wheels,
    find_conflicts,
    fits,
    read_image,
    read_sums,
    updated_sums,
    write_sums,
)

ROOT = Path(__file__).parent.parent
HOME = ROOT / "datasets/rsna-wheels"
IMAGE = Image((3, 12), {"numpy": "2.0.2", "tqdm": None}, frozenset({"dali: packaging<26"}))


def write_wheel(
    folder: Path,
    name: str,
    tag: str = "py3-none-any",
    requires: tuple[str, ...] = (),
    more: str = "",
    version: str = "1.0",
) -> Path:
    path = folder / f"{name}-{version}-{tag}.whl"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", more]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    with zipfile.ZipFile(path, "w") as wheel:
        at = zipfile.ZipInfo(f"{name}-{version}.dist-info/METADATA")  # of 1980: the same bytes whenever it is written
        wheel.writestr(at, "\n".join(line for line in lines if line))
    return path


# ---- what the image has


@pytest.mark.parametrize(
    ("requires", "problem"),
    [
        ("numpy>=2.0", None),
        ("numpy>=2.1", "toy requires numpy>=2.1, the image has numpy 2.0.2 (Python 3.12)"),
        ("NumPy<2", "toy requires NumPy<2, the image has numpy 2.0.2 (Python 3.12)"),
        ("tqdm>=99", None),  # nobody says which version the image has
        ("absent", "toy requires absent, which neither image nor wheels have (Python 3.12)"),
        ('absent; python_version < "3.12"', None),
        ('absent; extra == "gpu"', None),
        ('absent; sys_platform == "linux"', "toy requires absent, which neither image nor wheels have (Python 3.12)"),
        ("friend>=2", "toy requires friend>=2, the wheels bring friend 1.0 (Python 3.12)"),
        ("friend", None),
    ],
)
def test_requirements_hold_in_the_image(tmp_path: Path, requires: str, problem: str | None) -> None:
    made = [write_wheel(tmp_path, "toy", requires=(requires,)), write_wheel(tmp_path, "friend")]
    assert find_conflicts(made, IMAGE, {}) == ([problem] if problem else [])


def test_other_interpreters_and_what_is_tolerated_are_passed_over_and_a_damaged_wheel_is_named(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, "toy", "cp313-cp313-manylinux_2_17_x86_64", requires=("absent",))
    assert find_conflicts([wheel], IMAGE, {}) == []
    assert find_conflicts([wheel], Image((3, 13), {}, frozenset()), {}) != []
    assert find_conflicts([write_wheel(tmp_path, "dali", requires=("packaging<26",))], IMAGE, {}) == []
    assert find_conflicts([write_wheel(tmp_path, "dali", requires=("packaging<25",))], IMAGE, {}) != []
    (tmp_path / "toy-1.0-py3-none-any.whl").write_bytes(b"PK half of it")
    with pytest.raises(RsnaKitError, match=r"toy-1\.0-py3-none-any\.whl: no wheel, or a damaged one"):
        find_conflicts([tmp_path / "toy-1.0-py3-none-any.whl"], IMAGE, {})


# ---- hashes


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.json"
    path.write_text(json.dumps({"packages": {"numpy": "2.0.2"}, "3.13": {"numpy": "2.1.3"}, "tolerated": {}}))
    return path


def test_a_wheel_that_may_not_be_shipped_is_refused_and_all_is_told_at_once(tmp_path: Path, image: Path) -> None:
    def refused(*files: Path, sums: dict[str, str] | None = None) -> str:
        listed = {path.name: sha256_file(path) for path in files} if sums is None else sums
        with pytest.raises(RsnaKitError) as error:
            check_wheels(files, listed, image, {"kit": ["more"]})
        return str(error.value)

    good = write_wheel(tmp_path, "toy")
    assert check_wheels([good], {good.name: sha256_file(good)}, image, {}) == {good.name: sha256_file(good)}
    assert f"{good.name} is not on the list of hashes" in refused(good, sums={})
    assert "--accept-hashes" in refused(good, sums={})
    assert f"has sha256 {sha256_file(good)}, the list says 000" in refused(good, sums={good.name: "0" * 64})
    one = write_wheel(tmp_path, "toy", "cp312-cp312-manylinux_2_28_x86_64")
    assert "toy: no wheel for Python 3.13" in refused(one)
    other = write_wheel(tmp_path, "toy", version="2.0")
    assert "several versions of one package: toy 1.0, toy 2.0" in refused(good, other)
    said = refused(write_wheel(tmp_path, "toy", requires=("numpy>=2.1", "absent")))
    assert "toy requires numpy>=2.1, the image has numpy 2.0.2 (Python 3.12)" in said
    assert said.count(" requires ") == 5  # numpy fits Python 3.13, the two others fit neither


def test_accepted_hashes_replace_those_of_the_same_packages(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, "toy")
    others = {"toy-0.9-py3-none-any.whl": "a", "friend-1.0-py3-none-any.whl": "b"}
    assert updated_sums(others, [wheel]) == {"friend-1.0-py3-none-any.whl": "b", wheel.name: sha256_file(wheel)}
    write_sums(tmp_path / "SHA256SUMS", {"b.whl": "2", "a.whl": "1"})
    assert (tmp_path / "SHA256SUMS").read_text() == "1  a.whl\n2  b.whl\n"
    assert read_sums(tmp_path / "SHA256SUMS") == {"a.whl": "1", "b.whl": "2"}
    assert read_sums(tmp_path / "none") == {}


# ---- the dataset


def test_the_dataset_holds_wheels_their_hashes_and_the_pinned_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip's download is replaced by files that are there; everything else is as at home."""
    root = tmp_path / "checkout"
    (root / "datasets").mkdir(parents=True)
    subprocess.run(["cp", "-r", HOME, root / "datasets"], check=True)
    for name in ("pyproject.toml", "constraints.txt"):
        (root / name).write_text((ROOT / name).read_text())
    asked: list[str] = []

    def download(requirements: list[str], constraints: Path, out: Path) -> None:
        asked.extend(requirements)
        for name in ("dicomsdl", "imagecodecs"):
            write_wheel(out, name, version="3000.1")

    monkeypatch.setattr(wheels, "download", download)
    with pytest.raises(RsnaKitError, match="is not on the list of hashes"):
        build(root, Wanted("rsna-wheels"), tmp_path / "out", print)
    built = build(root, Wanted("rsna-wheels", accept_hashes=True), tmp_path / "out", print)
    build(root, Wanted("rsna-wheels"), tmp_path / "out", print)  # the list is in the checkout now
    files = {"dicomsdl-3000.1-py3-none-any.whl", "imagecodecs-3000.1-py3-none-any.whl"}
    assert set(built["files"]) == files | {"README.md", "SHA256SUMS", "requirements.txt"}
    assert asked[:2] == ["dicomsdl", "imagecodecs"]
    assert "nvidia-dali-cuda120" not in asked
    assert (tmp_path / "out/requirements.txt").read_text().count("--hash=sha256:") == 2
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "out")
    assert done.returncode == 0


# ---- what is committed


def test_the_committed_list_serves_every_named_package_on_both_interpreters() -> None:
    sums = read_sums(HOME / "SHA256SUMS")
    assert all(len(digest) == 64 for digest in sums.values())
    lists = sorted(HOME.glob("requirements*.txt"))
    assert len(lists) == 3
    named = {canonicalize_name(line) for path in lists for line in path.read_text().split()}
    for python in PYTHONS:
        assert {parse_wheel_filename(name)[0] for name in sums if fits(name, python)} == named


def test_the_committed_list_has_the_versions_of_constraints_txt() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line.count("==") == 1
    )
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for name in read_sums(HOME / "SHA256SUMS"):
        package, version, _, _ = parse_wheel_filename(name)
        assert pins[package] == str(version)


def test_the_image_says_when_and_where_it_was_read() -> None:
    content = json.loads((HOME / "image.json").read_text())
    assert content["read"].startswith("20")
    assert content["from"]
    now, then = (read_image(HOME / "image.json", python).packages for python in PYTHONS)
    assert (now["numpy"], then["numpy"]) == ("2.0.2", "2.1.3")
    assert (now["opencv-python-headless"], then["opencv-python-headless"]) == ("4.13.0.92", "5.0.0.93")
