"""All that benches found as one HTML file that needs no other: pictures stand inside it.

Made from the JSON and SVG files below bench/out, so that it shows what there is whenever a run ends
or is cut short. Pure but for reading them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from bench.figures import number
from bench.machine import sentence

STYLE = """\
body { font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: .1em 1em .1em 0; text-align: left }
td.n { text-align: right; font-variant-numeric: tabular-nums }
.missed { color: #b3261e } .reached { color: #2e7d32 }
pre { overflow-x: auto; background: #f6f7f9; padding: 1em; font-size: 12px }
svg { max-width: 100%; height: auto } .machine { color: #666; font-size: 13px }
"""


def write(out: Path, names: Sequence[str]) -> Path:
    """Write the page of those benches that have a result; returns its path."""
    found = [
        (name, json.loads(file.read_text()))
        for name in names
        if (file := out / f"{name}.json").exists()
    ]
    pictures = {file.name: file.read_text() for file in sorted(out.glob("*.svg"))}
    out.mkdir(parents=True, exist_ok=True)
    page = out / "report.html"
    page.write_text(html(found, pictures))
    return page


def html(found: Sequence[tuple[str, dict[str, Any]]], pictures: dict[str, str]) -> str:
    """Return the page: a section for each bench, in order; a picture that is missing is named."""
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f"<title>Kindling: bench</title><style>\n{STYLE}</style></head><body>",
        "<h1>Kindling: what the benches found</h1>",
        "<p>Ratios are of medians of one run, contenders interleaved; quartiles over its rounds "
        "stand beside them. Times in milliseconds of one machine mean little on another.</p>",
        "<ul>",
        *(f'<li><a href="#{name}">{escape(data["title"])}</a></li>' for name, data in found),
        "</ul>",
    ]
    for name, data in found:
        parts += _section(name, data, pictures)
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _section(name: str, data: dict[str, Any], pictures: dict[str, str]) -> list[str]:
    machine = data["machine"]
    parts = [
        f'<h2 id="{name}">{escape(data["title"])}</h2>',
        f'<p class="machine">{escape(sentence(machine))}; took {machine.get("took_s", "?")} s'
        f"{'; <b>cut short</b>' if machine.get('cut_short') else ''}</p>",
    ]
    if data["goals"]:
        parts += ["<table><tr><th>goal</th><th>limit</th><th>found</th><th></th></tr>"]
        parts += [_goal(goal) for goal in data["goals"]]
        parts += ["</table>"]
    if data["ratios"]:
        parts += ["<table><tr><th>ratio</th><th>of medians</th><th>quartiles</th></tr>"]
        parts += [
            f'<tr><td>{escape(what)}</td><td class="n">{number(one["of_medians"])}</td>'
            f'<td class="n">{number(one["low"])} - {number(one["high"])}</td></tr>'
            for what, one in data["ratios"].items()
        ]
        parts += ["</table>"]
    for picture in data.get("pictures", []):
        svg = pictures.get(picture["file"])
        parts.append(svg if svg else f"<p>{escape(picture['file'])} is missing</p>")
    parts.append(
        f"<details><summary>tables</summary><pre>{escape(data.get('text', ''))}</pre></details>"
    )
    facts = escape(json.dumps(machine, indent=1))
    parts.append(f"<details><summary>machine</summary><pre>{facts}</pre></details>")
    return parts


def _goal(goal: dict[str, Any]) -> str:
    sign = "&le;" if goal["at_most"] else "&ge;"
    verdict = "reached" if goal["held"] else "missed"
    return (
        f'<tr><td>{escape(goal["text"])}</td><td class="n">{sign} {number(goal["limit"])}</td>'
        f'<td class="n">{number(goal["value"])}</td><td class="{verdict}">{verdict}</td></tr>'
    )
