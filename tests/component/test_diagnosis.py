"""Why a program cannot be executed, in a table; the kernel and the init judge every row, too."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.model.failure import FailureKind
from agent.sandbox.diagnosis import Program, why_not
from agent.sandbox.image_files import ImageFiles
from tests.component.init_house import apart, build

BUSYBOX = Path("/bin/busybox").read_bytes()
TRUE = Path("/usr/bin/true").read_bytes()
GLIBC = b"/lib64/ld-linux-x86-64.so.2\0"
MUSL = b"/lib/ld-musl-x86_64.so.1\0".ljust(len(GLIBC), b"\0")
MISSING, DENIED = FailureKind.FILE_NOT_FOUND, FailureKind.FILE_PERMISSION
LINK = "-> "


def machine(number: int) -> bytes:
    return BUSYBOX[:18] + number.to_bytes(2, "little") + BUSYBOX[20:]


@dataclass(frozen=True)
class Row:
    """A command in an image of `files` (text, bytes, "-> " and a link's text, None a directory)."""

    argv: tuple[str, ...]
    files: dict[str, str | bytes | None]
    kind: FailureKind | None = None
    words: tuple[str, ...] = ()
    modes: dict[str, int] = field(default_factory=dict)
    user: int = 0
    workdir: str = "/"
    search: str = "/usr/bin:/bin"
    volumes: tuple[str, ...] = ()
    status: int | None = None


def refused(argv, files, kind, *words, **more):
    return Row(tuple(argv.split()), files, kind, words, **more)


def fine(argv, files, **more):
    return Row(tuple(argv.split()), files, **more)


SH = {"bin/sh": BUSYBOX}
ENV = {"usr/bin/env": BUSYBOX}
ROWS = {
    # the file
    "missing": refused("/app/run", {}, MISSING, "/app/run is not in the image"),
    "missing in PATH": refused("node x.js", SH, MISSING, "node", "PATH", "/usr/bin:/bin"),
    "no PATH folder": refused("node", {}, MISSING, "node is not in the image"),
    "relative": refused("./run", {"app": None}, MISSING, "./run", workdir="/app"),
    "a link to nothing": refused(
        "/app/run", {"app/run": "-> ../opt/tool"}, MISSING, "/app/run leads to /opt/tool"
    ),
    "a chain of links": refused(
        "run",
        {"bin/run": "-> /etc/alternatives/run", "etc/alternatives/run": "-> /opt/x/run"},
        MISSING,
        "run is not in the image",
    ),
    "below a link": refused(
        "/run",
        {"run": "#!/bin/bash\n", "bin": "-> usr/bin", "usr/bin/sh": BUSYBOX},
        MISSING,
        "and /bin/bash is not in the image",
    ),
    "a link to itself": refused("/run", {"run": "-> run"}, MISSING, "leads to itself"),
    "below a file": refused("/app/run", {"app": "x"}, MISSING, "/app is no directory"),
    "a directory": refused("/app", {"app": None}, DENIED, "/app is a directory"),
    "a directory in PATH": refused("app", {"bin/app": None}, DENIED, "/bin/app is a directory"),
    "not executable": refused(
        "/run",
        {"run": "#!/bin/sh\n", **SH},
        DENIED,
        "/run is not executable",
        "chmod",
        modes={"run": 0o644},
    ),
    "not executable in PATH": refused(
        "run",
        {"bin/run": "#!/bin/sh\n", **SH},
        DENIED,
        "/bin/run is not executable",
        modes={"bin/run": 0o644},
    ),
    "not for this user": refused(
        "/run",
        {"run": BUSYBOX},
        DENIED,
        "user 1000:1000",
        "0700",
        "0:0",
        modes={"run": 0o700},
        user=1000,
    ),
    "in a folder not for this user": refused(
        "/root/run",
        {"root/run": BUSYBOX},
        DENIED,
        "user 1000:1000",
        "/root may not be entered",
        modes={"root": 0o700},
        user=1000,
    ),
    # scripts
    "no interpreter": refused(
        "/app/run",
        {"app/run": "#!/bin/bash\nexit 0\n"},
        MISSING,
        "/app/run starts with #!/bin/bash",
        "/bin/bash is not in the image",
    ),
    "no interpreter, in PATH": refused(
        "run",
        {"bin/run": "#!/opt/py/bin/python3 -u\n"},
        MISSING,
        "/bin/run starts with #!/opt/py/bin/python3 -u",
        "/opt/py/bin/python3 is not in the image",
    ),
    "an interpreter's interpreter": refused(
        "/run",
        {"run": "#!/bin/a\n", "bin/a": "#!/bin/b\n"},
        MISSING,
        "/run starts with #!/bin/a",
        "/bin/a starts with #!/bin/b",
        "/bin/b is not in the image",
    ),
    "an interpreter that is a directory": refused(
        "/run", {"run": "#!/bin\n", "bin": None}, DENIED, "#!/bin", "/bin is a directory"
    ),
    "an interpreter that may not be executed": refused(
        "/run",
        {"run": "#!/bin/sh\n", **SH},
        DENIED,
        "/bin/sh is not executable",
        modes={"bin/sh": 0o644},
    ),
    "no env": refused(
        "/run", {"run": "#!/usr/bin/env python3\n"}, MISSING, "/usr/bin/env is not in the image"
    ),
    "no python3 for env": refused(
        "/run",
        {"run": "#!/usr/bin/env python3\n", **ENV},
        MISSING,
        "#!/usr/bin/env python3",
        "python3 is not in the image",
        "PATH",
    ),
    "several words for env": refused(
        "/run",
        {"run": "#!/usr/bin/env python3 -u\n", "bin/python3": BUSYBOX, **ENV},
        MISSING,
        "'python3 -u'",
        "env -S",
    ),
    "lines of Windows": refused(
        "/run",
        {"run": "#!/bin/sh\r\nexit 0\r\n", **SH},
        MISSING,
        "#!/bin/sh",
        "CR LF",
        "/bin/sh\\r is not",
    ),
    "lines of Windows for env": refused(
        "/run", {"run": "#!/usr/bin/env sh\r\nexit 0\r\n", **SH, **ENV}, MISSING, "CR LF"
    ),
    "no name after #!": refused("/run", {"run": "#!\nexit 0\n"}, DENIED, "names no interpreter"),
    "a first line too long": refused(
        "/run", {"run": "#!/" + "x" * 300 + "\n"}, DENIED, "longer than 256 bytes"
    ),
    # neither script nor program
    "no #!": refused("/run", {"run": "echo hello\n"}, DENIED, "/run is text", "exec format error"),
    "empty": refused("/run", {"run": ""}, DENIED, "/run is empty", "exec format error"),
    "a byte order mark": refused(
        "/run", {"run": b"\xef\xbb\xbf#!/bin/sh\n", **SH}, DENIED, "byte order mark"
    ),
    "a jar": refused("/app.jar", {"app.jar": b"PK\x03\x04xx"}, DENIED, "java -jar"),
    "Windows": refused("/a.exe", {"a.exe": b"MZ\x90\0"}, DENIED, "for Windows"),
    "macOS": refused("/a", {"a": b"\xcf\xfa\xed\xfe\x07\0"}, DENIED, "for macOS"),
    "bytes": refused("/a", {"a": b"\x00\x01\x02"}, DENIED, "no program that Linux knows"),
    # programs
    "arm64": refused("/a", {"a": machine(183)}, DENIED, "arm64", "linux/amd64"),
    "riscv": refused("/a", {"a": machine(243)}, DENIED, "riscv64", "linux/amd64"),
    "an interpreter for arm64": refused(
        "/run", {"run": "#!/bin/sh\n", "bin/sh": machine(183)}, DENIED, "/bin/sh is a program for"
    ),
    "an object file": refused(
        "/a", {"a": BUSYBOX[:16] + b"\1\0" + BUSYBOX[18:]}, DENIED, "object file"
    ),
    "cut short": refused("/a", {"a": BUSYBOX[:40]}, DENIED, "cut short"),
    "no glibc": refused(
        "/a", {"a": TRUE}, MISSING, "/a needs the loader /lib64/ld-linux-x86-64.so.2", "glibc"
    ),
    "no musl": refused(
        "/a",
        {"a": TRUE.replace(GLIBC, MUSL)},
        MISSING,
        "/a needs the loader /lib/ld-musl-x86_64.so.1",
        "musl, as in Alpine",
    ),
    "a loader that may not be executed": refused(
        "/a",
        {"a": TRUE, GLIBC[1:-1].decode(): BUSYBOX},
        DENIED,
        "is not executable",
        modes={GLIBC[1:-1].decode(): 0o644},
    ),
    # nothing wrong
    "a program": fine("/bin/busybox true", {"bin/busybox": BUSYBOX}),
    "found in PATH": fine("sh -c :", SH),
    "behind what may not be executed": fine(
        "sh -c :", {"usr/bin/sh": "", **SH}, modes={"usr/bin/sh": 0o644}
    ),
    "a script": fine("/run", {"run": "#!/bin/sh\n:\n", **SH}),
    "a script with blanks": fine("/run", {"run": "#! /bin/sh -e \n:\n", **SH}),
    "a relative interpreter": fine("/run", {"run": "#!bin/sh\n:\n", **SH}),
    "by env": fine("/run", {"run": "#!/usr/bin/env sh\n:\n", **SH, **ENV}),
    "a link out": fine("/sh -c :", {"sh": "-> ../../../bin/sh", **SH}),
    "for this user": fine("/run true", {"run": "#!/bin/sh\n", **SH}, user=1000),
}
# Where the image says nothing: no claim, whatever is there.
UNTOLD = {
    "by env -S, which busybox has not": fine(
        "/run", {"run": "#!/usr/bin/env -S sh -e\n:\n", **SH, **ENV}
    ),
    "on a volume": fine("/data/run", {"data": None}, volumes=("/data",)),
    "a link to a volume": fine("/run", {"run": "-> /data/run"}, volumes=("/data",)),
    "an interpreter on a volume": fine("/run", {"run": "#!/data/sh\n"}, volumes=("/data",)),
    "covered by a volume": fine("/app/run", {"app/run": ""}, volumes=("/app",)),
    "of the kernel": fine("/proc/self/exe", {}),
    "of the devices": fine("/dev/init", {}),
}


def lay(root: Path, row: Row) -> None:
    root.chmod(0o755)
    for name, what in row.files.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if what is None:
            place.mkdir(exist_ok=True)
        elif isinstance(what, str) and what.startswith(LINK):
            place.symlink_to(what.removeprefix(LINK))
        else:
            place.write_bytes(what if isinstance(what, bytes) else what.encode())
            place.chmod(row.modes.get(name, 0o755))
    for name, mode in row.modes.items():
        (root / name).chmod(mode)


def told(root: Path, row: Row):
    program = Program(row.argv, row.search, row.workdir, row.user, row.user, volumes=row.volumes)
    return why_not(ImageFiles([root]), program)


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    return build(tmp_path_factory.mktemp("init"))


@pytest.fixture
def root(tmp_path):
    made = tmp_path / "root"
    made.mkdir()
    return made


@pytest.mark.parametrize("name", ROWS)
def test_what_is_missing_is_named_and_the_kernel_agrees(root, init, name):
    row = ROWS[name]
    lay(root, row)
    failure = told(root, row)
    assert (failure.kind if failure else None) == row.kind
    for words in row.words:
        assert failure is not None
        assert words in failure.message
    if row.user and os.geteuid() != 0:
        pytest.skip("only root can ask the kernel as another user")
    status = executed(root, init, row)
    if row.kind is None:
        assert status == 0
    else:
        assert status in (126, 127)


def executed(root, init, row) -> int:
    """Let the init execute it inside of the root."""
    inside = root / "kindling-init"
    inside.write_bytes(init.read_bytes())
    inside.chmod(0o755)
    user = [f"--userspec={row.user}:{row.user}"] if row.user else []
    done = subprocess.run(
        [*apart(), "/usr/sbin/chroot", *user, str(root), "/kindling-init", "15", *row.argv],
        env={"PATH": row.search},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode


@pytest.mark.parametrize("name", UNTOLD)
def test_nothing_is_said_of_what_the_image_does_not_hold(root, name):
    row = UNTOLD[name]
    lay(root, row)
    assert told(root, row) is None


def test_one_word_with_blanks_is_told(root):
    row = Row(("python3 app.py",), {}, MISSING)
    failure = told(root, row)
    assert failure is not None
    assert "a list of words" in failure.message


def test_links_are_resolved_inside(root, tmp_path):
    (tmp_path / "secret").write_text("#!/shown\n")
    lay(root, fine("/run", {"run": f"-> {tmp_path}/secret"}))
    failure = told(root, fine("/run", {}))
    assert failure is not None
    assert "/shown" not in failure.message
