"""The bridge all slots hang on, and the settings of the detached namespace around it.

Does the same on a fresh namespace and on one that a dead worker left: what is there is brought to
the wanted state. The rules of who may talk to whom stand in `egress`; they are loaded first.
"""

from __future__ import annotations

import errno

from agent.core.addresses import AddressPlan
from agent.errors import RuntimeUnavailable
from agent.network import namespace, rtnetlink
from agent.network.netlink import Netlink, NetlinkError


def ensure(netlink: Netlink, plan: AddressPlan, mtu: int) -> int:
    """Bring the bridge up in the calling thread's namespace and return its device number.

    Raises RuntimeUnavailable when a device of that name is something else, OSError when the
    kernel refuses.
    """
    # No device here has IPv6: functions are IPv4 only, and no rule would look at link-locals.
    namespace.set_kernel({"ipv6/conf/default/disable_ipv6": "1"})
    try:
        netlink.send(rtnetlink.new_bridge(plan.bridge, plan.bridge_mac, mtu))
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
    bridge = next(link for link in rtnetlink.links(netlink) if link.name == plan.bridge)
    if bridge.mac != plan.bridge_mac:
        raise RuntimeUnavailable(
            f"bridge {plan.bridge} stands for another subnet (its MAC is {bridge.mac}, not "
            f"{plan.bridge_mac}): a changed network.subnet needs a stop and start of the agent"
        )
    netlink.send(
        rtnetlink.new_address(bridge.index, plan.bridge_address, plan.subnet.prefixlen),
        rtnetlink.set_up(bridge.index, plan.bridge),
    )
    namespace.set_kernel(
        {
            "ipv4/ip_forward": "1",
            # Refusals always tell the function at once instead of letting it wait for a timeout.
            "ipv4/icmp_ratelimit": "0",
            # Both must be off, else the kernel tells functions about their neighbours.
            "ipv4/conf/all/send_redirects": "0",
            f"ipv4/conf/{plan.bridge}/send_redirects": "0",
            f"ipv4/conf/{plan.bridge}/rp_filter": "1",
        }
    )
    return bridge.index
