"""Bundles, or an ensemble.json that lists them ↔ who scores together: members with weights, TTA and one threshold.

An `ensemble.json` says all that a bundle list has to say: for each member its folder (relative to the file), the sha256
of its metadata.json (which holds the sha256 of its other files) and its weight; then TTA, the threshold, the
calibration of the blended scores, how these were chosen and what they scored out of fold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsna_kit.competition.paths import find_inputs
from rsna_kit.config import ImageConfig, image_fingerprint
from rsna_kit.models.bundle import METADATA, WEIGHTS, Bundle, is_score, open_bundle, read_object
from rsna_kit.runtime.errors import BundleError
from rsna_kit.runtime.files import sha256_file

LIST = "ensemble.json"
FORMAT_VERSION = 1
MAMMOGRAPHY = "mammography-start"  # the dataset whose networks have seen real mammograms
ABOUT_MAMMOGRAPHY = (
    "networks that learned from films of CBIS-DDSM (CC BY 3.0) to tell malignant from benign masses. They diagnose "
    "nobody: they have seen no digital mammogram, no healthy woman and no cancer without a mass"
)
_SHIPPED = Path(__file__).parents[2] / "datasets" / MAMMOGRAPHY  # in a checkout


@dataclass(frozen=True)
class Member:
    """A bundle and its share of the score."""

    bundle: Bundle
    weight: float


@dataclass(frozen=True)
class Members:
    """Who scores together. Weights are positive and add up to 1; `source` is the list they were read from, if any.

    `calibration` makes their scores probabilities (`rsna_kit.scoring.calibration`); None where they share none.
    """

    members: tuple[Member, ...]
    threshold: float
    tta: str = "none"
    source: Path | None = None
    calibration: Any = None


def common_image(bundles: Sequence[Bundle]) -> ImageConfig:
    """The image section that all bundles share.

    Raises:
        BundleError: two bundles were trained on different images; both are named.
    """
    first = bundles[0]
    for bundle in bundles[1:]:
        if image_fingerprint(bundle.config.image) != image_fingerprint(first.config.image):
            raise BundleError(
                f"{bundle.path} was trained on {bundle.config.image}, {first.path} on {first.config.image}: "
                "bundles scored together must share one image section. Run infer once for each and average."
            )
    return first.config.image


def equal_members(folders: Sequence[Path]) -> Members:
    """Bundles of equal weight, such as the folds of one training run; the threshold is the mean of theirs.

    Weights that are given twice, as one folder or as two copies, count once.

    Args:
        folders: at least one bundle.

    Raises:
        BundleError: a bundle is not whole (`open_bundle`), or has no threshold yet.
    """
    bundles = list({bundle.metadata["sha256"][WEIGHTS]: bundle for bundle in map(open_bundle, folders)}.values())
    thresholds = [bundle.threshold for bundle in bundles if bundle.threshold is not None]
    if len(thresholds) < len(bundles):
        without = ", ".join(str(bundle.path) for bundle in bundles if bundle.threshold is None)
        raise BundleError(f"no threshold in {without}: the training run has not ended. Run it again.")
    weight = 1 / len(bundles)
    common = bundles[0].calibration if all(b.calibration == bundles[0].calibration for b in bundles) else None
    threshold = sum(thresholds) / len(thresholds)
    return Members(tuple(Member(bundle, weight) for bundle in bundles), threshold, calibration=common)


def open_list(folder: Path) -> Members:
    """Read `folder/ensemble.json` and open every bundle that it names.

    Raises:
        BundleError: the list is missing, not JSON, of another format or has a value that is none; a bundle is missing,
            was changed since the list was written, or is damaged. Names the file and what to do.
    """
    path, again = folder / LIST, "Run rsna-kit blend again."
    content = read_object(path, "Make it with: rsna-kit blend")
    if content.get("format_version") != FORMAT_VERSION:
        version = content.get("format_version")
        raise BundleError(f"{path}: got format version {version}, expected {FORMAT_VERSION}. {again}")
    try:
        rows = [(str(row["bundle"]), row["weight"], row["sha256"][METADATA]) for row in content["members"]]
        tta, threshold = content["tta"], content["threshold"]
    except (KeyError, TypeError) as error:
        raise BundleError(f"{path}: not as blend writes it: {type(error).__name__} {error}. {again}") from error
    if not rows or tta not in ("none", "flip") or not all(map(is_score, (threshold, *(row[1] for row in rows)))):
        said = f"members {[row[:2] for row in rows]}, tta {tta!r}, threshold {threshold!r}"
        raise BundleError(f"{path}: got {said:.300}; expected bundles, weights and a threshold from 0 to 1. {again}")
    members, total = [], sum(weight for _, weight, _ in rows)
    for name, weight, sha256 in rows:
        metadata = folder / name / METADATA
        if not metadata.is_file() or sha256_file(metadata) != sha256:
            what = "has changed since: its sha256 is another" if metadata.is_file() else "is not there"
            raise BundleError(
                f"{path} names the bundle {name}, but {metadata} {what}. Copy the whole folder again, or run rsna-kit "
                "blend again."
            )
        members.append(Member(open_bundle(folder / name), weight / total))
    return Members(tuple(members), float(threshold), tta, path, content.get("calibration"))


def find_mammography(roots: Sequence[Path] = ()) -> Path:
    """The folder of the mammography start: one of `roots`, or below one by its name, else in this library's checkout.

    Raises:
        BundleError: it is nowhere.
    """
    below = ((folder, root) for root in roots for folder in find_inputs(LIST, root))
    found = [folder for folder, root in below if folder == root or folder.name == MAMMOGRAPHY]
    if not found and not (_SHIPPED / LIST).is_file():
        raise BundleError(
            f"the dataset {MAMMOGRAPHY} is not in {', '.join(map(str, (*roots, _SHIPPED)))}. A checkout of rsna-kit "
            "holds it: name its folder (--bundle to score, --weights to train), or attach it to the kernel."
        )
    return found[0] if found else _SHIPPED


def open_members(paths: Sequence[Path], say: Callable[[str], None]) -> Members:
    """The members that an `ensemble.json` at or below the given folders lists, or else every bundle there.

    Args:
        paths: bundles, folders of bundles, folders with a list.
        say: told the weights of a list.

    Raises:
        BundleError: a folder without a bundle, several lists, a bundle beside a list that does not name it, or one that
            is not whole.
    """
    listing = {path: find_inputs(LIST, path) for path in paths}
    below = {path: find_inputs(METADATA, path) for path in paths}
    empty = [str(path) for path in paths if not below[path] and not listing[path]]
    if empty or not paths:  # a run without one of those asked for would score, and nobody would notice
        places = ", ".join(empty) or "none"
        raise BundleError(
            f"no bundle (a folder with metadata.json) found in: {places}. Give folders that train or blend wrote."
        )
    lists = {sha256_file(folder / LIST): folder for found in listing.values() for folder in found}
    folders = [folder for found in below.values() for folder in found]
    if not lists:
        return equal_members(folders)
    if len(lists) > 1:
        raise BundleError(f"{len(lists)} lists found: {', '.join(str(f / LIST) for f in lists.values())}. Give one.")
    chosen = open_list(next(iter(lists.values())))
    listed = {sha256_file(member.bundle.path / METADATA) for member in chosen.members}
    if strangers := [str(folder) for folder in folders if sha256_file(folder / METADATA) not in listed]:
        raise BundleError(
            f"{chosen.source} does not name {', '.join(strangers)}. Give the list alone, or bundles without a list."
        )
    for member in chosen.members:
        say(f"{member.weight:.3f} x {member.bundle.path}")
    return chosen
