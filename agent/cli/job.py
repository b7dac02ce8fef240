"""Runs a job for `kindling invoke`: prints its call id, or waits for its log and exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agent.cli import answer, trace
from agent.cli.answer import print_json
from agent.cli.client import Client
from agent.cli.outcome import Unsuccessful

if TYPE_CHECKING:
    from agent._pb.worker.v1 import worker_pb2 as pb

_ENDED_BADLY = frozenset({"Failed", "Stopped", "Expired"})


def run(
    client: Client, request: pb.RunJobRequest, within_s: float, *, as_json: bool, traced: bool
) -> None:
    """Start a job; with `wait` in the request, return when it has ended.

    Raises Unsuccessful when the job is known to have failed.
    """
    from agent._pb.worker.v1 import worker_pb2 as pb

    record = client.ask("RunJob", request, pb.Call, within_s=within_s)
    lines = _log(client, request.name, record) if request.wait else None
    if as_json:
        log = None if lines is None else [answer.log_line(line) for line in lines]
        print_json(answer.job(record, log))
    elif lines is None:
        click.echo(record.id)
    else:
        _print(record, lines)
    if traced:
        trace.show(record)
    if answer.call_state(record) in _ENDED_BADLY:
        raise _failed(request.name, record)


def _log(client: Client, name: str, record: pb.Call) -> list[pb.LogLine]:
    from agent._pb.worker.v1 import worker_pb2 as pb

    # An instance of a job serves one call, so its lines are the call's.
    wanted = pb.StreamLogsRequest(name=name, instance=record.instance)
    if not record.instance:
        wanted.call = record.id
    return list(client.follow("StreamLogs", wanted, pb.LogLine))


def _print(record: pb.Call, lines: list[pb.LogLine]) -> None:
    click.echo(f"call {record.id}")
    for line in lines:
        click.echo(line.text, nl=not line.partial)
    if lines and lines[-1].partial:
        click.echo()
    if record.HasField("exit_code"):
        click.echo(f"exit code {record.exit_code}")
    else:
        click.echo(f"no exit code: {answer.call_state(record)}")


def _failed(name: str, record: pb.Call) -> Unsuccessful:
    state = answer.call_state(record)
    more: dict[str, Any] = {"state": state, "request_id": record.id, "fault": "function"}
    why = record.error
    if record.HasField("exit_code"):
        more["exit_code"] = record.exit_code
        why = why or f"exit code {record.exit_code}"
    return Unsuccessful("JobFailed", f"{name} {state.lower()}: {why or 'no reason given'}", more)
