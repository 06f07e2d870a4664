"""Images to breasts, and predictions files of every accepted shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_kit.runtime.errors import TableError
from rsna_kit.scoring.breasts import to_breasts
from rsna_kit.scoring.predictions import read_predictions

IMAGES = pd.DataFrame(
    {
        "image_id": ["5", "3", "9", "1", "2"],
        "prediction_id": ["7_R", "7_L", "7_R", "10_L", "7_R"],
        "patient_id": ["7", "7", "7", "10", "7"],
        "cancer": np.array([0, 1, 0, 0, 0], dtype="int8"),
    }
)
SCORES = pd.DataFrame({"image_id": ["1", "2", "3", "5", "9"], "score": [0.1, 0.2, 0.3, 0.5, 0.8]})


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_breast_is_the_mean_of_its_images_in_table_order() -> None:
    """Ids, not positions: the scores come in another order than the table."""
    breasts = to_breasts(SCORES, IMAGES)
    assert breasts["prediction_id"].tolist() == ["7_R", "7_L", "10_L"]
    assert breasts["score"].tolist() == pytest.approx([0.5, 0.3, 0.1])
    assert breasts["cancer"].tolist() == [0, 1, 0]
    assert breasts["patient_id"].tolist() == ["7", "7", "10"]
    assert breasts["cancer"].dtype == np.int8
    assert list(to_breasts(SCORES, IMAGES[["image_id", "prediction_id"]]).columns) == ["prediction_id", "score"]
    assert to_breasts(SCORES, IMAGES.assign(cancer=[0, 0, 1, 0, 0]))["cancer"].tolist() == [1, 0, 0]  # any image


def test_with_attention_it_is_the_weighted_mean_of_logits() -> None:
    """Breast 7_R: logits -1, 0 and 2 with weights 1/4, 1/4 and 1/2 (attention 0, 0 and log 2) are 0.75."""
    scores = pd.DataFrame(
        {
            "image_id": ["9", "5", "2", "3", "1"],
            "score": [1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(1.0)), 0.5, 0.3, 0.1],
            "attention": [np.log(2.0), 0.0, 0.0, -50.0, 900.0],
        }
    )
    breasts = to_breasts(scores, IMAGES)
    assert breasts["prediction_id"].tolist() == ["7_R", "7_L", "10_L"]
    assert breasts["score"].tolist() == pytest.approx([1 / (1 + np.exp(-0.75)), 0.3, 0.1])
    assert breasts["cancer"].tolist() == [0, 1, 0]
    even = to_breasts(scores.assign(attention=7.0), IMAGES)
    assert even["score"][0] == pytest.approx(1 / (1 + np.exp(-1 / 3)))


def test_certain_scores_are_finite_logits() -> None:
    scores = SCORES.assign(score=[0.0, 1.0, 1.0, 0.0, 1.0], attention=0.0)
    breasts = to_breasts(scores, IMAGES)["score"].tolist()
    assert breasts[1:] == pytest.approx([1, 0])
    assert breasts[0] == pytest.approx(1 / (1 + np.exp(-np.log(1e15) / 3)), rel=1e-6)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (pd.concat([SCORES, SCORES.iloc[:1]]), r"1 images \(1\) scored twice"),
        (SCORES.assign(score=[0.1, np.nan, 0.3, 0.5, 0.8]), r"1 images \(2\) with a score that is NaN"),
        (SCORES.assign(score=[0.1, 0.2, 1.3, -0.5, 0.8]), r"2 images \(3, 5\) .* outside \[0, 1\]"),
        (SCORES.rename(columns={"score": "scores"}), "no column 'score'.* Did you mean 'scores'"),
        (SCORES.iloc[:3], r"2 images \(5, 9\) without a score"),
        (
            SCORES.assign(attention=[0, 1, np.nan, 3, 4]),
            r"1 images \(3\) with an attention that is not a finite number",
        ),
        (SCORES.assign(attention=[0, 1, -np.inf, 3, 4]), r"1 images \(3\) with an attention that is not a finite"),
    ],
)
def test_broken_scores_are_refused(scores: pd.DataFrame, message: str) -> None:
    with pytest.raises(TableError, match=message):
        to_breasts(scores, IMAGES)
    with pytest.raises(TableError, match=r"1 breasts \(7_R\) with images of two patients"):
        to_breasts(SCORES, IMAGES.assign(patient_id=["7", "7", "8", "10", "7"]))


def test_image_level_predictions_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "oof.csv", "image_id,patient_id,laterality,cancer,score\n1,7,L,1,0.2\n2,7,L,1,0.4\n3,7,R,0,0\n"
    )
    breasts = read_predictions(path)
    assert breasts.columns.tolist() == ["prediction_id", "patient_id", "cancer", "score"]
    assert breasts["prediction_id"].tolist() == ["7_L", "7_R"]
    assert breasts["score"].tolist() == pytest.approx([0.3, 0.0])


def test_image_level_predictions_may_have_an_attention(tmp_path: Path) -> None:
    """As oof.csv of a breast-level model has it: all the weight is on the second image."""
    header = "image_id,patient_id,laterality,cancer,score,attention\n"
    path = write(tmp_path / "oof.csv", header + "1,7,L,1,0.2,-40\n2,7,L,1,0.4,40\n3,7,R,0,0.1,0\n")
    assert read_predictions(path)["score"].tolist() == pytest.approx([0.4, 0.1])
    bad = write(tmp_path / "bad.csv", header + "1,7,L,1,0.2,\n")
    with pytest.raises(TableError, match="line 2: attention is ''"):
        read_predictions(bad)


def test_breast_level_predictions_tell_the_patient_by_the_id(tmp_path: Path) -> None:
    path = write(tmp_path / "oof.csv", "prediction_id,cancer,score\nP_007_L,1,0.2\nP_007_R,0,0.1\n")
    breasts = read_predictions(path)
    assert breasts["patient_id"].tolist() == ["P_007", "P_007"]
    assert breasts["cancer"].tolist() == [1, 0]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    breasts = to_breasts(SCORES, IMAGES)
    breasts.to_csv(tmp_path / "breasts.csv", index=False)
    found = read_predictions(tmp_path / "breasts.csv")
    texts = {"prediction_id": object, "patient_id": object}  # pandas 3 has a type for texts
    pd.testing.assert_frame_equal(found.astype(texts), breasts.astype(texts))


def test_truth_may_come_from_train_csv(tmp_path: Path) -> None:
    truth = write(tmp_path / "train.csv", "patient_id,image_id,laterality,cancer,age\n7,1,L,1,50\n7,2,R,0,50\n")
    scores = write(tmp_path / "scores.csv", "image_id,score\n2,0.1\n1,0.9\n")
    breasts = read_predictions(scores, truth)
    assert breasts.to_dict("list") == {
        "prediction_id": ["7_L", "7_R"],
        "patient_id": ["7", "7"],
        "cancer": [1, 0],
        "score": [0.9, 0.1],
    }


def test_a_submission_is_scored_against_image_labels(tmp_path: Path) -> None:
    """In a submission `cancer` is the prediction, not the truth."""
    truth = write(tmp_path / "train.csv", "patient_id,image_id,laterality,cancer\n7,1,L,1\n7,4,L,1\n7,2,R,0\n")
    submission = write(tmp_path / "submission.csv", "prediction_id,cancer\n7_R,1\n7_L,0\n")
    breasts = read_predictions(submission, truth)
    assert breasts["prediction_id"].tolist() == ["7_L", "7_R"]
    assert breasts["cancer"].tolist() == [1, 0]
    assert breasts["score"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,prediction_id,cancer,scroe\n1,7_L,1,0.2\n", "line 1: no column 'score'.* Did you mean 'scroe'"),
        ("image_id,cancer,score\n1,1,0.2\n", "expected prediction_id, or patient_id and laterality"),
        ("predictionid,cancer,score\n7_L,1,0.2\n", "Did you mean 'predictionid'"),
        ("prediction_id,cancer,score\n7-left,1,0.5\n", "line 2: prediction_id is '7-left'.*add a column patient_id"),
        ("prediction_id,score\n7_L,0.5\n", "no column 'cancer'"),
    ],
)
def test_what_is_no_predictions_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read_predictions(write(tmp_path / "oof.csv", text))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ("prediction_id,score\n7_L,0.5\n", r"truth.csv: 1 prediction_ids \(7_R\) that .*oof.csv does not score"),
        (
            "prediction_id,score\n7_L,0.5\n7_R,0\n8_R,0\n",
            r"oof.csv: 1 prediction_ids \(8_R\) that .*truth.csv does not",
        ),
    ],
)
def test_predictions_and_truth_must_name_the_same_breasts(tmp_path: Path, scores: str, message: str) -> None:
    truth = write(tmp_path / "truth.csv", "prediction_id,cancer\n7_L,1\n7_R,0\n")
    with pytest.raises(TableError, match=message):
        read_predictions(write(tmp_path / "oof.csv", scores), truth)
