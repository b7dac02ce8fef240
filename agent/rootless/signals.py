"""Signals as something to wait for: an inbox and a descriptor that becomes readable.

For the single-threaded loops of `supervise` and `parent`. A handler here only notes; the loop acts.
"""

from __future__ import annotations

import faulthandler
import signal
import socket
from contextlib import suppress

STOP = (signal.SIGTERM, signal.SIGINT)
_WATCHED = (*STOP, signal.SIGHUP, signal.SIGCHLD)


class Inbox:
    """Stop and reload signals in the order they came; child ends only wake the loop."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.reader, writer = socket.socketpair()
        self.reader.setblocking(False)
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
        for number in _WATCHED:
            signal.signal(number, self._note)
        # For whoever asks what hangs: the stacks go to stderr, which is the log.
        faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
        # They may have been blocked over an exec of our own.
        unblock()

    def _note(self, number: int, _: object) -> None:
        if number != signal.SIGCHLD:
            self.asked.append(number)

    def drain(self) -> None:
        """Empty the wake-up descriptor; what was asked stays in `asked`."""
        with suppress(BlockingIOError):
            while self.reader.recv(256):
                pass

    def wants_stop(self) -> bool:
        """Return whether somebody asked for the end."""
        return any(number in STOP for number in self.asked)

    def blocked(self) -> bool:
        """Let signals wait for an exec; return False, and let them come, if a stop came before."""
        block()
        # What arrived before is in `asked` by now: only what comes later waits.
        if not self.wants_stop():
            return True
        unblock()
        return False


def block() -> None:
    """Let signals wait until the next `Inbox`, which may be made after an exec."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)


def unblock() -> None:
    """Let signals come again."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
