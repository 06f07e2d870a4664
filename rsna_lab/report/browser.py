"""Scored breasts and their pictures → cards that can be filtered, sorted and searched, as many as fit.

The cards are plain HTML, so they are there without JavaScript and on paper. The script only hides, shows and sorts
them; it reads what it filters by from `data-` attributes, and the page's address: `report.html#outcome=missed&sort=id`
opens the page like that, and the address changes with the filters, so that a view can be kept or sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
import pandas as pd

from rsna_lab.analysis.subgroups import natural
from rsna_lab.report.cases import image
from rsna_lab.report.page import Section

_LONGEST, _QUALITY = 256, 60  # of a view: some 1 to 4 kB
_HIGHEST = 50  # at least so many of the highest scores without cancer are wanted
OUTCOMES = {
    "found": "cancer, called",
    "missed": "cancer, missed",
    "alarm": "false alarm",
    "clear": "no cancer, not called",
}


@dataclass(frozen=True)
class View:
    """One picture of a breast: uint8 (h, w), or None where it cannot be shown, and a short name such as `CC 0.81`."""

    picture: np.ndarray | None
    name: str


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


def worth_showing(breasts: pd.DataFrame, seed: int = 0) -> np.ndarray:
    """Rows of the breasts in the order in which they are worth a place.

    First all cancers, then the highest scores without cancer (as many as there are cancers, and 50 at least), then all
    others; cancers and others in a random order, so that those that fit are a fair sample.

    Args:
        breasts: `cancer` (0/1) and `score`.
        seed: the same seed, the same order.

    Returns:
        int (N,), each row once.

    Example:
        >>> table = pd.DataFrame({"cancer": [0, 1, 0], "score": [0.1, 0.2, 0.9]})
        >>> worth_showing(table).tolist()
        [1, 2, 0]
    """
    rng = np.random.default_rng(seed)
    cancer = breasts["cancer"].to_numpy() == 1
    cancers, rest = np.flatnonzero(cancer), np.flatnonzero(~cancer)
    rest = rest[np.argsort(-breasts["score"].to_numpy()[rest], kind="stable")]
    highest, others = np.split(rest, [max(len(cancers), _HIGHEST)])
    return np.concatenate([rng.permutation(cancers), highest, rng.permutation(others)])


def browser(cards: Iterable[Card], of: int, limit: int) -> Section:
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
    part = f"{len(shown):,} of {of:,} breasts are shown here"
    how = ": all cancers that fit, the highest scores without cancer, and a random sample of the others"
    pictured = any(card.views for card in shown)
    seen = " Every picture is as the model sees it, with the chest wall on the left." if pictured else ""
    intro = (
        f"<p>{part}{how if len(shown) < of else ''}.{seen} "
        '<span class="screen">The address of this page changes with the filters: keep it or send it to come back to a '
        'view.</span><span class="paper">Only the first 24 are printed.</span></p>'
    )
    items = "".join(item for _, item in fitting)
    body = f'{intro}{_form(shown)}<p role="status" class="soft screen"></p><ul class="cards">{items}</ul>'
    body += '<button type="button" class="further" hidden>Show more</button>'
    return Section("All cases", body, script=SCRIPT)


def _item(card: Card) -> str:
    """One card. Everything from outside is escaped, and attributes stand in double quotes."""
    name = escape(card.prediction_id)
    figures = "".join(_figure(view, name) for view in card.views)
    attributes = {
        "id": card.prediction_id.lower(),
        "label": str(card.cancer),
        "outcome": card.outcome,
        "score": f"{card.score:.6g}",
        **{_key(fact): text for fact, text in card.facts.items()},
    }
    data = "".join(f' data-{fact}="{escape(text)}"' for fact, text in attributes.items())
    told = escape(
        " · ".join(fact if text == "yes" else f"{fact} {text}" for fact, text in card.facts.items() if text != "no")
    )
    return (
        f'<li{data} tabindex="-1"><div class="views">{figures}</div><b>{name}</b> '
        f'<span class="score">{card.score:.3f}</span> {OUTCOMES[card.outcome]}<small>{told}</small></li>'
    )


def _figure(view: View, name: str) -> str:
    label = escape(view.name)
    drawn = '<p class="soft">no picture</p>'
    if view.picture is not None:
        drawn = image(view.picture, f"Mammogram {name} {label}", _LONGEST, _QUALITY)
    return f"<figure>{drawn}<figcaption>{label}</figcaption></figure>"


def _key(fact: str) -> str:
    """A fact's name as an attribute and in the address."""
    return "".join(letter if letter.isalnum() else "-" for letter in fact.lower())


