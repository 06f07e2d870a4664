"""The page's colours and styles: light and dark, phone and paper.

Colours are Okabe and Ito's blue and vermilion (told apart with any colour vision), darkened for white ground and
lightened for black so that text in them has a contrast of 4.5 at least. Nothing is told by colour alone.
"""

from __future__ import annotations

LIGHT = {
    "ground": "#f6f6f4",
    "card": "#ffffff",
    "ink": "#1b1b1b",
    "soft": "#5a5a5a",
    "line": "#d5d5d2",
    "one": "#0072b2",
    "two": "#b84a00",
    "link": "#005a8e",
}
DARK = {
    "ground": "#141517",
    "card": "#1e2023",
    "ink": "#ececec",
    "soft": "#a9abad",
    "line": "#3b3e42",
    "one": "#56b4e9",
    "two": "#f0954e",
    "link": "#7cc4f0",
}


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


# Charts are drawn in the light colours: whatever has one of them as an attribute gets the scheme's own. No selector of
# an ancestor: a mark that is drawn by <use> has none.
_CHARTS = "\n".join(
    f'[{kind}="{colour}"] {{ {kind}: var(--{name}); }}' for name, colour in LIGHT.items() for kind in ("fill", "stroke")
)

STYLE = (
    f""":root {{ {_variables(LIGHT)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
{_CHARTS}
"""
    + """
* { box-sizing: border-box; }
html { color-scheme: light dark; scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 3rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
 h2 { font-size: 1.2rem; margin: 0 0 .75rem; }
h2 small { display: block; color: var(--soft); font-size: .85rem; font-weight: 500; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; } h2 + h3 { margin-top: 0; }
header p { color: var(--soft); margin: 0 0 .75rem; overflow-wrap: anywhere; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; margin: 0 0 .4rem; padding: 0; }
nav p { margin: 0; color: var(--soft); font-size: .88rem; } a { color: var(--link); }
:focus-visible { outline: 3px solid var(--one); outline-offset: 2px; }
.skip { position: absolute; left: -999rem; } .skip:focus { position: static; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1.1rem;
  margin-top: 1.1rem; }
p, .prose { max-width: 66ch; } p { margin: .75rem 0 0; } .soft { color: var(--soft); font-size: .92rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(max(8.5rem, 22%), 1fr)); gap: 1rem .75rem;
  margin: 0; }
.tiles div { border-left: 3px solid var(--line); padding-left: .75rem; } .tiles .first { border-color: var(--one); }
.tiles dt { color: var(--soft); font-size: .88rem; } .tiles dd { margin: 0; font-variant-numeric: tabular-nums; }
.tiles .value { font-size: 1.55rem; font-weight: 650; line-height: 1.25; }
.tiles .range { color: var(--soft); font-size: .88rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1.25rem; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .9rem; margin-top: .3rem; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); }
.charts svg { display: block; width: 100%; max-width: 34rem; height: auto; }
.charts svg * { stroke-linejoin: round; }
.scroll { overflow-x: auto; } .scroll + .scroll { margin-top: 1.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
caption { text-align: left; color: var(--soft); font-size: .92rem; padding-bottom: .4rem; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; } small { color: var(--soft); }
th:first-child { text-align: left; } thead th { color: var(--soft); font-weight: 600; font-size: .9rem; }
tbody th { font-weight: 500; } details { margin-top: .75rem; } summary { cursor: pointer; color: var(--link); }
.wide img { width: 100%; height: auto; display: block; background: #000; border-radius: .3rem; }
.facts { display: grid; grid-template-columns: minmax(7rem, auto) 1fr; gap: .3rem 1rem; margin: 0; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere;
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .88rem; }
.filters { display: flex; flex-wrap: wrap; gap: .6rem .9rem; align-items: end; margin: .9rem 0 .75rem; padding: 0;
  border: 0; min-width: 0; }
.filters[hidden] { display: none; }
.filters label { display: grid; gap: .15rem; color: var(--soft); font-size: .88rem; }
select, input { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--soft);
  border-radius: .35rem; padding: .3rem .5rem; max-width: 100%; height: 2.2rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 12rem), 1fr)); gap: .8rem;
  list-style: none; margin: .75rem 0 0; padding: 0; }
.cards li { border: 1px solid var(--line); border-left: .3rem solid var(--line); border-radius: .4rem; padding: .5rem;
  overflow-wrap: anywhere; font-size: .9rem; content-visibility: auto; contain-intrinsic-height: auto 14rem; }
.cards [data-label="1"] { border-left-color: var(--two); border-left-style: double; border-left-width: .45rem; }
.views { display: flex; flex-wrap: wrap; gap: .3rem; margin-bottom: .4rem; }
.views img { display: block; height: 9.5rem; width: auto; max-width: 100%; background: #000; border-radius: .2rem; }
.cards .large { grid-column: span 2; } .large .views { display: grid; grid-template-columns: repeat(4, 1fr); }
.large .views img { width: 100%; height: auto; }
.views figcaption { font-size: .8rem; margin-top: .1rem; }
.cards b { font-weight: 650; } .cards .score { font-variant-numeric: tabular-nums; } .cards small { display: block; }
@media (max-width: 30rem) { .cards { grid-template-columns: repeat(2, 1fr); gap: .5rem; } .views img { height: 7rem; }
  .large .views { grid-template-columns: 1fr 1fr; } body { padding: 1rem .6rem 2rem; } section { padding: .8rem; }
  th, td { padding: .35rem .25rem; }
  tbody th[scope=row] { position: sticky; left: 0; background: var(--card); } }
@media print { body { max-width: none; padding: 0; background: #fff; font-size: 10pt; }
  nav, .skip, .filters { display: none; } details::details-content { content-visibility: visible; }
  section { border: 0; padding: 0; } h2, h3 { break-after: avoid; break-inside: avoid; }
  figure, tr, .cards li { break-inside: avoid; }
  .scroll { overflow: visible; } th, td { padding: .2rem .3rem; } .charts { grid-template-columns: 1fr 1fr; }
  .cards { grid-template-columns: repeat(4, 1fr); }
  .views img { height: 6.5rem; }
  .cards li:nth-child(n+25) { display: none; } .screen { display: none; } }
@media not print { .paper { display: none; } }
"""
)
