from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsna_kit.data.sampling import epoch_order, positives_per_batch
from rsna_kit.runtime.errors import RsnaKitError, UsageError


def labels_of(positives: int, negatives: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat([1, 0], [positives, negatives]))


@given(
    positives=st.integers(1, 40),
    negatives=st.integers(1, 120),
    batch_size=st.integers(2, 24),
    share=st.floats(0, 1),
    seed=st.integers(0, 5),
    drawn=st.floats(0.01, 1),
)
def test_every_batch_has_both_classes_and_every_image_of_the_rarer_need_comes(
    positives: int, negatives: int, batch_size: int, share: float, seed: int, drawn: float
) -> None:
    labels = labels_of(positives, negatives)
    per_batch = positives_per_batch(labels, batch_size, share, drawn)
    order = epoch_order(labels, batch_size, per_batch, seed, epoch=0, negatives=drawn)
    counts = labels[order].reshape(-1, batch_size).sum(axis=1)
    assert set(counts) == {per_batch}
    assert 1 <= per_batch < batch_size
    healthy = set(order) & set(np.flatnonzero(labels == 0))
    assert len(healthy) == max(round(drawn * negatives), 1)
    assert set(np.flatnonzero(labels)) <= set(order)


def test_positives_are_used_evenly() -> None:
    labels = labels_of(5, 120)
    order = epoch_order(labels, 16, 4, seed=1, epoch=0)
    counts = np.bincount(order)[labels == 1]
    assert counts.max() - counts.min() <= 1


def test_common_cancers_keep_their_natural_share() -> None:
    """CBIS-DDSM has 47 % malignant: a wanted share of 25 % must not hide half of them."""
    labels = labels_of(47, 53)
    assert positives_per_batch(labels, 16, 0.25) == 8
    order = epoch_order(labels, 16, 8, seed=1, epoch=0)
    assert set(order) == set(range(100))


def test_seed_and_epoch_decide() -> None:
    labels = labels_of(5, 60)
    first = epoch_order(labels, 8, 2, seed=1, epoch=3)
    np.testing.assert_array_equal(first, epoch_order(labels, 8, 2, seed=1, epoch=3))
    assert (first != epoch_order(labels, 8, 2, seed=1, epoch=4)).any()
    assert (first != epoch_order(labels, 8, 2, seed=2, epoch=3)).any()


@pytest.mark.parametrize("labels", [np.zeros(9), np.ones(9)])
def test_one_class_alone_is_refused(labels: np.ndarray) -> None:
    with pytest.raises(RsnaKitError, match="expected both classes"):
        positives_per_batch(labels, 8, 0.25)


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(UsageError, match=r"train.batch_size: got 1, expected at least 2"):
        positives_per_batch(labels_of(3, 9), 1, 0.25)


def test_the_order_of_an_epoch_is_for_good() -> None:
    """Literal: a run that is resumed by a later version must go on with the order in which it began."""
    labels = np.array([0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1])
    assert epoch_order(labels, 4, 1, seed=67, epoch=1).tolist() == [3, 11, 0, 4, 1, 8, 2, 9, 6, 5, 7, 10]


def test_a_share_of_the_healthy_is_drawn_anew_each_epoch() -> None:
    labels = labels_of(10, 300)
    drawn = [
        set(epoch_order(labels, 16, 4, 1, epoch, negatives=1 / 3)) - set(np.flatnonzero(labels)) for epoch in range(20)
    ]
    assert {len(healthy) for healthy in drawn} == {100}
    assert 20 < len(drawn[0] & drawn[1]) < 45  # chance: a third of 100
    assert len(set.union(*drawn)) > 295
    assert drawn[0] == set(epoch_order(labels, 16, 4, 1, 0, negatives=1 / 3)) - set(np.flatnonzero(labels))


def test_fewer_healthy_make_cancers_commoner() -> None:
    """20 cancers among 80 healthy of which a third is drawn: 43 % of what an epoch shows, and all of them come."""
    labels = labels_of(20, 80)
    assert positives_per_batch(labels, 16, 0.25) == 4
    assert positives_per_batch(labels, 16, 0.25, negatives=1 / 3) == 7
    order = epoch_order(labels, 16, 7, seed=1, epoch=0, negatives=1 / 3)
    assert set(np.flatnonzero(labels)) <= set(order)
    assert len(order) == 48


def test_where_there_is_no_cancer_to_learn_all_come_once_in_a_new_order() -> None:
    healthy = np.zeros(21)
    order = epoch_order(healthy, 8, 0, seed=1, epoch=0)
    assert (len(order), order.dtype) == (24, np.int64)
    assert np.bincount(order, minlength=21).min() == 1
    assert order.tolist() == epoch_order(healthy, 8, 0, seed=1, epoch=0).tolist()
    assert order.tolist() != epoch_order(healthy, 8, 0, seed=1, epoch=1).tolist()
    assert len(set(epoch_order(np.zeros(90), 8, 0, seed=1, epoch=0, negatives=0.5))) == 45
    with pytest.raises(RsnaKitError, match="none is without cancer"):
        epoch_order(np.zeros(0), 8, 0, seed=0, epoch=0)
