"""One frozen configuration in seven sections, presets to start from, typed overrides, fingerprints.

An override changes one key (`--set image.height=1024`). A key is a line here, with its type, its default and what it
means: `Literal` lists what it may be, `Annotated` between what it may lie, and both are checked wherever a section is
made. Names of backbones, losses, augmentations and poolings are checked by their registries. The `image` section alone
decides what a model sees: its fingerprint is written into prepared folders and bundles, and a mismatch is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from rsna_kit.runtime.errors import UsageError, did_you_mean, named

# Raised whenever code in rsna_kit.imaging changes the bytes of an image for the same section.
IMAGE_RECIPE_VERSION = 5
PRIOR = 0.0211676964  # score of an image that cannot be read: positive share of images in the competition's train.csv


class Limits(NamedTuple):
    """Between what a number may lie, the ends included, and said in words."""

    low: float
    high: float
    words: str


TINY = 1e-12  # what "more than 0" means
Count = Annotated[int, Limits(0, math.inf, "at least 0")]
Whole = Annotated[int, Limits(1, math.inf, "at least 1")]
Amount = Annotated[float, Limits(0, math.inf, "a finite number of at least 0")]
Positive = Annotated[float, Limits(TINY, math.inf, "a finite number of more than 0")]
Share = Annotated[float, Limits(0, 1, "a share between 0 and 1")]


class Section:
    """What all sections have: their values are checked when they are made."""

    def __post_init__(self) -> None:
        """Refuse values that would only fail an hour later.

        Raises:
            UsageError: a value of another type or outside what its key allows.
        """
        hints: dict[str, Any] = _hints(type(self))  # type: ignore[arg-type]  # a class is hashable
        for key, hint in hints.items():
            value, name = getattr(self, key), f"{type(self).__name__.removesuffix('Config').lower()}.{key}"
            allowed = get_args(hint)
            if get_origin(hint) is Literal:
                if value not in allowed:
                    raise UsageError(f"{name}: got {value!r}, expected one of {', '.join(map(str, allowed))}")
                continue
            kind, limits = allowed if allowed else (hint, None)
            if not isinstance(value, int | float if kind is float else kind) or isinstance(value, bool):
                raise UsageError(f"{name}: got {value!r}, expected {kind.__name__}")
            if limits and not (limits.low <= value <= limits.high and math.isfinite(value)):
                raise UsageError(f"{name}: got {value}, expected {limits.words}")


@functools.cache
def _hints(section: Any) -> dict[str, Any]:
    return get_type_hints(section, include_extras=True)


@dataclass(frozen=True)
class ImageConfig(Section):
    """How stored pixels become the uint8 image a model sees."""

    height: Whole = 1536  # rows of the image; a T4 trains ConvNeXt-Tiny at this size
    width: Whole = 768
    voi: Literal["window", "lut", "minmax"] = "window"  # VOI window by its function; VOI LUT Sequence if there is one
    margin: Amount = 0.01  # added around the breast box, as a share of its longer side
    decode: Literal["reduced", "exact"] = "reduced"  # JPEG 2000 at the resolution needed; every pixel, averaged


@dataclass(frozen=True)
class DecodeConfig(Section):
    """Who decodes. Nothing here changes the bytes of an image."""

    workers: Count = 0  # threads or cluster tasks at once; 0: one per core (of the whole cluster)
    backend: Literal["threads", "dask"] = "threads"  # Dask goes past one machine
    scheduler: str = ""  # address of a Dask scheduler; empty: a cluster on this machine
    gpus: Literal["auto", "none", "all"] = "auto"  # DALI beside the threads; "auto": the last of several, once needed


@dataclass(frozen=True)
class DataConfig(Section):
    """Shards and batches."""

    save: Literal["png", "jpeg", "none"] = "jpeg"  # pictures by patient, to look at; "png": in the place of TFRecords
    augment: str = "light"  # one of rsna_kit.data.augment.RECIPES
    positive_share: Share = 0.25  # share of each training batch drawn from positives, at least one image
    negatives: Annotated[float, Limits(TINY, 1, "more than 0, at most 1")] = 1.0  # of the healthy drawn for an epoch


@dataclass(frozen=True)
class ModelConfig(Section):
    """The network."""

    kind: Literal["image", "breast", "cvae"] = "image"  # a logit a picture; from all views of a breast; anomalies
    backbone: str = "efficientnet_lite0"  # one of rsna_kit.models.backbones.BACKBONES
    weights: Literal["imagenet", "mammography", "start", "none"] = "imagenet"  # "start": those that --weights names
    tap: Literal[32, 16] = 32  # stride of the map that the head looks at
    head: str = "linear"  # layers before the pooling: one of rsna_kit.models.heads.HEADS
    pool: str = "avg"  # one of rsna_kit.models.heads.POOLS
    view_pool: str = "attention"  # kind "breast": one of rsna_kit.models.heads.POOLINGS
    views: Whole = 4  # kind "breast": most views of one breast in a training example; inference takes any number
    trunk: Literal["train", "frozen"] = "train"  # "frozen": only the head learns, on maps kept where they fit
    dropout: Annotated[float, Limits(0, 0.99, "a share of at most 0.99")] = 0.2


@dataclass(frozen=True)
class CvaeConfig(Section):
    """The convolutional variational autoencoder of model.kind = "cvae"."""

    latent: Whole = 8  # channels of the latent, at half the size of the trunk's map
    filters: Whole = 64  # channels between the two
    beta: Amount = 1.0  # weight of the KL term (Higgins et al., beta-VAE, 2017)


@dataclass(frozen=True)
class TrainConfig(Section):
    """Folds and optimisation."""

    folds: Annotated[int, Limits(2, math.inf, "at least 2")] = 4
    hold_out: Literal["patient", "machine", "site"] = "patient"  # what a fold's training never saw
    epochs: Whole = 12
    hours: Amount = 0.0  # all folds asked for end inside them: epochs and data.negatives are fitted; 0: as they are
    batch_size: Whole = 16
    accumulate: Whole = 1  # parts that a batch is computed in, one after the other, for a device of little memory
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"  # "sgd": Nesterov momentum 0.9
    learning_rate: Positive = 3e-4  # peak of a warm-up + cosine schedule
    weight_decay: Amount = 1e-2  # not for normalisation and biases
    clip_norm: Amount = 0.0  # longest gradient over all variables; 0: not clipped
    ema: Share = 0.0  # momentum of the moving average of the weights that is validated and kept; 0: none
    loss: str = "bce"  # one of rsna_kit.training.losses.LOSSES
    label_smoothing: Share = 0.05  # of both classes
    soft_positive: Share = 1.0  # what a cancer's label is taken for; the winner's were 0.8 and 0.9
    extra_weight: Positive = 1.0  # weight in the loss of an example of `train --extra`
    cancer_weight: Positive = 1.0  # weight of a cancer in the loss; the seed's was 5
    targets: str = ""  # further targets, e.g. "biopsy,invasive,BIRADS,density,difficult_negative_case"
    precision: Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"] = "auto"  # float16 on GPUs that gain by it
    devices: Literal["auto", "one"] = "auto"  # "auto": every GPU of this machine takes its share of each batch
    keep: Literal["best", "last"] = "best"  # epoch by validation AUC; "last": out-of-fold scores chose nothing
    seed: Count = 67


@dataclass(frozen=True)
class InferConfig(Section):
    """Scoring a test set."""

    batch_size: Whole = 16  # of a CPU, and of validation in training; a GPU finds its own
    tta: Literal["none", "flip"] = "none"  # "flip": the mean with the picture upside down
    runtime: Literal["keras", "openvino"] = "keras"  # OpenVINO: faster on most CPUs, from wheels of its own
    devices: Literal["auto", "one"] = "auto"  # "auto": every GPU takes batches
    precision: Literal["auto", "float32"] = "auto"  # "auto": float16 on GPUs that are fast at it, where it is proven
    max_failure_share: Share = 0.01  # more failed images than this fail the run, after a valid submission is written


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


# Configurations with a name: starting points for `--preset` and a kernel's PRESET.
PRESETS: Mapping[str, Config] = {
    # The command line's default: a size that a T4 trains, and the network whose ImageNet weights come with the kit.
    "default": Config(),
    # The kernels' default: what a week of a free account's GPU hours trains (docs/kaggle.md), prepared in two parts.
    "kaggle": Config(
        data=DataConfig(save="none", augment="winner", negatives=0.33),
        model=ModelConfig(backbone="efficientnetv2_s", pool="max", dropout=0.3),
        train=TrainConfig(ema=0.999, label_smoothing=0.0, soft_positive=0.9),
    ),
    # The seed project's notebooks: EfficientNet-B4, cancers weighted by 5, a third of the healthy images an epoch.
    "seed": Config(
        image=ImageConfig(height=1456, width=728),
        data=DataConfig(save="none", negatives=0.33),
        model=ModelConfig(backbone="efficientnet_b4"),
        train=TrainConfig(epochs=25, optimizer="adam", learning_rate=1e-3, label_smoothing=0.0, cancer_weight=5.0),
    ),
    # The 2023 winner (private pF1 0.55): ConvNeXt-Small, maximum pooling, soft positives, one cancer in eight pictures.
    "winner": Config(
        image=ImageConfig(height=2048, width=1024),
        data=DataConfig(save="none", augment="winner", positive_share=0.125),
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
    # The anomaly detector, on the trunk and from the pictures of `mammography`: the two may join an ensemble.
    "cvae": Config(
        image=ImageConfig(height=512, width=256),
        data=DataConfig(augment="flip"),
        model=ModelConfig(kind="cvae", weights="mammography", tap=16, trunk="frozen"),
        train=TrainConfig(epochs=25, learning_rate=1e-3, keep="last"),
    ),
    # Little data of one's own: the head of the mammography start goes on learning in small steps (docs/models.md).
    "mammography": Config(
        image=ImageConfig(height=512, width=256),
        data=DataConfig(augment="flip"),
        model=ModelConfig(weights="mammography", tap=16, head="conv", pool="avgmax", trunk="frozen", dropout=0.3),
        train=TrainConfig(epochs=8, batch_size=32, learning_rate=1e-4, keep="last"),
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
    return named("preset", name, PRESETS)


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
        kind = type(getattr(values, key))
        try:
            value = kind(text)
        except ValueError as error:
            example = f"expected {kind.__name__} such as {getattr(values, key)!r}"
            raise UsageError(f"--set {override}: got {text!r}, {example}") from error
        config = dataclasses.replace(config, **{section: dataclasses.replace(values, **{key: value})})
    return config


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
