"""Datasets: the same bytes for the same commit, a wheel that pip takes, and nothing in them that must not travel."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rsna_kit.runtime.errors import RsnaKitError, UsageError
from rsna_kit.session.contents import CONTENTS, check_contents
from rsna_lab.kaggle.build import Wanted, build

ROOT = Path(__file__).parent.parent


def silent(line: str) -> None:
    """Nobody reads."""


def git(root: Path, *words: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", "-C", str(root), *identity, *words], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small project of our layout, committed."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "datasets", root / "datasets")
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt", ".gitignore"):
        shutil.copy(ROOT / name, root)
    (root / "rsna_kit/room").mkdir(parents=True)
    shutil.copy(ROOT / "rsna_kit/__init__.py", root / "rsna_kit")
    (root / "rsna_kit/room/module.py").write_text("VALUE = 1\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "first")
    return root


def everything(folder: Path) -> dict[str, tuple[bytes, int, float]]:
    """Bytes, rights and time of every file."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mode, p.stat().st_mtime) for p in files}


# ---- the same commit, the same bytes


def test_the_library_is_the_same_wherever_and_whenever_it_is_built(checkout: Path, tmp_path: Path) -> None:
    first = build(checkout, Wanted("rsna-kit"), tmp_path / "one", silent)
    again = tmp_path / "elsewhere/checkout"
    shutil.copytree(checkout, again)
    (again / "rsna_kit/room/module.py").chmod(0o600)
    os.utime(again / "rsna_kit/room/module.py", (0, 0))
    (again / "rsna_kit/room/__pycache__").mkdir()
    (again / "rsna_kit/room/__pycache__/module.cpython-312.pyc").write_bytes(b"x")
    second = build(again, Wanted("rsna-kit"), tmp_path / "another/two", silent)
    assert everything(tmp_path / "one") == everything(tmp_path / "another/two")
    assert {**first, "out": ""} == {**second, "out": ""}
    assert first["dirty"] == []
    names = {"LICENSE", "README.md", "rsna_kit/__init__.py", "rsna_kit/commit.txt", "rsna_kit/room/module.py"}
    assert set(first["files"]) == names
    head = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert (tmp_path / "one/rsna_kit/commit.txt").read_text() == head


def test_a_changed_working_tree_is_said_and_recorded(checkout: Path, tmp_path: Path) -> None:
    clean = build(checkout, Wanted("rsna-kit"), tmp_path / "out", silent)
    (checkout / "rsna_kit/room/module.py").write_text("VALUE = 2\n")
    (checkout / "rsna_kit/room/new.py").write_text("")
    (checkout / "notes.txt").write_text("no part of the library")
    said: list[str] = []
    built = build(checkout, Wanted("rsna-kit"), tmp_path / "out", said.append)
    assert built["dirty"] == ["rsna_kit/room/module.py", "rsna_kit/room/new.py"]
    assert built["commit"] == clean["commit"]
    assert built["sha256"] != clean["sha256"]
    assert (tmp_path / "out/rsna_kit/commit.txt").read_text() == f"{clean['commit']}-dirty\n"
    assert (tmp_path / "out/rsna_kit/room/new.py").is_file()
    assert any("NOT COMMITTED: 2 files" in line for line in said)


def test_an_ignored_module_stays_at_home(checkout: Path, tmp_path: Path) -> None:
    (checkout / ".gitignore").write_text("mine.py\nbrüste.py\n")
    for name in ("mine.py", "brüste.py"):  # git quotes the second one where it is not asked otherwise
        (checkout / "rsna_kit/room" / name).write_text("")
    built = build(checkout, Wanted("rsna-kit"), tmp_path / "out", silent)
    assert not [name for name in built["files"] if name.endswith(("mine.py", "ste.py"))]


def test_without_git_a_library_is_built_and_says_so(checkout: Path, tmp_path: Path) -> None:
    shutil.rmtree(checkout / ".git")
    said: list[str] = []
    built = build(checkout, Wanted("rsna-kit"), tmp_path / "out", said.append)
    assert built["commit"] is None
    assert (tmp_path / "out/rsna_kit/commit.txt").read_text() == "unknown\n"
    assert any("no git here" in line for line in said)


@pytest.mark.parametrize("missing", [False, True])
def test_a_checkout_that_git_refuses_is_not_built(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: bool
) -> None:
    """No answer is no leave to pack what git ignores: a checkout of another owner, or no git at all."""
    if missing:
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(RsnaKitError, match="No such file" if missing else "detected dubious ownership") as error:
        build(checkout, Wanted("rsna-kit"), tmp_path / "out", silent)
    assert "Nothing was built" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_script_prints_json_and_what_it_built_runs_alone_and_knows_its_commit(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, ROOT / "scripts/build", "rsna-kit", "--out"]
    built = subprocess.run([*command, out], check=True, capture_output=True, text=True)
    said = json.loads(built.stdout)
    assert (said["dataset"], said["commit"]) == ("rsna-kit", json.loads((out / CONTENTS).read_text())["commit"])
    code = "import rsna_kit.recipes.infer, rsna_kit.runtime.hardware as h; print(h.__file__, h.commit())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(out)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [
        str(out / "rsna_kit/runtime/hardware.py"),
        (out / "rsna_kit/commit.txt").read_text().strip(),
    ]
    check_contents(out, digests=True)


