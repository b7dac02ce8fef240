"""Function output through real FIFOs: lines, ends, adoption, floods."""

from __future__ import annotations

import asyncio
import os

import pytest

from agent.sandbox.output import DRAIN_READS, READ_BYTES, Output


class Written:
    """What the sink got; `line` waits for the next one."""

    def __init__(self):
        self.lines = []
        self._more = asyncio.Event()

    def __call__(self, line):
        self.lines.append(line)
        self._more.set()

    async def until(self, count):
        async with asyncio.timeout(5):
            while len(self.lines) < count:
                self._more.clear()
                await self._more.wait()
        return [(line.stream, line.text) for line in self.lines]


@pytest.fixture
def sink():
    return Written()


@pytest.fixture
async def output(tmp_path, sink):
    found = Output(tmp_path / "fifo" / "a", sink)
    found.open()
    yield found
    found.close()


def writer(output, stream):
    return os.open(output.path(stream), os.O_WRONLY | os.O_NONBLOCK)


async def test_lines_of_both_streams_arrive_stamped_and_apart(output, sink):
    out, err = writer(output, "stdout"), writer(output, "stderr")
    os.write(out, b"one\ntw")
    os.write(err, b"bad\n")
    await sink.until(2)
    os.write(out, b"o\n")
    assert sorted(await sink.until(3)) == [
        ("stderr", b"bad"),
        ("stdout", b"one"),
        ("stdout", b"two"),
    ]
    assert all(line.time_ns > 0 for line in sink.lines)
    os.close(out)
    os.close(err)


async def test_a_last_line_without_newline_is_kept_at_the_end_of_the_stream(output, sink):
    fds = [writer(output, stream) for stream in ("stdout", "stderr")]
    os.write(fds[0], b"no newline")
    for fd in fds:
        os.close(fd)
    async with asyncio.timeout(5):
        await output.ended(5)
    assert [line.text for line in sink.lines] == [b"no newline"]


async def test_ended_returns_though_a_writer_lives_on(output, sink):
    fd = writer(output, "stdout")
    os.write(fd, b"still here\n")
    await output.ended(0.01)
    assert [line.text for line in sink.lines] == [b"still here"]
    os.close(fd)


async def test_drain_reads_at_once_what_is_there(output, sink):
    fd = writer(output, "stderr")
    os.write(fd, b"last words\n")
    output.drain()
    assert [line.text for line in sink.lines] == [b"last words"]
    os.close(fd)


async def test_one_wake_up_reads_a_bounded_amount(output, sink):
    reads = []
    real = os.read
    fd = writer(output, "stdout")
    os.write(fd, b"x" * 100 + b"\n")

    def read(fd, size):
        reads.append(size)
        return real(fd, size)

    os.read = read
    try:
        output._readable("stdout")
    finally:
        os.read = real
    assert reads == [READ_BYTES]
    assert DRAIN_READS * READ_BYTES >= 1 << 20  # the largest pipe there can be
    os.close(fd)


async def test_a_new_reader_goes_on_where_the_old_one_left(output, sink, tmp_path):
    fd = writer(output, "stdout")
    os.write(fd, b"to the old\n")
    await sink.until(1)
    keeps = os.open(output.path("stdout"), os.O_RDWR)  # the shim holds both ends
    output.detach()
    assert output.path("stdout").exists()
    os.write(fd, b"in between\n")
    later = Written()
    second = Output(output.directory, later)
    second.open()
    os.write(fd, b"to the new\n")
    assert [text for _, text in await later.until(2)] == [b"in between", b"to the new"]
    assert len(sink.lines) == 1
    os.close(fd)
    os.close(keeps)
    second.close()


async def test_close_removes_the_fifos_and_may_be_repeated(output):
    before = len(os.listdir("/proc/self/fd"))
    output.close()
    output.close()
    assert not output.directory.exists()
    assert len(os.listdir("/proc/self/fd")) == before - 2


async def test_an_output_that_was_never_opened_closes_too(tmp_path, sink):
    output = Output(tmp_path / "fifo" / "b", sink)
    output.drain()
    output.close()
    await output.ended(5)
    assert sink.lines == []


async def test_bytes_that_are_no_text_pass(output, sink):
    fd = writer(output, "stdout")
    os.write(fd, b"\xff\x00\xfe\r\n")
    assert await sink.until(1) == [("stdout", sink.lines[0].text)]
    assert b"\xff\x00\xfe" in sink.lines[0].text
    os.close(fd)
