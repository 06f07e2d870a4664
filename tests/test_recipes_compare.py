"""rsna-kit compare: paired differences on the breasts that models share, plain verdicts, rows of docs/results.csv."""

from __future__ import annotations

import csv
import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.scoring.intervals import Interval, bootstrap, shown
from rsna_kit.scoring.threshold import with_calls
from rsna_lab.cli import main
from rsna_lab.recipes.compare import COLUMNS, RESAMPLES, append_results, cancers_needed, compare, in_common, verdict

ROOT = Path(__file__).parent.parent


def breasts(seed: int, strength: float = 1.5, patients: int = 120) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    labels = np.random.default_rng(0).random(2 * patients) < 0.15  # the same breasts have cancer whatever the seed
    scores = 1 / (1 + np.exp(-(rng.normal(size=2 * patients) + strength * labels - 2)))
    owner = np.repeat(np.arange(patients), 2)
    names = [f"{patient}_{side}" for patient, side in zip(owner, "LR" * patients, strict=True)]
    labelled = {"prediction_id": names, "patient_id": owner.astype(str), "cancer": labels.astype("int8")}
    return pd.DataFrame({**labelled, "score": scores, "fold": owner % 4})


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
    """Every number is the bootstrap's of the very tables, called by thresholds of other folds."""
    paths = [run(tmp_path / "weak", 1, 0.5), run(tmp_path / "strong", 2, 3.0), run(tmp_path / "alike", 1, 0.55)]
    results = tmp_path / "results.csv"
    command = ["compare", *map(str, paths), "--csv", str(results), "--data", "made up"]
    assert main(command) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    models = result["models"]
    assert list(models) == ["weak", "strong", "alike"]
    assert (result["breasts"], result["patients"]) == (240, 120)
    weak, strong = (with_calls(breasts(seed, strength))[0] for seed, strength in ((1, 0.5), (2, 3.0)))
    for metric, one in models["strong"]["metrics"].items():
        assert one == pytest.approx(bootstrap(strong, [metric], RESAMPLES)[metric].as_dict())
        apart = bootstrap(strong, [metric], RESAMPLES, against=weak)[metric]
        told = models["strong"]["differences"][metric]
        assert {name: told[name] for name in ("value", "low", "high")} == pytest.approx(apart.as_dict())
        assert (told["verdict"], told["cancers_needed"]) == (
            verdict(metric, apart),
            cancers_needed(apart, result["cancers"]),
        )
    assert models["strong"]["differences"]["roc_auc"]["verdict"] == "better"
    assert "differences" not in models["weak"]
    assert models["alike"]["threshold"] == "of each fold chosen on the other folds"
    assert "| model | ROC-AUC | less weak |" in said.err
    assert len({line.count("|") for line in said.err.splitlines() if line.startswith("|")}) == 1
    needed = models["alike"]["differences"]["pf1_binary"]["cancers_needed"]
    text = f"a true difference of 0.02 takes about {needed} cancers, there are {result['cancers']}."
    assert f"alike, pf1_binary: {text}" in said.err

    rows = read_csv(results)
    assert len(rows) == 3 * 3 + 2 * 3
    assert {row["what"] for row in rows} == {"weak", "strong", "alike", "strong - weak", "alike - weak"}
    assert {row["data"] for row in rows} == {f"made up (240 breasts, {result['cancers']} with cancer)"}
    assert {row["command"] for row in rows} == {shlex.join(["rsna-kit", *command])}
    written = next(row for row in rows if row["what"] == "strong - weak" and row["metric"] == "roc_auc")
    assert float(written["value"]) == pytest.approx(models["strong"]["differences"]["roc_auc"]["value"], abs=1e-4)


