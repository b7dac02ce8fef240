"""Unpacked layers, and the one read-only view per image that containers are built on.

A view is made once per image and kept by a gc.root label; its mounts say which directories are the
image's layers. The overlay of an instance is mounted by `agent/storage`, not here, so a start
writes nothing into containerd's database.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent._pb.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from agent._pb.containerd.services.snapshots.v1 import snapshots_pb2_grpc as rpc
from agent._pb.containerd.types import mount_pb2
from agent.containerd.channel import Channel
from agent.containerd.errors import whole_detail
from agent.errors import AlreadyExists, Bug, NotFound, RuntimeUnavailable

SNAPSHOTTER = "overlayfs"
# Without one of these labels (or a lease) a snapshot is collected within a second.
ROOT_LABEL = "containerd.io/gc.root"
VIEW_PREFIX = "view-"
USAGE_TRIES = 3

_GONE = "no such file or directory"

_UNESCAPED_COLON = re.compile(r"(?<!\\):")


@dataclass(frozen=True, slots=True)
class SnapshotMount:
    """A mount as a snapshotter asks for it."""

    type: str
    source: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot's record. `kind` is view, active or committed."""

    key: str
    parent: str
    kind: str
    labels: Mapping[str, str]
    created_ns: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes and inodes of one snapshot alone, or of a whole chain."""

    size_bytes: int
    inodes: int


_KINDS = {pb.VIEW: "view", pb.ACTIVE: "active", pb.COMMITTED: "committed"}


def view_key(chain_id: str) -> str:
    """Return the key of the one view of an image."""
    return VIEW_PREFIX + chain_id


def lower_dirs(mounts: Sequence[SnapshotMount]) -> tuple[str, ...]:
    """Return the image's layer directories, topmost first, as overlay's `lowerdir` wants them.

    A view of one layer is a bind mount, of several an overlay without upper. Raises Bug for
    anything else, such as a snapshotter that mounts block devices.
    """
    if len(mounts) == 1 and mounts[0].type in ("bind", "rbind"):
        return (mounts[0].source,)
    if len(mounts) == 1 and mounts[0].type == "overlay":
        for option in mounts[0].options:
            name, _, value = option.partition("=")
            if name == "lowerdir":
                return tuple(part.replace("\\:", ":") for part in _UNESCAPED_COLON.split(value))
    raise Bug(f"the snapshotter's mounts are no overlay and no bind of layers: {mounts!r}")


class Snapshots:
    """Views, and what is needed to look after them. One snapshotter per object."""

    def __init__(self, channel: Channel, snapshotter: str = SNAPSHOTTER) -> None:
        self._channel = channel
        self._rpc = rpc.SnapshotsStub(channel.grpc)
        self.snapshotter = snapshotter

    async def view(
        self, key: str, parent: str, *, deadline: float | None = None
    ) -> tuple[SnapshotMount, ...]:
        """Make a read-only view `key` of the committed snapshot `parent`, or find it made.

        It stays until `remove`. Raises NotFound when the parent is not there.
        """
        request = pb.ViewSnapshotRequest(
            snapshotter=self.snapshotter, key=key, parent=parent, labels={ROOT_LABEL: "kindling"}
        )
        try:
            reply = await self._channel.call(
                self._rpc.View, request, f"view snapshot {parent}", deadline=deadline
            )
        except AlreadyExists:
            return await self.mounts(key, deadline=deadline)
        return _mounts(reply.mounts)

    async def prepare(
        self, key: str, parent: str, labels: Mapping[str, str], *, lease: str, deadline: float
    ) -> tuple[SnapshotMount, ...]:
        """Make a writable snapshot `key` on top of `parent` ("" for none), under a lease."""
        request = pb.PrepareSnapshotRequest(
            snapshotter=self.snapshotter, key=key, parent=parent, labels=dict(labels)
        )
        reply = await self._channel.call(
            self._rpc.Prepare, request, f"prepare snapshot {key}", lease=lease, deadline=deadline
        )
        return _mounts(reply.mounts)

    async def commit(
        self, name: str, key: str, labels: Mapping[str, str], *, lease: str, deadline: float
    ) -> None:
        """Make what was written into `key` the snapshot `name`. Raises AlreadyExists."""
        request = pb.CommitSnapshotRequest(
            snapshotter=self.snapshotter, name=name, key=key, labels=dict(labels)
        )
        await self._channel.call(
            self._rpc.Commit, request, f"commit snapshot {name}", lease=lease, deadline=deadline
        )

    async def chain(self, key: str, *, deadline: float | None = None) -> list[Snapshot]:
        """Return a snapshot and all below it, topmost first. Raises NotFound."""
        found: list[Snapshot] = []
        while key:
            request = pb.StatSnapshotRequest(snapshotter=self.snapshotter, key=key)
            reply = await self._channel.call(
                self._rpc.Stat, request, f"read snapshot {key}", deadline=deadline
            )
            found.append(_snapshot(reply.info))
            key = reply.info.parent
        return found

    async def image_layers(
        self, chain_id: str, *, deadline: float | None = None
    ) -> tuple[str, ...]:
        """Return the layer directories of an unpacked image, topmost first, through its view."""
        return lower_dirs(await self.view(view_key(chain_id), chain_id, deadline=deadline))

    async def mounts(self, key: str, *, deadline: float | None = None) -> tuple[SnapshotMount, ...]:
        """Return the mounts of a view or an active snapshot. Raises NotFound."""
        request = pb.MountsRequest(snapshotter=self.snapshotter, key=key)
        reply = await self._channel.call(
            self._rpc.Mounts, request, f"read mounts of snapshot {key}", deadline=deadline
        )
        return _mounts(reply.mounts)

    async def remove(self, key: str, *, deadline: float | None = None) -> bool:
        """Remove a snapshot nothing builds on; False when there was none."""
        request = pb.RemoveSnapshotRequest(snapshotter=self.snapshotter, key=key)
        try:
            await self._channel.call(
                self._rpc.Remove, request, f"remove snapshot {key}", deadline=deadline
            )
        except NotFound:
            return False
        return True

    async def exists(self, key: str, *, deadline: float | None = None) -> bool:
        """Tell whether a snapshot is there."""
        request = pb.StatSnapshotRequest(snapshotter=self.snapshotter, key=key)
        try:
            await self._channel.call(
                self._rpc.Stat, request, f"read snapshot {key}", deadline=deadline
            )
        except NotFound:
            return False
        return True

    async def usage(self, keys: Sequence[str], *, deadline: float | None = None) -> Usage:
        """Return what the named snapshots take on disk together.

        Raises NotFound; so does one whose files go as fast as they are measured.
        """
        found = [await self._usage(key, deadline) for key in keys]
        return Usage(sum(one.size_bytes for one in found), sum(one.inodes for one in found))

    async def _usage(self, key: str, deadline: float | None) -> Usage:
        what, tries = f"measure snapshot {key}", 0
        request = pb.UsageRequest(snapshotter=self.snapshotter, key=key)
        while True:
            tries += 1
            try:
                reply = await self._channel.call(self._rpc.Usage, request, what, deadline=deadline)
                return Usage(int(reply.size), int(reply.inodes))
            except RuntimeUnavailable as error:
                # It is walked over while it is unpacked, or removed; containerd has no code for it.
                if _GONE not in whole_detail(error):
                    raise
                if tries == USAGE_TRIES:
                    raise NotFound(error.message) from error

    async def list(self, *, deadline: float | None = None) -> list[Snapshot]:
        """Return all snapshots of the snapshotter in this namespace."""
        request = pb.ListSnapshotsRequest(snapshotter=self.snapshotter)
        found: list[Snapshot] = []
        replies = self._channel.stream(self._rpc.List, request, "list snapshots", deadline=deadline)
        async for reply in replies:
            found.extend(map(_snapshot, reply.info))
        return found


def mount_messages(mounts: Sequence[SnapshotMount]) -> list[mount_pb2.Mount]:
    """Return mounts as containerd's calls want them."""
    return [mount_pb2.Mount(type=m.type, source=m.source, options=m.options) for m in mounts]


def _snapshot(info: pb.Info) -> Snapshot:
    return Snapshot(info.name, info.parent, _KINDS.get(info.kind, ""), dict(info.labels))


def _mounts(mounts: Sequence[mount_pb2.Mount]) -> tuple[SnapshotMount, ...]:
    return tuple(SnapshotMount(mount.type, mount.source, tuple(mount.options)) for mount in mounts)
