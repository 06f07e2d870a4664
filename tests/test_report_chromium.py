"""The page as people meet it, in headless Chromium: filters, keyboard, paper, phone, no errors, no requests."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rsna_kit.scoring.intervals import summarise
from rsna_kit.scoring.threshold import choose_threshold
from rsna_lab.analysis.subgroups import subgroups
from rsna_lab.report.browser import Card, View, browser
from rsna_lab.report.page import Section
from rsna_lab.report.sections import curve_section, headline, operating_point, provenance, write_report
from rsna_lab.report.sections import subgroup_section as divided

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("chromium", ROOT / "scripts" / "chromium.py")
assert spec is not None
assert spec.loader is not None
chromium = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chromium)
pytestmark = pytest.mark.skipif(
    chromium.find_chromium() is None, reason=f"no headless browser: none of {', '.join(chromium.NAMES)} is installed"
)
HOSTILE = "\"><img src=x onerror=hacked=1><script>hacked=1</script>' onfocus='hacked=1"
COUNT = 150
VISIBLE = "[...document.querySelectorAll('.cards li')].filter(card => card.offsetParent).map(card => card.dataset.id)"
STATUS = "document.querySelector('[role=status]').textContent"


@pytest.fixture(scope="module")
def tab() -> Iterator[Any]:
    with chromium.Browser(chromium.find_chromium()) as opened:
        yield opened


@pytest.fixture
def sight(tab: Any) -> Any:
    """A window of an ordinary size, with JavaScript."""
    tab.send("Emulation.setScriptExecutionDisabled", value=False)
    tab.look(1200)
    return tab


def scored() -> pd.DataFrame:
    number = np.arange(COUNT)
    cancer = (number % 5 == 0).astype("int8")
    score = np.round(np.clip(0.3 * np.random.default_rng(3).random(COUNT) + 0.2 * cancer, 0, 1), 6)
    names = [HOSTILE if n == 7 else f"{n}_{'LR'[n % 2]}" for n in range(COUNT)]
    table = pd.DataFrame({"prediction_id": names, "patient_id": number // 2, "cancer": cancer, "score": score})
    value = choose_threshold(cancer, score).value
    table["called"], table["site"] = score >= value, np.where(number % 3 == 0, "1", "2")
    return table


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything that has no need of a trained network."""
    table = scored()
    summary = summarise(table, choose_threshold(table["cancer"], table["score"]), resamples=20)
    rows = subgroups(table, table.set_index("prediction_id")[["site"]], resamples=20)
    picture = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[:, None], (1, 32))
    views = [View(picture, "CC"), View(None, "MLO")]
    cards = [
        Card(row.prediction_id, row.score, row.cancer, row.called, {"site": row.site}, views)
        for row in table.itertuples()
    ]
    sections = [headline(summary), curve_section(table, summary), operating_point(summary)]
    sections += [divided(rows, summary["metrics"]), browser(cards, COUNT, 1_000_000)]
    sections.append(provenance({"command": HOSTILE}, {"model": {"kind": "image"}}))
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, f"Report {HOSTILE}", sections, HOSTILE)
    return path


def test_no_errors_and_no_requests(sight: Any, report: Path, tmp_path: Path) -> None:
    """And in another page both would be seen."""
    sight.open(report)
    assert (sight.errors, sight.requests) == ([], [])
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("oh"); missing();</script>')
    sight.open(bad)
    for told in ("oh", "missing is not defined"):
        assert any(told in error for error in sight.errors)
    assert "http://127.0.0.1:9/x.png" in sight.requests


def test_a_script_that_came_in_with_a_text_would_not_run(sight: Any, tmp_path: Path) -> None:
    """The second wall: even HTML that nobody escaped is held by the policy of the page."""
    evil = Section("x", "<script>hacked = 1</script><img src=x onerror='hacked = 1'>")
    write_report(tmp_path / "x.html", "x", [evil])
    sight.open(tmp_path / "x.html")
    assert sight.evaluate("typeof hacked") == "undefined"
    assert any("Content Security Policy" in error for error in sight.errors)


def test_hostile_ids_are_shown_and_nothing_more(sight: Any, report: Path) -> None:
    sight.open(report, "#q=onerror")
    assert sight.evaluate(VISIBLE) == [HOSTILE.lower()]
    assert sight.evaluate("document.querySelector('.cards li:not([hidden]) b').textContent") == HOSTILE
    assert sight.evaluate("typeof hacked") == "undefined"
    assert sight.evaluate("document.scripts.length") == 1
    assert sight.evaluate("document.title") == f"Report {HOSTILE}"