# ---- weights, starts, phantom


@pytest.mark.tf
def test_weights_are_the_bundles_the_same_twice(bundle: Path, checkout: Path, tmp_path: Path) -> None:
    wanted = Wanted("rsna-weights", source=bundle.parent, owner="someone")
    built = build(checkout, wanted, tmp_path / "one", silent)
    build(checkout, wanted, tmp_path / "two", silent)
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
    assert {"fold0/model.weights.h5", "fold0/metadata.json"} <= set(built["files"])
    assert json.loads((tmp_path / "one/dataset-metadata.json").read_text())["id"] == "someone/rsna-weights"
    assert "dataset-metadata.json" not in built["files"]  # Kaggle keeps that


def test_weights_that_are_a_dataset_themselves_keep_their_licence(checkout: Path, tmp_path: Path) -> None:
    start = ROOT / "datasets/mammography-start"
    build(checkout, Wanted("rsna-weights", source=start, owner="someone"), tmp_path / "out", silent)
    told = json.loads((tmp_path / "out/dataset-metadata.json").read_text())
    assert (told["id"], told["licenses"]) == ("someone/rsna-weights", [{"name": "CC-BY-3.0"}])
    assert (tmp_path / "out/README.md").read_text() == (start / "README.md").read_text()


def test_the_phantom_is_a_competition_that_a_kernel_finds(
    checkout: Path, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rsna_kit.competition.paths import find_competition

    built = build(checkout, Wanted("phantom", source=phantom), tmp_path / "input/datasets/me/phantom", silent)
    assert any(name.startswith("hidden/test_images/") for name in built["files"])
    monkeypatch.setenv("RSNA_KIT_INPUT", str(tmp_path / "input"))
    monkeypatch.delenv("KAGGLE_IS_COMPETITION_RERUN", raising=False)
    assert find_competition().root == tmp_path / "input/datasets/me/phantom"
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    with pytest.raises(UsageError, match="Attach the competition"):
        find_competition()


# ---- what stands where it is to be


def test_a_folder_that_was_not_built_here_is_never_replaced(checkout: Path, tmp_path: Path) -> None:
    """Nor one that looks like it: every dataset of Kaggle has a dataset-metadata.json."""
    out = tmp_path / "mine"
    out.mkdir()
    (out / "dataset-metadata.json").write_text("{}")
    (out / "data.csv").write_text("a\n")
    for content in ("", "[]", '{"files": {"data.csv": {}}}'):
        if content:
            (out / CONTENTS).write_text(content)
        with pytest.raises(UsageError, match=r"not built by scripts/build rsna-kit: it has no contents\.json of ours"):
            build(checkout, Wanted("rsna-kit"), out, silent)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="it is a file"):
        build(checkout, Wanted("rsna-kit"), tmp_path / "file", silent)
    assert (out / "data.csv").read_text() == "a\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkout", "file", "mine"]


