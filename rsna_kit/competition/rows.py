"""A CSV file → checked columns, where every complaint names the file, the line, what came and what was expected.

Cells are read as text, stripped of spaces; the line number of each row is kept, so that a person can go
straight to it. Semicolons or tabs may stand for the commas, as spreadsheets of some languages write them. Nothing is
guessed: a column becomes a number, a flag or a choice only when asked.

Ids are the exception: in the columns `patient_id`, `image_id` and `prediction_id` the float that a table with gaps
makes of a whole number is that number. `10008`, `10008.0` and ` 10008 ` are one patient, `10008.0_L` is the breast
`10008_L`, `010008` is another patient; what a spreadsheet has rounded (`1.89E+09`) is refused: its digits are gone.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from rsna_kit.runtime.errors import TableError, did_you_mean

_SEPARATORS = (",", ";", "\t")
_IDS = ("patient_id", "image_id", "prediction_id")
# An id, or the id in front of a breast's side.
_ABSENT = r"(?:nan|none|null|<na>|n/a|na)(?:_[LR])?"
_ROUNDED = r"[+-]?\d+(?:[.,]\d+)?e\+\d+(?:_[LR])?"
_FLOAT = r"^(\d+)\.0+(?=\s*_\s*[LR]$|$)"
_SIDE = r"\s*_\s*([LR])$"
_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


class Rows:
    """One CSV file in memory: `frame` holds text, `lines` the line number of each row."""

    def __init__(self, path: Path, frame: pd.DataFrame, lines: np.ndarray) -> None:
        self.path, self.frame, self.lines = path, frame, lines

    @property
    def columns(self) -> list[str]:
        """Names in the header."""
        return list(self.frame.columns)

    def require(self, names: Iterable[str]) -> None:
        """Refuse a table that lacks one of the columns."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise TableError(
                f"{self.path}, line 1: no column {missing[0]!r}"
                + (f" (also missing: {', '.join(missing[1:])})" if missing[1:] else "")
                + f", expected it beside {', '.join(self.columns)}.{did_you_mean(missing[0], self.columns)}"
            )

    def text(self, name: str, blank: bool = False) -> pd.Series:
        """The column as `str`; an empty cell is refused unless `blank`."""
        values = self.frame[name]
        if not blank:
            self.refuse(values == "", name, "a value", "Fill it in or remove the row.")
        return values

    def ids(self, name: str, once: bool = False) -> pd.Series:
        """The column as `str` that names something: neither empty nor `nan`; with `once`, without repetition."""
        values = self.text(name)
        self.refuse(values.str.fullmatch(_ABSENT, case=False), name, "an id", "Fill it in or remove the row.")
        if once:
            self.refuse(values.duplicated(), name, "each one once", "Remove the repeated row.")
        return values

    def file_name(self, name: str) -> None:
        """Refuse cells that could not be a file's name and would lead elsewhere (`../x`, `/x`)."""
        good = self.frame[name].str.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
        self.refuse(~good, name, "letters, digits, '.', '_' and '-'", "Rename it, in the table and on the disk.")

    def choice(self, name: str, allowed: Sequence[str], blank: bool = False) -> pd.Series:
        """The column as `str` out of `allowed`; with `blank`, an empty cell becomes None."""
        values = self.frame[name]
        good = values.isin([*allowed, ""] if blank else list(allowed))
        self.refuse(~good, name, f"one of {', '.join(allowed)}", "Correct it or remove the row.")
        return values.where(values != "", None)

    def number(self, name: str, low: float, high: float, blank: bool = False) -> pd.Series:
        """The column as float64 in [low, high]; with `blank`, an empty cell becomes NaN."""
        text = self.frame[name]
        empty = text == ""
        values = text.map(_float).astype("float64")
        good = values.between(low, high) | (empty if blank else False)
        expected = f"a number from {low:g} to {high:g}" + (" or nothing" if blank else "")
        comma = text[~good].str.contains(",", regex=False).any()
        self.refuse(~good, name, expected, "Write decimal points." if comma else "Correct it or remove the row.")
        return values

    def whole(self, name: str, low: float, high: float, blank: bool = False) -> pd.Series:
        """The column as nullable Int64 in [low, high]; `3.0` counts as 3."""
        values = self.number(name, low, high, blank)
        fraction = values.notna() & (values % 1 != 0)
        self.refuse(fraction, name, "a whole number", "Correct it or remove the row.")
        return values.astype("Int64")

    def flag(self, name: str) -> pd.Series:
        """The column as bool, out of 0, 1, True and False."""
        values = self.frame[name].str.lower().map(_FLAGS)
        self.refuse(values.isna(), name, "0 or 1", "Correct it or remove the row.")
        return values.astype(bool)

    def refuse(self, bad: pd.Series, name: str, expected: str, action: str) -> None:
        """Raise for the first row where `bad` is true, and say how many there are."""
        where = np.flatnonzero(bad.to_numpy())
        if not where.size:
            return
        first = where[0]
        more = ""
        if where.size > 1:
            lines = ", ".join(str(line) for line in self.lines[where[1:5]])
            more = f" {where.size} rows are like this (also line {lines}{', …' if where.size > 5 else ''})."
        raise TableError(
            f"{self.path}, line {self.lines[first]}: {name} is {self.frame[name].iloc[first]!r}, expected {expected}."
            f"{more} {action}"
        )


