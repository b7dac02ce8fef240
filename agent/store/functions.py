"""What is deployed, kept in SQLite: every version's canonical spec, and where LATEST points.

Registry credentials are never written (`model.spec.canonical` leaves them out). A version that
cannot be read back comes as Failed, with the reason: one bad row neither takes the node down nor
makes another version LATEST. `agent/deployments/catalog.py` holds the same in memory.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agent.errors import InvalidSpec
from agent.model.records import FunctionVersion, ImageFacts
from agent.model.spec import canonical, digest
from agent.model.spec_parse import restored, salvaged
from agent.store.ballast import Ballast
from agent.store.database import Database

MIGRATIONS = (
    (
        """CREATE TABLE functions (
            name TEXT PRIMARY KEY,
            latest INTEGER NOT NULL
        ) STRICT""",
        """CREATE TABLE versions (
            name TEXT NOT NULL REFERENCES functions (name) ON DELETE CASCADE,
            version INTEGER NOT NULL,
            spec BLOB NOT NULL,
            digest TEXT NOT NULL,
            image TEXT,
            state TEXT NOT NULL,
            reason TEXT NOT NULL,
            created_ns INTEGER NOT NULL,
            PRIMARY KEY (name, version)
        ) STRICT""",
    ),
)


@dataclass(frozen=True, slots=True)
class StoredFunction:
    """A function with its versions, oldest first; `latest` is among them."""

    name: str
    latest: int
    versions: tuple[FunctionVersion, ...]


class FunctionStore:
    """The deployed functions on disk. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ballast = Ballast(database.path.parent)

    @staticmethod
    async def open(path: Path) -> FunctionStore:
        """Open or make the store; raises as `Database.open` does."""
        return FunctionStore(await Database.open(path, MIGRATIONS))

    @staticmethod
    async def peek(path: Path) -> list[StoredFunction]:
        """Return what a store holds without changing it, brought up to date in memory only.

        For a worker that is to take over later: the one that serves may still write. Raises as
        `open` does.
        """
        store = FunctionStore(await Database.copy_in_memory(path, MIGRATIONS))
        try:
            return await store.load()
        finally:
            await store.close()

    async def load(self) -> list[StoredFunction]:
        """Return everything there is, by name; what cannot be read has no image and is Failed."""
        rows = await self._database.run(
            lambda db: db.execute(
                "SELECT latest, name, version, spec, image, state, reason, created_ns"
                " FROM functions LEFT JOIN versions USING (name) ORDER BY name, version"
            ).fetchall()
        )
        found: dict[str, StoredFunction] = {}
        for latest, name, number, *rest in rows:
            before = found.get(name, StoredFunction(name, latest, ()))
            more = () if number is None else (_version((name, number, *rest)),)
            found[name] = replace(before, versions=before.versions + more)
        return [_whole(function) for function in found.values()]

    async def put(self, version: FunctionVersion, *, latest: bool = True) -> None:
        """Store a version, in place of the same one if it is there; `latest` moves LATEST to it."""

        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO functions (name, latest) VALUES (?, ?) ON CONFLICT (name)"
                " DO UPDATE SET latest = iif(?, excluded.latest, latest)",
                (version.name, version.version, latest),
            )
            db.execute(
                "INSERT OR REPLACE INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", _row(version)
            )

        await self._database.run(work)

    async def remove(self, name: str) -> bool:
        """Forget a function and all its versions; False when it is not there.

        Goes on a full disk too, and so does what follows it: see `ballast.py`.
        """
        await asyncio.to_thread(self._ballast.give)
        return await self._database.run(
            lambda db: db.execute("DELETE FROM functions WHERE name = ?", (name,)).rowcount > 0
        )

    async def close(self) -> None:
        """Finish what is queued and close the file."""
        await self._database.close()


def _row(version: FunctionVersion) -> tuple[str | int | bytes | None, ...]:
    return (
        version.name,
        version.version,
        canonical(version.spec),
        digest(version.spec),
        json.dumps(asdict(version.image)) if version.image else None,
        version.state,
        version.reason,
        version.created_ns,
    )


def _version(row: tuple[Any, ...]) -> FunctionVersion:
    name, number, spec, image, state, reason, created_ns = row
    try:
        facts = _image(json.loads(image)) if image else None
    except (ValueError, TypeError, AttributeError) as error:
        return _failed(name, number, spec, f"its stored image is not valid: {error}", created_ns)
    try:
        whole = restored(spec, number)
    except (InvalidSpec, ValueError, TypeError) as error:
        return _failed(name, number, spec, f"its stored spec is not valid: {error}", created_ns)
    return FunctionVersion(name, number, whole, facts, state, created_ns, reason)


def _failed(name: str, number: int, spec: bytes, why: str, created_ns: int) -> FunctionVersion:
    reason = f"{name} version {number} cannot run, {why}; deploy it again, or remove it"
    return FunctionVersion(
        name, number, salvaged(spec, name, number), None, "Failed", created_ns, reason
    )


def _whole(function: StoredFunction) -> StoredFunction:
    """Return a function with a version for its LATEST, whatever became of the row."""
    if any(version.version == function.latest for version in function.versions):
        return function
    lost = _failed(function.name, function.latest, b"", "it is missing in the store", 0)
    versions = sorted((*function.versions, lost), key=lambda version: version.version)
    return replace(function, versions=tuple(versions))


def _image(data: dict[str, Any]) -> ImageFacts:
    lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
    return ImageFacts(**{**data, **lists})
