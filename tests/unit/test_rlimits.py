"""What a function's processes may raise their limits to, on hosts of every kind."""

from __future__ import annotations

import pytest

from agent.core.rlimits import MOST_FILES, UNLIMITED, Rlimit, dumps_outside, rlimits


@pytest.mark.parametrize(
    ("files", "own", "soft", "hard"),
    [
        (1024, 1048576, 1024, 1048576),  # systemd's unit
        (100_000, 1048576, 100_000, 1048576),
        (100_000, 20_000, 20_000, 20_000),  # a login's
        (1024, 524288, 1024, 524288),
        (1024, 512, 512, 512),
        (1024, -1, 1024, MOST_FILES),
        (1024, 1 << 30, 1024, MOST_FILES),  # fs.nr_open of systemd
    ],
)
def test_open_files_may_be_raised_to_what_the_agent_has(files, own, soft, hard):
    assert Rlimit("NOFILE", soft, hard) in rlimits(files, own, 0)


@pytest.mark.parametrize(
    ("own", "outside", "hard"),
    [(-1, False, UNLIMITED), (0, False, 0), (7, False, 7), (-1, True, 0)],
)
def test_nothing_is_dumped_unless_it_is_asked_for(own, outside, hard):
    assert Rlimit("CORE", 0, hard) in rlimits(1024, 1024, own, outside=outside)


@pytest.mark.parametrize(
    ("pattern", "dumpable", "outside"),
    [
        ("core\n", "0\n", False),
        ("core\n", "2\n", False),
        ("/var/crash/%p\n", "0\n", False),
        ("/var/crash/%p\n", "2\n", True),
        ("|/usr/lib/systemd/systemd-coredump %P\n", "2\n", False),
    ],
)
def test_dumps_of_setuid_programs_may_go_to_the_hosts_own_files(pattern, dumpable, outside):
    assert dumps_outside(pattern, dumpable) is outside
