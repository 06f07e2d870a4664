"""A head that learns on kept feature maps is the head of the whole network."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from toy_pictures import write_toys

from rsna_kit.config import Config, preset, with_overrides
from rsna_kit.data.augment import build_augmentation, flips
from rsna_kit.data.batches import Pictures, TrainingSet
from rsna_kit.data.shards import Prepared
from rsna_kit.models import features
from rsna_kit.models.bundle import load_model, open_bundle, write_bundle
from rsna_kit.models.classifier import build_classifier, split_classifier
from rsna_kit.models.features import FeatureMaps
from rsna_kit.models.training import Trainer
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.runtime.events import Events

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

CONFIG = with_overrides(
    preset("smoke"),
    ["image.height=64", "image.width=32", "train.epochs=2", "train.batch_size=8", "infer.batch_size=16"],
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return write_toys(tmp_path_factory.mktemp("toys"), CONFIG.image, 40)


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


def test_kept_maps_are_those_of_the_augmented_pictures(prepared: Prepared) -> None:
    """Order, labels and flips of an epoch are the same whether maps are kept or pictures are read."""
    trunk, _ = split_classifier(build_classifier(CONFIG.model, CONFIG.image), CONFIG.model)
    pictures, table = Pictures(prepared), prepared.table
    maps = FeatureMaps(trunk, pictures, table["image_id"].tolist(), CONFIG, silent(), Clock())
    training = TrainingSet(pictures, table["image_id"].tolist()[4:], table["cancer"].to_numpy()[4:], CONFIG)
    order, seeds = training.plan(1)
    assert {flips(int(seed)) for seed in seeds} == {True, False}
    for number, (kept, labels, weights) in enumerate(maps.training_stream(training, 1)):
        part = slice(number * 8, number * 8 + 8)
        read = np.stack([training.load(*pair) for pair in zip(order[part], seeds[part], strict=True)])
        padded = np.concatenate([read, np.zeros_like(read)])
        np.testing.assert_allclose(kept, trunk.predict_on_batch(padded)[:8], rtol=2e-3, atol=2e-3)
        assert labels[:, 0].tolist() == training.labels[order[part]].tolist()
        assert weights.tolist() == [1.0] * 8


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
    with pytest.raises(RsnaKitError, match="Give more time"):
        Trainer(prepared, CONFIG, silent(), clock=Clock(limit_s=0.001))


@pytest.mark.parametrize(("setting", "fits"), [("flip", True), ("none", True), ("light", False)])
def test_maps_are_kept_only_where_they_can_be(setting: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config: Config = with_overrides(CONFIG, [f"data.augment={setting}"])
    trunk, _ = split_classifier(build_classifier(config.model, config.image), config.model)
    assert FeatureMaps.fit(trunk, 1000, config) is fits
    monkeypatch.setattr(features, "CACHE_BYTES", 1000)
    assert not FeatureMaps.fit(trunk, 1000, config)
