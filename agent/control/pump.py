"""Accepts on a socket that the supervisor holds and pumps bytes to one that grpcio listens on.

grpcio cannot adopt a listening descriptor, and the held socket must outlive the worker: so that a
caller who comes while workers change waits in the kernel's queue instead of being refused. The pump
knows nothing of what it carries but where frames end (`goaway.py`). One link is two protocols and
no task; a link that cannot be written to stops being read; at the limit of links nothing is
accepted until one ends.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import cast

from agent.aio.tasks import spawn
from agent.control.goaway import GOAWAY, FrameWatch

log = logging.getLogger(__name__)

ACCEPTS_PER_TICK = 16  # other callbacks of the loop come in between
PAUSE_S = 0.5  # after an error of accept, such as no descriptors left
CLOSE_S = 5.0  # an aborted transport reports its end within a turn or two of the loop


class _End(asyncio.Protocol):
    """One end of a link; what comes in here goes out at `other`."""

    def __init__(self, link: _Link) -> None:
        self.link = link
        self.transport: asyncio.Transport | None = None
        self.other: _End
        self.early: list[bytes] = []
        self.early_eof = False
        self.silent = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        for data in self.early:
            self.transport.write(data)
        self.early.clear()
        if self.early_eof:
            self.transport.write_eof()

    def data_received(self, data: bytes) -> None:
        self.other.send(data)

    def eof_received(self) -> bool:
        """Pass a half-close on; the other direction stays open until it ends as well."""
        self.silent = True
        self.other.send_eof()
        if self.other.silent:
            self.link.close()
        return True

    def pause_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.link.lost(self)

    def send(self, data: bytes) -> None:
        """Write, or keep the first bytes until this end is connected."""
        if self.transport is None:
            self.early.append(data)
        elif not self.transport.is_closing():
            self.transport.write(data)

    def send_eof(self) -> None:
        """Close this end's sending half after what was written."""
        if self.transport is None:
            self.early_eof = True
        elif not self.transport.is_closing():
            self.transport.write_eof()


class _CallerEnd(_End):
    """The end at the caller, who can be asked to come back on another connection."""

    def __init__(self, link: _Link) -> None:
        super().__init__(link)
        self.frames = FrameWatch()
        self.asking = False

    def send(self, data: bytes) -> None:
        place = self.frames.feed(data)
        if self.asking and place is not None:
            self.asking = False
            data = data[:place] + GOAWAY + data[place:]
        super().send(data)

    def ask_away(self) -> None:
        """Put a GOAWAY between two frames, now or as soon as there is a place."""
        if self.frames.between_frames:
            super().send(GOAWAY)
        else:
            self.asking = True


class _Link:
    """A caller's connection and its twin to the target, ended together."""

    def __init__(self, pump: Pump, sock: socket.socket) -> None:
        self.pump = pump
        self.sock = sock
        self.caller = _CallerEnd(self)
        self.target = _End(self)
        self.caller.other, self.target.other = self.target, self.caller
        self.broken = False

    async def open(self, path: str) -> None:
        """Connect both ends. Not to be cancelled: uvloop forgets to report a transport's end then.

        It takes a few turns of the loop, since a unix connect succeeds or fails at once.
        """
        loop = asyncio.get_running_loop()
        twin = socket.socket(socket.AF_UNIX)
        try:
            twin.setblocking(False)
            twin.connect(path)
            await loop.connect_accepted_socket(lambda: self.target, twin)
            if not self.broken:
                await loop.connect_accepted_socket(lambda: self.caller, self.sock)
        except OSError as error:
            log.warning("%s: no connection to %s: %r", self.pump.name, path, error)
        finally:
            if self.target.transport is None:
                twin.close()
            if self.caller.transport is None:
                # Refused, or one of the two was faster gone than we were here.
                self.sock.close()
                self.broken = True
                self.abort()
                self._ended()

    def lost(self, end: _End) -> None:
        """Let what was written at the other end still go out, then close it."""
        self.broken = True
        if end.other.transport is not None:
            end.other.transport.close()
        self._ended()

    def close(self) -> None:
        """End both connections after what was written has gone out."""
        for end in (self.caller, self.target):
            if end.transport is not None:
                end.transport.close()

    def abort(self) -> None:
        """End both connections now; unsent bytes are dropped."""
        for end in (self.caller, self.target):
            if end.transport is not None:
                end.transport.abort()

    def _ended(self) -> None:
        if self.caller.transport is None and self.target.transport is None:
            self.pump.forget(self)


class Pump:
    """Every connection of one held socket. `start` begins to accept."""

    def __init__(self, name: str, listener: socket.socket, path: str, max_links: int) -> None:
        self.name = name
        self._listener = listener
        self._path = path
        self._max_links = max_links
        self._links: dict[_Link, asyncio.Task[None]] = {}
        self._accepting = False
        self._wanted = False
        self._retry: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    def __repr__(self) -> str:
        """Return the name, how many links there are and whether it accepts."""
        state = "accepting" if self._accepting else "full" if self._wanted else "closed"
        return f"<Pump {self.name} {len(self._links)}/{self._max_links} {state}>"

    @property
    def links(self) -> int:
        """How many connections are open."""
        return len(self._links)

    def start(self) -> None:
        """Begin to accept. The socket stays the caller's: it is never closed here."""
        self._listener.setblocking(False)
        self._wanted = True
        self._resume()

    def stop_accepting(self) -> None:
        """Accept no more; open connections go on. Others may accept on the same socket."""
        self._wanted = False
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._pause()

    def leave(self) -> None:
        """Accept no more, and ask every caller to open its next call on a new connection."""
        self.stop_accepting()
        for link in self._links:
            link.caller.ask_away()

    async def emptied(self, within_s: float) -> bool:
        """Wait until every connection has ended by itself; False when time is up."""
        try:
            async with asyncio.timeout(within_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Accept no more and end every connection; returns when they are gone."""
        self.stop_accepting()
        if self._links:
            await asyncio.wait(self._links.values(), timeout=CLOSE_S)
        for link in list(self._links):
            link.abort()
        if not await self.emptied(CLOSE_S):
            log.warning("%s: %d connections did not end", self.name, len(self._links))

    def forget(self, link: _Link) -> None:
        """Note that a link has ended; there is room for another."""
        if self._links.pop(link, None) is None:
            return
        if not self._links:
            self._empty.set()
        if self._wanted and not self._accepting and self._retry is None:
            self._resume()

    def _resume(self) -> None:
        self._retry = None
        if not self._accepting:
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)
            self._accepting = True

    def _pause(self) -> None:
        if self._accepting:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._accepting = False

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TICK):
            if len(self._links) >= self._max_links:
                log.warning(
                    "%s: %d connections, the limit; further ones wait", self.name, self.links
                )
                self._pause()
                return
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("%s: accept failed: %r; again in %.1f s", self.name, error, PAUSE_S)
                self._pause()
                self._retry = asyncio.get_running_loop().call_later(PAUSE_S, self._resume)
                return
            sock.setblocking(False)
            link = _Link(self, sock)
            self._empty.clear()
            self._links[link] = spawn(f"{self.name}-open", link.open(self._path))
