"""An agent for benches: the installed package as the user kindling, a node of its own.

Directories, ports, cgroups and sockets are its own; writable layers are tmpfs unless a bench asks
for the test slots. Starting, stopping and the leak check are those of the integration tests. Talks
gRPC through one open channel: starting a command would be a load of its own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.cli.client import VARIABLE, Client, connect
from agent.cli.deploy import spec_message
from tests.integration.running import RunningAgent, Sections, own

REPOSITORY = Path(__file__).resolve().parents[1]
ARCHIVE = REPOSITORY / "images" / ".cache" / "archives" / "static.tar"
IMAGE = "kindling.local/static:1"
NODE = "bench"
READY_S = 600.0


class Node:
    """A running agent and a channel to it."""

    def __init__(self, agent: RunningAgent, client: Client) -> None:
        self.agent = agent
        self._client = client

    @property
    def port(self) -> int:
        """The port of the invoke endpoint on 127.0.0.1."""
        return self.agent.invoke_port

    def deploy(self, name: str, *, wait: bool = False, **more: Any) -> None:
        """Deploy the static server as an HTTP function; `more` are fields of its spec."""
        values = {"name": name, "image": IMAGE, "contract": "fc", "kind": "http"} | more
        request = pb.DeployRequest(spec=spec_message(values), wait=wait)
        self._client.ask("Deploy", request, pb.DeployResponse, within_s=READY_S)

    def remove(self, name: str) -> None:
        """Kill a function's instances and remove it."""
        request = pb.RemoveRequest(name=name, force=True)
        self._client.ask("Remove", request, pb.RemoveResponse, within_s=READY_S)

    def load(self, archive: Path) -> None:
        """Import an image from an archive."""
        self.agent.cli("image", "import", archive)

    def accelerate(self, ref: str) -> None:
        """Have the index made that lets an image start before it is here."""
        self.agent.cli("image", "accelerate", ref, timeout_s=READY_S)

    def worker_mb(self) -> float:
        """Return the worker's resident memory in MB, and begin to watch its peak anew."""
        process = self._worker
        (process / "clear_refs").write_text("5")  # proc(5): resets the peak
        return _megabytes(process, "VmRSS")

    def worker_peak_mb(self) -> float:
        """Return the most resident memory of the worker since `worker_mb`, in MB."""
        return _megabytes(self._worker, "VmHWM")

    @property
    def _worker(self) -> Path:
        return Path(f"/proc/{self.agent.pids['worker']}")

    def states(self) -> dict[str, str]:
        """Return the state of every instance by its id."""
        request = pb.ListInstancesRequest()
        reply = self._client.ask("ListInstances", request, pb.ListInstancesResponse)
        prefix = "INSTANCE_STATE_"
        return {
            one.id: pb.InstanceState.Name(one.state).removeprefix(prefix) for one in reply.instances
        }


def _megabytes(process: Path, field: str) -> float:
    lines = (process / "status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) / 1024


@contextmanager
def running(sections: Sections | None = None) -> Iterator[Node]:
    """Start an agent with the static image; nothing of it is left afterwards."""
    agent = RunningAgent(node=NODE, sections={"storage": {"writable": "tmpfs"}})
    run = Path(tempfile.mkdtemp(prefix="kindling-bench-", dir="/run"))
    own(run)
    agent.run = run
    agent.configure({"paths": {"run": str(run)}})
    agent.configure(sections or {})
    before = os.environ.get(VARIABLE)
    try:
        agent.start()
        agent.cli("image", "import", ARCHIVE)
        os.environ[VARIABLE] = str(agent.socket)
        with connect() as client:
            yield Node(agent, client)
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before
        try:
            agent.close()
        finally:
            shutil.rmtree(run, ignore_errors=True)
