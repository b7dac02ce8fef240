"""How a call can fail, as data that every contract can put into its own words.

The rooms that notice a failure fill in what they know; `agent/contracts` turns it into the status,
headers and body its platform would have sent. No wording of any platform stands here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class FailureKind(Enum):
    """What went wrong, from the caller's request to the function's reply."""

    # the caller's
    BAD_REQUEST = "bad_request"
    FUNCTION_NOT_FOUND = "function_not_found"
    WRONG_KIND = "wrong_kind"
    REQUEST_TOO_LARGE = "request_too_large"
    HEADERS_TOO_LARGE = "headers_too_large"
    CLIENT_CANCELLED = "client_cancelled"
    # the function's
    START_TIMEOUT = "start_timeout"
    EXITED_AT_START = "exited_at_start"
    FILE_NOT_FOUND = "file_not_found"
    FILE_PERMISSION = "file_permission"
    INIT_HOOK_FAILED = "init_hook_failed"
    TIMEOUT = "timeout"
    EXITED = "exited"
    OUT_OF_MEMORY = "out_of_memory"
    BAD_RESPONSE = "bad_response"
    RESPONSE_TOO_LARGE = "response_too_large"
    RESPONSE_HEADERS_TOO_LARGE = "response_headers_too_large"
    # the platform's
    IMAGE_UNAVAILABLE = "image_unavailable"
    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"
    NO_CAPACITY = "no_capacity"
    DRAINING = "draining"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure with everything a contract may want to say about it.

    Durations are seconds. `log_lines` are the function's last lines, each stamped with RFC 3339
    time in nanoseconds. `signal` is the signal's number when the process was killed by one.
    """

    kind: FailureKind
    message: str = ""
    exit_code: int | None = None
    signal: int | None = None
    out_of_memory: bool = False
    address: str = ""
    port: int = 0
    waited_s: float = 0.0
    limit: float = 0.0
    log_lines: tuple[str, ...] = ()
    retry_after_s: float = 0.0
