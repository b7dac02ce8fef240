"""The verbs against the real control server: what is asked, printed, and how it ends."""

from __future__ import annotations

import base64
import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.control.node import InvokeCall, InvokeResult
from agent.errors import FailedPrecondition, FunctionFailed, Overloaded
from agent.model.failure import Failure, FailureKind
from agent.model.records import CallRecord, Meters
from agent.model.spec import RegistrySpec
from tests.component.cli_agent import Agent, running
from tests.component.control_fake import AT_NS, IMAGE
from tests.schemas import faults

HELLO = ("--name", "hello", "--image", "kindling.local/hello:1", "--contract", "fc")


@pytest.fixture
def agent() -> Iterator[Agent]:
    with running() as one:
        yield one


@pytest.fixture
def hello(agent: Agent) -> Agent:
    assert agent.cli("deploy", *HELLO).exit_code == 0
    agent.node.seen.clear()
    return agent


@pytest.fixture
def job(agent: Agent) -> Agent:
    done = agent.cli("deploy", "--name", "job", "--image", "i:1", "--contract", "scf-job")
    assert done.exit_code == 0
    agent.node.seen.clear()
    return agent


def asked(agent: Agent, verb: str) -> Any:
    """Return what the node was asked, the only time it was."""
    found = [seen[1:] for seen in agent.node.seen if seen[0] == verb]
    assert len(found) == 1, agent.node.seen
    return found[0]


def call(agent: Agent) -> InvokeCall:
    found = asked(agent, "invoke")[0]
    assert isinstance(found, InvokeCall)
    return found


def answering(agent: Agent, status: int, body: bytes = b"", **more: Any) -> None:
    agent.node.result = InvokeResult("1-a", status, more.pop("headers", []), body, **more)


# -- deploy


