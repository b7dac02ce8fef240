"""One image's download by containerd: how it reaches the registry, who it is, and what went wrong.

containerd asks for credentials on a stream beside the transfer, whenever the registry wants some;
its hosts are those the agent's own client used (`endpoints`). What may pass by itself is tried
again under the same lease, so that containerd goes on with the bytes it has. Its errors have no
code for most of what a registry does wrong: here, and only here, their words are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from google.protobuf.message import Message

from agent._pb.containerd.types.transfer import registry_pb2 as pb
from agent.aio import tasks
from agent.containerd import registry
from agent.containerd.access import Access
from agent.containerd.channel import Channel
from agent.containerd.content import Content
from agent.containerd.credentials import Credentials
from agent.containerd.endpoints import DOCKER_HOST, RegistryEndpoint, RegistryHosts
from agent.containerd.patience import PATIENCE_S
from agent.containerd.registry import Resolved
from agent.containerd.streams import Stream, open_stream
from agent.core.registry_patience import PASSING, in_words, pause_s
from agent.errors import (
    AgentError,
    CredentialsRefused,
    FailedPrecondition,
    InvalidSpec,
    NotFound,
    Overloaded,
    RuntimeUnavailable,
)
from agent.model.image_ref import DEFAULT_HOST, ImageRef

Run = Callable[[Message], Awaitable[None]]

LATE_S = 0.5  # gRPC ends a call a little before its time

_STATUS = re.compile(r"unexpected status(?: code)? [^\n]*?: (\d{3})\b")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_OTHER_BYTES = re.compile(r"unexpected commit digest (sha256:\w+), expected (sha256:\w+)")
_OTHER_SIZE = "failed size validation"
_ROUND = "stopped after 10 redirects"
# containerd asked a token service, in vain.
_NO_TOKEN = ("failed to fetch oauth token", "did not include a token")
# A connection that broke, as Go's libraries word it.
_BROKEN = (
    *("unexpected EOF", ": EOF", "connection reset", "connection refused", "broken pipe"),
    *("short read", "timeout"),
)
_QUERY = re.compile(r"\?[^\s\"':]+")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a failed download is for the caller, and whether it may pass by itself.

    `crowded_at` is a blob that had too many requests, `other_bytes` one that came out another.
    """

    error: AgentError
    passes: bool = False
    crowded_at: str = ""
    other_bytes: str = ""


