"""Ensembles at real size: the DREAM challenge's validation scores, 51,314 breasts by 12 models, without labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from realdata import realdata
from scipy.stats import spearmanr

from rsna_kit.scoring.breasts import weighted_breasts


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    table = pd.read_csv(realdata("tables") / "dream_breast_predictions_12models.csv.gz")
    return table.filter(regex="^m").to_numpy(np.float64)


def test_the_table_is_what_was_published(scores: np.ndarray) -> None:
    """One model says 0.48 to 0.72 to everybody; Spearman's correlation is 0.30 to 0.97 between two models."""
    assert scores.shape == (51314, 12)
    narrow = int((scores.max(axis=0) - scores.min(axis=0)).argmin())
    assert (scores[:, narrow].min().round(2), scores[:, narrow].max().round(2)) == (0.48, 0.72)
    correlations = spearmanr(scores).statistic[np.triu_indices(12, 1)]
    assert (round(correlations.min(), 2), round(correlations.max(), 2)) == (0.30, 0.97)


def test_a_weighted_mean_of_all_models_is_numpys(scores: np.ndarray) -> None:
    ids = np.arange(len(scores)).astype(str)
    table = pd.DataFrame({"image_id": ids, "prediction_id": ids})
    weights = np.arange(1, 13) / 78
    columns = pd.DataFrame(scores, columns=[f"score_{k}" for k in range(12)]).assign(image_id=ids)
    found = weighted_breasts(columns, table, [(w, f"score_{k}", None) for k, w in enumerate(weights)])
    expected = np.average(scores, axis=1, weights=weights)
    np.testing.assert_allclose(found.set_index("prediction_id").loc[ids, "score"], expected, rtol=1e-12)
