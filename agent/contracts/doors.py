"""Which door a request came through, and what each door says to those it does not admit.

`Doors.match` looks at method, target, Host and X-TC-Action only: a configured Host domain first and
then nothing else, then `X-TC-Action` on `POST /`, then the path forms. It decodes nothing: what the
container gets are the caller's bytes. The gateway asks the catalog for the function next, then
`refusal` here, then the function's contract.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple
from urllib.parse import unquote_to_bytes

from agent.contracts import headers as h
from agent.contracts.base import Call, CallKind, Contract, Reply
from agent.contracts.fc import error_body
from agent.contracts.own_errors import JSON, own_error
from agent.contracts.tencent_api import ACTION, unknown_name
from agent.model.failure import Failure, FailureKind

Door = Literal["fc_api", "tencent_api", "invoke", "http", "host"]

FC_PREFIX: Final = b"/2023-03-30/functions/"
FC_SUFFIX: Final = b"/invocations"
INVOKE_PREFIX: Final = b"/invoke/"
HTTP_PREFIX: Final = b"/http/"

_MAX_NAME_BYTES: Final = 256
"""Longer ones are cut: no function has such a name, and error messages quote it."""


@dataclass(slots=True, init=False)
class Route:
    """Where a request goes. `name` is not checked: the catalog knows which exist.

    `target` is path and query for the container of an HTTP call, byte for byte as the caller wrote
    them, and empty for others. `needs_body`: name and qualifier stand in the body, see
    `tencent_api.parse`.
    """

    door: Door
    name: str
    qualifier: str
    target: bytes
    needs_body: bool

    def __init__(  # made for every call, as `Call` is
        self,
        door: Door,
        name: str,
        qualifier: str = "LATEST",
        target: bytes = b"",
        needs_body: bool = False,
    ) -> None:
        self.door = door
        self.name = name
        self.qualifier = qualifier
        self.target = target
        self.needs_body = needs_body


class CallOptions(NamedTuple):
    """What the caller of an event asked for in headers."""

    asynchronous: bool = False
    want_log_tail: bool = False


class Doors:
    """The doors of one node; `domain` is the configured Host domain, empty for none."""

    def __init__(self, domain: str = "") -> None:
        self._suffix = b"." + domain.lower().strip(".").encode("ascii") if domain else b""

    def match(self, method: bytes, target: bytes, host: bytes, headers: h.Pairs) -> Route | None:
        """Return the route, or None when no door has this form (see `no_door`)."""
        if target[:1] != b"/":
            target, host = origin_form(target, host)
        if method == b"CONNECT":
            return None  # a tunnel leads to no function
        if self._suffix:
            name = self._host_name(host)
            if name is not None:
                return Route("host", name, target=target)
        if target.startswith(HTTP_PREFIX):
            return _http(target)
        if method != b"POST":
            return None
        if target.startswith(INVOKE_PREFIX):
            return _invoke(target)
        if target.startswith(FC_PREFIX):
            return _fc_api(target)
        if target == b"/" and h.find(headers, ACTION):
            return Route("tencent_api", "", needs_body=True)
        return None

    def _host_name(self, host: bytes) -> str | None:
        """Return the function's name when Host lies in our domain."""
        bare = host.partition(b":")[0]
        if not bare.lower().endswith(self._suffix):
            return None
        return _name(bare[: -len(self._suffix)])


def no_door(method: bytes, target: bytes, request_id: str) -> Reply:
    """Return what a request gets that matches no door: 405 where only POST is missing, else 404."""
    path = target.partition(b"?")[0]
    shown = f"{_shown(method)} {_shown(path)}"
    if method != b"POST" and path.startswith((INVOKE_PREFIX, FC_PREFIX)):
        return own_error(
            405,
            "MethodNotAllowed",
            f"{shown}: call it with POST",
            request_id,
            headers=[(b"Allow", b"POST")],
        )
    message = (
        f"{shown} is no door: use POST /invoke/NAME, /http/NAME/PATH, "
        "POST /2023-03-30/functions/NAME/invocations, or POST / with X-TC-Action: Invoke"
    )
    return own_error(404, "NotFound", message, request_id)


