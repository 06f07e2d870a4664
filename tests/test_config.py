"""Presets, typed overrides, and the fingerprint that keeps training and inference together."""

from __future__ import annotations

import dataclasses
import json

import pytest

from rsna_kit.config import (
    PRESETS,
    Config,
    ImageConfig,
    ModelConfig,
    TrainConfig,
    from_dict,
    image_fingerprint,
    preset,
    to_dict,
    with_overrides,
)
from rsna_kit.runtime.errors import UsageError


def test_overrides_are_typed() -> None:
    config = with_overrides(Config(), ["image.height=1024", "train.learning_rate=1e-4", "model.weights=none"])
    assert (config.image.height, config.train.learning_rate, config.model.weights) == (1024, 1e-4, "none")
    assert Config().image.height == 1536


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("image.heigth=3", "Did you mean 'image.height'"),
        ("image.height", "no '=' in it"),
        ("image.height=tall", "got 'tall', expected int"),
        ("image.height=0", "expected at least 1"),
        ("image.voi=sigmoid", "expected one of window, lut, minmax"),
        ("train.folds=1", "at least 2"),
        ("infer.max_failure_share=1.5", "a share between 0 and 1"),
        ("train.learning_rate=nan", "finite"),
        ("model.dropout=1", "model.dropout: got 1.0, expected a share of at most 0.99"),
    ],
)
def test_bad_overrides_are_refused(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        with_overrides(Config(), [override])


def test_unknown_preset_is_refused_with_a_hint() -> None:
    with pytest.raises(UsageError, match="Did you mean 'smoke'"):
        preset("smok")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_goes_round_through_json(name: str) -> None:
    config = preset(name)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_a_config_of_another_version_is_refused() -> None:
    with pytest.raises(UsageError, match=r"image\.gamma is unknown"):
        from_dict({"image": {"gamma": 2}})
    with pytest.raises(UsageError, match="section 'imaeg' is unknown"):
        from_dict({"imaeg": {}})


def test_the_fingerprint_follows_every_image_key_and_nothing_else() -> None:
    base = image_fingerprint(ImageConfig())
    changed = {"height": 8, "width": 8, "voi": "lut", "margin": 0.5, "decode": "exact"}
    assert set(changed) == {field.name for field in dataclasses.fields(ImageConfig)}
    prints = {image_fingerprint(dataclasses.replace(ImageConfig(), **{key: value})) for key, value in changed.items()}
    assert len(prints | {base}) == len(changed) + 1
    assert base == image_fingerprint(Config(model=ModelConfig(dropout=0.5), train=TrainConfig(epochs=1)).image)
