"""Pages of what is listed by name: every row once, whatever changes between two of them."""

from __future__ import annotations

from itertools import chain, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.control.paging import PAGE_SIZE, names_after, page_size
from agent.errors import InvalidSpec

NAMES = st.sets(st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,5}", fullmatch=True), max_size=30)


def listed(looks, size):
    """The names on all pages, each page made from the next of some looks at what there is."""
    found, token = [], ""
    while True:
        names = next(looks)
        rest = names_after(names, token)
        found += rest[:size]
        if len(rest) <= size:
            return found
        token = rest[size - 1]


def forever(names):
    while True:
        yield names


@given(names=NAMES, size=st.integers(1, 7))
def test_every_row_is_listed_once_and_in_order(names, size):
    assert listed(forever(names), size) == sorted(names)


@given(stay=NAMES, changes=st.lists(NAMES, max_size=8), size=st.integers(1, 7))
def test_what_stays_is_listed_once_while_others_come_and_go(stay, changes, size):
    looks = (stay | one for one in chain(changes, repeat(set())))
    found = listed(looks, size)
    assert len(found) == len(set(found))
    assert stay <= set(found)
    assert found == sorted(found)


def test_the_page_after_a_name_that_has_gone_begins_with_the_next():
    assert names_after({"a", "c"}, "b") == ["c"]
    assert names_after({"a", "c"}, "c") == []


@pytest.mark.parametrize("token", ["-a", "a b", "a/1", "ä", "a" * 65, "a\n", "3", '{"page":2}'])
def test_what_can_be_no_token_is_refused_by_its_field(token):
    with pytest.raises(InvalidSpec) as refused:
        names_after({"a"}, token)
    (problem,) = refused.value.problems
    assert problem.field == "page_token"
    assert "leave it out" in problem.message


def test_a_page_has_a_bound():
    assert page_size(0) == PAGE_SIZE == page_size(PAGE_SIZE)
    assert page_size(1) == 1
    with pytest.raises(InvalidSpec, match="page_size"):
        page_size(PAGE_SIZE + 1)
