"""Members as one scorer, with networks small enough to know what each must say."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rsna_kit.config import Config, ModelConfig
from rsna_kit.models import devices, ensemble
from rsna_kit.models.bundle import Bundle
from rsna_kit.models.devices import score_difference
from rsna_kit.models.ensemble import Ensemble, Part
from rsna_kit.models.members import Member
from rsna_kit.runtime.errors import BundleError, MissingDependencyError, UsageError

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
            kind = "breast" if len(columns) == 2 else "image"
            made.append(Member(Bundle(path, Config(model=ModelConfig(kind=kind)), 0.5, {}), weight))
        return made

    monkeypatch.setattr(devices, "load_model", lambda bundle, precision="float32": networks[bundle.path])
    return make


def upper(pictures: np.ndarray) -> np.ndarray:
    return pictures[:, :4].mean(axis=(1, 2, 3)) / 255


def sigmoid(logits: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def test_image_level_members_are_one_column_of_mean_probabilities(members: Any) -> None:
    made = Ensemble(members((0.25, (2.0,)), (0.75, (-4.0,))), 4)
    half = upper(PICTURES)
    assert (made.columns, made.parts) == (["score"], [Part(1.0, "score", None)])
    wanted = 0.25 * sigmoid(2 * half) + 0.75 * sigmoid(-4 * half)
    np.testing.assert_allclose(made.score(PICTURES), wanted[:, None], atol=1e-6)


def test_each_breast_level_member_keeps_its_attention(members: Any) -> None:
    given = ((0.2, (1.0, 3.0)), (0.3, (2.0,)), (0.1, (-1.0, 5.0)), (0.4, (4.0,)))
    made = Ensemble(members(*given), 4)
    assert made.columns == ["score", "attention", "score_1", "score_2", "attention_2"]
    assert [(part.score, part.attention) for part in made.parts] == [
        ("score", "attention"),
        ("score_1", None),
        ("score_2", "attention_2"),
    ]
    assert [part.weight for part in made.parts] == pytest.approx([0.2, 0.7, 0.1])
    half = upper(PICTURES)
    images = (0.3 * sigmoid(2 * half) + 0.4 * sigmoid(4 * half)) / 0.7
    wanted = np.stack([sigmoid(half), 3 * half, images, sigmoid(-half), 5 * half], axis=1)
    np.testing.assert_allclose(made.score(PICTURES), wanted, atol=1e-5)


def test_tta_is_the_mean_of_logits_and_of_attentions_with_the_picture_upside_down(members: Any) -> None:
    made = Ensemble(members((1.0, (6.0, 9.0))), 4, tta="flip")
    both = (upper(PICTURES) + upper(PICTURES[:, ::-1])) / 2
    np.testing.assert_allclose(made.score(PICTURES), np.stack([sigmoid(6 * both), 9 * both], axis=1), atol=1e-5)
    assert not np.allclose(both, upper(PICTURES))


def test_a_picture_is_scored_alike_in_any_batch(members: Any) -> None:
    made = Ensemble(members((1.0, (2.0,))), 4, tta="flip")
    together = made.score(PICTURES)
    alone = [made.score(PICTURES[[row]])[0] for row in range(3)]
    np.testing.assert_allclose(together, alone, atol=1e-7)


def test_what_is_missed_least_is_given_up_first(members: Any) -> None:
    """TTA, then the lightest member, of equals the last; never the last of all."""
    given = ((0.4, (1.0,)), (0.2, (2.0, 1.0)), (0.2, (3.0,)), (0.2, (4.0, 1.0)))
    made = Ensemble(members(*given), 4, tta="flip")
    half, columns = upper(PICTURES), []
    assert made.lighten() == "TTA"
    np.testing.assert_allclose(made.score(PICTURES)[:, 1], sigmoid(2 * half), atol=1e-6)
    for name in ("bundle3", "bundle2", "bundle1"):
        assert made.lighten() == name
        columns.append(made.score(PICTURES))
    assert made.lighten() is None
    np.testing.assert_array_equal(np.isnan(columns[0][0]), [False, False, False, True, True])
    np.testing.assert_allclose(columns[1][:, 0], sigmoid(half), atol=1e-6)  # bundle0 alone, not at half its weight
    np.testing.assert_array_equal(np.isnan(columns[2][0]), [False, True, True, True, True])


def test_an_output_that_is_not_finite_names_its_bundle(members: Any) -> None:
    np.testing.assert_array_equal(Ensemble(members((1.0, (-1e30,))), 4).score(PICTURES), 0.0)
    made = Ensemble(members((0.5, (1.0,)), (0.5, (math.inf,))), 4)
    with pytest.raises(BundleError, match="bundle1: its network's output is not finite"):
        made.score(PICTURES)


# ---- OpenVINO and float16 ----


def test_openvino_gives_what_keras_gives_in_every_column() -> None:
    """A network of the kinds of layers that ours have, from its uint8 picture to a logit and an attention."""
    pytest.importorskip("openvino")
    keras.utils.set_random_seed(4)
    layers = keras.layers
    picture = keras.Input((16, 8, 1), dtype="uint8", name="picture")
    tensor = layers.Concatenate(dtype="uint8")([picture] * 3)
    tensor = layers.Rescaling([0.01, 0.02, 0.03], [-1.0, -2.0, -3.0])(tensor)
    tensor = layers.Conv2D(8, 3, strides=2, padding="same", activation="gelu")(tensor)
    tensor = layers.LayerNormalization()(layers.DepthwiseConv2D(3, padding="same")(tensor))
    small = keras.Model(picture, layers.Dense(2)(layers.GlobalAveragePooling2D()(tensor)))
    batch = np.random.default_rng(0).integers(0, 256, (3, 16, 8, 1), np.uint8)
    run = devices.compile_openvino(small, 3)
    for rows in (batch, batch[::-1].copy()):
        got, wanted = run(rows), np.asarray(small(rows))
        assert (got.shape, got.dtype) == ((3, 2), np.float32)
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert np.ptp(wanted, axis=0).min() > 1e-2  # or a constant would pass
    first = run(batch)
    run(np.zeros_like(batch))
    np.testing.assert_allclose(first, np.asarray(small(batch)), atol=1e-5)  # not overwritten by the next answer


@pytest.mark.parametrize(
    ("way", "change", "kept"),
    [
        ("openvino", 0.0, True),
        ("openvino", 3e-3, True),
        ("openvino", 5e-3, False),
        ("openvino", math.nan, False),
        ("float16", 3e-2, True),
        ("float16", 5e-2, False),
        ("float16", math.nan, False),
    ],
)
def test_another_way_is_believed_once_it_scores_as_float32_does(
    members: Any, monkeypatch: pytest.MonkeyPatch, way: str, change: float, kept: bool
) -> None:
    """At a logit near 0 a quarter of the change arrives in the probability: 3e-3 is within 1e-3, 5e-3 is not."""
    calls, said = list[int](), list[str]()
    given, real = members((1.0, (0.01,))), devices.load_model

    def changed(model: Any) -> Any:
        def run(pictures: np.ndarray) -> np.ndarray:
            calls.append(len(pictures))
            return model.predict_on_batch(pictures) + np.float32(change)

        return run

    def load(bundle: Bundle, precision: str = "float32") -> Any:
        return real(bundle) if precision == "float32" else SimpleNamespace(predict_on_batch=changed(real(bundle)))

    if way == "openvino":
        pytest.importorskip("openvino")
        monkeypatch.setattr(devices, "compile_openvino", lambda model, batch_size: changed(model))
    else:  # a CPU computes in it, too, if it is told to
        monkeypatch.setattr(ensemble, "has_tensor_cores", lambda names: True)
        monkeypatch.setattr(devices, "load_model", load)
    made = Ensemble(given, 4, runtime="openvino" if way == "openvino" else "keras", say=said.append)
    scores = [made.score(PICTURES) for _ in range(2)]
    np.testing.assert_allclose(scores, np.tile(sigmoid(0.01 * upper(PICTURES))[:, None], (2, 1, 1)), atol=1e-2)
    assert len(said) == 2
    assert (f"bundle0: {way} scores as float32 does: at most" in said[0]) == kept
    assert (f"{way} is not used, float32 scores: at most" in said[0]) != kept
    assert said[1] == "scoring on CPU:0 (4 at once)"
    assert len(calls) == (3 if kept else 1)  # the proof, and the batches that it was believed for


def test_what_cannot_be_converted_is_left_to_keras(members: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    said = list[str]()

    def refuse(model: Any, batch_size: int) -> Any:
        raise RuntimeError("no such operation: Erfc")

    monkeypatch.setattr(devices, "compile_openvino", refuse)
    made = Ensemble(members((1.0, (2.0,))), 4, runtime="openvino", say=said.append)
    np.testing.assert_allclose(made.score(PICTURES)[:, 0], sigmoid(2 * upper(PICTURES)), atol=1e-6)
    assert said[0] == "bundle0: openvino cannot take it, float32 scores (RuntimeError: no such operation: Erfc)"


def test_openvino_that_cannot_work_here_is_refused(members: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = members((1.0, (1.0,)))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "openvino", None)
        with pytest.raises(MissingDependencyError, match=r"rsna-kit\[runtimes\]'.*attach the wheels dataset"):
            Ensemble(given, 4, runtime="openvino")
    pytest.importorskip("openvino")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UsageError, match=r"got 'openvino' with Keras on jax;.*KERAS_BACKEND=tensorflow"):
        Ensemble(given, 4, runtime="openvino")


def test_the_difference_of_two_answers_is_one_of_probabilities() -> None:
    zeros = np.zeros((2, 2), np.float32)
    assert score_difference(zeros, zeros) == 0
    assert score_difference(zeros, np.array([[0, 0], [0.4, 0]])) == pytest.approx(sigmoid(0.4) - 0.5)
    assert score_difference(np.array([[9.0]]), np.array([[9.4]])) < 1e-4
    assert score_difference(zeros, np.array([[0, 0], [0, -8.0]])) == 2.0
    assert score_difference(zeros, np.array([[0, 0], [math.nan, 0]])) == math.inf
