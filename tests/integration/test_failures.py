"""Starts that fail: each has one clear error in its contract's words, and leaves nothing behind.

The container's own log lines, stamped, its real exit code and signal are part of the error. The
fixture looks for left-overs after every test.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest

from agent.cli.client import Refused
from agent.errors import AgentError, InvalidSpec
from tests.integration.functions import HOST, archives
from tests.integration.running import Reply

# RFC 3339 with nanoseconds, then the line.
STAMPED = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z "
WEB = ["fc", "fc2", "scf-web", "vercel"]
SOON = {"startup_timeout_s": 1.5}


def call(agent: Any, name: str) -> Reply:
    reply: Reply = agent.http("GET", f"/http/{name}/echo")
    return reply


def said(reply: Reply) -> str:
    """Return the error's sentence, whatever its shape."""
    text = reply.body.decode()
    if reply.headers["content-type"].startswith("text/plain"):
        return text
    body = json.loads(text)
    keys = ("Message", "ErrorMessage", "errorMessage")
    return str(next(body[key] for key in keys if key in body))


# Nobody listens where it should


@pytest.mark.parametrize(
    ("contract", "status", "sentence"),
    [
        (
            "fc",
            412,
            r"Function instance health check failed on port 9000 in 1\.5 seconds\.\nLogs:{logs}",
        ),
        (
            "fc2",
            412,
            r"The CA's http server cannot be started: ContainerStartDuration: \d{{10}}\. "
            r"Ping CA failed due to: dial tcp 172\.30\.\d+\.\d+:9000: getsockopt: "
            r"connection refused Logs : {logs}",
        ),
        ("scf-web", 446, r"PortBindingFailed: .* 0\.0\.0\.0:9000 within 1\.5 seconds\nLogs:{logs}"),
        ("vercel", 500, r"(?s:.*)nothing listened on 0\.0\.0\.0:80 in 1\.5 seconds\nLogs:\n{logs}"),
    ],
)
def test_a_loopback_listener_fails_its_start_with_its_own_log(
    functions, agent, contract, status, sentence
):
    functions.deploy("shy", contract=contract, env={"PROBE_LISTEN": "127.0.0.1"}, **SOON)
    reply = call(agent, "shy")
    assert reply.status == status
    port = 80 if contract == "vercel" else 9000
    logs = rf"{STAMPED}probe starts\n{STAMPED}Listening on port {port}\n?"
    assert re.fullmatch(sentence.format(logs=logs), said(reply)), said(reply)
    assert functions.instances("shy") == []


def test_a_late_listener_is_waited_for(functions, agent):
    functions.deploy("slow", env={"PROBE_DELAY_S": "1"}, startup_timeout_s=30)
    reply = call(agent, "slow")
    assert reply.status == 200
    (instance,) = functions.instances("slow")
    assert instance.cold_start.phases.listen.ToMilliseconds() >= 1000


# It ends by itself


@pytest.mark.parametrize(
    ("contract", "status", "code"),
    [
        ("fc", 412, '"Code": "CAExited"'),
        ("fc2", 412, '"ErrorCode": "CAExited"'),
        ("scf-web", 405, '"statusCode": 405'),
        ("vercel", 500, "Code: FUNCTION_INVOCATION_FAILED"),
    ],
)
def test_a_crash_at_once_is_told_with_its_code_and_log(functions, agent, contract, status, code):
    functions.deploy("crash", contract=contract, env={"PROBE_CRASH": "3"})
    with functions.watching() as watched:
        reply = call(agent, "crash")
        agent.wait_until(lambda: bool(watched.of("crash", "InstanceFailed")), 10, "the event")
    assert reply.status == status
    assert code in reply.body.decode()
    assert "(code 3)" in said(reply)
    # Two streams, two pipes: which of them was read first is not known to anybody.
    for line in ("probe starts", "probe crashes as it was told"):
        assert re.search(rf"{STAMPED}{line}(\n|$)", said(reply)), said(reply)
    (event,) = watched.of("crash", "InstanceFailed")
    assert (event.details["kind"], event.details["exit_code"]) == ("exited_at_start", "3")


def test_a_crash_in_a_call_is_told_with_its_code(functions, agent):
    functions.deploy("crash")
    reply = agent.http("GET", "/http/crash/exit?code=5")
    assert (reply.status, reply.json()["Code"]) == (502, "FunctionUnhandledError")
    assert "(code 5)" in said(reply)
    assert call(agent, "crash").status == 200


def test_an_idle_instance_that_ends_is_noticed_and_replaced(functions, agent):
    functions.deploy("tired", scaling={"min": 1})
    (before,) = functions.ready("tired")
    with functions.watching() as watched:
        agent.http("GET", "/http/tired/exit?code=0")
        agent.wait_until(
            lambda: [one.id for one in functions.ready("tired")] not in ([], [before.id]), 20
        )
    (event,) = watched.of("tired", "InstanceFailed")
    assert event.details["exit_code"] == "0"


def test_a_wanted_instance_that_crashes_fails_the_deploy_with_its_log(functions):
    with pytest.raises(Refused) as refused:
        functions.deploy("crash", env={"PROBE_CRASH": "3"}, scaling={"min": 1})
    assert refused.value.code == "FunctionFailed"
    assert refused.value.fault == "function"
    assert refused.value.more["exit_code"] == 3
    assert "probe crashes as it was told" in refused.value.log


