"""Scored breasts and their pictures → cards that can be filtered, sorted and searched, as many as fit.

The cards are plain HTML, so they are there without JavaScript and on paper. The script only chooses and sorts them; it
reads what it filters by from `data-` attributes, and the page's address: `report.html#outcome=missed&sort=id` opens the
page like that, and the address changes with the filters, so that a view can be kept or sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
import pandas as pd

from rsna_lab.analysis.subgroups import natural
from rsna_lab.report.page import Section, image

_SMALL, _LARGE = (256, 60), (420, 75)  # longest side and quality of a view, 1 to 4 kB, and of one beside its map
_HIGHEST = 50  # at least so many of the highest scores without cancer are wanted
OUTCOMES = {
    "found": "cancer, called",
    "missed": "cancer, missed",
    "alarm": "false alarm",
    "clear": "no cancer, not called",
}
_LINKS = {
    "Cancers found": "outcome=found",
    "Cancers missed": "outcome=missed&amp;sort=low",
    "False alarms": "outcome=alarm",
    "All": "sort=",
}
_MAPS = (
    " Right of some pictures stands the same with its map: purple is weak, yellow the picture's strongest, a ring is "
    "the peak. A map shows where the score comes from, not that there is a lesion or that the score is right."
)


@dataclass(frozen=True)
class View:
    """One picture of a breast and a short name such as `CC 0.81`: uint8 (h, w), or (h, w, 3) for one with a map over
    it, or None where it cannot be shown."""

    picture: np.ndarray | None
    name: str

    @property
    def mapped(self) -> bool:
        """Whether it has a map over it."""
        return self.picture is not None and self.picture.ndim == 3


@dataclass(frozen=True)
class Card:
    """One breast. `facts` are further texts, name → text, by which the cards can be filtered."""

    prediction_id: str
    score: float
    cancer: int
    called: bool
    facts: Mapping[str, str] = field(default_factory=dict)
    views: Sequence[View] = ()

    @property
    def outcome(self) -> str:
        """One of `OUTCOMES`."""
        return {(1, True): "found", (1, False): "missed", (0, True): "alarm", (0, False): "clear"}[
            self.cancer, self.called
        ]


def notable(breasts: pd.DataFrame, threshold: float, count: int = 4) -> np.ndarray:
    """Rows of the best and worst: cancers found (highest), cancers missed (lowest), false alarms (highest scores).

    Args:
        breasts: `cancer` (0/1) and `score`.
        threshold: a breast with this score or more is called.
        count: of each at most so many.
    """
    score, cancer = breasts["score"].to_numpy(), breasts["cancer"].to_numpy() == 1
    rising, called = np.argsort(score, kind="stable"), score >= threshold
    found, missed, alarms = (rising[kind[rising]] for kind in (cancer & called, cancer & ~called, ~cancer & called))
    return np.concatenate([found[::-1][:count], missed[:count], alarms[::-1][:count]])


def worth_showing(breasts: pd.DataFrame, threshold: float, seed: int = 0) -> np.ndarray:
    """Rows of the breasts in the order in which they are worth a place.

    First those of `notable`, then all cancers, then the highest scores without cancer (as many as there are cancers,
    and 50 at least), then all others; cancers and others in a random order, so that those that fit are a fair sample.

    Returns:
        int (N,), each row once.

    Example:
        >>> table = pd.DataFrame({"cancer": [0, 1, 0], "score": [0.1, 0.2, 0.9]})
        >>> worth_showing(table, 0.95).tolist()
        [1, 2, 0]
    """
    rng = np.random.default_rng(seed)
    cancer = breasts["cancer"].to_numpy() == 1
    cancers, rest = np.flatnonzero(cancer), np.flatnonzero(~cancer)
    rest = rest[np.argsort(-breasts["score"].to_numpy()[rest], kind="stable")]
    highest, others = np.split(rest, [max(len(cancers), _HIGHEST)])
    order = [notable(breasts, threshold), rng.permutation(cancers), highest, rng.permutation(others)]
    return pd.unique(np.concatenate(order))


def card_section(cards: Iterable[Card], of: int, limit: int) -> Section:
    """The section with the cards that fit, highest score first.

    Args:
        cards: in the order in which they are worth a place; no more are taken than fit.
        of: how many breasts there are.
        limit: bytes.
    """
    fitting: list[tuple[Card, str]] = []
    size = 0
    for card in cards:
        item = _item(card)
        size += len(item.encode(errors="replace"))
        if size > limit:
            break
        fitting.append((card, item))
    fitting.sort(key=lambda one: -one[0].score)
    shown = [card for card, _ in fitting]
    how = ": all cancers that fit, the highest scores without cancer, and a random sample of the others"
    views = [view for card in shown for view in card.views]
    seen = " Every picture is as the model sees it, with the chest wall on the left." if views else ""
    seen += _MAPS if any(view.mapped for view in views) else ""
    links = " · ".join(f'<a href="#{address}">{name}</a>' for name, address in _LINKS.items())
    body = (
        f"<p>{len(shown):,} of {of:,} breasts are shown here{how if len(shown) < of else ''}.{seen} "
        f'<span class="screen">{links}. The address of this page changes with the filters: keep it or send it to come '
        'back to a view.</span><span class="paper">Only the first 24 are printed.</span></p>'
        f'{_filters(shown)}<p role="status" class="soft screen"></p>'
        f'<ul class="cards">{"".join(item for _, item in fitting)}</ul>'
    )
    return Section("Cases", body, script=SCRIPT)


def _item(card: Card) -> str:
    """One card. Everything from outside is escaped, and attributes stand in double quotes."""
    name, mapped = escape(card.prediction_id), any(view.mapped for view in card.views)
    figures = ""
    for view in card.views:
        label, drawn = escape(view.name), '<p class="soft">no picture</p>'
        if view.picture is not None:
            kind = "Map over the mammogram" if view.mapped else "Mammogram"
            drawn = image(view.picture, f"{kind} {name} {label}", *(_LARGE if mapped else _SMALL))
        figures += f"<figure>{drawn}<figcaption>{label}</figcaption></figure>"
    attributes = {
        "id": card.prediction_id.lower(),
        "label": str(card.cancer),
        "outcome": card.outcome,
        "score": f"{card.score:.6g}",
        **{_key(fact): text for fact, text in card.facts.items()},
    }
    data = "".join(f' data-{fact}="{escape(text)}"' for fact, text in attributes.items())
    data += ' class="large"' if mapped else ""
    facts = [fact if text == "yes" else f"{fact} {text}" for fact, text in card.facts.items() if text != "no"]
    return (
        f'<li{data}><div class="views">{figures}</div><b>{name}</b> '
        f'<span class="score">{card.score:.3f}</span> {OUTCOMES[card.outcome]}'
        f"<small>{escape(' · '.join(facts))}</small></li>"
    )


def _key(fact: str) -> str:
    """A fact's name as an attribute and in the address."""
    return "".join(letter if letter.isalnum() else "-" for letter in fact.lower())


