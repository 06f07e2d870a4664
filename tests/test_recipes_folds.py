"""rsna-kit folds: what is in each fold, whom it shares, which films are there twice."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from rsna_kit.competition.paths import find_competition
from rsna_kit.competition.tables import read_train
from rsna_kit.config import Config, TrainConfig
from rsna_kit.recipes.prepare import prepare
from rsna_kit.runtime.errors import TableError
from rsna_kit.runtime.events import Events
from rsna_lab.cli import main
from rsna_lab.recipes.folds import folds

pytestmark = pytest.mark.tf  # shards are written by TensorFlow


@pytest.fixture(scope="module")
def prepared(phantom: Path, tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures large enough to tell breasts apart; a film of one patient is there as that of another, too."""
    competition = tmp_path_factory.mktemp("twice") / "competition"
    shutil.copytree(phantom, competition)
    table = read_train(competition / "train.csv")
    files = dict(find_competition(competition).files("train", table))
    source, copy = _of_two_patients(table)
    shutil.copyfile(files[source], files[copy])
    out = competition.parent / "prepared"
    config = dataclasses.replace(tiny, image=dataclasses.replace(tiny.image, height=256, width=128))
    prepare(competition, out, config, Events(stream=io.StringIO()))
    return out


def _of_two_patients(table: pd.DataFrame) -> tuple[str, str]:
    """Images of the first two patients without cancer."""
    well = table[table["patient_id"].map(table.groupby("patient_id")["cancer"].max()) == 0]
    first, second = well["patient_id"].unique()[:2]
    return tuple(well.loc[well["patient_id"] == one, "image_id"].iloc[0] for one in (first, second))


def given(path: Path, table: pd.DataFrame, fold: np.ndarray | list[int]) -> Path:
    table[["image_id"]].assign(fold=fold).to_csv(path, index=False)
    return path


def test_a_film_in_two_folds_is_a_leak_and_one_in_the_same_fold_is_told(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(prepared / "table.csv", dtype={"image_id": str, "patient_id": str})
    source, copy = _of_two_patients(table)
    owner = table.set_index("image_id")["patient_id"]
    apart = given(tmp_path / "apart.csv", table, (table["patient_id"] == owner[copy]).astype(int).to_numpy())
    out = tmp_path / "out"
    assert main(["folds", str(prepared), "--folds", str(apart), "--out", str(out)]) == 1
    said = capsys.readouterr()
    result = json.loads(said.out)
    pair = result["duplicates"]["pairs"][0]
    assert (result["duplicates"]["same"], result["duplicates"]["across_folds"]) == (1, 1)
    assert {pair["first"], pair["second"]} == {source, copy}
    assert pair["agreement"] == pytest.approx(1, abs=0.01)
    assert f"LEAK: {pair['first']} (patient {owner[pair['first']]}, fold {pair['first_fold']})" in said.err
    written = pd.read_csv(out / "duplicates.csv", dtype={"first": str, "second": str})
    assert written.loc[written["same"], ["first", "second"]].values.tolist() == [[pair["first"], pair["second"]]]
    assert cv2.imread(str(out / "duplicates.png")).shape[1] > 1000
    assert len(pd.read_csv(out / "folds.csv")) == len(table)

    together = given(tmp_path / "together.csv", table, [0] * len(table))
    assert main(["folds", str(prepared), "--folds", str(together)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["duplicates"]["same"], result["duplicates"]["across_folds"]) == (1, 0)


def test_a_shared_patient_is_a_leak(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.read_csv(prepared / "table.csv", dtype={"image_id": str, "patient_id": str})
    patient = table["patient_id"].iloc[0]
    fold = (table["patient_id"] == patient) & (np.arange(len(table)) % 2 == 0)
    torn = given(tmp_path / "torn.csv", table, fold.astype(int).to_numpy())
    assert main(["folds", str(prepared), "--folds", str(torn), "--no-pictures"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["shared_patients"] == {patient: [0, 1]}
    assert f"LEAK: patient {patient} is in folds 0 and 1" in said.err


def test_the_tables_count_what_is_there(prepared: Path, quiet: Events) -> None:
    """Against counts by hand, of the folds that train would deal."""
    table = pd.read_csv(prepared / "table.csv", dtype={"image_id": str, "patient_id": str})
    result = folds(prepared, TrainConfig(folds=2), quiet, pictures=False)
    assert result["ok"]
    assert "duplicates" not in result
    assert [row["fold"] for row in result["folds"]] == [0, 1]
    for name, ids in (("patients", "patient_id"), ("breasts", "prediction_id"), ("images", "image_id")):
        assert sum(row[name] for row in result["folds"]) == table[ids].nunique()
        ill = table.loc[table["cancer"] == 1, ids].nunique()
        assert sum(row[f"{name} with cancer"] for row in result["folds"]) == ill
    rows = {(row["fact"], row["level"]): row for row in result["balance"]}
    breasts = table.groupby("prediction_id").agg({"site_id": "first", "cancer": "max"})
    for site, group in breasts.groupby("site_id"):
        assert sum(rows["site", str(site)]["breasts"]) == len(group)
        assert sum(rows["site", str(site)]["cancers"]) == group["cancer"].sum()
    counts = np.array(rows["site", "1"]["breasts"]) / [row["breasts"] for row in result["folds"]]
    assert rows["site", "1"]["spread"] == pytest.approx(np.ptp(counts), abs=1e-4)


def test_a_file_of_other_images_is_refused(prepared: Path, tmp_path: Path, quiet: Events) -> None:
    (tmp_path / "other.csv").write_text("image_id,fold\nnobody,0\n")
    with pytest.raises(TableError, match=r"other\.csv: names none of the \d+ prepared images"):
        folds(prepared, TrainConfig(), quiet, given=tmp_path / "other.csv")
    (tmp_path / "words.csv").write_text("image_id,fold\n1,first\n")
    with pytest.raises(TableError, match=r"words\.csv, line 2: fold is 'first'"):
        folds(prepared, TrainConfig(), quiet, given=tmp_path / "words.csv")
