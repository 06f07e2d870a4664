"""A folder that travels is compared with its list: what is missing, cut short or exchanged is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.session.contents import CONTENTS, check_contents, write_contents


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.py").write_text("aaa")
    (tmp_path / "b.txt").write_text("b")
    write_contents(tmp_path, {"dataset": "toy"}, ["sub/a.py", "b.txt"])
    return tmp_path


def test_a_whole_folder_passes_and_the_list_says_what_it_is(folder: Path) -> None:
    content = check_contents(folder, digests=True)
    assert (content["dataset"], content["bytes"], list(content["files"])) == ("toy", 4, ["b.txt", "sub/a.py"])
    digest = content["sha256"]
    (folder / "further.txt").write_text("nobody's business")
    assert check_contents(folder, digests=True)["sha256"] == digest
    assert write_contents(folder, {"dataset": "other"}, ["b.txt", "sub/a.py"])["sha256"] == digest
    (folder / "b.txt").write_text("c")
    assert write_contents(folder, {}, ["b.txt", "sub/a.py"])["sha256"] != digest


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "sub/a.py").unlink()
    with pytest.raises(RsnaKitError, match=r"1 \(sub/a\.py\) of 2 files missing, so the upload failed in part"):
        check_contents(folder, digests=False)


def test_a_file_of_another_size_is_named(folder: Path) -> None:
    (folder / "b.txt").write_text("bb")
    with pytest.raises(RsnaKitError, match=r"1 \(b\.txt\) damaged or exchanged"):
        check_contents(folder, digests=False)


def test_other_bytes_of_the_same_size_are_seen_where_digests_are_compared(folder: Path) -> None:
    (folder / "b.txt").write_text("c")
    check_contents(folder, digests=False)
    with pytest.raises(RsnaKitError, match=r"1 \(b\.txt\) damaged or exchanged"):
        check_contents(folder, digests=True)


def test_a_list_that_was_edited_is_refused(folder: Path) -> None:
    content = json.loads((folder / CONTENTS).read_text())
    content["files"]["b.txt"]["sha256"] = "0" * 64
    (folder / CONTENTS).write_text(json.dumps(content))
    with pytest.raises(RsnaKitError, match="its digest is not the one it says"):
        check_contents(folder, digests=False)
    (folder / CONTENTS).write_text("[]")
    with pytest.raises(RsnaKitError, match="no list of a built folder"):
        check_contents(folder, digests=False)
