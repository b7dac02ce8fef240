"""`kindling image` and `kindling gc`: what they ask of the node, send and show."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import FailedPrecondition
from agent.model.spec import RegistrySpec
from tests.component.cli_agent import Agent, asked, running
from tests.component.control_fake import IMAGE


@pytest.fixture
def agent() -> Iterator[Agent]:
    with running() as one:
        yield one


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
