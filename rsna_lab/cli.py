"""The command line at home: the six verbs of the library, and those of the workbench."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsna_kit import cli
from rsna_kit.cli import add_config, read_config
from rsna_kit.runtime.events import Events


def _phantom(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_lab.phantom.writer import write_competition

    settings = {"full_size": options.full_size}
    if options.prevalence is not None:
        settings["prevalence"] = options.prevalence
    return write_competition(options.out, options.patients, options.seed, events=Events(), **settings)


def _infer(options: argparse.Namespace) -> dict[str, Any]:
    settings = read_config(options)
    if not (options.competition / "test.csv").is_file() and not (options.competition / "train.csv").is_file():
        from rsna_lab.recipes.folder import gather

        options.competition = gather(options.competition, options.out, Events(options.out / "events.jsonl"))
    result = cli.run_infer(options)
    if options.maps:
        from rsna_lab.recipes.explain import explain

        events, given = (
            Events(options.out / "events.jsonl"),
            (options.competition, options.out / "maps", options.bundle),
        )
        more = {"decode": settings.decode, "about": options.about}
        result["maps"] = explain(*given, settings.infer, events, **more)["page"]
    return result


def _tune(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_lab.recipes.tune import tune

    return tune(
        options.prepared, options.out, options.seeds, read_config(options), Events(options.out / "events.jsonl")
    )


def _folds(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_lab.recipes.folds import folds

    events = Events(options.out / "events.jsonl" if options.out else None)
    settings = read_config(options).train
    return folds(options.prepared, settings, events, options.folds, options.out)


def _explain(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_lab.recipes.explain import explain

    settings, events = read_config(options), Events(options.out / "events.jsonl")
    given = (options.competition, options.out, options.bundle)
    chosen = {"images": options.images or (), "top": options.top, "split": options.split}
    return explain(*given, settings.infer, events, decode=settings.decode, **chosen)


def _report(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_lab.recipes.report import report

    given = {"competition": options.pictures, "prepared": options.prepared}
    rule = {"truth": options.truth, "threshold": options.threshold}
    return report(options.predictions, options.out, Events(), **rule, **given)


def _leaderboard(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_lab.recipes.leaderboard import leaderboard

    return leaderboard(options.competition, options.out, Events())


def _compare(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_lab.recipes.compare import USUAL, compare

    told = {"results": options.csv, "data": options.data, "command": options.command}
    chosen = {"truth": options.truth, "measured": options.metric or USUAL}
    return compare(options.models, Events(), **chosen, **told)


def _add_phantom(verbs: Any) -> None:
    summary = "Write a synthetic competition with the real one's layout and quirks."
    example, needs = "phantom runs/phantom --patients 40 --seed 1", ("pydicom", "imagecodecs")
    phantom = cli.add_verb(verbs, "phantom", _phantom, summary, example, needs=needs)
    phantom.add_argument("out", type=Path, help="folder to write")
    patients = "training patients; the hidden test adds two fifths of that"
    phantom.add_argument("--patients", type=int, required=True, help=patients)
    phantom.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    phantom.add_argument("--full-size", action="store_true", help="real matrix sizes instead of a quarter of them")
    phantom.add_argument("--prevalence", type=float, help="share of breasts with cancer (the real one is 0.0207)")


def _add_tune(verbs: Any) -> None:
    summary = "Teach the mammography start on a little data of your own, and weigh what that is worth."
    more = (
        "OUT/seed67/blend is what infer takes: the start and the networks that learned from it, weighted by folds\n"
        "that they did not learn from. Several seeds deal the folds anew: how much a score owes to one deal."
    )
    tune = cli.add_verb(
        verbs, "tune", _tune, summary, "tune runs/mine/prepared runs/mine/tuned", more, needs=("keras",)
    )
    tune.add_argument("prepared", type=Path, help="folder written by prepare --preset mammography")
    tune.add_argument("out", type=Path, help="folder for seed<N>/start, tuned and blend")
    tune.add_argument("--seeds", type=int, nargs="+", default=[67], metavar="N", help="default 67")
    add_config(tune, ["model", "train", "infer"], "train.epochs=4")
    tune.set_defaults(preset="mammography")


def _add_folds(verbs: Any) -> None:
    summary = "Show how even the folds are, and patients that are in two of them."
    example = "folds runs/prepared --set train.folds=4 --out runs/folds"
    folds = cli.add_verb(verbs, "folds", _folds, summary, example, "Exit code 1 where a patient is in two folds.")
    folds.add_argument("prepared", type=Path, help="folder written by prepare")
    dealt = "CSV with image_id and fold, e.g. a run's oof.csv, instead of dealing"
    folds.add_argument("--folds", type=Path, metavar="FILE", help=dealt)
    folds.add_argument("--out", type=Path, metavar="FOLDER", help="folder for folds.csv")
    add_config(folds, ["train"], "train.hold_out=machine")


def _add_explain(verbs: Any) -> None:
    summary = "Draw where the scores come from: Grad-CAM, or a CVAE's errors."
    example = "explain runs/phantom/hidden runs/maps --bundle runs/model/bundles --top 12"
    explain = cli.add_verb(verbs, "explain", _explain, summary, example, needs=("pydicom", "cv2", "keras"))
    explain.add_argument("competition", type=Path, help="folder with test.csv or train.csv and their images")
    explain.add_argument("out", type=Path, help="folder for pictures, maps, explain.csv and index.html")
    bundle = "a bundle, or a folder of bundles; may be repeated"
    explain.add_argument("--bundle", type=Path, action="append", required=True, help=bundle)
    which = explain.add_mutually_exclusive_group()
    which.add_argument("--images", nargs="+", metavar="ID", help="these pictures")
    which.add_argument("--top", type=int, default=20, metavar="N", help="the N highest scores (default 20)")
    split = "where both tables are there (default test)"
    explain.add_argument("--split", choices=["train", "test"], help=split)
    add_config(explain, ["decode", "infer"], "infer.batch_size=8")


def _add_infer(verbs: Any) -> None:
    infer = cli.add_infer(verbs)
    infer.description = (
        f"{infer.description}\n\nA folder without tables will do: DICOM files or grey pictures, nested as they are."
    )
    infer.set_defaults(run=_infer)
    infer.add_argument("--maps", action="store_true", help="also draw where the highest scores come from, as explain")


def _add_report(verbs: Any) -> None:
    summary = "One HTML page of a run or of predictions: curves, subgroups, cases, pictures."
    example = "report runs/model --prepared runs/prepared --out runs/report"
    report = cli.add_verb(verbs, "report", _report, summary, example)
    cli.add_predictions(report)
    out = "folder for report.html and scores.json"
    report.add_argument("--out", type=Path, metavar="FOLDER", required=True, help=out)
    prepared = "folder written by prepare: its pictures and table illustrate the page"
    report.add_argument("--prepared", type=Path, metavar="FOLDER", help=prepared)
    pictures = "competition folder: the same from its DICOM files and tables"
    report.add_argument("--pictures", type=Path, metavar="FOLDER", help=pictures)


def _add_leaderboard(verbs: Any) -> None:
    summary = "Make a local leaderboard of the training data, by MLE-bench's split."
    more = (
        "A tenth of the patients becomes the test set, by the published rule. Then prepare, train and infer\n"
        "on the new folder, and `rsna-kit score SUBMISSION --truth OUT/truth.csv`: a score that compares\n"
        "with those of published agents, not with Kaggle's boards: other patients, about 50 cancers."
    )
    example = "leaderboard competition runs/board"
    board = cli.add_verb(verbs, "leaderboard", _leaderboard, summary, example, more)
    board.add_argument("competition", type=Path, help="competition folder with train.csv and train_images/")
    board.add_argument("out", type=Path, help="new competition folder; images are links, nothing is copied")


def _add_compare(verbs: Any) -> None:
    summary = "Say which of several models are better, and which are not told apart."
    example = "compare runs/model runs/breast --csv docs/results.csv"
    compare = cli.add_verb(verbs, "compare", _compare, summary, example)
    models = "folder written by train or blend (its oof.csv), or a CSV file of scores"
    many = "two or more, all are compared with the first"
    compare.add_argument("models", type=Path, nargs="+", metavar="RUN", help=f"{models}; {many}")
    truth = "prediction_id,cancer for files without a cancer column"
    compare.add_argument("--truth", type=Path, metavar="FILE", help=truth)
    metric = "as scores.json calls them; roc_auc pr_auc pf1_binary by default"
    compare.add_argument("--metric", nargs="+", metavar="NAME", help=metric)
    rows = "append rows in the columns of docs/results.csv"
    compare.add_argument("--csv", type=Path, metavar="FILE", help=rows)
    compare.add_argument("--data", default="", metavar="TEXT", help="what the rows call the data")


_LIBRARY = (_add_infer if add is cli.add_infer else add for add in cli.VERBS)
VERBS = (_add_phantom, *_LIBRARY, _add_report, _add_compare, _add_explain, _add_tune, _add_folds, _add_leaderboard)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    return cli.build_parser(VERBS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    return cli.main(arguments, build_parser)
