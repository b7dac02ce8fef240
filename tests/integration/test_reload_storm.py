"""Reload after reload under mixed load: no call is lost or refused, and the drained workers end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

from tests.integration.functions import Functions
from tests.integration.running import RunningAgent
from tests.integration.storm import APP, Storm
from tests.leak import command_of

# SPECIFICATION 2.4: for a minute, every two seconds, 200 calls begun a second.
FOR_S = float(os.environ.get("KINDLING_STORM_S", "60"))
EVERY_S = 2
PER_S = 200
COLD = 20


def workers(agent: RunningAgent) -> list[int]:
    return [pid for pid in agent.tree() if command_of(pid).endswith("agent.cli.main worker")]


def test_reloads_every_two_seconds_under_load_lose_and_refuse_no_call(make_agent):
    agent: RunningAgent = make_agent(
        node="storm",
        sections={"storage": {"writable": "tmpfs"}, "limits": {"stop_timeout_s": 5}},
    ).start()
    command = ["/usr/bin/python3", "-c", APP]
    with Functions(agent, same_worker=False) as functions:
        shape: dict[str, Any] = {
            "command": command,
            "timeout_s": 600,
            "memory_mb": 256,
            "concurrency": 150,
        }
        functions.deploy("web", scaling={"min": 2, "max": 4}, **shape)
        functions.deploy("event", kind="event", command=command, memory_mb=128)
        functions.deploy(
            "single", command=command, memory_mb=128, scaling={"max": 1}, max_queue=1000
        )
        for n in range(COLD):
            functions.deploy(f"cold{n}", command=command, memory_mb=128, scaling={"idle_s": 1})
        storm = Storm(agent.invoke_port)
        reloads = 0

        def each_second(second: int) -> None:
            nonlocal reloads
            for n in range(2):  # cold starts are under way at every moment
                cold = f"cold{(2 * second + n) % COLD}"
                storm.begin("cold", storm.get(f"/http/{cold}/sleep?s=0.01"))
            if second % EVERY_S == 0 and agent.process is not None:
                agent.process.send_signal(signal.SIGHUP)
                reloads += 1

        async def blow() -> None:
            over = asyncio.Event()
            talk = asyncio.get_running_loop().create_task(storm.talk(over))
            await storm.blow(FOR_S, PER_S, each_second)
            over.set()
            await talk
            await storm.ended()

        log_at = len(agent.log())
        asyncio.run(blow())
        functions.reconnect()
        log = agent.log()[log_at:]
        swaps = log.count("worker is ready after")
        print(f"\n{sum(storm.done.values())} calls over {swaps} swaps: {dict(storm.done)}")
        assert not storm.wrong, f"{dict(storm.wrong)}\n{log}"
        assert swaps >= reloads // 2, log
        deadline = time.monotonic() + 60
        while len(workers(agent)) > 1 and time.monotonic() < deadline:
            time.sleep(0.1)  # sleeps: between two looks at the process table
        assert workers(agent) == [agent.pids["worker"]], log
        agent.wait_until(lambda: functions.capacity()["inflight"] == 0, 10, "no call left")
    agent.close()
