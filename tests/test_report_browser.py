"""Cards of breasts: which are chosen, what fits, what they say; as text, without a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from rsna_lab.report.browser import OUTCOMES, Card, View, browser, worth_showing
from rsna_lab.report.page import page

HOSTILE = ['<script>alert("x")</script>', '"><img src=x onerror=alert(1)>', "' onmouseover='x", "</style>&amp;", "]]>"]


class Cards(HTMLParser):
    """Attributes and text of every card."""

    def __init__(self, body: str) -> None:
        super().__init__()
        self.attributes: list[dict[str, str]] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.feed(body)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        if tag == "li":
            self.attributes.append(dict(attrs))
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data


def card(name: str = "1_L", score: float = 0.5, cancer: int = 0, **facts: str) -> Card:
    return Card(name, score, cancer, score >= 0.5, facts)


def test_every_cancer_comes_before_any_other_and_the_highest_scores_next() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"cancer": (rng.random(1000) < 0.1).astype(int), "score": rng.random(1000)})
    order = worth_showing(table)
    assert sorted(order) == list(range(1000))
    cancers = int(table["cancer"].sum())
    assert table["cancer"].iloc[order[:cancers]].all()
    highest = table["score"].iloc[order[cancers : 2 * cancers]]
    rest = table["score"].iloc[order[2 * cancers :]]
    assert highest.min() >= rest.max()
    assert highest.is_monotonic_decreasing
    assert not rest.is_monotonic_decreasing  # a sample of what is left, not its top
    assert list(order) == list(worth_showing(table))
    assert list(order) != list(worth_showing(table, seed=1))


def test_the_outcome_says_truth_and_call() -> None:
    for (cancer, called), outcome in {
        (1, True): "found",
        (1, False): "missed",
        (0, True): "alarm",
        (0, False): "clear",
    }.items():
        card = Card("1_L", 0.5, cancer, called)
        assert card.outcome == outcome
        assert OUTCOMES[outcome] in browser([card], 1, 10_000).body


def test_cards_stand_by_score_and_carry_what_they_are_filtered_by() -> None:
    cards = [card("a_L", 0.2, site="1"), card("b_L", 0.9, 1, site="2", implant="yes"), card("c_L", 0.4, implant="no")]
    found = Cards(browser(cards, 3, 100_000).body)
    assert [attributes["data-id"] for attributes in found.attributes] == ["b_l", "c_l", "a_l"]
    assert found.attributes[0]["data-site"] == "2"
    assert "site 2 · implant" in found.texts[0]
    assert "implant" not in found.texts[1]  # what is not there is not told
    assert found.attributes[1]["data-implant"] == "no"  # but can be filtered by


def test_no_more_is_taken_than_fits_and_the_page_says_so() -> None:
    drawn = []

    def endless() -> Iterator[Card]:
        for number in range(10**9):
            drawn.append(number)
            yield card(f"{number}_L", 1 / (number + 1))

    section = browser(endless(), 123_456, 20_000)
    shown = len(Cards(section.body).attributes)
    items = re.search(r'<ul class="cards">(.*)</ul>', section.body)
    assert items is not None
    assert 20_000 - 1_000 < len(items[1].encode()) <= 20_000
    assert len(drawn) == shown + 1  # pictures of the others were never read
    assert f"{shown} of 123,456 breasts are shown here: all cancers that fit" in section.body


def test_only_what_differs_can_be_filtered_by() -> None:
    body = browser([card("a", site="1", machine="7"), card("b", site="2", machine="7")], 2, 10_000).body
    names = re.findall(r'<select name="([^"]*)"', body)
    assert names == ["label", "outcome", "site", "sort"]
    assert re.findall(r'<option value="(\d*)">', body.split('name="site"')[1].split("</select>")[0]) == ["", "1", "2"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_text(text: str) -> None:
    section = browser([card(text, site=text), card("b", site="2")], 2, 100_000)
    found = Cards(section.body)
    assert not {"script", "img", "style"} & set(found.tags)
    assert set(found.attributes[0]) == {"data-id", "data-label", "data-outcome", "data-score", "data-site", "tabindex"}
    assert found.attributes[0]["data-id"] == text.lower()
    assert found.attributes[0]["data-site"] == text
    assert text in found.texts[0]
    assert text not in page(text, text, [section])


def test_a_view_without_a_picture_says_so() -> None:
    shown = Card("1_L", 0.5, 1, True, {}, [View(None, "CC 0.51")])
    body = browser([shown], 1, 10_000).body
    assert "no picture" in body
    assert "CC 0.51" in body


def test_a_picture_is_embedded_small() -> None:
    pytest.importorskip("cv2")
    picture = np.tile(np.linspace(0, 255, 400).astype(np.uint8)[:, None], (1, 200))
    body = browser([Card("1_L", 0.5, 1, True, {}, [View(picture, "CC")])], 1, 100_000).body
    assert 'alt="Mammogram 1_L CC" width="128" height="256"' in body
    assert body.count("data:image/webp;base64,") == 1
