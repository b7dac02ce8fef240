"""Registry credentials as values: what they are, how they are sent, and that they are never shown.

A server may repeat what it was sent, in a reason phrase or a body that becomes an error. So every
error of a pull that had credentials passes `conceal` before it leaves this room.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, quote_plus

from agent.errors import AgentError, InvalidSpec, Overloaded, Problem

HIDDEN = "[hidden]"
# Shorter ones would be found in every other word of an error.
LEAST_CHARS = 4
# Docker's credential helpers give an identity token under this name.
TOKEN_USER = "<token>"


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """A user name with its password, or an identity token. Kept in memory only, never logged."""

    username: str = ""
    password: str = ""
    identity_token: str = ""

    def __repr__(self) -> str:
        return "Credentials()"

    @property
    def basic(self) -> str:
        """The header's value for Basic, "" when there is no name or no password."""
        if not (self.username and self.password):
            return ""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()

    @property
    def forms(self) -> tuple[str, ...]:
        """Every form in which the secret goes over the wire, the longest first."""
        secrets = [text for text in (self.password, self.identity_token) if text]
        written = {form for text in secrets for form in (text, quote(text, safe=""), repr(text))}
        written |= {quote_plus(text) for text in secrets}
        if self.basic:
            written.add(self.basic.removeprefix("Basic "))
        found = [form for form in written if len(form) >= LEAST_CHARS]
        return tuple(sorted(found, key=len, reverse=True))


def conceal(error: AgentError, seen: Iterable[Credentials]) -> AgentError:
    """Return an error without any secret in its text; with one, its causes are cut off as well."""
    forms = [form for each in seen for form in each.forms]
    if not any(form in error.message for form in forms):
        return error
    if isinstance(error, InvalidSpec):
        problems = [Problem(each.field, _without(each.message, forms)) for each in error.problems]
        clean: AgentError = InvalidSpec(problems)
    elif isinstance(error, Overloaded):
        clean = error.reworded(_without(error.message, forms))
    else:
        clean = type(error)(_without(error.message, forms))
    clean.__suppress_context__ = True
    return clean


def _without(text: str, forms: Iterable[str]) -> str:
    for form in forms:
        text = text.replace(form, HIDDEN)
    return text
