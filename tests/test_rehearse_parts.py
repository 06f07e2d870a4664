"""What scripts/rehearse is made of: the scoring's eye on a submission, wheels' tags, hidden test sets, limits."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pandas as pd
import pytest

from rsna_kit.competition.submission import check_submission
from rsna_kit.competition.tables import read_sample, read_test
from rsna_kit.config import ImageConfig
from rsna_kit.imaging.render import read_image
from rsna_kit.runtime.errors import ImageError, SubmissionError, UsageError
from rsna_kit.runtime.events import Events
from rsna_lab.kaggle.rehearse.hidden import make_hidden
from rsna_lab.kaggle.rehearse.verdict import COMPLETE, NOT_FOUND, SCORING, of_submission
from rsna_lab.kaggle.rehearse.watching import Limits, descendants, watch
from rsna_lab.kaggle.wheels import fits

SAMPLE = "prediction_id,cancer\n1_L,0.02\n1_R,0.02\n2_L,0.02\n"
# A submission, and what the scoring says of it; "" where it takes it.
SUBMISSIONS = {
    "as the sample": (SAMPLE, ""),
    "whole numbers": ("prediction_id,cancer\n1_L,0\n1_R,1\n2_L,0\n", ""),
    "whole numbers written as floats": ("prediction_id,cancer\n1_L,0.0\n1_R,1.0\n2_L,0.0\n", ""),
    "other order, quotes, CRLF and a byte order mark": (
        '\ufeffprediction_id,cancer\r\n"2_L",1e-3\r\n1_R,1\r\n1_L,0\r\n',
        "",
    ),
    "a missing row": ("prediction_id,cancer\n1_L,0\n1_R,1\n", "1 missing (2_L)"),
    "an extra row": (SAMPLE + "3_L,0.5\n", "1 extra (3_L)"),
    "a duplicated id": (SAMPLE + "2_L,0.5\n", "1 duplicate (2_L)"),
    "an extra column": (
        "prediction_id,cancer,score\n1_L,0,0\n1_R,1,0\n2_L,0,0\n",
        "columns are prediction_id, cancer, score",
    ),
    "an index": (",prediction_id,cancer\n0,1_L,0\n1,1_R,1\n2,2_L,0\n", "columns are Unnamed: 0, prediction_id, cancer"),
    "other names": ("id,cancer\n1_L,0\n1_R,1\n2_L,0\n", "columns are id, cancer, expected prediction_id, cancer"),
    "NaN": ("prediction_id,cancer\n1_L,nan\n1_R,1\n2_L,0\n", "1 not a number (1_L)"),
    "an empty cell": ("prediction_id,cancer\n1_L,\n1_R,1\n2_L,0\n", "1 not a number (1_L)"),
    "infinity": ("prediction_id,cancer\n1_L,inf\n1_R,1\n2_L,0\n", "1 outside [0, 1] (1_L)"),
    "more than one": ("prediction_id,cancer\n1_L,1.5\n1_R,1\n2_L,0\n", "1 outside [0, 1] (1_L)"),
    "a word": ("prediction_id,cancer\n1_L,False\n1_R,1\n2_L,0\n", "1 not a number (1_L)"),
    "a number as Python writes it": ("prediction_id,cancer\n1_L,0.1_5\n1_R,1\n2_L,0\n", "1 not a number (1_L)"),
    "a row cut short": ("prediction_id,cancer\n1_L,0\n1_R,1\n2_L", "1 not a number (2_L)"),
    "nothing": ("", "No columns to parse"),
    "only a header": ("prediction_id,cancer\n", "3 missing"),
    "another encoding": ("prediction_id,cancer\n1_L,0\n\udcff,1\n", "cannot be read as a CSV file in UTF-8"),
}


@pytest.mark.parametrize("case", SUBMISSIONS)
def test_what_the_scoring_would_say(tmp_path: Path, case: str) -> None:
    """What it takes, the library's own check takes, and the reverse; the library itself leaves other columns out."""
    text, said = SUBMISSIONS[case]
    submission, sample = tmp_path / "submission.csv", tmp_path / "sample_submission.csv"
    submission.write_bytes(text.encode("utf-8", "surrogateescape"))
    sample.write_text(SAMPLE)
    found = of_submission(submission, sample)
    assert found.word == (SCORING if said else COMPLETE)
    assert said in found.explanation
    try:
        check_submission(pd.read_csv(submission, dtype={"prediction_id": str}), read_sample(sample))
        taken = True
    except (SubmissionError, ValueError):
        taken = False
    assert taken == (said == "") or case in ("an extra column", "an index")


def test_a_submission_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "sample.csv").write_text(SAMPLE)
    assert of_submission(tmp_path / "submission.csv", tmp_path / "sample.csv").word == NOT_FOUND


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        ("cp312-cp312-manylinux_2_28_x86_64", True),
        ("cp312-cp312-manylinux2014_x86_64.manylinux_2_17_x86_64", True),
        ("cp39-abi3-manylinux2014_x86_64", True),
        ("py3-none-any", True),
        ("py2.py3-none-any", True),
        ("py3-none-manylinux1_x86_64", True),
        ("cp311-cp311-manylinux_2_17_x86_64", False),
        ("cp313-cp313-manylinux_2_17_x86_64", False),
        ("cp313-abi3-manylinux_2_17_x86_64", False),
        ("cp312-cp312t-manylinux_2_17_x86_64", False),
        ("cp312-cp312-manylinux_2_39_x86_64", False),
        ("cp312-cp312-musllinux_1_2_x86_64", False),
        ("cp312-cp312-manylinux_2_17_aarch64", False),
        ("cp312-cp312-macosx_11_0_arm64", False),
        ("cp312-cp312-win_amd64", False),
        ("py2-none-any", False),
    ],
)
def test_which_wheels_kaggle_can_install(tags: str, wanted: bool) -> None:
    assert fits(f"some_codec-1.0-{tags}.whl") is wanted


