"""The page as people meet it, in headless Chromium: filters, no script, dark, phone and paper, no errors."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from itertools import pairwise
from pathlib import Path

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

SCRIPT = Path(__file__).parent.parent / "scripts" / "report-screens"
loader = SourceFileLoader("report_screens", str(SCRIPT))
spec = importlib.util.spec_from_loader(loader.name, loader)
assert spec is not None
screens = importlib.util.module_from_spec(spec)
loader.exec_module(screens)
pytestmark = pytest.mark.skipif(
    screens.CHROMIUM is None, reason=f"no headless browser: none of {', '.join(screens.NAMES)} is installed"
)
HOSTILE = "\"><img src=x onerror=hacked=1><script>hacked=1</script>' onfocus='hacked=1"
COUNT = 150
SHOWN = "[...page.querySelectorAll('.cards li')].filter(card => card.offsetParent).map(card => card.dataset.id)"


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


def test_the_address_filters_sorts_and_searches(report: Path) -> None:
    addresses: list[dict[str, str]] = [
        {"label": "0", "site": "1"},
        {"outcome": "missed", "sort": "low"},
        {"outcome": "alarm", "sort": "wrong"},
        {"q": "onerror"},
        {"label": "7", "sort": "__proto__"},
    ]
    texts = ["&".join(f"{name}={text}" for name, text in asked.items()) for asked in addresses]
    script = f"""(async () => {{ const found = []; for (const text of {texts}) {{
        view.location.hash = text; await new Promise(done => setTimeout(done, 50));
        found.push([{SHOWN}, page.querySelector('[role=status]').textContent]); }} return found; }})()"""
    for asked, (shown, status) in zip(addresses, screens.evaluate(report, script), strict=True):
        expected = wanted(**asked) if asked.get("label") != "7" else wanted()
        assert shown == expected[:60]
        more = ", the first 60 are shown" if len(expected) > 60 else ""
        assert status == f"{len(expected)} of these {COUNT} breasts fit the filters{more}."


def test_filters_go_into_the_address_and_more_cards_come_on_demand(report: Path) -> None:
    script = f"""(async () => {{ const form = page.querySelector('form'), found = [];
        const later = () => new Promise(done => setTimeout(done, 50)).then(() => view.location.hash);
        form.elements.label.value = '1'; form.dispatchEvent(new view.Event('input'));
        found.push(await later(), {SHOWN});
        page.querySelector('[type=reset]').click(); found.push(await later());
        page.querySelector('.further').click();
        found.push({SHOWN}, page.activeElement.dataset.id); return found; }})()"""
    address, shown, reset, every, focus = screens.evaluate(report, script)
    assert (address, shown, reset) == ("#label=1", wanted(label="1"), "")
    assert (every, focus) == (wanted(), wanted()[60])  # reading goes on where it was


def test_without_javascript_everything_is_there_but_the_filters(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert text.count("<li data-id=") == COUNT
    assert 'aria-label="Filter the cases" hidden>' in text
    assert "<li hidden" not in text


def test_a_script_that_came_in_with_a_text_does_not_run(report: Path, tmp_path: Path) -> None:
    """Texts are escaped; and HTML that nobody escaped is held by the policy of the page, which complains."""
    script = "[typeof view.hacked, page.scripts.length, page.title]"
    assert screens.evaluate(report, script) == ["undefined", 1, f"Report {HOSTILE}"]
    evil = Section("x", "<script>hacked = 1</script><img src=http://127.0.0.1:9/x.png onerror='hacked = 1'>")
    write_report(tmp_path / "x.html", "x", [evil])
    _, errors = screens.browse((tmp_path / "x.html").as_uri(), "--dump-dom")
    assert sum("Content Security Policy" in error for error in errors) == 3  # script, picture, handler


def test_everything_has_a_name_and_headings_follow_each_other(report: Path) -> None:
    script = """[[
      ...[...page.querySelectorAll('select, input')].filter(field => !field.labels.length),
      ...[...page.images].filter(image => !image.alt),
      ...[...page.querySelectorAll('svg')].filter(drawing => !drawing.getAttribute('aria-label')),
      ...[...page.querySelectorAll('table')].filter(table => !table.caption || !table.tHead),
      ...[...page.querySelectorAll('button, a, summary')].filter(one => !one.textContent.trim()),
      ...[...page.querySelectorAll('section')].filter(one => !one.ariaLabelledByElements.length),
    ].map(element => element.outerHTML.slice(0, 80)),
    [...page.querySelectorAll('h1,h2,h3,h4')].map(one => Number(one.tagName[1])),
    [...page.querySelectorAll('[id]')].map(one => one.id)]"""
    unnamed, levels, ids = screens.evaluate(report, script)
    assert unnamed == []
    assert (levels[0], levels.count(1)) == (1, 1)
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert len(ids) == len(set(ids))


def test_charts_are_dark_as_the_reader_asked(report: Path) -> None:
    """Text and curves of the charts follow: no style of theirs was lost to the policy."""
    script = """[view.getComputedStyle(page.body).color,
        view.getComputedStyle(page.querySelector('figure svg text')).fill,
        ...[...page.querySelectorAll('figure svg path')].map(one => view.getComputedStyle(one).stroke)]"""
    page, text, *strokes = screens.evaluate(report, script, 1200, screens.DARK)
    assert page == text == "rgb(236, 236, 236)"
    assert "rgb(86, 180, 233)" in strokes


def test_screens_are_taken_by_one_command(report: Path, tmp_path: Path) -> None:
    """And nothing is wider than the window, on a phone either."""
    done = subprocess.run([sys.executable, SCRIPT, report, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert (found["errors"], found["wider_than_the_window"]) == ([], [])
    assert {path.stem for path in tmp_path.iterdir()} == {"light", "dark", "phone", "print"}
    assert (tmp_path / "print.pdf").read_bytes().startswith(b"%PDF")
