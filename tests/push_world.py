"""A small project with stand-in kernels, an account on the local Kaggle, and scripts/push between them."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from kaggle_double import Double, FakeClient, environment, program, write_keys
from kaggle_site import KEY, SLUG, USER, Site

from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.runtime.events import Events
from rsna_lab.kaggle.push.account import Account, Ledger
from rsna_lab.kaggle.push.api import Kaggle
from rsna_lab.kaggle.secrecy import Secrets

ROOT = Path(__file__).parent.parent
POLL = 0.005

HEAD = """
import hashlib, json, os, pathlib
inputs, working = pathlib.Path(os.environ["RSNA_KIT_INPUT"]), pathlib.Path(os.environ["RSNA_KIT_WORKING"])
competition = inputs / "competitions/rsna-breast-cancer-detection"
def verdict(ok=True, reason="", **more):
    names = [path for path in working.rglob("*") if path.is_file()]
    sums = {path.relative_to(working).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in names}
    (working / "verdict.json").write_text(json.dumps({"ok": ok, "reason": reason, "sha256": sums, **more}))
"""
PREPARE = """
library = (inputs / "datasets/tester/rsna-kit/rsna_kit/__init__.py").read_text()
train = (competition / "train.csv").read_text().splitlines()[1:]
(working / "shards").mkdir()
(working / "shards/part0").write_text("\\n".join(train))
(working / "manifest.json").write_text(json.dumps({"rows": len(train), "library": library}))
print("prepared", len(train))
verdict()
"""
TRAIN = """
SETTINGS = {"PRESET": "default"}
rows = (inputs / "notebooks/tester/rsna-kit-prepare/shards/part0").read_text().splitlines()
labels = [int(row.split(",")[1]) for row in rows]
(working / "bundles").mkdir()
(working / "bundles/weights").write_text(f"{sum(labels) / len(labels):.4f} {SETTINGS['PRESET']}")
print("trained", len(labels))
verdict()
"""
INFER = """
places = ("notebooks/*/*", "datasets/*/*")
weights = [path for place in places for path in inputs.glob(f"{place}/bundles/weights")]
score = weights[0].read_text().split()[0]
print("weights from", weights[0].relative_to(inputs))
rows = (competition / "sample_submission.csv").read_text().splitlines()
print("rerun" if os.environ.get("KAGGLE_IS_COMPETITION_RERUN") else "commit", len(rows) - 1)
(working / "submission.csv").write_text("\\n".join([rows[0], *(row.split(",")[0] + "," + score for row in rows[1:])]))
verdict()
"""
BUILD = """
import argparse, pathlib, shutil
parser = argparse.ArgumentParser()
parser.add_argument("name")
parser.add_argument("--out", type=pathlib.Path)
parser.add_argument("--from", dest="source")
options = parser.parse_args()
root = pathlib.Path(__file__).resolve().parent.parent
shutil.rmtree(options.out, ignore_errors=True)
shutil.copytree(root / "datasets" / options.name, options.out)
if options.name == "rsna-kit":
    (options.out / "rsna_kit/deep").mkdir(parents=True)
    (options.out / "rsna_kit/__init__.py").write_text("version = 1")
    (options.out / "rsna_kit/deep/module.py").write_text("x = 2")
else:
    shutil.copytree(pathlib.Path(options.source) / "bundles", options.out / "bundles")
"""


def write_kernel(folder: Path, text: str, **changes: Any) -> None:
    """A kernel whose script is this text, below what all of them begin with."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"rsna-kit-{folder.name}"
    data = {
        "id": f"OWNER/{name}",
        "title": name,
        "code_file": f"{folder.name}.py",
        "language": "python",
        "kernel_type": "script",
        "is_private": True,
        "enable_gpu": False,
        "enable_tpu": False,
        "enable_internet": False,
        "dataset_sources": [],
        "competition_sources": [],
        "kernel_sources": [],
        "model_sources": [],
        **changes,
    }
    (folder / f"{folder.name}.py").write_text(HEAD + text)
    (folder / "kernel-metadata.json").write_text(json.dumps(data))


