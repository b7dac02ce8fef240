"""What the catalog answers, and that its generation tells when an answer may have changed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from agent.errors import NotFound
from agent.functions.registry import Registry


def target(name, number):
    return SimpleNamespace(version=SimpleNamespace(key=(name, number)))


def test_every_change_of_an_answer_is_another_generation():
    registry, seen = Registry(), set()
    first, second = target("f", 1), target("f", 2)
    seen.add(registry.generation)
    registry.put(first, latest=True)
    seen.add(registry.generation)
    assert registry.find("f", "LATEST") is first
    registry.put(second, latest=False)
    seen.add(registry.generation)
    assert registry.find("f", "LATEST") is first
    assert registry.find("f", "2") is second
    registry.put(second, latest=True)
    seen.add(registry.generation)
    assert registry.find("f", "LATEST") is second
    registry.remove("f")
    seen.add(registry.generation)
    assert len(seen) == 5


def test_names_that_are_not_there_change_nothing():
    registry = Registry()
    before = registry.generation
    for change in (lambda: registry.find("f", "LATEST"), lambda: registry.remove("f")):
        with pytest.raises(NotFound):
            change()
    assert registry.generation == before
