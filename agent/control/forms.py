"""The encoded forms of deployed versions, kept as long as they are deployed.

A version never changes, and to turn one into a message takes a hundred times as long as to read the
bytes it was turned into before. There is one form a function: that of its LATEST.
"""

from __future__ import annotations

from collections.abc import Container

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.control.convert import version_to_proto
from agent.model.records import FunctionVersion

ROOM = 64  # forms of functions that are gone, before they are looked for


class VersionForms:
    """The forms by function."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[FunctionVersion, bytes]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, version: FunctionVersion) -> bytes:
        """Return a version as a serialized `pb.FunctionVersion`."""
        kept = self._kept.get(version.name)
        if kept is None or kept[0] is not version:
            form = version_to_proto(version).SerializeToString()
            kept = self._kept[version.name] = (version, form)
        return kept[1]

    def entry(self, version: FunctionVersion) -> pb.Function:
        """Return a function as it is listed: with its LATEST only."""
        entry = pb.Function(name=version.name)
        entry.latest.MergeFromString(self.of(version))
        return entry

    def forget_all_but(self, names: Container[str], count: int) -> None:
        """Forget functions that are not among these `count` names, now and then."""
        if len(self._kept) > count + ROOM:
            self._kept = {name: kept for name, kept in self._kept.items() if name in names}
