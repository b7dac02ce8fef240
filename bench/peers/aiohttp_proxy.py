"""A reverse proxy of aiohttp's own server and client, as one would write it first in Python.

python -m bench.peers.aiohttp_proxy PORT SMALL LARGE; below /http/g/ calls go to LARGE, others to
SMALL. Runs on uvloop, as the agent does.
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import uvloop
from aiohttp import web

# RFC 9110, section 7.6.1: what belongs to one connection is not passed on.
OF_ONE_CONNECTION = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "upgrade"})
SMALL, LARGE = web.AppKey("small", str), web.AppKey("large", str)
CLIENT = web.AppKey("client", aiohttp.ClientSession)


async def pass_on(request: web.Request) -> web.StreamResponse:
    """Send a request to its backend and stream the reply back."""
    backend = LARGE if request.path.startswith("/http/g/") else SMALL
    address = f"http://{request.app[backend]}{request.rel_url}"
    headers = {k: v for k, v in request.headers.items() if k.lower() not in OF_ONE_CONNECTION}
    body = request.content if request.can_read_body else None
    client = request.app[CLIENT]
    async with client.request(request.method, address, headers=headers, data=body) as theirs:
        kept = {k: v for k, v in theirs.headers.items() if k.lower() not in OF_ONE_CONNECTION}
        ours = web.StreamResponse(status=theirs.status, headers=kept)
        await ours.prepare(request)
        async for piece in theirs.content.iter_any():
            await ours.write(piece)
        await ours.write_eof()
        return ours


async def serve(port: int, small: str, large: str) -> None:
    """Serve until killed."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as client:
        app = web.Application()
        app[SMALL], app[LARGE], app[CLIENT] = small, large, client
        app.router.add_route("*", "/{any:.*}", pass_on)
        # Its own runner: web.run_app makes a loop of its own.
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=512).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