def test_deploy_sends_file_options_and_sets_in_order_of_strength(
    agent: Agent, tmp_path: Path
) -> None:
    file = tmp_path / "hello.toml"
    file.write_text(
        'name = "hello"\nimage = "a:1"\ncontract = "fc"\nmemory_mb = 256\nport = 8000\n'
        'egress = "none"\ntimeout_s = 5\n[env]\nMODE = 1\n[scaling]\nmin = 1\n[hooks.initialize]\n'
    )
    done = agent.cli(
        "deploy", str(file), "--image", "b:2", "--kind", "http", "--set", "memory_mb=512",
        "--set", 'env.WHO="a b"', "--set", "scaling.max=7", "--wait",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "deployed hello version 1, Ready\n"
    assert done.stderr == "warning: give it more memory\n"
    spec, wait = asked(agent, "deploy")
    assert wait
    assert (spec.image, spec.kind, spec.memory_mb, spec.port) == ("b:2", "http", 512, 8000)
    assert spec.env == {"MODE": "1", "WHO": "a b"}
    assert (spec.scaling.min, spec.scaling.max) == (1, 7)
    assert spec.egress == "none"
    assert spec.timeout_s == 5.0
    assert spec.hooks.initialize is not None
    assert spec.hooks.pre_stop is None


def test_deploy_reads_stdin(agent: Agent) -> None:
    text = b'name = "hello"\nimage = "a:1"\ncontract = "vercel"\negress = ["10.0.0.0/8"]\n'
    assert agent.cli("deploy", "-", stdin=text).exit_code == 0
    assert asked(agent, "deploy")[0].egress == ("10.0.0.0/8",)


def test_deploy_as_json_tells_the_version_and_the_whole_spec(agent: Agent) -> None:
    first = agent.json("deploy", "deploy", *HELLO)
    again = agent.json("deploy", "deploy", *HELLO)
    assert (first["created"], first["version"], first["state"]) == (True, 1, "Ready")
    assert (again["created"], again["version"]) == (False, 1)
    assert first["spec"]["memory_mb"] > 0
    assert first["spec"]["egress"] == "all"
    assert first["warnings"] == ["give it more memory"]
    assert agent.cli("deploy", *HELLO).stdout == "unchanged hello version 1, Ready\n"


def test_deploy_tells_every_problem_of_a_spec_one_per_line(agent: Agent) -> None:
    wrong = ("--set", "memroy_mb=512", "--set", "memory_mb=1", "--set", "env.FC_X=1")
    done = agent.cli("deploy", *HELLO, *wrong)
    assert done.exit_code == 1
    assert done.stdout == ""
    first, *rest = done.stderr.splitlines()
    assert first == "kindling deploy: 3 problems:"
    assert sorted(line.strip().partition(":")[0] for line in rest) == [
        "env.FC_X",
        "memory_mb",
        "memroy_mb",
    ]
    assert "did you mean memory_mb?" in done.stderr
    assert agent.node.seen == []
    error = agent.refused("deploy", *HELLO, *wrong)
    assert error["code"] == "InvalidSpec"
    assert {p["field"] for p in error["problems"]} == {"memroy_mb", "memory_mb", "env.FC_X"}


def test_deploy_tells_where_a_file_is_not_toml(agent: Agent, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('name = "hello"\nimage = \n')
    done = agent.cli("deploy", str(file))
    assert done.exit_code == 1
    assert f"{file}: is not TOML" in done.stderr
    assert "line 2" in done.stderr
    file.write_bytes(b'name = "\xff"')
    assert "is not UTF-8" in agent.cli("deploy", str(file)).stderr


def test_deploy_refuses_a_group_by_name(agent: Agent, tmp_path: Path) -> None:
    file = tmp_path / "group.toml"
    file.write_text('name = "g"\n[[services]]\nname = "a"\n')
    done = agent.cli("deploy", str(file))
    assert done.exit_code == 1
    assert "groups are not built" in done.stderr


def test_deploy_sends_every_field_that_a_spec_has(agent: Agent, tmp_path: Path) -> None:
    # What TOML says and what the node gets must not differ by the way over the wire.
    file = tmp_path / "all.toml"
    file.write_text(EVERYTHING)
    done = agent.cli("deploy", str(file))
    assert done.exit_code == 0, done.stderr
    from agent.model.spec_parse import parse_spec
    from agent.model.spec_text import parse_toml

    assert asked(agent, "deploy")[0] == parse_spec(parse_toml(EVERYTHING))


EVERYTHING = """
name = "all"
version = "3"
image = "kindling.local/hello:1"
contract = "fc"
kind = "http"
command = ["/bin/a", "-x"]
args = ["b"]
secrets = [{name = "KEY", value = "s3cret"}, {name = "CERT", file = "/etc/x"}]
mounts = [{volume = "data", target = "/data", read_only = true}]
port = 8000
user = "app:app"
memory_mb = 512
cpu_millis = 700
pids = 64
disk_mb = 10240
timeout_s = 12.5
startup_timeout_s = 30
concurrency = 10
max_queue = 5
queue_timeout_s = 3
environment = "preview"
egress = ["10.0.0.0/8", "192.0.2.0/24"]
acceleration = "eager"
on_client_cancel = "recycle"
[env]
MODE = "fast"
COUNT = 3
[labels]
team = "a"
[scaling]
min = 1
max = 4
standby = 1
idle_s = 60
freeze_after_ms = 100
[hooks.initialize]
path = "/init"
timeout_s = 5
[hooks.pre_stop]
[health_check]
path = "/health"
period_s = 5
[registry]
ca_pem = ""
credential_command = ["/bin/cred"]
[async_calls]
max_retries = 2
on_failure = "http://192.0.2.1/failed"
"""


# -- remove, status


def test_remove(hello: Agent) -> None:
    done = hello.cli("remove", "hello", "--force")
    assert (done.exit_code, done.stdout) == (0, "removed hello\n")
    assert asked(hello, "remove") == ("hello", True)


def test_remove_of_what_is_not_there_fails_in_one_line(agent: Agent) -> None:
    done = agent.cli("remove", "ghost")
    assert done.exit_code == 1
    assert done.stderr.startswith("kindling remove: no function ghost")
    assert done.stderr.count("\n") == 1
    error = agent.refused("remove", "ghost")
    assert (error["code"], error["fault"]) == ("NotFound", "caller")


def test_status_shows_node_functions_instances_and_images(hello: Agent) -> None:
    text = hello.cli("status").stdout
    for part in ("node in local", "FUNCTION", "hello-0badcafe", "READY", "kindling.local/hello:1"):
        assert part in text
    found = hello.json("status", "status")
    assert found["node"]["capacity"]["free_layers"] == {"512": 9, "10240": 1}
    assert [f["name"] for f in found["functions"]] == ["hello"]
    one = found["instances"][0]
    assert (one["id"], one["state"], one["inflight"]) == ("hello-0badcafe", "READY", 1)
    assert one["cold_start"]["total_ms"] == 20.0
    assert found["images"][0]["used_by"] == ["hello"]


def test_status_reads_every_page(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.control.deploying.PAGE_BYTES", 1)
    for name in ("a", "b", "c"):
        assert agent.cli("deploy", "--name", name, *HELLO[2:]).exit_code == 0
    assert [f["name"] for f in agent.json("status", "status")["functions"]] == ["a", "b", "c"]


# -- invoke


def test_invoke_prints_the_body_raw_and_nothing_else(hello: Agent) -> None:
    done = hello.cli("invoke", "hello", "--data", '{"a": "é"}')
    assert (done.exit_code, done.stdout_bytes, done.stderr) == (0, b"\x00result", "")
    made = call(hello)
    assert (made.kind, made.body, made.headers) == ("event", '{"a": "é"}'.encode(), [])


def test_invoke_with_method_or_path_is_an_http_call(hello: Agent) -> None:
    answering(hello, 200, b"page")
    done = hello.cli(
        "invoke", "hello", "--path", "/a%20b?c=d", "--header", "X-One: 1:2", "--header", "X-Two:",
        "--qualifier", "1",
    )  # fmt: skip
    assert done.stdout == "page"
    made = call(hello)
    assert (made.kind, made.method, made.path) == ("http", b"GET", b"/a%20b?c=d")
    assert made.headers == [(b"X-One", b"1:2"), (b"X-Two", b"")]
    assert made.qualifier == "1"
    hello.node.seen.clear()
    hello.cli("invoke", "hello", "--method", "PUT", "--data", "x")
    made = call(hello)
    assert (made.kind, made.method, made.path, made.body) == ("http", b"PUT", b"/", b"x")


@pytest.mark.parametrize("junk", [b"", b"\xff\x00\r\n", b"x" * 100_000])
def test_invoke_takes_a_body_from_a_file_and_from_stdin(
    hello: Agent, tmp_path: Path, junk: bytes
) -> None:
    file = tmp_path / "event"
    file.write_bytes(junk)
    assert hello.cli("invoke", "hello", "--data", f"@{file}").exit_code == 0
    assert call(hello).body == junk
    hello.node.seen.clear()
    assert hello.cli("invoke", "hello", "--data", "@-", stdin=junk).exit_code == 0
    assert call(hello).body == junk


def test_invoke_as_json(hello: Agent) -> None:
    headers = [(b"Content-Type", b"a/b"), (b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2")]
    answering(hello, 200, b"\x00\xff", headers=headers)
    found = hello.json("invoke", "invoke", "hello")
    assert base64.b64decode(found["body_base64"]) == b"\x00\xff"
    assert found["headers"] == {"Content-Type": "a/b", "Set-Cookie": ["a=1", "b=2"]}
    assert (found["status"], found["request_id"], found["cold_start"]) == (200, "1-a", None)
    assert found["error"] is None
    hello.node.result = None
    cold = hello.json("invoke", "invoke", "hello")["cold_start"]
    assert cold["phases"] == {
        "queue": 0.5,
        "image": 1.0,
        "slots": 0.25,
        "create": 10.0,
        "start": 4.25,
        "listen": 4.0,
        "init": 0.0,
    }


def test_invoke_trace_itemises_the_cold_start_on_stderr(hello: Agent) -> None:
    done = hello.cli("invoke", "hello", "--trace")
    assert done.stdout_bytes == b"\x00result"
    assert done.stderr.startswith(
        "cold start 20.00 ms: queue 0.50, image 1.00, slots 0.25, create 10.00, start 4.25, "
        "listen 4.00, init 0.00, found ready: image, network\n"
    )
    assert "billed 17 ms" in done.stderr
    answering(hello, 200, meters=Meters(wall_ms=2.0))
    assert "warm" in hello.cli("invoke", "hello", "--trace").stderr


def test_invoke_of_a_failing_status_prints_the_body_and_fails(hello: Agent) -> None:
    answering(hello, 404, b"not here")
    done = hello.cli("invoke", "hello", "--path", "/x")
    assert (done.exit_code, done.stdout) == (1, "not here")
    assert done.stderr == "kindling invoke: hello answered 404\n"


def test_invoke_of_a_failing_function_says_why(hello: Agent) -> None:
    failure = Failure(FailureKind.OUT_OF_MEMORY, "the instance ran out of 128 MB\nand more")
    answering(hello, 200, b'{"Code": "x"}', failure=failure)
    done = hello.cli("invoke", "hello")
    assert (done.exit_code, done.stdout) == (1, '{"Code": "x"}')
    assert done.stderr == (
        "kindling invoke: hello failed (out_of_memory, 200): the instance ran out of 128 MB\n"
    )
    result = hello.cli("invoke", "hello", "--json")
    assert result.exit_code == 1
    printed, error = json.loads(result.stdout), json.loads(result.stderr)
    assert faults("invoke", printed) == []
    assert faults("error", error) == []
    assert printed["error"]["kind"] == error["error"]["kind"] == "out_of_memory"
    assert error["error"]["fault"] == "function"


def test_invoke_tells_when_to_try_again(hello: Agent) -> None:
    hello.node.error = Overloaded("no free slot", reason="slots", retry_after_s=2.0)
    done = hello.cli("invoke", "hello")
    assert done.exit_code == 1
    assert done.stderr == "kindling invoke: no free slot\n  try again in 2 s\n"
    error = hello.refused("invoke", "hello")
    assert (error["code"], error["kind"], error["retryable"]) == ("Overloaded", "slots", True)
    assert error["retry_after_s"] == 2.0


def test_a_function_that_failed_shows_its_log_and_exit_code(hello: Agent) -> None:
    failure = Failure(
        FailureKind.EXITED_AT_START, "exited at once", exit_code=7, log_lines=("T one", "T two")
    )
    hello.node.error = FunctionFailed(failure)
    done = hello.cli("deploy", *HELLO, "--wait")
    assert done.stderr == "kindling deploy: exited at once\n  | T one\n  | T two\n"
    error = hello.refused("deploy", *HELLO, "--wait")
    assert (error["exit_code"], error["log"]) == (7, ["T one", "T two"])


def test_what_is_not_built_is_named(hello: Agent) -> None:
    error = hello.refused("invoke", "hello", "--async")
    assert error["code"] == "Unimplemented"
    assert "async" in error["message"]


# -- jobs


def test_a_job_prints_its_call_id(job: Agent) -> None:
    done = job.cli("invoke", "job", "--data", "event")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "c1\n", "")
    assert asked(job, "run_job") == ("job", "", b"event", False, "")
    found = job.json("invoke", "invoke", "job")
    assert (found["request_id"], found["call"]["state"]) == ("c1", "Running")
    assert found["call"]["exit_code"] is None
    assert found["log"] is None


def test_a_job_that_is_waited_for_prints_its_log_and_exit_code(job: Agent) -> None:
    done = job.cli("invoke", "job", "--wait")
    assert done.exit_code == 0
    assert done.stdout_bytes == b"call c1\ncaf\xe9\nexit code 0\n"
    found = job.json("invoke", "invoke", "job", "--wait")
    assert found["call"]["exit_code"] == 0
    assert [line["text"] for line in found["log"]] == ["caf�"]


def test_a_job_that_failed_fails(job: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failed(*_: Any, **__: Any) -> CallRecord:
        return CallRecord("c1", "job", 1, "i1", "Failed", AT_NS, AT_NS, AT_NS, exit_code=3)

    monkeypatch.setattr(job.node, "run_job", failed)
    done = job.cli("invoke", "job", "--wait")
    assert done.exit_code == 1
    assert done.stdout_bytes.endswith(b"exit code 3\n")
    assert done.stderr == "kindling invoke: job failed: exit code 3\n"
    assert done.stdout_bytes.startswith(b"call c1\n")


def test_a_job_takes_no_http_call(job: Agent) -> None:
    done = job.cli("invoke", "job", "--path", "/")
    assert done.exit_code == 2
    assert "is a job" in done.stderr
    assert not [seen for seen in job.node.seen if seen[0] == "run_job"]


# -- logs


def test_logs_print_time_instance_stream_and_the_bytes_as_they_came(hello: Agent) -> None:
    done = hello.cli("logs", "hello", "--tail", "5", "--instance", "i1")
    assert done.stdout_bytes == b"2023-11-14T22:13:20.123456789Z i1 stderr caf\xe9\n"
    assert "4 lines were dropped" in done.stderr
    query = asked(hello, "logs")[1]
    assert (query.tail, query.instance, query.follow) == (5, "i1", False)


def test_logs_as_json_are_one_object_a_line(hello: Agent) -> None:
    line = hello.json("logs", "logs", "hello")
    assert (line["stream"], line["text"], line["dropped"]) == ("stderr", "caf�", 4)
    assert line["time"] == "2023-11-14T22:13:20.123456789Z"


# -- images


def test_images_are_listed_and_removed(agent: Agent) -> None:
    heads, row = agent.cli("image", "ls").stdout.splitlines()
    assert heads.split() == [
        "IMAGE",
        "DIGEST",
        "SIZE",
        "COMPRESSED",
        "FORM",
        "LAST",
        "USE",
        "USED",
        "BY",
    ]
    assert re.fullmatch(
        r"kindling.local/hello:1  aaaaaaaaaaaa  40.0 kB  12.3 kB     unpacked  \d+ d ago  hello",
        row,
    )
    assert agent.json("image-ls", "image", "ls")["images"][0]["size_bytes"] == 12345
    assert agent.cli("image", "rm", "a:1").stdout == "removed a:1\n"
    assert asked(agent, "remove_image") == ("a:1",)
    assert agent.json("image-rm", "image", "rm", "a:1") == {"removed": "a:1"}
    agent.node.error = FailedPrecondition("image a:1 is in use by hello")
    assert agent.refused("image", "rm", "a:1")["code"] == "FailedPrecondition"


def test_an_image_is_shown_with_its_config_and_layers(agent: Agent) -> None:
    shown = agent.cli("image", "inspect", "hello:1").stdout
    assert asked(agent, "image") == ("hello:1",)
    assert "40.0 kB on the disk, 12.3 kB compressed, unpacked, last used" in shown
    assert [line.split(None, 1) for line in shown.splitlines()[4:10]] == [
        ["Cmd", '["/serve", "-v"]'],
        ["Env", "A=1"],
        ["Env", "B=2"],
        ["ExposedPorts", "80/tcp"],
        ["Labels", "by=me"],
        ["User", "7"],
    ]
    assert shown.splitlines()[-1].split() == ["dddddddddddd", "40.0", "kB", "12.0", "kB"]
    told = agent.json("image-inspect", "image", "inspect", "hello:1")
    assert told["config"]["config"]["Cmd"] == ["/serve", "-v"]
    assert [layer["unpacked_bytes"] for layer in told["layers"]] == [40_000]


def test_a_collection_says_what_went_and_what_would_go(agent: Agent) -> None:
    shown = agent.cli("gc").stdout
    assert asked(agent, "collect_garbage") == (False,)
    assert "image   docker.io/library/old:1  2.0 MB      20" in shown
    assert "gave back 3.0 MB and 30 files" in shown
    assert "the image store holds 7.0 MB of at most 20.0 MB" in shown
    assert "would give back 3.0 MB" in agent.cli("gc", "--dry-run").stdout
    assert agent.node.seen[-1] == ("collect_garbage", True)
    told = agent.json("gc", "gc", "--dry-run")
    assert (told["dry_run"], told["max_files"]) == (True, None)
    assert [one["kind"] for one in told["removed"]] == ["layers", "image"]


def test_an_image_is_pulled(agent: Agent) -> None:
    done = agent.cli("image", "pull", "127.0.0.1:5000/a:1")
    assert done.stdout == f"{IMAGE.name} {IMAGE.digest}\n"
    assert asked(agent, "pull_image") == ("127.0.0.1:5000/a:1",)
    first, last = agent.json_lines("image-pull", "image", "pull", "a:1")
    assert (first["phase"], first["bytes"], first["total_bytes"]) == ("downloading", 70, 100)
    assert (first["layers_done"], first["layers"], first["eta_s"]) == (1, 2, 1.5)
    assert (last["phase"], last["image"]["digest"]) == ("done", IMAGE.digest)
    assert last["warnings"] == []


def test_an_image_that_cannot_be_mounted_is_pulled_and_says_so(agent: Agent) -> None:
    words = ("image", "pull", "a:1", "--acceleration", "lazy")
    done = agent.cli(*words)
    assert asked(agent, "pull_image") == ("a:1", "lazily")
    assert done.stderr == "warning: it has no index\n"
    assert agent.json_lines("image-pull", *words)[-1]["warnings"] == ["it has no index"]


def test_a_password_is_read_from_stdin_and_a_ca_from_its_file(agent: Agent, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("CA")
    words = ("image", "pull", "a:1", "--username", "me", "--password-stdin", "--ca", str(ca))
    done = agent.cli(*words, stdin=b"s3cret\n")
    assert done.exit_code == 0, done.stderr
    wanted = RegistrySpec(username="me", password="s3cret", ca_pem="CA")
    assert agent.node.registries == [wanted]
    assert "s3cret" not in done.output
    for half in (["--username", "me"], ["--password-stdin"]):
        done = agent.cli("image", "pull", "a:1", *half)
        assert done.exit_code == 2
        assert "--username and --password-stdin go together" in done.stderr


def test_an_image_is_imported_from_a_file_and_from_a_pipe(agent: Agent, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    with tarfile.open(archive, "w") as tar:
        info = tarfile.TarInfo("blob")
        info.size = 3 << 20
        with Path("/dev/zero").open("rb") as zeros:
            tar.addfile(info, zeros)
    done = agent.cli("image", "import", str(archive), "--name", "b:2")
    assert done.exit_code == 0, done.stderr
    assert asked(agent, "import_image") == ("b:2",)
    assert agent.node.imported == archive.read_bytes()
    agent.node.imported = b""
    assert agent.cli("image", "import", "-", stdin=b"not a tar").exit_code == 0
    assert agent.node.imported == b"not a tar"
    found = agent.json("image-import", "image", "import", str(archive))
    assert found["images"][0]["name"] == IMAGE.name


def test_an_import_that_is_refused_halfway_fails_in_one_line(agent: Agent, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    archive.write_bytes(b"x" * (8 << 20))
    agent.node.error = FailedPrecondition("the disk is full")
    assert agent.refused("image", "import", str(archive))["message"] == "the disk is full"


# -- drain


def test_drain_and_undrain(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    done = agent.cli("drain", "--timeout", "1.5")
    assert done.exit_code == 1
    assert done.stderr.startswith("kindling drain: 2 calls are still in flight")
    assert asked(agent, "drain") == (1.5,)

    async def empty(_timeout_s: float | None) -> int:
        return 0

    monkeypatch.setattr(agent.node, "drain", empty)
    assert agent.json("drain", "drain") == {"draining": True, "inflight": 0}
    assert agent.cli("drain").stdout.startswith("drained")
    assert agent.json("undrain", "undrain") == {"draining": False}


def test_all_images_of_an_archive_or_one_by_name_are_asked_for(
    agent: Agent, tmp_path: Path
) -> None:
    archive = tmp_path / "image.tar"
    archive.write_bytes(b"x")
    assert agent.cli("image", "import", str(archive), "--all").exit_code == 0
    assert asked(agent, "import_image") == ("all",)
    done = agent.cli("image", "import", str(archive), "--all", "--name", "b:2")
    assert done.exit_code == 1
    assert "leave it out to import all of them" in done.stderr


def test_a_layout_in_a_directory_is_packed_on_the_way(agent: Agent, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    (layout / "blobs").mkdir(parents=True)
    (layout / "oci-layout").write_bytes(b"{}")
    (layout / "blobs/a").write_bytes(b"x" * (3 << 20))
    assert agent.cli("image", "import", str(layout)).exit_code == 0
    with tarfile.open(fileobj=io.BytesIO(agent.node.imported)) as tar:
        assert {"./oci-layout", "./blobs/a"} <= set(tar.getnames())
    # Nobody may read one of these, root included: no layout that is not whole is passed off as one.
    kept = agent.cli("image", "import", "/proc/sys/net/ipv4/route")
    assert kept.exit_code == 1
    assert "/proc/sys/net/ipv4/route/flush: Permission denied" in kept.stderr
    missing = agent.cli("image", "import", str(tmp_path / "nowhere"))
    assert missing.exit_code == 2
    assert "No such file" in missing.stderr
