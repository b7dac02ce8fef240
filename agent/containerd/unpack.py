"""Unpacks images with files of owners that no node has: shown as 65534, told in a warning.

Only what containerd's own unpacker refused for an owner comes here. Each layer that is not unpacked
yet goes through `owner_filter` on its way from the stored blob to containerd's unpacker. Verified
are the tar as it was before the change, against the diff id, and that what was unpacked is what the
filter wrote; the blob's own digest was checked when it was stored. So a layer keeps its chain id
and is shared: whoever has the same layer has the same owners in it. What was changed stands in a
label of the snapshot, for every image built on it.
"""

from __future__ import annotations

import json
import logging
import secrets
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import grpc
import grpc.aio
from google.protobuf import any_pb2

from agent._pb.containerd.services.diff.v1 import diff_pb2 as pb
from agent._pb.containerd.services.diff.v1 import diff_pb2_grpc as rpc
from agent._pb.containerd.types import descriptor_pb2
from agent.aio.tasks import finish
from agent.containerd.channel import Channel
from agent.containerd.content import Content
from agent.containerd.errors import NoFilter, whole_detail
from agent.containerd.images import SNAPSHOT_LABEL
from agent.containerd.snapshots import SnapshotMount, Snapshots, mount_messages
from agent.core import oci_image
from agent.core.oci_image import Descriptor, ImageConfig, Manifest
from agent.core.unpack_errors import BAD_LAYER, unpack_error
from agent.errors import (
    AgentError,
    AlreadyExists,
    InvalidSpec,
    Overloaded,
    Problem,
    RuntimeUnavailable,
)
from agent.rootless.containerd_config import OWNERS_MEDIA_TYPE, OWNERS_PROCESSOR

log = logging.getLogger(__name__)

LABEL = "kindling/owners"
MAX_NAME = 200  # of the example; a label holds 4096 bytes
UNDO_S = 30.0


@dataclass(frozen=True, slots=True)
class Owners:
    """Files of one layer or image that were given to the overflow id, and one of them."""

    files: int = 0
    example: str = ""
    id: int = 0

    def warning(self) -> str:
        """Word it for a deploy."""
        others = f" and {self.files - 1} more" if self.files > 1 else ""
        return (
            f"{self.example} belongs to id {self.id}{others}, which no container has: shown as "
            "65534; build the image with owners 0-65535 (chown, COPY --chown)"
        )


def owners_in(labels: Iterable[Mapping[str, str]]) -> Owners:
    """Return what the labels of an image's snapshots say together, lowest layer first."""
    told = [Owners(**json.loads(each[LABEL])) for each in labels if LABEL in each]
    changed = [owners for owners in told if owners.files]
    if not changed:
        return Owners()
    return replace(changed[0], files=sum(owners.files for owners in changed))


class Unpacker:
    """Unpacks layer by layer."""

    def __init__(self, channel: Channel, content: Content, snapshots: Snapshots) -> None:
        self._channel = channel
        self._rpc = rpc.DiffStub(channel.grpc)
        self._content = content
        self._snapshots = snapshots

    async def unpack(
        self, manifest: Manifest, config: ImageConfig, what: str, *, lease: str, deadline: float
    ) -> None:
        """Unpack an image whose blobs are here, and have it keep its layers.

        Raises InvalidSpec when a layer is not what the image's config says, or cannot be unpacked
        either; NoFilter when owners cannot be changed here; Overloaded for a full disk.
        """
        parent = ""
        chains = oci_image.chain_ids(config.diff_ids)
        for layer, diff_id, chain in zip(manifest.layers, config.diff_ids, chains, strict=True):
            if not await self._snapshots.exists(chain, deadline=deadline):
                labels = {"containerd.io/snapshot.ref": chain}
                key = f"extract-{secrets.token_hex(6)} {chain}"
                mounts = await self._snapshots.prepare(
                    key, parent, labels, lease=lease, deadline=deadline
                )
                committed = False
                try:
                    owners = await self._apply(layer, diff_id, mounts, what, lease, deadline)
                    labels[LABEL] = json.dumps(owners)
                    committed = await self._commit(chain, key, labels, lease, deadline)
                finally:
                    if not committed:
                        undo = self._snapshots.remove(key)
                        await finish(f"remove snapshot {key}", undo, within_s=UNDO_S)
            parent = chain
        label = SNAPSHOT_LABEL + self._snapshots.snapshotter
        await self._content.label(manifest.config.digest, label, parent, deadline=deadline)

    async def _commit(
        self, chain: str, key: str, labels: Mapping[str, str], lease: str, deadline: float
    ) -> bool:
        try:
            await self._snapshots.commit(chain, key, labels, lease=lease, deadline=deadline)
        except AlreadyExists:  # another import of the same layer was faster
            return False
        return True

    async def _apply(
        self,
        layer: Descriptor,
        diff_id: str,
        mounts: tuple[SnapshotMount, ...],
        what: str,
        lease: str,
        deadline: float,
    ) -> dict[str, object]:
        with tempfile.TemporaryDirectory(prefix="kindling-owners-") as scratch:
            report = Path(scratch) / "report"
            request = pb.ApplyRequest(
                diff=descriptor_pb2.Descriptor(
                    media_type=OWNERS_MEDIA_TYPE, digest=layer.digest, size=layer.size_bytes
                ),
                mounts=mount_messages(mounts),
                payloads={
                    OWNERS_PROCESSOR: any_pb2.Any(
                        type_url=OWNERS_PROCESSOR,
                        value=json.dumps({"report": str(report)}).encode(),
                    )
                },
            )
            try:
                reply = await self._channel.call(
                    self._rpc.Apply, request, what, lease=lease, deadline=deadline
                )
            except RuntimeUnavailable as error:
                raise _refusal(error, what) from error
            try:
                said = json.loads(report.read_text())
            except (FileNotFoundError, ValueError) as error:
                raise NoFilter(f"{what}: {layer.digest} was not read whole") from error
        if said["applied"] != reply.applied.digest:
            raise NoFilter(f"{what}: {layer.digest} was unpacked otherwise than filtered")
        if said["diff_id"] != diff_id:
            why = f"layer {layer.digest} unpacks to {said['diff_id']}, not to {diff_id}"
            raise InvalidSpec([Problem("image", f"{what}: {why}")])
        owners = Owners(said["files"], str(said["example"])[:MAX_NAME], said["id"])
        if owners.files:
            log.warning("%s: %s", what, owners.warning())
        return asdict(owners)


def _refusal(error: RuntimeUnavailable, what: str) -> AgentError:
    """Return what a failed Apply means: the layer's fault, the disk's, or that of the filter."""
    cause = error.__cause__
    if not isinstance(cause, grpc.aio.AioRpcError) or cause.code() is not grpc.StatusCode.UNKNOWN:
        return error
    detail = whole_detail(error)
    if "processor" in detail or "owner filter" in detail:
        return NoFilter(error.message)
    found = unpack_error(f"{BAD_LAYER}: {detail}")
    if found is None:
        return error
    text = f"{what}: {found.text}"
    if found.full:
        return Overloaded(text, reason="disk")
    return InvalidSpec([Problem("image", text)])
