"""Every skip and every expected failure must be listed in tests/skips.toml; any other fails.

Tests run on uvloop, as the agent does. What the caller's shell says of colours and widths does not
reach the programs under test.

Each entry names a test by its node id's beginning and says what is missing. An entry that matches
nothing is fine: the same list serves every host.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
import uvloop


def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop}


for _name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(_name, None)

ALLOWED = tomllib.loads((Path(__file__).parent / "skips.toml").read_text("utf-8")).get("skip", [])


def _allowed(nodeid: str) -> bool:
    return any(nodeid.startswith(entry["test"]) for entry in ALLOWED)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    expected = hasattr(report, "wasxfail")  # xfail is told as skipped, xpass as passed
    if (report.skipped or expected) and not _allowed(item.nodeid):
        what = "was expected to fail" if expected else "was skipped"
        _fail(report, f"{item.nodeid} {what}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if report.skipped and not _allowed(report.nodeid):
        _fail(report, f"{report.nodeid} was skipped whole")
    return report


def _fail(report, what):
    report.outcome = "failed"
    report.longrepr = f"{what} but is not listed in tests/skips.toml"
    # A failed report that still has it does not fail the session.
    vars(report).pop("wasxfail", None)
