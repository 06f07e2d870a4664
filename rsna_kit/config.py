"""One frozen configuration in seven sections, typed overrides, fingerprints.

A preset (`rsna_kit.presets`) is a starting point, an override changes one key (`--set image.height=1024`).
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
IMAGE_RECIPE_VERSION = 5
PRIOR = 0.0211676964  # score of an image that cannot be read: positive share of images in the competition's train.csv


@dataclass(frozen=True)
class ImageConfig:
    """Door 5: how stored pixels become the uint8 image a model sees."""

    height: int = 1536  # rows of the image; a T4 trains ConvNeXt-Tiny at this size
    width: int = 768
    voi: str = "window"  # "window": VOI window by its function; "lut": VOI LUT Sequence if there is one; "minmax"
    margin: float = 0.01  # added around the breast box, as a share of its longer side
    decode: str = "reduced"  # "reduced": JPEG 2000 at the resolution the image needs; "exact": every pixel, averaged

    choices = {"voi": ("window", "lut", "minmax"), "decode": ("reduced", "exact")}  # noqa: RUF012 - for _check, no field


@dataclass(frozen=True)
class DecodeConfig:
    """Who decodes. Nothing here changes the bytes of an image."""

    workers: int = 0  # threads or cluster tasks at once; 0 means one per core (of the whole cluster)
    backend: str = "threads"  # "threads", or "dask": past one machine
    scheduler: str = ""  # address of a Dask scheduler; empty: a cluster on this machine
    gpus: str = "none"  # "all": every GPU decodes beside the threads (DALI; not yet measured on one), or "none"

    choices = {"backend": ("threads", "dask"), "gpus": ("none", "all")}  # noqa: RUF012


@dataclass(frozen=True)
class DataConfig:
    """Door 6 and 7: shards and batches."""

    save: str = "png"  # pictures kept beside the shards: "png", "jpeg" (for looking at) or "none"
    augment: str = (
        "light"  # "light", "winner" (Albumentations), "flip" (upside down, every other), "none": data/augment.py
    )
    mix: str = "none"  # "mixup", "cutmix", "both" (one of them for each batch) or "none": pictures of a batch mixed
    positive_share: float = 0.25  # share of each training batch drawn from positives, at least one image
    negatives: float = 1.0  # share of the healthy images that an epoch draws, anew each time; the seed's 1/3 is 0.33

    choices = {  # noqa: RUF012
        "save": ("png", "jpeg", "none"),
        "mix": ("none", "mixup", "cutmix", "both"),
    }


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    kind: str = "image"  # "image": one logit a picture; "breast": trained on all views of a breast; "cvae": anomalies
    backbone: str = "efficientnet_lite0"  # one of rsna_kit.models.backbones.BACKBONES
    weights: str = "imagenet"  # "imagenet"; "start": the trunk of a bundle (--weights FOLDER brings either); "none"
    tap: int = 32  # stride of the map that the head looks at: 32 (the last one) or 16
    head: str = "linear"  # layers before the pooling: "linear": none; "conv": two convolutions; "residual": two blocks
    pool: str = "avg"  # "avg", "max" or "avgmax" (both, joined)
    view_pool: str = "attention"  # kind "breast": one of rsna_kit.models.views.POOLINGS
    views: int = 4  # kind "breast": most views of one breast in a training example; inference takes any number
    trunk: str = "train"  # "train": all layers learn; "frozen": only the head does, on features computed once
    dropout: float = 0.2

    choices = {  # noqa: RUF012
        "kind": ("image", "breast", "cvae"),
        "weights": ("imagenet", "start", "none"),
        "tap": (32, 16),
        "head": ("linear", "conv", "residual"),
        "pool": ("avg", "max", "avgmax"),
        "trunk": ("train", "frozen"),
    }


@dataclass(frozen=True)
class CvaeConfig:
    """The convolutional variational autoencoder of model.kind = "cvae"."""

    latent: int = 64  # numbers that a picture is squeezed into
    filters: int = 32  # channels at half the size; each further halving doubles them, up to 8 times as many
    beta: float = 1.0  # weight of the KL term (Higgins et al., beta-VAE, 2017)


@dataclass(frozen=True)
class TrainConfig:
    """Folds and optimisation."""

    folds: int = 4
    hold_out: str = "patient"  # what a validation fold has and its training never saw: "patient", "machine" or "site"
    epochs: int = 12
    batch_size: int = 16
    optimizer: str = "adamw"  # "adamw", "adam" or "sgd" (Nesterov momentum 0.9)
    learning_rate: float = 3e-4  # peak of a warm-up + cosine schedule
    weight_decay: float = 1e-2  # not for normalisation and biases
    clip_norm: float = 0.0  # longest gradient over all variables; 0: not clipped
    ema: float = 0.0  # momentum of the moving average of the weights that is validated and kept; 0: none
    loss: str = "bce"  # "bce": binary cross-entropy; "focal": binary focal cross-entropy: training/losses.py
    label_smoothing: float = 0.05  # of both classes
    soft_positive: float = 1.0  # what a cancer's label is taken for; the winner's were 0.8 and 0.9
    cancer_weight: float = 1.0  # weight of a cancer in the loss; the seed's was 5
    targets: str = ""  # further targets, e.g. "biopsy,invasive,BIRADS,density,difficult_negative_case"
    precision: str = "float32"  # "mixed_float16" (T4), "mixed_bfloat16" (newer GPUs, TPU)
    devices: str = "one"  # "all": every GPU of this machine takes its share of each batch (TensorFlow)
    keep: str = "best"  # "best" epoch by validation AUC, or "last": then out-of-fold scores chose nothing
    seed: int = 67

    choices = {  # noqa: RUF012
        "hold_out": ("patient", "machine", "site"),
        "optimizer": ("adamw", "adam", "sgd"),
        "precision": ("float32", "mixed_float16", "mixed_bfloat16"),
        "devices": ("one", "all"),
        "keep": ("best", "last"),
    }


@dataclass(frozen=True)
class InferConfig:
    """Scoring a test set."""

    batch_size: int = 16
    tta: str = "none"  # "flip": the mean with the picture upside down
    runtime: str = "keras"  # "openvino": faster on a CPU for most networks, from wheels of its own
    max_failure_share: float = 0.01  # more failed images than this fail the run, after a valid submission is written

    choices = {"tta": ("none", "flip"), "runtime": ("keras", "openvino")}  # noqa: RUF012


@dataclass(frozen=True)
class Config:
    """Everything that a run can be told."""

    image: ImageConfig = field(default_factory=ImageConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    cvae: CvaeConfig = field(default_factory=CvaeConfig)
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
                raise UsageError(f"{section.name}.{key}: got {value!r}, expected one of {', '.join(map(str, allowed))}")
        for item in dataclasses.fields(values):
            value = getattr(values, item.name)
            if isinstance(value, int | float) and (value < 0 or not math.isfinite(value)):
                raise UsageError(f"{section.name}.{item.name}: got {value}, expected a finite number of at least 0")
    positive = {
        "image.height": config.image.height, "image.width": config.image.width, "train.epochs": config.train.epochs,
        "train.batch_size": config.train.batch_size, "infer.batch_size": config.infer.batch_size,
        "train.learning_rate": config.train.learning_rate,
        "data.negatives": config.data.negatives, "model.views": config.model.views, "cvae.latent": config.cvae.latent,
        "cvae.filters": config.cvae.filters, "train.cancer_weight": config.train.cancer_weight,
    }  # fmt: skip
    for name, value in positive.items():
        if value <= 0:
            raise UsageError(f"{name}: got {value}, expected more than 0")
    if config.train.folds < 2:
        raise UsageError(f"train.folds: got {config.train.folds}, expected at least 2")
    shares = {
        "infer.max_failure_share": config.infer.max_failure_share,
        "data.positive_share": config.data.positive_share, "model.dropout": config.model.dropout,
        "train.label_smoothing": config.train.label_smoothing, "data.negatives": config.data.negatives,
        "train.ema": config.train.ema, "train.soft_positive": config.train.soft_positive,
    }  # fmt: skip
    if config.model.dropout == 1:
        raise UsageError("model.dropout: got 1, expected less: nothing would be left")
    for name, share in shares.items():
        if share > 1:
            raise UsageError(f"{name}: got {share}, expected a share between 0 and 1")


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
