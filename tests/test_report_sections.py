"""Summaries that fit into JSON, and a page that needs nothing but itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from rsna_kit.runtime.errors import TableError
from rsna_kit.scoring.calibration import expected_calibration_error, reliability
from rsna_kit.scoring.metrics import confusion_at, mean_log_loss, pf1_score, roc_auc_score
from rsna_kit.scoring.summary import notable, summarise
from rsna_kit.scoring.threshold import Threshold, apply_threshold, choose_threshold
from rsna_lab.report.cases import Case, cases
from rsna_lab.report.charts import Axis, Chart
from rsna_lab.report.drawings import drawings, reliability_drawing
from rsna_lab.report.history import training_section
from rsna_lab.report.sections import (
    curves,
    headline,
    operating_point,
    pictures,
    provenance,
    reliability_section,
    write_report,
)

VOID = {"meta", "img", "br", "link", "input", "hr"}


def breasts(patients: int = 200, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    cancer = (rng.random(2 * patients) < 0.1).astype("int8")
    ids = [f"{number}" for number in range(patients) for _ in "LR"]
    return pd.DataFrame(
        {
            "prediction_id": [f"{patient}_{side}" for patient, side in zip(ids, "LR" * patients, strict=True)],
            "patient_id": ids,
            "cancer": cancer,
            "score": np.clip(rng.beta(1.2, 8, 2 * patients) + 0.25 * cancer, 0, 1),
        }
    )


class Page(HTMLParser):
    """Checks that tags close in order, and keeps every address and every id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("href", "src", "srcset", "action")]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_summary_holds_what_the_metrics_say() -> None:
    table = breasts()
    summary = summarise(table, 0.3, resamples=50)
    labels, scores = table["cancer"], table["score"]
    called = confusion_at(labels, scores, 0.3)
    values = {name: metric["value"] for name, metric in summary["metrics"].items()}
    assert values["pf1"] == pf1_score(labels, scores)
    assert values["pf1_binary"] == pytest.approx(pf1_score(labels, apply_threshold(table, 0.3)["cancer"]))
    assert values["roc_auc"] == roc_auc_score(labels, scores)
    assert values["log_loss"] == pytest.approx(mean_log_loss(labels, scores))
    assert values["sensitivity_at_winners_recall_rate"] == pytest.approx(
        labels[scores.nlargest(int(0.015 * len(scores))).index].sum() / labels.sum()
    )
    for name in ("sensitivity", "specificity", "recall_rate", "ppv"):
        assert values[name] == called[name]
    assert summary["confusion"] == {name: called[name] for name in ("tp", "fp", "fn", "tn")}
    assert summary["counts"] == {
        "breasts": 400, "patients": 200, "positives": labels.sum(), "prevalence": labels.mean(),
    }  # fmt: skip
    for metric in summary["metrics"].values():
        assert metric["low"] <= metric["value"] <= metric["high"]


def test_a_summary_survives_json_and_is_reproducible() -> None:
    table = breasts()
    rule = choose_threshold(table["cancer"], table["score"])
    summary = summarise(table, rule, resamples=50)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary == summarise(table, rule, resamples=50)
    assert summary["threshold"] == {
        "value": rule.value, "f1": rule.f1, "low": rule.low, "high": rule.high, "quantile": rule.quantile,
    }  # fmt: skip


def test_without_positives_a_summary_says_none_instead_of_a_number() -> None:
    summary = summarise(breasts().assign(cancer=0), 0.3, resamples=10)
    assert summary["metrics"]["roc_auc"] == {"value": None, "low": None, "high": None}
    assert summary["metrics"]["specificity"]["value"] is not None
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="patient_id"), "no column 'patient_id'"),
        (lambda table: table.rename(columns={"score": "Score"}), "Did you mean 'Score'"),
        (lambda table: pd.concat([table, table.iloc[:1]]), "0_L stands there twice"),
        (lambda table: table.assign(score=2.0), "outside"),
        (lambda table: table.assign(score=np.nan), "NaN"),
        (lambda table: table.assign(cancer=3), "expected 0 or 1"),
    ],
)
def test_what_is_no_table_of_breasts_is_refused(change, message: str) -> None:
    with pytest.raises(TableError, match=message):
        summarise(change(breasts(5)), 0.3, resamples=5)


def test_notable_breasts_are_the_surest_and_the_worst() -> None:
    table = pd.DataFrame(
        {"prediction_id": list("abcdef"), "cancer": [1, 1, 1, 0, 0, 0], "score": [0.9, 0.5, 0.1, 0.8, 0.6, 0.2]}
    )
    found, missed, alarms = (rows["prediction_id"].tolist() for rows in notable(table, 0.5, count=2).values())
    assert (found, missed, alarms) == (["a", "b"], ["c"], ["d", "e"])


