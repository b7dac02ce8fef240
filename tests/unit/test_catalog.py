"""What the catalog answers, and that its generation tells when an answer may have changed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from agent.deployments.catalog import Catalog
from agent.errors import NotFound


def target(name, number):
    return SimpleNamespace(version=SimpleNamespace(key=(name, number)))


def test_every_change_of_an_answer_is_another_generation():
    catalog, seen = Catalog(), set()
    first, second = target("f", 1), target("f", 2)
    seen.add(catalog.generation)
    catalog.put(first, latest=True)
    seen.add(catalog.generation)
    assert catalog.find("f", "LATEST") is first
    catalog.put(second, latest=False)
    seen.add(catalog.generation)
    assert catalog.find("f", "LATEST") is first
    assert catalog.find("f", "2") is second
    catalog.put(second, latest=True)
    seen.add(catalog.generation)
    assert catalog.find("f", "LATEST") is second
    catalog.remove("f")
    seen.add(catalog.generation)
    assert len(seen) == 5


def test_names_that_are_not_there_change_nothing():
    catalog = Catalog()
    before = catalog.generation
    for change in (lambda: catalog.find("f", "LATEST"), lambda: catalog.remove("f")):
        with pytest.raises(NotFound):
            change()
    assert catalog.generation == before
