"""Asks a registry what a reference stands for, before a single layer is downloaded.

It reads the manifest and the config only, so that a missing image, another architecture or an
unknown format is refused by name at once; the download itself is containerd's (`transfer`). Speaks
the OCI distribution specification 1.1 with anonymous or given credentials; plain HTTP on loopback
only. Where a registry may send it is judged by `hops`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from contextlib import aclosing
from dataclasses import dataclass

import aiohttp
from yarl import URL

from agent.containerd.hops import Hops, LookUp, look_up
from agent.core import oci_image
from agent.core.oci_image import Descriptor, ImageConfig, Manifest
from agent.core.registry_hops import plain_http
from agent.errors import AgentError, FailedPrecondition, NotFound, RuntimeUnavailable
from agent.model.image_ref import DEFAULT_HOST, ImageRef

# Docker Hub's registry answers under this name.
DOCKER_HOST = "registry-1.docker.io"
ACCEPT = ", ".join(sorted(oci_image.INDEX_TYPES | oci_image.MANIFEST_TYPES))
MAX_DEPTH = 4
MAX_TOKEN_BYTES = 64 << 10

_PRINTABLE = re.compile(r"[!-~]+")
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and its password or token. Kept in memory only, never logged."""

    username: str
    password: str

    def __repr__(self) -> str:
        return f"Credentials({self.username!r})"


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference stands for now: the linux/amd64 manifest and its config."""

    target: Descriptor
    manifest: Manifest
    config: ImageConfig


async def resolve(
    reference: ImageRef,
    *,
    deadline: float,
    credentials: Credentials | None = None,
    look_up: LookUp = look_up,
) -> Resolved:
    """Resolve a reference at its registry; hosts get their addresses from `look_up`.

    Raises NotFound (no such image), InvalidSpec (not for linux/amd64, or no image),
    FailedPrecondition (credentials missing or refused, or the registry sends its client where it
    must not go), RuntimeUnavailable (registry down or slow).
    """
    base = _base(reference)
    try:
        async with (
            asyncio.timeout_at(deadline),
            aclosing(Hops(base, str(reference), reference.host, look_up)) as hops,
        ):
            return await _Conversation(hops, base, reference, credentials).resolve()
    except TimeoutError as error:
        text = f"image {reference}: the registry {reference.host} did not answer in time"
        raise RuntimeUnavailable(text) from error
    except (aiohttp.ClientError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        text = f"image {reference}: the registry {reference.host} does not answer ({why})"
        raise RuntimeUnavailable(text) from error


async def has_referrer(
    reference: ImageRef,
    digest: str,
    artifact_type: str,
    *,
    deadline: float,
    credentials: Credentials | None = None,
    look_up: LookUp = look_up,
) -> bool:
    """Say whether a manifest has a referrer of this type; False too when that cannot be told."""
    base = _base(reference)
    try:
        async with (
            asyncio.timeout_at(deadline),
            aclosing(Hops(base, str(reference), reference.host, look_up)) as hops,
        ):
            asking = _Conversation(hops, base, reference, credentials)
            return artifact_type in await asking.referrers(digest)
    except (TimeoutError, aiohttp.ClientError, OSError, AgentError):
        return False


def _base(reference: ImageRef) -> URL:
    """Return the address below which a registry keeps a repository."""
    host = DOCKER_HOST if reference.host == DEFAULT_HOST else reference.host
    scheme = "http" if plain_http(reference.host) else "https"
    return URL(f"{scheme}://{host}/v2/{reference.path}", encoded=True)


class _Conversation:
    """One resolution: the way to a registry, and the token it gave."""

    def __init__(
        self, hops: Hops, base: URL, reference: ImageRef, credentials: Credentials | None
    ) -> None:
        self._hops = hops
        self._base = base
        self._reference = reference
        self._credentials = credentials
        self._authorization = ""

    async def resolve(self) -> Resolved:
        where = str(self._reference)
        version, size_limit, claimed = self._reference.version, oci_image.MAX_JSON_BYTES, ""
        for _ in range(MAX_DEPTH):
            data, said = await self._get(f"manifests/{version}", size_limit)
            kind = oci_image.sniff_type(data, said or claimed, where)
            digest = oci_image.digest_of(data)
            if version.startswith("sha256:") and digest != version:
                raise RuntimeUnavailable(
                    f"image {where}: the registry sent other bytes for {version}"
                )
            target = Descriptor(kind, digest, len(data))
            oci_image.check_runnable(target, where)
            if kind in oci_image.MANIFEST_TYPES:
                return await self._image(target, data)
            entry = oci_image.choose(oci_image.parse_index(data, where), where)
            version, claimed = entry.digest, entry.media_type
        raise NotFound(f"image {where}: its indexes are nested more than {MAX_DEPTH} deep")

    async def _image(self, target: Descriptor, data: bytes) -> Resolved:
        where = str(self._reference)
        manifest = oci_image.parse_manifest(data, target.media_type, where)
        raw, _ = await self._get(f"blobs/{manifest.config.digest}", oci_image.MAX_JSON_BYTES)
        config = oci_image.parse_config(raw, where)
        oci_image.check_layers(manifest, config, where)
        return Resolved(target, manifest, config)

    async def referrers(self, digest: str) -> set[str]:
        """Return the artifact types of a manifest's referrers (distribution spec 1.1).

        A registry without that interface may have an index under a tag made of the digest instead.
        """
        try:
            data, _ = await self._get(f"referrers/{digest}", oci_image.MAX_JSON_BYTES)
        except NotFound:
            tag = digest.replace(":", "-")
            data, _ = await self._get(f"manifests/{tag}", oci_image.MAX_JSON_BYTES)
        return oci_image.artifact_types(data)

    async def _get(self, path: str, max_bytes: int) -> tuple[bytes, str]:
        """Return a body and its media type, answering one challenge for authorization."""
        for attempt in (1, 2):
            # A digest's colon is legal in a path; yarl would leave it alone but encode others.
            url = URL(f"{self._base}/{path}", encoded=True)
            async with self._hops.get(
                url, headers={"Accept": ACCEPT}, authorization=self._authorization
            ) as reply:
                if reply.status == 401 and attempt == 1:
                    await self._authorize(reply.headers.get("WWW-Authenticate", ""))
                    continue
                self._check(reply.status, reply.reason or "")
                return await _body(reply, max_bytes), reply.content_type
        raise self._denied(401)

    def _check(self, status: int, reason: str) -> None:
        where, registry = str(self._reference), self._reference.host
        if status == 404:
            raise NotFound(f"image {where}: the registry {registry} has no such image")
        if status in (401, 403):
            raise self._denied(status)
        if status != 200:
            raise RuntimeUnavailable(f"image {where}: {registry} answers {status} {reason}")

    def _denied(self, status: int) -> FailedPrecondition:
        how = "refuses these credentials" if self._credentials else "wants credentials"
        at = f"the registry {self._reference.host}"
        text = f"image {self._reference}: {at} {how} ({status}), or has no such image"
        return FailedPrecondition(text)

    async def _authorize(self, challenge: str) -> None:
        """Answer a WWW-Authenticate challenge: Basic, or Bearer by its token server."""
        scheme, _, rest = challenge.partition(" ")
        basic = self._basic()
        if scheme.lower() == "basic":
            if not basic:
                raise self._denied(401)
            self._authorization = basic
            return
        fields = dict(_CHALLENGE.findall(rest))
        realm = fields.pop("realm", "")
        if scheme.lower() != "bearer":
            raise self._denied(401)
        fields.setdefault("scope", f"repository:{self._reference.path}:pull")
        wanted = {key: fields[key] for key in ("service", "scope") if key in fields}
        url = self._hops.target(realm).update_query(wanted)
        async with self._hops.get(url, headers={}, authorization=basic) as reply:
            self._check(reply.status, reply.reason or "")
            token = _token(await _body(reply, MAX_TOKEN_BYTES))
        if not token:
            raise self._denied(401)
        self._authorization = f"Bearer {token}"

    def _basic(self) -> str:
        if self._credentials is None:
            return ""
        pair = f"{self._credentials.username}:{self._credentials.password}"
        return "Basic " + base64.b64encode(pair.encode()).decode()


async def _body(reply: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Return a reply's body, of one that is longer the first `max_bytes` + 1."""
    body = b""
    while len(body) <= max_bytes:
        more = await reply.content.read(max_bytes + 1 - len(body))
        if not more:
            break
        body += more
    return body


def _token(body: bytes) -> str:
    """Return the token in a token server's answer, "" when there is none."""
    try:
        answer = json.loads(body) if len(body) <= MAX_TOKEN_BYTES else None
    except (ValueError, RecursionError):
        return ""
    if not isinstance(answer, dict):
        return ""
    token = answer.get("token") or answer.get("access_token")
    # It goes into a header: nothing that could end one.
    return token if isinstance(token, str) and _PRINTABLE.fullmatch(token) else ""