def full_page(path: Path, side: int = 64, count: int = 4) -> str:
    table = breasts()
    rule = choose_threshold(table["cancer"], table["score"])
    summary = summarise(table, rule, resamples=20)
    rng = np.random.default_rng(0)
    shown = [
        Case([rng.integers(0, 256, (side, side // 2), dtype=np.uint8)], f"<b>{number}</b> & co", 0.5, number % 2)
        for number in range(count)
    ]
    sections = [
        headline(summary),
        curves(table, summary),
        operating_point(summary),
        cases({"Missed <i>": shown, "None of these": []}, "How to read <them>"),
        pictures("Training", [(b"\x89PNG\r\n\x1a\n", 'fold "0"')]),
        provenance({"command": "score <oof.csv>", "packages": {"numpy": "2.0.2"}}, {"model": {"kind": "<kind>"}}),
    ]
    write_report(path, "Title <script>alert(1)</script>", sections, 'sub "title"')
    return path.read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_asks_for_nothing(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    text = full_page(tmp_path / "report.html")
    page = Page(text)
    outside = [address for address in page.addresses if not address.startswith(("data:image/", "#"))]
    assert outside == []
    assert "script" not in page.tags
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    anchors = {address[1:] for address in page.addresses if address.startswith("#")}
    assert anchors <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_texts_from_outside_are_escaped(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    text = full_page(tmp_path / "report.html")
    for raw in ("<script>", "<b>0</b>", "Missed <i>", "score <oof.csv>", "<them>", "<kind>"):
        assert raw not in text
    assert "Title &lt;script&gt;" in text
    assert "packages numpy" in text


def test_every_picture_has_words_and_every_drawing_is_xml() -> None:
    table = breasts()
    labels, scores = table["cancer"].to_numpy(), table["score"].to_numpy()
    for drawing in drawings(labels, scores, {"value": 0.3, "low": 0.2, "high": 0.4}):
        root = ElementTree.fromstring(drawing.svg)
        assert root.get("role") == "img"
        assert drawing.title in str(root.get("aria-label"))
        assert "nan" not in drawing.svg


@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1e-7, 2e-7, 3e-7], [0.0, 0.5, 1.0]])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 2.0])
def test_odd_scores_can_be_drawn(scores: list[float], threshold: float) -> None:
    for drawing in drawings(np.array([0, 1, 0]), np.array(scores), {"value": threshold}):
        ElementTree.fromstring(drawing.svg)
        assert not re.search(r"nan|inf\b", drawing.svg)


def test_one_class_alone_has_no_curves() -> None:
    table = breasts(5).assign(cancer=0)
    assert "no curve" in curves(table, summarise(table, 0.3, resamples=5)).body


def test_a_page_full_of_noise_stays_under_five_megabytes(tmp_path: Path) -> None:
    """Noise is the worst that WebP can meet; mammograms are a tenth of it."""
    pytest.importorskip("cv2")
    full_page(tmp_path / "report.html", side=1536, count=24)
    assert (tmp_path / "report.html").stat().st_size < 5_000_000


def test_a_picture_of_another_type_is_refused() -> None:
    pytest.importorskip("cv2")
    with pytest.raises(TableError, match=r"float64 picture of shape \(4, 4\), expected uint8"):
        cases({"x": [Case([np.zeros((4, 4))], "x", 0.1, 0)]})
    with pytest.raises(TableError, match="expected a PNG, JPEG or WebP"):
        pictures("x", [(b"GIF89a", "x")])


def test_a_case_picture_is_the_picture() -> None:
    """Left half white, right half black, through WebP and back."""
    cv2 = pytest.importorskip("cv2")
    import base64

    picture = np.zeros((64, 32), dtype=np.uint8)
    picture[:, :16] = 255
    body = cases({"x": [Case([picture], "x", 0.25, 1)]}).body
    content = re.search(r"base64,([^\"]+)", body)
    assert content is not None
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(content[1]), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.abs(decoded.astype(int) - picture).mean() <= 3
    assert "score 0.250, cancer" in body


def test_the_f1_step_reaches_back_to_the_score_below() -> None:
    """Between two scores F1 is that of the upper one: the vertical stroke stands at the lower score."""
    chart = Chart(Axis("t"), Axis("F1"))
    chart.line(np.array([0.0, 1.0]), np.array([0.25, 0.75]), "one", step=True)
    (left, low), (right, high) = ((float(a), float(b)) for a, b in (chart.at(0.0, 0.25), chart.at(1.0, 0.75)))
    assert f"{left:g},{low:g} {left:g},{high:g} {right:g},{high:g}" in chart.body()


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, 6), (0, 0.5, 6), (0, 0.15, 4), (0, 3e-7, 7), (0, 2e-13, 5), (0, 0.08, 5), (0, 0.6, 7)],
)
def test_ticks_are_few_and_round(low: float, high: float, ticks: int) -> None:
    found = Axis("x", low, high).ticks()
    assert 3 <= len(found) <= 7
    assert found[0] == 0
    assert found[-1] <= high + 1e-12
    assert len(found) == ticks


