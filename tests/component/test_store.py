"""The stores on real SQLite files: what comes back, what a newer or damaged file says."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import stat
from dataclasses import replace
from types import SimpleNamespace

import pytest

from agent.errors import FailedPrecondition, NotFound, RuntimeUnavailable
from agent.model.records import CallRecord, FunctionVersion, ImageFacts, Meters
from agent.model.spec import canonical, digest
from agent.model.spec_parse import parse_spec
from agent.store import ballast as ballast_room
from agent.store import calls
from agent.store.ballast import Ballast
from agent.store.calls import CallStore
from agent.store.database import Database
from agent.store.functions import FunctionStore

IMAGE = ImageFacts("k/a:1", "sha256:1", "sha256:2", 5, ("/e",), ("c",), ("A=1",), "/w", "u")


def version(name: str = "f", number: int = 1, **fields: object) -> FunctionVersion:
    spec = parse_spec({"name": name, "image": "k/a:1", "contract": "fc", **fields})
    spec = spec.model_copy(update={"version": number})
    return FunctionVersion(name, number, spec, IMAGE, "Ready", 17)


def call(id: str, *, at: int = 0, ended: int = 1, function: str = "f") -> CallRecord:
    meters = Meters(wall_ms=1.5, cpu_exact=False)
    return CallRecord(
        id, function, 1, "i", "Succeeded", at, ended_ns=ended, exit_code=0, meters=meters
    )


@pytest.fixture
async def store(tmp_path):
    opened = await FunctionStore.open(tmp_path / "f.db")
    yield opened
    await opened.close()


async def test_versions_come_back_as_they_were(store, tmp_path):
    first = version(registry={"username": "u"}, secrets=[{"name": "S", "value": "x"}])
    second = replace(version(number=2, memory_mb=1024), image=None, state="Preparing")
    other = version("g")
    for each in (first, second, other):
        await store.put(each)
    await store.close()
    again = await FunctionStore.open(tmp_path / "f.db")
    f, g = await again.load()
    assert (f.name, f.latest, g.name, g.latest) == ("f", 2, "g", 1)
    without = first.spec.model_copy(
        update={"registry": parse_spec({"name": "f", "image": "k/a:1", "contract": "fc"}).registry}
    )
    assert f.versions == (replace(first, spec=without), second)
    assert g.versions == (other,)
    await again.close()


async def test_latest_moves_only_when_told(store):
    await store.put(version())
    await store.put(version(number=2), latest=False)
    (f,) = await store.load()
    assert f.latest == 1
    assert len(f.versions) == 2


async def test_removing_takes_all_versions(store):
    for number in (1, 2):
        await store.put(version(number=number))
    assert await store.remove("f")
    assert not await store.remove("f")
    assert await store.load() == []


async def test_a_version_that_is_not_valid_any_more_comes_back_as_failed(store, tmp_path):
    await store.put(version(), latest=True)
    await store.put(version(number=2, memory_mb=1024, env={"A": "1"}))
    await store.put(version("g"))
    with sqlite3.connect(tmp_path / "f.db") as db:
        too_small = "cast(replace(spec, ':1024', ':5') AS BLOB)"
        db.execute(f"UPDATE versions SET spec = {too_small} WHERE version = 2")
    f, g = await store.load()
    assert (f.latest, [v.state for v in f.versions]) == (2, ["Ready", "Failed"])
    broken = f.versions[1]
    assert (broken.name, broken.version, broken.image) == ("f", 2, None)
    assert (broken.spec.name, broken.spec.version, broken.spec.image) == ("f", 2, "k/a:1")
    assert broken.spec.env == {"A": "1"}
    assert "memory_mb" in broken.reason
    assert "deploy it again" in broken.reason
    assert g.versions[0].state == "Ready"


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("spec", b"\xff\xfe", "spec"),
        ("spec", b"[1]", "spec"),
        ("spec", b'{"name": 5}', "name"),
        ("spec", b'{"contract": "openwhisk"}', "contract"),
        ("image", "{", "image"),
        ("image", '{"ref": 1}', "image"),
        ("image", "[]", "image"),
    ],
)
async def test_a_damaged_row_comes_back_as_failed(store, tmp_path, column, value, told):
    await store.put(version())
    with sqlite3.connect(tmp_path / "f.db") as db:
        db.execute(f"UPDATE versions SET {column} = ?", (value,))
    ((broken,),) = [f.versions for f in await store.load()]
    assert (broken.state, broken.image, broken.spec.name) == ("Failed", None, "f")
    assert told in broken.reason


async def test_a_latest_without_a_row_comes_back_as_failed(store, tmp_path):
    await store.put(version())
    await store.put(version(number=2))
    with sqlite3.connect(tmp_path / "f.db") as db:
        db.execute("DELETE FROM versions WHERE version = 2")
    (f,) = await store.load()
    assert (f.latest, [(v.version, v.state) for v in f.versions]) == (
        2,
        [(1, "Ready"), (2, "Failed")],
    )


async def test_the_file_is_for_its_owner_alone(store, tmp_path):
    await store.put(version())
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


async def test_a_newer_schema_is_refused_by_name_and_left_alone(tmp_path):
    path = tmp_path / "f.db"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(FailedPrecondition, match=r"newer agent \(schema 99; this one knows 1\)"):
        await FunctionStore.open(path)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (99,)
        assert db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


async def test_what_is_no_database_is_refused_by_name(tmp_path):
    path = tmp_path / "f.db"
    path.write_bytes(b"not a database, whatever its name says" * 100)
    with pytest.raises(FailedPrecondition, match=r"f\.db is damaged"):
        await FunctionStore.open(path)


async def test_a_place_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(RuntimeUnavailable, match="No such file"):
        await FunctionStore.open(tmp_path / "missing" / "f.db")


async def test_migrations_run_once_and_in_order(tmp_path):
    path = tmp_path / "m.db"
    one = [("CREATE TABLE a (x INTEGER)",)]
    two = [*one, ("ALTER TABLE a ADD COLUMN y INTEGER", "INSERT INTO a VALUES (1, 2)")]
    for migrations in (one, two, two):
        db = await Database.open(path, migrations)
        await db.close()
    db = await Database.open(path, two)
    assert await db.run(lambda c: c.execute("SELECT * FROM a").fetchall()) == [(1, 2)]
    await db.close()


async def test_a_migration_that_fails_changes_nothing(tmp_path):
    path = tmp_path / "m.db"
    with pytest.raises(RuntimeUnavailable):
        await Database.open(path, [("CREATE TABLE a (x INTEGER)", "NONSENSE")])
    db = await Database.open(path, [("CREATE TABLE a (y INTEGER)",)])
    await db.close()


async def test_work_that_fails_changes_nothing(tmp_path):
    db = await Database.open(tmp_path / "d.db", [("CREATE TABLE a (x INTEGER)",)])

    def fails(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO a VALUES (1)")
        raise KeyError("mine")

    with pytest.raises(KeyError):
        await db.run(fails)
    with pytest.raises(RuntimeUnavailable, match=r"no such table: b"):
        await db.run(lambda c: c.execute("INSERT INTO b VALUES (1)"))
    assert await db.run(lambda c: c.execute("SELECT count(*) FROM a").fetchone()) == (0,)
    await db.close()


async def test_what_pythons_own_part_refuses_is_told_as_an_error_of_ours(tmp_path):
    database = await Database.open(tmp_path / "d.db", (("CREATE TABLE t (n)",),))
    with pytest.raises(RuntimeUnavailable, match="ProgrammingError"):
        await database.run(lambda db: db.execute("INSERT INTO t VALUES (?)", (object(),)))
    await database.close()
    with pytest.raises(RuntimeUnavailable, match="is closed"):
        await database.run(lambda db: db.execute("SELECT 1"))


async def test_a_cancelled_caller_leaves_a_whole_transaction(tmp_path):
    db = await Database.open(tmp_path / "d.db", [("CREATE TABLE a (x INTEGER)",)])

    def two_rows(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO a VALUES (1)")
        connection.execute("INSERT INTO a VALUES (2)")

    task = asyncio.get_running_loop().create_task(db.run(two_rows))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await db.run(lambda c: c.execute("SELECT count(*) FROM a").fetchone()) in [(0,), (2,)]
    await db.close()
    await db.close()


async def test_two_workers_share_a_file_during_a_swap(store, tmp_path):
    other = await FunctionStore.open(tmp_path / "f.db")
    await asyncio.gather(*(s.put(version(f"f{n}")) for n in range(20) for s in (store, other)))
    assert len(await store.load()) == 20
    await other.close()


async def test_calls_come_back_newest_first(tmp_path):
    store = await CallStore.open(tmp_path / "c.db", kept=100)
    records = [call(f"c{n}", at=n, function="fg"[n % 2]) for n in range(6)]
    for record in records:
        await store.save(record)
    assert await store.list() == tuple(reversed(records))
    assert await store.list("g", limit=2) == (records[5], records[3])
    assert await store.get("c3") == records[3]
    with pytest.raises(NotFound, match="nope"):
        await store.get("nope")
    await store.close()


async def test_a_call_is_replaced_by_what_became_of_it(tmp_path):
    store = await CallStore.open(tmp_path / "c.db", kept=100)
    running = replace(call("c", ended=0), state="Running", exit_code=None)
    await store.save(running)
    assert await store.unfinished() == (running,)
    await store.save(call("c"))
    assert await store.unfinished() == ()
    assert await store.get("c") == call("c")
    await store.close()


async def test_a_call_is_lost_only_while_nobody_saw_its_end(tmp_path):
    store = await CallStore.open(tmp_path / "c.db", kept=100)
    ended = call("c1")
    await store.save(ended)
    await store.save(replace(call("c2", ended=0), state="Running"))
    for id in ("c1", "c2", "c3"):
        await store.lost(id, 7, "gone")
    assert await store.get("c1") == ended
    lost = await store.get("c2")
    assert (lost.state, lost.ended_ns, lost.error) == ("Failed", 7, "gone")
    with pytest.raises(NotFound):
        await store.get("c3")
    await store.close()


async def test_old_calls_go_and_unfinished_ones_stay(tmp_path):
    store = await CallStore.open(tmp_path / "c.db", kept=10)
    await store.save(call("open", at=-1, ended=0))
    for n in range(3 * calls.PRUNE_EVERY):
        await store.save(call(f"c{n:04}", at=n))
    left = await store.list(limit=1000)
    assert len(left) <= 10 + calls.PRUNE_EVERY + 1
    assert left[0].id == f"c{3 * calls.PRUNE_EVERY - 1:04}"
    assert left[-1].id == "open"
    await store.close()


async def test_calls_are_written_through_to_the_disk(tmp_path):
    store = await CallStore.open(tmp_path / "c.db", kept=10)
    level = await store._database.run(lambda c: c.execute("PRAGMA synchronous").fetchone())
    assert level == (2,)  # FULL
    await store.close()


async def test_a_ballast_is_given_up_on_a_full_disk_only_and_comes_back(tmp_path, monkeypatch):
    ballast, file = Ballast(tmp_path), tmp_path / "reserve"
    size = ballast_room.MOST_BYTES

    def free(count):
        told = SimpleNamespace(f_blocks=1 << 40, f_frsize=1, f_bavail=count)
        monkeypatch.setattr(os, "statvfs", lambda _: told)

    free(4 * size - 1)
    ballast.take()
    assert not file.exists()
    free(4 * size)
    ballast.take()
    assert file.stat().st_blocks * 512 >= size
    free(size)
    ballast.give()
    assert file.exists()
    free(size - 1)
    ballast.give()
    ballast.give()
    assert list(tmp_path.iterdir()) == []


async def test_a_function_is_removed_on_a_full_disk(tmp_path):
    """What a removal writes finds room: the ballast is given up first."""
    store = await FunctionStore.open(tmp_path / "f.db")
    await store.put(version("f"), latest=True)
    (tmp_path / "reserve").write_bytes(b"x")
    told = os.statvfs(tmp_path)
    full = SimpleNamespace(f_blocks=told.f_blocks, f_frsize=told.f_frsize, f_bavail=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "statvfs", lambda _: full)
        assert await store.remove("f")
    assert not (tmp_path / "reserve").exists()
    await store.close()


async def test_a_store_of_the_release_before_is_read_as_it_was(store, tmp_path):
    """Its specs say nothing of init, its images nothing of volumes and packed bytes."""
    spec = json.loads(canonical(version().spec))
    del spec["init"]
    image = (
        '{"ref": "docker.io/k/a:1", "digest": "sha256:1", "chain_id": "sha256:c", "size_bytes": 7,'
        ' "entrypoint": ["/a"], "cmd": [], "env": ["A=1"], "workdir": "/", "user": "",'
        ' "stop_signal": "SIGTERM"}'
    )
    await store.put(version())
    with sqlite3.connect(tmp_path / "f.db") as db:
        db.execute("UPDATE versions SET spec = ?, image = ?", (json.dumps(spec).encode(), image))
    ((read,),) = [f.versions for f in await store.load()]
    assert (read.state, read.reason) == ("Ready", "")
    assert read.image == ImageFacts(
        "docker.io/k/a:1", "sha256:1", "sha256:c", 7, entrypoint=("/a",), env=("A=1",)
    )
    # To deploy the same again makes no second version.
    assert digest(read.spec) == digest(version().spec)