def _filters(cards: Sequence[Card]) -> str:
    """A choice for each fact by which these cards differ; shown by the script, without which it would do nothing."""
    choices = {"label": ("Truth", {"1": "cancer", "0": "no cancer"}), "outcome": ("Outcome", OUTCOMES)}
    for fact in dict.fromkeys(fact for card in cards for fact in card.facts):
        values = sorted({card.facts[fact] for card in cards if fact in card.facts}, key=natural)
        if len(values) > 1:
            choices[_key(fact)] = (fact.capitalize(), {value: value for value in values})
    fields = "".join(_select(name, label, {"": "all", **options}) for name, (label, options) in choices.items())
    order = {"": "score, highest first", "low": "score, lowest first", "wrong": "most wrong first", "id": "id"}
    return (
        f'<fieldset class="filters" aria-label="Filter the cases" hidden>{fields}'
        '<label>Id contains<input type="search" name="q" autocomplete="off"></label>'
        f"{_select('sort', 'Order', order)}</fieldset>"
    )


def _select(name: str, label: str, options: Mapping[str, str]) -> str:
    items = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options.items())
    return f'<label>{escape(label)}<select name="{escape(name)}">{items}</select></label>'


SCRIPT = """
"use strict";
(() => {
  const [filters, list, status] = [".filters", ".cards", "[role=status]"].map(name => document.querySelector(name));
  const cards = [...list.children], fields = [...filters.elements];
  const score = card => Number(card.dataset.score), wrong = card => Math.abs(card.dataset.label - score(card));
  const orders = {
    "": (a, b) => score(b) - score(a),
    low: (a, b) => score(a) - score(b),
    wrong: (a, b) => wrong(b) - wrong(a),
    id: (a, b) => a.dataset.id.localeCompare(b.dataset.id, "en", {numeric: true}),
  };
  const fits = card => fields.every(({name, value}) => {
    if (value === "" || name === "sort") return true;
    if (name === "q") return card.dataset.id.includes(value.trim().toLowerCase());
    return card.getAttribute("data-" + name) === value;
  });
  function show() {
    const fitting = cards.filter(fits).sort(orders[filters.elements.sort.value]);
    list.replaceChildren(...fitting);
    status.textContent = fitting.length + " of these " + cards.length + " breasts fit the filters.";
  }
  function read() {
    const asked = new URLSearchParams(location.hash.slice(1)), filtered = location.hash.includes("=");
    for (const field of filtered || !location.hash ? fields : []) {  // else it is a link to a section
      field.value = asked.get(field.name) ?? "";
      if (field.selectedIndex === -1) field.value = "";
    }
    show();
    if (filtered) filters.closest("section").scrollIntoView();
  }
  filters.hidden = false;
  filters.addEventListener("input", () => {
    show();
    const chosen = fields.filter(field => field.value).map(field => [field.name, field.value]);
    history.replaceState(null, "", "#" + new URLSearchParams(chosen));
  });
  addEventListener("hashchange", read);
  read();
})();
"""
