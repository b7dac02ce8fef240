"""Doors: what they match, byte for byte, whatever the request looks like."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.contracts.doors import Doors, Route, call_options

TARGET_BYTES = st.binary(max_size=60).map(lambda raw: raw.translate(None, b" \r\n\0\t"))
METHODS = st.sampled_from([b"GET", b"POST", b"PUT", b"OPTIONS", b"X"])


@given(METHODS, TARGET_BYTES)
def test_http_targets_pass_byte_for_byte(method: bytes, tail: bytes) -> None:
    route = Doors().match(method, b"/http/hello/" + tail, b"h", [])
    assert route == Route("http", "hello", target=b"/" + tail)


@given(METHODS, TARGET_BYTES)
def test_host_targets_pass_byte_for_byte(method: bytes, tail: bytes) -> None:
    route = Doors("Fn.Example").match(method, b"/" + tail, b"Hello.fn.example:80", [])
    assert route == Route("host", "Hello", target=b"/" + tail)


@given(METHODS, TARGET_BYTES, st.binary(max_size=20), st.sampled_from(["", "fn.example"]))
def test_anything_else_is_a_route_or_none(
    method: bytes, target: bytes, host: bytes, domain: str
) -> None:
    route = Doors(domain).match(method, target, host, [(b"X-TC-Action", b"Invoke")])
    assert route is None or route.name.isascii() or "�" in route.name


def test_qualifiers() -> None:
    doors = Doors()
    for query, qualifier in [
        (b"", "LATEST"),
        (b"?qualifier=", "LATEST"),
        (b"?qualifier=7", "7"),
        (b"?a=b&qualifier=LATEST&c", "LATEST"),
        (b"?qualifier=%37", "7"),
        (b"?xqualifier=7", "LATEST"),
    ]:
        assert doors.match(b"POST", b"/invoke/f" + query, b"", []) == Route(
            "invoke", "f", qualifier
        )
        fc = b"/2023-03-30/functions/f/invocations" + query
        assert doors.match(b"POST", fc, b"", []) == Route("fc_api", "f", qualifier)


def test_tencent_s_form_needs_its_header_and_post_root() -> None:
    doors = Doors()
    header = [(b"x-tc-action", b"Invoke")]
    assert doors.match(b"POST", b"/", b"", header) == Route("tencent_api", "", needs_body=True)
    assert doors.match(b"POST", b"/", b"", []) is None
    assert doors.match(b"GET", b"/", b"", header) is None
    assert doors.match(b"POST", b"/invoke/f", b"", header) == Route("invoke", "f")


def test_a_host_outside_the_domain_is_no_function() -> None:
    doors = Doors("fn.example")
    for host in (b"fn.example", b"hellofn.example", b"hello.fn.example.org", b""):
        assert doors.match(b"GET", b"/x", host, []) is None
    nothing = doors.match(b"GET", b"/x", b".fn.example", [])
    assert nothing == Route("host", "", target=b"/x")


def test_options_of_an_event_call() -> None:
    assert call_options([]) == (False, False)
    headers = [(b"X-Fc-Log-Type", b"Tail"), (b"X-FC-Invocation-Type", b"Async")]
    assert call_options(headers) == (True, True)
    assert call_options([(b"X-Fc-Log-Type", b"None")]) == (False, False)
