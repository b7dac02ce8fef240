"""Whether the node's init or the program itself is the first process: spec, command, links."""

from __future__ import annotations

import pytest

from agent.sandbox.blueprint import is_first_process
from agent.sandbox.diagnosis import Program
from agent.sandbox.image_files import ImageFiles

LINKS = {
    "usr/bin/entry": "/usr/bin/tini",
    "usr/bin/other": "python3",
    "usr/bin/far": "../../opt/links/init",
    "opt/links/init": "/package/admin/s6-overlay/init",
    "bin/sh": "busybox",
    "bin/gone": "tini",
}
FILES = ("usr/bin/tini", "usr/bin/python3", "bin/busybox", "package/admin/s6-overlay/init")


@pytest.fixture
def files(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name, target in LINKS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(target)
    return ImageFiles([tmp_path])


def program(*argv, workdir="/"):
    return Program(argv, "/usr/local/bin:/usr/bin:/bin", workdir, 0, 0)


@pytest.mark.parametrize(
    ("argv", "itself"),
    [
        (("/usr/bin/tini", "--", "app"), True),
        (("/usr/bin/entry", "app"), True),
        (("entry", "app"), True),
        (("/usr/bin/far",), True),
        (("env", "A=1", "entry"), True),
        (("/usr/bin/other",), False),
        (("sh", "init"), False),  # a shell, though its file is busybox
        (("/bin/gone",), False),
        (("nowhere",), False),
        (("/usr/bin/python3", "app.py"), False),
    ],
)
def test_auto_looks_at_the_command_and_where_its_links_lead(files, argv, itself):
    assert is_first_process("auto", program(*argv), files) is itself


SCRIPTS = {
    "ends with an init": ("#!/bin/sh\nset -e\nprepare\nexec /usr/bin/tini -- app\n", (), True),
    "ends with a link to one": ('#!/bin/sh\nexec entry "$@"\n\n# the end\n', (), True),
    "ends with what it is given": ('#!/bin/bash\nexec "$@"\n', ("/usr/bin/tini", "app"), True),
    "is given none": ('#!/bin/bash\nexec "$@"\n', ("python3", "app.py"), False),
    "is given nothing": ('#!/bin/bash\nexec "$@"', (), False),
    "calls itself": ('#!/bin/sh\nexec /opt/start "$@"\n', (), False),
    "goes on behind it": ("#!/bin/sh\nexec tini || true\nfi\n", (), False),
    "only runs one": ("#!/bin/sh\ntini -- app\n", (), False),
    "is read by an init": ("#!/usr/bin/tini /bin/sh\nrun\n", (), True),
    "is too long": ("#!/bin/sh\n" + "# x\n" * 20_000 + "exec tini\n", (), False),
    "is no script": ("exec /usr/bin/tini\n", (), False),
}


@pytest.mark.parametrize(("text", "args", "itself"), SCRIPTS.values(), ids=SCRIPTS)
def test_auto_looks_at_what_a_script_ends_with(files, tmp_path, text, args, itself):
    (tmp_path / "opt" / "start").write_text(text)
    assert is_first_process("auto", program("/opt/start", *args), files) is itself


def test_a_relative_link_begins_at_the_working_directory(files):
    assert is_first_process("auto", program("./entry", workdir="/usr/bin"), files)
    assert not is_first_process("auto", program("./entry", workdir="/"), files)


@pytest.mark.parametrize("argv", [("/init",), ("/usr/bin/python3",)])
def test_who_says_it_is_obeyed(files, argv):
    assert is_first_process("false", program(*argv), files)
    assert not is_first_process("true", program(*argv), files)
