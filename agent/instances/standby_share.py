"""What the standbys of all versions share: the node's settings, and whose turn it is to be made."""

from __future__ import annotations

from dataclasses import dataclass

from agent.config import StandbySettings
from agent.core.standby import EACH_BYTES


@dataclass(slots=True)
class StandbyShare:
    """One for the node. `made_now` says whether one is being made."""

    settings: StandbySettings
    made_now: bool = False

    @property
    def most(self) -> int:
        """How many the node's budget holds."""
        return (self.settings.memory_mb << 20) // EACH_BYTES
