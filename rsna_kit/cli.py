"""The door for people: thin verbs over the recipes.

Results go to stdout as JSON, talk goes to stderr. Exit codes: 0 done, 1 the run failed (the message says
why and what to do), 2 wrong usage, 130 interrupted (the same command resumes).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsna_kit import __version__, config
from rsna_kit.arguments import Parser, add_config, read_clock, read_config
from rsna_kit.runtime.errors import MissingDependencyError, RsnaKitError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.lazy import check_surroundings, settle

# Modules without which a verb cannot do anything, looked at before it begins.
_NEEDS = {
    "check": ("pydicom", "cv2"),
    "phantom": ("pydicom", "imagecodecs"),
    "prepare": ("pydicom", "cv2", "tensorflow"),
    "folds": ("cv2",),
    "train": ("cv2", "keras"),
    "infer": ("pydicom", "cv2", "keras"),
    "explain": ("pydicom", "cv2", "keras"),
}


def _check(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_kit.recipes.check import check

    return check(options.folder, Events(), read_config(options).image)


def _phantom(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_kit.phantom.writer import write_competition

    settings = {"full_size": options.full_size}
    if options.prevalence is not None:
        settings["prevalence"] = options.prevalence
    return write_competition(options.out, options.patients, options.seed, events=Events(), **settings)


def _prepare(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_kit.recipes.prepare import prepare

    events = Events(options.out / "events.jsonl")
    settings = read_config(options)
    if options.exact:
        settings = config.with_overrides(settings, ["image.decode=exact"])
    return prepare(options.competition, options.out, settings, events, limit=options.limit)


def _folds(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_kit.recipes.folds import folds

    events = Events(options.out / "events.jsonl" if options.out else None)
    settings = read_config(options).train
    return folds(options.prepared, settings, events, options.folds, options.out, pictures=not options.no_pictures)


def _train(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_kit.recipes.train import train

    events = Events(options.out / "events.jsonl")
    return train(
        options.prepared, options.out, read_config(options), events, read_clock(options),
        folds=options.fold, weights=options.weights,
    )  # fmt: skip


def _infer(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_kit.recipes.infer import infer

    events = Events(options.out / "events.jsonl")
    settings = read_config(options)
    return infer(
        options.competition, options.out, options.bundle, settings.infer, events, read_clock(options),
        decode=settings.decode, exact=options.exact,
    )  # fmt: skip


def _explain(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_kit.recipes.explain import explain

    settings = read_config(options)
    return explain(
        options.competition, options.out, options.bundle, settings.infer, Events(options.out / "events.jsonl"),
        images=options.images or (), top=options.top, method=options.method, split=options.split,
        decode=settings.decode,
    )  # fmt: skip


def _blend(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_kit.recipes.blend import blend

    events, settings = Events(), read_config(options).infer
    return blend(options.out, options.model, settings, events, metric=options.metric, weighting=options.weights)


def _score(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_kit.recipes.score import score

    return score(options.predictions, Events(), out=options.out, truth=options.truth, threshold=options.threshold)


def _report(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_kit.recipes.report import report

    return report(
        options.predictions, options.out, Events(), truth=options.truth, threshold=options.threshold,
        competition=options.pictures, prepared=options.prepared,
    )  # fmt: skip


def _leaderboard(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_kit.recipes.leaderboard import leaderboard

    return leaderboard(options.competition, options.out, Events())


def _compare(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_kit.recipes.compare import compare
    from rsna_kit.scoring.comparison import USUAL

    return compare(
        options.models, Events(), truth=options.truth, measured=options.metric or USUAL, results=options.csv,
        shake_up=options.shake_up, data=options.data, command=options.command,
    )  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(
        prog="rsna-kit",
        description="From mammogram DICOMs to a scored submission of the RSNA breast cancer detection competition.",
        epilog="Every verb has its own --help with an example. Results are JSON on stdout, talk is on stderr.",
    )
    parser.add_argument("--version", action="version", version=f"rsna-kit {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)

    def verb(name: str, run: Any, summary: str, example: str, more: str = "") -> argparse.ArgumentParser:
        told = f"{summary}\n\n{more}" if more else summary
        child = verbs.add_parser(name, help=summary, description=told, epilog=f"example:\n  rsna-kit {example}")
        child.set_defaults(run=run, needs=_NEEDS.get(name, ()))
        return child

    check = verb("check", _check, "Show what this machine can decode; with a folder, what its files are and will take.",
                 "check runs/demo/competition")  # fmt: skip
    check.add_argument("folder", type=Path, nargs="?",
                       help="competition folder (with train.csv or test.csv), or a folder of DICOM files")  # fmt: skip
    add_config(check, ["image"], "image.height=1024")

    phantom = verb("phantom", _phantom, "Write a synthetic competition with the real one's layout and quirks.",
                   "phantom runs/phantom --patients 40 --seed 1")  # fmt: skip
    phantom.add_argument("out", type=Path, help="folder to write")
    phantom.add_argument(
        "--patients", type=int, required=True, help="training patients; the hidden test adds two fifths of that"
    )
    phantom.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    phantom.add_argument("--full-size", action="store_true", help="real matrix sizes instead of a quarter of them")
    phantom.add_argument("--prevalence", type=float, help="share of breasts with cancer (the real one is 0.0207)")

    prepare = verb("prepare", _prepare, "Turn training DICOMs into images and TFRecord shards; resumes.",
                   "prepare runs/phantom runs/prepared --preset smoke")  # fmt: skip
    prepare.add_argument("competition", type=Path, help="competition folder with train.csv and train_images/")
    prepare.add_argument("out", type=Path, help="prepared folder to write")
    prepare.add_argument("--limit", type=int, help="only the first N patients, for a quick look")
    prepare.add_argument("--exact", action="store_true",
                         help="decode every pixel of JPEG 2000, not the resolution that is needed: slower")  # fmt: skip
    add_config(prepare, ["image", "decode", "data", "infer"], "decode.workers=4")

    folds = verb("folds", _folds, "Show how even the folds are and what leaks between them: patients, or films.",
                 "folds runs/prepared --set train.folds=4 --out runs/folds",
                 "Exit code 1 where a patient is in two folds, or one film is in two folds under two patients.\n"
                 "Every picture is compared with every other one: tens of minutes for the competition's.")  # fmt: skip
    folds.add_argument("prepared", type=Path, help="folder written by prepare")
    folds.add_argument("--folds", type=Path, metavar="FILE",
                       help="CSV with image_id and fold, e.g. a run's oof.csv, instead of dealing")  # fmt: skip
    folds.add_argument("--no-pictures", action="store_true", help="do not look for films that are there twice")
    folds.add_argument("--out", type=Path, metavar="FOLDER",
                       help="folder for folds.csv, duplicates.csv and a picture of the pairs")  # fmt: skip
    add_config(folds, ["train"], "train.hold_out=machine")

    train = verb("train", _train, "Train one network per fold and leave a bundle for each; resumes.",
                 "train runs/prepared runs/model --preset smoke")  # fmt: skip
    train.add_argument("prepared", type=Path, help="folder written by prepare")
    train.add_argument("out", type=Path, help="folder for bundles, out-of-fold scores and curves")
    train.add_argument("--fold", type=int, action="append", help="train only this fold; may be repeated")
    train.add_argument("--weights", type=Path, action="append", default=[], metavar="FOLDER",
                       help="look here for starting weights (model.weights); may be repeated")  # fmt: skip
    train.add_argument("--time-limit", metavar="DURATION", help="stop in time, keeping the best: 90s, 15m, 8h30m")
    add_config(train, ["image", "data", "model", "cvae", "train", "infer"], "train.epochs=20")

    infer = verb("infer", _infer, "Score test DICOMs with one or more bundles into submission.csv; resumes.",
                 "infer runs/phantom/hidden runs/submission --bundle runs/model/bundles")  # fmt: skip
    infer.add_argument("competition", type=Path, help="folder with test.csv, sample_submission.csv and test_images/")
    infer.add_argument("out", type=Path, help="folder for submission.csv and scores.csv")
    infer.add_argument("--bundle", type=Path, action="append", required=True,
                       help="a bundle or a folder of them, may be repeated; or a folder written by blend")  # fmt: skip
    infer.add_argument("--time-limit", metavar="DURATION", help="write what there is before this: 90s, 15m, 8h30m")
    infer.add_argument("--exact", action="store_true",
                       help="decode every pixel, though the bundles were trained on reduced JPEG 2000")  # fmt: skip
    add_config(infer, ["decode", "infer"], "decode.workers=4")

    explain = verb("explain", _explain, "Draw where the scores come from: Grad-CAM, occlusion or error maps.",
                   "explain runs/phantom/hidden runs/maps --bundle runs/model/bundles --top 12")  # fmt: skip
    explain.add_argument("competition", type=Path, help="folder with test.csv or train.csv and their images")
    explain.add_argument("out", type=Path, help="folder for pictures, maps, explain.csv and index.html")
    explain.add_argument("--bundle", type=Path, action="append", required=True,
                         help="a bundle, or a folder of bundles; may be repeated")  # fmt: skip
    which = explain.add_mutually_exclusive_group()
    which.add_argument("--images", nargs="+", metavar="ID", help="these pictures")
    which.add_argument("--top", type=int, default=20, metavar="N", help="the N highest scores (default 20)")
    explain.add_argument("--method", choices=["grad-cam", "occlusion", "error"],
                         help="default: error for a CVAE, grad-cam for all others")  # fmt: skip
    explain.add_argument("--split", choices=["train", "test"], help="where both tables are there (default test)")
    add_config(explain, ["decode", "infer"], "infer.batch_size=8")

    blend = verb("blend", _blend, "Weigh trained models by their out-of-fold scores into one ensemble for infer.",
                 "blend runs/blend --model runs/convnext --model runs/lite0")  # fmt: skip
    blend.add_argument("out", type=Path, help="folder for ensemble.json, copies of the bundles and oof.csv")
    blend.add_argument("--model", type=Path, action="append", required=True,
                       help="folder written by train; two or more, on the same patients and folds")  # fmt: skip
    blend.add_argument("--metric", default="roc_auc",
                       help="what weights are chosen for: roc_auc (default), pr_auc or pf1")  # fmt: skip
    blend.add_argument("--weights", default="auto",
                       help="auto (default): chosen weights where they beat the plain mean on folds that did not "
                       "choose them; chosen; or mean")  # fmt: skip
    add_config(blend, ["infer"], "infer.tta=flip")

    score = verb("score", _score, "pF1 and its companions with intervals by patient, as JSON.",
                 "score runs/model runs/test/scores.csv --truth truth.csv")  # fmt: skip
    report = verb("report", _report, "One HTML page of a run or of predictions: curves, subgroups, cases, pictures.",
                  "report runs/model --prepared runs/prepared --out runs/report")  # fmt: skip
    for judge in (score, report):
        judge.add_argument("predictions", type=Path, nargs="+", metavar="RUN",
                           help="folder written by train or blend (its oof.csv), or a CSV file of scores; the "
                           "threshold is chosen on the first and applied to all")  # fmt: skip
        judge.add_argument("--truth", type=Path, metavar="FILE",
                           help="prediction_id,cancer for files without a cancer column")  # fmt: skip
        judge.add_argument("--threshold", type=float, help="use this one instead of choosing it")
    score.add_argument("--out", type=Path, metavar="FOLDER", help="folder for scores.json")
    report.add_argument("--out", type=Path, metavar="FOLDER", required=True,
                        help="folder for report.html and scores.json")  # fmt: skip
    report.add_argument("--prepared", type=Path, metavar="FOLDER",
                        help="folder written by prepare: its pictures and table illustrate the page")  # fmt: skip
    report.add_argument("--pictures", type=Path, metavar="FOLDER",
                        help="competition folder: the same from its DICOM files and tables")  # fmt: skip

    board = verb("leaderboard", _leaderboard, "Make a local leaderboard of the training data, by MLE-bench's split.",
                 "leaderboard competition runs/board",
                 "A tenth of the patients becomes the test set, by the published rule. Then prepare, train and infer\n"
                 "on the new folder, and `rsna-kit score SUBMISSION --truth OUT/truth.csv`: a score that compares\n"
                 "with those of published agents, not with Kaggle's boards: other patients, about 50 cancers.",
                 )  # fmt: skip
    board.add_argument("competition", type=Path, help="competition folder with train.csv and train_images/")
    board.add_argument("out", type=Path, help="new competition folder; images are links, nothing is copied")

    compare = verb("compare", _compare, "Say which differences between models are evidence.",
                   "compare runs/model runs/breast --csv docs/results.csv")  # fmt: skip
    compare.add_argument("models", type=Path, nargs="+", metavar="RUN",
                         help="folder written by train or blend (its oof.csv), or a CSV file of scores; two or more, "
                         "all are compared with the first")  # fmt: skip
    compare.add_argument("--truth", type=Path, metavar="FILE",
                         help="prediction_id,cancer for files without a cancer column")  # fmt: skip
    compare.add_argument("--metric", nargs="+", metavar="NAME",
                         help="roc_auc pr_auc pf1_binary (these by default) pf1 f1_max log_loss brier")  # fmt: skip
    compare.add_argument("--csv", type=Path, metavar="FILE", help="append rows in the columns of docs/results.csv")
    compare.add_argument("--data", default="", metavar="TEXT", help="what the rows call the data")
    compare.add_argument("--shake-up", action="store_true",
                         help="draw public and private boards of the competition's size: how far the two lie apart by "
                         "chance, and how often the best on public is the best on private")  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    settle()
    try:
        options = build_parser().parse_args(arguments)
        options.command = shlex.join(["rsna-kit", *(sys.argv[1:] if arguments is None else arguments)])
        for module, why in check_surroundings(options.needs).items():
            absent = why == "not installed"
            mend = "Install it: pip install 'rsna-kit[train]'" if absent else "Mend or remove what is installed there"
            raise MissingDependencyError(f"{module}: {why}. {mend}")
        result = options.run(options)
        print(json.dumps(result, indent=2, default=str), flush=True)
    except RsnaKitError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # disk full, no permission, a file where a folder should be: the message names the path
        print(f"Error: {error}. What is on disk is whole.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. What is on disk is whole; the same command resumes.", file=sys.stderr)
        return 130
    return 0 if result.get("ok", True) else 1
