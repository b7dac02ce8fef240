"""One instance's writable layer, as its owner holds it: where it lies, and of what kind.

Plain data. Slots come from `provisioned`, memory from `tmpfs`; `slots.WritableLayers` chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, eq=False)
class WritableLayer:
    """A clean pair of directories for an overlay, leased until released.

    `kind` is `slot<class in MB>` or `tmpfs`; with `number` it finds the layer again after a restart
    of the worker. Both directories lie on one file system that ends at the size asked for.
    """

    instance: str
    upper: Path
    work: Path
    kind: str
    number: int
