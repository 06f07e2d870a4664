"""A folder that travels is compared with its list: what is missing, cut short or exchanged is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.session.contents import CONTENTS, check_contents, write_contents

FILES = ["sub/a.py", "b.txt"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.py").write_text("aaa")
    (tmp_path / "b.txt").write_text("b")
    write_contents(tmp_path, {"dataset": "toy"}, FILES)
    return tmp_path


def test_a_whole_folder_passes_and_the_list_says_what_it_is(folder: Path) -> None:
    content = check_contents(folder, digests=True)
    assert (content["dataset"], content["bytes"], list(content["files"])) == ("toy", 4, ["b.txt", "sub/a.py"])
    digest = content["sha256"]
    (folder / "further.txt").write_text("nobody's business")
    assert check_contents(folder, digests=True)["sha256"] == digest
    assert write_contents(folder, {"dataset": "other"}, FILES[::-1])["sha256"] == digest
    (folder / "b.txt").write_text("c")
    assert check_contents(folder, digests=False)["sha256"] == digest  # of the same size
    assert write_contents(folder, {}, FILES)["sha256"] != digest


EDITED = {"dataset": "toy", "bytes": 0, "sha256": "0" * 64, "files": {}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sub/a.py", None, r"1 \(sub/a\.py\) of 2 files missing, so the upload failed in part"),
        ("b.txt", "bb", r"1 \(b\.txt\) damaged or exchanged"),
        ("b.txt", "c", r"1 \(b\.txt\) damaged or exchanged"),
        (CONTENTS, json.dumps(EDITED), "its digest is not the one it says"),
        (CONTENTS, "[]", "no list of a built folder"),
    ],
)
def test_what_is_not_as_the_list_says_is_named(folder: Path, name: str, content: str | None, message: str) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(RsnaKitError, match=message):
        check_contents(folder, digests=content == "c")
