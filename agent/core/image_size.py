"""How large an image may be under a contract, and what is said of one that is larger.

A registry's manifest tells what a pull would transfer, so that too much is refused before the
first byte; what the layers take unpacked is known only afterwards. `agent/deployments/image.py`
asks, and takes back what was pulled in vain.
"""

from __future__ import annotations

from agent.core.oci_image import Manifest
from agent.errors import InvalidSpec, Problem
from agent.model.limits import GB, LIMITS

PACKED = ("gzip", "zstd")


def check_image_size(
    contract: str, name: str, *, compressed_bytes: int, unpacked_bytes: int | None = None
) -> None:
    """Raise InvalidSpec for an image that its contract does not take.

    `unpacked_bytes` None: not known yet. What is too large compressed already is not smaller
    unpacked.
    """
    limits = LIMITS[contract]
    most = limits.image_compressed_bytes
    if most and compressed_bytes > most:
        raise _too_large(contract, name, compressed_bytes, most, "compressed")
    most = limits.image_bytes
    if most and (unpacked_bytes or 0) > most:
        raise _too_large(contract, name, unpacked_bytes or 0, most, "unpacked")
    if most and compressed_bytes > most:
        raise _too_large(contract, name, compressed_bytes, most, "compressed, and more unpacked")


def packed_bytes(manifest: Manifest) -> int:
    """Return the bytes of the layers that are compressed; what the others pack to is not known."""
    layers = manifest.layers
    return sum(layer.size_bytes for layer in layers if layer.media_type.endswith(PACKED))


def _too_large(contract: str, name: str, size: int, most: int, how: str) -> InvalidSpec:
    what = f"{name} takes {size / GB:.2f} GB ({size} bytes) {how}"
    limit = f"{contract} takes images of at most {most / GB:g} GB ({most} bytes)"
    return InvalidSpec(
        [
            Problem(
                "image", f"{what}; {limit}: build it smaller, or deploy it under another contract"
            )
        ]
    )
