"""Registries and token servers that answer nonsense: each is an error of ours, within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from agent.containerd import registry
from agent.containerd.endpoints import RegistryHosts
from agent.errors import AgentError, FailedPrecondition
from agent.model.image_ref import parse_image_ref


class Registry:
    """Wants a token for everything; `token` answers for the token server, `realm` names it."""

    def __init__(self):
        self.token: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
        self.realm = ""
        self.sent_bytes = 0
        self.port = 0

    async def manifest(self, request):
        realm = self.realm or f"http://{request.host}/token"
        challenge = f'Bearer realm="{realm}",service="s"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    async def answer_token(self, request):
        assert self.token is not None
        return await self.token(request)


@pytest.fixture
async def server():
    made = Registry()
    app = web.Application()
    app.router.add_get("/token", made.answer_token)
    app.router.add_get("/v2/{rest:.*}", made.manifest)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


async def resolve(server):
    deadline = asyncio.get_running_loop().time() + 20
    name = parse_image_ref(f"127.0.0.1:{server.port}/me/app:1")
    endpoints = await RegistryHosts(None, Path("/nowhere")).endpoints(name)
    return await registry.resolve(name, endpoints, deadline=deadline)


@pytest.mark.parametrize(
    "body",
    [b"", b"no json", b"[]", b'{"token": 7}', b'{"token": "a\\r\\nb"}', b"\xff\xfe", b"[" * 60_000],
)
async def test_a_token_that_is_none_is_named(server, body):
    async def answer(request):
        return web.Response(body=body)

    server.token = answer
    with pytest.raises(FailedPrecondition, match="me/app:1"):
        await resolve(server)


@pytest.mark.parametrize("realm", ["https://[x", "ftp://a/b", "nowhere", "http://[::1"])
async def test_a_realm_that_is_no_address_is_refused(server, realm):
    server.realm = realm
    with pytest.raises(AgentError, match="me/app:1"):
        await resolve(server)


async def test_an_endless_token_is_not_read(server):
    async def answer(request):
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while server.sent_bytes < 256 << 20:
                await response.write(bytes(1 << 16))
                server.sent_bytes += 1 << 16
        except ConnectionError:
            pass
        return response

    server.token = answer
    with pytest.raises(FailedPrecondition):
        await resolve(server)
    assert server.sent_bytes < 64 << 20
