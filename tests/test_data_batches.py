from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from toy_pictures import write_toys

from rsna_kit.config import Config, DataConfig, ImageConfig, ModelConfig, TrainConfig
from rsna_kit.data.batches import (
    Pictures,
    TrainingSet,
    drain,
    eval_batches,
    iterate,
    iterate_images,
    make_training_set,
    picture_stream,
    train_batches,
    training_stream,
)
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
    return make_training_set(Pictures(prepared, cache_bytes), prepared.table, config)


def of_breasts(prepared: Prepared, config: Config = BREAST) -> TrainingSet:
    """Toys 0 to 4 are one breast, 5 another, the others stay in pairs."""
    breasts = ["first"] * 5 + ["second"] + prepared.table["prediction_id"].tolist()[6:]
    return make_training_set(Pictures(prepared), prepared.table.assign(prediction_id=breasts), config)


def test_shapes_and_types_are_static(prepared: Prepared) -> None:
    shapes = [(tuple(spec.shape), spec.dtype.name) for spec in train_batches(training_set(prepared), 0).element_spec]
    assert shapes == [((8, 24, 16, 1), "uint8"), ((8, 1), "float32"), ((8,), "float32")]
    spec = eval_batches(Pictures(prepared), list(prepared.index), 16).element_spec
    assert tuple(spec.shape) == (None, 24, 16, 1)


@pytest.mark.parametrize(("config", "steps"), [(CONFIG, 6), (BREAST, 3), (CVAE, 4)])
def test_tf_data_and_threads_give_the_same_batches(prepared: Prepared, config: Config, steps: int) -> None:
    """Twin, augmentation included; one with every picture kept, one with none."""
    batches = list(train_batches(training_set(prepared, config), 2).as_numpy_iterator())
    twins = list(iterate(training_set(prepared, config, cache_bytes=0), 2))
    assert len(batches) == len(twins) == training_set(prepared, config).steps == steps
    for batch, twin in zip(batches, twins, strict=True):
        for array, other in zip(batch, twin, strict=True):
            assert array.dtype == other.dtype
            np.testing.assert_array_equal(array, other)


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
    for batches in (
        picture_stream(Pictures(prepared), ids, 8),
        iterate_images(Pictures(prepared), ids, 8),
        iterate_images(Pictures(prepared), ids, 64),
    ):
        np.testing.assert_array_equal(np.concatenate([np.asarray(batch) for batch in batches]), expected)


def test_a_damaged_shard_comes_out_as_itself(tmp_path: Path) -> None:
    """TensorFlow would wrap it into an InvalidArgumentError and might hang at exit."""
    prepared = write_toys(tmp_path, CONFIG.image, 40)
    (tmp_path / "shard-00001.tfrecord").write_bytes(b"\0" * 100)
    with pytest.raises(ShardError, match=r"shard-00001.tfrecord: image .* is damaged"):
        list(training_stream(training_set(prepared), 0))
    with pytest.raises(ShardError, match="damaged"):
        list(iterate(training_set(prepared), 0))


def test_another_error_while_loading_is_a_typed_error(prepared: Prepared) -> None:
    training = training_set(prepared)
    training.load = lambda position, seed: 1 // 0  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(RsnaKitError, match="loading a batch failed"):
        list(drain(train_batches(training, 0), training.pictures))


def test_an_epoch_goes_on_behind_what_is_done_without_loading_it(prepared: Prepared) -> None:
    """A run that was killed takes up the same order."""
    whole = list(iterate(training_set(prepared), 1))
    training, loaded = training_set(prepared), []
    load = training.load
    training.load = lambda position, seed: (loaded.append(int(position)), load(position, seed))[1]  # type: ignore
    for stream in (training_stream(training, 1, first_step=4), iterate(training, 1, first_step=4)):
        rest = [tuple(np.asarray(part) for part in batch) for batch in stream]
        assert len(rest) == 2
        for batch, expected in zip(rest, whole[4:], strict=True):
            for array, other in zip(batch, expected, strict=True):
                np.testing.assert_array_equal(array, other)
    assert sorted(loaded) == sorted(training.plan(1)[0][32:].tolist() * 2)
    assert list(iterate(training, 1, first_step=6)) == []


def test_a_breast_is_one_example_with_its_views(prepared: Prepared) -> None:
    training = of_breasts(prepared)
    assert training.shape == (3, 24, 16, 1)
    assert [len(ids) for ids in training.examples] == [5, 1] + [2] * 17
    # Toys 0, 5, 10, ... have cancer: the first breast, the second, and every pair with such a toy.
    assert training.labels.tolist() == [float(any(int(i) % 5 == 0 for i in ids)) for ids in training.examples]
    assert training.labels[:2].tolist() == [1, 1]
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


def test_no_more_views_are_padded_than_the_largest_breast_has(prepared: Prepared) -> None:
    many = dataclasses.replace(BREAST, model=ModelConfig(kind="breast", views=9))
    assert of_breasts(prepared, many).shape[0] == 5
    assert training_set(prepared, many).shape[0] == 2


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
    training = make_training_set(Pictures(prepared), table, config)
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
        make_training_set(Pictures(prepared), prepared.table.assign(cancer=1), plain)


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
        make_training_set(Pictures(prepared), prepared.table.assign(cancer=cancer), config)


def test_targets_need_not_be_the_labels_of_every_row(prepared: Prepared) -> None:
    """Missing cells come through as NaN, in every stream."""
    config = dataclasses.replace(CONFIG, train=TrainConfig(batch_size=8, seed=3, targets="BIRADS"))
    table = prepared.table.assign(BIRADS=pd.array([0, 1, None, 2] * 10, dtype="Int64"))
    training = make_training_set(Pictures(prepared), table, config)
    order = training.plan(0)[0]
    for stream in (training_stream(training, 0), iterate(training, 0)):
        targets = np.concatenate([np.asarray(batch[1]) for batch in stream])
        np.testing.assert_array_equal(targets, training.targets[order])
        np.testing.assert_array_equal(targets[:, 1], np.array([1, 0, np.nan, 0])[order % 4])
