"""Asks a registry what a reference stands for, before a single layer is downloaded.

It reads the manifest and the config only, so that a missing image, another architecture or an
unknown format is refused by name at once; the download itself is containerd's (`transfer`). Speaks
the OCI distribution specification 1.1. Where the images are and whom to believe there is told by
`endpoints`, where a registry may send its client by `hops`, what is asked again by `patience`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import aiohttp
from yarl import URL

from agent.containerd import cpu
from agent.containerd.access import Access
from agent.containerd.authorization import Authorization, Unauthorized
from agent.containerd.credentials import Credentials
from agent.containerd.endpoints import CA_FIELD, RegistryEndpoint
from agent.containerd.hops import Hops, LookUp, look_up
from agent.containerd.patience import Answer, Patience
from agent.core import oci_image
from agent.core.oci_image import Descriptor, ImageConfig, Manifest
from agent.core.registry_patience import in_words
from agent.errors import AgentError, FailedPrecondition, NotFound, RuntimeUnavailable
from agent.model.image_ref import ImageRef

ACCEPT = ", ".join(sorted(oci_image.INDEX_TYPES | oci_image.MANIFEST_TYPES))
MAX_DEPTH = 4
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
CREDENTIAL_FIELDS = "registry.username and registry.password (or registry.identity_token)"
GUESSED = (
    "it was asked over plain HTTP, as it is on this machine: "
    f"for TLS give {CA_FIELD}, or write a hosts.toml for it"
)
TRUST_WAY_OUT = (
    f"give the certificate of its authority as {CA_FIELD}, or as ca.crt in the node's directory "
    "of registries"
)
CREDENTIALS_WAY_OUT = (
    f"give {CREDENTIAL_FIELDS} or registry.credential_command, or call SetCredentials for {{host}}"
)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference stands for now: the linux/amd64 manifest and its config.

    `served_as` is the media type that the registry gave the manifest, `authorization` the header
    that it wanted in the end.
    """

    target: Descriptor
    manifest: Manifest
    config: ImageConfig
    served_as: str = ""
    authorization: str = field(default="", repr=False)


async def resolve(
    reference: ImageRef,
    endpoints: Sequence[RegistryEndpoint],
    *,
    deadline: float,
    access: Access | None = None,
    look_up: LookUp = look_up,
) -> Resolved:
    """Resolve a reference at the first endpoint that has it; hosts get addresses from `look_up`.

    Raises NotFound (no such image), InvalidSpec (not for linux/amd64, or no image),
    FailedPrecondition (credentials missing or refused, a certificate that is not believed, or the
    registry sends its client where it must not go, or other bytes than it promised),
    RuntimeUnavailable (registry down or slow).
    """
    capability = "pull" if reference.digest else "resolve"
    able = [each for each in endpoints if each.can(capability)]
    if not able:
        text = f"image {reference}: no host of its hosts.toml has the capability {capability!r}"
        raise FailedPrecondition(text)
    known = access or Access()
    for endpoint in able[:-1]:
        try:
            return await _at(endpoint, reference, deadline, known, look_up)
        except (NotFound, FailedPrecondition, RuntimeUnavailable):
            continue  # a mirror need not have everything, nor be up
    return await _at(able[-1], reference, deadline, known, look_up)


async def leave_alone(
    reference: ImageRef, endpoint: RegistryEndpoint, digest: str, *, deadline: float, access: Access
) -> None:
    """Wait until a registry that had too many requests gives out a blob again.

    containerd's client does not hear Retry-After. Raises as `resolve` does.
    """
    async with _conversation(endpoint, reference, deadline, access, look_up) as conversation:
        await conversation.first_byte(digest)


async def _at(
    endpoint: RegistryEndpoint,
    reference: ImageRef,
    deadline: float,
    access: Access,
    look_up: LookUp,
) -> Resolved:
    async with _conversation(endpoint, reference, deadline, access, look_up) as conversation:
        return await conversation.resolve()


