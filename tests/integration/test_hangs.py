"""A worker that does not get on with its work: what it says about that, on the real host."""

from __future__ import annotations

import os
import re
import signal
import time

from tests.integration.functions import Functions
from tests.integration.running import RunningAgent

HELD_UP_S = 1.0


def lag_s(agent: RunningAgent) -> float:
    """The loop's lag as a scrape shows it."""
    text = agent.http("GET", "/metrics", port=agent.admin_port).body.decode()
    (found,) = re.findall(r"^kindling_loop_lag_seconds (\S+)$", text, re.MULTILINE)
    return float(found)


def test_the_lag_of_a_workers_loop_is_never_measured(agent):
    worker = agent.pids["worker"]
    os.kill(worker, signal.SIGSTOP)
    try:
        time.sleep(HELD_UP_S)  # sleeps: this is how long it is held up
    finally:
        os.kill(worker, signal.SIGCONT)
    assert lag_s(agent) >= HELD_UP_S / 2
    assert agent.pids["worker"] == worker


def test_the_logs_of_all_functions_have_no_figure(agent):
    with Functions(agent) as functions:
        functions.deploy("web")
        assert agent.http("GET", "/http/web/echo").status == 200
        text = agent.http("GET", "/metrics", port=agent.admin_port).body.decode()
    assert re.search(r"^kindling_log_bytes [1-9]", text, re.MULTILINE)
    assert 'kindling_log_lines_dropped_total{limit="logs_bytes"} 0.0' in text


def test_nobody_can_see_what_a_hanging_agent_does(agent):
    pids = agent.pids
    for name, wanted in {
        "worker": (r"\d+ tasks at \d+ places:", r"in Timer\.run", "most recent call first"),
        "supervise": (r"supervise\.py", "in run", "most recent call first"),
        "run": (r"parent\.py", "most recent call first"),
    }.items():
        after = len(agent.log())
        os.kill(pids[name], signal.SIGUSR2)
        agent.wait_until(
            lambda after=after, wanted=wanted: all(
                re.search(one, agent.log()[after:]) for one in wanted
            ),
            20,
            f"stacks of {name}",
        )
    assert agent.pids == pids
