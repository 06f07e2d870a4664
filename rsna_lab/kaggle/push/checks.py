"""What is asked before anything is sent, so that nothing ends after hours, or after an upload, for want of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rsna_kit.competition.paths import SLUG
from rsna_kit.runtime.errors import RsnaKitError, UsageError
from rsna_lab.kaggle.metadata import (
    KERNEL_FILE,
    MetadataError,
    dataset_problems,
    filled,
    is_true,
    kernel_problems,
    read_metadata,
)
from rsna_lab.kaggle.push import models, staging, submissions, uploads
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.choices import KERNELS, Choices
from rsna_lab.kaggle.push.errors import KaggleError, RefusedError
from rsna_lab.kaggle.push.project import (
    WEIGHTS,
    all_folders,
    build_command,
    kernel_folder,
    latest_run,
    look,
    reference_of,
)


def check_folders(folders: Iterable[Path], public: bool = False) -> None:
    """Check kernels and datasets without asking Kaggle.

    Raises:
        MetadataError: with every problem of every folder.
        UsageError: a folder that is not there.
    """
    wrong = []
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder. Expected one in kernels/, datasets/ or build/datasets/")
        is_kernel = (folder / KERNEL_FILE).is_file()
        problems = kernel_problems(folder, public) if is_kernel else dataset_problems(folder)
        wrong += [f"{folder}: {problem}" for problem in problems]
    if wrong:
        raise MetadataError(wrong)


def check_here(account: Account, choices: Choices) -> None:
    """Every folder, every setting and every option, without asking Kaggle.

    Raises:
        RsnaKitError: what is wrong.
    """
    check_folders(all_folders(account.project), account.public)
    path = account.project / "kernels" / "infer" / KERNEL_FILE
    if "submit" not in choices.skip and is_true(read_metadata(path).get("enable_internet"), default=True):
        raise MetadataError(
            [f"{path}: enable_internet is not false, and Kaggle scores no kernel that has the internet"]
        )
    for name in KERNELS:
        if name not in choices.skip:
            staging.stage(account, choices, name)


def check_there(account: Account, choices: Choices) -> None:
    """What steps that are left out should have left on Kaggle, and what is to be attached.

    Raises:
        RsnaKitError: what is missing, and how to make it.
    """
    skip = choices.skip
    for name in KERNELS:
        if name not in skip:
            check_attached(account, choices, name)
    if "prepare" in skip and "train" not in skip and not _was_pushed(account, "prepare"):
        raise RsnaKitError(
            f"train reads the output of {reference_of(account, 'prepare')}, and this account has none.\n"
            "  What to do: leave out --skip prepare"
        )
    needs_training = "weights" not in skip or ("infer" not in skip and choices.weights == "output")
    if "train" in skip and needs_training and not _was_pushed(account, "train"):
        raise RsnaKitError(
            "no training was pushed from here, so there are no bundles to bring to infer.\n"
            f"  What to do: leave out --skip train; or, with bundles of your own, {build_command(WEIGHTS)}, "
            f"scripts/push upload {WEIGHTS}, then --skip weights, too"
        )
    if "weights" in skip and "infer" not in skip:
        _check_weights(account, choices)
    if "infer" in skip and "submit" not in skip and not latest_run(account, "infer").version:
        raise UsageError(
            "no infer was pushed from here that could be submitted. Leave out --skip infer, or name a version: "
            "scripts/push submit infer --version N"
        )


def check_attached(account: Account, choices: Choices, kernel: str) -> None:
    """Whether Kaggle has what --attach names.

    Raises:
        KaggleError: it has not, or not for this account.
    """
    advice = "Check the name, and that this account may use it"
    for key, sources in filled(dict(choices.attached.get(kernel, {})), account.owner).items():
        for source in sources:
            if key == "model_sources":
                variation, _, number = source.rpartition("/")
                newest = models.newest_version(account, variation)
                there = number.isdigit() and 0 < int(number) <= newest
                advice = f"Its newest version is {newest}" if newest else advice
            else:
                owner, slug = source.split("/")[:2]
                there = (
                    account.kaggle.find("datasets/list_dataset_files", ownerSlug=owner, datasetSlug=slug) is not None
                )
            if not there:
                own = build_command(slug) if key != "model_sources" and owner == account.owner else ""
                raise KaggleError(
                    f"--attach {source}: Kaggle has no such source for this account. Nothing was pushed.",
                    advice=f"{own}, then scripts/push upload {slug}" if own else advice,
                )


def _check_weights(account: Account, choices: Choices) -> None:
    """Whether the bundles that infer is to read are there already."""
    dataset = f"{account.owner}/{WEIGHTS}"
    metadata = filled(read_metadata(kernel_folder(account.project, "infer") / KERNEL_FILE), account.owner)
    if choices.weights == "model":
        models.newest(account)
    elif (
        choices.weights == "dataset"
        and dataset in metadata.get("dataset_sources", [])
        and not uploads.find(account, dataset, private=False)
    ):
        raise RsnaKitError(
            f"infer reads the dataset {dataset}, which Kaggle does not have.\n"
            f"  What to do: {build_command(WEIGHTS)}, scripts/push upload {WEIGHTS}, then this again"
        )


def _was_pushed(account: Account, kernel: str) -> bool:
    """From here, or from elsewhere with this account."""
    run = latest_run(account, kernel)
    return bool(run.version or look(account, run))


def ask_first(account: Account, choices: Choices, names: Sequence[str], submits: bool) -> None:
    """One minute of questions: rights, the competition's rules, GPU hours and submissions left.

    What Kaggle's interface does not carry is not asked: whether the account may use an accelerator (the version that is
    pushed says what it got), whether its phone is verified, whether a token may write.

    Args:
        account: who asks.
        choices: what is to be done.
        names: kernels that will be pushed.
        submits: whether a submission will be made.

    Raises:
        KaggleError: something of it would end what is to come.
    """
    data = [read_metadata(kernel_folder(account.project, name) / KERNEL_FILE) for name in names]
    for call, group in (("kernels/list_kernels", "PROFILE"), ("datasets/list_datasets", "DATASET_SELECTION_GROUP_MY")):
        try:
            account.kaggle.ask(call, group=group, **({"pageSize": 1} if group == "PROFILE" else {}))
        except RefusedError as error:
            raise KaggleError(
                f"This account's {call.split('_')[1]} cannot be looked at.", error.said, error.advice
            ) from None
    if submits or any(SLUG in value.get("competition_sources", []) for value in data):
        competition = account.kaggle.find("competitions/get_competition", competitionName=SLUG) or {}
        files = {"competitionName": SLUG, "pageSize": 1}  # which nobody sees who has not accepted the rules
        if not competition.get("userHasEntered") and not account.kaggle.find("competitions/list_data_files", **files):
            raise KaggleError(
                f"This account has not joined {SLUG}.",
                advice=f"Accept the competition's rules with this account: https://www.kaggle.com/competitions/{SLUG}/rules",
            )
        if submits and competition.get("submissionsDisabled"):
            raise KaggleError(f"{SLUG} takes no submissions.", advice="Leave out the last step: --skip submit")
    if any(is_true(value.get("enable_gpu")) for value in data):
        left, total, fresh = gpu_hours(account)
        account.events.say(f"GPU quota: {left:.1f} of {total:.1f} hours left, new ones at {fresh}")
        if total and left <= 0:
            raise KaggleError(
                "This week's GPU hours are spent.", advice=f"Run the same command again after {fresh} (UTC)."
            )
    if submits:
        made, left_now = submissions.left_today(account)
        account.events.say(
            f"submissions: {made} today, {left_now} left" if made or left_now else "submissions: none so far"
        )
        if made and not left_now and "train" in choices.skip:  # a training may end after midnight
            raise KaggleError(
                f"No submission is left today, {made} were made.",
                advice="It ends at 00:00 UTC. Run this again then, or leave out the last step: --skip submit",
            )


def gpu_hours(account: Account) -> tuple[float, float, str]:
    """Hours left and in all of this week's GPU quota, and when new ones come (UTC)."""
    quota = account.kaggle.ask("kernels/get_accelerator_quota_statistics")
    gpu = quota.get("gpuQuota") or {}
    total = float(gpu.get("totalTimeAllowed") or 0) / 3600
    return total - float(gpu.get("timeUsed") or 0) / 3600, total, str(quota.get("quotaRefreshTime") or "")[:16]
