"""What the verbs of the command line share: a parser whose errors help, configuration and time limits."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from rsna_kit import config
from rsna_kit.config import PRESETS, preset
from rsna_kit.runtime.clock import Clock, parse_duration
from rsna_kit.runtime.errors import UsageError, did_you_mean


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
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides",
        help=f"change one key of {', '.join(sections)}, e.g. --set {example}; may be repeated",
    )  # fmt: skip
    parser.set_defaults(sections=sections)


def read_config(options: argparse.Namespace) -> config.Config:
    """The preset and the overrides of a verb.

    Raises:
        UsageError: a key that does not exist, or of a section that the verb does not read.
    """
    built = config.with_overrides(preset(options.preset), options.overrides)
    for override in options.overrides:
        section = override.partition(".")[0]
        if section not in options.sections:
            reads = ", ".join(options.sections)
            raise UsageError(f"--set {override}: '{options.verb}' reads only the sections {reads}")
    return built


def read_clock(options: argparse.Namespace) -> Clock:
    """The time limit of a verb, running from now."""
    return Clock(parse_duration(options.time_limit) if options.time_limit else None)
