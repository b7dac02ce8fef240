"""Processes by pid and start time, with real ones: who is meant, who lives, who gets a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from agent.linux import process
from agent.linux.process import Identity

# In the table of processes the name stands in parentheses and may be anything.
NAMED = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b') Z (9 9'); print(); sys.stdin.read()"
NOBODY = 2**22 + 1  # above the largest pid_max


@pytest.fixture
def sleeper():
    with subprocess.Popen(["/bin/sleep", "1000"]) as found:
        yield found
        found.kill()


@pytest.fixture
def zombie():
    with subprocess.Popen(["/bin/true"]) as found:
        os.waitid(os.P_PID, found.pid, os.WEXITED | os.WNOWAIT)
        yield found


def test_a_living_process_is_known_and_signalled(sleeper):
    identity = Identity.of(sleeper.pid)
    start = process.start_time(sleeper.pid)
    assert start is not None
    assert identity == Identity(sleeper.pid, start)
    assert identity.alive
    assert identity.send(signal.SIGTERM)
    assert sleeper.wait() == -signal.SIGTERM
    assert not identity.alive
    assert not identity.send(signal.SIGTERM)


@pytest.mark.parametrize("ticks", [-1, 1])
def test_another_process_of_the_same_number_is_not_hit(sleeper, ticks):
    now = Identity.of(sleeper.pid)
    earlier = replace(now, start=now.start + ticks)
    assert not earlier.alive
    assert not earlier.send(signal.SIGKILL)
    assert sleeper.poll() is None
    assert now.alive


def test_a_zombie_has_an_identity_but_is_not_alive(zombie):
    identity = Identity.of(zombie.pid)
    assert process.is_zombie(zombie.pid)
    assert not identity.alive
    assert not identity.send(signal.SIGKILL)


@pytest.mark.parametrize("pid", [0, -1, NOBODY])
def test_a_pid_that_nobody_has(pid):
    with pytest.raises(ProcessLookupError, match=str(pid)):
        Identity.of(pid)
    assert process.start_time(pid) is None
    assert process.parent_of(pid) == 0
    assert process.is_zombie(pid)
    assert not Identity(pid, 1).send(signal.SIGKILL)


def test_a_name_of_blanks_and_parentheses_hides_nothing():
    command = [sys.executable, "-c", NAMED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as named:
        assert named.stdout is not None
        named.stdout.readline()
        assert process.parent_of(named.pid) == os.getpid()
        assert not process.is_zombie(named.pid)
        assert Identity.of(named.pid).start >= Identity.of(os.getpid()).start


def test_ancestors_and_descendants_follow_the_process_table(sleeper, zombie):
    assert os.getpid() in process.ancestors(sleeper.pid)
    below = process.descendants(os.getpid())
    assert sleeper.pid in below
    assert zombie.pid not in below


def test_only_those_who_are_listed_still_are_killed(sleeper):
    with subprocess.Popen(["/bin/sleep", "1000"]) as other:
        lists = [[NOBODY, sleeper.pid, other.pid], [NOBODY, other.pid]]
        assert process.kill_members(lambda: lists.pop(0)) == 1
        assert other.wait() == -signal.SIGKILL
    assert sleeper.poll() is None


def test_more_members_than_are_held_at_once(monkeypatch):
    monkeypatch.setattr(process, "_AT_ONCE", 2)
    sleepers = [subprocess.Popen(["/bin/sleep", "1000"]) for _ in range(5)]
    assert process.kill_members(lambda: [one.pid for one in sleepers]) == 5
    assert [one.wait() for one in sleepers] == [-signal.SIGKILL] * 5


def test_signals_leave_no_descriptor_open(sleeper, zombie):
    before = len(os.listdir("/proc/self/fd"))
    for pid in (sleeper.pid, zombie.pid, NOBODY):
        Identity(pid, 1).send(0)
        Identity(pid, process.start_time(pid) or 0).send(0)
    assert len(os.listdir("/proc/self/fd")) == before
