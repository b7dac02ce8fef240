"""Other people's software, as images laid out like the official ones: called, watched, ended.

Each is deployed under the contract that fits it and does what its users expect of it elsewhere:
its entrypoint's work at the start, the right answers, a second call on the same instance, its lines
in the log, the limits of the instance found by its own means, and an end by its own signal, in its
own way and before the grace is over. `images/software.py` builds them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent._pb.worker.v1 import worker_pb2 as pb
from tests.integration.functions import PYTHON, Functions
from tests.integration.running import KINDLING, Reply, RunningAgent

BUILD = Path(__file__).parents[2] / "images" / "software.py"
BUILD_S = 600.0
IMPORTS = 3  # at once
MB = 1 << 20
TERM = 15
ENDS = ("InstanceStopped", "InstanceFailed")
JSON = {"Content-Type": "application/json"}

Json = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """One call, and what the answer is; of `headers` those that are named."""

    method: str
    path: str
    body: str = ""
    status: int = 200
    answer: str | Json = ""
    headers: dict[str, str] = field(default_factory=dict)
    send: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """How a program ends that was told to, and what it says while it does."""

    exit_code: int = 0
    says: str = ""


@dataclass(frozen=True)
class Served:
    """A server: its contract, what it answers, what it logs, how it ends. Named like its image."""

    name: str
    contract: str
    calls: tuple[Asked, ...]
    logged: tuple[str, ...]
    ended: Ended = field(default_factory=Ended)
    spec: Json = field(default_factory=dict)
    image: str = ""


HTML = {"content-type": "text/html"}
SERVED = (
    Served(
        "nginx",
        "fc",
        (
            Asked("GET", "/", answer="<h1>nginx of Debian</h1>\n", headers=HTML),
            Asked("PUT", "/who", answer="PUT me as HTTP/1.1\n", send={"X-Asked": "me"}),
            Asked("GET", "/nothing", status=404, answer="404 Not Found"),
        ),
        (
            "20-envsubst-on-templates.sh: Running envsubst on",
            "30-tune-worker-processes.sh: 1 of ",
            "ready for start up",
            '"GET /nothing HTTP/1.1" 404',
            "[error]",
        ),
        spec={"port": 80, "cpu_millis": 500},
    ),
    Served(
        "httpd",
        "fc",
        (
            Asked("GET", "/", answer="<h1>It works!</h1>\n", headers={"x-served-by": "httpd"}),
            Asked("POST", "/cgi-bin/echo", "a body", answer="POST as www-data: a body"),
            Asked("GET", "/nothing", status=404, answer="Not Found"),
        ),
        ("resuming normal operations", "GET /nothing HTTP/1.1 404"),
        Ended(says="caught SIGWINCH, shutting down gracefully"),
        {"port": 80},
    ),
    Served(
        "httpd-as-a-user",
        "fc",
        (Asked("POST", "/cgi-bin/echo", "a body", answer="POST as www-data: a body"),),
        # It opens its log by the name of the descriptor.
        ("resuming normal operations", "POST /cgi-bin/echo HTTP/1.1 200"),
        Ended(says="caught SIGWINCH, shutting down gracefully"),
        {"port": 8080, "user": "www-data", "env": {"HTTPD_PORT": "8080"}},
        "httpd",
    ),
    Served(
        "caddy",
        "vercel",
        (
            Asked("GET", "/", answer="Congratulations", headers={"x-served-by": "caddy"}),
            Asked("POST", "/echo", "a body", answer="POST a body"),
            Asked("GET", "/nothing", status=404),
        ),
        ("serving initial configuration", '"uri":"/nothing"'),
        Ended(says="shutdown complete"),
    ),
    Served(
        "express",
        "vercel",
        (
            Asked("GET", "/?name=Ada", answer="hello from express, Ada"),
            Asked(
                *("POST", "/sum", '{"numbers": [1, 2, 39]}', 201, {"sum": 42}),
                {"x-served-by": "express"},
                JSON,
            ),
            Asked("POST", "/sum", "{", 400, "Bad Request", send=JSON),
        ),
        ("> node server.js", "listening on 3000", "summing 3"),
        # npm ends by the signal; the application below it has its time all the same.
        Ended(128 + TERM, "closed"),
        {"port": 3000},
    ),
    Served(
        "flask",
        "scf-web",
        (
            Asked("GET", "/?name=Ada", answer="hello from flask, Ada"),
            Asked("POST", "/orders", '{"item": "tea"}', 201, "tea", send=JSON),
            Asked("POST", "/orders", "{", 400, "Bad Request", send=JSON),
        ),
        ("Booting worker with pid", "order for tea", '"POST /orders HTTP/1.1" 400'),
        Ended(says="Shutting down: Master"),
    ),
    Served(
        "fastapi",
        "fc",
        (
            Asked("GET", "/?name=Ada", answer={"hello": "Ada"}),
            Asked(
                *("POST", "/items", '{"name": "tea", "price": 2}', 201),
                {"name": "tea", "gross": 2.5},
                send=JSON,
            ),
            Asked("POST", "/items", '{"name": "tea"}', 422, "Field required", send=JSON),
        ),
        ("opened", "Uvicorn running on http://0.0.0.0:9000", '"POST /items HTTP/1.1" 422'),
        # The shell ends by the signal; the server below it has its time all the same.
        Ended(128 + TERM, "closed"),
    ),
    Served(
        "java",
        "fc",
        (
            Asked("POST", "/", "grüße", 201, "GRÜSSE", {"x-served-by": "java"}),
            Asked("GET", "/x", status=201),
        ),
        ("listening on 9000", "POST /", "GET /x"),
        Ended(128 + TERM, "shutting down"),
        {"memory_mb": 512, "cpu_millis": 500},
    ),
    Served(
        "nats",
        "scf-web",
        (Asked("GET", "/healthz", answer={"status": "ok"}),),
        ("Server is ready",),
        Ended(1, "Exiting"),
    ),
    Served(
        "php",
        "scf-web",
        (
            Asked("GET", "/", answer={"method": "GET", "calls": 1}, headers={"x-served-by": "php"}),
            Asked("POST", "/", "a body", 201, {"md5": "75fd989981509958777cdfcdc66e21b5"}),
        ),
        ("PHP 8", "call 1", "Accepted"),
        Ended(128 + TERM),
    ),
)
NAMES = [served.name for served in SERVED]


@pytest.fixture(scope="module")
def software(agent: RunningAgent) -> Iterator[Functions]:
    """The images on the shared agent, and off it again: they are large."""
    done = subprocess.run(
        [PYTHON, str(BUILD), "--json"], capture_output=True, text=True, timeout=BUILD_S, check=False
    )
    if done.returncode != 0:
        sys.stderr.write(done.stderr)
        raise AssertionError("images/software.py failed")
    archives = json.loads(done.stdout)
    with Functions(agent) as functions:
        with ThreadPoolExecutor(IMPORTS) as importing:
            list(importing.map(functions.import_image, archives.values()))
        yield functions
        functions.clear()
        for name in archives:
            functions.remove_image(name)


def call(agent: RunningAgent, name: str, asked: Asked) -> Reply:
    """Make a call and compare: a text is part of the body, of an object these fields."""
    reply = agent.http(asked.method, f"/http/{name}{asked.path}", asked.body.encode(), asked.send)
    assert reply.status == asked.status, reply
    assert asked.headers.items() <= reply.headers.items(), reply
    if isinstance(asked.answer, str):
        assert asked.answer in reply.body.decode(), reply
    else:
        assert asked.answer.items() <= reply.json().items(), reply
    return reply


def end(functions: Functions, name: str, log: Path) -> pb.Event:
    """Remove a function in order; return the event of its only instance, and its log in `log`."""
    agent = functions.agent
    follow = [str(KINDLING), "logs", "--follow", name]
    environment = os.environ | {"KINDLING_SOCKET": str(agent.socket)}
    with functions.watching() as watched, log.open("wb") as out:
        with subprocess.Popen(follow, stdout=out, env=environment) as follower:
            agent.wait_until(lambda: log.stat().st_size > 0, 10, "the follower")
            functions.remove(name)
            assert follower.wait(30) == 0

        def ended() -> list[pb.Event]:
            return [e for e in watched.events if e.function == name and e.type in ENDS]

        agent.wait_until(lambda: bool(ended()), 10, f"the end of {name}")
        (event,) = ended()
    return event


@pytest.mark.parametrize("served", SERVED, ids=NAMES)
def test_a_server_answers_logs_and_ends_as_elsewhere(agent, software, tmp_path, served):
    image = served.image or served.name
    software.deploy(served.name, image, served.contract, "http", **served.spec)
    for asked in served.calls:
        call(agent, served.name, asked)
    assert len(software.instances(served.name)) == 1, "the second call found the first's instance"
    for text in served.logged:
        agent.wait_until(lambda t=text: t in said(agent, served.name), 10, f"{text!r} in the log")
    event = end(software, served.name, tmp_path / "log")
    log = (tmp_path / "log").read_text()
    found = event.type, event.details["exit_code"]
    assert found == ("InstanceStopped", str(served.ended.exit_code)), log
    assert served.ended.says in log


def said(agent: RunningAgent, name: str) -> str:
    """Return what `kindling logs` shows."""
    return agent.cli("logs", name).out


# Its limits, by its own means


def limits(agent: RunningAgent, software: Functions, name: str, **spec: Any) -> Json:
    software.deploy(name, name, kind="http", memory_mb=512, cpu_millis=500, **spec)
    found: Json = agent.http("GET", f"/http/{name}/limits").json()
    return found


def test_java_takes_a_quarter_of_the_memory_and_one_processor(agent, software):
    found = limits(agent, software, "java")
    # What a collector keeps for itself is not counted.
    assert 0.9 * 128 * MB <= found["heap"] <= 128 * MB
    assert found["processors"] == 1


def test_node_knows_its_memory(agent, software):
    found = limits(agent, software, "express", contract="vercel", port=3000)
    # Its library looks at cgroup v2 from 1.45 on only.
    if agent.layout.version == 1 or tuple(map(int, found["uv"].split(".")[:2])) >= (1, 45):
        assert found["constrained"] == 512 * MB
        assert found["heap"] < 512 * MB
    assert (found["uid"], found["home"]) == (1000, "/home/node")


def test_python_counts_the_processors_of_its_quota(agent, software):
    assert limits(agent, software, "flask", contract="scf-web")["processors"] == 1


def test_go_counts_the_processors_of_its_quota(agent, software):
    """By automaxprocs: Go's own runtime asks from 1.25 on."""
    software.deploy("nats", "nats", "scf-web", cpu_millis=500)
    assert agent.http("GET", "/http/nats/healthz").status == 200
    agent.wait_until(lambda: "maxprocs: " in said(agent, "nats"), 10, "what automaxprocs found")
    assert "maxprocs: Updating GOMAXPROCS=1" in said(agent, "nats")


# A batch program


ORDERS = [
    {"customer": "Ada", "amount": 40},
    {"customer": "Bob", "amount": 7},
    {"customer": "Ada", "amount": 2},
]


@pytest.mark.parametrize("contract", ["scf-job", "fc2"])
def test_a_batch_program_gets_its_input_and_gives_its_result(agent, software, contract):
    software.deploy("sqlite", "sqlite", contract, "job")
    done = agent.cli("invoke", "sqlite", "--data", json.dumps(ORDERS), "--wait")
    assert "customer,total\r\nAda,42\r\nBob,7" in done.out.replace("\n", "\r\n"), done


def test_a_batch_program_that_fails_keeps_its_own_exit_code(agent, software):
    software.deploy("sqlite", "sqlite", "scf-job", "job")
    reply = agent.http("POST", "/invoke/sqlite", "no JSON")
    id = reply.headers["x-scf-request-id"]
    agent.wait_until(lambda: software.call(id).HasField("exit_code"), 20, "the exit")
    assert software.call(id).exit_code == 1
    assert "malformed JSON" in said(agent, "sqlite")
