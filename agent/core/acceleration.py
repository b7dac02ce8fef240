"""Which way an image is made ready: mounted by a lazy engine, or fetched and unpacked whole.

`auto` is lazy where an index was found and the image is large enough to gain; `lazy` insists, as
far as there is an engine and an index, and is told when there is none. Pure; what is there is
looked up by `agent/deployments/lazy_image.py`.
"""

from __future__ import annotations

from typing import Literal

Acceleration = Literal["auto", "lazy", "eager"]
WHOLE = "it is fetched and unpacked whole"


def worth_asking(asked: Acceleration, compressed_bytes: int, least_bytes: int) -> bool:
    """Say whether it matters if an image has an index."""
    return asked == "lazy" or (asked == "auto" and compressed_bytes >= least_bytes)


def advice(asked: Acceleration, image: str, *, engines: bool, indexed: bool) -> str:
    """Return the warning for a deploy that asked for a lazy image and gets none, else ""."""
    if asked != "lazy" or indexed:
        return ""
    if not engines:
        return f"image {image}: no engine for lazy images is installed on this node: {WHOLE}"
    way_out = f"run 'kindling image accelerate {image}' to make one"
    return f"image {image} has no index for lazy loading: {WHOLE}; {way_out}"
