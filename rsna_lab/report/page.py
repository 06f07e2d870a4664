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


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole document."""
    numbered = list(enumerate(sections, start=1))
    bodies = "".join(
        f'<section id="s{number}" aria-labelledby="h{number}"><h2 id="h{number}">{_eyebrow(section.part)}'
        f"{escape(section.title)}</h2>{section.body}</section>"
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


def _eyebrow(part: str) -> str:
    return f"<small>{escape(part)}</small> " if part else ""


def _digest(text: str) -> str:
    """As a content security policy names what may run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
