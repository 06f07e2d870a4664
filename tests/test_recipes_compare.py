"""rsna-kit compare: from files to a table and rows of docs/results.csv."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_scoring_comparison import breasts

from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.runtime.events import Events
from rsna_lab.cli import main
from rsna_lab.recipes.compare import COLUMNS, append_results, compare

ROOT = Path(__file__).parent.parent


def run(folder: Path, seed: int, strength: float = 1.5) -> Path:
    """A folder as train leaves it: two images of each breast, which the mean brings back to its score."""
    frame = breasts(seed, strength)
    images = pd.concat([frame.assign(image_id=frame["prediction_id"] + f"_{view}") for view in ("CC", "MLO")])
    folder.mkdir(parents=True)
    images.to_csv(folder / "oof.csv", index=False)
    return folder


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_verb_tells_a_table_and_gives_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [run(tmp_path / "weak", 1, 0.5), run(tmp_path / "strong", 2, 3.0), run(tmp_path / "alike", 1, 0.55)]
    results = tmp_path / "results.csv"
    command = ["compare", *map(str, paths), "--csv", str(results), "--data", "made up"]
    assert main(command) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    models = result["models"]
    assert list(models) == ["weak", "strong", "alike"]
    assert (result["breasts"], result["patients"]) == (240, 120)
    strong = models["strong"]
    assert strong["differences"]["roc_auc"]["low"] > 0
    assert strong["differences"]["roc_auc"]["verdict"] == "better"
    assert "differences" not in models["weak"]
    assert models["alike"]["threshold"] == "of each fold chosen on the other folds"
    assert "| model | ROC-AUC | less weak |" in said.err
    needed = models["alike"]["differences"]["pf1_binary"]["cancers_needed"]
    text = f"a true difference of 0.02 takes about {needed} cancers, there are {result['cancers']}."
    assert f"alike, pf1_binary: {text}" in said.err

    rows = read_csv(results)
    assert len(rows) == 3 * 3 + 2 * 3
    assert {row["what"] for row in rows} == {"weak", "strong", "alike", "strong - weak", "alike - weak"}
    assert {row["data"] for row in rows} == {f"made up (240 breasts, {result['cancers']} with cancer)"}
    assert {row["command"] for row in rows} == {shlex.join(["rsna-kit", *command])}
    written = next(row for row in rows if row["what"] == "strong - weak" and row["metric"] == "roc_auc")
    assert float(written["value"]) == pytest.approx(strong["differences"]["roc_auc"]["value"], abs=1e-4)


def test_models_of_other_breasts_are_compared_on_the_common_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    breasts(1).to_csv(tmp_path / "a.csv", index=False)
    breasts(2).iloc[30:].to_csv(tmp_path / "b.csv", index=False)
    breasts(3).iloc[:-20].drop(columns="fold").to_csv(tmp_path / "c.csv", index=False)
    files = [str(tmp_path / f"{name}.csv") for name in "abc"]
    assert main(["compare", *files, "--metric", "log_loss", "pr_auc"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["breasts"] == 240 - 50
    assert list(result["models"]["b"]["metrics"]) == ["log_loss", "pr_auc"]
    assert [
        text
        for text in ("a: 50 breasts are not", "b: 20 breasts are not", "c: 30 breasts are not")
        if text not in said.err
    ] == []
    assert "thresholds of a, b: of each fold chosen on the other folds" in said.err
    assert "thresholds of c: chosen on the breasts that it is judged on, so too good" in said.err


def test_submissions_get_their_labels_from_the_truth(tmp_path: Path, quiet: Events) -> None:
    frame = breasts(1)
    frame[["prediction_id", "cancer"]].to_csv(tmp_path / "truth.csv", index=False)
    for seed in (1, 2):
        scores = breasts(seed)[["prediction_id", "score"]].rename(columns={"score": "cancer"})
        scores.to_csv(tmp_path / f"submission{seed}.csv", index=False)
    paths = [tmp_path / f"submission{seed}.csv" for seed in (1, 2)]
    result = compare(paths, quiet, truth=tmp_path / "truth.csv")
    assert result["cancers"] == frame["cancer"].sum()
    assert list(result["models"]) == ["submission1", "submission2"]


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path, quiet: Events) -> None:
    paths = [run(tmp_path / place / "model", seed) for place, seed in (("here", 1), ("there", 2))]
    assert list(compare(paths, quiet)["models"]) == ["here/model", "there/model"]


def test_rows_are_appended_behind_what_is_there(tmp_path: Path) -> None:
    """Cells with commas stay cells, a missing last line end is mended, and the file is docs/results.csv's kind."""
    path = tmp_path / "results.csv"
    path.write_text((ROOT / "docs" / "results.csv").read_text().rstrip("\n"))
    before = read_csv(path)
    append_results(path, [{"what": "a, b", "value": 0.5, "low": None}])
    after = read_csv(path)
    assert after[:-1] == before
    assert after[-1] == dict.fromkeys(COLUMNS, "") | {"what": "a, b", "value": "0.5"}


def test_a_results_file_with_other_columns_is_refused_before_anything_is_computed(
    tmp_path: Path, quiet: Events
) -> None:
    path = tmp_path / "results.csv"
    path.write_text("date,metric\n")
    with pytest.raises(TableError, match=r"results\.csv, line 1: got columns date, metric, expected date, commit"):
        compare([tmp_path / "a.csv", tmp_path / "b.csv"], quiet, results=path)
    assert path.read_text() == "date,metric\n"


def test_what_cannot_be_compared_is_refused(tmp_path: Path, quiet: Events) -> None:
    one = run(tmp_path / "one", 1)
    with pytest.raises(UsageError, match="expected two or more different models"):
        compare([one], quiet)
    with pytest.raises(UsageError, match="expected two or more different models"):
        compare([one, tmp_path / "." / "one"], quiet)
    with pytest.raises(TableError, match=r"nowhere/oof\.csv|nowhere"):
        compare([one, tmp_path / "nowhere"], quiet)
    breasts(1).assign(prediction_id=[f"x{n}_L" for n in range(240)]).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(TableError, match="one, other: no breast in common"):
        compare([one, tmp_path / "other.csv"], quiet)


def test_a_patient_in_two_folds_is_refused(tmp_path: Path, quiet: Events) -> None:
    run(tmp_path / "one", 1)
    breasts(2).assign(fold=np.arange(240) % 2).to_csv(tmp_path / "torn.csv", index=False)
    with pytest.raises(TableError, match=r"torn\.csv.*in more than one fold"):
        compare([tmp_path / "one", tmp_path / "torn.csv"], quiet)
