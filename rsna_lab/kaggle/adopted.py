"""Checkpoints that others trained with timm → bundles that `infer` scores and training starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rsna_kit.competition.folds import EVERYONE
from rsna_kit.config import Config, ImageConfig, ModelConfig
from rsna_kit.runtime.errors import BundleError


@dataclass(frozen=True)
class Adopted:
    """What a checkpoint does not say of itself.

    Attributes:
        files: checkpoints, each becomes a bundle.
        model: backbone and pooling.
        image: size of the pictures.
        threshold: score from which a breast is called positive.
        mean, std: of a grey value in [0, 1] in each channel, as its training subtracted and divided by; one for a stem
            of one channel, three for one of three; empty for ImageNet's.
    """

    files: Sequence[Path]
    model: ModelConfig
    image: ImageConfig
    threshold: float
    mean: Sequence[float] = ()
    std: Sequence[float] = ()


def adopt(wanted: Adopted, out: Path, say: Callable[[str], None]) -> None:
    """Write `out/<name of the file>/` for each checkpoint.

    They count as having seen every patient of the competition: a validation on any of them says so.

    Raises:
        BundleError: a file that is no checkpoint, or of another network; one whose classifier does not have one class
            or two.
    """
    from rsna_kit.models.network import build_classifier
    from rsna_kit.models.starts import load_start
    from rsna_kit.training.export import write_bundle

    model = replace(wanted.model, weights="start")
    for number, path in enumerate(wanted.files):
        network = build_classifier(model, wanted.image)
        start = load_start(network, model, [path])
        if not start.get("head"):
            raise BundleError(
                f"{path}: its trunk is {model.backbone}, but its classifier does not fit: expected one class, or two, "
                f"behind a pooling {model.pool!r}"
            )
        if len(wanted.mean):
            mean, std = (np.full(3, values, np.float32) for values in (wanted.mean, wanted.std))
            network.get_layer("scale").set_weights([1 / (255 * std), -mean / std])
        config = Config(image=wanted.image, model=model)
        name = path.name.partition(".")[0]
        write_bundle(out / name, network, config, number, wanted.threshold, {}, "", start, EVERYONE)
        say(f"  {name}: {model.backbone}, {path.name}")
