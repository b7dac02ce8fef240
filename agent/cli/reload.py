"""`kindling reload`: the agent goes on with the code that is installed and its configuration.

The agent is asked once; how it went is looked up until it has ended, across the swap of workers.
A worker that makes room may leave an asker without an answer: the next one has it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from agent.cli import answer
from agent.cli.answer import Json, json_option, print_json
from agent.cli.client import Client, NoAgent, NoAnswer, connect
from agent.cli.drain import a_number
from agent.cli.outcome import Unsuccessful
from agent.errors import AgentError

if TYPE_CHECKING:
    from agent._pb.worker.v1 import worker_pb2 as pb

# Preparing, trying and taking over have 60, 15, 30 and 60 s (agent/rootless/swap.py), and another
# reload may be under way.
TIMEOUT_S = 180.0
LOOK_S = 0.1
_ANSWER_S = 5.0
_AT_LEAST_S = 1.0

Found = TypeVar("Found")


@click.command()
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0.0, max=86_400.0),
    callback=a_number,
    default=TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="Wait no longer than this for its end; the reload itself goes on.",
)
@json_option
def command(timeout_s: float, as_json: bool) -> None:
    """Take the installed code and the configuration without ending a function or a call.

    HUP to the agent does the same. A release or a configuration that does not work changes nothing:
    exits with 1 and the reason.
    """
    began = time.monotonic()
    until = began + timeout_s
    number = _patiently(_ask, until, (NoAnswer,))
    found = _ended(number, until)
    found["took_ms"] = round((time.monotonic() - began) * 1000, 3)
    if as_json:
        print_json(found)
    if found["state"] == "failed":
        raise Unsuccessful("ReloadFailed", found["reason"], {"number": found["number"]})
    if found["state"] != "done":
        raise Unsuccessful(
            "ReloadRuns",
            f"after {timeout_s:g} s the reload has not ended: it is {found['state']}; "
            "'kindling status' tells how it goes on",
            {"number": found["number"]},
        )
    if not as_json:
        click.echo(f"reloaded in {found['took_ms'] / 1000:.1f} s")


def _ask(client: Client, within_s: float) -> int:
    from agent._pb.worker.v1 import worker_pb2 as pb

    reply = client.ask("Reload", pb.ReloadRequest(), pb.ReloadResponse, within_s=within_s)
    return reply.number


def _look(client: Client, within_s: float) -> pb.Node:
    from agent._pb.worker.v1 import worker_pb2 as pb

    return client.ask("GetNode", pb.GetNodeRequest(), pb.Node, within_s=within_s)


def _ended(number: int, until: float) -> Json:
    """Return the reload of this number or of a later one, once it has ended or time is up."""
    found: Json = {"number": number, "state": "asked for", "reason": ""}
    while True:
        try:
            node = _patiently(_look, until, (NoAgent,))
        except AgentError as error:
            if not error.retryable:
                raise
            return found
        if node.reload.number >= number:
            found = answer.reload(node.reload)
            if found["state"] != "running":
                return found
        if time.monotonic() >= until:
            return found
        time.sleep(min(LOOK_S, max(until - time.monotonic(), 0.0)))


def _patiently(
    ask: Callable[[Client, float], Found], until: float, passing: tuple[type[AgentError], ...]
) -> Found:
    """Ask until there is an answer, each time on a connection of its own; the last error stands."""
    while True:
        left_s = until - time.monotonic()
        try:
            with connect() as client:
                return ask(client, max(min(left_s, _ANSWER_S), _AT_LEAST_S))
        except AgentError as error:
            again = isinstance(error, passing) or (
                error.retryable and not isinstance(error, NoAgent)
            )
            if not again or time.monotonic() + LOOK_S >= until:
                raise
        time.sleep(LOOK_S)
