"""Tables and figures for people: rich on a terminal, aligned plain text in a pipe.

Plain text is never cut or wrapped, so that `grep` and `awk` see whole values. What scripts should
read is `--json`; see `answer.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import click

GREEN = frozenset({"FROZEN", "READY", "Ready", "Succeeded"})
RED = frozenset({"FAILED", "Failed"})
_BAR_WIDTH = 40


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their columns' names."""
    if sys.stdout.isatty():
        _print_rich(columns, rows)
        return
    lines = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(columns))]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_style(cell)) for cell in row))
    Console(highlight=False).print(table)


def _style(cell: str) -> str:
    if cell in GREEN:
        return "green"
    return "red" if cell in RED else ""


def size(count: float) -> str:
    """Return a number of bytes as people read it: `8.1 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def ago(at: str | None) -> str:
    """Return how long ago a time (RFC 3339) was, as people say it: `5 min ago`."""
    if at is None:
        return "-"
    passed_s = (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if passed_s >= seconds:
            return f"{passed_s // seconds:.0f} {unit} ago"
    return "just now"


def short(digest: str) -> str:
    """Return the beginning of a digest, as long as is told apart in practice."""
    return digest.removeprefix("sha256:")[:12]


def bars(parts: Sequence[tuple[str, float]], total: float) -> list[str]:
    """Return one line per part: name, milliseconds, and a bar of its share of the total."""
    lines = []
    begun = 0.0
    for name, value in parts:
        before = round(_BAR_WIDTH * begun / total) if total > 0 else 0
        begun += value
        after = round(_BAR_WIDTH * begun / total) if total > 0 else 0
        lines.append(f"  {name:<7}{value:8.2f} ms  {' ' * before}{'█' * (after - before)}".rstrip())
    return lines
