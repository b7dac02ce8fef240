"""Tencent's cloud API form of an invocation: the name in a JSON body, the answer in `Response`.

`POST /` with `X-TC-Action: Invoke`; the answer is HTTP 200 whatever happened, as the platform's
SDKs expect. `parse` opens the request, the function's contract makes its reply, `sealed` puts that
reply into a Response object. `doors.py` says when this form is used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from agent.contracts import headers as h
from agent.contracts.base import Call, CallReport, Reply
from agent.contracts.own_errors import JSON
from agent.contracts.wording import whole_ms
from agent.model.limits import KB, LIMITS, LOG_TAIL_BYTES

ACTION = b"x-tc-action"
BODY_LIMIT_BYTES = 2 * LIMITS["scf-web"].request_bytes + 64 * KB
"""ClientContext is JSON inside a JSON string: escaping may double it."""

_LATEST = frozenset({"", "$LATEST", "$DEFAULT", "LATEST"})
_NO_EVENT = "{}"

# SCF's status in an error reply to the API's error code, where the fault is not the function's.
# Every other status is a Result whose InvokeResult is that status.
_API_CODES = {
    400: "InvalidParameterValue",
    406: "RequestSizeLimitExceeded",
    429: "RequestLimitExceeded",
    432: "RequestLimitExceeded",
    435: "ResourceNotFound.FunctionName",
    500: "InternalError",
}


@dataclass(frozen=True, slots=True)
class Envelope:
    """An opened request. `event` is ClientContext as bytes."""

    name: str
    qualifier: str
    event: bytes
    asynchronous: bool
    want_log_tail: bool
    namespace: str


def parse(headers: h.Pairs, body: bytes, request_id: str) -> Envelope | Reply:
    """Open a request, or return the API's refusal of it."""
    action = h.find(headers, ACTION).decode("ascii", "replace")
    if action != "Invoke":
        return api_error("InvalidAction", f"The action {action[:64]} is not served.", request_id)
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return api_error("InvalidParameter", "The request body is not JSON.", request_id)
    if not isinstance(data, dict):
        return api_error("InvalidParameter", "The request body is not an object.", request_id)
    for name in _TEXTS:
        if not isinstance(data.get(name, ""), str):
            return api_error("InvalidParameter", f"{name} must be a string.", request_id)
    if not data.get("FunctionName"):
        return api_error("MissingParameter", "FunctionName is missing.", request_id)
    wrong = _wrong_choice(data)
    if wrong:
        return api_error("InvalidParameterValue", wrong, request_id)
    return _envelope(data)


_TEXTS = (
    "FunctionName",
    "Qualifier",
    "InvocationType",
    "ClientContext",
    "LogType",
    "Namespace",
)
_CHOICES = {
    "InvocationType": ("", "RequestResponse", "Event"),
    "LogType": ("", "None", "Tail"),
    "Namespace": ("", "default"),
}


def _wrong_choice(data: dict[str, Any]) -> str:
    for name, choices in _CHOICES.items():
        if data.get(name, "") not in choices:
            return f"{name} must be one of {', '.join(choices[1:])}."
    return ""


def _envelope(data: dict[str, Any]) -> Envelope:
    qualifier = data.get("Qualifier", "")
    event: str = data.get("ClientContext", _NO_EVENT)
    return Envelope(
        name=data["FunctionName"],
        qualifier="LATEST" if qualifier in _LATEST else qualifier,
        event=event.encode("utf-8", "replace"),
        asynchronous=data.get("InvocationType") == "Event",
        want_log_tail=data.get("LogType") == "Tail",
        namespace=data.get("Namespace") or "default",
    )


def sealed(call: Call, reply: Reply, report: CallReport | None = None) -> Reply:
    """Put a contract's reply, good or bad, into Tencent's Response object.

    `reply` is what `event_reply`, `job_reply` or `error` of an SCF contract returned; its status
    says which. Retry-After, if there is one, is kept.
    """
    kept = [pair for pair in reply.headers if pair[0] == b"Retry-After"]
    if reply.status in _API_CODES:
        message = _told(reply.body)
        refused = api_error(_API_CODES[reply.status], message, call.request_id)
        return Reply(200, [*refused.headers, *kept], refused.body)
    failed = reply.status != 200
    result = {
        "MemUsage": 0,
        "Log": "",
        "RetMsg": reply.body.decode("utf-8", "replace"),
        "BillDuration": 0,
        "FunctionRequestId": call.request_id,
        "Duration": 0,
        "ErrMsg": _told(reply.body) if failed else "",
        "InvokeResult": reply.status if failed else 0,
    }
    if report is not None:
        meters = report.meters
        result["MemUsage"] = meters.peak_memory_bytes
        result["Duration"] = round(meters.wall_ms, 3)
        result["BillDuration"] = whole_ms(meters.billed_ms or meters.wall_ms)
        if call.want_log_tail:
            result["Log"] = report.log_tail[-LOG_TAIL_BYTES:].decode("utf-8", "replace")
    return _response({"Result": result}, call.request_id)


def unknown_name(message: str, request_id: str) -> Reply:
    """Return ResourceNotFound.FunctionName."""
    return api_error("ResourceNotFound.FunctionName", message, request_id)


def api_error(code: str, message: str, request_id: str) -> Reply:
    """Return an error of the API."""
    return _response({"Error": {"Code": code, "Message": message}}, request_id)


def _response(content: dict[str, Any], request_id: str) -> Reply:
    body = {"Response": {**content, "RequestId": request_id}}
    return Reply(200, [JSON], json.dumps(body).encode())


def _told(body: bytes) -> str:
    """Return the message of SCF's error body, or of our own where SCF's could not be made."""
    told = json.loads(body)
    message: str = told["errorMessage"] if "errorMessage" in told else told["error"]["message"]
    return message
