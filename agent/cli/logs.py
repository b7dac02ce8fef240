"""`kindling logs`: what a function wrote, and the platform's own lines in it.

In a pipe a line is time, instance, stream and text, separated by blanks, bytes as they came. On a
terminal control characters are made visible: what a function writes is not to be trusted with it.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from agent.cli import answer
from agent.cli.answer import json_option, print_json
from agent.cli.client import connect

if TYPE_CHECKING:
    from agent._pb.worker.v1 import worker_pb2 as pb

_COLOURS = {"stderr": "red", "platform": "cyan"}
# C0 but the tab, DEL, and C1: ESC and CSI are the ones that do harm.
_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != 9}


@click.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until Ctrl-C.")
@click.option("--tail", type=click.IntRange(min=0), help="Begin with the last so many lines.")
@click.option("--instance", default="", help="Only this instance's lines.")
@click.option("--call", default="", help="Only this call's lines, and those shared with others.")
@json_option
def command(
    name: str, follow: bool, tail: int | None, instance: str, call: str, as_json: bool
) -> None:
    """Print the log of the function NAME: its output, line by line, with time and stream.

    With --json each line is one JSON object.
    """
    from agent._pb.worker.v1 import worker_pb2 as pb

    request = pb.StreamLogsRequest(
        name=name, instance=instance, call=call, follow=follow, tail=tail
    )
    printer = _Printer()
    with connect() as client:
        for line in client.follow("StreamLogs", request, pb.LogLine):
            if as_json:
                print_json(answer.log_line(line))
            else:
                printer.show(line)
    printer.finish()


class _Printer:
    """Prints lines, joining again what was split for its length."""

    def __init__(self) -> None:
        self._open: tuple[str, int] | None = None
        self._tty = sys.stdout.isatty()

    def show(self, line: pb.LogLine) -> None:
        """Print a line, or the next piece of one."""
        source = (line.instance, line.stream)
        if line.dropped:
            click.echo(f"({line.dropped} lines were dropped: too slow a reader)", err=True)
        head = b""
        if self._open != source:
            head = (b"\n" if self._open else b"") + self._head(line)
        text = line.text
        if self._tty:
            text = text.decode("utf-8", "replace").translate(_VISIBLE).encode()
        click.echo(head + text, nl=not line.partial)
        self._open = source if line.partial else None

    def finish(self) -> None:
        """End a line whose last piece never came."""
        if self._open:
            click.echo()

    def _head(self, line: pb.LogLine) -> bytes:
        stream = answer.stream(line)
        at = datetime.fromtimestamp(line.time.seconds, UTC)
        if not self._tty:
            stamp = f"{at:%Y-%m-%dT%H:%M:%S}.{line.time.nanos:09d}Z"
            return f"{stamp} {line.instance or '-'} {stream} ".encode()
        stamp = f"{at.astimezone():%H:%M:%S}.{line.time.nanos // 1_000_000:03d}"
        shown = f"{stamp} {line.instance.rpartition('-')[2]:8} "
        return click.style(shown, fg=_COLOURS.get(stream, "green")).encode()
