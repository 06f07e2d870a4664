"""Cards of breasts: which are chosen, what fits, what they say; as text, without a browser."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from html.parser import HTMLParser

import cv2
import numpy as np
import pandas as pd
import pytest

from rsna_kit.runtime.errors import TableError
from rsna_lab.report.cards import OUTCOMES, Card, View, card_section, notable, worth_showing
from rsna_lab.report.page import page, pictures

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


def card(name: str = "1_L", score: float = 0.5, cancer: int = 0, *views: View, **facts: str) -> Card:
    return Card(name, score, cancer, score >= 0.5, facts, views)


def test_the_surest_and_the_worst_come_first_then_every_cancer_then_the_highest_scores() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"cancer": (rng.random(1000) < 0.1).astype(int), "score": rng.random(1000)})
    order = worth_showing(table, 0.5)
    assert sorted(order) == list(range(1000))
    assert list(order[:12]) == list(notable(table, 0.5))
    cancers = int(table["cancer"].sum())
    assert table["cancer"].iloc[order[: cancers + 4]].sum() == cancers
    rest = table["score"].iloc[order[cancers + 4 :]]
    assert rest[: cancers - 4].is_monotonic_decreasing
    assert rest[: cancers - 4].min() >= rest[cancers - 4 :].max()
    assert not rest[cancers - 4 :].is_monotonic_decreasing  # a sample of what is left, not its top
    assert list(order) == list(worth_showing(table, 0.5))
    assert list(order) != list(worth_showing(table, 0.5, seed=1))
    few = pd.DataFrame({"cancer": [1, 1, 1, 0, 0, 0], "score": [0.9, 0.5, 0.1, 0.8, 0.6, 0.2]})
    assert notable(few, 0.5, count=2).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("cancer", "called", "outcome"), [(1, True, "found"), (1, False, "missed"), (0, True, "alarm"), (0, False, "clear")]
)
def test_the_outcome_says_truth_and_call(cancer: int, called: bool, outcome: str) -> None:
    shown = Card("1_L", 0.5, cancer, called)
    assert shown.outcome == outcome
    assert OUTCOMES[outcome] in card_section([shown], 1, 10_000).body


def test_cards_stand_by_score_and_carry_what_they_are_filtered_by() -> None:
    cards = [card("a_L", 0.2, site="1"), card("b_L", 0.9, 1, site="2", implant="yes"), card("c_L", 0.4, implant="no")]
    body = card_section(cards, 3, 100_000).body
    found = Cards(body)
    assert [attributes["data-id"] for attributes in found.attributes] == ["b_l", "c_l", "a_l"]
    assert found.attributes[0]["data-site"] == "2"
    assert "site 2 · implant" in found.texts[0]
    assert "implant" not in found.texts[1]  # what is not there is not told
    assert found.attributes[1]["data-implant"] == "no"  # but can be filtered by
    assert re.findall(r'<select name="([^"]*)"', body) == ["label", "outcome", "site", "implant", "sort"]
    alike = card_section([card("a", site="1", machine="7"), card("b", site="2", machine="7")], 2, 10_000).body
    assert re.findall(r'<select name="([^"]*)"', alike) == ["label", "outcome", "site", "sort"]
    assert re.findall(r'<option value="(\d*)">', alike.split('name="site"')[1].split("</select>")[0]) == ["", "1", "2"]


def test_no_more_is_taken_than_fits_and_the_page_says_so() -> None:
    drawn = []

    def endless() -> Iterator[Card]:
        for number in range(10**9):
            drawn.append(number)
            yield card(f"{number}_L", 1 / (number + 1))

    section = card_section(endless(), 123_456, 20_000)
    shown = len(Cards(section.body).attributes)
    items = re.search(r'<ul class="cards">(.*)</ul>', section.body)
    assert items is not None
    assert 20_000 - 1_000 < len(items[1].encode()) <= 20_000
    assert len(drawn) == shown + 1  # pictures of the others were never read
    assert f"{shown} of 123,456 breasts are shown here: all cancers that fit" in section.body


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_text(text: str) -> None:
    section = card_section([card(text, site=text), card("b", site="2")], 2, 100_000)
    found = Cards(section.body)
    assert not {"script", "img", "style"} & set(found.tags)
    assert set(found.attributes[0]) == {"data-id", "data-label", "data-outcome", "data-score", "data-site"}
    assert found.attributes[0]["data-id"] == text.lower()
    assert found.attributes[0]["data-site"] == text
    assert text in found.texts[0]
    assert text not in page(text, text, [section])


def test_pictures_are_embedded_small_and_larger_beside_their_map() -> None:
    picture = np.zeros((600, 300), np.uint8)
    picture[:, :150] = 255
    small = card_section([card("1_L", 0.5, 1, View(picture, "CC"), View(None, "MLO 0.51"))], 1, 100_000).body
    assert 'alt="Mammogram 1_L CC" width="128" height="256"' in small
    assert "no picture</p><figcaption>MLO 0.51" in small
    content = re.search(r"data:image/webp;base64,([^\"]+)", small)
    assert content is not None
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(content[1]), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.abs(decoded[:, [20, 100]].astype(int) - (255, 0)).max() <= 3
    mapped = View(np.repeat(picture[..., None], 3, axis=2), "Grad-CAM")
    large = card_section([card("1_L", 0.5, 1, View(picture, "CC"), mapped)], 1, 100_000).body
    assert large.count('width="210" height="420"') == 2
    assert 'alt="Map over the mammogram 1_L Grad-CAM"' in large
    assert ("a ring is the peak" in large, "a ring is the peak" in small) == (True, False)


def test_a_picture_of_another_type_is_refused() -> None:
    with pytest.raises(TableError, match=r"float64 picture of shape \(4, 4\), expected uint8"):
        card_section([card("x", 0.1, 0, View(np.zeros((4, 4)), "CC"))], 1, 100)
    with pytest.raises(TableError, match="expected a PNG, JPEG or WebP"):
        pictures("x", [(b"GIF89a", "x")])
