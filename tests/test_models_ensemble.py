"""Members as one scorer, with networks small enough to know what each must say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsna_kit.config import Config
from rsna_kit.models import ensemble as module
from rsna_kit.models.bundle import Bundle
from rsna_kit.models.ensemble import Ensemble, Part, score_difference
from rsna_kit.models.members import Member
from rsna_kit.runtime.errors import BundleError, UsageError

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.tf

PICTURES = np.random.default_rng(3).integers(0, 256, (3, 8, 4, 1), np.uint8)


def network(*columns: float) -> Any:
    """Output k is `columns[k]` times the mean of the picture's upper half in [0, 1]: upside down it is another."""
    picture = keras.Input((8, 4, 1), dtype="uint8")
    upper = keras.layers.Cropping2D(((0, 4), (0, 0)))(keras.layers.Rescaling(1 / 255)(picture))
    mean = keras.layers.GlobalAveragePooling2D()(upper)
    dense = keras.layers.Dense(len(columns), use_bias=False)
    made = keras.Model(picture, dense(mean))
    dense.set_weights([np.array([columns], np.float32)])
    return made


@pytest.fixture
def members(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Members by weight and columns; what would be read from disk is made here."""
    networks: dict[Path, Any] = {}

    def make(*given: tuple[float, tuple[float, ...]]) -> list[Member]:
        made = []
        for number, (weight, columns) in enumerate(given):
            path = Path(f"bundle{number}")
            networks[path] = network(*columns)
            made.append(Member(Bundle(path, Config(), 0.5, {}), weight))
        return made

    monkeypatch.setattr(module, "load_model", lambda bundle: networks[bundle.path])
    return make


def upper(pictures: np.ndarray) -> np.ndarray:
    return pictures[:, :4].mean(axis=(1, 2, 3)) / 255


def sigmoid(logits: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def test_image_level_members_are_one_column_of_mean_probabilities(members: Any) -> None:
    ensemble = Ensemble(members((0.25, (2.0,)), (0.75, (-4.0,))), 4)
    half = upper(PICTURES)
    assert (ensemble.columns, ensemble.parts) == (["score"], [Part(1.0, "score", None)])
    wanted = 0.25 * sigmoid(2 * half) + 0.75 * sigmoid(-4 * half)
    np.testing.assert_allclose(ensemble.score(PICTURES), wanted[:, None], atol=1e-6)


def test_each_breast_level_member_keeps_its_attention(members: Any) -> None:
    given = ((0.2, (1.0, 3.0)), (0.3, (2.0,)), (0.1, (-1.0, 5.0)), (0.4, (4.0,)))
    ensemble = Ensemble(members(*given), 4)
    assert ensemble.columns == ["score", "attention", "score_1", "score_2", "attention_2"]
    assert [(part.score, part.attention) for part in ensemble.parts] == [
        ("score", "attention"), ("score_1", None), ("score_2", "attention_2")
    ]  # fmt: skip
    assert [part.weight for part in ensemble.parts] == pytest.approx([0.2, 0.7, 0.1])
    half = upper(PICTURES)
    images = (0.3 * sigmoid(2 * half) + 0.4 * sigmoid(4 * half)) / 0.7
    wanted = np.stack([sigmoid(half), 3 * half, images, sigmoid(-half), 5 * half], axis=1)
    np.testing.assert_allclose(ensemble.score(PICTURES), wanted, atol=1e-5)


def test_tta_is_the_mean_of_logits_and_of_attentions_with_the_picture_upside_down(members: Any) -> None:
    ensemble = Ensemble(members((1.0, (6.0, 9.0))), 4, tta="flip")
    both = (upper(PICTURES) + upper(PICTURES[:, ::-1])) / 2
    np.testing.assert_allclose(ensemble.score(PICTURES), np.stack([sigmoid(6 * both), 9 * both], axis=1), atol=1e-5)
    assert not np.allclose(both, upper(PICTURES))


def test_a_picture_is_scored_alike_in_any_batch(members: Any) -> None:
    ensemble = Ensemble(members((1.0, (2.0,))), 4, tta="flip")
    together = ensemble.score(PICTURES)
    alone = [ensemble.score(PICTURES[[row]])[0] for row in range(3)]
    np.testing.assert_allclose(together, alone, atol=1e-7)


def test_what_is_missed_least_is_given_up_first(members: Any) -> None:
    """TTA, then the lightest member, of equals the last; never the last of all."""
    given = ((0.4, (1.0,)), (0.2, (2.0, 1.0)), (0.2, (3.0,)), (0.2, (4.0, 1.0)))
    ensemble = Ensemble(members(*given), 4, tta="flip")
    half, columns = upper(PICTURES), []
    assert ensemble.lighten() == "TTA"
    np.testing.assert_allclose(ensemble.score(PICTURES)[:, 1], sigmoid(2 * half), atol=1e-6)
    for name in ("bundle3", "bundle2", "bundle1"):
        assert ensemble.lighten() == name
        columns.append(ensemble.score(PICTURES))
    assert ensemble.lighten() is None
    np.testing.assert_array_equal(np.isnan(columns[0][0]), [False, False, False, True, True])
    np.testing.assert_allclose(columns[1][:, 0], sigmoid(half), atol=1e-6)  # bundle0 alone, not at half its weight
    np.testing.assert_array_equal(np.isnan(columns[2][0]), [False, True, True, True, True])


def test_an_output_that_is_not_finite_names_its_bundle(members: Any) -> None:
    ensemble = Ensemble(members((0.5, (1.0,)), (0.5, (math.inf,))), 4)
    with pytest.raises(BundleError, match="bundle1: its network's output is not finite"):
        ensemble.score(PICTURES)


def test_extreme_logits_are_scores_all_the_same(members: Any) -> None:
    ensemble = Ensemble(members((1.0, (-1e30,))), 4)
    np.testing.assert_array_equal(ensemble.score(PICTURES), 0.0)


def test_an_unknown_runtime_is_refused(members: Any) -> None:
    with pytest.raises(UsageError, match=r"infer\.runtime: got 'onnx', expected one of keras, litert, openvino"):
        Ensemble(members((1.0, (1.0,))), 4, runtime="onnx")


def runtime_that(change: float, calls: list[int]) -> Any:
    """A runtime that adds `change` to every logit."""
    original = module.compile_for

    def compile_for(runtime: str, model: Any, batch_size: int) -> Any:
        run = original("keras", model, batch_size)
        if runtime == "keras":
            return run

        def changed(pictures: np.ndarray) -> np.ndarray:
            calls.append(len(pictures))
            return run(pictures) + np.float32(change)

        return changed

    return compile_for


@pytest.mark.parametrize(("change", "kept"), [(0.0, True), (3e-3, True), (5e-3, False), (math.nan, False)])
def test_a_runtime_is_believed_once_it_scores_as_keras_does(
    members: Any, monkeypatch: pytest.MonkeyPatch, change: float, kept: bool
) -> None:
    """At a logit near 0 a quarter of the change arrives in the probability: 3e-3 is within 1e-3, 5e-3 is not."""
    calls, said = list[int](), list[str]()
    monkeypatch.setattr(module, "check_runtime", lambda runtime: None)
    monkeypatch.setattr(module, "compile_for", runtime_that(change, calls))
    ensemble = Ensemble(members((1.0, (0.01,))), 4, runtime="litert", say=said.append)
    scores = [ensemble.score(PICTURES) for _ in range(2)]
    np.testing.assert_allclose(scores, np.tile(sigmoid(0.01 * upper(PICTURES))[:, None], (2, 1, 1)), atol=1e-3)
    assert len(said) == 1
    assert ("bundle0: litert scores as Keras does" in said[0]) == kept
    assert ("more than 0.001: Keras scores" in said[0]) != kept
    assert len(calls) == (3 if kept else 1)  # the proof, and the batches that it was believed for


def test_what_cannot_be_converted_is_left_to_keras(members: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    original = module.compile_for

    def refuse(runtime: str, model: Any, batch_size: int) -> Any:
        if runtime != "keras":
            raise RuntimeError("no such operation: Erfc")
        return original(runtime, model, batch_size)

    monkeypatch.setattr(module, "check_runtime", lambda runtime: None)
    monkeypatch.setattr(module, "compile_for", refuse)
    ensemble = Ensemble(members((1.0, (2.0,))), 4, runtime="openvino", say=said.append)
    np.testing.assert_allclose(ensemble.score(PICTURES)[:, 0], sigmoid(2 * upper(PICTURES)), atol=1e-6)
    assert said == ["bundle0: openvino cannot take it, Keras scores (RuntimeError: no such operation: Erfc)"]


def test_the_difference_of_two_answers_is_one_of_probabilities() -> None:
    zeros = np.zeros((2, 2), np.float32)
    assert score_difference(zeros, zeros) == 0
    assert score_difference(zeros, np.array([[0, 0], [0.4, 0]])) == pytest.approx(sigmoid(0.4) - 0.5)
    assert score_difference(np.array([[9.0]]), np.array([[9.4]])) < 1e-4
    assert score_difference(zeros, np.array([[0, 0], [0, -8.0]])) == 2.0
    assert score_difference(zeros, np.array([[0, 0], [math.nan, 0]])) == math.inf
