"""The compiled form of the warm path (setup/compile.py): what must be the same in both forms.

`make compiled` runs the tests of what is compiled against extension modules, and says so by
KINDLING_TEST_FORM; everybody else runs the sources.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
import tomllib
import traceback
import weakref
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from agent.aio.stacks import told
from agent.aio.tasks import spawn, stop
from agent.contracts.doors import FC_PREFIX, Doors
from agent.core.pool import Policy, Pool
from agent.errors import Bug
from agent.gateway.wire.head import HeadCache
from agent.gateway.wire.upstream import UpstreamConnector
from agent.rootless import installed
from tests.component.function_house import until
from tests.component.gateway_house import tcp_socket

ROOT = Path(__file__).parents[2]
COMPILED = os.environ.get("KINDLING_TEST_FORM") == "compiled"
PATTERNS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["kindling"]["compiled"]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for pattern in PATTERNS
    for path in ROOT.glob(pattern)
    if path.name != "__init__.py"
)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_has_the_form_that_is_tested(name):
    file = import_module(name).__file__
    assert file is not None
    assert file.endswith(tuple(EXTENSION_SUFFIXES)) == COMPILED


def test_what_tells_the_form_looks_at_one_of_them():
    assert installed.ONE_COMPILED in MODULES
    assert installed.form().compiled == COMPILED


@pytest.mark.parametrize(
    ("note", "wanted", "why"),
    [
        ("chosen: as asked for\n", False, "as asked for"),
        ("failed: no gcc: run 'apt-get install gcc'\n", True, "no gcc: run 'apt-get install gcc'"),
        (None, False, "runs from sources that setup did not install"),
    ],
)
def test_the_pure_form_says_why(monkeypatch, tmp_path, note, wanted, why):
    monkeypatch.setattr(installed, "find_spec", lambda _: None)
    if note is not None:
        (tmp_path / installed.PURE_NOTE).write_text(note)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    form = installed.form()
    assert (form.name, form.wanted, form.why) == ("pure", wanted, why)


def _member():
    return Pool[str, str](Policy()).added("i", 0.0)


@pytest.mark.parametrize(
    "make",
    [_member, lambda: Pool[str, str](Policy()), lambda: HeadCache()],
    ids=["member", "pool", "cache"],
)
def test_what_is_referred_to_weakly_is_collected_like_anything_else(make):
    gone: list[object] = []
    one = make()
    try:
        reference = weakref.ref(one, gone.append)
    except TypeError:
        return  # its __slots__ have no room for references: no Python does more
    for _ in range(3):
        gc.collect()
    assert reference() is one
    del one
    gc.collect()
    assert reference() is None
    assert gone == [reference]


@pytest.mark.parametrize("rest", [b"", b"f", b"invocations", b"/invocations"])
def test_a_slice_that_ends_before_it_begins_is_empty(rest):
    assert Doors().match(b"POST", FC_PREFIX + rest, b"h", []) is None


def test_a_traceback_names_file_line_and_function():
    pool = Pool[str, str](Policy())
    member = pool.added("i", 0.0)
    pool.ready(member, 0.0)
    with pytest.raises(Bug) as raised:
        pool.ready(member, 0.0)
    last = traceback.extract_tb(raised.value.__traceback__)[-1]
    source = (ROOT / "agent/core/pool.py").read_text().splitlines()
    assert last.filename.endswith("agent/core/pool.py")
    assert last.name == "ready"
    assert last.lineno is not None
    assert "was not starting" in source[last.lineno - 1]


async def test_a_dump_names_what_hangs():
    listener = socket.create_server(("127.0.0.1", 0))  # whose backlog answers, and nobody else
    loop = asyncio.get_running_loop()
    connector = UpstreamConnector(tcp_socket)
    connection = await connector.open("127.0.0.1", listener.getsockname()[1], loop.time() + 5)
    hook = connection.roundtrip(b"GET / HTTP/1.1\r\n\r\n", b"", loop.time() + 600)
    task = spawn("a hook", hook)
    await asyncio.sleep(0)
    text = told([task])
    await stop(task)
    connector.close()
    listener.close()
    await until(lambda: not connector.connections)
    assert "a hook" in text
    assert "roundtrip" in text
