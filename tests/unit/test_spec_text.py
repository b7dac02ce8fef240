"""Specs as TOML and as --set."""

from __future__ import annotations

import pytest

from agent.errors import InvalidSpec
from agent.model.spec_parse import parse_spec
from agent.model.spec_text import apply_sets, parse_toml

FILE = """
name = "hello"
image = "kindling.local/hello-http:1"
contract = "fc"
kind = "http"
concurrency = 4
args = ["-v"]

[env]
GREETING = "hi"

[scaling]
min = 1

[hooks.initialize]
timeout_s = 5

[[mounts]]
volume = "data"
target = "/data"
"""


def test_a_file_is_a_spec():
    spec = parse_spec(parse_toml(FILE, "hello.toml"))
    assert (spec.name, spec.concurrency, spec.args) == ("hello", 4, ("-v",))
    assert spec.env == {"GREETING": "hi"}
    assert spec.scaling.min == 1
    assert spec.hooks.initialize is not None
    assert spec.mounts[0].target == "/data"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("name = \nimage = 5", "line 1, column 8: name ="),
        ('a = 1\nb = 2\nc = "open', "line 3"),
        ('a = 1\nb = 2\nc = """open', "at the end, line 3"),
        ("a = 1\na = 2", "line 2"),
        ("\x00\x01\x02", "line 1"),
        ("[a", "TOML"),
    ],
)
def test_what_is_no_toml_is_told_with_file_and_place(text, word):
    with pytest.raises(InvalidSpec) as error:
        parse_toml(text, "my.toml")
    (problem,) = error.value.problems
    assert problem.field == "my.toml"
    assert word in problem.message


def test_nesting_without_end_is_an_error_and_no_crash():
    with pytest.raises(InvalidSpec):
        parse_toml("a = " + "[" * 100_000)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("memory_mb=1024", {"memory_mb": 1024}),
        ("scaling.min=1", {"scaling": {"min": 1, "max": 9}}),
        ("kind=http", {"kind": "http"}),
        ("image=kindling.local/hello-event:1", {"image": "kindling.local/hello-event:1"}),
        ('env.A="x=y"', {"env": {"A": "x=y"}}),
        ('labels."a.b"="c"', {"labels": {"a.b": "c"}}),
        ('egress=["10.0.0.0/8"]', {"egress": ["10.0.0.0/8"]}),
        ("env={A='1'}", {"env": {"A": "1"}}),
        ("read_only = true", {"read_only": True}),
    ],
)
def test_sets_go_where_they_point(given, wanted):
    base = {"scaling": {"max": 9}}
    assert apply_sets(base, [given]) == {**base, **wanted}
    assert base == {"scaling": {"max": 9}}


def test_a_later_set_wins():
    assert apply_sets({}, ["a.b=1", "a.c=2", "a.b=3"]) == {"a": {"b": 3, "c": 2}}
    assert apply_sets({"a": 1}, ["a.b=2"]) == {"a": {"b": 2}}


def test_all_wrong_sets_are_told_at_once():
    with pytest.raises(InvalidSpec) as error:
        apply_sets({}, ["novalue", "a=b c", "=5", "ok=1", "a..b=1"])
    assert [p.field for p in error.value.problems] == [
        "--set novalue",
        "--set a=b c",
        "--set =5",
        "--set a..b=1",
    ]


def test_a_number_of_thousands_of_digits_is_an_error_and_no_crash():
    with pytest.raises(InvalidSpec, match=r"f\.toml: holds a number that is too long"):
        parse_toml(f"memory_mb = {'9' * 5000}", "f.toml")
