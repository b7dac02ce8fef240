"""Probe programs in rigs, several at once: each has a containerd of its own and waits by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.inside.containerd_rig import Rig, rig

Facts = dict[str, Any]


def facts_of(place: Rig, program: str, *scenarios: str, **env: str) -> Facts:
    """Run a probe; no scenario of it may have failed, and no process or cgroup may be left."""
    facts = place.run(f"tests.inside.{program}", *scenarios, **env)
    assert place.leftovers == []
    failed = {name: told["error"] for name, told in facts.items() if "error" in told}
    assert not failed, "\n".join(failed.values())
    return facts


def probed(program: str, *scenarios: str, disk_mb: int = 0, **env: str) -> Facts:
    """Run a probe in a rig of its own, of which nothing may be left."""
    # Two may run the same program at the same time.
    with rig("-".join((program, *scenarios[:1])), disk_mb=disk_mb) as place:
        facts = facts_of(place, program, *scenarios, **env)
    assert not place.run_dir.exists()
    assert not place.data_dir.exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"*/kindling-test/{place.name}"))
    return facts


@contextmanager
def begun(
    request: pytest.FixtureRequest, probes: Mapping[str, Callable[[], Facts]]
) -> Iterator[Callable[[str], Facts]]:
    """Begin the probes whose fixtures this module's tests ask for; yields who waits for one."""
    tests = [item for item in request.session.items if item.path == request.path]
    asked = {name for item in tests for name in getattr(item, "fixturenames", ())}
    with ThreadPoolExecutor(len(probes)) as running:
        found = {name: running.submit(probes[name]) for name in probes if name in asked}
        yield lambda name: found[name].result()
