"""Which headers cross the border between a caller and a container, in one pass over each list.

Towards the container: every control header a caller could forge is dropped, hop-by-hop headers and
whatever `Connection` names too; framing and trace headers are written anew. Back to the caller:
hop-by-hop headers are dropped, the rest is the dialect's choice. Names are compared lower-cased and
with `_` read as `-`, because CGI and WSGI servers fold both into one variable.

The parser refused CR, LF and NUL in what came over the wire; what comes from a spec or the node's
config goes through `field_value` and `request_path`. The dialects come next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import quote

from agent.model.upgrade import names_websocket

Pairs = Sequence[tuple[bytes, bytes]]

SEPARATOR: Final = b": "
CRLF: Final = b"\r\n"
FOLD: Final = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ_", b"abcdefghijklmnopqrstuvwxyz-")

CONTROL_PREFIXES: Final = (b"x-fc-", b"x-scf-")
"""What only a platform may say; forged ones would carry credentials or the control path."""

OUR_PREFIXES: Final = (b"x-kindling-",)
"""What only the gateway itself may say of a call."""

# RFC 9110 section 7.6.1, and what RFC 2616 called hop-by-hop before it.
HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Host and length are written by us; the gateway itself answers Expect. Traces are looked at.
# HTTP2-Settings belongs to an upgrade that never passes (RFC 7540 section 3.2.1).
REQUEST_SPECIAL: Final = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"http2-settings",
    b"traceparent",
    b"tracestate",
}

# Who asked for it, as the platforms say it: Vercel overwrites these, the others pass them.
ORIGIN: Final = frozenset({b"x-real-ip", b"forwarded"})
_LOOKED_AT: Final = REQUEST_SPECIAL | ORIGIN | {b"x-tc-action"}
_LOOKED_AT_PREFIXES: Final = (*CONTROL_PREFIXES, b"x-vercel-", b"x-forwarded-", b"x-kindling-")

_NOT_HEX: Final = bytes(set(range(256)) - set(b"0123456789abcdefABCDEF"))
_UPPER: Final = bytes.maketrans(b"ABCDEF", b"abcdef")
_TRACE: Final = b"traceparent: 00-%b-%b-01\r\ntracestate: kindling=%b\r\n"
_BODY_METHODS: Final = frozenset({b"POST", b"PUT", b"PATCH"})


def looked_at(name: bytes) -> bool:
    """Say whether any door or dialect looks at a caller's fields of this name, or drops them."""
    key = name.translate(FOLD)
    return key in _LOOKED_AT or key.startswith(_LOOKED_AT_PREFIXES)


def copy_request(
    out: list[bytes],
    headers: Pairs,
    request_id: bytes,
    special: frozenset[bytes] = REQUEST_SPECIAL,
    prefixes: tuple[bytes, ...] = CONTROL_PREFIXES,
    *,
    upgrades: bool = True,
) -> None:
    """Append the caller's headers that may pass to `out`, with trace headers, made when absent.

    `special` must hold REQUEST_SPECIAL; names in it are dropped, and so are those that start with
    one of `prefixes`. With `upgrades` that to a WebSocket passes; every other is ignored, as any
    server may (RFC 9110 section 7.8): behind it nobody would look at headers any more.
    """
    start = len(out)
    connection: list[bytes] = []
    websocket = False
    parent = b""
    state: list[bytes] = []
    for name, value in headers:
        key = name.translate(FOLD)
        if key in special:
            if key == b"connection":
                connection.append(value)
            elif key == b"upgrade":
                websocket = websocket or names_websocket(value)
            elif key == b"traceparent":
                parent = parent or value
            elif key == b"tracestate":
                state.append(value)
        elif not key.startswith(prefixes):
            out += (name, SEPARATOR, value, CRLF)
    if connection:
        options = connection_options(connection)
        named = options - special
        if named:
            del out[start:]
            dropped = special | named
            copy_request(out, headers, request_id, dropped, prefixes, upgrades=upgrades)
            return
        if upgrades and websocket and b"upgrade" in options:
            out.append(b"Connection: Upgrade\r\nUpgrade: websocket\r\n")
    _append_trace(out, parent, state, request_id)


