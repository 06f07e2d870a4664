"""The NYU reader study: published figures to four digits, and the bootstrap against the formulae of the textbooks.

1,440 breasts, 61 with cancer, scored by readers and models. The folder of real data is named by RSNA_KIT_REALDATA.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from realdata import realdata
from scipy.stats import binomtest

from rsna_kit.scoring.intervals import bootstrap
from rsna_kit.scoring.metrics import f1_curve, measure

# Column → AUC, raw pF1, best F1, the threshold of the best F1 (to four digits).
READER_STUDY = {
    "Reader01": (0.7256, 0.2461, 0.3441, 0.30),
    "Reader04": (0.8590, 0.3770, 0.5082, 0.40),
    "Reader05": (0.7045, 0.3074, 0.3434, 0.35),
    "Reader13": (0.8598, 0.3265, 0.4235, 0.65),
    "Reader14": (0.7557, 0.2670, 0.3866, 0.25),
    "AI_GMIC_top5": (0.8812, 0.2119, 0.4490, 0.2829),
    "AI_GMIC_top1": (0.8567, 0.2193, 0.4167, 0.4533),
    "AI_GLAM": (0.8532, 0.1467, 0.3040, 0.1529),
    "AI_DMVCNN": (0.7788, 0.1397, 0.2800, 0.1742),
    "AI_frcnn": (0.7145, 0.1120, 0.2679, 0.7324),
    "AI_end2end_inbreast": (0.5860, 0.1055, 0.2169, 0.9999),
    "AI_end2end_ddsm": (0.4540, 0.0466, 0.0840, 0.0032),
}
Z = NormalDist().inv_cdf(0.975)


@pytest.fixture(scope="module")
def study() -> pd.DataFrame:
    table = pd.read_csv(realdata("tables") / "nyu_reader_study_breast.csv.gz")
    assert (len(table), table["label"].sum(), table["case_ID"].nunique()) == (1440, 61, 720)
    return table


@pytest.mark.parametrize("column", READER_STUDY)
def test_the_reader_study_is_reproduced(study: pd.DataFrame, column: str) -> None:
    labels, scores = study["label"], study[f"{column}_POM"]
    thresholds, f1 = f1_curve(labels, scores)
    found = (measure("roc_auc", labels, scores), measure("pf1", labels, scores), f1.max(), thresholds[f1.argmax()])
    # Half a unit of the fourth digit, and a hair for a figure that lies on the edge (0.45325 was printed as 0.4533).
    assert found == pytest.approx(READER_STUDY[column], abs=0.5e-4 + 1e-9)


def delong(labels: np.ndarray, columns: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """AUC of each column and their covariance (DeLong, DeLong & Clarke-Pearson, Biometrics 44 (1988) 837), by pairs."""
    of_positives, of_negatives = [], []
    for scores in columns:
        positives, negatives = scores[labels == 1][:, None], scores[labels == 0][None, :]
        wins = (positives > negatives) + (positives == negatives) / 2
        of_positives.append(wins.mean(axis=1))
        of_negatives.append(wins.mean(axis=0))
    covariance = np.cov(of_positives) / len(of_positives[0]) + np.cov(of_negatives) / len(of_negatives[0])
    return np.mean(of_positives, axis=1), np.atleast_2d(covariance)


def breasts(study: pd.DataFrame, column: str) -> pd.DataFrame:
    """Every breast a patient of its own, as the textbooks' formulae have it; called where F1 is best."""
    scores = study[f"{column}_POM"]
    called = (scores >= READER_STUDY[column][3]).astype(int)
    return pd.DataFrame({"patient_id": study.index, "cancer": study["label"], "score": scores, "called": called})


@pytest.mark.parametrize("column", READER_STUDY)
def test_the_bootstrap_is_the_interval_of_the_textbooks(study: pd.DataFrame, column: str) -> None:
    """DeLong's of AUC: ends within 0.012, widths within 4 % of each other. Wilson's of shares: 0.025 and 0.002.

    DeLong's interval is symmetric, the bootstrap's is not; Wilson draws a share towards a half by z²/n of the way.
    """
    found = bootstrap(breasts(study, column), ["roc_auc", "sensitivity", "specificity"], 4000)
    (auc,), covariance = delong(study["label"].to_numpy(), [study[f"{column}_POM"].to_numpy()])
    half = Z * math.sqrt(covariance[0, 0])
    assert found["roc_auc"].value == pytest.approx(auc)
    assert (found["roc_auc"].low, found["roc_auc"].high) == pytest.approx((auc - half, auc + half), abs=0.012)
    assert found["roc_auc"].high - found["roc_auc"].low == pytest.approx(2 * half, rel=0.04)
    for name, trials, allowed in (("sensitivity", 61, 0.025), ("specificity", 1379, 0.002)):
        ends = binomtest(round(found[name].value * trials), trials).proportion_ci(method="wilson")
        assert (found[name].low, found[name].high) == pytest.approx((ends.low, ends.high), abs=allowed)


def test_the_bootstrap_of_a_difference_is_delongs_interval(study: pd.DataFrame) -> None:
    labels, first, second = (study[name].to_numpy() for name in ("label", "Reader05_POM", "AI_GMIC_top5_POM"))
    auc, covariance = delong(labels, [first, second])
    half = Z * math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    models = (breasts(study, "Reader05"), breasts(study, "AI_GMIC_top5"))
    found = bootstrap(models[1], ["roc_auc"], 4000, against=models[0])["roc_auc"]
    assert found.value == pytest.approx(auc[1] - auc[0])
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.012)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.04)
