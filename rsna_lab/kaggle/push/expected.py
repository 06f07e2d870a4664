"""What a recipe will take on Kaggle, before anything is sent: parts and hours, measured by earlier runs or guessed.

Measured is what the verdicts of earlier runs say (`runs/kaggle/<kernel>/v<version>/verdict.json`, of the same size of
pictures and the same backbone). Where there is none: kB a picture from `rsna_kit.data.writer.picture_bytes`, and the
guesses below, which nobody has measured: they may be wrong by a factor of two either way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rsna_kit.config import Config, image_fingerprint, preset, with_overrides
from rsna_kit.data.sampling import epoch_order, positives_per_batch
from rsna_kit.runtime.clock import parse_duration
from rsna_kit.session.verdict import VERDICT
from rsna_lab.kaggle.options import fill_settings, read_settings
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.choices import Choices
from rsna_lab.kaggle.push.project import kernel_folder, read_kernel_metadata

IMAGES, CANCERS, HIDDEN = 54_706, 1_158, 32_000  # pictures of train.csv, those with cancer, pictures of the hidden test
PART_BYTES = 18e9  # a session's output holds 20
WEEK_H = 30.0  # of GPU quota
GMAC_S = {
    "float32": 1000.0,
    "half": 2500.0,
}  # a guess: what a T4 does of a ConvNeXt a second, in 10^9; EfficientNet: half
BACKWARD = 3.0  # training a picture against scoring it
DECODED_S = 8.0  # a guess: DICOM files a second on the four cores of a session


@dataclass(frozen=True)
class Expected:
    """Hours of a recipe, and what they rest on.

    `trained` are the pictures of an epoch, `validated` those of its validation; rates are pictures a second, of all
    GPUs together. `known` names what earlier runs measured.
    """

    macs: int
    trained: int
    validated: int
    train_rate: float
    score_rate: float
    decode_rate: float
    folds: int
    epochs: int
    known: tuple[str, ...] = ()

    @property
    def epoch_h(self) -> float:
        """Of one fold, validation included."""
        return (self.trained / self.train_rate + self.validated / self.score_rate) / 3600

    @property
    def train_h(self) -> float:
        """Of all folds that are asked for."""
        return self.folds * self.epochs * self.epoch_h

    @property
    def decode_h(self) -> float:
        """Of the 54,706 training pictures on one CPU session."""
        return IMAGES / self.decode_rate / 3600

    @property
    def scoring_h(self) -> float:
        """Of the scoring run: files are decoded while the networks of all folds score those before."""
        return HIDDEN * max(1 / self.decode_rate, self.folds / self.score_rate) / 3600


def read_config(settings: Mapping[str, str]) -> Config:
    """The configuration that a kernel's SETTINGS make."""
    return with_overrides(preset(settings.get("PRESET", "default")), settings.get("SET", "").split())


def parts_of(settings: Mapping[str, str], project: Path) -> list[str]:
    """The values of PART with which the kernel `prepare` runs: "" once where one output holds all pictures.

    Args:
        settings: its SETTINGS; where its PART is filled already, that alone is meant.
        project: where earlier verdicts lie; pictures that took more than was expected make more parts.
    """
    from rsna_kit.recipes.prepare import needed_bytes

    if settings.get("PART") or "PART" not in settings:
        return [settings.get("PART", "")]
    config = read_config(settings)
    took = [row["bytes"] / row["images"] for row in _prepared(config, project) if row.get("bytes")]
    of = math.ceil(IMAGES * max([needed_bytes(1, config), *took]) / PART_BYTES)
    return [f"{number}/{of}" for number in range(1, of + 1)] if of > 1 else [""]


def parts(account: Account, choices: Choices, name: str) -> dict[str, str]:
    """What PART is filled with → the kernel's reference, of each of the kernels that a folder of kernels/ becomes.

    That is one, but of prepare as many as its pictures need outputs: rsna-kit-prepare-1 and so on.
    """
    metadata = read_kernel_metadata(account, name)
    reference, text = (
        str(metadata["id"]),
        (kernel_folder(account.project, name) / metadata["code_file"]).read_text("utf-8"),
    )
    found = parts_of(read_settings(fill_settings(text, choices.settings.get(name, {}))), account.project)
    return {part: f"{reference}-{part.partition('/')[0]}" if part else reference for part in found}


