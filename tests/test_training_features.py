"""A head that learns on kept feature maps is the head of the whole network."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from toy_pictures import write_toys

from rsna_kit.config import preset, with_overrides
from rsna_kit.data.augment import flips
from rsna_kit.data.batches import Pictures, TrainingSet, training_stream
from rsna_kit.data.shards import Prepared
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.runtime.events import Events
from rsna_kit.training import features
from rsna_kit.training.features import FeatureMaps, fits

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

CONFIG = with_overrides(
    preset("smoke"),
    ["image.height=64", "image.width=32", "train.epochs=2", "train.batch_size=8", "infer.batch_size=16"],
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return write_toys(tmp_path_factory.mktemp("toys"), CONFIG.image, 40)


def small_trunk() -> Any:
    """uint8 (B, 64, 32, 1) to (B, 4, 2, 5), not 0 even where the picture is."""
    layers = keras.layers
    picture = keras.Input((64, 32, 1), dtype="uint8")
    tensor = layers.AveragePooling2D(16)(layers.Rescaling(1 / 255)(picture))
    return keras.Model(picture, layers.Conv2D(5, 1, bias_initializer="ones")(tensor))


def silent() -> Events:
    return Events(stream=io.StringIO())


@pytest.mark.parametrize("kind", ["image", "breast"])
def test_kept_maps_are_those_of_the_augmented_pictures(prepared: Prepared, kind: str) -> None:
    """Order, views, targets and flips of an epoch are the same whether maps are kept or pictures are read."""
    config = with_overrides(CONFIG, [f"model.kind={kind}", "train.batch_size=4", "train.targets=biopsy"])
    table = prepared.table.assign(biopsy=[0, 1, 1, None] * 10)
    table["prediction_id"] = ["three", "one", "three", "three", *table["prediction_id"].tolist()[4:]]
    trunk = small_trunk()
    ids = table["image_id"].tolist()
    maps = FeatureMaps(trunk.predict_on_batch, (4, 2, 5), Pictures(prepared), ids, config, silent(), Clock())
    training = TrainingSet(Pictures(prepared, "flip"), table, config)
    _, seeds = training.plan(1)
    assert {flips(int(seed)) for seed in seeds} == {True, False}
    kept, read = list(training_stream(TrainingSet(maps, table, config), 1)), list(training_stream(training, 1))
    assert len(kept) == len(read) == training.steps
    assert kept[0][0].shape == ((4, 3, 4, 2, 5) if kind == "breast" else (4, 4, 2, 5))
    missing = 0
    for (features_of, targets, weights), (pictures, expected, ones) in zip(kept, read, strict=True):
        flat = pictures.reshape(-1, 64, 32, 1)
        wanted = np.array(trunk(flat)).reshape(features_of.shape)
        black = ~pictures.any(axis=(-3, -2, -1))  # views that are not there
        wanted[black] = 0
        missing += int(black.sum())
        np.testing.assert_allclose(features_of, wanted, rtol=2e-3, atol=2e-3)
        np.testing.assert_array_equal(targets, expected)
        np.testing.assert_array_equal(weights, ones)
    assert (missing > 0) == (kind == "breast")


def test_maps_that_would_outlast_the_clock_are_refused(prepared: Prepared) -> None:
    ids = prepared.table["image_id"].tolist()
    with pytest.raises(RsnaKitError, match="Give more time"):
        FeatureMaps(
            lambda batch: np.zeros((len(batch), 1, 1, 1)),
            (1, 1, 1),
            Pictures(prepared),
            ids,
            CONFIG,
            silent(),
            Clock(1e-3),
        )


@pytest.mark.parametrize(("augment", "bytes_each"), [("flip", 160), ("none", 80), ("light", None)])
def test_maps_are_kept_only_where_they_can_be(
    augment: str, bytes_each: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 x 2 x 5 numbers of 2 bytes for a picture, and for its mirror image."""
    monkeypatch.setattr(features, "CACHE_BYTES", 1000 * (bytes_each or 10**6))
    assert fits((4, 2, 5), 1000, augment) is (bytes_each is not None)
    assert not fits((4, 2, 5), 1001, augment)
