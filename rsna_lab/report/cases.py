"""Breasts that are worth a look, with their pictures and maps → a section of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from rsna_lab.report.embed import image
from rsna_lab.report.page import Section

_LONGEST, _QUALITY = 420, 75  # of a picture; forty-eight of them, twelve breasts of two views with maps, take 1 MB


@dataclass(frozen=True)
class Case:
    """A breast: its pictures, each uint8 (h, w), or (h, w, 3) for one with a map over it beside its plain twin."""

    pictures: Sequence[np.ndarray]
    caption: str
    score: float
    cancer: int


def cases(groups: Mapping[str, Sequence[Case]], note: str = "") -> Section:
    """Pictures by group, e.g. of the breasts that `notable` names, under a sentence on how to read them."""
    parts = [f'<p class="soft">{escape(note)}</p>'] if note else []
    for name, members in groups.items():
        figures = "".join(map(_figure, members))
        body = f'<div class="pairs">{figures}</div>' if figures else '<p class="soft">None.</p>'
        parts.append(f"<h3>{escape(name)}</h3>{body}")
    return Section("Best and worst cases", "".join(parts))


def _figure(case: Case) -> str:
    truth = "cancer" if case.cancer else "no cancer"
    text = escape(f"{case.caption}: score {case.score:.3f}, {truth}")
    drawn = "".join(
        image(picture, f"{'Map over the mammogram' if picture.ndim == 3 else 'Mammogram'} {text}", _LONGEST, _QUALITY)
        for picture in case.pictures
    )
    return f'<figure class="pair"><div>{drawn}</div><figcaption>{text}</figcaption></figure>'
