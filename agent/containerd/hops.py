"""Follows a registry to where it points: redirects and token servers, each hop judged first.

The rules are `agent/core/registry_hops.py`'s. A host is looked up once in a conversation, its
addresses are judged, and connections go to these addresses and no other: what a name means
afterwards changes nothing. Through a proxy of the environment, names are the proxy's to look up and
to judge; addresses written out are judged here all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from urllib.request import getproxies_environment, proxy_bypass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from agent.core.registry_hops import (
    MAX_REDIRECTS,
    Address,
    Home,
    literal,
    refused_addresses,
    refused_url,
)
from agent.errors import FailedPrecondition

LookUp = Callable[[str], Awaitable[tuple[Address, ...]]]

REDIRECTS = frozenset({301, 302, 303, 307, 308})
# A registry that says nothing for so long is asked again, or given up.
CONNECT_S = 10.0
SILENCE_S = 30.0
_PRINTABLE = re.compile(r"[!-~]+")
_SHOWN_CHARS = 200


async def look_up(host: str) -> tuple[Address, ...]:
    """Return the addresses that the system gives a name. Raises OSError."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
    except UnicodeError as error:
        # What a name may not be, too long or with empty parts, is found on the way to the lookup.
        raise OSError(None, f"{host[:80]} is no host name") from error
    except OSError as error:
        raise OSError(error.errno, f"{host}: {error.strerror}") from error
    return tuple(dict.fromkeys(ip_address(each[4][0]) for each in found))


