"""Lines out of bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.core.logtail import MAX_LINE_BYTES, Framer, OutputLine


def texts(lines: list[OutputLine]) -> list[bytes]:
    return [line.text for line in lines]


def test_lines_carry_stream_and_the_time_they_were_completed():
    framer = Framer("stderr")
    assert framer.feed(b"hel", 1) == []
    assert framer.feed(b"lo\nwor", 2) == [OutputLine(2, "stderr", b"hello")]
    assert framer.flush(3) == [OutputLine(3, "stderr", b"wor")]
    assert framer.flush(4) == []


def test_windows_line_ends_and_empty_lines():
    assert texts(Framer("stdout").feed(b"a\r\n\n\r\nb\rc\n", 0)) == [b"a", b"", b"", b"b\rc"]


def test_a_line_over_32_kb_is_split_and_marked():
    framer = Framer("stdout")
    lines = framer.feed(b"x" * (2 * MAX_LINE_BYTES + 5) + b"\n", 1)
    assert [(len(line.text), line.split) for line in lines] == [
        (MAX_LINE_BYTES, True),
        (MAX_LINE_BYTES, True),
        (5, False),
    ]


def test_a_line_of_exactly_32_kb_is_whole():
    (line,) = Framer("stdout").feed(b"x" * MAX_LINE_BYTES + b"\n", 1)
    assert not line.split


def test_a_stream_without_newlines_is_not_kept():
    framer = Framer("stdout")
    total = 0
    for _ in range(100):
        total += sum(len(line.text) for line in framer.feed(b"x" * 10_000, 1))
        assert len(framer._rest) <= MAX_LINE_BYTES
    assert total + len(framer._rest) == 1_000_000


@given(st.lists(st.binary(max_size=40)), st.data())
def test_however_the_bytes_come_the_lines_are_the_same(lines, data):
    stream = b"".join(line.replace(b"\n", b"") + b"\n" for line in lines)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6).map(sorted))
    framer, found = Framer("stdout"), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += framer.feed(stream[begin:end], 0)
    assert texts(found) == texts(Framer("stdout").feed(stream, 0))
    assert framer.flush(0) == []


@given(st.lists(st.binary(min_size=1, max_size=100_000), max_size=6))
def test_no_byte_is_lost_and_no_line_too_long(chunks):
    framer, lines = Framer("stdout"), []
    for chunk in chunks:
        lines += framer.feed(chunk, 0)
    lines += framer.flush(0)
    assert all(len(line.text) <= MAX_LINE_BYTES for line in lines)
    rebuilt = b"".join(line.text if line.split else line.text + b"\n" for line in lines)
    sent = b"".join(chunks).replace(b"\r\n", b"\n")
    if not any(line.split for line in lines):
        assert rebuilt.rstrip(b"\n") == sent.rstrip(b"\n")
