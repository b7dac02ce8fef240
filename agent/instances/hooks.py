"""The platform's own requests to an instance: initialize after it listens, pre-stop before TERM.

They use the connections that calls use, because a server may serve one connection at a time. What
a hook is, and what its answer means, is the contract's; when it is made, `instance.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from agent.contracts.base import Contract, Hook
from agent.errors import AgentError
from agent.instances.endpoint import Connection, Endpoint
from agent.instances.ports import InstancePorts
from agent.store.ledger import Row

log = logging.getLogger(__name__)

NO_ANSWER = 0
REQUEST_ID_BYTES = 16


class Hooks:
    """The hooks of one instance; `note` takes the platform's lines for the function's log."""

    def __init__(
        self,
        endpoint: Endpoint,
        contract: Contract,
        ports: InstancePorts,
        note: Callable[[str], None],
    ) -> None:
        self._endpoint = endpoint
        self._contract = contract
        self._ports = ports
        self._note = note

    async def run(self, hook: Hook) -> int:
        """Make a hook's request; return the status, NO_ANSWER when none came in time."""
        request_id = self._contract.new_request_id(os.urandom(REQUEST_ID_BYTES))
        lines = self._contract.log_hook(hook, request_id)
        if lines is not None:
            self._note(lines[0])
        try:
            return await self._request(hook, request_id)
        except (AgentError, OSError) as error:  # TimeoutError is one
            log.info("%s: hook %s: %s", self._endpoint.id, hook.name, error)
            return NO_ANSWER
        finally:
            if lines is not None:
                self._note(lines[1])

    async def run_as_call(self, hook: Hook, row: Callable[[], Row]) -> None:
        """Make a hook's request, counted in the instance's row of the ledger."""
        calls = row()
        calls.begin()
        try:
            await self.run(hook)
        finally:
            if row() is calls:  # else it is another instance's by now
                calls.end()

    async def _request(self, hook: Hook, request_id: str) -> int:
        deadline = asyncio.get_running_loop().time() + hook.timeout_s
        connection = await self._connection(deadline)
        head = self._contract.hook_head(hook, request_id, self._endpoint.id)
        try:
            status, _, _ = await connection.roundtrip(head, b"", deadline)
        except BaseException:
            connection.close()
            raise
        if connection.usable:
            self._endpoint.idle.append(connection)
        return status

    async def _connection(self, deadline: float) -> Connection:
        """Take an idle connection or make one; raises OSError or AgentError."""
        idle = self._endpoint.idle
        while idle:
            connection = idle.pop()
            if connection.usable:
                return connection
        sock = await self._ports.open_socket()
        try:
            async with asyncio.timeout_at(deadline):
                loop = asyncio.get_running_loop()
                await loop.sock_connect(sock, (self._endpoint.address, self._endpoint.port))
                return await self._ports.connector.adopt(sock)
        except BaseException:
            sock.close()
            raise
