"""rsna-kit folds: what is in each fold, and whom it shares with another."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from toy_pictures import toy_rows

from rsna_kit.config import ImageConfig, TrainConfig
from rsna_kit.data.writer import ShardWriter
from rsna_kit.runtime.errors import TableError
from rsna_kit.runtime.events import Events
from rsna_lab.cli import main
from rsna_lab.phantom.machines import MACHINES
from rsna_lab.phantom.population import plan_patients
from rsna_lab.phantom.tables import image_rows
from rsna_lab.recipes.folds import folds

pytestmark = pytest.mark.tf  # shards are written by TensorFlow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of a phantom of twenty patients, with toy pictures."""
    out, image = tmp_path_factory.mktemp("folds") / "prepared", ImageConfig(height=16, width=8)
    table = image_rows(plan_patients(np.random.default_rng(5), 20, 0.2, MACHINES, set()))
    writer = ShardWriter(out, image, table)
    writer.write(0, toy_rows(image, table), [])
    writer.finish()
    return out


def test_a_shared_patient_is_a_leak(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.read_csv(prepared / "table.csv", dtype={"image_id": str, "patient_id": str})
    patient = table["patient_id"].iloc[0]
    fold = (table["patient_id"] == patient) & (np.arange(len(table)) % 2 == 0)
    table[["image_id"]].assign(fold=fold.astype(int)).to_csv(tmp_path / "torn.csv", index=False)
    out = tmp_path / "out"
    assert main(["folds", str(prepared), "--folds", str(tmp_path / "torn.csv"), "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["shared_patients"] == {patient: [0, 1]}
    assert f"LEAK: patient {patient} is in folds 0 and 1" in said.err
    assert len(pd.read_csv(out / "folds.csv")) == len(table)


def test_the_tables_count_what_is_there(prepared: Path, quiet: Events) -> None:
    """Against counts by hand, of the folds that train would deal."""
    table = pd.read_csv(prepared / "table.csv", dtype={"image_id": str, "patient_id": str})
    result = folds(prepared, TrainConfig(folds=2), quiet)
    assert result["ok"]
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


@pytest.mark.parametrize(
    ("text", "message"),
    [("nobody,0", r"names none of the \d+ prepared images"), ("1,first", "line 2: fold is 'first'")],
)
def test_a_file_of_other_images_is_refused(
    prepared: Path, tmp_path: Path, quiet: Events, text: str, message: str
) -> None:
    (tmp_path / "other.csv").write_text(f"image_id,fold\n{text}\n")
    with pytest.raises(TableError, match=rf"other\.csv.*{message}"):
        folds(prepared, TrainConfig(), quiet, given=tmp_path / "other.csv")
