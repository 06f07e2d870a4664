"""What is asked before anything is sent, so that nothing ends after hours, or after an upload, for want of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rsna_kit.competition.paths import SLUG
from rsna_kit.runtime.errors import RsnaKitError, UsageError
from rsna_lab.kaggle.metadata import KERNEL_FILE, MetadataError, check_folders, filled, is_true, read_metadata
from rsna_lab.kaggle.push import submissions, uploads
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.choices import KERNELS, Choices
from rsna_lab.kaggle.push.errors import KaggleError, RefusedError
from rsna_lab.kaggle.push.expected import parts
from rsna_lab.kaggle.push.kernels import stage
from rsna_lab.kaggle.push.project import WEIGHTS, all_folders, build_command, look, read_kernel_metadata


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
            for part in parts(account, choices, name):
                stage(account, choices, name, part=part)


def check_there(account: Account, choices: Choices) -> None:
    """What steps that are left out should have left on Kaggle, and what is to be attached.

    Raises:
        RsnaKitError: what is missing, and how to make it.
    """
    skip = choices.skip
    for name in KERNELS:
        if name not in skip:
            check_attached(account, choices, name)
    bring = f"{build_command(WEIGHTS)}, scripts/push upload {WEIGHTS}"

    def lacks(kernel: str) -> bool:
        return kernel in skip and not all(
            look(account, each).version for each in parts(account, choices, kernel).values()
        )

    if "train" not in skip and lacks("prepare"):
        raise RsnaKitError(
            f"train reads the output of {' and '.join(parts(account, choices, 'prepare').values())}, and this account "
            "has none of it.\n"
            "  What to do: leave out --skip prepare"
        )
    if "weights" not in skip and lacks("train"):
        raise RsnaKitError(
            "this account has no training on Kaggle, so there are no bundles to bring to infer.\n"
            f"  What to do: leave out --skip train; or, with bundles of your own, {bring}, then --skip weights, too"
        )
    dataset = f"{account.owner}/{WEIGHTS}"
    wanted = "weights" in skip and "infer" not in skip
    reads = wanted and dataset in read_kernel_metadata(account, "infer").get("dataset_sources", [])
    if reads and not uploads.find(account, dataset):
        raise RsnaKitError(
            f"infer reads the dataset {dataset}, which Kaggle does not have.\n  What to do: {bring}, then this again"
        )
    if "submit" not in skip and lacks("infer"):
        raise UsageError(
            "this account has no infer on Kaggle that could be submitted. Leave out --skip infer, or name a version: "
            "scripts/push submit infer --version N"
        )


def check_attached(account: Account, choices: Choices, kernel: str) -> None:
    """Whether Kaggle has what --attach names.

    Raises:
        KaggleError: it has not, or not for this account.
    """
    for source in filled(list(choices.attached.get(kernel, [])), account.owner):
        owner, slug = source.split("/")
        if account.kaggle.find("datasets/list_dataset_files", ownerSlug=owner, datasetSlug=slug) is None:
            own = f"{build_command(slug)}, then scripts/push upload {slug}"
            raise KaggleError(
                f"--attach {source}: Kaggle has no such source for this account. Nothing was pushed.",
                advice=own if owner == account.owner else "Check the name, and that this account may use it",
            )


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
    data = [read_kernel_metadata(account, name) for name in names]
    questions: dict[str, dict[str, Any]] = {
        "kernels/list_kernels": {"group": "PROFILE", "pageSize": 1},
        "datasets/list_datasets": {"group": "DATASET_SELECTION_GROUP_MY"},
    }
    for call, body in questions.items():
        try:
            account.kaggle.ask(call, **body)
        except RefusedError as error:
            what = f"This account's {call.split('_')[1]} cannot be looked at."
            raise KaggleError(what, error.said, error.advice) from None
    if submits or any(SLUG in value.get("competition_sources", []) for value in data):
        competition = account.kaggle.find("competitions/get_competition", competitionName=SLUG) or {}
        files = {"competitionName": SLUG, "pageSize": 1}  # which nobody sees who has not accepted the rules
        if not competition.get("userHasEntered") and not account.kaggle.find("competitions/list_data_files", **files):
            raise KaggleError(
                f"This account has not joined {SLUG}.",
                advice="Accept the competition's rules with this account: "
                f"https://www.kaggle.com/competitions/{SLUG}/rules",
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
        account.events.say(submissions.check_left(account, refuse="train" in choices.skip))  # else it ends another day


def gpu_hours(account: Account) -> tuple[float, float, str]:
    """Hours left and in all of this week's GPU quota, and when new ones come (UTC)."""
    quota = account.kaggle.ask("kernels/get_accelerator_quota_statistics")
    gpu = quota.get("gpuQuota") or {}
    total = float(gpu.get("totalTimeAllowed") or 0) / 3600
    return total - float(gpu.get("timeUsed") or 0) / 3600, total, str(quota.get("quotaRefreshTime") or "")[:16]
