"""Pages of what is listed by name: where one begins and ends, whatever has changed since the last.

The token of the page after is the last name of the page before. So what is there all the time is
listed once, what has gone is left out, and what came is listed if its turn was still to come. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from agent.errors import InvalidSpec, Problem
from agent.model.spec_rules import NAME

PAGE_SIZE = 1000


def names_after(names: Iterable[str], token: str) -> list[str]:
    """Return the names that come after a token, in order; all of them for an empty one.

    Raises InvalidSpec for what cannot be a token.
    """
    if token and not NAME.fullmatch(token):
        text = "is none that this node has given: leave it out to begin with the first page"
        raise InvalidSpec([Problem("page_token", text)])
    ordered = sorted(names)
    return ordered[bisect_right(ordered, token) :] if token else ordered


def page_size(asked: int) -> int:
    """Return how many entries a page may have; raises InvalidSpec above the limit."""
    if asked > PAGE_SIZE:
        raise InvalidSpec([Problem("page_size", f"is {asked}; at most {PAGE_SIZE}")])
    return asked or PAGE_SIZE
