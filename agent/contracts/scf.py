"""Tencent Cloud SCF: what image functions of both types share.

Request ids are UUIDs, errors `{"errorCode","errorMessage","requestId","statusCode"}` with SCF's own
status codes; the same number goes over the wire on our own doors, while Tencent's API door always
answers 200 (`tencent_api.py`). `scf_web.py` and `scf_job.py` come next.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from agent.contracts.base import Call, CallReport, Headers, Reply
from agent.contracts.dialect import Dialect
from agent.contracts.own_errors import JSON
from agent.contracts.wording import exit_words, log_words, megabytes, number, whole_ms
from agent.model.failure import Failure, FailureKind
from agent.model.records import Meters
from agent.model.spec import FunctionSpec

NAMESPACE = "default"
CODE_ROOT = "/var/user/"
USER_EXCEPTION = 430

# Kind to SCF's status and the name it has in the list of function status codes.
SCF_ERRORS: dict[FailureKind, tuple[int, str]] = {
    FailureKind.BAD_REQUEST: (400, "InvalidParameterValue"),
    FailureKind.WRONG_KIND: (400, "InvalidParameterValue"),
    FailureKind.HEADERS_TOO_LARGE: (406, "RequestTooLarge"),
    FailureKind.FUNCTION_NOT_FOUND: (435, "FunctionNotFound"),
    FailureKind.REQUEST_TOO_LARGE: (406, "RequestTooLarge"),
    FailureKind.CLIENT_CANCELLED: (499, "RequestCancelled"),
    FailureKind.START_TIMEOUT: (446, "PortBindingFailed"),
    FailureKind.EXITED_AT_START: (405, "ContainerStateExitedByUser"),
    FailureKind.FILE_NOT_FOUND: (405, "ContainerStateExitedByUser"),
    FailureKind.FILE_PERMISSION: (405, "ContainerStateExitedByUser"),
    FailureKind.INIT_HOOK_FAILED: (USER_EXCEPTION, "UserCodeException"),
    FailureKind.TIMEOUT: (433, "TimeLimitReached"),
    FailureKind.EXITED: (439, "UserProcessExitWhenRunning"),
    FailureKind.OUT_OF_MEMORY: (434, "MemoryLimitReached"),
    FailureKind.BAD_RESPONSE: (USER_EXCEPTION, "UserCodeException"),
    FailureKind.RESPONSE_TOO_LARGE: (407, "ResponseTooLarge"),
    FailureKind.RESPONSE_HEADERS_TOO_LARGE: (410, "ResponseTooLarge"),
    FailureKind.IMAGE_UNAVAILABLE: (500, "InternalError"),
    FailureKind.QUEUE_FULL: (429, "ResourceLimit"),
    FailureKind.QUEUE_TIMEOUT: (432, "ResourceLimitReached"),
    FailureKind.NO_CAPACITY: (429, "ResourceLimit"),
    FailureKind.DRAINING: (429, "ResourceLimit"),
    FailureKind.INTERNAL: (500, "InternalError"),
}
WEB_RESPONSE_TOO_LARGE = 410


class Scf(Dialect):
    """The common ground of SCF's image functions, bound to one version."""

    def environment(self, instance: str) -> dict[str, str]:
        """Return SCF's variables, the same for every instance."""
        return {
            "TENCENTCLOUD_RUNENV": "SCF",
            "USER_CODE_ROOT": CODE_ROOT,
            "USER": "qcloud",
            "SCF_FUNCTIONNAME": self.version.name,
            "SCF_FUNCTIONVERSION": str(self.version.version),
            "TENCENTCLOUD_REGION": self.node.region,
            "TENCENTCLOUD_APPID": self.node.app_id,
            "TENCENTCLOUD_UIN": self.node.uin,
        }

    def new_request_id(self, random: bytes) -> str:
        """Return a UUID of version 4."""
        digits = random[:16].hex()
        variant = "89ab"[random[8] & 3]
        return (
            f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
        )

    def error(self, failure: Failure, call: Call, report: CallReport | None = None) -> Reply:
        """Return SCF's words for a failure; the status is the one in the body."""
        status, title = SCF_ERRORS[failure.kind]
        if failure.kind is FailureKind.RESPONSE_TOO_LARGE and call.kind == "http":
            status = WEB_RESPONSE_TOO_LARGE
        message = f"{title}: {scf_message(failure, self.version.spec)}"
        return scf_error(status, message, call, self._retry_after(failure))

    def log_before(self, request_id: str) -> Sequence[str]:
        """Return SCF's line before a call."""
        return (f"START RequestId: {request_id}",)

    def log_after(self, request_id: str, meters: Meters, error: str = "") -> Sequence[str]:
        """Return SCF's lines after a call; an error has one of its own before them."""
        lines = [f"ERROR RequestId: {request_id} Result: {error}"] if error else []
        lines.append(f"END RequestId: {request_id}")
        lines.append(
            f"Report RequestId: {request_id} Duration:{whole_ms(meters.wall_ms)}ms "
            f"Memory:{self.version.spec.memory_mb}MB "
            f"MaxMemoryUsed:{megabytes(meters.peak_memory_bytes)}MB"
        )
        return lines


