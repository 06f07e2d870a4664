"""A folder of weights → a version of a Kaggle Model, which cannot be changed any more and is named by its number."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rsna_lab.kaggle.metadata import MODEL_FILE, VARIATION_FILE, filled, read_metadata
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.api import LOOKS
from rsna_lab.kaggle.push.errors import KaggleError, UnreachableError
from rsna_lab.kaggle.push.project import WEIGHTS
from rsna_lab.kaggle.push.uploads import pack, send_files
from rsna_lab.kaggle.push.waiting import Waiting


def variation(account: Account) -> str:
    """owner/model/framework/variation of the model that bundles travel as, as the project names it."""
    return _variation(filled(read_metadata(account.project / "datasets" / WEIGHTS / VARIATION_FILE), account.owner))


def newest_version(account: Account, reference: str) -> int:
    """The newest version of a variation of a model, 0 when there is none."""
    return int((account.kaggle.find("models/get_model_instance", **_names(reference)) or {}).get("versionNumber") or 0)


def newest(account: Account) -> str:
    """The newest version that is published of that model.

    Raises:
        KaggleError: there is none.
    """
    reference = variation(account)
    if not (version := newest_version(account, reference)):
        raise KaggleError(
            f"Kaggle has no version of the model {reference}.",
            advice="Leave out --skip weights: that step publishes one.",
        )
    return f"{reference}/{version}"


def publish(account: Account, folder: Path) -> str:
    """Upload a folder as a version of a model, unless it is there already; a version cannot be changed any more.

    Args:
        account: its owner.
        folder: a built dataset with model-metadata.json and model-instance-metadata.json.

    Returns:
        owner/model/framework/variation/version, as `model_sources` wants it.

    Raises:
        KaggleError: refused, not ready in time, or not private.
    """
    contents = pack(account, folder, VARIATION_FILE)
    data, reference = contents.metadata, _variation(contents.metadata)
    _make_model(account, filled(read_metadata(folder / MODEL_FILE), account.owner))
    before = newest_version(account, reference)
    known = account.ledger.last("model", model=reference)
    if before and not account.again and known.get("digest") == contents.digest and known.get("version") == before:
        account.events.say(f"{reference}: version {before} is there already, with the same files")
        return f"{reference}/{before}"
    names, what = _names(reference), f"The upload of {reference}"
    body: dict[str, Any] = {"files": send_files(account, contents, "MODEL")}
    lost: KaggleError | None = None
    try:
        if before:
            body["versionNotes"] = f"files {contents.digest[:12]}"
            account.kaggle.change("models/create_model_instance_version", what, **names, body=body)
        else:
            body |= {key: value for key, value in data.items() if value and key not in ("ownerSlug", "modelSlug")}
            names = {key: names[key] for key in ("ownerSlug", "modelSlug")}
            account.kaggle.change("models/create_model_instance", what, **names, body=body)
    except UnreachableError as error:  # it may have been carried out all the same
        lost = error
    waiting = Waiting(account.events, f"{reference}: waiting for version {before + 1}", account.limit_s)
    looks = 0
    while (version := newest_version(account, reference)) <= before:
        looks += 1
        if lost and looks > LOOKS:
            raise lost
        if not version and looks > 5 * LOOKS:
            raise KaggleError(
                f"{reference}: Kaggle does not show it to this account.",
                advice=f"Look at https://www.kaggle.com/models/{contents.reference}.",
            )
        waiting.look(f"at version {version}")
        time.sleep(account.poll_s)
    waiting.close()
    account.ledger.add(
        "model",
        model=reference,
        version=version,
        digest=contents.digest,
        files=len(contents.sizes),
        bytes=contents.size,
    )
    account.events.say(f"{reference}: version {version} is ready, {contents.size / 1e6:.1f} MB")
    return f"{reference}/{version}"


def _make_model(account: Account, data: dict[str, Any]) -> None:
    """The model that variations belong to, private unless told otherwise."""
    name, look = f"{data['ownerSlug']}/{data['slug']}", {"ownerSlug": data["ownerSlug"], "modelSlug": data["slug"]}
    model = account.kaggle.find("models/get_model", **look)
    if model is None:
        body = {**{key: value for key, value in data.items() if value}, "isPrivate": not account.public}
        account.kaggle.change("models/create_model", f"The making of the model {name}", **body)
        model = account.kaggle.ask("models/get_model", **look)
    if not model.get("isPrivate") and not account.public:
        raise KaggleError(
            f"The model {name} can be seen by everybody.",
            "isPrivate is false",
            f"Make it private at https://www.kaggle.com/models/{name}/settings, or say --public if that is meant.",
        )


def _variation(data: dict[str, Any]) -> str:
    return "/".join(data[key] for key in ("ownerSlug", "modelSlug", "framework", "instanceSlug"))


def _names(reference: str) -> dict[str, str]:
    return dict(zip(("ownerSlug", "modelSlug", "framework", "instanceSlug"), reference.split("/"), strict=True))
