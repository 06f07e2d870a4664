"""A scored file and what is known of its breasts → the sections of its page that need no picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict

import numpy as np
import pandas as pd

from rsna_kit.recipes.score import Scored
from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.scoring.breasts import compare_pools
from rsna_kit.scoring.calibration import KEPT, cross_fitted, expected_calibration_error, reliability
from rsna_kit.scoring.rules import RULES, halves, nested, prevalence_table, site_thresholds
from rsna_lab.analysis.subgroups import UNKNOWN, subgroups
from rsna_lab.report.forest import subgroup_section
from rsna_lab.report.page import Section
from rsna_lab.report.sections import curves, headline, operating_point, reliability_section
from rsna_lab.report.tables import fold_section, pool_section, threshold_section

_RESAMPLES = 400  # of poolings; and of sites and halves a quarter and an eighth of it: seconds at 24,000 breasts


def numbers(
    scored: Scored, facts: pd.DataFrame, epochs: Mapping[str, int], say: Callable[[str], None]
) -> list[Section]:
    """Headline, curves, operating point, threshold, reliability, pools, folds, subgroups: those that there are.

    Args:
        scored: the file.
        facts: of `rsna_lab.analysis.subgroups.breast_facts`, by prediction_id.
        epochs: fold → the epoch that it kept.
        say: told what could not be computed, and why.
    """
    breasts, summary = scored.breasts, scored.summary
    sections: list[Section | None] = [headline(summary), curves(breasts, summary), operating_point(summary)]
    both = 0 < summary["counts"]["positives"] < len(breasts)
    probabilities = _probabilities(scored, both, say)
    if both:
        sections.append(_threshold(scored, facts, probabilities, say))
        sections.append(_reliability(scored, probabilities))
        sections.append(_pools(scored))
    whole = {name: metric["value"] for name, metric in summary["metrics"].items()}
    whole["f1"] = whole["pf1_binary"]
    if "fold" in breasts.columns:
        folds = pd.DataFrame({"fold": breasts["fold"].astype(str).to_numpy()}, index=breasts["prediction_id"])
        sections.append(fold_section(subgroups(breasts, folds, scored.threshold), whole, epochs))
    sections.append(subgroup_section(subgroups(breasts, facts, scored.threshold), whole))
    return [section for section in sections if section is not None]


def _probabilities(scored: Scored, both: bool, say: Callable[[str], None]) -> np.ndarray | None:
    """Calibrated scores: those of the file, or each fold's by a calibration that the other folds fitted."""
    if "probability" in scored.rows.columns and len(scored.rows) == len(scored.breasts):
        by_breast = scored.rows.set_index("prediction_id")["probability"].astype(float)
        return by_breast[scored.breasts["prediction_id"]].to_numpy()
    if not both or "fold" not in scored.breasts.columns:
        return None
    labels, scores, folds = (scored.breasts[name].to_numpy() for name in ("cancer", "score", "fold"))
    try:
        return cross_fitted(KEPT, labels, scores, folds)
    except RsnaKitError as error:
        say(f"{scored.name}: no calibrated scores: {error}")
        return None


def _threshold(
    scored: Scored, facts: pd.DataFrame, probabilities: np.ndarray | None, say: Callable[[str], None]
) -> Section | None:
    breasts = scored.breasts
    labels, scores, patients = (breasts[name].to_numpy() for name in ("cancer", "score", "patient_id"))
    if "fold" not in breasts.columns:  # the threshold was not chosen here
        return None
    by_rule, split = {}, None
    sites = facts.reindex(breasts["prediction_id"]).get("site")
    named = sites is not None and sites.ne(UNKNOWN).all() and sites.nunique() > 1
    site_of = sites.to_numpy() if sites is not None and named else None
    try:
        by_rule = {
            name: asdict(nested(labels, scores, breasts["fold"].to_numpy(), rule)) for name, rule in RULES.items()
        }
        split = halves(breasts, splits=_RESAMPLES // 8, sites=site_of)
        split = split[split["rule"].isin([*RULES, "plateau by site"])]
    except RsnaKitError as error:
        say(f"{scored.name}: no comparison of threshold rules: {error}")
    by_site = None if site_of is None else site_thresholds(labels, scores, site_of, patients, _RESAMPLES // 4)
    shift = None if probabilities is None else prevalence_table(probabilities, scores, scored.threshold)
    return threshold_section(by_rule, split, by_site, shift)


def _reliability(scored: Scored, probabilities: np.ndarray | None) -> Section:
    labels, scores = scored.breasts["cancer"].to_numpy(), scored.breasts["score"].to_numpy(np.float64)
    columns = {"Raw scores": scores} | ({} if probabilities is None else {"Calibrated scores": probabilities})
    return reliability_section(
        {
            name: (reliability(labels, values), expected_calibration_error(labels, values))
            for name, values in columns.items()
        }
    )


def _pools(scored: Scored) -> Section | None:
    """The comparison, where the file has image scores, some breasts have several, and no attention pools them."""
    rows = scored.rows
    if not {"image_id", "prediction_id", "score"} <= set(rows.columns) or "attention" in rows.columns:
        return None
    if not rows["prediction_id"].duplicated().any():
        return None
    known = scored.breasts.set_index("prediction_id")[["patient_id", "cancer"]]
    images = rows[["image_id", "prediction_id"]].assign(score=rows["score"].astype(float))
    return pool_section(compare_pools(images.join(known, on="prediction_id"), _RESAMPLES))
