"""Answers a registry that wants to know who asks: Basic, or a token of its token service.

One conversation's worth of it, in the order in which containerd's own client tries things, so that
what is refused here is refused there: with a secret a token is asked for by POST (OAuth 2), and by
GET where the service knows no POST; without one by GET. Where a token service may be is judged by
`hops`.
"""

from __future__ import annotations

import re

from yarl import URL

from agent.containerd.credentials import Credentials
from agent.containerd.hops import Hops, shown
from agent.containerd.patience import Answer, Patience
from agent.core import bounded_json
from agent.core.challenges import Challenge, challenges
from agent.core.registry_patience import in_words
from agent.errors import FailedPrecondition, RuntimeUnavailable

CLIENT_ID = "kindling"
MAX_TOKEN_BYTES = 64 << 10
# What services answer to a POST that they do not know.
NO_POST = frozenset({400, 401, 404, 405, 501})

_PRINTABLE = re.compile(r"[!-~]+")


class Unauthorized(Exception):
    """The registry or its token service does not take these credentials, or wants some."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Authorization:
    """The Authorization header of one conversation; `header` is "" until a challenge was met."""

    def __init__(
        self, hops: Hops, patience: Patience, scope: str, credentials: Credentials | None
    ) -> None:
        self._hops = hops
        self._patience = patience
        self._scope = scope
        self._credentials = credentials
        self.header = ""

    @property
    def has_credentials(self) -> bool:
        """Whether there is anything to show."""
        return self._credentials is not None

    async def meet(self, answer: Answer) -> None:
        """Meet a challenge. Raises Unauthorized when it cannot be, RuntimeUnavailable."""
        for challenge in challenges(answer.challenges):
            if challenge.scheme == "bearer":
                self.header = f"Bearer {await self._token(challenge)}"
                return
            if self._credentials is not None and self._credentials.basic:
                self.header = self._credentials.basic
                return
        raise Unauthorized(answer.status)

    async def _token(self, challenge: Challenge) -> str:
        fields = challenge.fields
        url = self._hops.target(fields.get("realm", ""))
        wanted = {"service": fields.get("service", ""), "scope": fields.get("scope", self._scope)}
        wanted = {key: value for key, value in wanted.items() if value}
        answer = await self._posted(url, wanted)
        if answer is None or (answer.status in NO_POST and self._basic):
            answer = await self._gotten(url.update_query(wanted))
        if answer.status in (400, 401, 403):
            raise Unauthorized(answer.status)
        service = f"{self._patience.whose}: its token service {shown(url)}"
        if answer.status != 200:
            raise RuntimeUnavailable(f"{service} answers {in_words(answer.status)}")
        token = _token_in(answer.body)
        if not token:
            raise FailedPrecondition(f"{service} gives no token")
        return token

    @property
    def _basic(self) -> str:
        return self._credentials.basic if self._credentials is not None else ""

    async def _gotten(self, url: URL) -> Answer:
        return await self._patience.ask(
            lambda: self._hops.get(url, headers={}, authorization=self._basic), MAX_TOKEN_BYTES
        )

    async def _posted(self, url: URL, wanted: dict[str, str]) -> Answer | None:
        """Ask with the secret in a form; None when there is none."""
        known = self._credentials
        if known is None:
            return None
        if known.identity_token:
            secret = {"grant_type": "refresh_token", "refresh_token": known.identity_token}
        else:
            names = {"username": known.username, "password": known.password}
            secret = {"grant_type": "password", **names}
        form = {**wanted, "client_id": CLIENT_ID, **secret}
        return await self._patience.ask(lambda: self._hops.post(url, form), MAX_TOKEN_BYTES)


def _token_in(body: bytes) -> str:
    """Return the token in a token service's answer, "" when there is none."""
    try:
        answer = bounded_json.loads(body) if len(body) <= MAX_TOKEN_BYTES else None
    except (ValueError, RecursionError):
        return ""
    if not isinstance(answer, dict):
        return ""
    token = answer.get("token") or answer.get("access_token")
    # It goes into a header: nothing that could end one.
    return token if isinstance(token, str) and _PRINTABLE.fullmatch(token) else ""
