"""The errors the agent raises, sorted by whose fault they are.

Every room raises these and nothing foreign: a foreign error is converted once, at the door where
it enters, with `from`. Status codes, retries and billing hang on `fault` and on the class, never
on the text. The text names the thing and the way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agent.model.failure import Failure, FailureKind

Fault = Literal["caller", "function", "platform"]


class AgentError(Exception):
    """Anything the agent refuses or fails to do."""

    fault: Fault = "platform"
    retryable: bool = False
    code: str = "Internal"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a spec: where, what, and the way out, in one sentence."""

    field: str
    message: str


class InvalidSpec(AgentError):
    """The caller's input is wrong; all problems are listed at once with their field paths."""

    fault: Fault = "caller"
    code = "InvalidSpec"

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{p.field}: {p.message}" for p in problems))
        self.problems = tuple(problems)


class NotFound(AgentError):
    """The named function, version, image or call does not exist here."""

    fault: Fault = "caller"
    code = "NotFound"


class AlreadyExists(AgentError):
    """The name is taken by something with other content."""

    fault: Fault = "caller"
    code = "AlreadyExists"


class FailedPrecondition(AgentError):
    """The request is well formed, but the present state does not allow it."""

    fault: Fault = "caller"
    code = "FailedPrecondition"


class CredentialsRefused(FailedPrecondition):
    """A registry takes no credentials, or not these: with others the work may go on."""


class PermissionDenied(AgentError):
    """The door through which the request came does not allow it."""

    fault: Fault = "caller"
    code = "PermissionDenied"


class Overloaded(AgentError):
    """No capacity now.

    `reason` is one of queue, queue_timeout, slots, memory, instances, disk,
    draining.
    """

    fault: Fault = "platform"
    retryable = True
    code = "Overloaded"

    def __init__(self, message: str, *, reason: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s

    def reworded(self, message: str) -> Overloaded:
        """Return the same in other words."""
        return Overloaded(message, reason=self.reason, retry_after_s=self.retry_after_s)


class FunctionFailed(AgentError):
    """The function itself failed: crashed, ran out of memory or time, or answered nonsense."""

    fault: Fault = "function"
    code = "FunctionFailed"

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message or failure.kind.value)
        self.failure = failure

    @property
    def kind(self) -> FailureKind:
        """Which way the function failed."""
        return self.failure.kind


class RuntimeUnavailable(AgentError):
    """containerd, the runtime or the kernel did not do what it should; trying again may help."""

    fault: Fault = "platform"
    retryable = True
    code = "RuntimeUnavailable"


class Bug(AgentError):
    """An invariant of our own is broken; nothing was changed."""

    fault: Fault = "platform"
    code = "Bug"
