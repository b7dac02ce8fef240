"""Starting a created container by the runtime's FIFO, as `crun start` does, without asking a shim.

crun's init waits with the reading end of `<state>/<id>/exec.fifo`: its own start opens it, unlinks
it and writes a byte (`libcrun_status_write_exec_fifo`). That takes 0.05 ms, by way of containerd
and its shim 4 to 8. containerd goes on believing that such a task is created: it tells of no start
and watches for no kill for memory, which are read from the control group here anyhow; wait, exit
status, signals and deletion are as ever, and whether it runs is asked of its process.

Done only where a container of the probe's was seen to run and end that way. runc has a FIFO of that
name the other way round: nobody reads it, so it is never touched.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress
from pathlib import Path

from agent.containerd.client import Containerd
from agent.errors import AgentError
from agent.sandbox.shims import Shims

log = logging.getLogger(__name__)

FIFO = "exec.fifo"
BYTE = b"\0"
PROBE_S = 5.0  # to make one container and see its end; a start that fails costs no more than this


class ExecFifo:
    """The way past the shim. `state` is where the runtime keeps its containers' state."""

    def __init__(self, containerd: Containerd, state: Path, *, wanted: bool) -> None:
        self._containerd = containerd
        self._state = state
        self._wanted = wanted
        self.works = False
        """Whether starts go this way."""

    def __repr__(self) -> str:
        return f"<ExecFifo {'works' if self.works else 'not used'}>"

    def start(self, id: str) -> bool:
        """Let a created container run; False when it is to be started by its shim."""
        return self.works and self._write(id)

    def _write(self, id: str) -> bool:
        path = self._state / id / FIFO
        try:
            # Without a reader, its init having died, this is ENXIO and changes nothing.
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            log.info("%s is started by its shim: %s", id, error)
            return False
        try:
            # Before the byte: crun tells a created container from a running one by this file.
            path.unlink()
            os.write(fd, BYTE)
        except OSError as error:
            log.warning("%s cannot be started by its FIFO: %s", id, error)
            return False
        finally:
            os.close(fd)
        return True

    async def probe(self, shims: Shims) -> None:
        """See whether this runtime's containers start and end that way. Never raises AgentError.

        The probe is an anchor's container that is started: it ends at once, for want of arguments.
        """
        if not self._wanted:
            return
        deadline = asyncio.get_running_loop().time() + PROBE_S
        id = ""
        try:
            id = await shims.spare(deadline)
            if self._write(id):
                await self._containerd.tasks.wait(id, deadline=deadline)
                self.works = True
        except AgentError as error:
            log.warning("starts go by way of the shim: %s", error)
        finally:
            if id:
                with suppress(AgentError):
                    await shims.remove_spare(id)
