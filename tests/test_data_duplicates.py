"""One film under two patient ids is found however it was stored again; other films, though alike, are not."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from realdata import realdata

from rsna_kit.runtime.events import Events
from rsna_lab.analysis.duplicates import SAME, SIMILAR, TURNS, agreement, candidates, find_duplicates, sketch, turned

ROWS, COLUMNS = 384, 192


@cache
def breast(seed: int) -> np.ndarray:
    """Half an ellipse of smooth tissue at the left edge, air 0: uint8 (384, 192)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:ROWS, 0:COLUMNS].astype(np.float64)
    height, width = ROWS * rng.uniform(0.38, 0.46), COLUMNS * rng.uniform(0.7, 0.95)
    radius = np.hypot((y - ROWS * rng.uniform(0.46, 0.54)) / height, x / width)
    tissue = sum(
        weight * cv2.GaussianBlur(rng.normal(size=(ROWS, COLUMNS)), (0, 0), sigma) * sigma
        for weight, sigma in ((60, 4), (90, 12), (120, 30))
    )
    picture = np.where(radius < 1, 130 + 0.6 * tissue - 60 * radius**6, 0)
    return np.clip(picture, 0, 255).astype(np.uint8)


def moved(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return cv2.warpAffine(picture, matrix.astype(np.float32), picture.shape[::-1], flags=cv2.INTER_LINEAR)


def reencoded(picture: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_GRAYSCALE)


NOISE = np.random.default_rng(0).integers(0, 15, (ROWS, COLUMNS), dtype=np.uint8)
COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "the same": lambda picture: picture.copy(),
    "re-encoded": reencoded,
    "brighter": lambda picture: np.clip(picture * 1.15 + 8.0 * (picture > 10), 0, 255).astype(np.uint8),
    "another gamma": lambda picture: (255 * (picture / 255) ** 0.8).astype(np.uint8),
    "noisy": lambda picture: cv2.add(picture, NOISE),
    "shifted by 5 pixels": lambda picture: moved(picture, np.array([[1, 0, 5], [0, 1, -5]])),
    "larger by 3 %": lambda picture: moved(picture, cv2.getRotationMatrix2D((0, ROWS / 2), 0, 1.03)),
    "turned by 2 degrees": lambda picture: moved(picture, cv2.getRotationMatrix2D((0, ROWS / 2), 2, 1)),
    "smaller file": lambda picture: cv2.resize(picture, (COLUMNS // 2, ROWS // 2), interpolation=cv2.INTER_AREA),
}


def search(pictures: dict[str, np.ndarray], patients: list[str]) -> pd.DataFrame:
    return find_duplicates(lambda name: pictures[name], list(pictures), patients, Events(stream=io.StringIO()))


@pytest.mark.parametrize("how", COPIES)
def test_a_film_that_was_stored_again_is_found_and_no_other(how: str) -> None:
    films = {f"film{seed}": breast(seed) for seed in range(5)}
    films["copy"] = COPIES[how](films["film3"])
    pairs = search(films, [str(number) for number in range(len(films))])
    assert pairs.loc[pairs["same"], ["first", "second", "turn"]].values.tolist() == [["film3", "copy", "as it is"]]


@pytest.mark.parametrize("turn", TURNS)
def test_a_film_that_was_turned_is_found_with_its_turn(turn: str) -> None:
    films = {f"film{seed}": breast(seed) for seed in range(6)}
    films["copy"] = turned(reencoded(films["film2"]), turn)
    pairs = search(films, list("abcdefg"))
    assert pairs.loc[pairs["same"], ["first", "second", "turn"]].values.tolist() == [["film2", "copy", turn]]
    assert (turned(turned(films["film2"], turn), turn) == films["film2"]).all()


def test_copies_of_one_patient_are_no_leak() -> None:
    films = {"one": breast(1), "two": breast(1), "other": breast(2)}
    assert search(films, ["a", "a", "b"]).empty


def test_pictures_without_a_breast_resemble_nothing() -> None:
    empty = {f"empty{number}": np.zeros((64, 32), np.uint8) for number in range(3)}
    flat = {f"flat{number}": np.full((64, 32), 90, np.uint8) for number in range(3)}
    assert search(empty | flat, list("abcdef")).empty
    assert not sketch(empty["empty0"]).any()
    assert agreement(empty["empty0"], empty["empty1"]) == 0.0
    assert agreement(flat["flat0"], breast(1)) == 0.0


@settings(max_examples=25, deadline=None)
@given(count=st.integers(2, 40), seed=st.integers(0, 2**32 - 1), cells=st.sampled_from([1, 60, 10**6]))
def test_candidates_are_those_that_loops_find(count: int, seed: int, cells: int) -> None:
    """Every pair, turn by turn; a few cells at a time change nothing."""
    rng = np.random.default_rng(seed)
    sketches = rng.normal(size=(count, 24, 24)).astype(np.float32)
    for copy in range(1, count, 3):  # of an earlier one, more or less
        turn = list(TURNS)[copy % 4]
        sketches[copy] = turned(sketches[rng.integers(copy)], turn) + rng.uniform(0.2, 1.5) * sketches[copy]
    sketches /= np.sqrt(np.square(sketches).sum(axis=(1, 2), keepdims=True))
    groups = [str(rng.integers(0, max(2, count // 2))) for _ in range(count)]
    expected = {}
    for first in range(count):
        for second in range(first + 1, count):
            best = max((float((sketches[first] * turned(sketches[second], turn)).sum()), turn) for turn in TURNS)
            if best[0] >= SIMILAR and groups[first] != groups[second]:
                expected[first, second] = best
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rsna_lab.analysis.duplicates._CELLS", cells)
        pairs = candidates(sketches, groups, Events(stream=io.StringIO()))
    found = {(row.first, row.second): (row.similarity, row.turn) for row in pairs.itertuples()}
    assert found.keys() == expected.keys()
    for pair, (similarity, turn) in found.items():
        assert similarity == pytest.approx(expected[pair][0], abs=1e-5)
        assert turn == expected[pair][1]
    assert pairs["similarity"].is_monotonic_decreasing


def real_films(part: str) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    root = realdata(part)
    table = pd.read_csv(root / "labels.csv", dtype=str)
    folder: Path = root / ("img" if part.startswith("cbis") else "half_512")
    table = table.iloc[:120]
    films = {name: cv2.imread(str(folder / f"{name}.png"), cv2.IMREAD_GRAYSCALE) for name in table["image_id"]}
    return table, films


@pytest.mark.parametrize("part", ["cbis_ddsm_mass256", "mini_mias"])
def test_no_two_real_films_of_different_women_are_taken_for_one(part: str) -> None:
    """And a tenth of them, stored again, are all found."""
    table, films = real_films(part)
    again = list(films)[::10]
    copies = {f"{name} again": reencoded(COPIES["another gamma"](films[name])) for name in again}
    pairs = search(films | copies, [*table["patient_id"], *(f"{name} again" for name in again)])
    found = set(map(tuple, pairs.loc[pairs["same"], ["first", "second"]].values))
    assert found == {(name, f"{name} again") for name in again}


@pytest.mark.parametrize("part", ["cbis_ddsm_mass256", "mini_mias"])
def test_two_views_and_both_breasts_of_a_woman_are_not_the_same_film(part: str) -> None:
    table, films = real_films(part)
    pairs = [(a, b) for _, own in table.groupby("patient_id")["image_id"] for a in own for b in own if a < b][:12]
    assert len(pairs) == 12
    for first, second in pairs:
        both = (agreement(films[first], turned(films[second], turn)) for turn in ("as it is", "mirrored"))
        assert max(both) < SAME
