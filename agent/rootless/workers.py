"""The worker processes of one house: started, listened to, let go when they have handed over.

What they say goes to `heard`, a line at a time; what follows from it is `supervise`'s. A pid is
used only until its end has been seen by the one who collects children.
"""

from __future__ import annotations

import os
import selectors
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from agent.rootless import ending, notify
from agent.rootless.sockets import OpenSockets
from agent.rootless.worker import Worker, start

# How long a replaced worker may go on finishing what it holds: the longest call of any contract
# (86,400 s, agent/model/limits.py), and what comes before and after it.
RETIRE_S = 86_400.0 + 3_600.0

Heard = Callable[[Worker, str, str], None]


class Workers:
    """All of them. `passing` is the pair over which they pass connections on."""

    def __init__(
        self, selector: selectors.BaseSelector, passing: OpenSockets, heard: Heard
    ) -> None:
        self.passing = passing
        self.retiring: dict[int, float] = {}
        """Those that finish calls: pid to the monotonic time at which they are killed."""
        self._selector = selector
        self._heard = heard

    def start(
        self, command: list[str], environment: Mapping[str, str], config: Path, held: OpenSockets
    ) -> Worker:
        """Start a worker with the sockets it is to serve on, and listen to it."""
        return self._listen(start(command, environment, config, {**held, **self.passing}))

    def restored(self, saved: list[int]) -> Worker:
        """Return the worker of before an exec, listened to again."""
        return self._listen(Worker.restored(saved))

    def _listen(self, worker: Worker) -> Worker:
        if worker.heard >= 0:  # else it closed its end before an exec of ours
            self._selector.register(worker.heard, selectors.EVENT_READ, lambda: self.hear(worker))
        return worker

    def hear(self, worker: Worker) -> None:
        """Take what a worker has said; nothing once its end is closed."""
        lines = worker.hear() if worker.heard >= 0 else []
        if lines is None:
            self._selector.unregister(worker.heard)
            os.close(worker.heard)
            worker.heard = -1
        for line in lines or ():
            word, _, text = line.partition(" ")
            self._heard(worker, word, text)

    def forget(self, worker: Worker) -> None:
        """Close the pipes of a worker that has ended or has handed over."""
        if worker.heard >= 0:
            self._selector.unregister(worker.heard)
        worker.close()

    def retire(self, worker: Worker, now: float) -> None:
        """Let a worker that has handed over end by itself."""
        self.forget(worker)
        self.retiring[worker.pid] = now + RETIRE_S
        notify.say("supervise", f"worker {worker.pid} finishes its calls and makes room")

    def kill_overdue(self, now: float) -> None:
        """Kill the retired ones whose time is over."""
        for pid, until in list(self.retiring.items()):
            if now >= until:
                notify.say("supervise", f"worker {pid} still had calls after its time: killed")
                self.retiring[pid] = now + RETIRE_S
                ending.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the pair."""
        for _, descriptor in self.passing.values():
            os.close(descriptor)