def test_models_of_other_breasts_are_compared_on_the_common_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    breasts(1).to_csv(tmp_path / "a.csv", index=False)
    breasts(2).iloc[30:].sample(frac=1, random_state=0).to_csv(tmp_path / "b.csv", index=False)
    breasts(3).iloc[:-20].drop(columns="fold").to_csv(tmp_path / "c.csv", index=False)
    files = [str(tmp_path / f"{name}.csv") for name in "abc"]
    assert main(["compare", *files, "--metric", "log_loss", "pr_auc"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["breasts"] == 240 - 50
    assert list(result["models"]["b"]["metrics"]) == ["log_loss", "pr_auc"]
    for text in (
        "a: 50 breasts are not",
        "b: 20 breasts are not",
        "c: 30 breasts are not",
        "thresholds of a, b: of each fold chosen on the other folds",
        "thresholds of c: chosen on the breasts that it is judged on, so too good",
    ):
        assert text in said.err


def test_submissions_get_their_labels_from_the_truth_and_names_tell_runs_apart(tmp_path: Path, quiet: Events) -> None:
    frame = breasts(1)
    frame[["prediction_id", "cancer"]].to_csv(tmp_path / "truth.csv", index=False)
    paths = [tmp_path / place / "submission.csv" for place in ("here", "there")]
    for seed, path in enumerate(paths):
        path.parent.mkdir()
        scores = breasts(seed)[["prediction_id", "score"]].rename(columns={"score": "cancer"})
        scores.to_csv(path, index=False)
    result = compare(paths, quiet, truth=tmp_path / "truth.csv")
    assert result["cancers"] == frame["cancer"].sum()
    assert list(result["models"]) == ["here/submission", "there/submission"]


def test_rows_are_appended_behind_what_is_there(tmp_path: Path) -> None:
    """Cells with commas stay cells, a missing last line end is mended, and the file is docs/results.csv's kind."""
    path = tmp_path / "results.csv"
    path.write_text((ROOT / "docs" / "results.csv").read_text().rstrip("\n"))
    before = read_csv(path)
    append_results(path, [{"what": "a, b", "value": 0.5, "low": None}])
    after = read_csv(path)
    assert after[:-1] == before
    assert after[-1] == dict.fromkeys(COLUMNS, "") | {"what": "a, b", "value": "0.5"}


Change = Callable[[pd.DataFrame], pd.DataFrame]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda table: table.assign(patient_id=table["patient_id"].replace("7", "777")),
            "2 breasts .first: 7_L.* patient_id",
        ),
        (
            lambda table: table.assign(cancer=table["cancer"].mask(table.index == 4, 1)),
            "1 breasts .first: 2_L.* cancer",
        ),
        (lambda table: table.assign(prediction_id=table["prediction_id"] + "x"), "one, other: no breast in common"),
        (lambda table: table.assign(fold=np.arange(240) % 2), r"other.csv.*in more than one fold"),
        (lambda table: table.drop(columns="score"), "other.csv"),
    ],
)
def test_tables_that_do_not_go_together_are_refused(
    change: Change, message: str, tmp_path: Path, quiet: Events
) -> None:
    one = run(tmp_path / "one", 1)
    change(breasts(2)).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises((TableError, UsageError), match=message):
        compare([one, tmp_path / "other.csv"], quiet)


def test_what_cannot_be_compared_is_refused_before_anything_is_computed(tmp_path: Path, quiet: Events) -> None:
    one = run(tmp_path / "one", 1)
    for models in ([one], [one, tmp_path / "." / "one"]):
        with pytest.raises(UsageError, match="expected two or more different models"):
            compare(models, quiet)
    with pytest.raises(TableError, match=r"nowhere"):
        compare([one, tmp_path / "nowhere"], quiet)
    path = tmp_path / "results.csv"
    path.write_text("date,metric\n")
    with pytest.raises(TableError, match=r"results\.csv, line 1: got columns date, metric, expected date, commit"):
        compare([tmp_path / "a.csv", tmp_path / "b.csv"], quiet, results=path)
    assert path.read_text() == "date,metric\n"
    run(tmp_path / "two", 2)
    with pytest.raises(UsageError, match=r"got 'roc_auk'.*Did you mean 'roc_auc'"):
        compare([one, tmp_path / "two"], quiet, measured=["roc_auk"])


def test_in_common_is_by_id() -> None:
    """The second model has fewer breasts, in another order."""
    first, fewer = breasts(1), breasts(2).iloc[40:].sample(frac=1, random_state=0)
    cut = in_common({"a": first, "b": fewer})
    assert cut["a"]["prediction_id"].tolist() == first["prediction_id"][40:].tolist()
    by_id = fewer.set_index("prediction_id")["score"]
    assert cut["b"]["score"].tolist() == by_id[cut["a"]["prediction_id"]].tolist()


@pytest.mark.parametrize(
    ("metric", "low", "high", "word"),
    [
        ("roc_auc", 0.01, 0.03, "better"),
        ("roc_auc", -0.03, -0.01, "worse"),
        ("log_loss", 0.01, 0.03, "worse"),
        ("log_loss", -0.03, -0.01, "better"),
        ("recall_rate", 0.01, 0.03, "higher"),
        ("recall_rate", -0.03, -0.01, "lower"),
        ("roc_auc", 0.0, 0.03, "not told apart"),
        ("roc_auc", math.nan, math.nan, "not told apart"),
    ],
)
def test_the_verdict_follows_the_interval_and_the_metrics_name(metric: str, low: float, high: float, word: str) -> None:
    assert verdict(metric, Interval((low + high) / 2, low, high)) == word


def test_how_many_cancers_it_takes_is_the_textbooks_formula() -> None:
    """Standard error 0.01 with 100 cancers: (1.96 + 0.8416)² · 100 · (0.01 / 0.02)² = 196.2; half of it, a quarter."""
    assert cancers_needed(Interval(0, -0.0195996, 0.0195996), 100) == 197
    assert cancers_needed(Interval(0, -0.0195996 / 2, 0.0195996 / 2), 100) == 50
    assert cancers_needed(Interval(0, 0, 0), 100) is None
    assert cancers_needed(Interval(0, math.nan, math.nan), 100) is None


@pytest.mark.parametrize(
    ("interval", "sign", "text"),
    [
        (Interval(0.7121, 0.655, 0.7701), "", "0.712 [0.655, 0.770]"),
        (Interval(0.012, -0.008, 0.031), "+", "+0.012 [-0.008, +0.031]"),
        (Interval(0.5, np.nan, np.nan), "", "0.500"),
        (Interval(np.nan, np.nan, np.nan), "", "not defined"),
    ],
)
def test_an_interval_is_shown(interval: Interval, sign: str, text: str) -> None:
    assert shown(interval.as_dict(), sign) == text
