"""Paths in layers: what an image may lay out, row by row, and the kernel as the judge."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from agent.sandbox.image_files import ImageFiles
from tests.inside.kernel_probe import NO_NAMESPACES

ROOT = Path(__file__).parents[2]
TREES = 150
HIDDEN, OPAQUE = "a whiteout", "an opaque directory"


def test_answers_are_those_of_the_kernel(tmp_path):
    command = [sys.executable, "-m", "tests.inside.overlay_probe", tmp_path, "0", str(TREES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == NO_NAMESPACES:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20 * TREES, "most questions were about nothing"


def layers_of(top: Path, *contents: dict[str, str]) -> list[Path]:
    """Make layers, topmost first: names with what they hold, "-> " before a link's text."""
    made = []
    for number, content in enumerate(contents):
        layer = top / f"layer{number}"
        layer.mkdir()
        for name, what in content.items():
            place = layer / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if what.startswith("-> "):
                place.symlink_to(what.removeprefix("-> "))
            elif what == HIDDEN:
                place.touch()
                os.setxattr(place, "user.overlay.whiteout", b"y")
            elif what == OPAQUE:
                place.mkdir(exist_ok=True)
                os.setxattr(place, "user.overlay.opaque", b"y")
            else:
                place.write_text(what)
        made.append(layer)
    return made


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ([{"etc/passwd": "x"}], b"x"),
        ([{"etc/passwd": "up"}, {"etc/passwd": "low"}], b"up"),
        ([{"etc/other": "x"}, {"etc/passwd": "low"}], b"low"),
        ([{"etc": OPAQUE}, {"etc/passwd": "low"}], errno.ENOENT),
        ([{"etc": OPAQUE, "etc/passwd": "up"}, {"etc/passwd": "low"}], b"up"),
        ([{"etc/passwd": HIDDEN}, {"etc/passwd": "low"}], errno.ENOENT),
        ([{"etc": HIDDEN}, {"etc/passwd": "low"}], errno.ENOENT),
        ([{"etc/passwd": "up"}, {"etc": HIDDEN}, {"etc/passwd": "low"}], b"up"),
        ([{"etc/other": "up"}, {"etc": HIDDEN}, {"etc/passwd": "low"}], errno.ENOENT),
        ([{"etc": "a file"}, {"etc/passwd": "low"}], errno.ENOTDIR),
        ([{"etc/other": "x"}, {"etc": "a file"}, {"etc/passwd": "low"}], errno.ENOENT),
        ([{"etc/passwd": "-> ../usr/passwd"}, {"usr/passwd": "x"}], b"x"),
        ([{"etc/passwd": "-> /usr/passwd"}, {"usr/passwd": "x"}], b"x"),
        ([{"etc": "-> usr/etc"}, {"usr/etc/passwd": "x"}], b"x"),
        ([{"etc": "-> /usr/etc"}, {"usr/etc/passwd": "x"}, {"etc/passwd": "low"}], b"x"),
        ([{"etc": "-> a"}, {"a": "-> b"}, {"b": "-> /c/"}, {"c/passwd": "x"}], b"x"),
        ([{"etc/passwd": "-> ../../../../../outside"}, {"outside": "inside"}], b"inside"),
        ([{"etc/passwd": "-> ../../../../../../../../etc/hostname"}], errno.ENOENT),
        ([{"etc/passwd": "-> /nowhere"}], errno.ENOENT),
        ([{"etc/passwd": "-> passwd"}], errno.ELOOP),
        ([{"etc": "-> a", "a": "-> etc"}], errno.ELOOP),
        ([{"etc/passwd": "-> file/"}, {"etc/file": "x"}], errno.ENOTDIR),
        ([{"etc/passwd/x": "x"}], errno.EISDIR),
        ([{}], errno.ENOENT),
    ],
)
def test_the_accounts_of_an_image_are_found_as_it_lays_them_out(tmp_path, layers, found):
    (tmp_path / "outside").write_text("the host's")
    files = ImageFiles(layers_of(tmp_path, *layers))
    if isinstance(found, bytes):
        assert files.read("/etc/passwd", 100) == found
        return
    with pytest.raises(OSError, match=re.escape(f"[Errno {found}]")):
        files.read("/etc/passwd", 100)


def test_what_is_no_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    files = ImageFiles([tmp_path])
    with pytest.raises(OSError, match="Invalid argument"):
        files.read("fifo", 1)
    assert stat.S_ISFIFO(files.find("fifo").stat.st_mode)


def test_a_part_of_a_file_is_read_and_links_are_told_as_they_are(tmp_path):
    layers = layers_of(tmp_path, {"a/link": "-> ../b/./"}, {"b/file": "0123456789"})
    files = ImageFiles(layers)
    assert files.read("a/link/file", 4) == b"0123"
    assert files.readlink("a/link") == "../b/./"
    assert files.resolve("a/link/file") == "/b/file"
    assert files.find("b/file").places == (layers[1] / "b/file",)
    assert stat.S_ISLNK(files.lstat("a/link").st_mode)
    assert stat.S_ISDIR(files.lstat("a/link/").st_mode)
    with pytest.raises(OSError, match="Invalid argument"):
        files.readlink("b/file")


@pytest.mark.parametrize("path", ["", "a\0b", "\ud800"])
def test_what_is_no_path_is_not_there(tmp_path, path):
    with pytest.raises(FileNotFoundError):
        ImageFiles([tmp_path]).find(path)


GONE = """
import os, sys
from pathlib import Path
from agent.linux import mount
from agent.sandbox.blueprint import is_first_process
from agent.sandbox.diagnosis import Program
from agent.sandbox.furniture import furniture_of
from agent.sandbox.image_files import ImageFiles
server = os.open("/dev/fuse", os.O_RDWR)
data = f"fd={server},rootmode=40000,user_id=0,group_id=0"
mount.mount("fuse", Path(sys.argv[1], "srv"), "fuse", 0, data)
os.close(server)
files = ImageFiles([Path(sys.argv[1])])
program = Program(("/srv/start",), "/bin", "/", 0, 0)
for look in (
    lambda: furniture_of(files, "/srv/x"),
    lambda: is_first_process("auto", program, files),
):
    try:
        look()
    except OSError as error:
        print(error)
"""


def test_layers_whose_server_is_gone_are_not_taken_for_empty_ones(tmp_path):
    """Their version would be given a wrong init or working directory, and keep it."""
    (tmp_path / "srv").mkdir()
    own = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", *own, "--mount", sys.executable, "-c", GONE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("Transport endpoint is not connected") == 2, done.stdout
