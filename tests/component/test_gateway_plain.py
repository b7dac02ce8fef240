"""Plain heads: what the one pass takes says exactly what the parser says of the same bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.contracts import headers as h
from agent.contracts.base import Call, NodeFacts
from agent.contracts.bind import bind
from agent.contracts.dialect import Dialect
from agent.gateway.wire.head import BadHead, HeadReader
from agent.gateway.wire.http1 import MAX_HEADERS
from agent.gateway.wire.plain import HOSTS, NAME_BYTES, NAMES, PlainHeads
from agent.model.records import FunctionVersion
from tests.component.gateway_house import spec

SAYS = (
    "method",
    "target",
    "host",
    "host_text",
    "length",
    "size",
    "old",
    "keep_alive",
    "upgrade",
    "traced",
    "expects",
    "headers",
)

GOOD = b"GET /a?b=%20c HTTP/1.1\r\nHost: h:80\r\nAccept: */*\r\n\r\n"
LINES = [
    b"Host: h",
    b"host: h:80",
    b"Host: h/x",
    b"Host:  h",
    b"Host:",
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"Content-Length: +5",
    b"Content-Length: 5 ",
    b"Content-Length: 5, 5",
    b"Content-Length: \xb25",
    b"Content_Length: 9",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: Keep-Alive, X-Own",
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Proxy-Connection: close",
    b"Expect: 100-continue",
    b"X-Kindling-Trace: 1",
    b"X-Fc-Forged: 1",
    b"X_Scf_Forged: 1",
    b"X-Own: 1",
    b"x-own:  two  blanks ",
    b"X-Own:1",
    b"X-Own : 1",
    b" folded: 1",
    b"\tfolded",
    b"no colon",
    b"X-Own",
    b": no name",
    b"X(Own): 1",
    b"X-Own: \x00",
    b"X-Own: \x7f",
    b"X-Own: a\tb",
    b"X-Own: \xff\x80",
    b"X-Own: a\rb",
    b"X-Own: a\nHost: other",
    b"X-Own: a\n\rb",
    b"X-Own: a\r",
    b"X-Own: ",
    b"traceparent: 00-aa-bb-01",
    b"TE: trailers",
    b"X-Forwarded-For: 192.0.2.9",
]
STARTS = [
    b"GET / HTTP/1.1",
    b"POST /a/b?c=d&e=%2F HTTP/1.1",
    b"GET / HTTP/1.0",
    b"GET / HTTP/1.1 ",
    b"GET  / HTTP/1.1",
    b"GET /a b HTTP/1.1",
    b"GET /\x80 HTTP/1.1",
    b"GET /#f HTTP/1.1",
    b"GET http://h/ HTTP/1.1",
    b"OPTIONS * HTTP/1.1",
    b"BREW / HTTP/1.1",
    b"get / HTTP/1.1",
    b"GET /",
    b"GET / HTTP/1.1\n",
    b"",
]


def plain_heads():
    return PlainHeads(h.looked_at)


def parsed(raw):
    """What the parser says of a head; None when it refuses it."""
    try:
        return HeadReader().feed(raw)
    except BadHead:
        return None


def agree(plain, raw):
    head = plain.read(raw)
    if head is None:
        return False
    other = parsed(raw)
    assert other is not None, raw
    for name in SAYS:
        assert getattr(head, name) == getattr(other, name), (name, raw)
    return True


def test_a_plain_head_is_taken():
    assert agree(plain_heads(), GOOD)


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("before", [b"", b"Host: h\r\n", b"Host: h\r\nContent-Length: 5\r\n"])
def test_what_is_taken_says_what_the_parser_says(line, before):
    plain = plain_heads()
    for _ in range(2):  # the second time its names are known
        agree(plain, b"POST /p HTTP/1.1\r\n" + before + line + b"\r\n\r\n")
        agree(plain, b"POST /p HTTP/1.1\r\n" + before + line + b"\r\nX-Last: 1\r\n\r\n")


@pytest.mark.parametrize("start", STARTS)
def test_request_lines_that_are_taken_say_what_the_parser_says(start):
    agree(plain_heads(), start + b"\r\nHost: h\r\n\r\n")


@pytest.mark.parametrize(
    "raw",
    [
        GOOD + GOOD,
        GOOD[:-2],
        GOOD + b"x",
        b"\r\n" + GOOD,
        GOOD[:-2] + b"\r\n" + b"X: 1\r\n\r\n",
        GOOD.replace(b"\r\n", b"\n"),
        GOOD.replace(b"\r\n", b"\n", 1),
        GOOD.replace(b"*/*\r\n", b"*/*\n"),
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * MAX_HEADERS + b"\r\n",
    ],
)
def test_what_is_not_exactly_one_head_is_left_to_the_parser(raw):
    assert plain_heads().read(raw) is None


@settings(max_examples=300)
@given(
    start=st.sampled_from(STARTS[:2]),
    lines=st.lists(st.sampled_from(LINES), max_size=6),
    end=st.sampled_from([b"\r\n"] * 6 + [b"\n", b"\r", b"\r\n\r\n"]),
)
def test_any_lines_together_say_what_the_parser_says(start, lines, end):
    agree(plain_heads(), end.join([start, *lines]) + b"\r\n\r\n")


@settings(max_examples=300)
@given(at=st.integers(0, len(GOOD) - 1), sign=st.binary(max_size=2), cut=st.integers(0, 2))
def test_any_changed_sign_is_read_as_the_parser_reads_it(at, sign, cut):
    agree(plain_heads(), GOOD[:at] + sign + GOOD[at + cut :])


def test_what_is_known_of_names_and_hosts_is_bounded():
    plain = plain_heads()
    for n in range(2 * NAMES + 2):
        long = b"x" * (NAME_BYTES if n % 2 else 0)
        raw = b"GET / HTTP/1.1\r\nHost: h%d\r\nN%d%b: 1\r\n\r\n" % (n, n, long)
        assert agree(plain, raw)
    assert len(plain._known) <= NAMES
    assert len(plain._hosts) <= HOSTS
    assert max(map(len, plain._known)) <= NAME_BYTES


# -- the contracts

DIALECTS = ["fc", "fc2", "scf-web", "vercel"]
ODD = (
    b"X-Fc-Forged",
    b"x_scf_forged",
    b"X-Vercel-Id",
    b"X-Forwarded-For",
    b"X-Real-IP",
    b"TE",
    b"Forwarded",
    b"Keep-Alive",
    b"HTTP2-Settings",
    b"traceparent",
    b"Proxy-Authorization",
)


def dialect(contract, kind):
    version = FunctionVersion(
        "f", 1, spec(contract=contract, kind=kind), None, "Ready", created_ns=0
    )
    return bind(version, NodeFacts())


@pytest.mark.parametrize("contract", DIALECTS)
def test_every_name_that_a_dialect_knows_is_looked_at(contract):
    bound = dialect(contract, "http")
    assert isinstance(bound, Dialect)
    own = {b"host", b"content-length", b"connection"}  # said by the head itself
    for name in bound.special - own:
        assert h.looked_at(name), name
        assert h.looked_at(name.upper().replace(b"-", b"_")), name
    for prefix in bound.prefixes:
        assert h.looked_at(prefix.title() + b"any"), prefix


@pytest.mark.parametrize("contract", DIALECTS)
@pytest.mark.parametrize("kind", ["http", "event"])
@pytest.mark.parametrize("odd", [(), *((name,) for name in ODD), ODD])
def test_an_instance_gets_the_same_fields_whoever_read_the_head(contract, kind, odd):
    raw = b"POST /p HTTP/1.1\r\nHost: h\r\nAccept: */*\r\nX-A: 1\r\nx-a: 2\r\n"
    raw += b"".join(b"%b: v\r\n" % name for name in odd) + b"X-A: 3\r\nContent-Length: 0\r\n\r\n"
    bound = dialect(contract, "http" if contract == "vercel" else kind)
    made = []
    for head in (plain_heads().read(raw), parsed(raw)):
        assert head is not None
        call = Call("1-0-0-1", kind, head.method, b"/p", head.looked_at, "192.0.2.1", "h")
        call.lines = head.lines
        made.append(bound.request_head(call, head.length))
    assert sorted(made[0].split(b"\r\n")) == sorted(made[1].split(b"\r\n"))
    assert made[0].split(b"\r\n")[0] == made[1].split(b"\r\n")[0]
    assert made[0].endswith(b"\r\n\r\n")
    own = [line for line in made[0].split(b"\r\n") if line.lower().startswith(b"x-a:")]
    assert own in ([], [b"X-A: 1", b"x-a: 2", b"X-A: 3"])
