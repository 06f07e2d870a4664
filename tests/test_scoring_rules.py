"""Rules for calling breasts: each against its definition, and what is said of their losses."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import expected_f1_of_top, expected_f1_slow, f1_slow

from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.scoring.calibration import KEPT, METHODS, fit
from rsna_kit.scoring.logits import sigmoid
from rsna_kit.scoring.metrics import f1_at, f1_curve
from rsna_kit.scoring.rules import (
    RULES,
    Cut,
    argmax,
    best_set,
    call,
    expected_f1,
    halves,
    nested,
    plateau,
    prevalence_table,
    quantile,
    site_thresholds,
)
from rsna_kit.scoring.threshold import choose_threshold

SCRIPT = Path(__file__).parent.parent / "scripts" / "threshold-rules"
PROBABILITIES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def sample(cancers: int = 60, seed: int = 0, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores, 2 % cancers."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.ones(cancers, int), np.zeros(49 * cancers, int)]
    return labels, sigmoid(1.2 * (rng.normal(size=len(labels)) + 2 * labels + shift) - 3.5)


def breasts(cancers: int = 60, seed: int = 0) -> pd.DataFrame:
    """Two breasts of each patient."""
    labels, scores = sample(cancers, seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    patients = [f"p{place // 2}" for place in range(len(labels))]
    return pd.DataFrame({"patient_id": patients, "cancer": labels[order], "score": scores[order]})


def test_plateau_is_the_deployed_threshold_and_argmax_the_best_one() -> None:
    labels, scores = sample()
    new = np.array([0.1, 0.9])
    assert plateau(labels, scores)(new) == choose_threshold(labels, scores).value
    best = argmax(labels, scores)(new)
    assert f1_at(labels, scores, best) == pytest.approx(max(f1_slow(labels, scores, score) for score in scores[:60]))


@pytest.mark.parametrize("shift", [-0.2, 0.0, 0.2])
def test_a_quantile_calls_the_same_share_wherever_the_scale_has_gone(shift: float) -> None:
    labels, scores = sample()
    called = int((scores >= choose_threshold(labels, scores).value).sum())
    moved = np.clip(scores + shift, 0, 1) / 3 if shift < 0 else scores / 2 + shift
    assert call(quantile, labels, scores, moved).sum() == called
    twice = np.r_[moved, moved]
    assert call(quantile, labels, scores, twice).sum() == 2 * called


def test_a_quantile_calls_equals_together_and_never_nobody() -> None:
    """A third was called. Of 4, 1 or 3 can be: 1 is nearer to 4/3. Of 2 equals, both."""
    labels, scores = np.array([0, 0, 1]), np.array([0.1, 0.2, 0.9])
    assert call(quantile, labels, scores, np.array([0.1, 0.3, 0.3, 0.9])).tolist() == [0, 0, 0, 1]
    assert call(quantile, labels, scores, np.array([0.1, 0.1, 0.1, 0.8, 0.8])).tolist() == [0, 0, 0, 1, 1]
    assert call(quantile, labels, scores, np.array([0.5, 0.5])).tolist() == [1, 1]
    assert call(quantile, labels, scores, np.array([0.0])).tolist() == [1]


@settings(deadline=None)
@given(probabilities=PROBABILITIES)
def test_the_best_set_is_the_best_of_all_sets(probabilities: list[float]) -> None:
    """Of 2 * (their sum) / (their number + sum of all), over every set of up to eight breasts."""
    values = np.array(probabilities)

    def worth(called: np.ndarray) -> float:
        return float(2 * values[called].sum() / (called.sum() + values.sum()))

    sets = [np.array(bits) for bits in itertools.product((False, True), repeat=len(values)) if any(bits)]
    chosen = best_set(values)
    assert chosen.any()
    assert worth(chosen) == pytest.approx(max(map(worth, sets)), abs=1e-12)


@settings(deadline=None)
@given(probabilities=PROBABILITIES)
def test_the_last_breast_called_has_half_of_the_f1(probabilities: list[float]) -> None:
    """Lipton, Elkan and Naryanaswamy 2014: call from F1 / 2 on, at the optimum."""
    values = np.array(probabilities)
    chosen = best_set(values)
    f1 = 2 * values[chosen].sum() / (chosen.sum() + values.sum())
    assert values[chosen].min() >= f1 / 2 - 1e-12
    assert values[~chosen].max(initial=0) <= f1 / 2 + 1e-12


@settings(deadline=None, max_examples=40)
@given(probabilities=st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_the_two_exact_oracles_agree(probabilities: list[float]) -> None:
    """All outcomes one by one, and the distributions of the two counts."""
    ordered = sorted(probabilities, reverse=True)
    for k in range(1, len(ordered) + 1):
        one_by_one = expected_f1_slow(ordered, [place < k for place in range(len(ordered))])
        assert expected_f1_of_top(np.array(ordered), k) == pytest.approx(one_by_one, abs=1e-12)


@pytest.mark.parametrize(("count", "lost"), [(10, 0.05), (40, 0.01), (200, 0.002)])
def test_the_ratio_loses_little_of_the_exact_optimum_and_less_with_more_breasts(count: int, lost: float) -> None:
    """Screening-like probabilities, few of them high; the regret in exact expected F1 of calling the chosen set."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        probabilities = rng.beta(0.3, 2.5, count)
        exact = [expected_f1_of_top(probabilities, k) for k in range(1, count + 1)]
        chosen = int(best_set(probabilities).sum())
        assert max(exact) - exact[chosen - 1] <= lost


