"""What a function may reach: the packet filter of the functions' namespace, as nft rules.

From inside a function none of these answer: other functions, the bridge, every address the host
itself has, link-local addresses, what clouds tell a machine about itself (`core/clouds`), what the
operator denies, and slirp's own network but for DNS. A function may further be closed (`none`) or
bound to networks (CIDRs); the default `all` is in no set and costs nothing. No list of a function
opens what is refused to all: that is asked first, for every packet, so that a new rule also ends
connections that are open.
Traffic between agent and functions is not tracked. `wire` isolates the bridge's ports; both must
hold. Loaded as one transaction by libnftables inside this process, on the network thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Network, collapse_addresses
from typing import Literal

from agent.core import clouds
from agent.core.addresses import AddressPlan
from agent.errors import InvalidSpec, Problem, RuntimeUnavailable

Egress = Literal["all", "none"] | Sequence[str]
Verb = Literal["add", "delete"]

# rootlesskit's slirp4netns defaults: device, network and resolver (slirp4netns(1)).
UPLINK = "tap0"
RESOLVER = "10.0.2.3"
# slirp's own network; loopback; this network; link-local, where most clouds' metadata is; multicast
# and reserved, which no function has business with.
_NEVER = (
    "10.0.2.0/24",
    "127.0.0.0/8",
    "0.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
_TABLE = "inet kindling"
_REFUSE = "reject with icmpx type admin-prohibited"


def never(deny: Iterable[str] = ()) -> list[str]:
    """Return the networks that no function reaches whatever its egress says, `deny` among them.

    Merged, because overlapping members of one set are an error of the kernel's.
    """
    metadata = (row.address for row in clouds.METADATA)
    networks = (IPv4Network(entry) for entry in (*_NEVER, *metadata, *deny))
    return [str(network) for network in collapse_addresses(networks)]


def ruleset(plan: AddressPlan, deny: Iterable[str] = ()) -> str:
    """Return the whole ruleset as nft text; the members of its sets stay as they are.

    `deny` are checked networks (`config.Network.deny`). DNS passes even if they hold the resolver.
    """
    bridge = plan.bridge
    here = f'iifname "{bridge}" ip daddr {plan.bridge_address}'
    return f"""
add table {_TABLE}
flush table {_TABLE}
table {_TABLE} {{
  set host {{ type ipv4_addr; flags interval; auto-merge; }}
  set closed {{ type ipv4_addr; }}
  set listed {{ type ipv4_addr; }}
  set allowed {{ type ipv4_addr . ipv4_addr; flags interval; }}
  chain untracked_in {{
    type filter hook prerouting priority raw; policy accept;
    {here} notrack
  }}
  chain untracked_out {{
    type filter hook output priority raw; policy accept;
    oifname "{bridge}" notrack
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    iif "lo" accept
    {here} tcp flags & (syn | ack) != syn accept
    iifname "{bridge}" {_REFUSE}
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    iifname "{UPLINK}" oifname "{bridge}" ct state established,related accept
    iifname "{bridge}" oifname "{UPLINK}" meta nfproto ipv4 goto outward
    iifname "{bridge}" {_REFUSE}
  }}
  chain outward {{
    ip saddr @closed {_REFUSE}
    ip daddr {RESOLVER} udp dport 53 accept
    ip daddr {RESOLVER} tcp dport 53 accept
    ip daddr {{ {", ".join(never(deny))} }} {_REFUSE}
    ip daddr @host {_REFUSE}
    ip saddr @listed ip saddr . ip daddr != @allowed {_REFUSE}
    accept
  }}
  chain source_nat {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{UPLINK}" ip saddr {plan.subnet} masquerade
  }}
}}
"""


def host_members(networks: Iterable[str]) -> str:
    """Return nft text that makes `networks` the host's own addresses, all in one step."""
    members = ", ".join(sorted(networks))
    text = f"flush set {_TABLE} host\n"
    return text + (f"add element {_TABLE} host {{ {members} }}\n" if members else "")


def all_members(rules: Mapping[str, Egress]) -> str:
    """Return nft text that makes `rules` (by address) the only restrictions in force."""
    text = "".join(f"flush set {_TABLE} {name}\n" for name in ("closed", "listed", "allowed"))
    return text + "".join(members("add", address, egress) for address, egress in rules.items())


def members(verb: Verb, address: str, egress: Egress) -> str:
    """Return nft text that puts one slot under its rule or takes it off; empty for `all`.

    Raises InvalidSpec when an entry is no IPv4 network.
    """
    if egress == "all":
        return ""
    if isinstance(egress, str) or not egress:
        return f"{verb} element {_TABLE} closed {{ {address} }}\n"
    pairs = ", ".join(f"{address} . {network}" for network in _networks(egress))
    return (
        f"{verb} element {_TABLE} allowed {{ {pairs} }}\n"
        f"{verb} element {_TABLE} listed {{ {address} }}\n"
    )


def _networks(egress: Sequence[str]) -> list[IPv4Network]:
    """Check and merge: overlapping members of one set are an error of the kernel's."""
    networks: list[IPv4Network] = []
    problems: list[Problem] = []
    for position, entry in enumerate(egress):
        try:
            networks.append(IPv4Network(entry))
        except ValueError as error:
            problems.append(Problem(f"egress[{position}]", f"{error}: write it like 10.0.0.0/8"))
    if problems:
        raise InvalidSpec(problems)
    return list(collapse_addresses(networks))


class PacketFilter:
    """libnftables in the namespace of the thread that makes it; use it on that thread only."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL("libnftables.so.1")
        except OSError as error:
            raise RuntimeUnavailable(
                "libnftables.so.1 is missing: install the package nftables"
            ) from error
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_ctx_free.argtypes = [ctypes.c_void_p]
        library.nft_ctx_buffer_error.argtypes = [ctypes.c_void_p]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        library.nft_ctx_get_error_buffer.argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        self._library = library
        # SAFETY: the context is made, used and freed by one thread (libnftables(3) has no locks);
        # its netlink socket belongs to this thread's network namespace. Flags 0 is the default.
        self._context = library.nft_ctx_new(0)
        if not self._context or library.nft_ctx_buffer_error(self._context) != 0:
            raise RuntimeUnavailable("libnftables cannot be started: out of memory")

    def close(self) -> None:
        """Free the context; safe to call twice."""
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None

    def load(self, plan: AddressPlan, deny: Iterable[str]) -> None:
        """Put the ruleset in force; sets of an older table with another shape are made anew.

        One transaction: a worker that takes over with another `deny` leaves no moment without.
        """
        text = ruleset(plan, deny)
        try:
            self.run(text)
        except RuntimeUnavailable:
            self.run(f"add table {_TABLE}\ndelete table {_TABLE}\n{text}")

    def run(self, text: str) -> None:
        """Apply nft text as one transaction; raises RuntimeUnavailable with what nft said."""
        if not text:
            return
        # SAFETY: the text is NUL-terminated and outlives the call; the error buffer belongs to the
        # context and is copied (decoded) before the next call.
        if self._library.nft_run_cmd_from_buffer(self._context, text.encode()) == 0:
            return
        said = self._library.nft_ctx_get_error_buffer(self._context) or b""
        lines = said.decode(errors="replace").strip().splitlines()
        raise RuntimeUnavailable(f"nft rules cannot be loaded: {'; '.join(lines[:3])}")
