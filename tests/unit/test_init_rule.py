"""Which commands are an init: names, places, forms."""

from __future__ import annotations

import pytest

from agent.core.init import is_init, program_of

INITS = [
    ["/init"],
    ["/init", "nginx", "-g", "daemon off;"],
    ["init"],
    ["/sbin/init"],
    ["/usr/sbin/init"],
    ["/bin//init"],
    ["/sbin/../sbin/init"],
    ["/lib/systemd/systemd"],
    ["/usr/lib/systemd/systemd", "--system"],
    ["/sbin/tini", "--", "node", "app.js"],
    ["tini", "-g", "--", "app"],
    ["/tini"],
    ["/usr/bin/tini-static"],
    ["/tini-static-amd64", "app"],
    ["tini-muslc-amd64"],
    ["/usr/bin/dumb-init", "app"],
    ["/dumb-init_1.2.5_x86_64", "app"],
    ["docker-init", "--", "app"],
    ["/usr/bin/catatonit", "--", "app"],
    ["s6-svscan", "/etc/s6"],
    ["/usr/bin/s6-svscan", "/run/service"],
    ["/package/admin/s6-overlay-3.1.6.2/libexec/preinit"],
    ["/package/admin/s6/command/s6-svscan"],
    ["/command/s6-svscan"],
    ["/bin/s6-linux-init"],
    ["runit"],
    ["/sbin/runit-init"],
    ["/usr/bin/runsvdir", "-P", "/etc/service"],
    ["/usr/sbin/runsvdir-start"],
    ["/etc/runit/2"],
    ["/sbin/my_init"],
    ["/sbin/my_init", "--", "app"],
    ["/sbin/openrc-init"],
    ["busybox", "init"],
    ["/bin/busybox", "init"],
    ["/linuxrc"],
    ["env", "A=1", "tini", "--", "app"],
    ["/usr/bin/env", "-i", "PATH=/bin", "/sbin/tini", "app"],
    ["/usr/bin/env", "-u", "HOME", "--", "dumb-init", "app"],
    ["env", "-S", "tini -- app"],
    ["env", "-Stini --", "app"],
    ["env", "--split-string=/init"],
    ["env", "env", "A=", "/init"],
    # As a Dockerfile's CMD and ENTRYPOINT without brackets, and what people write in their place.
    ["/bin/sh", "-c", "/init"],
    ["sh", "-c", "exec tini -- app"],
    ["/bin/bash", "-l", "-c", "exec /sbin/init"],
    ["bash", "-lc", " A=1  B=2 exec /init nginx "],
    ["busybox", "sh", "-ec", "exec env A=1 /init"],
    ["env", "A=1", "sh", "-c", "s6-svscan /etc/s6"],
]
OTHERS = [
    [],
    [""],
    ["/usr/bin/supervisord", "-n"],
    ["supervisord"],
    ["python3", "app.py"],
    ["/app/init"],
    ["/app/init.sh"],
    ["/init.sh"],
    ["/etc/init.d/nginx", "start"],
    ["sh", "-c", "prepare && exec tini -- app"],
    ["sh", "-c", "/init; true"],
    ["sh", "-c", "/init &"],
    ["sh", "-c", "$INIT"],
    ["sh", "-c", "exec"],
    ["sh", "-c", ""],
    ["sh", "-c"],
    ["sh", "-c", "python3 /init"],
    ["sh", "/init"],
    ["sh", "run.sh", "-c", "/init"],
    ["nginx"],
    ["/docker-entrypoint.sh", "tini"],
    ["busybox"],
    ["busybox", "sh", "init"],
    ["env"],
    ["env", "A=tini"],
    ["env", "A=1", "python3", "tini"],
    ["/sbin/tinit"],
    ["systemd-notify"],
    ["pm2-runtime", "app"],
]


@pytest.mark.parametrize("argv", INITS, ids=" ".join)
def test_an_init_is_known(argv):
    assert is_init(argv)


@pytest.mark.parametrize("argv", OTHERS, ids=" ".join)
def test_any_other_command_is_none(argv):
    assert not is_init(argv)


@pytest.mark.parametrize(
    ("argv", "workdir", "init"),
    [
        (["./init"], "/", True),
        (["./init"], "/app", False),
        (["../init"], "/app", True),
        (["sbin/init"], "/", True),
        (["sbin/init"], "/app", False),
        (["bin/tini"], "/opt", True),
    ],
)
def test_a_relative_path_begins_at_the_working_directory(argv, workdir, init):
    assert is_init(argv, workdir) is init


@pytest.mark.parametrize(
    ("argv", "program"),
    [
        (["/a", "b"], "/a"),
        (["env", "A=1", "/usr/bin/entry"], "/usr/bin/entry"),
        (["sh", "-c", "exec /usr/bin/entry a"], "/usr/bin/entry"),
        (["sh", "-c", "a; b"], "sh"),
        (["env"], ""),
        ([], ""),
    ],
)
def test_the_program_in_the_end(argv, program):
    assert program_of(argv) == program
