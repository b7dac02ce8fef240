"""The first process of an instance, the node's init or not: stops, exits, what is missing.

The init alone is looked at in tests/component/test_init.py, what is said of a program that cannot
be executed in tests/component/test_diagnosis.py; here both go all the way to the caller.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.errors import AgentError
from tests.integration.functions import ASK_S, Functions
from tests.integration.strange_images import Strangers, python
from tests.strangers import BUSYBOX, Entry, link, shell

Deploy = Callable[..., str]

SERVER = """
import os, signal, time
from http.server import BaseHTTPRequestHandler, HTTPServer
def bye(*_):
    time.sleep(0.5)
    print("bye", flush=True)
    os._exit(7)
signal.signal(signal.SIGTERM, bye)
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.endswith("/exit"):
            os._exit(5)
        body = b"%d" % os.getpid()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
HTTPServer(("0.0.0.0", 9000), Handler).serve_forever()
"""
RUN = "python3 -u /app/server.py"
FILES = [shell(), Entry("app/server.py", SERVER.encode())]


@pytest.fixture
def put(functions: Functions, tmp_path: Path) -> Deploy:
    """Import the probe with `entries` and an entrypoint, deploy it as `name`."""
    deploy = Strangers(functions, tmp_path).deploy

    def put(name: str, argv: Sequence[str], entries: Sequence[Entry] = (), **spec: Any) -> str:
        return deploy(name, [*FILES, *entries], {"Entrypoint": list(argv), "Cmd": None}, **spec)

    return put


def get(functions: Functions, name: str, path: str = "") -> str:
    reply = functions.agent.http("GET", f"/http/{name}/{path}")
    assert reply.status == 200, reply
    return reply.body.decode()


STOPS = {
    "the program": (RUN.split(), "auto"),
    "behind a shell": (["sh", "-c", f"{RUN}; true"], "auto"),
    "in the background of a shell": (["sh", "-c", f"{RUN} & wait"], "true"),
    "in a session of its own": (["sh", "-c", f"setsid {RUN} & wait"], "auto"),
    "as the first process": (RUN.split(), "false"),
}


@pytest.mark.parametrize("case", STOPS)
def test_a_program_says_bye_after_a_removal(functions, put, case):
    argv, init = STOPS[case]
    put("bye", argv, [shell("bin/setsid")], init=init)
    says_bye(functions)


def says_bye(functions: Functions) -> None:
    """Remove the function "bye" and wait for its last word."""
    get(functions, "bye")
    heard: list[bytes] = []
    request = pb.StreamLogsRequest(name="bye", follow=True)
    lines = functions.client.follow("StreamLogs", request, pb.LogLine, within_s=ASK_S)
    listening = threading.Event()

    def listen() -> None:
        with suppress(AgentError):  # the removal ends it
            for line in lines:
                heard.append(line.text)
                listening.set()

    threading.Thread(target=listen, daemon=True).start()
    assert listening.wait(10)  # the server has said something when it was asked
    functions.remove("bye")
    functions.agent.wait_until(lambda: b"bye" in heard, 10, "the last word")


def test_a_program_that_has_become_root_is_reached_by_the_init_of_a_user(functions, put):
    """As sudo does: its user can send it nothing any more."""
    become = "import os, sys; os.setuid(0); os.execvp('python3', ['python3', '-u', sys.argv[1]])"
    entries = [Entry("bin/root", python(), 0o4755), Entry("app/become.py", become.encode())]
    put("bye", ["/bin/root", "/app/become.py", "/app/server.py"], entries, user="1000")
    says_bye(functions)


FIRST = {
    "an init by its name": ["/init"],
    "a link to an init": ["/usr/bin/entry"],
    "behind env": ["/bin/env", "A=1", "/sbin/tini", "--"],
    "a shell line": ["sh", "-c", "/init"],
    "the end of a script": ["/app/start", "/init"],
}


@pytest.mark.parametrize("case", FIRST)
def test_an_image_that_brings_its_own_init_has_it_as_the_first_process(functions, put, case):
    must = (
        f'#!/bin/sh\n[ $$ = 1 ] || {{ echo "can only run as pid 1" >&2; exit 100; }}\nexec {RUN}\n'
    )
    entries = [Entry(path, must.encode()) for path in ("init", "sbin/tini")]
    entries += [link("usr/bin/entry", "/sbin/tini"), shell("bin/env")]
    entries += [Entry("app/start", b'#!/bin/sh\nset -e\nexec "$@"\n')]
    put("first", FIRST[case], entries)
    assert get(functions, "first") == "1"


@pytest.mark.parametrize(("init", "first"), [(True, False), ("auto", False), (False, True)])
def test_a_spec_says_who_is_the_first_process(functions, put, init, first):
    put("said", RUN.split(), init=init)
    assert (get(functions, "said") == "1") is first


@pytest.mark.parametrize("init", [True, False])
def test_an_exit_keeps_its_code_whoever_is_first(functions, put, init):
    put("exits", RUN.split(), init=init)
    get(functions, "exits")
    reply = functions.agent.http("GET", "/http/exits/exit")
    assert reply.status != 200
    assert b"code 5" in reply.body, reply


@pytest.mark.parametrize("init", [True, False])
def test_a_kill_for_memory_is_told_whoever_is_first(functions, init):
    functions.deploy("hungry", memory_mb=128, init=init)
    reply = functions.agent.http("GET", "/http/hungry/memory?mb=300")
    assert (reply.status, reply.json()["Code"]) == (502, "FunctionOOMError")


JOBS = {
    "ends well": (["/usr/bin/python3", "-c", "exit(0)"], 0, ""),
    "exits": (["/usr/bin/python3", "-c", "exit(3)"], 3, "the job exited with code 3"),
    "missing": (["/usr/bin/none"], None, "/usr/bin/none is not in the image"),
}


@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize("case", JOBS)
def test_a_job_ends_as_its_program_does_whoever_is_first(functions, case, init):
    program, code, error = JOBS[case]
    functions.deploy("job", "hello-job", "fc2", "job", command=program, init=init)
    reply = functions.agent.http("POST", "/invoke/job", "x")
    record = functions.call(reply.headers["x-kindling-request-id"])
    assert error in record.error
    if code is not None:
        assert record.exit_code == code


# VFS_CAP_REVISION_2 with the effective bit (capability.h).
_VALUE = bytes.fromhex("01000002") + (1 << 21).to_bytes(4, "little") + bytes(12)
SYS_ADMIN = {"SCHILY.xattr.security.capability": _VALUE.decode("latin-1")}
WRONG = {
    "missing": (["/app/none"], [], "/app/none is not in the image"),
    "missing in PATH": (["node"], [], "node is not in the image"),
    "no interpreter": (
        ["/app/run"],
        [Entry("app/run", b"#!/bin/bash\nexit 0\n")],
        "/app/run starts with #!/bin/bash, and /bin/bash is not in the image",
    ),
    "no format": (["/app/run"], [Entry("app/run", b"echo hello\n")], "exec format error"),
    "a capability out of reach": (
        ["/app/program"],
        [Entry("app/program", BUSYBOX.read_bytes(), pax=SYS_ADMIN)],
        "/app/program carries CAP_SYS_ADMIN",
    ),
    "not executable": (["/app/server.py"], [Entry("app/server.py", b"x", 0o644)], "chmod"),
}


@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize("case", WRONG)
def test_a_start_that_cannot_execute_names_what_is_missing(functions, put, case, init):
    argv, entries, words = WRONG[case]
    put("wrong", argv, entries, init=init)
    reply = functions.agent.http("GET", "/http/wrong/")
    assert reply.status == 412, reply
    assert words.encode() in reply.body, reply
