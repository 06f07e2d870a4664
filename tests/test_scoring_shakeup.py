"""The shake-up: boards drawn by kinds of patients are the boards that drawing patients gives, and as noisy as known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.scoring.metrics import f1_at
from rsna_lab.analysis.shakeup import HIDDEN_PATIENTS, PUBLIC_SHARE, Boards, simulate, simulate_calls


def screening(patients: int, cancers: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two breasts a patient: labels and owners."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(2 * patients, int)
    labels[rng.choice(2 * patients, cancers, replace=False)] = 1
    return labels, np.repeat(np.arange(patients), 2)


def called(labels: np.ndarray, sensitivity: float, ppv: float, seed: int) -> np.ndarray:
    """Calls with these shares."""
    rng = np.random.default_rng(seed)
    ill, well = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    hits = round(sensitivity * len(ill))
    calls = np.zeros(len(labels), int)
    calls[rng.choice(ill, hits, replace=False)] = 1
    calls[rng.choice(well, round(hits * (1 - ppv) / ppv), replace=False)] = 1
    return calls


def drawn_slowly(
    labels: np.ndarray, calls: np.ndarray, owners: np.ndarray, size: int, prevalence: float, draws: int
) -> np.ndarray:
    """F1 of boards drawn patient by patient: ill with the right chance, then any of her kind."""
    rng = np.random.default_rng(5)
    breasts = {owner: np.flatnonzero(owners == owner) for owner in np.unique(owners)}
    ill = [owner for owner, rows in breasts.items() if labels[rows].any()]
    well = [owner for owner in breasts if owner not in ill]
    cancers = np.mean([labels[breasts[owner]].sum() for owner in ill])
    per_ill, per_well = (np.mean([len(breasts[owner]) for owner in of]) for of in (ill, well))
    low, high = 0.0, 1.0  # the share of ill patients that gives the prevalence, by halving
    for _ in range(60):
        share = (low + high) / 2
        reached = share * cancers / (share * per_ill + (1 - share) * per_well)
        low, high = (share, high) if reached < prevalence else (low, share)
    found = []
    for _ in range(draws):
        board = [rng.choice(ill if rng.random() < share else well) for _ in range(size)]
        rows = np.concatenate([breasts[owner] for owner in board])
        found.append(f1_at(labels[rows], calls[rows].astype(float), 0.5) if labels[rows].any() else 0.0)
    return np.array(found)


def test_boards_are_those_that_drawing_patients_one_by_one_gives() -> None:
    labels, owners = screening(60, 15, seed=1)
    owners[:6] = [0, 0, 0, 1, 1, 1]  # patients with three breasts' worth of rows: sizes differ
    calls = called(labels, 0.6, 0.5, seed=2)
    boards = simulate_calls(labels, {"model": calls}, owners, 100, 0.3, prevalence=0.2, draws=4000)
    for ours, size in ((boards.public, 30), (boards.private, 70)):
        slow = drawn_slowly(labels, calls, owners, size, 0.2, draws=1500)
        assert ours.mean() == pytest.approx(slow.mean(), abs=4 * slow.std() / np.sqrt(1500))
        assert ours.std() == pytest.approx(slow.std(), rel=0.1)
        quantiles = [0.05, 0.25, 0.5, 0.75, 0.95]
        np.testing.assert_allclose(np.quantile(ours, quantiles), np.quantile(slow, quantiles), atol=0.03)


def test_a_winner_is_as_uncertain_as_the_competitions_boards_are() -> None:
    """F1 0.555 from sensitivity 48.6 % and PPV 64.6 %: F1's noise there is 0.44 / sqrt(cancers), 0.030 with the 216 of
    the private board and 0.043 with those of the public one."""
    labels, owners = screening(11913, 492, seed=3)
    calls = {"winner": called(labels, 0.486, 0.646, seed=4)}
    boards = simulate_calls(labels, calls, owners, prevalence=216 / 10830)
    row = boards.table().iloc[0]
    assert row["f1"] == pytest.approx(0.555, abs=0.006)
    assert row["private_sd"] == pytest.approx(0.44 / np.sqrt(216), abs=0.0015)
    assert row["public_sd"] == pytest.approx(0.44 / np.sqrt(216 / 5415 * HIDDEN_PATIENTS * PUBLIC_SHARE), abs=0.002)
    assert row["fall"] == pytest.approx(0, abs=0.003)
    assert row["fall_sd"] == pytest.approx(np.hypot(row["private_sd"], row["public_sd"]), rel=0.03)
    assert row["fall_low"] < -0.06 < row["fall_high"]  # the winner's own: 0.61 public, 0.55 private
    assert np.mean(boards.fall <= -0.18) < 0.002  # a fall from 0.64 to 0.46 is not chance alone


def test_a_prevalence_of_its_own_changes_nothing_in_the_mean() -> None:
    labels, owners = screening(2000, 200, seed=5)
    calls = called(labels, 0.5, 0.5, seed=6)
    boards = simulate_calls(labels, {"model": calls}, owners, prevalence=labels.mean())
    assert boards.honest[0] == pytest.approx(f1_at(labels, calls.astype(float), 0.5))
    rare = simulate_calls(labels, {"model": calls}, owners, prevalence=0.02)
    assert rare.honest[0] < boards.honest[0]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), prevalence=st.floats(0.01, 0.4))
def test_the_prevalence_asked_for_is_the_one_drawn(seed: int, prevalence: float) -> None:
    """Calling everything has precision = prevalence, so its F1 tells the prevalence."""
    labels, owners = screening(200, 30, seed)
    boards = simulate_calls(labels, {"all": np.ones(400)}, owners, prevalence=prevalence, draws=1)
    assert boards.honest[0] == pytest.approx(2 * prevalence / (1 + prevalence))


def test_the_best_on_public_is_worth_what_the_draws_say() -> None:
    """Literal boards: the public board is right once in four, ties count as right."""
    public = np.array([[0.5, 0.4], [0.4, 0.5], [0.5, 0.5], [0.6, 0.2]])
    private = np.array([[0.3, 0.4], [0.3, 0.2], [0.3, 0.3], [0.2, 0.5]])
    boards = Boards(("a", "b"), public, private, np.array([0.4, 0.5]))
    assert boards.choice() == pytest.approx({"public_is_best": 0.25, "public_loss": 0.125, "honest_loss": 0.025})
    assert boards.as_dict()["choice"] == boards.choice()
    assert [row["model"] for row in boards.as_dict()["models"]] == ["a", "b"]


def test_models_share_the_patients_of_a_draw() -> None:
    labels, owners = screening(500, 60, seed=7)
    calls = called(labels, 0.5, 0.5, seed=8)
    boards = simulate_calls(labels, {"one": calls, "two": calls.copy()}, owners, draws=50)
    assert (boards.public[:, 0] == boards.public[:, 1]).all()
    assert boards.choice()["public_is_best"] == 1.0


def test_a_threshold_calls_what_reaches_it_and_the_seed_decides() -> None:
    labels, owners = screening(500, 60, seed=9)
    scores = np.random.default_rng(0).random(1000)
    frame = pd.DataFrame({"patient_id": owners, "cancer": labels, "score": scores})
    boards = simulate(frame, 0.7, draws=20, seed=3)
    same = simulate_calls(labels, {"model": scores >= 0.7}, owners, draws=20, seed=3)
    assert (boards.public == same.public).all()
    assert not (boards.public == simulate(frame, 0.7, draws=20, seed=4).public).all()
    assert "choice" not in boards.as_dict()


def test_a_board_without_cancer_is_0_as_in_the_competition() -> None:
    boards = simulate_calls([1, 0, 0], {"model": [1, 0, 0]}, list("abc"), 3, 0.34, prevalence=0.01, draws=200)
    assert boards.public.min() == 0.0
    assert not np.isnan(boards.public).any()


@pytest.mark.parametrize(
    ("labels", "calls", "options", "error", "message"),
    [
        ([1, 1], [1, 0], {}, TableError, "only patients with cancer or only without"),
        ([0, 0], [1, 0], {}, TableError, "only patients with cancer or only without"),
        ([1, 0], [1, 0.5], {}, TableError, "calls of model are not 0 or 1 for each of the 2 breasts"),
        ([1, 0], [1], {}, TableError, "calls of model are not 0 or 1 for each of the 2 breasts"),
        ([1, 0], [1, 0], {"public_share": 0.0}, UsageError, "expected at least one patient on each board"),
        ([1, 0], [1, 0], {"public_share": 1.0}, UsageError, "expected at least one patient on each board"),
        ([1, 0], [1, 0], {"draws": 0}, UsageError, "0 draws"),
        ([1, 0], [1, 0], {"prevalence": 0.0}, UsageError, "prevalence 0.0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    labels: list[int], calls: list[float], options: dict[str, float], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        simulate_calls(labels, {"model": calls}, ["a", "b"], **options)  # type: ignore[arg-type]


def test_a_prevalence_that_no_mix_has_is_refused() -> None:
    """Every patient with cancer has a healthy breast too: more than half is out of reach."""
    with pytest.raises(TableError, match=r"no mix of these patients has 60\.00% of their breasts with cancer"):
        simulate_calls([1, 0, 0, 0], {"model": [1, 0, 0, 0]}, list("aabb"), prevalence=0.6)
