"""Sections and charts: well-formed, escaped, each number where it belongs, and a page that needs nothing but itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from rsna_kit.scoring import metrics
from rsna_kit.scoring.intervals import summarise
from rsna_kit.scoring.metrics import Metric
from rsna_kit.scoring.threshold import choose_threshold
from rsna_lab.analysis.subgroups import subgroups
from rsna_lab.report.charts import curves, forest
from rsna_lab.report.page import pictures
from rsna_lab.report.sections import (
    curve_section,
    headline,
    operating_point,
    provenance,
    subgroup_section,
    write_report,
)

VOID = {"meta", "img", "br", "link", "input", "hr"}
HOSTILE = '<script>alert(1)</script>" $x$'


def breasts(patients: int = 200, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    cancer = (rng.random(2 * patients) < 0.1).astype("int8")
    score = np.clip(rng.beta(1.2, 8, 2 * patients) + 0.25 * cancer, 0, 1)
    ids = [f"{number}" for number in range(patients) for _ in "LR"]
    names = [f"{patient}_{side}" for patient, side in zip(ids, "LR" * patients, strict=True)]
    columns = {"prediction_id": names, "patient_id": ids, "cancer": cancer, "score": score, "called": score >= 0.3}
    return pd.DataFrame(columns)


class Page(HTMLParser):
    """Checks that tags close in order, and keeps every address, id and style attribute."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.styled: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("href", "xlink:href", "src", "srcset", "action")]
        self.ids += [value for name, value in attrs if name == "id"]
        self.styled += [value for name, value in attrs if name == "style"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def full_page(path: Path) -> str:
    table = breasts()
    summary = summarise(table, choose_threshold(table["cancer"], table["score"]), resamples=20)
    facts = pd.DataFrame({"site": [HOSTILE, "2"] * 200}, index=table["prediction_id"])
    sections = [
        headline(summary),
        curve_section(table, summary, table["score"].to_numpy() / 2),
        operating_point(summary, summary["metrics"]["pf1"]),
        subgroup_section(subgroups(table, facts, resamples=20), summary["metrics"]),
        pictures("Training", [(b"\x89PNG\r\n\x1a\n", 'fold "0"')]),
        provenance({"command": "score <oof.csv>", "packages": {"numpy": "2.0.2"}}, {"model": {"kind": "<kind>"}}),
    ]
    write_report(path, f"Title {HOSTILE}", sections, 'sub "title"')
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return full_page(tmp_path_factory.mktemp("page") / "report.html")


def test_the_page_is_well_formed_and_asks_for_nothing(text: str) -> None:
    """No script, no request, and nothing that its policy would forbid: the charts have no style of their own."""
    page = Page(text)
    assert [one for one in page.addresses if not one.startswith(("data:image/", "#"))] == []
    assert "script" not in page.tags
    assert page.tags.count("style") == 1
    assert page.styled == []
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) == {"#"}  # a clip of the same chart
    assert "default-src 'none'" in text
    anchors = {address[1:] for address in page.addresses if address.startswith("#")}
    assert anchors <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_texts_from_outside_are_escaped(text: str) -> None:
    for raw in ("<script>", "score <oof.csv>", "<kind>"):
        assert raw not in text
    assert "Title &lt;script&gt;" in text
    assert text.count("$x$") >= 4  # in title, table and charts, where it is no formula
    assert "packages numpy" in text


@pytest.mark.parametrize(("scores", "threshold"), [([1.0, 1.0, 1.0], 2.0), ([0.0, 1e-7, 3e-7], 0.0)])
def test_odd_scores_can_be_drawn(scores: list[float], threshold: float) -> None:
    table = pd.DataFrame({"cancer": [0, 1, 0], "score": scores})
    for figure in curves(table, {"value": threshold}, None):
        root = ElementTree.fromstring(figure.replace("xlink:href", "href")).find("svg")
        assert root is not None
        assert root.get("role") == "img"
        assert str(root.get("aria-label")).endswith(".")
        assert not re.search(r"nan|inf\b", figure)


def test_charts_are_the_same_each_time_and_show_a_plateau_only_where_there_is_one() -> None:
    table = breasts()
    plain = list(curves(table, {"value": 0.3}, None))
    assert plain[0] == next(iter(curves(table, {"value": 0.3}, None)))
    wide = list(curves(table, {"value": 0.3, "low": 0.2, "high": 0.4}, None))
    assert ["plateau" in figure for figure in wide] == [False, False, True, False, False]
    assert 'opacity="0.2"' in wide[2]
    assert 'opacity="0.2"' not in plain[2]


def test_a_forest_names_every_group_and_marks_the_small_ones() -> None:
    table = breasts()
    facts = pd.DataFrame({"site": ["1"] * 200 + ["2"] * 190 + ["3"] * 10}, index=table["prediction_id"])
    rows = subgroups(table, facts, resamples=20)
    drawn = forest(rows, "specificity", 0.9)
    assert [drawn.count(f">site {level}<") for level in "123"] == [1, 1, 1]
    body = subgroup_section(rows, summarise(table, 0.3, resamples=5)["metrics"]).body
    assert body.count("small group</small>") == 1
    assert "nan" not in body
    assert f"{100 * rows['sensitivity'][0].value:.1f}\u00a0%" in body
    empty = subgroup_section(rows.iloc[:0], {})
    assert "Nothing is known" in empty.body


def test_one_class_alone_has_no_curves() -> None:
    table = breasts(5).assign(cancer=0)
    assert "no curve" in curve_section(table, summarise(table, 0.3, resamples=5)).body


def test_a_metric_is_one_entry_away_from_scores_and_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but METRICS knows of it."""
    wrong = Metric(lambda c: c.total(np.abs(c.labels - c.called)), "Wrong calls", "missed & called in error")
    monkeypatch.setitem(metrics.METRICS, "wrong_loss", wrong)  # type: ignore[arg-type]
    table = breasts()
    summary = summarise(table, 0.3, resamples=20)
    expected = float(((table["score"] >= 0.3).astype(int) != table["cancer"]).sum())
    assert summary["metrics"]["wrong_loss"]["value"] == expected
    assert f'<th scope="row">Wrong calls</th><td>{expected:.3f}</td>' in headline(summary).body
    assert "missed &amp; called in error" in headline(summary).body
