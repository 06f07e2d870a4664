"""The command line of the library: six thin verbs over the recipes. `rsna_lab.cli` adds the workbench's own.

Results go to stdout as JSON, talk goes to stderr. Exit codes: 0 done, 1 the run failed (the message says
why and what to do), 2 wrong usage, 130 interrupted (the same command resumes).
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rsna_kit import __version__
from rsna_kit.config import PRESETS, Config, preset, with_overrides
from rsna_kit.runtime.clock import Clock, parse_duration
from rsna_kit.runtime.errors import MissingDependencyError, RsnaKitError, UsageError, did_you_mean, sentence
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.lazy import check_surroundings, settle

Run = Callable[[argparse.Namespace], dict[str, Any]]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UsageErrors with a suggestion."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse_known_args(self, *arguments: Any, **options: Any) -> Any:
        """Refuse leftovers here, where the verb's own options are known and can be suggested."""
        namespace, extra = super().parse_known_args(*arguments, **options)
        if extra:
            self.error(f"unrecognized arguments: {' '.join(extra)}")
        return namespace, extra

    def error(self, message: str) -> NoReturn:
        """Raise with the nearest option or verb."""
        known = [option for action in self._actions for option in action.option_strings]
        verbs = [str(name) for action in self._actions if isinstance(action.choices, dict) for name in action.choices]
        # Behind "(choose from" argparse lists the verbs themselves: each would be its own suggestion. And an option
        # that is named because its value is wrong was not mistyped.
        words = message.partition("(choose from")[0].replace("'", " ").replace(",", " ").replace(":", " ").split()
        words = [word for word in words if word not in known]
        wrong = re.search(r"argument (\S+): invalid choice: '(.*?)'", message)
        if wrong:
            options = [action for action in self._actions if {*wrong[1].split("/")} & {*action.option_strings}]
            verbs += [str(choice) for action in options for choice in action.choices or ()]
        hints = [did_you_mean(word, known if word.startswith("--") else verbs) for word in words]
        hint = next((text for text in hints if text), "")
        raise UsageError(f"{message}.{hint}\nTry '{self.prog} --help'.")


def add_config(parser: argparse.ArgumentParser, sections: Sequence[str], example: str) -> None:
    """Let a verb be told the sections it reads; anything else would be ignored, so it is refused."""
    group = parser.add_argument_group("configuration")
    group.add_argument("--preset", default="default", metavar="NAME", help=f"one of {', '.join(PRESETS)}")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help=f"change one key of {', '.join(sections)}, e.g. --set {example}; may be repeated",
    )
    parser.set_defaults(sections=sections)


def read_config(options: argparse.Namespace) -> Config:
    """The preset and the overrides of a verb.

    Raises:
        UsageError: a key that does not exist, or of a section that the verb does not read.
    """
    built = with_overrides(preset(options.preset), options.overrides)
    for override in options.overrides:
        section = override.partition(".")[0]
        if section not in options.sections:
            reads = ", ".join(options.sections)
            raise UsageError(f"--set {override}: '{options.verb}' reads only the sections {reads}")
    return built


def read_clock(options: argparse.Namespace) -> Clock:
    """The time limit of a verb, running from now."""
    return Clock(parse_duration(options.time_limit) if options.time_limit else None)


