"""A control server with a fake node behind it, in a thread of its own, for the command line."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from agent.cli.group import kindling
from tests.component.control_door import open_doors
from tests.component.control_fake import FakeNode
from tests.schemas import faults


@dataclass
class Agent:
    """A running door; `loop` is where its node lives."""

    node: FakeNode
    socket: str
    loop: asyncio.AbstractEventLoop

    def cli(self, *arguments: str, stdin: bytes = b"") -> Result:
        """Run a command in this process."""
        return CliRunner(env=self.env).invoke(kindling, arguments, input=stdin)

    def json(self, schema: str, *arguments: str) -> Any:
        """Run a command with --json, and check what it prints against its schema."""
        result = self.cli(*arguments, "--json")
        assert result.exit_code == 0, result.stderr
        value = json.loads(result.stdout)
        assert faults(schema, value) == []
        return value

    def json_lines(self, schema: str, *arguments: str) -> list[Any]:
        """Run a command with --json that prints a line per step, and check each."""
        result = self.cli(*arguments, "--json")
        assert result.exit_code == 0, result.stderr
        values = [json.loads(line) for line in result.stdout.splitlines()]
        assert [fault for value in values for fault in faults(schema, value)] == []
        return values

    def refused(self, *arguments: str) -> Any:
        """Run a command with --json that fails, and return its error."""
        result = self.cli(*arguments, "--json")
        assert result.exit_code == 1
        lines = result.stderr.splitlines()
        assert len(lines) == 1, lines
        value = json.loads(lines[0])
        assert faults("error", value) == []
        return value["error"]

    def put(self, queue: asyncio.Queue[Any], item: Any) -> None:
        """Put an item into one of the node's queues."""
        self.loop.call_soon_threadsafe(queue.put_nowait, item)

    @property
    def env(self) -> dict[str, str]:
        """The environment in which commands find it."""
        return {**os.environ, "KINDLING_SOCKET": self.socket}


@contextmanager
def running() -> Iterator[Agent]:
    """Serve until the end of the block."""
    found: list[Agent] = []
    up = threading.Event()
    stop: list[asyncio.Event] = []

    async def serve(run: Path) -> None:
        async with open_doors(run) as doors:
            stop.append(asyncio.Event())
            found.append(Agent(doors.node, f"{run}/a.sock", asyncio.get_running_loop()))
            up.set()
            await stop[0].wait()

    # Shorter than tmp_path: a unix socket's name has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="kd") as directory:
        thread = threading.Thread(target=lambda: asyncio.run(serve(Path(directory))))
        thread.start()
        try:
            assert up.wait(20)
            yield found[0]
        finally:
            if found:
                found[0].loop.call_soon_threadsafe(stop[0].set)
            thread.join(20)


def asked(agent: Agent, verb: str) -> Any:
    """Return what the node was asked, the only time it was."""
    found = [seen[1:] for seen in agent.node.seen if seen[0] == verb]
    assert len(found) == 1, agent.node.seen
    return found[0]