def write_dataset(folder: Path, files: dict[str, str], **changes: Any) -> None:
    """A dataset with these files."""
    data = {"id": f"OWNER/{folder.name}", "title": f"{folder.name} for tests", "licenses": [{"name": "MIT"}], **changes}
    for name, text in {"dataset-metadata.json": json.dumps(data), **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def write_project(folder: Path) -> Path:
    """Three stand-in kernels, two datasets, and a build script for them."""
    gpu = {"enable_gpu": True, "machine_shape": "NvidiaTeslaT4"}
    write_kernel(folder / "kernels/prepare", PREPARE, dataset_sources=["OWNER/rsna-kit"], competition_sources=[SLUG])
    write_kernel(
        folder / "kernels/train",
        TRAIN,
        kernel_sources=["OWNER/rsna-kit-prepare"],
        dataset_sources=["OWNER/rsna-kit"],
        **gpu,
    )
    write_kernel(
        folder / "kernels/infer",
        INFER,
        dataset_sources=["OWNER/rsna-kit", "OWNER/rsna-weights"],
        competition_sources=[SLUG],
        **gpu,
    )
    for name in ("rsna-kit", "rsna-weights"):
        write_dataset(folder / "datasets" / name, {"README.md": name})
    (folder / "scripts").mkdir()
    (folder / "scripts/build").write_text(BUILD)
    return folder


def write_competition(folder: Path, rows: int) -> Path:
    """Tables of a competition with so many breasts."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.csv").write_text("\n".join(["id,cancer", *(f"{i},{i % 2}" for i in range(6))]))
    sample = ["prediction_id,cancer", *(f"{i}_L,0.021" for i in range(rows))]
    (folder / "sample_submission.csv").write_text("\n".join(sample))
    return folder


def make_site(folder: Path) -> Site:
    """A site with a small competition and a hidden test of another size; the score is its number of rows."""
    competition, hidden = write_competition(folder / "competition", 2), write_competition(folder / "hidden", 5)
    return Site(folder, competition, hidden)


@dataclass
class Result:
    """What scripts/push left: exit code, standard output as a value, and what people read."""

    code: int
    value: Any
    talk: str


@dataclass
class World:
    """One test's project, site and account."""

    project: Path
    site: Site
    client: FakeClient
    account: Account

    @property
    def traps(self) -> Any:
        return self.site.traps

    @property
    def ledger(self) -> Ledger:
        return self.account.ledger

    def push(self, *words: str) -> Result:
        """scripts/push in this process, with a client in this process."""
        talk = io.StringIO()
        events = Events(stream=talk)
        options = SCRIPT.build_parser().parse_args([*words, "--project", str(self.project)])
        flags = {name: getattr(options, name, False) for name in ("public", "again", "accept_accelerator")}
        kaggle = Kaggle(self.client, events.say, POLL)
        account = replace(self.account, events=events, kaggle=kaggle, **flags)
        try:
            return Result(0, SCRIPT.run(options, account), talk.getvalue())
        except RsnaKitError as error:
            return Result(error.exit_code, None, f"{talk.getvalue()}\nError: {error}")

    def does(self, *words: str) -> Result:
        """The same for a command that has to work."""
        result = self.push(*words)
        assert result.code == 0, result.talk
        return result

    def fails(self, *words: str) -> str:
        """What people read of a command that has to fail with something to do."""
        result = self.push(*words)
        assert result.code == 1, result
        assert "What to do: " in result.talk
        return result.talk

    def dataset(self, name: str = "rsna-extra", **files: str) -> Path:
        """A built dataset in the project."""
        folder = self.project / "build/datasets" / name
        write_dataset(folder, files or {"a.txt": "alpha", "sub/b.txt": "beta"})
        return folder

    def has_kernel(self, name: str, text: str, **changes: Any) -> None:
        """A version of a kernel that was pushed from here and is complete."""
        write_kernel(self.project / "kernels" / name, text, **changes)
        self.does("push", name)

    def has_dataset(self, name: str, private: bool = True) -> None:
        """A dataset that is on the site already, as version 1."""
        token = self.site.start_blob_upload({"name": "a.txt"})["token"]
        self.site.put(token, b"alpha")
        self.site.create_dataset(
            {"ownerSlug": USER, "slug": name, "title": name, "isPrivate": private, "files": [{"token": token}]}
        )
        dataset = self.site.datasets[f"{USER}/{name}"]
        dataset.ready, dataset.polls_left, dataset.status = 1, 0, "READY"


def make_world(folder: Path) -> World:
    """A new project and a new site."""
    site, project = make_site(folder / "site"), write_project(folder / "project")
    client, quiet, secrets = FakeClient(site), Events(stream=io.StringIO()), Secrets({"KAGGLE_KEY": KEY})
    kaggle = Kaggle(client, quiet.say, POLL)
    return World(
        project, site, client, Account(USER, project, kaggle, Ledger(project, secrets.hide), quiet, secrets, POLL, 60.0)
    )


def run_script(project: Path, double: Double, home: Path, *words: str, **variables: str) -> Any:
    """scripts/push as a person starts it, with the real `kaggle` package."""
    write_keys(home)
    command = [sys.executable, ROOT / "scripts/push", *words, "--project", project]
    if words[0] != "validate":
        command += ["--kaggle", program(), "--poll", "0.05"]
    return subprocess.run(
        [str(word) for word in command],
        env={**environment(double, home), **variables},
        capture_output=True,
        text=True,
        cwd=home,
        timeout=300,
    )


def _load_script() -> ModuleType:
    """scripts/push as a module."""
    loader = importlib.machinery.SourceFileLoader("push_script", str(ROOT / "scripts/push"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode  # it would lie in scripts/
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


SCRIPT = _load_script()
