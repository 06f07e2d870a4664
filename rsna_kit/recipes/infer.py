"""Test DICOMs → submission.csv. Resumes behind the images that are scored, and honours the clock."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rsna_kit.competition.paths import Competition, find_competition
from rsna_kit.competition.submission import check_submission, expected_ids, prior_submission, write_submission
from rsna_kit.competition.tables import read_sample, read_test
from rsna_kit.config import PRIOR, DecodeConfig, InferConfig
from rsna_kit.runtime.clock import Clock, format_duration
from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_csv
from rsna_kit.scoring.breasts import Calibration, weighted_breasts
from rsna_kit.scoring.ledger import ScoreLedger

if TYPE_CHECKING:
    from rsna_kit.imaging.pace import Pace
    from rsna_kit.imaging.stream import Outcome
    from rsna_kit.models.members import Members

SAVE_EVERY_S = 60.0  # how often the scores so far are written
SAVE_SOON_S = 20.0  # the same at first, and where an attempt before died
_GOLDEN = 0.618  # attempts begin at multiples of it, which never come together
WRITE_RESERVE_S = 20.0  # what is kept of the time limit for the writing


def infer(
    where: Path | None,
    out: Path,
    bundle_paths: Sequence[Path],
    settings: InferConfig,
    events: Events,
    clock: Clock,
    decode: DecodeConfig | None = None,
    exact: bool = False,
    attempt: int = 1,
) -> dict[str, Any]:
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
    if attempt > 1:  # decoding on a GPU may be what killed those before
        decode = dataclasses.replace(decode, gpus="none")
    if decode.gpus != "none":  # TensorFlow would take all memory of a GPU that may also decode
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    competition = find_competition(where)
    test, sample = _read_tables(competition, out, events)
    events.say(f"infer: {len(test)} images, {len(sample)} breasts")
    scoring = _Scoring(out, (test, sample), bundle_paths, settings, exact, events)
    left = _ordered(test[[not scoring.ledger.done(image_id) for image_id in test["image_id"]]], attempt)
    if len(left) < len(test):
        events.say(f"resuming: {len(test) - len(left)} images are done")
    if scoring.before["coarser"] or scoring.before["given_up"]:
        events.say("the run before gave something up for want of time: given_up.json", kind="given_up")
    save_every_s = SAVE_EVERY_S if attempt == 1 else min(SAVE_EVERY_S, SAVE_SOON_S)
    files = list(competition.files("test", left))
    breasts, speed = _score_images(scoring, files, decode, save_every_s, clock, events)
    return _summary(scoring, breasts, settings, clock, events) | {"pictures_per_s": speed}


class _Scoring:
    """What a run scores, with which networks, and what it and an earlier run with the same ones have so far."""

    def __init__(
        self,
        out: Path,
        tables: tuple[pd.DataFrame, pd.DataFrame],
        bundle_paths: Sequence[Path],
        settings: InferConfig,
        exact: bool,
        events: Events,
    ) -> None:
        from rsna_kit.models.ensemble import Ensemble
        from rsna_kit.models.members import common_image, open_members

        self.out, (self.test, self.sample) = out, tables
        self.members = open_members(bundle_paths, events.say)
        self.image = common_image([member.bundle for member in self.members.members])
        if exact and self.image.decode != "exact":
            events.say("--exact: every pixel is decoded, though the bundles were trained on reduced JPEG 2000")
            self.image = dataclasses.replace(self.image, decode="exact")
        self.tta = "flip" if "flip" in (settings.tta, self.members.tta) else "none"
        how = (settings.runtime, settings.devices, settings.precision)
        self.ensemble = Ensemble(self.members.members, settings.batch_size, self.tta, *how, events.say)
        images = "\n".join(self.test["image_id"] + " " + self.test["prediction_id"])
        identity = {
            "bundles": [member.bundle.metadata["sha256"]["model.weights.h5"] for member in self.members.members],
            "weights": [member.weight for member in self.members.members],
            "tta": self.tta,
            "images": hashlib.sha256(images.encode()).hexdigest()[:12],
            "decode": self.image.decode,
        }
        self.ledger = ScoreLedger(out, identity, self.ensemble.columns)
        self.before: dict[str, Any] = {"coarser": 0, "given_up": []} | self.ledger.given_up  # by earlier runs
        self.calibration = _calibration(self.members, events)

    def batches(self, outcomes: Iterator[Outcome]) -> Iterator[tuple[list[Outcome], np.ndarray]]:
        """Outcomes, and the pictures of those that have one: uint8 (N, h, w, 1)."""
        while batch := list(islice(outcomes, self.ensemble.batch_size)):
            empty = np.empty((0, self.image.height, self.image.width), np.uint8)
            pictures = [outcome.rendered.image for outcome in batch if outcome.rendered is not None]
            yield batch, (np.stack(pictures) if pictures else empty)[..., None]

    def add(self, batch: Sequence[Outcome], scores: np.ndarray) -> None:
        """Keep the scores of a batch; what has no picture is a failure."""
        for outcome in batch:
            if outcome.rendered is None:
                self.ledger.fail(outcome.failure())
        self.ledger.add([outcome.image_id for outcome in batch if outcome.rendered is not None], scores)

    def write(self, pace: Pace, done: int) -> pd.DataFrame:
        """Save the ledger, submission.csv (0 or 1) and scores.csv (with probabilities, where there is a calibration).

        A breast without a scored image has the prior as its score and probability, and is called negative whatever the
        threshold. `done` images were scored by earlier runs.
        """
        now = [{**entry, "after_images": int(entry["after_images"]) + done} for entry in pace.lightened]
        coarser = max(self.before["coarser"], pace.coarsest)
        self.ledger.given_up = {"coarser": coarser, "given_up": [*self.before["given_up"], *now]}
        self.ledger.save(self.test["image_id"])  # and at once what is made of it: nothing may come between the two
        breasts = weighted_breasts(self.ledger.table(self.test["image_id"]), self.test, self.ensemble.parts)
        breasts = breasts.set_index("prediction_id").reindex(self.sample["prediction_id"]).reset_index()
        breasts = breasts.fillna({"score": PRIOR, "images": 0}).astype({"images": "int64"})
        positive = (breasts["score"] >= self.members.threshold) & (breasts["images"] > 0)
        called = breasts.assign(cancer=positive.astype("int8"))
        write_submission(called, self.sample, self.out / "submission.csv")
        if self.calibration is not None:
            known = self.calibration.apply(breasts["score"])
            breasts.insert(2, "probability", np.where(breasts["images"] > 0, known, PRIOR))
        write_csv(self.out / "scores.csv", breasts)
        return called


def _read_tables(competition: Competition, out: Path, events: Events) -> tuple[pd.DataFrame, pd.DataFrame]:
    """test.csv and the sample submission, which test.csv makes where there is none; the prior is written at once."""
    sample = None if competition.sample_submission is None else read_sample(competition.sample_submission)
    if sample is not None:  # before test.csv is read: a bad row there must not cost the submission
        _write_prior(out / "submission.csv", sample, events)
    test = read_test(competition.table("test.csv"))
    ids = expected_ids(test, sample)
    if sample is None:
        sample = pd.DataFrame({"prediction_id": ids})
        _write_prior(out / "submission.csv", sample, events)
    return test, sample


def _score_images(
    scoring: _Scoring,
    files: Sequence[tuple[str, Path]],
    decode: DecodeConfig,
    save_every_s: float,
    clock: Clock,
    events: Events,
) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
    """Decode and score until all is done or the time is over: the breasts as written last, and how fast each worked."""
    from rsna_kit.imaging.pace import MOST_COARSER, Pace
    from rsna_kit.recipes.images import open_stream

    ensemble, done = scoring.ensemble, len(scoring.test) - len(files)
    stop, most = Clock(clock.remaining_s() - WRITE_RESERVE_S), MOST_COARSER if scoring.image.decode == "reduced" else 0
    outcomes = open_stream(files, scoring.image, decode, events, stop, ensemble.batch_size)
    pace = Pace(stop, len(files), 0.0, lambda line: events.say(line, kind="given_up"), most, ensemble.lighten)
    begun = started = clock.elapsed_s()
    saved = begun - save_every_s + min(save_every_s, SAVE_SOON_S)
    with outcomes, closing(ensemble.stream(scoring.batches(outcomes))) as scored:
        with events.progress(len(files), "infer") as progress:
            for batch, scores in scored:
                scoring.add(batch, scores)
                for outcome in batch:
                    progress.advance(kind=outcome.worker)
                if progress.done <= ensemble.batch_size * ensemble.ahead:
                    pace.begin(progress.done, outcomes.waited_s)
                outcomes.coarser = pace.update(progress.done, outcomes.waited_s)
                if stop.remaining_s() < clock.elapsed_s() - begun:  # the next batch takes as long
                    break
                begun = clock.elapsed_s()
                if begun - saved > save_every_s:
                    saved = begun
                    scoring.write(pace, done)
        # Before the streams are closed, which wait for the files that are being decoded and the batches under way.
        breasts = scoring.write(pace, done)
    for note in outcomes.notes:
        events.say(note)
    seconds = max(clock.elapsed_s() - started, 1e-9)
    decoded = {name: round(count / seconds, 2) for name, count in outcomes.counts.items()}
    speed = {"decoding": decoded, "scoring": ensemble.speed()}
    told = (f"{work} {', '.join(f'{name} {rate}' for name, rate in one.items())}" for work, one in speed.items() if one)
    if files:
        events.say(f"pictures a second: {'; '.join(told)}", kind="speed", **speed)
    return breasts, speed


def _summary(
    scoring: _Scoring, breasts: pd.DataFrame, settings: InferConfig, clock: Clock, events: Events
) -> dict[str, Any]:
    """What `infer` returns."""
    out, test, ledger, members = scoring.out, scoring.test, scoring.ledger, scoring.members
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
        "threshold": members.threshold,
        "calibration": scoring.calibration is not None,
        "bundles": [str(member.bundle.path) for member in members.members],
        "weights": [member.weight for member in members.members],
        "tta": scoring.tta,
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
