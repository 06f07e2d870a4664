"""Configurations with a name: starting points for `--preset`."""

from __future__ import annotations

from collections.abc import Mapping

from rsna_kit.config import Config, DataConfig, ImageConfig, ModelConfig, TrainConfig
from rsna_kit.runtime.errors import UsageError, did_you_mean

PRESETS: Mapping[str, Config] = {
    # The command line's default: a size that a T4 trains, and the network whose ImageNet weights come with the kit.
    "default": Config(),
    # The kernels' default: pictures of which a Kaggle session's output holds 54,706.
    "kaggle": Config(image=ImageConfig(height=1024, width=512), data=DataConfig(save="none")),
    # The seed project's notebooks: EfficientNet-B4, cancers weighted by 5, a third of the healthy images an epoch.
    "seed": Config(
        image=ImageConfig(height=1456, width=728),
        data=DataConfig(negatives=0.33),
        model=ModelConfig(backbone="efficientnet_b4"),
        train=TrainConfig(epochs=25, optimizer="adam", learning_rate=1e-3, label_smoothing=0.0, cancer_weight=5.0),
    ),
    # The 2023 winner (private pF1 0.55): ConvNeXt-Small, maximum pooling, soft positives, one cancer in eight pictures.
    "winner": Config(
        image=ImageConfig(height=2048, width=1024),
        data=DataConfig(augment="winner", positive_share=0.125),
        model=ModelConfig(backbone="convnext_small", pool="max", dropout=0.5),
        train=TrainConfig(
            epochs=24,
            batch_size=8,
            optimizer="sgd",
            learning_rate=3e-3,
            ema=0.9998,
            label_smoothing=0.0,
            soft_positive=0.9,
            precision="mixed_float16",
        ),
    ),
    # The anomaly detector, from the pictures of `default`: it may join an ensemble with a network trained on those.
    "cvae": Config(
        data=DataConfig(augment="flip"),
        model=ModelConfig(kind="cvae", weights="none"),
        train=TrainConfig(epochs=20, learning_rate=1e-3, keep="last"),
    ),
    # Minutes on two CPU cores: rehearsals, tests, the demo. The trunk keeps its ImageNet weights and a convolutional
    # head learns on its maps, which four minutes suffice for (docs/log.md). Not for a leaderboard.
    "smoke": Config(
        image=ImageConfig(height=512, width=256),
        data=DataConfig(augment="flip"),
        model=ModelConfig(tap=16, head="conv", pool="avgmax", trunk="frozen"),
        train=TrainConfig(folds=2, epochs=24, batch_size=32, learning_rate=1e-3),
    ),
}


def preset(name: str) -> Config:
    """The named preset.

    Raises:
        UsageError: unknown name, with the nearest known one.
    """
    if name not in PRESETS:
        raise UsageError(f"preset: got {name!r}, expected one of {', '.join(PRESETS)}.{did_you_mean(name, PRESETS)}")
    return PRESETS[name]
