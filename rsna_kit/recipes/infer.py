"""Test DICOMs → submission.csv. Resumes behind the images that are scored, and honours the clock."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rsna_kit.competition.paths import find_competition, find_inputs
from rsna_kit.competition.submission import check_submission, expected_ids, prior_submission, write_submission
from rsna_kit.competition.tables import read_sample, read_test
from rsna_kit.config import PRIOR, DecodeConfig, InferConfig
from rsna_kit.runtime.clock import Clock, format_duration
from rsna_kit.runtime.errors import BundleError, TableError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import sha256_file, write_csv
from rsna_kit.scoring.blend import weighted_breasts
from rsna_kit.scoring.calibration import Calibration
from rsna_kit.scoring.ledger import ScoreLedger
from rsna_kit.scoring.threshold import apply_threshold

if TYPE_CHECKING:
    from rsna_kit.imaging.outcome import Outcome
    from rsna_kit.models.ensemble import Ensemble, Part
    from rsna_kit.models.members import Members

SAVE_EVERY_S = 60.0  # how often the scores so far are written
SAVE_SOON_S = 20.0  # the same at first, and where an attempt before died
_GOLDEN = 0.618  # attempts begin at multiples of it, which never come together
WRITE_RESERVE_S = 20.0  # what is kept of the time limit for the writing


def infer(
    where: Path | None, out: Path, bundle_paths: Sequence[Path], settings: InferConfig, events: Events, clock: Clock,
    decode: DecodeConfig | None = None, exact: bool = False, attempt: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Score the test DICOMs of a competition.

    A valid `submission.csv` holds the prior before anything else happens (one that an earlier run left stays) and
    is only ever replaced by a better one. Decoding runs ahead in threads while the models score. An image that
    cannot be used goes to `failures.csv` and its breast is scored from the others, by the prior when there is none.
    When the clock runs out, what is left is scored by the prior; before that TTA, members or detail of the decoding
    are given up (`imaging.pace`), which is said and recorded.

    Args:
        where: folder with test.csv, sample_submission.csv and test_images/, None for Kaggle's mounts.
        out: folder for submission.csv, scores.csv, image_scores.csv, failures.csv and given_up.json. `scores.csv` has
            a column `probability` where the members share a calibration, or their list has one.
        bundle_paths: bundles or folders of bundles, which count alike, or a folder with an `ensemble.json` (from
            `blend`), which names its bundles, their weights, TTA and the threshold.
        settings: the infer section of the configuration; TTA is used when it or the list asks for it.
        clock: its limit is honoured with `WRITE_RESERVE_S` and the time of one batch to spare; one image at least is
            scored. With `exact`, decoding is never made coarser.
        decode: the decode section of the configuration.
        exact: decode every pixel, whatever the bundles were trained on.
        attempt: 2 and more where an image may have killed those before: the images come in another order, and what is
            scored is saved more often.

    Returns:
        Counts and paths, ready for JSON; `ok` is False when more than `max_failure_share` of the images failed.
        `coarser` and `given_up` say what the clock cost, in this run and in those that it resumes.
    """
    decode = decode or DecodeConfig()
    if decode.backend != "threads":
        raise UsageError(f"decode.backend: got {decode.backend!r}, infer decodes in threads of its own process")
    if decode.gpus != "none":  # TensorFlow would take all memory of a GPU that also decodes
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    from rsna_kit.imaging.pace import MOST_COARSER, Pace
    from rsna_kit.models.ensemble import Ensemble
    from rsna_kit.models.members import common_image
    from rsna_kit.recipes.images import open_stream

    competition = find_competition(where)
    sample = None if competition.sample_submission is None else read_sample(competition.sample_submission)
    if sample is not None:  # before test.csv is read: a bad row there must not cost the submission
        _write_prior(out / "submission.csv", sample, events)
    test = read_test(competition.table("test.csv"))
    ids = expected_ids(test, sample)
    if sample is None:
        sample = pd.DataFrame({"prediction_id": ids})
        _write_prior(out / "submission.csv", sample, events)
    events.say(f"infer: {len(test)} images, {len(sample)} breasts")

    chosen = open_members(bundle_paths, events)
    calibration = _calibration(chosen, events)
    bundles = [member.bundle for member in chosen.members]
    image = common_image(bundles)
    if exact and image.decode != "exact":
        events.say("--exact: every pixel is decoded, though the bundles were trained on reduced JPEG 2000")
        image = dataclasses.replace(image, decode="exact")
    tta = "flip" if "flip" in (settings.tta, chosen.tta) else "none"
    ensemble = Ensemble(chosen.members, settings.batch_size, tta, settings.runtime, events.say)
    identity = {
        "bundles": [bundle.metadata["sha256"]["model.weights.h5"] for bundle in bundles],
        "weights": [member.weight for member in chosen.members],
        "tta": tta,
        "images": _fingerprint(test),
        "decode": image.decode,
    }
    ledger = ScoreLedger(out, identity, ensemble.columns)
    left = test[[not ledger.done(image_id) for image_id in test["image_id"]]]
    left = _ordered(left, attempt)
    before: dict[str, Any] = {"coarser": 0, "given_up": []} | ledger.given_up
    done = len(test) - len(left)
    if done:
        events.say(f"resuming: {done} images are done")
    if before["coarser"] or before["given_up"]:
        events.say("the run before gave something up for want of time: given_up.json", kind="given_up")

    stop, most = Clock(clock.remaining_s() - WRITE_RESERVE_S), MOST_COARSER if image.decode == "reduced" else 0
    outcomes = open_stream(list(competition.files("test", left)), image, decode, events, stop)
    pace = Pace(stop, len(left), 0.0, lambda line: events.say(line, kind="given_up"), most, ensemble.lighten)

    def write() -> pd.DataFrame:
        now = [{**entry, "after_images": int(entry["after_images"]) + done} for entry in pace.lightened]
        coarser = max(before["coarser"], pace.coarsest)
        ledger.given_up = {"coarser": coarser, "given_up": [*before["given_up"], *now]}
        return _write_results(out, test, sample, ledger, ensemble.parts, chosen.threshold, calibration)

    save_every_s = SAVE_EVERY_S if attempt == 1 else min(SAVE_EVERY_S, SAVE_SOON_S)
    begun = clock.elapsed_s()
    saved = begun - save_every_s + min(save_every_s, SAVE_SOON_S)
    with outcomes:
        with events.progress(len(left), "infer") as progress:
            while batch := list(islice(outcomes, settings.batch_size)):
                _score_batch(batch, ensemble, ledger)
                for outcome in batch:
                    progress.advance(kind=outcome.worker)
                if progress.done <= settings.batch_size:
                    pace.begin(progress.done, outcomes.waited_s)
                outcomes.coarser = pace.update(progress.done, outcomes.waited_s)
                if stop.remaining_s() < clock.elapsed_s() - begun:  # the next batch takes as long
                    break
                begun = clock.elapsed_s()
                if clock.elapsed_s() - saved > save_every_s:
                    saved = clock.elapsed_s()
                    write()
        # Before the stream is closed, which waits for the files that are being decoded.
        breasts = write()
    for note in outcomes.notes:
        events.say(note)
    unscored = len(test) - len(ledger.scores) - len(ledger.failures)
    if unscored:
        events.say(f"out of time after {format_duration(clock.elapsed_s())}: {unscored} images left at the prior")
    if ledger.failures:
        events.say(f"{len(ledger.failures)} of {len(test)} images could not be used: {out / 'failures.csv'}")
    return {
        "ok": len(ledger.failures) <= settings.max_failure_share * len(test),
        "submission": str(out / "submission.csv"),
        "images": len(test),
        "scored": len(ledger.scores),
        "failed": len(ledger.failures),
        "out_of_time": unscored,
        **ledger.given_up,
        "breasts": len(breasts),
        "breasts_without_image": int((breasts["images"] == 0).sum()),
        "called_positive": int(breasts["cancer"].sum()),
        "threshold": chosen.threshold,
        "calibration": None if calibration is None else calibration.method,
        "bundles": [str(bundle.path) for bundle in bundles],
        "weights": [member.weight for member in chosen.members],
        "tta": tta,
        "minutes": round(clock.elapsed_s() / 60, 2),
    }


