"""Plain plots as SVG, written by hand: panels with logarithmic axes, lines, dots and a legend."""

import math
from collections.abc import Iterable, Sequence
from html import escape

FONT = "font-family='Helvetica, Arial, DejaVu Sans, sans-serif'"
INK, FAINT = "#333", "#ddd"
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 30, 34  # px around what is drawn of a panel


class Panel:
    """One pair of axes at a place on the sheet. ticks: where they are written, first to last."""

    def __init__(
        self,
        title: str,
        place: tuple[float, float],
        size: tuple[float, float],
        *,
        x: Sequence[float],
        y: Sequence[float],
        names: tuple[str, str],
    ) -> None:
        self._place, self._size, self._x, self._y = place, size, x, y
        self._drawn: list[str] = [_text(title, place[0] + LEFT, place[1] + 18, weight="bold")]
        self._axes(names)

    @property
    def drawn(self) -> Iterable[str]:
        """All of it, as elements."""
        return self._drawn

    def line(self, points: Iterable[tuple[float, float]], colour: str, *, dash: str = "") -> None:
        """Join points by a line, a dot on each."""
        at = [self._at(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        style = f"fill='none' stroke='{colour}' stroke-width='2' stroke-dasharray='{dash}'"
        self._drawn.append(f"<polyline points='{path}' {style}/>")
        self._drawn += [_dot(x, y, colour, 2.5) for x, y in at]

    def dots(self, points: Iterable[tuple[float, float]], colour: str) -> None:
        """Points alone."""
        self._drawn += [_dot(*self._at(x, y), colour, 3.5) for x, y in points]

    def guide(self, ends: Sequence[tuple[float, float]]) -> None:
        """A faint line between two points."""
        (a, b), (c, d) = (self._at(*end) for end in ends)
        style = "stroke='#999' stroke-dasharray='4 3'"
        self._drawn.append(f"<line x1='{a:.1f}' y1='{b:.1f}' x2='{c:.1f}' y2='{d:.1f}' {style}/>")

    def _at(self, x: float, y: float) -> tuple[float, float]:
        left, top = self._place[0] + LEFT, self._place[1] + TOP
        wide, high = self._size[0] - LEFT - RIGHT, self._size[1] - TOP - BOTTOM
        return left + wide * _share(x, self._x), top + high * (1 - _share(y, self._y))

    def _axes(self, names: tuple[str, str]) -> None:
        (left, bottom), (right, top) = (
            self._at(self._x[0], self._y[0]),
            self._at(self._x[-1], self._y[-1]),
        )
        for value in self._x:
            x = self._at(value, self._y[0])[0]
            self._drawn.append(_rule(x, bottom, x, top))
            self._drawn.append(_text(_said(value), x, bottom + 14, anchor="middle", size=10))
        for value in self._y:
            y = self._at(self._x[0], value)[1]
            self._drawn.append(_rule(left, y, right, y))
            self._drawn.append(_text(_said(value), left - 5, y + 4, anchor="end", size=10))
        middle = (left + right) / 2
        self._drawn.append(_text(names[0], middle, bottom + 28, anchor="middle", size=11))
        unit_at = self._place[0] + 8, self._place[1] + 18
        self._drawn.append(_text(names[1], *unit_at, size=11))


def legend(entries: Iterable[tuple[str, str, str]], x: float, y: float, step: float) -> list[str]:
    """Names of lines (name, colour, dash), from left to right."""
    drawn = []
    for number, (name, colour, dash) in enumerate(entries):
        at = x + number * step
        style = f"stroke='{colour}' stroke-width='2' stroke-dasharray='{dash}'"
        drawn.append(f"<line x1='{at}' y1='{y - 4}' x2='{at + 26}' y2='{y - 4}' {style}/>")
        drawn.append(_text(name, at + 32, y, size=12))
    return drawn


def sheet(wide: float, high: float, parts: Iterable[str]) -> str:
    """The whole file."""
    size = f"width='{wide:g}' height='{high:g}' viewBox='0 0 {wide:g} {high:g}'"
    head = f"<svg xmlns='http://www.w3.org/2000/svg' {size} {FONT}>"
    ground = f"<rect width='{wide:g}' height='{high:g}' fill='white'/>"
    return "\n".join([head, ground, *parts, "</svg>", ""])


def _share(value: float, ticks: Sequence[float]) -> float:
    return math.log(value / ticks[0]) / math.log(ticks[-1] / ticks[0])


def _said(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def _dot(x: float, y: float, colour: str, radius: float) -> str:
    return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{radius}' fill='{colour}'/>"


def _rule(a: float, b: float, c: float, d: float) -> str:
    return f"<line x1='{a:.1f}' y1='{b:.1f}' x2='{c:.1f}' y2='{d:.1f}' stroke='{FAINT}'/>"


def _text(
    said: str, x: float, y: float, *, anchor: str = "start", size: int = 13, weight: str = "normal"
) -> str:
    style = f"font-size='{size}' font-weight='{weight}' text-anchor='{anchor}' fill='{INK}'"
    return f"<text x='{x:.1f}' y='{y:.1f}' {style}>{escape(said)}</text>"
