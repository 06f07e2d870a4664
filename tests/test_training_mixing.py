from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rsna_kit.config import DataConfig
from rsna_kit.runtime.errors import UsageError
from rsna_kit.training.mixing import build_mixer

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.tf

BATCH = 6
LEVELS = np.arange(10, 10 + 40 * BATCH, 40)  # the grey level of each picture tells it from the others


def batch(weights: Any = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat pictures; target k of picture k is 1, so mixed targets say who was mixed with whom, and by what share."""
    images = np.ones((BATCH, 16, 8, 1), np.uint8) * LEVELS.astype(np.uint8)[:, None, None, None]
    return images, np.eye(BATCH, dtype=np.float32), np.full(BATCH, weights, np.float32)


def call(mix: str, step: int, *inputs: np.ndarray, seed: int = 5) -> list[np.ndarray]:
    mixer = build_mixer(DataConfig(mix=mix), seed, share=1.0)
    assert mixer is not None
    return [np.asarray(output) for output in mixer(*(inputs or batch()), step)]


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_targets_are_mixed_as_the_pictures_are(mix: str) -> None:
    """Twin: the picture's mean grey level is the mean of the levels by the targets' shares."""
    moved, shares = 0, []
    for step in range(12):
        images, targets, weights = call(mix, step)
        assert (images.dtype, targets.dtype, weights.dtype) == (np.uint8, np.float32, np.float32)
        assert (images.shape, targets.shape, weights.shape) == ((BATCH, 16, 8, 1), (BATCH, BATCH), (BATCH,))
        np.testing.assert_allclose(weights, 1, atol=1e-6)
        np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
        # MixUp: rounding. CutMix: a rectangle has whole pixels, 1 of 8 columns and 1 of 16 rows at most.
        slack = 0.51 if mix == "mixup" else (LEVELS.max() - LEVELS.min()) * (1 / 8 + 1 / 16)
        np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), targets @ LEVELS, atol=slack)
        moved += int((np.diag(targets) < 0.999).sum())
        shares += np.diag(targets).tolist()
    assert moved > 12
    assert 0.4 < np.mean(shares) < 0.8  # half of it, and those that met themselves


def test_cutmix_pastes_a_rectangle_and_mixup_does_not() -> None:
    kinds = {"mixup": set(), "cutmix": set()}
    for mix, seen in kinds.items():
        for step in range(12):
            images = call(mix, step)[0]
            for image in images[..., 0]:
                levels = np.unique(image)
                seen.add(len(levels))
                assert len(levels) == 1 or set(levels) <= set(LEVELS)
                if len(levels) == 2:
                    for level in levels:
                        rows, columns = np.nonzero(image == level)
                        box = np.ptp(rows) + 1, np.ptp(columns) + 1
                        if len(rows) == box[0] * box[1]:
                            break
                    else:
                        pytest.fail("neither part is a rectangle")
    assert kinds == {"mixup": {1}, "cutmix": {1, 2}}


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_seed_and_step_decide(mix: str) -> None:
    """In any order, with layers that were used before, whatever Keras' own seed is."""
    mixer = build_mixer(DataConfig(mix=mix), seed=5, share=1.0)
    assert mixer is not None
    first = [[np.asarray(output) for output in mixer(*batch(), step)] for step in range(6)]
    keras.utils.set_random_seed(99)
    again = {step: call(mix, step) for step in reversed(range(6))}
    for step, outputs in enumerate(first):
        for output, other in zip(outputs, again[step], strict=True):
            np.testing.assert_array_equal(output, other)
    assert len({outputs[1].tobytes() for outputs in first}) == 6
    assert call(mix, 0, seed=6)[1].tobytes() != first[0][1].tobytes()


def test_half_of_the_steps_are_mixed() -> None:
    mixer = build_mixer(DataConfig(mix="mixup"), seed=3)
    assert mixer is not None
    inputs = batch()
    mixed = [mixer(*inputs, step)[0] is not inputs[0] for step in range(60)]
    assert abs(np.mean(mixed) - 0.5) < 0.15


def test_both_uses_both() -> None:
    kinds = []
    for step in range(24):
        images = call("both", step)[0]
        cut = any(len(np.unique(image)) == 2 for image in images)
        blended = any(int(level) not in LEVELS for level in np.unique(images))
        assert not (cut and blended)
        kinds.append((cut, blended))
    assert min(kinds.count((True, False)), kinds.count((False, True))) >= 6


def test_a_missing_target_stays_missing_in_every_mixture() -> None:
    images, eye, weights = batch()
    targets = np.stack([np.arange(BATCH) == 0, np.where(np.arange(BATCH) < 2, np.nan, 1)], axis=1).astype(np.float32)
    for mix in ("mixup", "cutmix"):
        for step in range(6):
            partners = call(mix, step, images, eye, weights)[1] > 0
            mixed = call(mix, step, images, targets, weights)[1]
            assert not np.isnan(mixed[:, 0]).any()
            has_missing = partners[:, :2].any(axis=1)
            assert np.isnan(mixed[has_missing, 1]).all()
            assert np.isnan(mixed[:2, 1]).all()
            whole = ~np.isnan(mixed[:, 1])
            np.testing.assert_allclose(mixed[whole, 1], 1, atol=1e-6)


def test_a_cancer_keeps_its_weight() -> None:
    """The loss of the mixture is the mixture of the weighted losses, for a loss that is linear in its targets."""
    images, eye, _ = batch()
    weights = np.array([5, 1, 1, 2, 1, 0], np.float32)
    for step in range(8):
        shares = call("mixup", step)[1].astype(np.float64)  # equal weights: the shares of the pictures
        _, targets, mixed = call("mixup", step, images, eye, weights)
        np.testing.assert_allclose(mixed, shares @ weights, atol=1e-5)
        np.testing.assert_allclose(targets * mixed[:, None], shares * weights, atol=1e-5)
        assert np.isfinite(targets).all()


def test_a_row_without_weight_mixed_with_itself_keeps_its_targets() -> None:
    images, eye, _ = batch()
    _, targets, weights = call("mixup", 0, images, eye, np.zeros(BATCH, np.float32))
    np.testing.assert_array_equal(targets, eye)
    np.testing.assert_array_equal(weights, 0)


def test_mixed_precision_does_not_reach_the_layers() -> None:
    """With float16 Keras' MixUp raises and its CutMix counts 160,000 pixels as infinity."""
    images = np.repeat(np.repeat(batch()[0], 25, axis=1), 50, axis=2)
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        for mix in ("mixup", "cutmix"):
            _, targets, _ = call(mix, 1, images, *batch()[1:])
            np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    finally:
        keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize("kind", ["breast", "cvae"])
def test_only_pictures_are_mixed(kind: str) -> None:
    with pytest.raises(UsageError, match=f'data.mix: got "mixup" for model.kind "{kind}", expected "none"'):
        build_mixer(DataConfig(mix="mixup"), 1, kind)
    assert build_mixer(DataConfig(), 1, kind) is None