class Pins(AbstractResolver):
    """Answers aiohttp with the addresses that were judged, and knows no other host."""

    def __init__(self) -> None:
        self.addresses: dict[str, tuple[Address, ...]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """See aiohttp's AbstractResolver."""
        judged = self.addresses.get(host, ())
        found = [each for each in judged if family in (socket.AF_UNSPEC, _family(each))]
        if not found:
            raise OSError(None, f"{host} has no address that may be connected to")
        return [
            ResolveResult(
                hostname=host,
                host=str(each),
                port=port,
                family=_family(each),
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for each in found
        ]

    async def close(self) -> None:
        """Nothing is open."""


class Hops:
    """One conversation with a registry at `base`; `whose` begins its errors.

    `tls` says whom to believe, at every hop, as containerd's client does.
    """

    def __init__(
        self,
        base: URL,
        whose: str,
        look_up: LookUp = look_up,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._base = base
        self._whose = whose
        self._pins = Pins()
        self._look_up = look_up
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=self._pins, use_dns_cache=False, ssl=tls if tls is not None else True
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_read=SILENCE_S),
        )
        self._home: Home | None = None

    async def aclose(self) -> None:
        """Close its connections."""
        await self._session.close()

    @contextlib.asynccontextmanager
    async def get(
        self, url: URL, *, headers: Mapping[str, str], authorization: str = ""
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask for `url` and follow redirects; `authorization` stays with the host it is for.

        Raises FailedPrecondition naming the registry, the hop it wanted and why it is refused.
        """
        origin, passed = url.origin(), [url]
        while True:
            if url.origin() != origin:
                # For good: what comes back from elsewhere does not get it again.
                authorization = ""
            authorized = {"Authorization": authorization} if authorization else {}
            proxy = await self._allow(url)
            async with self._session.get(
                url, headers={**headers, **authorized}, allow_redirects=False, proxy=proxy
            ) as reply:
                location = reply.headers.get("Location")
                if reply.status not in REDIRECTS or location is None:
                    yield reply
                    return
                url = self.target(location, url)
            if url in passed:
                raise self.refused(shown(url), "it redirects in a circle")
            if len(passed) > MAX_REDIRECTS:
                raise self.refused(shown(url), f"it redirects more than {MAX_REDIRECTS} times")
            passed.append(url)

    @contextlib.asynccontextmanager
    async def post(
        self, url: URL, form: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a form, which may hold credentials, to `url` and nowhere else. Raises as `get`."""
        proxy = await self._allow(url)
        async with self._session.post(url, data=form, allow_redirects=False, proxy=proxy) as reply:
            if reply.status in REDIRECTS:
                location = self.target(reply.headers.get("Location", ""), url)
                raise self.refused(shown(location), "credentials follow no redirect")
            yield reply

    def target(self, text: str, base: URL | None = None) -> URL:
        """Return the address that a registry names, seen from `base`."""
        url = _parsed(text, base)
        if url is None:
            raise self.refused(repr(text[:_SHOWN_CHARS]), "it is no address")
        return url

    def refused(self, target: str, why: str) -> FailedPrecondition:
        """Return the refusal of a hop."""
        return FailedPrecondition(f"{self._whose} sends to {target}, which is refused: {why}")

    async def _allow(self, url: URL) -> str | None:
        """Judge a hop, keep its host's addresses, and return the proxy to take for it."""
        host, has_userinfo = url.raw_host or "", url.raw_user is not None
        # Known with the first answer, and nothing sends anywhere before.
        is_bound = self._home is None or self._home.wants_tls
        home_scheme = self._base.scheme if is_bound else "http"
        why = refused_url(url.scheme, host, has_userinfo=has_userinfo, home_scheme=home_scheme)
        if why:
            raise self.refused(shown(url), why)
        proxy = _proxy_for(url)
        if proxy is not None:
            at = URL(proxy).raw_host or ""
            self._pins.addresses[at] = await self._addresses(at)
        home = await self._find_home()
        if host in self._pins.addresses or (proxy is not None and literal(host) is None):
            return proxy
        addresses = await self._addresses(host)
        if host != self._base.raw_host:
            why = refused_addresses(home, url.scheme, addresses)
        if why:
            raise self.refused(shown(url), why)
        self._pins.addresses[host] = addresses
        return proxy

    async def _find_home(self) -> Home:
        """Look the registry itself up, once: it may be anywhere, it was asked for."""
        if self._home is None:
            host = self._base.raw_host or ""
            addresses: tuple[Address, ...] = ()
            if _proxy_for(self._base) is None:
                addresses = self._pins.addresses[host] = await self._addresses(host)
            own = await asyncio.to_thread(own_addresses)
            self._home = Home(self._base.scheme, addresses, own)
        return self._home

    async def _addresses(self, host: str) -> tuple[Address, ...]:
        address = literal(host)
        return (address,) if address is not None else await self._look_up(host)


def own_addresses(proc: Path = Path("/proc/net")) -> frozenset[Address]:
    """Return the addresses of this network namespace. Blocks for a moment."""
    found: set[Address] = set()
    leaf = ""
    for words in map(str.split, _lines(proc / "fib_trie")):
        if words[:1] == ["|--"]:
            leaf = words[1]
        elif words[-2:] == ["host", "LOCAL"]:
            found.add(IPv4Address(leaf))
    for words in map(str.split, _lines(proc / "if_inet6")):
        found.add(IPv6Address(int(words[0], 16)))
    return frozenset(found)


def _lines(path: Path) -> list[str]:
    # A host without IPv6 has no such file.
    return path.read_text().splitlines() if path.exists() else []


def _parsed(text: str, base: URL | None) -> URL | None:
    if not _PRINTABLE.fullmatch(text):
        return None
    try:
        # Signed addresses must stay as they are written, so nothing is quoted again.
        named = URL(text, encoded=True)
        url = named if named.scheme or base is None else base.join(named)
        # An encoded address is taken apart when it is first asked: here, where it may fail.
        is_whole = bool(url.raw_host) and url.port != 0
    except (ValueError, IndexError):
        return None
    return url if is_whole else None


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _proxy_for(url: URL) -> str | None:
    """Return the environment's proxy for an address, as other clients choose it."""
    if proxy_bypass(f"{url.raw_host}:{url.port}"):
        return None
    return getproxies_environment().get(url.scheme)


def shown(url: URL) -> str:
    """Return an address for an error, without its query: that may hold a signature."""
    return str(url.with_query(None).with_fragment(None).with_user(None))[:_SHOWN_CHARS]