def test_a_failing_initialize_hook_is_fcs_initialization_error(functions, agent):
    functions.deploy(
        "hooked", "hello-http", kind="event", hooks={"initialize": {"path": "/status?code=500"}}
    )
    reply = agent.http("POST", "/invoke/hooked", "{}")
    assert (reply.status, reply.headers["x-fc-error-type"]) == (200, "InitializationError")
    assert "500" in said(reply)


# The command


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["/no/such/program"], "CAFileNotFound"),
        (["nosuchprogram"], "CAFileNotFound"),
        (["/app/main.py"], "CAFilePermission"),
        (["/app"], "CAFilePermission"),
    ],
)
def test_a_command_that_cannot_run_is_named(functions, agent, command, code):
    functions.deploy("lost", command=command)
    reply = call(agent, "lost")
    assert (reply.status, reply.json()["Code"]) == (412, code)
    assert f"with start command '{command[0]}'" in said(reply)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("print('bye', end='')", "(code 0)"),
        ("print('bye', end='', flush=True); import os; os.abort()", "(code 134, signal 6 SIGABRT)"),
    ],
)
def test_however_it_ends_its_last_words_are_kept(functions, agent, program, words):
    functions.deploy("brief", command=["/usr/bin/python3", "-c", program])
    reply = call(agent, "brief")
    assert (reply.status, reply.json()["Code"]) == (412, "CAExited")
    assert words in said(reply)
    assert re.search(rf"{STAMPED}bye", said(reply)), said(reply)


# Images


def test_an_unknown_local_image_is_named_with_the_way_out(functions):
    with pytest.raises(AgentError) as refused:
        functions.deploy("none", f"{HOST}/nobody:7")
    assert refused.value.code == "NotFound"
    assert f"image {HOST}/nobody:7 is not on this node" in refused.value.message
    assert "kindling image import" in refused.value.message


def test_a_registry_that_does_not_answer_is_named(functions):
    with pytest.raises(AgentError) as refused:
        functions.deploy("none", "127.0.0.1:9/nobody:7")
    assert refused.value.fault == "platform"
    assert "127.0.0.1:9" in refused.value.message


def test_an_image_of_another_architecture_is_refused_by_name(agent, functions, tmp_path):
    archive = tmp_path / "arm.tar"
    change_architecture(Path(archives()[f"{HOST}/static:1"]), archive, "arm64")
    done = agent.cli("image", "import", archive, "--name", f"{HOST}/arm:1", check=False)
    assert done.status == 1
    assert "arm64" in done.err.splitlines()[0]
    assert "linux/amd64" in done.err.splitlines()[0]
    assert f"{HOST}/arm:1" not in agent.cli("image", "ls").out


def change_architecture(source: Path, target: Path, name: str) -> None:
    """Copy an OCI archive of one image and say that it is for another architecture."""
    with tarfile.open(source) as old:
        files = {m.name: old.extractfile(m).read() for m in old if m.isfile()}  # type: ignore[union-attr]

    def put(content: dict[str, Any], media_type: str) -> dict[str, Any]:
        raw = json.dumps(content).encode()
        digest = hashlib.sha256(raw).hexdigest()
        files[f"blobs/sha256/{digest}"] = raw
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(raw)}

    def get(descriptor: dict[str, Any]) -> dict[str, Any]:
        algorithm, _, digest = descriptor["digest"].partition(":")
        content: dict[str, Any] = json.loads(files[f"blobs/{algorithm}/{digest}"])
        return content

    index = json.loads(files["index.json"])
    (described,) = index["manifests"]
    manifest = get(described)
    config = get(manifest["config"]) | {"architecture": name}
    manifest["config"] = put(config, manifest["config"]["mediaType"])
    described |= put(manifest, described["mediaType"])
    if "platform" in described:
        described["platform"]["architecture"] = name
    files["index.json"] = json.dumps(index).encode()
    with tarfile.open(target, "w") as new:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            new.addfile(entry, io.BytesIO(content))


# What the node does not have


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("user", {"user": "nobody-of-this-name"}),
        ("mounts[0].volume", {"mounts": [{"volume": "nowhere", "target": "/data"}]}),
    ],
)
def test_what_only_the_node_can_know_is_refused_at_deploy(functions, field, fields):
    with pytest.raises(InvalidSpec) as refused:
        functions.deploy("wrong", **fields)
    assert [problem.field for problem in refused.value.problems] == [field]


def test_a_secret_whose_file_is_missing_fails_the_call_and_names_it(functions, agent):
    functions.deploy("secret", secrets=[{"name": "TOKEN", "file": "/no/such/file"}])
    reply = call(agent, "secret")
    assert reply.status == 500
    assert "secret TOKEN: /no/such/file cannot be read" in said(reply)


# Stopping


def test_what_ignores_term_is_killed_by_force(functions, agent):
    functions.deploy("stubborn", env={"PROBE_IGNORE_TERM": "1"}, scaling={"min": 1})
    functions.remove("stubborn", force=True)
    assert functions.instances() == []


def test_a_removed_function_ends_its_calls_first(functions, agent):
    functions.deploy("busy", scaling={"min": 1})
    replies: list[Reply] = []
    caller = threading.Thread(
        target=lambda: replies.append(agent.http("GET", "/http/busy/sleep?s=1"))
    )
    caller.start()
    agent.wait_until(lambda: functions.capacity()["inflight"] == 1, 10, "the call")
    functions.remove("busy")
    caller.join(10)
    assert replies[0].json() == {"slept_s": 1}
    assert call(agent, "busy").status == 404
