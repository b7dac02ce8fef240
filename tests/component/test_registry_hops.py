"""A registry that sends its client elsewhere: real servers on loopback, one of them forbidden."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from pathlib import Path

import pytest
from aiohttp import web
from yarl import URL

from agent.containerd import hops, registry
from agent.containerd.access import Access
from agent.containerd.credentials import Credentials
from agent.containerd.endpoints import RegistryHosts
from agent.core import oci_image
from agent.core.registry_hops import MAX_REDIRECTS
from agent.errors import AgentError, FailedPrecondition, NotFound, RuntimeUnavailable
from agent.model.image_ref import parse_image_ref
from tests import oci

HOME, OTHER = "127.0.0.1", "127.0.0.2"


async def secret(host):
    return Credentials("me", "secret")


class Server:
    """Answers at one address; `answer` decides, `asked` keeps path and headers of every request."""

    def __init__(self):
        self.asked = []
        self.port = 0
        self.answer = self.nothing

    async def nothing(self, request):
        return web.Response(status=404)

    async def serve(self, request):
        self.asked.append((request.path, dict(request.headers)))
        return await self.answer(request)

    @property
    def paths(self):
        return [path for path, _ in self.asked]


@pytest.fixture
async def start():
    runners = []

    async def start(address, port=0):
        made = Server()
        app = web.Application()
        app.router.add_get("/{rest:.*}", made.serve)
        runner = web.AppRunner(app)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, address, port).start()
        made.port = runner.addresses[0][1]
        return made

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def home(start):
    return await start(HOME)


@pytest.fixture
async def forbidden(start, home):
    """What listens at another loopback address, at the registry's port."""
    return await start(OTHER, home.port)


async def resolve(home, host=HOME, **options):
    deadline = asyncio.get_running_loop().time() + 20
    name = parse_image_ref(f"{host}:{home.port}/me/app:1")
    endpoints = await RegistryHosts(None, Path("/nowhere")).endpoints(name)
    return await registry.resolve(name, endpoints, deadline=deadline, **options)


def redirect(where, status=307):
    async def answer(request):
        return web.Response(status=status, headers={"Location": where})

    return answer


def challenge(realm):
    async def answer(request):
        value = f'Bearer realm="{realm}",service="s"'
        return web.Response(status=401, headers={"WWW-Authenticate": value})

    return answer


# Written with {port}, the port at which the forbidden server and the registry listen.
REFUSED = [
    ("http://127.0.0.2:{port}/x", "loopback"),
    ("http://[::1]:{port}/x", "loopback"),
    ("http://[::ffff:127.0.0.2]:{port}/x", "loopback"),
    ("http://[::ffff:7f00:2]:{port}/x", "loopback"),
    ("http://0.0.0.0:{port}/x", "this machine"),
    ("http://[::]:{port}/x", "this machine"),
    ("http://2130706434:{port}/x", "number"),
    ("http://017700000002:{port}/x", "number"),
    ("http://0x7f000002:{port}/x", "number"),
    ("http://0177.0.0.2:{port}/x", "number"),
    ("http://127.2:{port}/x", "number"),
    ("https://169.254.1.1/x", "link-local"),
    ("https://169.254.169.254/latest/meta-data", "metadata"),
    ("https://100.100.100.200/latest/meta-data", "metadata"),
    ("https://168.63.129.16/", "metadata"),
    ("https://[fd00:ec2::254]/", "metadata"),
    ("https://10.0.0.1/", "private"),
    ("http://93.184.216.34/", "leaves this machine"),
    ("http://me:pw@127.0.0.1:{port}/x", "holds credentials"),
    ("ftp://127.0.0.1/x", "no address of http"),
    ("http:///x", "no address"),
    ("http://[x/", "no address"),
    ("http://[]x@/", "no address"),
    ("http://127.0.0.2:99999/", "no address"),
]


@pytest.mark.parametrize("by", ["redirect", "realm"])
@pytest.mark.parametrize(("where", "why"), REFUSED)
async def test_a_registry_cannot_send_its_client_where_it_is_not_itself(
    home, forbidden, where, why, by
):
    where = where.format(port=home.port)
    home.answer = redirect(where) if by == "redirect" else challenge(where)
    with pytest.raises(FailedPrecondition, match=why) as caught:
        await resolve(home)
    assert f"registry {HOME}:{home.port} sends to " in caught.value.message
    assert "me:pw" not in caught.value.message
    assert len(home.asked) == 1
    assert forbidden.asked == []


