"""Metadata of kernels and datasets: what Kaggle would ignore, replace or misread is said before it is sent."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from kaggle_double import program
from push_world import ROOT, write_dataset, write_kernel

from rsna_lab.kaggle.metadata import MetadataError, dataset_problems, filled, kernel_problems, read_metadata, slugify

SHAPE = {"enable_gpu": True, "machine_shape": "NvidiaTeslaT4"}


@pytest.mark.parametrize("folder", sorted((ROOT / "kernels").glob("*/")), ids=lambda path: path.name)
def test_the_kernels_of_this_project_are_ready(folder: Path) -> None:
    assert kernel_problems(folder) == []


@pytest.mark.parametrize("folder", sorted((ROOT / "datasets").glob("*/")), ids=lambda path: path.name)
def test_the_datasets_of_this_project_are_ready(folder: Path) -> None:
    assert [problem for problem in dataset_problems(folder) if "nothing but its metadata" not in problem] == []


def problems_with(folder: Path, text: str = "print()", remove: str = "", **changes: Any) -> str:
    """What is said of a kernel that is well but for this."""
    write_kernel(folder / "infer", "", **changes)
    (folder / "infer/infer.py").write_text(text)
    if remove:
        path = folder / "infer/kernel-metadata.json"
        data = json.loads(path.read_text())
        del data[remove]
        path.write_text(json.dumps(data))
    return "\n".join(kernel_problems(folder / "infer"))


def test_a_good_kernel_has_no_problems(tmp_path: Path) -> None:
    sources = {
        "dataset_sources": ["OWNER/rsna-kit", "someone/thing/3"],
        "competition_sources": ["rsna-breast-x"],
        "kernel_sources": ["OWNER/rsna-kit-train"],
        "model_sources": ["o/m/keras/v/2"],
        "docker_image": f"gcr.io/kaggle-gpu-images/python@sha256:{'a' * 64}",
        "docker_image_pinning_type": "original",
    }
    assert problems_with(tmp_path, **SHAPE, **sources) == ""
    assert problems_with(tmp_path, is_private="True", enable_gpu="false") == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"enable_interent": False}, "unknown key 'enable_interent'. Did you mean 'enable_internet'? Kaggle ignores"),
        ({"id": "OWNER/rsna-other"}, "Kaggle makes the address 'rsna-kit-infer' of 'rsna-kit-infer', but id says"),
        ({"title": "RSNA"}, "title: got 'RSNA', expected at least 5 characters"),
        ({"id": "OWNER/abc", "title": "abc"}, "the slug 'abc' has 3 characters, expected at least 5"),
        ({"id": "OWNER/rsna-kit-infer/3"}, "expected OWNER/slug"),
        ({"id": "OWNER/INSERT_KERNEL_SLUG_HERE"}, "expected OWNER/slug"),
        ({"language": "pyhton"}, "language: got 'pyhton', expected python. Did you mean 'python'?"),
        ({"kernel_type": "skript"}, "Did you mean 'script'?"),
        ({"enable_internet": "no"}, "enable_internet: got 'no', expected true or false"),
        ({"is_private": False}, "is_private is false: everybody would see the code"),
        ({"enable_gpu": True}, "machine_shape is missing: say which accelerator"),
        ({"machine_shape": "NvidiaTeslaT4"}, "machine_shape is NvidiaTeslaT4, but enable_gpu is False"),
        ({"enable_tpu": True}, "a session has one kind of accelerator"),
        ({"enable_gpu": True, "machine_shape": "NvidiaTeslaP100"}, "is retired, Kaggle would run the kernel on Nvidia"),
        ({"enable_gpu": True, "machine_shape": "NvidiaTeslaT5"}, "Did you mean 'NvidiaTeslaT4'?"),
        ({"model_sources": ["o/m/keras/v"]}, "expected owner/model/framework/variation/version, the version a number"),
        ({"model_sources": ["o/m/keras/v/latest"]}, "the version a number"),
        ({"dataset_sources": ["datasets/o/slug"]}, "expected OWNER/slug or"),
        ({"kernel_sources": ["code/o/slug"]}, "expected OWNER/slug or"),
        ({"competition_sources": ["competitions/rsna"]}, "the slug alone"),
        ({"dataset_sources": ["rsna-kit"]}, "expected OWNER/slug or OWNER/slug/version"),
        ({"dataset_sources": "OWNER/rsna-kit"}, "expected a list of names"),
        ({"dataset_sources": ["o/slug", "o/slug"]}, "is there twice"),
        ({"docker_image": "gcr.io/kaggle-gpu-images/python:v167"}, "expected NAME@sha256:DIGEST"),
        ({"docker_image": f"a@sha256:{'0' * 64}"}, '"docker_image_pinning_type": "original"'),
        ({"docker_image_pinning_type": "newest"}, "expected original or latest"),
        ({"code_file": "../infer.py"}, "is no file directly in this folder"),
        ({"code_file": "missing.py"}, "is no file directly in this folder"),
    ],
)
def test_every_trap_in_kernel_metadata_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in problems_with(tmp_path, **changes)


@pytest.mark.parametrize("key", ["enable_internet", "is_private", "enable_gpu", "title", "code_file"])
def test_what_kaggle_would_decide_by_itself_has_to_be_said(tmp_path: Path, key: str) -> None:
    assert f"{key} is missing" in problems_with(tmp_path, remove=key)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x" * 1_000_001, "1,000,001 bytes, Kaggle takes at most 1,000,000"),
        ("import sibling", "infer.py imports sibling from this folder, but only infer.py itself is uploaded"),
        ("def broken(:", "cannot be read"),
    ],
)
def test_a_script_must_be_able_to_stand_alone(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "infer").mkdir()
    (tmp_path / "infer/sibling.py").write_text("")
    assert said in problems_with(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Expecting property name"),
        ("[]", "got list, expected an object"),
        ('{"id": "a/b", "id": "c/d"}', "id is there twice"),
    ],
)
def test_a_broken_metadata_file_is_told(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "kernel-metadata.json").write_text(text)
    with pytest.raises(MetadataError, match=said):
        read_metadata(tmp_path / "kernel-metadata.json")
    assert "kernel-metadata.json is missing" in kernel_problems(tmp_path / "nowhere")[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"isPrivate": True}, "unknown key 'isPrivate'"),
        ({"subtitle": "too short"}, "expected 20 to 80 characters"),
        ({"licenses": []}, "expected exactly one"),
        ({"licenses": [{"name": "MIT"}, {"name": "other"}]}, "expected exactly one"),
        ({"title": "t" * 51}, "expected 6 to 50 characters"),
        ({"id": "OWNER/short"}, "the slug 'short' has 5 characters"),
    ],
)
def test_every_trap_in_dataset_metadata_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    write_dataset(tmp_path / "rsna-extra", {"a.txt": ""}, **changes)
    assert said in "\n".join(dataset_problems(tmp_path / "rsna-extra"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mails@home.txt", "Kaggle refuses this file name"),
        ("sub/scan.nii.gz", "Kaggle unpacks archives"),
        (".env", "hidden files and caches"),
        ("rsna_kit/__pycache__/a.pyc", "hidden files and caches"),
        ("kernel-metadata.json", "keeps this name for itself"),
    ],
)
def test_files_that_would_not_arrive_are_named(tmp_path: Path, name: str, said: str) -> None:
    write_dataset(tmp_path / "rsna-extra", {"a.txt": "", name: ""})
    assert said in "\n".join(dataset_problems(tmp_path / "rsna-extra"))


def test_a_link_and_an_empty_dataset_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "rsna-extra", {})
    assert "nothing but its metadata" in "\n".join(dataset_problems(tmp_path / "rsna-extra"))
    (tmp_path / "rsna-extra/passwd").symlink_to("/etc/passwd")
    assert "passwd: a link" in "\n".join(dataset_problems(tmp_path / "rsna-extra"))


def test_the_account_takes_the_place_of_owner_and_of_nothing_else() -> None:
    data = {"id": "OWNER/a", "title": "OWNER's own", "s": ["OWNER/b/3", "else/OWNER"], "ownerSlug": "OWNER"}
    assert filled(data, "me") == {
        "id": "me/a",
        "title": "OWNER's own",
        "s": ["me/b/3", "else/OWNER"],
        "ownerSlug": "me",
    }


def test_addresses_are_those_of_the_programs_own_slugify() -> None:
    """The oracle is the package that the `kaggle` program uses."""
    titles = ["rsna-kit-infer", "RSNA kit: infer!", "  a  b ", "1,000 images", "it's 3.5%", "A_b__c", "x--y", "Äpfel"]
    code = "import sys, slugify\nfor title in sys.argv[1:]: print(slugify.slugify(title))"
    python = program().with_name("python")
    done = subprocess.run([python, "-c", code, *titles], capture_output=True, text=True, check=True)
    assert [slugify(title) for title in titles] == done.stdout.splitlines()
