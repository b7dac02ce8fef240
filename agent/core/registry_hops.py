"""Where a registry may send its client: redirects and token servers, judged hop by hop.

A registry is not trusted, and its client asks from the host's network: every answer that names
another place is judged before anything goes there. Pure; `agent/containerd/hops.py` looks names up,
connects to the judged addresses and to no other.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from agent.core.clouds import METADATA, METADATA_IPV6

Address = IPv4Address | IPv6Address

# Docker Hub and the clouds' registries need one.
MAX_REDIRECTS = 5
# The node itself may have IPv6, where functions have none.
_METADATA = frozenset(
    ip_address(text) for text in (*(one.address for one in METADATA), *METADATA_IPV6)
)
LOOPBACK = "a loopback address"
PRIVATE = "a private address"
# Addresses of IPv4 in the clothes of IPv6 (RFC 6052, RFC 4291 2.5.5.1).
_TRANSLATED = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"), IPv6Network("::/96"))
# How resolvers take 127.1, 017700000001 and 0x7f000001: as IPv4, though no such name can exist.
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9a-fA-F]*)\.?", re.DOTALL)


def plain_http(host: str) -> bool:
    """Whether a registry is spoken to without TLS: loopback with a port, and nothing else."""
    name, _, port = host.rpartition(":")
    if not name or not port.isdecimal() or port == "443":
        return False
    address = literal(name.strip("[]"))
    return name == "localhost" or (address is not None and address.is_loopback)


def literal(host: str) -> Address | None:
    """Return the address that a host is, None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Home:
    """Where the registry itself is: its scheme and addresses, and what is the node's own."""

    scheme: str
    addresses: tuple[Address, ...]
    own: Collection[Address] = ()

    @property
    def is_public(self) -> bool:
        """Whether the internet reaches it; one public address is enough."""
        return any(not _place(address, self.own) for address in self.addresses)

    @property
    def wants_tls(self) -> bool:
        """Whether nothing it names may be plain http: it is asked over https, and not from here.

        From loopback to loopback nothing can be read on the way; `refused_addresses` sees to it.
        """
        here = all(unmapped(address).is_loopback for address in self.addresses)
        return self.scheme == "https" and not (here and self.addresses)


def refused_url(scheme: str, host: str, *, has_userinfo: bool, home_scheme: str) -> str:
    """Return why an address is not even looked up, "" when it is."""
    if scheme not in ("http", "https") or not host:
        return "it is no address of http or https"
    if has_userinfo:
        return "it holds credentials"
    if literal(host) is None and _NUMBER.fullmatch(host):
        return "its host is a number, but no address as it is written"
    if scheme == "http" and home_scheme != "http":
        return "it is plain http, and the registry was asked over https"
    return ""


def refused_addresses(home: Home, scheme: str, addresses: Sequence[Address]) -> str:
    """Return why a hop to another host is refused, "" when it is allowed.

    All addresses count, because any of them may be the one connected to. A place that is not
    public is allowed only when the registry is there itself: at the very address (the port does
    not matter: a token server beside a registry is usual), or, among private ones, at any.
    """
    for address in addresses:
        place = _place(address, home.own)
        if place and not _is_there(home, address, place):
            return f"{address} is {place}, and the registry is not there itself"
        if scheme == "http" and place != LOOPBACK:
            return f"it is plain http to {address}, which leaves this machine"
    return ""


def _is_there(home: Home, address: Address, place: str) -> bool:
    if home.is_public:
        return False
    if place == PRIVATE:
        return any(_place(each, home.own) == PRIVATE for each in home.addresses)
    return unmapped(address) in {unmapped(each) for each in home.addresses}


def _place(address: Address, own: Collection[Address]) -> str:
    """Return what kind of place an address is, "" for a public one."""
    address = unmapped(address)
    kinds = (
        (address in _METADATA, "a cloud's metadata"),
        (address.is_unspecified, "this machine (unspecified)"),
        (address.is_loopback, LOOPBACK),
        (address.is_link_local, "a link-local address"),
        (address in own, "this node's own address"),
        (address.is_multicast or address.is_reserved, "no address of one host"),
        (not address.is_global or _is_site_local(address), PRIVATE),
    )
    return next((kind for is_so, kind in kinds if is_so), "")


def _is_site_local(address: Address) -> bool:
    return isinstance(address, IPv6Address) and address.is_site_local


def unmapped(address: Address) -> Address:
    """Return the IPv4 address inside one of IPv6, if there is one, and without a zone."""
    if isinstance(address, IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour
    if inner is not None:
        return inner
    if any(address in network for network in _TRANSLATED) and int(address) > 0xFFFF:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return IPv6Address(int(address))
