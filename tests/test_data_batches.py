from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from toy_pictures import write_toys

from rsna_kit.config import Config, DataConfig, ImageConfig, ModelConfig, TrainConfig
from rsna_kit.data.batches import Pictures, TrainingSet, picture_stream, training_stream
from rsna_kit.data.shards import Prepared, read_picture
from rsna_kit.runtime.errors import RsnaKitError, ShardError

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

CONFIG = Config(image=ImageConfig(height=24, width=16), data=DataConfig(), train=TrainConfig(batch_size=8, seed=3))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return write_toys(tmp_path_factory.mktemp("toys"), CONFIG.image, 40)


BREAST = dataclasses.replace(CONFIG, model=ModelConfig(kind="breast", views=3))
CVAE = dataclasses.replace(CONFIG, model=ModelConfig(kind="cvae"))


def training_set(prepared: Prepared, config: Config = CONFIG, cache_bytes: int = 1 << 20) -> TrainingSet:
    return TrainingSet(Pictures(prepared, config.data.augment, cache_bytes), prepared.table, config)


def of_breasts(prepared: Prepared, config: Config = BREAST) -> TrainingSet:
    """Toys 0 to 4 are one breast, 5 another, the others stay in pairs."""
    breasts = ["first"] * 5 + ["second"] + prepared.table["prediction_id"].tolist()[6:]
    rows = prepared.table.assign(prediction_id=breasts)
    return TrainingSet(Pictures(prepared, config.data.augment), rows, config)


@pytest.mark.parametrize(("config", "steps"), [(CONFIG, 6), (BREAST, 3), (CVAE, 4)])
def test_an_epoch_is_the_same_whoever_loads_it(prepared: Prepared, config: Config, steps: int) -> None:
    """Threads, with every picture kept or none, against one example after the other; augmentation included."""
    training = training_set(prepared, config, cache_bytes=0)
    order, seeds = training.plan(2)
    batches = list(training_stream(training_set(prepared, config), 2))
    assert len(batches) == training.steps == steps
    for number, (images, targets, weights) in enumerate(batches):
        part = slice(8 * number, 8 * number + 8)
        expected = [training.load(position, seed) for position, seed in zip(order[part], seeds[part], strict=True)]
        np.testing.assert_array_equal(images, np.stack(expected))
        np.testing.assert_array_equal(targets, training.targets[order[part]])
        assert (images.dtype, targets.dtype, weights.dtype) == (np.uint8, np.float32, np.float32)
        assert (weights.shape, weights.min()) == ((8,), 1)


