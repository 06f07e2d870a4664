"""What a journey needs before it begins, so that it does not end after hours, or after an upload, for want of it."""

from __future__ import annotations

from rsna_kit.runtime.errors import RsnaKitError, UsageError
from rsna_lab.kaggle.metadata import filled
from rsna_lab.kaggle.push import models, staging, uploads
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.advice import KaggleError
from rsna_lab.kaggle.push.building import build_command
from rsna_lab.kaggle.push.journey import (
    WEIGHTS,
    Journey,
    check_folders,
    check_offline,
    folders_of,
    latest_run,
    reference_of,
)
from rsna_lab.kaggle.push.names import kernel_folder
from rsna_lab.kaggle.push.wishes import KERNELS


def check_here(account: Account, journey: Journey) -> None:
    """Every folder, every setting and every option, without asking Kaggle.

    Raises:
        RsnaKitError: what is wrong.
    """
    check_folders(folders_of(account.project), account.public)
    check_offline(account.project, journey)
    for name in KERNELS:
        if name not in journey.skip:
            staging.stage(account, kernel_folder(account.project, name), journey.for_kernel(name))


def check_there(account: Account, journey: Journey) -> None:
    """What steps that are left out should have left on Kaggle, and what is to be attached.

    Raises:
        RsnaKitError: what is missing, and how to make it.
    """
    for name in KERNELS:
        if name not in journey.skip:
            check_attached(account, journey, name)
    if "prepare" in journey.skip and "train" not in journey.skip and not _was_pushed(account, "prepare"):
        raise RsnaKitError(
            f"train reads the output of {reference_of(account, 'prepare')}, and this account has none.\n"
            "  What to do: leave out --skip prepare"
        )
    needs_training = "weights" not in journey.skip or ("infer" not in journey.skip and journey.weights == "output")
    if "train" in journey.skip and needs_training and not _was_pushed(account, "train"):
        raise RsnaKitError(
            "no training was pushed from here, so there are no bundles to bring to infer.\n"
            f"  What to do: leave out --skip train; or, with bundles of your own, {build_command(WEIGHTS)}, "
            f"scripts/push upload {WEIGHTS}, then --skip weights, too"
        )
    if "weights" in journey.skip and "infer" not in journey.skip:
        _check_weights(account, journey)
    if "infer" in journey.skip and "submit" not in journey.skip and not latest_run(account, "infer").version:
        raise UsageError(
            "no infer was pushed from here that could be submitted. Leave out --skip infer, or name a version: "
            "scripts/push submit infer --version N"
        )


def check_attached(account: Account, journey: Journey, kernel: str) -> None:
    """Whether Kaggle has what --attach names.

    Raises:
        KaggleError: it has not, or not for this account.
    """
    for key, sources in filled(journey.attached.get(kernel, {}), account.owner).items():
        for source in sources:
            _check_model(account, source) if key == "model_sources" else _check_dataset(account, source)


def _check_dataset(account: Account, source: str) -> None:
    owner, slug = source.split("/")
    if owner == account.owner:
        if uploads.status(account, source) is None:
            folder = account.project / "build" / "datasets" / slug
            first = "" if folder.is_dir() else f"{build_command(slug)}, then "
            _missing(source, f"Upload it first: {first}scripts/push upload {slug}")
    elif account.program.ask("datasets", "files", source, *uploads.PAGE).absent:
        _missing(source, "Check the name, and that this account may see it")


def _check_model(account: Account, source: str) -> None:
    variation, _, number = source.rpartition("/")
    newest = models.newest_version(account, variation)
    if not number.isdigit() or not 0 < int(number) <= newest:
        there = f"Its newest version is {newest}" if newest else "Check the name, and that this account may use it"
        _missing(source, there)


def _missing(source: str, advice: str) -> None:
    raise KaggleError(f"--attach {source}: Kaggle has no such source for this account. Nothing was pushed.", "", advice)


def _check_weights(account: Account, journey: Journey) -> None:
    """Whether the bundles that infer is to read are there already."""
    dataset = f"{account.owner}/{WEIGHTS}"
    if journey.weights == "model":
        models.newest(account)
    elif journey.weights == "dataset" and _reads(account, dataset) and uploads.status(account, dataset) is None:
        raise RsnaKitError(
            f"infer reads the dataset {dataset}, which Kaggle does not have.\n"
            f"  What to do: {build_command(WEIGHTS)}, scripts/push upload {WEIGHTS}, then this again"
        )


def _reads(account: Account, dataset: str) -> bool:
    return dataset in staging.sources_of(account, kernel_folder(account.project, "infer"), ("dataset_sources",))


def _was_pushed(account: Account, kernel: str) -> bool:
    """From here, or from elsewhere with this account."""
    run = latest_run(account, kernel)
    return bool(run.version) or not account.program.ask("kernels", "status", run.reference).absent
