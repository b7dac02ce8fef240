"""Versions: what a deploy leads to, what a qualifier means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.deploy import MAX_VERSIONS, Decision, decide, parse_qualifier, pick
from agent.errors import AlreadyExists, FailedPrecondition, NotFound


def test_the_first_deploy_is_version_1_or_the_one_it_names():
    assert decide({}, None, "a") == Decision(1, True)
    assert decide({}, None, "a", 7) == Decision(7, True)


def test_an_equal_spec_changes_nothing():
    assert decide({1: "a", 2: "b"}, 2, "b") == Decision(2, False)


def test_a_change_makes_the_next_version_even_back_to_an_old_content():
    assert decide({1: "a", 2: "b"}, 2, "c") == Decision(3, True)
    assert decide({1: "a", 2: "b"}, 2, "a") == Decision(3, True)


def test_a_number_is_never_used_again_after_a_gap():
    assert decide({2: "a", 5: "b"}, 5, "c") == Decision(6, True)


def test_an_explicit_version_keeps_its_content():
    assert decide({1: "a", 2: "b"}, 2, "a", 1) == Decision(1, False)
    with pytest.raises(AlreadyExists, match="version 1 exists"):
        decide({1: "a", 2: "b"}, 2, "b", 1)


def test_an_explicit_version_may_skip_ahead_but_not_back():
    assert decide({1: "a"}, 1, "b", 9) == Decision(9, True)
    with pytest.raises(FailedPrecondition, match="above 5"):
        decide({5: "a"}, 5, "b", 3)


def test_an_equal_spec_under_a_new_number_is_a_new_version():
    assert decide({1: "a"}, 1, "a", 2) == Decision(2, True)


def test_versions_have_a_bound():
    with pytest.raises(FailedPrecondition, match="remove"):
        decide({n: str(n) for n in range(1, MAX_VERSIONS + 1)}, MAX_VERSIONS, "new")


@given(st.lists(st.sampled_from("abc")))
def test_deploying_twice_is_deploying_once(contents):
    versions: dict[int, str] = {}
    latest = None
    for content in contents:
        decision = decide(versions, latest, content)
        versions[decision.version] = content
        latest = decision.version
        assert decide(versions, latest, content) == Decision(latest, False)
    assert sorted(versions) == list(range(1, len(versions) + 1))


@pytest.mark.parametrize(("text", "version"), [("", None), ("LATEST", None), ("3", 3)])
def test_a_qualifier_is_latest_or_a_number(text, version):
    assert parse_qualifier(text) == version


@pytest.mark.parametrize("text", ["latest", "0", "-1", "1.0", "prod", "²", "9" * 11, " 1"])
def test_anything_else_is_not_found(text):
    with pytest.raises(NotFound, match="LATEST"):
        parse_qualifier(text)


def test_pick_names_what_is_there_instead():
    assert pick("f", {1: "", 2: ""}, 2, "") == 2
    assert pick("f", {1: "", 2: ""}, 2, "1") == 1
    with pytest.raises(NotFound, match="no version 9; there is: 1, 2"):
        pick("f", {1: "", 2: ""}, 2, "9")
    with pytest.raises(NotFound, match="none"):
        pick("f", {}, None, "LATEST")