def copy_trace(out: list[bytes], headers: Pairs, request_id: bytes) -> None:
    """Append only trace headers: an event call carries nothing else of its caller."""
    parent = b""
    state: list[bytes] = []
    for name, value in headers:
        if len(name) not in (10, 11):
            continue
        key = name.translate(FOLD)
        if key == b"traceparent":
            parent = parent or value
        elif key == b"tracestate":
            state.append(value)
    _append_trace(out, parent, state, request_id)


def _append_trace(out: list[bytes], parent: bytes, state: list[bytes], request_id: bytes) -> None:
    """Append the caller's trace, or a new one; a state without its parent means nothing."""
    if not parent:
        out.append(made_trace(request_id))
        return
    out += (b"traceparent: ", parent, CRLF)
    for value in state:
        out += (b"tracestate: ", value, CRLF)


def made_trace(request_id: bytes) -> bytes:
    """Return W3C trace headers (Trace Context level 1) made of the request id's hex digits."""
    trace = request_id.translate(_UPPER, _NOT_HEX)[-32:].rjust(32, b"0")
    parent = trace[16:]
    if parent == b"0000000000000000":
        trace = trace[:31] + b"1"
        parent = trace[16:]
    return _TRACE % (trace, parent, parent)


def framing(method: bytes, length: int | None) -> bytes:
    """Return the header line that frames a request's body, or nothing where none is expected."""
    if length is None:
        return b"Transfer-Encoding: chunked\r\n"
    if length or method in _BODY_METHODS:
        return b"Content-Length: %d\r\n" % length
    return b""


def copy_response(
    headers: Pairs,
    dropped: frozenset[bytes] = HOP_BY_HOP,
    prefixes: tuple[bytes, ...] = OUR_PREFIXES,
    *,
    switching: bool = False,
) -> list[tuple[bytes, bytes]]:
    """Return the container's headers that reach the caller.

    Content-Length stays: it frames the body that passes. With `switching` (status 101) Upgrade and
    Connection pass as well.
    """
    passed: list[tuple[bytes, bytes]] = []
    connection: list[bytes] = []
    for pair in headers:
        key = pair[0].translate(FOLD)
        if key in dropped:
            if switching and key == b"upgrade":
                passed += ((b"Connection", b"Upgrade"), pair)
            elif key == b"connection":
                connection.append(pair[1])
        elif not key.startswith(prefixes):
            passed.append(pair)
    if connection:
        named = connection_options(connection) - dropped
        if named:
            passed = [h for h in passed if h[0].translate(FOLD) not in named]
    return passed


def size(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Return what the headers take on the wire, bytes."""
    return sum([len(name) + len(value) + 4 for name, value in headers])


def connection_options(values: Iterable[bytes]) -> frozenset[bytes]:
    """Return the options of all Connection headers, folded; `close` and empty ones left out."""
    options = {
        option.strip(b" \t").translate(FOLD) for value in values for option in value.split(b",")
    }
    return frozenset(options - {b"close", b""})


def chosen_protocol(headers: Pairs) -> bytes:
    """Return what the Upgrade of a 101 says was chosen, lower-cased; several stay a list."""
    values = [value for name, value in headers if name.translate(FOLD) == b"upgrade"]
    return b", ".join(values).strip(b" \t").lower()


def find(headers: Pairs, folded_name: bytes) -> bytes:
    """Return the first value of a header by its lower-case name, or nothing."""
    for name, value in headers:
        if len(name) == len(folded_name) and name.translate(FOLD) == folded_name:
            return value
    return b""


def field_value(text: str) -> bytes:
    """Return text of a spec or config as a header value: controls and non-ASCII percent-encoded."""
    if text.isascii() and text.isprintable():
        return text.encode("ascii")
    return quote(text, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~").encode("ascii")


def request_path(text: str) -> bytes:
    """Return a path of a spec as a request target: begins with `/`, holds no space or control."""
    path = quote(text, safe="/!#$%&'()*+,-.:;=?@[]_~").encode("ascii")
    return path if path.startswith(b"/") else b"/" + path


def lines(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Return header lines made once, at bind; values are made safe."""
    return b"".join(
        name.encode("ascii") + SEPARATOR + field_value(value) + CRLF for name, value in pairs
    )
