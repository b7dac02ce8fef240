"""`kindling drain`: the node takes no new work and what runs may end."""

from __future__ import annotations

import math

import click

from agent.cli.answer import json_option, print_json
from agent.cli.client import ASK_S, connect
from agent.cli.outcome import Unsuccessful


def a_number(_context: click.Context, option: click.Parameter, given: float | None) -> float | None:
    """Refuse NaN, which is in no range and outside of none."""
    if given is not None and math.isnan(given):
        raise click.BadParameter("nan is no time.", param=option)
    return given


@click.command()
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0.0, max=86_400.0),
    callback=a_number,
    metavar="SECONDS",
    help="Wait no longer than this for calls in flight; without it, until they have ended.",
)
@json_option
def command(timeout_s: float | None, as_json: bool) -> None:
    """Take no new work and wait until nothing is in flight.

    Instances stay; `kindling undrain` takes work again. Exits with 1 when calls were still in
    flight at the end of --timeout.
    """
    from google.protobuf.duration_pb2 import Duration

    from agent._pb.worker.v1 import worker_pb2 as pb

    request = pb.DrainRequest()
    if timeout_s is not None:
        span = Duration()
        span.FromNanoseconds(round(timeout_s * 1e9))
        request.timeout.CopyFrom(span)
    with connect() as client:
        within_s = None if timeout_s is None else timeout_s + ASK_S
        reply = client.ask("Drain", request, pb.DrainResponse, within_s=within_s)
    if as_json:
        print_json({"draining": True, "inflight": reply.inflight})
    elif not reply.inflight:
        click.echo("drained: nothing is in flight, no new work is taken")
    if reply.inflight:
        raise Unsuccessful(
            "StillInFlight",
            f"{reply.inflight} calls are still in flight; the node goes on draining",
            {"inflight": reply.inflight},
        )
