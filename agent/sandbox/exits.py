"""The exit of a container's first process, noticed by the kernel's pidfd.

A pidfd tells of the exit at once and also for containers whose shim sends no event (anchored
shims). It does not carry the exit status: `agent/sandbox/container.py` asks containerd for that.
"""

from __future__ import annotations

import asyncio
import os
import select

from agent.linux import process


class ProcessExit:
    """Watches one process of ours; `done` is resolved once, when it has exited.

    Must be made on the event loop's thread. Raises ProcessLookupError if there is no such process.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()
        # SAFETY: a pidfd names this very process; it cannot be confused with a later one that gets
        # the same number, as long as the process is not reaped when it is opened. The shim reaps
        # the container's init only on its exit, and callers check the task's state afterwards.
        self._fd = os.pidfd_open(pid)
        self._loop.add_reader(self._fd, self._exited)

    def _exited(self) -> None:
        self.close()
        if not self.done.done():
            self.done.set_result(None)

    @property
    def exited(self) -> bool:
        """Whether it has exited, also when the loop has not come to notice it yet."""
        if self._fd < 0:
            return self.done.done()
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    def send(self, number: int) -> bool:
        """Send it a signal; False when it has exited or is not ours to signal."""
        if self._fd < 0:
            return False
        # SAFETY: by the pidfd it cannot hit a later process of the same number.
        return process.send(self._fd, number)

    def close(self) -> None:
        """Stop watching; safe to call twice."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
