"""The operators' door: health, metrics, state and a small status page, on aiohttp.

Everything is read-only. The unix socket serves all of it; the TCP socket, which any local user can
reach, only /healthz and /metrics. Nothing here is on the path of a call.
"""

from __future__ import annotations

import html
import json
import socket
from typing import Any, Final, Protocol

from aiohttp import web

from agent.telemetry.metrics import AgentMetrics

SHUTDOWN_S: Final = 1.0
"""How long an operator's open request may hold up the end of the agent."""
_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_PAGE: Final = """<!doctype html><meta charset="utf-8"><title>Kindling</title>
<style>body{{font:14px system-ui;margin:2em}}td{{padding:.2em 1em .2em 0}}</style>
<h1>Kindling</h1><p>{state}</p><table>{rows}</table>
<p><a href="/healthz">healthz</a> <a href="/readyz">readyz</a> <a href="/metrics">metrics</a>
<a href="/debug/state">debug/state</a></p>
"""


class AdminFacts(Protocol):
    """What the composition root tells operators."""

    def unready(self) -> str | None:
        """Return None when calls are served, else why not, in one sentence."""

    async def state(self) -> dict[str, Any]:
        """Return what /debug/state shows; anything unknown to JSON is shown as text."""

    def status(self) -> list[tuple[str, str]]:
        """Return the rows of the status page."""


class AdminDoor:
    """The door, on up to two listening sockets made by somebody else."""

    def __init__(self, facts: AdminFacts, metrics: AgentMetrics) -> None:
        self._facts = facts
        self._metrics = metrics
        self._runners: list[web.AppRunner] = []

    async def serve(
        self, *, unix: socket.socket | None = None, tcp: socket.socket | None = None
    ) -> None:
        """Serve the sockets given."""
        if unix is not None:
            await self._serve(unix, everything=True)
        if tcp is not None:
            await self._serve(tcp, everything=False)

    async def close(self) -> None:
        """Stop serving."""
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()

    async def _serve(self, sock: socket.socket, *, everything: bool) -> None:
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/metrics", self._render)
        if everything:
            app.router.add_get("/", self._page)
            app.router.add_get("/readyz", self._readyz)
            app.router.add_get("/debug/state", self._state)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        self._runners.append(runner)
        await web.SockSite(runner, sock).start()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        unready = self._facts.unready()
        return web.Response(text=f"{unready or 'ready'}\n", status=503 if unready else 200)

    async def _render(self, _: web.Request) -> web.Response:
        text = await self._metrics.render()
        return web.Response(body=text, headers={"Content-Type": _METRICS_TYPE})

    async def _state(self, _: web.Request) -> web.Response:
        text = json.dumps(await self._facts.state(), indent=2, default=str)
        return web.Response(text=text + "\n", content_type="application/json")

    async def _page(self, _: web.Request) -> web.Response:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
            for name, value in self._facts.status()
        )
        state = html.escape(self._facts.unready() or "ready")
        return web.Response(text=_PAGE.format(state=state, rows=rows), content_type="text/html")
