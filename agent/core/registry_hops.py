"""How a registry is spoken to, by its name. Pure."""

from __future__ import annotations

from ipaddress import ip_address


def plain_http(host: str) -> bool:
    """Whether a registry is spoken to without TLS: loopback with a port, and nothing else."""
    name, _, port = host.rpartition(":")
    if not name or not port.isdecimal() or port == "443":
        return False
    try:
        return name == "localhost" or ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
