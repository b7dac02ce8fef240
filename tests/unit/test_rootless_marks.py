"""`kindling check`: which rows fail it. Advice never does, whatever the host lacks."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from agent.cli import check as verb
from agent.rootless import preflight
from agent.rootless.preflight import Check

FINE = Check("nft", True, "/usr/sbin/nft")
MISSING = Check("nft", False, "not installed", "apt-get install nftables")
# Every row that a host may lack and the agent do without, as the rules judge it.
ADVICE = [
    preflight.open_files(1024, 0, None),
    preflight.open_files(1024, 0, 1024),
    preflight.tmpfs("/run/kindling", "ext4"),
    preflight.sysctls({"fs.file-max": 10}, {"fs.file-max": 9}),
    preflight.cgroup_moves("1 0 0:1 / /c rw - cgroup2 cgroup2 rw\n", "6.1"),
    preflight.swap_limit(False, "Filename\n"),
    preflight.slots("slots", "/slots", "loop", {512: 16}, {512: 1}),
    preflight.device("/dev/fuse", "No such file", required=False),
]


@pytest.mark.parametrize(
    ("rows", "status", "marks"),
    [
        ([FINE], 0, ["ok"]),
        *[([FINE, row], 0, ["ok", "advice"]) for row in ADVICE],
        (ADVICE, 0, ["advice"] * len(ADVICE)),
        ([MISSING], 1, ["missing"]),
        ([*ADVICE, MISSING], 1, ["advice"] * len(ADVICE) + ["missing"]),
    ],
)
def test_only_what_the_agent_cannot_do_without_fails_the_check(monkeypatch, rows, status, marks):
    monkeypatch.setattr(verb, "_look", lambda file: rows)
    monkeypatch.setattr(verb, "_configuration", lambda file: [])
    told = CliRunner().invoke(verb.command, ["--json"])
    assert told.exit_code == status
    assert json.loads(told.stdout)["ok"] == (status == 0)
    assert [row["mark"] for row in json.loads(told.stdout)["checks"]] == marks
    plain = CliRunner().invoke(verb.command, [])
    assert plain.exit_code == status
    for line, mark in zip(plain.stdout.splitlines(), marks, strict=True):
        assert (": advice, " in line) == (mark == "advice")
