"""What is deployed, kept in SQLite: every version's canonical spec, and where LATEST points.

Registry credentials are never written (`model.spec.canonical` leaves them out). A version that
cannot be read back is reported in `damaged` and passed over, so that one bad row does not take the
node down. `agent/functions/registry.py` holds the same in memory.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent.errors import InvalidSpec
from agent.model.records import FunctionVersion, ImageFacts
from agent.model.spec import canonical, digest, restored
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
    """A function with its readable versions, oldest first."""

    name: str
    latest: int
    versions: tuple[FunctionVersion, ...]


@dataclass(frozen=True, slots=True)
class Damage:
    """A version that could not be read back, and why."""

    name: str
    version: int
    reason: str


class FunctionStore:
    """The deployed functions on disk. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.damaged: tuple[Damage, ...] = ()

    @staticmethod
    async def open(path: Path) -> FunctionStore:
        """Open or make the store; raises as `Database.open` does."""
        return FunctionStore(await Database.open(path, MIGRATIONS))

    async def load(self) -> list[StoredFunction]:
        """Return everything there is, by name; sets `damaged`."""
        rows = await self._database.run(
            lambda db: db.execute(
                "SELECT latest, name, version, spec, image, state, reason, created_ns"
                " FROM functions JOIN versions USING (name) ORDER BY name, version"
            ).fetchall()
        )
        found: dict[str, tuple[int, list[FunctionVersion]]] = {}
        damaged: list[Damage] = []
        for latest, *row in rows:
            versions = found.setdefault(row[0], (latest, []))[1]
            try:
                versions.append(_version(tuple(row)))
            except (InvalidSpec, ValueError, TypeError) as error:
                damaged.append(Damage(row[0], row[1], str(error)))
        self.damaged = tuple(damaged)
        return [
            StoredFunction(name, latest, tuple(versions))
            for name, (latest, versions) in found.items()
        ]

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
        """Forget a function and all its versions; False when it is not there."""
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
    facts = _image(json.loads(image)) if image else None
    return FunctionVersion(name, number, restored(spec, number), facts, state, created_ns, reason)


def _image(data: dict[str, Any]) -> ImageFacts:
    lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
    return ImageFacts(**{**data, **lists})
