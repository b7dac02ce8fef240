"""Records of calls that are worth keeping, in a SQLite file of their own, synchronous=FULL.

Jobs, asynchronous calls and failures; a plain warm call never gets here. At most `kept` ended calls
stay, the oldest go first; a call that has not ended is never dropped. Who writes what is
`agent/calls`' and `agent/recovery`'s business.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.errors import NotFound
from agent.model.records import CallRecord, Meters, cold_start_of
from agent.store.database import Database

MIGRATIONS = (
    (
        """CREATE TABLE calls (
            id TEXT PRIMARY KEY,
            function TEXT NOT NULL,
            version INTEGER NOT NULL,
            instance TEXT NOT NULL,
            state TEXT NOT NULL,
            accepted_ns INTEGER NOT NULL,
            started_ns INTEGER NOT NULL,
            ended_ns INTEGER NOT NULL,
            status INTEGER NOT NULL,
            exit_code INTEGER,
            error TEXT NOT NULL,
            meters TEXT NOT NULL
        ) STRICT""",
        "CREATE INDEX calls_by_age ON calls (accepted_ns)",
        "CREATE INDEX calls_by_function ON calls (function, accepted_ns)",
    ),
    ("ALTER TABLE calls ADD COLUMN cold_start TEXT NOT NULL DEFAULT 'null'",),
)

PRUNE_EVERY = 64
"""Saves between two prunings: the file holds at most that many ended calls too many."""
MAX_LISTED = 10_000
COLUMNS = (
    *("id", "function", "version", "instance", "state", "accepted_ns", "started_ns", "ended_ns"),
    *("status", "exit_code", "error", "meters", "cold_start"),
)
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM calls"


class CallStore:
    """The kept calls."""

    def __init__(self, database: Database, kept: int) -> None:
        self._database = database
        self._kept = kept
        self._saves = 0

    @staticmethod
    async def open(path: Path, kept: int) -> CallStore:
        """Open or make the store; raises as `Database.open` does."""
        return CallStore(await Database.open(path, MIGRATIONS, full_sync=True), kept)

    async def save(self, record: CallRecord) -> None:
        """Write a call, in place of what was known of it; on disk when this returns."""
        self._saves += 1
        prune = self._saves % PRUNE_EVERY == 0
        values = asdict(record)
        for name in ("meters", "cold_start"):
            values[name] = json.dumps(values[name])

        def work(db: sqlite3.Connection) -> None:
            places = ", ".join(f":{name}" for name in values)
            db.execute(f"INSERT OR REPLACE INTO calls VALUES ({places})", values)
            if prune:
                _prune(db, self._kept)

        await self._database.run(work)

    async def lost(self, id: str, ended_ns: int, error: str) -> None:
        """Note that a call has Failed, unless it has ended meanwhile, as somebody saw."""
        query = "UPDATE calls SET state = 'Failed', ended_ns = ?, error = ?"
        values = (ended_ns, error, id)
        await self._database.run(
            lambda db: db.execute(f"{query} WHERE id = ? AND ended_ns = 0", values).rowcount
        )

    async def get(self, id: str) -> CallRecord:
        """Return a call; raises NotFound."""
        row = await self._database.run(
            lambda db: db.execute(f"{_SELECT} WHERE id = ?", (id,)).fetchone()
        )
        if row is None:
            raise NotFound(f"call {id} is not known here, or was dropped as old")
        return _record(row)

    async def list(self, function: str = "", limit: int = 100) -> tuple[CallRecord, ...]:
        """Return the newest calls first, of one function or of all."""
        where, values = ("WHERE function = ?", [function]) if function else ("", [])
        query = f"{_SELECT} {where} ORDER BY accepted_ns DESC, id LIMIT ?"
        most = max(0, min(limit, MAX_LISTED))
        rows = await self._database.run(lambda db: db.execute(query, (*values, most)).fetchall())
        return tuple(_record(row) for row in rows)

    async def unfinished(self) -> tuple[CallRecord, ...]:
        """Return the calls that have not ended, oldest first: what a new worker has to settle."""
        query = f"{_SELECT} WHERE ended_ns = 0 ORDER BY accepted_ns, id"
        rows = await self._database.run(lambda db: db.execute(query).fetchall())
        return tuple(_record(row) for row in rows)

    async def close(self) -> None:
        """Finish what is queued and close the file."""
        await self._database.close()


def _prune(db: sqlite3.Connection, kept: int) -> None:
    db.execute(
        "DELETE FROM calls WHERE id IN (SELECT id FROM calls WHERE ended_ns > 0"
        " ORDER BY accepted_ns DESC, id LIMIT -1 OFFSET ?)",
        (kept,),
    )


def _record(row: tuple[Any, ...]) -> CallRecord:
    values = dict(zip(COLUMNS, row, strict=True))
    values["meters"] = Meters(**json.loads(values["meters"]))
    values["cold_start"] = cold_start_of(json.loads(values["cold_start"]))
    return CallRecord(**values)
