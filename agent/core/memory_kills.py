"""Whether an exit was one for memory: a rule over its code and the kernel's counter of kills.

The counter is of the instance's whole cgroup: it tells that some process was killed, never which.
What Docker does (out of memory as soon as any process ever was) blames memory for every later exit.
Here the counter must have risen just before, and the code be that of a process ended by SIGKILL: so
a server that dies with its child keeps its own code, and the kill is a line in its log.

| what happened                                                 | code | risen | by us | memory |
|---------------------------------------------------------------|------|-------|-------|--------|
| the process was killed for memory, an init in front or not    | 137  | now   |       | yes    |
| all processes were, as `memory.oom.group` has it              | 137  | now   |       | yes    |
| a shell's child was, and the shell passes its end on          | 137  | now   |       | yes    |
| it was, and nobody saw how it ended                           | ?    | now   |       | yes    |
| a child was, its parent gives up at once, with a code         | 1    | now   |       |        |
| a child was, its parent goes on and ends well or badly        | 0, 3 | once  |       |        |
| a child was, later somebody inside sends SIGKILL              | 137  | once  |       |        |
| we end it, whatever it did before                             | 137  | now   | yes   |        |
| somebody inside sends SIGKILL                                 | 137  |       |       |        |
| the same, just after another worker took the instance over    | 137  | once  |       |        |
"""

from __future__ import annotations

from dataclasses import dataclass

KILLED = 128 + 9
UNKNOWN = -1  # nobody saw how it ended
RECENT_S = 2.0  # from the kill until a large process is gone and its end was noticed


@dataclass(slots=True)
class MemoryKills:
    """What one instance's counter was at the last look, and when it last rose."""

    count: int = 0
    rose_at: float = float("-inf")

    def look(self, count: int, now: float) -> int:
        """Take the counter's value and return how many kills are new; a group gone reads 0."""
        new = count - self.count
        if new <= 0:
            return 0
        self.count, self.rose_at = count, now
        return new

    def know(self, count: int) -> None:
        """Take the counter's value at a first look: nobody knows when it rose."""
        self.count = max(self.count, count)

    def explain(self, code: int, now: float, *, by_us: bool) -> bool:
        """Say whether an exit seen now was one for memory; look first."""
        return code in (KILLED, UNKNOWN) and not by_us and now - self.rose_at <= RECENT_S


def line(new: int, count: int) -> str:
    """Word new kills for the function's log."""
    what = "1 process was" if new == 1 else f"{new} processes were"
    return f"{what} killed for memory ({count} since the start); memory_mb is the limit"