def test_a_plain_threshold_has_no_plateau_to_draw() -> None:
    table = breasts()
    assert 'class="band"' not in curves(table, summarise(table, 0.3, resamples=5)).body
    rule = Threshold(0.3, 0.5, 0.2, 0.4, 0.9)
    assert 'class="band"' in curves(table, summarise(table, rule, resamples=5)).body


def test_numpy_and_pandas_are_enough_for_numbers_and_page(tmp_path: Path) -> None:
    """Only pictures of cases need OpenCV: scoring runs where nothing else is installed."""
    breasts(20).to_csv(tmp_path / "oof.csv", index=False)
    program = """
import sys
from pathlib import Path
for name in ("cv2", "scipy", "sklearn", "matplotlib", "pydicom", "imagecodecs", "tensorflow", "keras", "tqdm"):
    sys.modules[name] = None
from rsna_kit.scoring.breasts import read_predictions
from rsna_lab.report.sections import curves, headline, operating_point, write_report
from rsna_kit.scoring.summary import summarise
from rsna_kit.scoring.threshold import choose_threshold
table = read_predictions(Path(sys.argv[1]) / "oof.csv")
summary = summarise(table, choose_threshold(table["cancer"], table["score"]), resamples=20)
sections = [headline(summary), curves(table, summary), operating_point(summary)]
write_report(Path(sys.argv[1]) / "report.html", "Bare", sections)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program, str(tmp_path)], check=True, timeout=60)
    assert (tmp_path / "report.html").read_text().count("<svg") == 4


def test_a_calibrated_score_lies_on_the_diagonal() -> None:
    """Of scores 0.25 a quarter has cancer, of 0.75 three quarters: both points at equal x and y."""
    labels, scores = np.tile([0, 0, 0, 1, 0, 1, 1, 1], 50), np.tile([0.25] * 4 + [0.75] * 4, 50)
    drawing = reliability_drawing("raw", reliability(labels, scores))
    root = ElementTree.fromstring(drawing.svg)
    chart = Chart(Axis("x"), Axis("y"))
    points = [(circle.get("cx"), circle.get("cy")) for circle in root.iter("circle")]
    assert points == [tuple(f"{float(place):.1f}" for place in chart.at(value, value)) for value in (0.25, 0.75)]
    section = reliability_section(
        {"Raw <b>": (reliability(labels, scores), expected_calibration_error(labels, scores))}
    )
    assert "error 0.0000" in section.body
    assert "Raw <b>" not in section.body


def test_the_curves_of_a_training_mark_the_epoch_that_was_kept() -> None:
    row = {"loss": 0.5, "val_loss": None, "val_roc_auc": 0.75}
    section = training_section({"fold0": [{"epoch": 1, **row}, {"epoch": 2, **row, "val_loss": 0.25}]}, {"fold0": 2})
    losses, metrics = (ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", section.body))
    names = [text.text for text in losses.iter("text") if text.get("class") == "label"]
    assert names[-2:] == ["training", "validation"]
    (rule,) = [line for line in losses.iter("line") if line.get("class") == "rule"]
    last = max(float(line.get("points").split()[-1].split(",")[0]) for line in losses.iter("polyline"))
    assert float(rule.get("x1")) == pytest.approx(last, abs=0.1)
    assert "nan" not in section.body
    assert len(list(metrics.iter("polyline"))) == 1


def test_losses_of_a_cvae_have_a_scale_each() -> None:
    """Its loss is a sum over pixels, its val_loss that of a calibrated score: one chart would show a line at 0."""
    section = training_section({"fold0": [{"epoch": 1, "loss": 9000.0, "val_loss": 0.5}]}, {})
    assert re.findall(r"<b>(.*?)\.</b>", section.body) == ["fold0: training loss", "fold0: validation loss"]


@pytest.mark.parametrize("value", [None, -2.0, 0.0])
def test_odd_losses_can_be_drawn(value: float | None) -> None:
    section = training_section({"x": [{"epoch": 1, "loss": value, "val_loss": value, "val_pf1": value}]}, {"x": 1})
    for svg in re.findall(r"<svg.*?</svg>", section.body):
        ElementTree.fromstring(svg)
        assert not re.search(r"nan|inf\b", svg)
