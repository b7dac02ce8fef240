"""Where a registry's images are and whom to believe there: one truth for the agent and containerd.

It comes from the operator's directory (`<directory>/<host>/hosts.toml`, or the certificates alone
as Docker lays them out) and from a spec's `registry.ca_pem`. The agent's own client takes its TLS
contexts from here; containerd gets the very same as a directory written for one pull, on tmpfs,
gone afterwards: `hosts.toml` has no other reader than `agent/core/registry_hosts.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from yarl import URL

from agent.core.registry_hops import plain_http
from agent.core.registry_hosts import HostEntry, hosts_toml, parse_hosts
from agent.errors import FailedPrecondition, InvalidSpec, Problem
from agent.model.image_ref import DEFAULT_HOST, ImageRef

# Docker Hub's registry answers under this name.
DOCKER_HOST = "registry-1.docker.io"
EVERY_HOST = "_default"
MAX_FILE_BYTES = 4 << 20  # Debian's bundle of all authorities has a quarter of a megabyte
CA_FIELD = "registry.ca_pem"


@dataclass(frozen=True, slots=True)
class RegistryEndpoint:
    """One place that has a registry's images.

    `registry` is the host as references name it; `guessed` says that plain HTTP was nobody's wish.
    """

    registry: str
    entry: HostEntry
    ca_pem: str = ""
    guessed: bool = False

    @property
    def base(self) -> URL:
        """The address below which its repositories are."""
        entry = self.entry
        return URL(f"{entry.scheme}://{entry.host}{entry.path}", encoded=True)

    @property
    def is_mirror(self) -> bool:
        """Whether it is another host than the registry's own."""
        return self.entry.host not in (self.registry, _served_by(self.registry))

    @property
    def shown_host(self) -> str:
        """The host whose credentials are asked for: the registry's as references name it."""
        return self.entry.host if self.is_mirror else self.registry

    @property
    def is_plain(self) -> bool:
        """Whether it is what anybody would take for this registry, knowing nothing."""
        default = HostEntry(scheme=self.entry.scheme, host=_served_by(self.registry))
        return self.entry == default and not self.ca_pem

    def can(self, capability: str) -> bool:
        """Return whether it may be asked for this."""
        return capability in self.entry.capabilities

    def tls(self) -> ssl.SSLContext | None:
        """Return what TLS believes here, None for plain HTTP. Reads files: not on the loop.

        Raises InvalidSpec (`registry.ca_pem`), FailedPrecondition naming a file that is not right.
        """
        if self.entry.scheme != "https":
            return None
        context = ssl.create_default_context()
        # As containerd (Go) does: the name is looked for among the alternative names only, and
        # every certificate that is given is an end of the chain, authorities' own or not.
        context.hostname_checks_common_name = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if self.entry.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.ca_pem:
            check_ca(self.ca_pem, context)
        for path in self.entry.ca:
            with _named(path):
                context.load_verify_locations(cadata=_text(Path(path)))
        for certificate, key in self.entry.client:
            with _named(certificate):
                context.load_cert_chain(certificate, key or None)
        return context


def check_ca(pem: str, context: ssl.SSLContext | None = None) -> None:
    """Have a context believe these certificates. Raises InvalidSpec when they are none."""
    try:
        (context or ssl.create_default_context()).load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError) as error:
        text = "holds no certificate; give the authority's certificates as PEM text"
        raise InvalidSpec([Problem(CA_FIELD, text)]) from error


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # what ssl raises is one, too
        why = "is no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        raise FailedPrecondition(f"{path}: {why}; mend it, or the hosts.toml beside it") from error


