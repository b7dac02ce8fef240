"""The bridge all slots hang on, and the settings of the detached namespace around it.

Does the same on a fresh namespace and on one that a dead worker left: what is there is brought to
the wanted state. The rules of who may talk to whom stand in `egress`; they are loaded first.
"""

from __future__ import annotations

import errno
from operator import methodcaller
from typing import Any

from agent.core.addresses import AddressPlan
from agent.network import namespace, rtnetlink
from agent.network.netlink import Netlink, NetlinkError


def ensure(netlink: Netlink, plan: AddressPlan, mtu: int) -> int:
    """Bring the bridge up in the calling thread's namespace and return its device number.

    One that is there already is the plan's own (`wire.check_bridge`). Raises OSError.
    """
    # No device here has IPv6: functions are IPv4 only, and no rule would look at link-locals.
    namespace.set_kernel({"ipv6/conf/default/disable_ipv6": "1"})
    make = methodcaller(
        "link",
        "add",
        kind="bridge",
        ifname=plan.bridge,
        address=plan.bridge_mac,
        mtu=mtu,
        br_mcast_snooping=0,
    )
    try:
        netlink.send(f"make bridge {plan.bridge}", rtnetlink.packed(make))
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
    bridge = next(link for link in rtnetlink.links(netlink) if link.name == plan.bridge)
    address = {"address": plan.bridge_address, "prefixlen": plan.subnet.prefixlen}

    def bring_up(ip: Any) -> None:
        ip.addr("replace", index=bridge.index, **address)
        ip.link("set", index=bridge.index, state="up")

    netlink.send(f"bring {plan.bridge} up", rtnetlink.packed(bring_up))
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
