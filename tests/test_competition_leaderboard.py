"""The local leaderboard: the published split rule, and a folder that the whole kit runs on."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_kit.competition.paths import find_competition
from rsna_kit.competition.submission import expected_ids, prior_submission, write_submission
from rsna_kit.competition.tables import TRAIN_COLUMNS, read_sample, read_test, read_train
from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.runtime.events import Events
from rsna_lab.cli import main
from rsna_lab.phantom.machines import MACHINES
from rsna_lab.phantom.population import plan_patients
from rsna_lab.phantom.tables import image_rows
from rsna_lab.recipes.leaderboard import PUBLISHED, leaderboard, split_leaderboard


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    return table[list(TRAIN_COLUMNS)].astype(object).where(table[list(TRAIN_COLUMNS)].notna(), "").astype(str)


def made_by_hand(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The published recipe, step by step; numpy's legacy generator is what scikit-learn's integer seeds mean."""
    patients: list[str] = []
    for patient in table["patient_id"]:
        if patient not in patients:
            patients.append(patient)
    order = np.random.RandomState(42).permutation(len(patients))
    held = {patients[number] for number in order[: math.ceil(0.1 * len(patients))]}
    train = table[[patient not in held for patient in table["patient_id"]]]
    test = table[[patient in held for patient in table["patient_id"]]]
    ids = [f"{row.patient_id}_{row.laterality}" for row in test.itertuples()]
    first: dict[str, str] = {}
    for name, cancer in zip(ids, test["cancer"], strict=True):
        first.setdefault(name, cancer)
    share = sum(map(int, train["cancer"])) / len(train)
    columns = ["site_id", "patient_id", "image_id", "laterality", "view", "age", "implant", "machine_id"]
    return {
        "train": train,
        "test": test[columns].assign(prediction_id=ids),
        "truth": pd.DataFrame(sorted(first.items()), columns=["prediction_id", "cancer"]),
        "sample_submission": pd.DataFrame({"prediction_id": sorted(first), "cancer": share}),
    }


def test_the_split_is_the_published_rule() -> None:
    """Patients in an order that is neither of their ids nor of their text; every table, cell by cell."""
    rng = np.random.default_rng(3)
    table = as_text(image_rows(plan_patients(rng, 137, 0.1, MACHINES, set())))
    blocks = [rows for _, rows in table.groupby("patient_id")]
    table = pd.concat([blocks[number] for number in rng.permutation(len(blocks))]).reset_index(drop=True)
    board = split_leaderboard(table)
    for name, expected in made_by_hand(table).items():
        found = board[name]
        pd.testing.assert_frame_equal(found, expected.reset_index(drop=True), check_dtype=False)
    assert len(board["truth"]) == 2 * 14


def test_a_table_of_the_competitions_size_gives_the_published_number_of_breasts() -> None:
    """11,913 patients with two breasts: 1,192 are held out, and the rows are about a tenth."""
    images = np.random.default_rng(1).choice([4, 5, 6], 11913, p=[0.6, 0.2, 0.2])
    table = pd.DataFrame("0", range(images.sum()), list(TRAIN_COLUMNS))
    table["patient_id"] = np.repeat(np.arange(11913).astype(str), images)
    table["laterality"] = np.where(table.groupby("patient_id").cumcount() % 2, "R", "L")
    train, test, breasts, _ = map(len, split_leaderboard(table).values())
    assert breasts == PUBLISHED[2] == 2 * math.ceil(0.1 * 11913)
    assert train + test == len(table)
    assert test / len(table) == pytest.approx(PUBLISHED[1] / (PUBLISHED[0] + PUBLISHED[1]), abs=0.003)


def test_the_folder_is_a_competition_of_links(
    phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything reads it as the real thing: tables, images, the sample's ids; and a submission for it is scored."""
    out = tmp_path / "board"
    assert main(["leaderboard", str(phantom), str(out)]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["published_counts"] is False
    assert "not the published split, which has 49232 images to train on" in said.err
    competition = find_competition(out)
    whole, train, test = read_train(phantom / "train.csv"), read_train(out / "train.csv"), read_test(out / "test.csv")
    assert sorted([*train["image_id"], *test["image_id"]]) == sorted(whole["image_id"])
    assert not set(train["patient_id"]) & set(test["patient_id"])
    for split, table in (("train", train), ("test", test)):
        for _, path in competition.files(split, table):
            assert path.is_file()
            assert path.resolve().is_relative_to((phantom / "train_images").resolve())
        assert {path.name for path in competition.images(split).iterdir()} == set(table["patient_id"])
        assert all(path.is_symlink() for path in competition.images(split).iterdir())
    sample = read_sample(out / "sample_submission.csv")
    assert expected_ids(test, sample) == list(sample["prediction_id"])
    assert sample["cancer"].iloc[0] == pytest.approx(train["cancer"].mean())
    write_submission(prior_submission(sample, 0.5), sample, out / "submission.csv")
    capsys.readouterr()
    (out / "truth.csv").write_text((out / "truth.csv").read_text().replace(",0", ",1", 1))  # there is a cancer for sure
    command = ["score", str(out / "submission.csv"), "--truth", str(out / "truth.csv"), "--threshold", "0.5"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["files"]


def test_a_folder_with_something_else_in_it_is_left_alone(phantom: Path, tmp_path: Path, quiet: Events) -> None:
    competition = tmp_path / "competition"
    shutil.copytree(phantom, competition, ignore=shutil.ignore_patterns("*.dcm"))
    before = {path: path.stat().st_mtime_ns for path in competition.rglob("*")}
    with pytest.raises(UsageError, match="holds something that leaderboard did not write"):
        leaderboard(competition, competition, quiet)
    assert {path: path.stat().st_mtime_ns for path in competition.rglob("*")} == before


def test_a_competition_without_images_or_with_a_bad_table_is_refused(
    phantom: Path, tmp_path: Path, quiet: Events
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    shutil.copy(phantom / "train.csv", given)
    with pytest.raises(UsageError, match=r"train_images: no such folder, expected the images of .*train\.csv"):
        leaderboard(given, tmp_path / "out", quiet)
    (given / "train_images").mkdir()
    (given / "train.csv").write_text((given / "train.csv").read_text().replace(",L,", ",X,", 1))
    with pytest.raises(TableError, match=r"train\.csv, line \d+: laterality is 'X'"):
        leaderboard(given, tmp_path / "out", quiet)
    (given / "train.csv").write_text("".join((phantom / "train.csv").read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(TableError, match="got 1 patients, expected two or more"):
        leaderboard(given, tmp_path / "out", quiet)
    assert not (tmp_path / "out").exists()