@asynccontextmanager
async def _conversation(
    endpoint: RegistryEndpoint,
    reference: ImageRef,
    deadline: float,
    access: Access,
    look_up: LookUp,
) -> AsyncIterator[_Conversation]:
    """Open a conversation; what breaks it is converted here."""
    what = "its mirror" if endpoint.is_mirror else "the registry"
    whose = f"image {reference}: {what} {endpoint.shown_host}"
    try:
        tls = await asyncio.to_thread(endpoint.tls)
        async with (
            asyncio.timeout_at(deadline),
            aclosing(Hops(endpoint.base, whose, look_up, tls)) as hops,
        ):
            patience = Patience(whose, deadline, once=endpoint.is_mirror)
            yield _Conversation(hops, patience, endpoint, reference, access)
    except TimeoutError as error:
        raise RuntimeUnavailable(f"{whose} did not answer in time") from error
    except (aiohttp.ClientError, OSError) as error:
        raise _unreachable(error, whose, endpoint) from error


async def has_referrer(
    reference: ImageRef,
    endpoints: Sequence[RegistryEndpoint],
    digest: str,
    artifact_type: str,
    *,
    deadline: float,
    access: Access,
) -> bool:
    """Say whether a manifest has a referrer of this type; False too when that cannot be told."""
    for endpoint in endpoints:
        try:
            async with _conversation(endpoint, reference, deadline, access, look_up) as asking:
                if artifact_type in await asking.referrers(digest):
                    return True
        except AgentError:
            continue
    return False


