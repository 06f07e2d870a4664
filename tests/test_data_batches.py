from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from toy_pictures import write_toys

from rsna_kit.config import Config, DataConfig, ImageConfig, TrainConfig
from rsna_kit.data.batches import (
    Pictures,
    TrainingSet,
    drain,
    eval_batches,
    iterate,
    iterate_images,
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


def training_set(prepared: Prepared, config: Config = CONFIG, cache_bytes: int = 1 << 20) -> TrainingSet:
    table = prepared.table
    return TrainingSet(Pictures(prepared, cache_bytes), list(table["image_id"]), table["cancer"].to_numpy(), config)


def test_shapes_and_types_are_static(prepared: Prepared) -> None:
    shapes = [(tuple(spec.shape), spec.dtype.name) for spec in train_batches(training_set(prepared), 0).element_spec]
    assert shapes == [((8, 24, 16, 1), "uint8"), ((8, 1), "float32"), ((8,), "float32")]
    spec = eval_batches(Pictures(prepared), list(prepared.index), 16).element_spec
    assert tuple(spec.shape) == (None, 24, 16, 1)


def test_tf_data_and_threads_give_the_same_batches(prepared: Prepared) -> None:
    """Twin, augmentation included; one with every picture kept, one with none."""
    batches = list(train_batches(training_set(prepared), 2).as_numpy_iterator())
    twins = list(iterate(training_set(prepared, cache_bytes=0), 2))
    assert len(batches) == len(twins) == 6
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
