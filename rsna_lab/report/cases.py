"""Breasts that are worth a look, with their pictures and maps → a section of the page that stays one file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd

from rsna_kit.runtime.errors import TableError
from rsna_kit.runtime.lazy import require
from rsna_lab.report.page import Section

_LONGEST, _QUALITY = 420, 75  # of a picture; forty-eight of them, twelve breasts of two views with maps, take 1 MB


@dataclass(frozen=True)
class Case:
    """A breast: its pictures, each uint8 (h, w), or (h, w, 3) for one with a map over it beside its plain twin."""

    pictures: Sequence[np.ndarray]
    caption: str
    score: float
    cancer: int


def notable(breasts: pd.DataFrame, threshold: float, count: int = 4) -> dict[str, pd.DataFrame]:
    """The breasts to look at: cancers found (highest), cancers missed (lowest), false alarms (highest scores)."""
    ordered = breasts.sort_values("score", kind="stable")
    cancer, called = ordered["cancer"] == 1, ordered["score"] >= threshold
    return {
        "Cancers found, surest first": ordered[cancer & called].iloc[::-1].head(count),
        "Cancers missed, lowest score first": ordered[cancer & ~called].head(count),
        "False alarms, highest score first": ordered[~cancer & called].iloc[::-1].head(count),
    }


def cases(groups: Mapping[str, Sequence[Case]], note: str = "") -> Section:
    """Pictures by group, e.g. of the breasts that `notable` names, under a sentence on how to read them."""
    parts = [f'<p class="soft">{escape(note)}</p>'] if note else []
    for name, members in groups.items():
        figures = ""
        for case in members:
            text = escape(f"{case.caption}: score {case.score:.3f}, {'cancer' if case.cancer else 'no cancer'}")
            drawn = "".join(
                image(one, f"{'Map over the mammogram' if one.ndim == 3 else 'Mammogram'} {text}", _LONGEST, _QUALITY)
                for one in case.pictures
            )
            figures += f'<figure class="pair"><div>{drawn}</div><figcaption>{text}</figcaption></figure>'
        body = f'<div class="pairs">{figures}</div>' if figures else '<p class="soft">None.</p>'
        parts.append(f"<h3>{escape(name)}</h3>{body}")
    return Section("Best and worst cases", "".join(parts))


def pictures(title: str, images: Iterable[tuple[bytes, str]]) -> Section:
    """PNG, JPEG or WebP files with a caption each, such as the training curves.

    Raises:
        TableError: bytes of another format.
    """
    figures = "".join(
        f'<figure class="wide"><img src="{_embedded(content)}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for content, caption in images
    )
    return Section(title, f'<div class="charts">{figures}</div>')


def image(picture: np.ndarray, alt: str, longest: int, quality: int) -> str:
    """An <img> with the picture in it, as WebP.

    Args:
        picture: uint8 (h, w), or (h, w, 3) in red, green, blue.
        alt: what it shows; must be escaped.
        longest: pixels of its longer side; a larger picture is shrunk.
        quality: of WebP, 1 to 100.

    Raises:
        TableError: an array that is no such picture.
    """
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or not picture.size:
        got = f"got a {picture.dtype} picture of shape {picture.shape}"
        raise TableError(f"{alt}: {got}, expected uint8 (h, w) or (h, w, 3)")
    cv2 = require("cv2", "train")
    shrink = longest / max(picture.shape[:2])
    if shrink < 1:
        size = [max(1, round(side * shrink)) for side in picture.shape[1::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    given = np.ascontiguousarray(picture[..., ::-1]) if picture.ndim == 3 else picture  # OpenCV counts blue first
    content = cv2.imencode(".webp", given, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
    height, width = picture.shape[:2]
    return f'<img src="{_embedded(content)}" alt="{alt}" width="{width}" height="{height}">'


def _embedded(content: bytes) -> str:
    """A picture file as an address that holds the picture itself."""
    kind = {b"\x89P": "png", b"\xff\xd8": "jpeg", b"RI": "webp"}.get(content[:2])
    if kind is None:
        raise TableError(f"picture: got bytes that start with {content[:4]!r}, expected a PNG, JPEG or WebP file")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
