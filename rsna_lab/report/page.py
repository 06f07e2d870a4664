"""Sections of HTML → one self-contained page: no request, light and dark, phone and paper.

The content security policy in the page forbids the browser everything but the styles and pictures inside it, and the
one script whose digest it names: a script that came in with a text could not run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

import numpy as np

from rsna_kit.runtime.errors import TableError
from rsna_kit.runtime.lazy import require
from rsna_lab.report.style import STYLE


@dataclass(frozen=True)
class Section:
    """A heading and its content; `body` is HTML whose texts its maker has escaped.

    Neighbours of the same `part`, such as a file of predictions, stand together in the contents. `script` is
    JavaScript that the section cannot do without; the same one runs once.
    """

    title: str
    body: str
    part: str = ""
    script: str = ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """A table whose first column heads its rows; it scrolls sideways on a phone.

    All texts are escaped; what follows a newline in a cell is set small on a second line.
    """
    body = "".join(
        f'<tr><th scope="row">{_cell(row[0])}</th>' + "".join(f"<td>{_cell(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    top = "".join(f'<th scope="col">{escape(cell)}</th>' if cell else "<td></td>" for cell in head)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    """Escaped text, its second line set small."""
    first, _, second = escape(text).partition("\n")
    return f"{first}<br><small>{second}</small>" if second else first


def pictures(title: str, images: Iterable[tuple[bytes | np.ndarray, str]]) -> Section:
    """Pictures with a caption each: PNG, JPEG or WebP files, such as the training curves, or arrays as `image` takes.

    Raises:
        TableError: bytes of another format.
    """
    figures = ""
    for content, caption in images:
        said = escape(caption)
        file = f'<img src="{_embedded(content)}" alt="{said}">' if isinstance(content, bytes) else image(content, said)
        figures += f'<figure class="wide">{file}<figcaption>{said}</figcaption></figure>'
    return Section(title, f'<div class="charts">{figures}</div>')


def image(picture: np.ndarray, alt: str, longest: int = 560, quality: int = 85) -> str:
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


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole document."""
    numbered = list(enumerate(sections, start=1))
    bodies = "".join(
        f'<section id="s{number}" aria-labelledby="h{number}"><h2 id="h{number}">'
        + (f"<small>{escape(section.part)}</small> " if section.part else "")
        + f"{escape(section.title)}</h2>{section.body}</section>"
        for number, section in numbered
    )
    scripts = list(dict.fromkeys(section.script for section in sections if section.script))
    digests = "".join(f" 'sha256-{_digest(script)}'" for script in scripts)
    policy = f"default-src 'none'; style-src 'sha256-{_digest(STYLE)}'; img-src data:; base-uri 'none'"
    policy += f"; form-action 'none'; script-src{digests}" if scripts else "; form-action 'none'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p><nav aria-label="Sections">{_contents(numbered)}</nav></header>
<main id="main">{bodies}</main>
{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""


def _contents(numbered: Sequence[tuple[int, Section]]) -> str:
    """Links to all sections, a line for each part."""
    lines = []
    for part, members in groupby(numbered, lambda one: one[1].part):
        links = "".join(f'<li><a href="#s{number}">{escape(section.title)}</a></li>' for number, section in members)
        lines.append((f"<p>{escape(part)}</p>" if part else "") + f"<ul>{links}</ul>")
    return "".join(lines)


def _digest(text: str) -> str:
    """As a content security policy names what may run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
