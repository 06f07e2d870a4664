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
from rsna_kit.config import DecodeConfig, InferConfig
from rsna_kit.runtime.clock import Clock, format_duration
from rsna_kit.runtime.errors import BundleError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import replacing
from rsna_kit.scoring.ledger import ScoreLedger
from rsna_kit.scoring.threshold import apply_threshold

if TYPE_CHECKING:
    from rsna_kit.imaging.outcome import Outcome
    from rsna_kit.models.bundle import Bundle
    from rsna_kit.models.ensemble import Ensemble

SAVE_EVERY_S = 60.0  # how often the scores so far are written
WRITE_RESERVE_S = 20.0  # what is kept of the time limit for the writing


def infer(
    where: Path | None, out: Path, bundle_paths: Sequence[Path], settings: InferConfig, events: Events, clock: Clock,
    decode: DecodeConfig | None = None, exact: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Score the test DICOMs of a competition.

    A valid `submission.csv` holds the prior before anything else happens (one that an earlier run left stays) and
    is only ever replaced by a better one. Decoding runs ahead in threads while the models score. An image that
    cannot be used goes to `failures.csv` and its breast is scored from the others, by the prior when there is none.
    When the clock runs out, what is left is scored by the prior.

    Args:
        where: folder with test.csv, sample_submission.csv and test_images/, None for Kaggle's mounts.
        out: folder for submission.csv, scores.csv, image_scores.csv and failures.csv.
        bundle_paths: bundles, or folders of bundles.
        settings: the infer section of the configuration.
        clock: its limit is honoured with `WRITE_RESERVE_S` and the time of one batch to spare; one image at least is
            scored. When decoding is too slow for it, JPEG 2000 is decoded coarser (`imaging.pace`), unless `exact`.
        decode: the decode section of the configuration.
        exact: decode every pixel, whatever the bundles were trained on.

    Returns:
        Counts and paths, ready for JSON; `ok` is False when more than `max_failure_share` of the images failed.
    """
    decode = decode or DecodeConfig()
    if decode.backend != "threads":
        raise UsageError(f"decode.backend: got {decode.backend!r}, infer decodes in threads of its own process")
    if decode.gpus != "none":  # TensorFlow would take all memory of a GPU that also decodes
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    from rsna_kit.imaging.pace import MOST_COARSER, Pace
    from rsna_kit.models.ensemble import Ensemble, common_image
    from rsna_kit.recipes.images import open_stream

    competition = find_competition(where)
    sample = None if competition.sample_submission is None else read_sample(competition.sample_submission)
    if sample is not None:  # before test.csv is read: a bad row there must not cost the submission
        _write_prior(out / "submission.csv", sample, settings.prior, events)
    test = read_test(competition.table("test.csv"))
    ids = expected_ids(test, sample)
    if sample is None:
        sample = pd.DataFrame({"prediction_id": ids})
        _write_prior(out / "submission.csv", sample, settings.prior, events)
    events.say(f"infer: {len(test)} images, {len(sample)} breasts")

    bundles = _open_bundles(bundle_paths)
    image = common_image(bundles)
    if exact and image.decode != "exact":
        events.say("--exact: every pixel is decoded, though the bundles were trained on reduced JPEG 2000")
        image = dataclasses.replace(image, decode="exact")
    threshold = float(np.mean([bundle.threshold for bundle in bundles if bundle.threshold is not None]))
    identity = {
        "bundles": [bundle.metadata["sha256"]["model.weights.h5"] for bundle in bundles],
        "images": _fingerprint(test),
        "decode": image.decode,
    }
    ledger = ScoreLedger(out, identity)
    left = test[[not ledger.done(image_id) for image_id in test["image_id"]]]
    if len(left) < len(test):
        events.say(f"resuming: {len(test) - len(left)} images are done")

    ensemble = Ensemble(bundles, settings.batch_size)
    stop, most = Clock(clock.remaining_s() - WRITE_RESERVE_S), MOST_COARSER if image.decode == "reduced" else 0
    outcomes = open_stream(list(competition.files("test", left)), image, decode, events, stop)
    pace = Pace(stop, len(left), 0.0, lambda line: events.say(line, kind="coarser"), most)
    saved = begun = clock.elapsed_s()
    with outcomes:
        with events.progress(len(left), "infer") as progress:
            while batch := list(islice(outcomes, settings.batch_size)):
                _score_batch(batch, ensemble, ledger)
                for outcome in batch:
                    progress.advance(kind=outcome.worker)
                outcomes.coarser = pace.update(progress.done, outcomes.waited_s)
                if stop.remaining_s() < clock.elapsed_s() - begun:  # the next batch takes as long
                    break
                begun = clock.elapsed_s()
                if clock.elapsed_s() - saved > SAVE_EVERY_S:
                    saved = clock.elapsed_s()
                    _write_results(out, test, sample, ledger, settings.prior, threshold)
        # Before the stream is closed, which waits for the files that are being decoded.
        breasts = _write_results(out, test, sample, ledger, settings.prior, threshold)
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
        "coarser": pace.coarser,
        "breasts": len(breasts),
        "breasts_without_image": int((breasts["images"] == 0).sum()),
        "called_positive": int(breasts["cancer"].sum()),
        "threshold": threshold,
        "bundles": [str(bundle.path) for bundle in bundles],
        "minutes": round(clock.elapsed_s() / 60, 2),
    }


def _write_prior(path: Path, sample: pd.DataFrame, prior: float, events: Events) -> None:
    """The first submission: the prior, unless an earlier run left one that would score."""
    try:
        check_submission(pd.read_csv(path, dtype={"prediction_id": str}), sample)
        events.say(f"{path} stands from an earlier run")
    except (OSError, ValueError):
        write_submission(prior_submission(sample, prior), sample, path)
        events.say(f"{path} holds the prior")


def _open_bundles(paths: Sequence[Path]) -> list[Bundle]:
    """Every bundle at or below the given folders, checked."""
    from rsna_kit.models.bundle import open_bundle

    folders = [folder for path in paths for folder in find_inputs("metadata.json", path)]
    if not folders:
        given = ", ".join(map(str, paths)) or "none"
        raise BundleError(f"no bundle (a folder with metadata.json) found in: {given}. Train first: rsna-kit train")
    opened = [open_bundle(folder) for folder in folders]
    # Weights that are given twice, as one folder or as two copies, count once.
    bundles = list({bundle.metadata["sha256"]["model.weights.h5"]: bundle for bundle in opened}.values())
    without = [str(bundle.path) for bundle in bundles if bundle.threshold is None]
    if without:
        raise BundleError(f"no threshold in {', '.join(without)}: the training run has not ended. Run it again.")
    return bundles


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
    out: Path, test: pd.DataFrame, sample: pd.DataFrame, ledger: ScoreLedger, prior: float, threshold: float
) -> pd.DataFrame:
    """Save the ledger, scores.csv (probabilities) and submission.csv (0 or 1, best for pF1).

    A breast without a scored image has the prior as its score and is called negative whatever the threshold.
    """
    ledger.save(test["image_id"])
    scores = test["image_id"].map(ledger.scores).groupby(test["prediction_id"])
    breasts = pd.DataFrame({"score": scores.mean(), "images": scores.count()}).reindex(sample["prediction_id"])
    breasts["score"] = breasts["score"].fillna(prior)
    breasts = breasts.rename_axis("prediction_id").reset_index()
    with replacing(out / "scores.csv") as temporary:
        breasts.to_csv(temporary, index=False)
    breasts["cancer"] = apply_threshold(breasts, threshold)["cancer"].where(breasts["images"] > 0, 0)
    write_submission(breasts, sample, out / "submission.csv")
    return breasts
