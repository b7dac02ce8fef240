"""Slot number to address, MAC and device name: the whole address plan of one node, computed.

Slot 0 is the bridge and takes the subnet's first host address; slots 1, 2, 3 … follow it. Nothing
is stored: the same number always means the same address, so that a record with a slot number is
enough to find an instance again. Reads no network state; `agent/network` puts it into the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError

from agent.errors import Bug, InvalidSpec, Problem

# A Linux bridge numbers its ports with 10 bits, and port 0 means "none" (BR_MAX_PORTS, net/bridge).
MAX_PORTS = 1023
# "02" marks a locally administered unicast address (IEEE 802), "6b" is a "k"; the rest is the IPv4.
_MAC_PREFIX = "02:6b"
_VETH_PREFIX = "kd"


@dataclass(frozen=True, slots=True)
class AddressPlan:
    """The addresses of one node's function network; made by `plan`."""

    subnet: IPv4Network
    bridge: str
    capacity: int = field(init=False)
    """How many slots there are: their numbers are 1 to `capacity`."""

    def __post_init__(self) -> None:
        # network, bridge and broadcast addresses are no slots
        capacity = min(MAX_PORTS, self.subnet.num_addresses - 3)
        object.__setattr__(self, "capacity", capacity)

    @property
    def bridge_address(self) -> str:
        """The bridge's IPv4 address: the gateway of every slot."""
        return str(self._ip(0))

    @property
    def bridge_mac(self) -> str:
        """The bridge's own MAC address."""
        return self._mac(0)

    def address(self, number: int) -> str:
        """Return the IPv4 address of slot `number`; raises Bug outside 1..capacity."""
        return str(self._ip(self._checked(number)))

    def mac(self, number: int) -> str:
        """Return the MAC address of slot `number`, as six hex pairs."""
        return self._mac(self._checked(number))

    def veth(self, number: int) -> str:
        """Return the name of slot `number`'s device on the bridge."""
        return f"{_VETH_PREFIX}{self._checked(number)}"

    def number_of_veth(self, name: str) -> int | None:
        """Return the slot whose bridge-side device has this name, or None if none of ours has."""
        digits = name.removeprefix(_VETH_PREFIX)
        if digits == name or not digits.isdecimal() or name == self.bridge:
            return None
        number = int(digits)
        if not 1 <= number <= self.capacity or digits != str(number):
            return None
        return number

    def _checked(self, number: int) -> int:
        if not 1 <= number <= self.capacity:
            raise Bug(f"network slot {number} is outside 1..{self.capacity}")
        return number

    def _ip(self, number: int) -> IPv4Address:
        return self.subnet.network_address + 1 + number

    def _mac(self, number: int) -> str:
        tail = self._ip(number).packed.hex(":")
        return f"{_MAC_PREFIX}:{tail}"


def plan(subnet: str, bridge: str) -> AddressPlan:
    """Check a configured subnet and bridge name and return their address plan.

    Raises InvalidSpec with every problem when the subnet is no IPv4 network with room for at least
    one slot, or when the bridge has a name that a slot's device would take.
    """
    problems: list[Problem] = []
    network = IPv4Network("0.0.0.0/0")
    try:
        network = IPv4Network(subnet)
    except (AddressValueError, NetmaskValueError, ValueError) as error:
        problems.append(Problem("network.subnet", f"{error}: write it like 172.30.0.0/16"))
    if network.prefixlen > 29:
        problems.append(Problem("network.subnet", f"{subnet} is too small: take a /29 or larger"))
    if not bridge or len(bridge) > 15:
        problems.append(Problem("network.bridge", "must have 1 to 15 characters"))
    elif bridge.removeprefix(_VETH_PREFIX).isdecimal() and bridge != f"{_VETH_PREFIX}0":
        problems.append(
            Problem("network.bridge", f"{bridge} is the name of a slot's device: take kd0")
        )
    if problems:
        raise InvalidSpec(problems)
    return AddressPlan(network, bridge)