def _ordered(left: pd.DataFrame, attempt: int) -> pd.DataFrame:
    """The images of an attempt: every second one backwards, and from the third on from somewhere in between."""
    at = int(len(left) * (attempt * _GOLDEN % 1)) if attempt > 2 else 0
    turned = pd.concat([left.iloc[at:], left.iloc[:at]])
    return turned if attempt % 2 else turned[::-1]


def first_submission(where: Path | None, out: Path, events: Events) -> None:
    """Write a valid `submission.csv` of priors, for whatever comes before `infer` and may fail; arguments as there."""
    competition = find_competition(where)
    sample = read_sample(competition.table("sample_submission.csv"))
    _write_prior(out / "submission.csv", sample, events)


def _write_prior(path: Path, sample: pd.DataFrame, events: Events) -> None:
    """The first submission: the prior, unless an earlier run left one that would score."""
    try:
        check_submission(pd.read_csv(path, dtype={"prediction_id": str}), sample)
        events.say(f"{path} is valid and stays until there is a better one")
    except (OSError, ValueError):
        write_submission(prior_submission(sample, PRIOR), sample, path)
        events.say(f"{path} holds the prior")


def open_members(paths: Sequence[Path], events: Events) -> Members:
    """The members that an `ensemble.json` at or below the given folders lists, or else every bundle there.

    Args:
        paths: bundles, folders of bundles, folders with a list.
        events: told the weights of a list.

    Raises:
        BundleError: a folder without a bundle, several lists, a bundle beside a list that does not name it, or one that
            is not whole.
    """
    from rsna_kit.models.members import LIST, equal_members, open_list

    listing = {path: find_inputs(LIST, path) for path in paths}
    below = {path: find_inputs("metadata.json", path) for path in paths}
    lists = {sha256_file(folder / LIST): folder for found in listing.values() for folder in found}
    folders = [folder for found in below.values() for folder in found]
    empty = [str(path) for path in paths if not below[path] and not listing[path]]
    if empty or not paths:  # a run without one of those asked for would score, and nobody would notice
        raise BundleError(f"no bundle (a folder with metadata.json) found in: {', '.join(empty) or 'none'}. "
                          "Give folders that train or blend wrote.")  # fmt: skip
    if not lists:
        return equal_members(folders)
    if len(lists) > 1:
        raise BundleError(f"{len(lists)} lists found: {', '.join(str(f / LIST) for f in lists.values())}. Give one.")
    chosen = open_list(next(iter(lists.values())))
    listed = {sha256_file(member.bundle.path / "metadata.json") for member in chosen.members}
    strangers = [str(folder) for folder in folders if sha256_file(folder / "metadata.json") not in listed]
    if strangers:
        raise BundleError(
            f"{chosen.source} does not name {', '.join(strangers)}. Give the list alone, or bundles without a list."
        )
    for member in chosen.members:
        events.say(f"{member.weight:.3f} x {member.bundle.path}")
    return chosen


