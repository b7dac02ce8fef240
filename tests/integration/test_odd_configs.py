"""Images whose config is odd, imported and called on a real agent; and under which name they run.

Each image is Debian's static busybox with a shell line that writes down what it found and serves
it. The names are of registries that do not exist: nobody may be asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.errors import AgentError
from tests import oci
from tests.integration.functions import Functions
from tests.integration.running import RunningAgent

SERVE = (
    'exec >/dev/shm/out; pwd; id -u; id -G; echo "$PATH"; echo "$A"; {more}; '
    "exec /bin/httpd -f -p 9000 -h /dev/shm"
)
Import = Callable[..., str]


def command(more: str = "true") -> list[str]:
    return ["/bin/sh", "-c", SERVE.format(more=more)]


@pytest.fixture
def imported(functions: Functions, tmp_path: Path) -> Iterator[Import]:
    """Import an image of a config and some more files; returns its name."""
    names: list[str] = []

    def put(config: dict[str, Any], *files: dict[str, oci.File], name: str = "") -> str:
        full = name or f"nowhere.example/odd/image:{len(names)}"
        layers = [oci.static_busybox(), *(oci.layer(each) for each in files)]
        archive = tmp_path / "image.tar"
        oci.write_archive(archive, layers, {"Cmd": command(), **config}, name=full)
        functions.import_image(archive)
        names.append(full)
        return full

    yield put
    functions.clear()
    for name in names:
        functions.remove_image(name)


def lines(agent: RunningAgent, name: str) -> list[str]:
    reply = agent.http("GET", f"/http/{name}/out")
    assert reply.status == 200, reply.body
    return reply.body.decode().splitlines()


DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Elsewhere a volume over a file is refused when a container is made.
OWN = (
    *("/", "/etc", "/etc/hosts", "/etc/hosts/x", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab"),
    *("/tmp", "/dev", "/dev/shm", "/dev/init", "/proc", "/proc/self/x", "/sys", "/sys/fs/cgroup"),
    *(
        "/run/lock",
        "relative/x",
        "../../x",
        "/link/etc/hosts",
        "/tmp/../etc/hosts",
        "//etc//hosts/",
    ),
)

# The config, more files, and the lines that come: directory, user, groups, PATH, A, and more.
CONFIGS: dict[str, tuple[dict[str, Any], dict[str, oci.File], list[str]]] = {
    "nothing but Cmd": ({}, {}, ["/", "0", "0", DEFAULT_PATH, ""]),
    "a variable twice": (
        {"Env": ["A=1", "PATH=/nowhere", "A=2", "PATH=/bin", "B"]},
        {},
        ["/", "0", "0", "/bin", "2"],
    ),
    "a directory that is not there": (
        {"WorkingDir": "/srv/app", "Cmd": command("/bin/ls -ldn . ..")},
        {},
        ["/srv/app", "0", "0", DEFAULT_PATH, "", "drwxr-xr-x 0 0", "drwxr-xr-x 0 0"],
    ),
    "a directory that is not there, for another user": (
        {"WorkingDir": "/srv/app", "User": "1000", "Cmd": command("/bin/ls -ldn .")},
        {},
        ["/srv/app", "1000", "1000", DEFAULT_PATH, "", "drwxr-xr-x 0 0"],
    ),
    "a directory below nothing": ({"WorkingDir": "srv"}, {}, ["/srv", "0", "0", DEFAULT_PATH, ""]),
    "a directory with a variable in its name": (
        {"WorkingDir": "/$A/x", "Env": ["A=1"]},
        {},
        ["/$A/x", "0", "0", DEFAULT_PATH, "1"],
    ),
    "a directory that is a link": (
        {"WorkingDir": "/work"},
        {"data/x": b"", "work": "-> data"},
        ["/data", "0", "0", DEFAULT_PATH, ""],
    ),
    "a directory behind a link that leads nowhere": (
        {"WorkingDir": "/astray/a"},
        {"astray": "-> gone/b"},
        ["/gone/b/a", "0", "0", DEFAULT_PATH, ""],
    ),
    "a directory in memory": (
        {"WorkingDir": "/dev/shm/a"},
        {},
        ["/dev/shm/a", "0", "0", DEFAULT_PATH, ""],
    ),
    "links and files where the kernel's places are": (
        {"Cmd": command("/bin/cat /proc/self/comm; /bin/ls -ldn /dev/shm /sys/kernel")},
        {"proc": "-> tmp", "sys": b"x", "dev": "-> nowhere"},
        [
            *("/", "0", "0", DEFAULT_PATH, "", "cat"),
            *("drwxrwxrwt 0 0", "drwxr-xr-x 65534 65534"),
        ],
    ),
    "a user by number, without passwd": (
        {"User": "4321:9"},
        {"etc/.wh.passwd": b"", "etc/.wh.group": b""},
        ["/", "4321", "9", DEFAULT_PATH, ""],
    ),
    "Entrypoint and Cmd as texts": (
        {"Entrypoint": "/start", "Cmd": "x"},
        {"start": ("#!/bin/sh\n" + SERVE.format(more='echo "$1"')).encode()},
        ["/", "0", "0", DEFAULT_PATH, "", "x"],
    ),
    "a volume that is not there": (
        {"Volumes": {"/data/deep": {}}, "Cmd": command("/bin/ls -ldn /data/deep")},
        {},
        ["/", "0", "0", DEFAULT_PATH, "", "drwxr-xr-x 0 0"],
    ),
    "a volume that is there": (
        {"Volumes": {"/data": {}}, "Cmd": command("/bin/cat /data/x")},
        {"data/x": b"kept"},
        ["/", "0", "0", DEFAULT_PATH, "", "kept"],
    ),
    "volumes over the runtime's own": (
        {
            "Volumes": {path: {} for path in OWN},
            "Cmd": command("read A </etc/hostname && echo 1; /bin/ls -ldn /tmp /run/lock"),
        },
        {"etc/.wh..wh..opq": b"", "link": "-> /"},
        ["/", "0", "0", DEFAULT_PATH, "", "1", "drwxr-xr-x 0 0", "drwxrwxrwt 0 0"],
    ),
    "a volume behind a link that leads nowhere": (
        {"Volumes": {"/var/run/app": {}}, "Cmd": command("/bin/ls -ldn /run/app")},
        {"var/run": "-> ../run"},
        ["/", "0", "0", DEFAULT_PATH, "", "drwxr-xr-x 0 0"],
    ),
    "a volume below a link that leads out": (
        {"Volumes": {"/data/x": {}}, "Cmd": command("/bin/ls -ldn /etc/x")},
        {"data": "-> ../../../../etc"},
        ["/", "0", "0", DEFAULT_PATH, "", "drwxr-xr-x 0 0"],
    ),
    "a volume in the place of a file": (
        {"Volumes": {"/data/x": {}}, "Cmd": command("/bin/cat /data")},
        {"data": b"kept"},
        ["/", "0", "0", DEFAULT_PATH, "", "kept"],
    ),
}


@pytest.mark.parametrize("form", CONFIGS)
def test_an_image_of_this_config_runs(
    agent: RunningAgent, functions: Functions, imported: Import, form: str
) -> None:
    config, files, expected = CONFIGS[form]
    made: dict[str, oci.File] = {
        name: (data, 0o755) if isinstance(data, bytes) and name == "start" else data
        for name, data in files.items()
    }
    functions.deploy("odd", imported(config, made), memory_mb=128)
    found = lines(agent, "odd")
    assert found[:5] == expected[:5]
    shown = [" ".join(line.split()[:1] + line.split()[2:4]) for line in found[5:]]
    assert [line if "drwx" in line else found[5 + n] for n, line in enumerate(shown)] == (
        expected[5:]
    )


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("/data", "/data is no directory"),
        ("/data/x", "/data is no directory"),
        ("/etc/hosts", "/etc/hosts is no directory"),
    ],
)
def test_a_working_directory_that_is_a_file_is_refused_at_deploy(
    functions: Functions, imported: Import, place: str, words: str
) -> None:
    name = imported({"WorkingDir": place}, {"data": b"x"})
    with pytest.raises(AgentError, match=words):
        functions.deploy("odd", name, memory_mb=128)


@pytest.mark.parametrize(
    ("name", "deployed"),
    [
        ("docker.io/library/odd:1", "library/odd:1"),
        ("odd:2", "docker.io/library/odd:2"),
        ("localhost/odd:1", "localhost/odd:1"),
        ("nowhere.example:5000/team/odd:1", "nowhere.example:5000/team/odd:1"),
    ],
)
def test_an_imported_image_runs_under_its_name_and_no_registry_is_asked(
    agent: RunningAgent, functions: Functions, imported: Import, name: str, deployed: str
) -> None:
    full = imported({}, name=name)
    (image,) = [
        one
        for one in json.loads(agent.cli("image", "ls", "--json").out)["images"]
        if one["name"].endswith(full)
    ]
    functions.deploy("odd", deployed, memory_mb=128)
    assert lines(agent, "odd")[0] == "/"
    digest = f"{deployed.rpartition(':')[0]}@{image['digest']}"
    functions.deploy("odd", digest, memory_mb=128, pull="never")
    functions.clear()
    functions.client.ask("RemoveImage", pb.RemoveImageRequest(name=digest), pb.RemoveImageResponse)