def test_examples_of_other_mammograms_change_what_a_batch_teaches_and_not_what_is_natural(prepared: Prepared) -> None:
    """Of eight cancers half are extra ones that count three times: a batch's odds double."""
    rows, config = prepared.table, CONFIG
    plain = TrainingSet(Pictures(prepared), rows, config)
    extra = (rows["cancer"] == 1) & (np.arange(len(rows)) >= len(rows) // 2)
    assert extra.sum() * 2 == rows["cancer"].sum()
    more = rows.assign(fold=np.where(extra, -1, 0), weight=np.where(extra, 3.0, 1.0))
    heavier = TrainingSet(Pictures(prepared), more, config)
    assert heavier.log_odds == pytest.approx(plain.log_odds + np.log(2))
    own = rows["cancer"][~extra].mean()
    assert heavier.odds_shift == pytest.approx(heavier.log_odds - np.log(own / (1 - own)))
    chosen = heavier.plan(1)[0][:8]
    np.testing.assert_array_equal(next(training_stream(heavier, 1))[2], heavier.weights[chosen])


def test_each_batch_has_a_positive_and_labels_fit_pictures(prepared: Prepared) -> None:
    """Toy cancers show a disc of 250; nothing else in the pictures is as bright."""
    plain = dataclasses.replace(CONFIG, data=DataConfig(augment="none"))
    for images, labels, weights in training_stream(training_set(prepared, plain), 0):
        brightest = np.asarray(images).max(axis=(1, 2, 3))
        np.testing.assert_array_equal(brightest == 250, np.asarray(labels)[:, 0] == 1)
        assert np.asarray(labels).sum() >= 1
        assert (np.asarray(weights) == 1).all()


def test_evaluation_keeps_order_and_drops_nothing(prepared: Prepared) -> None:
    ids = list(prepared.table["image_id"])[::-1][:19]
    expected = np.stack([read_picture(prepared, image_id) for image_id in ids])[..., None]
    for size in (8, 64):
        np.testing.assert_array_equal(np.concatenate(list(picture_stream(Pictures(prepared), ids, size))), expected)


def test_a_damaged_shard_comes_out_as_itself(tmp_path: Path) -> None:
    prepared = write_toys(tmp_path, CONFIG.image, 40)
    (tmp_path / "shard-00001.tfrecord").write_bytes(b"\0" * 100)
    with pytest.raises(ShardError, match=r"shard-00001.tfrecord: image .* is damaged"):
        list(training_stream(training_set(prepared), 0))


def test_an_epoch_goes_on_behind_what_is_done_without_loading_it(prepared: Prepared) -> None:
    """A run that was killed takes up the same order."""
    whole = list(training_stream(training_set(prepared), 1))
    training, loaded = training_set(prepared), []
    load = training.load
    training.load = lambda position, seed: (loaded.append(int(position)), load(position, seed))[1]  # type: ignore
    for batch, expected in zip(training_stream(training, 1, first_step=4), whole[4:], strict=True):
        for array, other in zip(batch, expected, strict=True):
            np.testing.assert_array_equal(array, other)
    assert sorted(loaded) == sorted(training.plan(1)[0][32:].tolist())
    assert list(training_stream(training, 1, first_step=6)) == []


def test_a_breast_is_one_example_with_its_views(prepared: Prepared) -> None:
    training = of_breasts(prepared)
    assert training.load(0, 0).shape == (3, 24, 16, 1)
    many = dataclasses.replace(BREAST, model=ModelConfig(kind="breast", views=9))
    assert of_breasts(prepared, many).view_count == 5  # as many as the largest breast has
    assert [len(ids) for ids in training.examples] == [5, 1] + [2] * 17
    # Toys 0, 5, 10, ... have cancer: the first breast, the second, and every pair with such a toy.
    cancer = training.targets[:, 0].tolist()
    assert cancer == [float(any(int(i) % 5 == 0 for i in ids)) for ids in training.examples]
    assert cancer[:2] == [1, 1]
    assert sorted(i for ids in training.examples for i in ids) == prepared.table["image_id"].tolist()


def test_views_come_in_an_order_of_their_own_and_missing_ones_are_black(prepared: Prepared) -> None:
    plain = dataclasses.replace(BREAST, data=DataConfig(augment="none"))
    training = of_breasts(prepared, plain)
    seen = set()
    for seed in range(30):
        views = training.views(0, seed)
        names = [name for name, _ in views]
        seen.add(tuple(names))
        assert len(set(names)) == 3
        assert set(names) <= {"00000", "00001", "00002", "00003", "00004"}
        assert len({own for _, own in views}) == 3  # each view is augmented in its own way
        assert views == training.views(0, seed)
        expected = np.stack([read_picture(prepared, name) for name in names])[..., None]
        np.testing.assert_array_equal(training.load(0, seed), expected)
    assert len(seen) > 20
    single = training.load(1, 0)
    np.testing.assert_array_equal(single[0, ..., 0], read_picture(prepared, "00005"))
    assert not single[1:].any()


def test_views_are_augmented(prepared: Prepared) -> None:
    """The recipe "flip" by each view's own seed."""
    flip = dataclasses.replace(BREAST, data=DataConfig(augment="flip"))
    training = of_breasts(prepared, flip)
    turned = []
    for seed in range(10):
        for picture, (name, own) in zip(training.load(0, seed), training.views(0, seed), strict=True):
            expected = read_picture(prepared, name)
            np.testing.assert_array_equal(picture[..., 0], expected[::-1] if own & 1 else expected)
            turned.append(own & 1)
    assert 5 < sum(turned) < 25


def test_the_targets_of_a_breast_are_the_largest_of_its_views(prepared: Prepared) -> None:
    config = dataclasses.replace(BREAST, train=TrainConfig(batch_size=4, targets="biopsy,BIRADS,density"))
    table = prepared.table.assign(biopsy=[0, 1] + [0] * 38, BIRADS=[np.nan, 0, 2, np.nan] + [1] * 36, density=None)
    training = TrainingSet(Pictures(prepared), table, config)
    np.testing.assert_array_equal(training.targets[:3, 1:3], [[1, 1], [0, 0], [0, 0]])
    assert np.isnan(training.targets[:, 3:]).all()
    assert training.notes == tuple(f"target density>{least}: missing in all training rows, left out" for least in "ABC")


def test_a_cvae_sees_no_cancer(prepared: Prepared) -> None:
    """Toy cancers show a disc of 250."""
    plain = dataclasses.replace(CVAE, data=DataConfig(augment="none"))
    training = training_set(prepared, plain)
    assert len(training.examples) == 32
    assert (training.log_odds, training.odds_shift) == (0.0, 0.0)
    for images, targets, _ in training_stream(training, 0):
        assert np.asarray(images).max() < 250
        assert np.asarray(targets).shape == (8, 1)
        assert not np.asarray(targets).any()
    with pytest.raises(RsnaKitError, match="none is without cancer"):
        TrainingSet(Pictures(prepared), prepared.table.assign(cancer=1), plain)


def test_the_odds_that_a_batch_teaches(prepared: Prepared) -> None:
    """8 of 40 have cancer, 2 of 8 in a batch; a weight of 5 makes them as good as ten."""
    training = training_set(prepared)
    assert training.log_odds == math.log(0.25 / 0.75)
    assert training.odds_shift == pytest.approx(math.log((2 / 6) / (8 / 32)))
    heavy = training_set(prepared, dataclasses.replace(CONFIG, train=TrainConfig(batch_size=8, cancer_weight=5)))
    assert heavy.odds_shift == pytest.approx(math.log((10 / 6) / (8 / 32)))
    fewer = training_set(prepared, dataclasses.replace(CONFIG, data=DataConfig(negatives=0.25)))
    assert fewer.log_odds == 0.0  # 8 cancers and 8 of the 32 healthy ones
    assert fewer.steps == 2


@pytest.mark.parametrize("config", [CONFIG, BREAST])
@pytest.mark.parametrize("cancer", [0, 1])
def test_one_class_alone_is_refused(prepared: Prepared, config: Config, cancer: int) -> None:
    with pytest.raises(RsnaKitError, match="expected both classes"):
        TrainingSet(Pictures(prepared), prepared.table.assign(cancer=cancer), config)
