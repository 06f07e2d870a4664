"""The page itself: its colours can be read, its parts are named, its policy lets nothing in."""

from __future__ import annotations

import base64
import hashlib
import re

import numpy as np
import pandas as pd
import pytest

from rsna_kit.scoring.uncertainty import Interval
from rsna_lab.analysis.subgroups import subgroups
from rsna_lab.report.forest import subgroup_section
from rsna_lab.report.page import Section, page, table
from rsna_lab.report.style import STYLE
from rsna_lab.report.tables import fold_section, pool_section, threshold_section

TEXT = ("ink", "soft", "link")
GRAPHICS = ("one", "two")


def colours() -> dict[str, dict[str, str]]:
    """Of each scheme, name → #rrggbb, out of the page's own style sheet."""
    found = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    assert len(found) == 2
    return {
        scheme: {name: _long(value) for name, value in re.findall(r"--(\w+): (#\w+)", block)}
        for scheme, block in zip(("light", "dark"), found, strict=True)
    }


def _long(colour: str) -> str:
    return "#" + "".join(2 * digit for digit in colour[1:]) if len(colour) == 4 else colour


def contrast(first: str, second: str) -> float:
    """WCAG 2.2, contrast ratio: of relative luminances, 1 to 21."""

    def luminance(colour: str) -> float:
        channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_measure_of_contrast_is_wcags() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the well-known grey that just fails


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", [*TEXT, *GRAPHICS])
def test_everything_can_be_read_on_its_ground(scheme: str, name: str) -> None:
    """4.5 is WCAG's level AA for text; lines and bars would need 3, and have it too."""
    palette = colours()[scheme]
    for ground in ("card", "ground"):
        assert contrast(palette[name], palette[ground]) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_bars_of_both_classes_differ_without_colour(scheme: str) -> None:
    """As grey: the two stand in panels of their own, and lines of a second series are dashed."""
    assert ".two { stroke: var(--two); stroke-dasharray" in STYLE
    assert ".rule { stroke: var(--ink); stroke-width: 1.6; stroke-dasharray" in STYLE
    assert colours()[scheme]["one"] != colours()[scheme]["two"]


def test_the_policy_names_the_one_script_and_the_one_style() -> None:
    text = page("x", "", [Section("a", "", script="run();"), Section("b", "", script="run();"), Section("c", "")])
    assert text.count("<script>") == 1
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    script, style = re.search(r"<script>(.*?)</script>", text), re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert script is not None
    assert style is not None
    for content in (script[1], style[1]):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[1]
    assert "unsafe" not in policy[1]
    assert "script" not in page("x", "", [Section("c", "")])


def test_parts_stand_together_in_the_contents() -> None:
    sections = [
        Section("In short", "", "a<b>.csv"),
        Section("Curves", "", "a<b>.csv"),
        Section("In short", "", "c.csv"),
    ]
    text = page("x", "", [*sections, Section("Last", "")])
    contents = text.split("<nav")[1].split("</nav>")[0]
    assert re.findall(r"<p>(.*?)</p>", contents) == ["a&lt;b&gt;.csv", "c.csv"]
    assert re.findall(r"<ul>(.*?)</ul>", contents)[0].count("<li>") == 2
    assert '<h2 id="h3"><small>c.csv</small> In short</h2>' in text


def test_a_table_has_a_caption_and_heads_for_rows_and_columns() -> None:
    text = table(["", "a<b"], [["row", "1\n2 < 3"]], "What & why")
    assert "<caption>What &amp; why</caption>" in text
    assert text.count('scope="col"') == 1  # the empty corner heads nothing
    assert '<th scope="row">row</th><td>1<br><small>2 &lt; 3</small></td>' in text


def scored(count: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "prediction_id": [f"{number}_L" for number in range(count)],
            "patient_id": [f"{number}" for number in range(count)],
            "cancer": [0, 1, 0] * (count // 3),
            "score": rng.random(count),
        }
    )


