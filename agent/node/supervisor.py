"""The worker's side of the pipes to `supervise`: what it tells, and the orders it waits for.

The words are `agent/rootless/protocol.py`'s. Telling never blocks and never fails the worker.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

from agent.rootless import protocol

READ_BYTES = 4096


class SupervisorPipes:
    """Both pipes. Made on the running loop; either may be missing where nobody supervises."""

    def __init__(self, tell: int, hear: int) -> None:
        self._tell = tell
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._lines = protocol.Lines()
        self.go = self._loop.create_future()
        """Resolved when this worker is to take over."""
        self.hand_over = self._loop.create_future()
        """Resolved when this worker is to make room."""
        if hear >= 0:
            os.set_blocking(hear, False)
            self._loop.add_reader(hear, self._readable)
        else:
            self.go.set_result(None)

    def tell(self, word: str, text: str = "") -> None:
        """Tell the supervisor something."""
        if self._tell >= 0:
            with suppress(OSError):
                os.write(self._tell, protocol.line(word, text))

    @staticmethod
    def from_environment() -> SupervisorPipes:
        """Return the pipes that the supervisor handed over."""
        named = (protocol.TELL_VARIABLE, protocol.HEAR_VARIABLE)
        tell, hear = (int(os.environ.get(name, "-1")) for name in named)
        return SupervisorPipes(tell, hear)

    def ask_reload(self) -> None:
        """Ask for a reload, as HUP to `kindling run` does."""
        self.tell(protocol.RELOAD)

    def ask_engine(self, name: str, *, stuck: bool = False, rest: bool = False) -> None:
        """Ask for an engine to run from now on; a `stuck` one is ended, and runs again.

        One that is to `rest` is ended, and what it has on disk set aside.
        """
        ending = protocol.REST if rest else protocol.STUCK
        self.tell(ending if rest or stuck else protocol.ENGINE, name)

    def close(self) -> None:
        """Close both pipes; safe to call twice."""
        if self._hear >= 0:
            self._loop.remove_reader(self._hear)
        for fd in (self._tell, self._hear):
            if fd >= 0:
                os.close(fd)
        self._tell = self._hear = -1

    def _readable(self) -> None:
        try:
            data = os.read(self._hear, READ_BYTES)
        except BlockingIOError:
            return
        if not data:  # it is gone, and we with it (PR_SET_PDEATHSIG)
            self._loop.remove_reader(self._hear)
            os.close(self._hear)
            self._hear = -1
        for word in self._lines.feed(data):
            order = {protocol.GO: self.go, protocol.HAND_OVER: self.hand_over}.get(word)
            if order is not None and not order.done():
                order.set_result(None)
