"""Pictures as SVG text: curves, distributions, waterfalls. Pure: numbers in, text out.

Drawn by ourselves, so that a report holds its pictures as text and no plotting library is needed;
`bench.report` has rsvg-convert make the PNG beside each. Colours are fixed by name, so that a
contender looks the same in every picture of a run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 200, 60, 52
BAR, GAP = 22, 12
NAMES_WIDTH, FIGURES_WIDTH = 200, 80
OURS = "#d1495b"
COLOURS = ("#00798c", "#edae49", "#30638e", "#6a4c93", "#3a7d44", "#8d6e63", "#7b8794", "#c77dff")
TICKS = 5
LEAST_SHOWN = 0.004  # of a waterfall's width; narrower parts are drawn, but not named

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture: the end of its file's name, what it shows, and its SVG."""

    name: str
    title: str
    svg: str


@dataclass(frozen=True, slots=True)
class Axis:
    """What is along an edge; `log` for values of several magnitudes, all above zero."""

    label: str
    log: bool = False


@dataclass(frozen=True, slots=True)
class _Scale:
    """Places values between two ends of an axis, each a share of its length."""

    low: float
    high: float
    log: bool

    def share(self, value: float) -> float:
        if self.log:
            low, high, value = (math.log(max(v, 1e-9)) for v in (self.low, self.high, value))
        else:
            low, high = self.low, self.high
        return (value - low) / (high - low or 1)

    def ticks(self) -> list[float]:
        if not self.log:
            step = round_step((self.high - self.low) / TICKS)
            return [self.low + step * n for n in range(int((self.high - self.low) / step) + 1)]
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        steps = [s * 10.0**power for power in range(first, last + 1) for s in (1, 2, 5)]
        return [step for step in steps if self.low <= step <= self.high * 1.0001]


def colours(names: Iterable[str]) -> dict[str, str]:
    """Return a colour for each name; Kindling's is always the same one."""
    found: dict[str, str] = {}
    for name in names:
        others = sum(colour != OURS for colour in found.values())
        ours = is_ours(name) and OURS not in found.values()
        found[name] = OURS if ours else COLOURS[others % len(COLOURS)]
    return found


def is_ours(name: str) -> bool:
    """Whether a contender is Kindling or a part of it."""
    return name.lower().startswith(("kindling", "gateway"))


def curves(
    name: str, title: str, lines: Mapping[str, Points], x: Axis, y: Axis | None = None
) -> Picture:
    """Draw a line for each contender, a dot at its end; lines without points are left out."""
    drawn = {one: points for one, points in lines.items() if points}
    y = y or Axis("")
    across = _scale([a for points in drawn.values() for a, _ in points], x.log)
    up = _scale([b for points in drawn.values() for _, b in points], y.log)
    parts = _frame(title, x.label, y.label, across, up)
    painted = colours(drawn)
    labels = _spread({one: _y(up, points[-1][1]) for one, points in drawn.items()})
    for one, points in drawn.items():
        colour = painted[one]
        way = " ".join(f"{_x(across, a):.1f},{_y(up, b):.1f}" for a, b in points)
        end_x, end_y = _x(across, points[-1][0]), _y(up, points[-1][1])
        parts += [
            f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<circle cx="{end_x:.1f}" cy="{end_y:.1f}" r="3.5" fill="{colour}"/>',
            _text(WIDTH - RIGHT + 12, labels[one] + 4, one, colour),
        ]
    return Picture(name, title, _svg(WIDTH, HEIGHT, parts))


def cdf(name: str, title: str, samples: Mapping[str, Sequence[float]], unit: str) -> Picture:
    """Draw the share of samples at or below each value, on a logarithmic axis."""
    lines = {one: _steps(found) for one, found in samples.items() if found}
    log = all(value > 0 for found in samples.values() for value in found)
    return curves(name, title, lines, Axis(unit, log=log), Axis("share of the samples"))


