"""What scripts/rehearse is made of: the scoring's eye on a submission, wheels' tags, hidden test sets, limits."""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_kit.competition.submission import check_submission
from rsna_kit.competition.tables import read_sample, read_test
from rsna_kit.config import ImageConfig
from rsna_kit.imaging.render import read_image
from rsna_kit.runtime.errors import ImageError, SubmissionError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.scoring.predictions import read_predictions
from rsna_lab.kaggle.credentials import Censor
from rsna_lab.kaggle.rehearse.claim import beside, claim, empty
from rsna_lab.kaggle.rehearse.hidden import make_hidden
from rsna_lab.kaggle.rehearse.verdict import COMPLETE, NOT_FOUND, SCORING, of_secrets, of_submission
from rsna_lab.kaggle.rehearse.watching import Limits, descendants, folder_size, watch
from rsna_lab.kaggle.wheels import fits, wheel_problems

SAMPLE = "prediction_id,cancer\n1_L,0.02\n1_R,0.02\n2_L,0.02\n"
# A submission, and what the scoring says of it; "" where it takes it.
SUBMISSIONS = {
    "as the sample": (SAMPLE, ""),
    "whole numbers": ("prediction_id,cancer\n1_L,0\n1_R,1\n2_L,0\n", ""),
    "whole numbers written as floats": ("prediction_id,cancer\n1_L,0.0\n1_R,1.0\n2_L,0.0\n", ""),
    "other order, quotes, CRLF and a byte order mark": (
        '\ufeffprediction_id,cancer\r\n"2_L",1e-3\r\n1_R,1\r\n1_L,0\r\n', "",
    ),
    "a missing row": ("prediction_id,cancer\n1_L,0\n1_R,1\n", "1 missing (2_L)"),
    "an extra row": (SAMPLE + "3_L,0.5\n", "1 extra (3_L)"),
    "a duplicated id": (SAMPLE + "2_L,0.5\n", "1 duplicate (2_L)"),
    "an extra column": (
        "prediction_id,cancer,score\n1_L,0,0\n1_R,1,0\n2_L,0,0\n", "columns are prediction_id, cancer, score",
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
}  # fmt: skip


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


def test_a_secret_is_found_where_two_reads_meet(tmp_path: Path) -> None:
    log, working = tmp_path / "log", tmp_path / "working"
    (working / "sub").mkdir(parents=True)
    log.write_text("nothing")
    (working / "sub/model.bin").write_bytes(b"x" * ((1 << 20) - 5) + b"rehearsal-1234567890" + b"y" * 100)
    found = of_secrets({"OTHER": "rehearsal-0000000000", "TOKEN": "rehearsal-1234567890"}, log, working)
    assert found.explanation == "The value of TOKEN stands in /kaggle/working/sub/model.bin."
    assert of_secrets({"TOKEN": "rehearsal-x234567890"}, log, working).good


def test_a_censored_stream_is_the_same_wherever_it_is_cut() -> None:
    """No piece of a secret passes, and all else does, in order."""
    text, wanted = b"a key: abcabd, abcab\xff abcabcabd.\n", b"a key: ***, abcab\xff abc***.\n"
    for first in range(len(text)):
        for second in range(first, len(text)):
            censor = Censor({"abcabd": "a key", "zz": "another"})
            pieces = [censor(text[:first]), censor(text[first:second]), censor(text[second:]), censor.rest()]
            assert b"".join(pieces) == wanted
            assert censor.found == ["a key"]


def test_a_folder_behind_a_link_is_emptied_too(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "disk/out")
    for _ in range(2):
        empty(tmp_path / "out", (), [])
        claim(tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []
        (tmp_path / "out/submission.csv").touch()


@pytest.mark.parametrize("content", ["", "[]", '"verdict"', '{"ok": true}', '{"verdict": "Complete"}'])
def test_a_file_that_only_looks_like_a_mark_is_no_permit(tmp_path: Path, content: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").touch()
    beside(tmp_path / "out", ".verdict.json").write_text(content)
    with pytest.raises(UsageError, match="no rehearsal wrote it"):
        empty(tmp_path / "out", (), [])
    (tmp_path / "out/mine.txt").unlink()
    empty(tmp_path / "out", (), [])
    claim(tmp_path / "out")
    (tmp_path / "out/submission.csv").touch()
    empty(tmp_path / "out", (), [])
    assert not (tmp_path / "out").exists()
    assert not beside(tmp_path / "out", ".verdict.json").exists()


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
)  # fmt: skip
def test_which_wheels_kaggle_can_install(tags: str, wanted: bool) -> None:
    assert fits(f"some_codec-1.0-{tags}.whl") is wanted


def test_requirements_that_no_wheel_gives_are_named(tmp_path: Path) -> None:
    for name in ("a_codec-1.2-cp312-cp312-manylinux_2_28_x86_64.whl", "b-2.0-cp311-cp311-manylinux_2_28_x86_64.whl"):
        (tmp_path / name).touch()
    (tmp_path / "requirements.txt").write_text(
        "A.Codec==1.2  # the name is normalised\n--no-deps\n\na-codec>=2\nb\nc; python_version < '3.12'\n"
        "a-codec==1.2 --hash=sha256:00\n"
    )
    problems = wheel_problems(tmp_path)
    assert [problem.partition(":")[0].partition(", and")[0] for problem in problems] == [
        "b-2.0-cp311-cp311-manylinux_2_28_x86_64.whl", "requirements.txt asks for a-codec>=2",
        "requirements.txt asks for b",
    ]  # fmt: skip
    assert wheel_problems(tmp_path, python=(3, 11))[0].startswith("a_codec-1.2-cp312")


def quiet() -> Events:
    return Events(stream=io.StringIO())


def test_women_of_the_training_set_become_a_hidden_test(phantom: Path, tmp_path: Path) -> None:
    """Another size, machines that training does not know, labels that are right, and the originals untouched."""
    before = {path: path.stat().st_mtime_ns for path in phantom.rglob("*") if path.is_file()}
    made = make_hidden("train", phantom, tmp_path / "set", 6, 0, 3, quiet())
    test, train = read_test(made.folder / "test.csv"), pd.read_csv(phantom / "train.csv", dtype=str)
    assert (made.patients, made.images, made.broken) == (6, len(test), {})
    assert set(test["machine_id"].dropna()) - set(pd.to_numeric(train["machine_id"]))
    check_submission(
        read_sample(made.folder / "sample_submission.csv"), read_sample(made.folder / "sample_submission.csv")
    )
    truth = read_predictions(made.folder / "sample_submission.csv", made.truth)
    ill = train[train["cancer"] == "1"]
    assert set(truth.loc[truth["cancer"] == 1, "prediction_id"]) == {
        f"{row.patient_id}_{row.laterality}" for row in ill[ill["patient_id"].isin(test["patient_id"])].itertuples()
    }
    assert truth["cancer"].sum() >= 1
    for row in test.itertuples():
        name = f"{row.patient_id}/{row.image_id}.dcm"
        assert (made.folder / "test_images" / name).read_bytes() == (phantom / "train_images" / name).read_bytes()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_broken_files_are_broken_as_recorded(phantom: Path, tmp_path: Path) -> None:
    """Each way costs its image, and none of the others is touched."""
    made = make_hidden(str(phantom / "hidden"), phantom, tmp_path / "set", 0, 6, 1, quiet())
    broken = pd.read_csv(made.folder / "broken.csv", dtype=str).set_index("image_id")["how"]
    assert broken.value_counts().to_dict() == made.broken
    assert len(set(broken)) == 5  # a third of 16 images
    test, size = read_test(made.folder / "test.csv"), ImageConfig(height=64, width=32)
    gone = test[test["image_id"].isin(broken.index[broken == "missing"])]["prediction_id"].unique()
    assert len(gone) == 1
    assert set(test.loc[test["prediction_id"] == gone[0], "image_id"]) <= set(broken.index)
    for row in test.itertuples():
        path = made.folder / "test_images" / str(row.patient_id) / f"{row.image_id}.dcm"
        assert path.exists() == (broken.get(row.image_id) != "missing")
        if row.image_id in broken.index:
            with pytest.raises(ImageError):
                read_image(path, str(row.image_id), size)
        else:
            read_image(path, str(row.image_id), size)


def test_every_way_of_breaking_is_used(phantom: Path, tmp_path: Path) -> None:
    made = make_hidden("train", phantom, tmp_path / "set", 8, 7, 0, quiet())
    assert made.broken.keys() == {"truncated", "missing", "empty", "constant", "of another syntax", "not DICOM"}
    assert made.broken["truncated"] == 2


def test_the_same_seed_gives_the_same_set(phantom: Path, tmp_path: Path) -> None:
    first, again = (make_hidden("train", phantom, tmp_path / name, 5, 4, 9, quiet()).folder for name in "ab")
    other = make_hidden("train", phantom, tmp_path / "c", 5, 4, 10, quiet()).folder
    for name in ("test.csv", "truth.csv", "broken.csv"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    assert (first / "test.csv").read_bytes() != (other / "test.csv").read_bytes()


@pytest.mark.slow
def test_a_phantom_made_for_it_has_the_unseen_machine(tmp_path: Path, phantom: Path) -> None:
    made = make_hidden("phantom", phantom, tmp_path / "set", 3, 0, 4, quiet())
    assert made.patients == 3
    assert 700 in set(read_test(made.folder / "test.csv")["machine_id"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


@pytest.mark.parametrize("choice", ["train", "elsewhere"])
def test_a_source_that_lacks_something_is_refused(tmp_path: Path, choice: str) -> None:
    with pytest.raises(UsageError, match="no such file"):
        make_hidden(choice if choice == "train" else str(tmp_path), tmp_path, tmp_path / "set", 3, 0, 0, quiet())


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


def test_a_signal_is_no_exit_code(tmp_path: Path) -> None:
    assert run("import os; os.kill(os.getpid(), 11)", tmp_path).code == -11


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


def test_links_count_as_themselves(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1000))
    (tmp_path / "b").symlink_to(tmp_path / "a")
    files, size = folder_size(tmp_path)
    assert files == 2
    assert 1000 < size < 1500


def test_a_foreign_syntax_keeps_the_file_as_long_as_it_was(phantom: Path) -> None:
    from rsna_lab.kaggle.rehearse.hidden import _foreign

    for path in sorted(phantom.glob("train_images/*/*.dcm"))[:8]:
        content = path.read_bytes()
        spoiled = np.frombuffer(_foreign(content), np.uint8)
        assert len(spoiled) == len(content)
        assert 1 <= int((spoiled != np.frombuffer(content, np.uint8)).sum()) <= 2


def test_links_to_images_become_copies_where_links_cannot_be(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: object) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refuse)
    made = make_hidden(str(phantom / "hidden"), phantom, tmp_path / "set", 0, 0, 0, quiet())
    copies = sorted(made.folder.glob("test_images/*/*.dcm"))
    assert len(copies) == made.images
    assert all(path.stat().st_nlink == 1 for path in copies)
    shutil.rmtree(made.folder)
