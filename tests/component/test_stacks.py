"""The signal that prints what hangs, sent to real processes."""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from agent.aio.stacks import told
from agent.aio.tasks import spawn, stop

WORKER = """
import asyncio, faulthandler, sys, threading, uvloop
from agent.aio import stacks
from agent.aio.tasks import spawn

async def inner():
    await asyncio.get_running_loop().create_future()

async def hangs_here():
    await inner()

async def main():
    faulthandler.register(stacks.SIGNAL, file=2, all_threads=True)  # as the worker does at first
    stacks.print_on_signal(asyncio.get_running_loop())
    tasks = [spawn(f"call {n}", hangs_here()) for n in range(7)]
    tasks.append(spawn("alone", asyncio.Event().wait()))
    await asyncio.sleep(0)
    print("ready", file=sys.stderr, flush=True)
    if sys.argv[1] == "blocked":
        threading.Event().wait()
    await asyncio.wait(tasks)

if sys.argv[2] == "uvloop":
    uvloop.run(main())
else:
    asyncio.run(main())
"""

HOUSE = """
import sys
from agent.rootless.signals import Inbox

def waits_for_signals(inbox):
    print("ready", file=sys.stderr, flush=True)
    while not inbox.asked:
        inbox.reader.setblocking(True)
        inbox.reader.recv(1)

inbox = Inbox()
waits_for_signals(inbox)
"""


class Said:
    """What a process writes to its stderr."""

    def __init__(self, process):
        self.process, self.text = process, ""

    def read_until(self, *wanted):
        deadline = time.monotonic() + 20
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stderr, selectors.EVENT_READ)
            while not all(text in self.text for text in wanted):
                left_s = deadline - time.monotonic()
                assert left_s > 0, f"{wanted} did not come: {self.text}"
                if selector.select(left_s):
                    data = os.read(self.process.stderr.fileno(), 65536)
                    assert data, f"it ended: {self.text}"
                    self.text += data.decode()
        return self.text


@contextmanager
def running(*arguments):
    with subprocess.Popen([sys.executable, "-c", *arguments], stderr=subprocess.PIPE) as process:
        try:
            said = Said(process)
            said.read_until("ready")
            yield said
        finally:
            process.kill()


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_worker_that_hangs_does_not_say_where(loop):
    with running(WORKER, "idle", loop) as said:
        for _ in range(2):
            said.text = ""
            said.process.send_signal(signal.SIGUSR2)
            text = said.read_until("9 tasks at 3 places", "in inner\n", "(most recent call first)")
            said.read_until("awaits Future" if loop == "asyncio" else "in inner")
            assert "call 0, call 1, call 2, call 3, call 4 and 2 more\n" in text
            assert text.count("in hangs_here") == 1
            assert text.index("in hangs_here") < text.index("in inner")
            assert "alone\n" in text
        assert said.process.poll() is None


def test_a_blocked_loop_says_where_it_is_blocked():
    with running(WORKER, "blocked", "uvloop") as said:
        said.process.send_signal(signal.SIGUSR2)
        assert "in main" in said.read_until("(most recent call first)", "in main", "<module>")
        assert said.process.poll() is None


def test_run_and_supervise_say_where_they_wait():
    with running(HOUSE) as said:
        for _ in range(2):
            said.text = ""
            said.process.send_signal(signal.SIGUSR2)
            said.read_until("in waits_for_signals", "<module>")
        said.process.send_signal(signal.SIGTERM)
        assert said.process.wait(20) == 0


async def test_what_is_printed_is_bounded(monkeypatch):
    monkeypatch.setattr("agent.aio.stacks.MOST_CHARS", 4000)

    async def down(depth):
        await (down(depth - 1) if depth else asyncio.Event().wait())

    tasks = [spawn("x" * 1000, down(n)) for n in range(900)]
    await asyncio.sleep(0)
    text = told(tasks)
    await stop(*tasks)
    assert "900 tasks" in text
    assert text.endswith("… (the rest is left out)\n")
    assert 3000 < len(text) < 4100


async def test_generators_and_tasks_that_have_not_begun_are_told_too():
    async def steps():
        await asyncio.Event().wait()
        yield

    async def reads():
        async for _ in steps():
            pass

    waiting = spawn("waiting", reads())
    await asyncio.sleep(0)
    fresh = spawn("fresh", reads())
    own = asyncio.current_task()
    assert own is not None
    text = told([waiting, fresh, own])
    await stop(waiting, fresh)
    assert "fresh\n" in text
    assert text.count("in test_generators_and_tasks_that_have_not_begun_are_told_too") == 3
