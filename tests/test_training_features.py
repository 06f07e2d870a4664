"""A head that learns on kept feature maps is the head of the whole network."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rsna_kit.models.classifier import build_classifier, split_classifier
from rsna_kit.training.trainer import Trainer
from toy_pictures import write_toys

from rsna_kit.config import Config, with_overrides
from rsna_kit.data.augment import build_augmentation, flips
from rsna_kit.data.batches import Pictures, iterate, make_training_set
from rsna_kit.data.shards import Prepared
from rsna_kit.models.bundle import load_model, open_bundle, write_bundle
from rsna_kit.presets import preset
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.runtime.events import Events
from rsna_kit.training import features
from rsna_kit.training.features import FeatureMaps

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


def test_the_flip_turns_every_other_seed_upside_down() -> None:
    image = np.arange(6, dtype=np.uint8).reshape(3, 2)
    augment = build_augmentation("flip")
    assert augment(image, 3).tolist() == [[4, 5], [2, 3], [0, 1]]
    assert augment(image, 4).tolist() == image.tolist()


def test_trunk_and_head_together_are_the_network(prepared: Prepared) -> None:
    network = build_classifier(CONFIG.model, CONFIG.image)
    trunk, head = split_classifier(network, CONFIG.model)
    pictures = Pictures(prepared)
    batch = np.stack([pictures[i] for i in prepared.table["image_id"][:16]])[..., None]
    maps = trunk.predict_on_batch(batch)
    assert maps.shape == (16, 4, 2, 112)
    np.testing.assert_allclose(head.predict_on_batch(maps), network.predict_on_batch(batch), atol=1e-5)
    assert not any(weight.trainable for weight in trunk.weights)
    assert len(head.trainable_variables) == 8  # normalisation 2, two convolutions 4, logit 2


@pytest.mark.parametrize("kind", ["image", "breast"])
def test_kept_maps_are_those_of_the_augmented_pictures(prepared: Prepared, kind: str) -> None:
    """Order, views, targets and flips of an epoch are the same whether maps are kept or pictures are read."""
    config = with_overrides(CONFIG, [f"model.kind={kind}", "train.batch_size=4", "train.targets=biopsy"])
    table = prepared.table.assign(biopsy=[0, 1, 1, None] * 10)
    table["prediction_id"] = ["three", "one", "three", "three", *table["prediction_id"].tolist()[4:]]
    trunk = small_trunk()
    maps = FeatureMaps(trunk, Pictures(prepared), table["image_id"].tolist(), config, silent(), Clock())
    training = make_training_set(Pictures(prepared), table, config)
    _, seeds = training.plan(1)
    assert {flips(int(seed)) for seed in seeds} == {True, False}
    kept, read = list(maps.training_stream(training, 1)), list(iterate(training, 1))
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
    for later, whole in zip(maps.training_stream(training, 1, first_step=2), kept[2:], strict=True):
        for array, other in zip(later, whole, strict=True):
            np.testing.assert_array_equal(array, other)


def test_a_head_trained_on_maps_scores_as_its_bundle_does(prepared: Prepared, tmp_path: Path) -> None:
    trainer = Trainer(prepared, CONFIG, silent())
    before = [np.array(weight) for weight in trainer.model.weights]
    table = prepared.table.assign(fold=np.arange(40) % 2)
    result = trainer.train_fold(table, 0, tmp_path / "fold0", Clock())
    names = [weight.path for weight in trainer.model.weights]
    changed = {n for n, a, b in zip(names, before, trainer.model.weights, strict=True) if not np.array_equal(a, b)}
    assert all("head_" in name or "logit" in name for name in changed)
    assert len(changed) >= 8
    write_bundle(tmp_path / "bundle", trainer.model, CONFIG, 0, 0.5, {}, "none")
    pictures = Pictures(prepared)
    batch = np.stack([pictures[i] for i in result.scores["image_id"][:16]])[..., None]
    logits = load_model(open_bundle(tmp_path / "bundle")).predict_on_batch(batch)[:, 0]
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), result.scores["score"][:16], atol=2e-3)


def test_maps_that_would_outlast_the_clock_are_refused(prepared: Prepared) -> None:
    ids = prepared.table["image_id"].tolist()
    with pytest.raises(RsnaKitError, match="Give more time"):
        FeatureMaps(small_trunk(), Pictures(prepared), ids, CONFIG, silent(), Clock(limit_s=0.001))


@pytest.mark.parametrize(("setting", "fits"), [("flip", True), ("none", True), ("light", False)])
def test_maps_are_kept_only_where_they_can_be(setting: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config: Config = with_overrides(CONFIG, [f"data.augment={setting}"])
    trunk = small_trunk()  # 4 x 2 x 5 numbers of 2 bytes for a picture, and for its mirror image
    needed = 1000 * 80 * (2 if setting == "flip" else 1)
    monkeypatch.setattr(features, "CACHE_BYTES", needed)
    assert FeatureMaps.fit(trunk, 1000, config) is fits
    assert not FeatureMaps.fit(trunk, 1001, config)
