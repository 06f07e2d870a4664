"""The page as people meet it, in headless Chromium: filters, no script, dark, phone, no errors.

To look at a page yourself: chromium --headless --screenshot=page.png --window-size=1280,7000 report.html
(and --blink-settings=preferredColorScheme=0 for dark, or --print-to-pdf=page.pdf).
"""

from __future__ import annotations

import html
import json
import shutil
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rsna_kit.scoring.intervals import summarise
from rsna_kit.scoring.threshold import choose_threshold
from rsna_lab.analysis.subgroups import subgroups
from rsna_lab.report.cards import Card, View, card_section
from rsna_lab.report.page import Section
from rsna_lab.report.sections import curve_section, headline, operating_point, provenance, write_report
from rsna_lab.report.sections import subgroup_section as divided

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason=f"no headless browser: none of {', '.join(NAMES)} is installed"
)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr")
DARK = "--blink-settings=preferredColorScheme=0"
FRAME = """<!doctype html><body style="margin:0"><iframe style="border:0;width:{width}px;height:7000px"></iframe>
<script>const frame = document.querySelector("iframe");
frame.onload = async () => {{ const page = frame.contentDocument, view = frame.contentWindow;
document.body.dataset.found = JSON.stringify(await ({script})); }}
frame.src = "{page}";</script>"""
HOSTILE = "\"><img src=x onerror=hacked=1><script>hacked=1</script>' onfocus='hacked=1"
COUNT = 150
SHOWN = "[...page.querySelectorAll('.cards li')].map(card => card.dataset.id)"


def browse(address: str, *options: str) -> tuple[str, list[str]]:
    """What Chromium prints of an address, and what its console complained of."""
    with tempfile.TemporaryDirectory() as profile:
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "--dump-dom", *options, address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line.partition("] ")[2] for line in done.stderr.splitlines() if ":CONSOLE" in line]


def evaluate(page: Path, script: str, width: int = 1200, *options: str) -> Any:
    """The value of a piece of JavaScript about `page` (the document) and `view`, in a frame so wide."""
    options = (*options, "--allow-file-access-from-files", "--virtual-time-budget=20000")
    with tempfile.NamedTemporaryFile("w", suffix=".html", encoding="utf-8") as file:
        file.write(FRAME.format(width=width, page=page.resolve().as_uri(), script=script))
        file.flush()
        dom, errors = browse(Path(file.name).as_uri(), *options)
    assert errors == []
    return json.loads(html.unescape(dom.partition('data-found="')[2].partition('"')[0]))


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
    sections += [divided(rows, summary["metrics"]), card_section(cards, COUNT, 1_000_000)]
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


def test_the_address_filters_sorts_and_searches_and_follows_the_filters(report: Path) -> None:
    addresses: list[dict[str, str]] = [
        {"label": "0", "site": "1"},
        {"outcome": "missed", "sort": "low"},
        {"outcome": "alarm", "sort": "wrong"},
        {"q": "onerror"},
        {"label": "7", "sort": "__proto__"},
    ]
    texts = ["&".join(f"{name}={text}" for name, text in asked.items()) for asked in addresses]
    script = f"""(async () => {{ const later = () => new Promise(done => setTimeout(done, 50)), found = [];
        for (const text of {texts}) {{ view.location.hash = text; await later();
        found.push([{SHOWN}, page.querySelector('[role=status]').textContent]); }}
        const filters = page.querySelector('.filters');
        filters.elements.label.value = '1'; filters.dispatchEvent(new view.Event('input')); await later();
        found.push([{SHOWN}, view.location.hash]);
        page.querySelector('a[href="#sort="]').click(); await later();
        found.push([{SHOWN}, filters.elements.label.value]); return found; }})()"""
    *found, chosen, reset = evaluate(report, script)
    for asked, (shown, status) in zip(addresses, found, strict=True):
        expected = wanted(**asked) if asked.get("label") != "7" else wanted()
        assert shown == expected
        assert status == f"{len(expected)} of these {COUNT} breasts fit the filters."
    assert chosen == [wanted(label="1"), "#label=1"]
    assert reset == [wanted(), ""]


def test_without_javascript_everything_is_there_but_the_filters(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert text.count("<li data-id=") == COUNT
    assert 'aria-label="Filter the cases" hidden>' in text


def test_html_that_nobody_escaped_is_held_by_the_policy_of_the_page(tmp_path: Path) -> None:
    evil = Section("x", "<script>hacked = 1</script><img src=http://127.0.0.1:9/x.png onerror='hacked = 1'>")
    write_report(tmp_path / "x.html", "x", [evil])
    _, errors = browse((tmp_path / "x.html").as_uri())
    assert sum("Content Security Policy" in error for error in errors) == 3  # script, picture, handler


def test_everything_has_a_name_nothing_foreign_runs_and_the_page_fits_a_phone(report: Path) -> None:
    script = """[[
      ...[...page.querySelectorAll('select, input')].filter(field => !field.labels.length),
      ...[...page.images].filter(image => !image.alt),
      ...[...page.querySelectorAll('svg')].filter(drawing => !drawing.getAttribute('aria-label')),
      ...[...page.querySelectorAll('table')].filter(table => !table.caption || !table.tHead),
      ...[...page.querySelectorAll('button, a, summary')].filter(one => !one.textContent.trim()),
      ...[...page.querySelectorAll('section')].filter(one => !one.ariaLabelledByElements.length),
    ].map(element => element.outerHTML.slice(0, 80)),
    [...page.querySelectorAll('h1,h2,h3,h4')].map(one => Number(one.tagName[1])),
    [...page.querySelectorAll('[id]')].map(one => one.id),
    [typeof view.hacked, page.scripts.length, page.title], page.documentElement.scrollWidth]"""
    unnamed, levels, ids, foreign, width = evaluate(report, script, 390)
    assert unnamed == []
    assert (levels[0], levels.count(1)) == (1, 1)
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert len(ids) == len(set(ids))
    assert foreign == ["undefined", 1, f"Report {HOSTILE}"]  # one script is the page's own
    assert width <= 390


def test_charts_are_dark_as_the_reader_asked_and_the_page_fits_a_screen(report: Path) -> None:
    """Text and curves of the charts follow: no style of theirs was lost to the policy."""
    script = """[page.documentElement.scrollWidth, view.getComputedStyle(page.body).color,
        view.getComputedStyle(page.querySelector('figure svg text')).fill,
        ...[...page.querySelectorAll('figure svg path')].map(one => view.getComputedStyle(one).stroke)]"""
    width, page, text, *strokes = evaluate(report, script, 1280, DARK)
    assert width <= 1280
    assert page == text == "rgb(236, 236, 236)"
    assert "rgb(86, 180, 233)" in strokes
