"""Every field of an image's config, and what is made of each form it is found in.

The table is the OCI image specification's list of fields and Docker's own beside it. `None` for a
field's value means that it is absent; what Docker does stands in the comment where it differs.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.containerd import cpu
from agent.core import oci_image, platform
from agent.core.oci import argv_of, merged_env
from agent.errors import InvalidSpec
from agent.linux import cpuinfo

LAYER = "sha256:" + "1" * 64
V2 = {"cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"}
V3 = V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
V4 = V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}


def parse(run: object = None, level: int = 1, **root: Any) -> oci_image.ImageConfig:
    document = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [LAYER]},
        "config": run,
        **root,
    }
    kept = {key: value for key, value in document.items() if value != "absent"}
    return oci_image.parse_config(json.dumps(kept).encode(), "app:1", level)


def refusal(run: object = None, **root: Any) -> str:
    with pytest.raises(InvalidSpec) as caught:
        parse(run, **root)
    return caught.value.message


RUN: list[tuple[dict[str, Any], str, object]] = [
    # Entrypoint and Cmd: lists; a text is one word (Docker's strslice), null and [] are nothing.
    ({"Entrypoint": ["/init"], "Cmd": ["a"]}, "entrypoint", ("/init",)),
    ({"Entrypoint": None}, "entrypoint", ()),
    ({"Entrypoint": []}, "entrypoint", ()),
    ({"Entrypoint": "/init"}, "entrypoint", ("/init",)),
    ({"Entrypoint": ""}, "entrypoint", ()),
    ({"Entrypoint": [""]}, "entrypoint", ()),
    ({"Cmd": None}, "cmd", ()),
    ({"Cmd": "/bin/sh -c x"}, "cmd", ("/bin/sh -c x",)),
    ({"Cmd": ["sh", None, ""]}, "cmd", ("sh", "", "")),
    ({"cmd": ["sh"]}, "cmd", ("sh",)),
    # Env is kept as written; `merged_env` reads it, below.
    ({"Env": ["A=1", "A=2", "B"]}, "env", ("A=1", "A=2", "B")),
    ({"Env": None}, "env", ()),
    ({"Env": []}, "env", ()),
    # WorkingDir: absent is /; one that is not absolute is below / (podman; Docker refuses it).
    ({"WorkingDir": ""}, "workdir", "/"),
    ({"WorkingDir": None}, "workdir", "/"),
    ({"WorkingDir": "/srv/app/"}, "workdir", "/srv/app"),
    ({"WorkingDir": "srv"}, "workdir", "/srv"),
    ({"WorkingDir": "/a/../../b/./c"}, "workdir", "/b/c"),
    ({"WorkingDir": "//srv"}, "workdir", "/srv"),
    ({"WorkingDir": "$HOME/x"}, "workdir", "/$HOME/x"),
    # User and StopSignal have tables of their own; here only that nothing is the default.
    ({"User": None}, "user", ""),
    ({"User": "app:app"}, "user", "app:app"),
    ({"StopSignal": None}, "stop_signal", "SIGTERM"),
    ({"StopSignal": "SIGQUIT"}, "stop_signal", "SIGQUIT"),
    # ExposedPorts and Labels are read, and nothing depends on them.
    ({"ExposedPorts": {"80/tcp": {}, "53/udp": {}}}, "exposed_ports", ("53/udp", "80/tcp")),
    ({"ExposedPorts": None}, "exposed_ports", ()),
    ({"Labels": {"a": "1", "b": None, "c": 3}}, "labels", {"a": "1", "b": "", "c": "3"}),
    ({"Labels": None}, "labels", {}),
    # Not looked at: the platform has its own health checks, builders act on OnBuild and Shell,
    # Windows alone escapes arguments.
    ({"Healthcheck": {"Test": ["CMD", "x"]}, "Cmd": ["a"]}, "cmd", ("a",)),
    ({"OnBuild": ["RUN x"], "Cmd": ["a"]}, "cmd", ("a",)),
    ({"Shell": "sh", "Cmd": ["a"]}, "cmd", ("a",)),
    ({"Volumes": {"/data/": {}, "x": {}, "/data": None}}, "volumes", ("/data", "/x")),
    ({"Volumes": None}, "volumes", ()),
    (
        {"Volumes": {f"/{n:03}": {} for n in range(300)}},
        "volumes",
        tuple(f"/{n:03}" for n in range(300)),
    ),
    ({"Volumes": {"": {}, "/": {}, "..": None, "//a//b/": {}}}, "volumes", ("/", "/a/b")),
    (
        {"ExposedPorts": {"80-90/tcp": {}, "x": None, "": {}}},
        "exposed_ports",
        ("", "80-90/tcp", "x"),
    ),
    ({"ArgsEscaped": True, "Cmd": ["a"]}, "cmd", ("a",)),
    ({"Memory": 1, "MemorySwap": -1, "CpuShares": 2, "Cmd": ["a"]}, "cmd", ("a",)),
    ({"Hostname": "x", "Domainname": "y", "Tty": True, "Cmd": ["a"]}, "cmd", ("a",)),
    ({"Image": "sha256:x", "MacAddress": "", "NetworkDisabled": True, "Cmd": ["a"]}, "cmd", ("a",)),
    ({"future.field": [1], "Cmd": ["a"]}, "cmd", ("a",)),
]


@pytest.mark.parametrize(("run", "field", "value"), RUN, ids=lambda each: str(each)[:40])
def test_a_field_of_the_config_section_is_read(run: Any, field: str, value: object) -> None:
    assert getattr(parse(run), field) == value


@pytest.mark.parametrize(
    "root",
    [
        {"created": "1970-01-01T00:00:00Z"},
        {"created": None, "author": None, "history": None},
        {"history": [{"empty_layer": True}] * 3},
        {"docker_version": "1.9", "container": "x", "container_config": {"Cmd": ["wrong"]}},
        {"id": "x", "parent": "y", "moby.buildkit.buildinfo.v1": "e30="},
        {"os.version": "6", "os.features": ["a"], "features": None, "variant": None},
        {"rootfs": {"diff_ids": [LAYER]}},
        {"ROOTFS": {"Type": "layers", "Diff_IDs": [LAYER]}, "rootfs": "absent"},
        {"os": "Linux"},
        {"os": "", "architecture": ""},
        {"os": None, "architecture": "amd64"},
        {"os": "absent", "architecture": "absent"},
        {"architecture": "x86_64"},
        {"architecture": "AMD64"},
        {"variant": "v1"},
        {"comment": "x" * (1 << 20)},
    ],
    ids=lambda root: str(root)[:40],
)
def test_fields_beside_it_change_nothing(root: dict[str, Any]) -> None:
    found = parse({"Cmd": ["a"]}, **root)
    assert (found.cmd, found.diff_ids) == (("a",), (LAYER,))


@pytest.mark.parametrize("section", [None, {}, "absent"])
def test_a_config_without_a_section_names_no_program(section: Any) -> None:
    found = parse(section)
    assert (found.entrypoint, found.cmd, found.workdir) == ((), (), "/")
    with pytest.raises(InvalidSpec, match="neither ENTRYPOINT nor CMD"):
        argv_of(found.entrypoint, found.cmd, None, None)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"run": {"Cmd": 5}}, "Cmd is not a list"),
        ({"run": {"Cmd": [["a"]]}}, "Cmd is not a list"),
        ({"run": {"Env": "A=1"}}, "Env is not a list"),
        ({"run": {"WorkingDir": ["/"]}}, "WorkingDir is not a string"),
        ({"run": {"Labels": ["a"]}}, "Labels is not an object"),
        ({"run": {"Volumes": ["/a"]}}, "Volumes is not an object"),
        (
            {"run": {"Volumes": {f"/{n}": {} for n in range(1001)}}},
            "1001 Volumes; 1000 are the most",
        ),
        ({"run": {"ExposedPorts": ["80"]}}, "ExposedPorts is not an object"),
        ({"run": {"StopSignal": 15}}, "StopSignal is not a string"),
        ({"run": {"User": 1000}}, "User is not a string"),
        ({"run": ["sh"]}, "config section is not an object"),
        ({"rootfs": {"diff_ids": []}}, "lists no layers"),
        ({"rootfs": {"diff_ids": ["sha512:" + "1" * 128]}}, "no sha256 digest"),
        ({"os": "windows"}, "is for windows/amd64; this node runs linux/amd64 only"),
        ({"architecture": "aarch64"}, "is for linux/arm64"),
        ({"architecture": "386"}, "is for linux/386"),
        ({"variant": "v2"}, "instructions of linux/amd64/v1 at most"),
        ({"variant": "v9"}, "is for linux/amd64/v9; this node runs linux/amd64 only"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], words: str) -> None:
    assert words in refusal(**given)


@pytest.mark.parametrize(
    ("lines", "name", "value"),
    [
        (("A=1", "A=2"), "A", "2"),  # the last one wins, as with Docker
        (("PATH=/a", "PATH=/b"), "PATH", "/b"),
        ((), "PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        (("A=",), "A", ""),
        (("A=b=c",), "A", "b=c"),
        (("no_proxy=x", "NO_PROXY=y"), "no_proxy", "x"),
        (("a.b-c/d=1",), "a.b-c/d", "1"),
        (("A= 1 ",), "A", " 1 "),
        (("A=ü\n",), "A", "ü\n"),
    ],
)
def test_variables_of_the_image_reach_the_program(
    lines: tuple[str, ...], name: str, value: str
) -> None:
    assert merged_env(lines, {}, {})[name] == value


@pytest.mark.parametrize("line", ["A", "", "=x", "A\0=1"])
def test_a_line_that_is_no_variable_is_passed_over(line: str) -> None:
    assert set(merged_env((line,), {}, {})) == {"PATH"}


# -- platforms


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        (set(), 1),
        (V2, 2),
        (V2 - {"popcnt"}, 1),
        (V3, 3),
        (V3 - {"abm"}, 2),
        (V3 - {"cx16"}, 1),
        (V4, 4),
        (V4 - {"avx512vl"}, 3),
    ],
)
def test_a_level_is_told_by_the_flags_of_the_cpu(flags: set[str], level: int) -> None:
    assert platform.level_of(flags | {"fpu", "sse2"}) == level


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse2 avx\n\n", {"fpu", "sse2", "avx"}),
        ("flags : fpu avx\nvmx flags : x\nflags : fpu sse2\n", {"fpu"}),
        ("Features : fp asimd\n", set()),
        ("", set()),
    ],
)
def test_flags_are_those_that_every_cpu_has(text: str, flags: set[str]) -> None:
    assert cpuinfo.flags(text) == flags


def test_this_host_has_a_level() -> None:
    assert 1 <= cpu.level() <= 4


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("linux/amd64", (1, 1, 1, 1)),
        ("linux/amd64/v1", (1, 1, 1, 1)),
        ("linux/amd64/v2", (0, 2, 2, 2)),
        ("linux/amd64/v3", (0, 0, 3, 3)),
        ("linux/amd64/v4", (0, 0, 0, 4)),
        ("linux/amd64/v5", (0, 0, 0, 0)),
        ("linux/amd64p32", (0, 0, 0, 0)),
        ("linux/arm64/v8", (0, 0, 0, 0)),
        ("windows/amd64", (0, 0, 0, 0)),
        ("unknown/unknown", (0, 0, 0, 0)),
        ("", (0, 0, 0, 0)),
    ],
)
def test_a_variant_runs_on_a_cpu_of_its_level(name: str, ranks: tuple[int, ...]) -> None:
    assert tuple(platform.rank(name, level) for level in (1, 2, 3, 4)) == ranks


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("linux", "amd64"), "linux/amd64"),
        (("Linux", "x86_64", "V3"), "linux/amd64/v3"),
        (("", "amd64"), "linux/amd64"),
        (("linux", ""), "linux/amd64"),
        (("linux", "aarch64", "v8"), "linux/arm64/v8"),
        (("unknown", "unknown"), "unknown/unknown"),
        (("", ""), ""),
    ],
)
def test_platforms_have_one_spelling(parts: tuple[str, ...], name: str) -> None:
    assert platform.named(*parts) == name
