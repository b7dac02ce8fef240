"""What a lease of a network slot gives to whoever makes a container in it."""

from __future__ import annotations

from dataclasses import dataclass

from agent.network.egress import Egress


@dataclass(frozen=True, slots=True, eq=False)
class NetworkSlot:
    """One instance's network, leased until `Network.release`.

    `netns_path` opens the namespace for as long as this worker lives; a runtime joins it by that.
    """

    number: int
    address: str
    netns_path: str
    fd: int
    egress: Egress