def quiet() -> Events:
    return Events(stream=io.StringIO())


def test_broken_files_are_broken_as_recorded(phantom: Path, tmp_path: Path) -> None:
    """Each way costs its image, and none of the others is touched."""
    source, made, events = tmp_path / "source", tmp_path / "set", Events(stream=io.StringIO())
    source.mkdir()
    train = pd.read_csv(phantom / "train.csv", dtype=str)
    train = train.assign(prediction_id=train["patient_id"] + "_" + train["laterality"])
    for name in ("test.csv", "truth.csv"):
        train.to_csv(source / name, index=False)
    with pytest.raises(UsageError, match="test_images: no such file"):
        make_hidden(source, made, 7, 0, events)
    (source / "test_images").symlink_to(phantom / "train_images")
    make_hidden(source, made, 7, 0, events)
    broken = pd.read_csv(made / "broken.csv", dtype=str).set_index("image_id")["how"]
    assert set(broken) == {"truncated", "missing", "empty", "constant", "of another syntax", "not DICOM"}
    test, size = read_test(made / "test.csv"), ImageConfig(height=64, width=32)
    check_submission(read_sample(made / "sample_submission.csv"), read_sample(made / "sample_submission.csv"))
    gone = test[test["image_id"].isin(broken.index[broken == "missing"])]["prediction_id"].unique()
    assert len(gone) == 1
    assert set(test.loc[test["prediction_id"] == gone[0], "image_id"]) <= set(broken.index)
    for row in test.itertuples():
        name = f"{row.patient_id}/{row.image_id}.dcm"
        path = made / "test_images" / name
        assert path.exists() == (broken.get(row.image_id) != "missing")
        if row.image_id in broken.index:
            with pytest.raises(ImageError):
                read_image(path, str(row.image_id), size)
        else:
            assert path.read_bytes() == (phantom / "train_images" / name).read_bytes()


def run(source: str, folder: Path, **limits: float):
    working = folder / "working"
    working.mkdir()
    held = {"seconds": 60.0, "memory_bytes": 4e9, "working_bytes": 1e9, "cores": 4} | limits
    return watch([sys.executable, "-c", source], dict(os.environ), working, Limits(**held), folder / "log")  # type: ignore[arg-type]


def test_how_a_run_ended_is_seen_from_outside(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = (
        "import sys; open('a', 'w').write('12345'); print('1 %\\r50 %\\r100 %'); print('last', file=sys.stderr, end='')"
    )
    ended = run(source + "; sys.stdout.flush(); sys.exit(7)", tmp_path)
    assert (ended.code, ended.stopped, ended.files, ended.working_bytes) == (7, "", 1, 5)
    assert sorted(ended.tail) == ["100 %", "last"]
    assert "last" in (tmp_path / "log").read_text()
    assert "last" in capfd.readouterr().err


def test_pages_that_processes_share_count_once(tmp_path: Path) -> None:
    """Four children of a parent of 150 MB hold as much as it does, not 750 MB."""
    source = """
import multiprocessing, time
held = b"x" * 150_000_000
fork = multiprocessing.get_context("fork")
children = [fork.Process(target=time.sleep, args=(3,)) for _ in range(4)]
[child.start() for child in children]
[child.join() for child in children]
"""
    ended = run(source, tmp_path, memory_bytes=4e8)
    assert ended.code == 0, ended.tail
    assert ended.memory_bytes > 1.5e8


def test_a_run_gets_the_cores_it_is_given(tmp_path: Path) -> None:
    mine = os.sched_getaffinity(0)
    assert run("import os; print(len(os.sched_getaffinity(0)))", tmp_path, cores=1).tail == ["1"]
    assert os.sched_getaffinity(0) == mine


def test_an_orphan_that_holds_the_log_open_ends_with_its_run(tmp_path: Path) -> None:
    """A daemon that writes to the same pipe: the run is over when its first process is."""
    mine = set(descendants(os.getpid()))
    ended = run("import subprocess; subprocess.Popen(['sleep', '50'], start_new_session=True)", tmp_path)
    assert ended.code == 0
    assert ended.seconds < 40
    assert set(descendants(os.getpid())) <= mine


def test_a_secret_is_hidden_wherever_the_stream_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Printed in pieces, behind a progress bar, and inside a line of megabytes; everything else passes, in order."""
    monkeypatch.setenv("MINE_TOKEN", "abcd-efgh-ijkl")
    source = """
import sys, time
long = b"." * 3_000_000 + b"abcd-efgh-ijkl" + b"." * 65_530
for piece in (b"50 %\\r", b"key: abcd-efg", b"h-ijkl\\xff, abcd", b"\\n" + long, b"!"):
    sys.stdout.buffer.write(piece); sys.stdout.flush(); time.sleep(0.2)
"""
    ended = run(source, tmp_path)
    wanted = b"50 %\rkey: ***\xff, abcd\n" + b"." * 3_000_000 + b"***" + b"." * 65_530 + b"!"
    assert ((tmp_path / "log").read_bytes() == wanted, ended.said) == (True, ["MINE_TOKEN"])
