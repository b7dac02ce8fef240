"""Replies' heads that differ from call to call by the request id only, made ready to be filled in.

A contract is asked twice, with two ids; where the first answer holds the first id the template gets
a gap. Only if filling in the second id gives the second answer
byte for byte is the template used: a head that depends on anything else is asked of the contract
each time. Templates live beside the heads they were made from (`wire/head.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from agent.contracts.base import Call, CallReport
from agent.errors import FunctionFailed
from agent.gateway.exchanges.answer import mark
from agent.gateway.exchanges.shared import Callee
from agent.gateway.wire.date import date_line, with_one_date
from agent.gateway.wire.head import HeadTemplate, ReplyHead
from agent.gateway.wire.http1 import content_length, reply_head
from agent.model.records import Meters

Random = Callable[[], bytes]
_NO_REPORT: Final = CallReport(Meters())


def _filler(form: bytes, ids: int) -> HeadTemplate:
    """Return the shortest way to fill a form: this runs in every warm call."""
    if ids == 2:
        return lambda request_id: form % (request_id, request_id)
    return lambda request_id: form % ((request_id,) * ids)


def _dated(ids: int, form: bytes) -> HeadTemplate:
    """Return what fills a form with our Date behind its first line, the status line."""
    line, end, rest = form.partition(b"\r\n")
    form = line + end + b"%b" + rest
    if ids == 2:
        return lambda request_id: form % (date_line(), request_id, request_id)
    return lambda request_id: form % (date_line(), *(request_id,) * ids)


def template(
    first: bytes, first_id: str, second: bytes, second_id: str, *, dated: bool = True
) -> HeadTemplate | None:
    """Return the template of two heads of different calls, or None if more than the id varies.

    Replies that are not `dated` get our own Date each time.
    """
    gap = first_id.encode()
    ids = first.count(gap)
    form = _gapped(first, gap)
    made = _filler(form, ids)
    if made(second_id.encode()) != second:
        return None
    return made if dated else _dated(ids, form)


def _gapped(text: bytes, gap: bytes) -> bytes:
    return b"%b".join(piece.replace(b"%", b"%%") for piece in text.split(gap))


def reply_template(
    callee: Callee, head: ReplyHead, call: Call, random: Random
) -> HeadTemplate | None:
    """Return the whole raw head of a warm HTTP reply, for a caller that keeps its connection.

    None when the contract refuses the head, or when more than the request id varies in it.
    """
    if call.method == b"HEAD" or (head.length or 0) > callee.response_bytes > 0:
        return None
    one = replace(call, request_id=callee.new_request_id(random()))
    other = Call(callee.new_request_id(random()), call.kind, b"POST", b"/another", [], "192.0.2.1")
    try:
        first, dated = _reply(callee, head, one)
        second, _ = _reply(callee, head, other)
    except FunctionFailed:
        return None
    return template(first, one.request_id, second, other.request_id, dated=dated)


def _reply(callee: Callee, head: ReplyHead, call: Call) -> tuple[bytes, bool]:
    """Return a reply's head, and whether it has a Date."""
    headers = callee.http_reply(call, head.status, head.headers, _NO_REPORT)
    mark(headers, call.request_id, None)
    headers, dated = with_one_date(headers)
    return reply_head(head.status, headers, content_length(head.length or 0)), dated