def _check(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_kit.recipes.check import check

    return check(options.folder, Events(), read_config(options).image)


def _prepare(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_kit.recipes.prepare import prepare

    events = Events(options.out / "events.jsonl")
    settings = read_config(options)
    if options.exact:
        settings = with_overrides(settings, ["image.decode=exact"])
    return prepare(options.competition, options.out, settings, events, limit=options.limit, part=options.part)


def _train(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_kit.recipes.train import train

    settings, events = read_config(options), Events(options.out / "events.jsonl")
    clock = read_clock(options)
    more: dict[str, Any] = {"folds": options.fold, "weights": options.weights, "extra": options.extra}
    return train(options.prepared, options.out, settings, events, clock, **more)


def run_infer(options: argparse.Namespace) -> dict[str, Any]:
    """What `infer` does; `options.bundle` then says what scored, `options.about` what that is where nobody named it."""
    from rsna_kit.competition.paths import input_root
    from rsna_kit.models.members import ABOUT_MAMMOGRAPHY, find_mammography
    from rsna_kit.recipes.infer import infer

    settings, events = read_config(options), Events(options.out / "events.jsonl")
    options.about = "" if options.bundle else ABOUT_MAMMOGRAPHY
    if not options.bundle:
        options.bundle = [find_mammography([input_root()])]
        events.say(f"no --bundle, so {options.bundle[0]} scores: {options.about}")
    clock, given = read_clock(options), (options.competition, options.out, options.bundle)
    return infer(*given, settings.infer, events, clock, decode=settings.decode, exact=options.exact)


def _blend(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_kit.recipes.blend import blend

    return blend(options.out, options.model, read_config(options).infer, Events())


def _score(options: argparse.Namespace) -> dict[str, Any]:
    from rsna_kit.recipes.score import score

    return score(options.predictions, Events(), out=options.out, truth=options.truth, threshold=options.threshold)


def add_verb(
    verbs: Any, name: str, run: Run, summary: str, example: str, more: str = "", needs: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """One verb with its help, `example` and `more` below; modules in `needs` are looked at before it runs."""
    told = f"{summary}\n\n{more}" if more else summary
    child: argparse.ArgumentParser = verbs.add_parser(
        name, help=summary, description=told, epilog=f"example:\n  rsna-kit {example}"
    )
    child.set_defaults(run=run, needs=needs)
    return child


def add_predictions(parser: argparse.ArgumentParser) -> None:
    """What `score` and `report` judge."""
    run = "folder written by train or blend (its oof.csv), or a CSV file of scores"
    rule = "the threshold is chosen on the first and applied to all"
    parser.add_argument("predictions", type=Path, nargs="+", metavar="RUN", help=f"{run}; {rule}")
    truth = "prediction_id,cancer for files without a cancer column"
    parser.add_argument("--truth", type=Path, metavar="FILE", help=truth)
    parser.add_argument("--threshold", type=float, help="use this one instead of choosing it")


def _add_check(verbs: Any) -> None:
    summary = "Show what this machine can decode; with a folder, what its files are and will take."
    check = add_verb(verbs, "check", _check, summary, "check runs/demo/competition", needs=("pydicom", "cv2"))
    folder = "competition folder (with train.csv or test.csv), or a folder of DICOM files"
    check.add_argument("folder", type=Path, nargs="?", help=folder)
    add_config(check, ["image"], "image.height=1024")


def _add_prepare(verbs: Any) -> None:
    summary = "Turn training DICOMs into images and TFRecord shards; resumes."
    example, needs = "prepare runs/phantom runs/prepared --preset smoke", ("pydicom", "cv2", "tensorflow")
    prepare = add_verb(verbs, "prepare", _prepare, summary, example, needs=needs)
    prepare.add_argument("competition", type=Path, help="competition folder with train.csv and train_images/")
    prepare.add_argument("out", type=Path, help="prepared folder to write")
    prepare.add_argument("--limit", type=int, help="only the first N patients, for a quick look")
    part = "only the K-th of N parts of the patients; a folder that holds the folders of all N is one for train"
    prepare.add_argument("--part", default="", metavar="K/N", help=part)
    exact = "decode every pixel of JPEG 2000, not the resolution that is needed: slower"
    prepare.add_argument("--exact", action="store_true", help=exact)
    add_config(prepare, ["image", "decode", "data", "infer"], "decode.workers=4")


def _add_train(verbs: Any) -> None:
    summary = "Train one network per fold and leave a bundle for each; resumes."
    example = "train runs/prepared runs/model --preset smoke"
    train = add_verb(verbs, "train", _train, summary, example, needs=("cv2", "keras"))
    train.add_argument("prepared", type=Path, help="folder written by prepare, or one that holds those of all parts")
    train.add_argument("out", type=Path, help="folder for bundles, out-of-fold scores and histories")
    train.add_argument("--fold", type=int, action="append", help="train only this fold; may be repeated")
    weights = "look here for starting weights (model.weights); may be repeated"
    train.add_argument("--weights", type=Path, action="append", default=[], metavar="FOLDER", help=weights)
    extra = "prepared folder of other mammograms: always trained on, never validated; may be repeated"
    train.add_argument("--extra", type=Path, action="append", default=[], metavar="FOLDER", help=extra)
    train.add_argument("--time-limit", metavar="DURATION", help="stop in time, keeping the best: 90s, 15m, 8h30m")
    add_config(train, ["image", "data", "model", "cvae", "train", "infer"], "train.epochs=20")


def add_infer(verbs: Any) -> argparse.ArgumentParser:
    """The verb `infer`, to which the workbench adds."""
    summary = "Score test DICOMs with one or more bundles into submission.csv; resumes."
    example = "infer runs/phantom/hidden runs/submission --bundle runs/model/bundles"
    infer = add_verb(verbs, "infer", run_infer, summary, example, needs=("pydicom", "cv2", "keras"))
    infer.add_argument("competition", type=Path, help="folder with test.csv, sample_submission.csv and test_images/")
    infer.add_argument("out", type=Path, help="folder for submission.csv and scores.csv")
    bundle = "a bundle or a folder of them, may be repeated; or a folder written by blend (default mammography-start)"
    infer.add_argument("--bundle", type=Path, action="append", help=bundle)
    infer.add_argument("--time-limit", metavar="DURATION", help="write what there is before this: 90s, 15m, 8h30m")
    exact = "decode every pixel, though the bundles were trained on reduced JPEG 2000"
    infer.add_argument("--exact", action="store_true", help=exact)
    add_config(infer, ["decode", "infer"], "decode.workers=4")
    return infer


def _add_blend(verbs: Any) -> None:
    summary = "Weigh trained models by their out-of-fold scores into one ensemble for infer."
    blend = add_verb(verbs, "blend", _blend, summary, "blend runs/blend --model runs/convnext --model runs/lite0")
    blend.add_argument("out", type=Path, help="folder for ensemble.json, copies of the bundles and oof.csv")
    model = "folder written by train or blend; two or more, on the same patients and folds"
    blend.add_argument("--model", type=Path, action="append", required=True, help=model)
    add_config(blend, ["infer"], "infer.tta=flip")


def _add_score(verbs: Any) -> None:
    summary = "pF1 and its companions with intervals by patient, as JSON."
    score = add_verb(verbs, "score", _score, summary, "score runs/model runs/test/scores.csv --truth truth.csv")
    add_predictions(score)
    score.add_argument("--out", type=Path, metavar="FOLDER", help="folder for scores.json")


VERBS: tuple[Callable[[Any], Any], ...] = (_add_check, _add_prepare, _add_train, add_infer, _add_score, _add_blend)


def build_parser(verbs: Sequence[Callable[[Any], None]] = VERBS) -> argparse.ArgumentParser:
    """The command line with these verbs, in their order."""
    parser = Parser(
        prog="rsna-kit",
        description="From mammogram DICOMs to a scored submission of the RSNA breast cancer detection competition.",
        epilog="Every verb has its own --help with an example. Results are JSON on stdout, talk is on stderr.",
    )
    parser.add_argument("--version", action="version", version=f"rsna-kit {__version__}")
    children = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    for add in verbs:
        add(children)
    return parser


def main(arguments: Sequence[str] | None = None, build: Callable[[], argparse.ArgumentParser] = build_parser) -> int:
    """Run one verb; returns the exit code."""
    settle()
    try:
        options = build().parse_args(arguments)
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
        print(f"Error: {sentence(error)} What is on disk is whole.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. What is on disk is whole; the same command resumes.", file=sys.stderr)
        return 130
    return 0 if result.get("ok", True) else 1
