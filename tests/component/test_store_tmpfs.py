"""Instance records and the in-flight ledger as real files: successors, junk, kill -9."""

from __future__ import annotations

import json
import os
import stat
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import Bug, FailedPrecondition, RuntimeUnavailable
from agent.linux.process import Identity
from agent.model.records import ColdStart, InstanceRecord
from agent.store.instances import InstanceFiles
from agent.store.ledger import LANES, Ledger, OtherWorker

ROOT = Path(__file__).parents[2]
RECORD = InstanceRecord(
    "f-0a1b2c3d", "f", 3, 5, 5, "172.30.0.7", 9000, "slots", 2, 4711, "ready", 99
)


def loaded(files):
    """All records and all damaged files, in order."""
    found = list(files.each())
    records = [one for one in found if isinstance(one, InstanceRecord)]
    return records, [one for one in found if not isinstance(one, InstanceRecord)]


def test_records_come_back_as_they_were(tmp_path):
    files = InstanceFiles(tmp_path / "instances")
    cold = replace(RECORD, id="g-1", cold_start=ColdStart(12.5, create_ms=3.0, cached=("image",)))
    for record in (RECORD, cold):
        files.save(record)
    assert loaded(InstanceFiles(tmp_path / "instances")) == ([RECORD, cold], [])


def test_a_record_is_replaced_whole_and_removed_twice(tmp_path):
    files = InstanceFiles(tmp_path)
    files.save(RECORD)
    files.save(replace(RECORD, state="draining"))
    assert [r.state for r in loaded(files)[0]] == ["draining"]
    files.remove(RECORD.id)
    files.remove(RECORD.id)
    assert loaded(files) == ([], [])
    assert list(tmp_path.iterdir()) == []


def test_no_directory_is_no_records(tmp_path):
    assert loaded(InstanceFiles(tmp_path / "none")) == ([], [])


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\x00\xff",
        b"[]",
        b"5",
        b'{"id": "x"}',
        b"{" * 100_000,
        json.dumps({**RECORD.to_json(), "id": "x", "row": "5"}).encode(),
        json.dumps({**RECORD.to_json(), "id": "other"}).encode(),
        json.dumps({**RECORD.to_json(), "id": "x", "more": 1}).encode(),
        json.dumps({**RECORD.to_json(), "id": "x", "cold_start": 5}).encode(),
    ],
)
def test_a_file_that_is_no_record_is_told_and_left(tmp_path, junk):
    files = InstanceFiles(tmp_path)
    files.save(RECORD)
    (tmp_path / "x.json").write_bytes(junk)
    records, damaged = loaded(files)
    assert records == [RECORD]
    assert [d.path.name for d in damaged] == ["x.json"]
    assert damaged[0].reason
    assert (tmp_path / "x.json").exists()


def test_a_half_written_record_does_not_count_and_is_removed_on_demand_only(tmp_path):
    files = InstanceFiles(tmp_path)
    (tmp_path / "x.tmp").write_bytes(b'{"id"')
    assert loaded(files) == ([], [])
    assert (tmp_path / "x.tmp").exists(), "another worker may be writing it"
    files.remove_drafts()
    assert not (tmp_path / "x.tmp").exists()


@pytest.mark.parametrize("id", ["", "../x", "a/b", ".hidden", "a\0", "x" * 200])
def test_an_id_that_is_no_file_name_is_a_bug(tmp_path, id):
    with pytest.raises(Bug):
        InstanceFiles(tmp_path).save(replace(RECORD, id=id))


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeUnavailable, match=r"f-0a1b2c3d cannot be written"):
        InstanceFiles(tmp_path / "file").save(RECORD)


def test_a_successor_sees_the_calls_of_the_worker_before(tmp_path):
    old = Ledger.open(tmp_path / "ledger", 8)
    old.row(3).begin()
    old.row(3).begin()
    old.row(7).begin()
    new = Ledger.open(tmp_path / "ledger", 8)
    assert (old.generation, new.generation) == (1, 2)
    assert new.others() == [OtherWorker(1, Identity.of(os.getpid()))]
    assert new.calls(1) == {3: 2, 7: 1}
    old.row(7).end()
    old.row(3).end()
    assert new.calls(1) == {3: 1}
    new.forget(1)
    assert new.calls(1) == {}
    assert new.others() == []
    for ledger in (old, new):
        ledger.close()


def test_a_worker_of_another_release_reads_the_same_cells(tmp_path):
    path = tmp_path / "ledger"
    ledger = Ledger.open(path, 4)
    for _ in range(3):
        ledger.row(2).begin()
    # The layout of this release: an upgrade is a worker swap, and both count meanwhile.
    raw = path.read_bytes()
    me = Identity.of(os.getpid())
    assert struct.unpack_from("<8sII", raw) == (b"KINDLED2", 4, 1)
    assert struct.unpack_from("<QQQ", raw, 64) == (1, me.pid, me.start)
    assert struct.unpack_from("<I", raw, 4096 + 2 * 4) == (3,)


def test_two_workers_count_on_one_row_without_disturbing_each_other(tmp_path):
    old = Ledger.open(tmp_path / "ledger", 4)
    new = Ledger.open(tmp_path / "ledger", 4)
    old.row(1).begin()
    new.row(1).begin()
    new.row(1).begin()
    assert (old.row(1).inflight, new.row(1).inflight) == (1, 2)
    assert old.calls(new.generation) == {1: 2}
    assert old.row(1).end()
    assert not old.row(1).end()
    assert new.row(1).inflight == 2
    new.row(1).clear()
    assert new.row(1).inflight == 0


