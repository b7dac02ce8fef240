"""What programs of strangers do at their start and expect to find, one row each.

The images are the probe with a shell, further files and another start; every row is what Docker
does with such an image, unless it says otherwise.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.functions import Functions
from tests.integration.strange_images import Strangers, probe, python
from tests.strangers import SCRATCH, Entry, directory, link, script, shell

Json = dict[str, Any]
Strange = Callable[..., str]
REPLY = "HTTP/1.1 200 OK\\r\\nContent-Length: 4\\r\\nConnection: close\\r\\n\\r\\nfine"
ANSWER = f"exec busybox nc -ll -p 9000 -e busybox printf '{REPLY}'"
PROBE = "exec python3 -u /app/main.py"


@pytest.fixture
def strange(functions: Functions, tmp_path: Path) -> Strange:
    """Import an image made of the probe and `entries`, deploy it as `name` and return `name`."""
    return Strangers(functions, tmp_path).deploy


def started(line: str) -> Json:
    """Return a configuration that does something in a shell before the probe starts."""
    return {"Entrypoint": ["sh", "-ec", f"{line}\n{PROBE}"], "Cmd": None}


# What a program can see of its limits


def test_a_program_finds_its_own_limits_and_can_change_none(functions, strange):
    strange("limits", [shell()], memory_mb=512, cpu_millis=500, pids=300)
    find = (
        "cd /sys/fs/cgroup; busybox=sh; for f in %s; do [ -e $f ] && echo $f $(cat $f); done; true"
    )
    names = "memory.max memory/memory.limit_in_bytes cpu.max cpu/cpu.cfs_quota_us "
    names += "cpu/cpu.cfs_period_us cpu,cpuacct/cpu.cfs_quota_us pids.max pids/pids.max"
    said = functions.probe("limits", "run?" + query(sh=find % names))
    found = dict(line.split(" ", 1) for line in said["out"].splitlines())
    memory = found.get("memory.max") or found["memory/memory.limit_in_bytes"]
    quota = found.get("cpu.max", "").split() or [found["cpu/cpu.cfs_quota_us"]]
    pids = found.get("pids.max") or found["pids/pids.max"]
    assert (memory, quota[0], pids) == (str(512 << 20), "50000", "300")
    facts = functions.facts("limits")
    assert facts["cgroup_writable"] == []


def test_a_program_finds_nobody_elses_group(functions, strange):
    strange("seen", [shell()])
    functions.deploy("neighbour")
    neighbour = functions.facts("neighbour")["hostname"]
    listed = functions.probe(
        "seen", "run?" + query(sh="ls -R /sys/fs/cgroup; cat /proc/self/mountinfo /proc/*/cgroup")
    )
    own = functions.facts("seen")
    assert neighbour not in listed["out"]
    assert "neighbour" not in json.dumps(own["mounts"]) + json.dumps(own["cgroups"])
    # Programs look for their hierarchies in mountinfo: the first of each must be theirs.
    rows = functions.probe("seen", "read?path=/proc/self/mountinfo")["text"].splitlines()
    groups = [row.split() for row in rows if " - cgroup" in row]
    assert groups
    assert {row[3] for row in groups} == {"/"}
    assert len({row[4] for row in groups}) == len(groups)


# The files of the runtime

ETC = {
    "as the image has them": [],
    "missing": [Entry("etc/.wh.hosts"), Entry("etc/.wh.resolv.conf"), Entry("etc/.wh.hostname")],
    "links that lead nowhere": [
        link("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
        link("etc/hosts", "/nowhere/hosts"),
        link("etc/hostname", "hostname"),
    ],
    "links that lead out": [
        link("etc/hosts", "../../../../../../etc/passwd"),
        link("etc/resolv.conf", "/proc/self/mounts"),
    ],
    "directories": [
        directory("etc/hosts/"),
        Entry("etc/hosts/x", b"1"),
        directory("etc/resolv.conf/"),
    ],
    "not for others": [directory("etc/", 0o700)],
    "read-only": [Entry("etc/hosts", b"9.9.9.9 old\n", 0o444)],
    "a fifo": [Entry("etc/hosts", kind=tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("entries", ETC.values(), ids=ETC)
def test_files_of_the_runtime_are_its_own_and_writable(functions, strange, entries):
    begin = """
    echo '10.0.0.9 db.internal' >> /etc/hosts
    sed -i 's/10.0.0.9/10.0.0.8/' /etc/hosts
    echo 'options timeout:1' >> /etc/resolv.conf
    echo other > /etc/hostname
    """
    strange("etc", [shell(), shell("bin/sed"), *entries], started(begin))
    said = functions.probe("etc", "run?" + query(sh="cat /etc/hosts /etc/resolv.conf"))["out"]
    assert "10.0.0.8 db.internal" in said
    assert "localhost" in said
    assert "nameserver" in said
    assert "options timeout:1" in said
    assert functions.probe("etc", "resolve?name=db.internal") == {"addresses": ["10.0.0.8"]}
    assert functions.probe("etc", "read?path=/etc/hostname") == {"text": "other\n"}


def test_etc_that_is_a_link_is_furnished_where_it_leads(functions, strange):
    entries = [shell(), directory("config/"), Entry("config/passwd", b"root:x:0:0::/:/bin/sh\n")]
    base = SCRATCH
    entries += [link("etc", "config"), shell("bin/busybox")]
    entries += [script("serve", f"cat /config/hosts; {ANSWER}")]
    strange("linked", entries, {"Entrypoint": ["/serve"]}, base)
    assert functions.agent.http("GET", "/http/linked/").status == 200
    assert "localhost" in functions.log("linked")


TMP = {
    "an image from scratch": [],
    "a directory for root alone": [directory("tmp/", 0o755)],
    "a link that leads nowhere": [link("tmp", "var/volatile/tmp")],
    "a link to another directory": [
        directory("var/"),
        directory("var/tmp/"),
        link("tmp", "var/tmp"),
    ],
    "a file": [Entry("tmp", b"x")],
}


@pytest.mark.parametrize("entries", TMP.values(), ids=TMP)
def test_tmp_and_shared_memory_can_be_written_by_anyone(functions, strange, entries):
    """Docker leaves a /tmp as the image has it, or has none; a platform promises one."""
    begin = "echo x > /tmp/x && echo x > /dev/shm/x && busybox stat -L -c %a /tmp /dev/shm"
    run = f"{begin} && {ANSWER}"
    files = [shell("bin/busybox"), link("bin/sh", "busybox"), *entries]
    strange("tmp", files, {"Cmd": ["/bin/sh", "-c", run], "User": "1000"}, SCRATCH)
    assert functions.agent.http("GET", "/http/tmp/").body == b"fine"
    assert functions.log("tmp").split()[:2] == ["1777", "1777"]


def test_a_working_directory_that_the_image_lacks_is_made(functions, strange):
    strange("workdir", [shell()], {**started("pwd > /tmp/pwd"), "WorkingDir": "/srv/app/../data"})
    assert functions.probe("workdir", "read?path=/tmp/pwd") == {"text": "/srv/data\n"}


@pytest.mark.parametrize("own", [[], ["HOSTNAME=mine"]], ids=["none", "the image's"])
def test_the_name_of_the_host_is_in_the_environment(functions, strange, own):
    strange("named", [shell()], {"Env": [*probe().config["config"]["Env"], *own]})
    facts = functions.facts("named")
    assert facts["environment"]["HOSTNAME"] == ("mine" if own else facts["hostname"])


# Files with rights

CAPABILITIES = {"bind": 10, "raw": 13, "setgid": 6, "mknod": 27, "chown": 0}


@pytest.mark.parametrize("user", ["", "1000"], ids=["root", "user"])
@pytest.mark.parametrize("number", CAPABILITIES.values(), ids=CAPABILITIES)
def test_a_program_with_a_capability_on_its_file_runs(functions, strange, number, user):
    wanted = 1 << number
    # VFS_CAP_REVISION_2 with the effective bit (capability.h).
    value = bytes.fromhex("01000002") + wanted.to_bytes(4, "little") + bytes(12)
    program = Entry(
        "app/program",
        python(),
        pax={"SCHILY.xattr.security.capability": value.decode("latin-1")},
    )
    config = {"Entrypoint": ["/app/program", "-u", "/app/main.py"], "Cmd": None, "User": user}
    strange("capable", [program], config)
    held = int(functions.facts("capable")["status"]["CapEff"], 16)
    assert held & wanted == wanted


def test_a_setuid_program_becomes_root_inside_and_nothing_outside(functions, strange, agent):
    entries = [shell(), Entry("bin/root", python(), 0o4755)]
    strange("setuid", entries, {**started("true"), "User": "1000"})
    tell = "import os; print(os.geteuid()); os.setuid(0); print(open('/etc/hosts', 'a').write('x'))"
    said = functions.probe("setuid", "run?" + query(sh=f'/bin/root -c "{tell}"'))
    assert said["out"].split() == ["0", "1"], said
    outside = "open('/proc/sys/kernel/hostname', 'w')"
    assert functions.probe("setuid", "run?" + query(sh=f'/bin/root -c "{outside}"'))["code"] == 1


def query(**fields: str) -> str:
    from urllib.parse import urlencode

    return urlencode(fields)