class Download:
    """The download of one resolved image."""

    def __init__(
        self,
        channel: Channel,
        hosts: RegistryHosts,
        reference: ImageRef,
        endpoints: Sequence[RegistryEndpoint],
        access: Access,
    ) -> None:
        self._channel = channel
        self._hosts = hosts
        self._reference = reference
        self._endpoints = endpoints
        self._access = access
        self._token = ""
        self._has_renewed = False
        self._has_begun_anew = False
        self._allowed_s = 0.0
        self._whose = f"image {reference}: the registry {reference.host}"

    async def run(self, found: Resolved, run: Run, deadline: float) -> None:
        """Have `run` transfer the image, again while that may help and `deadline` allows.

        Raises NotFound, FailedPrecondition, InvalidSpec or RuntimeUnavailable, naming the registry.
        """
        tries = 0
        loop = asyncio.get_running_loop()
        self._allowed_s = deadline - loop.time()
        while True:
            tries += 1
            try:
                async with self._source(found.target.digest, deadline) as source:
                    return await run(source)
            except AgentError as error:
                if self._lends_token(error, found.authorization):
                    continue
                verdict = self._verdict(error, late=deadline - loop.time() < LATE_S)
                if isinstance(verdict.error, CredentialsRefused) and await self._renewed():
                    continue
                if verdict.other_bytes and not self._has_begun_anew:
                    # They may go on from what an earlier answer left.
                    self._has_begun_anew = True
                    await self._forget(verdict.other_bytes)
                    continue
                wait_s = pause_s(tries, "", time.time()) if verdict.passes else None
                if wait_s is None or loop.time() + wait_s > deadline:
                    raise verdict.error from error
            await asyncio.sleep(wait_s)
            if verdict.crowded_at.startswith("sha256:"):
                await registry.leave_alone(
                    self._reference,
                    self._endpoints[-1],
                    verdict.crowded_at,
                    deadline=min(deadline, loop.time() + PATIENCE_S),
                    access=self._access,
                )

    def _lends_token(self, error: AgentError, authorization: str) -> bool:
        """Say whether to try with the agent's own token, once, where containerd gets none.

        Its client is strict about how a token service answers a POST. A mirror would see the
        token as well: there it is not lent.
        """
        wanted = any(words in error.message for words in _NO_TOKEN)
        if self._token or not wanted or len(self._endpoints) > 1:
            return False
        self._token = authorization if authorization.startswith("Bearer ") else ""
        return bool(self._token)

    async def _renewed(self) -> bool:
        """Say whether to try with other credentials, once: these may just have expired."""
        if self._has_renewed:
            return False
        self._has_renewed = True
        hosts = {endpoint.shown_host for endpoint in self._endpoints}
        return any([await self._access.renewed(host) for host in hosts])

    async def _forget(self, digest: str) -> None:
        """Give up what has come of a blob."""
        content = Content(self._channel)
        for one in await content.ingests():
            if digest in one.ref:
                with contextlib.suppress(NotFound):
                    await content.forget_ingest(one.ref)

    @contextlib.asynccontextmanager
    async def _source(self, digest: str, deadline: float) -> AsyncIterator[Message]:
        async with contextlib.AsyncExitStack() as stack:
            resolver = pb.RegistryResolver(default_scheme=self._endpoints[-1].entry.scheme)
            if len(self._endpoints) > 1 or not self._endpoints[0].is_plain:
                held = self._hosts.for_containerd(self._endpoints)
                resolver.host_dir = await stack.enter_async_context(held)
            if self._access.may_have_credentials:
                stream = open_stream(self._channel, "credentials", deadline)
                opened = await stack.enter_async_context(stream)
                answers = tasks.spawn("credentials for a pull", self._answer(opened))
                stack.push_async_callback(tasks.stop, answers)
                resolver.auth_stream = opened.id
            if self._token:
                resolver.headers["Authorization"] = self._token
            name = f"{self._reference.name}@{digest}"
            yield pb.OCIRegistry(reference=name, resolver=resolver)

    async def _answer(self, stream: Stream) -> None:
        """Answer what containerd asks on its stream, until it is closed."""
        hosts = {endpoint.entry.host: endpoint.shown_host for endpoint in self._endpoints}
        hosts[DOCKER_HOST] = DEFAULT_HOST
        try:
            while (message := await stream.receive()) is not None:
                asked = pb.AuthRequest.FromString(message.value).host
                # Nobody but the places that were to be asked: redirects lead elsewhere.
                host = hosts.get(asked)
                found = await self._found(host) if host is not None else None
                await stream.send(_response(found))
        except AgentError:
            return  # the transfer itself says what became of it

    async def _found(self, host: str) -> Credentials | None:
        try:
            return await self._access.credentials(host)
        except AgentError:
            return None  # told when the agent itself asked; containerd is refused then

    def _verdict(self, error: AgentError, *, late: bool) -> Verdict:
        """Read containerd's words. What a server wrote itself is not repeated."""
        if isinstance(error, InvalidSpec | Overloaded):
            return Verdict(error)
        said_by = error.message.removeprefix(f"pull image {self._reference}: ")
        text = " ".join(_QUERY.sub("", said_by).split())
        lost, status = _OTHER_BYTES.search(text), _STATUS.search(text)
        if lost is not None:
            said = f"{self._whose} sent other bytes for {lost[2]}: their digest is {lost[1]}"
            return Verdict(FailedPrecondition(said), other_bytes=lost[2])
        if _OTHER_SIZE in text:
            said = f"{self._whose} sent more bytes than its manifest says for {_part(text)}"
            return Verdict(FailedPrecondition(said))
        if status is not None:
            return self._by_status(int(status[1]), text)
        if _ROUND in text:
            said = f"{self._whose} redirects its client round and round for {_part(text)}"
            return Verdict(FailedPrecondition(said))
        if isinstance(error, NotFound):
            said = f"{self._whose} lost a part of it meanwhile ({_part(text)}); try again"
            return Verdict(NotFound(said))
        if any(words in text for words in _BROKEN):
            said = f"{self._whose} broke off in the middle ({_cause(text)})"
            return Verdict(RuntimeUnavailable(said), passes=True)
        if late:
            said = f"{self._whose} did not give out all of it {within(self._allowed_s)}"
            return Verdict(RuntimeUnavailable(said))
        if "x509:" in text:
            said = f"{self._whose} shows a certificate that containerd does not take"
            return Verdict(FailedPrecondition(f"{said} ({_cause(text)}): {registry.TRUST_WAY_OUT}"))
        return Verdict(type(error)(f"pull image {self._reference}: {text}"))

    def _by_status(self, status: int, text: str) -> Verdict:
        said = f"{self._whose} answers {in_words(status)} for {_part(text)}"
        if status in (401, 403):
            way_out = registry.CREDENTIALS_WAY_OUT.format(host=self._reference.host)
            return Verdict(CredentialsRefused(f"{said}: {way_out}"))
        if status == 404:
            return Verdict(NotFound(said))
        crowded_at = _part(text) if status == 429 else ""
        return Verdict(RuntimeUnavailable(said), status in PASSING, crowded_at)


def within(allowed_s: float) -> str:
    """Say how long a pull might take, and what there is to do."""
    way_out = "what came of it is gone on with: pull it again, or raise images.pull_timeout_s"
    return f"within the {allowed_s:.0f} s that it may take; {way_out}"


def _part(text: str) -> str:
    """Return the digest of what an error is about, or words for it."""
    found = _DIGEST.search(text)
    return found[0] if found is not None else "a part of it"


def _cause(text: str) -> str:
    """Return the innermost cause of a chain of containerd's, without addresses of ours."""
    return text.rpartition(": ")[2] or text


def _response(found: Credentials | None) -> Message:
    if found is None:
        return pb.AuthResponse(authType=pb.NONE)
    if found.identity_token:
        return pb.AuthResponse(authType=pb.REFRESH, secret=found.identity_token)
    return pb.AuthResponse(authType=pb.CREDENTIALS, username=found.username, secret=found.password)
