"""The one upgrade that is passed on, WebSocket: how a request asks for it.

The gateway reads requests with it, contracts write them.
"""

from __future__ import annotations


def names_websocket(upgrade: bytes) -> bool:
    """Say whether an Upgrade has WebSocket among its protocols, any case (RFC 9110 7.8)."""
    return b"websocket" in [name.strip(b" \t") for name in upgrade.lower().split(b",")]
