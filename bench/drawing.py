"""Curves as an SVG picture: bytes over time, a line for each contender. Pure but for the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT, MARGIN = 720, 400, 60
COLOURS = ("#d1495b", "#00798c", "#edae49", "#30638e", "#6a4c93", "#3a7d44")
MB = 1 << 20
TICKS = 5

Points = Sequence[tuple[float, int]]


def curves(path: Path, lines: Mapping[str, Points]) -> None:
    """Write bytes over seconds; each line ends where its first reply came."""
    path.write_text(svg(lines))


def svg(lines: Mapping[str, Points]) -> str:
    """Return the picture; lines without points are left out."""
    drawn = {name: points for name, points in lines.items() if points}
    seconds = max((points[-1][0] for points in drawn.values()), default=0) or 1
    most = max((points[-1][1] for points in drawn.values()), default=0) or 1
    wide, high = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN

    def at(second: float, size: float) -> tuple[float, float]:
        return MARGIN + second / seconds * wide, HEIGHT - MARGIN - size / most * high

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<path d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN}" '
        'fill="none" stroke="#444"/>',
        f'<text x="{MARGIN}" y="{MARGIN - 12}">MB over the link</text>',
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 16}" text-anchor="end">seconds</text>',
    ]
    for tick in range(TICKS + 1):
        x, y = at(seconds * tick / TICKS, most * tick / TICKS)
        parts += [
            f'<text x="{x:.0f}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle">'
            f"{seconds * tick / TICKS:.1f}</text>",
            f'<text x="{MARGIN - 8}" y="{y + 4:.0f}" text-anchor="end">'
            f"{most * tick / TICKS / MB:.0f}</text>",
        ]
    for number, (name, points) in enumerate(drawn.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [at(*point) for point in points]
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        x, y = places[-1]
        parts += [
            f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>',
            f'<text x="{x + 6:.1f}" y="{y - 6:.1f}" fill="{colour}">{escape(name)}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