def _calibration(chosen: Members, events: Events) -> Calibration | None:
    """What makes the ensemble's scores probabilities. The submission does without, so nothing here ends the run."""
    if chosen.calibration is not None:
        try:
            return Calibration.from_dict(chosen.calibration)
        except TableError as error:
            events.say(f"scores.csv gets no column probability: {error}")
    elif chosen.source is None and any(member.bundle.calibration for member in chosen.members):
        events.say("scores.csv gets no column probability: the bundles differ in their calibration: blend them")
    return None


def _fingerprint(test: pd.DataFrame) -> str:
    """Which images the scores belong to."""
    return hashlib.sha256("\n".join(test["image_id"] + " " + test["prediction_id"]).encode()).hexdigest()[:12]


def _score_batch(batch: Sequence[Outcome], ensemble: Ensemble, ledger: ScoreLedger) -> None:
    good = {outcome.image_id: outcome.rendered.image for outcome in batch if outcome.rendered is not None}
    for outcome in batch:
        if outcome.rendered is None:
            ledger.fail(outcome.failure())
    if good:
        ledger.add(list(good), ensemble.score(np.stack(list(good.values()))[..., None]))


def _write_results(
    out: Path, test: pd.DataFrame, sample: pd.DataFrame, ledger: ScoreLedger, parts: Sequence[Part], threshold: float,
    calibration: Calibration | None,
) -> pd.DataFrame:  # fmt: skip
    """Save the ledger, submission.csv (0 or 1) and scores.csv (with probabilities, where there is a calibration).

    A breast without a scored image has the prior as its score and probability, and is called negative whatever the
    threshold.
    """
    ledger.save(test["image_id"])  # and at once what is made of it: nothing may come between the two
    breasts = weighted_breasts(ledger.table(test["image_id"]), test, parts)
    breasts = breasts.set_index("prediction_id").reindex(sample["prediction_id"]).reset_index()
    breasts = breasts.fillna({"score": PRIOR, "images": 0}).astype({"images": "int64"})
    called = breasts.assign(cancer=apply_threshold(breasts, threshold)["cancer"].where(breasts["images"] > 0, 0))
    write_submission(called, sample, out / "submission.csv")
    if calibration is not None:
        known = calibration.apply(breasts["score"])
        breasts.insert(2, "probability", np.where(breasts["images"] > 0, known, PRIOR))
    write_csv(out / "scores.csv", breasts)
    return called