def _unreachable(error: Exception, whose: str, endpoint: RegistryEndpoint) -> AgentError:
    """Return what a connection that failed is for the caller."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        found = error.certificate_error
        why = getattr(found, "verify_message", "") or str(found)
        return FailedPrecondition(
            f"{whose} shows a certificate that is not valid here ({why.rstrip('.')}): "
            f"{TRUST_WAY_OUT}, or have the registry's own renewed or made for this name"
        )
    if isinstance(error, aiohttp.ClientConnectorSSLError | ssl.SSLError):
        return FailedPrecondition(
            f"{whose} does not speak TLS as it should ({getattr(error, 'reason', None) or error}); "
            'plain HTTP has to be asked for: server = "http://…" in its hosts.toml'
        )
    why = getattr(error, "strerror", None) or error
    broke = not isinstance(error, aiohttp.ClientConnectorError)
    hint = f"; {GUESSED}" if endpoint.guessed and broke else ""
    return RuntimeUnavailable(f"{whose} does not answer ({why}){hint}")


class _Conversation:
    """One resolution at one endpoint."""

    def __init__(
        self,
        hops: Hops,
        patience: Patience,
        endpoint: RegistryEndpoint,
        reference: ImageRef,
        access: Access,
    ) -> None:
        self._hops = hops
        self._patience = patience
        self._endpoint = endpoint
        self._reference = reference
        self._access = access
        self._authorization: Authorization | None = None
        self._has_renewed = False
        self._whose = patience.whose

    async def resolve(self) -> Resolved:
        where = str(self._reference)
        version, size_limit, claimed = self._reference.version, oci_image.MAX_JSON_BYTES, ""
        for _ in range(MAX_DEPTH):
            data, said = await self._get(f"manifests/{version}", size_limit)
            self._check_digest(version, data)
            kind = oci_image.sniff_type(data, said or claimed, where)
            target = Descriptor(kind, oci_image.digest_of(data), len(data))
            oci_image.check_runnable(target, where)
            if kind in oci_image.MANIFEST_TYPES:
                return await self._image(target, data, said)
            entry = oci_image.choose(oci_image.parse_index(data, where), where, cpu.level())
            version, claimed = entry.digest, entry.media_type
        raise NotFound(f"image {where}: its indexes are nested more than {MAX_DEPTH} deep")

    async def _image(self, target: Descriptor, data: bytes, said: str) -> Resolved:
        where = str(self._reference)
        manifest = oci_image.parse_manifest(data, target.media_type, where)
        digest = manifest.config.digest
        raw, _ = await self._get(f"blobs/{digest}", oci_image.MAX_JSON_BYTES)
        self._check_digest(digest, raw)
        config = oci_image.parse_config(raw, where, cpu.level())
        oci_image.check_layers(manifest, config, where)
        shown = self._authorization.header if self._authorization is not None else ""
        return Resolved(target, manifest, config, said, shown)

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

    async def first_byte(self, digest: str) -> None:
        """Ask for the first byte of a blob, as long as it takes."""
        await self._get(f"blobs/{digest}", 1, {"Range": "bytes=0-0"})

    def _check_digest(self, wanted: str, data: bytes) -> None:
        if len(data) > oci_image.MAX_JSON_BYTES:
            return  # cut short here: refused by its size
        found = oci_image.digest_of(data)
        if wanted.startswith("sha256:") and found != wanted:
            raise FailedPrecondition(
                f"{self._whose} sent other bytes for {wanted}: their digest is {found}"
            )

    async def _get(
        self, path: str, max_bytes: int, headers: Mapping[str, str] = NO_HEADERS
    ) -> tuple[bytes, str]:
        """Return a body and its media type, answering one challenge for authorization."""
        # A digest's colon is legal in a path; yarl would leave it alone but encode others.
        url = URL(f"{self._endpoint.base}/{self._reference.path}/{path}", encoded=True)
        if self._endpoint.is_mirror:
            url = url.update_query({"ns": self._reference.host})
        answer = await self._ask(url, max_bytes, headers)
        if answer.status == 401:
            await self._authorize(answer)
            answer = await self._ask(url, max_bytes, headers)
        if answer.status == 401 and await self._renewed():
            await self._authorize(answer)
            answer = await self._ask(url, max_bytes, headers)
        self._check(answer)
        return answer.body, answer.content_type

    async def _ask(self, url: URL, max_bytes: int, more: Mapping[str, str]) -> Answer:
        own: dict[str, str] = {}
        for name, value in self._endpoint.entry.headers:
            before = own.get(name.title())
            own[name.title()] = value if before is None else f"{before}, {value}"
        # An operator's Authorization stays with the host it is written for, like any other.
        header = own.pop("Authorization", "")
        if self._authorization is not None:
            header = self._authorization.header
        headers = {"Accept": ACCEPT, **own, **more}
        ask = partial(self._hops.get, url, headers=headers, authorization=header)
        return await self._patience.ask(ask, max_bytes)

    async def _authorize(self, answer: Answer) -> None:
        if self._authorization is None:
            scope = f"repository:{self._reference.path}:pull"
            found = await self._found()
            self._authorization = Authorization(self._hops, self._patience, scope, found)
        try:
            await self._authorization.meet(answer)
        except Unauthorized as refused:
            if await self._renewed():
                return await self._authorize(answer)
            raise self._denied(refused.status) from refused

    async def _renewed(self) -> bool:
        """Say whether there are other credentials than the ones refused; they are used then."""
        if self._has_renewed:
            return False
        self._has_renewed = True
        with self._named():
            if not await self._access.renewed(self._endpoint.shown_host):
                return False
        self._authorization = None
        return True

    async def _found(self) -> Credentials | None:
        with self._named():
            return await self._access.credentials(self._endpoint.shown_host)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Have an error of who gives credentials say for which registry they were."""
        try:
            yield
        except (FailedPrecondition, RuntimeUnavailable) as error:
            raise type(error)(f"{self._whose}: {error.message}") from error

    def _check(self, answer: Answer) -> None:
        status = answer.status
        if status == 404:
            raise NotFound(f"{self._whose} has no such image")
        if status in (401, 403):
            raise self._denied(status)
        if status == 400 and self._endpoint.guessed:
            raise FailedPrecondition(f"{self._whose} answers {in_words(status)}; {GUESSED}")
        if status not in (200, 206):
            raise RuntimeUnavailable(f"{self._whose} answers {in_words(status)}")

    def _denied(self, status: int) -> FailedPrecondition:
        known = self._authorization is not None and self._authorization.has_credentials
        how = "refuses these credentials" if known else "wants credentials"
        way_out = CREDENTIALS_WAY_OUT.format(host=self._endpoint.shown_host)
        return FailedPrecondition(
            f"{self._whose} {how} ({status}), or has no such image: {way_out}"
        )
