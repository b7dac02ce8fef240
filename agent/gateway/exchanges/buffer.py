"""Parts of bodies held in memory for one call, counted against what all calls may hold together."""

from __future__ import annotations

from agent.gateway.exchanges.shared import SharedState


class BodyBuffer:
    """Pieces of one call's bodies. What was taken counts until it is let go."""

    __slots__ = ("_held_bytes", "_shared", "pieces")

    def __init__(self, shared: SharedState) -> None:
        self._shared = shared
        self._held_bytes = 0
        self.pieces: list[bytes] = []

    def hold(self, data: bytes) -> bool:
        """Keep a piece; False, and it is not kept, when all calls together hold too much."""
        if not self._shared.reserve(len(data)):
            return False
        self._held_bytes += len(data)
        self.pieces.append(data)
        return True

    def take(self) -> list[bytes]:
        """Return the pieces, in order, and keep none."""
        pieces, self.pieces = self.pieces, []
        return pieces

    def let_go(self) -> None:
        """Forget everything, and count nothing any more; safe to call twice."""
        self.pieces.clear()
        held, self._held_bytes = self._held_bytes, 0
        self._shared.unreserve(held)
