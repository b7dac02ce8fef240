"""Images of other people's making: owners, accounts and stop signals as they come, run for real."""

from __future__ import annotations

import gzip
import json
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests import oci
from tests.integration.functions import HOST, archives

HUGE = 1516583083
# Says who owns a file and who it is itself; told by signal which one ended it.
TELLER = """
import json, os, signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
def told(number, _):
    print("ended by", number, flush=True)
    os._exit(0)
for number in (signal.SIGTERM, signal.SIGRTMIN + 3, signal.SIGQUIT):
    signal.signal(number, told)
class Teller(BaseHTTPRequestHandler):
    def do_GET(self):
        found = {"uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups()}
        found["home"] = os.environ.get("HOME")
        if os.path.lexists("/app/x.md"):
            found["owner"] = [os.lstat("/app/x.md").st_uid, os.lstat("/app/x.md").st_gid]
            found["content"] = open("/app/x.md").read()
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
HTTPServer(("0.0.0.0", 9000), Teller).serve_forever()
"""
COMMAND = ["/usr/bin/python3", "-S", "-c", TELLER]


@cache
def base() -> tuple[list[oci.Layer], dict[str, Any]]:
    """The probe image: its layers and its configuration."""
    with tarfile.open(archives()[f"{HOST}/probe:1"]) as tar:

        def blob(digest: str) -> bytes:
            file = tar.extractfile("blobs/" + digest.replace(":", "/"))
            assert file is not None
            return file.read()

        file = tar.extractfile("index.json")
        assert file is not None
        manifest = json.loads(blob(json.load(file)["manifests"][0]["digest"]))
        layers = [oci.Layer(_plain(blob(layer["digest"]))) for layer in manifest["layers"]]
        return layers, json.loads(blob(manifest["config"]["digest"]))["config"]


def variant(path: Path, name: str, layers: list[oci.Layer], **config: Any) -> Path:
    """Write the probe image with layers of ours on top and another configuration."""
    below, before = base()
    made = oci.image([*below, *layers], before | {"Entrypoint": None, "Cmd": COMMAND} | config)
    return oci.write_tar(path, oci.layout(made, f"{HOST}/{name}:1"))


def _plain(blob: bytes) -> bytes:
    return gzip.decompress(blob) if blob[:2] == b"\x1f\x8b" else blob


@pytest.fixture
def make(functions, tmp_path):
    """Import a variant, deploy it, and return the deploy's warnings; the images go at the end."""
    imported: list[str] = []

    def deploy(name: str, layers: list[oci.Layer], **config: Any) -> list[str]:
        functions.import_image(variant(tmp_path / f"{name}.tar", name, layers, **config))
        imported.append(f"{HOST}/{name}:1")
        done = functions.deploy(name, f"{HOST}/{name}:1", scaling={"idle_s": 1})
        return list(done.warnings)

    yield deploy
    functions.clear()
    for image in imported:
        functions.remove_image(image)


def told(agent, name: str) -> Any:
    reply = agent.http("GET", f"/http/{name}/")
    assert reply.status == 200, reply
    return reply.json()


def test_a_file_of_an_owner_no_node_has_is_read_and_warned_of(make, agent):
    layer = oci.layer({"app/x.md": b"read me"}, {"app/x.md": (HUGE, 70000)})
    (warning,) = make("foreign", [layer])
    assert f"app/x.md belongs to id {HUGE}, which no container has" in warning
    found = told(agent, "foreign")
    assert (found["owner"], found["content"]) == ([65534, 65534], "read me")
    # Whoever has the same layer is told as well, though it is unpacked already.
    (warning,) = make("foreign2", [layer, oci.layer({"app/more": b""})])
    assert f"app/x.md belongs to id {HUGE}" in warning


PASSWD = b"root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n"
GROUP = b"root:x:0:\napp:x:1001:\nextra:x:2000:app\n"


@pytest.mark.parametrize(
    ("layers", "user", "found"),
    [
        (
            [{"etc/passwd": PASSWD, "etc/group": GROUP}],
            "app",
            {"uid": 1000, "gid": 1001, "groups": [2000], "home": "/home/app"},
        ),
        (
            [
                {"usr/lib/passwd": PASSWD, "etc/passwd": "-> /etc/../usr/lib/passwd"},
                {"conf/group": GROUP, "etc/group": "-> ../conf/group"},
            ],
            "app",
            {"uid": 1000, "gid": 1001, "groups": [2000], "home": "/home/app"},
        ),
        (
            [{"etc/passwd": PASSWD, "etc/group": GROUP}, {"etc/.wh.passwd": b""}],
            "1000:extra",
            {"uid": 1000, "gid": 2000, "groups": [], "home": "/"},
        ),
        ([{"etc/passwd": PASSWD}], "", {"uid": 0, "gid": 0, "groups": [], "home": "/root"}),
    ],
)
def test_users_are_those_of_the_final_image(make, agent, layers, user, found):
    assert make("users", [oci.layer(files) for files in layers], User=user) == []
    said = told(agent, "users")
    assert said["groups"] == [found["gid"], *found["groups"]]
    assert {key: said[key] for key in ("uid", "gid", "home")} == {
        key: found[key] for key in ("uid", "gid", "home")
    }


@pytest.mark.parametrize(
    ("stop_signal", "number"),
    [
        *(("SIGRTMIN+3", 37), ("quit", 3), ("15", 15), ("SIGWINCH", 15)),
        *(("SIGNONE", 15), ("SIGSTOP", 15), ("SIGCHLD", 15), ("URG", 15)),
    ],
)
def test_an_instance_is_ended_by_its_images_stop_signal(
    make, functions, agent, stop_signal, number
):
    warnings = make("signals", [], StopSignal=stop_signal)
    assert bool(warnings) == (stop_signal in ("SIGNONE", "SIGSTOP", "SIGCHLD", "URG"))
    assert told(agent, "signals")["uid"] == 0
    agent.wait_until(lambda: not functions.instances("signals"), 20, "its idle end")
    assert f"ended by {number}" in functions.log("signals")