def read_rows(path: Path) -> Rows:
    """Read a CSV file (`.csv`, `.csv.gz`) as text; blank lines are skipped, ragged lines refused.

    The separator is a comma where the header has one, else a semicolon, else a tab. A byte order mark is skipped.

    Raises:
        TableError: the file is absent, empty, not UTF-8, has no rows, a ragged line, a repeated column, or an id that
            a spreadsheet has rounded.
    """
    if not path.is_file():
        raise TableError(f"{path}: no such file, expected a CSV table")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            reader = csv.reader(chain([first], file), delimiter=next((m for m in _SEPARATORS if m in first), ","))
            header = [name.strip() for name in next(reader, [])]
            cells, lines = list[list[str]](), list[int]()
            for row in reader:
                if len(row) > 1 or any(cell.strip() for cell in row):
                    cells.append([cell.strip() for cell in row])
                    lines.append(reader.line_num)  # of physical lines, as an editor counts them
    except (UnicodeDecodeError, csv.Error, OSError, EOFError) as error:
        raise TableError(f"{path}: cannot be read as CSV text in UTF-8 ({error}). Export it again as CSV.") from error
    if not any(header):
        raise TableError(f"{path}: the file is empty, expected a header line and rows")
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise TableError(f"{path}, line 1: column {repeated[0]!r} stands there twice, expected each once")
    if not cells:
        raise TableError(f"{path}: there is a header but no rows, expected at least one. Was the file cut off?")
    for line, row in zip(lines, cells, strict=True):
        if len(row) != len(header):
            raise TableError(
                f"{path}, line {line}: {len(row)} cells, expected {len(header)} as in the header."
                " Quote cells that contain commas, or export the table again."
            )
    rows = Rows(path, pd.DataFrame(cells, columns=header, dtype=object), np.asarray(lines))
    for name in set(_IDS).intersection(header):
        text = rows.frame[name]
        advice = "A spreadsheet has rounded it, and its digits are lost here: take the table as it was before."
        rows.refuse(text.str.fullmatch(_ROUNDED, case=False), name, "all digits of it", advice)
        rows.frame[name] = text.str.replace(_FLOAT, r"\1", regex=True).str.replace(_SIDE, r"_\1", regex=True)
    return rows


def _float(cell: str) -> float:
    """The number exactly as written (pandas' own reader is off by the last bit); NaN, which is refused, for words."""
    try:
        return math.nan if "_" in cell else float(cell)
    except ValueError:
        return math.nan