def _form(cards: Sequence[Card]) -> str:
    """A choice for each fact by which these cards differ; shown by the script, without which it would do nothing."""
    choices = {"label": ("Truth", {"1": "cancer", "0": "no cancer"}), "outcome": ("Outcome", OUTCOMES)}
    for fact in dict.fromkeys(fact for card in cards for fact in card.facts):
        values = sorted({card.facts[fact] for card in cards if fact in card.facts}, key=natural)
        if len(values) > 1:
            choices[_key(fact)] = (fact.capitalize(), {value: value for value in values})
    fields = "".join(_select(name, label, {"": "all", **options}) for name, (label, options) in choices.items())
    order = {"": "score, highest first", "low": "score, lowest first", "wrong": "most wrong first", "id": "id"}
    return (
        f'<form class="filters" aria-label="Filter the cases" hidden>{fields}'
        '<label>Id contains<input type="search" name="q" autocomplete="off"></label>'
        f'{_select("sort", "Order", order)}<button type="reset">Show all</button></form>'
    )


def _select(name: str, label: str, options: Mapping[str, str]) -> str:
    items = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options.items())
    return f'<label>{escape(label)}<select name="{escape(name)}">{items}</select></label>'


SCRIPT = """
"use strict";
(() => {
  const form = document.querySelector("form.filters"), list = document.querySelector(".cards");
  const status = document.querySelector("[role=status]"), cards = [...list.children];
  const more = document.querySelector(".further");
  const fields = [...form.elements].filter(field => field.name);
  const score = card => Number(card.dataset.score);
  const orders = {
    "": (a, b) => score(b) - score(a),
    low: (a, b) => score(a) - score(b),
    wrong: (a, b) => Math.abs(b.dataset.label - score(b)) - Math.abs(a.dataset.label - score(a)),
    id: (a, b) => a.dataset.id.localeCompare(b.dataset.id, "en", {numeric: true}),
  };
  const fits = card => fields.every(({name, value}) => {
    if (value === "" || name === "sort") return true;
    if (name === "q") return card.dataset.id.includes(value.trim().toLowerCase());
    return card.getAttribute("data-" + name) === value;
  });
  function show(most = 60) {
    const fitting = cards.filter(fits).sort(orders[form.elements.sort.value]);
    const shown = new Set(fitting.slice(0, most));
    cards.forEach(card => { card.hidden = !shown.has(card); });
    list.prepend(...fitting);
    const first = shown.size < fitting.length ? ", the first " + shown.size + " are shown" : "";
    status.textContent = fitting.length + " of these " + cards.length + " breasts fit the filters" + first + ".";
    more.hidden = !first;
    more.onclick = () => { show(most + 120); fitting[most].focus(); };
  }
  function read() {
    const asked = new URLSearchParams(location.hash.slice(1));
    for (const field of fields) {
      field.value = asked.get(field.name) ?? "";
      if (field.selectedIndex === -1) field.value = "";
    }
    show();
  }
  function write() {
    show();
    const chosen = fields.filter(field => field.value).map(field => [field.name, field.value]);
    history.replaceState(null, "", "#" + new URLSearchParams(chosen));
  }
  form.hidden = false;
  form.addEventListener("input", write);
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(write));
  const filtered = () => location.hash.includes("=");  // else it is a link to a section
  addEventListener("hashchange", () => { if (filtered()) read(); });
  read();
  if (filtered()) form.closest("section").scrollIntoView();
})();
"""
