"""Progress of a long transfer: bars on a terminal's stderr, nothing in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[str, int, int], None]
"""Tells the progress of one part: its name, bytes done, bytes in all (0: not known)."""


@contextmanager
def bars() -> Iterator[Advance]:
    """Show a bar per part, with pace and time left, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _part, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        parts: dict[str, TaskID] = {}

        def advance(part: str, done: int, total: int) -> None:
            if part not in parts:
                parts[part] = progress.add_task(part.strip(), total=None)
            progress.update(parts[part], completed=done, total=total or None)

        yield advance
