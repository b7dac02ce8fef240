"""A container's stdout and stderr: two FIFOs, read on the loop and framed into stamped lines.

The reader opens the FIFOs before Tasks.Create; the shim holds both ends of them, so that a dead
worker only means back-pressure and the next one goes on reading. Each wake-up reads a bounded
amount, so a function that floods its log cannot starve calls. What a line is decides
`agent/core/logtail.py`; where it goes, the sink.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.core.logtail import Framer, OutputLine
from agent.linux import trees

READ_BYTES = 64 * 1024
DRAIN_READS = 16  # a pipe can be set to hold 1 MB (fcntl(2), F_SETPIPE_SZ)
REMOVE_S = 5.0  # two FIFOs in memory, on the loop: microseconds, unless the host is stuck
STREAMS = ("stdout", "stderr")

Sink = Callable[[OutputLine], None]


@contextlib.contextmanager
def held_open(fifos: Path) -> Iterator[None]:
    """Be a reader of every container's FIFOs, without reading, below `fifos`.

    A worker that dies during a create leaves a shim that waits for a reader for ever and answers
    nothing meanwhile, neither for its other containers. What is in the FIFOs stays there.
    """
    held: list[int] = []
    try:
        for stream in STREAMS:
            for path in fifos.glob(f"*/{stream}"):
                with contextlib.suppress(FileNotFoundError):
                    held.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        yield
    finally:
        for fd in held:
            os.close(fd)


class Output:
    """The two FIFOs of one container below `directory`."""

    def __init__(self, directory: Path, sink: Sink) -> None:
        self.directory = directory
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._fds: dict[str, int] = {}
        self._framers = {stream: Framer(stream) for stream in STREAMS}
        self._over: asyncio.Future[None] = self._loop.create_future()

    def path(self, stream: str) -> Path:
        """Return the FIFO of a stream."""
        return self.directory / stream

    def open(self) -> None:
        """Make the FIFOs, or find those of an adopted container, and start to read them."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for stream in STREAMS:
            with contextlib.suppress(FileExistsError):
                os.mkfifo(self.path(stream), 0o600)
            fd = os.open(self.path(stream), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._fds[stream] = fd
            self._loop.add_reader(fd, self._readable, stream)

    def _readable(self, stream: str) -> None:
        if not self._read(stream):
            self._finish(stream)

    def _read(self, stream: str) -> bool:
        """Read once and hand the whole lines on; False at the end of the stream."""
        try:
            data = os.read(self._fds[stream], READ_BYTES)
        except BlockingIOError:
            return True
        if not data:
            return False
        for line in self._framers[stream].feed(data, time.time_ns()):
            self._sink(line)
        return True

    async def ended(self, within_s: float) -> None:
        """Wait until both streams have ended and everything that was written has been read.

        The shim copies the output, so the last lines of a process may come after its exit; it
        closes the FIFOs behind them. Returns after `within_s` seconds whatever is left.
        """
        await asyncio.wait({self._over}, timeout=within_s)
        self.drain()

    def say(self, text: str) -> None:
        """Put a line of the platform's among those of the container."""
        self._sink(OutputLine(time.time_ns(), "platform", text.encode()))

    def drain(self) -> None:
        """Read what is in the FIFOs now, bounded."""
        for stream, fd in list(self._fds.items()):
            with contextlib.suppress(BlockingIOError):
                for _ in range(DRAIN_READS):
                    data = os.read(fd, READ_BYTES)
                    if not data:
                        self._finish(stream)
                        break
                    for line in self._framers[stream].feed(data, time.time_ns()):
                        self._sink(line)

    def close(self) -> None:
        """Hand on what is left, even without a newline, and remove the FIFOs."""
        for stream in STREAMS:
            self._finish(stream)
        trees.remove(self.directory, within_s=REMOVE_S)

    def _finish(self, stream: str) -> None:
        """Hand on the stream's last line even without a newline, and read it no more."""
        for line in self._framers[stream].flush(time.time_ns()):
            self._sink(line)
        self._shut(stream)

    def detach(self) -> None:
        """Stop reading and leave the FIFOs to the next worker."""
        for stream in list(self._fds):
            self._shut(stream)

    def _shut(self, stream: str) -> None:
        fd = self._fds.pop(stream, -1)
        if fd >= 0:
            self._loop.remove_reader(fd)
            os.close(fd)
        if not self._fds and not self._over.done():
            self._over.set_result(None)
