"""`kindling remove`: a function goes with all its versions and instances."""

from __future__ import annotations

import click

from agent.cli.answer import json_option, print_json
from agent.cli.client import connect

# The longest that a contract gives calls in flight to end, plus the stop itself.
_DRAIN_S = 86_400.0 + 600.0


@click.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Kill its instances instead of draining them.")
@json_option
def command(name: str, force: bool, as_json: bool) -> None:
    """Remove the function NAME with all its versions, once its calls in flight have ended."""
    from agent._pb.worker.v1 import worker_pb2 as pb

    with connect() as client:
        request = pb.RemoveRequest(name=name, force=force)
        client.ask("Remove", request, pb.RemoveResponse, within_s=_DRAIN_S)
    if as_json:
        print_json({"removed": name})
    else:
        click.echo(f"removed {name}")