def test_expected_f1_calls_the_best_set_under_its_calibration() -> None:
    labels, scores = sample()
    _, new = sample(30, seed=1)
    calibrated = fit(KEPT, labels, scores).apply(new)
    np.testing.assert_array_equal(call(expected_f1, labels, scores, new), best_set(calibrated))
    # More cancers are expected among surer breasts, so the cut moves with the scores of those that are called.
    assert expected_f1(labels, scores)(new) != expected_f1(labels, scores)(new[new > 0.2])


def test_calls_are_those_of_calibrated_probabilities_known_exactly() -> None:
    """On new breasts the rule reaches what the best possible threshold reaches, up to chance."""
    labels, scores = sample(500)
    new_labels, new = sample(500, seed=1)
    reached = f1_at(new_labels, call(expected_f1, labels, scores, new), 0.5)
    assert reached > f1_curve(new_labels, new)[1].max() - 0.02


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_needs_a_cancer(rule: str) -> None:
    with pytest.raises(TableError, match="expected at least one"):
        RULES[rule](np.zeros(3, int), np.array([0.1, 0.2, 0.3]))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_calls_all_of_constant_scores(rule: str) -> None:
    labels, scores = np.array([0, 1, 0]), np.full(3, 0.3)
    assert call(RULES[rule], labels, scores, scores).tolist() == [1, 1, 1]


def test_sites_have_cuts_of_their_own_and_the_common_one_where_they_cannot() -> None:
    labels, scores = sample()
    sites = np.arange(len(labels)) % 2
    new, new_sites = np.array([0.3, 0.3, 0.3, 0.5]), np.array([0, 1, 2, 2])
    cuts = [choose_threshold(labels[sites == site], scores[sites == site]).value for site in (0, 1)]
    common = choose_threshold(labels, scores).value
    expected = (new >= [cuts[0], cuts[1], common, common]).astype(int).tolist()
    assert call(plateau, labels, scores, new, sites, new_sites).tolist() == expected
    healthy = np.where(sites == 1, 0, labels)  # nothing to choose on at site 1
    common = choose_threshold(healthy, scores).value
    got = call(plateau, healthy, scores, np.array([common, common - 1e-9]), sites, np.array([1, 1]))
    assert got.tolist() == [1, 0]


def test_a_sites_cut_helps_where_its_scale_is_another() -> None:
    labels, scores = sample(300)
    sites = np.arange(len(labels)) % 2
    scores = np.where(sites == 1, scores / 4, scores)
    new_labels, new = sample(300, seed=1)
    new = np.where(sites == 1, new / 4, new)
    common = f1_at(new_labels, call(plateau, labels, scores, new), 0.5)
    own = f1_at(new_labels, call(plateau, labels, scores, new, sites, sites), 0.5)
    assert own > common + 0.05


