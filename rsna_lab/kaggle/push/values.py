"""A kernel's SETTINGS → what the library says of them here, before a session on Kaggle finds it out.

The kernels read their settings with the same functions (`rsna_kit.session.kernel`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rsna_kit.config import Config, with_overrides
from rsna_kit.data.augment import find_recipe
from rsna_kit.models.backbones import backbone
from rsna_kit.models.views import check_pooling
from rsna_kit.presets import preset
from rsna_kit.runtime.errors import UsageError
from rsna_kit.training.losses import find_loss
from rsna_lab.kaggle.push.wishes import SESSION_H, session_seconds

SCORING_H = 9.0  # the competition's limit for a scoring run
_OURS = {"rsna-kit", "rsna-wheels", "rsna-kit-prepare", "rsna-kit-train"}  # sources that hold no such weights


def check_settings(
    kernel: str, settings: Mapping[str, str], sources: Sequence[str] = (), timeout_s: float | None = None
) -> None:
    """Refuse what the run itself would refuse, hours later.

    Args:
        kernel: its folder's name.
        settings: its SETTINGS as they are pushed; names that this does not know are let pass.
        sources: everything that is attached, as owner/slug or longer.
        timeout_s: after which Kaggle is told to end the session.

    Raises:
        UsageError: which setting, what came and what was expected.
    """
    try:
        config = _config(settings)
        _check_folds(settings.get("FOLDS", ""), config)
        if (wanted := settings.get("REQUIRE_GPU", "auto")) not in ("yes", "no", "auto"):
            raise UsageError(f"REQUIRE_GPU: got {wanted!r}, expected yes, no or auto")
        if "TIME_LIMIT" in settings:
            most = SCORING_H if kernel == "infer" else SESSION_H
            _check_time(session_seconds("TIME_LIMIT", settings["TIME_LIMIT"], most), settings["TIME_LIMIT"], timeout_s)
        if "WEIGHTS" in settings:
            _check_start(config, sources)
    except UsageError as error:
        raise UsageError(f"{kernel}: {error}") from None


def _config(settings: Mapping[str, str]) -> Config:
    config = with_overrides(preset(settings.get("PRESET", "default")), settings.get("SET", "").split())
    backbone(config.model.backbone)
    check_pooling(config.model.view_pool)
    find_loss(config.train.loss)
    find_recipe(config.data.augment)
    return config


def _check_folds(text: str, config: Config) -> None:
    for word in text.split():
        if not word.isdigit() or int(word) >= config.train.folds:
            raise UsageError(
                f"FOLDS={text}: got {word!r}, expected numbers from 0 to {config.train.folds - 1} with blanks between "
                'them, such as FOLDS="0 1" (train.folds says how many there are)'
            )


def _check_time(limit_s: float, text: str, timeout_s: float | None) -> None:
    if timeout_s is not None and limit_s > timeout_s:
        raise UsageError(
            f"--timeout ends the session after {timeout_s / 3600:g}h, before it stops itself (TIME_LIMIT={text}): its "
            "output would be lost. Give less TIME_LIMIT with --settings, or more --timeout"
        )


def _check_start(config: Config, sources: Sequence[str]) -> None:
    """Starting weights that are in no wheel have to be attached."""
    model = config.model
    stock = model.weights == "imagenet"
    if model.weights == "none" or model.kind == "cvae" or (stock and not backbone(model.backbone).stock):
        return
    if any(source.split("/")[1:2] and source.split("/")[1] not in _OURS for source in sources):
        return
    what = f"ImageNet weights of {model.backbone}" if stock else f"a network of your own with {model.backbone}"
    way = (
        "Build and upload them (datasets/imagenet-starts/README.md), then --attach train imagenet-starts"
        if stock
        else "Upload it as a dataset, then --attach train SLUG"
    )
    raise UsageError(
        f"it is to start from {what}, and nothing that is attached brings them. {way}; in `push train` without the "
        "word train. Or choose SET=model.backbone=efficientnet_lite0, whose weights are in rsna-wheels, or "
        "SET=model.weights=none"
    )
