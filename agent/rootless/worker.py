"""One worker process as `supervise` sees it: its pid, and the two pipes of `protocol.py`.

Survives an exec of the supervisor as plain numbers. When it is started, told and replaced is
`supervise`'s and `swap`'s.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from agent.rootless import child, protocol
from agent.rootless.sockets import OpenSockets


@dataclass(slots=True)
class Worker:
    """A worker and our ends of its pipes, -1 once closed. Close it when its end was seen."""

    pid: int
    heard: int
    telling: int
    _lines: protocol.Lines = field(default_factory=protocol.Lines)

    def tell(self, word: str) -> None:
        """Give an order; one that is gone does not hear it."""
        with suppress(OSError):
            os.write(self.telling, f"{word}\n".encode())

    def hear(self) -> list[str] | None:
        """Return the lines that have come; None once it has closed its end."""
        try:
            data = os.read(self.heard, protocol.MAX_LINE_BYTES)
        except BlockingIOError:
            return []
        return self._lines.feed(data) if data else None

    def close(self) -> None:
        """Close both pipes; safe to call twice."""
        for descriptor in (self.heard, self.telling):
            if descriptor >= 0:
                os.close(descriptor)
        self.heard = self.telling = -1

    def save(self) -> list[int]:
        """Return what `restored` takes after an exec that lets the pipes through."""
        return [self.pid, self.heard, self.telling]

    @classmethod
    def restored(cls, saved: Sequence[int]) -> Worker:
        """Return the worker of before an exec."""
        pid, heard, telling = saved
        for descriptor in (heard, telling):
            if descriptor >= 0:
                os.set_inheritable(descriptor, False)
        return cls(pid, heard, telling)


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    config: Path,
    held: OpenSockets,
) -> Worker:
    """Start a worker with the sockets it is to serve on; it dies with this process.

    Raises OSError when there is no process or descriptor for it; nothing is open then.
    """
    with ExitStack() as ours, ExitStack() as its:
        heard, its_telling = _pipe(ours, its)
        its_hearing, telling = _pipe(its, ours)
        os.set_blocking(heard, False)
        given = _given(config, held, its_telling, its_hearing)
        keep = (its_telling, its_hearing, *(descriptor for _, descriptor in held.values()))
        pid = child.start(command, {**environment, **given}, keep=keep)
        ours.pop_all()
    return Worker(pid, heard, telling)


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """Open a pipe whose ends are closed with these."""
    ends = os.pipe()
    reader.callback(os.close, ends[0])
    writer.callback(os.close, ends[1])
    return ends


def _given(config: Path, held: OpenSockets, telling: int, hearing: int) -> dict[str, str]:
    descriptors = {name: descriptor for name, (_, descriptor) in held.items()}
    return {
        protocol.CONFIG_VARIABLE: str(config),
        protocol.FDS_VARIABLE: json.dumps(descriptors),
        protocol.TELL_VARIABLE: str(telling),
        protocol.HEAR_VARIABLE: str(hearing),
    }
