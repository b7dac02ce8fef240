"""Wrong, hostile and broken input at the real doors: refused in one clear way, nothing harmed.

After every test the worker must be the same process, every place and slot free again and nothing
left (the fixture looks); in between, other callers are served as ever.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from contextlib import closing, suppress
from typing import Any

import grpc
import pytest

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.cli.client import NoAgent, Refused
from agent.errors import AgentError, InvalidSpec
from agent.model.limits import LIMITS, MAX_STRING_BYTES
from tests.integration.functions import HOST
from tests.integration.running import RunningAgent

KB, MB = 1 << 10, 1 << 20
PROBE = f"{HOST}/probe:1"


# Specs: over gRPC, past the command line's own check


def refused(functions: Any, **fields: Any) -> dict[str, str]:
    """Deploy a raw message, as a scheduler would; return what is wrong by field."""
    spec = pb.FunctionSpec(
        **{"name": "bad", "image": PROBE, "contract": "fc", "kind": "http", **fields}
    )
    with pytest.raises(InvalidSpec) as error:
        functions.client.ask("Deploy", pb.DeployRequest(spec=spec), pb.DeployResponse)
    return {problem.field: problem.message for problem in error.value.problems}


@pytest.mark.parametrize(
    ("field", "fields", "words"),
    [
        ("name", {"name": "../../etc"}, "must be 1 to 64 of"),
        ("name", {"name": "x" * 65}, "must be 1 to 64 of"),
        ("image", {"image": "UPPER CASE"}, "is not an image reference"),
        ("contract", {"contract": "aws"}, "must be one of"),
        ("kind", {"kind": "job"}, "contract fc knows event or http"),
        ("memory_mb", {"memory_mb": 127}, "is 127; must be 128 to 32768"),
        ("memory_mb", {"memory_mb": 32769}, "must be 128 to 32768"),
        ("memory_mb", {"memory_mb": 2**32 - 1}, "must be 128 to 32768"),
        ("timeout_s", {"timeout_s": 0}, "must be 1 to 86400"),
        ("timeout_s", {"timeout_s": float("inf")}, ""),
        ("timeout_s", {"timeout_s": float("nan")}, ""),
        ("disk_mb", {"disk_mb": 513}, "must be 512 or 10240"),
        ("concurrency", {"concurrency": 201}, "must be 1 to 200"),
        ("port", {"port": 65536}, "must be 1 to 65535"),
        ("pids", {"pids": 1025}, "must be 16 to 1024"),
        ("scaling.min", {"scaling": {"min": 5, "max": 4}}, "more than scaling.max"),
        ("env.FC_SECRET", {"env": {"FC_SECRET": "x"}}, "reserved name"),
        ("env.SCF_X", {"env": {"SCF_X": "x"}}, "reserved name"),
        ("env.TENCENTCLOUD_X", {"env": {"TENCENTCLOUD_X": "x"}}, "reserved name"),
        ("env.1BAD", {"env": {"1BAD": "x"}}, "letters, digits and _"),
        ("env", {"env": {"BIG": "x" * (4 * KB)}}, "contract fc allows 4096"),
        ("args[0]", {"args": ["x" * MAX_STRING_BYTES]}, "Linux takes at most 131072"),
        ("mounts[0].target", {"mounts": [{"volume": "v", "target": "/proc/x"}]}, "must not lie in"),
        ("mounts[0].volume", {"mounts": [{"volume": "/etc", "target": "/e"}]}, "not the name of"),
        ("egress[0]", {"egress": ["10.0.0.0/99"]}, "no IPv4 network"),
        ("user", {"user": "root; rm"}, "must be a user's name or number"),
    ],
)
def test_a_wrong_spec_is_told_by_field(functions, field, fields, words):
    problems = refused(functions, **fields)
    assert field in problems, problems
    assert words in problems[field]


def test_everything_wrong_is_told_at_once(functions):
    problems = refused(
        functions, memory_mb=1, timeout_s=0, env={"FC_X": ""}, port=0, scaling={"max": 2000}
    )
    assert set(problems) == {"memory_mb", "timeout_s", "env.FC_X", "port", "scaling.max"}


def test_an_unknown_field_of_a_file_is_told_with_what_was_meant(agent, functions, tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text(f'name = "bad"\nimage = "{PROBE}"\ncontract = "fc"\nmemory = 512\ngpu = 1\n')
    done = agent.cli("deploy", file, "--json", check=False)
    assert (done.status, done.out) == (1, "")
    problems = {p["field"]: p["message"] for p in json.loads(done.err)["error"]["problems"]}
    assert problems["memory"] == "is not a field; did you mean memory_mb?"
    assert "GPUs are not offered" in problems["gpu"]


def test_a_file_that_is_no_toml_is_told_with_its_line(agent, functions, tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text('name = "bad"\nimage = \n')
    done = agent.cli("deploy", file, check=False)
    assert done.status == 1
    assert "line 2" in done.err.splitlines()[0]


def test_arguments_that_do_not_fit_the_kernel_are_refused_at_deploy(functions):
    with pytest.raises(AgentError) as error:
        functions.deploy("bad", args=["x" * 100_000] * 30)
    assert error.value.fault == "caller"
    assert "bytes" in error.value.message


def test_a_broken_message_and_an_unknown_call_harm_nobody(agent, functions):
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix:{agent.socket}", options) as channel:
        for method, raw in (
            ("/worker.v1.Worker/Deploy", b"\xff" * 1000),
            ("/worker.v1.Worker/Nothing", b""),
            ("/worker.v1.Worker/Deploy", b""),
            ("/worker.v1.Worker/Invoke", b""),
            ("/worker.v1.Worker/GetCall", b""),
        ):
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
            with pytest.raises(grpc.RpcError) as error:
                call(raw, timeout=10)
            assert error.value.code() not in (
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.StatusCode.UNAVAILABLE,
            ), method
    with closing(socket.socket(socket.AF_UNIX)) as raw_client:
        raw_client.connect(str(agent.socket))
        raw_client.sendall(os.urandom(4096))
        drain(raw_client)
    assert functions.node().name == agent.node


def test_the_read_only_socket_changes_nothing(agent, functions):
    options = [("grpc.default_authority", "localhost")]
    path = agent.run / "kindling-ro.sock"
    with grpc.insecure_channel(f"unix:{path}", options) as channel:
        remove: grpc.UnaryUnaryMultiCallable[pb.RemoveRequest, bytes] = channel.unary_unary(
            "/worker.v1.Worker/Remove", pb.RemoveRequest.SerializeToString
        )
        with pytest.raises(grpc.RpcError) as error:
            remove(pb.RemoveRequest(name="x"), timeout=10)
        assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_broken_image_is_refused_and_nothing_of_it_stays(agent, functions, tmp_path):
    junk = tmp_path / "junk.tar"
    junk.write_bytes(os.urandom(100_000))
    done = agent.cli("image", "import", junk, "--name", f"{HOST}/junk:1", check=False)
    assert done.status == 1
    assert "not a whole tar archive" in done.err or "not an image" in done.err
    assert "junk" not in agent.cli("image", "ls").out
    assert list((agent.data / "import").iterdir()) == []


# Sizes of calls


def test_a_body_over_the_contracts_limit_is_refused(functions, agent):
    functions.deploy("echo", contract="scf-web")
    limit = LIMITS["scf-web"].request_bytes
    assert agent.http("POST", "/http/echo/echo", b"x" * limit).status == 200
    reply = agent.http("POST", "/invoke/echo", b"x" * (limit + 1))
    assert (reply.status, reply.json()["statusCode"]) == (406, 406)


def test_a_chunked_body_over_the_limit_is_refused_while_it_comes(functions, agent):
    functions.deploy("echo", contract="scf-web")
    with connected(agent) as caller:
        caller.sendall(
            b"POST /invoke/echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        piece = b"%x\r\n" % MB + b"x" * MB + b"\r\n"
        for _ in range(8):
            caller.sendall(piece)
        caller.sendall(b"0\r\n\r\n")
        assert drain(caller).startswith(b"HTTP/1.1 406 ")


@pytest.mark.parametrize(
    ("contract", "port", "status", "code"),
    [
        ("fc", 9000, 502, "BadResponse"),
        ("scf-web", 9000, 410, "ResponseTooLarge"),
        ("vercel", 80, 500, "FUNCTION_INVOCATION_FAILED"),
    ],
)
def test_a_reply_over_the_limit_is_the_functions_fault(
    functions, agent, contract, port, status, code
):
    size = LIMITS[contract].response_bytes + 1
    program = (
        "import socket\n"
        f"s = socket.create_server(('0.0.0.0', {port}))\n"
        "while True:\n"
        "    c, _ = s.accept()\n"
        "    if not c.recv(65536): continue\n"
        f"    c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: {size}\\r\\n\\r\\n')\n"
        f"    c.sendall(b'x' * {size})\n"
    )
    functions.deploy("large", contract=contract, command=["/usr/bin/python3", "-c", program])
    reply = agent.http("GET", "/http/large/")
    assert reply.status == status
    assert code in reply.body.decode()
    assert f"larger than {size - 1} bytes" in reply.body.decode()


@pytest.mark.parametrize("contract", ["fc2", "scf-job"])
def test_an_event_too_large_for_a_variable_starts_nothing(functions, agent, contract):
    functions.deploy("job", "hello-job", contract, "job")
    reply = agent.http("POST", "/invoke/job", b"x" * (MAX_STRING_BYTES + 1))
    assert 400 <= reply.status < 500, reply
    reply = agent.http("POST", "/invoke/job", b"nul \0 byte")
    assert 400 <= reply.status < 500, reply
    assert functions.capacity()["instances_used"] == 0
    assert functions.log("job") == ""


# Tencent's door


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"FunctionName": 7}',
        b'{"FunctionName": ["a"]}',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"FunctionName": "echo", "ClientContext": {"not": "text"}}',
    ],
    ids=lambda body: body[:16].decode("latin-1") or "empty",
)
def test_broken_json_at_tencents_door_is_answered_in_its_own_shape(functions, agent, body):
    functions.deploy("echo", contract="scf-web")
    reply = agent.http("POST", "/", body, {"X-TC-Action": "Invoke"})
    assert reply.status == 200
    assert reply.json()["Response"]["Error"]["Code"]
    assert functions.capacity()["instances_used"] == 0


# Bytes on the port


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        bytes(range(256)) * 64,
        b"\0" * 4096,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /http/web/ HTTP/1.1\r\n\r\n",
        b"GET /http/web/ HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"POST /http/web/ HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /http/web/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999999999999999\r\n\r\n",
        b"POST /http/web/ HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /http/web/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n" * 40_000,
    ],
    ids=[
        *("tls", "all-bytes", "zeros", "no-version", "version", "no-host", "two-hosts"),
        *("negative", "huge-length", "smuggled", "bad-chunk", "http2", "newlines"),
    ],
)
def test_junk_on_the_port_is_refused_or_dropped(functions, agent, junk):
    functions.deploy("web", "static")
    with connected(agent) as caller:
        with suppress(OSError):
            caller.sendall(junk)
            caller.shutdown(socket.SHUT_WR)
        answer = drain(caller)
    assert not answer or answer.split(b" ")[1][:1] == b"4", answer[:200]
    assert agent.http("GET", "/http/web/").status == 200


@pytest.mark.parametrize("bytes_of_headers", [7 * KB, 20 * KB, 100 * KB, 2 * MB])
def test_headers_of_any_size_are_passed_or_refused(functions, agent, bytes_of_headers):
    functions.deploy("web", "hello-http")
    with connected(agent) as caller:
        head = b"GET /http/web/ HTTP/1.1\r\nHost: x\r\nX-Long: " + b"y" * bytes_of_headers
        with suppress(OSError):
            caller.sendall(head + b"\r\nConnection: close\r\n\r\n")
        status = drain(caller)[:12]
    # FC allows 8 KB of headers.
    wanted = (b"HTTP/1.1 200",) if bytes_of_headers < 8 * KB else (b"HTTP/1.1 400", b"HTTP/1.1 431")
    assert status in (*wanted, b"") if bytes_of_headers > MB else status in wanted


def test_many_headers_are_refused(functions, agent):
    functions.deploy("web", "hello-http")
    headers = {f"X-{n}": "1" for n in range(300)}
    assert agent.http("GET", "/http/web/", headers=headers).status in (400, 431)


def test_a_target_over_the_contracts_limit_is_refused(functions, agent):
    functions.deploy("web", "hello-http")
    assert agent.http("GET", "/http/web/" + "p" * (4 * KB + 1)).status in (400, 414)


def test_paths_and_names_from_hell_find_no_door(functions, agent):
    for path in (
        "/http/../../etc/passwd",
        "/http/%2e%2e/x",
        "/invoke/" + "n" * 5000,
        "/2023-03-30/functions//invocations",
        "/2023-03-30/functions/a/b/invocations",
        "/http/",
        "//",
    ):
        assert agent.http("POST", path, b"x").status == 404, path


# Callers who do not keep to the end


def test_half_a_head_occupies_nothing(functions, agent):
    functions.deploy("web", scaling={"max": 1})
    with connected(agent) as caller:
        caller.sendall(b"GET /http/web/echo HTTP/1.1\r\nHost")
        assert agent.http("GET", "/http/web/echo").status == 200
        assert functions.capacity()["inflight"] == 0


def test_half_a_body_gives_its_place_back_when_the_caller_goes(functions, agent):
    functions.deploy("web", scaling={"max": 1}, queue_timeout_s=5, startup_timeout_s=5)
    with connected(agent) as caller:
        caller.sendall(b"POST /http/web/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx")
        agent.wait_until(lambda: functions.capacity()["inflight"] == 1, 10, "the call")
    agent.wait_until(lambda: functions.capacity()["inflight"] == 0, 10, "its end")
    assert agent.http("POST", "/http/web/echo", b"whole").body == b"whole"


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("policy", ["keep", "signal", "recycle"])
def test_a_caller_who_goes_in_the_middle_leaves_no_call_behind(functions, agent, how, policy):
    functions.deploy("web", scaling={"max": 1}, on_client_cancel=policy, queue_timeout_s=20)
    agent.http("GET", "/http/web/echo")
    caller = connected(agent)
    caller.sendall(b"GET /http/web/sleep?s=1 HTTP/1.1\r\nHost: x\r\n\r\n")
    agent.wait_until(lambda: functions.capacity()["inflight"] == 1, 10, "the call")
    if how == "reset":
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    caller.close()
    assert agent.http("GET", "/http/web/echo").status == 200
    agent.wait_until(lambda: functions.capacity()["inflight"] == 0, 10, "no call left")


def test_a_caller_who_goes_while_it_waits_for_a_start_leaves_the_queue(functions, agent):
    functions.deploy("slow", env={"PROBE_DELAY_S": "2"}, scaling={"max": 1})
    for _ in range(5):
        with connected(agent) as caller:
            caller.sendall(b"GET /http/slow/echo HTTP/1.1\r\nHost: x\r\n\r\n")
            agent.wait_until(lambda: functions.capacity()["queued"] >= 1, 10, "a waiting call")
    agent.wait_until(lambda: functions.capacity()["queued"] == 0, 10, "an empty queue")
    assert agent.http("GET", "/http/slow/echo").status == 200


def test_a_caller_who_reads_nothing_holds_nobody_up(functions, agent):
    functions.deploy("web", "hello-http", concurrency=5)
    body = b"z" * (8 * MB)
    with connected(agent) as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = b"POST /http/web/echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        caller.sendall(head + body)
        for _ in range(20):
            assert agent.http("GET", "/http/web/").status == 200
    agent.wait_until(lambda: functions.capacity()["inflight"] == 0, 10, "no call left")


def test_a_hundred_silent_connections_hold_nobody_up(functions, agent):
    functions.deploy("web", "static")
    silent = [connected(agent) for _ in range(100)]
    try:
        assert agent.http("GET", "/http/web/").status == 200
    finally:
        for caller in silent:
            caller.close()


def test_pipelined_requests_are_answered_in_order(functions, agent):
    functions.deploy("web", "hello-http")
    with connected(agent) as caller:
        for n in range(50):
            last = "Connection: close\r\n" if n == 49 else ""
            caller.sendall(f"GET /http/web/{n} HTTP/1.1\r\nHost: x\r\n{last}\r\n".encode())
        answers = drain(caller).split(b"hello from GET /")[1:]
    assert [int(answer.split(b"\n")[0]) for answer in answers] == list(range(50))


# The other doors


def test_junk_at_the_admin_port_harms_nobody(functions, agent):
    with connected(agent, agent.admin_port) as caller:
        caller.sendall(os.urandom(2000) + b"\r\n\r\n")
        drain(caller)
    assert agent.http("GET", "/healthz", port=agent.admin_port).status == 200
    assert agent.http("GET", "/debug/state", port=agent.admin_port).status in (403, 404)


def test_unknown_names_are_refused_at_every_call(functions):
    for rpc, request, reply in (
        ("Get", pb.GetRequest(name="nobody"), pb.Function),
        ("Remove", pb.RemoveRequest(name="nobody"), pb.RemoveResponse),
        ("Invoke", pb.InvokeRequest(name="nobody"), pb.InvokeResponse),
        ("RunJob", pb.RunJobRequest(name="nobody"), pb.Call),
        ("GetCall", pb.GetCallRequest(id="nobody"), pb.Call),
        ("RemoveImage", pb.RemoveImageRequest(name="nobody"), pb.RemoveImageResponse),
    ):
        with pytest.raises((Refused, NoAgent)) as error:
            functions.client.ask(rpc, request, reply)
        assert error.value.code == "NotFound", rpc


def connected(agent: RunningAgent, port: int = 0) -> socket.socket:
    """Return a plain connection to the invoke port, or another."""
    return socket.create_connection(("127.0.0.1", port or agent.invoke_port), 15)


def drain(caller: socket.socket) -> bytes:
    """Read until the other side closes, whichever way."""
    received = b""
    try:
        while piece := caller.recv(65536):
            received += piece
    except (ConnectionResetError, TimeoutError):
        pass
    return received
