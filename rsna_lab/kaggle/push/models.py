"""A folder of weights → a version of a Kaggle Model, which cannot be changed any more and is named by its number."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rsna_kit.runtime.files import write_json
from rsna_lab.kaggle.metadata import MODEL_FILE, VARIATION_FILE, MetadataError, dataset_problems, filled, read_metadata
from rsna_lab.kaggle.push import judge, uploads
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.advice import KaggleError
from rsna_lab.kaggle.push.journey import WEIGHTS
from rsna_lab.kaggle.push.waiting import Waiting


def publish(account: Account, folder: Path) -> str:
    """Upload a folder as a version of a model, unless it is there already.

    Args:
        account: its owner.
        folder: a built dataset with model-metadata.json and model-instance-metadata.json.

    Returns:
        owner/model/framework/variation/version, as `model_sources` wants it.

    Raises:
        KaggleError: refused, not ready in time, or not private.
    """
    if problems := dataset_problems(folder):
        raise MetadataError([f"{folder}: {problem}" for problem in problems])
    data = filled(read_metadata(folder / VARIATION_FILE), account.owner)
    _make_model(account, filled(read_metadata(folder / MODEL_FILE), account.owner))
    reference = _reference(data)
    parcel = uploads.wrap(account, folder, f"{data['ownerSlug']}/{data['modelSlug']}", {VARIATION_FILE: data})
    before = newest_version(account, reference)
    known = account.ledger.last("model", model=reference) or {}
    if before and not account.again and known.get("digest") == parcel.digest and known.get("version") == before:
        account.events.say(f"{reference}: version {before} is there already, with the same files")
        return f"{reference}/{before}"
    words = ["models", "variations", *(["versions"] if before else []), "create"]
    words += [reference, "-n", f"files {parcel.digest[:12]}"] if before else []
    answer = uploads.call_with_progress(account, [*words, "-p", str(parcel.folder), "-r", "zip"], parcel)
    judge.created(answer, f"The upload of {reference}")
    waiting = Waiting(account.events, f"{reference}: waiting for version {before + 1}", account.limit_s)
    while (version := newest_version(account, reference)) <= before:
        waiting.look(f"at version {version}")
        time.sleep(account.poll_s)
    waiting.close()
    account.ledger.add("model", model=reference, version=version, digest=parcel.digest, files=len(parcel.sizes),
                       bytes=parcel.size)  # fmt: skip
    account.events.say(f"{reference}: version {version} is ready, {parcel.size / 1e6:.1f} MB")
    return f"{reference}/{version}"


def newest(account: Account) -> str:
    """The newest version that is published of the model that bundles travel as.

    Raises:
        KaggleError: there is none.
    """
    reference = variation(account)
    if not (version := newest_version(account, reference)):
        raise KaggleError(
            f"Kaggle has no version of the model {reference}.",
            "",
            "Leave out --skip weights: that step publishes one.",
        )
    return f"{reference}/{version}"


def variation(account: Account) -> str:
    """owner/model/framework/variation of that model, as the project names it."""
    folder = account.project / "datasets" / WEIGHTS
    data = filled(read_metadata(folder / VARIATION_FILE), account.owner)
    return _reference(data)


def _reference(data: dict[str, Any]) -> str:
    return "/".join(data[key] for key in ("ownerSlug", "modelSlug", "framework", "instanceSlug"))


def _make_model(account: Account, data: dict[str, Any]) -> None:
    """The model that variations belong to, private unless told otherwise."""
    name = f"{data['ownerSlug']}/{data['slug']}"
    answer = account.program.ask("models", "get", name)
    if answer.absent:
        folder = account.staging / "models" / data["slug"]
        write_json(folder / MODEL_FILE, {**data, "isPrivate": not account.public})
        made = account.program.call("models", "create", "-p", folder)
        judge.created(made, f"The making of the model {name}")
        answer = account.program.ask("models", "get", name)
    if not judge.as_json(judge.check(answer, f"The look at {name}"), name).get("isPrivate") and not account.public:
        raise KaggleError(
            f"The model {name} can be seen by everybody.",
            "isPrivate is false",
            f"Make it private at https://www.kaggle.com/models/{name}/settings, or say --public if that is meant.",
        )


def newest_version(account: Account, reference: str) -> int:
    """The newest version of a variation, 0 when there is none."""
    answer = account.program.ask("models", "variations", "get", reference)
    if answer.absent:
        return 0
    return int(judge.as_json(judge.check(answer, f"The look at {reference}"), reference).get("versionNumber") or 0)
