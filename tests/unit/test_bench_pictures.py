"""Pictures and the page: well-formed, in proportion, and in need of no other file."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import page
from bench.drawing import Axis, Picture, cdf, colours, curves, round_step, short, waterfall

SVG = "{http://www.w3.org/2000/svg}"
ODD = 'a <b> & "c"'
PICTURES = (
    curves("n", ODD, {"kindling": [(1, 2), (32, 9)], ODD: [(1, 1), (32, 3)]}, Axis("x", log=True)),
    curves("n", "nothing", {"nobody": []}, Axis("s")),
    curves("n", "one point", {"a": [(0.0, 0.0)]}, Axis("s")),
    cdf("n", "starts", {"kindling": [5.0, 1.0, 9.0], "ctr": [80.0]}, "ms"),
    cdf("n", "with a zero", {"a": [0.0, 1.0]}, "ms"),
    waterfall("n", ODD, {"ours": {"create": 3.0, ODD: 1.0}, "theirs": {"": 8.0}}, "ms"),
    waterfall("n", "empty", {}, "ms"),
)


def parts(picture: Picture, kind: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(picture.svg).iter(SVG + kind))


@pytest.mark.parametrize("picture", PICTURES, ids=lambda one: one.title)
def test_pictures_are_well_formed_and_stay_inside(picture: Picture) -> None:
    root = ElementTree.fromstring(picture.svg)
    wide, high = float(root.attrib["width"]), float(root.attrib["height"])
    for one in root.iter():
        for name, most in (("x", wide), ("cx", wide), ("y", high), ("cy", high)):
            assert 0 <= float(one.attrib.get(name, 0)) <= most, ElementTree.tostring(one)


def test_a_waterfalls_parts_follow_each_other_in_proportion() -> None:
    rows = {"ours": {"create": 30.0, "start": 10.0}, "theirs": {"": 80.0}}
    bars = [bar for bar in parts(waterfall("n", "t", rows, "ms"), "rect") if len(bar)]
    create, start, theirs = ((float(b.attrib["x"]), float(b.attrib["width"])) for b in bars)
    assert create[1] == pytest.approx(3 * start[1])
    assert theirs[1] == pytest.approx(2 * (create[1] + start[1]))
    assert start[0] == pytest.approx(create[0] + create[1])


def test_a_distribution_climbs_from_its_least_to_its_greatest_sample() -> None:
    (line,) = parts(cdf("n", "t", {"a": [3.0, 1.0, 2.0]}, "ms"), "polyline")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert points == sorted(points, key=lambda point: point[0])
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)


def test_colours_are_all_different_and_ours_is_its_own() -> None:
    found = colours(["nginx", "kindling", "HAProxy", "Caddy", "Go", "aiohttp", "kindling, new"])
    assert len(set(found.values())) == len(found)
    assert found["kindling"] == colours(["Kindling"])["Kindling"] != found["kindling, new"]


def test_steps_and_numbers_of_axes_are_round() -> None:
    assert [round_step(v) for v in (0.013, 1, 23.8, 60)] == [0.02, 1, 50, 100]
    assert [short(v) for v in (0, 0.25, 9.96, 42.4, 12_345)] == ["0", "0.25", "10", "42", "12.3k"]


class Outside(HTMLParser):
    """Collects whatever a page would fetch, and tags that were left open."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.opened: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = [v for k, v in attrs if k in ("src", "href", "data", "xlink:href", "srcset")]
        self.fetched += [value for value in wanted if value and not value.startswith("#")]
        if tag in ("script", "link", "iframe", "object", "img"):
            self.fetched.append(tag)
        if tag not in ("meta", "br"):
            self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag


def result() -> dict[str, Any]:
    facts = {"cores": 2, "cpu": ODD, "kernel": "6", "memory_mb": 4096, "load": [0, 0, 0]}
    goal = {"text": ODD, "value": 3.0, "limit": 2.0, "at_most": True, "held": False}
    return {
        "title": ODD,
        "machine": facts | {"commit": "abc", "took_s": 3, "cut_short": True},
        "text": f"a table {ODD}",
        "ratios": {ODD: {"of_medians": 0.25, "low": 0.2, "high": 0.3}},
        "goals": [goal],
        "pictures": [{"title": "t", "file": "cold-a.svg"}, {"title": "t", "file": "cold-b.svg"}],
    }


def test_the_page_needs_no_other_file() -> None:
    text = page.html([("cold", result())], {"cold-a.svg": PICTURES[0].svg})
    seen = Outside()
    seen.feed(text)
    assert seen.fetched == []
    assert seen.opened == []
    assert not re.search(r"url\(|@import", text)
    assert text.count("<svg") == 1
    assert "cold-b.svg is missing" in text


def test_the_page_says_what_was_missed_and_cut_short() -> None:
    text = page.html([("cold", result())], {})
    assert 'class="missed"' in text
    assert "cut short" in text
    assert "<b>" not in text.replace("<b>cut short</b>", "")


def test_a_page_of_nothing_is_a_page() -> None:
    assert "<h1>" in page.html([], {})