def test_a_forest_draws_every_interval_and_says_why_there_is_none() -> None:
    breasts = scored()
    breasts.loc[breasts["prediction_id"] == "59_L", "cancer"] = 0
    known = pd.DataFrame({"site<b>": ["1"] * 30 + ["2"] * 29 + ["3"]}, index=breasts["prediction_id"])
    rows = subgroups(breasts, known, 0.5, resamples=20)
    body = subgroup_section(rows, {"roc_auc": 0.5, "sensitivity": None, "specificity": 0.5, "f1": 0.5}).body
    lone = body.split(">3<br>")[1].split("</tr>")[0]
    assert lone.count("none: no cancers") == 3
    assert lone.count("<polygon") == 1  # its specificity: hollow, the group is small
    assert "small group" in body.split(">3<br>")[1][:40]
    assert body.count('<circle class="point"') == 8  # two groups of four metrics
    assert body.count('class="rule"') == 7  # nothing to compare sensitivity with
    assert "Site&lt;b&gt;" in body
    assert "nan" not in body


def test_marks_stay_inside_their_column() -> None:
    """The scale is that of the groups that count; a small one runs out of it and is cut."""
    breasts = scored(63)
    known = pd.DataFrame({"site": ["1"] * 30 + ["2"] * 30 + ["3"] * 3}, index=breasts["prediction_id"])
    body = subgroup_section(subgroups(breasts, known, 0.5, resamples=20), {}).body
    for name in ("x1", "x2", "cx"):
        places = [float(value) for value in re.findall(rf' {name}="(-?[\d.]+)"', body)]
        assert places
        assert min(places) >= 0
        assert max(places) <= 112


def test_nothing_known_is_said() -> None:
    empty = subgroups(scored(), pd.DataFrame(index=scored()["prediction_id"]), 0.5)
    assert "Nothing is known" in subgroup_section(empty, {}).body


def test_folds_show_their_numbers_and_the_epoch_that_was_kept() -> None:
    breasts = scored()
    folds = pd.DataFrame({"fold": ["0", "1"] * 30}, index=breasts["prediction_id"])
    rows = subgroups(breasts, folds, 0.5, resamples=20)
    body = fold_section(rows, {"roc_auc": 0.5, "pr_auc": None, "f1": 0.25}, {"0": 7}).body
    assert body.count('<th scope="row">') == 3
    assert "<td>7</td>" in body
    assert f"<td>{rows.loc[0, 'roc_auc']:.3f}<br>" in body
    assert "<td>60</td><td>20</td><td>0.500</td><td>–</td><td>0.250</td>" in body
    assert "Epoch" not in fold_section(rows, {}, {}).body


def test_threshold_rules_are_told_with_what_they_lose() -> None:
    nested = {
        "plateau": {"chosen": 0.6, "f1": 0.5512, "loss": 0.0488},
        "argmax": {"chosen": 0.62, "f1": 0.5, "loss": 0.12},
    }
    halves = pd.DataFrame([{"rule": "plateau by site", **{f"{name}{end}": -0.0001 for name in ("f1", "loss", "gain")
                                                         for end in ("", "_low", "_high")}}])  # fmt: skip
    section = threshold_section(nested, halves, None, None)
    assert section is not None
    assert "<td>0.600</td><td>0.551</td><td>0.049</td>" in section.body
    assert "middle of the plateau (in use) by site" in section.body
    assert "-0.000" not in section.body
    assert "−0.000" not in section.body
    assert threshold_section({}, None, None, None) is None


def test_pools_are_compared_with_the_mean() -> None:
    interval = Interval(0.75, 0.5, 0.9)
    rows = {"mean": {"roc_auc": interval, "pf1_binary": interval},
            "max": {"roc_auc": interval, "roc_auc - mean": Interval(-0.1, -0.2, 0.05), "pf1_binary": interval,
                    "pf1_binary - mean": Interval(0.0, 0.0, 0.0)}}  # fmt: skip
    body = pool_section(rows).body
    assert "<td>−0.100<br><small>−0.200 to 0.050</small></td>" in body
    assert "mean (in use)" in body