def expect(config: Config, project: Path | None = None, folds: int = 0, factor: float = 1.0) -> Expected:
    """What a recipe takes.

    Args:
        config: the recipe.
        project: where earlier verdicts lie; None takes the guesses alone.
        folds: how many are trained, 0 for all.
        factor: by which the GPUs are faster than the guess.
    """
    from rsna_kit.models.network import build_network
    from rsna_lab.analysis.macs import count_macs

    model, train = config.model, config.train
    macs = count_macs(build_network(config, config.image))
    labels = np.repeat(
        [1, 0], [CANCERS * (train.folds - 1) // train.folds, (IMAGES - CANCERS) * (train.folds - 1) // train.folds]
    )
    per_batch = positives_per_batch(labels, train.batch_size, config.data.positive_share, config.data.negatives)
    trained = len(epoch_order(labels, train.batch_size, per_batch, 0, 0, config.data.negatives))

    def rate(precision: str, devices: str) -> float:
        speed = GMAC_S["float32" if precision == "float32" else "half"] * (
            1 if model.backbone.startswith("convnext") else 0.5
        )
        return factor * speed * 1e9 / macs * (1 if devices == "one" else 2)

    rates = {"training": rate(train.precision, train.devices) / BACKWARD, "decoding": DECODED_S}
    rates["scoring"] = rate(config.infer.precision, config.infer.devices)
    measured: dict[str, float] = {}
    if project is not None:
        for counts in _prepared(config, project):
            measured["decoding"] = counts["images"] / counts["seconds"]
        for counts in _verdicts(project, "train"):
            speed = counts.get("speed") or {}
            if (speed.get("backbone"), speed.get("image")) == (
                model.backbone,
                [config.image.height, config.image.width],
            ):
                measured |= {name: float(speed[name]) for name in ("training", "scoring") if speed.get(name)}
    rates |= measured
    several = folds or train.folds
    return Expected(
        macs,
        trained,
        IMAGES // train.folds,
        rates["training"],
        rates["scoring"],
        rates["decoding"],
        several,
        train.epochs,
        tuple(sorted(measured)),
    )


def forecast(project: Path, given: Mapping[str, Mapping[str, str]]) -> str:
    """What the steps would take, a paragraph each; nothing is asked of Kaggle.

    Args:
        project: with kernels/, build/ and runs/.
        given: kernel → settings in the place of its own, as `--settings`.
    """
    scripts = {name: project / "kernels" / name / f"{name}.py" for name in ("prepare", "train", "infer")}
    told = {
        name: read_settings(fill_settings(path.read_text("utf-8"), given.get(name, {})))
        for name, path in scripts.items()
    }
    images, config = read_config(told["prepare"]).image, read_config(told["train"])
    infer = with_overrides(config, told["infer"].get("SET", "").split()).infer
    config, folds = replace(config, image=images, infer=infer), len(told["train"].get("FOLDS", "").split())
    parts = len(parts_of(told["prepare"], project))
    slow, here, fast = (expect(config, project, folds, factor) for factor in (0.5, 1.0, 2.0))
    limit_h = parse_duration(told["train"].get("TIME_LIMIT") or "11h30m") / 3600
    budget_h = float(told["train"].get("HOURS") or config.train.hours)
    how = {name: "measured" if name in here.known else "a guess" for name in ("decoding", "training", "scoring")}
    built = [path for path in sorted(project.glob("build/datasets/*")) if path.is_dir()]
    sizes = [sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6 for path in built]
    datasets = ", ".join(f"{path.name} {size:.1f} MB" for path, size in zip(built, sizes, strict=True))
    sessions = f"{math.ceil(min(here.train_h, budget_h or math.inf) / limit_h)} sessions of {limit_h:g} h"
    if budget_h:
        epochs = min(int(budget_h / here.folds / here.epoch_h), here.epochs)
        sessions += f"; the budget of {budget_h:g} h holds {epochs} epochs of each fold"
    lines = (
        f"upload   {datasets or 'nothing is built yet'}",
        f"prepare  {IMAGES:,} pictures of {images.height}x{images.width} in {parts} kernel{'s' * (parts > 1)} "
        "at a time",
        f"         {here.decode_rate:.1f} files a second ({how['decoding']}): "
        f"{here.decode_h / parts:.1f} h of CPU each, no quota",
        f"train    {config.model.backbone}, {here.macs / 1e9:.0f} GMAC a picture, {here.trained:,} pictures an epoch, "
        f"{here.folds} folds of {here.epochs} epochs",
        f"         {here.train_rate:.1f} pictures a second ({how['training']}): {here.epoch_h:.2f} h an epoch and "
        f"fold, {here.train_h:.0f} h of GPU quota ({fast.train_h:.0f} to {slow.train_h:.0f}) of {WEEK_H:g} a week",
        f"         {sessions}",
        "infer    minutes of GPU quota, on the visible test",
        f"scoring  {HIDDEN:,} pictures by {here.folds} networks, each {here.score_rate:.0f} a second ({how['scoring']})"
        f": {here.scoring_h:.1f} h ({fast.scoring_h:.1f} to {slow.scoring_h:.1f}) of 9, no quota",
    )
    return "\n".join(lines)


def _prepared(config: Config, project: Path) -> list[dict[str, Any]]:
    """What earlier runs of prepare counted, of pictures like these."""
    found = _verdicts(project, "prepare")
    return [row for row in found if row.get("fingerprint") == image_fingerprint(config.image) and row.get("images")]


def _verdicts(project: Path, kernel: str) -> list[dict[str, Any]]:
    """Counts of a kernel's runs that ended well, oldest first, with `seconds`."""
    rows = []
    paths = project.glob(f"runs/kaggle/*/v*/{VERDICT}")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        with suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(path.read_text(encoding="utf-8"))
            if said["ok"] and said["kernel"] == kernel:
                rows.append({**said["counts"], "seconds": 60 * float(said["minutes"])})
    return rows
