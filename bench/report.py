"""What a bench found: a table for people, JSON for everything else, and its pictures."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.drawing import Picture
from bench.figures import Goal, Ratio, number, plain


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of one bench. `lines` are its tables, `samples` the raw figures."""

    title: str
    lines: Sequence[str]
    figures: Mapping[str, Any]
    ratios: Mapping[str, Ratio] = field(default_factory=dict)
    goals: Sequence[Goal] = ()
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()

    def text(self) -> str:
        """Return the report for a terminal."""
        lines = [f"== {self.title}", *self.lines]
        if self.ratios:
            lines += ["", "ratios of medians (quartiles over the rounds):"]
            width = max(map(len, self.ratios))
            lines += [
                f"  {name:{width}}  {number(one.of_medians):>6}"
                f"  ({number(one.low)} - {number(one.high)})"
                for name, one in self.ratios.items()
            ]
        if self.goals:
            lines += ["", *(goal.sentence() for goal in self.goals)]
        return "\n".join(lines)

    def write(self, path: Path, machine: Mapping[str, Any]) -> None:
        """Write the report as JSON, its pictures beside it as SVG and PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = []
        for picture in self.pictures:
            file = path.with_name(f"{path.stem}-{picture.name}.svg")
            file.write_text(picture.svg)
            rasterize(file)
            drawn.append({"title": picture.title, "file": file.name})
        data = {
            "title": self.title,
            "machine": machine,
            "text": self.text(),
            "figures": self.figures,
            "ratios": self.ratios,
            "goals": self.goals,
            "pictures": drawn,
            "samples": self.samples,
        }
        path.write_text(json.dumps(plain(data), indent=1) + "\n")


def rasterize(svg: Path) -> None:
    """Make the PNG beside an SVG."""
    png = svg.with_suffix(".png")
    subprocess.run(["rsvg-convert", "--zoom=2", f"--output={png}", str(svg)], check=True)