def test_what_was_added_to_a_build_is_not_lost_with_it(checkout: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(checkout, Wanted("rsna-kit"), out, silent)
    before = everything(out)
    (out / "rsna_kit/thesis.txt").write_text("")
    with pytest.raises(UsageError, match=r"its contents\.json does not list rsna_kit/thesis\.txt\. Name a new"):
        build(checkout, Wanted("rsna-kit"), out, silent)
    (out / "rsna_kit/thesis.txt").unlink()
    (out / "LICENSE").unlink()  # a damaged build is a build
    build(checkout, Wanted("rsna-kit"), out, silent)
    assert everything(out) == before
    with pytest.raises(UsageError, match="it is the dataset rsna-kit"):
        build(checkout, Wanted("rsna-weights", source=tmp_path / "checkout/datasets"), out, silent)
    assert everything(out) == before


@pytest.mark.parametrize("out", ["datasets/rsna-kit", "datasets/new", "rsna_kit/built", ".", "bundles", "bundles/out"])
def test_inputs_are_never_written_over(checkout: Path, out: str) -> None:
    (checkout / "bundles").mkdir()
    wanted = Wanted("rsna-weights", source=checkout / "bundles") if "bundles" in out else Wanted("rsna-kit")
    before = everything(checkout)
    with pytest.raises(UsageError, match=r"lie in one another\. Name another folder with --out"):
        build(checkout, wanted, checkout / out, silent)
    assert everything(checkout) == before


# ---- what must not travel

KEY = "0123456789abcdef" * 2
PLANTED = {
    "kaggle.json": (f'{{"username": "me", "key": "{KEY}"}}', "Kaggle's credentials, by its name"),
    "access_token": ("KGAT_x", "Kaggle's credentials, by its name"),
    ".env": ("A=1", "credentials, by its name"),
    "LICENSE": ("a link", "a link: what it points to would travel"),
    "id_ed25519": ("", "a private key, by its name"),
    ".git/config": ("", "hidden files and caches have no business"),
    "notes.txt": ("", "no kind of file that this dataset holds"),
    "a@b.py": ("", "Kaggle refuses this file name"),
    "README.md": (f"KAGGLE_KEY={KEY}\n", "holds what looks like an API key"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_in_a_dataset_is_refused_by_name_and_not_shown(
    checkout: Path, tmp_path: Path, name: str
) -> None:
    """And the build before stays as it was."""
    build(checkout, Wanted("rsna-kit"), tmp_path / "out", silent)
    before = everything(tmp_path / "out")
    content, reason = PLANTED[name]
    path = checkout / "datasets/rsna-kit" / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to("/etc/passwd") if content == "a link" else path.write_text(content)
    with pytest.raises(RsnaKitError) as refused:
        build(checkout, Wanted("rsna-kit"), tmp_path / "out", silent)
    assert f"{name.split('/')[0]}: {reason}" in str(refused.value)
    assert KEY not in str(refused.value)
    assert everything(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkout", "out"]


def test_ones_own_key_is_found_whatever_it_looks_like(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home/.kaggle").mkdir(parents=True)
    (tmp_path / "home/.kaggle/kaggle.json").write_text('{"username": "me", "key": "no-key-of-kaggles"}')
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (checkout / "rsna_kit/room/module.py").write_text("# no-key-of-kaggles\n")
    with pytest.raises(RsnaKitError, match=r"rsna_kit/room/module\.py: holds your Kaggle credentials") as refused:
        build(checkout, Wanted("rsna-kit"), tmp_path / "out", silent)
    assert "no-key" not in str(refused.value)


@pytest.mark.tf
def test_what_lies_among_bundles_does_not_travel_and_a_damaged_one_is_no_dataset(
    bundle: Path, checkout: Path, tmp_path: Path
) -> None:
    wanted = Wanted("rsna-weights", source=tmp_path / "bundles")
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles/kaggle.json").write_text("x")  # beside the bundles: they alone are copied
    with pytest.raises(RsnaKitError, match=r"no bundle \(a folder with metadata\.json\)"):
        build(checkout, wanted, tmp_path / "out", silent)
    shutil.copytree(bundle, tmp_path / "bundles/fold0")
    assert "kaggle.json" not in build(checkout, wanted, tmp_path / "out", silent)["files"]
    for name, said in {"kaggle.json": "by its name", "optimizer.pkl": "no kind of file", ".env": "by its name"}.items():
        (tmp_path / "bundles/fold0" / name).write_text("x")
        with pytest.raises(RsnaKitError, match=f"fold0/{name}: .*{said}"):
            build(checkout, wanted, tmp_path / "out", silent)
        (tmp_path / "bundles/fold0" / name).unlink()
    (tmp_path / "bundles/fold0/threshold.json").write_text('{"threshold": 0.9}')
    with pytest.raises(RsnaKitError, match="damaged or exchanged"):
        build(checkout, wanted, tmp_path / "out", silent)


# ---- the command line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rsna-weights"], "rsna-weights needs --from FOLDER: the bundles of a training"),
        (["imagenet-starts"], "imagenet-starts needs --from FOLDER: weights of keras.applications"),
        (["imagenet-starts", "--from", "nowhere"], "--from nowhere: no such folder."),
        (["rsna-kit", "--from", "x"], "rsna-kit is made of nothing that --from could name, leave it out"),
        (["rsna-kit", "--owner", "a b"], "--owner: got 'a b'"),
        (["rsna-kit", "--out", str(ROOT / "datasets/rsna-kit")], "lie in one another"),
        (["rsna-kit", "--no-dali"], "belong to rsna-wheels"),
        (["phantom"], "phantom needs --from FOLDER: a synthetic competition, which `rsna-kit phantom"),
        (["rsna-kitt"], "invalid choice"),
    ],
)
def test_wrong_usage_is_refused(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = runpy.run_path(str(ROOT / "scripts/build"), run_name="build")
    monkeypatch.setattr(sys, "argv", ["build", *words])
    with pytest.raises((SystemExit, UsageError)) as refused:
        script["main"]()
    assert said in capsys.readouterr().err + str(refused.value)
    assert refused.value.code == 2 if isinstance(refused.value, SystemExit) else refused.value.exit_code == 2
