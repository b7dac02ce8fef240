"""One SQLite file on a thread of its own, behind an async door.

Every piece of work is one transaction: it happens whole or not at all, also when the worker is
killed in it. Two workers may share a file while one takes over from the other; the second waits
briefly. A file written by a newer agent is refused by name, an older one is brought up to date.
What is stored where is `store/functions.py`'s and `store/calls.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from agent.errors import AgentError, FailedPrecondition, Overloaded, RuntimeUnavailable

T = TypeVar("T")
Migration = Sequence[str]
Work = Callable[[sqlite3.Connection], T]

BUSY_TIMEOUT_S = 5.0
MAX_PENDING = 256
"""Pieces of work under way or queued; further callers wait."""


class Database:
    """An open file; made by `open`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, thread: ThreadPoolExecutor):
        self.path = path
        self._connection = connection
        self._thread = thread
        self._room = asyncio.Semaphore(MAX_PENDING)

    @staticmethod
    async def open(
        path: Path, migrations: Sequence[Migration], *, full_sync: bool = False
    ) -> Database:
        """Open or make the file (mode 0600) and bring its schema up to date.

        `migrations[n]` are the statements from schema n to n+1. With `full_sync` a finished
        transaction survives a power loss; without, it survives the death of every process. Raises
        FailedPrecondition for a newer schema or a file that is no database, RuntimeUnavailable when
        it cannot be opened.
        """
        return await Database._on_thread(path, lambda: _opened(path, migrations, full_sync))

    @staticmethod
    async def copy_in_memory(path: Path, migrations: Sequence[Migration]) -> Database:
        """Open a copy of a file that is as it would be after `open`; the file stays as it is.

        A file that is not there is an empty one. Raises as `open` does.
        """
        return await Database._on_thread(path, lambda: _copied(path, migrations))

    @staticmethod
    async def _on_thread(path: Path, opened: Callable[[], sqlite3.Connection]) -> Database:
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"sqlite-{path.stem}")
        opening = asyncio.get_running_loop().run_in_executor(thread, opened)
        try:
            return Database(path, await opening, thread)
        except BaseException:
            thread.shutdown(wait=False)
            raise

    async def run(self, work: Work[T]) -> T:
        """Run `work(connection)` as one transaction on the database's thread.

        Raises RuntimeUnavailable when SQLite fails; nothing has changed then. A cancelled caller
        leaves the transaction to end by itself.
        """
        async with self._room:
            loop = asyncio.get_running_loop()
            try:
                working = loop.run_in_executor(self._thread, self._transaction, work)
            except RuntimeError as error:  # the thread has ended
                raise RuntimeUnavailable(f"{self.path} is closed: the worker ends") from error
            return await working

    def _transaction(self, work: Work[T]) -> T:
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise _converted(self.path, error) from error
        return result

    async def close(self) -> None:
        """Finish what is queued and close the file; safe to call twice."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._connection.close)
        except RuntimeError:
            return  # the thread has ended: closed before
        self._thread.shutdown(wait=True)


def _opened(path: Path, migrations: Sequence[Migration], full_sync: bool) -> sqlite3.Connection:
    try:
        # SQLite gives its side files the mode of the file itself; specs may hold secrets.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise RuntimeUnavailable(f"{path} cannot be opened: {error.strerror}") from error
    try:
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    except sqlite3.Error as error:
        raise _converted(path, error) from error
    with _closed_on_error(path, connection):
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if full_sync else 'NORMAL'}")
        connection.execute("PRAGMA foreign_keys = ON")
        _migrate(path, connection, migrations)
    return connection


def _copied(path: Path, migrations: Sequence[Migration]) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    with _closed_on_error(path, connection):
        if path.exists():
            source = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
            with contextlib.closing(source):
                source.backup(connection)
        connection.execute("PRAGMA foreign_keys = ON")
        _migrate(path, connection, migrations)
    return connection


@contextlib.contextmanager
def _closed_on_error(path: Path, connection: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        connection.close()
        raise _converted(path, error) from error
    except BaseException:
        connection.close()
        raise


def _migrate(path: Path, connection: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        have: int = connection.execute("PRAGMA user_version").fetchone()[0]
        _check_known(path, have, len(migrations))
        for statements in migrations[have:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _check_known(path: Path, have: int, known: int) -> None:
    if have > known:
        raise FailedPrecondition(
            f"{path} was written by a newer agent (schema {have}; this one knows {known}): install "
            "that version again, or move the file away to start empty"
        )


def _converted(path: Path, error: sqlite3.Error) -> AgentError:
    name = getattr(error, "sqlite_errorname", "")  # Python's own complaints have none
    if name == "SQLITE_FULL":
        return Overloaded(f"disk full: {path} cannot be written", reason="disk")
    if name in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
        return FailedPrecondition(
            f"{path} is damaged ({error}): restore it, or move it away to start empty"
        )
    return RuntimeUnavailable(f"{path}: {error} ({name or type(error).__name__})")
