"""Instance records: one small JSON file each on tmpfs, so that a new worker finds what runs.

Written whole or not at all (a temporary file, then rename). They vanish with a reboot, like the
instances. Plain methods: a write on tmpfs takes microseconds. A file that cannot be read is told
and left in place for whoever wants to look; `core/reconcile.py` takes its container for an orphan.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.errors import Bug, RuntimeUnavailable
from agent.model.records import InstanceRecord

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)
NUMBERS = ("version", "row", "network_slot", "port", "layer_slot", "pid", "created_ns")
DRAFT = ".tmp"
MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class DamagedRecord:
    """A file that is no record, and why."""

    path: Path
    reason: str


class InstanceFiles:
    """The records below one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def save(self, record: InstanceRecord) -> None:
        """Write a record in place of the one before; raises RuntimeUnavailable."""
        path = self._path(record.id)
        draft = path.with_suffix(DRAFT)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.write_bytes(json.dumps(record.to_json()).encode())
            draft.replace(path)
        except OSError as error:
            raise RuntimeUnavailable(
                f"the record of instance {record.id} cannot be written: {path}: {error.strerror}"
            ) from error

    def remove(self, id: str) -> None:
        """Forget a record; safe to call twice."""
        with contextlib.suppress(FileNotFoundError):
            self._path(id).unlink()

    def each(self) -> Iterator[InstanceRecord | DamagedRecord]:
        """Yield all records by id, and the files that are none; half-written ones do not count.

        Each file is read when it is its turn: what was removed by then is left out.
        """
        for name in sorted(os.listdir(self._directory)) if self._directory.is_dir() else ():
            path = self._directory / name
            if path.suffix == DRAFT:
                continue
            try:
                yield _read(path)
            except FileNotFoundError:
                continue
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                yield DamagedRecord(path, f"{type(error).__name__}: {error}")

    def some(self, ids: Iterable[str]) -> dict[str, InstanceRecord]:
        """Return those records of some instances that are there and can be read."""
        found = {}
        for id in ids:
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
                found[id] = _read(self._path(id))
        return found

    def remove_drafts(self) -> None:
        """Remove what was half-written; only while no other worker lives, who may be writing it."""
        for draft in self._directory.glob(f"*{DRAFT}"):
            draft.unlink(missing_ok=True)

    def _path(self, id: str) -> Path:
        if not ID.fullmatch(id):
            raise Bug(f"instance id {id!r} cannot be a file's name")
        return self._directory / f"{id}.json"


def _read(path: Path) -> InstanceRecord:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"is larger than {MAX_BYTES} bytes")
    plain = json.loads(data)
    record = InstanceRecord.from_json(plain)
    if path.name != f"{record.id}.json":
        raise ValueError(f"holds the record of instance {record.id!r}")
    if not all(type(plain[field]) is int for field in NUMBERS):
        raise TypeError(f"{', '.join(NUMBERS)} must be whole numbers")
    return record