async def test_a_redirect_without_a_scheme_is_judged_too(home, forbidden):
    home.answer = redirect(f"//{OTHER}:{home.port}/x")
    with pytest.raises(FailedPrecondition, match="loopback"):
        await resolve(home)
    assert forbidden.asked == []


async def test_the_nodes_own_addresses_are_refused(home):
    own = [a for a in hops.own_addresses() if not a.is_loopback and not a.is_link_local]
    for address in own:
        host = f"[{address}]" if address.version == 6 else str(address)
        home.answer = redirect(f"https://{host}/x")
        with pytest.raises(FailedPrecondition, match="this node's own address"):
            await resolve(home)


def test_the_nodes_own_addresses_are_those_the_kernel_takes_as_local(tmp_path):
    found = hops.own_addresses()
    assert ip_address("127.0.0.1") in found
    for address in found - {a for a in found if a.is_link_local or str(a).endswith(".0.0.0")}:
        kind = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    assert hops.own_addresses(tmp_path) == frozenset()


def image():
    return oci.image([oci.layer({"a": b"1"})], {"Cmd": ["/a"]})


def storage(found):
    async def answer(request):
        key = request.path.rsplit("/", 1)[1]
        data = found.blobs.get(key, found.blobs[found.digest])
        kind = oci_image.OCI_MANIFEST if data == found.blobs[found.digest] else "text/plain"
        return web.Response(body=data, headers={"Content-Type": kind})

    return answer


async def test_another_port_of_a_loopback_registrys_own_address_may_be_named(home, start):
    found, other, tokens = image(), await start(HOME), await start(HOME)
    other.answer = storage(found)

    async def token(request):
        return web.json_response({"token": "t"})

    async def answer(request):
        if request.headers.get("Authorization") != "Bearer t":
            return await challenge(f"http://{HOME}:{tokens.port}/token")(request)
        return await redirect(f"http://{HOME}:{other.port}{request.path}")(request)

    tokens.answer, home.answer = token, answer
    resolved = await resolve(home, access=Access(secret))
    assert resolved.target.digest == found.digest
    # The storage is another origin: neither the registry's token nor the password goes there.
    assert len(other.asked) == 2
    assert all("Authorization" not in headers for _, headers in other.asked)
    assert tokens.asked[0][1]["Authorization"].startswith("Basic ")


async def test_credentials_do_not_come_back_after_a_detour(home, start):
    other = await start(HOME)
    other.answer = redirect(f"http://{HOME}:{home.port}/again")

    async def answer(request):
        if request.path == "/token":
            return web.json_response({"token": "t"})
        if request.path == "/again":
            return web.Response(status=404)
        if "Authorization" not in request.headers:
            return await challenge(f"http://{HOME}:{home.port}/token")(request)
        return await redirect(f"http://{HOME}:{other.port}/x")(request)

    home.answer = answer
    with pytest.raises(NotFound):
        await resolve(home)
    assert home.asked[-1][0] == "/again"
    assert "Authorization" not in home.asked[-1][1]


async def test_a_password_does_not_follow_a_token_servers_redirect(home, start):
    other = await start(HOME)

    async def answer(request):
        if request.path == "/token":
            return await redirect(f"http://{HOME}:{other.port}/token")(request)
        return await challenge(f"http://{HOME}:{home.port}/token")(request)

    home.answer = answer
    with pytest.raises(RuntimeUnavailable, match="its token service"):
        await resolve(home, access=Access(secret))
    assert home.asked[-1][1]["Authorization"].startswith("Basic ")
    assert [("Authorization" in headers) for _, headers in other.asked] == [False]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_circle_of_redirects_ends(home, status):
    async def answer(request):
        return await redirect("/b" if request.path != "/b" else "/a", status)(request)

    home.answer = answer
    with pytest.raises(FailedPrecondition, match="in a circle"):
        await resolve(home)
    assert home.paths[1:] == ["/b", "/a"]


async def test_redirects_without_end_are_not_followed(home):
    async def answer(request):
        return await redirect(f"/{len(home.asked)}")(request)

    home.answer = answer
    with pytest.raises(FailedPrecondition, match=f"more than {MAX_REDIRECTS} times"):
        await resolve(home)
    assert len(home.asked) == MAX_REDIRECTS + 1


