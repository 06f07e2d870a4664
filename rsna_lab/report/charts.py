"""Curves and histograms → inline SVG: crisp at any size, drawn in the page's own colours, readable without colour.

Colours come from CSS classes of `rsna_lab.report.page`, so dark mode and print need no second drawing; a second
series also differs by its dashes. Every chart has a title and a sentence for screen readers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 400, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 14, 44


@dataclass(frozen=True)
class Axis:
    """What an axis shows: its label and its two ends."""

    label: str
    low: float = 0.0
    high: float = 1.0

    def ticks(self, most: int = 7) -> list[float]:
        """Round numbers within the axis, at most `most` of them.

        Example:
            >>> Axis("F1", 0.0, 0.5).ticks()
            [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
        """
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / most))
        step = next(factor * power for factor in (1, 2, 5, 10, 20) if span / (factor * power) < most - 0.5)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


class Chart:
    """One pair of axes; draw on it, then ask for `svg()`.

    `top` and `bottom` place the axes within the picture, so that two charts can share one.
    """

    def __init__(self, x: Axis, y: Axis, top: float = _TOP, bottom: float = HEIGHT - _BOTTOM) -> None:
        self.x, self.y, self._top, self._bottom = x, y, top, bottom
        self._parts: list[str] = []

    def at(self, x: np.ndarray | float, y: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Picture coordinates of a point or points."""
        across = (np.asarray(x, dtype=np.float64) - self.x.low) / (self.x.high - self.x.low)
        up = (np.asarray(y, dtype=np.float64) - self.y.low) / (self.y.high - self.y.low)
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), self._bottom - up * (self._bottom - self._top)

    def line(self, x: np.ndarray, y: np.ndarray, style: str, step: bool = False) -> None:
        """A line through the points; with `step`, a y holds from the previous x up to its own x."""
        if step:
            x, y = np.repeat(x, 2)[:-1], np.repeat(y, 2)[1:]
        points = np.column_stack(self.at(x, y)).round(1)
        keep = np.r_[True, np.any(np.diff(points, axis=0) != 0, axis=1)]
        path = " ".join(f"{across:g},{down:g}" for across, down in points[keep])
        self._parts.append(f'<polyline class="{style}" points="{path}"/>')

    def band(self, low: float, high: float, style: str) -> None:
        """A vertical band from x = low to x = high, at least two pixels wide."""
        (left, right), _ = self.at(np.array([low, high]), 0.0)
        wide = max(right - left, 2.0)
        self._parts.append(
            f'<rect class="{style}" x="{left:.1f}" y="{self._top:g}" width="{wide:.1f}"'
            f' height="{self._bottom - self._top:g}"/>'
        )

    def bars(self, edges: np.ndarray, heights: np.ndarray, style: str) -> None:
        """One bar per bin; a bin that is not empty is at least one pixel high."""
        left, _ = self.at(edges, 0.0)
        _, top = self.at(0.0, heights)
        for start, end, high, height in zip(left[:-1], left[1:], top, heights, strict=True):
            if height > 0:
                high = min(high, self._bottom - 1)
                self._parts.append(
                    f'<rect class="{style}" x="{start + 0.5:.1f}" y="{high:.1f}" width="{max(end - start - 1, 1):.1f}"'
                    f' height="{self._bottom - high:.1f}"/>'
                )

    def whisker(self, x: float, low: float, high: float) -> None:
        """A vertical line from low to high with a foot at both ends."""
        (across, _), (_, down) = self.at(x, 0.0), self.at(0.0, np.array([low, high]))
        for left, right, start, end in ((0, 0, *down), *((-3, 3, one, one) for one in down)):
            self._parts.append(
                f'<line class="whisker" x1="{across + left:.1f}" x2="{across + right:.1f}" y1="{start:.1f}"'
                f' y2="{end:.1f}"/>'
            )

    def point(self, x: float, y: float) -> None:
        """A small mark."""
        across, down = self.at(x, y)
        self._parts.append(f'<circle class="point" cx="{across:.1f}" cy="{down:.1f}" r="4"/>')

    def key(self, styles: Sequence[tuple[str, str]]) -> None:
        """What the lines are: a sample of each style and its name, above the axes."""
        across = float(_LEFT)
        for style, name in styles:
            self._parts.append(f'<line class="{style}" x1="{across:g}" x2="{across + 22:g}" y1="8" y2="8"/>')
            self._parts.append(f'<text class="label" x="{across + 27:g}" y="12">{escape(name)}</text>')
            across += 40 + 7 * len(name)

    def rule(self, x: float, style: str) -> None:
        """A vertical line over the whole height."""
        across, _ = self.at(x, 0.0)
        self._parts.append(
            f'<line class="{style}" x1="{across:.1f}" x2="{across:.1f}" y1="{self._top:g}" y2="{self._bottom:g}"/>'
        )

    def dot(self, x: float, y: float, label: str) -> None:
        """A marked point with its label below it, on the side where there is room."""
        across, down = (float(value) for value in self.at(x, y))
        self._parts.append(f'<circle class="dot" cx="{across:.1f}" cy="{down:.1f}" r="5"/>')
        left = across + 8 * len(label) > WIDTH
        self.text(across + (-8 if left else 8), down + (22 if down < self._bottom - 30 else -12), label, left)

    def text(self, across: float, down: float, label: str, left: bool = False) -> None:
        """A note in picture coordinates; `left` makes it end there instead of starting there."""
        anchor = ' text-anchor="end"' if left else ""
        self._parts.append(f'<text class="note" x="{across:.1f}" y="{down:.1f}"{anchor}>{escape(label)}</text>')

    def body(self, x_axis: bool = True) -> str:
        """Grid, axes and everything drawn, without the surrounding <svg>."""
        right = WIDTH - _RIGHT
        parts = []
        for tick in self.y.ticks(most=7 if self._bottom - self._top > HEIGHT / 2 else 4):
            _, down = self.at(0.0, tick)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{down:.1f}" y2="{down:.1f}"/>')
            parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{tick:g}</text>')
        for tick in self.x.ticks() if x_axis else []:
            across, _ = self.at(tick, 0.0)
            parts.append(
                f'<text class="tick" x="{across:.1f}" y="{self._bottom + 16:g}" text-anchor="middle">{tick:g}</text>'
            )
        if x_axis:
            middle = (_LEFT + right) / 2
            parts.append(
                f'<text class="label" x="{middle:g}" y="{self._bottom + 36:g}" text-anchor="middle">'
                f"{escape(self.x.label)}</text>"
            )
        middle = (self._top + self._bottom) / 2
        parts.append(
            f'<text class="label" x="12" y="{middle:g}" text-anchor="middle" transform="rotate(-90 12 {middle:g})">'
            f"{escape(self.y.label)}</text>"
        )
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{self._bottom:g}" y2="{self._bottom:g}"/>')
        return "".join(parts + self._parts)

    def svg(self, title: str, description: str) -> str:
        """The finished picture."""
        return picture(self.body(), title, description)


def picture(body: str, title: str, description: str) -> str:
    """Wrap drawings into one <svg> that screen readers announce."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title + ". " + description)}">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )
