"""The page itself: its colours can be read, its parts are named, its policy lets nothing in."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from rsna_lab.report.page import Section, page, table
from rsna_lab.report.style import DARK, LIGHT, STYLE


def contrast(first: str, second: str) -> float:
    """WCAG 2.2, contrast ratio: of relative luminances, 1 to 21."""

    def luminance(colour: str) -> float:
        channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
@pytest.mark.parametrize("name", ["ink", "soft", "link", "one", "two"])
def test_everything_can_be_read_on_its_ground(scheme: dict[str, str], name: str) -> None:
    """4.5 is WCAG's level AA for text; lines and bars would need 3, and have it too."""
    for ground in ("card", "ground"):
        assert contrast(scheme[name], scheme[ground]) >= 4.5
    assert f'[stroke="{LIGHT[name]}"] {{ stroke: var(--{name}); }}' in STYLE  # so charts follow the scheme


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