async def test_a_redirect_to_nowhere_is_an_answer_like_another(home):
    async def answer(request):
        return web.Response(status=302)

    home.answer = answer
    with pytest.raises(RuntimeUnavailable, match="answers 302"):
        await resolve(home)


class Names:
    """A name server whose answers change: the first answer once, then the second."""

    def __init__(self, first, second):
        self.answers = [first, second]
        self.asked = 0

    async def look_up(self, host):
        self.asked += 1
        return (ip_address(self.answers[min(self.asked, 2) - 1]),)


async def test_a_name_that_moves_after_it_was_judged_moves_nobody(home, start):
    names, port = Names(HOME, OTHER), (await start(HOME)).port
    trap = await start(OTHER, port)
    home.answer = redirect(f"http://storage.example:{port}/x")
    for _ in range(2):
        names.asked = 0
        with pytest.raises(NotFound):
            await resolve(home, look_up=names.look_up)
        assert names.asked == 1
    assert trap.asked == []


async def test_a_name_at_a_forbidden_address_is_refused(home, forbidden):
    names = Names(OTHER, OTHER)
    home.answer = redirect(f"http://storage.example:{home.port}/x?signature=s")
    with pytest.raises(FailedPrecondition, match=r"127\.0\.0\.2 is a loopback address") as caught:
        await resolve(home, look_up=names.look_up)
    assert f"http://storage.example:{home.port}/x, which" in caught.value.message
    assert forbidden.asked == []


async def test_a_registry_whose_own_name_moves_is_asked_where_it_was_found(home, forbidden):
    names = Names(HOME, OTHER)
    home.answer = redirect(f"http://localhost:{home.port}/again")
    with pytest.raises(FailedPrecondition, match="circle"):
        await resolve(home, host="localhost", look_up=names.look_up)
    assert (len(home.asked), names.asked) == (2, 1)
    assert forbidden.asked == []


async def test_only_judged_hosts_have_addresses():
    pins = hops.Pins()
    pins.addresses["a.example"] = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
    found = await pins.resolve("a.example", 443, socket.AF_INET)
    assert [(each["host"], each["port"]) for each in found] == [("192.0.2.1", 443)]
    assert len(await pins.resolve("a.example", 443)) == 2
    for host, family in (("b.example", socket.AF_UNSPEC), ("a.example", socket.AF_UNIX)):
        with pytest.raises(OSError, match="no address that may be connected to"):
            await pins.resolve(host, 443, family)


async def test_a_host_without_an_address_is_named(home):
    async def nowhere(host):
        raise OSError(None, f"{host} is not known")

    home.answer = redirect("https://storage.example/x")
    with pytest.raises(RuntimeUnavailable, match=r"storage\.example"):
        await resolve(home, look_up=nowhere)


@pytest.mark.parametrize("host", ["a..b", f"{'a' * 64}.example", "a" * 5000])
async def test_a_host_that_is_no_name_is_an_error_of_ours(home, host):
    home.answer = redirect(f"https://{host}/x")
    with pytest.raises(AgentError, match="me/app:1"):
        await resolve(home)


async def test_plain_http_is_refused_of_a_registry_asked_over_https():
    way = hops.Hops(URL("https://registry.example/v2"), "image a:1: the registry registry.example")
    try:
        with pytest.raises(
            FailedPrecondition, match=r"registry\.example sends to http://.*over https"
        ):
            async with way.get(URL("http://registry.example/x"), headers={}):
                pytest.fail("asked")
    finally:
        await way.aclose()


async def test_through_a_proxy_names_are_the_proxys_and_addresses_are_judged(
    home, start, monkeypatch
):
    proxy = await start(OTHER)
    monkeypatch.setenv("http_proxy", f"http://{OTHER}:{proxy.port}")
    monkeypatch.setenv("no_proxy", HOME)
    home.answer = redirect("https://169.254.169.254/x")
    with pytest.raises(FailedPrecondition, match="metadata"):
        await resolve(home)
    with pytest.raises(NotFound):
        await resolve(home, host="localhost", look_up=None)
    assert proxy.paths == ["/v2/me/app/manifests/1"]