def test_a_worker_that_drains_long_shares_its_lane_with_none_of_many_successors(tmp_path):
    path = tmp_path / "ledger"
    draining = Ledger.open(path, 2)
    draining.row(0).begin()
    for generation in range(2, 12):
        successor = Ledger.open(path, 2)
        assert successor.generation == generation
        assert successor.row(0).inflight == 0
        assert successor.calls(draining.generation) == {0: 1}
        successor.row(1).begin()
        successor.close()
    assert draining.row(0).inflight == 1


def test_when_every_lane_has_a_living_worker_a_further_one_is_refused(tmp_path):
    path = tmp_path / "ledger"
    workers = [Ledger.open(path, 2) for _ in range(LANES)]
    for further in (Ledger.check_room, Ledger.open):
        with pytest.raises(FailedPrecondition, match=f"{LANES} workers still finish calls"):
            further(path, 2)
    Ledger.check_room(path, 3)  # a larger one would be a new file
    workers[0].forget(workers[5].generation)
    assert Ledger.open(path, 2).generation == LANES + 1


def killed_workers(path, count, row):
    """Let workers begin a call each and die of kill -9; none is forgotten."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from agent.store.ledger import Ledger\n"
        "for _ in range(int(sys.argv[2])):\n"
        "    if os.fork() == 0:\n"
        "        Ledger.open(Path(sys.argv[1]), 4).row(int(sys.argv[3])).begin()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    os.wait()\n"
    )
    arguments = [sys.executable, "-c", program, str(path), str(count), str(row)]
    subprocess.run(arguments, cwd=ROOT, check=True, timeout=60)


def test_workers_that_die_again_and_again_use_up_no_lanes_and_lose_no_calls(tmp_path):
    path = tmp_path / "ledger"
    Ledger.check_room(path, 4)
    assert not path.exists()
    killed_workers(path, LANES + 3, 2)
    before = path.read_bytes()
    Ledger.check_room(path, 4)
    assert path.read_bytes() == before
    last = Ledger.open(path, 4)
    left = [last.calls(other.generation) for other in last.others()]
    assert sum(calls[2] for calls in left) == LANES + 3
    assert not any(other.alive for other in last.others())


def test_after_a_kill_the_calls_are_still_there(tmp_path):
    path = tmp_path / "ledger"
    killed_workers(path, 1, 2)
    successor = Ledger.open(path, 4)
    [dead] = successor.others()
    assert (dead.generation, dead.alive) == (1, False)
    assert successor.calls(1) == {2: 1}


def test_a_process_that_got_a_dead_workers_pid_is_not_that_worker(tmp_path):
    me = Identity.of(os.getpid())
    assert OtherWorker(1, me).alive
    assert not OtherWorker(1, Identity(me.pid, me.start - 1)).alive


@pytest.mark.parametrize("row", [-1, 2, 10**6])
def test_rows_that_are_not_there(tmp_path, row):
    ledger = Ledger.open(tmp_path / "ledger", 2)
    with pytest.raises(Bug, match=f"no row {row}"):
        ledger.row(row)


def test_forgetting_oneself_is_a_bug(tmp_path):
    ledger = Ledger.open(tmp_path / "ledger", 2)
    for generation in (ledger.generation, 77):
        with pytest.raises(Bug):
            ledger.forget(generation)


@pytest.mark.parametrize(
    "junk",
    [b"x", b"\0" * 5000, b"KINDLED1" + b"\0" * 9000, b"KINDLED2" + b"\xff" * 9000],
)
def test_a_file_of_another_layout_is_replaced(tmp_path, junk):
    path = tmp_path / "ledger"
    path.write_bytes(junk)
    ledger = Ledger.open(path, 4)
    ledger.row(3).begin()
    assert ledger.generation == 1
    assert Ledger.open(path, 4).calls(1) == {3: 1}


def test_a_larger_ledger_replaces_a_smaller_one_and_a_smaller_one_keeps_it(tmp_path):
    path = tmp_path / "ledger"
    small = Ledger.open(path, 4)
    small.row(3).begin()
    assert Ledger.open(path, 2).rows == 4
    large = Ledger.open(path, 8)
    assert large.rows == 8
    assert large.others() == []
    assert small.row(3).end()


def test_the_file_is_for_its_owner_alone(tmp_path):
    Ledger.open(tmp_path / "ledger", 2)
    assert stat.S_IMODE((tmp_path / "ledger").stat().st_mode) == 0o600


def test_a_place_that_cannot_be_opened_is_told(tmp_path):
    with pytest.raises(RuntimeUnavailable, match="ledger"):
        Ledger.open(tmp_path / "none" / "ledger", 2)


def test_closing_twice_is_harmless(tmp_path):
    ledger = Ledger.open(tmp_path / "ledger", 2)
    ledger.close()
    ledger.close()


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40))
def test_rows_never_disturb_each_other(tmp_path_factory, steps):
    ledger = Ledger.open(tmp_path_factory.mktemp("ledger") / "ledger", 4)
    counts = [0, 0, 0, 0]
    for row, begins in steps:
        if begins:
            ledger.row(row).begin()
            counts[row] += 1
        else:
            assert ledger.row(row).end() == (counts[row] > 0)
            counts[row] = max(0, counts[row] - 1)
        assert [ledger.row(n).inflight for n in range(4)] == counts
    ledger.close()
