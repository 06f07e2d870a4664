"""What the command line asks for: steps, and each kernel's settings and sources, looked at by the library beforehand.

The kernels read their settings with the same functions (`rsna_kit.session.kernel`). Whether a source exists on Kaggle,
`checks` asks.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rsna_kit.config import Config, preset, with_overrides
from rsna_kit.models.backbones import BACKBONES
from rsna_kit.models.members import MAMMOGRAPHY
from rsna_kit.models.starts import KAGGLE_MODEL
from rsna_kit.recipes.prepare import read_part
from rsna_kit.runtime.clock import parse_duration
from rsna_kit.runtime.errors import UsageError, did_you_mean
from rsna_kit.training.learner import check_names
from rsna_lab.kaggle.metadata import PLACEHOLDER

STEPS = ("build", "upload", "prepare", "train", "weights", "infer", "submit")
KERNELS = ("prepare", "train", "infer")
_FORMS = {"NAME=VALUE": r"[^=]+=.*", "[OWNER/]SLUG": r"[^/]+(/[^/]+)?"}
SHORTEST_S, SESSION_H = 300, 12.0  # Kaggle ends a session after 12 hours
SCORING_H = 9.0  # the competition's limit for a scoring run
_OURS = {"rsna-kit", "rsna-wheels", "rsna-kit-prepare", "rsna-kit-train"}  # sources that hold no such weights


@dataclass(frozen=True)
class Choices:
    """What the command line asks for.

    Args:
        skip: steps that are left out.
        accelerator: of kernels that ask for a GPU, instead of their own.
        image: docker image that is pinned, NAME@sha256:DIGEST.
        timeout_s: after which Kaggle is told to end a session.
        settings: name of a kernel → its settings.
        attached: name of a kernel → further datasets, owner/slug.
        partial: whether to go on with the folds that are there when the clock stopped the training.
        file_name: the output that is submitted.
    """

    skip: frozenset[str] = frozenset()
    accelerator: str | None = None
    image: str | None = None
    timeout_s: int | None = None
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    attached: Mapping[str, list[str]] = field(default_factory=dict)
    partial: bool = False
    file_name: str = "submission.csv"


def read_choices(options: argparse.Namespace, kernel: str | None = None) -> Choices:
    """What the options of scripts/push say of all steps, or of the one kernel that is pushed."""
    given = vars(options)
    timeout = given["timeout"]
    settings = by_kernel("--settings", "NAME=VALUE", given["settings"], kernel)
    more = by_kernel("--attach", "[OWNER/]SLUG", given["attach"], kernel)
    return Choices(
        skip=frozenset(given.get("skip", ())),
        accelerator=given["accelerator"],
        image=given["image"],
        timeout_s=round(session_seconds("--timeout", timeout)) if timeout else None,
        settings={name: dict(word.split("=", 1) for word in words) for name, words in settings.items()},
        attached={
            name: [own if "/" in own else f"{PLACEHOLDER}/{own}" for own in words] for name, words in more.items()
        },
        partial=given.get("partial", False),
        file_name=given.get("file", ""),
    )


def by_kernel(option: str, form: str, given: Sequence[Sequence[str]], kernel: str | None) -> dict[str, list[str]]:
    """Kernel → words, of all uses of --settings or --attach; without `kernel`, each begins with the name of one.

    Raises:
        UsageError: no such kernel, no word, or one of another form than NAME=VALUE or [OWNER/]SLUG.

    Example:
        >>> by_kernel("--settings", "NAME=VALUE", [["train", "PRESET=seed", "FOLDS=0 1"]], None)
        {'train': ['PRESET=seed', 'FOLDS=0 1']}
    """
    found: dict[str, list[str]] = {}
    for words in given:
        name, *rest = words if kernel is None else [kernel, *words]
        if kernel is None and name not in KERNELS:
            hint = did_you_mean(name, KERNELS)
            raise UsageError(f"{option} {name}: expected {', '.join(KERNELS)}, then {form}.{hint}")
        if not rest or not all(re.fullmatch(_FORMS[form], word, re.DOTALL) for word in rest):
            raise UsageError(f"{option} {' '.join(words)}: expected {form}")
        found.setdefault(name, []).extend(rest)
    return found


def session_seconds(what: str, text: str, most_h: float = SESSION_H) -> float:
    """How long a session may take, with its unit.

    Args:
        what: option or setting, for the message.
        text: such as 9h or 8h30m.
        most_h: the most hours that make sense.

    Raises:
        UsageError: a bare number, no duration, a few minutes only, or more than Kaggle gives.
    """
    if re.fullmatch(r"\d+(\.\d+)?", text.strip()):
        raise UsageError(f"{what} {text}: {text} what? Expected a unit: {text.strip()}h or {text.strip()}m")
    seconds = parse_duration(text)
    if not SHORTEST_S <= seconds <= most_h * 3600:
        raise UsageError(f"{what} {text}: expected {SHORTEST_S // 60}m to {most_h:g}h, what Kaggle gives at most")
    return seconds


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
        changes = [*settings.get("SET", "").split(), *(f"train.hours={h}" for h in settings.get("HOURS", "").split())]
        config = with_overrides(preset(settings.get("PRESET", "default")), changes)
        check_names(config)
        folds = settings.get("FOLDS", "")
        if bad := [word for word in folds.split() if not word.isdigit() or int(word) >= config.train.folds]:
            raise UsageError(
                f"FOLDS={folds}: got {bad[0]!r}, expected numbers from 0 to {config.train.folds - 1} with blanks "
                'between them, such as FOLDS="0 1" (train.folds says how many there are)'
            )
        if (wanted := settings.get("REQUIRE_GPU", "auto")) not in ("yes", "no", "auto"):
            raise UsageError(f"REQUIRE_GPU: got {wanted!r}, expected yes, no or auto")
        if limit := settings.get("TIME_LIMIT"):
            seconds = session_seconds("TIME_LIMIT", limit, SCORING_H if kernel == "infer" else SESSION_H)
            if config.train.hours * 3600 > seconds:
                raise UsageError(f"HOURS: a budget of {config.train.hours:g} h does not end before TIME_LIMIT={limit}")
            if timeout_s is not None and seconds > timeout_s:
                raise UsageError(
                    f"--timeout ends the session after {timeout_s / 3600:g}h, before it stops itself (TIME_LIMIT="
                    f"{limit}): its output would be lost. Give less TIME_LIMIT with --settings, or more --timeout"
                )
        if part := settings.get("PART"):
            read_part(part)
        if "WEIGHTS" in settings:
            _check_start(config, sources)
    except UsageError as error:
        raise UsageError(f"{kernel}: {error}") from None


def _check_start(config: Config, sources: Sequence[str]) -> None:
    """Starting weights that are in no wheel have to be attached."""
    model = config.model
    if model.weights == "mammography":
        if any(source.endswith(f"/{MAMMOGRAPHY}") for source in sources):
            return
        raise UsageError(
            f"model.weights=mammography: the dataset {MAMMOGRAPHY} is not attached. scripts/build {MAMMOGRAPHY}, "
            f"scripts/push upload {MAMMOGRAPHY}, then --attach train {MAMMOGRAPHY}"
        )
    stock = model.weights == "imagenet"
    if model.weights == "none" or (stock and not BACKBONES[model.backbone].stock):
        return
    models = [KAGGLE_MODEL.format(name) for name in BACKBONES]
    others = [source for source in sources if source not in models and source.split("/")[1:2]]
    if any(source.split("/")[1] not in _OURS for source in others):
        return
    if stock and KAGGLE_MODEL.format(model.backbone) in sources:
        return
    what = f"ImageNet weights of {model.backbone}" if stock else f"a network of your own with {model.backbone}"
    way = (
        "Build and upload them (datasets/imagenet-starts/README.md), then --attach train imagenet-starts; of "
        f"efficientnetv2_s the Kaggle Model {KAGGLE_MODEL.format('efficientnetv2_s')} (model_sources) will do"
        if stock
        else "Upload it as a dataset, then --attach train SLUG"
    )
    raise UsageError(
        f"it is to start from {what}, and nothing that is attached brings them. {way}; in `push train` without the "
        "word train. Or choose SET=model.backbone=efficientnet_lite0, whose weights are in rsna-wheels, or "
        "SET=model.weights=none"
    )
