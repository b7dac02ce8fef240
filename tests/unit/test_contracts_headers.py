"""What crosses the border between caller and container, for any list of headers."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.contracts import headers as h
from agent.contracts.base import Call, CallReport, Contract, NodeFacts
from agent.contracts.bind import bind
from agent.model.records import FunctionVersion, Meters
from agent.model.spec_parse import parse_spec

WEB = ("fc", "fc2", "scf-web", "vercel")
REPORT = CallReport(Meters())

# What the parser lets through: tokens of RFC 9110 as names, no CR, LF or NUL in values.
TOKEN = "!#$%&'*+-.^_`|~" + "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
VALUE = st.binary(max_size=30).map(lambda raw: re.sub(rb"[\r\n\0]", b"", raw))
TRICKY = st.sampled_from(
    [
        b"X-Fc-Request-Id",
        b"x_fc_account_id",
        b"X-SCF-Uin",
        b"x-Scf_Session-Token",
        b"Connection",
        b"Keep-Alive",
        b"Transfer-Encoding",
        b"transfer_encoding",
        b"Content-Length",
        b"Content_Length",
        b"Host",
        b"TE",
        b"Trailer",
        b"Upgrade",
        b"Proxy-Connection",
        b"Traceparent",
        b"tracestate",
        b"X-Hop",
        b"Cookie",
    ]
)
NAME = TRICKY | st.text(TOKEN, min_size=1, max_size=12).map(str.encode)
OPTIONS = st.lists(st.sampled_from([b"close", b"X-Hop", b"keep-alive", b"Cookie", b"", b"Upgrade"]))
HEADERS = st.lists(
    st.tuples(NAME, VALUE)
    | OPTIONS.map(lambda options: (b"Connection", b", ".join(options)))
    | st.just((b"X-Hop", b"1")),
    max_size=12,
)


def contract(name: str, **spec: object) -> Contract:
    full = {"name": "f", "image": "kindling.local/f:1", "contract": name, "kind": "http", **spec}
    node = NodeFacts(region="r")
    return bind(FunctionVersion("f", 1, parse_spec(full), None, "Ready", 0), node)


BOUND = {name: contract(name) for name in WEB}


def parsed(head: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    assert head.endswith(b"\r\n\r\n")
    line, *rest = head[:-4].split(b"\r\n")
    found = []
    for text in rest:
        name, colon, value = text.partition(b": ")
        assert colon, text
        found.append((name, value))
    return line, found


@given(st.sampled_from(WEB), HEADERS, st.sampled_from([None, 0, 7]))
def test_no_control_or_hop_header_of_the_caller_survives(
    name: str, headers: list[tuple[bytes, bytes]], length: int | None
) -> None:
    marked = [(n, v + b"!caller") for n, v in headers]
    call = Call("1-0-0-1", "http", b"POST", b"/p", marked, remote="10.0.0.9", host="h")
    line, sent = parsed(BOUND[name].request_head(call, length))
    assert line == b"POST /p HTTP/1.1"
    folded = [(n.translate(h.FOLD), v) for n, v in sent]
    caller = [(n, v) for n, v in folded if v.endswith(b"!caller")]
    for header, _ in caller:
        assert not header.startswith(h.CONTROL_PREFIXES)
        assert header not in h.HOP_BY_HOP - {b"upgrade"}
        assert header not in (b"host", b"content-length", b"expect")
    framing = [n for n, _ in folded if n in (b"content-length", b"transfer-encoding")]
    assert len(framing) == 1
    assert [n for n, _ in folded].count(b"host") == 1
    assert [n for n, _ in folded].count(b"traceparent") == 1
    wanted = [
        (n.translate(h.FOLD), v) for n, v in marked if passes(name, n.translate(h.FOLD), marked)
    ]
    traces = (b"traceparent", b"tracestate", b"upgrade", b"connection")
    assert [c for c in caller if c[0] not in traces] == wanted


def passes(name: str, folded: bytes, headers: list[tuple[bytes, bytes]]) -> bool:
    """The rule once more, slowly: may this header of the caller pass?"""
    special = BOUND[name].special  # type: ignore[attr-defined]
    prefixes = BOUND[name].prefixes  # type: ignore[attr-defined]
    if folded in special or folded.startswith(prefixes):
        return False
    for n, value in headers:
        if n.translate(h.FOLD) != b"connection":
            continue
        if folded in [option.strip().translate(h.FOLD) for option in value.split(b",")]:
            return False
    return True


@given(st.sampled_from(WEB), HEADERS)
def test_no_hop_header_of_the_container_reaches_the_caller(
    name: str, headers: list[tuple[bytes, bytes]]
) -> None:
    call = Call("1-0-0-1", "http", b"GET", b"/", [])
    passed = BOUND[name].http_reply(call, 200, headers, REPORT)
    folded = {n.translate(h.FOLD) for n, _ in passed}
    assert not folded & h.HOP_BY_HOP
    if name.startswith("fc"):
        assert [n.lower() for n, _ in passed if n.lower().startswith(b"x-fc-")] == [
            b"x-fc-request-id"
        ]


@pytest.mark.parametrize("name", WEB)
def test_spec_values_cannot_inject_headers(name: str) -> None:
    evil = "x\r\nX-Evil: 1\r\n\r\nGET /evil HTTP/1.1\0é"
    full = {"name": "f", "image": "kindling.local/f:1", "contract": name, "kind": "http"}
    version = FunctionVersion("f", 1, parse_spec(full), None, "Ready", 0)
    node = NodeFacts(region=evil, account_id=evil, app_id=evil, uin=evil)
    bound = bind(version, node)
    request_id = bound.new_request_id(bytes(16))
    for kind in ("http", "event"):
        call = Call(request_id, kind, b"GET", b"/", [], qualifier=evil)
        line, sent = parsed(bound.request_head(call, 0))
        assert b"evil" not in line
        assert b"X-Evil" not in [n for n, _ in sent]
        assert all(v.isascii() and b"\0" not in v for _, v in sent)


def test_a_connection_header_may_name_what_we_write_without_losing_it() -> None:
    headers = [(b"Connection", b"Host, Content-Length, x-fc-request-id, Cookie"), (b"Cookie", b"c")]
    call = Call("1-0-0-1", "http", b"POST", b"/", headers, host="h")
    _, sent = parsed(BOUND["fc"].request_head(call, 3))
    names = [n.lower() for n, _ in sent]
    assert names.count(b"host") == names.count(b"content-length") == 1
    assert b"x-fc-request-id" in names
    assert b"cookie" not in names


@pytest.mark.parametrize(
    ("method", "length", "line"),
    [
        (b"GET", 0, b""),
        (b"HEAD", 0, b""),
        (b"DELETE", 0, b""),
        (b"POST", 0, b"Content-Length: 0\r\n"),
        (b"PUT", 0, b"Content-Length: 0\r\n"),
        (b"GET", 3, b"Content-Length: 3\r\n"),
        (b"POST", None, b"Transfer-Encoding: chunked\r\n"),
    ],
)
def test_framing_is_ours(method: bytes, length: int | None, line: bytes) -> None:
    assert h.framing(method, length) == line


@given(st.binary(max_size=40))
def test_a_made_trace_is_valid(request_id: bytes) -> None:
    made = h.made_trace(request_id)
    match = re.fullmatch(
        rb"traceparent: 00-([0-9a-f]{32})-([0-9a-f]{16})-01\r\ntracestate: kindling=\2\r\n", made
    )
    assert match
    assert int(match[1], 16)
    assert int(match[2], 16)


@given(st.text())
def test_a_path_of_a_spec_is_one_token(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        return
    made = h.request_path(path)
    assert made.startswith(b"/")
    assert re.fullmatch(rb"[!-~]+", made)
