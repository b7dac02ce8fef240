"""The one thread that lives in the detached network namespace, and how the loop asks it for work.

It makes sockets for the invoke path, netlink changes and nft runs, one job after another; sockets
go first. A small stock of ready-made sockets lets a warm call take one without waiting. What a job
does stands in the other modules of this room; nothing here knows a bridge or a slot.
"""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from agent.errors import RuntimeUnavailable
from agent.network import namespace

T = TypeVar("T")
Socket = socket.socket

# Sockets kept ready. A burst past this waits about 30 us for each further one.
STOCK = 64
_REFILL_BELOW = STOCK // 2
# Socket jobs overtake all others: a call may be waiting for one.
_URGENT, _ORDINARY, _LAST = 0, 1, 2


@dataclass(order=True, slots=True)
class _Job:
    urgency: int
    order: int
    run: Callable[[], Any] = field(compare=False)
    answer: asyncio.Future[Any] = field(compare=False)
    discard: Callable[[Any], object] | None = field(compare=False)


class NetworkThread:
    """Runs jobs inside the network namespace at `netns`. Made and used on the loop's thread."""

    def __init__(self, netns: Path) -> None:
        self._netns = netns
        self._jobs: queue.PriorityQueue[_Job] = queue.PriorityQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._order = 0
        self._stock: deque[Socket] = deque()
        self._refilling = False
        self._home = -1

    def __repr__(self) -> str:
        alive = self._thread is not None and self._thread.is_alive()
        return f"<NetworkThread alive={alive} jobs={self._jobs.qsize()} stock={len(self._stock)}>"

    @property
    def home(self) -> int:
        """The descriptor of the detached namespace; use it on the thread only."""
        return self._home

    async def start(self) -> None:
        """Start the thread, enter the namespace and fill the stock of sockets.

        Raises RuntimeUnavailable naming the namespace when it cannot be used.
        """
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="kindling-net", daemon=True)
        self._thread.start()
        try:
            self._home = await self.call(self._enter, discard=os.close)
            self._stock.extend(await self.call(_sockets, discard=_close_all))
        except BaseException as error:
            await self.stop()
            if isinstance(error, OSError):
                raise RuntimeUnavailable(
                    f"network namespace {self._netns} cannot be used: {error.strerror}"
                ) from error
            raise

    async def stop(self) -> None:
        """Let the jobs already given end, then end the thread and close the stock."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        end = self._submit(_LAST, _leave, None)
        await asyncio.to_thread(thread.join)
        end.cancel()
        while self._stock:
            self._stock.pop().close()
        if self._home >= 0:
            os.close(self._home)
            self._home = -1

    async def call(
        self, run: Callable[..., T], *args: Any, discard: Callable[[T], object] | None = None
    ) -> T:
        """Run `run(*args)` on the thread and return what it returns, or raise what it raises.

        When the caller is cancelled the job still runs; `discard` then gets its result, on the
        loop's thread, so that nothing made for a caller who has gone is lost.
        """
        return await self._wait(_ORDINARY, lambda: run(*args), discard)

    async def socket(self) -> Socket:
        """Return a new non-blocking TCP socket of the functions' network."""
        ready = self.take_socket()
        if ready is not None:
            return ready
        return await self._wait(_URGENT, new_socket, Socket.close)

    def take_socket(self) -> Socket | None:
        """Return a ready-made socket at once, or None when the stock is empty."""
        if len(self._stock) <= _REFILL_BELOW:
            self._refill()
        return self._stock.popleft() if self._stock else None

    def _refill(self) -> None:
        if self._refilling or self._thread is None or self._loop is None:
            return
        self._refilling = True
        answer = self._submit(_URGENT, _sockets, _close_all)
        answer.add_done_callback(self._refilled)

    def _refilled(self, answer: asyncio.Future[list[Socket]]) -> None:
        self._refilling = False
        if answer.cancelled() or answer.exception() is not None:
            return
        if self._thread is None:
            _close_all(answer.result())
        else:
            self._stock.extend(answer.result())

    async def _wait(
        self, urgency: int, run: Callable[[], T], discard: Callable[[T], object] | None
    ) -> T:
        if self._thread is None:
            raise RuntimeUnavailable("the network thread is not running")
        answer = self._submit(urgency, run, discard)
        try:
            return await answer
        except asyncio.CancelledError:
            # The answer may have come in the same turn as the cancellation.
            came = answer.done() and not answer.cancelled() and answer.exception() is None
            if came and discard is not None:
                discard(answer.result())
            raise

    def _submit(
        self, urgency: int, run: Callable[[], T], discard: Callable[[T], object] | None
    ) -> asyncio.Future[T]:
        assert self._loop is not None
        self._order += 1
        answer: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(urgency, self._order, run, answer, discard))
        return answer

    # -- on the thread

    def _enter(self) -> int:
        # SAFETY: this is our own thread, which no other code runs on; see namespace.enter.
        fd = os.open(self._netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            namespace.enter(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _work(self) -> None:
        assert self._loop is not None
        while True:
            job = self._jobs.get()
            if job.run is _leave:
                return
            result, error = None, None
            try:
                result = job.run()
            except BaseException as failed:  # whatever it is, it belongs to the asker
                error = failed
            try:
                self._loop.call_soon_threadsafe(_deliver, job, result, error)
            except RuntimeError:  # the loop is closed: nobody is left to ask or to answer
                return
            del job, result, error  # keep nothing alive while waiting


def _deliver(job: _Job, result: Any, error: BaseException | None) -> None:
    if job.answer.cancelled():
        if error is None and job.discard is not None:
            job.discard(result)
    elif error is not None:
        job.answer.set_exception(error)
    else:
        job.answer.set_result(result)


def new_socket() -> Socket:
    """Make a TCP socket in the calling thread's namespace: non-blocking, no delay."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def _sockets() -> list[Socket]:
    made: list[Socket] = []
    try:
        while len(made) < STOCK:
            made.append(new_socket())
    except OSError as error:
        if error.errno not in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS} or not made:
            _close_all(made)
            raise
    return made


def _close_all(sockets: Iterable[Socket]) -> None:
    for one in sockets:
        one.close()


def _leave() -> None:
    """Stand for the end of the thread; never run."""
