"""The doors to the machine that containers are made and taken apart through, as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.cgroups.tree import CgroupTree
    from agent.containerd.client import Containerd
    from agent.network.network import Network
    from agent.sandbox.prepared_images import PreparedImages
    from agent.sandbox.shims import Shims
    from agent.storage.rootfs import RootFilesystems
    from agent.storage.slots import WritableLayers


@dataclass(frozen=True, slots=True)
class Backends:
    """What the builder and the teardown work through."""

    containerd: Containerd
    network: Network
    layers: WritableLayers
    rootfs: RootFilesystems
    cgroups: CgroupTree
    images: PreparedImages
    shims: Shims
    forget: Callable[[str], None]
    """Drops the record of an instance of which nothing is left."""