def waterfall(name: str, title: str, rows: Mapping[str, Mapping[str, float]], unit: str) -> Picture:
    """Draw a bar for each row, made of its parts one after the other, with their sum behind."""
    parts_named = list(dict.fromkeys(part for row in rows.values() for part in row))
    painted = {
        part: COLOURS[number % len(COLOURS)] if part else "#b5bcc4"
        for number, part in enumerate(parts_named)
    }
    longest = max((sum(row.values()) for row in rows.values()), default=0) or 1
    wide = WIDTH - NAMES_WIDTH - FIGURES_WIDTH
    parts = [_text(12, 26, title, "#222", size=15)]
    top = TOP - 16
    for one, row in rows.items():
        parts.append(_text(NAMES_WIDTH - 10, top + 15, one, "#222", anchor="end"))
        at = float(NAMES_WIDTH)
        for part, value in row.items():
            length = value / longest * wide
            colour = OURS if not part and is_ours(one) else painted[part]
            parts.append(
                f'<rect x="{at:.1f}" y="{top}" width="{length:.1f}" height="{BAR}" '
                f'fill="{colour}"><title>{escape(part or one)} {short(value)} {unit}'
                "</title></rect>"
            )
            at += length
        parts.append(_text(at + 6, top + 15, f"{short(sum(row.values()))} {unit}", "#222"))
        top += BAR + GAP
    x, top = NAMES_WIDTH, top + 8
    for part in parts_named:
        if not part or max(row.get(part, 0) for row in rows.values()) < longest * LEAST_SHOWN:
            continue
        if x + 24 + 7 * len(part) > WIDTH:
            x, top = NAMES_WIDTH, top + 20
        parts.append(f'<rect x="{x}" y="{top}" width="12" height="12" fill="{painted[part]}"/>')
        parts.append(_text(x + 17, top + 11, part, "#222"))
        x += 34 + 7 * len(part)
    return Picture(name, title, _svg(WIDTH, top + 28, parts))


def round_step(about: float) -> float:
    """Return the least of 1, 2 and 5 times a power of ten that is not below `about`."""
    power = 10.0 ** math.floor(math.log10(about))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= about * 0.9999)


def short(value: float) -> str:
    """Return a number for an axis or a bar: no more digits than it needs."""
    if value and abs(value) < 10:
        return f"{value:.2g}"
    return f"{value / 1000:.3g}k" if abs(value) >= 10_000 else f"{value:.0f}"


def _steps(found: Sequence[float]) -> list[tuple[float, float]]:
    ordered = sorted(found)
    return [(value, (number + 1) / len(ordered)) for number, value in enumerate(ordered)]


def _scale(values: Sequence[float], log: bool) -> _Scale:
    high = max(values, default=0) or 1
    low = min(values, default=1) if log else min(0, *values, 0)
    return _Scale(low if low < high else low / 2, high, log)


def _x(scale: _Scale, value: float) -> float:
    return LEFT + scale.share(value) * (WIDTH - LEFT - RIGHT)


def _y(scale: _Scale, value: float) -> float:
    return HEIGHT - BOTTOM - scale.share(value) * (HEIGHT - TOP - BOTTOM)


def _spread(places: Mapping[str, float]) -> dict[str, float]:
    """Return heights for labels near their lines' ends, none over another."""
    found: dict[str, float] = {}
    last = -math.inf
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        found[name] = last = max(place, last + 15)
    return found


def _frame(title: str, x: str, y: str, across: _Scale, up: _Scale) -> list[str]:
    parts = [
        _text(12, 22, title, "#222", size=15),
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#444"/>',
        _text(LEFT - 8, TOP - 12, y, "#444", anchor="start"),
        _text(WIDTH - RIGHT, HEIGHT - 12, x, "#444", anchor="end"),
    ]
    for value in across.ticks():
        place = _x(across, value)
        parts.append(f'<path d="M{place:.1f} {HEIGHT - BOTTOM}v4" stroke="#444"/>')
        parts.append(_text(place, HEIGHT - BOTTOM + 18, short(value), "#444", anchor="middle"))
    for value in up.ticks():
        place = _y(up, value)
        parts.append(f'<path d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}" stroke="#e4e7eb"/>')
        parts.append(_text(LEFT - 8, place + 4, short(value), "#444", anchor="end"))
    return parts


def _text(
    x: float, y: float, text: str, fill: str, *, anchor: str = "start", size: int = 12
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}" text-anchor="{anchor}" '
        f'font-size="{size}">{escape(text)}</text>'
    )


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="DejaVu Sans, sans-serif">'
    )
    ground = f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>'
    return "\n".join([head, ground, *parts, "</svg>"]) + "\n"
