"""Sections of HTML → one self-contained page: no script, no request, light and dark, phone and paper.

The content security policy in the page forbids the browser everything but the styles and pictures inside it.
Colours are Okabe and Ito's blue and vermilion (told apart with any colour vision), lightened for dark mode.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Section:
    """A heading and its content; `body` is HTML whose texts its maker has escaped."""

    title: str
    body: str


def table(head: Sequence[str], rows: Iterable[Sequence[str]], label: str) -> str:
    """A table whose first column heads its rows; it scrolls sideways on a phone.

    All texts are escaped; what follows a newline in a cell is set small on a second line.
    """
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{_cell(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    """Escaped text, its second line set small."""
    first, _, second = escape(text).partition("\n")
    return f"{first}<br><small>{second}</small>" if second else first


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole document."""
    links = "".join(
        f'<a href="#s{number}">{escape(section.title)}</a>' for number, section in enumerate(sections, start=1)
    )
    bodies = "".join(
        f'<section id="s{number}"><h2>{escape(section.title)}</h2>{section.body}</section>'
        for number, section in enumerate(sections, start=1)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p><nav aria-label="Sections">{links}</nav></header>
<main id="main">{bodies}</main>
</body>
</html>
"""


_STYLE = """
:root { --ground: #f6f6f4; --card: #fff; --ink: #1b1b1b; --soft: #5a5a5a; --line: #d5d5d2; --one: #0072b2;
  --two: #c24e00; --band: #0072b229; --link: #005a8e; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ground: #141517; --card: #1e2023; --ink: #ececec; --soft: #a9abad; --line: #3b3e42; --one: #56b4e9;
    --two: #f0954e; --band: #56b4e93d; --link: #7cc4f0; } }
* { box-sizing: border-box; }
html { color-scheme: light dark; scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 3rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 0 0 .75rem; }
header p { color: var(--soft); margin: 0 0 .75rem; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; } a { color: var(--link); }
a:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 3px solid var(--one); outline-offset: 2px; }
.skip { position: absolute; left: -999rem; } .skip:focus { position: static; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1.1rem;
  margin-top: 1.1rem; }
p, .prose { max-width: 62ch; } p { margin: .75rem 0 0; } .soft { color: var(--soft); font-size: .92rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(max(8.5rem, 22%), 1fr)); gap: 1rem .75rem;
  margin: 0; }
.tiles div { border-left: 3px solid var(--line); padding-left: .75rem; } .tiles .first { border-color: var(--one); }
.tiles dt { color: var(--soft); font-size: .88rem; } .tiles dd { margin: 0; font-variant-numeric: tabular-nums; }
.tiles .value { font-size: 1.55rem; font-weight: 650; line-height: 1.25; }
.tiles .range { color: var(--soft); font-size: .88rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1.25rem; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .9rem; margin-top: .3rem; overflow-wrap: anywhere; }
figure b { color: var(--ink); } svg { display: block; width: 100%; height: auto; font-size: 12.5px; }
svg text { fill: var(--soft); font-variant-numeric: tabular-nums; } svg .label { fill: var(--ink); }
svg .note { fill: var(--ink); font-weight: 600; paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
svg .grid { stroke: var(--line); stroke-width: .7; } svg .axis { stroke: var(--soft); }
svg .one, svg .two, svg .chance { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .one { stroke: var(--one); } svg .two { stroke: var(--two); stroke-dasharray: 6 3; }
svg .chance { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 2 4; }
svg .rule { stroke: var(--two); stroke-width: 1.6; stroke-dasharray: 5 3; } svg .band { fill: var(--band); }
svg .bar-one { fill: var(--one); } svg .bar-two { fill: var(--two); }
svg .dot { fill: var(--two); stroke: var(--card); stroke-width: 1.5; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; } small { color: var(--soft); }
th:first-child { text-align: left; } thead th { color: var(--soft); font-weight: 600; font-size: .9rem; }
tbody th { font-weight: 500; } details { margin-top: .75rem; } summary { cursor: pointer; color: var(--link); }
.cases { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 1rem; }
.cases img, .wide img { width: 100%; height: auto; display: block; background: #000; border-radius: .3rem; }
h3 { font-size: 1rem; margin: 1rem 0 .5rem; } h3:first-of-type { margin-top: 0; }
.facts { display: grid; grid-template-columns: minmax(7rem, auto) 1fr; gap: .3rem 1rem; margin: 0; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere;
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .88rem; }
@media (max-width: 30rem) { body { padding: 1rem .6rem 2rem; } section { padding: .8rem; }
  th, td { padding: .35rem .25rem; } }
@media print { body { max-width: none; padding: 0; background: #fff; } nav, .skip { display: none; }
  section { break-inside: avoid-page; border: 0; padding: 0; } figure, tr { break-inside: avoid; } }
"""