def test_a_fold_is_called_by_the_cut_of_the_others() -> None:
    table = breasts(40)
    labels, scores = table["cancer"].to_numpy(), table["score"].to_numpy()
    folds = np.arange(len(table)) // 2 % 4
    for name, rule in RULES.items():
        found = nested(labels, scores, folds, rule)
        called = np.zeros(len(labels))
        for fold in range(4):
            held = folds == fold
            called[held] = call(rule, labels[~held], scores[~held], scores[held])
            assert found.thresholds[fold] == rule(labels[~held], scores[~held])(scores[held]), name
        assert found.f1 == f1_at(labels, called, 0.5)
        assert found.chosen == f1_at(labels, call(rule, labels, scores, scores), 0.5)
        assert found.loss == found.chosen - found.f1


def test_a_choice_judged_on_itself_looks_too_good() -> None:
    """30 cancers: over several tables the nested check is lower than the score of the chosen threshold."""
    losses = []
    for seed in range(8):
        table = breasts(30, seed)
        losses.append(nested(table["cancer"], table["score"], np.arange(len(table)) // 2 % 4, argmax).loss)
    assert np.mean(losses) > 0.02


def test_one_fold_has_no_others() -> None:
    with pytest.raises(TableError, match="single fold"):
        nested([0, 1], [0.1, 0.9], [0, 0], plateau)


def test_halves_are_what_their_columns_say() -> None:
    """One split: its numbers are their own means, and f1 and loss add up to the half's own best."""
    table = breasts(20)
    found = halves(table, splits=1, seed=3).set_index("rule")
    assert list(found.index) == list(RULES)
    matches = []
    for _, row in found.iterrows():
        assert row["f1"] == row["f1_low"] == row["f1_high"]
        assert row["loss"] >= 0
        assert row["gain"] == pytest.approx(row["f1"] - found.loc["plateau", "f1"])
        matches.append(row["f1"] + row["loss"])
    assert matches == pytest.approx([matches[0]] * len(RULES))


def test_no_patient_chooses_and_is_judged() -> None:
    """A rule that writes down what it sees: halves are of patients, disjoint, whole, with the same cancers."""
    table = breasts(21)
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def spy(labels: np.ndarray, scores: np.ndarray) -> Cut:
        def cut(new: np.ndarray) -> float:
            seen.append((scores, new))
            return 0.5

        return cut

    halves(table, splits=5, rules={"spy": spy})
    owner = table.set_index("score")["patient_id"]
    ill = set(table.loc[table["cancer"] == 1, "patient_id"])
    assert len(seen) == 5
    for first, other in seen:
        patients, others = set(owner[first]), set(owner[other])
        assert not patients & others
        assert patients | others == set(table["patient_id"])
        assert abs(len(patients & ill) - len(others & ill)) <= 1
    assert len({tuple(np.sort(first)) for first, _ in seen}) == 5


def test_the_same_seed_gives_the_same_halves() -> None:
    table = breasts(20)
    pd.testing.assert_frame_equal(halves(table, 3, seed=1), halves(table, 3, seed=1))
    assert halves(table, 3, seed=1)["f1"].tolist() != halves(table, 3, seed=2)["f1"].tolist()


def test_halves_try_a_cut_for_each_site_when_told_the_sites() -> None:
    table = breasts(20)
    found = halves(table, 2, sites=np.arange(len(table)) % 2)
    assert found["rule"].tolist() == [name + site for name in RULES for site in ("", " by site")]


def test_halves_need_two_patients_of_each_kind() -> None:
    table = pd.DataFrame({"patient_id": list("aabbcc"), "cancer": [1, 1, 0, 0, 0, 0], "score": 0.5})
    with pytest.raises(TableError, match="got 1 patients with cancer and 2 without, expected two of each"):
        halves(table)
    with pytest.raises(UsageError, match="splits: got 0"):
        halves(breasts(5), splits=0)


def test_thresholds_of_sites_move_more_than_the_common_one() -> None:
    table = breasts(60)
    sites = np.where(np.arange(len(table)) // 2 % 3 == 0, "B", "A")
    found = site_thresholds(table["cancer"], table["score"], sites, table["patient_id"], resamples=60)
    assert found["site"].tolist() == ["all", "A", "B"]
    assert found["breasts"].tolist() == [3000, 2000, 1000]
    for row in found.itertuples():
        of_site = np.full(len(table), True) if row.site == "all" else sites == row.site
        assert row.cancers == table["cancer"][of_site].sum()
        assert row.threshold == choose_threshold(table["cancer"][of_site], table["score"][of_site]).value
        assert row.low < row.high
    width = (found["high"] - found["low"]).to_numpy()
    assert width[2] > width[0]


def test_a_site_without_cancer_has_no_threshold() -> None:
    found = site_thresholds([1, 0, 0, 0], [0.9, 0.1, 0.2, 0.3], ["A", "A", "B", "B"], list("wxyz"), resamples=5)
    assert found.set_index("site")["threshold"].isna().tolist() == [False, False, True]


def test_the_prevalence_table_is_what_happens_at_that_prevalence() -> None:
    """Against large samples drawn with other shares of cancers from the same two normals."""
    apart, at = 2.0, 0.02

    def draw(prevalence: float, count: int = 300_000) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(7)
        labels = (rng.random(count) < prevalence).astype(int)
        return labels, rng.normal(size=count) + apart * labels

    def score(line: np.ndarray) -> np.ndarray:
        return sigmoid(line - 3)

    def probability(line: np.ndarray) -> np.ndarray:
        return sigmoid(apart * line - apart**2 / 2 + np.log(at / (1 - at)))

    _, line = draw(at)
    threshold = float(score(np.array(2.2)))
    table = prevalence_table(probability(line), score(line), threshold, [0.01, 0.02, 0.04]).set_index("prevalence")
    for prevalence, row in table.iterrows():
        labels, there = draw(float(prevalence))
        cuts, curve = f1_curve(labels, score(there))
        assert row["f1"] == pytest.approx(f1_at(labels, score(there), threshold), abs=0.01)
        assert row["best_f1"] == pytest.approx(curve.max(), abs=0.01)
        assert row["best_threshold"] == pytest.approx(cuts[curve.argmax()], abs=0.05)
        assert row["called"] == pytest.approx((score(there) >= row["best_threshold"]).mean(), abs=0.002)
        own = sigmoid(apart * there - apart**2 / 2 + np.log(prevalence / (1 - prevalence)))
        assert row["pf1"] == pytest.approx(2 * own[labels == 1].sum() / (own.sum() + labels.sum()), abs=0.01)
    assert table["best_threshold"].is_monotonic_decreasing


def test_the_competitions_prevalences_are_the_default() -> None:
    labels, scores = sample()
    table = prevalence_table(fit(KEPT, labels, scores).apply(scores), scores, 0.3)
    assert (table["prevalence"].min(), table["prevalence"].max()) == (0.0204, 0.0256)
    assert prevalence_table([0.1, 0.2], [0.1, 0.2], 0.9)["f1"].tolist() == [0] * 5


@pytest.mark.parametrize("arguments", [["rules", "--draws", "1"], ["sites", "oof.csv"], ["tables", "no/oof.csv"]])
def test_the_script_refuses_what_it_cannot_do(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode > 0
    assert "Traceback" not in done.stderr


def test_the_script_draws_each_kind_of_table() -> None:
    """Two draws at 60 cancers; every cell of the first row is there."""
    import importlib.util
    from importlib.machinery import SourceFileLoader

    loader = SourceFileLoader("threshold_rules", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    script = importlib.util.module_from_spec(spec)
    loader.exec_module(script)
    script.CANCERS = (60, 60)
    assert list(next(script.rules(2, 0))) == ["scores", "cancers", "scale", "best", *RULES, "by platt", "by isotonic"]
    assert next(script.sites(2, 0))["second site's scores"] == "+0 spreads"
    assert set(METHODS) < set(next(script.calibrations(2, 0)))


def test_the_script_compares_rules_on_a_file(tmp_path: Path) -> None:
    table = breasts(20)
    table["prediction_id"] = [f"{patient}_{'LR'[row % 2]}" for row, patient in enumerate(table["patient_id"])]
    table.assign(fold=np.arange(len(table)) // 2 % 2).to_csv(tmp_path / "oof.csv", index=False)
    command = [sys.executable, str(SCRIPT), "tables", str(tmp_path / "oof.csv"), "--draws", "3"]
    printed = subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()
    assert printed[1].startswith("## Chosen on one half")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed[3:]]
    assert [row[1] for row in cells[2:]] == list(RULES)
    expected = halves(table, 3).set_index("rule")
    nest = nested(table["cancer"], table["score"], np.arange(len(table)) // 2 % 2, plateau)
    assert cells[2][2].startswith(f"{expected.loc['plateau', 'f1']:.4f} ")
    assert cells[2][-2:] == [f"{nest.chosen:.4f}", f"{nest.f1:.4f}"]
