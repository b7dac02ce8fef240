"""Children of the supervisor: starting them, and how long to wait before starting them again.

`start` forks and execs with exactly the descriptors named. `Backoff` is a pure rule. Reaping is in
`supervise`, which is the only one to wait for children.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.linux import prctl
from agent.rootless import cgroup

# A daemon that stayed up this long was healthy: its next death starts the series anew.
_HEALTHY_S = 10.0
_FIRST_DELAY_S = 0.25
_MAX_DELAY_S = 10.0


@dataclass(slots=True)
class Backoff:
    """When to start a daemon again: at once the first time, then twice as late each time."""

    failures: int = 0

    def delay_s(self, lived_s: float) -> float:
        """Note one death after `lived_s` seconds of being ready; return the seconds to wait."""
        if lived_s >= _HEALTHY_S:
            self.failures = 0
        self.failures += 1
        if self.failures == 1:
            return 0.0
        exponent = min(self.failures - 2, 16)
        return float(min(_FIRST_DELAY_S * 2**exponent, _MAX_DELAY_S))


def start(
    argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    keep: Collection[int] = (),
    dies_with_parent: int = signal.SIGKILL,
    new_session: bool = False,
    group: Path | None = None,
) -> int:
    """Start `argv` and return its pid.

    Only 0, 1, 2 and the descriptors in `keep` (same numbers) reach it; every other descriptor of
    ours is close-on-exec. It gets the signal `dies_with_parent` (0: none) when this process ends,
    and is put into the cgroup `group` before it runs. A program that cannot be executed ends
    with 127 and says why on stderr.
    """
    parent = os.getpid()
    # SAFETY: this process has one thread, so nothing can hold a lock across the fork. The child
    # never returns from this function: it execs or _exits.
    pid = os.fork()
    if pid:
        return pid
    try:
        if group is not None:
            cgroup.join(group, os.getpid())
        if new_session:
            os.setsid()
        _reset_signals()
        for descriptor in keep:
            os.set_inheritable(descriptor, True)
        if dies_with_parent:
            prctl.die_with_parent(dies_with_parent)
            # The parent may have ended before the request: then nobody would send the signal.
            if os.getppid() != parent:
                os._exit(127)
        os.execvpe(argv[0], list(argv), dict(environment))
    except BaseException as error:
        sys.stderr.write(f"cannot start {argv[0]}: {error}\n")
        sys.stderr.flush()
    finally:
        os._exit(127)


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


def how_ended(status: int) -> str:
    """Say a wait status in words: "exit status 3" or "signal 9 (SIGKILL)"."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"signal {number} ({signal.Signals(number).name})"
        except ValueError:
            return f"signal {number}"
    return f"exit status {os.waitstatus_to_exitcode(status)}"