def scf_error(status: int, message: str, call: Call, headers: Headers | None = None) -> Reply:
    """Return SCF's error body; errorCode is 1 for an exception of user code, else -1."""
    body = {
        "errorCode": 1 if status == USER_EXCEPTION else -1,
        "errorMessage": message,
        "requestId": call.request_id,
        "statusCode": status,
    }
    return Reply(status, [JSON, scf_id(call), *(headers or [])], json.dumps(body).encode())


def scf_id(call: Call) -> tuple[bytes, bytes]:
    """Return the header that names the request."""
    return (b"X-Scf-Request-Id", call.request_id.encode())


def scf_message(failure: Failure, spec: FunctionSpec) -> str:
    """Return SCF's sentence for a failure, with the container's last lines where it died."""
    sentence = _SENTENCES.get(failure.kind)
    text = sentence(failure, spec) if sentence else _plain(failure)
    logs = log_words(failure)
    return f"{text}\nLogs:{logs}" if logs else text


def _plain(failure: Failure) -> str:
    return failure.message or failure.kind.value.replace("_", " ")


def _no_port(failure: Failure, spec: FunctionSpec) -> str:
    limit = number(failure.limit or spec.startup_timeout_s)
    port = failure.port or spec.port
    return f"the container did not listen on 0.0.0.0:{port} within {limit} seconds"


def _exited_at_start(failure: Failure, _: FunctionSpec) -> str:
    return f"the container exited before it was ready ({exit_words(failure)})"


def _no_start(failure: Failure, _: FunctionSpec) -> str:
    return f"the container could not be started: {_plain(failure)}"


def _timed_out(failure: Failure, spec: FunctionSpec) -> str:
    seconds = number(failure.limit or spec.timeout_s)
    return f"Invoking task timed out after {seconds} seconds"


def _exited(failure: Failure, _: FunctionSpec) -> str:
    return f"the process exited while it was running ({exit_words(failure)})"


def _out_of_memory(failure: Failure, spec: FunctionSpec) -> str:
    return f"out of memory, the limit is {spec.memory_mb} MB ({exit_words(failure)})"


_SENTENCES: dict[FailureKind, Callable[[Failure, FunctionSpec], str]] = {
    FailureKind.START_TIMEOUT: _no_port,
    FailureKind.EXITED_AT_START: _exited_at_start,
    FailureKind.FILE_NOT_FOUND: _no_start,
    FailureKind.FILE_PERMISSION: _no_start,
    FailureKind.TIMEOUT: _timed_out,
    FailureKind.EXITED: _exited,
    FailureKind.OUT_OF_MEMORY: _out_of_memory,
}