def unknown_function(route: Route, message: str, request_id: str) -> Reply:
    """Return the door's own words for a name (or qualifier) that is not deployed.

    `message` is that of the catalog's NotFound.
    """
    if route.door == "fc_api":
        return _fc_not_found(message, request_id)
    if route.door == "tencent_api":
        return unknown_name(message, request_id)
    return own_error(404, "FunctionNotFound", message, request_id)


def admits(door: Door, contract: Contract) -> bool:
    """Say whether functions of this contract and kind can be called through this door."""
    return ("http" if door == "host" else door) in contract.doors


def refusal(route: Route, contract: Contract, call: Call) -> Reply | None:
    """Return the reply when this door does not admit this function, else None. Starts nothing."""
    door = route.door
    if admits(door, contract):
        return None
    name = contract.version.name
    if door == "fc_api":
        return _fc_not_found(f"function '{name}' is not a function of FC", call.request_id)
    if door == "tencent_api":
        return unknown_name(f"function {name} is not a function of SCF", call.request_id)
    message = f"function '{name}' is not an HTTP function (contract {contract.name}, "
    message += f"kind {contract.kind}): call it with POST /invoke/{name}"
    return contract.error(Failure(FailureKind.WRONG_KIND, message), call)


def call_kind(door: Door, contract: Contract) -> CallKind:
    """Return how a call through this door reaches a function it admits."""
    if contract.kind == "job":
        return "job"
    return "http" if door in ("http", "host") else "event"


def call_options(headers: h.Pairs) -> CallOptions:
    """Read FC's call options off an event call's headers (all doors but Tencent's)."""
    asynchronous = tail = False
    for name, value in headers:
        if len(name) not in (13, 20):
            continue
        key = name.translate(h.FOLD)
        if key == b"x-fc-log-type":
            tail = value.strip().lower() == b"tail"
        elif key == b"x-fc-invocation-type":
            asynchronous = value.strip().lower() == b"async"
    return CallOptions(asynchronous, tail)


# -- the path forms


def _http(target: bytes) -> Route:
    rest = target[len(HTTP_PREFIX) :]
    slash = rest.find(b"/")
    mark = rest.find(b"?")
    if slash >= 0 and (mark < 0 or slash < mark):
        return Route("http", _name(rest[:slash]), target=rest[slash:])
    if mark >= 0:
        return Route("http", _name(rest[:mark]), target=b"/" + rest[mark:])
    return Route("http", _name(rest), target=b"/")


def _invoke(target: bytes) -> Route | None:
    path, _, query = target.partition(b"?")
    name = path[len(INVOKE_PREFIX) :]
    if not name or b"/" in name:
        return None
    return Route("invoke", _name(name), _qualifier(query))


def _fc_api(target: bytes) -> Route | None:
    path, _, query = target.partition(b"?")
    if not path.endswith(FC_SUFFIX):
        return None
    name = path[len(FC_PREFIX) :][
        : -len(FC_SUFFIX)
    ]  # in two: the compiled form fails where they cross
    if not name or b"/" in name:
        return None
    return Route("fc_api", _name(name), _qualifier(query))


def _qualifier(query: bytes) -> str:
    """Return `qualifier` of a query, LATEST when it is absent or empty."""
    if not query:
        return "LATEST"
    for part in query.split(b"&"):
        if part.startswith(b"qualifier="):
            return _name(unquote_to_bytes(part[10:])) or "LATEST"
    return "LATEST"


def origin_form(target: bytes, host: bytes) -> tuple[bytes, bytes]:
    """Turn an absolute-form target into path and Host (RFC 9112 section 3.2.2)."""
    scheme, mark, rest = target.partition(b"://")
    if not mark or scheme.lower() not in (b"http", b"https"):
        return target, host
    ends = [at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0]
    end = min(ends, default=len(rest))
    path = rest[end:]
    return path if path.startswith(b"/") else b"/" + path, rest[:end]


def _name(raw: bytes) -> str:
    return raw[:_MAX_NAME_BYTES].decode("ascii", "replace")


def _shown(raw: bytes) -> str:
    return raw[:_MAX_NAME_BYTES].decode("ascii", "replace")


def _fc_not_found(message: str, request_id: str) -> Reply:
    headers = [JSON, (b"X-Fc-Request-Id", request_id.encode())]
    return Reply(404, headers, error_body("FunctionNotFound", message, request_id))
