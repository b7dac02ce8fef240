"""Every skip must be listed, with its reason, in tests/skips.toml; any other skip fails.

Tests run on uvloop, as the agent does.

Each entry names a test by its node id's beginning and says what is missing. An entry that matches
nothing is fine: the same list serves every host.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import uvloop


def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop}


ALLOWED = tomllib.loads((Path(__file__).parent / "skips.toml").read_text("utf-8")).get("skip", [])


def _allowed(nodeid: str) -> bool:
    return any(nodeid.startswith(entry["test"]) for entry in ALLOWED)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and not hasattr(report, "wasxfail") and not _allowed(item.nodeid):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped but is not listed in tests/skips.toml"


def pytest_collectreport(report):
    if report.skipped and not _allowed(report.nodeid):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped whole but is not listed in tests/skips.toml"