def wanted(**asked: str) -> list[str]:
    """The slow twin of the filters, in pandas."""
    table = scored()
    cancer, called = table["cancer"] == 1, table["called"]
    table["outcome"] = np.select([called & cancer, cancer, called], ["found", "missed", "alarm"], "clear")
    table["label"] = table["cancer"].astype(str)
    for name, text in asked.items():
        if name == "q":
            table = table[table["prediction_id"].str.lower().str.contains(text, regex=False)]
        elif name != "sort":
            table = table[table[name] == text]
    key = {"": -table["score"], "low": table["score"], "wrong": -(table["cancer"] - table["score"]).abs()}
    return table.loc[key[asked.get("sort", "")].sort_values(kind="stable").index, "prediction_id"].str.lower().tolist()


def test_the_address_filters_sorts_and_searches(sight: Any, report: Path) -> None:
    for asked in (
        {},
        {"label": "0", "site": "1"},
        {"outcome": "missed", "sort": "low"},
        {"outcome": "alarm", "sort": "wrong"},
        {"q": "1_r", "site": "2"},
        {"q": "no such id"},
    ):
        sight.open(report, "#" + "&".join(f"{name}={text}" for name, text in asked.items()).replace(" ", "%20"))
        expected = wanted(**asked)
        assert sight.evaluate(VISIBLE) == expected[:60]
        more = ", the first 60 are shown" if len(expected) > 60 else ""
        assert sight.evaluate(STATUS) == f"{len(expected)} of these {COUNT} breasts fit the filters{more}."
    sight.open(report, "#sort=id&label=1")
    assert sight.evaluate(VISIBLE)[:4] == ["0_l", "5_r", "10_l", "15_r"]  # as people count
    for nonsense in ("#label=7", "#sort=__proto__", "#s3", "#%E0%A4%A"):
        sight.open(report, nonsense)
        assert sight.evaluate(VISIBLE) == wanted()[:60]
        assert sight.errors == []


def test_filters_are_kept_in_the_address_and_can_be_taken_back(sight: Any, report: Path) -> None:
    sight.open(report)
    choose = "document.querySelector('[name={}]').value = '{}'; form.dispatchEvent(new Event('input'))"
    sight.evaluate("globalThis.form = document.querySelector('form'); " + choose.format("label", "1"))
    sight.evaluate(choose.format("sort", "low"))
    assert sight.evaluate("location.hash") == "#label=1&sort=low"
    assert sight.evaluate(VISIBLE) == wanted(label="1", sort="low")
    later = "new Promise(done => setTimeout(done, 50)).then(() => location.hash)"
    sight.evaluate("document.querySelector('nav a').click()")
    assert sight.evaluate(later) == "#s1"  # a link to a section leaves the filters alone
    assert sight.evaluate(VISIBLE) == wanted(label="1", sort="low")
    sight.evaluate("document.querySelector('[type=reset]').click()")
    assert sight.evaluate(later) == ""
    assert sight.evaluate(VISIBLE) == wanted()[:60]


def test_more_cards_are_shown_on_demand(sight: Any, report: Path) -> None:
    sight.open(report)
    assert len(sight.evaluate(VISIBLE)) == 60
    sight.evaluate("document.querySelector('.further').click()")
    assert sight.evaluate(VISIBLE) == wanted()
    assert sight.evaluate("document.activeElement.dataset.id") == wanted()[60]  # reading goes on where it was
    assert sight.evaluate("document.querySelector('.further').offsetParent") is None


def test_without_javascript_everything_is_there_but_the_filters(sight: Any, report: Path) -> None:
    sight.send("Emulation.setScriptExecutionDisabled", value=True)
    sight.open(report, "#label=1")
    found = sight.send("DOM.getDocument", depth=-1)["root"]["nodeId"]
    cards = sight.send("DOM.querySelectorAll", nodeId=found, selector=".cards li:not([hidden])")["nodeIds"]
    assert len(cards) == COUNT
    form = sight.send("DOM.querySelector", nodeId=found, selector="form.filters")["nodeId"]
    with pytest.raises(RuntimeError, match="box model"):
        sight.send("DOM.getBoxModel", nodeId=form)