class RegistryHosts:
    """The operator's directory, and where one pull's own is written."""

    def __init__(self, directory: Path | None, scratch: Path) -> None:
        self._directory = directory
        self._scratch = scratch

    async def endpoints(
        self, reference: ImageRef, ca_pem: str = ""
    ) -> tuple[RegistryEndpoint, ...]:
        """Return where a reference is looked for, in this order; the last is the registry itself.

        Raises FailedPrecondition naming a file of the directory that is not right.
        """
        entries = await asyncio.to_thread(self._read, reference.host)
        return tuple(_completed(entry, reference.host, ca_pem) for entry in entries)

    def _read(self, host: str) -> tuple[HostEntry, ...]:
        found = self._find(host)
        if found is None:
            return (HostEntry(),)
        file = found / "hosts.toml"
        try:
            text = _text(file) if file.exists() else ""
            if text.strip():
                return parse_hosts(text, str(found))
            return (_certificates(found),)
        except (ValueError, RecursionError) as error:
            raise FailedPrecondition(f"{file}: {error}; mend the file") from error
        except OSError as error:
            why = f"{error.filename or file}: cannot be read: {error.strerror}"
            raise FailedPrecondition(f"{why}; the agent's user must be able to") from error

    def _find(self, host: str) -> Path | None:
        if self._directory is None:
            return None
        name, colon, port = host.rpartition(":")
        with_port = [f"{name}_{port}_"] if colon and port.isdecimal() else []
        places = (self._directory / each for each in (*with_port, host, EVERY_HOST))
        return next((place for place in places if place.is_dir()), None)

    @contextlib.asynccontextmanager
    async def for_containerd(self, endpoints: Sequence[RegistryEndpoint]) -> AsyncIterator[str]:
        """Give the directory that tells containerd of these endpoints; it is gone afterwards."""
        place = self._scratch / f"{os.getpid()}-{secrets.token_hex(8)}"
        try:
            await asyncio.to_thread(_write, place, endpoints)
            yield str(place)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, place, ignore_errors=True))

    def sweep(self) -> None:
        """Remove what pulls of workers that have ended left."""
        for place in self._scratch.glob("*-*") if self._scratch.exists() else ():
            pid = place.name.partition("-")[0]
            if not (pid.isdecimal() and Path("/proc", pid).exists()):
                shutil.rmtree(place, ignore_errors=True)


def _served_by(host: str) -> str:
    return DOCKER_HOST if host == DEFAULT_HOST else host


def _completed(entry: HostEntry, registry: str, ca_pem: str) -> RegistryEndpoint:
    """Return the endpoint that an entry stands for; a spec's authority is for the registry only."""
    itself = not entry.host
    host = entry.host or _served_by(registry)
    ca_pem = ca_pem if host == _served_by(registry) else ""
    scheme = entry.scheme
    if not scheme:
        plain = plain_http(registry) and not (ca_pem or entry.says_tls)
        scheme = "http" if plain else "https"
    guessed = itself and scheme == "http"
    return RegistryEndpoint(registry, replace(entry, scheme=scheme, host=host), ca_pem, guessed)


def _certificates(directory: Path) -> HostEntry:
    """Return what a directory of certificates alone says: *.crt authorities, *.cert with *.key."""
    names = sorted(path.name for path in directory.iterdir() if path.is_file())
    ca = [name for name in names if name.endswith(".crt")]
    pairs = []
    for name in names:
        if name.endswith(".cert"):
            key = f"{name.removesuffix('.cert')}.key"
            pairs.append((str(directory / name), str(directory / key) if key in names else ""))
    return HostEntry(ca=tuple(str(directory / name) for name in ca), client=tuple(pairs))


def _text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"has over {MAX_FILE_BYTES} bytes")
    return data.decode()


def _write(place: Path, endpoints: Sequence[RegistryEndpoint]) -> None:
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # containerd looks for this name last, whatever host it was asked for.
    directory = place / EVERY_HOST
    place.mkdir(mode=0o700)
    directory.mkdir(mode=0o700)
    entries = []
    for number, endpoint in enumerate(endpoints):
        entry = endpoint.entry
        if entry.scheme == "http":
            # With anything of TLS containerd would try https first.
            entry = replace(entry, ca=(), client=(), skip_verify=False)
        elif endpoint.ca_pem:
            file = directory / f"spec-{number}.pem"
            file.write_text(endpoint.ca_pem)
            entry = replace(entry, ca=(*entry.ca, str(file)))
        entries.append(entry)
    (directory / "hosts.toml").write_text(hosts_toml(entries))
