"""Lines out of bytes, the tail of them, and whose they are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.core.logtail import LINE_OVERHEAD_BYTES, MAX_LINE_BYTES, Framer, Line, Tail, owners


def texts(lines: list[Line]) -> list[bytes]:
    return [line.text for line in lines]


def test_lines_carry_stream_and_the_time_they_were_completed():
    framer = Framer("stderr")
    assert framer.feed(b"hel", 1) == []
    assert framer.feed(b"lo\nwor", 2) == [Line(2, "stderr", b"hello")]
    assert framer.flush(3) == [Line(3, "stderr", b"wor")]
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


def test_the_tail_is_bounded_and_drops_the_oldest():
    tail = Tail(10 * (10 + LINE_OVERHEAD_BYTES))
    for n in range(1000):
        tail.add(Line(n, "stdout", b"%010d" % n))
    assert len(tail) == 10
    assert texts(tail.last_lines(2)) == [b"0000000998", b"0000000999"]
    assert tail.last_lines(0) == []


def test_a_flood_of_empty_lines_is_bounded():
    tail = Tail(1000)
    for n in range(10_000):
        tail.add(Line(n, "stdout", b""))
    assert len(tail) <= 1000 // LINE_OVERHEAD_BYTES


def test_one_line_larger_than_the_tail_stays():
    tail = Tail(10)
    tail.add(Line(0, "stdout", b"x" * 100))
    assert len(tail) == 1


def test_the_last_bytes_are_the_end_of_the_output():
    tail = Tail()
    tail.add(Line(0, "stdout", b"one"))
    tail.add(Line(0, "stdout", b"two", split=True))
    tail.add(Line(0, "stderr", b"three"))
    assert tail.last_bytes(4096) == b"one\ntwothree\n"
    assert tail.last_bytes(8) == b"wothree\n"
    assert tail.last_bytes(6) == b"three\n"
    assert tail.last_bytes(3) == b"ee\n"


def test_a_line_belongs_to_the_only_call():
    assert owners(b"hello", ["r1"]).calls == ("r1",)
    assert not owners(b"hello", ["r1"]).shared
    assert owners(b"hello", []).calls == ()


def test_among_several_calls_the_named_one_owns_the_line():
    assert owners(b"req r2 done", ["r1", "r2"]).calls == ("r2",)
    assert not owners(b"req r2 done", ["r1", "r2"]).shared


def test_a_line_that_names_nobody_is_shared_by_all():
    found = owners(b"tick", ["r1", "r2"])
    assert found.calls == ("r1", "r2")
    assert found.shared