def test_the_keyboard_reaches_everything(sight: Any, report: Path) -> None:
    sight.open(report)
    sight.press("Tab")
    assert sight.evaluate("document.activeElement.className") == "skip"
    assert sight.evaluate("document.activeElement.getBoundingClientRect().left") >= 0  # seen when it has the focus
    active, reached = "document.activeElement", []
    for _ in range(60):
        sight.press("Tab")
        reached.append(sight.evaluate(f"[{active}.tagName, {active}.name, getComputedStyle({active}).outlineStyle]"))
    assert {tag for tag, _, _ in reached} >= {"A", "SUMMARY", "SELECT", "INPUT", "BUTTON", "DIV"}
    assert {name for _, name, _ in reached if name} == {"label", "outcome", "site", "q", "sort"}
    assert {outline for tag, _, outline in reached if tag != "BODY"} == {"solid"}


def test_everything_has_a_name(sight: Any, report: Path) -> None:
    sight.open(report)
    unnamed = """[
      ...[...document.querySelectorAll('select, input')].filter(field => !field.labels.length),
      ...[...document.images].filter(image => !image.alt),
      ...[...document.querySelectorAll('svg')].filter(drawing => !drawing.getAttribute('aria-label')),
      ...[...document.querySelectorAll('table')].filter(table => !table.caption || !table.tHead),
      ...[...document.querySelectorAll('button, a, summary')].filter(one => !one.textContent.trim()),
      ...[...document.querySelectorAll('section')].filter(one => !one.ariaLabelledByElements.length),
    ].map(element => element.outerHTML.slice(0, 80))"""
    assert sight.evaluate(unnamed) == []
    levels = sight.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(one => Number(one.tagName[1]))")
    assert (levels[0], levels.count(1)) == (1, 1)
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = sight.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) == len(set(ids))


def test_nothing_is_wider_than_the_window(sight: Any, report: Path) -> None:
    """Tables scroll in a frame of their own; on paper they fit (A4 less its margins is 718 wide)."""
    for width, phone, media in (
        (1200, False, "screen"),
        (390, True, "screen"),
        (320, True, "screen"),
        (718, False, "print"),
    ):
        sight.look(width, phone=phone, media=media)
        sight.open(report)
        assert sight.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(
    ("dark", "media", "ground", "ink", "line"),
    [
        (False, "screen", "rgb(246, 246, 244)", "rgb(27, 27, 27)", "rgb(0, 114, 178)"),
        (True, "screen", "rgb(20, 21, 23)", "rgb(236, 236, 236)", "rgb(86, 180, 233)"),
        (True, "print", "rgb(255, 255, 255)", "rgb(27, 27, 27)", "rgb(0, 114, 178)"),
    ],
)
def test_page_and_charts_are_light_or_dark_as_the_reader_asked(
    sight: Any, report: Path, dark: bool, media: str, ground: str, ink: str, line: str
) -> None:
    """Paper is always light. Text and curves of the charts follow: no style of theirs was lost to the policy."""
    sight.look(718, dark=dark, media=media)
    sight.open(report)
    style = "getComputedStyle({}).{}"
    assert sight.evaluate(style.format("document.body", "backgroundColor")) == ground
    assert sight.evaluate(style.format("document.body", "color")) == ink
    assert sight.evaluate(style.format("document.querySelector('figure svg text')", "fill")) == ink
    strokes = "[...document.querySelectorAll('figure svg path')].map(one => getComputedStyle(one).stroke)"
    assert line in sight.evaluate(strokes)


def test_on_paper_the_first_cases_are_there_and_no_controls(sight: Any, report: Path) -> None:
    sight.look(718, dark=True, media="print")
    sight.open(report, "#label=0")
    assert sight.evaluate(VISIBLE) == wanted(label="0")[:24]
    controls = "[...document.querySelectorAll('nav, form, .further, .skip')].filter(one => one.offsetParent)"
    assert sight.evaluate(controls) == []
    folded = "[...document.querySelectorAll('details table')].filter(one => !one.checkVisibility()).length"
    assert sight.evaluate(folded) == 0  # what is folded on the screen is printed
    sight.look(1200)
    assert sight.evaluate(folded) > 0


def test_screens_are_taken_by_one_command(report: Path, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "report-screens", report, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert (found["errors"], found["requests"], found["wider_than_the_window"]) == ([], [], [])
    assert {path.stem for path in tmp_path.iterdir()} == {"light", "dark", "phone", "print"}
    assert (tmp_path / "print.pdf").read_bytes().startswith(b"%PDF")
